package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker/audit"
)

// stuckAfter is how long a step may go on after its context has ended before it is
// reported as stuck.
const stuckAfter = 10 * time.Second

// outcome is what the job of one instance came to.
type outcome struct {
	instance messages.InstanceID
	kind     outcomeKind
	step     string        // the step that decided, if any
	err      error         // of a step whose errors are ignored, too
	begun    []PlannedStep // what an undoing may have to undo
}

type outcomeKind int

const (
	succeeded outcomeKind = iota
	gone                  // the instance does not exist any more: nothing is left to do
	failed                // a step failed, or the time ran out
	cut                   // interrupted: neither done nor failed
)

// see takes an action from its first slot to its end: jobs, result, answer.
func (c *consumer) see(a *action, release func()) {
	a.to(eventStart)
	outcomes := c.drain(a, release)
	switch {
	case a.held.Err() != nil || anyCut(outcomes):
		c.interrupted(a)
	default:
		result, reason := a.plan.result(outcomes)
		if a.Event != "" {
			c.settleEvent(a, reason)
			return
		}
		if keeps(a.Transition, result) {
			if err := c.undo(a, outcomes); err != nil {
				c.interrupted(a)
				return
			}
		}
		c.answer(a, result, reason)
	}
}

// interrupted is the end of an action whose work was cut short.
func (c *consumer) interrupted(a *action) {
	if a.held.Err() != nil {
		c.closeEnded(a)
		return
	}
	reason := "the worker is stopping, its jobs were cut short"
	if cause := context.Cause(a.jobs); errors.Is(cause, errLongest) {
		reason = cause.Error() + "; the jobs begin anew"
	}
	c.handBack(a, reason)
}

// result is the one answer for all instances of an action. The first failure decides
// by the plan's policy; the reason counts the others. An instance that is gone has left as
// it was to; one that was to join has not.
func (p *Plan) result(outcomes []outcome) (messages.Result, string) {
	var first *outcome
	failures, vanished := 0, 0
	for i := range outcomes {
		switch o := &outcomes[i]; {
		case o.kind == gone && p.Transition == messages.ScaleOut:
			if failures++; first == nil {
				first = &outcome{instance: o.instance, step: o.step, err: cmp.Or(o.err, error(providers.ErrInstanceGone))}
			}
		case o.kind == gone:
			vanished++
		case o.kind == failed:
			if failures++; first == nil {
				first = &outcomes[i]
			}
		}
	}
	if first != nil {
		what := "job"
		if first.step != "" {
			what = "step " + first.step
		}
		return p.OnFailure, fmt.Sprintf("%d of %d jobs failed; %s of %s: %v", failures, len(outcomes), what, first.instance, first.err)
	}
	reason := fmt.Sprintf("%d of %d jobs succeeded", len(outcomes), len(outcomes))
	if vanished > 0 {
		reason += fmt.Sprintf(", %d of them because the instance was gone", vanished)
	}
	return p.OnSuccess, reason
}

func anyCut(outcomes []outcome) bool {
	for _, o := range outcomes {
		if o.kind == cut {
			return true
		}
	}
	return false
}

// drain runs the jobs of all instances. The caller's slot serves the first, and is
// released after it; the others wait for slots of their own.
func (c *consumer) drain(a *action, release func()) []outcome {
	defer release()
	outcomes := make([]outcome, len(a.instances))
	if a.jobs.Err() == nil {
		c.prepare(a)
	} else if timeIsUp(context.Cause(a.jobs)) && a.anyPlan(func(p *Plan) bool { return asksTags(p.Always) }) {
		c.readTags(a.closing, a) // nothing but its end is left to do
	}
	var others sync.WaitGroup
	for i := 1; i < len(a.instances); i++ {
		others.Add(1)
		run := func(release func()) {
			outcomes[i] = c.job(a, a.instances[i])
			release()
			others.Done()
		}
		t := a.group.share.submit(run)
		context.AfterFunc(a.jobs, func() {
			if t.withdraw() {
				run(func() {}) // ends at once, with the reason
			}
		})
	}
	outcomes[0] = c.job(a, a.instances[0])
	release()
	others.Wait()
	return outcomes
}

