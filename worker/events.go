package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker/audit"
)

// An event (messages.Event) is an action that nothing waits for: a message that names
// instances, and no group. The cloud is asked for their groups; each instance then has the
// plan of its own, and a job by it. There is no wait to prolong and nothing to complete:
// when the jobs have ended, well or not, the message is deleted. Until then it is kept as any
// other's, so that another worker begins anew should this one die.
//
// Whether an event is true no cloud can be asked. That its instances are in the groups is
// all that is made sure of. A hook's action of the same instance that comes meanwhile is another
// action: both run, since steps are idempotent, and only the hook's is answered.

const (
	// strangerReceives is at which delivery an event is deleted whose instances are in no group
	// that the queue's configs name. Before that it is left to others: one may know the
	// group, and an instance may not be listed yet.
	strangerReceives = 3
	// strangerFor hides it meanwhile. An event may be about the next two minutes.
	strangerFor = 15 * time.Second
	// placeFor is how long an event is kept whose groups the cloud does not tell. Then it is
	// put off, longer each time, up to parkMost: it must not keep the room of others.
	placeFor = time.Minute
)

// errDrained is why an event is deleted without a job.
var errDrained = errors.New("another message about the same event was received before, and its jobs have ended")

// part is one instance's share of an event.
type part struct {
	group *group
	plan  *Plan
}

// routeEvent holds an event that some group's plan is for. A nil action: the delivery was
// settled, or is being settled, in another way.
func (c *consumer) routeEvent(working context.Context, d providers.Delivery, n messages.Notification) *action {
	c.routing.Lock()
	defer c.routing.Unlock()
	c.mu.Lock()
	known := c.held[claimOf(n.Action)]
	c.mu.Unlock()
	if known != nil {
		if redelivered, ok := known.adopt(d); ok {
			c.w.pool.run(func() { c.merge(working, redelivered, d, n) })
			return nil
		}
	}
	if c.w.admissions.hasSettled(claimOf(n.Action)) {
		c.w.pool.run(func() { c.ignore(working, d, &n, errDrained) })
		return nil
	}
	if len(c.wanting(n.Action)) == 0 {
		reason := fmt.Errorf("no config of this queue has a plan for the event %s in %s", n.Event, n.Region)
		c.w.pool.run(func() { c.ignore(working, d, &n, reason) })
		return nil
	}
	if c.unplaced() >= max(1, c.w.o.MaxActions-c.w.o.MaxActions/4) {
		c.w.pool.run(func() { c.parkEvent(working, d, n) })
		return nil
	}
	a := c.hold(working, nil, nil, d, n)
	a.over = c.overAt(a)
	return a
}

// unplaced are the events held whose groups are not known. The last quarter of the room is not
// for them.
func (c *consumer) unplaced() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range c.held {
		if a.Event != "" && a.placed.Load() == nil {
			n++
		}
	}
	return n
}

// parkEvent makes a message come back later, because too many wait for their groups already.
func (c *consumer) parkEvent(ctx context.Context, d providers.Delivery, n messages.Notification) {
	defer c.leave(1)
	err := c.hide(ctx, d, strangerFor)
	c.recordDelivery(audit.Released, d, &n, "as many events as may are held whose groups are not known", err)
}

// overAt is when an event comes to nothing whose groups are not known by then: no plan that
// could be for it has any time left, or its instances are taken.
func (c *consumer) overAt(a *action) time.Time {
	var longest time.Duration
	for _, g := range c.wanting(a.Action) {
		longest = max(longest, g.plan(a.Action).Deadline)
	}
	return a.beforeDue(a.start.Add(longest))
}

