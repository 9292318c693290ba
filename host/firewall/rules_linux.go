package firewall

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Rules are made of these parts, in the order in which nft writes them.

// fromSet: the source is in the set, or is not. It matches packets of one IP version.
func fromSet(set *nftables.Set, not bool) []expr.Any {
	version, offset, length := byte(unix.NFPROTO_IPV4), uint32(12), uint32(4)
	if set.KeyType == nftables.TypeIP6Addr {
		version, offset, length = unix.NFPROTO_IPV6, 8, 16
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{version}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID, Invert: not},
	}
}

// toAddress: the destination is this address.
func toAddress(a netip.Addr) []expr.Any {
	version, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if a.Is6() {
		version, offset = unix.NFPROTO_IPV6, 24
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{version}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(a.BitLen() / 8)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a.AsSlice()},
	}
}

// toPorts: TCP, to a port of the set.
func toPorts(ports *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: 1, SetName: ports.Name, SetID: ports.ID},
	}
}

// opening: flags & (fin|syn|rst|ack) == syn.
func opening() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{0x17}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{0x02}},
	}
}

// opens: both.
func opens(ports *nftables.Set) []expr.Any { return append(toPorts(ports), opening()...) }

// count adds to a counter of the table.
func count(name string) expr.Any { return &expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: name} }

func rule(c *nftables.Chain, parts ...[]expr.Any) *nftables.Rule {
	r := &nftables.Rule{Table: c.Table, Chain: c}
	for _, p := range parts {
		r.Exprs = append(r.Exprs, p...)
	}
	return r
}

// networks and ports are sets as rules look them up. Their numbers tell the sets of one
// batch apart; those that the package would give come from a variable that it does not
// guard.
func networks(t *nftables.Table, id uint32, name string, kind nftables.SetDatatype) *nftables.Set {
	return &nftables.Set{Table: t, ID: id, Name: name, KeyType: kind, Interval: true}
}

func ports(t *nftables.Table, id uint32, name string) *nftables.Set {
	return &nftables.Set{Table: t, ID: id, Name: name, KeyType: nftables.TypeInetService}
}

// spanElements are two for each span, the second one past its end; the kernel takes a
// time for the first alone.
func spanElements(spans []Span) []nftables.SetElement {
	var elements []nftables.SetElement
	for _, s := range spans {
		elements = append(elements, nftables.SetElement{Key: s.First.AsSlice(), Timeout: s.Expires})
		if end := s.Last.Next(); end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return elements
}

func portElements(ports []Port) []nftables.SetElement {
	var elements []nftables.SetElement
	for _, p := range ports {
		elements = append(elements, nftables.SetElement{Key: binary.BigEndian.AppendUint16(nil, p.Number), Timeout: p.Expires})
	}
	return elements
}

// split tells the spans of IPv4 from those of IPv6.
func split(spans []Span) (v4, v6 []Span) {
	for _, s := range spans {
		if s.First.Is4() {
			v4 = append(v4, s)
		} else {
			v6 = append(v6, s)
		}
	}
	return v4, v6
}
