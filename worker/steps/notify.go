package steps

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"example.org/usher/messages"
)

// What Notify.Format can be: whose webhook it is.
const (
	NotifyJSON     = "json"
	NotifyDingTalk = "dingtalk"
	NotifyFeishu   = "feishu"
	NotifySlack    = "slack"
)

const (
	// notifyTimeout bounds the sending of one notification.
	notifyTimeout = 5 * time.Second
	// notifyLast bounds what is sent after the end of all work.
	notifyLast = 3 * time.Second
	// outboxSize is how many notifications may wait to be sent.
	outboxSize = 200
	// notifyAnswer is how much of an answer is read, in bytes.
	notifyAnswer = 16 << 10
)

// Notify hands a notification to an outbox, which sends it to a webhook beside the job. It
// waits for nobody.
type Notify struct {
	// Format is NotifyJSON, NotifyDingTalk, NotifyFeishu or NotifySlack.
	Format string
	// URL is the webhook's, http or https, with the token that it may hold; no text tells more
	// of it than the host. Or it stands in URLFile, which is read for each notification.
	URL, URLFile string
	// SecretFile holds the key that notifications to DingTalk and Feishu are signed with;
	// empty: they are not.
	SecretFile string
	// Text is a template as HTTP.URL is.
	Text   string
	Outbox *Outbox
}

// Name is "notify".
func (n Notify) Name() string { return "notify" }

// Withdrew gives the zero time: the instance is not asked for anything.
func (Notify) Withdrew(_, _ time.Time, _ error) time.Time { return time.Time{} }

// Validate says what is wrong with the settings, or nil. It reads no file.
func (n Notify) Validate() error {
	var errs []error
	settings := n
	if settings.SecretFile = ""; n.URLFile != "" {
		settings.URL, settings.URLFile = "https://hooks.example", ""
	}
	if _, err := (note{Notify: settings, facts: sample, at: time.Now()}).request(context.Background()); err != nil {
		errs = append(errs, fmt.Errorf("notify: %w", err))
	}
	if _, err := render("text", n.Text, sample); err != nil {
		errs = append(errs, fmt.Errorf("notify: %w", err))
	}
	if n.Outbox == nil {
		errs = append(errs, errors.New("notify: no outbox to send it"))
	}
	return errors.Join(errs...)
}

// Unreadable says which of the step's files can't be used as they are now, or nil. They are
// read for each notification, so that a file may come, and change, at any time.
func (n Notify) Unreadable() error {
	if n.URLFile == "" && n.SecretFile == "" {
		return nil
	}
	_, err := (note{Notify: n, facts: sample, at: time.Now()}).request(context.Background())
	return err
}

// Run fills the text in and hands it over. That nobody can send it now is no error.
func (n Notify) Run(_ context.Context, in messages.Instance, _ int) (string, error) {
	f := factsOf(in)
	text, err := render("text", n.Text, f)
	if err != nil {
		return "", fmt.Errorf("notify: %w", err)
	}
	if !n.Outbox.post(note{Notify: n, facts: f, text: text, at: time.Now()}) {
		return "dropped: too many notifications wait to be sent", nil
	}
	return "handed over to be sent (" + n.Format + ")", nil
}

// note is one notification.
type note struct {
	Notify
	facts facts
	text  string
	at    time.Time
}

// Outbox sends notifications, one after the other, as long as Run runs.
type Outbox struct {
	log     *slog.Logger
	queue   chan note // steps write, Run reads
	client  *http.Client
	dropped atomic.Int64
	// timeout bounds one sending, and last what is sent when Run is to end.
	timeout, last time.Duration
	// silent is until when webhooks are left alone that did not answer in time: one that
	// hangs must not hold up what others are to be told. Run's own.
	silent map[webhook]time.Time
}

// webhook is where a notification goes.
type webhook struct{ url, file string }

// leftAlone is for how long a webhook gets nothing that did not answer.
const leftAlone = 30 * time.Second

