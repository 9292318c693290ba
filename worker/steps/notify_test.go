package steps

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/usher/messages"
)

const hookToken = "tokenThatNobodyMaySee"

// hook is a webhook that keeps what it was sent and gives the answer of the test.
type hook struct {
	*httptest.Server
	answer func(w http.ResponseWriter, r *http.Request)

	mu  sync.Mutex
	got []seenNote // guarded by mu
}

type seenNote struct {
	path, contentType string
	query             map[string][]string
	body              map[string]any
}

func newHook(t *testing.T, answer string) *hook {
	t.Helper()
	h := &hook{answer: func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer) }}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := seenNote{path: r.URL.Path, contentType: r.Header.Get("Content-Type"), query: r.URL.Query()}
		if err := json.NewDecoder(r.Body).Decode(&n.body); err != nil || r.Method != http.MethodPost {
			t.Errorf("%s with a body that is no JSON: %v", r.Method, err)
		}
		h.mu.Lock()
		h.got = append(h.got, n)
		h.mu.Unlock()
		h.answer(w, r)
	}))
	t.Cleanup(h.Close)
	return h
}

func (h *hook) all() []seenNote {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]seenNote(nil), h.got...)
}

// outbox runs an outbox; end waits until it has sent what it has, and gives its log.
func outbox(t *testing.T) (o *Outbox, end func() string) {
	t.Helper()
	var log bytes.Buffer
	o = NewOutbox(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})), nil)
	o.timeout, o.last = time.Minute, time.Minute // the machine may be busy
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() { defer close(done); o.Run(ctx) }()
	end = sync.OnceValue(func() string {
		cancel()
		<-done
		return log.String()
	})
	t.Cleanup(func() { end() })
	return o, end
}

func secretFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Each webhook gets the shape and the signature that it is documented to want.
func TestNotifyShapes(t *testing.T) {
	t.Parallel()
	const secret = "SECexample"
	in := messages.Instance{ID: "i-1", Action: messages.Action{Region: "cn-shenzhen", Group: "asg-1", Hook: "ash-1", Token: "T-1", Activity: "asa-1", Transition: messages.ScaleIn}}
	const text = `i-1 of asg-1 <"leaves">`
	for _, c := range []struct {
		format, answer string
		signed         bool
		check          func(t *testing.T, n seenNote)
	}{
		{NotifyJSON, "", false, func(t *testing.T, n seenNote) {
			if at, err := time.Parse(time.RFC3339, fmt.Sprint(n.body["time"])); err != nil || time.Since(at) > time.Hour {
				t.Errorf("time %v", n.body["time"])
			}
			delete(n.body, "time")
			want := map[string]any{"text": text, "instance_id": "i-1", "scaling_group": "asg-1", "region": "cn-shenzhen", "hook": "ash-1", "token": "T-1", "transition": "scale_in", "activity": "asa-1"}
			if fmt.Sprint(n.body) != fmt.Sprint(want) {
				t.Errorf("body %v, want %v", n.body, want)
			}
		}},
		{NotifySlack, "ok", false, func(t *testing.T, n seenNote) {
			if want := map[string]any{"text": text}; fmt.Sprint(n.body) != fmt.Sprint(want) {
				t.Errorf("body %v, want %v", n.body, want)
			}
		}},
		{NotifyDingTalk, `{"errcode":0,"errmsg":"ok"}`, false, func(t *testing.T, n seenNote) {
			if want := map[string]any{"msgtype": "text", "text": map[string]any{"content": text}}; fmt.Sprint(n.body) != fmt.Sprint(want) || n.query["sign"] != nil {
				t.Errorf("body %v with %v, want %v", n.body, n.query, want)
			}
		}},
		{NotifyDingTalk, `{"errcode":0,"errmsg":"ok"}`, true, func(t *testing.T, n seenNote) {
			at, err := strconv.ParseInt(n.query["timestamp"][0], 10, 64)
			if err != nil || time.Since(time.UnixMilli(at)) > time.Hour || time.Until(time.UnixMilli(at)) > time.Hour {
				t.Errorf("timestamp %v", n.query["timestamp"])
			}
			mac := hmac.New(sha256.New, []byte(secret))
			fmt.Fprintf(mac, "%d\n%s", at, secret)
			if want := base64.StdEncoding.EncodeToString(mac.Sum(nil)); n.query["sign"][0] != want {
				t.Errorf("sign %v, want %s", n.query["sign"], want)
			}
			if n.query["access_token"][0] != hookToken {
				t.Errorf("the token is %v", n.query["access_token"])
			}
		}},
		{NotifyFeishu, `{"code":0,"msg":"success","data":{}}`, false, func(t *testing.T, n seenNote) {
			if want := map[string]any{"msg_type": "text", "content": map[string]any{"text": text}}; fmt.Sprint(n.body) != fmt.Sprint(want) {
				t.Errorf("body %v, want %v", n.body, want)
			}
		}},
		{NotifyFeishu, `{"StatusCode":0,"StatusMessage":"success"}`, true, func(t *testing.T, n seenNote) {
			at, err := strconv.ParseInt(fmt.Sprint(n.body["timestamp"]), 10, 64)
			if err != nil || time.Since(time.Unix(at, 0)) > time.Hour || time.Until(time.Unix(at, 0)) > time.Hour {
				t.Errorf("timestamp %v", n.body["timestamp"])
			}
			mac := hmac.New(sha256.New, fmt.Appendf(nil, "%d\n%s", at, secret))
			if want := base64.StdEncoding.EncodeToString(mac.Sum(nil)); n.body["sign"] != want {
				t.Errorf("sign %v, want %s", n.body["sign"], want)
			}
		}},
	} {
		t.Run(fmt.Sprintf("%s, signed %v", c.format, c.signed), func(t *testing.T) {
			t.Parallel()
			h := newHook(t, c.answer)
			o, end := outbox(t)
			n := Notify{Format: c.format, URLFile: secretFile(t, h.URL+"/robot/send?access_token="+hookToken+"\n"), Text: `{{.InstanceID}} of {{.ScalingGroup}} <"leaves">`, Outbox: o}
			if c.signed {
				n.SecretFile = secretFile(t, secret)
			}
			if err := n.Validate(); err != nil {
				t.Fatal(err)
			}
			if detail, err := n.Run(t.Context(), in, 0); err != nil || detail != "handed over to be sent ("+c.format+")" {
				t.Fatalf("%q, %v", detail, err)
			}
			log := end()
			got := h.all()
			if len(got) != 1 || got[0].path != "/robot/send" || !strings.HasPrefix(got[0].contentType, "application/json") {
				t.Fatalf("sent %+v\n%s", got, log)
			}
			c.check(t, got[0])
			if !strings.Contains(log, "notification sent") || strings.Contains(log, hookToken) || strings.Contains(log, secret) {
				t.Errorf("the log says %s", log)
			}
		})
	}
}

