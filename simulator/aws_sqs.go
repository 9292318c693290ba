package simulator

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// sqsDefaults fills in what queues are by default.
func (sc *Scenario) sqsDefaults() {
	sc.Queues = slices.Clone(sc.Queues)
	for i := range sc.Queues {
		set(&sc.Queues[i].MaxMessageSize, maxSQSMessage)
		set(&sc.Queues[i].MaxInFlight, maxSQSInFlight)
	}
}

var sqsOperations = map[string]awsOperation{
	"ReceiveMessage":               (*Simulator).sqsReceive,
	"DeleteMessage":                (*Simulator).sqsDelete,
	"DeleteMessageBatch":           (*Simulator).sqsDeleteBatch,
	"ChangeMessageVisibility":      (*Simulator).sqsChangeVisibility,
	"ChangeMessageVisibilityBatch": (*Simulator).sqsChangeVisibilityBatch,
	"SendMessage":                  (*Simulator).sqsSend,
	"SendMessageBatch":             (*Simulator).sqsSendBatch,
	"GetQueueUrl":                  (*Simulator).sqsGetQueueURL,
	"GetQueueAttributes":           (*Simulator).sqsGetAttributes,
	"SetQueueAttributes":           (*Simulator).sqsSetAttributes,
	"CreateQueue":                  (*Simulator).sqsCreate,
	"ListQueues":                   (*Simulator).sqsList,
	"PurgeQueue":                   (*Simulator).sqsPurge,
	"DeleteQueue":                  (*Simulator).sqsDeleteQueue,
}

const (
	maxSQSBatch      = 10
	maxSQSAttributes = 10
	maxSQSDelay      = 900
	// sqsQuiet is for how long a queue can't be purged again, or made again once deleted.
	sqsQuiet = time.Minute
)

// sqsAction is what policies call an operation: a batch is allowed with the single one.
func sqsAction(operation string) string { return strings.TrimSuffix(operation, "Batch") }

// sqsResources names the queue that a call is about.
func (s *Simulator) sqsResources(c *awsCall) []string {
	in, bad := c.sqsRequest()
	if bad != nil {
		return []string{s.awsARN("sqs", "*")}
	}
	name := cmp.Or(in.QueueName, "*")
	if in.QueueUrl != "" {
		_, name, _ = sqsName(in.QueueUrl)
	}
	return []string{s.awsARN("sqs", name)}
}

func errSQS(status int, code, message string) *awsError {
	return &awsError{status: status, code: "AWS.SimpleQueueService." + code, shape: "com.amazonaws.sqs#" + code, message: message}
}

func errSQSInvalid(format string, args ...any) *awsError {
	return &awsError{status: 400, code: "InvalidParameterValue", shape: "com.amazon.coral.service#InvalidParameterValueException", message: fmt.Sprintf(format, args...)}
}

func errSQSMissing(name string) *awsError {
	return &awsError{status: 400, code: "MissingParameter", shape: "com.amazon.coral.service#MissingRequiredParameterException", message: "The request must contain the parameter " + name + "."}
}

// errSQSPlain is an error with the same name in both protocols.
func errSQSPlain(status int, code, message string) *awsError {
	return &awsError{status: status, code: code, shape: "com.amazonaws.sqs#" + code, message: message}
}

func errSQSHandle(handle string) *awsError {
	return errSQSPlain(404, "ReceiptHandleIsInvalid", `The input receipt handle "`+handle+`" is not a valid receipt handle.`)
}

func errSQSQueueExists(attribute string) *awsError {
	return &awsError{
		status: 400, code: "QueueAlreadyExists", shape: "com.amazonaws.sqs#QueueNameExists",
		message: "A queue already exists with the same name and a different value for attribute " + attribute,
	}
}

var (
	errSQSNoQueue = &awsError{
		status: 400, code: "AWS.SimpleQueueService.NonExistentQueue", shape: "com.amazonaws.sqs#QueueDoesNotExist",
		message: "The specified queue does not exist.", queryMessage: "The specified queue does not exist for this wsdl version.",
	}
	errSQSOverLimit = errSQSPlain(403, "OverLimit", "The maximum number of in flight messages is reached.")
)

// sqsRequest is the parameters of every operation, as JSON names them.
type sqsRequest struct {
	QueueUrl, QueueName, QueueOwnerAWSAccountId, QueueNamePrefix, NextToken string

	MaxNumberOfMessages, WaitTimeSeconds, VisibilityTimeout, DelaySeconds, MaxResults *int

	AttributeNames, MessageSystemAttributeNames, MessageAttributeNames []string

	ReceiptHandle, MessageBody *string
	MessageAttributes          map[string]sqsAttribute
	MessageSystemAttributes    map[string]sqsAttribute
	Entries                    []sqsEntry
	Attributes                 map[string]string
	Tags                       map[string]string `json:"tags"`
}

