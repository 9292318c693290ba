package simulator

import (
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"github.com/aws/smithy-go"
)

// client is the real SDK's, with its repeats off.
func (w awsWorld) sqs() *sqs.Client {
	return sqs.New(sqs.Options{
		Region: "eu-west-1", BaseEndpoint: &w.base, HTTPClient: w.http, Retryer: aws.NopRetryer{},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: w.id, SecretAccessKey: w.secret, SessionToken: w.token}, nil
		}),
	})
}

// queue is a queue by the SDK.
type sdkQueue struct {
	awsWorld
	*sqs.Client
	url *string
}

func (w awsWorld) queue(name string) sdkQueue {
	w.t.Helper()
	c := w.sqs()
	out, err := c.GetQueueUrl(w.t.Context(), &sqs.GetQueueUrlInput{QueueName: &name})
	if err != nil {
		w.t.Fatal(err)
	}
	return sdkQueue{w, c, out.QueueUrl}
}

func (q sdkQueue) put(bodies ...string) {
	q.t.Helper()
	for _, body := range bodies {
		if _, err := q.SendMessage(q.t.Context(), &sqs.SendMessageInput{QueueUrl: q.url, MessageBody: &body}); err != nil {
			q.t.Fatal(err)
		}
	}
}

// receive takes up to ten with an own time hidden; wait 0: the queue's.
func (q sdkQueue) receive(wait, visibility int32) []types.Message {
	q.t.Helper()
	out, err := q.ReceiveMessage(q.t.Context(), &sqs.ReceiveMessageInput{
		QueueUrl: q.url, MaxNumberOfMessages: 10, WaitTimeSeconds: wait, VisibilityTimeout: visibility,
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{"All"}, MessageAttributeNames: []string{"All"},
	})
	if err != nil {
		q.t.Fatal(err)
	}
	return out.Messages
}

func (q sdkQueue) one(wait, visibility int32) types.Message {
	q.t.Helper()
	got := q.receive(wait, visibility)
	if len(got) != 1 {
		q.t.Fatalf("%d messages, want one", len(got))
	}
	return got[0]
}

func (q sdkQueue) change(handle *string, seconds int32) error {
	_, err := q.ChangeMessageVisibility(q.t.Context(), &sqs.ChangeMessageVisibilityInput{QueueUrl: q.url, ReceiptHandle: handle, VisibilityTimeout: seconds})
	return err
}

func (q sdkQueue) deleteOne(handle *string) error {
	_, err := q.DeleteMessage(q.t.Context(), &sqs.DeleteMessageInput{QueueUrl: q.url, ReceiptHandle: handle})
	return err
}

