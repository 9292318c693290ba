package alibaba

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// hostile is a server that answers every request with what write sends, for as long as
// the client takes it. It is reached over connections in memory.
func hostile(t *testing.T, write func(c net.Conn, done <-chan struct{})) Options {
	t.Helper()
	l := newPipes()
	s := &scripted{listener: l, done: make(chan struct{})}
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() {
				defer c.Close()
				// What the client sends is read all the time: a pipe has no buffer.
				s.wg.Go(func() { _, _ = io.Copy(io.Discard, c) })
				write(c, s.done)
			})
			s.mu.Lock()
			s.conns = append(s.conns, c)
			s.mu.Unlock()
		}
	})
	t.Cleanup(s.stop)
	o := options("http://cloud.test")
	o.DialContext = l.dial
	return o
}

// calls are one call of each client, and what each of them must end with.
func calls(t *testing.T, o Options) map[string]func(context.Context) error {
	t.Helper()
	q, s, as := newQueue(t, o), newScaling(t, o), newAssistant(t, o)
	return map[string]func(context.Context) error{
		"MNS receive": func(ctx context.Context) error { _, err := q.Receive(ctx, 16, 0); return err },
		"MNS extend":  func(ctx context.Context) error { _, err := q.Extend(ctx, "r", time.Minute); return err },
		"MNS delete":  func(ctx context.Context) error { return q.Delete(ctx, []providers.Receipt{"r"})[0] },
		"ESS complete": func(ctx context.Context) error {
			_, err := s.Complete(ctx, testAction(), messages.Continue)
			return err
		},
		"ESS verify": func(ctx context.Context) error { return s.Verify(ctx, []messages.Action{testAction()})[0].Err },
		"ECS command": func(ctx context.Context) error {
			_, err := as.RunCommand(ctx, providers.Command{Instance: "i-1", Script: "true", Key: "k"})
			return err
		},
		"ECS result": func(ctx context.Context) error { _, err := as.CommandResult(ctx, "t-1", "i-1"); return err },
	}
}

const okHead = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"

// send writes text, and says whether the client still takes it.
func send(c net.Conn, text string) bool {
	_, err := io.WriteString(c, text)
	return err == nil
}

// stall waits for the end of the test.
func stall(c net.Conn, done <-chan struct{}, head string) {
	if send(c, head) {
		<-done
	}
}

// drip sends a byte a second.
func drip(c net.Conn, done <-chan struct{}, text string) {
	for text != "" {
		if !send(c, text[:1]) {
			return
		}
		text = text[1:]
		select {
		case <-time.After(time.Second):
		case <-done:
			return
		}
	}
}

// TestAnswersThatDoNotEnd: whatever a server does with its answer, a call ends with its
// time limit or before it.
func TestAnswersThatDoNotEnd(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 3600)
	for name, write := range map[string]func(c net.Conn, done <-chan struct{}){
		"nothing":       func(c net.Conn, done <-chan struct{}) { <-done },
		"head cut":      func(c net.Conn, done <-chan struct{}) { stall(c, done, "HTTP/1.1 200 O") },
		"head by drops": func(c net.Conn, done <-chan struct{}) { drip(c, done, okHead+long) },
		"body by drops": func(c net.Conn, done <-chan struct{}) { drip(c, done, okHead+"Content-Length: 3600\r\n\r\n"+long) },
		"no body":       func(c net.Conn, done <-chan struct{}) { stall(c, done, okHead+"Content-Length: 100\r\n\r\n") },
		"no next chunk": func(c net.Conn, done <-chan struct{}) {
			stall(c, done, okHead+"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
		},
		"until it closes": func(c net.Conn, done <-chan struct{}) { stall(c, done, okHead+"Connection: close\r\n\r\nx") },
		"other protocol": func(c net.Conn, done <-chan struct{}) {
			stall(c, done, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")
		},
		"early hints": func(c net.Conn, done <-chan struct{}) {
			drip(c, done, strings.Repeat("HTTP/1.1 103 Early Hints\r\n\r\n", 200))
		},
		"refusal by drops": func(c net.Conn, done <-chan struct{}) {
			drip(c, done, "HTTP/1.1 503 Busy\r\nContent-Length: 3600\r\n\r\n"+long)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				o := hostile(t, write)
				for what, call := range calls(t, o) {
					ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
					begin := time.Now()
					err := call(ctx)
					if took := time.Since(begin); err == nil || took > 3*time.Minute+time.Second {
						t.Errorf("%s: %v after %v, want an error in time", what, err, took)
					}
					cancel()
				}
			})
		})
	}
}

