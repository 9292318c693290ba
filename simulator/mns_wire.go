package simulator

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

const (
	mnsVersion   = "2015-06-06"
	mnsNamespace = "http://mns.aliyuncs.com/doc/v1/"
	maxBatch     = 16
	maxQueueName = 120
	maxDelay     = 7 * 24 * time.Hour
)

// mnsError is a refusal with the service's own words, its misspellings too.
type mnsError struct {
	status        int
	code, message string
}

var (
	errMessageNotExist = &mnsError{404, "MessageNotExist", "Message not exist."}
	errQueueNotExist   = &mnsError{404, "QueueNotExist", "The queue name you provided is not exist."}
	errTopicNotExist   = &mnsError{404, "TopicNotExist", "The topic name you provided is not exist."}
	errReceiptHandle   = &mnsError{400, "ReceiptHandleError", "The receipt handle you provide is not valid."}
	errMalformedXML    = &mnsError{400, "MalformedXML", "The XML you provided was not well-formed."}
	errDigest          = &mnsError{400, "InvalidDegist", "The Content-MD5 you specified is invalid."}
	errRequestURL      = &mnsError{400, "InvalidRequestURL", "Http request URL format invalid."}
	errNoAuth          = &mnsError{400, "MissingAuthorizationHeader", "Authorization header is required."}
	errBadAuth         = &mnsError{400, "InvalidAuthorizationHeader", "The Authorization header format is invalid."}
	errNoDate          = &mnsError{400, "MissingDateHeader", "Date header is required."}
	errBadDate         = &mnsError{400, "InvalidDateHeader", "The Date header format is invalid."}
	errNoVersion       = &mnsError{400, "MissingVersionHeader", "x-mns-version header is required."}
	errNoHandle        = &mnsError{400, "MissingReceiptHandle", "ReceiptHandle is required."}
	errNoVisibility    = &mnsError{400, "MissingVisibilityTimeout", "VisibilityTimeout is required."}
	errAccessKey       = &mnsError{403, "InvalidAccessKeyId", "The AccessKey Id you provided is not exist."}
	errSecurityToken   = &mnsError{403, "InvalidSecurityToken", "The security token you provided is not valid."}
	errSignature       = &mnsError{403, "SignatureDoesNotMatch", "The request signature we calculated does not match the signature you provided. Check your key and signing method."}
	errMNSDenied       = &mnsError{403, "AccessDenied", "The OwnerId that your Access Key Id associated to is forbidden for this operation."}
	errTimeExpired     = &mnsError{408, "TimeExpired", "The http request you sent is expired."}
	errQueueExists     = &mnsError{409, "QueueAlreadyExist", "The queue you want to create is already exist."}
	errQueueName       = &mnsError{400, "InvalidQueueName", "The queue name you provided is invalid."}
	errQueueNameLength = &mnsError{400, "QueueNameLengthError", "The length of the queue name should between 1 and 120."}
	errTooManyRequests = &mnsError{429, "TooManyRequests", "The request is denied by cluster flow limiter for too many requests."}
	errMNSInternal     = &mnsError{500, "InternalError", "Interal error."}
	errXMLSchema       = &mnsError{400, "InvalidArgument", "The XML you provided does not match the schema of the operation."}
)

func errRange(name string, low, high int64, unit string) *mnsError {
	return &mnsError{400, "InvalidArgument", fmt.Sprintf("The value of %s should between %d and %d%s.", name, low, high, unit)}
}

func errQueryString(item string) *mnsError {
	return &mnsError{400, "InvalidQueryString", fmt.Sprintf("Http request URL contains invalid querystring item %q.", item)}
}

// xmlDoc writes a document by hand: local names, escaped text, no indentation.
type xmlDoc struct{ bytes.Buffer }

func newXMLDoc(root string) *xmlDoc {
	d := &xmlDoc{}
	d.WriteString(`<?xml version="1.0" encoding="UTF-8"?>`)
	d.WriteString("<" + root + ` xmlns="` + mnsNamespace + `">`)
	return d
}

func (d *xmlDoc) open(name string)  { d.WriteString("<" + name + ">") }
func (d *xmlDoc) close(name string) { d.WriteString("</" + name + ">") }

func (d *xmlDoc) text(name, value string) {
	d.open(name)
	xml.EscapeText(d, []byte(value)) // a bytes.Buffer never fails
	d.close(name)
}

func (d *xmlDoc) number(name string, n int64) { d.text(name, strconv.FormatInt(n, 10)) }

// end closes the root and gives the answer.
func (d *xmlDoc) end(root string, status int) *response {
	d.close(root)
	return &response{status: status, body: d.Bytes()}
}

// sentMessage is one <Message> of a send.
type sentMessage struct {
	XMLName      xml.Name
	MessageBody  *string
	DelaySeconds *string
	Priority     *string
}

type sentMessages struct {
	XMLName  xml.Name
	Messages []sentMessage `xml:"Message"`
}

type receiptHandles struct {
	XMLName xml.Name
	Handles []string `xml:"ReceiptHandle"`
}

type queueDocument struct {
	XMLName                xml.Name
	VisibilityTimeout      *string
	PollingWaitSeconds     *string
	MessageRetentionPeriod *string
	MaximumMessageSize     *string
	DelaySeconds           *string
	LoggingEnabled         *string
}

// rootName gives the local name of a document's first element.
func rootName(body []byte) string {
	dec := xml.NewDecoder(bytes.NewReader(body))
	for {
		t, err := dec.Token()
		if err != nil {
			return ""
		}
		if e, ok := t.(xml.StartElement); ok {
			return e.Name.Local
		}
	}
}

