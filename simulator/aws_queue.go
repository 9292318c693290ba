package simulator

import (
	"container/list"
	"context"
	"crypto/md5"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"maps"
	"slices"
	"strings"
	"time"
)

// sqsQueue is one standard queue of SQS. Unlike one of MNS it gives each receive a time
// hidden and a receipt handle of its own, which prolonging leaves as it is, moves a message
// to its dead-letter queue when a receive would be one too many, and bounds how many are
// received at a time. Every operation on a message is O(1) or O(log n).
type sqsQueue struct {
	sim    *Simulator
	number uint32 // in receipt handles
	cfg    QueueConfig
	delay  time.Duration
	// more are the attributes that the queue keeps without a meaning here, such as Policy.
	more     map[string]string
	tags     map[string]string
	created  time.Time
	modified time.Time
	purged   time.Time

	messages map[uint64]*sqsMessage
	ages     *list.List // of *sqsMessage, oldest first; for retention
	ready    *list.List // of *sqsMessage
	nHidden  int
	nDelayed int
	waiters  *list.List // of *waiter, who waits longest first
	expiry   *entry     // when the oldest message has reached its retention
	deleted  bool
}

type sqsMessage struct {
	id            string
	seq           uint64
	body, md5     string
	attributes    map[string]sqsAttribute
	digest        string // of the attributes; empty: there are none
	trace         string // AWSTraceHeader
	sender        string
	source        string // ARN of the queue that a redrive took it from
	enqueued      time.Time
	stamped       time.Time // enqueued, as the cloud's clock had it
	firstReceived time.Time
	received      time.Time // last
	receives      int
	state         messageState
	visible       time.Time     // when it comes back, while it is hidden
	nonce         uint64        // of the newest receipt handle; 0: it was never received
	place         *list.Element // while active
	age           *list.Element
	wake          *entry
	announces     *action // the lifecycle action that it is the notification of, if any
}

func (s *Simulator) newSQSQueue(cfg QueueConfig) *sqsQueue {
	now := time.Now()
	s.sqsSeq++
	return &sqsQueue{
		sim: s, number: s.sqsSeq, cfg: cfg, created: now, modified: now, more: map[string]string{}, tags: map[string]string{},
		messages: map[uint64]*sqsMessage{}, ages: list.New(), ready: list.New(), waiters: list.New(),
	}
}

// arn names the queue.
func (q *sqsQueue) arn() string { return q.sim.awsARN("sqs", q.cfg.Name) }

// outgoingSQS is a checked message that is to be sent.
type outgoingSQS struct {
	body       string
	attributes map[string]sqsAttribute
	trace      string
	delay      time.Duration
	sender     string
	announces  *action
}

// send stores a message. The caller holds the simulator's mutex, as for all methods here.
func (q *sqsQueue) send(out outgoingSQS) *sqsMessage {
	now := time.Now()
	q.sim.messageSeq++
	sum := md5.Sum([]byte(out.body))
	m := &sqsMessage{
		id: strings.ToLower(newUUID()), seq: q.sim.messageSeq, body: out.body, md5: hex.EncodeToString(sum[:]),
		attributes: out.attributes, digest: digestAttributes(out.attributes), trace: out.trace, sender: out.sender,
		enqueued: now, stamped: q.sim.cloudTime(now), announces: out.announces,
	}
	q.messages[m.seq] = m
	m.age = q.ages.PushBack(m)
	if q.expiry == nil {
		q.armExpiry()
	}
	q.record(MessageSent, m)
	if out.delay > 0 {
		m.state = delayed
		q.nDelayed++
		q.hideUntil(m, now.Add(out.delay))
	} else {
		q.activate(m)
	}
	return m
}

// copy stores the same message a second time, under a new id.
func (q *sqsQueue) copy(m *sqsMessage) {
	q.send(outgoingSQS{body: m.body, attributes: m.attributes, trace: m.trace, sender: m.sender, announces: m.announces})
}