// code checks the code of an SDK's error.
func code(t testing.TB, err error, want string) {
	t.Helper()
	var api smithy.APIError
	if !errors.As(err, &api) || api.ErrorCode() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func awsQueue(cfg ...QueueConfig) Scenario {
	return Scenario{Provider: providerAWS, Queues: cfg}
}

// A message goes round with its attributes and digests, which the SDK verifies.
func TestSQSRoundTrip(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q"})}, func(w awsWorld) {
		q := w.queue("q")
		if *q.url != "http://cloud.test/111122223333/q" {
			t.Errorf("url %s", *q.url)
		}
		sent, err := q.SendMessage(w.t.Context(), &sqs.SendMessageInput{
			QueueUrl: q.url, MessageBody: aws.String("drain <me> & \"you\"\n✓"),
			MessageAttributes: map[string]types.MessageAttributeValue{
				"a": {DataType: aws.String("String"), StringValue: aws.String("b")},
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if *sent.MD5OfMessageAttributes != "bef8bf215374a0a228d67533b1a488be" {
			t.Errorf("digest of the attributes %s", *sent.MD5OfMessageAttributes)
		}
		time.Sleep(1500 * time.Millisecond)
		m := q.one(0, 0)
		if *m.Body != "drain <me> & \"you\"\n✓" || *m.MessageId != *sent.MessageId || *m.MD5OfMessageAttributes != *sent.MD5OfMessageAttributes || *m.MessageAttributes["a"].StringValue != "b" {
			t.Errorf("got %+v", m)
		}
		if m.Attributes["ApproximateReceiveCount"] != "1" || m.Attributes["SenderId"] != "AIDAUSHER00000000000" {
			t.Errorf("attributes %v", m.Attributes)
		}
		first := m.Attributes["ApproximateFirstReceiveTimestamp"]
		if fmt.Sprint(time.Now().UnixMilli()) != first || fmt.Sprint(time.Now().Add(-1500*time.Millisecond).UnixMilli()) != m.Attributes["SentTimestamp"] {
			t.Errorf("attributes %v", m.Attributes)
		}
		if got := q.receive(0, 0); got != nil {
			t.Errorf("received %v again", got)
		}
		if err := q.deleteOne(m.ReceiptHandle); err != nil {
			t.Error(err)
		}
		if err := q.deleteOne(m.ReceiptHandle); err != nil {
			t.Errorf("deleted a second time: %v", err)
		}
		if st, _ := w.State().Queue("q"); st != (QueueState{Name: "q"}) {
			t.Errorf("left %+v", st)
		}
	})
}

// Each receive has a time hidden and a handle of its own; older handles do nothing.
func TestSQSVisibility(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q", VisibilityTimeout: 30 * time.Second})}, func(w awsWorld) {
		q := w.queue("q")
		q.put("x")
		first := q.one(0, 5)
		time.Sleep(4999 * time.Millisecond)
		if got := q.receive(0, 0); len(got) != 0 {
			t.Fatal("visible too early")
		}
		time.Sleep(2 * time.Millisecond)
		// Its time is over, but nobody has received it since: it may be hidden again.
		if err := q.change(first.ReceiptHandle, 10); err != nil {
			t.Error(err)
		}
		if got := q.receive(0, 0); len(got) != 0 {
			t.Fatal("not hidden again")
		}
		time.Sleep(11 * time.Second)
		second := q.one(0, 0)
		if *first.ReceiptHandle == *second.ReceiptHandle || second.Attributes["ApproximateReceiveCount"] != "2" {
			t.Errorf("second receive %+v", second)
		}
		code(t, q.change(first.ReceiptHandle, 10), "InvalidParameterValue")
		if err := q.deleteOne(first.ReceiptHandle); err != nil {
			t.Errorf("an older handle: %v", err)
		}
		if st, _ := w.State().Queue("q"); st.Inactive != 1 {
			t.Errorf("an older handle has deleted it: %+v", st)
		}
		// 0 gives it back at once. The handle stays good through changes.
		for _, n := range []int32{40, 50, 0} {
			if err := q.change(second.ReceiptHandle, n); err != nil {
				t.Error(err)
			}
		}
		third := q.one(0, 0)
		time.Sleep(31 * time.Second)
		if err := q.deleteOne(third.ReceiptHandle); err != nil {
			t.Error(err)
		}
		if st, _ := w.State().Queue("q"); st.Active+st.Inactive != 0 {
			t.Errorf("deleting a visible message that nobody received since: %+v", st)
		}
		err := q.change(third.ReceiptHandle, 10)
		if code(t, err, "InvalidParameterValue"); !strings.Contains(err.Error(), "Message does not exist or is not available for visibility timeout change.") {
			t.Error(err)
		}
	})
}

// No receive hides a message for more than 12 hours in all.
func TestSQSTwelveHours(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q"})}, func(w awsWorld) {
		q := w.queue("q")
		q.put("x")
		m := q.one(0, 43_200)
		if err := q.change(m.ReceiptHandle, 43_195); err != nil {
			t.Error(err)
		}
		time.Sleep(42_700 * time.Second)
		err := q.change(m.ReceiptHandle, 600)
		if code(t, err, "InvalidParameterValue"); !strings.Contains(err.Error(), "Value 600 for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for the message is beyond the limit [43200 seconds]") {
			t.Error(err)
		}
		if err := q.change(m.ReceiptHandle, 490); err != nil {
			t.Error(err)
		}
		time.Sleep(491 * time.Second)
		again := q.one(0, 30)
		if err := q.change(again.ReceiptHandle, 40_000); err != nil {
			t.Errorf("a new receive has 12 hours of its own: %v", err)
		}
	})
}