// prepare looks the instances up where verification has not, and says so when the
// action begins so late that its steps may not fit.
func (c *consumer) prepare(a *action) {
	var need time.Duration
	for _, p := range a.plans() {
		need = max(need, longest(p.Steps))
	}
	if left := time.Until(a.cutoff().Add(-a.kept())); left < need {
		a.log.Warn("the jobs begin late: their steps may take longer than what is left", "steps", need, "left", left.Truncate(time.Second))
	}
	if a.Transition == messages.ScaleOut {
		c.awaitLaunch(a)
	}
	looked := func(in messages.Instance) bool { return in.State != "" || in.PrivateIP.IsValid() || in.Gone }
	if a.anyPlan(func(p *Plan) bool { return len(p.Steps) > 0 }) && !slices.ContainsFunc(a.instances, looked) {
		c.lookUp(a)
	}
	if a.anyPlan(func(p *Plan) bool { return asksTags(p.Steps) || asksTags(p.Always) }) {
		c.readTags(a.jobs, a)
	}
}

// lookUp asks for the action's instances, and again for those that are missing: each is gone
// that is still missing after goneFor. What can't be told by then is left as it was.
func (c *consumer) lookUp(a *action) {
	ctx, cancel := context.WithTimeout(a.jobs, verifyTimeout)
	defer cancel()
	var missing time.Time // since when
	for attempt, ids := 0, a.Instances; ; attempt++ {
		asked := time.Now()
		known, err := a.group.Lifecycle.Instances(ctx, a.Region, ids)
		if err != nil {
			a.log.Warn("can't look the instances up, steps that need their address will fail", keyError, err)
			return
		}
		if attempt == 0 {
			missing = time.Now()
		}
		believed := asked.Sub(missing) >= goneFor
		ids = nil
		for _, in := range known {
			if in.Gone && !believed {
				ids = append(ids, in.ID)
				continue
			}
			in.Action = a.of(in.ID)
			a.instances[slices.IndexFunc(a.instances, func(of messages.Instance) bool { return of.ID == in.ID })] = in
		}
		if len(ids) == 0 || !pause(ctx, backoff(attempt, 2*time.Second, goneFor)) {
			return
		}
	}
}

// job is all that is done for one instance: the plan's steps and, behind them, the steps for
// every end.
func (c *consumer) job(a *action, in messages.Instance) outcome {
	if in.Gone {
		return outcome{instance: in.ID, kind: gone}
	}
	out, begun := c.steps(a, in)
	if out.kind == gone || out.kind == cut {
		return out
	}
	out.begun = begun
	if err := c.end(a, in, a.planOf(in.ID).Always, out.kind); err != nil {
		out.kind, out.err = cut, err
	}
	return out
}

// steps runs the plan's steps for one instance, in order, and says which were begun.
func (c *consumer) steps(a *action, in messages.Instance) (out outcome, begun []PlannedStep) {
	in.Withdrawn = time.Now()
	for _, s := range a.planOf(in.ID).Steps {
		if a.jobs.Err() != nil {
			return ended(a.jobs, in, s.label()), begun
		}
		began := time.Now()
		var own []PlannedStep
		out, own = c.perform(a.jobs, a, in, s, succeeded)
		begun = append(begun, own...)
		for _, m := range own {
			in.Withdrawn = m.withdrawn(in.Withdrawn, began, out.err)
		}
		if out.kind != succeeded {
			return out, begun
		}
	}
	return outcome{instance: in.ID}, begun
}

// perform runs one step of a plan, or several at once, for one instance until ctx, one of the
// action's, ends, and says which steps were begun. so is how the job stands. An outcome other
// than succeeded is one that the job must not go on after.
func (c *consumer) perform(ctx context.Context, a *action, in messages.Instance, s PlannedStep, so outcomeKind) (outcome, []PlannedStep) {
	holds, why, err := s.When.holds(in, so)
	if err == nil && !holds {
		c.skip(a, in, s, why)
		return outcome{instance: in.ID}, nil
	}
	if s.Parallel != nil && err == nil {
		return c.parallel(ctx, a, in, s.Parallel, so)
	}
	var begun []PlannedStep
	if err != nil {
		c.refuse(a, in, s, err)
		err = c.unlessGone(ctx, a, in, err)
	} else {
		begun, err = c.step(ctx, a, in, s)
	}
	switch {
	case err == nil:
		return outcome{instance: in.ID}, begun
	case errors.Is(err, providers.ErrInstanceGone):
		return outcome{instance: in.ID, kind: gone, step: s.label(), err: err}, begun
	case ctx.Err() != nil:
		return ended(ctx, in, s.label()), begun
	case s.IgnoreError:
		a.log.Warn("step failed, ignored as configured", keyInstance, in.ID, keyStep, s.label(), keyError, err)
		return outcome{instance: in.ID, err: err}, begun
	}
	a.log.Error("step failed", keyInstance, in.ID, keyStep, s.label(), keyError, err)
	return outcome{instance: in.ID, kind: failed, step: s.label(), err: err}, begun
}

