package simulator

import (
	"container/list"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"time"
)

const (
	lowestPriority  = 16 // 1 is served first
	defaultPriority = 8
)

// queue is one MNS queue. Every operation on a message is O(1) or O(log n): ready
// messages are in one list a priority, hidden and delayed ones in the schedule.
type queue struct {
	sim      *Simulator
	cfg      QueueConfig
	delay    time.Duration
	logging  bool
	created  time.Time
	modified time.Time

	messages map[uint64]*message
	ages     *list.List                     // of *message, oldest first; for retention
	active   [lowestPriority + 1]*list.List // of *message, by priority
	nActive  int
	nHidden  int
	nDelayed int
	waiters  *list.List // of *waiter, who waits longest first
	expiry   *entry     // when the oldest message has reached its retention
	deleted  bool
}

type messageState int

const (
	active messageState = iota
	hidden
	delayed
)

type message struct {
	id           string
	seq          uint64
	body, md5    string
	priority     int
	enqueued     time.Time
	stamped      time.Time // enqueued, as the cloud's clock had it
	firstDequeue time.Time
	nextVisible  time.Time
	dequeues     int
	state        messageState
	nonce        uint64 // of the one live receipt handle; 0: none
	place        *list.Element
	age          *list.Element
	wake         *entry  // when it is visible again
	announces    *action // the lifecycle action that it is the notification of, if any
}

// waiter is a long poll. Its channel gets one value when it should look again.
type waiter struct {
	wake  chan struct{}
	place *list.Element // nil: was woken
}

func (s *Simulator) newQueue(cfg QueueConfig) *queue {
	now := time.Now()
	q := &queue{
		sim: s, cfg: cfg, created: now, modified: now,
		messages: map[uint64]*message{}, ages: list.New(), waiters: list.New(),
	}
	for p := range q.active {
		q.active[p] = list.New()
	}
	return q
}

// send stores a message. The caller holds the simulator's mutex, as for all methods here.
func (q *queue) send(body string, priority int, delay time.Duration, announces *action) *message {
	now := time.Now()
	q.sim.messageSeq++
	sum := md5.Sum([]byte(body))
	m := &message{
		id:   randomHex(16) + "-1-" + randomHex(11) + "-" + randomHex(9),
		seq:  q.sim.messageSeq,
		body: body, md5: strings.ToUpper(hex.EncodeToString(sum[:])),
		priority: priority, enqueued: now, stamped: q.sim.cloudTime(now), firstDequeue: now, announces: announces,
	}
	q.messages[m.seq] = m
	m.age = q.ages.PushBack(m)
	if q.expiry == nil {
		q.armExpiry()
	}
	q.record(MessageSent, m)
	if delay > 0 {
		m.state, m.nonce = delayed, newNonce()
		q.nDelayed++
		q.hideUntil(m, now.Add(delay))
	} else {
		q.activate(m)
	}
	return m
}

// copy stores the same message a second time, under a new id.
func (q *queue) copy(m *message) *message {
	return q.send(m.body, m.priority, 0, m.announces)
}

func (q *queue) record(t EventType, m *message) {
	e := Event{Type: t, Queue: q.cfg.Name, MessageID: m.id, Receives: m.dequeues}
	if m.state == hidden && (t == MessageReceived || t == MessageExtended) {
		e.Until = new(m.nextVisible)
	}
	if a := m.announces; a != nil {
		e.Hook, e.Token, e.Group, e.Activity = a.hook.cfg.ID, a.token, a.hook.group.cfg.ID, a.activity.id
	}
	q.sim.record(e)
}

// activate makes m ready for the next receive and wakes one long poll.
func (q *queue) activate(m *message) {
	m.state, m.nonce, m.wake = active, 0, nil
	m.nextVisible = time.Time{}
	m.place = q.active[m.priority].PushBack(m)
	q.nActive++
	q.wakeOne()
}