// NewOutbox makes an outbox. dial makes connections; nil: a net.Dialer.
func NewOutbox(log *slog.Logger, dial func(ctx context.Context, network, address string) (net.Conn, error)) *Outbox {
	return &Outbox{
		log: log, queue: make(chan note, outboxSize), timeout: notifyTimeout, last: notifyLast, silent: map[webhook]time.Time{},
		client: &http.Client{
			Transport: &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: dial, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 1, IdleConnTimeout: 30 * time.Second},
			// Where a redirect leads to is nobody that the operator has named.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
}

// Dropped counts the notifications that nobody has tried to send.
func (o *Outbox) Dropped() int64 { return o.dropped.Load() }

// post takes a notification if there is room.
func (o *Outbox) post(n note) bool {
	select {
	case o.queue <- n:
		return true
	default:
		o.drop(n, "too many wait to be sent")
		return false
	}
}

func (o *Outbox) drop(n note, why string) {
	o.log.Warn("notification dropped", "format", n.Format, "instance", n.facts.InstanceID, "reason", why, "dropped", o.dropped.Add(1))
}

// Run sends until ctx ends, and then what is left for a few seconds more.
func (o *Outbox) Run(ctx context.Context) {
	defer o.client.CloseIdleConnections()
	sending, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	defer context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(o.last, stop)
		context.AfterFunc(sending, func() { timer.Stop() })
	})()
	for ctx.Err() == nil {
		select {
		case n := <-o.queue:
			o.deliver(sending, n)
		case <-ctx.Done():
		}
	}
	for {
		select {
		case n := <-o.queue:
			if sending.Err() != nil {
				o.drop(n, "the worker has stopped")
				continue
			}
			o.deliver(sending, n)
		default:
			return
		}
	}
}

// deliver sends one notification, and says so if that failed.
func (o *Outbox) deliver(ctx context.Context, n note) {
	to := webhook{n.URL, n.URLFile}
	if time.Now().Before(o.silent[to]) {
		o.drop(n, "its webhook did not answer just before")
		return
	}
	delete(o.silent, to)
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout, fmt.Errorf("no answer within %v", o.timeout))
	defer cancel()
	host, err := o.send(ctx, n)
	if err != nil {
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			o.silent[to] = time.Now().Add(leftAlone)
		}
		o.log.Warn("can't send a notification", "format", n.Format, "host", host, "instance", n.facts.InstanceID, "error", err)
		return
	}
	o.log.Debug("notification sent", "format", n.Format, "host", host, "instance", n.facts.InstanceID)
}

func (o *Outbox) send(ctx context.Context, n note) (host string, err error) {
	req, err := n.request(ctx)
	if err != nil {
		return "", err
	}
	resp, err := o.client.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return req.URL.Host, context.Cause(ctx)
		}
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err // without the URL
		}
		return req.URL.Host, errors.New(n.scrub(err.Error(), req.URL))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, notifyAnswer))
	if err != nil && len(body) == 0 && ctx.Err() != nil {
		return req.URL.Host, context.Cause(ctx)
	}
	return req.URL.Host, accepted(n.Format, resp.StatusCode, string(body), func(text string, most int) string {
		// Before anything is cut off it: half a token is half a secret.
		return head(n.scrub(text, req.URL), most)
	})
}

// accepted reads an answer. DingTalk and Feishu refuse with a code in the body of a 200
// (DingTalk: custom robots; Feishu: custom bots, whose first form had StatusCode). quote is head
// for a text that may hold a secret.
func accepted(format string, status int, body string, quote func(text string, most int) string) error {
	if status < 200 || status > 299 {
		return fmt.Errorf("status %d; body starts with %s", status, quote(body, bodyQuoted))
	}
	var answer struct {
		ErrCode    *int   `json:"errcode"`
		ErrMsg     string `json:"errmsg"`
		Code       *int   `json:"code"`
		Msg        string `json:"msg"`
		StatusCode *int   `json:"StatusCode"`
		Message    string `json:"StatusMessage"`
	}
	var code *int
	switch format {
	case NotifyDingTalk:
		_ = json.Unmarshal([]byte(body), &answer) // what is no JSON has no code
		code = answer.ErrCode
	case NotifyFeishu:
		_ = json.Unmarshal([]byte(body), &answer)
		code = cmp.Or(answer.Code, answer.StatusCode)
	default:
		return nil
	}
	switch {
	case code == nil:
		return fmt.Errorf("status %d, and the answer is not %s's; body starts with %s", status, format, quote(body, bodyQuoted))
	case *code != 0:
		return fmt.Errorf("refused with code %d: %s", *code, quote(cmp.Or(answer.ErrMsg, answer.Msg, answer.Message), bodyQuoted))
	}
	return nil
}