// TestAnswersWithoutBounds: an answer that is larger than any true one costs neither
// memory nor time in proportion.
func TestAnswersWithoutBounds(t *testing.T) {
	hours(t)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	for range 64 {
		if _, err := z.Write(make([]byte, 1<<20)); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	// whole is a document of size bytes: its begin, part again and again, its end.
	whole := func(size int, begin, part, end string) string {
		return begin + strings.Repeat(part, (size-len(begin)-len(end))/len(part)) + end
	}
	fixed := func(headers, body string) func(net.Conn, <-chan struct{}) {
		return func(c net.Conn, _ <-chan struct{}) {
			send(c, okHead+headers+fmt.Sprintf("Content-Length: %d\r\n\r\n", len(body))+body)
		}
	}
	const (
		mns  = "MNS receive, MNS delete"
		each = "MNS receive, ESS complete, ECS command"
	)
	const id = `{"RequestId":"473469C7-AA6F-4DC5-B3DB-A3DC0DE3C83E",`
	for _, c := range []struct {
		what  string // which calls
		name  string
		write func(c net.Conn, done <-chan struct{})
	}{
		{each, "endless body", func(c net.Conn, _ <-chan struct{}) {
			part := strings.Repeat("<a>", 20000)
			for send(c, okHead+"\r\n"+part); send(c, part); {
			}
		}},
		{each, "endless chunks", func(c net.Conn, _ <-chan struct{}) {
			part := fmt.Sprintf("%x\r\n%s\r\n", 60000, strings.Repeat(" ", 60000))
			for send(c, okHead+"Transfer-Encoding: chunked\r\n\r\n"); send(c, part); {
			}
		}},
		{each, "endless header", func(c net.Conn, _ <-chan struct{}) {
			for send(c, okHead+"X-Long: "); send(c, strings.Repeat("x", 60000)); {
			}
		}},
		{each, "endless headers", func(c net.Conn, _ <-chan struct{}) {
			for send(c, okHead); send(c, strings.Repeat("X-Many: x\r\n", 5000)); {
			}
		}},
		{each, "endless trailer", func(c net.Conn, _ <-chan struct{}) {
			for send(c, okHead+"Transfer-Encoding: chunked\r\n\r\n0\r\n"); send(c, strings.Repeat("X-Many: x\r\n", 5000)); {
			}
		}},
		{each, "gzip bomb", fixed("Content-Encoding: gzip\r\n", zipped.String())},
		{mns, "XML in depth", fixed("", whole(mnsMaxAnswer, "<Messages>", "<a>", ""))},
		{mns, "XML in depth inside a field", fixed("", whole(mnsMaxAnswer, "<Messages><Message><MessageBody>", "<a>", ""))},
		{mns, "XML with many attributes", fixed("", whole(mnsMaxAnswer, "<Messages", ` a=""`, "></Messages>"))},
		{mns, "XML with many messages", fixed("", whole(mnsMaxAnswer, "<Messages>", "<Message/>", "</Messages>"))},
		{mns, "XML with many errors", fixed("", whole(mnsMaxAnswer, "<Errors>", "<Error/>", "</Errors>"))},
		{mns, "XML with an entity", fixed("", whole(mnsMaxAnswer, `<!DOCTYPE a [<!ENTITY x "xxxxxxxxxxxxxxxx">]><Error><Code>`, "&x;", "</Code></Error>"))},
		{each, "JSON in depth", fixed("", whole(rpcMaxAnswer, id+`"LifecycleActions":`, "[", ""))},
		{"ESS verify", "JSON with many actions", fixed("", whole(rpcMaxAnswer, id+`"LifecycleActions":{"LifecycleAction":[{}`, ",{}", "]}}"))},
		{"ESS verify", "JSON with many empty instances", fixed("", whole(rpcMaxAnswer, id+`"ScalingInstances":{"ScalingInstance":[null`, ",null", "]}}"))},
		{"ESS verify", "JSON with many instances", fixed("", whole(rpcMaxAnswer, id+`"ScalingInstances":{"ScalingInstance":[{}`, ",{}", "]}}"))},
		{"ECS result", "JSON with many results", fixed("", whole(rpcMaxAnswer, id+`"Invocation":{"InvocationResults":{"InvocationResult":[{}`, ",{}", "]}}}"))},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := hostile(t, c.write)
			for what, call := range calls(t, o) {
				if !strings.Contains(c.what, what) {
					continue
				}
				// One attempt, or few: each would take the same.
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				used := peak(func() { _ = call(ctx) }) // some of the answers are empty, but true
				cancel()
				if used > mostMemory {
					t.Errorf("%s took %d MB", what, used>>20)
				}
			}
		})
	}
}

// mostMemory is what reading one answer may take.
const mostMemory = 64 << 20

// peak is by how much the heap grows at the most while f runs, rubbish included.
func peak(f func()) uint64 {
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	done := make(chan struct{})
	most := make(chan uint64)
	go func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		high := uint64(0)
		for {
			select {
			case <-tick.C:
				runtime.ReadMemStats(&now)
				high = max(high, now.HeapAlloc)
			case <-done:
				most <- high
				return
			}
		}
	}()
	f()
	close(done)
	if high := <-most; high > before.HeapAlloc {
		return high - before.HeapAlloc
	}
	return 0
}

