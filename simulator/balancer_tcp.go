package simulator

import (
	"io"
	"net"
	"sync"
	"time"
)

// accept takes the connections of a listener of protocol tcp.
func (b *balancer) accept(l *listener) {
	for {
		conn, err := l.socket.Accept()
		if err != nil {
			return
		}
		b.running.Go(func() { b.relay(l, conn) })
	}
}

// relay passes one connection to one member for as long as it lives, whatever becomes of
// the member's weight meanwhile. It counts as failed when the member does not take it or
// it is cut.
func (b *balancer) relay(l *listener, client net.Conn) {
	defer client.Close()
	m, p := b.pick(l)
	if m == nil {
		return
	}
	failed := true
	defer func() { b.finish(p, failed, false) }()
	server, err := net.DialTimeout("tcp", m.addr.String(), 2*time.Second)
	if err != nil {
		return
	}
	defer server.Close()
	var once sync.Once
	cut := false
	b.guard(p, func() {
		once.Do(func() {
			cut = true
			client.Close()
			server.Close()
		})
	})
	var upstream sync.WaitGroup
	upstream.Go(func() { forward(server, client) })
	forward(client, server)
	// The server has said all it had to say. A client that does not hang up is cut.
	client.SetReadDeadline(time.Now().Add(hangUp))
	upstream.Wait()
	once.Do(func() {})
	failed = cut
}

// hangUp is how long a client has to close a connection that its server has closed.
const hangUp = time.Second

// forward copies until one side has ended, and tells the other.
func forward(to, from net.Conn) {
	io.Copy(to, from)
	if c, ok := to.(*net.TCPConn); ok {
		c.CloseWrite()
	}
}
