package alibaba

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"example.org/usher/providers"
)

// The limits of MNS 2015-06-06.
const (
	mnsMaxBatch      = 16
	mnsMaxWait       = 30 * time.Second
	mnsMinVisibility = time.Second
	mnsMaxVisibility = 43200 * time.Second
	// A message has 64 KB, of which each byte may be escaped as six, and some fields.
	mnsMaxMessage = 6*(64<<10) + 4<<10
	mnsMaxAnswer  = mnsMaxBatch * mnsMaxMessage
	// mnsMaxHandle is far above what a receipt handle has, some 50 bytes: it goes into a URL.
	mnsMaxHandle = 2 << 10
	// mnsMaxOther bounds the answers that hold no message; the longest names 16 receipts.
	mnsMaxOther = 64 << 10
)

const xmlType = "text/xml;charset=UTF-8"

// Queue is one MNS queue.
type Queue struct {
	*wire
	name     string
	endpoint endpoint
	// date gives the time of a request; tests set it to be a wrong clock.
	date func() time.Time
}

var _ providers.Queue = (*Queue)(nil)

// NewQueue makes a client of the queue o names. It does not call the service.
func NewQueue(o Options) (*Queue, error) {
	problems := o.common()
	if !queuePattern.MatchString(o.QueueName) {
		problems = append(problems, fmt.Errorf("QueueName: must be letters, digits and hyphens, got %q", o.QueueName))
	}
	at, err := parseEndpoint("QueueEndpoint", o.QueueEndpoint)
	if o.QueueEndpoint == "" {
		err = fmt.Errorf("QueueEndpoint: missing; it is https://{account id}.mns.{region}.aliyuncs.com")
	}
	if err != nil {
		problems = append(problems, err)
	}
	if err := invalid("queue", problems); err != nil {
		return nil, err
	}
	return &Queue{wire: o.newWire(), name: o.QueueName, endpoint: at, date: time.Now}, nil
}

// Close drops idle connections. Calls in flight go on.
func (q *Queue) Close() { q.close() }

// MaxBatch is 16.
func (q *Queue) MaxBatch() int { return mnsMaxBatch }

// MaxWait is 30 s.
func (q *Queue) MaxWait() time.Duration { return mnsMaxWait }