// scrub takes out of a text what of the URL is secret, which a server may echo.
func (n Notify) scrub(text string, u *url.URL) string {
	secrets := strings.Split(u.Path, "/")
	for _, values := range u.Query() {
		secrets = append(secrets, values...)
	}
	if n.SecretFile != "" {
		if secret, err := readSecret(n.SecretFile); err == nil {
			secrets = append(secrets, secret)
		}
	}
	secrets = append(secrets, u.RawQuery, u.EscapedPath())
	for _, s := range slices.Clone(secrets) {
		quoted := strconv.Quote(s)
		secrets = append(secrets, quoted[1:len(quoted)-1], url.QueryEscape(s), url.PathEscape(s), strings.ReplaceAll(s, "/", `\/`))
	}
	// The longest first: one may be a part of another.
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) })
	for _, s := range secrets {
		if len(s) >= shortestSecret {
			text = strings.ReplaceAll(text, s, "***")
		}
	}
	return text
}

// maxSecret is far above any URL or key, in bytes.
const maxSecret = 8 << 10

// readSecret reads a file of one line. No error quotes what it holds.
func readSecret(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	text := strings.TrimSpace(string(data))
	switch {
	case err != nil:
		return "", fmt.Errorf("read %s: %w", name, err)
	case text == "" || len(data) > maxSecret || strings.ContainsAny(text, "\r\n"):
		return "", fmt.Errorf("%s must hold one line of text", name)
	}
	return text, nil
}

// target is the webhook's URL. No error quotes it.
func (n Notify) target() (*url.URL, error) {
	text, where := n.URL, "url"
	if n.URLFile != "" {
		var err error
		if text, err = readSecret(n.URLFile); err != nil {
			return nil, fmt.Errorf("url_file: %w", err)
		}
		where = "url_file: what " + n.URLFile + " holds"
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return nil, fmt.Errorf("%s must be a URL that begins with https:// (or http://), without user name and password", where)
	}
	return u, nil
}

// request is the notification as its webhook wants it.
func (n note) request(ctx context.Context) (*http.Request, error) {
	u, err := n.target()
	if err != nil {
		return nil, err
	}
	var secret string
	if n.SecretFile != "" {
		if secret, err = readSecret(n.SecretFile); err != nil {
			return nil, fmt.Errorf("secret_file: %w", err)
		}
	}
	var body any
	switch n.Format {
	case NotifyJSON:
		f := n.facts
		body = map[string]any{
			"text": n.text, "time": n.at.UTC().Format(time.RFC3339), "instance_id": f.InstanceID, "scaling_group": f.ScalingGroup, "region": f.Region,
			"hook": f.Hook, "token": f.Token, "transition": f.Transition, "activity": f.Activity,
		}
	case NotifySlack:
		body = map[string]any{"text": n.text}
	case NotifyDingTalk:
		body = map[string]any{"msgtype": "text", "text": map[string]any{"content": n.text}}
		if secret != "" {
			at := strconv.FormatInt(time.Now().UnixMilli(), 10)
			q := u.Query()
			q.Set("timestamp", at)
			q.Set("sign", sign(secret, at+"\n"+secret))
			u.RawQuery = q.Encode()
		}
	case NotifyFeishu:
		message := map[string]any{"msg_type": "text", "content": map[string]any{"text": n.text}}
		if secret != "" {
			// Here the text that DingTalk signs is the key, and nothing is signed with it.
			at := strconv.FormatInt(time.Now().Unix(), 10)
			message["timestamp"], message["sign"] = at, sign(at+"\n"+secret, "")
		}
		body = message
	default:
		return nil, fmt.Errorf("format must be %s, %s, %s or %s", NotifyJSON, NotifyDingTalk, NotifyFeishu, NotifySlack)
	}
	data, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode the notification: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(data))
	if err != nil {
		return nil, errors.New("the URL can't be called")
	}
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.Header.Set("User-Agent", "usher")
	return req, nil
}

// sign is HMAC-SHA256 in Base64.
func sign(key, text string) string {
	mac := hmac.New(sha256.New, []byte(key))
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
