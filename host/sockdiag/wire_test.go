package sockdiag

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// TestRequest: the bytes of a request for one port, as the kernel's headers lay them out.
func TestRequest(t *testing.T) {
	t.Parallel()
	got, err := request(Query{Family: IPv6, Ports: []uint16{443}, States: []State{Established, CloseWait}}, 7)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 72)
	native := binary.NativeEndian
	native.PutUint32(want[0:], 72)
	native.PutUint16(want[4:], 20)    // SOCK_DIAG_BY_FAMILY
	native.PutUint16(want[6:], 0x301) // NLM_F_REQUEST | NLM_F_DUMP
	native.PutUint32(want[8:], 7)
	want[16], want[17], want[18] = 10, 6, 2 // AF_INET6, IPPROTO_TCP, INET_DIAG_INFO
	native.PutUint32(want[20:], 1<<1|1<<8)
	want[24], want[25] = 1, 187 // port 443 in network order
	if !slices.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	for _, n := range []int{0, MaxPorts + 1} {
		if _, err := request(Query{Family: IPv4, Ports: make([]uint16, n)}, 1); err == nil {
			t.Errorf("%d ports are taken", n)
		}
	}
}

// accepts runs bytecode as the kernel does (inet_diag_bc_run).
func accepts(t *testing.T, code []byte, port uint16) bool {
	native := binary.NativeEndian
	for length := len(code); length > 0; {
		yes := true
		switch code[0] {
		case opPortAtLeast:
			yes = port >= native.Uint16(code[opLen+2:])
		case opPortAtMost:
			yes = port <= native.Uint16(code[opLen+2:])
		case opJump:
			yes = false
		default:
			t.Fatalf("operation %d", code[0])
		}
		jump := int(code[1])
		if !yes {
			jump = int(native.Uint16(code[2:]))
		}
		if jump == 0 {
			t.Fatal("a jump to itself")
		}
		if length -= jump; length <= 0 {
			return length == 0
		}
		code = code[jump:]
	}
	return false
}

// TestBytecode: the program is true for the ports it was made of, and for no other.
func TestBytecode(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))
	for _, n := range []int{2, 3, 17, 300, MaxPorts} {
		ports := make([]uint16, n)
		for i := range ports {
			ports[i] = uint16(rng.Uint32())
		}
		attribute := bytecode(ports)
		if length := int(binary.NativeEndian.Uint16(attribute)); length != len(attribute) || length%4 != 0 {
			t.Fatalf("%d ports: the attribute has %d bytes and says %d", n, len(attribute), length)
		}
		for _, near := range ports {
			for _, p := range []uint16{near - 1, near, near + 1} {
				if got, want := accepts(t, attribute[4:], p), slices.Contains(ports, p); got != want {
					t.Fatalf("%d ports: %d is taken: %v, want %v", n, p, got, want)
				}
			}
		}
	}
}

