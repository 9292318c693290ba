package aws

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"

	"example.org/usher/providers"
	"example.org/usher/providers/internal/gather"
	"example.org/usher/providers/internal/renewal"
)

// maxAnswer bounds an answer. The largest is a receive of ten messages of 1 MiB, each byte
// of which JSON may write as six.
const maxAnswer = 64 << 20

// wire is what the calls of one client of a service share: the connections and the
// retryer, whose rate limit it is.
type wire struct {
	service     string // as IAM writes it
	region      string
	endpoint    *string // nil: the cloud's own
	transport   *http.Transport
	credentials aws.CredentialsProvider
	retryer     aws.RetryerV2
	timeout     time.Duration // of one attempt
	logger      *slog.Logger
}

// close drops the idle connections; calls in flight go on.
func (w *wire) close() { w.transport.CloseIdleConnections() }

// apart is the same client with a rate limit of its own: what slows the calls of one does
// not slow those of the other.
func (w *wire) apart() *wire {
	other := *w
	other.retryer = newRetryer()
	return &other
}

// config is what the clients of the SDK are made of. The three that matter, keys, HTTP
// client and retryer, are each call's own: see carrier.
func (w *wire) config() aws.Config {
	return aws.Config{
		Region: w.region, Credentials: w.credentials, BaseEndpoint: w.endpoint,
		HTTPClient: refuser{}, AppID: "usher",
	}
}

// refuser is the HTTP client of calls that are not made through invoke.
type refuser struct{}

func (refuser) Do(*http.Request) (*http.Response, error) {
	return nil, errors.New("a call without a carrier")
}

// operation is a call of a service and what it needs.
type operation struct {
	name string // as the API writes it
	// permission is what IAM calls it, with the service: sqs:DeleteMessage for DeleteMessageBatch.
	permission string
	// resource is what the permission is needed on: an ARN, or "*".
	resource string
	// what is missing when the service says that something does not exist, and which
	// settings say so, for a hint.
	missing string
	// once: one attempt only.
	once bool
	// limit bounds an attempt; 0: the wire's.
	limit time.Duration
}

// errNoAnswer is the cause of an attempt's own time limit. It is not
// context.DeadlineExceeded, which tells a caller that its own context has ended.
var errNoAnswer = errors.New("no answer in time")

// carrier is all that one call has of its own. It takes the places of the SDK's HTTP
// client, of its retryer and of its credentials, so that it sees each attempt: what went
// wrong, whether it can have had an effect, and which keys signed it. One goroutine uses it.
type carrier struct {
	aws.RetryerV2 // the client's, with its rate limit
	wire          *wire
	op            operation
	limit         time.Duration

	keys     aws.Credentials // of the last attempt
	sent     time.Time       // when the last attempt was sent
	attempts int
	touched  bool  // an attempt may have had its effect
	last     error // of the last attempt
	answer   http.Header
	status   int
}

var (
	_ aws.HTTPClient          = (*carrier)(nil)
	_ aws.RetryerV2           = (*carrier)(nil)
	_ aws.CredentialsProvider = (*carrier)(nil)
)

// MaxAttempts is the retryer's, or 1 for calls that must not be repeated.
func (c *carrier) MaxAttempts() int {
	if c.op.once {
		return 1
	}
	return c.RetryerV2.MaxAttempts()
}

// IsErrorRetryable notes what went wrong, since the SDK forgets it when the context ends
// while it waits for the next attempt.
func (c *carrier) IsErrorRetryable(err error) bool {
	if (retry.NoRetryCanceledError{}).IsErrorRetryable(err) != aws.FalseTernary {
		c.last = err
	}
	retryable := c.RetryerV2.IsErrorRetryable(err)
	if log, ctx := c.wire.logger, context.Background(); log.Enabled(ctx, slog.LevelDebug) {
		log.LogAttrs(ctx, slog.LevelDebug, "cloud call failed", slog.String("op", c.op.name),
			slog.Int("attempt", c.attempts), slog.Bool("retryable", retryable), slog.Any("error", c.wire.describe(c, err)))
	}
	return retryable
}

// GetAttemptToken waits until the rate limit lets an attempt pass. The SDK's own wait may
// come to less than a nanosecond, again and again.
func (c *carrier) GetAttemptToken(ctx context.Context) (func(error) error, error) {
	for {
		release, err := c.RetryerV2.GetAttemptToken(ctx)
		if err == nil {
			return release, nil
		}
		if !gather.Sleep(ctx, tokenPause/2+rand.N(tokenPause)) {
			return nil, ctx.Err()
		}
	}
}

// Retrieve gives the keys for an attempt. Whoever calls expects an answer or an error soon,
// so that keys which do not come in the time of an attempt are an error.
func (c *carrier) Retrieve(ctx context.Context) (aws.Credentials, error) {
	waiting, cancel := renewal.Awaiting(ctx, c.wire.timeout)
	defer cancel()
	keys, err := c.wire.credentials.Retrieve(waiting)
	if err == nil {
		err = usable(keys)
	}
	if err != nil {
		return aws.Credentials{}, &credentialsError{err}
	}
	c.keys = keys
	return keys, nil
}