// A long poll ends when a message is sent or becomes visible, and gives nothing at its end.
func TestSQSLongPoll(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q", PollingWait: 3 * time.Second})}, func(w awsWorld) {
		q := w.queue("q")
		began := time.Now()
		if got := q.receive(20, 0); len(got) != 0 || time.Since(began) != 20*time.Second {
			t.Errorf("%d messages after %v", len(got), time.Since(began))
		}
		began = time.Now()
		if got := q.receive(0, 0); len(got) != 0 || time.Since(began) != 3*time.Second {
			t.Errorf("by the queue's own wait: %d messages after %v", len(got), time.Since(began))
		}
		var sends sync.WaitGroup
		sends.Go(func() {
			time.Sleep(7 * time.Second)
			q.put("x")
		})
		began = time.Now()
		m := q.one(20, 5)
		if d := time.Since(began); d != 7*time.Second {
			t.Errorf("sent after 7 s, received after %v", d)
		}
		sends.Wait()
		again := q.one(20, 20)
		if d := time.Since(began); d != 12*time.Second || *again.MessageId != *m.MessageId {
			t.Errorf("visible after 12 s, received after %v", d)
		}
		sends.Go(func() {
			time.Sleep(time.Second)
			if err := q.change(again.ReceiptHandle, 0); err != nil {
				t.Error(err)
			}
		})
		q.one(20, 20)
		if d := time.Since(began); d != 13*time.Second {
			t.Errorf("given back after 13 s, received after %v", d)
		}
		sends.Wait()
	})
}

// A poller that has gone takes nothing.
func TestSQSPollerGone(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q"})}, func(w awsWorld) {
		q := w.queue("q")
		ctx, cancel := context.WithTimeout(w.t.Context(), 2*time.Second)
		defer cancel()
		if _, err := q.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: q.url, WaitTimeSeconds: 20}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		q.put("x")
		if m := q.one(0, 0); m.Attributes["ApproximateReceiveCount"] != "1" {
			t.Errorf("the poller that had gone has taken it: %+v", m)
		}
	})
}

// The receive that would be one too many moves the message instead.
func TestSQSRedrive(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q"}, QueueConfig{Name: "dead", Retention: time.Hour})}, func(w awsWorld) {
		q, dead := w.queue("q"), w.queue("dead")
		const policy = `{"deadLetterTargetArn":"arn:aws:sqs:eu-west-1:111122223333:dead","maxReceiveCount":"2"}`
		if _, err := q.SetQueueAttributes(w.t.Context(), &sqs.SetQueueAttributesInput{QueueUrl: q.url, Attributes: map[string]string{"RedrivePolicy": policy}}); err != nil {
			t.Fatal(err)
		}
		q.put("poison")
		id := *q.one(0, 1).MessageId
		time.Sleep(2 * time.Second)
		q.one(0, 1)
		time.Sleep(2 * time.Second)
		if st, _ := w.State().Queue("dead"); st.Active != 0 {
			t.Fatal("moved before a receive")
		}
		if got := q.receive(0, 0); len(got) != 0 {
			t.Fatalf("received a third time: %v", got)
		}
		dead.put("younger")
		got := dead.receive(0, 0)
		if len(got) != 2 || *got[0].MessageId != id || got[0].Attributes["ApproximateReceiveCount"] != "3" || got[0].Attributes["DeadLetterQueueSourceArn"] != "arn:aws:sqs:eu-west-1:111122223333:q" {
			t.Errorf("the dead-letter queue gives %+v", got)
		}
		// It is four seconds older than the other.
		time.Sleep(time.Hour - 2*time.Second)
		if st, _ := w.State().Queue("dead"); st.Active+st.Inactive != 1 {
			t.Errorf("after its retention the dead-letter queue has %+v", st)
		}
		if !slices.Contains(w.types(MessageDeadLettered), MessageDeadLettered) {
			t.Error("no event")
		}
	})
}

