package worker

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker/audit"
)

const (
	// reconcileDoubt is how long an action is left to its own message, which may be on
	// its way, after it was first seen to wait without being held.
	reconcileDoubt = 45 * time.Second
	// reannounceAfter is how long an announcement is trusted to be in the queue or held by
	// somebody. ESS lets no action wait for longer than 6 hours.
	reannounceAfter = 6 * time.Hour
	// reannounceMost bounds what one look at a group may announce.
	reannounceMost = 100
	// rivalFor is how long a second announcement of an action is left alone after the first was seen.
	rivalFor = time.Minute
	// maxAnnounced bounds the announcements that are remembered.
	maxAnnounced = 10_000
	// passedOn is how often an announcement is left to other workers before who receives
	// it begins with the action: one of them may hold it already, by a message of its own.
	// Of three workers that one missed all of a dozen in one case of a hundred.
	passedOn = 20
	// passOnFor hides an announcement that is passed on. Not long: an action waits. For
	// a second more the worker does not receive, or the announcement would come back to it.
	passOnFor = 2 * time.Second
	// standBackEvery is how long a worker receives between two times that it does not.
	standBackEvery = 3 * time.Second
)

// reconcile finds actions that wait although their message is lost, every now and then,
// and announces them again through the queue. So the queue decides who works on them,
// as it does for all others, and a crash loses none of them either.
// It ends with looking.
func (c *consumer) reconcile(looking, receiving, working context.Context, g *group) {
	every := c.w.o.ReconcileEvery
	// Replicas that were started together do not ask together.
	for next := rand.N(every); pause(looking, next); next = jitter(every) {
		doubtful, err := c.unheld(looking, g)
		if errors.Is(err, providers.ErrUnsupported) {
			return // this cloud can't be asked what waits: the queue alone knows
		}
		if err == nil {
			c.dropAnnounced(g, doubtful)
			maps.DeleteFunc(doubtful, func(key messages.ActionKey, _ messages.Action) bool { return c.isAnnounced(key) })
		}
		if len(doubtful) > 0 {
			err = c.announce(looking, receiving, working, g, doubtful)
		}
		if looking.Err() == nil {
			g.reconcileErrors.note(err)
			g.denials.note("find lost actions", err)
		}
	}
}

// announce looks a second time, and announces those of the doubtful that still wait
// without being held.
func (c *consumer) announce(looking, receiving, working context.Context, g *group, doubtful map[messages.ActionKey]messages.Action) error {
	first := time.Now()
	if !pause(looking, min(reconcileDoubt, c.w.o.ReconcileEvery)) {
		return nil
	}
	still, err := c.unheld(looking, g)
	if err != nil {
		return err
	}
	if !c.emptySince(first) {
		// Their messages may be among those that nobody has received yet.
		c.log.Debug("the queue has a backlog, no action is announced again", keyGroup, g.ID, "actions", len(still))
		return nil
	}
	n := 0
	var unfit error
	for key := range doubtful {
		a, waits := still[key]
		if !waits || c.isAnnounced(key) {
			continue
		}
		if n++; n > reannounceMost {
			return unfit
		}
		body, err := messages.Reannounce(a)
		if err != nil {
			unfit = err // the others are none the worse for it
			continue
		}
		id, err := c.send(looking, body)
		if errors.Is(err, providers.ErrQueueGone) {
			c.adoptUnannounced(receiving, working, g, a)
			continue
		}
		if err != nil {
			return err
		}
		c.noteAnnounced(g, key, id)
		g.log.Warn("an action waits that this worker holds no message of: announced again", keyHook, a.Hook, keyToken, a.Token, keyMessage, id)
		c.w.record(audit.Record{
			Event: audit.Announced, Provider: g.Provider, Region: a.Region, Queue: c.name, Group: a.Group, Hook: a.Hook, Transition: a.Transition,
			Token: a.Token, Activity: a.Activity, Instances: a.Instances, MessageID: id,
			Reason: "the action waits, and this worker holds no message of it; this one was sent",
		})
	}
	return unfit
}

func (c *consumer) send(ctx context.Context, body string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	return c.queue.Send(ctx, body)
}

