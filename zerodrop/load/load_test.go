package load

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"example.org/usher/simulator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var somewhere = netip.MustParseAddrPort("198.18.0.1:80")

// backend answers as the simulator's backends do.
func backend() http.Handler {
	trickle := func(w http.ResponseWriter, r *http.Request) {
		ms, _ := strconv.Atoi(r.URL.Query().Get("ms"))
		kb, _ := strconv.Atoi(r.URL.Query().Get("kb"))
		w.Header().Set("Content-Length", strconv.Itoa(max(1, kb<<10)))
		const parts = 16
		for range parts {
			time.Sleep(time.Duration(ms) * time.Millisecond / parts)
			w.Write(make([]byte, kb<<10/parts))
			http.NewResponseController(w).Flush()
		}
		if kb == 0 {
			w.Write([]byte("x"))
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/slow", trickle)
	mux.HandleFunc("/download", trickle)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X-Instance-Id", "i-1") })
	return mux
}

// bubble runs a load in a bubble against an HTTP server in memory.
func bubble(t *testing.T, ctx context.Context, c Config, h http.Handler) *Record {
	t.Helper()
	l := simulator.NewPipeListener()
	server := &http.Server{Handler: h}
	var serving sync.WaitGroup
	serving.Go(func() { server.Serve(l.Listen()) })
	c.Target, c.Dial = somewhere, l.DialContext
	r, err := Run(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	server.Close()
	serving.Wait()
	checkSums(t, r)
	return r
}

// checkSums: whatever happens, each request that was sent has ended, and totals and
// series say the same.
func checkSums(t *testing.T, r *Record) {
	t.Helper()
	sum := func(ints []int) (n int) {
		for _, i := range ints {
			n += i
		}
		return n
	}
	total, s := r.Total(), r.Series
	if total.Sent != total.Finished+total.Failed {
		t.Errorf("%d sent, but %d finished and %d failed", total.Sent, total.Finished, total.Failed)
	}
	if sum(s.Sent) != total.Sent || sum(s.Finished) != total.Finished || sum(s.Failed) != total.Failed {
		t.Errorf("the series have %d, %d, %d; the totals %d, %d, %d",
			sum(s.Sent), sum(s.Finished), sum(s.Failed), total.Sent, total.Finished, total.Failed)
	}
	if len(s.InFlight) != len(s.Sent) || s.InFlight[len(s.InFlight)-1] != 0 {
		t.Errorf("in flight: %v", s.InFlight)
	}
	reasons := 0
	for _, n := range total.Reasons {
		reasons += n
	}
	if reasons != total.Failed || len(r.Failures) != min(total.Failed, maxFailures) {
		t.Errorf("%d failed, %d reasons, %d failures listed", total.Failed, reasons, len(r.Failures))
	}
}

// TestLoad: at scale 1 it is the load that is documented.
func TestLoad(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := bubble(t, t.Context(), Config{Length: 18 * time.Second}, backend())
		sent := map[Kind]int{}
		for k, of := range r.Kinds {
			sent[k] = of.Sent
		}
		want := map[Kind]int{Short: 1800, KeepAlive: 24 * 4 * 18, Idle: 9 * 2, Slow: 4 * 18, Download: 27}
		if !maps.Equal(sent, want) {
			t.Errorf("sent %v, want %v", sent, want)
		}
		total := r.Total()
		if total.Failed != 0 || total.Dropped != 0 || total.Slow != 0 {
			t.Errorf("a perfect server: %v", r)
		}
		for k, n := range map[Kind]int{Short: 1800, KeepAlive: 24, Idle: 9, Slow: 72, Download: 27} {
			if r.Kinds[k].Connections != n {
				t.Errorf("%s: %d connections, want %d", k, r.Kinds[k].Connections, n)
			}
		}
		if ms := r.Kinds[Download].SlowestMS; ms < 15000 || ms > 16000 {
			t.Errorf("the longest download took %d ms", ms)
		}
		if ms := r.Kinds[Slow].SlowestMS; ms != 3000 {
			t.Errorf("the slowest request took %d ms", ms)
		}
		if r.TookMS < 28000 || r.TookMS > 34000 {
			t.Errorf("took %d ms: the last download is not waited for", r.TookMS)
		}
		if n := r.Instances["i-1"]; n != 1800+24*4*18+18 {
			t.Errorf("i-1 gave %d answers", n)
		}
	})
}

// TestScale: rates and clients follow the scale.
func TestScale(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := bubble(t, t.Context(), Config{Length: 18 * time.Second, Scale: 0.5}, backend())
		for k, want := range map[Kind]int{Short: 900, KeepAlive: 12 * 4 * 18, Idle: 5 * 2, Slow: 36, Download: 14} {
			if r.Kinds[k].Sent != want {
				t.Errorf("%s: %d sent, want %d", k, r.Kinds[k].Sent, want)
			}
		}
	})
}

