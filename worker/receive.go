package worker

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker/audit"
)

const (
	// maxPollers bounds the receives that one queue has under way while batches come back full.
	maxPollers = 4
	// roomLinger is how long a receive waits until there is room for a whole batch.
	roomLinger = 50 * time.Millisecond
	// receiveSlack is how much longer than its wait a receive may take before polling
	// counts as stuck.
	receiveSlack = 30 * time.Second
	// retentionEvery is how often the queue's own settings are read.
	retentionEvery = 10 * time.Minute
)

// groupKey is what a notification is routed by.
type groupKey struct {
	region string
	id     messages.GroupID
}

// claim is all that a notification says of its action. Two messages with equal claims
// are one action announced twice. Two that agree only on hook and token are not: one of
// them lies, and the true one must not share its end.
type claim struct {
	messages.ActionKey
	groupKey
	transition messages.Transition
	activity   messages.ActivityID
	instances  string
}

func claimOf(a messages.Action) claim {
	ids := make([]string, len(a.Instances))
	for i, id := range a.Instances {
		ids[i] = string(id)
	}
	slices.Sort(ids)
	return claim{a.Key(), groupKey{a.Region, a.Group}, a.Transition, a.Activity, strings.Join(ids, " ")}
}

// consumer is one queue's: it receives for all groups that share the queue.
type consumer struct {
	w      *Worker
	name   string
	cloud  messages.Cloud
	region string // of what names none
	habits habits
	queue  providers.Queue
	aside  Sender // for QuarantineQueue
	closed func() // lets go of queue and aside; once
	log    *slog.Logger
	keeper *keeper
	acker  *acker
	// denials are about deleting and extending: that receiving is allowed says nothing of them.
	denials denials

	receiveErrors, extendErrors *repeated
	freed                       chan struct{}  // holds a token when room has become free
	named                       chan struct{}  // holds a token when a group names the queue again
	routing                     sync.Mutex     // held from the look for an action to its holding; no I/O meanwhile
	receivers                   sync.WaitGroup // pollers, retention watcher, reconcilers
	keepers                     sync.WaitGroup // the queue's keeper and acker, the groups' keepers

	mu        sync.Mutex
	groups    map[groupKey]*group                 // guarded by mu, and not changed while routing is held
	leaving   map[*group]struct{}                 // guarded by mu; removed or replaced, and still holding
	keeping   context.Context                     // guarded by mu; of the keepers, nil while they don't run
	polling   context.Context                     // guarded by mu; of the receivers, nil while they don't run
	endPoll   context.CancelFunc                  // guarded by mu; of polling
	held      map[claim]*action                   // guarded by mu
	room      int                                 // guarded by mu; how many more deliveries may be taken
	pollers   int                                 // guarded by mu
	polls     map[*time.Time]struct{}             // guarded by mu; when each receive under way must have ended
	received  time.Time                           // guarded by mu; the last good answer of the queue
	emptied   time.Time                           // guarded by mu; the last receive that got less than it asked for
	failing   error                               // guarded by mu; of the last receive
	gone      time.Time                           // guarded by mu; when the queue last did not exist
	back      time.Time                           // guarded by mu; until when others are to receive, not this worker
	announced map[messages.ActionKey]announcement // guarded by mu; of actions that wait and are not held here
	kept      time.Duration                       // guarded by mu; the queue's retention, 0: not known
	hides     time.Duration                       // guarded by mu; the queue's own visibility timeout, 0: not known
}

func newConsumer(w *Worker, q Queue) *consumer {
	closed := q.Close
	if closed == nil {
		closed = func() {}
	}
	log := w.log.With(keyQueue, q.Name)
	return &consumer{
		w: w, name: q.Name, cloud: cmp.Or(q.Cloud, messages.Alibaba), region: q.Region, habits: habitsOf(q.Cloud), queue: q.Queue, aside: q.Quarantine, closed: sync.OnceFunc(closed), log: log,
		groups: map[groupKey]*group{}, leaving: map[*group]struct{}{},
		keeper: newKeeper(), acker: newAcker(q.Queue),
		receiveErrors: &repeated{log: log, msg: "can't receive"},
		extendErrors:  &repeated{log: log, msg: "can't extend the visibility of held messages"},
		freed:         make(chan struct{}, 1),
		named:         make(chan struct{}, 1),
		polls:         map[*time.Time]struct{}{},
		held:          map[claim]*action{},
		announced:     map[messages.ActionKey]announcement{},
		room:          w.o.MaxActions,
	}
}

// run receives until receiving ends, or no group names the queue, and returns when nothing
// is held any more. What is kept alive meanwhile is so until then.
func (c *consumer) run(receiving, working context.Context) {
	stop := c.keep()
	defer stop()
	for {
		c.receive(receiving, working)
		if !c.rest(receiving) {
			break
		}
	}
	c.handBackWaiting()
	for c.holding() > 0 {
		<-c.freed
	}
}

