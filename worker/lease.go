package worker

import (
	"context"
	"errors"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker/audit"
	"example.org/usher/worker/heartbeats"
)

const (
	// leaseMargin is how much of a lease must be left for it to be acted on.
	leaseMargin = 2 * time.Second
	// callTimeout bounds one extension or heartbeat, the provider's retries included, so
	// that a hanging cloud takes a sender for that long and no longer.
	callTimeout = 10 * time.Second
	// handBackAfter hides a message that is handed back: the shortest time that every
	// cloud grants (MNS ChangeMessageVisibility, 2015-06-06: at least 1 s).
	handBackAfter = time.Second
)

// lease is our hold on one message.
type lease struct {
	queue     providers.Queue
	messageID string
	// expires is when the queue's retention drops the message, on our clock; zero: not known.
	expires time.Time
	habits  habits

	// busy admits one user of the receipt at a time, calls included: extending makes a
	// new one and kills the old. It is a channel, so that waiting ends with a context.
	busy    chan struct{}
	receipt providers.Receipt // guarded by busy
	until   time.Time         // guarded by busy
	expired bool              // guarded by busy; the queue has dropped the message
	done    bool              // guarded by busy; being deleted, or handed back: not to be extended any more
	last    time.Time         // guarded by busy; until when the receipt can be extended, zero: for as long as it is ours
}

// habits are how a cloud's queues treat receipts.
type habits struct {
	// silent: that another has received the message meanwhile, its old receipt may not tell
	// (SQS ChangeMessageVisibility, 2012-11-05, succeeds with it). Our own clock has to: a lease
	// that has lapsed is lost. Such a queue hides each receive for as long as that one asks.
	silent bool
	// longest is for how long one receive can be extended in all; 0: without end.
	longest time.Duration
}

func habitsOf(c messages.Cloud) habits {
	if c == messages.AWS {
		return habits{silent: true, longest: 12 * time.Hour}
	}
	return habits{}
}

// errLongest is why an action's message is given back: its queue hides it no longer.
var errLongest = errors.New("the queue lets one receive of a message last no longer")

// errLapsed is why a message may be another's, where the queue does not say so.
var errLapsed = errors.New("the lease has lapsed on our own clock")

// last is until when a delivery can be extended.
func (h habits) last(d providers.Delivery) time.Time {
	if h.longest == 0 {
		return time.Time{}
	}
	return d.ReceivedAt.Add(h.longest - heartbeats.ReturnMargin)
}

func newLease(q providers.Queue, h habits, d providers.Delivery, retention time.Duration) *lease {
	l := &lease{queue: q, habits: h, messageID: d.MessageID, busy: make(chan struct{}, 1), receipt: d.Receipt, until: d.Until, last: h.last(d)}
	if age, ok := age(d); ok && retention > 0 {
		l.expires = d.ReceivedAt.Add(retention - age)
	}
	return l
}