// unheld asks the cloud which actions of the group wait that a plan is for and this
// worker does not hold.
func (c *consumer) unheld(ctx context.Context, g *group) (map[messages.ActionKey]messages.Action, error) {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	waiting, err := g.Lifecycle.Waiting(ctx, g.ID)
	if err != nil {
		return nil, err
	}
	out := map[messages.ActionKey]messages.Action{}
	for _, a := range waiting {
		if g.plan(a) != nil {
			out[a.Key()] = a
		}
	}
	for _, other := range c.w.all() { // the group may have been moved from another queue
		other.mu.Lock()
		for held := range other.held {
			delete(out, held.ActionKey)
		}
		other.mu.Unlock()
	}
	return out, nil
}

// emptySince says whether a receive found less than it had room for since t, so that
// what was sent before t is with somebody. A queue that is gone is empty, too.
func (c *consumer) emptySince(t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.emptied.After(t) || errors.Is(c.failing, providers.ErrQueueGone)
}

// adoptUnannounced holds an action without a message, where there is no queue to
// announce it in. Other replicas may do so, too: the cloud takes one answer.
func (c *consumer) adoptUnannounced(receiving, working context.Context, g *group, waiting messages.Action) {
	a := c.holdUnannounced(working, g, waiting)
	if a == nil {
		return // held since, no room, or g was replaced: the next look finds it if it still waits
	}
	c.w.record(audit.Record{
		Event: audit.Adopted, Provider: g.Provider, Region: waiting.Region, Queue: c.name, Group: waiting.Group, Hook: waiting.Hook,
		Transition: waiting.Transition, Token: waiting.Token, Activity: waiting.Activity, Instances: waiting.Instances, ReceiveCount: 1,
		Reason: "the action waits, and its queue does not exist; begun without a message",
	})
	c.w.pool.run(func() { g.judge(receiving, []*action{a}) })
}

func (c *consumer) holdUnannounced(working context.Context, g *group, waiting messages.Action) *action {
	c.routing.Lock()
	defer c.routing.Unlock()
	c.mu.Lock()
	full := c.room <= 0 || c.held[claimOf(waiting)] != nil || c.groups[g.key()] != g
	if !full {
		c.room--
	}
	c.mu.Unlock()
	if full {
		return nil
	}
	n := messages.Notification{Action: waiting, Reannounced: true}
	return c.hold(working, g, g.plan(waiting), providers.Delivery{Receives: 1, ReceivedAt: time.Now()}, n)
}

// standBack lets others receive what is about to be passed on; not more often than every
// standBackEvery, or a flood of forged announcements would keep true notifications waiting.
func (c *consumer) standBack() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.back) > standBackEvery {
		c.back = time.Now().Add(passOnFor + time.Second)
	}
}

func (c *consumer) standingBack() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Until(c.back)
}

// announcement is a worker's message about an action, as this worker has seen it last.
type announcement struct {
	group groupKey
	id    string
	at    time.Time
}

// noteAnnounced remembers the message: no second one is sent, and of two that other
// workers have sent at the same time, all agree to begin with the one of the lesser id.
func (c *consumer) noteAnnounced(g *group, key messages.ActionKey, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.announced) >= maxAnnounced {
		clear(c.announced) // made up by somebody who can write to the queue
	}
	if known, ok := c.announced[key]; !ok || id <= known.id || time.Since(known.at) > rivalFor {
		c.announced[key] = announcement{group: g.key(), id: id, at: time.Now()}
	}
}

// isAnnounced says whether a message about the action is in the queue, or somebody's.
func (c *consumer) isAnnounced(key messages.ActionKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	known, ok := c.announced[key]
	trusted := reannounceAfter
	if c.kept > 0 {
		trusted = min(trusted, c.kept)
	}
	return ok && time.Since(known.at) < trusted && known.at.After(c.gone)
}

// dropAnnounced forgets the announcements of the group's actions that do not wait any more.
func (c *consumer) dropAnnounced(g *group, waiting map[messages.ActionKey]messages.Action) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.DeleteFunc(c.announced, func(key messages.ActionKey, known announcement) bool {
		_, waits := waiting[key]
		return known.group == g.key() && !waits
	})
}

// leaves says whether an announcement is to be left to other workers: one of them may
// hold the action, or take it by another announcement.
func (c *consumer) leaves(d providers.Delivery, key messages.ActionKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	known := c.announced[key]
	return d.Receives <= passedOn || known.id < d.MessageID && time.Since(known.at) < rivalFor
}

// passOn leaves an announcement to other workers for a moment.
func (c *consumer) passOn(ctx context.Context, d providers.Delivery, n messages.Notification) {
	defer c.leave(1)
	err := c.hide(ctx, d, passOnFor)
	c.recordDelivery(audit.Released, d, &n, "announced again by a worker; another may hold the action, and is to have it first", err)
}