// TestTextOfAnswers: what an answer says goes into errors and logs in a bounded length,
// and cannot write lines of its own there.
func TestTextOfAnswers(t *testing.T) {
	t.Parallel()
	evil := "\x1b[2J\u2028" + strings.Repeat("evil\n", 20000)
	refusal, err := json.Marshal(map[string]any{
		"RequestId": evil, "Code": evil, "Message": evil, "AccessDeniedDetail": map[string]string{"AuthAction": evil},
	})
	if err != nil {
		t.Fatal(err)
	}
	result, err := json.Marshal(map[string]any{
		"RequestId": "r-1", "Invocation": map[string]any{"InvocationResults": map[string]any{"InvocationResult": []any{map[string]any{
			"InvokeId": "t-1", "InstanceId": "i-1", "InvocationStatus": "Error", "ErrorCode": evil, "ErrorInfo": evil,
		}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	var xmlEvil strings.Builder
	if err := xml.EscapeText(&xmlEvil, []byte(evil[4:])); err != nil {
		t.Fatal(err)
	}
	for name, answer := range map[string]string{
		"refusal of RPC": response(403, "", string(refusal)),
		"page":           response(502, "", evil),
		"odd types":      response(200, "", `{"RequestId":"1","LifecycleActions":[]}`),
		"malformed":      "HTTP/1.1 " + strings.Repeat("evil\x1b ", 20000) + "\r\n\r\n",
		"refusal of MNS": mnsRefusal(403, xmlEvil.String()[:20000], xmlEvil.String()[:20000]),
		"result":         response(200, "", string(result)),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := loopback(t, func(seen) string { return answer })
			o := options(s.url())
			q, e, as := newQueue(t, o), newScaling(t, o), newAssistant(t, o)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			_, receive := q.Receive(ctx, 16, 0)
			_, beat := e.Heartbeat(ctx, testAction(), time.Minute)
			res, look := as.CommandResult(ctx, "t-1", "i-1")
			list := e.Verify(ctx, []messages.Action{testAction()})[0].Err
			for _, err := range []error{receive, beat, look, list, res.Err} {
				text := fmt.Sprint(err, providers.RequestID(err))
				if len(text) > 2000 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
					t.Errorf("%d bytes: %.300q", len(text), text)
				}
			}
		})
	}
}

// TestIDsOfAnswers: an id that the cloud gives goes into logs, and no id that is none
// goes where those of a notification go.
func TestIDsOfAnswers(t *testing.T) {
	t.Parallel()
	t.Run("messages", func(t *testing.T) {
		t.Parallel()
		s := loopback(t, func(seen) string {
			return batch(message("m-1", "r", "b", time.Now()), message("m 2", "r", "b", time.Now()), message(strings.Repeat("m", 1000), "r", "b", time.Now()),
				message("m-4", strings.Repeat("r", 10000), "b", time.Now()), message("", "r", "b", time.Now()))
		})
		got, err := newQueue(t, options(s.url())).Receive(t.Context(), 16, 0)
		if err != nil || len(got) != 1 || got[0].MessageID != "m-1" {
			t.Errorf("%d messages, %v", len(got), err)
		}
	})
	t.Run("requests", func(t *testing.T) {
		t.Parallel()
		s := loopback(t, func(seen) string { return response(200, "", `{"RequestId":"a b"}`) })
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		_, err := newScaling(t, options(s.url())).Heartbeat(ctx, testAction(), time.Minute)
		wantKind(t, err, providers.ErrUnavailable)
	})
	t.Run("invocations", func(t *testing.T) {
		t.Parallel()
		s := loopback(t, func(seen) string { return rpcOK(`,"InvokeId":"a b"`) })
		_, err := newAssistant(t, options(s.url())).RunCommand(t.Context(), providers.Command{Instance: "i-1", Script: "true", Key: "k"})
		wantKind(t, err, providers.ErrUnavailable)
	})
	t.Run("instances", func(t *testing.T) {
		t.Parallel()
		s := loopback(t, func(x seen) string {
			if x.params().Get("Action") == "DescribeLifecycleActions" {
				return rpcOK(`,"LifecycleActions":{"LifecycleAction":[{"LifecycleHookId":"ash-bp1example","LifecycleActionStatus":"Pending",` +
					`"LifecycleActionToken":"C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99","InstanceIds":{"InstanceId":["i-bp1a","i-1/../?x={{"]}}]}`)
			}
			return rpcOK("")
		})
		v := newScaling(t, options(s.url())).Verify(t.Context(), []messages.Action{testAction()})[0]
		wantKind(t, v.Err, providers.ErrUnavailable)
	})
	for _, text := range []string{"fe80::1%eth0", "::1%/../x@evil.test", "0.0.0.0", "::", "224.0.0.1", "10.0.0.1/8", ""} {
		if ip := parseAddress(text); ip.IsValid() {
			t.Errorf("%q was read as %v", text, ip)
		}
	}
}
