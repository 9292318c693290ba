package simulator

import (
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"encoding/base64"
	"encoding/hex"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxMNSBody bounds what is read of a request: a batch of 64 KB, escaped, in its XML.
const maxMNSBody = 1 << 20

// requestWindow is how far a request's time may be off (MNS and RPC alike).
const requestWindow = 15 * time.Minute

// mnsCall is one request, routed but not yet checked.
type mnsCall struct {
	r      *http.Request
	body   []byte
	action string
	queue  string
	topic  string
	// subscription is one of topic's.
	subscription string
	query        map[string]string
	refused      *mnsError // the route itself is wrong
	requestID    string
}

type mnsOperation func(*Simulator, context.Context, *mnsCall, effects) (*response, *mnsError)

var mnsOperations = map[string]mnsOperation{
	"SendMessage":             (*Simulator).sendMessage,
	"BatchSendMessage":        (*Simulator).batchSendMessage,
	"ReceiveMessage":          (*Simulator).receiveMessage,
	"BatchReceiveMessage":     (*Simulator).receiveMessage,
	"PeekMessage":             (*Simulator).peekMessage,
	"BatchPeekMessage":        (*Simulator).peekMessage,
	"DeleteMessage":           (*Simulator).deleteMessage,
	"BatchDeleteMessage":      (*Simulator).batchDeleteMessage,
	"ChangeMessageVisibility": (*Simulator).changeMessageVisibility,
	"CreateQueue":             (*Simulator).createQueue,
	"SetQueueAttributes":      (*Simulator).setQueueAttributes,
	"GetQueueAttributes":      (*Simulator).getQueueAttributes,
	"DeleteQueue":             (*Simulator).deleteQueue,
	"ListQueue":               (*Simulator).listQueue,

	"CreateTopic":               (*Simulator).createTopic,
	"SetTopicAttributes":        (*Simulator).setTopicAttributes,
	"GetTopicAttributes":        (*Simulator).getTopicAttributes,
	"DeleteTopic":               (*Simulator).deleteTopic,
	"ListTopic":                 (*Simulator).listTopic,
	"PublishMessage":            (*Simulator).publishMessage,
	"Subscribe":                 (*Simulator).subscribeTopic,
	"SetSubscriptionAttributes": (*Simulator).setSubscriptionAttributes,
	"GetSubscriptionAttributes": (*Simulator).getSubscriptionAttributes,
	"Unsubscribe":               (*Simulator).unsubscribe,
	"ListSubscriptionByTopic":   (*Simulator).listSubscriptions,
}

// serveMNS answers one request of MNS 2015-06-06.
func (s *Simulator) serveMNS(w http.ResponseWriter, r *http.Request) {
	c := &mnsCall{r: r, requestID: randomHex(24)}
	body, err := readBody(r, maxMNSBody)
	if err != nil {
		s.writeMNS(w, c.requestID, s.mnsFailure(errMalformedXML, c.requestID))
		return
	}
	c.body = body
	c.route()
	fx := s.interfere(r.Context(), "mns", c.action)
	var res *response
	if e := mnsFault(fx.kind); e != nil {
		s.countRefusal("mns", c.action, e.code)
		res = s.mnsFailure(e, c.requestID)
	} else {
		res = s.answerMNS(r.Context(), c, fx)
	}
	if fx.kind == FaultDropAfterEffect {
		panic(http.ErrAbortHandler)
	}
	s.writeMNS(w, c.requestID, res)
}

func (s *Simulator) answerMNS(ctx context.Context, c *mnsCall, fx effects) *response {
	bad := s.checkMNS(c.r, c.body)
	if bad == nil {
		bad = c.refused
	}
	if bad == nil {
		bad = s.checkMNSPolicy(c)
	}
	if bad == nil {
		var res *response
		if res, bad = mnsOperations[c.action](s, ctx, c, fx); bad == nil {
			return res
		}
	}
	s.countRefusal("mns", c.action, bad.code)
	return s.mnsFailure(bad, c.requestID)
}

func mnsFault(k FaultKind) *mnsError {
	switch k {
	case Fault5xx:
		return errMNSInternal
	case FaultThrottle:
		return errTooManyRequests
	case FaultDenied:
		return errMNSDenied
	}
	return nil
}

// route finds the operation that the method, the path and the query stand for.
func (c *mnsCall) route() {
	c.query, c.refused = parseMNSQuery(c.r.URL.RawQuery)
	parts := strings.Split(strings.TrimPrefix(c.r.URL.Path, "/"), "/")
	switch {
	case c.refused != nil:
	case parts[0] == "topics":
		c.routeTopics(parts)
	case parts[0] != "queues" || len(parts) > 3 || len(parts) == 3 && parts[2] != "messages":
		c.refused = errRequestURL
	case len(parts) == 1 || len(parts) == 2 && parts[1] == "":
		c.pick("GET", "ListQueue")
	case len(parts) == 2:
		c.queue = parts[1]
		c.routeQueue()
	default:
		c.queue = parts[1]
		c.routeMessages()
	}
	if c.action == "" && c.refused == nil {
		c.refused = errRequestURL
	}
}

func (c *mnsCall) pick(method, action string, allowed ...string) {
	if c.r.Method != method {
		return
	}
	c.action = action
	for name := range c.query {
		if !slices.Contains(allowed, name) {
			c.refused = errQueryString(name)
			// The service itself fails on these two in any other case.
			if strings.EqualFold(name, "waitseconds") || strings.EqualFold(name, "numOfMessages") {
				c.refused = errMNSInternal
			}
		}
	}
}

func (c *mnsCall) routeQueue() {
	c.pick("GET", "GetQueueAttributes")
	c.pick("DELETE", "DeleteQueue")
	if _, ok := c.query["metaoverride"]; ok {
		c.pick("PUT", "SetQueueAttributes", "metaoverride")
	} else {
		c.pick("PUT", "CreateQueue")
	}
}

func (c *mnsCall) routeMessages() {
	_, batch := c.query["numOfMessages"]
	_, peek := c.query["peekonly"]
	_, handle := c.parameter("ReceiptHandle")
	switch {
	case c.r.Method == "POST" && rootName(c.body) == "Messages":
		c.pick("POST", "BatchSendMessage")
	case c.r.Method == "POST":
		c.pick("POST", "SendMessage")
	case peek && batch:
		c.pick("GET", "BatchPeekMessage", "peekonly", "numOfMessages")
	case peek:
		c.pick("GET", "PeekMessage", "peekonly")
	case c.r.Method == "GET" && batch:
		c.pick("GET", "BatchReceiveMessage", "numOfMessages", "waitseconds")
	case c.r.Method == "GET":
		c.pick("GET", "ReceiveMessage", "waitseconds")
	case c.r.Method == "DELETE" && !handle && len(c.body) > 0:
		c.pick("DELETE", "BatchDeleteMessage")
	case c.r.Method == "DELETE":
		c.pick("DELETE", "DeleteMessage", "ReceiptHandle", "receiptHandle")
	case c.r.Method == "PUT":
		c.pick("PUT", "ChangeMessageVisibility", "ReceiptHandle", "receiptHandle", "VisibilityTimeout", "visibilityTimeout")
	}
}

// parameter reads a query item whose first letter clients write in either case.
func (c *mnsCall) parameter(name string) (string, bool) {
	if v, ok := c.query[name]; ok {
		return v, true
	}
	v, ok := c.query[strings.ToLower(name[:1])+name[1:]]
	return v, ok
}

// checkMNS verifies headers, time, key and signature, then the body's digest.
func (s *Simulator) checkMNS(r *http.Request, body []byte) *mnsError {
	auth := r.Header.Get("Authorization")
	date := r.Header.Get("x-mns-date")
	if date == "" {
		date = r.Header.Get("Date")
	}
	switch {
	case auth == "":
		return errNoAuth
	case date == "":
		return errNoDate
	case r.Header.Get("x-mns-version") != mnsVersion:
		return errNoVersion
	}
	sent, err := http.ParseTime(date)
	if err != nil {
		return errBadDate
	}
	if bad := s.checkMNSSignature(r, auth, date, sent); bad != nil {
		return bad
	}
	if off := s.cloudTime(time.Now()).Sub(sent); off > requestWindow || off < -requestWindow {
		return errTimeExpired
	}
	if digest := r.Header.Get("Content-MD5"); digest != "" && !digestFits(digest, body) {
		return errDigest
	}
	return nil
}

func (s *Simulator) checkMNSSignature(r *http.Request, auth, date string, sent time.Time) *mnsError {
	id, signature := "", ""
	var sign func(secret string) string
	if text, ok := strings.CutPrefix(auth, "MNS "); ok {
		if id, signature, ok = strings.Cut(text, ":"); !ok {
			return errBadAuth
		}
		sign = func(secret string) string { return signMNS(secret, r.Method, requestTarget(r), date, r.Header) }
	} else if text, ok := strings.CutPrefix(auth, "MNS4-HMAC-SHA256 "); ok {
		var scope string
		if id, scope, signature, ok = parseMNSV4(text); !ok {
			return errBadAuth
		}
		sign = func(secret string) string {
			return signMNSV4(secret, scope, r.Method, requestTarget(r), sent, r.Header)
		}
	} else {
		return errBadAuth
	}
	keys := s.accessKey(id)
	switch {
	case keys == nil:
		return errAccessKey
	case r.Header.Get("security-token") != keys.token:
		return errSecurityToken
	case keys.over():
		return &mnsError{403, s.scenario.STS.ExpiredMNS, "The security token you provided has expired."}
	case !hmac.Equal([]byte(signature), []byte(sign(keys.secret))):
		return errSignature
	}
	return nil
}

// mnsKeyID is the id of the keys that signed a request; checkMNS has found it well-formed.
func mnsKeyID(r *http.Request) string {
	auth := r.Header.Get("Authorization")
	if text, ok := strings.CutPrefix(auth, "MNS "); ok {
		id, _, _ := strings.Cut(text, ":")
		return id
	}
	id, _, _, _ := parseMNSV4(strings.TrimPrefix(auth, "MNS4-HMAC-SHA256 "))
	return id
}

// requestTarget is the path and query exactly as on the request line.
func requestTarget(r *http.Request) string {
	if strings.HasPrefix(r.RequestURI, "/") {
		return r.RequestURI
	}
	// A proxy's absolute form: what follows the host.
	if _, rest, ok := strings.Cut(r.RequestURI, "://"); ok {
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			return rest[i:]
		}
	}
	return r.URL.RequestURI()
}

