package alibaba

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"regexp"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"example.org/usher/providers"
)

// wire carries requests over one shared transport.
type wire struct {
	transport   *http.Transport
	credentials Credentials
	timeout     time.Duration
	logger      *slog.Logger
}

// close drops the idle connections; calls in flight go on.
func (w *wire) close() { w.transport.CloseIdleConnections() }

// cloudError is an alias so that failure embeds it under a name that is not that of its method.
type cloudError = providers.Error

// failure is an attempt that did not succeed, with what the retry rules need to know.
type failure struct {
	*cloudError
	// passing: the same request may succeed a little later.
	passing bool
	// certain: the attempt surely had no effect.
	certain bool
	// timedOut: the attempt ran into its own time limit, not the caller's.
	timedOut bool
	// refused are the keys, when it is they that were refused.
	refused Keys
}

// errNoAnswer is the cause of an attempt's own time limit. It is not
// context.DeadlineExceeded, which tells a caller that its own context has ended.
var errNoAnswer = errors.New("no answer in time")

// answer is a whole HTTP response.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// requestID is MNS's id of the call.
func (a answer) requestID() string { return identifier(a.header.Get("x-mns-request-id")) }

// date is the answer's Date, by the cloud's clock in whole seconds; zero if absent.
func (a answer) date() time.Time {
	t, err := http.ParseTime(a.header.Get("Date"))
	if err != nil {
		return time.Time{}
	}
	return t
}

// call is one attempt: what is sent and what bounds it.
type call struct {
	op    string
	keys  Keys
	limit time.Duration // of time
	bound int64         // of the answer's body
}

// exchange sends one request once and reads the whole answer. Connections are used
// again only after their answer was read to its end, which it is here, within bounds.
func (w *wire) exchange(ctx context.Context, c call, req *http.Request) (answer, *failure) {
	attempt, cancel := context.WithTimeoutCause(ctx, c.limit, errNoAnswer)
	defer cancel()
	var sent atomic.Bool
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { sent.Store(true) }}
	res, err := w.transport.RoundTrip(req.WithContext(httptrace.WithClientTrace(attempt, trace)))
	if err != nil {
		return answer{}, w.lost(ctx, attempt, c, err, !sent.Load())
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols {
		// The connection would be ours from here on, and no context would end a read of it.
		return answer{}, &failure{cloudError: &providers.Error{
			Op: c.op, Kind: providers.ErrUnavailable, Status: res.StatusCode, Message: "the answer switches protocols",
		}}
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, c.bound+1))
	if err != nil {
		f := w.lost(ctx, attempt, c, fmt.Errorf("read answer: %w", err), false)
		f.Status = res.StatusCode
		return answer{}, f
	}
	if int64(len(body)) > c.bound {
		return answer{}, &failure{cloudError: &providers.Error{
			Op: c.op, Kind: providers.ErrUnavailable, Status: res.StatusCode,
			Cause: fmt.Errorf("answer is longer than %d bytes", c.bound),
		}}
	}
	return answer{status: res.StatusCode, header: res.Header, body: body}, nil
}

// lost makes the failure of an attempt that got no answer.
func (w *wire) lost(ctx, attempt context.Context, c call, err error, unsent bool) *failure {
	f := &failure{cloudError: &providers.Error{Op: c.op, Kind: providers.ErrUnavailable}, passing: true, certain: unsent}
	switch {
	case ctx.Err() != nil:
		f.Cause, f.passing = ctx.Err(), false
	case attempt.Err() != nil:
		f.Cause, f.timedOut = fmt.Errorf("%w (%v)", errNoAnswer, c.limit), true
	default:
		f.Cause = scrubError(err, c.keys)
		explainNetwork(f, err)
	}
	return f
}

// explainNetwork marks the failures that come from a mistake in a config and do not pass.
func explainNetwork(f *failure, err error) {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		f.passing = false
		f.Hint = "the endpoint's certificate cannot be verified: check the endpoint's name and the CA certificates of this host"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		f.passing = false
		f.Hint = "the endpoint does not speak TLS; write it with http:// if that is meant"
	}
}

// ended reports whether the end of the caller's own context ended this attempt.
func (f *failure) ended(ctx context.Context) bool {
	return ctx.Err() != nil && errors.Is(f.Cause, ctx.Err())
}

// scrub takes keys and signatures out of text that comes from outside. The services
// quote the string they signed, with all its parameters, when a signature does not
// match, and a proxy's page may quote the request: what follows such a place is cut off.
func scrub(text string, keys Keys) string {
	const removed = "(removed)"
	for _, mark := range []string{"string to sign is", "AccessKeyId=", "Signature=", "MNS " + keys.ID + ":"} {
		if i := strings.Index(text, mark); i >= 0 {
			text = text[:i] + removed
		}
	}
	for _, secret := range []string{keys.Secret, keys.Token, keys.ID} {
		if secret == "" {
			continue
		}
		for _, form := range []string{secret, url.QueryEscape(secret), url.QueryEscape(url.QueryEscape(secret))} {
			text = strings.ReplaceAll(text, form, removed)
		}
	}
	return text
}

// told makes text of an answer fit to be told: without keys, at most most bytes, with
// nothing that could upset a terminal or a log.
func told(text string, keys Keys, most int) string {
	text = scrub(text, keys) // all of it: a cut may go through a key
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text[:min(len(text), 8*most)], "?"))
	if text = strings.TrimSpace(text); len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// How much is told of a code and of a message.
const (
	mostCode    = 100
	mostMessage = 500
)

// identifierPattern is what the ids look like that the cloud gives to requests, messages
// and invocations: all of them go into logs.
var identifierPattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// identifier is text, or nothing if it is no id.
func identifier(text string) string {
	if identifierPattern.MatchString(text) {
		return text
	}
	return ""
}

// scrubError unwraps the signed URL that net/http's client puts around an error, and
// hides what else of the keys is in its text, which may quote what a server has sent.
func scrubError(err error, keys Keys) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	text := err.Error()
	if clean := told(text, keys, mostMessage); clean != text {
		return errors.New(clean)
	}
	return err
}

// snippet is the beginning of a body that is not what it should be, in one line.
func snippet(body []byte, keys Keys) string {
	const most = 200
	text := scrub(string(body), keys)
	return told(strings.Join(strings.Fields(text[:min(len(text), 4*most)]), " "), keys, most)
}

// once is a request body that net/http cannot rewind. Its Transport sends a GET a
// second time, unasked, when a connection that was used before dies without an
// answer, unless the request has a body that it cannot read again. An empty one
// leaves no trace on the wire: for a GET the Transport probes it and sends neither
// Content-Length nor Transfer-Encoding.
type once struct{ bytes.Reader }

func (*once) Close() error { return nil }