// sqsEntry is one entry of a batch.
type sqsEntry struct {
	Id                              string
	ReceiptHandle, MessageBody      *string
	VisibilityTimeout, DelaySeconds *int
	MessageAttributes               map[string]sqsAttribute
	MessageSystemAttributes         map[string]sqsAttribute
}

// sqsRequest reads the parameters, in either protocol.
func (c *awsCall) sqsRequest() (sqsRequest, *awsError) {
	var in sqsRequest
	if c.json() {
		return in, c.decode(&in)
	}
	f := sqsForm{c: c}
	in = sqsRequest{
		QueueUrl: c.text("QueueUrl"), QueueName: c.text("QueueName"), QueueOwnerAWSAccountId: c.text("QueueOwnerAWSAccountId"),
		QueueNamePrefix: c.text("QueueNamePrefix"), NextToken: c.text("NextToken"),
		MaxNumberOfMessages: f.number("MaxNumberOfMessages"), WaitTimeSeconds: f.number("WaitTimeSeconds"),
		VisibilityTimeout: f.number("VisibilityTimeout"), DelaySeconds: f.number("DelaySeconds"), MaxResults: f.number("MaxResults"),
		AttributeNames: c.list("AttributeName"), MessageSystemAttributeNames: c.list("MessageSystemAttributeName"), MessageAttributeNames: c.list("MessageAttributeName"),
		ReceiptHandle: f.optional("ReceiptHandle"), MessageBody: f.optional("MessageBody"),
		MessageAttributes: f.attributes("MessageAttribute"), MessageSystemAttributes: f.attributes("MessageSystemAttribute"),
		Attributes: f.pairs("Attribute", "Name", "Value"), Tags: f.pairs("Tag", "Key", "Value"),
	}
	if in.QueueUrl == "" && strings.Trim(c.r.URL.Path, "/") != "" {
		in.QueueUrl = c.r.URL.Path // as older clients post it
	}
	entry := c.action + "RequestEntry"
	for _, i := range c.indexes(entry) {
		at := entry + "." + strconv.Itoa(i) + "."
		in.Entries = append(in.Entries, sqsEntry{
			Id: c.text(at + "Id"), ReceiptHandle: f.optional(at + "ReceiptHandle"), MessageBody: f.optional(at + "MessageBody"),
			VisibilityTimeout: f.number(at + "VisibilityTimeout"), DelaySeconds: f.number(at + "DelaySeconds"),
			MessageAttributes: f.attributes(at + "MessageAttribute"), MessageSystemAttributes: f.attributes(at + "MessageSystemAttribute"),
		})
	}
	return in, f.bad
}

// sqsForm reads the parameters of a form and keeps the first error.
type sqsForm struct {
	c   *awsCall
	bad *awsError
}

func (f *sqsForm) optional(name string) *string {
	if !f.c.has(name) {
		return nil
	}
	return new(f.c.text(name))
}

func (f *sqsForm) number(name string) *int {
	if !f.c.has(name) {
		return nil
	}
	n, err := strconv.Atoi(f.c.text(name))
	if err != nil && f.bad == nil {
		f.bad = errSQSInvalid("Value %s for parameter %s is invalid. Reason: Must be an integer.", f.c.text(name), name)
	}
	return &n
}

func (f *sqsForm) pairs(name, key, value string) map[string]string {
	out := map[string]string{}
	for _, i := range f.c.indexes(name) {
		at := name + "." + strconv.Itoa(i) + "."
		out[f.c.text(at+key)] = f.c.text(at + value)
	}
	return out
}

func (f *sqsForm) attributes(name string) map[string]sqsAttribute {
	out := map[string]sqsAttribute{}
	for _, i := range f.c.indexes(name) {
		at := name + "." + strconv.Itoa(i) + "."
		a := sqsAttribute{DataType: f.c.text(at + "Value.DataType"), StringValue: f.optional(at + "Value.StringValue")}
		if coded := f.optional(at + "Value.BinaryValue"); coded != nil {
			b, err := base64.StdEncoding.DecodeString(*coded)
			if err != nil && f.bad == nil {
				f.bad = errSQSInvalid("The value of message attribute '%s' is not Base64.", f.c.text(at+"Name"))
			}
			a.BinaryValue = b
		}
		out[f.c.text(at+"Name")] = a
	}
	return out
}

// sqsName takes a queue URL apart.
func sqsName(text string) (account, name string, ok bool) {
	u, err := url.Parse(text)
	if err != nil {
		return "", "", false
	}
	account, name, ok = strings.Cut(strings.Trim(u.Path, "/"), "/")
	return account, name, ok && account != "" && sqsNamePattern.MatchString(name)
}

// queueURL is the URL of a queue on the address that the call came to.
func (s *Simulator) queueURL(c *awsCall, name string) string {
	return "http://" + c.r.Host + "/" + s.account + "/" + name
}