// What is not taken is logged with the host alone, whatever the other side sends back.
func TestNotifyFails(t *testing.T) {
	t.Parallel()
	echo := func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, "%s no service at %s", strings.Repeat("x", 190), r.URL)
	}
	for _, c := range []struct {
		name, format, answer string
		do                   func(w http.ResponseWriter, r *http.Request)
		want                 string
	}{
		{"DingTalk refuses", NotifyDingTalk, `{"errcode":310000,"errmsg":"sign not match for ` + hookToken + `"}`, nil, `refused with code 310000: \"sign not match for ***\"`},
		{"Feishu refuses", NotifyFeishu, `{"code":19021,"msg":"sign match fail or timestamp is not within one hour from current time"}`, nil, "refused with code 19021"},
		{"not DingTalk", NotifyDingTalk, "<html>sign in</html>", nil, "the answer is not dingtalk's"},
		{"not Feishu", NotifyFeishu, `{"errcode":0}`, nil, "the answer is not feishu's"},
		{"the URL comes back", NotifySlack, "", echo, "status 403"},
		{"a redirect", NotifyJSON, "", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "status 302"},
		{"no answer", NotifyJSON, "", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "error="},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newHook(t, c.answer)
			if c.do != nil {
				h.answer = c.do
			}
			o, end := outbox(t)
			n := Notify{Format: c.format, URL: h.URL + "/services/" + hookToken + "?access_token=" + hookToken, Text: "x", Outbox: o}
			if _, err := n.Run(t.Context(), messages.Instance{ID: "i-1"}, 0); err != nil {
				t.Fatal(err)
			}
			log := end()
			if !strings.Contains(log, "can't send a notification") || !strings.Contains(log, c.want) || !strings.Contains(log, strings.TrimPrefix(h.URL, "http://")) {
				t.Errorf("the log says %s, want %s", log, c.want)
			}
			if strings.Contains(log, hookToken[:8]) {
				t.Errorf("the token is in the log: %s", log)
			}
			if len(h.all()) != 1 {
				t.Errorf("sent %d times", len(h.all()))
			}
		})
	}
}

// An answer may have the token in another form, or one part of the URL within another.
func TestNotifyScrubsEveryForm(t *testing.T) {
	t.Parallel()
	const token = "abcdef/ghijkl+mnopqr=="
	for name, c := range map[string]struct{ format, answer string }{
		"JSON's escapes":   {NotifyDingTalk, `{"errcode":310000,"errmsg":"no robot abcdef\/ghijkl\u002bmnopqr=="}`},
		"of no known form": {NotifyDingTalk, `no robot abcdef\/ghijkl+mnopqr==`},
		"a URL's escapes":  {NotifySlack, "no robot abcdef%2Fghijkl%2Bmnopqr%3D%3D"},
		"a part of it":     {NotifySlack, "no robot robots-" + hookToken},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHook(t, "")
			h.answer = func(w http.ResponseWriter, _ *http.Request) {
				if c.format == NotifySlack {
					w.WriteHeader(http.StatusForbidden)
				}
				io.WriteString(w, c.answer)
			}
			o, end := outbox(t)
			n := Notify{Format: c.format, URL: h.URL + "/robots/robots-" + hookToken + "?access_token=" + url.QueryEscape(token), Text: "x", Outbox: o}
			if _, err := n.Run(t.Context(), messages.Instance{ID: "i-1"}, 0); err != nil {
				t.Fatal(err)
			}
			if log := end(); !strings.Contains(log, "no robot ***") || strings.Contains(log, "ghijkl") || strings.Contains(log, hookToken) {
				t.Errorf("the log says %s", log)
			}
		})
	}
}

// A certificate that nobody vouches for is no reason to give the token away.
func TestNotifyVerifies(t *testing.T) {
	t.Parallel()
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the request was sent") }))
	server.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	o, end := outbox(t)
	n := Notify{Format: NotifyJSON, URL: server.URL + "/" + hookToken, Text: "x", Outbox: o}
	if _, err := n.Run(t.Context(), messages.Instance{ID: "i-1"}, 0); err != nil {
		t.Fatal(err)
	}
	if log := end(); !strings.Contains(log, "certificate") || strings.Contains(log, hookToken) {
		t.Errorf("the log says %s", log)
	}
}