// Receive sends one BatchReceiveMessage, whatever comes of it. n is cut to 1..16 and
// wait to whole seconds in 0..30.
//
// The service limits how many long polls a queue may have open; above that it answers
// "empty" at once. Such an answer is returned as it is: a caller that gets nothing much
// earlier than it asked for must pause before it asks again.
//
// A body that does not fit its MD5 is logged and delivered as it came, marked as garbled:
// withholding it would hide the message without a trace.
func (q *Queue) Receive(ctx context.Context, n int, wait time.Duration) ([]providers.Delivery, error) {
	n = min(max(n, 1), mnsMaxBatch)
	wait = min(max(wait, 0), mnsMaxWait).Truncate(time.Second)
	limit := q.timeout
	if wait > 0 {
		limit = wait + pollMargin
	}
	var deliveries []providers.Delivery
	err := q.repeat(ctx, opReceive.name, never, func(ctx context.Context) *failure {
		sent := time.Now()
		query := fmt.Sprintf("/messages?numOfMessages=%d&waitseconds=%d", n, wait/time.Second)
		a, doc, f := q.send(ctx, opReceive, mnsRequest{
			method: http.MethodGet, path: query, body: new(once), limit: limit, bound: int64(n) * mnsMaxMessage,
		})
		if f != nil {
			if strings.EqualFold(f.Code, "MessageNotExist") {
				return nil // this is how an empty queue answers
			}
			return f
		}
		deliveries = q.deliveries(ctx, sent, a, doc.messages)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("receive from queue %s: %w", q.name, err)
	}
	return deliveries, nil
}

func (q *Queue) deliveries(ctx context.Context, sent time.Time, a answer, messages []mnsMessage) []providers.Delivery {
	received, cloud := time.Now(), a.date()
	var out []providers.Delivery
	for _, m := range messages {
		id := slog.String("message_id", told(m.MessageID, Keys{}, mostCode))
		if identifier(m.MessageID) == "" || len(m.ReceiptHandle) > mnsMaxHandle {
			q.logger.LogAttrs(ctx, slog.LevelWarn, "message came with an id or a receipt handle that can't be true", id)
			continue
		}
		if m.ReceiptHandle == "" {
			// Nothing can be done with it; it comes again when its time is over.
			q.logger.LogAttrs(ctx, slog.LevelWarn, "message came without a receipt handle", id)
			continue
		}
		sum := md5.Sum([]byte(m.MessageBody))
		garbled := m.MessageBodyMD5 != "" && !strings.EqualFold(hex.EncodeToString(sum[:]), strings.TrimSpace(m.MessageBodyMD5))
		if garbled {
			q.logger.LogAttrs(ctx, slog.LevelWarn, "message body does not fit its MD5", id)
		}
		until := received
		if next := mnsTime(m.NextVisibleTime); !next.IsZero() && !cloud.IsZero() {
			until = hiddenUntil(sent, next, cloud)
		}
		receives, _ := strconv.Atoi(strings.TrimSpace(m.DequeueCount))
		out = append(out, providers.Delivery{
			MessageID:  m.MessageID,
			Receipt:    providers.Receipt(m.ReceiptHandle),
			Body:       []byte(m.MessageBody),
			Garbled:    garbled,
			Receives:   max(receives, 1),
			EnqueuedAt: mnsTime(m.EnqueueTime),
			CloudTime:  cloud,
			ReceivedAt: received,
			Until:      until,
			RequestID:  a.requestID(),
		})
	}
	return out
}

// hiddenUntil moves the cloud's NextVisibleTime onto our clock. The Date header is cut
// to whole seconds, so what is left may be a second less than the difference says; and
// the answer was made some time after the request was sent, so that counting from the
// sending errs on the safe side, too.
func hiddenUntil(sent, next, date time.Time) time.Time {
	return sent.Add(next.Sub(date) - time.Second)
}

// Extend hides the message for d from now, in whole seconds within 1 s and 12 h. MNS
// kills the old receipt with every change, so a repeat after a lost answer could only
// fail and would be taken for a lost message: Extend is repeated when the first attempt
// surely changed nothing (no connection, throttled, 503) and else fails with
// ErrUnavailable. The caller then still has its old Until, and may try the old receipt
// once more: ErrReceiptStale says that the lost attempt had its effect, or that the
// message is someone else's.
func (q *Queue) Extend(ctx context.Context, r providers.Receipt, d time.Duration) (providers.Lease, error) {
	d = wholeSeconds(d, mnsMinVisibility, mnsMaxVisibility)
	var lease providers.Lease
	err := q.repeat(ctx, opExtend.name, whenUntouched, func(ctx context.Context) *failure {
		sent := time.Now()
		query := fmt.Sprintf("/messages?ReceiptHandle=%s&VisibilityTimeout=%d", escapeReceipt(r), d/time.Second)
		a, doc, f := q.send(ctx, opExtend, mnsRequest{method: http.MethodPut, path: query, limit: q.timeout})
		if f != nil {
			return f
		}
		if doc.visibility.ReceiptHandle == "" {
			return q.odd(opExtend, a, "answer has no new receipt handle")
		}
		lease = providers.Lease{
			Receipt:   providers.Receipt(doc.visibility.ReceiptHandle),
			Until:     extendedUntil(sent, d, mnsTime(doc.visibility.NextVisibleTime), a.date()),
			RequestID: a.requestID(),
		}
		return nil
	})
	if err != nil {
		return providers.Lease{}, fmt.Errorf("extend visibility in queue %s: %w", q.name, err)
	}
	return lease, nil
}

// extendedUntil is d from the sending, because the new time counts from the call; less
// if the cloud says that it granted less.
func extendedUntil(sent time.Time, d time.Duration, next, date time.Time) time.Time {
	until := sent.Add(d)
	if next.IsZero() || date.IsZero() || next.Sub(date) >= d {
		return until
	}
	return hiddenUntil(sent, next, date)
}

// Delete deletes messages, up to 16 in one call. A refusal of single receipts is not
// repeated. After an attempt whose answer was cut off, ErrReceiptStale may stand for a
// message that this very call has deleted.
func (q *Queue) Delete(ctx context.Context, rs []providers.Receipt) []error {
	errs := make([]error, 0, len(rs))
	for chunk := range slices.Chunk(rs, mnsMaxBatch) {
		if len(chunk) == 1 {
			errs = append(errs, q.deleteOne(ctx, chunk[0]))
			continue
		}
		errs = append(errs, q.deleteBatch(ctx, chunk)...)
	}
	return errs
}

func (q *Queue) deleteOne(ctx context.Context, r providers.Receipt) error {
	err := q.repeat(ctx, opDelete.name, unlessSlow, func(ctx context.Context) *failure {
		_, _, f := q.send(ctx, opDelete, mnsRequest{
			method: http.MethodDelete, path: "/messages?ReceiptHandle=" + escapeReceipt(r), limit: q.timeout,
		})
		return f
	})
	if err != nil {
		return fmt.Errorf("delete from queue %s: %w", q.name, err)
	}
	return nil
}

func (q *Queue) deleteBatch(ctx context.Context, rs []providers.Receipt) []error {
	body := receiptHandles(rs)
	errs := make([]error, len(rs))
	err := q.repeat(ctx, opBatch.name, unlessSlow, func(ctx context.Context) *failure {
		a, doc, f := q.send(ctx, opBatch, mnsRequest{
			method: http.MethodDelete, path: "/messages", body: bytes.NewReader(body), limit: q.timeout,
		})
		if f != nil || doc.root == "" {
			return f
		}
		return q.itemErrors(a, doc, rs, errs)
	})
	for i := range errs {
		if err != nil {
			errs[i] = err
		}
		if errs[i] != nil {
			errs[i] = fmt.Errorf("delete from queue %s: %w", q.name, errs[i])
		}
	}
	return errs
}

// itemErrors puts the errors of a batch that failed in part in their places. MNS lists
// the receipts that failed; the others are gone. An error for a receipt that was not
// asked for leaves nothing certain, so the whole batch counts as failed.
func (q *Queue) itemErrors(a answer, doc mnsDocument, rs []providers.Receipt, errs []error) *failure {
	if doc.root != "Errors" || len(doc.itemErrors) == 0 {
		return q.odd(opBatch, a, "answer names no receipt that failed")
	}
	for _, item := range doc.itemErrors {
		i := slices.Index(rs, providers.Receipt(strings.TrimSpace(item.ReceiptHandle)))
		if i < 0 {
			return q.odd(opBatch, a, "answer names a receipt that was not asked for")
		}
		f := q.refuse(opBatch, Keys{}, answer{header: a.header}, mnsError{Code: item.ErrorCode, Message: item.ErrorMessage})
		for ; i < len(rs); i++ { // the same receipt may stand twice in one batch
			if string(rs[i]) == strings.TrimSpace(item.ReceiptHandle) {
				errs[i] = f.cloudError
			}
		}
	}
	return nil
}

// Send sends one SendMessage with a delay of 0, whatever the queue's own is. It is
// repeated like any call, so a message whose answer was lost may be there twice. A body
// with characters that XML 1.0 forbids is refused: MNS would store something else.
func (q *Queue) Send(ctx context.Context, body string) (string, error) {
	if i := strings.IndexFunc(body, func(r rune) bool { return !allowedInXML(r) }); i >= 0 || !utf8.ValidString(body) {
		return "", fmt.Errorf("send to queue %s: %w", q.name, &providers.Error{
			Op: opSend.name, Kind: providers.ErrInvalid, Untouched: true, Message: "the body has characters that MNS cannot carry",
		})
	}
	var b bytes.Buffer
	b.WriteString(xml.Header + `<Message xmlns="http://mns.aliyuncs.com/doc/v1/"><MessageBody>`)
	_ = xml.EscapeText(&b, []byte(body)) // a bytes.Buffer does not fail
	b.WriteString("</MessageBody><DelaySeconds>0</DelaySeconds></Message>")
	var id string
	err := q.repeat(ctx, opSend.name, unlessSlow, func(ctx context.Context) *failure {
		a, doc, f := q.send(ctx, opSend, mnsRequest{
			method: http.MethodPost, path: "/messages", body: bytes.NewReader(b.Bytes()), limit: q.timeout,
		})
		if f != nil {
			return f
		}
		if len(doc.messages) != 1 || identifier(doc.messages[0].MessageID) == "" {
			return q.odd(opSend, a, "answer has no message id")
		}
		id = identifier(doc.messages[0].MessageID)
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("send to queue %s: %w", q.name, err)
	}
	return id, nil
}

// Attributes reads the queue's visibility timeout and retention period.
func (q *Queue) Attributes(ctx context.Context) (providers.QueueAttributes, error) {
	var attributes providers.QueueAttributes
	err := q.repeat(ctx, opAttributes.name, unlessSlow, func(ctx context.Context) *failure {
		a, doc, f := q.send(ctx, opAttributes, mnsRequest{method: http.MethodGet, limit: q.timeout})
		if f != nil {
			return f
		}
		visibility, ok := mnsSeconds(doc.queue.VisibilityTimeout)
		if !ok {
			return q.odd(opAttributes, a, "answer has no VisibilityTimeout")
		}
		retention, ok := mnsSeconds(doc.queue.MessageRetentionPeriod)
		if !ok {
			return q.odd(opAttributes, a, "answer has no MessageRetentionPeriod")
		}
		attributes = providers.QueueAttributes{VisibilityTimeout: visibility, Retention: retention}
		return nil
	})
	if err != nil {
		return providers.QueueAttributes{}, fmt.Errorf("attributes of queue %s: %w", q.name, err)
	}
	return attributes, nil
}

// mnsRequest is what differs between the operations.
type mnsRequest struct {
	method string
	path   string // below the queue, with the query
	body   io.Reader
	limit  time.Duration
	bound  int64 // of the answer's body; 0: mnsMaxOther
}

// send makes one attempt and reads its document. A 204 has none. A partial failure of
// a batch is not a failure here.
func (q *Queue) send(ctx context.Context, op mnsOp, r mnsRequest) (answer, mnsDocument, *failure) {
	keys, f := keysFor(ctx, op.name, q.credentials, q.timeout)
	if f != nil {
		return answer{}, mnsDocument{}, f
	}
	req, err := q.request(keys, r)
	if err != nil {
		return answer{}, mnsDocument{}, &failure{cloudError: &providers.Error{Op: op.name, Kind: providers.ErrInvalid, Cause: err}, certain: true}
	}
	a, f := q.exchange(ctx, call{op: op.name, keys: keys, limit: r.limit, bound: cmp.Or(r.bound, mnsMaxOther)}, req)
	if f != nil {
		return answer{}, mnsDocument{}, f
	}
	success := a.status >= 200 && a.status < 300
	if a.status == http.StatusNoContent {
		return a, mnsDocument{}, nil
	}
	doc, err := decodeMNS(a.body)
	switch {
	case err == nil && doc.root == "Error":
		return a, doc, q.refuse(op, keys, a, doc.err)
	case err == nil && (success || doc.root == "Errors" && op == opBatch):
		return a, doc, nil
	case err != nil && success && len(doc.messages) > 0:
		q.logger.LogAttrs(ctx, slog.LevelWarn, "batch of messages broke off, the rest will come again",
			slog.Int("messages", len(doc.messages)), slog.Any("error", err))
		return a, doc, nil
	case success:
		return a, doc, q.odd(op, a, err.Error())
	}
	return a, doc, q.refuse(op, keys, a, mnsError{Message: snippet(a.body, keys)})
}

// odd is a success that cannot be read. It is not repeated: it had its effect.
func (q *Queue) odd(op mnsOp, a answer, what string) *failure {
	return &failure{cloudError: &providers.Error{
		Op: op.name, Kind: providers.ErrUnavailable, Status: a.status, Message: what, RequestID: a.requestID(),
	}}
}

func (q *Queue) request(keys Keys, r mnsRequest) (*http.Request, error) {
	target := "/queues/" + q.name + r.path
	req, err := http.NewRequest(r.method, q.endpoint.String()+target, r.body)
	if err != nil {
		return nil, err
	}
	if got := req.URL.RequestURI(); got != target {
		return nil, fmt.Errorf("request target would not be sent as it is signed: %q", target)
	}
	if body, ok := r.body.(*bytes.Reader); ok {
		digest, err := mnsDigest(body)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Content-MD5", digest)
	}
	req.Header.Set("Date", q.date().UTC().Format(http.TimeFormat))
	req.Header.Set("Content-Type", xmlType)
	req.Header.Set("User-Agent", "usher")
	req.Header.Set("x-mns-version", mnsVersion)
	if keys.Token != "" {
		req.Header.Set("security-token", keys.Token)
	}
	req.Header.Set("Authorization", "MNS "+keys.ID+":"+mnsSignature(keys.Secret, r.method, target, req.Header))
	return req, nil
}

// escapeReceipt makes a receipt handle fit for a query. The service does not read + as
// a space, so a space, should there ever be one, is not written so.
func escapeReceipt(r providers.Receipt) string {
	return strings.ReplaceAll(url.QueryEscape(string(r)), "+", "%20")
}

func receiptHandles(rs []providers.Receipt) []byte {
	var b bytes.Buffer
	b.WriteString(xml.Header + `<ReceiptHandles xmlns="http://mns.aliyuncs.com/doc/v1/">`)
	for _, r := range rs {
		b.WriteString("<ReceiptHandle>")
		_ = xml.EscapeText(&b, []byte(r)) // a bytes.Buffer does not fail
		b.WriteString("</ReceiptHandle>")
	}
	b.WriteString("</ReceiptHandles>")
	return b.Bytes()
}
