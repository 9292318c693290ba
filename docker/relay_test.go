package docker

import (
	"net"
	"sync"
	"testing"
	"time"
)

// link is one worker's way to a service: relays of this process, which can be cut, slow
// and narrow. What is sent into a cut link is held and arrives when it is mended, as TCP
// sends again what a broken network has lost.
type link struct {
	delay time.Duration // each way
	rate  int           // bytes a second each way, for all connections together; 0: no bound

	mu    sync.Mutex
	whole chan struct{} // guarded by mu; closed while the link is not cut
	lanes [2]time.Time  // guarded by mu; until when each direction is taken by what was sent
}

func newLink() *link {
	l := &link{whole: make(chan struct{})}
	close(l.whole)
	return l
}

// cut lets nothing through from now on. No connection ends of it.
func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.whole = make(chan struct{})
}

func (l *link) mend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	close(l.whole)
}

// arrival is when n bytes that are sent now have arrived.
func (l *link) arrival(lane, n int) time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return time.Now().Add(l.delay)
	}
	begin := time.Now()
	if l.lanes[lane].After(begin) {
		begin = l.lanes[lane]
	}
	l.lanes[lane] = begin.Add(time.Duration(n) * time.Second / time.Duration(l.rate))
	return l.lanes[lane].Add(l.delay)
}

// pass waits until what is due at t may arrive. False: the relay is being closed.
func (l *link) pass(t time.Time, closing <-chan struct{}) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-closing:
		return false
	}
	l.mu.Lock()
	whole := l.whole
	l.mu.Unlock()
	select {
	case <-whole:
		return true
	case <-closing:
		return false
	}
}

// relay listens on host, until the test is over, and connects whoever comes to target.
func (l *link) relay(t *testing.T, host, target string) (address string) {
	t.Helper()
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatalf("listen on the network's gateway, which must be this machine: %v", err)
	}
	closing := make(chan struct{})
	var running sync.WaitGroup
	running.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return // closed
			}
			far, err := net.Dial("tcp", target)
			if err != nil {
				_ = near.Close() // the worker sees that nobody is there
				continue
			}
			running.Go(func() { l.connect(near.(*net.TCPConn), far.(*net.TCPConn), closing) })
		}
	})
	t.Cleanup(func() {
		close(closing)
		_ = listener.Close()
		running.Wait()
	})
	return listener.Addr().String()
}

// connect passes on what both ends send, until both have ended or one has failed.
func (l *link) connect(near, far *net.TCPConn, closing <-chan struct{}) {
	over := make(chan struct{})
	end := sync.OnceFunc(func() {
		close(over)
		_, _ = near.Close(), far.Close()
	})
	defer end()
	var running sync.WaitGroup
	running.Go(func() {
		select {
		case <-closing:
			end()
		case <-over:
		}
	})
	var pumps sync.WaitGroup
	pumps.Go(func() { l.pump(0, near, far, over, end) })
	pumps.Go(func() { l.pump(1, far, near, over, end) })
	pumps.Wait()
	end()
	running.Wait()
}

type chunk struct {
	data []byte // none: the end
	due  time.Time
}

// pump is one direction of a connection. It ends the whole when it can't go on.
func (l *link) pump(lane int, from, to *net.TCPConn, over <-chan struct{}, end func()) {
	chunks := make(chan chunk, 64) // written by the reader, which closes it
	var reader sync.WaitGroup
	defer reader.Wait()
	reader.Go(func() {
		defer close(chunks)
		for {
			buffer := make([]byte, 2048)
			n, err := from.Read(buffer)
			if n == 0 && err == nil {
				continue
			}
			select {
			case chunks <- chunk{buffer[:n], l.arrival(lane, n)}:
			case <-over:
				return
			}
			if n > 0 && err == nil {
				continue
			}
			if n > 0 { // the end comes after the last data
				select {
				case chunks <- chunk{nil, l.arrival(lane, 0)}:
				case <-over:
				}
			}
			return
		}
	})
	for c := range chunks {
		if !l.pass(c.due, over) {
			return
		}
		if len(c.data) == 0 {
			// A peer that has gone for good has the other direction end by itself.
			_ = to.CloseWrite()
			return
		}
		if _, err := to.Write(c.data); err != nil {
			end()
			return
		}
	}
}
