// Package sockdiag lists TCP sockets by the kernel's sock_diag interface. The kernel
// filters them by state and local port; what it sends is decoded into one value that is
// used again for each socket, so that a listing of any length makes no garbage. Listing
// needs no privilege. It is no snapshot: a socket that changes its state meanwhile may be
// missed or seen twice.
package sockdiag

import (
	"errors"
	"net/netip"
)

// State is a TCP state as the kernel numbers it.
type State uint8

// The states. Handshakes that are not over (NEW_SYN_RECV) come as SynRecv.
const (
	Established State = 1 + iota
	SynSent
	SynRecv
	FinWait1
	FinWait2
	TimeWait
	Close
	CloseWait
	LastAck
	Listen
	Closing
)

// The families of sockets. A socket of IPv6 that listens on all addresses takes
// connections over IPv4 too: they belong to IPv6.
const (
	IPv4 uint8 = 2
	IPv6 uint8 = 10
)

// MaxPorts is how many ports a query may name: the kernel's jumps reach no farther.
const MaxPorts = 3000

// ErrUnsupported: this system has no sock_diag.
var ErrUnsupported = errors.New("sock_diag is not to be had here")

// Query is what to list.
type Query struct {
	Family uint8 // IPv4 or IPv6
	Ports  []uint16
	States []State
}

// Socket is one socket as the kernel shows it. A mapped IPv4 address is given as IPv4.
type Socket struct {
	Family uint8
	State  State
	Local  netip.AddrPort
	Peer   netip.AddrPort
	// Cookie is the same for as long as the socket lives and never used again. A
	// connection gets another one when it comes to FIN_WAIT2 or TIME_WAIT, where the
	// kernel keeps something smaller in its place.
	Cookie uint64
	// RecvQueue is what the program has not read yet, in bytes; SendQueue, what the
	// peer has not acknowledged.
	RecvQueue, SendQueue uint32
	Info                 Info
}

// Info is what TCP knows of a connection.
type Info struct {
	// Known: the kernel sent it. Counted: with the counts of data, which kernels before
	// 4.6 do not have.
	Known, Counted bool
	// SinceSent and SinceReceived are milliseconds since data last went and came, in
	// steps of the kernel's clock; since the beginning, if none ever did.
	SinceSent, SinceReceived uint32
	// Sent and Received: any data went, any came.
	Sent, Received bool
}
