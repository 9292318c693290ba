package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
)

// The kernel's numbers, in include/uapi/linux/netlink.h, sock_diag.h and inet_diag.h.
const (
	headerLen  = 16 // of a netlink message
	requestLen = headerLen + 56
	socketLen  = 72 // inet_diag_msg

	typeError    = 2
	typeDone     = 3
	typeByFamily = 20

	flagRequest = 0x1
	flagDump    = 0x300

	protocolTCP    = 6
	attrBytecode   = 1      // of a request
	attrInfo       = 2      // of an answer
	attrMask       = 0x3fff // without the flags of its type
	wantInfo       = 1 << (attrInfo - 1)
	opJump         = 1
	opPortAtLeast  = 2
	opPortAtMost   = 3
	opLen          = 4
	comparison     = 2 * opLen // the second one holds the port
	portLen        = 2*comparison + opLen
	infoTimesLen   = 56
	infoCountsLen  = 160
	infoSent       = 44
	infoReceived   = 52
	infoBytesAcked = 120
	infoBytesCame  = 128
	infoSegsCame   = 152
	infoSegsSent   = 156
)

// errShort: a message says that it is longer than what came.
var errShort = errors.New("a message is cut short")

// request is a query as the kernel reads it.
func request(q Query, sequence uint32) ([]byte, error) {
	if len(q.Ports) == 0 || len(q.Ports) > MaxPorts {
		return nil, fmt.Errorf("a query names 1 to %d ports, got %d", MaxPorts, len(q.Ports))
	}
	b := make([]byte, requestLen, requestLen+opLen+len(q.Ports)*portLen)
	native := binary.NativeEndian
	native.PutUint16(b[4:], typeByFamily)
	native.PutUint16(b[6:], flagRequest|flagDump)
	native.PutUint32(b[8:], sequence)
	body := b[headerLen:]
	body[0], body[1], body[2] = q.Family, protocolTCP, wantInfo
	var states uint32
	for _, s := range q.States {
		states |= 1 << s
	}
	native.PutUint32(body[4:], states)
	if len(q.Ports) == 1 {
		binary.BigEndian.PutUint16(body[8:], q.Ports[0])
	} else {
		b = append(b, bytecode(q.Ports)...)
	}
	native.PutUint32(b, uint32(len(b)))
	return b, nil
}

// bytecode is the attribute with a program for the kernel that is true for a socket with
// one of the local ports. A condition has two jumps, counted from itself: yes, a byte,
// and no, two; a socket is taken where they lead to the very end, and not where they lead
// past it. Comparing for equality is younger than comparing for more and for less.
func bytecode(ports []uint16) []byte {
	native := binary.NativeEndian
	last := comparison * 2 // the last port needs no jump to the end
	total := (len(ports)-1)*portLen + last
	b := make([]byte, 0, opLen+total)
	b = native.AppendUint16(b, uint16(opLen+total))
	b = native.AppendUint16(b, attrBytecode)
	op := func(code, yes byte, no int) { b = native.AppendUint16(append(b, code, yes), uint16(no)) }
	for i, p := range ports {
		left := total - i*portLen // from here to the end
		next := portLen
		if left == last {
			next = last + opLen // past the end
		}
		op(opPortAtLeast, comparison, next)
		op(0, 0, int(p))
		op(opPortAtMost, comparison, next-comparison)
		op(0, 0, int(p))
		if left > last {
			op(opJump, opLen, left-2*comparison)
		}
	}
	return b
}

// decode reads what the kernel has sent in one go and calls each for every socket in it,
// always with s. done says that nothing more will come. The error is the kernel's own
// (syscall.Errno) or says what is wrong with the message.
func decode(b []byte, sequence uint32, s *Socket, each func(*Socket)) (done bool, err error) {
	native := binary.NativeEndian
	for len(b) >= headerLen {
		n := int(native.Uint32(b))
		if n < headerLen || n > len(b) {
			return false, errShort
		}
		kind, seq, body := native.Uint16(b[4:]), native.Uint32(b[8:]), b[headerLen:n]
		b = b[min((n+3)&^3, len(b)):]
		if seq != sequence {
			continue // of a listing that was given up
		}
		switch kind {
		case typeDone, typeError:
			if len(body) >= 4 {
				if code := int32(native.Uint32(body)); code < 0 {
					return true, syscall.Errno(-code)
				}
			}
			return true, nil
		case typeByFamily:
			if err := s.decode(body); err != nil {
				return false, err
			}
			each(s)
		}
	}
	return false, nil
}

// decode fills s with what an answer says.
func (s *Socket) decode(b []byte) error {
	if len(b) < socketLen {
		return errShort
	}
	native := binary.NativeEndian
	family := b[0]
	*s = Socket{
		Family: family, State: State(b[1]),
		Local:     netip.AddrPortFrom(address(family, b[8:24]), binary.BigEndian.Uint16(b[4:])),
		Peer:      netip.AddrPortFrom(address(family, b[24:40]), binary.BigEndian.Uint16(b[6:])),
		Cookie:    native.Uint64(b[44:]),
		RecvQueue: native.Uint32(b[56:]), SendQueue: native.Uint32(b[60:]),
	}
	for b = b[socketLen:]; len(b) >= 4; {
		n := int(native.Uint16(b))
		if n < 4 || n > len(b) {
			return errShort
		}
		if native.Uint16(b[2:])&attrMask == attrInfo {
			s.Info = info(b[4:n])
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

func address(family uint8, b []byte) netip.Addr {
	if family == IPv4 {
		return netip.AddrFrom4([4]byte(b))
	}
	return netip.AddrFrom16([16]byte(b)).Unmap()
}

// info reads struct tcp_info, which grows with the kernel's version.
func info(b []byte) Info {
	if len(b) < infoTimesLen {
		return Info{}
	}
	native := binary.NativeEndian
	i := Info{Known: true, SinceSent: native.Uint32(b[infoSent:]), SinceReceived: native.Uint32(b[infoReceived:])}
	if len(b) >= infoCountsLen {
		i.Counted = true
		i.Sent = native.Uint64(b[infoBytesAcked:]) > 0 || native.Uint32(b[infoSegsSent:]) > 0
		i.Received = native.Uint64(b[infoBytesCame:]) > 0 || native.Uint32(b[infoSegsCame:]) > 0
	}
	return i
}