// signMNS computes a signature of version 2: HMAC-SHA1 over the request as sent.
func signMNS(secret, method, target, date string, h http.Header) string {
	text := method + "\n" + h.Get("Content-MD5") + "\n" + h.Get("Content-Type") + "\n" + date + "\n" + mnsHeaders(h) + target
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// mnsHeaders writes the x-mns- headers, sorted, one a line.
func mnsHeaders(h http.Header) string {
	lines := map[string]string{}
	for name, values := range h {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-mns-") {
			lines[name] = strings.TrimSpace(strings.Join(values, ","))
		}
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(lines)) {
		b.WriteString(name + ":" + lines[name] + "\n")
	}
	return b.String()
}

// digestFits accepts both forms of Content-MD5 in use: Base64 of the 16 bytes, as
// RFC 1864 says, and Base64 of their hexadecimal text, as the Go SDK sends.
func digestFits(digest string, body []byte) bool {
	sum := md5.Sum(body)
	return digest == base64.StdEncoding.EncodeToString(sum[:]) ||
		digest == base64.StdEncoding.EncodeToString([]byte(hex.EncodeToString(sum[:])))
}

// SendMessage puts a body into a queue as a client would.
func (s *Simulator) SendMessage(queue, body string) (messageID string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aws() {
		m, err := s.sendSQS(queue, body)
		if err != nil {
			return "", err
		}
		return m.id, nil
	}
	q := s.queues[queue]
	if q == nil {
		return "", notFound("queue", queue, slices.Sorted(maps.Keys(s.queues)))
	}
	out, bad := sentMessage{MessageBody: &body}.check(q.cfg.MaxMessageSize)
	if bad != nil {
		return "", badInput("%s", bad.message)
	}
	return q.send(out.body, out.priority, q.delay, nil).id, nil
}

