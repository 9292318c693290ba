package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker/audit"
)

const (
	// completeTimeout bounds one call of Complete, the provider's retries included. It is
	// made again for as long as answerWindow lasts.
	completeTimeout = 30 * time.Second
	// answerGrace is how long an answer under way may go on after the jobs were cut
	// short by the end of the worker.
	answerGrace = 5 * time.Second
)

// answer ends the wait of the action: complete first, delete the message after.
func (c *consumer) answer(a *action, result messages.Result, reason string) {
	a.to(eventSettle)
	requestID, err := c.complete(a, result)
	switch {
	case err == nil:
		a.stopBeats()
		c.w.admissions.noteSettled(a.claim) // before its message is deleted, which may fail
		a.record(audit.Record{
			Event: audit.Completed, Instances: a.Instances, Result: string(result), Reason: reason, RequestID: requestID,
		})
		if a.Transition == messages.ScaleIn && result != messages.Continue {
			c.w.pool.run(func() { c.lookAtOthers(a) })
		}
		c.closeAcked(a, result, reason)
	case errors.Is(err, providers.ErrActionGone):
		a.stopBeats()
		c.closeAcked(a, "", "it was over before our answer: "+err.Error())
	case a.held.Err() != nil:
		c.closeEnded(a)
	default:
		a.log.Error("can't answer, the message goes back to the queue", keyResult, result, keyReason, reason, keyError, err)
		c.handBack(a, fmt.Sprintf("%s could not be sent: %v", result, err))
	}
}

// complete sends the result until the cloud takes it, says that the action is over, or
// the answer's time is up.
func (c *consumer) complete(a *action, result messages.Result) (requestID string, err error) {
	last := min(time.Until(a.start.Add(a.budget.MaxWait)), answerWindow)
	ctx, cancel := context.WithTimeoutCause(a.answers, last, errors.New("the time for an answer is up"))
	defer cancel()
	for attempt := 0; ; attempt++ {
		requestID, err = c.completeOnce(ctx, a, result)
		if err == nil || errors.Is(err, providers.ErrActionGone) {
			return requestID, err
		}
		if ctx.Err() != nil {
			return "", fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
		a.log.Warn("can't complete the lifecycle action, it will be tried again", keyResult, result, keyError, err)
		if !pause(ctx, backoff(attempt, 2*time.Second, 30*time.Second)) {
			return "", fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

func (c *consumer) completeOnce(ctx context.Context, a *action, result messages.Result) (string, error) {
	until, err := a.sure(ctx)
	if err != nil {
		return "", err
	}
	// The provider repeats the call without asking whether the action is still ours.
	ctx, cancel := context.WithTimeout(ctx, min(completeTimeout, left(until)))
	defer cancel()
	requestID, err := a.group.Lifecycle.Complete(ctx, a.Action, result)
	a.group.denials.note("complete", err)
	return requestID, err
}

// closeAcked deletes the message of an action that is over and closes it.
func (c *consumer) closeAcked(a *action, result messages.Result, reason string) {
	if err := c.ack(a); err != nil {
		// Whoever receives it next finds the action over.
		c.close(a, audit.Released, result, reason+"; the message could not be deleted and will come back", err)
		return
	}
	c.close(a, audit.Acked, result, reason, nil)
}

// closeEnded closes an action that stopped being ours, by the reason that its context gives.
func (c *consumer) closeEnded(a *action) {
	cause := context.Cause(a.held)
	if errors.Is(cause, errOver) {
		a.stopBeats()
		c.closeAcked(a, "", cause.Error())
		return
	}
	c.close(a, audit.Lost, "", "taken over by another receiver, or deleted", cause)
}

// ack deletes all messages of an action, those too that are adopted meanwhile. A message
// that is gone already is no error.
func (c *consumer) ack(a *action) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.held), settleTimeout)
	defer cancel()
	var failures []error
	for done := 0; ; {
		leases := a.moreLeases(done, c.queue.MaxBatch())
		if len(leases) == 0 {
			err := errors.Join(failures...)
			if err != nil {
				a.log.Warn("can't delete the message of an action that needs it no more, it will come back", keyError, err)
			}
			return err
		}
		done += len(leases)
		// Side by side, so that they share a call: one after the other each would wait for company.
		errs := make([]error, len(leases))
		var deleting sync.WaitGroup
		for i, l := range leases {
			deleting.Go(func() { errs[i] = c.ackOne(ctx, l) })
		}
		deleting.Wait()
		failures = append(failures, slices.DeleteFunc(errs, func(err error) bool { return err == nil })...)
	}
}

func (c *consumer) ackOne(ctx context.Context, l *lease) error {
	receipt, exists, err := l.take(ctx)
	if err == nil && exists {
		err = c.delete(ctx, receipt)
	}
	if err != nil && !errors.Is(err, providers.ErrReceiptStale) && !errors.Is(err, providers.ErrQueueGone) {
		return fmt.Errorf("delete message %s: %w", l.messageID, err)
	}
	return nil
}

// handBack makes the messages of an action visible for other workers and closes it.
func (c *consumer) handBack(a *action, reason string) { c.giveBack(a, handBackAfter, reason) }

// putOff closes an action whose messages are to come back later.
func (c *consumer) putOff(a *action, reason string) { c.giveBack(a, parkFor, reason) }

func (c *consumer) giveBack(a *action, after time.Duration, reason string) {
	c.leaveTo(a, audit.Released, after, reason)
}

// leaveTo closes an action whose messages are for others, or for later.
func (c *consumer) leaveTo(a *action, event audit.Event, after time.Duration, reason string) {
	if a.held.Err() != nil {
		c.closeEnded(a)
		return
	}
	a.stopKeeping()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(a.held), callTimeout)
	defer cancel()
	var failures []error
	for _, l := range a.allLeases() {
		if err := l.handBack(ctx, after); err != nil {
			failures = append(failures, fmt.Errorf("make message %s visible: %w", l.messageID, err))
		}
	}
	c.close(a, event, "", reason, errors.Join(failures...))
}
