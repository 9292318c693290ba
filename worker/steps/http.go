package steps

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"example.org/usher/messages"
)

// DefaultCallTimeout is how long one call of a polling HTTP step may take when
// CallTimeout is 0.
const DefaultCallTimeout = 10 * time.Second

// HTTP calls a URL, once or until it answers well. With a VerifyURL it then asks that one
// until the call has had its effect.
//
// It reaches the instance itself and nothing else, unless the operator allows more
// hosts: a URL made from a message's facts must not become a way into other
// machines. Link-local addresses and those of the clouds' metadata servers, which give
// out credentials, are called only where the operator names that very address. Redirects
// are not followed, a 3xx is an answer like any other.
type HTTP struct {
	// Method is the request's method; empty: GET.
	Method string
	// URL, the values of Headers, and Body are templates over InstanceID, PrivateIP,
	// ScalingGroup, Region, Hook, Token, Transition and Activity.
	URL string
	// Headers may hold secrets: no error quotes a value.
	Headers map[string]string
	Body    string
	// Expect are the status codes that count as good; none: any from 200 to 299.
	Expect []int
	// InFlight wants more of a good answer: its body must be a number no larger than
	// AtMost, or JSON with that number at Field, a path such as measurements.0.value.
	InFlight bool
	Field    string
	AtMost   int

	// VerifyURL, a template too, is asked with GET once the call was answered well; empty:
	// nothing is. It gets Headers and the token only if it has the scheme, the host and the
	// port of URL.
	VerifyURL string
	// VerifyExpect is to VerifyURL what Expect is to URL.
	VerifyExpect []int
	// VerifyClose wants more of a good answer: it must end its connection, as it does with
	// "Connection: close".
	VerifyClose bool

	// Every is the pause between polls; 0: one call, whose answer decides.
	Every time.Duration
	// ClearChecks is how many good answers in a row end the polling; 0: one.
	ClearChecks int
	// Gap is how long answers must have been good, at least: the time the balancer needs
	// to see what they say.
	Gap time.Duration
	// Tries is how often a URL is called at most; 0: as often as the step's time allows.
	Tries int
	// CallTimeout ends one call; 0: DefaultCallTimeout when polling, and the
	// step's own timeout for a single call.
	CallTimeout time.Duration
	// RefusedIsGood counts a connection that the instance refuses as a good answer: nobody
	// listens there any more.
	RefusedIsGood bool

	// AllowHosts may be called besides the instance: names, names with a port,
	// addresses, and prefixes of addresses.
	AllowHosts []string

	// TokenFile holds a token that is sent as "Authorization: Bearer"; empty: none is. The
	// file is read for each call.
	TokenFile string
	// CertFile and KeyFile hold, in PEM, the certificate that is shown to a server that asks
	// for one. CAFile holds the roots that servers are verified with; empty: the system's.
	// They are read for each run.
	CertFile, KeyFile, CAFile string
	// ServerName, a template too, is the name that the server's certificate must have;
	// empty: that of the URL.
	ServerName string

	// TLS replaces the client's settings; nil: the system's roots.
	TLS *tls.Config
	// Dial makes connections; nil: a net.Dialer that looks at what a name leads to.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Resolver looks names up for that net.Dialer; nil: the system's.
	Resolver *net.Resolver
}

// What is read of an answer, and what of it is told. An expected answer's body is dropped, unless
// it is a count.
const (
	bodyRead   = 64 << 10
	bodyQuoted = 200
)

// Name is "http".
func (h HTTP) Name() string { return "http" }

// Withdrew gives the step's end, since any call may have been for that, and the zero time
// where it only asks for what is in flight.
func (h HTTP) Withdrew(_, ended time.Time, _ error) time.Time {
	if h.InFlight {
		return time.Time{}
	}
	return ended
}

