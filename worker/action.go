package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker/audit"
	"example.org/usher/worker/heartbeats"
)

// maxTransit is how much older than its message a notification may claim to be. A
// topic or an event bus takes seconds; somebody who writes to the queue could
// otherwise make a deadline pass by writing an old time.
const maxTransit = 5 * time.Minute

// action is one lifecycle action that this worker holds.
type action struct {
	messages.Notification
	claim    claim
	consumer *consumer
	group    *group
	plan     *Plan
	budget   heartbeats.Budget
	log      *slog.Logger

	// delivery is the one that announced the action, without its body.
	delivery providers.Delivery
	// groups are those that count it among what they hold: none of an event that is not placed yet.
	groups []*group // guarded by the consumer's mu
	// parts say, for an event, which group and plan each instance has: group and plan above
	// are one of theirs. Nil for a hook's action.
	parts map[messages.InstanceID]part
	// over is when an event comes to nothing whose groups are not known by then.
	over time.Time
	// placed is what records name as the group's; nil: it is not known yet.
	placed atomic.Pointer[group]
	// start is when the hook fired, on our clock.
	start time.Time
	// asked is when the cloud was first asked about it, and verified when it was last; only
	// its judge uses them.
	asked, verified time.Time
	// shared: another hook's answer may end it; only its judge uses it.
	shared bool
	// watched: the cloud is asked now and then whether one has; looked is when it was last.
	watched bool      // guarded by admissions.mu
	looked  time.Time // guarded by admissions.mu
	// unlisted is when the cloud has first left it out of an answer, with none between that had it.
	unlisted time.Time // guarded by admissions.mu

	// held ends when the action is not ours to answer any more: lost, over or closed.
	// jobs ends then too, and at the deadline, the end of the budget, or the end of the
	// worker, which answers outlasts a little. closing does as well, but the time that the
	// plan keeps for what comes behind the steps is taken from jobs alone. They live as long
	// as the action, which outlives every call that could pass them.
	held, jobs, closing, answers context.Context
	endHeld, endJobs, endClosing context.CancelCauseFunc

	// instances are those that the cloud lists, set before the jobs begin.
	instances []messages.Instance

	mu     sync.Mutex
	state  State    // guarded by mu
	leases []*lease // guarded by mu
	room   int      // guarded by mu; what it takes of the consumer's: one a lease, or one without any
	sealed bool     // guarded by mu; no more messages are adopted
	keeps  []*duty  // guarded by mu; one for each lease
	beats  *duty    // guarded by mu
	wait   wait     // guarded by mu
}

// wait is what we know of the hook's wait.
type wait struct {
	// until is when it lapses at the earliest, counted from the action's start.
	until time.Duration
	// own is how many heartbeats this worker has spent, at the most.
	own int
}

// began is when the hook fired, on our clock: the notification's age by the cloud's
// clock, taken off the moment it arrived here, so that clocks which disagree do no harm.
func began(n messages.Notification, d providers.Delivery) time.Time {
	old, ok := age(d)
	if !ok {
		return d.ReceivedAt
	}
	if !n.Time.IsZero() {
		old = min(max(old, d.CloudTime.Sub(n.Time)), old+maxTransit)
	}
	return d.ReceivedAt.Add(-old)
}

// late says that the hook may have fired longer ago than began takes the message's word for:
// a topic goes on trying for a day. What is left of the wait can't be known then.
func late(n messages.Notification, d providers.Delivery) bool {
	old, ok := age(d)
	return ok && !n.Time.IsZero() && d.CloudTime.Sub(n.Time) > old+maxTransit
}

// lose ends the action because its message may be somebody else's.
func (a *action) lose(err error) {
	a.endHeld(errors.Join(errLost, err))
}

// interrupt lets the action go back to the queue, its jobs cut short.
func (a *action) interrupt(why error) {
	a.endJobs(why)
	a.endClosing(why)
}

// finishOver ends the action because the cloud says that it is over.
func (a *action) finishOver(err error) {
	a.endHeld(errors.Join(errOver, err))
}

// sure makes sure that every message of the action is still ours, and says until when all
// of them are if none is renewed. While the queue gives no answer it waits for one: nobody
// can say then who may go on.
func (a *action) sure(ctx context.Context) (time.Time, error) {
	visibility := a.consumer.w.o.VisibilityTimeout
	until := time.Now().Add(visibility) // without a message nobody else can have it sooner
	for _, l := range a.allLeases() {
		for attempt := 0; ; attempt++ {
			granted, err := l.sure(ctx, visibility)
			if err == nil {
				a.recordExtended(l, granted)
				if granted.Until.Before(until) {
					until = granted.Until
				}
			}
			lost := errors.Is(err, errLost) || errors.Is(err, errLongest)
			if lost {
				a.lose(err)
			}
			if err == nil || lost || ctx.Err() != nil {
				if err != nil {
					return time.Time{}, fmt.Errorf("make sure that message %s is ours: %w", l.messageID, err)
				}
				break
			}
			a.log.Warn("nobody can say whether the message is still ours, waiting for the queue", keyError, err)
			if !pause(ctx, backoff(attempt, time.Second, 10*time.Second)) {
				return time.Time{}, fmt.Errorf("make sure that message %s is ours: %w", l.messageID, err)
			}
		}
	}
	return until, nil
}

