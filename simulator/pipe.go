package simulator

import (
	"context"
	"net"
	"sync"
)

// PipeListener is a net.Listener in memory, dialled with its DialContext. Its
// connections are net.Pipes, which let a testing/synctest bubble's clock advance
// where sockets would not.
type PipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

var _ net.Listener = (*PipeListener)(nil)

// NewPipeListener makes a listener; inside a bubble, call it there.
func NewPipeListener() *PipeListener {
	return &PipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

// Listen gives the listener as the interface that http.Server.Serve takes.
func (l *PipeListener) Listen() net.Listener { return l }

// DialContext connects to the listener whatever the address is: it fits
// http.Transport's field of that name. It waits until the connection is accepted.
func (l *PipeListener) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	client, server := net.Pipe()
	var err error
	select {
	case l.conns <- server:
		return client, nil
	case <-l.done:
		err = &net.OpError{Op: "dial", Net: network, Addr: pipeAddr(addr), Err: net.ErrClosed}
	case <-ctx.Done():
		err = &net.OpError{Op: "dial", Net: network, Addr: pipeAddr(addr), Err: ctx.Err()}
	}
	client.Close()
	server.Close()
	return nil, err
}

// Accept waits for the next connection.
func (l *PipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close ends Accept and all later dials; connections made before live on.
func (l *PipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr is a name only.
func (l *PipeListener) Addr() net.Addr { return pipeAddr("pipe") }

type pipeAddr string

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return string(a) }