// Validate says what is wrong with the settings, or nil. It tries the templates out. The
// files may come later, or be those of another machine: see Unreadable.
func (h HTTP) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("http: "+format, args...)) }
	if h.URL == "" {
		bad("url is empty")
	} else if _, _, err := h.inquiries(sample); err != nil {
		bad("%w", err)
	}
	if _, err := render("server_name", h.ServerName, sample); err != nil {
		bad("%w", err)
	}
	for _, code := range slices.Concat(h.Expect, h.VerifyExpect) {
		if code < 100 || code > 599 {
			bad("expect: %d is not a status code, which goes from 100 to 599", code)
		}
	}
	if h.Every < 0 || h.ClearChecks < 0 || h.CallTimeout < 0 || h.Gap < 0 || h.Tries < 0 || h.AtMost < 0 {
		bad("every, clear_checks, gap, tries, at_most and call_timeout must not be negative")
	}
	if h.Every == 0 && (h.ClearChecks > 1 || h.Gap > 0 || h.Tries > 0 || h.VerifyURL != "") {
		bad("clear_checks above 1, gap, tries and verify_url need every, the pause between the checks")
	}
	if h.Tries > 0 && h.Tries < h.ClearChecks {
		bad("%d tries are fewer than clear_checks, %d", h.Tries, h.ClearChecks)
	}
	if (h.CertFile == "") != (h.KeyFile == "") {
		bad("cert_file and key_file need each other")
	}
	for _, a := range h.AllowHosts {
		if strings.TrimSpace(a) != a || a == "" || strings.Contains(a, "://") {
			bad("allow_hosts: %q is not a host name, an address or a prefix", a)
		}
	}
	return errors.Join(errs...)
}

// Run calls the URL. A repeat sends the request again.
func (h HTTP) Run(ctx context.Context, in messages.Instance, _ int) (string, error) {
	f := factsOf(in)
	call, verify, err := h.inquiries(f)
	if err != nil {
		return "", fmt.Errorf("http: %w", err)
	}
	asked := []*inquiry{call}
	if verify != nil {
		asked = append(asked, verify)
	}
	for _, q := range asked {
		if err := h.permit(q.url, f.privateIP); err != nil {
			return "", fmt.Errorf("http: %w", err)
		}
	}
	secure, err := h.tlsConfig(f)
	if err != nil {
		return "", fmt.Errorf("http: %w", err)
	}
	if _, err := h.token(); err != nil {
		return "", fmt.Errorf("http: %w", err)
	}
	for _, q := range asked {
		q.client = h.client(q, secure, f.privateIP)
	}
	switch {
	case verify != nil:
		done, err := h.poll(ctx, call, 1, 0)
		if err != nil {
			return "", err
		}
		seen, err := h.poll(ctx, verify, h.ClearChecks, h.Gap)
		if err != nil {
			return "", fmt.Errorf("%s; then %w", done, err)
		}
		return done + "; then " + seen, nil
	case h.Every > 0:
		return h.poll(ctx, call, h.ClearChecks, h.Gap)
	}
	said, err := h.call(ctx, call, h.CallTimeout)
	if err != nil {
		return "", fmt.Errorf("%s: %w", call.what, err)
	}
	return call.what + " " + said, nil
}

// poll calls until the answers have been good often enough in a row, and for long enough.
func (h HTTP) poll(ctx context.Context, q *inquiry, need int, gap time.Duration) (string, error) {
	need = max(need, 1)
	last := errors.New("no call was made")
	var since time.Time // of the good answers in a row, the first
	for calls, good := 1, 0; ; calls++ {
		said, err := h.call(ctx, q, cmp.Or(h.CallTimeout, DefaultCallTimeout))
		switch {
		case err == nil:
			if good++; good == 1 {
				since = time.Now()
			}
			last = errors.New(said)
			if good >= need && time.Since(since) >= gap {
				return fmt.Sprintf("%s %s, %d good in a row, %d calls", q.what, said, good, calls), nil
			}
		case ctx.Err() == nil:
			good, last = 0, err
		}
		if calls == h.Tries {
			err = errTries
		} else {
			err = pause(ctx, h.Every)
		}
		if err != nil {
			span := ""
			if gap > 0 && good > 0 {
				span = fmt.Sprintf(", %v of %v long,", time.Since(since).Truncate(time.Second), gap)
			}
			return "", fmt.Errorf("%s: %d of %d good answers in a row%s after %d calls (last: %w): %w", q.what, good, need, span, calls, last, err)
		}
	}
}