// Beyond what may be in flight a short poll is refused, and a long one gives nothing until
// there is room.
func TestSQSInFlight(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q", MaxInFlight: 3})}, func(w awsWorld) {
		q := w.queue("q")
		q.put("1", "2", "3", "4", "5")
		got := q.receive(0, 600)
		if len(got) != 3 {
			t.Fatalf("%d received, want the three that may be", len(got))
		}
		_, err := q.ReceiveMessage(w.t.Context(), &sqs.ReceiveMessageInput{QueueUrl: q.url})
		code(t, err, "OverLimit")
		if _, ok := errors.AsType[*types.OverLimit](err); !ok {
			t.Errorf("type of %v", err)
		}
		began := time.Now()
		if more := q.receive(5, 0); len(more) != 0 || time.Since(began) != 5*time.Second {
			t.Errorf("%d messages after %v", len(more), time.Since(began))
		}
		var deletes sync.WaitGroup
		deletes.Go(func() {
			time.Sleep(time.Second)
			if err := q.deleteOne(got[0].ReceiptHandle); err != nil {
				t.Error(err)
			}
		})
		began = time.Now()
		if more := q.receive(5, 0); len(more) != 1 || time.Since(began) != time.Second {
			t.Errorf("with room after 1 s: %d messages after %v", len(more), time.Since(began))
		}
		deletes.Wait()
	})
}

// A batch answers for each entry.
func TestSQSBatches(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q"}, QueueConfig{Name: "other"})}, func(w awsWorld) {
		q, ctx := w.queue("q"), w.t.Context()
		send := func(entries ...types.SendMessageBatchRequestEntry) (*sqs.SendMessageBatchOutput, error) {
			return q.SendMessageBatch(ctx, &sqs.SendMessageBatchInput{QueueUrl: q.url, Entries: entries})
		}
		entry := func(id, body string) types.SendMessageBatchRequestEntry {
			return types.SendMessageBatchRequestEntry{Id: &id, MessageBody: &body}
		}
		out, err := send(entry("a", "1"), entry("b", "bad \x01"), entry("c", "3"))
		if err != nil || len(out.Successful) != 2 || len(out.Failed) != 1 || *out.Failed[0].Id != "b" || *out.Failed[0].Code != "InvalidMessageContents" || !out.Failed[0].SenderFault {
			t.Fatalf("%+v, %v", out, err)
		}
		got := q.receive(0, 0)
		foreign := "AQEBexample+handle/1=="
		changed, err := q.ChangeMessageVisibilityBatch(ctx, &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: q.url, Entries: []types.ChangeMessageVisibilityBatchRequestEntry{
			{Id: aws.String("1"), ReceiptHandle: got[0].ReceiptHandle, VisibilityTimeout: 100},
			{Id: aws.String("2"), ReceiptHandle: got[1].ReceiptHandle, VisibilityTimeout: 43_201},
		}})
		if err != nil || len(changed.Successful) != 1 || len(changed.Failed) != 1 || *changed.Failed[0].Code != "InvalidParameterValue" {
			t.Errorf("%+v, %v", changed, err)
		}
		gone, err := q.DeleteMessageBatch(ctx, &sqs.DeleteMessageBatchInput{QueueUrl: q.url, Entries: []types.DeleteMessageBatchRequestEntry{
			{Id: aws.String("1"), ReceiptHandle: got[0].ReceiptHandle}, {Id: aws.String("2"), ReceiptHandle: &foreign}, {Id: aws.String("3"), ReceiptHandle: got[1].ReceiptHandle},
		}})
		if err != nil || len(gone.Successful) != 2 || len(gone.Failed) != 1 || *gone.Failed[0].Code != "ReceiptHandleIsInvalid" {
			t.Errorf("%+v, %v", gone, err)
		}
		other := w.queue("other")
		code(t, other.deleteOne(got[0].ReceiptHandle), "ReceiptHandleIsInvalid")

		w.refusedWith(w.json("sqs", "SendMessageBatch", `{"QueueUrl":"http://x/111122223333/q","Entries":[]}`), 400, "com.amazonaws.sqs#EmptyBatchRequest")
		_, err = send(entry("a", "1"), entry("a", "1"))
		code(t, err, "AWS.SimpleQueueService.BatchEntryIdsNotDistinct")
		_, err = send(entry("a.b", "1"))
		code(t, err, "AWS.SimpleQueueService.InvalidBatchEntryId")
		_, err = send(slices.Repeat([]types.SendMessageBatchRequestEntry{entry("a", "1")}, 11)...)
		code(t, err, "AWS.SimpleQueueService.TooManyEntriesInBatchRequest")
		_, err = send(entry("a", strings.Repeat("x", 600_000)), entry("b", strings.Repeat("x", 600_000)))
		code(t, err, "AWS.SimpleQueueService.BatchRequestTooLong")
		if _, ok := errors.AsType[*types.BatchRequestTooLong](err); !ok {
			t.Errorf("type of %v", err)
		}
	})
}