func (q *sqsQueue) record(t EventType, m *sqsMessage) {
	e := Event{Type: t, Queue: q.cfg.Name, MessageID: m.id, Receives: m.receives}
	if m.state == hidden && (t == MessageReceived || t == MessageExtended) {
		e.Until = new(m.visible)
	}
	if a := m.announces; a != nil {
		e.Hook, e.Token, e.Group, e.Activity = a.hook.cfg.ID, a.token, a.hook.group.cfg.ID, a.activity.id
	}
	q.sim.record(e)
}

// activate makes m ready for the next receive and wakes one long poll.
func (q *sqsQueue) activate(m *sqsMessage) {
	m.state, m.wake, m.visible = active, nil, time.Time{}
	m.place = q.ready.PushBack(m)
	q.wakeOne()
}

// hideUntil schedules m's return to the ready ones.
func (q *sqsQueue) hideUntil(m *sqsMessage, t time.Time) {
	m.visible = t
	m.wake = q.sim.clock.at(t, func() { q.show(m) })
}

// show makes a hidden or delayed message visible.
func (q *sqsQueue) show(m *sqsMessage) {
	q.uncount(m)
	q.record(MessageVisible, m)
	q.activate(m)
}

// uncount takes m out of the list or count of its state.
func (q *sqsQueue) uncount(m *sqsMessage) {
	switch m.state {
	case active:
		q.ready.Remove(m.place)
		m.place = nil
	case hidden:
		wasFull := q.full()
		if q.nHidden--; wasFull && q.ready.Len() > 0 {
			q.wakeOne()
		}
	case delayed:
		q.nDelayed--
	}
	q.sim.clock.cancel(m.wake)
	m.wake = nil
}

// remove takes m out of the queue.
func (q *sqsQueue) remove(m *sqsMessage) {
	q.uncount(m)
	q.ages.Remove(m.age)
	delete(q.messages, m.seq)
}

// adopt stores a message that a redrive has taken out of another queue. Its age, its id and
// its count of receives stay.
func (q *sqsQueue) adopt(m *sqsMessage, source string) {
	m.source = source
	q.messages[m.seq] = m
	younger := q.ages.Back()
	for younger != nil && younger.Value.(*sqsMessage).enqueued.After(m.enqueued) {
		younger = younger.Prev()
	}
	if younger == nil {
		m.age = q.ages.PushFront(m)
		q.armExpiry()
	} else {
		m.age = q.ages.InsertAfter(m, younger)
	}
	q.activate(m)
}

// armExpiry schedules the end of the oldest message's retention, which counts from its
// sending, whether it is received or not.
func (q *sqsQueue) armExpiry() {
	q.sim.clock.cancel(q.expiry)
	q.expiry = nil
	oldest := q.ages.Front()
	if oldest == nil {
		return
	}
	at := oldest.Value.(*sqsMessage).enqueued.Add(q.cfg.Retention)
	q.expiry = q.sim.clock.at(at, func() {
		q.expiry = nil
		now := time.Now()
		for e := q.ages.Front(); e != nil; e = q.ages.Front() {
			m := e.Value.(*sqsMessage)
			if m.enqueued.Add(q.cfg.Retention).After(now) {
				break
			}
			q.remove(m)
			q.record(MessageExpired, m)
		}
		q.armExpiry()
	})
}

// deadLetters is the queue that m goes to instead of being received once more; nil: none.
// A target that was deleted takes nothing.
func (q *sqsQueue) deadLetters(m *sqsMessage) *sqsQueue {
	p := q.cfg.DlqPolicy
	if p.DeadLetterTargetQueue == "" || m.receives < p.MaxReceiveCount {
		return nil
	}
	return q.sim.sqs[p.DeadLetterTargetQueue]
}

// full says whether no more may be received at a time.
func (q *sqsQueue) full() bool { return q.nHidden >= q.cfg.MaxInFlight }