func (l *lease) lock(ctx context.Context) error {
	select {
	case l.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l *lease) unlock() { <-l.busy }

// replace takes over the receipt of a newer delivery of the same message.
func (l *lease) replace(ctx context.Context, d providers.Delivery) error {
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	l.receipt, l.until, l.last = d.Receipt, d.Until, l.habits.last(d)
	return nil
}

// extend hides the message for d from now. errClosed: it is done with. errLost: somebody else has it, or may have.
// errLongest: it can't be hidden for so long any more. A message that the queue's retention
// has dropped is nobody's: it is as good as held.
func (l *lease) extend(ctx context.Context, d time.Duration) (providers.Lease, error) {
	if err := l.lock(ctx); err != nil {
		return providers.Lease{}, err
	}
	defer l.unlock()
	if l.done {
		return providers.Lease{}, errClosed
	}
	return l.extendLocked(ctx, d)
}

// handBack hides the message for d from now, for the last time: an extension that is
// due, or waits for its turn, would hide it again from those it is handed to.
func (l *lease) handBack(ctx context.Context, d time.Duration) error {
	if err := l.lock(ctx); err != nil {
		return err
	}
	defer l.unlock()
	l.done = true
	_, err := l.extendLocked(ctx, d)
	return err
}

func (l *lease) extendLocked(ctx context.Context, d time.Duration) (providers.Lease, error) {
	if l.expired {
		return providers.Lease{Until: time.Now().Add(d)}, nil
	}
	if !l.last.IsZero() && left(l.last) < d {
		return providers.Lease{}, errLongest
	}
	most := callTimeout
	if l.habits.silent {
		// An extension that arrives too late succeeds, and proves nothing.
		if most = min(most, left(l.until)); most <= 0 {
			return providers.Lease{}, errors.Join(errLost, errLapsed)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	sent := time.Now()
	granted, err := l.queue.Extend(ctx, l.receipt, d)
	switch {
	case err == nil:
		l.receipt, l.until = granted.Receipt, granted.Until
		return granted, nil
	case errors.Is(err, providers.ErrReceiptStale) && !l.expires.IsZero() && time.Until(l.expires) < leaseMargin:
		l.expired = true
		return providers.Lease{Until: time.Now().Add(d)}, nil
	case errors.Is(err, providers.ErrReceiptStale):
		return providers.Lease{}, errors.Join(errLost, err)
	case errors.Is(err, providers.ErrQueueGone):
		// No other worker can receive it either: the action goes on without a message,
		// and should the queue be there again, so may be its message.
		l.until = time.Now().Add(d)
		return providers.Lease{Until: l.until}, err
	case !providers.Untouched(err) && sent.Add(d).Before(l.until):
		// Only the answer may be lost, and the message hidden for less than it was before:
		// the queue's own time is often longer than our lease.
		l.until = sent.Add(d)
	}
	return providers.Lease{}, err
}

// sure makes sure that the message is still ours, and says until when: it is while the
// lease lasts on our own clock; after a pause that outlasted it, only the queue can tell.
// A lease that it had to renew for that has a receipt.
func (l *lease) sure(ctx context.Context, d time.Duration) (providers.Lease, error) {
	if err := l.lock(ctx); err != nil {
		return providers.Lease{}, err
	}
	defer l.unlock()
	if !l.expired && left(l.until) > leaseMargin {
		return providers.Lease{Until: l.until}, nil
	}
	granted, err := l.extendLocked(ctx, d)
	if errors.Is(err, providers.ErrQueueGone) {
		return granted, nil
	}
	return granted, err
}

// left is the time until t. A machine that was suspended has not counted that time on
// its monotonic clock, only on the other, so the earlier of both counts.
func left(t time.Time) time.Duration { return min(time.Until(t), time.Until(t.Round(0))) }

// take gives the newest receipt, for deleting, and lets nobody make a newer one: with
// the old one the deletion would miss. False: the queue has dropped the message.
func (l *lease) take(ctx context.Context) (providers.Receipt, bool, error) {
	if err := l.lock(ctx); err != nil {
		return "", false, err
	}
	defer l.unlock()
	l.done = true
	return l.receipt, !l.expired, nil
}

// keep is the keeper's duty for one message of an action: it extends the lease when a
// third of it is left.
func (a *action) keep(l *lease) func(context.Context) time.Time {
	visibility := a.consumer.w.o.VisibilityTimeout
	failures := 0
	return func(ctx context.Context) time.Time {
		granted, err := l.extend(ctx, visibility)
		switch {
		case err == nil:
			failures = 0
			a.consumer.extendErrors.note(nil)
			a.consumer.denials.note("extend", nil)
			a.recordExtended(l, granted)
			return time.Now().Add(untilRenewal(granted.Until))
		case errors.Is(err, errClosed):
			return time.Time{}
		case errors.Is(err, errLost):
			a.lose(err)
			return time.Time{}
		case errors.Is(err, errLongest):
			// While enough is left to hand it back: whoever receives it next has as long again.
			a.interrupt(err)
			return time.Time{}
		case ctx.Err() != nil:
			return time.Time{}
		}
		a.consumer.extendErrors.note(err)
		a.consumer.denials.note("extend", err)
		failures++
		return time.Now().Add(backoff(failures, time.Second, max(2*time.Second, visibility/10)))
	}
}

// recordExtended records a renewal, if there was one: a message that the queue has
// dropped is not renewed.
func (a *action) recordExtended(l *lease, granted providers.Lease) {
	if granted.Receipt == "" {
		return
	}
	visibility := a.consumer.w.o.VisibilityTimeout
	a.record(audit.Record{Event: audit.Extended, MessageID: l.messageID, DurationMS: visibility.Milliseconds(), RequestID: granted.RequestID})
}

// untilRenewal is how long to wait until a third of the lease is left.
func untilRenewal(until time.Time) time.Duration {
	return jitter(max(0, time.Until(until)*2/3))
}

// firstRenewal is untilRenewal for a fresh delivery, which MNS hides for as long as its
// queue says: hides, if that is known, and at least until. Where that is longer than our
// own lease it is cut to that soon: should this worker die, the message must not wait for
// the queue's time. Not at once, since what is done in a second needs no lease of ours.
func firstRenewal(until time.Time, hides, visibility time.Duration) time.Duration {
	if max(hides, time.Until(until)) > visibility {
		return min(jitter(time.Second), untilRenewal(until))
	}
	return untilRenewal(until)
}

// age is how old the message was when it was received, by the cloud's own clock.
func age(d providers.Delivery) (time.Duration, bool) {
	if d.CloudTime.IsZero() || d.EnqueuedAt.IsZero() {
		return 0, false
	}
	return max(0, d.CloudTime.Sub(d.EnqueuedAt)), true
}