// wanting are the groups that have a plan for the event, in the order of their ids.
func (c *consumer) wanting(event messages.Action) []*group {
	groups := slices.DeleteFunc(c.served(), func(g *group) bool { return g.Region != event.Region || g.plan(event) == nil })
	slices.SortFunc(groups, func(a, b *group) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return groups
}

// placeAll finds the groups of a batch's instances, and begins or closes each event. What is
// not placed in time is put off, and handed back when receiving ends.
func (c *consumer) placeAll(receiving context.Context, batch []*action) {
	last := time.Now().Add(placeFor)
	var err error
	for attempt := 0; ; attempt++ {
		if batch = c.giveUp(receiving, batch, last, err); len(batch) == 0 {
			return
		}
		// None is kept beyond its own time because another's cloud hangs.
		soonest := last
		for _, a := range batch {
			if a.over.Before(soonest) {
				soonest = a.over
			}
		}
		asking, end := context.WithDeadline(receiving, soonest)
		if attempt == 0 || pause(asking, backoff(attempt, time.Second, 15*time.Second)) {
			batch, err = c.placeOnce(receiving, asking, batch)
		}
		end()
	}
}

// giveUp lets go of the events that are not to be asked for again, of which err was the last
// that was heard, and gives back the others.
func (c *consumer) giveUp(receiving context.Context, batch []*action, last time.Time, err error) (again []*action) {
	now := time.Now()
	unknown := "the groups of the event's instances are not known"
	if err != nil {
		unknown += ": " + err.Error()
	}
	for _, a := range batch {
		switch {
		case receiving.Err() != nil:
			c.w.pool.run(func() { c.handBack(a, "the worker is stopping before the groups of the event's instances were known") })
		case !now.Before(a.over):
			c.w.pool.run(func() { c.ignoreHeld(a, "the event's time is over, and "+unknown) })
		case !now.Before(last):
			delay := min(growing(strangerFor, a.delivery.Receives-1, parkMost), max(time.Second, a.over.Sub(now)))
			c.w.pool.run(func() { c.giveBack(a, delay, unknown) })
		default:
			again = append(again, a)
		}
	}
	return again
}

// placeOnce gives back the events whose instances must be asked for again, and why.
func (c *consumer) placeOnce(receiving, asking context.Context, batch []*action) (again []*action, err error) {
	known, err := c.groupsOf(asking, batch)
	for _, a := range batch {
		missing := slices.ContainsFunc(a.Instances, func(id messages.InstanceID) bool { return known[regional{a.Region, id}] == "" })
		switch {
		case a.held.Err() != nil:
			c.w.pool.run(func() { c.closeEnded(a) })
		case a.jobs.Err() != nil: // its queue hides it no longer
			c.w.pool.run(func() { c.interrupted(a) })
		case missing && err != nil:
			again = append(again, a)
		default:
			c.place(receiving, a, known)
		}
	}
	return again, err
}

// regional names an instance beyond its region.
type regional struct {
	region string
	id     messages.InstanceID
}

// groupsOf asks for the groups of all instances of a batch. What a first group's client does
// not know, or give an answer for, all others are asked for at once: they may have other
// accounts. err says that one of them gave no answer.
func (c *consumer) groupsOf(ctx context.Context, batch []*action) (map[regional]messages.GroupID, error) {
	known := map[regional]messages.GroupID{}
	var errs []error
	for _, region := range slices.Sorted(maps.Keys(regionsOf(batch))) {
		var ids []messages.InstanceID
		var clients []*group
		for _, a := range batch {
			if a.Region != region {
				continue
			}
			ids = append(ids, a.Instances...)
			for _, g := range c.wanting(a.Action) {
				if !slices.ContainsFunc(clients, func(o *group) bool { return o.Lifecycle == g.Lifecycle }) {
					clients = append(clients, g)
				}
			}
		}
		slices.Sort(ids)
		ids = slices.Compact(ids)
		for i := 0; i < len(clients) && len(ids) > 0; {
			turn := clients[i:min(i+1, len(clients))]
			if i > 0 {
				turn = clients[i:]
			}
			i += len(turn)
			found, err := askGroups(ctx, turn, ids)
			for id, group := range found {
				known[regional{region, id}] = group
			}
			errs = append(errs, err)
			ids = slices.DeleteFunc(ids, func(id messages.InstanceID) bool { return found[id] != "" })
		}
	}
	return known, errors.Join(errs...)
}

func regionsOf(batch []*action) map[string]bool {
	regions := map[string]bool{}
	for _, a := range batch {
		regions[a.Region] = true
	}
	return regions
}

// askGroups asks the clients of several groups side by side.
func askGroups(ctx context.Context, clients []*group, ids []messages.InstanceID) (map[messages.InstanceID]messages.GroupID, error) {
	answers, errs := make([]map[messages.InstanceID]messages.GroupID, len(clients)), make([]error, len(clients))
	var asking sync.WaitGroup
	for i, g := range clients {
		asking.Go(func() {
			call, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			answers[i], errs[i] = g.Lifecycle.GroupsOf(call, ids)
			g.denials.note("find the groups of instances", errs[i])
			if ctx.Err() == nil {
				g.placeErrors.note(errs[i])
			}
		})
	}
	asking.Wait()
	found := map[messages.InstanceID]messages.GroupID{}
	for _, answer := range answers {
		maps.Copy(found, answer)
	}
	return found, errors.Join(errs...)
}

// place gives each instance the plan of its group, and lets the jobs begin. An event whose
// instances are all strangers is put off or, when it was delivered often enough, deleted. One
// of which some are in no group at all is put off before it begins: they may not be listed yet.
func (c *consumer) place(receiving context.Context, a *action, known map[regional]messages.GroupID) {
	parts, strangers := c.parts(a, known)
	if len(parts) == 0 || a.mayBeListed(known) {
		c.w.pool.run(func() { c.strange(a, strangers) })
		return
	}
	a.parts = parts
	a.Instances = slices.DeleteFunc(slices.Clone(a.Instances), func(id messages.InstanceID) bool { return parts[id].plan == nil })
	first := parts[a.Instances[0]]
	a.group, a.plan, a.Group = first.group, first.plan, first.group.ID
	for _, id := range a.Instances {
		a.instances = append(a.instances, messages.Instance{ID: id, Action: a.of(id)})
	}
	if !c.w.admissions.claim(a) {
		if c.w.admissions.hasSettled(a.claim) {
			c.w.pool.run(func() { c.ignoreHeld(a, errDrained.Error()) })
			return
		}
		c.w.pool.run(func() { c.putOff(a, "another message about the same event is held") })
		return
	}
	a.to(eventAdmit)
	reason := "an event, which can't be verified; its instances are in the group"
	if len(strangers) > 0 {
		reason += "; not in any that the queue's configs have a plan for: " + strings.Join(strangers, ", ")
	}
	a.record(audit.Record{Event: audit.Admitted, Instances: a.Instances, Reason: reason})
	a.log.Info("admitted", keyGroup, a.Group, keyInstances, len(a.Instances), "receives", a.delivery.Receives)
	a.begin(receiving)
}

// mayBeListed says that some instances are in no group, and that there is time to wait for one.
func (a *action) mayBeListed(known map[regional]messages.GroupID) bool {
	return a.delivery.Receives < strangerReceives && time.Until(a.over) > 2*strangerFor &&
		slices.ContainsFunc(a.Instances, func(id messages.InstanceID) bool { return known[regional{a.Region, id}] == "" })
}

// parts finds the group and the plan of each instance, and counts the event for the groups.
// strangers says of the other instances where they are.
func (c *consumer) parts(a *action, known map[regional]messages.GroupID) (parts map[messages.InstanceID]part, strangers []string) {
	c.routing.Lock() // a reload waits until the groups count what they hold
	defer c.routing.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	parts = map[messages.InstanceID]part{}
	for _, id := range a.Instances {
		name := known[regional{a.Region, id}]
		g := c.groups[groupKey{a.Region, name}]
		var p *Plan
		if g != nil {
			p = g.plan(a.Action)
		}
		if p == nil {
			strangers = append(strangers, fmt.Sprintf("%s (%s)", id, cmp.Or(string(name), "in no group")))
			continue
		}
		parts[id] = part{g, p}
		if !slices.Contains(a.groups, g) {
			c.count(a, g)
		}
	}
	return parts, strangers
}

// strange settles an event that is about nobody's instances, for all that this worker knows.
func (c *consumer) strange(a *action, strangers []string) {
	reason := "no config of this queue has a plan for the event " + string(a.Event) + " and the groups of its instances: " + strings.Join(strangers, ", ")
	if a.delivery.Receives < strangerReceives {
		c.leaveTo(a, audit.Unrouted, strangerFor, reason)
		return
	}
	c.ignoreHeld(a, reason)
}

// ignoreHeld deletes an event that nothing is done for.
func (c *consumer) ignoreHeld(a *action, reason string) {
	if a.held.Err() != nil {
		c.closeEnded(a)
		return
	}
	c.close(a, audit.Ignored, "", reason, c.ack(a))
}

// settleEvent is the end of an event whose jobs have ended, well or not.
func (c *consumer) settleEvent(a *action, reason string) {
	a.to(eventSettle)
	c.w.admissions.noteSettled(a.claim) // before its message is deleted: a duplicate finds one or the other
	c.closeAcked(a, "", reason)
}

// eventCutoff is when an event's jobs must have ended: at the shortest of its plans' deadlines,
// and before the instances are taken.
func (a *action) eventCutoff() time.Time {
	last := a.start.Add(a.plan.Deadline)
	for _, p := range a.plans() {
		if end := a.start.Add(p.Deadline); end.Before(last) {
			last = end
		}
	}
	return a.beforeDue(last)
}

// beforeDue is last, or when the instances are taken if that is sooner.
func (a *action) beforeDue(last time.Time) time.Time {
	due := a.Due
	if d := a.delivery; !d.CloudTime.IsZero() && !due.IsZero() {
		due = d.ReceivedAt.Add(due.Sub(d.CloudTime)) // on our clock
	}
	if !due.IsZero() && due.Before(last) {
		return due
	}
	return last
}

// plans are those of the action's instances, each once.
func (a *action) plans() []*Plan {
	list := []*Plan{a.plan}
	for _, own := range a.parts {
		if !slices.Contains(list, own.plan) {
			list = append(list, own.plan)
		}
	}
	return list
}

func (a *action) anyPlan(is func(*Plan) bool) bool { return slices.ContainsFunc(a.plans(), is) }

// planOf is the plan of an instance.
func (a *action) planOf(id messages.InstanceID) *Plan {
	if own, ok := a.parts[id]; ok {
		return own.plan
	}
	return a.plan
}

// of is the action as one instance has it: in its own group.
func (a *action) of(id messages.InstanceID) messages.Action {
	own := a.Action
	if p, ok := a.parts[id]; ok {
		own.Group = p.group.ID
	}
	return own
}

// kept is how long what comes behind the steps of any instance may take.
func (a *action) kept() time.Duration {
	var most time.Duration
	for _, p := range a.plans() {
		most = max(most, p.kept())
	}
	return most
}