// take receives up to n ready messages and hides them for d.
func (q *sqsQueue) take(n int, d time.Duration) []*sqsMessage {
	var got []*sqsMessage
	for now := time.Now(); len(got) < n && q.ready.Len() > 0 && !q.full(); {
		m := q.ready.Front().Value.(*sqsMessage)
		if target := q.deadLetters(m); target != nil {
			q.remove(m)
			q.record(MessageDeadLettered, m)
			target.adopt(m, q.arn())
			continue
		}
		q.uncount(m)
		if m.receives == 0 {
			m.firstReceived = now
		}
		m.receives++
		m.state, m.nonce, m.received = hidden, newNonce(), now
		q.nHidden++
		m.visible = now.Add(d)
		q.record(MessageReceived, m)
		got = append(got, m)
	}
	for _, m := range got {
		if d > 0 {
			q.hideUntil(m, m.visible)
		} else {
			q.show(m)
		}
	}
	return got
}

// extend hides m for d from now, or shows it at once.
func (q *sqsQueue) extend(m *sqsMessage, d time.Duration) {
	q.uncount(m)
	m.state = hidden
	q.nHidden++
	m.visible = time.Now().Add(d)
	q.record(MessageExtended, m)
	if d <= 0 {
		q.show(m)
		return
	}
	q.hideUntil(m, m.visible)
}

// find gives the message of a receipt handle, and whether the handle is its newest. A handle
// of a message that is gone finds nil.
func (q *sqsQueue) find(handle string) (m *sqsMessage, newest bool, bad *awsError) {
	number, seq, nonce, ok := q.sim.parseSQSHandle(handle)
	if !ok || number != q.number {
		return nil, false, errSQSHandle(handle)
	}
	if m = q.messages[seq]; m == nil {
		return nil, false, nil
	}
	return m, m.nonce == nonce, nil
}

// wakeOne wakes the long poll that waits longest.
func (q *sqsQueue) wakeOne() {
	if e := q.waiters.Front(); e != nil {
		w := e.Value.(*waiter)
		q.waiters.Remove(e)
		w.place = nil
		close(w.wake)
	}
}

// wakeAll wakes every long poll: the queue is being deleted or the simulator closed.
func (q *sqsQueue) wakeAll() {
	for q.waiters.Len() > 0 {
		q.wakeOne()
	}
}

// clear removes all messages.
func (q *sqsQueue) clear() {
	for _, m := range q.messages {
		q.remove(m)
	}
	q.armExpiry()
}

// receiveSQS is the long poll: it takes up to n messages, waiting up to wait for the first,
// and hides them for visibility; negative ones are the queue's own. When ctx ends it takes
// nothing. Pick reads the taken ones before anything else may happen to them.
func (s *Simulator) receiveSQS(ctx context.Context, name string, n int, wait, visibility time.Duration, pick func([]*sqsMessage)) *awsError {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.sqs[name]
	if q == nil {
		return errSQSNoQueue
	}
	if wait < 0 {
		wait = q.cfg.PollingWait
	}
	if wait == 0 && q.full() {
		return errSQSOverLimit
	}
	var timeout <-chan time.Time
	for expired := false; ; {
		if q.deleted {
			return errSQSNoQueue
		}
		hide := visibility
		if hide < 0 {
			hide = q.cfg.VisibilityTimeout
		}
		got := q.take(n, hide)
		if len(got) > 0 || wait <= 0 || expired || s.closed {
			pick(got)
			return nil
		}
		if timeout == nil {
			t := time.NewTimer(wait)
			defer t.Stop()
			timeout = t.C
		}
		w := &waiter{wake: make(chan struct{})}
		w.place = q.waiters.PushBack(w)
		s.mu.Unlock()
		select {
		case <-w.wake:
		case <-timeout:
			expired = true
		case <-ctx.Done():
		}
		s.mu.Lock()
		if w.place != nil {
			q.waiters.Remove(w.place)
		}
		if ctx.Err() != nil {
			if w.place == nil && q.ready.Len() > 0 {
				q.wakeOne() // the message that woke us is for somebody else now
			}
			return nil
		}
	}
}