// hideUntil schedules m's return to the ready ones.
func (q *queue) hideUntil(m *message, t time.Time) {
	m.nextVisible = t
	m.wake = q.sim.clock.at(t, func() {
		if target := q.deadLetters(m); target != nil {
			q.remove(m)
			q.record(MessageDeadLettered, m)
			target.adopt(m)
			return
		}
		q.uncount(m)
		q.record(MessageVisible, m)
		q.activate(m)
	})
}

// deadLetters is the queue that m goes to instead of becoming visible again; nil: none.
// A target that was deleted takes nothing.
func (q *queue) deadLetters(m *message) *queue {
	p := q.cfg.DlqPolicy
	if p.DeadLetterTargetQueue == "" || m.dequeues < p.MaxReceiveCount {
		return nil
	}
	return q.sim.queues[p.DeadLetterTargetQueue]
}

// adopt stores a message of another queue, which has let go of it. Its age counts on.
func (q *queue) adopt(m *message) {
	q.messages[m.seq] = m
	younger := q.ages.Back()
	for younger != nil && younger.Value.(*message).enqueued.After(m.enqueued) {
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

// uncount takes m out of the list or count of its state.
func (q *queue) uncount(m *message) {
	switch m.state {
	case active:
		q.active[m.priority].Remove(m.place)
		m.place = nil
		q.nActive--
	case hidden:
		q.nHidden--
	case delayed:
		q.nDelayed--
	}
	q.sim.clock.cancel(m.wake)
	m.wake = nil
}

// remove takes m out of the queue.
func (q *queue) remove(m *message) {
	q.uncount(m)
	q.ages.Remove(m.age)
	delete(q.messages, m.seq)
}

// armExpiry schedules the end of the oldest message's retention, which counts from
// its sending, whether it is received or not.
func (q *queue) armExpiry() {
	q.sim.clock.cancel(q.expiry)
	q.expiry = nil
	oldest := q.ages.Front()
	if oldest == nil {
		return
	}
	at := oldest.Value.(*message).enqueued.Add(q.cfg.Retention)
	q.expiry = q.sim.clock.at(at, func() {
		q.expiry = nil
		now := time.Now()
		for e := q.ages.Front(); e != nil; e = q.ages.Front() {
			m := e.Value.(*message)
			if m.enqueued.Add(q.cfg.Retention).After(now) {
				break
			}
			q.remove(m)
			q.record(MessageExpired, m)
		}
		q.armExpiry()
	})
}

// take receives up to n ready messages, by priority, then by who was ready first.
func (q *queue) take(n int) []*message {
	var got []*message
	now := time.Now()
	for p := 1; p <= lowestPriority && len(got) < n; p++ {
		for len(got) < n && q.active[p].Len() > 0 {
			m := q.active[p].Front().Value.(*message)
			q.uncount(m)
			if m.dequeues == 0 {
				m.firstDequeue = now
			}
			m.dequeues++
			m.state, m.nonce = hidden, newNonce()
			q.nHidden++
			q.hideUntil(m, now.Add(q.cfg.VisibilityTimeout))
			q.record(MessageReceived, m)
			got = append(got, m)
		}
	}
	return got
}

// peek looks at up to n ready messages without changing them.
func (q *queue) peek(n int) []*message {
	var got []*message
	for p := 1; p <= lowestPriority; p++ {
		for e := q.active[p].Front(); e != nil && len(got) < n; e = e.Next() {
			got = append(got, e.Value.(*message))
		}
	}
	return got
}

// extend hides m for d from now and kills its receipt handle for a new one.
func (q *queue) extend(m *message, d time.Duration) {
	q.sim.clock.cancel(m.wake)
	m.nonce = newNonce()
	q.hideUntil(m, time.Now().Add(d))
	q.record(MessageExtended, m)
}

// find gives the message that a receipt handle stands for. A text that is no
// handle, or one that another handle has replaced, is ReceiptHandleError; a message
// that is gone or has become visible again is MessageNotExist.
func (q *queue) find(handle string) (*message, *mnsError) {
	seq, nonce, ok := q.sim.parseHandle(handle)
	if !ok {
		return nil, errReceiptHandle
	}
	m := q.messages[seq]
	switch {
	case m == nil || m.state == active:
		return nil, errMessageNotExist
	case m.nonce != nonce:
		return nil, errReceiptHandle
	}
	return m, nil
}

// wakeOne wakes the long poll that waits longest.
func (q *queue) wakeOne() {
	if e := q.waiters.Front(); e != nil {
		w := e.Value.(*waiter)
		q.waiters.Remove(e)
		w.place = nil
		close(w.wake)
	}
}

// wakeAll wakes every long poll: the queue is being deleted or the simulator closed.
func (q *queue) wakeAll() {
	for q.waiters.Len() > 0 {
		q.wakeOne()
	}
}

// receive is the long poll: it takes up to n messages of the queue called name,
// waiting up to wait (negative: the queue's own setting) for the first. It returns
// nothing at all when ctx ends.
func (s *Simulator) receive(ctx context.Context, name string, n int, wait time.Duration, fx effects) ([]delivery, *mnsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[name]
	if q == nil {
		return nil, errQueueNotExist
	}
	if wait < 0 {
		wait = q.cfg.PollingWait
	}
	var timeout <-chan time.Time
	for expired := false; ; {
		if q.deleted {
			return nil, errQueueNotExist
		}
		if got := q.take(n); len(got) > 0 {
			if fx.duplicate {
				for _, m := range got {
					q.copy(m)
				}
			}
			return s.deliveries(got, fx), nil
		}
		if wait <= 0 || expired || s.closed {
			return nil, errMessageNotExist
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
			if w.place == nil && q.nActive > 0 {
				q.wakeOne() // the message that woke us is for somebody else now
			}
			return nil, nil
		}
	}
}

// delivery is a message as one answer tells it: a copy, good after the mutex is let go.
type delivery struct {
	id, handle, md5, body              string
	enqueued, nextVisible, firstDequed time.Time
	dequeues, priority                 int
}

func (s *Simulator) deliveries(ms []*message, fx effects) []delivery {
	out := make([]delivery, len(ms))
	for i, m := range ms {
		out[i] = delivery{
			id: m.id, md5: m.md5, body: m.body, enqueued: m.stamped, nextVisible: s.cloudTime(m.nextVisible),
			firstDequed: s.cloudTime(m.firstDequeue), dequeues: m.dequeues, priority: m.priority,
		}
		if m.nonce != 0 {
			out[i].handle = s.handle(m)
		}
		if fx.corrupt {
			out[i].body = garble(m.body)
		}
	}
	return out
}

// handle writes the live receipt handle of m: opaque text that holds + / and = now
// and then. The checksum tells a handle of ours from any other text.
func (s *Simulator) handle(m *message) string {
	var b [20]byte
	binary.BigEndian.PutUint64(b[0:], m.seq^s.handleKey)
	binary.BigEndian.PutUint64(b[8:], m.nonce)
	binary.BigEndian.PutUint32(b[16:], crc32.ChecksumIEEE(b[:16])^uint32(s.handleKey))
	return "1-" + base64.StdEncoding.EncodeToString(b[:])
}

func (s *Simulator) parseHandle(text string) (seq, nonce uint64, ok bool) {
	coded, ok := strings.CutPrefix(text, "1-")
	b, err := base64.StdEncoding.Strict().DecodeString(coded)
	if !ok || err != nil || len(b) != 20 || binary.BigEndian.Uint32(b[16:]) != crc32.ChecksumIEEE(b[:16])^uint32(s.handleKey) {
		return 0, 0, false
	}
	return binary.BigEndian.Uint64(b[0:]) ^ s.handleKey, binary.BigEndian.Uint64(b[8:]), true
}

// newNonce is never 0, which means no handle.
func newNonce() uint64 { return rand.Uint64() | 1 }

// garble makes a body unreadable: what comes out is neither JSON nor Base64.
func garble(body string) string {
	b := []byte(body)
	for i := range b {
		if i%7 == 3 {
			b[i] = '#'
		}
	}
	return "~" + string(b)
}
