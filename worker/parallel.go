package worker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"example.org/usher/messages"
)

// errBeside is why a step was cancelled that ran beside one whose failure ended the job.
var errBeside = errors.New("a step beside it has failed")

// label is the step's name in logs and records.
func (s PlannedStep) label() string {
	if s.Parallel != nil {
		return "parallel"
	}
	return s.Name()
}

// longest is how long steps may take, one after the other, with all their attempts.
func longest(steps []PlannedStep) time.Duration {
	var sum time.Duration
	for _, s := range steps {
		own := s.Timeout * time.Duration(s.Retries+1)
		for _, m := range s.Parallel {
			own = max(own, longest([]PlannedStep{m}))
		}
		sum += own
	}
	return sum
}

// parallel runs steps at once and returns when all have ended. The first that the job must
// not go on after decides, and cancels the others: the job's result is settled, and what is
// left of its time is for its end.
func (c *consumer) parallel(ctx context.Context, a *action, in messages.Instance, steps []PlannedStep, so outcomeKind) (outcome, []PlannedStep) {
	group, end := context.WithCancelCause(ctx)
	defer end(nil)
	var (
		first  sync.Once
		result = outcome{instance: in.ID}
		begun  = make([][]PlannedStep, len(steps))
		errs   = make([]error, len(steps))
		all    sync.WaitGroup
	)
	for i, s := range steps {
		all.Go(func() {
			var out outcome
			if group.Err() != nil { // another was quicker to fail than this one to begin
				c.skip(a, in, s, context.Cause(group).Error())
				out = ended(group, in, s.label())
			} else {
				out, begun[i] = c.perform(group, a, in, s, so)
				errs[i] = out.err
			}
			if out.kind != succeeded {
				first.Do(func() { result = out })
				end(errBeside)
			}
		})
	}
	all.Wait()
	if result.kind == succeeded {
		result.err = errors.Join(errs...)
	}
	return result, slices.Concat(begun...)
}