// ended is the outcome of a job whose context ended: time that ran out is a failure,
// everything else an interruption.
func ended(ctx context.Context, in messages.Instance, step string) outcome {
	cause := context.Cause(ctx)
	if timeIsUp(cause) {
		return outcome{instance: in.ID, kind: failed, step: step, err: cause}
	}
	return outcome{instance: in.ID, kind: cut, step: step, err: cause}
}

// timeIsUp says whether what ended a context of the jobs was the end of their time.
func timeIsUp(cause error) bool { return errors.Is(cause, errDeadline) || errors.Is(cause, errBudget) }

// step makes the attempts at one step until ctx, one of the action's, ends. Before each, the
// message is made sure to be still ours: a process that was paused must not go on with what
// another has taken over. The step was begun once there was an attempt: ctx may end before.
func (c *consumer) step(ctx context.Context, a *action, in messages.Instance, s PlannedStep) (begun []PlannedStep, err error) {
	for attempt := 0; ; attempt++ {
		if _, err := a.sure(ctx); err != nil {
			return begun, err
		}
		begun = []PlannedStep{s}
		err := c.attempt(ctx, a, in, s, attempt)
		if err == nil || errors.Is(err, providers.ErrInstanceGone) || ctx.Err() != nil {
			return begun, err
		}
		if attempt == s.Retries {
			return begun, c.unlessGone(ctx, a, in, err)
		}
		if !pause(ctx, backoff(attempt, time.Second, 30*time.Second)) {
			return begun, err
		}
	}
}

// unlessGone asks, once a step has failed for good, whether there still is an instance: twice,
// since the failure would pass for a success by one empty answer.
func (c *consumer) unlessGone(ctx context.Context, a *action, in messages.Instance, err error) error {
	missing := func() bool {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		known, lookup := a.group.Lifecycle.Instances(ctx, a.Region, []messages.InstanceID{in.ID})
		return lookup == nil && len(known) == 1 && known[0].Gone
	}
	if missing() && pause(ctx, goneFor) && missing() {
		return fmt.Errorf("%w: %w", providers.ErrInstanceGone, err)
	}
	return err
}

// attempt runs a step once, framed by its audit records.
func (c *consumer) attempt(whole context.Context, a *action, in messages.Instance, s PlannedStep, attempt int) error {
	ctx := whole
	if s.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(whole, s.Timeout, fmt.Errorf("timed out after %v", s.Timeout))
		defer cancel()
	}
	rec := audit.Record{Event: audit.StepStarted, Instance: in.ID, Step: s.Name(), Attempt: attempt + 1}
	a.record(rec)
	begin := time.Now()
	detail, err := c.runStep(ctx, a, in, s, attempt)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}

	rec.Event, rec.Reason, rec.DurationMS = audit.StepFinished, detail, time.Since(begin).Milliseconds()
	switch {
	case err == nil:
		rec.Result = "ok"
	case errors.Is(err, providers.ErrInstanceGone):
		rec.Result = "gone"
	case whole.Err() != nil:
		rec.Result = "cancelled"
	case s.IgnoreError:
		rec.Result = "ignored"
	default:
		rec.Result = "failed"
	}
	if err != nil {
		rec.Error, rec.RequestID = err.Error(), providers.RequestID(err)
	}
	a.record(rec)
	return err
}

// runStep turns a panic into an error of this job, and reports a step that does not
// end with its context.
func (c *consumer) runStep(ctx context.Context, a *action, in messages.Instance, s PlannedStep, attempt int) (detail string, err error) {
	returned := make(chan struct{})
	defer close(returned)
	context.AfterFunc(ctx, func() {
		timer := time.NewTimer(stuckAfter)
		defer timer.Stop()
		select {
		case <-returned:
		case <-timer.C:
			a.log.Error("step does not end with its context", keyInstance, in.ID, keyStep, s.Name())
		}
	})
	defer func() {
		if p := recover(); p != nil {
			a.log.Error("step panicked", keyInstance, in.ID, keyStep, s.Name(), keyError, p, keyStack, string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return s.Run(ctx, in, attempt)
}