// TestKinds: there are only the clients that are asked for.
func TestKinds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := bubble(t, t.Context(), Config{Length: 2 * time.Second, Kinds: []Kind{Short, Slow}}, backend())
		if total := r.Total(); r.Kinds[Short].Sent != 200 || r.Kinds[Slow].Sent != 8 || total.Sent != 208 {
			t.Errorf("%+v", r.Kinds)
		}
	})
}

// TestEndCutsNothing: the end of the context ends the sending, not what was sent.
func TestEndCutsNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 4999*time.Millisecond)
		defer cancel()
		r := bubble(t, ctx, Config{Length: time.Hour}, backend())
		if total := r.Total(); total.Failed != 0 || total.Dropped != 0 || r.Kinds[Download].Finished != 8 {
			t.Errorf("%v; %d downloads finished", r, r.Kinds[Download].Finished)
		}
		after := 0
		for _, n := range r.Series.Sent[50:] {
			after += n
		}
		if after != 0 || r.TookMS < 14000 {
			t.Errorf("%d were sent after the end, and it took %d ms", after, r.TookMS)
		}
	})
}

// TestSlow: small requests count as slow after half a second, and a client that waits
// for its answer misses its turns.
func TestSlow(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := bubble(t, t.Context(), Config{Length: 9 * time.Second}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/" {
				time.Sleep(600 * time.Millisecond)
			}
			backend().ServeHTTP(w, r)
		}))
		// At 0, 0.75, 1.5 ... of a client's 36 turns.
		if of := r.Kinds[KeepAlive]; of.Sent != 24*12 || of.Slow != of.Sent || of.Dropped != 24*24 {
			t.Errorf("keep-alive: %+v", of)
		}
		if of := r.Kinds[Short]; of.Sent != 900 || of.Slow != 900 {
			t.Errorf("short: %+v", of)
		}
		if of := r.Kinds[Slow]; of.Slow != 0 {
			t.Errorf("slow: %+v", of)
		}
	})
}

// TestAskedToClose: Connection: close in an answer ends the connection, not a request.
func TestAskedToClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := bubble(t, t.Context(), Config{Length: 9 * time.Second}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Connection", "close")
			backend().ServeHTTP(w, r)
		}))
		of := r.Kinds[KeepAlive]
		if of.Failed != 0 || of.Sent != 24*36 || of.Asked != of.Sent || of.Connections != of.Sent || of.ClosedIdle != 0 {
			t.Errorf("%+v", of)
		}
	})
}

// TestClosedIdle: a connection that ends between two requests is no failure.
func TestClosedIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := raw(t, Config{Length: 9 * time.Second}, func(c net.Conn, r *bufio.Reader) {
			for n := 0; n < 3 && readRequest(r); n++ {
				io.WriteString(c, whole)
			}
		})
		of := r.Kinds[KeepAlive]
		if of.Failed != 0 || of.Sent != 24*36 || of.Connections != of.Sent/3 || of.ClosedIdle < of.Connections-24 {
			t.Errorf("%+v", of)
		}
	})
}

// TestRetryable: failures are marked if a used connection died before any byte.
func TestRetryable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := raw(t, Config{Length: 9 * time.Second}, func(c net.Conn, r *bufio.Reader) {
			if readRequest(r) {
				io.WriteString(c, whole)
				readRequest(r)
			}
		})
		of := r.Kinds[KeepAlive]
		if of.Sent != 24*36 || of.Failed != of.Sent/2 || of.Retryable != of.Failed || of.Reasons[Closed] != of.Failed {
			t.Errorf("keep-alive: %+v", of)
		}
		if of := r.Kinds[Short]; of.Failed != 0 {
			t.Errorf("short: %+v", of)
		}
	})
}