// errTries is told when the calls are used up before the time is.
var errTries = errors.New("no more tries")

// call asks once. It returns what was good about the answer.
func (h HTTP) call(ctx context.Context, q *inquiry, timeout time.Duration) (string, error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("no answer within %v: %w", timeout, context.DeadlineExceeded))
		defer cancel()
	}
	token, err := h.token()
	if err != nil {
		return "", err
	}
	req, err := q.request(ctx, token)
	if err != nil {
		return "", err
	}
	// Whether a connection is kept is for the server to say where that is the question;
	// the next poll shall be a new client's in any case.
	defer q.client.CloseIdleConnections()
	resp, err := q.client.Do(req)
	if err != nil {
		if q.refusedIsGood && errors.Is(err, syscall.ECONNREFUSED) {
			return "refused the connection", nil
		}
		return "", q.transportError(ctx, err, req)
	}
	defer resp.Body.Close()
	return q.judge(ctx, resp, req)
}

// transportError says why there was no answer, without the URL that net/http puts
// in front: it may hold secrets. What a host sent can be part of the text (a
// malformed head is quoted), so that is treated as a body is.
func (q *inquiry) transportError(ctx context.Context, err error, req *http.Request) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	text := q.redact(err.Error(), req)
	if len(text) > bodyQuoted || strings.ContainsFunc(text, unicode.IsControl) {
		text = head(text, bodyQuoted)
	}
	return &noAnswer{text: text, err: err}
}

// noAnswer is a transport's error with its text made safe to tell.
type noAnswer struct {
	text string
	err  error
}

func (e *noAnswer) Error() string { return e.text }
func (e *noAnswer) Unwrap() error { return e.err }

// redact takes what may be a secret out of what a host has sent.
func (q *inquiry) redact(text string, req *http.Request) string {
	text = redact(text, req)
	if q.own {
		return text
	}
	// The path of a webhook elsewhere, whole or a part of it.
	for _, part := range append([]string{q.url.Path, q.url.EscapedPath()}, strings.Split(q.url.Path, "/")...) {
		if len(part) >= shortestSecret {
			text = strings.ReplaceAll(text, part, "***")
		}
	}
	return text
}

// shortestSecret is the length below which a word is taken for none: it would blank
// ordinary text.
const shortestSecret = 6

// redact takes what the request carried in its headers and its URL out of an answer that
// echoes it, as it is or as a quoted text has it.
func redact(text string, req *http.Request) string {
	hide := func(secret string, shortest int) {
		quoted := strconv.Quote(secret)
		for _, form := range []string{secret, quoted[1 : len(quoted)-1], url.QueryEscape(secret), url.PathEscape(secret)} {
			if len(form) >= shortest {
				text = strings.ReplaceAll(text, form, "***")
			}
		}
	}
	for name, values := range req.Header {
		for _, v := range values {
			hide(v, shortestSecret)
			words := strings.Fields(v)
			for i, word := range words {
				if name == "Authorization" && i > 0 {
					hide(word, 1) // behind the scheme
				} else {
					hide(word, shortestSecret)
				}
			}
		}
	}
	if req.URL == nil {
		return text
	}
	if u := req.URL.User; u != nil {
		password, _ := u.Password()
		hide(u.Username(), shortestSecret)
		hide(password, shortestSecret)
		hide(base64.StdEncoding.EncodeToString([]byte(u.Username()+":"+password)), shortestSecret)
	}
	hide(req.URL.RawQuery, shortestSecret)
	for _, values := range req.URL.Query() {
		for _, v := range values {
			hide(v, shortestSecret)
		}
	}
	return text
}

