package alibaba

import (
	"bufio"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"example.org/usher/messages"
)

// TestMain looks for keys in all that the clients have logged, at debug level.
func TestMain(m *testing.M) {
	log.SetOutput(&logged) // net/http says there what a server sends unasked
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		if text := logged.String(); strings.Contains(text, mark) {
			i := strings.Index(text, mark)
			fmt.Fprintf(os.Stderr, "FAIL: a key was logged: %s\n", strings.ReplaceAll(text[max(0, i-200):i+20], mark, "***"))
			code = 1
		} else if given("run")+given("list") == "" && len(text) < 10_000 {
			fmt.Fprintln(os.Stderr, "FAIL: hardly anything was logged: nothing has been searched for keys")
			code = 1
		}
		os.Exit(code)
	}))
}

func given(flagName string) string { return flag.Lookup("test." + flagName).Value.String() }

// mark is in every key and secret of these tests. The gate looks for it in what the
// tests themselves print.
const (
	mark       = "usherTESTsecret"
	testID     = mark + "Id"
	testSecret = mark + "Key"
)

// logged is what the clients of all tests log.
var logged synchronized

type synchronized struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (s *synchronized) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *synchronized) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// seen is a request as it came over the wire.
type seen struct {
	number int // from 1, over all connections
	conn   int // from 1
	head   string
	target string
	header http.Header
	body   string
}

// method is the request's.
func (s seen) method() string { return strings.SplitN(s.head, " ", 2)[0] }

// params are the parameters of an RPC call, in the query and in the form together.
func (s seen) params() url.Values {
	u, err := url.ParseRequestURI(s.target)
	if err != nil {
		panic(err)
	}
	v := u.Query()
	form, err := url.ParseQuery(s.body)
	if err != nil {
		panic(err)
	}
	for name, values := range form {
		v[name] = append(v[name], values...)
	}
	return v
}

// What a script can answer instead of a response.
const (
	hangUp = "hang up"
	hang   = "hang"
)

// scripted is an HTTP server that answers from a script, byte by byte.
type scripted struct {
	listener net.Listener
	script   func(seen) string
	done     chan struct{}
	wg       sync.WaitGroup

	mu    sync.Mutex
	seen  []seen     // guarded by mu
	conns []net.Conn // guarded by mu
}

// serve starts a scripted server on a listener and stops it with the test.
func serve(t *testing.T, l net.Listener, script func(seen) string) *scripted {
	t.Helper()
	s := &scripted{listener: l, script: script, done: make(chan struct{})}
	s.wg.Go(s.accept)
	t.Cleanup(s.stop)
	return s
}

// loopback starts a scripted server on 127.0.0.1.
func loopback(t *testing.T, script func(seen) string) *scripted {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, l, script)
}

func (s *scripted) url() string { return "http://" + s.listener.Addr().String() }

func (s *scripted) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, c)
		n := len(s.conns)
		s.mu.Unlock()
		s.wg.Go(func() { s.talk(c, n) })
	}
}

func (s *scripted) talk(c net.Conn, conn int) {
	defer c.Close()
	r := bufio.NewReader(c)
	for {
		x, err := readSeen(r)
		if err != nil {
			return
		}
		x.conn = conn
		s.mu.Lock()
		x.number = len(s.seen) + 1
		s.seen = append(s.seen, x)
		s.mu.Unlock()
		switch out := s.script(x); out {
		case hangUp:
			return
		case hang:
			<-s.done
			return
		default:
			if _, err := io.WriteString(c, out); err != nil {
				return
			}
		}
	}
}

func readSeen(r *bufio.Reader) (seen, error) {
	var head bytes.Buffer
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return seen{}, err
		}
		head.WriteString(line)
		if line == "\r\n" {
			break
		}
	}
	req, err := http.ReadRequest(bufio.NewReader(io.MultiReader(bytes.NewReader(head.Bytes()), r)))
	if err != nil {
		return seen{}, err
	}
	body := make([]byte, max(req.ContentLength, 0))
	if _, err := io.ReadFull(req.Body, body); err != nil && len(body) > 0 {
		return seen{}, err
	}
	return seen{head: head.String(), target: req.RequestURI, header: req.Header, body: string(body)}, nil
}

func (s *scripted) stop() {
	close(s.done)
	s.listener.Close()
	s.mu.Lock()
	for _, c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *scripted) requests() []seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]seen(nil), s.seen...)
}

// pipes is a listener of in-memory connections, for synctest bubbles.
type pipes struct {
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

func newPipes() *pipes { return &pipes{ch: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.ch:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return pipeAddr{} }

func (p *pipes) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.ch <- server:
		return client, nil
	case <-p.done:
		return nil, net.ErrClosed
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe.invalid" }

// response writes an HTTP response.
func response(status int, headers, body string) string {
	return fmt.Sprintf("HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Length: %d\r\nx-mns-request-id: 5DF07C9B31383790319F4D26\r\n%s\r\n%s",
		status, http.StatusText(status), time.Now().UTC().Format(http.TimeFormat), len(body), headers, body)
}

const xmlHead = `<?xml version="1.0" encoding="UTF-8"?>` + "\n"

func mnsRefusal(status int, code, message string) string {
	return response(status, "Content-Type: text/xml;charset=utf-8\r\n", xmlHead+`<Error xmlns="http://mns.aliyuncs.com/doc/v1/"><Code>`+code+
		`</Code><Message>`+message+`</Message><RequestId>5DF07C9B31383790319F4D26</RequestId><HostId>http://1.mns.cn-hangzhou.aliyuncs.com</HostId></Error>`)
}

func rpcRefusal(status int, code, message string) string {
	return response(status, "Content-Type: application/json\r\n",
		fmt.Sprintf(`{"RequestId":"540CFF28-407A-40B5-B6A5-74B3E2C1D0AA","HostId":"ess.aliyuncs.com","Code":%q,"Message":%q}`, code, message))
}

func rpcOK(fields string) string {
	return response(200, "Content-Type: application/json\r\n", `{"RequestId":"473469C7-AA6F-4DC5-B3DB-A3DC0DE3C83E"`+fields+`}`)
}

const emptyQueueText = "Message not exist."

func emptyQueue() string { return mnsRefusal(404, "MessageNotExist", emptyQueueText) }

// options point all clients at one server.
func options(at string) Options {
	return Options{
		Region: "cn-hangzhou", QueueName: "usher-hooks", QueueEndpoint: at, ESSEndpoint: at, ECSEndpoint: at, SLBEndpoint: at, ALBEndpoint: at, NLBEndpoint: at,
		Credentials: StaticCredentials(testID, testSecret),
		Logger:      slog.New(slog.NewTextHandler(&logged, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

func newQueue(t *testing.T, o Options) *Queue {
	t.Helper()
	q, err := NewQueue(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	return q
}

func newScaling(t *testing.T, o Options) *Scaling {
	t.Helper()
	s, err := NewScaling(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func newAssistant(t *testing.T, o Options) *Assistant {
	t.Helper()
	a, err := NewAssistant(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	return a
}

func testAction() messages.Action {
	return messages.Action{
		Region: "cn-hangzhou", Group: "asg-bp1example", Hook: "ash-bp1example", Transition: messages.ScaleIn,
		Token: "C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99", Activity: "asa-bp1example", Instances: []messages.InstanceID{"i-bp1a"},
	}
}
