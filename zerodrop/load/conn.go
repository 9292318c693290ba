package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"
)

// Reason is why a request failed, as its client saw it.
type Reason string

const (
	// Refused: the connection was answered with a reset.
	Refused Reason = "refused"
	// Unreachable: the network said that there is no such host.
	Unreachable Reason = "unreachable"
	// Reset: the connection was reset before the first byte of an answer.
	Reset Reason = "reset"
	// Closed: the connection was closed before the first byte of an answer.
	Closed Reason = "closed"
	// Timeout: no connection, or no byte of an answer, before the client gave up.
	Timeout Reason = "timeout"
	// BadStatus: a whole answer whose status is not 200.
	BadStatus Reason = "bad_status"
	// BadAnswer: what came is not HTTP.
	BadAnswer Reason = "bad_answer"
	// Cut: the answer began and did not come to its end.
	Cut Reason = "cut"
	// Local: the clients' own machine could not; it says nothing about the target.
	Local Reason = "local"
)

// failure is how a request failed.
type failure struct {
	reason Reason
	// retryable: on a connection that had been used before, and before any byte of an
	// answer. Some clients send a GET again then, others don't.
	retryable bool
	// status is set with BadStatus.
	status int
	err    error
}

// answer is a whole answer with status 200.
type answer struct {
	// instance is who gave it, "" if it does not say.
	instance string
	// last says that the server wants no more requests on the connection.
	last bool
}

// noConnection is the failure of a request that got no connection.
func noConnection(err error) *failure { return &failure{reason: reasonOf(err), err: err} }

// reasonOf says why there is no answer. Errors that the network does not cause are Local.
func reasonOf(err error) Reason {
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return Refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.ErrClosedPipe):
		return Reset
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return Unreachable
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Closed
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), isNet && timeout.Timeout():
		return Timeout
	}
	return Local
}

// conn is one connection of a client. It is used by one goroutine.
type conn struct {
	net.Conn
	r      *bufio.Reader
	host   string
	giveUp time.Duration
	used   bool
	// end is when the request in flight must be over; zero between requests, when the
	// read deadline is idle's.
	end time.Time
	// broken is what ended the reading, nil as long as it goes on.
	broken error
}

func newConn(c net.Conn, host string, giveUp time.Duration) *conn {
	wrapped := &conn{Conn: c, host: host, giveUp: giveUp}
	wrapped.r = bufio.NewReader(wrapped)
	return wrapped
}

// Read gives up when there is no byte for giveUp.
func (c *conn) Read(p []byte) (int, error) {
	if !c.end.IsZero() {
		deadline := time.Now().Add(c.giveUp)
		if c.end.Before(deadline) {
			deadline = c.end
		}
		c.SetReadDeadline(deadline)
	}
	n, err := c.Conn.Read(p)
	c.broken = err
	return n, err
}

// exchange sends one request and reads its answer to the end.
func (c *conn) exchange(r request, keep bool) (*answer, *failure) {
	reused := c.used
	c.used = true
	c.end = time.Now().Add(r.takes + longestRequest)
	defer func() { c.end = time.Time{} }()
	before := func(err error) *failure {
		return &failure{reason: reasonOf(err), retryable: reused, err: err}
	}
	var head strings.Builder
	fmt.Fprintf(&head, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: usher-load\r\n", r.path, c.host)
	if !keep {
		head.WriteString("Connection: close\r\n")
	}
	head.WriteString("\r\n")
	c.SetWriteDeadline(time.Now().Add(c.giveUp))
	if _, err := io.WriteString(c.Conn, head.String()); err != nil {
		return nil, before(fmt.Errorf("send the request: %w", err))
	}
	if _, err := c.r.Peek(1); err != nil {
		return nil, before(fmt.Errorf("wait for the answer: %w", err))
	}

	response, err := http.ReadResponse(c.r, nil)
	if err != nil {
		reason := BadAnswer
		if c.broken != nil {
			reason = Cut
		}
		return nil, &failure{reason: reason, err: fmt.Errorf("read the answer's head: %w", err)}
	}
	// The body is not closed: that would read on for what an error has ended, and wait again.
	n, err := io.Copy(io.Discard, response.Body)
	if err != nil {
		return nil, &failure{reason: Cut, err: fmt.Errorf("read the answer after %d bytes: %w", n, err)}
	}
	if response.StatusCode != http.StatusOK {
		return nil, &failure{reason: BadStatus, status: response.StatusCode, err: errors.New(response.Status)}
	}
	if r.size > 0 && n != r.size { // an answer without a length ends with its connection
		return nil, &failure{reason: Cut, err: fmt.Errorf("the answer has %d bytes, not %d", n, r.size)}
	}
	return &answer{instance: response.Header.Get("X-Instance-Id"), last: response.Close}, nil
}

// idle waits on a connection between two requests and says whether it can take the next
// one: until due, until something comes, which is its end, or until ctx ends.
func (c *conn) idle(ctx context.Context, due time.Time) bool {
	c.SetReadDeadline(due)
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	_, err := c.r.Peek(1)
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// hasNews says whether the server has already ended the connection. idle has looked
// until the request was due; here it counts that a busy machine may come back to this
// client later than that.
func (c *conn) hasNews() bool {
	socket, ok := c.Conn.(syscall.Conn)
	if !ok {
		return false // in memory
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return true
	}
	c.SetReadDeadline(time.Time{}) // with one in the past nothing is looked at
	var peeked error
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, peeked = syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		return true
	})
	return err != nil || !errors.Is(peeked, syscall.EAGAIN)
}