// sqsHandle writes the newest receipt handle of m: opaque text, as long as the service's
// own are, that holds + and / and = now and then. The checksum tells a handle of ours from
// any other text.
func (q *sqsQueue) sqsHandle(m *sqsMessage) string {
	var b [24]byte
	binary.BigEndian.PutUint64(b[0:], m.seq^q.sim.handleKey)
	binary.BigEndian.PutUint64(b[8:], m.nonce)
	binary.BigEndian.PutUint32(b[16:], q.number^uint32(q.sim.handleKey>>32))
	binary.BigEndian.PutUint32(b[20:], crc32.ChecksumIEEE(b[:20])^uint32(q.sim.handleKey))
	noise := sha512.Sum512(b[:])
	return "AQEB" + base64.StdEncoding.EncodeToString(append(b[:], noise[:56]...))
}

func (s *Simulator) parseSQSHandle(text string) (number uint32, seq, nonce uint64, ok bool) {
	coded, ok := strings.CutPrefix(text, "AQEB")
	b, err := base64.StdEncoding.Strict().DecodeString(coded)
	if !ok || err != nil || len(b) != 80 {
		return 0, 0, 0, false
	}
	noise := sha512.Sum512(b[:24])
	if !slices.Equal(b[24:], noise[:56]) || binary.BigEndian.Uint32(b[20:]) != crc32.ChecksumIEEE(b[:20])^uint32(s.handleKey) {
		return 0, 0, 0, false
	}
	return binary.BigEndian.Uint32(b[16:]) ^ uint32(s.handleKey>>32), binary.BigEndian.Uint64(b[0:]) ^ s.handleKey, binary.BigEndian.Uint64(b[8:]), true
}

// sqsAttribute is a message attribute.
type sqsAttribute struct {
	DataType    string
	StringValue *string `json:",omitempty" xml:",omitempty"`
	BinaryValue []byte  `json:",omitempty" xml:",omitempty"`
}

// digestAttributes is the digest that stands beside message attributes; empty: there are none.
func digestAttributes(all map[string]sqsAttribute) string {
	if len(all) == 0 {
		return ""
	}
	h := md5.New()
	put := func(b []byte) {
		var length [4]byte
		binary.BigEndian.PutUint32(length[:], uint32(len(b)))
		h.Write(length[:])
		h.Write(b)
	}
	for _, name := range slices.Sorted(maps.Keys(all)) {
		a := all[name]
		put([]byte(name))
		put([]byte(a.DataType))
		if a.StringValue != nil {
			h.Write([]byte{1})
			put([]byte(*a.StringValue))
		} else {
			h.Write([]byte{2})
			put(a.BinaryValue)
		}
	}
	return hex.EncodeToString(h.Sum(nil))
}

// deliverSQS sends a message of the cloud's own to a queue, with what a fault does to it. A
// queue that is gone gets nothing. The caller holds s.mu.
func (s *Simulator) deliverSQS(queue, body string, announces *action) {
	q := s.sqs[queue]
	if q == nil {
		return
	}
	f, _ := s.strike("sqs", "SendMessage", []FaultKind{FaultDuplicate, FaultCorrupt})
	q.store(outgoingSQS{body: body, delay: q.delay, sender: "AIDAUSHERCLOUD000000", announces: announces}, effects{duplicate: f.Kind == FaultDuplicate, corrupt: f.Kind == FaultCorrupt})
}

// store sends a message, with what a fault does to it.
func (q *sqsQueue) store(out outgoingSQS, fx effects) *sqsMessage {
	if fx.corrupt {
		out.body = garble(out.body)
	}
	m := q.send(out)
	if fx.duplicate {
		q.copy(m)
	}
	return m
}