// TestHang: clients give up after 15 s without a byte, before an answer and in it; one
// that trickles they follow, but not for ever.
func TestHang(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		serve  func(c net.Conn)
		reason Reason
		took   int64 // ms that each request lasts
	}{
		"before":   {func(c net.Conn) {}, Timeout, 15_000},
		"midway":   {func(c net.Conn) { io.WriteString(c, begun) }, Cut, 15_000},
		"trickles": {func(c net.Conn) { io.WriteString(c, begun); trickle(c) }, Cut, 120_000},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				// So few that none is dropped while two minutes of them are in flight.
				r := raw(t, Config{Length: 9 * time.Second, Scale: 0.1}, func(c net.Conn, r *bufio.Reader) {
					readRequest(r)
					test.serve(c)
					readRequest(r) // its client's end
				})
				if total := r.Total(); total.Finished != 0 || total.Reasons[test.reason] != total.Sent || total.Retryable != 0 {
					t.Errorf("%v", r)
				}
				for _, f := range r.Failures {
					if takes := r.took(f.Kind); f.AfterMS < test.took || f.AfterMS > test.took+takes {
						t.Errorf("given up after %d ms: %+v", f.AfterMS, f)
					}
				}
			})
		})
	}
}

// TestNoConnection: clients give up after 15 s for which nobody says anything at all.
func TestNoConnection(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		silent := func(ctx context.Context, _, _ string) (net.Conn, error) {
			<-ctx.Done()
			return nil, &net.OpError{Op: "dial", Err: ctx.Err()}
		}
		r, err := Run(t.Context(), Config{Target: somewhere, Length: 3 * time.Second, Dial: silent})
		if err != nil {
			t.Fatal(err)
		}
		checkSums(t, r)
		if total := r.Total(); total.Sent == 0 || total.Reasons[Timeout] != total.Sent || r.Failures[0].AfterMS != 15_000 {
			t.Errorf("%v\n%+v", r, r.Failures[:1])
		}
	})
}

// took is the most that an answer of this kind may be asked to take.
func (r *Record) took(k Kind) int64 {
	if k == Download {
		return DefaultLongestDownload.Milliseconds()
	}
	return DefaultSlow.Milliseconds()
}

// TestBoundedInFlight: no more are in flight than can be, and what is left out is counted.
func TestBoundedInFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := raw(t, Config{Length: time.Minute, Scale: 0.1}, func(c net.Conn, r *bufio.Reader) {
			readRequest(r)
			io.WriteString(c, begun)
			trickle(c)
		})
		if of := r.Kinds[Short]; of.Sent != 156 || of.Sent+of.Dropped != 600 {
			t.Errorf("%+v", of)
		}
	})
}

const (
	whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
	begun = "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nok"
)

// readRequest reads a request's head, or the connection's end: false.
func readRequest(r *bufio.Reader) bool {
	for {
		line, err := r.ReadString('\n')
		if err != nil || line == "\r\n" {
			return err == nil
		}
	}
}

// trickle sends a byte now and then until the client goes.
func trickle(c net.Conn) {
	for {
		if _, err := c.Write([]byte("x")); err != nil {
			return
		}
		time.Sleep(10 * time.Second)
	}
}

// raw runs a load in a bubble against a server that does what serve does with each
// connection, and closes it then.
func raw(t *testing.T, c Config, serve func(c net.Conn, r *bufio.Reader)) *Record {
	t.Helper()
	l := simulator.NewPipeListener()
	c.Target, c.Dial = somewhere, l.DialContext
	wait := accept(l.Listen(), serve)
	r, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	wait()
	checkSums(t, r)
	return r
}

// accept serves connections until l is closed; wait then waits until all have ended.
func accept(l net.Listener, serve func(c net.Conn, r *bufio.Reader)) (wait func()) {
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				serve(c, bufio.NewReader(c))
			})
		}
	})
	return serving.Wait
}

