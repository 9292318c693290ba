package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"example.org/usher/messages"
)

// ErrStopping is Apply's answer of a worker that receives no more.
var ErrStopping = errors.New("the worker is stopping")

// life is what Run gives to all that it starts.
type life struct{ receiving, working, keeping context.Context }

// Apply lets the worker go on with these queues and groups, and with so many jobs at
// once. After an error nothing has changed.
//
// A queue is the one that it was if its client, Queue.Queue, is the same, and so is a
// group's configuration if its Lifecycle is: what is unchanged must come with the clients
// that it has. An action that is held keeps the configuration that it was received under,
// until it ends. The groups of one id share MaxConcurrent, the last one given. A queue
// that no group names is not received from any more.
func (w *Worker) Apply(queues []Queue, maxJobs int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopping || w.life != nil && w.life.receiving.Err() != nil {
		return ErrStopping
	}
	if err := w.check(queues, maxJobs); err != nil {
		return err
	}
	w.pool.resize(maxJobs)
	named := map[*consumer]bool{}
	for _, q := range queues {
		c := w.consumer(q)
		named[c] = true
		c.serve(q.Groups)
	}
	for _, c := range w.consumers {
		if !named[c] {
			c.serve(nil)
		}
	}
	return nil
}

// check says what is wrong with what Apply is given.
func (w *Worker) check(queues []Queue, maxJobs int) error {
	seen := map[groupKey]bool{}
	for _, q := range queues {
		if w.o.Quarantine == QuarantineQueue && q.Quarantine == nil {
			return fmt.Errorf("queue %s: no queue to put messages aside", q.Name)
		}
		for _, g := range q.Groups {
			key := groupKey{g.Region, g.ID}
			if seen[key] {
				return fmt.Errorf("group %s in %s is configured twice", g.ID, g.Region)
			}
			seen[key] = true
		}
	}
	if len(seen) > maxJobs {
		return fmt.Errorf("max jobs is %d, and there are %d groups: each needs a job of its own", maxJobs, len(seen))
	}
	return nil
}

// consumer finds the queue's, or starts one. w.mu is held.
func (w *Worker) consumer(q Queue) *consumer {
	for _, c := range w.consumers {
		if c.queue == q.Queue {
			return c
		}
	}
	c := newConsumer(w, q)
	w.consumers = append(w.consumers, c)
	if w.life != nil {
		w.start(c)
	}
	return c
}

// start lets c run until the worker ends, or it holds nothing and no group names it. w.mu is held.
func (w *Worker) start(c *consumer) {
	life := w.life
	w.consuming.Go(func() { c.run(life.receiving, life.working) })
}

// all are the consumers there are.
func (w *Worker) all() []*consumer {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.consumers)
}

// drop forgets a consumer whose queue no group names and that holds nothing; false: it has
// to go on.
func (w *Worker) drop(c *consumer) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(c.served()) > 0 || c.holding() > 0 {
		return false
	}
	w.consumers = slices.DeleteFunc(w.consumers, func(o *consumer) bool { return o == c })
	// Now, not when its keepers have ended: an Apply that comes meanwhile may name the queue
	// again, and find its clients in use by another consumer.
	c.closed()
	return true
}

// serve makes groups those that the consumer receives for. w.mu is held.
func (c *consumer) serve(groups []Group) {
	c.routing.Lock() // whoever has found a group is to hold its action first
	defer c.routing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	before, next := c.groups, map[groupKey]*group{}
	for _, g := range groups {
		key := groupKey{g.Region, g.ID}
		if now := before[key]; now != nil && now.Lifecycle == g.Lifecycle {
			next[key] = now
			continue
		}
		next[key] = newGroup(c.w, g)
		if c.keeping != nil {
			c.beat(next[key])
		}
		if c.polling != nil {
			c.look(next[key])
		}
	}
	c.groups = next
	for key, g := range before {
		if next[key] != g {
			c.retire(g)
		}
	}
	if len(next) > 0 {
		select {
		case c.named <- struct{}{}:
		default:
		}
	} else if c.polling != nil {
		c.endPoll()
	}
}

// retire lets go of a group's configuration, once its last action has ended. c.mu is held.
func (c *consumer) retire(g *group) {
	if g.endLooking != nil {
		g.endLooking()
	}
	if c.groups[g.key()] == nil {
		maps.DeleteFunc(c.announced, func(_ messages.ActionKey, known announcement) bool { return known.group == g.key() })
	}
	if g.holding > 0 {
		c.leaving[g] = struct{}{}
		return
	}
	g.end()
}

// end gives back what a group has; no action of it is held. Its consumer's mu is held.
func (g *group) end() {
	g.share.leave()
	if g.endBeating != nil {
		g.endBeating()
	} else if g.Close != nil {
		g.Close()
	}
}

// served are the groups that c receives for.
func (c *consumer) served() []*group {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Values(c.groups))
}

// keep runs the keepers until stop is called, which waits for them and closes the queue.
func (c *consumer) keep() (stop func()) {
	keeping, end := context.WithCancel(c.w.life.keeping)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keeping = keeping
	c.keepers.Go(func() { c.keeper.run(keeping) })
	c.keepers.Go(func() { c.acker.run(keeping) })
	for _, g := range c.groups {
		c.beat(g)
	}
	return func() {
		c.mu.Lock()
		c.keeping = nil // from here on nobody starts a keeper
		c.mu.Unlock()
		end()
		c.keepers.Wait()
		c.closed()
	}
}

// beat runs the group's keeper. c.mu is held, and c.keeping is set.
func (c *consumer) beat(g *group) {
	beating, end := context.WithCancel(c.keeping)
	g.endBeating = end
	c.keepers.Go(func() {
		defer end()
		g.beats.run(beating)
		if g.Close != nil {
			g.Close()
		}
	})
}

// rest waits until a queue that no group names is named again, or until nothing of it is
// held, or receiving ends: false.
func (c *consumer) rest(receiving context.Context) bool {
	for receiving.Err() == nil {
		if len(c.served()) > 0 {
			return true
		}
		if c.w.drop(c) {
			return false
		}
		select {
		case <-c.freed:
		case <-c.named:
		case <-receiving.Done():
		}
	}
	return false
}