// parseXML decodes a document whose root is called name. Namespaces do not matter:
// official clients send the right one, one without its last slash, or none.
func parseXML(body []byte, name string, into any) *mnsError {
	if root := rootName(body); root == "" {
		return errMalformedXML
	} else if root != name {
		return errXMLSchema
	}
	dec := xml.NewDecoder(bytes.NewReader(body))
	if err := dec.Decode(into); err != nil {
		if _, ok := errors.AsType[*xml.SyntaxError](err); ok {
			return errMalformedXML
		}
		return errXMLSchema
	}
	return nil
}

// outgoing is a message to store, checked against the service's limits.
type outgoing struct {
	body     string
	priority int
	delay    time.Duration // negative: the queue's own
}

func (m sentMessage) check(maxSize int) (outgoing, *mnsError) {
	out := outgoing{priority: defaultPriority, delay: -1}
	if m.MessageBody == nil {
		return out, errXMLSchema
	}
	out.body = *m.MessageBody
	if len(out.body) < 1 || len(out.body) > maxSize {
		return out, errRange("MessageBody", 1, int64(maxSize), " bytes")
	}
	if m.DelaySeconds != nil {
		n, ok := parseRange(*m.DelaySeconds, 0, int64(maxDelay/time.Second))
		if !ok {
			return out, errRange("DelaySeconds", 0, int64(maxDelay/time.Second), " seconds")
		}
		out.delay = time.Duration(n) * time.Second
	}
	if m.Priority != nil {
		n, ok := parseRange(*m.Priority, 1, lowestPriority)
		if !ok {
			return out, errRange("Priority", 1, lowestPriority, "")
		}
		out.priority = int(n)
	}
	return out, nil
}

// apply sets on cfg the attributes that the document has.
func (d queueDocument) apply(cfg QueueConfig, delay time.Duration, logging, lax bool) (QueueConfig, time.Duration, bool, *mnsError) {
	retention := int64(minRetention / time.Second)
	if lax {
		retention = 1
	}
	var bad *mnsError
	read := func(name string, text *string, low, high int64, unit string, put func(int64)) {
		if text == nil {
			return
		}
		if n, ok := parseRange(*text, low, high); ok {
			put(n)
		} else if bad == nil {
			bad = errRange(name, low, high, unit)
		}
	}
	seconds := func(to *time.Duration) func(int64) {
		return func(n int64) { *to = time.Duration(n) * time.Second }
	}
	read("VisibilityTimeout", d.VisibilityTimeout, 1, int64(maxVisibility/time.Second), " seconds", seconds(&cfg.VisibilityTimeout))
	read("PollingWaitSeconds", d.PollingWaitSeconds, 0, int64(maxPollingWait/time.Second), " seconds", seconds(&cfg.PollingWait))
	read("MessageRetentionPeriod", d.MessageRetentionPeriod, retention, int64(maxRetention/time.Second), " seconds", seconds(&cfg.Retention))
	read("DelaySeconds", d.DelaySeconds, 0, int64(maxDelay/time.Second), " seconds", seconds(&delay))
	read("MaximumMessageSize", d.MaximumMessageSize, minMessageSize, maxMessageSize, " bytes", func(n int64) { cfg.MaxMessageSize = int(n) })
	if d.LoggingEnabled != nil {
		logging = strings.EqualFold(strings.TrimSpace(*d.LoggingEnabled), "true")
	}
	return cfg, delay, logging, bad
}

func parseRange(text string, low, high int64) (int64, bool) {
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	return n, err == nil && n >= low && n <= high
}

// parseMNSQuery decodes a query without turning + into a space, because receipt
// handles hold + and some clients do not encode it.
func parseMNSQuery(raw string) (map[string]string, *mnsError) {
	q := map[string]string{}
	for item := range strings.SplitSeq(raw, "&") {
		if item == "" {
			continue
		}
		name, value, _ := strings.Cut(item, "=")
		n, err1 := url.PathUnescape(name)
		v, err2 := url.PathUnescape(value)
		if err1 != nil || err2 != nil {
			return nil, errQueryString(item)
		}
		if _, twice := q[n]; twice {
			return nil, errQueryString(n)
		}
		q[n] = v
	}
	return q, nil
}

func (s *Simulator) mnsHost() string {
	return "http://" + s.account + ".mns." + s.scenario.Region + ".aliyuncs.com"
}

func (s *Simulator) mnsFailure(e *mnsError, requestID string) *response {
	d := newXMLDoc("Error")
	d.text("Code", e.code)
	d.text("Message", e.message)
	d.text("RequestId", requestID)
	d.text("HostId", s.mnsHost())
	return d.end("Error", e.status)
}

// writeMNS adds the headers that every answer of the service has.
func (s *Simulator) writeMNS(w http.ResponseWriter, requestID string, res *response) {
	h := w.Header()
	h.Set("Server", "AliyunMQS")
	h.Set("Date", s.cloudTime(time.Now()).UTC().Format(http.TimeFormat))
	h["x-mns-request-id"] = []string{requestID}
	h["x-mns-version"] = []string{mnsVersion}
	if len(res.body) > 0 {
		h.Set("Content-Type", "text/xml;charset=utf-8")
	}
	res.write(w)
}

func (d *xmlDoc) delivery(m delivery, peek bool) {
	d.text("MessageId", m.id)
	if !peek {
		d.text("ReceiptHandle", m.handle)
	}
	d.text("MessageBodyMD5", m.md5)
	d.text("MessageBody", m.body)
	d.number("EnqueueTime", m.enqueued.UnixMilli())
	if !peek {
		d.number("NextVisibleTime", m.nextVisible.UnixMilli())
	}
	d.number("FirstDequeueTime", m.firstDequed.UnixMilli())
	d.number("DequeueCount", int64(m.dequeues))
	d.number("Priority", int64(m.priority))
}