// inquiry is one of the step's requests, with its templates filled in: the call itself,
// or what verifies it.
type inquiry struct {
	method string
	url    *url.URL
	host   string // the Host header; "": that of the URL
	header http.Header
	body   string
	bearer bool   // the token goes along
	what   string // names it in errors and in the audit log
	client *http.Client

	expect        []int
	closes        bool
	inFlight      bool
	field         string
	atMost        int
	refusedIsGood bool
	own           bool // the instance itself is asked
}

// inquiries fills in the templates. verify is nil when there is nothing to verify.
func (h HTTP) inquiries(f facts) (call, verify *inquiry, err error) {
	call = &inquiry{
		method: cmp.Or(h.Method, http.MethodGet), header: http.Header{}, bearer: true,
		expect: h.Expect, inFlight: h.InFlight, field: h.Field, atMost: h.AtMost,
	}
	if call.url, err = target("url", h.URL, f); err != nil {
		return nil, nil, err
	}
	if call.body, err = render("body", h.Body, f); err != nil {
		return nil, nil, err
	}
	for name, text := range h.Headers {
		value, err := render("header "+name, text, f)
		if err != nil {
			return nil, nil, err
		}
		if err := checkHeader(name, value); err != nil {
			return nil, nil, err
		}
		if strings.EqualFold(name, "Host") {
			call.host = value
		} else {
			call.header.Set(name, value)
		}
	}
	if h.VerifyURL != "" {
		verify = &inquiry{method: http.MethodGet, expect: h.VerifyExpect, closes: h.VerifyClose}
		if verify.url, err = target("verify_url", h.VerifyURL, f); err != nil {
			return nil, nil, err
		}
		// As with a redirect elsewhere: what is meant for one server is not told to another,
		// nor in the clear what was meant for TLS.
		if verify.url.Scheme == call.url.Scheme && strings.EqualFold(verify.url.Host, call.url.Host) {
			verify.host, verify.header, verify.bearer = call.host, call.header, true
		}
	}
	for _, q := range []*inquiry{call, verify} {
		if q == nil {
			continue
		}
		q.own = isOwn(q.url, f.privateIP)
		q.what = q.method + " " + q.where()
		q.refusedIsGood = h.RefusedIsGood && q.own
		if _, err := q.request(context.Background(), ""); err != nil {
			return nil, nil, err
		}
	}
	return call, verify, nil
}

// target fills in a URL.
func target(key, text string, f facts) (*url.URL, error) {
	filled, err := render(key, text, f)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(filled)
	if err != nil {
		return nil, fmt.Errorf("%s: cannot be parsed", key)
	}
	if (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" {
		return nil, fmt.Errorf("%s: must be http:// or https:// and a host", key)
	}
	return u, nil
}

// request makes the request, with the token if it is to have that.
func (q *inquiry) request(ctx context.Context, token string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, q.method, q.url.String(), strings.NewReader(q.body))
	if err != nil {
		return nil, fmt.Errorf("method %q cannot be used", q.method)
	}
	req.Header = q.header.Clone()
	if req.Header == nil {
		req.Header = http.Header{}
	}
	if q.closes {
		req.Header.Del("Connection") // a server does as it is asked, see client
	}
	req.Host = cmp.Or(q.host, req.Host)
	if q.bearer && token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return req, nil
}

// checkHeader refuses what net/http would refuse at the first call, so that
// Validate finds it.
func checkHeader(name, value string) error {
	const token = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	if name == "" || strings.Trim(name, token) != "" {
		return fmt.Errorf("header %q: not a header name", name)
	}
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
		return fmt.Errorf("header %s: the value has a control character", name)
	}
	return nil
}