// Queues are made, changed, listed, emptied and deleted.
func TestSQSQueues(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q"})}, func(w awsWorld) {
		c, ctx := w.sqs(), w.t.Context()
		create := func(attributes map[string]string) (*sqs.CreateQueueOutput, error) {
			return c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("new_q"), Attributes: attributes})
		}
		made, err := create(map[string]string{"DelaySeconds": "2", "VisibilityTimeout": "7"})
		if err != nil {
			t.Fatal(err)
		}
		if again, err := create(map[string]string{"DelaySeconds": "2"}); err != nil || *again.QueueUrl != *made.QueueUrl {
			t.Errorf("the same again: %v", err)
		}
		_, err = create(map[string]string{"DelaySeconds": "3"})
		code(t, err, "QueueAlreadyExists")
		if _, ok := errors.AsType[*types.QueueNameExists](err); !ok || !strings.Contains(err.Error(), "a different value for attribute DelaySeconds") {
			t.Errorf("another delay: %v", err)
		}
		_, err = c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("no.good")})
		code(t, err, "InvalidParameterValue")
		_, err = c.CreateQueue(ctx, &sqs.CreateQueueInput{QueueName: aws.String("x"), Attributes: map[string]string{"Colour": "red"}})
		code(t, err, "InvalidAttributeName")

		q := w.queue("new_q")
		q.put("late")
		if got := q.receive(0, 0); len(got) != 0 {
			t.Error("delivered before its delay is over")
		}
		time.Sleep(3 * time.Second)
		q.one(0, 0)
		got, err := c.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: q.url, AttributeNames: []types.QueueAttributeName{"All"}})
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{
			"QueueArn": "arn:aws:sqs:eu-west-1:111122223333:new_q", "DelaySeconds": "2", "VisibilityTimeout": "7", "MaximumMessageSize": "1048576",
			"MessageRetentionPeriod": "345600", "ReceiveMessageWaitTimeSeconds": "0", "SqsManagedSseEnabled": "true",
			"ApproximateNumberOfMessages": "0", "ApproximateNumberOfMessagesNotVisible": "1", "ApproximateNumberOfMessagesDelayed": "0",
		} {
			if got.Attributes[name] != want {
				t.Errorf("%s is %q, want %q", name, got.Attributes[name], want)
			}
		}
		if none, err := c.GetQueueAttributes(ctx, &sqs.GetQueueAttributesInput{QueueUrl: q.url}); err != nil || len(none.Attributes) != 0 {
			t.Errorf("none asked for: %v, %v", none.Attributes, err)
		}
		_, err = c.SetQueueAttributes(ctx, &sqs.SetQueueAttributesInput{QueueUrl: q.url, Attributes: map[string]string{"VisibilityTimeout": "43201"}})
		code(t, err, "InvalidAttributeValue")
		for policy, reason := range map[string]string{
			`{"deadLetterTargetArn":"arn:aws:sqs:eu-west-1:111122223333:nowhere","maxReceiveCount":3}`: "Dead letter target does not exist.",
			`{"deadLetterTargetArn":"arn:aws:sqs:eu-west-1:111122223333:q","maxReceiveCount":0}`:       "valid values are from 1 to 1000",
			`{"maxReceiveCount":3}`: "mandatory attribute: deadLetterTargetArn",
			`{`:                     "not a valid JSON map",
		} {
			_, err = c.SetQueueAttributes(ctx, &sqs.SetQueueAttributesInput{QueueUrl: q.url, Attributes: map[string]string{"RedrivePolicy": policy}})
			if code(t, err, "InvalidParameterValue"); !strings.Contains(err.Error(), reason) {
				t.Errorf("%s: %v", policy, err)
			}
		}
		first, err := c.ListQueues(ctx, &sqs.ListQueuesInput{MaxResults: aws.Int32(1)})
		if err != nil || len(first.QueueUrls) != 1 || first.NextToken == nil {
			t.Fatalf("%+v, %v", first, err)
		}
		if rest, err := c.ListQueues(ctx, &sqs.ListQueuesInput{MaxResults: aws.Int32(1), NextToken: first.NextToken}); err != nil || !strings.HasSuffix(rest.QueueUrls[0], "/q") || rest.NextToken != nil {
			t.Errorf("%+v, %v", rest, err)
		}

		if _, err := c.PurgeQueue(ctx, &sqs.PurgeQueueInput{QueueUrl: q.url}); err != nil {
			t.Fatal(err)
		}
		if st, _ := w.State().Queue("new_q"); st.Active+st.Inactive+st.Delayed != 0 {
			t.Errorf("after a purge %+v", st)
		}
		_, err = c.PurgeQueue(ctx, &sqs.PurgeQueueInput{QueueUrl: q.url})
		code(t, err, "AWS.SimpleQueueService.PurgeQueueInProgress")

		// Whoever polls a queue that is deleted learns of it.
		var polls sync.WaitGroup
		polls.Go(func() {
			_, err := c.ReceiveMessage(ctx, &sqs.ReceiveMessageInput{QueueUrl: q.url, WaitTimeSeconds: 20})
			code(t, err, "AWS.SimpleQueueService.NonExistentQueue")
			if _, ok := errors.AsType[*types.QueueDoesNotExist](err); !ok {
				t.Errorf("type of %v", err)
			}
		})
		time.Sleep(time.Second)
		if _, err := c.DeleteQueue(ctx, &sqs.DeleteQueueInput{QueueUrl: q.url}); err != nil {
			t.Fatal(err)
		}
		polls.Wait()
		_, err = create(nil)
		code(t, err, "AWS.SimpleQueueService.QueueDeletedRecently")
		time.Sleep(time.Minute)
		if _, err = create(nil); err != nil {
			t.Error(err)
		}
	})
}

