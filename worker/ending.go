package worker

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"example.org/usher/messages"
)

// What comes behind the steps of a job: the plan's steps for every end. And behind all jobs
// of an action: where the answer keeps the instances, what was begun is undone. The time for
// both is kept back from the steps, so that a job that ran into its deadline has it, too. A
// job that is interrupted has no such end: its steps begin anew elsewhere. Nor has one whose
// instance is gone.

// keeps says whether an answer leaves the instances where they were. Those that leave all
// the same must stay as the steps made them: let back in, they would get new requests
// just before they go.
func keeps(t messages.Transition, result messages.Result) bool {
	return t == messages.ScaleIn && result == messages.Rollback
}

// kept is how long what comes behind the steps may take.
func (p *Plan) kept() time.Duration {
	sum := longest(p.Always)
	if !keeps(p.Transition, p.OnFailure) && !keeps(p.Transition, p.OnSuccess) {
		return sum
	}
	for _, s := range p.undoable() {
		sum += cmp.Or(s.UndoTimeout, DefaultUndoTimeout)
	}
	return sum
}

// undoable are the plan's steps that can be undone.
func (p *Plan) undoable() (list []PlannedStep) {
	for _, s := range p.Steps {
		for _, m := range append(slices.Clip(s.Parallel), s) {
			if _, ok := m.Step.(Undoer); ok {
				list = append(list, m)
			}
		}
	}
	return list
}

// beside are the steps that can be undone of the group's other plans for the same transition.
// An answer that keeps the instance ends their waits, too, or comes after their own answers.
func (g *group) beside(p *Plan) (list []PlannedStep) {
	for i := range g.Plans {
		if o := &g.Plans[i]; o != p && o.Transition == p.Transition {
			list = append(list, o.undoable()...)
		}
	}
	return list
}

// handedOn says that another worker may have begun the steps before.
func (a *action) handedOn() bool {
	return a.delivery.Receives > 1 || a.Reannounced || a.delivery.Receipt == ""
}

// undo undoes the steps that were begun, on all instances at once: the answer is for all of
// them, those too whose own job has succeeded. What another worker may have begun is undone,
// too, however far this one has come, and last what another hook's plan may have begun.
// Not nil: it was interrupted.
func (c *consumer) undo(a *action, outcomes []outcome) error {
	var all sync.WaitGroup
	ends := make([]error, len(outcomes))
	for i, o := range outcomes {
		begun := o.begun
		if a.handedOn() {
			begun = a.plan.undoable()
		}
		begun = slices.Concat(a.group.beside(a.plan), begun)
		var steps []PlannedStep
		for _, s := range slices.Backward(begun) {
			if u, ok := s.Step.(Undoer); ok {
				steps = append(steps, PlannedStep{Step: undoing{s.Name(), u}, Timeout: cmp.Or(s.UndoTimeout, DefaultUndoTimeout)})
			}
		}
		if len(steps) > 0 && o.kind != gone {
			all.Go(func() { ends[i] = c.end(a, a.instances[i], steps, o.kind) })
		}
	}
	all.Wait()
	return errors.Join(ends...)
}

// end runs steps behind those of a job that stands so. Not nil: it was interrupted.
func (c *consumer) end(a *action, in messages.Instance, steps []PlannedStep, so outcomeKind) error {
	for _, s := range steps {
		if cause := context.Cause(a.closing); timeIsUp(cause) {
			c.skip(a, in, s, "no time is left: "+cause.Error())
			a.log.Error("step at the end of a job skipped, no time is left", keyInstance, in.ID, keyStep, s.label())
			continue
		} else if cause != nil {
			return cause // while the last step went on after its time, perhaps
		}
		// What fails is logged and recorded, and that is all.
		switch out, _ := c.perform(a.closing, a, in, s, so); out.kind {
		case gone:
			return nil
		case cut:
			return out.err
		}
	}
	return nil
}

// undoing is the undoing of a step, as a step of its own.
type undoing struct {
	name string
	Undoer
}

func (u undoing) Name() string { return "undo " + u.name }

func (u undoing) Run(ctx context.Context, in messages.Instance, _ int) (string, error) {
	return u.Undo(ctx, in)
}