// TestMisbehaviour: what real sockets say of servers that misbehave.
func TestMisbehaviour(t *testing.T) {
	t.Parallel()
	reset := func(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }
	for name, test := range map[string]struct {
		serve     func(c net.Conn)
		reason    Reason
		retryable bool
	}{
		"reset":          {serve: reset, reason: Reset},
		"closed":         {serve: func(c net.Conn) {}, reason: Closed},
		"cut":            {serve: func(c net.Conn) { io.WriteString(c, begun) }, reason: Cut},
		"reset midway":   {serve: func(c net.Conn) { io.WriteString(c, begun); reset(c) }, reason: Cut},
		"head cut":       {serve: func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\nConte") }, reason: Cut},
		"not HTTP":       {serve: func(c net.Conn) { io.WriteString(c, "SSH-2.0-OpenSSH_9.2\r\n\r\n") }, reason: BadAnswer},
		"status":         {serve: func(c net.Conn) { io.WriteString(c, "HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy") }, reason: BadStatus},
		"length unknown": {serve: func(c net.Conn) { io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nok") }, reason: Cut},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := overTCP(t, 1, func(c net.Conn, read func() *http.Request) {
				if read() != nil {
					test.serve(c)
				}
			})
			total := r.Total()
			if name == "length unknown" { // only downloads know how much is to come
				if of := r.Kinds[Download]; of.Sent == 0 || of.Reasons[Cut] != of.Sent || total.Failed != of.Failed {
					t.Errorf("%v\n%+v", r, r.Failures)
				}
				return
			}
			if total.Reasons[test.reason] != total.Sent || total.Retryable != 0 {
				t.Errorf("%v\n%+v", r, r.Failures)
			}
			if test.reason == BadStatus && total.Statuses[503] != total.Sent {
				t.Errorf("%v", total.Statuses)
			}
		})
	}
}

// overTCP runs a load over real sockets until the server has read requests of all paths,
// and so many on one connection.
func overTCP(t *testing.T, most int, serve func(c net.Conn, read func() *http.Request)) *Record {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, enough := context.WithCancel(t.Context())
	defer enough()
	var mu sync.Mutex
	paths, longest := map[string]bool{}, 0
	wait := accept(l, func(c net.Conn, r *bufio.Reader) {
		n := 0
		serve(c, func() *http.Request {
			request, err := http.ReadRequest(r)
			if err != nil {
				return nil
			}
			n++
			mu.Lock()
			defer mu.Unlock()
			paths[request.URL.Path] = true
			if longest = max(longest, n); len(paths) == 3 && longest >= most {
				enough()
			}
			return request
		})
	})
	r, err := Run(ctx, Config{Target: l.Addr().(*net.TCPAddr).AddrPort(), Length: MaxLength, Scale: 0.2})
	l.Close()
	wait()
	if err != nil {
		t.Fatal(err)
	}
	checkSums(t, r)
	return r
}

// TestOverTCP: the clients can do with real sockets what they are to do.
func TestOverTCP(t *testing.T) {
	t.Parallel()
	r := overTCP(t, 3, func(c net.Conn, read func() *http.Request) {
		for {
			request := read()
			if request == nil {
				return
			}
			size := 2
			if request.URL.Path == "/download" {
				size = downloadKB << 10
			}
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, strings.Repeat("x", size))
			if request.Close {
				return
			}
		}
	})
	if total := r.Total(); total.Failed != 0 || total.ClosedIdle != 0 {
		t.Errorf("%v\n%+v", r, r.Failures)
	}
	if of := r.Kinds[KeepAlive]; of.Connections > 5 || of.Sent <= of.Connections {
		t.Errorf("%+v", of)
	}
}

// TestRefused: a port that nobody listens at.
func TestRefused(t *testing.T) {
	t.Parallel()
	// Bound, so that no other test listens there.
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	target := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*syscall.SockaddrInet4).Port))
	ctx, dial := untilDialled(t, 5, new(net.Dialer).DialContext)
	r, err := Run(ctx, Config{Target: target, Length: MaxLength, Dial: dial})
	if err != nil {
		t.Fatal(err)
	}
	if total := r.Total(); total.Sent < 5 || total.Reasons[Refused] != total.Sent || total.Connections != 0 || total.Retryable != 0 {
		t.Errorf("%v\n%+v", r, r.Failures)
	}
}

