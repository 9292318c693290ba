package demo

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// serve answers each request on each connection with what answer writes; false closes
// the connection. It counts the requests.
func serve(t *testing.T, answer func(conn net.Conn, n int) bool) (address string, served func() int) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	var mu sync.Mutex
	total := 0
	conns := map[net.Conn]bool{}
	running.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[conn] = true
			mu.Unlock()
			running.Go(func() {
				defer conn.Close()
				r := bufio.NewReader(conn)
				for {
					if _, err := http.ReadRequest(r); err != nil {
						return
					}
					mu.Lock()
					total++
					n := total
					mu.Unlock()
					if !answer(conn, n) {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		running.Wait()
	})
	return l.Addr().String(), func() int { mu.Lock(); defer mu.Unlock(); return total }
}

func reply(text string) func(net.Conn, int) bool {
	return func(conn net.Conn, _ int) bool {
		io.WriteString(conn, strings.ReplaceAll(text, "\n", "\r\n"))
		return false
	}
}

func TestClientsCountWhatIsNoWholeAnswerAsFailed(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		answer func(net.Conn, int) bool
		size   int64
		want   string
	}{
		{"whole", reply("HTTP/1.1 200 OK\nContent-Length: 2\n\nab"), 2, ""},
		{"whole, chunked", reply("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nab\n0\n\n"), 2, ""},
		{"cut body", reply("HTTP/1.1 200 OK\nContent-Length: 9\n\nab"), 9, cutOff},
		{"cut chunked body", reply("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n2\nab\n"), 0, cutOff},
		{"short body", reply("HTTP/1.1 200 OK\nContent-Length: 2\n\nab"), 9, cutOff},
		{"empty body", reply("HTTP/1.1 200 OK\nContent-Length: 0\n\n"), 0, cutOff},
		{"body of unknown length", reply("HTTP/1.1 200 OK\n\nab"), 0, cutOff},
		{"cut head", reply("HTTP/1.1 200 OK\nContent-Le"), 0, cutOff},
		{"no answer", reply(""), 0, cutOff},
		{"bad gateway", reply("HTTP/1.1 502 Bad Gateway\nContent-Length: 2\n\nab"), 0, "answered 502"},
		{"unavailable", reply("HTTP/1.1 503 Service Unavailable\nContent-Length: 2\n\nab"), 0, "answered 503"},
		{"redirect", reply("HTTP/1.1 302 Found\nContent-Length: 2\n\nab"), 0, "answered 302"},
		{"garbage", reply("hello\n\n"), 0, cutOff},
	} {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, keep %v", tt.name, keep), func(t *testing.T) {
				t.Parallel()
				address, served := serve(t, tt.answer)
				tr := &traffic{address: address, ctx: t.Context(), tally: &tally{}}
				c := &client{address: address, keep: keep}
				defer c.close()
				tr.one(c, request{path: "/", size: tt.size})
				got := tr.tally.counts()
				failed, reasons := 1, "1 "+tt.want
				if tt.want == "" {
					failed, reasons = 0, ""
				}
				if got.Requests != 1 || got.Failed != failed || got.reasons != reasons {
					t.Errorf("got %v, want %q", got, tt.want)
				}
				if served() != 1 {
					t.Errorf("the request was sent %d times", served())
				}
			})
		}
	}
}

func TestClientGivesUp(t *testing.T) {
	t.Parallel()
	address, _ := serve(t, func(net.Conn, int) bool { return true })
	c := &client{address: address}
	// A request that should have been answered long ago has its deadline soon.
	if got := c.send(t.Context(), request{path: "/", takes: 50*time.Millisecond - answerSlack}); got != tooLate {
		t.Errorf("got %q, want %q", got, tooLate)
	}
}

func TestClientWithoutServer(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if got := (&client{address: l.Addr().String()}).send(t.Context(), request{path: "/"}); got != noConnection {
		t.Errorf("got %q, want %q", got, noConnection)
	}
}

// A kept connection that the server closed between two requests is one failure, then
// the client connects again. net/http's client would hide it.
func TestKeptConnectionIsNotRepeatedOn(t *testing.T) {
	t.Parallel()
	const whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
	address, served := serve(t, func(conn net.Conn, n int) bool {
		io.WriteString(conn, whole)
		return n%2 == 1 // closes after each second answer, without saying so
	})
	c := &client{address: address, keep: true}
	defer c.close()
	var got []string
	for range 4 {
		if got = append(got, c.send(t.Context(), request{path: "/"})); len(got) == 2 {
			// The end of the connection has arrived before the next request goes out.
			c.reader.Peek(1)
		}
	}
	if want := []string{"", "", cutOff, ""}; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if served() != 3 {
		t.Errorf("%d requests arrived, want 3", served())
	}
}

func TestAbortedRequestsDoNotCount(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	address, served := serve(t, func(net.Conn, int) bool {
		cancel()
		return true
	})
	count := &tally{}
	tr := startTraffic(ctx, address, time.Second, count)
	tr.running.Wait()
	if served() == 0 {
		t.Error("no request arrived")
	}
	if got := count.counts(); got.Requests != 0 {
		t.Errorf("got %v, want none", got)
	}
}

// Settle waits for what is in flight and counts it.
func TestSettleCountsWhatIsInFlight(t *testing.T) {
	t.Parallel()
	const whole = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"
	arrived, go_ := make(chan struct{}, 1000), make(chan struct{})
	address, served := serve(t, func(conn net.Conn, _ int) bool {
		arrived <- struct{}{}
		<-go_
		io.WriteString(conn, whole)
		return true
	})
	count := &tally{}
	tr := startTraffic(t.Context(), address, time.Second, count)
	for range 20 {
		<-arrived
	}
	if got := count.counts(); got.Requests != 0 {
		t.Errorf("%v before an answer", got)
	}
	tr.stop()
	close(go_)
	tr.settle()
	if got := count.counts(); got.Requests != served() || got.Requests < 20 {
		t.Errorf("counted %d of %d requests", got.Requests, served())
	}
}

func TestExplain(t *testing.T) {
	t.Parallel()
	if got := explain(map[string]int{cutOff: 2, "answered 502": 5, tooLate: 2}); got != "5 answered 502, 2 cut off, 2 without an answer in time" {
		t.Error(got)
	}
}