// receive lets the receivers work until receiving ends, or no group names the queue.
func (c *consumer) receive(receiving, working context.Context) {
	polling, end := context.WithCancel(receiving)
	defer end()
	c.mu.Lock()
	if len(c.groups) == 0 {
		c.mu.Unlock()
		return
	}
	c.polling, c.endPoll = polling, end
	c.receivers.Go(func() { c.poll(polling, receiving, working, false) })
	c.receivers.Go(func() { c.watchRetention(polling) })
	for _, g := range c.groups {
		c.look(g)
	}
	c.mu.Unlock()
	<-polling.Done()
	c.mu.Lock()
	c.polling = nil // from here on nobody starts a receiver
	c.mu.Unlock()
	c.receivers.Wait()
}

// look starts the search for actions of g whose message is lost. c.mu is held.
func (c *consumer) look(g *group) {
	if c.w.o.ReconcileEvery > 0 {
		looking, end := context.WithCancel(c.polling)
		g.endLooking = end
		receiving, working := c.w.life.receiving, c.w.life.working
		c.receivers.Go(func() { c.reconcile(looking, receiving, working, g) })
	}
}

// poll receives in a loop until polling ends. A full batch calls for another poller, and
// a poller of that kind, extra, ends with the first batch that is not full. What was
// received is judged until receiving ends.
func (c *consumer) poll(polling, receiving, working context.Context, extra bool) {
	failures, early := 0, 0
	for polling.Err() == nil {
		if d := c.standingBack(); d > 0 && !pause(polling, d) {
			return
		}
		n := c.reserve(polling)
		if n == 0 {
			return
		}
		wait := c.queue.MaxWait()
		switch {
		case extra:
			wait = time.Second
		case c.problem() != nil:
			// An idle queue answers a long poll at its end. Whether it answers at all is to be
			// known sooner: nobody waits half a minute for a worker to be ready.
			wait = 0
		}
		begin := time.Now()
		mustEnd := c.beginReceive(begin.Add(wait + receiveSlack))
		batch, err := c.queue.Receive(polling, n, wait)
		c.endReceive(polling, mustEnd, len(batch) < n, err)
		c.leave(n - len(batch))
		if len(batch) > 0 {
			c.take(receiving, working, batch)
		}
		full := len(batch) == c.queue.MaxBatch()
		switch {
		case polling.Err() != nil:
			return
		case err != nil:
			failures++
			least := time.Second
			if needsOperator(err) {
				least = 5 * time.Second
			}
			if extra || !pause(polling, backoff(failures, least, 30*time.Second)) {
				return
			}
		case full && c.anotherPoller():
			c.receivers.Go(func() {
				defer c.donePolling()
				c.poll(polling, receiving, working, true)
			})
		case extra && !full:
			return
		case len(batch) == 0 && time.Since(begin) < wait/2:
			// MNS answers at once when too many long polls are open on a queue.
			early++
			if !pause(polling, backoff(early, 500*time.Millisecond, 10*time.Second)) {
				return
			}
		}
		if err == nil {
			failures = 0
		}
		if len(batch) > 0 {
			early = 0
		}
	}
}

// reserve waits for room and takes up to a batch of it. It waits a little longer for a
// whole batch of room, so that a busy worker does not receive in crumbs. 0: ctx has ended.
func (c *consumer) reserve(ctx context.Context) int {
	linger := time.NewTimer(roomLinger)
	defer linger.Stop()
	lingering := true
	for {
		c.mu.Lock()
		n := min(c.room, c.queue.MaxBatch())
		if lingering && n < min(c.w.o.MaxActions, c.queue.MaxBatch()) {
			n = 0
		}
		c.room -= n
		more := c.room > 0
		c.mu.Unlock()
		if n > 0 {
			if more {
				c.signal()
			}
			return n
		}
		select {
		case <-c.freed:
		case <-linger.C:
			lingering = false
		case <-ctx.Done():
			return 0
		}
	}
}

// leave gives room back.
func (c *consumer) leave(n int) {
	c.mu.Lock()
	c.room += n
	c.mu.Unlock()
	c.signal()
}

func (c *consumer) signal() {
	select {
	case c.freed <- struct{}{}:
	default:
	}
}

// holding is how many deliveries have no closing record yet.
func (c *consumer) holding() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.w.o.MaxActions - c.room
}

func (c *consumer) anotherPoller() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pollers+1 >= maxPollers || c.room == 0 {
		return false
	}
	c.pollers++
	return true
}

func (c *consumer) donePolling() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pollers--
}

func (c *consumer) beginReceive(mustEnd time.Time) *time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.polls[&mustEnd] = struct{}{}
	return &mustEnd
}

