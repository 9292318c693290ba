package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.org/usher/providers"
	"example.org/usher/worker/audit"
)

// Quarantine says what becomes of a message that can't be decoded at delivery
// Options.MaxReceives. In each case its body goes into the audit log, whole.
type Quarantine string

const (
	// QuarantineAudit: deleted; the audit log alone has it. The default.
	QuarantineAudit Quarantine = "audit"
	// QuarantineDeadLetter: left in the queue, never deleted by a worker; the queue's own
	// dead-letter policy moves it.
	QuarantineDeadLetter Quarantine = "dead_letter"
	// QuarantineQueue: sent to Queue.Quarantine, and deleted.
	QuarantineQueue Quarantine = "queue"
)

// Sender is a queue that messages are only sent to.
type Sender interface {
	Send(ctx context.Context, body string) (messageID string, err error)
}

const (
	// overdueFirst and overdueMost bound how long a message is hidden that should have been
	// quarantined and can't be: it must not keep anybody busy.
	overdueFirst = 30 * time.Second
	overdueMost  = 15 * time.Minute
	// garbledMost is overdueMost for one that arrives garbled: it may be a notification, and
	// right the next time.
	garbledMost = time.Minute
)

// reject leaves a message that can't be decoded in the queue until it was delivered too
// often. One that arrived garbled is always left: what the queue holds may be a
// notification, and would not be what is put aside.
func (c *consumer) reject(ctx context.Context, d providers.Delivery, why error) {
	defer c.leave(1)
	late := d.Receives - c.w.o.MaxReceives
	switch {
	case d.Garbled && late >= 0:
		c.overdue(ctx, d, growing(overdueFirst, late, garbledMost), "left in the queue: it may arrive whole the next time", why)
	case late < 0:
		c.recordDelivery(audit.Rejected, d, nil, "left in the queue", why)
		c.log.Warn("rejected, left in the queue", keyMessage, d.MessageID, keyError, why, "receives", d.Receives, "of", c.w.o.MaxReceives)
	case c.w.o.Quarantine == QuarantineDeadLetter && late > 0:
		// It was recorded at the delivery before this one, by whoever had that.
		c.overdue(ctx, d, growing(overdueFirst, late-1, overdueMost), "left in the queue, which has no dead-letter policy, or one that allows more deliveries", why)
	default:
		c.quarantine(ctx, d, why)
	}
}

// quarantine puts a message aside: a queue for such messages first, if there is one, then
// the audit log, and only then it is deleted. A crash in between repeats what came before.
func (c *consumer) quarantine(ctx context.Context, d providers.Delivery, why error) {
	reason := "delivered too often"
	switch c.w.o.Quarantine {
	case QuarantineDeadLetter:
		reason += "; left to the queue's dead-letter policy"
	case QuarantineQueue:
		id, err := c.putAside(ctx, d)
		switch {
		case err == nil:
			reason += "; sent to the quarantine queue as message " + id
		case errors.Is(err, providers.ErrInvalid):
			reason += "; the quarantine queue can't take it: " + err.Error()
		default:
			c.overdue(ctx, d, growing(overdueFirst, d.Receives-c.w.o.MaxReceives, overdueMost),
				"left in the queue: it could not be sent to the quarantine queue", errors.Join(err, why))
			return
		}
	}
	recorded := c.recordDelivery(audit.Quarantined, d, nil, reason, why)
	if c.w.o.Quarantine == QuarantineDeadLetter {
		c.log.Error("can't be decoded, its body is recorded", keyMessage, d.MessageID, keyReason, reason, keyError, errors.Join(why, recorded))
		return
	}
	if err := errors.Join(recorded, c.w.o.Audit.Err(), c.w.o.Audit.Sync()); err != nil {
		c.log.Error("the message stays in the queue until the audit log can be written", keyMessage, d.MessageID, keyError, err)
		if err := c.hide(ctx, d, growing(overdueFirst, d.Receives-c.w.o.MaxReceives, overdueMost)); err != nil {
			c.log.Warn("can't hide a message that is to be quarantined", keyMessage, d.MessageID, keyError, err)
		}
		return
	}
	c.log.Error("quarantined: its body is in the audit log", keyMessage, d.MessageID, keyReason, reason, keyError, why)
	if err := c.deleteDelivery(ctx, d); err != nil {
		c.log.Warn("can't delete a quarantined message, it will come back", keyMessage, d.MessageID, keyError, err)
	}
}

func (c *consumer) putAside(ctx context.Context, d providers.Delivery) (messageID string, err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTimeout)
	defer cancel()
	if messageID, err = c.aside.Send(ctx, string(d.Body)); err != nil {
		return "", fmt.Errorf("put message %s aside: %w", d.MessageID, err)
	}
	return messageID, nil
}

// overdue hides a message that can't be got rid of, for longer each time.
func (c *consumer) overdue(ctx context.Context, d providers.Delivery, delay time.Duration, reason string, why error) {
	err := c.hide(ctx, d, delay)
	c.recordDelivery(audit.Rejected, d, nil, reason, errors.Join(why, err))
	c.log.Warn("rejected, "+reason, keyMessage, d.MessageID, keyError, why, "receives", d.Receives, "again_in", delay)
}