// sqsTarget finds the name of the queue that QueueUrl stands for.
func (s *Simulator) sqsTarget(in sqsRequest) (string, *awsError) {
	if in.QueueUrl == "" {
		return "", errSQSMissing("QueueUrl")
	}
	account, name, ok := sqsName(in.QueueUrl)
	switch {
	case !ok:
		return "", errSQSPlain(404, "InvalidAddress", "The address "+in.QueueUrl+" is not valid for this endpoint.")
	case account != s.account:
		return "", errSQSNoQueue
	}
	return name, nil
}

// onQueue runs f on the queue that QueueUrl stands for, under the mutex.
func (s *Simulator) onQueue(c *awsCall, f func(*sqsQueue, sqsRequest) (awsAnswer, *awsError)) (awsAnswer, *awsError) {
	in, bad := c.sqsRequest()
	if bad != nil {
		return nil, bad
	}
	name, bad := s.sqsTarget(in)
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.sqs[name]
	if q == nil {
		return nil, errSQSNoQueue
	}
	return f(q, in)
}

// sqsInRange checks a number that may be left out.
func sqsInRange(name string, n *int, def, low, high int, reason string) (int, *awsError) {
	switch {
	case n == nil:
		return def, nil
	case *n < low || *n > high:
		return 0, errSQSInvalid("Value %d for parameter %s is invalid. Reason: %s", *n, name, reason)
	}
	return *n, nil
}

const (
	maxSQSSeconds    = 43_200
	visibilityReason = "VisibilityTimeout must be an integer between 0 and 43200."
)

// sqsMessages answers ReceiveMessage.
type sqsMessages struct {
	Messages []sqsReceived `xml:"Message" json:",omitempty"`
}

type sqsReceived struct {
	MessageId, ReceiptHandle, MD5OfBody, Body string

	Attributes             sqsTexts  `xml:"Attribute" json:",omitempty"`
	MD5OfMessageAttributes string    `xml:",omitempty" json:",omitempty"`
	MessageAttributes      sqsValues `xml:"MessageAttribute" json:",omitempty"`
}

// sqsTexts is a map that XML writes as a repeated element with a name and a value.
type sqsTexts map[string]string

// MarshalXML writes one element a name.
func (m sqsTexts) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if err := e.EncodeElement(struct{ Name, Value string }{name, m[name]}, start); err != nil {
			return err
		}
	}
	return nil
}

// sqsValues are message attributes, which XML writes as sqsTexts are.
type sqsValues map[string]sqsAttribute

// MarshalXML writes one element a name, with binary values in Base64.
func (m sqsValues) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	type value struct {
		DataType    string
		StringValue *string `xml:",omitempty"`
		BinaryValue string  `xml:",omitempty"`
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		a := m[name]
		v := value{a.DataType, a.StringValue, base64.StdEncoding.EncodeToString(a.BinaryValue)}
		if err := e.EncodeElement(struct {
			Name  string
			Value value
		}{name, v}, start); err != nil {
			return err
		}
	}
	return nil
}

var sqsSystemAttributes = []string{
	"All", "ApproximateFirstReceiveTimestamp", "ApproximateReceiveCount", "AWSTraceHeader", "DeadLetterQueueSourceArn",
	"MessageDeduplicationId", "MessageGroupId", "SenderId", "SentTimestamp", "SequenceNumber",
}

func (s *Simulator) sqsReceive(c *awsCall) (awsAnswer, *awsError) {
	in, bad := c.sqsRequest()
	if bad != nil {
		return nil, bad
	}
	name, bad := s.sqsTarget(in)
	if bad != nil {
		return nil, bad
	}
	n, bad := sqsInRange("MaxNumberOfMessages", in.MaxNumberOfMessages, 1, 1, maxSQSBatch, "Must be between 1 and 10, if provided.")
	if bad != nil {
		return nil, bad
	}
	wait, bad := sqsInRange("WaitTimeSeconds", in.WaitTimeSeconds, -1, 0, int(maxSQSWait/time.Second), "Must be >= 0 and <= 20, if provided.")
	if bad != nil {
		return nil, bad
	}
	visibility, bad := sqsInRange("VisibilityTimeout", in.VisibilityTimeout, -1, 0, maxSQSSeconds, visibilityReason)
	if bad != nil {
		return nil, bad
	}
	asked := slices.Concat(in.AttributeNames, in.MessageSystemAttributeNames)
	for _, a := range asked {
		if !slices.Contains(sqsSystemAttributes, a) {
			return nil, errSQSPlain(400, "InvalidAttributeName", "Unknown Attribute "+a+".")
		}
	}
	answer := &sqsMessages{}
	bad = s.receiveSQS(c.ctx, name, n, seconds(wait), seconds(visibility), func(got []*sqsMessage) {
		q := s.sqs[name]
		for _, m := range got {
			answer.Messages = append(answer.Messages, q.deliver(m, asked, in.MessageAttributeNames, c.fx))
		}
		if c.fx.duplicate {
			for _, m := range got {
				q.copy(m)
			}
		}
	})
	return answer, bad
}

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }

// deliver is a message as a receive tells it.
func (q *sqsQueue) deliver(m *sqsMessage, system, attributes []string, fx effects) sqsReceived {
	out := sqsReceived{MessageId: m.id, ReceiptHandle: q.sqsHandle(m), MD5OfBody: m.md5, Body: m.body, Attributes: sqsTexts{}, MessageAttributes: sqsValues{}}
	if fx.corrupt {
		out.Body = garble(m.body)
	}
	for name, value := range map[string]string{
		"ApproximateReceiveCount": strconv.Itoa(m.receives), "SentTimestamp": strconv.FormatInt(m.stamped.UnixMilli(), 10),
		"ApproximateFirstReceiveTimestamp": strconv.FormatInt(q.sim.cloudTime(m.firstReceived).UnixMilli(), 10),
		"SenderId":                         m.sender, "AWSTraceHeader": m.trace, "DeadLetterQueueSourceArn": m.source,
	} {
		if value != "" && (slices.Contains(system, "All") || slices.Contains(system, name)) {
			out.Attributes[name] = value
		}
	}
	for name, a := range m.attributes {
		if slices.ContainsFunc(attributes, func(asked string) bool { return asksFor(asked, name) }) {
			out.MessageAttributes[name] = a
		}
	}
	out.MD5OfMessageAttributes = digestAttributes(out.MessageAttributes)
	return out
}

// asksFor says whether an asked name, which may end in .*, means an attribute.
func asksFor(asked, name string) bool {
	prefix, all := strings.CutSuffix(asked, ".*")
	return asked == "All" || asked == name || all && strings.HasPrefix(name, prefix)
}

func (s *Simulator) sqsDelete(c *awsCall) (awsAnswer, *awsError) {
	return s.onQueue(c, func(q *sqsQueue, in sqsRequest) (awsAnswer, *awsError) { return nil, q.delete(in.ReceiptHandle) })
}

// delete removes the message of a handle. With an older handle, and of a message that is
// gone, it has no effect, and says nothing of it.
func (q *sqsQueue) delete(handle *string) *awsError {
	if handle == nil || *handle == "" {
		return errSQSMissing("ReceiptHandle")
	}
	m, newest, bad := q.find(*handle)
	if bad == nil && m != nil && newest {
		q.remove(m)
		q.record(MessageDeleted, m)
	}
	return bad
}

func (s *Simulator) sqsChangeVisibility(c *awsCall) (awsAnswer, *awsError) {
	return s.onQueue(c, func(q *sqsQueue, in sqsRequest) (awsAnswer, *awsError) {
		return nil, q.changeVisibility(in.ReceiptHandle, in.VisibilityTimeout)
	})
}

// changeVisibility hides the message of a handle for so many seconds from now. A message
// whose time is over, but that nobody else has received, is hidden again.
func (q *sqsQueue) changeVisibility(handle *string, timeout *int) *awsError {
	switch {
	case handle == nil || *handle == "":
		return errSQSMissing("ReceiptHandle")
	case timeout == nil:
		return errSQSMissing("VisibilityTimeout")
	}
	n, bad := sqsInRange("VisibilityTimeout", timeout, 0, 0, maxSQSSeconds, visibilityReason)
	if bad != nil {
		return bad
	}
	m, newest, bad := q.find(*handle)
	switch {
	case bad != nil:
		return bad
	case m == nil || !newest:
		return errSQSInvalid("Value %s for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available for visibility timeout change.", *handle)
	case time.Since(m.received)+seconds(n) >= maxSQSSeconds*time.Second:
		return errSQSInvalid("Value %d for parameter VisibilityTimeout is invalid. Reason: Total VisibilityTimeout for the message is beyond the limit [%d seconds]", n, maxSQSSeconds)
	}
	q.extend(m, seconds(n))
	return nil
}

// sqsFailed is an entry of a batch that was refused.
type sqsFailed struct {
	XMLName     xml.Name `xml:"BatchResultErrorEntry" json:"-"`
	Id          string
	SenderFault bool
	Code        string
	Message     string
}

// sqsBatch answers a batch whose entries become Ts.
type sqsBatch[T any] struct {
	Successful []T         `json:",omitempty"`
	Failed     []sqsFailed `json:",omitempty"`
}

type sqsDeleted struct {
	XMLName xml.Name `xml:"DeleteMessageBatchResultEntry" json:"-"`
	Id      string
}

type sqsChanged struct {
	XMLName xml.Name `xml:"ChangeMessageVisibilityBatchResultEntry" json:"-"`
	Id      string
}