// Do sends a request once and reads the whole answer, within the attempt's time limit and
// the bound of its size. It follows no redirects: they would be signed for another place.
func (c *carrier) Do(req *http.Request) (*http.Response, error) {
	c.attempts++
	c.sent, c.answer, c.status = time.Now(), nil, 0
	attempt, cancel := context.WithTimeoutCause(req.Context(), c.limit, errNoAnswer)
	defer cancel()
	var connected atomic.Bool
	trace := &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { connected.Store(true) }}
	res, err := c.wire.transport.RoundTrip(req.WithContext(httptrace.WithClientTrace(attempt, trace)))
	if err == nil {
		err = readWhole(res)
	}
	if err != nil {
		c.touched = c.touched || connected.Load()
		if req.Context().Err() == nil && attempt.Err() != nil {
			err = fmt.Errorf("%w (%v)", errNoAnswer, c.limit)
		}
		return nil, err
	}
	c.answer, c.status = res.Header, res.StatusCode
	// A service that refuses or is throttled or says 503 has turned the request away unread.
	refused := res.StatusCode >= 400 && res.StatusCode < 500 || res.StatusCode == http.StatusServiceUnavailable
	c.touched = c.touched || !refused
	return res, nil
}

// readWhole puts the whole body in the place of the one that the network gives.
func readWhole(res *http.Response) error {
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols {
		// The connection would be ours from here on, and no context would end a read of it.
		return errors.New("the answer switches protocols")
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if len(body) > maxAnswer {
		return fmt.Errorf("answer is longer than %d bytes", maxAnswer)
	}
	res.Body = io.NopCloser(bytes.NewReader(body))
	res.ContentLength = int64(len(body))
	return nil
}

// date is the last answer's Date, by the cloud's clock in whole seconds; zero if absent.
func (c *carrier) date() time.Time {
	t, err := http.ParseTime(c.answer.Get("Date"))
	if err != nil {
		return time.Time{}
	}
	return t
}

// requestID is the cloud's id of the last attempt. SQS and SSM tell it in a header of this
// name, and so do the services of the Query protocol, beside their bodies.
func (c *carrier) requestID() string { return identifier(c.answer.Get("X-Amzn-Requestid")) }

// invoke makes one call. do makes it with a client of the SDK, to which it gives the
// carrier as its HTTP client, its retryer and its credentials. When the keys themselves are
// refused, as expired or unknown, they are renewed and the call is made once more: the
// refusal is certain, so that this holds for calls of one attempt as well.
func invoke[O any](ctx context.Context, w *wire, op operation, do func(context.Context, *carrier) (O, error)) (O, *carrier, error) {
	c := w.carrier(op)
	out, err := do(ctx, c)
	if err == nil {
		return out, c, nil
	}
	failure := w.conclude(ctx, c, err)
	if other := w.renewed(ctx, c, failure); other {
		again := w.carrier(op)
		again.attempts, again.touched = c.attempts, c.touched
		if out, err = do(ctx, again); err == nil {
			return out, again, nil
		}
		c, failure = again, w.conclude(ctx, again, err)
	}
	var none O
	return none, c, failure
}

func (w *wire) carrier(op operation) *carrier {
	limit := op.limit
	if limit == 0 {
		limit = w.timeout
	}
	return &carrier{RetryerV2: w.retryer, wire: w, op: op, limit: limit}
}

// renewed gets new keys after a refusal of those that were used, if there are any to get
// within the time of an attempt.
func (w *wire) renewed(ctx context.Context, c *carrier, failure error) bool {
	source, ok := w.credentials.(renewer)
	e, refused := errors.AsType[*providers.Error](failure)
	if !ok || !refused || !keysRefused(e.Code) || ctx.Err() != nil {
		return false
	}
	waiting, cancel := renewal.Awaiting(ctx, w.timeout)
	defer cancel()
	other, err := source.Renew(waiting, c.keys)
	if err != nil && e.Cause == nil && ctx.Err() == nil {
		e.Cause = fmt.Errorf("new keys could not be had: %w", err)
	}
	return other
}

// conclude is the error that leaves this package: a *providers.Error, or the context's own
// when that was cancelled; after a deadline it is both.
func (w *wire) conclude(ctx context.Context, c *carrier, err error) error {
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("%s: %w", c.op.name, ctx.Err())
	}
	if ctx.Err() == nil {
		return w.describe(c, err)
	}
	// What went wrong before tells more than that the time is over.
	e := w.describe(c, err)
	if c.last != nil && !errors.Is(c.last, ctx.Err()) {
		e = w.describe(c, c.last)
	}
	if e.Cause == nil || errors.Is(e.Cause, ctx.Err()) {
		e.Cause = ctx.Err()
	} else {
		e.Cause = fmt.Errorf("%w, after %w", ctx.Err(), e.Cause)
	}
	return e
}

// explainNetwork gives hints for failures that come from a mistake in a config.
func (w *wire) explainNetwork(e *providers.Error, err error) {
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		e.Hint = fmt.Sprintf("the endpoint has no address: check the region %s and the endpoints, and this host's name server", w.region)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		e.Hint = "the endpoint's certificate cannot be verified: check the endpoint's name and the CA certificates of this host"
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		e.Hint = "the endpoint does not speak TLS; write it with http:// if that is meant"
	}
}