// untilDialled gives a context that ends when that many connections were tried.
func untilDialled(t *testing.T, n int32, dial dialFunc) (context.Context, dialFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	var tried atomic.Int32
	return ctx, func(ctx context.Context, network, address string) (net.Conn, error) {
		if tried.Add(1) == n {
			cancel()
		}
		return dial(ctx, network, address)
	}
}

type dialFunc = func(ctx context.Context, network, address string) (net.Conn, error)

// TestLocal: what the clients' machine lacks is not held against the target.
func TestLocal(t *testing.T) {
	t.Parallel()
	ctx, dial := untilDialled(t, 5, func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: syscall.EADDRNOTAVAIL}
	})
	r, err := Run(ctx, Config{Target: somewhere, Length: MaxLength, Dial: dial})
	if err == nil || !strings.Contains(err.Error(), "own machine") || r == nil || r.Total().Reasons[Local] != r.Total().Sent {
		t.Errorf("%v, %v", r, err)
	}
}

// TestHasNews: it sees the other side's end, and nothing before it.
func TestHasNews(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(c *net.TCPConn){
		"closed":  func(c *net.TCPConn) { c.Close() },
		"reset":   func(c *net.TCPConn) { c.SetLinger(0); c.Close() },
		"unasked": func(c *net.TCPConn) { io.WriteString(c, "HTTP/1.1 408 Request Timeout\r\n\r\n") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			plain, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer plain.Close()
			server, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			c := newConn(plain, "host", time.Minute)
			if c.hasNews() || !c.idle(t.Context(), time.Now()) || c.hasNews() {
				t.Fatal("news on an open connection")
			}
			end(server.(*net.TCPConn))
			for limit := time.Now().Add(time.Minute); !c.hasNews(); {
				if time.Now().After(limit) {
					t.Fatal("the end is not seen")
				}
			}
			if name != "reset" && c.idle(t.Context(), time.Now().Add(time.Minute)) { // looking has taken a reset's error away
				t.Error("idle does not see it")
			}
		})
	}
}

// TestConfig: what makes no sense is refused.
func TestConfig(t *testing.T) {
	t.Parallel()
	for want, c := range map[string]Config{
		"Target":    {Length: time.Second},
		"Scale":     {Target: somewhere, Length: time.Second, Scale: -1},
		"Length":    {Target: somewhere},
		"at most":   {Target: somewhere, Length: 2 * time.Hour},
		"Slow":      {Target: somewhere, Length: time.Second, Slow: time.Minute},
		"downloads": {Target: somewhere, Length: time.Second, ShortestDownload: 2, LongestDownload: 1},
	} {
		if r, err := Run(t.Context(), c); r != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", want, r, err)
		}
	}
}

// TestRecord: a record comes back from its file as it was.
func TestRecord(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := raw(t, Config{Length: time.Second, Scale: 0.1}, func(c net.Conn, r *bufio.Reader) {
			if readRequest(r) {
				io.WriteString(c, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
			}
		})
		r.Scenario = Scenario{Name: "rude-kill", Plan: "kill -9", Balancer: "l4", Repeat: 2, DrainSeconds: 1.5}
		r.Mark("released", r.Began.Add(800*time.Millisecond))
		r.Mark("scale-in", r.Began.Add(500*time.Millisecond))
		if want := []Mark{{"scale-in", 500}, {"released", 800}}; !reflect.DeepEqual(r.Marks, want) {
			t.Errorf("marks: %v", r.Marks)
		}
		folder := t.TempDir()
		path, err := r.Write(folder)
		if err != nil || !strings.HasSuffix(path, "/l4-rude-kill-2.json") {
			t.Fatal(path, err)
		}
		back, err := Read(folder)
		if err != nil || len(back) != 1 {
			t.Fatal(back, err)
		}
		if !reflect.DeepEqual(back[0], r) {
			t.Errorf("wrote\n%+v\nread\n%+v", r, back[0])
		}
		if !strings.Contains(r.String(), "bad_status; 0 retryable") {
			t.Error(r)
		}
	})
}
