package sockdiag

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"example.org/usher/host/hosttest"
)

// TestList: the kernel gives the sockets of the states on the ports, of one family, and
// no others.
func TestList(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	listen := func(address string) *net.TCPListener {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l.(*net.TCPListener)
	}
	dial := func(l *net.TCPListener, address string) net.Conn {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		accepted, err := l.Accept() // only then is it established on both sides, for sure
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); accepted.Close() })
		return c
	}
	plain, dual, other := listen("127.0.0.1:1000"), listen(":2000"), listen("127.0.0.1:3000")
	first := dial(plain, plain.Addr().String())
	dial(plain, plain.Addr().String())
	mapped := dial(dual, "127.0.0.1:2000")
	dial(dual, "[::1]:2000")
	dial(other, other.Addr().String())

	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	find := func(q Query) []Socket {
		t.Helper()
		var found []Socket
		if err := c.List(q, func(s *Socket) { found = append(found, *s) }); err != nil {
			t.Fatal(err)
		}
		return found
	}
	for _, tt := range []struct {
		q    Query
		want int
	}{
		{Query{IPv4, []uint16{1000}, []State{Established}}, 2},
		{Query{IPv4, []uint16{1000}, []State{Established, Listen}}, 3},
		{Query{IPv4, []uint16{1000}, []State{CloseWait}}, 0},
		{Query{IPv6, []uint16{1000}, []State{Established}}, 0},
		{Query{IPv6, []uint16{2000}, []State{Established}}, 2},
		{Query{IPv4, []uint16{2000}, []State{Established}}, 0},
		{Query{IPv4, []uint16{1000, 2000, 4000}, []State{Established}}, 2},
		{Query{IPv4, []uint16{4000, 3000, 1000}, []State{Established}}, 3},
		{Query{IPv4, []uint16{999, 1001}, []State{Established, Listen}}, 0},
	} {
		if got := find(tt.q); len(got) != tt.want {
			t.Errorf("%+v: got %d sockets, want %d: %+v", tt.q, len(got), tt.want, got)
		}
	}

	peer := first.LocalAddr().(*net.TCPAddr).AddrPort()
	isFirst := func(s Socket) bool { return s.Peer == peer }
	before := find(Query{IPv4, []uint16{1000}, []State{Established}})
	if _, err := first.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	var after []Socket
	hosttest.Eventually(t, "the bytes to come", func() bool {
		after = find(Query{IPv4, []uint16{1000}, []State{Established}})
		return slices.ContainsFunc(after, func(s Socket) bool { return isFirst(s) && s.RecvQueue > 0 })
	})
	i, j := slices.IndexFunc(before, isFirst), slices.IndexFunc(after, isFirst)
	if i < 0 || j < 0 {
		t.Fatalf("the connection of %v is missing in %+v or %+v", peer, before, after)
	}
	if before[i].RecvQueue != 0 || before[i].Info.Received || after[j].RecvQueue != 5 || !after[j].Info.Received || after[j].Info.Sent || !after[j].Info.Counted ||
		before[i].Cookie == 0 || before[i].Cookie != after[j].Cookie {
		t.Errorf("got before and after 5 bytes\n%+v\n%+v", before[i], after[j])
	}
	mappedPeer := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(mapped.LocalAddr().(*net.TCPAddr).Port))
	if got := find(Query{IPv6, []uint16{2000}, []State{Established}}); !slices.ContainsFunc(got, func(s Socket) bool { return s.Peer == mappedPeer }) {
		t.Errorf("want the mapped peer %v, got %+v", mappedPeer, got)
	}
}