// SendDamaged puts a message into a queue whose digest is another's, so that it arrives
// garbled every time.
func (s *Simulator) SendDamaged(queue, body string) (messageID string, err error) {
	id, err := s.SendMessage(queue, body)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aws() {
		s.sqs[queue].ages.Back().Value.(*sqsMessage).md5 = strings.Repeat("0", 32)
		return id, nil
	}
	for e := s.queues[queue].ages.Back(); e != nil; e = e.Prev() {
		if m := e.Value.(*message); m.id == id {
			m.md5 = strings.Repeat("0", 32)
			break
		}
	}
	return id, nil
}

func (s *Simulator) sendMessage(_ context.Context, c *mnsCall, fx effects) (*response, *mnsError) {
	var doc sentMessage
	if bad := parseXML(c.body, "Message", &doc); bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[c.queue]
	if q == nil {
		return nil, errQueueNotExist
	}
	out, bad := doc.check(q.cfg.MaxMessageSize)
	if bad != nil {
		return nil, bad
	}
	d := newXMLDoc("Message")
	d.sent(q.store(out, fx))
	return d.end("Message", http.StatusCreated), nil
}

// store sends a checked message, with what a fault does to it, and returns it and
// its receipt handle, which it has when delayed.
func (q *queue) store(out outgoing, fx effects) (*message, string) {
	if fx.corrupt {
		out.body = garble(out.body)
	}
	if out.delay < 0 {
		out.delay = q.delay
	}
	m := q.send(out.body, out.priority, out.delay, nil)
	if fx.duplicate {
		q.copy(m)
	}
	if m.state == delayed {
		return m, q.sim.handle(m)
	}
	return m, ""
}