// A webhook that hangs keeps nobody waiting: what has no room is dropped and counted, and the
// end of the worker does not wait for what is left.
func TestNotifyWaitsForNobody(t *testing.T) {
	t.Parallel()
	begun, hold := make(chan struct{}), make(chan struct{})
	var first sync.Once
	h := newHook(t, "")
	h.answer = func(http.ResponseWriter, *http.Request) {
		first.Do(func() { close(begun) })
		<-hold
	}
	t.Cleanup(func() { close(hold) }) // before the server is closed
	o, end := outbox(t)
	o.last = 0
	n := Notify{Format: NotifyJSON, URL: h.URL + "/" + hookToken, Text: "x", Outbox: o}
	send := func() string {
		detail, err := n.Run(t.Context(), messages.Instance{ID: "i-1"}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return detail
	}
	send()
	<-begun // it hangs, and the queue is empty
	for range outboxSize {
		if detail := send(); !strings.HasPrefix(detail, "handed over") {
			t.Fatal(detail)
		}
	}
	for range 3 {
		if detail := send(); !strings.HasPrefix(detail, "dropped") {
			t.Fatal(detail)
		}
	}
	if o.Dropped() != 3 {
		t.Errorf("%d were dropped, want 3", o.Dropped())
	}
	log := end()
	if n := o.Dropped(); n < 3+outboxSize-1 || !strings.Contains(log, "the worker has stopped") || !strings.Contains(log, "too many wait to be sent") {
		t.Errorf("%d were dropped in all: %.2000s", n, log)
	}
}

// A webhook that hangs does not hold up what others are to be told.
func TestNotifyPassesOverAWebhookThatHangs(t *testing.T) {
	t.Parallel()
	hold, told := make(chan struct{}), make(chan struct{})
	silent, other := newHook(t, ""), newHook(t, "")
	silent.answer = func(http.ResponseWriter, *http.Request) { <-hold }
	t.Cleanup(func() { close(hold) }) // before the server is closed
	other.answer = func(http.ResponseWriter, *http.Request) { close(told) }
	o, end := outbox(t)
	o.timeout = 5 * time.Second
	for _, to := range []string{silent.URL, silent.URL, silent.URL, other.URL} {
		if _, err := (Notify{Format: NotifyJSON, URL: to + "/" + hookToken, Text: "x", Outbox: o}).Run(t.Context(), messages.Instance{ID: "i-1"}, 0); err != nil {
			t.Fatal(err)
		}
	}
	<-told
	if log := end(); o.Dropped() != 2 || strings.Count(log, "its webhook did not answer just before") != 2 || strings.Contains(log, hookToken) {
		t.Errorf("%d were dropped, want the other 2 for the one that hangs: %s", o.Dropped(), log)
	}
}

func TestNotifyValidate(t *testing.T) {
	t.Parallel()
	o := NewOutbox(slog.New(slog.DiscardHandler), nil)
	missing := filepath.Join(t.TempDir(), "missing")
	for name, c := range map[string]struct {
		n    Notify
		want string
	}{
		"nothing":         {Notify{}, "url must be a URL"},
		"no scheme":       {Notify{Format: NotifyJSON, URL: "hooks.test/" + hookToken, Outbox: o}, "must be a URL that begins with https://"},
		"a password":      {Notify{Format: NotifyJSON, URL: "https://a:" + hookToken + "@hooks.test", Outbox: o}, "without user name"},
		"no file":         {Notify{Format: NotifyJSON, URLFile: missing, Outbox: o}, missing},
		"an empty file":   {Notify{Format: NotifyJSON, URLFile: secretFile(t, " \n"), Outbox: o}, "must hold one line"},
		"two lines":       {Notify{Format: NotifyJSON, URLFile: secretFile(t, "https://a.test/"+hookToken+"\nb"), Outbox: o}, "must hold one line"},
		"no URL in it":    {Notify{Format: NotifyJSON, URLFile: secretFile(t, hookToken), Outbox: o}, "url_file: what"},
		"no secret file":  {Notify{Format: NotifyFeishu, URL: "https://a.test/", SecretFile: missing, Outbox: o}, "secret_file"},
		"another format":  {Notify{Format: "teams", URL: "https://a.test/", Outbox: o}, "format must be json, dingtalk, feishu or slack"},
		"a text":          {Notify{Format: NotifyJSON, URL: "https://a.test/", Text: "{{.Password}}", Outbox: o}, "there are InstanceID"},
		"nobody sends it": {Notify{Format: NotifyJSON, URL: "https://a.test/"}, "no outbox"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := errors.Join(c.n.Validate(), c.n.Unreadable())
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), hookToken) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}
