package steps

import (
	"net"
	"syscall"
	"testing"
	"time"
)

// TestScriptSlowClient: what the program has written and closed is still on its way to a
// client that reads slowly. It is waited for, for longer than for a peer that has vanished.
func TestScriptSlowClient(t *testing.T) {
	t.Parallel()
	for _, tools := range [][]string{{"awk", "sleep", "sh", "ss"}, {"awk", "sleep", "sh"}} {
		addr := loopback(1)
		h := serve(t, at(addr, 0), func(c net.Conn) {
			_ = c.(*net.TCPConn).SetWriteBuffer(1 << 20)
			_, _ = c.Write(make([]byte, 300<<10))
			c.Close()
		})
		d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
			return raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 8<<10) })
		}}
		c, err := d.DialContext(t.Context(), "tcp", h.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began, read := time.Now(), make(chan time.Duration, 1)
		go func() {
			b := make([]byte, 8<<10)
			for {
				n, err := c.Read(b)
				if err != nil {
					read <- time.Since(began)
					return
				}
				time.Sleep(time.Duration(n) * 9 * time.Second / (300 << 10))
			}
		}()
		w := quick(h.port)
		w.LocalAddress = addr.String()
		o := watch(t, w, sh, toolbox(t, tools...))
		watched := time.Since(began)
		if took := <-read; o.code != exitDrained || watched < took-time.Second {
			t.Errorf("%v: the client read for %v, got after %v %v", tools, took, watched, o)
		}
	}
}

// TestScriptSamePeerPort: two connections from one port of a client, to two ports, are two.
func TestScriptSamePeerPort(t *testing.T) {
	t.Parallel()
	for _, tools := range [][]string{{"awk", "sleep", "sh", "ss"}, {"awk", "sleep", "sh"}} {
		addr := loopback(1)
		a, b := serve(t, at(addr, 0), nil), serve(t, at(addr, 0), nil)
		d := net.Dialer{
			LocalAddr: &net.TCPAddr{IP: net.ParseIP(loopback(2).String()), Port: 18099},
			Control: func(_, _ string, raw syscall.RawConn) error {
				return raw.Control(func(fd uintptr) { _ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1) })
			},
		}
		for _, h := range []*host{a, b} {
			c, err := d.DialContext(t.Context(), "tcp", h.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		w := quick(a.port, b.port)
		w.Until, w.LocalAddress = UntilZero, addr.String()
		if o := watch(t, lasting(w, 600*time.Millisecond), sh, toolbox(t, tools...)); o.code != exitDeadline || o.Established != 2 {
			t.Errorf("%v: want two, got %v", tools, o)
		}
	}
}
