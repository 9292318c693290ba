package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// pipes is a listener of connections in memory, for bubbles.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

// dial gives the client's end; false: nobody accepts.
func (p *pipes) dial() (net.Conn, bool) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, true
	case <-time.After(time.Millisecond):
		return nil, false
	}
}

// served runs a test against a server in a bubble.
func served(t *testing.T, test func(t *testing.T, p *pipes)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPipes()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		fine, silent := func() error { return nil }, func() string { return "" }
		go func() { done <- Serve(ctx, p, Handler(fine, fine, silent)) }()
		test(t, p)
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// ends reads until the server closes, and says how long that took.
func ends(t *testing.T, c net.Conn) (text string, took time.Duration) {
	t.Helper()
	begin := time.Now()
	all, _ := io.ReadAll(c)
	return string(all), time.Since(begin)
}

// TestSlowClients: who sends slowly, or nothing, is cut off in time.
func TestSlowClients(t *testing.T) {
	for name, send := range map[string]func(c net.Conn){
		"nothing":       func(net.Conn) {},
		"head by drops": func(c net.Conn) { drip(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n"+strings.Repeat("X-Slow: y\r\n", 100)) },
		"body by drops": func(c net.Conn) {
			drip(c, "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n"+strings.Repeat("x", 100))
		},
		"does not finish": func(c net.Conn) { fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n") },
		"one, and stays":  func(c net.Conn) { fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			served(t, func(t *testing.T, p *pipes) {
				c, ok := p.dial()
				if !ok {
					t.Fatal("not accepted")
				}
				var wg sync.WaitGroup
				wg.Go(func() { send(c) })
				if _, took := ends(t, c); took > requestTimeout+idleTimeout {
					t.Errorf("cut off after %v", took)
				}
				c.Close()
				wg.Wait()
			})
		})
	}
}

// drip sends a byte each 200 ms.
func drip(c net.Conn, text string) {
	for i := range len(text) {
		if _, err := c.Write([]byte{text[i]}); err != nil {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// TestLargeRequests: a head without end is refused, and none of it is kept.
func TestLargeRequests(t *testing.T) {
	served(t, func(t *testing.T, p *pipes) {
		c, ok := p.dial()
		if !ok {
			t.Fatal("not accepted")
		}
		defer c.Close()
		sent := make(chan int, 1)
		go func() {
			n, _ := fmt.Fprint(c, "GET /healthz HTTP/1.1\r\nHost: x\r\nX: ")
			for part := strings.Repeat("x", 1000); ; n += len(part) {
				if _, err := io.WriteString(c, part); err != nil {
					sent <- n
					return
				}
			}
		}()
		text, _ := ends(t, c)
		if n := <-sent; !strings.Contains(text, "431") || n > 64<<10 {
			t.Errorf("%d bytes were read, and answered %.60q", n, text)
		}
	})
}

// TestManyConnections: the worker's descriptors are not for whoever reaches the port.
func TestManyConnections(t *testing.T) {
	served(t, func(t *testing.T, p *pipes) {
		var open []net.Conn
		for range maxConnections {
			c, ok := p.dial()
			if !ok {
				t.Fatalf("only %d connections were accepted", len(open))
			}
			open = append(open, c)
		}
		synctest.Wait()
		if c, ok := p.dial(); ok {
			c.Close()
			t.Errorf("more than %d connections are open", maxConnections)
		}
		open[0].Close()
		synctest.Wait()
		c, ok := p.dial()
		if !ok {
			t.Error("a place that has become free is not given away")
		} else {
			c.Close()
		}
		for _, c := range open {
			c.Close()
		}
	})
}

// TestCheckOfAStranger: what answers on the port of a worker may be anything.
func TestCheckOfAStranger(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{
		"other protocol": "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
		"redirect":       "HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
		"endless":        "HTTP/1.1 503 Busy\r\n\r\n" + strings.Repeat("x", 1<<20),
		"nothing":        "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			over := make(chan struct{})
			wg.Go(func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				_, _ = io.WriteString(c, answer)
				<-over
			})
			err = Check(t.Context(), l.Addr().String(), "/healthz")
			close(over)
			l.Close()
			wg.Wait()
			if err == nil || len(err.Error()) > 5000 || strings.Contains(err.Error(), "connection refused") {
				t.Errorf("%.200v", err)
			}
		})
	}
}