func (a *action) allLeases() []*lease {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.leases)
}

// moreLeases gives up to n leases behind the first done. When there are none, none will
// be added: what is received from now on must find its own end.
func (a *action) moreLeases(done, n int) []*lease {
	a.mu.Lock()
	defer a.mu.Unlock()
	more := a.leases[done:]
	a.sealed = len(more) == 0
	return slices.Clone(more[:min(len(more), n)])
}

// adopt takes over one more delivery that announces the action: a second message, or
// a redelivery of one that is held, whose lease is given back for its newer receipt.
// Not ok: the action is being closed, and the delivery must find its own end.
func (a *action) adopt(d providers.Delivery) (redelivered *lease, ok bool) {
	queue := a.consumer.attributes() // before a.mu: whoever holds the consumer's takes a.mu
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sealed || a.state == Closed {
		return nil, false
	}
	for _, l := range a.leases {
		if l.messageID == d.MessageID {
			return l, true
		}
	}
	a.addLease(d, queue)
	return nil, true
}

// addLease lets the keeper keep one more message, of a queue that is set up so. a.mu is held.
func (a *action) addLease(d providers.Delivery, queue providers.QueueAttributes) {
	l := newLease(a.consumer.queue, a.consumer.habits, d, queue.Retention)
	a.leases = append(a.leases, l)
	a.room++
	a.keeps = append(a.keeps, a.consumer.keeper.add(time.Now().Add(firstRenewal(d.Until, queue.VisibilityTimeout, a.consumer.w.o.VisibilityTimeout)), a.keep(l)))
}

// beginBeats prolongs the hook's wait from now on.
func (a *action) beginBeats(hook knownHook) {
	hookTimeout := hook.timeout
	elapsed := time.Since(a.start)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wait.until = hookTimeout
	first := heartbeats.First(hookTimeout, elapsed)
	if first > elapsed {
		first = max(elapsed, first-a.early(first))
	}
	if a.Reannounced || late(a.Notification, a.delivery) {
		// It has waited for nobody knows how long.
		first, a.wait.until = elapsed, elapsed
	}
	a.beats = a.group.beats.add(a.start.Add(first), a.beat(hook))
}

// answerWindow is how long after its last job an action's answer is tried, and its wait
// prolonged for that. Then the message goes back to the queue.
const answerWindow = 10 * time.Minute

// beat is the duty that sends heartbeats when a third of the wait is left.
func (a *action) beat(hook knownHook) func(context.Context) time.Time {
	failures := 0
	return func(ctx context.Context) time.Time {
		budget, hookTimeout := a.budgetNow(&hook), hook.timeout
		elapsed := time.Since(a.start)
		a.mu.Lock()
		w, state := a.wait, a.state
		a.mu.Unlock()
		deadline := a.plan.Deadline
		if state == Answering {
			// The answer is late; as long as it is still tried, the wait must not lapse.
			deadline = max(deadline, elapsed+max(budget.Floor, budget.MinExtension))
		} else if !budget.Needed(w.until, deadline) {
			// It lasts long enough. Look again shortly before it ends.
			return a.start.Add(max(heartbeats.BeatAt(elapsed, w.until-elapsed), elapsed+time.Second))
		}
		// What predecessors have spent is an assumption; only the cloud's word ends the budget.
		used := max(w.own, min(budget.Assumed(hookTimeout, a.plan.Deadline, elapsed, a.delivery.Receives-1, w.own), budget.Calls-1))
		extension, ok := budget.Next(elapsed, deadline, used)
		if !ok {
			a.spent(w.until, "no heartbeat is left for the action")
			return time.Time{}
		}

		callCtx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		granted, err := a.group.Lifecycle.Heartbeat(callCtx, a.Action, extension)
		a.group.denials.note("heartbeat", err)
		if a.held.Err() != nil {
			return time.Time{}
		}
		rec := audit.Record{Event: audit.Heartbeat, DurationMS: extension.Milliseconds(), RequestID: granted.RequestID}
		switch {
		case err == nil:
			failures = 0
			until := budget.Lasts(granted.Until.Sub(a.start))
			a.mu.Lock()
			a.wait = wait{until: until, own: w.own + 1}
			a.mu.Unlock()
			a.record(rec)
			return a.start.Add(heartbeats.BeatAt(elapsed, until-elapsed)).Add(-a.early(until - elapsed))
		case errors.Is(err, providers.ErrActionGone):
			rec.Error, rec.RequestID = err.Error(), providers.RequestID(err)
			a.record(rec)
			a.mu.Lock()
			answering := a.state == Answering
			a.mu.Unlock()
			if !answering {
				a.finishOver(err)
			}
			// Or else by our own answer, perhaps, which is on its way: it finds out by itself.
			return time.Time{}
		case errors.Is(err, providers.ErrHeartbeatLimit):
			rec.Error, rec.RequestID = err.Error(), providers.RequestID(err)
			a.record(rec)
			a.spent(w.until, err.Error())
			return time.Time{}
		case ctx.Err() != nil:
			return time.Time{}
		}
		a.log.Warn("heartbeat failed, it will be sent again", keyError, err)
		failures++
		if providers.Untouched(err) {
			return time.Now().Add(backoff(failures, time.Second, 15*time.Second))
		}
		// It may have had its effect and counted. Several more must fit into what is left of
		// the wait, but not so many that lost answers use up the budget.
		a.mu.Lock()
		a.wait.own++
		a.mu.Unlock()
		left := w.until - time.Since(a.start)
		return time.Now().Add(jitter(min(max(left/4, 5*time.Second), time.Minute)))
	}
}

