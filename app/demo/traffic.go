package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// The steady traffic. The slow requests and downloads make sure that each of six
// instances has some in flight at any moment.
const (
	shortEvery    = 25 * time.Millisecond // 40 a second, each on a new connection
	keepAlive     = 10                    // clients with one connection each ...
	keepEvery     = 250 * time.Millisecond
	slowEvery     = 167 * time.Millisecond // 6 a second
	downloadEvery = 500 * time.Millisecond // 2 a second
	downloadKB    = 64

	// answerSlack is how long an answer may take beyond what it was asked to take:
	// more than a machine with other things to do stands still.
	answerSlack = 20 * time.Second
	// maxInFlight bounds the requests on connections of their own. When so many are
	// in flight the next ones are not sent, and not counted.
	maxInFlight = 400
)

// Why a request failed, as the clients saw it.
const (
	noConnection = "got no connection"
	cutOff       = "cut off"
	tooLate      = "without an answer in time"
)

// tally counts requests that are over. It is safe for concurrent use.
type tally struct {
	mu       sync.Mutex // guards all below
	requests int
	failed   int
	reasons  map[string]int
}

// add counts one request; a reason means that it failed.
func (t *tally) add(reason string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.requests++
	if reason == "" {
		return
	}
	t.failed++
	if t.reasons == nil {
		t.reasons = map[string]int{}
	}
	t.reasons[reason]++
}

func (t *tally) counts() Counts {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Counts{Requests: t.requests, Failed: t.failed, reasons: explain(t.reasons)}
}

// explain lists the reasons, the most frequent first: "5 answered 502, 2 cut off".
func explain(reasons map[string]int) string {
	var names []string
	for name := range reasons {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if d := reasons[b] - reasons[a]; d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%d %s", reasons[name], name)
	}
	return strings.Join(names, ", ")
}

// request is one request of a client and what a complete answer to it is.
type request struct {
	path string
	// size is the length of the body; 0: any that is not empty.
	size int64
	// takes is how long the answer is asked to take.
	takes time.Duration
}

// traffic is the clients of one phase.
type traffic struct {
	address string // of the balancer
	tally   *tally
	ctx     context.Context // ends requests in flight, which then do not count
	sending context.Context // ends the sending of new ones
	stop    context.CancelFunc
	slots   chan struct{}
	running sync.WaitGroup
}

// startTraffic sends requests to address until settle, or until ctx ends. The
// slowest answer takes slow.
func startTraffic(ctx context.Context, address string, slow time.Duration, count *tally) *traffic {
	t := &traffic{address: address, tally: count, ctx: ctx, slots: make(chan struct{}, maxInFlight)}
	t.sending, t.stop = context.WithCancel(ctx)
	t.every(shortEvery, func(int) request { return request{path: "/"} })
	t.every(slowEvery, func(i int) request {
		takes := slow * time.Duration(2+i%3) / 4 // the same in both phases
		return request{path: fmt.Sprintf("/slow?ms=%d", takes.Milliseconds()), takes: takes}
	})
	t.every(downloadEvery, func(int) request {
		takes := slow * 3 / 4
		return request{path: fmt.Sprintf("/download?kb=%d&ms=%d", downloadKB, takes.Milliseconds()), size: downloadKB << 10, takes: takes}
	})
	for i := range keepAlive {
		t.running.Go(func() { t.keep(keepEvery * time.Duration(i) / keepAlive) })
	}
	return t
}

// settle sends nothing new and waits until each request in flight is over and counted.
func (t *traffic) settle() {
	t.stop()
	t.running.Wait()
}

// every sends the next request each interval, on a connection of its own.
func (t *traffic) every(interval time.Duration, next func(i int) request) {
	t.running.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-t.sending.Done():
				return
			case <-tick.C:
			}
			select {
			case t.slots <- struct{}{}:
				t.running.Go(func() {
					defer func() { <-t.slots }()
					c := &client{address: t.address}
					defer c.close()
					t.one(c, next(i))
				})
			default: // too many in flight
			}
		}
	})
}

// keep is one client that keeps its connection.
func (t *traffic) keep(offset time.Duration) {
	c := &client{address: t.address, keep: true}
	defer c.close()
	for wait := offset; rest(t.sending, wait); wait = keepEvery {
		t.one(c, request{path: "/"})
	}
}

func (t *traffic) one(c *client, q request) {
	reason := c.send(t.ctx, q)
	if t.ctx.Err() == nil {
		t.tally.add(reason)
	}
}

// client sends one request after the other and never repeats one. It is not
// net/http's, which quietly sends a request again when a kept connection turns out
// to be dead: here that is a failure, as it is for the clients of many languages.
type client struct {
	address string
	keep    bool
	conn    net.Conn // nil: none is open
	reader  *bufio.Reader
}

// send gives "" when the whole answer came with status 200, else why not.
func (c *client) send(ctx context.Context, q request) (reason string) {
	deadline := time.Now().Add(q.takes + answerSlack)
	if c.conn == nil {
		dialer := net.Dialer{Deadline: deadline}
		conn, err := dialer.DialContext(ctx, "tcp", c.address)
		if err != nil {
			return noConnection
		}
		c.conn, c.reader = conn, bufio.NewReader(conn)
	}
	conn := c.conn
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	reason, reusable := c.exchange(q, deadline)
	if !stop() || !reusable || !c.keep {
		c.close()
	}
	return reason
}

// exchange writes the request and reads the answer to its end.
func (c *client) exchange(q request, deadline time.Time) (reason string, reusable bool) {
	c.conn.SetDeadline(deadline) // fails on a closed connection only, as the write will
	connection := "close"
	if c.keep {
		connection = "keep-alive"
	}
	_, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: %s\r\n\r\n", q.path, c.address, connection)
	if err != nil {
		return broken(err), false
	}
	res, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return broken(err), false
	}
	defer res.Body.Close()
	n, err := io.Copy(io.Discard, res.Body)
	framed := res.ContentLength >= 0 || slices.Contains(res.TransferEncoding, "chunked")
	switch {
	case err != nil:
		return broken(err), false
	case res.StatusCode != http.StatusOK:
		return fmt.Sprintf("answered %d", res.StatusCode), framed && !res.Close
	case !framed, n == 0, q.size > 0 && n != q.size:
		// Without a length nobody can tell a whole body from a cut one.
		return cutOff, false
	}
	return "", !res.Close
}

func (c *client) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func broken(err error) string {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return tooLate
	}
	return cutOff
}

// rest waits for d and says whether ctx let it.
func rest(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