var sqsEntryID = regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`)

// batch runs f for each entry, once the batch as a whole is good.
func batch[T any](c *awsCall, entries []sqsEntry, f func(sqsEntry) (T, *awsError)) (awsAnswer, *awsError) {
	if len(entries) == 0 {
		return nil, errSQS(400, "EmptyBatchRequest", "There should be at least one "+c.action+"RequestEntry in the request.")
	}
	if n := len(entries); n > maxSQSBatch {
		return nil, errSQS(400, "TooManyEntriesInBatchRequest", fmt.Sprintf("Maximum number of entries per request are %d. You have sent %d.", maxSQSBatch, n))
	}
	seen := map[string]bool{}
	for _, e := range entries {
		if !sqsEntryID.MatchString(e.Id) {
			return nil, errSQS(400, "InvalidBatchEntryId", "A batch entry id can only contain alphanumeric characters, hyphens and underscores. It can be at most 80 letters long.")
		}
		if seen[e.Id] {
			return nil, errSQS(400, "BatchEntryIdsNotDistinct", "Id "+e.Id+" repeated.")
		}
		seen[e.Id] = true
	}
	answer := &sqsBatch[T]{}
	for _, e := range entries {
		done, bad := f(e)
		if bad != nil {
			answer.Failed = append(answer.Failed, sqsFailed{Id: e.Id, SenderFault: !bad.receiver(), Code: bad.code, Message: bad.message})
			continue
		}
		answer.Successful = append(answer.Successful, done)
	}
	return answer, nil
}

func (s *Simulator) sqsDeleteBatch(c *awsCall) (awsAnswer, *awsError) {
	return s.onQueue(c, func(q *sqsQueue, in sqsRequest) (awsAnswer, *awsError) {
		return batch(c, in.Entries, func(e sqsEntry) (sqsDeleted, *awsError) { return sqsDeleted{Id: e.Id}, q.delete(e.ReceiptHandle) })
	})
}

func (s *Simulator) sqsChangeVisibilityBatch(c *awsCall) (awsAnswer, *awsError) {
	return s.onQueue(c, func(q *sqsQueue, in sqsRequest) (awsAnswer, *awsError) {
		return batch(c, in.Entries, func(e sqsEntry) (sqsChanged, *awsError) {
			return sqsChanged{Id: e.Id}, q.changeVisibility(e.ReceiptHandle, e.VisibilityTimeout)
		})
	})
}

// sqsStored answers SendMessage.
type sqsStored struct {
	MessageId, MD5OfMessageBody  string
	MD5OfMessageAttributes       string `xml:",omitempty" json:",omitempty"`
	MD5OfMessageSystemAttributes string `xml:",omitempty" json:",omitempty"`
}

// sqsSent is an entry of a batch that was sent.
type sqsSent struct {
	XMLName xml.Name `xml:"SendMessageBatchResultEntry" json:"-"`
	Id      string
	sqsStored
}

func (s *Simulator) sqsSend(c *awsCall) (awsAnswer, *awsError) {
	return s.onQueue(c, func(q *sqsQueue, in sqsRequest) (awsAnswer, *awsError) {
		stored, bad := q.put(c, sqsEntry{
			MessageBody: in.MessageBody, DelaySeconds: in.DelaySeconds, MessageAttributes: in.MessageAttributes, MessageSystemAttributes: in.MessageSystemAttributes,
		})
		return &stored, bad
	})
}

func (s *Simulator) sqsSendBatch(c *awsCall) (awsAnswer, *awsError) {
	return s.onQueue(c, func(q *sqsQueue, in sqsRequest) (awsAnswer, *awsError) {
		total := 0
		for _, e := range in.Entries {
			total += e.size()
		}
		if total > maxSQSMessage {
			return nil, errSQS(400, "BatchRequestTooLong", fmt.Sprintf("Batch requests cannot be longer than %d bytes. You have sent %d bytes.", maxSQSMessage, total))
		}
		return batch(c, in.Entries, func(e sqsEntry) (sqsSent, *awsError) {
			stored, bad := q.put(c, e)
			return sqsSent{Id: e.Id, sqsStored: stored}, bad
		})
	})
}

// put checks a message and sends it.
func (q *sqsQueue) put(c *awsCall, e sqsEntry) (sqsStored, *awsError) {
	delay, bad := e.check(q)
	if bad != nil {
		return sqsStored{}, bad
	}
	out := outgoingSQS{body: *e.MessageBody, attributes: e.MessageAttributes, delay: delay, sender: q.sim.callerID(c.keys)}
	if trace := e.MessageSystemAttributes["AWSTraceHeader"].StringValue; trace != nil {
		out.trace = *trace
	}
	m := q.store(out, c.fx)
	return sqsStored{
		MessageId: m.id, MD5OfMessageBody: m.md5, MD5OfMessageAttributes: m.digest,
		MD5OfMessageSystemAttributes: digestAttributes(e.MessageSystemAttributes),
	}, nil
}

// size is what counts of a message, in bytes.
func (e sqsEntry) size() int {
	n := 0
	if e.MessageBody != nil {
		n = len(*e.MessageBody)
	}
	for name, a := range e.MessageAttributes {
		n += len(name) + len(a.DataType) + len(a.BinaryValue)
		if a.StringValue != nil {
			n += len(*a.StringValue)
		}
	}
	return n
}

func (e sqsEntry) check(q *sqsQueue) (delay time.Duration, bad *awsError) {
	if e.MessageBody == nil || *e.MessageBody == "" {
		return 0, errSQSMissing("MessageBody")
	}
	if n, ok := firstBad(*e.MessageBody); !ok {
		return 0, errSQSPlain(400, "InvalidMessageContents", fmt.Sprintf("Invalid binary character '#x%X' was found in the message body, the set of allowed characters is #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF", n))
	}
	if e.size() > q.cfg.MaxMessageSize {
		return 0, errSQSInvalid("One or more parameters are invalid. Reason: Message must be shorter than %d bytes.", q.cfg.MaxMessageSize)
	}
	for _, a := range []map[string]sqsAttribute{e.MessageAttributes, e.MessageSystemAttributes} {
		if bad := checkAttributes(a); bad != nil {
			return 0, bad
		}
	}
	n, bad := sqsInRange("DelaySeconds", e.DelaySeconds, int(q.delay/time.Second), 0, maxSQSDelay, "DelaySeconds must be >= 0 and <= 900.")
	return seconds(n), bad
}

// firstBad gives the first character that a body may not have.
func firstBad(body string) (rune, bool) {
	for i, r := range body {
		switch {
		case r == '\t' || r == '\n' || r == '\r' || r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFC || r >= 0x10000:
		case r == utf8.RuneError:
			if _, size := utf8.DecodeRuneInString(body[i:]); size == 1 {
				return rune(body[i]), false
			}
		default:
			return r, false
		}
	}
	return 0, true
}

var sqsDataType = regexp.MustCompile(`^(String|Number|Binary)(\..+)?$`)

func checkAttributes(all map[string]sqsAttribute) *awsError {
	if n := len(all); n > maxSQSAttributes {
		return errSQSInvalid("Number of message attributes [%d] exceeds the allowed maximum [%d].", n, maxSQSAttributes)
	}
	for name, a := range all {
		empty := (a.StringValue == nil || *a.StringValue == "") && len(a.BinaryValue) == 0
		switch {
		case !sqsDataType.MatchString(a.DataType):
			return errSQSInvalid("The type of message (user) attribute '%s' is invalid. You must use only the following supported type prefixes: Binary, Number, String.", name)
		case empty || strings.HasPrefix(a.DataType, "Binary") != (a.StringValue == nil):
			return errSQSInvalid("The message (user) attribute '%s' must contain a non-empty message attribute value of type '%s'.", name, a.DataType)
		}
	}
	return nil
}

// sqsURL answers GetQueueUrl and CreateQueue.
type sqsURL struct{ QueueUrl string }

func (s *Simulator) sqsGetQueueURL(c *awsCall) (awsAnswer, *awsError) {
	in, bad := c.sqsRequest()
	switch {
	case bad != nil:
		return nil, bad
	case in.QueueName == "":
		return nil, errSQSMissing("QueueName")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sqs[in.QueueName] == nil || cmp.Or(in.QueueOwnerAWSAccountId, s.account) != s.account {
		return nil, errSQSNoQueue
	}
	return &sqsURL{s.queueURL(c, in.QueueName)}, nil
}

func (s *Simulator) sqsCreate(c *awsCall) (awsAnswer, *awsError) {
	in, bad := c.sqsRequest()
	switch {
	case bad != nil:
		return nil, bad
	case in.QueueName == "":
		return nil, errSQSMissing("QueueName")
	case len(in.QueueName) > maxSQSName || !sqsNamePattern.MatchString(in.QueueName):
		return nil, errSQSInvalid("Can only include alphanumeric characters, hyphens, or underscores. 1 to 80 in length")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.sqs[in.QueueName]; q != nil {
		for name, value := range q.attributes() {
			if asked, there := in.Attributes[name]; there && asked != value {
				return nil, errSQSQueueExists(name)
			}
		}
		return &sqsURL{s.queueURL(c, in.QueueName)}, nil
	}
	if gone, there := s.sqsDeleted[in.QueueName]; there && time.Since(gone) < sqsQuiet {
		return nil, errSQS(400, "QueueDeletedRecently", "You must wait 60 seconds after deleting a queue before you can create another with the same name.")
	}
	q := s.newSQSQueue(Scenario{Provider: providerAWS, Queues: []QueueConfig{{Name: in.QueueName}}}.withDefaults().Queues[0])
	q.more["SqsManagedSseEnabled"] = "true"
	if bad := q.configure(in.Attributes); bad != nil {
		return nil, bad
	}
	q.tags = in.Tags
	s.sqs[in.QueueName] = q
	return &sqsURL{s.queueURL(c, in.QueueName)}, nil
}

// sqsAttributes answers GetQueueAttributes.
type sqsAttributes struct {
	Attributes sqsTexts `xml:"Attribute" json:",omitempty"`
}

func (s *Simulator) sqsGetAttributes(c *awsCall) (awsAnswer, *awsError) {
	return s.onQueue(c, func(q *sqsQueue, in sqsRequest) (awsAnswer, *awsError) {
		all, out := q.attributes(), sqsTexts{}
		for _, name := range in.AttributeNames {
			_, counts := sqsNumbers[name]
			switch value, there := all[name]; {
			case name == "All":
				maps.Copy(out, all)
			case there:
				out[name] = value
			case !counts && !slices.Contains(sqsOtherAttributes, name):
				return nil, errSQSPlain(400, "InvalidAttributeName", "Unknown Attribute "+name+".")
			}
		}
		return &sqsAttributes{out}, nil
	})
}

// sqsNumbers are the attributes that are numbers, and their bounds.
var sqsNumbers = map[string]struct{ low, high int }{
	"VisibilityTimeout":             {0, maxSQSSeconds},
	"DelaySeconds":                  {0, maxSQSDelay},
	"MaximumMessageSize":            {minMessageSize, maxSQSMessage},
	"MessageRetentionPeriod":        {int(minRetention / time.Second), int(maxSQSRetention / time.Second)},
	"ReceiveMessageWaitTimeSeconds": {0, int(maxSQSWait / time.Second)},
}

// sqsOtherAttributes can be set too, and have no meaning here, but for the first.
var sqsOtherAttributes = []string{"RedrivePolicy", "RedriveAllowPolicy", "Policy", "SqsManagedSseEnabled", "KmsMasterKeyId", "KmsDataKeyReusePeriodSeconds"}

// redrivePolicy is the attribute RedrivePolicy.
type redrivePolicy struct {
	Target string      `json:"deadLetterTargetArn"`
	Max    json.Number `json:"maxReceiveCount"`
}

// attributes are all that the queue has, as texts.
func (q *sqsQueue) attributes() sqsTexts {
	in := func(d time.Duration) string { return strconv.Itoa(int(d / time.Second)) }
	out := sqsTexts{
		"QueueArn": q.arn(), "CreatedTimestamp": strconv.FormatInt(q.sim.cloudTime(q.created).Unix(), 10),
		"LastModifiedTimestamp": strconv.FormatInt(q.sim.cloudTime(q.modified).Unix(), 10),
		"VisibilityTimeout":     in(q.cfg.VisibilityTimeout), "DelaySeconds": in(q.delay), "MaximumMessageSize": strconv.Itoa(q.cfg.MaxMessageSize),
		"MessageRetentionPeriod": in(q.cfg.Retention), "ReceiveMessageWaitTimeSeconds": in(q.cfg.PollingWait),
		"ApproximateNumberOfMessages": strconv.Itoa(q.ready.Len()), "ApproximateNumberOfMessagesNotVisible": strconv.Itoa(q.nHidden),
		"ApproximateNumberOfMessagesDelayed": strconv.Itoa(q.nDelayed),
	}
	maps.Copy(out, q.more)
	if p := q.cfg.DlqPolicy; p.DeadLetterTargetQueue != "" {
		text, _ := json.Marshal(redrivePolicy{q.sim.awsARN("sqs", p.DeadLetterTargetQueue), json.Number(strconv.Itoa(p.MaxReceiveCount))})
		out["RedrivePolicy"] = string(text)
	}
	return out
}

func (s *Simulator) sqsSetAttributes(c *awsCall) (awsAnswer, *awsError) {
	return s.onQueue(c, func(q *sqsQueue, in sqsRequest) (awsAnswer, *awsError) {
		if len(in.Attributes) == 0 {
			return nil, errSQSMissing("Attribute.Name")
		}
		bad := q.configure(in.Attributes)
		if bad == nil {
			q.modified = time.Now()
			q.armExpiry()
		}
		return nil, bad
	})
}

// configure sets attributes, all or none.
func (q *sqsQueue) configure(attributes map[string]string) *awsError {
	cfg, delay, more := q.cfg, q.delay, maps.Clone(q.more)
	for _, name := range slices.Sorted(maps.Keys(attributes)) {
		value := attributes[name]
		if bounds, ok := sqsNumbers[name]; ok {
			n, err := strconv.Atoi(value)
			if err != nil || n < bounds.low || n > bounds.high {
				return errSQSPlain(400, "InvalidAttributeValue", "Invalid value for the parameter "+name+".")
			}
			switch name {
			case "VisibilityTimeout":
				cfg.VisibilityTimeout = seconds(n)
			case "DelaySeconds":
				delay = seconds(n)
			case "MaximumMessageSize":
				cfg.MaxMessageSize = n
			case "MessageRetentionPeriod":
				cfg.Retention = seconds(n)
			case "ReceiveMessageWaitTimeSeconds":
				cfg.PollingWait = seconds(n)
			}
			continue
		}
		switch {
		case !slices.Contains(sqsOtherAttributes, name):
			return errSQSPlain(400, "InvalidAttributeName", "Unknown Attribute "+name+".")
		case name == "RedrivePolicy":
			policy, bad := q.parseRedrive(value)
			if bad != nil {
				return bad
			}
			cfg.DlqPolicy = policy
		case value == "":
			delete(more, name)
		default:
			more[name] = value
		}
	}
	q.cfg, q.delay, q.more = cfg, delay, more
	return nil
}

// parseRedrive reads a RedrivePolicy; empty: there is to be none.
func (q *sqsQueue) parseRedrive(text string) (DlqPolicy, *awsError) {
	if text == "" {
		return DlqPolicy{}, nil
	}
	refuse := func(reason string) (DlqPolicy, *awsError) {
		return DlqPolicy{}, errSQSInvalid("Value %s for parameter RedrivePolicy is invalid. Reason: %s", text, reason)
	}
	var p redrivePolicy
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return refuse("Redrive policy is not a valid JSON map.")
	}
	switch {
	case p.Target == "":
		return refuse("Redrive policy does not contain mandatory attribute: deadLetterTargetArn.")
	case p.Max == "":
		return refuse("Redrive policy does not contain mandatory attribute: maxReceiveCount.")
	}
	n, err := strconv.Atoi(string(p.Max))
	if err != nil || n < 1 || n > 1000 {
		return refuse(fmt.Sprintf("Invalid value for maxReceiveCount: %s, valid values are from 1 to 1000 both inclusive.", p.Max))
	}
	name, ours := strings.CutPrefix(p.Target, q.sim.awsARN("sqs", ""))
	if !ours || q.sim.sqs[name] == nil {
		return refuse("Dead letter target does not exist.")
	}
	return DlqPolicy{DeadLetterTargetQueue: name, MaxReceiveCount: n}, nil
}

// sqsQueues answers ListQueues.
type sqsQueues struct {
	QueueUrls []string `xml:"QueueUrl" json:",omitempty"`
	NextToken string   `xml:",omitempty" json:",omitempty"`
}

func (s *Simulator) sqsList(c *awsCall) (awsAnswer, *awsError) {
	in, bad := c.sqsRequest()
	if bad != nil {
		return nil, bad
	}
	most, bad := sqsInRange("MaxResults", in.MaxResults, 1000, 1, 1000, "MaxResults must be an integer between 1 and 1000.")
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &sqsQueues{}
	for _, name := range slices.Sorted(maps.Keys(s.sqs)) {
		if !strings.HasPrefix(name, in.QueueNamePrefix) || name < in.NextToken {
			continue
		}
		if len(out.QueueUrls) == most {
			if in.MaxResults != nil {
				out.NextToken = name
			}
			break
		}
		out.QueueUrls = append(out.QueueUrls, s.queueURL(c, name))
	}
	return out, nil
}

func (s *Simulator) sqsPurge(c *awsCall) (awsAnswer, *awsError) {
	return s.onQueue(c, func(q *sqsQueue, _ sqsRequest) (awsAnswer, *awsError) {
		if !q.purged.IsZero() && time.Since(q.purged) < sqsQuiet {
			return nil, errSQS(403, "PurgeQueueInProgress", "Only one PurgeQueue operation on "+q.cfg.Name+" is allowed every 60 seconds.")
		}
		q.purged = time.Now()
		q.clear()
		return nil, nil
	})
}

func (s *Simulator) sqsDeleteQueue(c *awsCall) (awsAnswer, *awsError) {
	return s.onQueue(c, func(q *sqsQueue, _ sqsRequest) (awsAnswer, *awsError) {
		s.dropSQS(q)
		return nil, nil
	})
}

// sendSQS checks a message of the control API and sends it. The caller holds s.mu.
func (s *Simulator) sendSQS(queue, body string) (*sqsMessage, error) {
	q := s.sqs[queue]
	if q == nil {
		return nil, notFound("queue", queue, slices.Sorted(maps.Keys(s.sqs)))
	}
	e := sqsEntry{MessageBody: &body}
	delay, bad := e.check(q)
	if bad != nil {
		return nil, badInput("%s", bad.message)
	}
	return q.send(outgoingSQS{body: body, delay: delay, sender: "AIDAUSHERCLOUD000000"}), nil
}
