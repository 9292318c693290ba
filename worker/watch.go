package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker/audit"
)

const (
	// watchEvery is how often the cloud is asked whether another hook's answer has ended an
	// action early. A heartbeat would find out, too, but those may be hours apart, and after a
	// ROLLBACK the instance is in service again while the steps go on.
	watchEvery = 30 * time.Second
	// watchMost bounds the activities that one look asks about; the others have their turn at
	// the next.
	watchMost = 50
)

// watch begins to look whether an action was ended by another hook's answer. Actions that
// no other hook's can end cost nothing.
func (c *consumer) watch(a *action) {
	c.w.admissions.mu.Lock()
	defer c.w.admissions.mu.Unlock()
	a.watched = true
	if a.group.watching {
		return
	}
	a.group.watching = true
	a.group.beats.add(time.Now().Add(jitter(watchEvery)), c.lookAt(a.group))
}

// lookAt is the duty of a group whose actions are watched. It ends when none is left.
func (c *consumer) lookAt(g *group) func(context.Context) time.Time {
	return func(ctx context.Context) time.Time {
		due := c.watchedOf(g)
		if due == nil {
			return time.Time{}
		}
		if alone := c.askEnded(ctx, g, due); len(alone) > 0 {
			c.w.admissions.mu.Lock()
			for _, a := range alone {
				a.watched = false
			}
			c.w.admissions.mu.Unlock()
		}
		return time.Now().Add(jitter(watchEvery))
	}
}

// watchedOf gives the group's actions that are watched, those of a bounded number of
// activities: of those that were not looked at for longest. None: the watch is over.
func (c *consumer) watchedOf(g *group) []*action {
	c.w.admissions.mu.Lock()
	defer c.w.admissions.mu.Unlock()
	var all []*action
	for _, a := range c.w.admissions.admitted {
		if a.group == g && a.watched {
			all = append(all, a)
		}
	}
	if g.watching = len(all) > 0; !g.watching {
		return nil
	}
	slices.SortFunc(all, func(x, y *action) int { return cmp.Or(x.looked.Compare(y.looked), cmp.Compare(x.Activity, y.Activity)) })
	activities := map[string]bool{}
	return slices.DeleteFunc(all, func(a *action) bool {
		activity := cmp.Or(string(a.Activity), string(a.Token)) // each for itself where there are none
		if len(activities) < watchMost {
			activities[activity] = true
		}
		return !activities[activity]
	})
}

// isBeside says that o is of the same scaling activity; where the cloud names none, that it
// is about an instance of a's.
func (a *action) isBeside(o *action) bool {
	if a.Activity != "" || o.Activity != "" {
		return a.Activity == o.Activity
	}
	return slices.ContainsFunc(o.Instances, func(id messages.InstanceID) bool { return slices.Contains(a.Instances, id) })
}

// lookAtOthers looks at the actions of a's activity at once, since a's answer has ended them.
func (c *consumer) lookAtOthers(a *action) {
	c.w.admissions.mu.Lock()
	var others []*action
	for _, o := range c.w.admissions.admitted {
		if o != a && o.Event == "" && o.group.key() == a.group.key() && a.isBeside(o) {
			others = append(others, o)
		}
	}
	c.w.admissions.mu.Unlock()
	if len(others) > 0 {
		// What it says of those that still wait may be older than the answer: they stay watched.
		c.askEnded(context.WithoutCancel(a.held), others[0].group, others)
	}
}

// askEnded asks the cloud, and ends the actions that are over. That one is not listed proves
// nothing. Who is answering finds out by itself, perhaps that the end is its own answer's.
func (c *consumer) askEnded(ctx context.Context, g *group, list []*action) (alone []*action) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	asked := make([]messages.Action, len(list))
	now := time.Now()
	c.w.admissions.mu.Lock()
	for i, a := range list {
		asked[i], a.looked = a.Action, now
	}
	c.w.admissions.mu.Unlock()
	for i, v := range g.Lifecycle.Ended(ctx, asked) {
		a := list[i]
		g.denials.note("watch", v.Err)
		switch {
		case v.Err != nil:
			a.log.Debug("can't see whether another hook's answer has ended the action", keyError, v.Err)
		case v.State == providers.Over && !a.isAnswering():
			a.finishOver(errors.New(v.Reason + ", by another hook's answer or the default result"))
		case a.missing(v.State == providers.Unlisted && a.Activity == "", now) && !a.isAnswering():
			a.endIfGone(ctx, v.Reason)
		case v.State == providers.Pending && !v.Shared:
			alone = append(alone, a)
		}
	}
	return alone
}

// missing says that the cloud has left an action out twice, some time apart, and not because
// it is new. Where it lists instances and no actions (Auto Scaling 2011-01-01), the instance has
// left its group then, or is at rest in it, and nothing waits for it any more; or the listing is wrong.
func (a *action) missing(unlisted bool, asked time.Time) bool {
	s := &a.consumer.w.admissions
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case !unlisted:
		a.unlisted = time.Time{}
	case a.unlisted.IsZero():
		a.unlisted = asked
	}
	return unlisted && asked.Sub(a.unlisted) >= goneFor && asked.Sub(a.start) >= unlistedFor
}

// endIfGone ends an action that is missing from the listing, unless a heartbeat, the one call that
// names what waits, says that it still does. Then it must be missing twice again. That the wait lasts
// longer by it is not counted on.
func (a *action) endIfGone(ctx context.Context, reason string) {
	granted, err := a.group.Lifecycle.Heartbeat(ctx, a.Action, a.plan.Deadline)
	a.group.denials.note("heartbeat", err)
	rec := audit.Record{Event: audit.Heartbeat, Reason: reason, RequestID: granted.RequestID}
	switch {
	case errors.Is(err, providers.ErrActionGone):
		if !a.isAnswering() {
			rec.Error, rec.RequestID = err.Error(), providers.RequestID(err)
			a.record(rec)
			a.finishOver(fmt.Errorf("%s: %w", reason, err))
		}
	case err != nil:
		a.log.Warn("can't ask whether an action that is not listed still waits, it will be asked again", keyError, err)
	default:
		a.record(rec)
		a.missing(false, time.Time{})
	}
}

func (a *action) isAnswering() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state == Answering
}