func (d *xmlDoc) sent(m *message, handle string) {
	d.text("MessageId", m.id)
	if handle != "" {
		d.text("ReceiptHandle", handle)
	}
	d.text("MessageBodyMD5", m.md5)
}

func (s *Simulator) batchSendMessage(_ context.Context, c *mnsCall, fx effects) (*response, *mnsError) {
	var doc sentMessages
	if bad := parseXML(c.body, "Messages", &doc); bad != nil {
		return nil, bad
	}
	if n := len(doc.Messages); n < 1 || n > maxBatch {
		return nil, errRange("Messages", 1, maxBatch, "")
	}
	total := 0
	for _, m := range doc.Messages {
		if m.MessageBody != nil {
			total += len(*m.MessageBody)
		}
	}
	if total > maxMessageSize {
		return nil, errRange("Messages", 1, maxMessageSize, " bytes")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[c.queue]
	if q == nil {
		return nil, errQueueNotExist
	}
	d := newXMLDoc("Messages")
	status := http.StatusCreated
	for _, m := range doc.Messages {
		d.open("Message")
		if out, bad := m.check(q.cfg.MaxMessageSize); bad != nil {
			// The status of a partial failure is documented only as "not 201".
			status = http.StatusInternalServerError
			d.text("ErrorCode", bad.code)
			d.text("ErrorMessage", bad.message)
		} else {
			d.sent(q.store(out, fx))
		}
		d.close("Message")
	}
	return d.end("Messages", status), nil
}

func (s *Simulator) receiveMessage(ctx context.Context, c *mnsCall, fx effects) (*response, *mnsError) {
	n, bad := c.batchSize()
	if bad != nil {
		return nil, bad
	}
	wait := time.Duration(-1)
	if text, ok := c.query["waitseconds"]; ok {
		sec, ok := parseRange(text, 0, int64(maxPollingWait/time.Second))
		if !ok {
			return nil, errRange("waitseconds", 0, int64(maxPollingWait/time.Second), " seconds")
		}
		wait = time.Duration(sec) * time.Second
	}
	got, bad := s.receive(ctx, c.queue, n, wait, fx)
	if bad != nil {
		return nil, bad
	}
	if got == nil {
		panic(http.ErrAbortHandler) // the client is gone
	}
	return c.deliver(got, false), nil
}

func (c *mnsCall) batchSize() (int, *mnsError) {
	text, ok := c.query["numOfMessages"]
	if !ok {
		return 1, nil
	}
	n, ok := parseRange(text, 1, maxBatch)
	if !ok {
		return 0, errRange("numOfMessages", 1, maxBatch, "")
	}
	return int(n), nil
}

func (c *mnsCall) deliver(got []delivery, peek bool) *response {
	if !strings.HasPrefix(c.action, "Batch") {
		d := newXMLDoc("Message")
		d.delivery(got[0], peek)
		return d.end("Message", http.StatusOK)
	}
	d := newXMLDoc("Messages")
	for _, m := range got {
		d.open("Message")
		d.delivery(m, peek)
		d.close("Message")
	}
	return d.end("Messages", http.StatusOK)
}

func (s *Simulator) peekMessage(_ context.Context, c *mnsCall, fx effects) (*response, *mnsError) {
	n, bad := c.batchSize()
	if bad != nil {
		return nil, bad
	}
	if !strings.EqualFold(c.query["peekonly"], "true") {
		return nil, errQueryString("peekonly")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[c.queue]
	if q == nil {
		return nil, errQueueNotExist
	}
	got := s.deliveries(q.peek(n), fx)
	if len(got) == 0 {
		return nil, errMessageNotExist
	}
	return c.deliver(got, true), nil
}

func (s *Simulator) deleteMessage(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	handle, _ := c.parameter("ReceiptHandle")
	if handle == "" {
		return nil, errNoHandle
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[c.queue]
	if q == nil {
		return nil, errQueueNotExist
	}
	if bad := q.delete(handle); bad != nil {
		return nil, bad
	}
	return &response{status: http.StatusNoContent}, nil
}

func (q *queue) delete(handle string) *mnsError {
	m, bad := q.find(handle)
	if bad != nil {
		return bad
	}
	q.remove(m)
	q.record(MessageDeleted, m)
	return nil
}

func (s *Simulator) batchDeleteMessage(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	var doc receiptHandles
	if bad := parseXML(c.body, "ReceiptHandles", &doc); bad != nil {
		return nil, bad
	}
	if n := len(doc.Handles); n < 1 || n > maxBatch {
		return nil, errRange("ReceiptHandles", 1, maxBatch, "")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[c.queue]
	if q == nil {
		return nil, errQueueNotExist
	}
	d := newXMLDoc("Errors")
	failed := false
	for _, handle := range doc.Handles {
		if bad := q.delete(handle); bad != nil {
			failed = true
			d.open("Error")
			d.text("ErrorCode", bad.code)
			d.text("ErrorMessage", bad.message)
			d.text("ReceiptHandle", handle)
			d.close("Error")
		}
	}
	if !failed {
		return &response{status: http.StatusNoContent}, nil
	}
	return d.end("Errors", http.StatusNotFound), nil
}

func (s *Simulator) changeMessageVisibility(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	handle, _ := c.parameter("ReceiptHandle")
	timeout, given := c.parameter("VisibilityTimeout")
	switch {
	case handle == "":
		return nil, errNoHandle
	case !given:
		return nil, errNoVisibility
	}
	sec, ok := parseRange(timeout, 1, int64(maxVisibility/time.Second))
	if !ok {
		return nil, errRange("VisibilityTimeout", 1, int64(maxVisibility/time.Second), " seconds")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[c.queue]
	if q == nil {
		return nil, errQueueNotExist
	}
	m, bad := q.find(handle)
	if bad != nil {
		return nil, bad
	}
	if m.state == delayed {
		return nil, errReceiptHandle // the handle of a send only deletes
	}
	q.extend(m, time.Duration(sec)*time.Second)
	d := newXMLDoc("ChangeVisibility")
	d.text("ReceiptHandle", s.handle(m))
	d.number("NextVisibleTime", s.cloudTime(m.nextVisible).UnixMilli())
	return d.end("ChangeVisibility", http.StatusOK), nil
}

// queueDocument reads the attributes in the body; an empty body has none.
func (c *mnsCall) queueDocument() (queueDocument, *mnsError) {
	var doc queueDocument
	if len(c.body) == 0 {
		return doc, nil
	}
	return doc, parseXML(c.body, "Queue", &doc)
}

func (s *Simulator) createQueue(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	switch {
	case len(c.queue) > maxQueueName:
		return nil, errQueueNameLength
	case !queueNamePattern.MatchString(c.queue):
		return nil, errQueueName
	}
	doc, bad := c.queueDocument()
	if bad != nil {
		return nil, bad
	}
	fresh := Scenario{Queues: []QueueConfig{{Name: c.queue}}}.withDefaults().Queues[0]
	cfg, delay, logging, bad := doc.apply(fresh, 0, false, s.scenario.Lax)
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.queues[c.queue]; old != nil {
		if old.cfg == cfg && old.delay == delay && old.logging == logging {
			return &response{status: http.StatusNoContent}, nil
		}
		return nil, errQueueExists
	}
	q := s.newQueue(cfg)
	q.delay, q.logging = delay, logging
	s.queues[c.queue] = q
	location := s.mnsHost() + "/queues/" + c.queue
	return &response{status: http.StatusCreated, header: http.Header{"Location": {location}}}, nil
}

func (s *Simulator) setQueueAttributes(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	doc, bad := c.queueDocument()
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[c.queue]
	if q == nil {
		return nil, errQueueNotExist
	}
	cfg, delay, logging, bad := doc.apply(q.cfg, q.delay, q.logging, s.scenario.Lax)
	if bad != nil {
		return nil, bad
	}
	q.cfg, q.delay, q.logging, q.modified = cfg, delay, logging, time.Now()
	q.armExpiry()
	return &response{status: http.StatusNoContent}, nil
}

func (s *Simulator) getQueueAttributes(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[c.queue]
	if q == nil {
		return nil, errQueueNotExist
	}
	d := newXMLDoc("Queue")
	d.attributes(q)
	return d.end("Queue", http.StatusOK), nil
}

func (d *xmlDoc) attributes(q *queue) {
	d.text("QueueName", q.cfg.Name)
	d.number("CreateTime", q.created.Unix())
	d.number("LastModifyTime", q.modified.Unix())
	d.number("DelaySeconds", int64(q.delay/time.Second))
	d.number("MaximumMessageSize", int64(q.cfg.MaxMessageSize))
	d.number("MessageRetentionPeriod", int64(q.cfg.Retention/time.Second))
	d.number("VisibilityTimeout", int64(q.cfg.VisibilityTimeout/time.Second))
	d.number("PollingWaitSeconds", int64(q.cfg.PollingWait/time.Second))
	d.number("ActiveMessages", int64(q.nActive))
	d.number("InactiveMessages", int64(q.nHidden))
	d.number("DelayMessages", int64(q.nDelayed))
	d.text("LoggingEnabled", strconv.FormatBool(q.logging))
}

func (s *Simulator) deleteQueue(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.queues[c.queue]; q != nil {
		s.dropQueue(q)
	}
	return &response{status: http.StatusNoContent}, nil
}

func (s *Simulator) listQueue(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	limit := int64(1000)
	if text := c.r.Header.Get("x-mns-ret-number"); text != "" {
		n, ok := parseRange(text, 1, 1000)
		if !ok {
			return nil, errRange("x-mns-ret-number", 1, 1000, "")
		}
		limit = n
	}
	prefix, marker := c.r.Header.Get("x-mns-prefix"), c.r.Header.Get("x-mns-marker")
	withMeta := strings.EqualFold(c.r.Header.Get("x-mns-with-meta"), "true")
	s.mu.Lock()
	defer s.mu.Unlock()
	d := newXMLDoc("Queues")
	listed := int64(0)
	for _, name := range slices.Sorted(maps.Keys(s.queues)) {
		if !strings.HasPrefix(name, prefix) || name < marker {
			continue
		}
		if listed == limit {
			d.text("NextMarker", name)
			break
		}
		listed++
		d.open("Queue")
		d.text("QueueURL", s.mnsHost()+"/queues/"+url.PathEscape(name))
		if withMeta {
			d.attributes(s.queues[name])
		}
		d.close("Queue")
	}
	return d.end("Queues", http.StatusOK), nil
}
