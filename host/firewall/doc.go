// Package firewall keeps one nftables table of usher's own on a host, "inet usher", in
// which every entry ends by itself, and counts the connections that arrive, in tables that
// the kernel takes away with the process. It touches no other table but the watches of
// the script.
//
// The table has the names and sets that the worker's script uses too:
//
//	probes4, probes6, probe_ports   first packets from these networks to these ports are dropped
//	counted_ports                   first packets to these ports are counted as "arrivals"
//	blocked_ports                   and refused with RST if they go to these
//
// Only packets that open a connection match, so connections that exist go on. They are
// told by their flags: a match on the state would turn connection tracking on.
package firewall

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"time"
)

// ErrUnsupported: the host's kernel cannot do this.
var ErrUnsupported = errors.New("nftables is not to be had here")

// ErrUndone: an undo came in between.
var ErrUndone = errors.New("an undo came in between")

// Change is what to add to the table. What is there already stays, and lasts the longer
// of both times.
type Change struct {
	Ports []uint16
	// Probes are networks whose new connections to Ports are dropped; no mapped ones.
	Probes []netip.Prefix
	// Block has all other new connections to Ports refused.
	Block bool
	// Expires is when all this ends by itself.
	Expires time.Duration
}

// State is what the table says. The zero State is that of a host without one.
type State struct {
	Present      bool
	Probes       []Span // by address
	ProbePorts   []Port // by number, and so are the others
	BlockedPorts []Port
	CountedPorts []Port
	Arrivals     uint64
}

// Span is all addresses from First to Last, for so long.
type Span struct {
	First, Last netip.Addr
	Expires     time.Duration
}

// Port is one port, for so long.
type Port struct {
	Number  uint16
	Expires time.Duration
}

// String is the network, or the first address and the last one.
func (s Span) String() string {
	for bits := s.First.BitLen(); bits >= 0; bits-- {
		if p := netip.PrefixFrom(s.First, bits).Masked(); p.Addr() == s.First && last(p) == s.Last {
			return p.String()
		}
	}
	return s.First.String() + "-" + s.Last.String()
}

func spanOf(p netip.Prefix, expires time.Duration) Span {
	p = p.Masked()
	return Span{p.Addr(), last(p), expires}
}

// last is the last address of a network.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for bit := p.Bits(); bit < len(b)*8; bit++ {
		b[bit/8] |= 0x80 >> (bit % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (s Span) overlaps(other Span) bool {
	return s.First.BitLen() == other.First.BitLen() && s.First.Compare(other.Last) <= 0 && other.First.Compare(s.Last) <= 0
}

// addSpans is have with wanted added. Spans that overlap become one, for the longer of the
// times: the kernel refuses those that overlap.
func addSpans(have, wanted []Span) []Span {
	have = slices.Clone(have)
	for _, w := range wanted {
		have = slices.DeleteFunc(have, func(h Span) bool {
			if !h.overlaps(w) {
				return false
			}
			if h.First.Less(w.First) {
				w.First = h.First
			}
			if w.Last.Less(h.Last) {
				w.Last = h.Last
			}
			w.Expires = max(w.Expires, h.Expires)
			return true
		})
		have = append(have, w)
	}
	sortSpans(have)
	return have
}

func sortSpans(s []Span) { slices.SortFunc(s, func(a, b Span) int { return a.First.Compare(b.First) }) }
func sortPorts(p []Port) {
	slices.SortFunc(p, func(a, b Port) int { return cmp.Compare(a.Number, b.Number) })
}

// addPorts is have with the ports added, for expires at least.
func addPorts(have []Port, ports []uint16, expires time.Duration) []Port {
	have = slices.Clone(have)
	for _, n := range ports {
		i := slices.IndexFunc(have, func(h Port) bool { return h.Number == n })
		if i < 0 {
			have = append(have, Port{n, expires})
		} else {
			have[i].Expires = max(have[i].Expires, expires)
		}
	}
	sortPorts(have)
	return have
}

// difference is what is in a and not, just so, in b.
func difference[T comparable](a, b []T) []T {
	var d []T
	for _, x := range a {
		if !slices.Contains(b, x) {
			d = append(d, x)
		}
	}
	return d
}
