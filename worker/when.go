package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"example.org/usher/messages"
	"example.org/usher/worker/audit"
)

// Condition says when a step runs. The zero value always holds.
type Condition struct {
	// Transition is the one that it runs at; "": at either.
	Transition messages.Transition
	// Tags are those that the instance must have in the cloud, with these values.
	Tags map[string]string
	// Job is how the job must stand, for the steps of Plan.Always.
	Job JobState
}

// JobState is how a job stands when its steps have ended.
type JobState string

// The states that a Condition can ask for; the zero value stands for either.
const (
	JobSucceeded JobState = "succeeded"
	JobFailed    JobState = "failed"
)

// errTags is told when a condition needs tags that the cloud did not give. Nobody can say
// then whether the step is needed, so it fails: what is left out would pass for done.
var errTags = errors.New("the step depends on the instance's tags, and the cloud has not told them (DescribeInstances): the log says why")

// holds says whether the step is to run for an instance whose job stands so, or else why not.
func (w Condition) holds(in messages.Instance, so outcomeKind) (ok bool, why string, err error) {
	if w.Transition != "" && w.Transition != in.Action.Transition {
		return false, fmt.Sprintf("when: the transition is %s, not %s", in.Action.Transition, w.Transition), nil
	}
	if failing := so == failed; w.Job != "" && failing != (w.Job == JobFailed) {
		return false, fmt.Sprintf("when: the job has not %s", w.Job), nil
	}
	if len(w.Tags) > 0 && in.Tags == nil {
		return false, "", errTags
	}
	for _, key := range slices.Sorted(maps.Keys(w.Tags)) {
		// What the tag is instead may be anything, and is nothing for the audit log.
		if value, there := in.Tags[key]; !there {
			return false, fmt.Sprintf("when: there is no tag %s", key), nil
		} else if value != w.Tags[key] {
			return false, fmt.Sprintf("when: the tag %s is not %s", key, w.Tags[key]), nil
		}
	}
	return true, "", nil
}

// asksTags says whether a step depends on the instances' tags.
func asksTags(list []PlannedStep) bool {
	return slices.ContainsFunc(list, func(s PlannedStep) bool { return len(s.When.Tags) > 0 || asksTags(s.Parallel) })
}

// readTags asks for the tags of the action's instances, for a minute at most.
func (c *consumer) readTags(ctx context.Context, a *action) {
	ctx, cancel := context.WithTimeout(ctx, verifyTimeout)
	defer cancel()
	for attempt := 0; ; attempt++ {
		tags, err := a.group.Lifecycle.Tags(ctx, a.Region, a.Instances)
		if err == nil {
			for i := range a.instances {
				a.instances[i].Tags = tags[a.instances[i].ID]
			}
			return
		}
		if !pause(ctx, backoff(attempt, 2*time.Second, 10*time.Second)) {
			a.log.Warn("can't read the instances' tags, steps that depend on them will fail", keyError, err)
			return
		}
	}
}

// skip records that a step does not run.
func (c *consumer) skip(a *action, in messages.Instance, s PlannedStep, why string) {
	a.record(audit.Record{Event: audit.StepFinished, Instance: in.ID, Step: s.label(), Result: "skipped", Reason: why})
}

// refuse records that nobody can say whether a step is to run.
func (c *consumer) refuse(a *action, in messages.Instance, s PlannedStep, err error) {
	rec := audit.Record{Event: audit.StepStarted, Instance: in.ID, Step: s.label(), Attempt: 1}
	a.record(rec)
	rec.Event, rec.Result, rec.Error = audit.StepFinished, "failed", err.Error()
	if s.IgnoreError {
		rec.Result = "ignored"
	}
	a.record(rec)
}
