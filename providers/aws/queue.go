package aws

import (
	"context"
	"crypto/md5"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"example.org/usher/providers"
	"example.org/usher/providers/internal/gather"
)

// The limits of SQS 2012-11-05.
const (
	sqsMaxBatch      = 10
	sqsMaxWait       = 20 * time.Second
	sqsMinVisibility = time.Second
	// MaxVisibility is how long one receive can hide a message in all, with all extensions.
	MaxVisibility = 12 * time.Hour
	// sqsMaxExtension is a little less: the time from the receive to the extension counts.
	sqsMaxExtension = MaxVisibility - 5*time.Second
	// sqsMaxHandle bounds receipt handles, which have up to 1024 characters.
	sqsMaxHandle = 4 << 10
)

const (
	// DefaultVisibilityTimeout is Options.VisibilityTimeout when that is zero.
	DefaultVisibilityTimeout = time.Minute
	// extendFor is how long an extension waits for others to share its call.
	extendFor = 20 * time.Millisecond
	// batchRounds is how often entries of a batch that fail for the service's own reasons are sent.
	batchRounds = 3
)

var (
	queuePattern   = regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`)
	accountPattern = regexp.MustCompile(`^[0-9]{12}$`)
)

// Queue is one standard queue of SQS.
type Queue struct {
	wire          *wire
	client        sqsCalls
	name, account string
	visibility    time.Duration
	// url is the queue's, which every call names. It is asked for once, and again when the
	// queue is gone.
	url     gather.Cache[struct{}, string]
	extends gather.Gatherer[extension, providers.Lease]
	running sync.WaitGroup // of url and extends
}

var _ providers.Queue = (*Queue)(nil)

// extension is what one caller of Extend asks for.
type extension struct {
	receipt providers.Receipt
	seconds int32
}

// NewQueue makes a client of the queue o names. It does not call the service.
func NewQueue(o Options) (*Queue, error) {
	var problems []error
	if strings.HasSuffix(o.QueueName, ".fifo") {
		problems = append(problems, fmt.Errorf("QueueName: %q is a FIFO queue, which cannot be a lifecycle hook's target", o.QueueName))
	} else if !queuePattern.MatchString(o.QueueName) {
		problems = append(problems, fmt.Errorf("QueueName: must be 1 to 80 letters, digits, hyphens and underscores, got %q", o.QueueName))
	}
	if o.QueueAccount != "" && !accountPattern.MatchString(o.QueueAccount) {
		problems = append(problems, fmt.Errorf("QueueAccount: must be 12 digits, got %q", o.QueueAccount))
	}
	visibility := o.VisibilityTimeout
	if visibility == 0 {
		visibility = DefaultVisibilityTimeout
	}
	if visibility < sqsMinVisibility || visibility > MaxVisibility || visibility%time.Second != 0 {
		problems = append(problems, fmt.Errorf("VisibilityTimeout: must be whole seconds, 1s to 12h, got %v", visibility))
	}
	w, err := o.newWire("sqs", "SQSEndpoint", o.SQSEndpoint)
	if err != nil {
		problems = append(problems, err)
	}
	if err := invalid("queue", problems); err != nil {
		return nil, err
	}
	q := &Queue{
		wire: w, name: o.QueueName, account: o.QueueAccount, visibility: visibility,
		client: newSQSCalls(sqs.NewFromConfig(w.config(), func(o *sqs.Options) { o.DisableMessageChecksumValidation = true })),
	}
	q.url.Running, q.url.Load = &q.running, q.ask
	q.extends.Running, q.extends.Moment, q.extends.Run = &q.running, extendFor, q.extendAll
	return q, nil
}

// Close waits for calls whose callers have gone, and drops idle connections. No call may be
// made after it.
func (q *Queue) Close() {
	q.running.Wait()
	q.wire.close()
}

// MaxBatch is 10.
func (q *Queue) MaxBatch() int { return sqsMaxBatch }

// MaxWait is 20 s, and no more than a third of the visibility timeout, in whole seconds and at
// least one. A lease counts from when its receive was sent (the answer does not say when the
// message was taken), so what comes at the end of a poll has two thirds left.
func (q *Queue) MaxWait() time.Duration {
	return min(max((q.visibility/3).Truncate(time.Second), time.Second), sqsMaxWait)
}

// operation is a call of the queue. IAM knows the calls for batches by the names of those
// for one message.
func (q *Queue) operation(name string) operation {
	account := q.account
	whose := "of the account of these keys"
	if account != "" {
		whose = "of account " + account
	}
	return operation{
		name: name, permission: "sqs:" + strings.TrimSuffix(name, "Batch"), resource: q.wire.arn("sqs", account, q.name),
		missing: fmt.Sprintf("there is no queue %s %s in the region %s, or these keys may not see it: check queue.name, queue.account, queue.endpoint and region",
			q.name, whose, q.wire.region),
	}
}

// sqs gives the carrier to a call.
func (c *carrier) sqs(o *sqs.Options) { o.HTTPClient, o.Retryer, o.Credentials = c, c, c }

// queueCall makes a call that names the queue. When the queue is gone, its URL is asked for
// again by the next call.
func queueCall[O any](ctx context.Context, q *Queue, op operation, do func(ctx context.Context, c *carrier, url *string) (O, error)) (O, *carrier, error) {
	var none O
	url, err := q.url.Get(ctx, struct{}{}, math.MaxInt64)
	if err != nil {
		return none, nil, err
	}
	out, c, err := invoke(ctx, q.wire, op, func(ctx context.Context, c *carrier) (O, error) { return do(ctx, c, &url) })
	if errors.Is(err, providers.ErrQueueGone) {
		q.url.Drop(struct{}{})
	}
	return out, c, err
}

// ask sends GetQueueUrl.
func (q *Queue) ask(ctx context.Context, _ struct{}) (string, error) {
	in := &sqs.GetQueueUrlInput{QueueName: &q.name}
	if q.account != "" {
		in.QueueOwnerAWSAccountId = &q.account
	}
	op := q.operation("GetQueueUrl")
	out, c, err := invoke(ctx, q.wire, op, func(ctx context.Context, c *carrier) (*sqs.GetQueueUrlOutput, error) {
		return q.client.GetQueueUrl(ctx, in, c.sqs)
	})
	if err != nil {
		return "", err
	}
	if aws.ToString(out.QueueUrl) == "" {
		return "", q.wire.odd(c, "answer has no QueueUrl")
	}
	return *out.QueueUrl, nil
}

// odd is a success that cannot be read. It is not repeated: it had its effect.
func (w *wire) odd(c *carrier, what string) *providers.Error {
	return &providers.Error{Op: c.op.name, Kind: providers.ErrUnavailable, Status: c.status, Message: what, RequestID: c.requestID()}
}

// Receive sends one ReceiveMessage, whatever comes of it. n is cut to 1..10 and wait to
// whole seconds in 0..MaxWait; at 0 the queue's own wait applies, which the protocol of the
// SDK cannot override, or one second where MaxWait is less than that may be. Messages are
// hidden for Options.VisibilityTimeout.
//
// A body that does not fit its MD5 is logged and delivered as it came, marked as garbled:
// the SDK would refuse all that came with it, too.
func (q *Queue) Receive(ctx context.Context, n int, wait time.Duration) ([]providers.Delivery, error) {
	n = min(max(n, 1), sqsMaxBatch)
	if wait = min(max(wait, 0), q.MaxWait()); wait > 0 || q.MaxWait() < sqsMaxWait {
		wait = max(wait.Truncate(time.Second), time.Second)
	}
	op := q.operation("ReceiveMessage")
	op.once = true
	op.limit = wait + pollMargin
	if wait == 0 {
		op.limit = sqsMaxWait + pollMargin
	}
	out, c, err := queueCall(ctx, q, op, func(ctx context.Context, c *carrier, url *string) (*sqs.ReceiveMessageOutput, error) {
		return q.client.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{
			QueueUrl: url, MaxNumberOfMessages: int32(n), WaitTimeSeconds: int32(wait / time.Second),
			VisibilityTimeout: int32(q.visibility / time.Second),
			MessageSystemAttributeNames: []types.MessageSystemAttributeName{
				types.MessageSystemAttributeNameApproximateReceiveCount, types.MessageSystemAttributeNameSentTimestamp,
			},
		}, c.sqs)
	})
	if err != nil {
		return nil, fmt.Errorf("receive from queue %s: %w", q.name, err)
	}
	return q.deliveries(ctx, c, out.Messages), nil
}

func (q *Queue) deliveries(ctx context.Context, c *carrier, messages []types.Message) []providers.Delivery {
	received := time.Now()
	var out []providers.Delivery
	for _, m := range messages {
		body, handle := aws.ToString(m.Body), aws.ToString(m.ReceiptHandle)
		id := slog.String("message_id", told(aws.ToString(m.MessageId), c.keys, mostCode))
		if identifier(aws.ToString(m.MessageId)) == "" || handle == "" || len(handle) > sqsMaxHandle {
			// Nothing can be done with it; it comes again when its time is over.
			q.wire.logger.LogAttrs(ctx, slog.LevelWarn, "message came with an id or a receipt handle that can't be true", id)
			continue
		}
		sum := md5.Sum([]byte(body))
		garbled := m.MD5OfBody != nil && !strings.EqualFold(hex.EncodeToString(sum[:]), strings.TrimSpace(*m.MD5OfBody))
		if garbled {
			q.wire.logger.LogAttrs(ctx, slog.LevelWarn, "message body does not fit its MD5", id)
		}
		receives, _ := strconv.Atoi(m.Attributes[string(types.MessageSystemAttributeNameApproximateReceiveCount)])
		out = append(out, providers.Delivery{
			MessageID:  *m.MessageId,
			Receipt:    providers.Receipt(handle),
			Body:       []byte(body),
			Garbled:    garbled,
			Receives:   max(receives, 1),
			EnqueuedAt: milliseconds(m.Attributes[string(types.MessageSystemAttributeNameSentTimestamp)]),
			CloudTime:  c.date(),
			ReceivedAt: received,
			Until:      c.sent.Add(q.visibility),
			RequestID:  c.requestID(),
		})
	}
	return out
}

// milliseconds reads a time that SQS writes as milliseconds since 1970; zero if it is none.
func milliseconds(text string) time.Time {
	ms, err := strconv.ParseInt(text, 10, 64)
	if err != nil || ms <= 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// Extend hides the message for d from now, in whole seconds within 1 s and 12 h. The calls
// of a moment share a ChangeMessageVisibilityBatch. A handle stays good, and to hide a
// message for a time from now can be repeated, so that a lost answer costs nothing.
//
// SQS hides a message for 12 hours at most from its receive, and refuses what goes beyond
// (ErrInvalid). It also takes handles of a delivery that has run out, and of one that
// another receive has followed: that a message is another's shows in its deletion alone,
// if at all.
func (q *Queue) Extend(ctx context.Context, r providers.Receipt, d time.Duration) (providers.Lease, error) {
	d = min(max(d, sqsMinVisibility), sqsMaxExtension).Truncate(time.Second)
	lease, err := q.extends.Do(ctx, extension{r, int32(d / time.Second)})
	if err != nil {
		return providers.Lease{}, fmt.Errorf("extend in queue %s: %w", q.name, err)
	}
	return lease, nil
}

// extendAll extends what was gathered, ten in a call.
func (q *Queue) extendAll(ctx context.Context, all []extension) map[extension]gather.Outcome[providers.Lease] {
	var mu sync.Mutex
	out := map[extension]gather.Outcome[providers.Lease]{}
	var tasks []func()
	for chunk := range slices.Chunk(all, sqsMaxBatch) {
		tasks = append(tasks, func() {
			errs, calls := q.batch(ctx, "ChangeMessageVisibilityBatch", len(chunk), func(ctx context.Context, c *carrier, url *string, which []int) (batchAnswer, error) {
				in := &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: url}
				for _, i := range which {
					in.Entries = append(in.Entries, types.ChangeMessageVisibilityBatchRequestEntry{
						Id: entryID(i), ReceiptHandle: (*string)(&chunk[i].receipt), VisibilityTimeout: chunk[i].seconds,
					})
				}
				a, err := q.client.ChangeMessageVisibilityBatch(ctx, in, c.sqs)
				if err != nil {
					return batchAnswer{}, err
				}
				return batchAnswer{failed: a.Failed, done: idsOf(a.Successful, func(e types.ChangeMessageVisibilityBatchResultEntry) *string { return e.Id })}, nil
			})
			mu.Lock()
			defer mu.Unlock()
			for i, e := range chunk {
				out[e] = gather.Outcome[providers.Lease]{Err: errs[i]}
				if errs[i] == nil {
					out[e] = gather.Outcome[providers.Lease]{Value: providers.Lease{
						Receipt: e.receipt, Until: calls[i].sent.Add(time.Duration(e.seconds) * time.Second), RequestID: calls[i].requestID(),
					}}
				}
			}
		})
	}
	atOnce(tasks)
	return out
}

// Delete deletes messages, ten in one call. SQS says success of a message that was deleted
// before, and of the handle of a delivery that another one has followed, whose message may
// stay.
func (q *Queue) Delete(ctx context.Context, rs []providers.Receipt) []error {
	errs := make([]error, 0, len(rs))
	for chunk := range slices.Chunk(rs, sqsMaxBatch) {
		failed, _ := q.batch(ctx, "DeleteMessageBatch", len(chunk), func(ctx context.Context, c *carrier, url *string, which []int) (batchAnswer, error) {
			in := &sqs.DeleteMessageBatchInput{QueueUrl: url}
			for _, i := range which {
				in.Entries = append(in.Entries, types.DeleteMessageBatchRequestEntry{Id: entryID(i), ReceiptHandle: (*string)(&chunk[i])})
			}
			a, err := q.client.DeleteMessageBatch(ctx, in, c.sqs)
			if err != nil {
				return batchAnswer{}, err
			}
			return batchAnswer{failed: a.Failed, done: idsOf(a.Successful, func(e types.DeleteMessageBatchResultEntry) *string { return e.Id })}, nil
		})
		for _, err := range failed {
			if err != nil {
				err = fmt.Errorf("delete from queue %s: %w", q.name, err)
			}
			errs = append(errs, err)
		}
	}
	return errs
}

// batchAnswer is what a call for a batch says of its entries, by their ids.
type batchAnswer struct {
	done   []string
	failed []types.BatchResultErrorEntry
}

func entryID(i int) *string { return aws.String(strconv.Itoa(i)) }

func idsOf[E any](entries []E, id func(E) *string) []string {
	ids := make([]string, len(entries))
	for i, e := range entries {
		ids[i] = aws.ToString(id(e))
	}
	return ids
}

// batch makes one call for up to ten entries, and sends those again that failed for a
// reason that passes: the SDK repeats calls, and one that failed in part is a success to
// it. It gives an error and the last call for each entry.
func (q *Queue) batch(ctx context.Context, name string, n int, send func(context.Context, *carrier, *string, []int) (batchAnswer, error)) ([]error, []*carrier) {
	errs, calls := make([]error, n), make([]*carrier, n)
	left := make([]int, n)
	for i := range left {
		left[i] = i
	}
	op := q.operation(name)
	for round := 1; len(left) > 0; round++ {
		answer, c, err := queueCall(ctx, q, op, func(ctx context.Context, c *carrier, url *string) (batchAnswer, error) {
			return send(ctx, c, url, left)
		})
		var again []int
		for _, i := range left {
			calls[i], errs[i] = c, err
			if err == nil {
				errs[i] = q.entryError(c, answer, strconv.Itoa(i))
			}
			if err == nil && (errors.Is(errs[i], providers.ErrUnavailable) || errors.Is(errs[i], providers.ErrThrottled)) {
				again = append(again, i)
			}
		}
		if left = again; round == batchRounds || len(left) > 0 && !gather.Sleep(ctx, rand.N(backoffBase<<round)) {
			break
		}
	}
	return errs, calls
}

// entryError is what an answer says of one entry.
func (q *Queue) entryError(c *carrier, a batchAnswer, id string) error {
	for _, f := range a.failed {
		if aws.ToString(f.Id) != id {
			continue
		}
		e := &providers.Error{
			Op: c.op.name, Code: told(aws.ToString(f.Code), c.keys, mostCode), Message: told(aws.ToString(f.Message), c.keys, mostMessage),
			RequestID: c.requestID(), Untouched: true,
		}
		if !f.SenderFault {
			e.Status, e.Untouched = 500, false // as it would be of a call of its own
		}
		q.wire.classify(e, c.op)
		e.Status = 0
		if strings.Contains(e.Message, "beyond the limit") {
			e.Kind = providers.ErrInvalid
			e.Hint = "SQS hides a message for 12 hours at most, counted from its receive: the deadline must be shorter"
		}
		return e
	}
	if slices.Contains(a.done, id) {
		return nil
	}
	return q.wire.odd(c, "the answer leaves an entry out")
}

// Send sends one SendMessage. The queue's own delay applies. It is repeated like any call,
// so that a message whose answer was lost may be there twice. A body with characters that
// SQS refuses is not sent.
func (q *Queue) Send(ctx context.Context, body string) (string, error) {
	op := q.operation("SendMessage")
	if i := strings.IndexFunc(body, func(r rune) bool { return !allowed(r) }); i >= 0 || body == "" || !utf8.ValidString(body) {
		return "", fmt.Errorf("send to queue %s: %w", q.name, &providers.Error{
			Op: op.name, Kind: providers.ErrInvalid, Untouched: true, Message: "the body is empty or has characters that SQS does not take",
		})
	}
	out, c, err := queueCall(ctx, q, op, func(ctx context.Context, c *carrier, url *string) (*sqs.SendMessageOutput, error) {
		return q.client.SendMessage(ctx, &sqs.SendMessageInput{QueueUrl: url, MessageBody: &body}, c.sqs,
			func(o *sqs.Options) { o.DisableMessageChecksumValidation = false })
	})
	if err == nil && identifier(aws.ToString(out.MessageId)) == "" {
		err = q.wire.odd(c, "answer has no message id")
	}
	if err != nil {
		return "", fmt.Errorf("send to queue %s: %w", q.name, err)
	}
	return *out.MessageId, nil
}

// allowed tells the characters that a message may have.
func allowed(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000 && r <= 0x10FFFF
}

// Attributes reads the queue's visibility timeout and retention period.
func (q *Queue) Attributes(ctx context.Context) (providers.QueueAttributes, error) {
	out, c, err := queueCall(ctx, q, q.operation("GetQueueAttributes"), func(ctx context.Context, c *carrier, url *string) (*sqs.GetQueueAttributesOutput, error) {
		return q.client.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: url, AttributeNames: []types.QueueAttributeName{
			types.QueueAttributeNameVisibilityTimeout, types.QueueAttributeNameMessageRetentionPeriod,
		}}, c.sqs)
	})
	if err != nil {
		return providers.QueueAttributes{}, fmt.Errorf("attributes of queue %s: %w", q.name, err)
	}
	visibility, err1 := strconv.ParseUint(out.Attributes[string(types.QueueAttributeNameVisibilityTimeout)], 10, 31)
	retention, err2 := strconv.ParseUint(out.Attributes[string(types.QueueAttributeNameMessageRetentionPeriod)], 10, 31)
	if err1 != nil || err2 != nil {
		return providers.QueueAttributes{}, fmt.Errorf("attributes of queue %s: %w", q.name,
			q.wire.odd(c, "answer has no VisibilityTimeout or MessageRetentionPeriod"))
	}
	return providers.QueueAttributes{
		VisibilityTimeout: time.Duration(visibility) * time.Second, Retention: time.Duration(retention) * time.Second,
	}, nil
}

// lookups is how many calls of one question run at the same time.
const lookups = 8

// atOnce runs the tasks, a bounded number at a time, and waits for all.
func atOnce(tasks []func()) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, lookups)
	for _, task := range tasks {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			task()
		})
	}
	wg.Wait()
}