// The Query protocol says the same in XML.
func TestSQSQuery(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q"})}, func(w awsWorld) {
		var got struct {
			XMLName xml.Name `xml:"http://queue.amazonaws.com/doc/2012-11-05/ GetQueueUrlResponse"`
			URL     string   `xml:"GetQueueUrlResult>QueueUrl"`
			Request string   `xml:"ResponseMetadata>RequestId"`
		}
		w.into(w.query("sqs", "GetQueueUrl", "QueueName", "q"), &got)
		if got.URL != "http://cloud.test/111122223333/q" || got.Request == "" {
			t.Errorf("%+v", got)
		}
		var sent struct {
			Body   string `xml:"SendMessageResult>MD5OfMessageBody"`
			Digest string `xml:"SendMessageResult>MD5OfMessageAttributes"`
		}
		w.into(w.query("sqs", "SendMessage", "QueueUrl", got.URL, "MessageBody", "hi usher", "MessageAttribute.1.Name", "a",
			"MessageAttribute.1.Value.DataType", "String", "MessageAttribute.1.Value.StringValue", "b"), &sent)
		if sent.Body != "258509fbea88dad9fdfc526e2d94e597" || sent.Digest != "bef8bf215374a0a228d67533b1a488be" {
			t.Errorf("%+v", sent)
		}
		var received struct {
			Messages []struct {
				Body, MD5OfBody, ReceiptHandle string
				Attribute                      []struct{ Name, Value string }
				MessageAttribute               []struct {
					Name  string
					Value struct{ DataType, StringValue string }
				}
			} `xml:"ReceiveMessageResult>Message"`
		}
		// As older clients post it: to the queue's own URL.
		form := url.Values{"Action": {"ReceiveMessage"}, "Version": {"2012-11-05"}, "AttributeName.1": {"All"}, "MessageAttributeName.1": {"a"}, "VisibilityTimeout": {"9"}}
		w.into(w.sent(w.request("sqs", "/111122223333/q", form.Encode(), http.Header{"Content-Type": {"application/x-www-form-urlencoded"}})), &received)
		if len(received.Messages) != 1 {
			t.Fatalf("%+v", received)
		}
		m := received.Messages[0]
		if m.Body != "hi usher" || m.MD5OfBody != sent.Body || len(m.Attribute) != 4 || m.MessageAttribute[0].Value.StringValue != "b" {
			t.Errorf("%+v", m)
		}
		if r := w.query("sqs", "ReceiveMessage", "QueueUrl", got.URL); !strings.Contains(r.body, "<ReceiveMessageResult></ReceiveMessageResult>") {
			t.Errorf("empty: %s", r.body)
		}
		r := w.query("sqs", "DeleteMessageBatch", "QueueUrl", got.URL, "DeleteMessageBatchRequestEntry.1.Id", "x", "DeleteMessageBatchRequestEntry.1.ReceiptHandle", m.ReceiptHandle,
			"DeleteMessageBatchRequestEntry.2.Id", "y", "DeleteMessageBatchRequestEntry.2.ReceiptHandle", "no")
		if !strings.Contains(r.body, "<DeleteMessageBatchResultEntry><Id>x</Id></DeleteMessageBatchResultEntry>") ||
			!strings.Contains(r.body, "<BatchResultErrorEntry><Id>y</Id><SenderFault>true</SenderFault><Code>ReceiptHandleIsInvalid</Code>") {
			t.Errorf("batch: %s", r.body)
		}
		if r = w.query("sqs", "PurgeQueue", "QueueUrl", got.URL); strings.Contains(r.body, "Result") || r.status != 200 {
			t.Errorf("purge: %s", r.body)
		}
		r = w.query("sqs", "ReceiveMessage", "QueueUrl", got.URL+"x")
		w.refusedWith(r, 400, "<Error><Type>Sender</Type><Code>AWS.SimpleQueueService.NonExistentQueue</Code><Message>The specified queue does not exist for this wsdl version.</Message><Detail></Detail></Error><RequestId>")
		w.refusedWith(w.query("sqs", "ReceiveMessage", "QueueUrl", got.URL, "WaitTimeSeconds", "21"), 400, "Value 21 for parameter WaitTimeSeconds is invalid. Reason: Must be &gt;= 0 and &lt;= 20, if provided.")
		w.refusedWith(w.query("sqs", "ReceiveMessage", "QueueUrl", got.URL, "MaxNumberOfMessages", "eleven"), 400, "InvalidParameterValue")
		w.refusedWith(w.query("sqs", "SendMessage", "QueueUrl", got.URL), 400, "The request must contain the parameter MessageBody.")
	})
}