// budgetNow is the action's budget as the hook is now, where that decides how long a heartbeat
// lasts. Whether a longer timeout is for actions that wait already nobody knows: one that was
// not known is taken, or a shorter one. No heartbeat waits for the cloud's word on it.
func (a *action) budgetNow(hook *knownHook) heartbeats.Budget {
	if !a.budget.Restarts() {
		return a.budget
	}
	if now := a.group.lastHook(a.Hook); now.known && (!hook.known || now.timeout < hook.timeout) {
		*hook = now
	}
	return a.group.budget(a.plan, *hook)
}

// early spreads beats over the time before they fall due, so that actions that arrived
// together do not beat together. Where the calls are not counted, but the rate of all of an
// account is (Auto Scaling 2011-01-01), they are spread wide.
func (a *action) early(granted time.Duration) time.Duration {
	if a.budget.Restarts() {
		return rand.N(max(1, granted/5))
	}
	return rand.N(max(1, granted/20))
}

// spent ends the jobs in time for an answer before the wait, which nothing can
// prolong any more, runs out at until.
func (a *action) spent(until time.Duration, why string) {
	last := a.start.Add(until - heartbeats.AnswerMargin)
	a.log.Warn("the wait can't be prolonged, the jobs end before it does", keyReason, why, "left", max(0, time.Until(last)))
	a.endBy(last, errors.Join(errBudget, errors.New(why)))
}

// cutoff is when the jobs must have ended, for the deadline's sake.
func (a *action) cutoff() time.Time {
	if a.Event != "" {
		return a.eventCutoff()
	}
	return a.start.Add(a.budget.Cutoff(a.plan.Deadline))
}

// endBy ends the jobs at last, and their steps as much earlier as the plan keeps for what
// comes behind them.
func (a *action) endBy(last time.Time, why error) {
	endAt(a.jobs, last.Add(-a.kept()), func() { a.endJobs(why) })
	endAt(a.closing, last, func() { a.endClosing(why) })
}

// endAt calls end, which ends ctx, at a time unless ctx has ended before.
func endAt(ctx context.Context, at time.Time, end func()) {
	left := time.Until(at)
	if left <= 0 {
		end()
		return
	}
	timer := time.AfterFunc(left, end)
	context.AfterFunc(ctx, func() { timer.Stop() })
}

// endWaiting lets an action that no job runs for go back to the queue.
func (a *action) endWaiting() {
	a.mu.Lock()
	waiting := a.state == Waiting
	a.mu.Unlock()
	if waiting {
		a.endJobs(errShutdown)
	}
}

// to moves the action on, as next allows.
func (a *action) to(e event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s, ok := next(a.state, e); ok {
		a.state = s
	}
}

// stopKeeping ends the duties; the action is not ours any more, or not alive.
func (a *action) stopKeeping() {
	a.stopBeats()
	a.mu.Lock()
	keeps := a.keeps
	a.keeps = nil
	a.mu.Unlock()
	for _, d := range keeps {
		d.stop()
	}
}

func (a *action) stopBeats() {
	a.mu.Lock()
	beats := a.beats
	a.beats = nil
	a.mu.Unlock()
	beats.stop()
}

// record writes an audit record with the action's own fields filled in.
func (a *action) record(rec audit.Record) {
	rec.Region, rec.Queue = a.Region, a.consumer.name
	if g := a.placed.Load(); g != nil {
		rec.Provider, rec.Group = g.Provider, g.ID
	}
	if rec.Instance != "" { // of a job: before there is any, the parts are still being found
		if own, ok := a.parts[rec.Instance]; ok {
			rec.Group = own.group.ID
		}
	}
	rec.Hook, rec.Transition, rec.InstanceEvent = a.Hook, a.Transition, a.Event
	rec.Token, rec.Activity = a.Token, a.Activity
	if rec.MessageID == "" {
		rec.MessageID = a.delivery.MessageID
	}
	rec.ReceiveCount = a.delivery.Receives
	a.consumer.w.record(rec)
}