// endReceive notes how the queue answered. A receive that the worker itself has cut
// short says nothing of the queue.
func (c *consumer) endReceive(polling context.Context, mustEnd *time.Time, emptied bool, err error) {
	c.mu.Lock()
	delete(c.polls, mustEnd)
	if err == nil {
		c.received, c.failing = time.Now(), nil
		if emptied {
			c.emptied = c.received
		}
	} else if polling.Err() == nil {
		c.failing = err
		if errors.Is(err, providers.ErrQueueGone) {
			c.gone = time.Now()
		}
	}
	c.mu.Unlock()
	if err == nil || polling.Err() == nil {
		c.receiveErrors.note(err)
	}
	if err == nil {
		c.denials.note("receive", nil) // there are keys
	}
}

// watchRetention keeps the queue's retention period known: a message that the queue
// has dropped by itself must not look like one that somebody else took. And it says so
// when the queue hides messages for longer than our lease.
func (c *consumer) watchRetention(ctx context.Context) {
	warned := false
	unread := &repeated{log: c.log, msg: "can't read the queue's attributes"}
	for failures := 0; ; {
		attributes, err := c.queue.Attributes(ctx)
		next := jitter(retentionEvery)
		if err != nil {
			failures++
			next = backoff(failures, time.Second, retentionEvery)
			if ctx.Err() == nil {
				unread.note(err)
			}
		} else {
			unread.note(nil)
			failures = 0
			c.mu.Lock()
			c.kept, c.hides = attributes.Retention, attributes.VisibilityTimeout
			if c.habits.silent {
				c.hides = 0 // each receive says for how long
			}
			hides := c.hides
			c.mu.Unlock()
			if lease := c.w.o.VisibilityTimeout; hides > lease && !warned {
				warned = true
				c.log.Warn("the queue hides messages for longer than visibility_timeout: each costs one renewal more, and one that was just received when its worker died waits so long; set the queue's own to no more",
					"queue_visibility", attributes.VisibilityTimeout, "visibility_timeout", lease)
			}
		}
		if !pause(ctx, next) {
			return
		}
	}
}

// attributes are those of the queue, as far as they are known.
func (c *consumer) attributes() providers.QueueAttributes {
	c.mu.Lock()
	defer c.mu.Unlock()
	return providers.QueueAttributes{VisibilityTimeout: c.hides, Retention: c.kept}
}

// take sorts a batch. What can't be settled at once goes on in goroutines that hold
// room for each delivery, so their number is bounded by what is held.
func (c *consumer) take(receiving, working context.Context, batch []providers.Delivery) {
	judge := map[*group][]*action{}
	var events []*action
	for _, d := range batch {
		n, err := messages.Decode(d.Body, c.cloud)
		n.Region = cmp.Or(n.Region, c.region)
		if d.Garbled {
			err = errGarbled
		}
		if err != nil {
			c.recordDelivery(audit.Received, d, nil, "", nil)
		} else {
			c.recordDelivery(audit.Received, d, &n, "", nil)
		}
		switch {
		case errors.Is(err, messages.ErrNotLifecycle):
			c.w.pool.run(func() { c.ignore(working, d, nil, err) })
		case err != nil:
			c.w.pool.run(func() { c.reject(working, d, err) })
		case n.Event != "":
			if a := c.routeEvent(working, d, n); a != nil {
				events = append(events, a)
			}
		default:
			if g, a := c.route(working, d, n); a != nil {
				judge[g] = append(judge[g], a)
			}
		}
	}
	for g, actions := range judge {
		c.w.pool.run(func() { g.judge(receiving, actions) })
	}
	if len(events) > 0 {
		c.w.pool.run(func() { c.placeAll(receiving, events) })
	}
}

// route finds the plan for a notification and holds its action. A nil action: the
// delivery was settled, or is being settled, in another way.
func (c *consumer) route(working context.Context, d providers.Delivery, n messages.Notification) (*group, *action) {
	// Two pollers may bring the same action at the same time.
	c.routing.Lock()
	defer c.routing.Unlock()
	c.mu.Lock()
	known := c.held[claimOf(n.Action)]
	c.mu.Unlock()
	if known != nil {
		if redelivered, ok := known.adopt(d); ok {
			c.w.pool.run(func() { c.merge(working, redelivered, d, n) })
			return nil, nil
		}
	}
	g := c.groups[groupKey{n.Region, n.Group}]
	var plan *Plan
	reason := "no config names the group " + string(n.Group) + " in " + n.Region
	switch {
	case g == nil:
	case g.isOf(n.AccountID):
		reason, plan = g.noPlan(n.Action), g.plan(n.Action)
	default:
		reason = "the group " + string(n.Group) + " is of the account " + g.Account + ", and the message of " + n.AccountID
	}
	if plan == nil {
		if n.Reannounced {
			c.standBack()
		}
		c.w.pool.run(func() { c.unrouted(working, d, n, reason) })
		return nil, nil
	}
	if n.Reannounced && c.leaves(d, n.Key()) {
		c.noteAnnounced(g, n.Key(), d.MessageID)
		c.standBack()
		c.w.pool.run(func() { c.passOn(working, d, n) })
		return nil, nil
	}
	if c.crowded(g) {
		c.w.pool.run(func() { c.park(working, g, d, n) })
		return nil, nil
	}
	return g, c.hold(working, g, plan, d, n)
}