// JSON names are case-sensitive, and refusals carry the older protocol's code in a header.
func TestSQSJSON(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q"})}, func(w awsWorld) {
		r := w.json("sqs", "ReceiveMessage", `{"QueueUrl":"http://elsewhere/111122223333/q","Unknown":[1]}`)
		if r.status != 200 || r.body != "{}" || r.header.Get("Content-Type") != "application/x-amz-json-1.0" || r.header.Get("x-amzn-RequestId") == "" {
			t.Errorf("empty: %+v", r)
		}
		w.refusedWith(w.json("sqs", "ReceiveMessage", `{"queueUrl":"http://elsewhere/111122223333/q"}`), 400, "com.amazon.coral.service#MissingRequiredParameterException")
		w.refusedWith(w.json("sqs", "ReceiveMessage", `{"QueueUrl":"http://elsewhere/111122223333/q","MaxNumberOfMessages":"1"}`), 400, "SerializationException")
		w.refusedWith(w.json("sqs", "ReceiveMessage", `{`), 400, "SerializationException")
		w.refusedWith(w.json("sqs", "Dance", `{}`), 400, "UnknownOperationException")
		w.refusedWith(w.json("sqs", "ReceiveMessage", `{"QueueUrl":"drain-q"}`), 404, "InvalidAddress")
		r = w.json("sqs", "ReceiveMessage", `{"QueueUrl":"http://x/111122223333/no"}`)
		if r.body != `{"__type":"com.amazonaws.sqs#QueueDoesNotExist","message":"The specified queue does not exist."}` || r.header["X-Amzn-Query-Error"][0] != "AWS.SimpleQueueService.NonExistentQueue;Sender" {
			t.Errorf("no queue: %+v", r)
		}
	})
}