// message is an answer of the kernel: an inet_diag_msg and its attributes.
func message(kind uint16, sequence uint32, body []byte) []byte {
	native := binary.NativeEndian
	b := native.AppendUint32(nil, uint32(headerLen+len(body)))
	b = native.AppendUint16(b, kind)
	b = native.AppendUint16(b, 2)
	b = native.AppendUint32(b, sequence)
	b = append(native.AppendUint32(b, 0), body...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func answer(family uint8, local, peer netip.AddrPort, attributes []byte) []byte {
	b := make([]byte, socketLen)
	b[0], b[1] = family, byte(Established)
	binary.BigEndian.PutUint16(b[4:], local.Port())
	binary.BigEndian.PutUint16(b[6:], peer.Port())
	copy(b[8:], local.Addr().AsSlice())
	copy(b[24:], peer.Addr().AsSlice())
	native := binary.NativeEndian
	native.PutUint64(b[44:], 0x1122334455667788)
	native.PutUint32(b[56:], 5)
	native.PutUint32(b[60:], 6)
	return append(b, attributes...)
}

func attribute(kind uint16, data []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// tcpInfo is a tcp_info of so many bytes.
func tcpInfo(size int) []byte {
	b := make([]byte, 300)
	native := binary.NativeEndian
	native.PutUint32(b[44:], 4000)
	native.PutUint32(b[52:], 5000)
	native.PutUint64(b[120:], 1)
	native.PutUint32(b[152:], 1)
	return b[:size]
}

func TestDecode(t *testing.T) {
	t.Parallel()
	local, peer := netip.MustParseAddrPort("10.0.0.1:443"), netip.MustParseAddrPort("192.0.2.7:50000")
	mapped := func(a netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
	}
	base := Socket{Family: IPv4, State: Established, Local: local, Peer: peer, Cookie: 0x1122334455667788, RecvQueue: 5, SendQueue: 6}
	with := func(change func(*Socket)) Socket { s := base; change(&s); return s }
	for name, tt := range map[string]struct {
		body []byte
		want Socket
	}{
		"plain":  {answer(IPv4, local, peer, nil), base},
		"mapped": {answer(IPv6, mapped(local), mapped(peer), nil), with(func(s *Socket) { s.Family = IPv6 })},
		"IPv6": {answer(IPv6, netip.MustParseAddrPort("[2001:db8::1]:443"), netip.MustParseAddrPort("[2001:db8::2]:50000"), nil), with(func(s *Socket) {
			s.Family, s.Local, s.Peer = IPv6, netip.MustParseAddrPort("[2001:db8::1]:443"), netip.MustParseAddrPort("[2001:db8::2]:50000")
		})},
		"tcp_info": {answer(IPv4, local, peer, append(attribute(8, []byte{1}), attribute(2, tcpInfo(248))...)), with(func(s *Socket) {
			s.Info = Info{Known: true, Counted: true, SinceSent: 4000, SinceReceived: 5000, Sent: true, Received: true}
		})},
		"nested flag":    {answer(IPv4, local, peer, attribute(0x8002, tcpInfo(160))), with(func(s *Socket) { s.Info = Info{true, true, 4000, 5000, true, true} })},
		"old tcp_info":   {answer(IPv4, local, peer, attribute(2, tcpInfo(104))), with(func(s *Socket) { s.Info = Info{Known: true, SinceSent: 4000, SinceReceived: 5000} })},
		"short tcp_info": {answer(IPv4, local, peer, attribute(2, tcpInfo(55))), base},
	} {
		var got []Socket
		s := Socket{Info: Info{Known: true}} // of the one before
		b := append(message(typeByFamily, 3, answer(IPv4, peer, local, nil)), message(typeByFamily, 4, tt.body)...)
		done, err := decode(b, 4, &s, func(s *Socket) { got = append(got, *s) })
		if err != nil || done || !slices.Equal(got, []Socket{tt.want}) {
			t.Errorf("%s: got %v, %v, %+v\nwant %+v", name, done, err, got, tt.want)
		}
	}
}

// TestDecodeEnds: the end of a listing, the kernel's refusals and what is cut short.
func TestDecodeEnds(t *testing.T) {
	t.Parallel()
	code := func(n int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(n)) }
	for name, tt := range map[string]struct {
		b    []byte
		done bool
		want error
	}{
		"done":              {message(typeDone, 1, code(0)), true, nil},
		"done, old kernel":  {message(typeDone, 1, nil), true, nil},
		"done in the end":   {append(message(typeByFamily, 1, make([]byte, socketLen)), message(typeDone, 1, code(0))...), true, nil},
		"of another":        {message(typeDone, 2, code(0)), false, nil},
		"failed in the end": {message(typeDone, 1, code(-12)), true, syscall.ENOMEM},
		"refused":           {message(typeError, 1, code(-2)), true, syscall.ENOENT},
		"nothing":           {nil, false, nil},
		"half a header":     {make([]byte, 10), false, nil},
		"no length":         {make([]byte, 16), false, errShort},
		"half a socket":     {message(typeByFamily, 1, make([]byte, socketLen-4)), false, errShort},
		"half a message":    {message(typeByFamily, 1, make([]byte, socketLen))[:60], false, errShort},
		"long attribute":    {message(typeByFamily, 1, append(make([]byte, socketLen), 0xff, 0xff, 2, 0)), false, errShort},
		"empty attribute":   {message(typeByFamily, 1, append(make([]byte, socketLen), 0, 0, 0, 0)), false, errShort},
	} {
		var s Socket
		done, err := decode(tt.b, 1, &s, func(*Socket) {})
		if done != tt.done || !errors.Is(err, tt.want) {
			t.Errorf("%s: got %v, %v; want %v, %v", name, done, err, tt.done, tt.want)
		}
	}
}

// TestDecodeMakesNoGarbage: however many sockets there are.
func TestDecodeMakesNoGarbage(t *testing.T) {
	one := message(typeByFamily, 1, answer(IPv6, netip.MustParseAddrPort("[2001:db8::1]:443"), netip.MustParseAddrPort("[2001:db8::2]:50000"), attribute(2, tcpInfo(248))))
	b := slices.Repeat(one, 100)
	var s Socket
	n := 0
	each := func(*Socket) { n++ }
	if got := testing.AllocsPerRun(10, func() {
		if _, err := decode(b, 1, &s, each); err != nil {
			t.Error(err)
		}
	}); got != 0 || n == 0 {
		t.Errorf("%v allocations for 100 sockets", got)
	}
}

// FuzzDecode: whatever comes, it ends, without a panic, and says what is wrong.
func FuzzDecode(f *testing.F) {
	local, peer := netip.MustParseAddrPort("10.0.0.1:443"), netip.MustParseAddrPort("192.0.2.7:50000")
	f.Add(append(message(typeByFamily, 1, answer(IPv4, local, peer, attribute(2, tcpInfo(248)))), message(typeDone, 1, make([]byte, 4))...))
	f.Add(message(typeError, 1, []byte{0xfe, 0xff, 0xff, 0xff}))
	if b, err := hex.DecodeString(strings.Repeat("00", 20)); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Socket
		sockets := 0
		_, err := decode(b, 1, &s, func(s *Socket) {
			sockets++
			if !s.Local.IsValid() || !s.Peer.IsValid() || s.Peer.Addr().Is4In6() || s.Info.Counted && !s.Info.Known {
				t.Errorf("got %+v", s)
			}
		})
		if sockets > len(b)/(headerLen+socketLen) {
			t.Errorf("%d sockets in %d bytes", sockets, len(b))
		}
		if _, kernel := errors.AsType[syscall.Errno](err); err != nil && !kernel && !errors.Is(err, errShort) {
			t.Errorf("got %v", err)
		}
	})
}
