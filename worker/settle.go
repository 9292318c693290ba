package worker

import (
	"context"
	"errors"
	"time"
	"unicode/utf8"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker/audit"
)

const (
	// settleTimeout bounds the deletion of a message that needs no work.
	settleTimeout = 30 * time.Second
	// parkFor and parkMost bound how long a message is hidden of a group that holds its share
	// already: for as long as the group has not closed any action. Where jobs hang, thousands
	// of messages would otherwise come and go for nothing.
	parkFor  = 30 * time.Second
	parkMost = 5 * time.Minute
	// unroutedFirst and unroutedMost bound how long a message that no config knows is
	// hidden: another worker may know it, and soon after a roll-out so may this one.
	unroutedFirst = 30 * time.Second
	unroutedMost  = 15 * time.Minute
	// flushEvery is how often records that could not be written are tried again.
	flushEvery = 2 * time.Second
)

// record writes an audit record. An error shows in Healthy; work goes on, because an
// instance must not wait for the disk of a log. When more records wait for the disk than
// memory should hold, so does whoever writes one, and the worker's actions go to others.
func (w *Worker) record(rec audit.Record) error {
	err := w.o.Audit.Write(w.recording, rec)
	w.auditErrors.note(err)
	if err != nil {
		select {
		case w.unwritten <- struct{}{}:
		default:
		}
	}
	return err
}

// flushAudit writes what waits for its disk, should no more records come that would take
// it along. It ends with ctx.
func (w *Worker) flushAudit(ctx context.Context) {
	for {
		select {
		case <-w.unwritten:
		case <-ctx.Done():
			return
		}
		for w.o.Audit.Err() != nil {
			if !pause(ctx, flushEvery) {
				return
			}
			w.auditErrors.note(w.o.Audit.Flush(ctx))
		}
	}
}

// recordDelivery writes a record about a message that no action is held for.
func (c *consumer) recordDelivery(event audit.Event, d providers.Delivery, n *messages.Notification, reason string, err error) error {
	rec := audit.Record{Event: event, Queue: c.name, MessageID: d.MessageID, ReceiveCount: d.Receives, Reason: reason}
	if n != nil {
		rec.Region, rec.Group, rec.Hook, rec.Transition = n.Region, n.Group, n.Hook, n.Transition
		rec.Token, rec.Activity, rec.Instances, rec.InstanceEvent = n.Token, n.Activity, n.Instances, n.Event
	}
	if err != nil {
		rec.Error = err.Error()
	}
	if event == audit.Received {
		rec.RequestID = d.RequestID
	}
	if event == audit.Quarantined {
		if rec.Body = string(d.Body); !utf8.Valid(d.Body) {
			rec.Body, rec.BodyBase64 = "", d.Body
		}
	}
	return c.w.record(rec)
}

// merge ends a delivery that an action has adopted: it has no life of its own.
func (c *consumer) merge(ctx context.Context, redelivered *lease, d providers.Delivery, n messages.Notification) {
	if redelivered == nil {
		c.recordDelivery(audit.Ignored, d, &n, "a second message for an action that is held; deleted with the first", nil)
		return
	}
	defer c.leave(1)
	err := redelivered.replace(ctx, d)
	c.recordDelivery(audit.Ignored, d, &n, "redelivered while its action is held; the newer receipt is used", err)
}

// ignore deletes a message that is well-formed and announces nothing that is to be done. n is
// nil where it is no notification at all.
func (c *consumer) ignore(ctx context.Context, d providers.Delivery, n *messages.Notification, why error) {
	defer c.leave(1)
	reason := why.Error()
	if other, ok := errors.AsType[*messages.OtherError](why); ok {
		reason = other.Kind
	}
	err := c.deleteDelivery(ctx, d)
	c.recordDelivery(audit.Ignored, d, n, reason, err)
	c.log.Info("ignored", keyMessage, d.MessageID, keyReason, reason)
}

// unrouted makes a message come back later, and later each time.
func (c *consumer) unrouted(ctx context.Context, d providers.Delivery, n messages.Notification, reason string) {
	defer c.leave(1)
	delay := growing(unroutedFirst, d.Receives-1, unroutedMost)
	if old, ok := age(d); ok {
		// While it is young another worker can still be in time for it.
		delay = min(max(unroutedFirst, old/2), unroutedMost)
	}
	if n.Reannounced && d.Receives <= 3*passedOn {
		delay = passOnFor // it comes from a worker that knows the group
	}
	err := c.hide(ctx, d, delay)
	c.recordDelivery(audit.Unrouted, d, &n, reason, err)
	c.log.Warn("unrouted: left to workers that know it", keyMessage, d.MessageID, keyReason, reason, "again_in", delay)
}

// park makes a message come back later, because its group holds its share already.
func (c *consumer) park(ctx context.Context, g *group, d providers.Delivery, n messages.Notification) {
	defer c.leave(1)
	c.mu.Lock()
	still := time.Since(g.moved)
	c.mu.Unlock()
	err := c.hide(ctx, d, jitter(min(max(parkFor, still), parkMost)))
	c.recordDelivery(audit.Released, d, &n, "its group holds as many actions as it may", err)
}

// growing is a delay that doubles with every step.
func growing(first time.Duration, step int, most time.Duration) time.Duration {
	return min(first<<min(max(step, 0), 10), most)
}

func (c *consumer) hide(ctx context.Context, d providers.Delivery, delay time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	_, err := c.queue.Extend(ctx, d.Receipt, delay.Truncate(time.Second))
	return err
}

// deleteDelivery deletes a message that was just received.
func (c *consumer) deleteDelivery(ctx context.Context, d providers.Delivery) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	return c.delete(ctx, d.Receipt)
}

func (c *consumer) delete(ctx context.Context, r providers.Receipt) error {
	err := c.acker.delete(ctx, r)
	c.denials.note("delete", err)
	return err
}