// Faults strike SQS as they do the other cloud's queues.
func TestSQSFaults(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q"})}, func(w awsWorld) {
		q := w.queue("q")
		receive := func() error {
			_, err := q.ReceiveMessage(w.t.Context(), &sqs.ReceiveMessageInput{QueueUrl: q.url})
			return err
		}
		for kind, want := range map[FaultKind]string{FaultThrottle: "RequestThrottled", Fault5xx: "InternalFailure", FaultDenied: "AccessDenied"} {
			w.fault(Fault{Service: "sqs", Action: "ReceiveMessage", Kind: kind, Count: 1})
			code(t, receive(), want)
			if n := w.State().Refusals["sqs.ReceiveMessage "+want]; n != 1 {
				t.Errorf("%s: %d refusals counted", kind, n)
			}
		}
		w.fault(Fault{Service: "sqs", Action: "SendMessage", Kind: FaultDropAfterEffect, Count: 1})
		if _, err := q.SendMessage(w.t.Context(), &sqs.SendMessageInput{QueueUrl: q.url, MessageBody: aws.String("lost reply")}); err == nil {
			t.Error("no error for a lost reply")
		}
		if m := q.one(0, 0); *m.Body != "lost reply" {
			t.Errorf("got %+v", m)
		}
		w.fault(Fault{Service: "sqs", Action: "SendMessage", Kind: FaultDuplicate, Count: 1})
		q.put("twice")
		if got := q.receive(0, 1); len(got) != 2 || *got[0].Body != *got[1].Body || *got[0].MessageId == *got[1].MessageId {
			t.Errorf("got %+v", got)
		}
		time.Sleep(2 * time.Second)
		w.fault(Fault{Service: "sqs", Action: "ReceiveMessage", Kind: FaultCorrupt, Count: 1})
		if err := receive(); err == nil || !strings.Contains(err.Error(), "checksum") {
			t.Errorf("a garbled body: %v", err)
		}
		w.fault(Fault{Service: "sqs", Action: "DeleteMessage", Kind: FaultDrop, Count: 1})
		m := q.one(0, 0)
		_, err := q.DeleteMessageBatch(w.t.Context(), &sqs.DeleteMessageBatchInput{QueueUrl: q.url, Entries: []types.DeleteMessageBatchRequestEntry{{Id: aws.String("1"), ReceiptHandle: m.ReceiptHandle}}})
		if err == nil {
			t.Error("a fault of DeleteMessage has spared DeleteMessageBatch")
		}
		began := time.Now()
		w.fault(Fault{Service: "sqs", Kind: FaultLatency, Latency: 3 * time.Second, Count: 1})
		if q.receive(0, 0); time.Since(began) != 3*time.Second {
			t.Errorf("late by %v", time.Since(began))
		}
		for _, f := range []Fault{{Service: "mns", Kind: FaultThrottle}, {Service: "sqs", Action: "Dance", Kind: FaultThrottle}, {Service: "autoscaling", Kind: FaultDuplicate}} {
			if _, err := w.InjectFault(f); err == nil {
				t.Errorf("accepted %+v", f)
			}
		}
		if _, err := w.SendDamaged("q", "x"); err != nil {
			t.Error(err)
		}
		if err := receive(); err == nil || !strings.Contains(err.Error(), "checksum") {
			t.Errorf("a damaged message: %v", err)
		}
	})
}