// permit refuses every host but the instance and those the operator allows.
func (h HTTP) permit(u *url.URL, own netip.Addr) error {
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		if err := h.permitAddress(addr); err != nil {
			return err
		}
	}
	if isOwn(u, own) || slices.ContainsFunc(h.AllowHosts, func(a string) bool { return allows(a, u) }) {
		return nil
	}
	return fmt.Errorf("host %s is neither the instance's private address nor in allow_hosts", head(u.Host, 100))
}

// guarded are the addresses that must not be reached by way of a name, a prefix or what
// the cloud says of an instance: link-local ones, which have the metadata servers of most
// clouds among them, and those servers' other addresses.
var guarded = []netip.Prefix{
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("100.100.100.200/32"), // Alibaba Cloud
	netip.MustParsePrefix("fd00:ec2::254/128"),  // AWS
	netip.MustParsePrefix("0.0.0.0/8"),          // this host
	netip.MustParsePrefix("::/128"),
}

// permitAddress refuses a guarded address unless allow_hosts has it as it is.
func (h HTTP) permitAddress(addr netip.Addr) error {
	addr = addr.Unmap().WithZone("")
	for _, a := range h.AllowHosts {
		if named, err := netip.ParseAddr(strings.Trim(a, "[]")); err == nil && named.Unmap() == addr {
			return nil
		}
	}
	if slices.ContainsFunc(guarded, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return fmt.Errorf("%v is link-local or a metadata server's address: name it in allow_hosts, as it is, if it is meant", addr)
	}
	return nil
}

// dial connects to what the request names, or a proxy, unless that turns out to be
// guarded: the last look, after all names are resolved.
func (h HTTP) dial(ctx context.Context, network, address string) (net.Conn, error) {
	d := net.Dialer{Resolver: h.Resolver, Control: func(_, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("odd address %q", address)
		}
		return h.permitAddress(at.Addr())
	}}
	return d.DialContext(ctx, network, address)
}

func isOwn(u *url.URL, own netip.Addr) bool {
	addr, err := netip.ParseAddr(u.Hostname())
	return err == nil && own.IsValid() && addr.Unmap() == own
}

func allows(allowed string, u *url.URL) bool {
	if strings.EqualFold(allowed, u.Hostname()) || strings.EqualFold(allowed, u.Host) {
		return true
	}
	addr, err := netip.ParseAddr(u.Hostname())
	if err != nil {
		return false
	}
	addr = addr.Unmap()
	if prefix, err := netip.ParsePrefix(allowed); err == nil {
		return prefix.Contains(addr)
	}
	same, err := netip.ParseAddr(strings.Trim(allowed, "[]"))
	return err == nil && same.Unmap() == addr
}

// where names the target in errors and in the audit log. User names, passwords and
// query values may be secrets, and so may the path of a webhook elsewhere.
func (q *inquiry) where() string {
	shown := q.url.Scheme + "://" + q.url.Host
	if q.own {
		shown += q.url.EscapedPath()
	}
	return shown
}

// client is made for one run. Connections are not kept: each poll is to see what a
// new client would see.
func (h HTTP) client(q *inquiry, secure *tls.Config, own netip.Addr) *http.Client {
	dial := h.Dial
	if dial == nil {
		dial = h.dial
	}
	return &http.Client{
		Transport: &http.Transport{
			// A company's proxy is for hosts outside; it must neither see nor answer a
			// call to the instance.
			Proxy: func(r *http.Request) (*url.URL, error) {
				if isOwn(r.URL, own) {
					return nil, nil
				}
				return http.ProxyFromEnvironment(r)
			},
			DialContext:     dial,
			TLSClientConfig: secure,
			// Asked to close its connection a server says that it will, whatever it says to others.
			DisableKeepAlives:      !q.closes,
			DisableCompression:     true,
			MaxResponseHeaderBytes: bodyRead,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}