// crowded says that g may not hold more: other groups on its queue could be kept waiting
// by it. The last quarter of the room is for groups that hold less than an equal share of it.
func (c *consumer) crowded(g *group) bool {
	if len(c.groups) == 1 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	holding, own := 0, g.holding
	for _, other := range c.groups {
		holding += other.holding
	}
	for before := range c.leaving {
		holding += before.holding
		if before.key() == g.key() {
			own += before.holding
		}
	}
	reserve := c.w.o.MaxActions / 4
	return holding >= max(1, c.w.o.MaxActions-reserve) && own >= max(1, reserve/len(c.groups))
}

// hold begins to keep an action's message. An event has no group and no plan yet.
func (c *consumer) hold(working context.Context, g *group, plan *Plan, d providers.Delivery, n messages.Notification) *action {
	d.Body = nil
	a := &action{
		Notification: n, claim: claimOf(n.Action), consumer: c, group: g, plan: plan,
		log:      c.log.With(keyEvent, n.Event, keyToken, n.Token),
		delivery: d, start: began(n, d), state: Judging,
	}
	if g != nil {
		a.budget = g.budget(plan, knownHook{})
		a.log = g.log.With(keyHook, n.Hook, keyToken, n.Token)
	}
	a.held, a.endHeld = context.WithCancelCause(context.WithoutCancel(working))
	a.jobs, a.endJobs = context.WithCancelCause(a.held)
	a.closing, a.endClosing = context.WithCancelCause(a.held)
	answers, endAnswers := context.WithCancelCause(a.held)
	a.answers = answers
	stop := context.AfterFunc(working, func() {
		a.endJobs(context.Cause(working))
		a.endClosing(context.Cause(working))
		timer := time.AfterFunc(answerGrace, func() { endAnswers(context.Cause(working)) })
		context.AfterFunc(a.held, func() { timer.Stop() })
	})
	context.AfterFunc(a.held, func() { stop() })

	queue := c.attributes()
	a.mu.Lock()
	if d.Receipt != "" {
		a.addLease(d, queue)
	} else {
		a.room = 1
	}
	a.mu.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.held[a.claim] = a
	if g != nil {
		c.count(a, g)
	}
	return a
}

// count makes an action one of those that g holds. c.mu is held.
func (c *consumer) count(a *action, g *group) {
	if a.placed.Load() == nil {
		a.placed.Store(g)
	}
	a.groups = append(a.groups, g)
	if g.holding++; g.holding == 1 {
		g.moved = time.Now()
	}
}

// close writes the closing record and lets go of the action.
func (c *consumer) close(a *action, event audit.Event, result messages.Result, reason string, err error) {
	a.to(eventClose)
	a.stopKeeping()
	a.endHeld(errClosed)
	rec := audit.Record{Event: event, Instances: a.Instances, Result: string(result), Reason: reason}
	if err != nil {
		rec.Error, rec.RequestID = err.Error(), providers.RequestID(err)
	}
	a.record(rec)
	a.log.Info("closed", "event", event, keyResult, result, keyReason, reason, keyInstances, len(a.Instances))
	c.mu.Lock()
	if c.held[a.claim] == a {
		delete(c.held, a.claim)
	}
	c.w.admissions.end(a)
	for _, g := range a.groups {
		g.holding--
		g.moved = time.Now()
		if _, leaving := c.leaving[g]; leaving && g.holding == 0 {
			delete(c.leaving, g)
			g.end()
		}
	}
	c.mu.Unlock()
	a.mu.Lock()
	room := a.room
	a.mu.Unlock()
	c.leave(room)
}

// handBackWaiting ends the actions that no job runs for: another worker can begin them now.
func (c *consumer) handBackWaiting() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.held {
		a.endWaiting()
	}
}

// problem says why the worker is not ready: it names a queue that does not answer.
func (c *consumer) problem() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.failing != nil:
		return c.failing
	case c.received.IsZero():
		return errors.New("the queue has not answered yet")
	}
	return nil
}

// stuck says that a receive should have ended long ago.
func (c *consumer) stuck() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for mustEnd := range c.polls {
		if time.Now().After(*mustEnd) {
			return true
		}
	}
	return false
}
