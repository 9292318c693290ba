package firewall

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

func TestSpanString(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"10.0.0.252/31", "10.0.0.1/32", "0.0.0.0/1", "2001:db8::/33", "::1/128", "255.255.255.255/32", "ff00::/8"} {
		if got := spanOf(netip.MustParsePrefix(text), 0).String(); got != text {
			t.Errorf("got %s, want %s", got, text)
		}
	}
	s := Span{First: netip.MustParseAddr("10.0.0.1"), Last: netip.MustParseAddr("10.0.0.2")}
	if got := s.String(); got != "10.0.0.1-10.0.0.2" {
		t.Errorf("got %s", got)
	}
}

// TestAddSpans: whatever is added in whatever order, no two overlap, and each address lasts
// as long as the longest that was asked for it, at least.
func TestAddSpans(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	for range 300 {
		var asked, have []Span
		for range 12 {
			s := Span{First: netip.AddrFrom4([4]byte{10, 0, 0, byte(rng.IntN(200))}), Expires: time.Duration(1 + rng.IntN(5))}
			s.Last = netip.AddrFrom4([4]byte{10, 0, 0, s.First.As4()[3] + byte(rng.IntN(20))})
			if rng.IntN(4) == 0 {
				s = spanOf(netip.PrefixFrom(netip.AddrFrom16([16]byte{15: byte(rng.IntN(200))}), 120+rng.IntN(9)), s.Expires)
			}
			asked = append(asked, s)
			have = addSpans(have, []Span{s})
		}
		for i := range have[1:] {
			if have[i].overlaps(have[i+1]) || !have[i].First.Less(have[i+1].First) {
				t.Fatalf("%v and %v, of %v", have[i], have[i+1], asked)
			}
		}
		for _, a := range asked {
			if !slices.ContainsFunc(have, func(h Span) bool {
				return h.overlaps(a) && h.First.Compare(a.First) <= 0 && a.Last.Compare(h.Last) <= 0 && h.Expires >= a.Expires
			}) {
				t.Fatalf("%v is not in %v", a, have)
			}
		}
	}
}
