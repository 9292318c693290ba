package worker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// named is a step of the test with a name of its own.
type named struct {
	stepFunc
	name string
}

func (n named) Name() string { return n.name }

// act is a planned step that takes a while and comes to err.
func act(name string, takes time.Duration, err error) worker.PlannedStep {
	return worker.PlannedStep{Step: named{name: name, stepFunc: func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
		select {
		case <-time.After(takes):
			return "", err
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}}}
}

// when gives the step a condition.
func when(w worker.Condition, step worker.PlannedStep) worker.PlannedStep {
	step.When = w
	return step
}

var errTest = errors.New("the backup failed")

// A step whose condition does not hold is left out, and the audit log says why; one that
// nobody can tell the condition of fails.
func TestWhen(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		when  worker.Condition
		fault simulator.FaultKind // what DescribeInstances comes to
		trail []string
		why   string
		calls int
	}{
		{"always", worker.Condition{}, "", []string{"before ok", "step ok", "after ok", "CONTINUE"}, "", 0},
		{"its transition", worker.Condition{Transition: messages.ScaleIn}, "", []string{"before ok", "step ok", "after ok", "CONTINUE"}, "", 0},
		{"the other transition", worker.Condition{Transition: messages.ScaleOut}, "", []string{"before ok", "step skipped", "after ok", "CONTINUE"}, "when: the transition is scale_in, not scale_out", 0},
		{"its tags", worker.Condition{Tags: map[string]string{"role": "web", "tier": ""}}, "", []string{"before ok", "step ok", "after ok", "CONTINUE"}, "", 1},
		{"another value", worker.Condition{Tags: map[string]string{"role": "db"}}, "", []string{"before ok", "step skipped", "after ok", "CONTINUE"}, "when: the tag role is not db", 1},
		{"no such tag", worker.Condition{Tags: map[string]string{"role": "web", "zone": "a"}}, "", []string{"before ok", "step skipped", "after ok", "CONTINUE"}, "when: there is no tag zone", 1},
		{"no answer", worker.Condition{Tags: map[string]string{"role": "web"}}, simulator.FaultDenied, []string{"before ok", "step failed", "ABANDON"}, "the cloud has not told them", -1},
		{"no instance", worker.Condition{Tags: map[string]string{"role": "web"}}, simulator.FaultEmpty, []string{"before ok", "step failed", "ABANDON"}, "the cloud has not told them", -1},
		{"the transition decides first", worker.Condition{Transition: messages.ScaleOut, Tags: map[string]string{"role": "web"}}, simulator.FaultDenied, []string{"before ok", "step skipped", "after ok", "CONTINUE"}, "not scale_out", -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := scenario(3, false)
				s.ScalingGroups[0].Tags = map[string]string{"role": "web", "tier": ""}
				cloud := newCloud(t, s)
				if c.fault != "" {
					cloud.inject(simulator.Fault{Service: "ecs", Action: "DescribeInstances", Kind: c.fault})
				}
				step := act("step", time.Second, nil)
				step.When = c.when
				r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, act("before", time.Second, nil), step, act("after", time.Second, nil))}})
				cloud.scaleIn(1)
				cloud.until(30*time.Minute, "answered", cloud.settled)
				if got := r.trail(); !slices.Equal(got, c.trail) {
					t.Errorf("the audit log says %q, want %q", got, c.trail)
				}
				for _, rec := range r.find(audit.StepFinished) {
					if rec.Step == "step" && !strings.Contains(rec.Reason+rec.Error, c.why) {
						t.Errorf("step %s because of %q %q, want %q", rec.Result, rec.Reason, rec.Error, c.why)
					}
				}
				if n := cloud.State().APICalls["ecs.DescribeInstances"]; c.calls >= 0 && n != c.calls {
					t.Errorf("%d calls of DescribeInstances, want %d", n, c.calls)
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// Steps in parallel begin at once, and the job goes on when the last has ended. The first
// failure ends all of them, and is what the action's reason names.
func TestParallel(t *testing.T) {
	t.Parallel()
	ignored := act("bad", time.Minute, errTest)
	ignored.IgnoreError = true
	retried := act("bad", time.Minute, errTest)
	retried.Retries = 2
	limited := act("slow", time.Hour, nil)
	limited.Timeout = 2 * time.Minute
	for _, c := range []struct {
		name   string
		group  []worker.PlannedStep
		trail  []string // without what comes before and behind
		result messages.Result
		reason string
		takes  time.Duration
	}{
		{"all succeed", []worker.PlannedStep{act("slow", 5*time.Minute, nil), act("quick", time.Minute, nil), act("middle", 3*time.Minute, nil)},
			[]string{"quick ok", "middle ok", "slow ok", "after ok"}, messages.Continue, "1 of 1 jobs succeeded", 5 * time.Minute},
		{"the first fails", []worker.PlannedStep{act("bad", time.Minute, errTest), act("slow", 5*time.Minute, nil)},
			[]string{"bad failed", "slow cancelled"}, messages.Abandon, "step bad of", time.Minute},
		{"the last fails", []worker.PlannedStep{act("slow", 5*time.Minute, nil), act("quick", time.Minute, nil), act("bad", 3*time.Minute, errTest)},
			[]string{"quick ok", "bad failed", "slow cancelled"}, messages.Abandon, "the backup failed", 3 * time.Minute},
		{"a failure is ignored", []worker.PlannedStep{ignored, act("slow", 5*time.Minute, nil)},
			[]string{"bad ignored", "slow ok", "after ok"}, messages.Continue, "1 of 1 jobs succeeded", 5 * time.Minute},
		{"one times out", []worker.PlannedStep{limited, act("slower", 10*time.Minute, nil)},
			[]string{"slow failed", "slower cancelled"}, messages.Abandon, "timed out after 2m0s", 2 * time.Minute},
		{"one is left out", []worker.PlannedStep{when(worker.Condition{Transition: messages.ScaleOut}, act("never", time.Hour, nil)), act("quick", time.Minute, nil)},
			[]string{"never skipped", "quick ok", "after ok"}, messages.Continue, "1 of 1 jobs succeeded", time.Minute},
		{"one finds the instance gone", []worker.PlannedStep{act("left", time.Minute, providers.ErrInstanceGone), act("slow", 5*time.Minute, nil)},
			[]string{"left gone", "slow cancelled"}, messages.Continue, "the instance was gone", time.Minute},
		{"one panics", []worker.PlannedStep{{Step: named{name: "bad", stepFunc: func(context.Context, messages.Instance, int) (string, error) {
			time.Sleep(time.Second)
			panic("index out of range")
		}}}, act("slow", 5*time.Minute, nil)},
			[]string{"bad failed", "slow cancelled"}, messages.Abandon, "panic: index out of range", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, scenario(3, false))
				p := plan(time.Hour, act("before", time.Minute, nil), worker.PlannedStep{Parallel: c.group}, act("after", 0, nil))
				r := cloud.start(settings{plans: []worker.Plan{p}})
				cloud.scaleIn(1)
				cloud.until(50*time.Minute, "answered", cloud.settled)
				cloud.answered(c.result)
				want := append(append([]string{"before ok"}, c.trail...), string(c.result))
				if got := r.trail(); !slices.Equal(got, want) {
					t.Errorf("the audit log says %q, want %q", got, want)
				}
				if done := r.find(audit.Completed); len(done) != 1 || !strings.Contains(done[0].Reason, c.reason) {
					t.Errorf("completed %+v, want one because of %q", done, c.reason)
				}
				a := cloud.State().Actions[0]
				if took := a.Completed.Sub(a.Started) - time.Minute; took < c.takes || took > c.takes+30*time.Second {
					t.Errorf("it took %v, want %v", took, c.takes)
				}
				framed(t, r)
				r.stop()
				r.balanced()
			})
		})
	}
	t.Run("a failure is tried again", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			cloud := newCloud(t, scenario(3, false))
			r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, worker.PlannedStep{Parallel: []worker.PlannedStep{retried, act("quick", 2*time.Minute, nil)}})}})
			cloud.scaleIn(1)
			cloud.until(50*time.Minute, "answered", cloud.settled)
			if got, want := r.trail(), []string{"bad failed", "quick ok", "bad failed", "bad failed", "ABANDON"}; !slices.Equal(got, want) {
				t.Errorf("the audit log says %q, want %q", got, want)
			}
		})
	})
}

// framed checks that each attempt that was begun has ended, once.
func framed(t *testing.T, r *running) {
	t.Helper()
	open := map[string]int{}
	for _, rec := range r.records() {
		key := fmt.Sprintf("%s of %s, attempt %d", rec.Step, rec.Instance, rec.Attempt)
		switch {
		case rec.Event == audit.StepStarted:
			open[key]++
		case rec.Event == audit.StepFinished && rec.Result != "skipped":
			open[key]--
		}
	}
	for key, n := range open {
		if n != 0 {
			t.Errorf("%s: begun and not ended %+d times", key, n)
		}
	}
}

// What has begun in parallel is undone before a ROLLBACK, whichever of it has failed; and a
// stopped worker waits for all of it.
func TestParallelEnds(t *testing.T) {
	t.Parallel()
	t.Run("undone", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			cloud, m := newMachines(t, scenario(3, false))
			p := kept(20*time.Minute, cloud.undoable("zero", "set z", "clear z"), worker.PlannedStep{Parallel: []worker.PlannedStep{
				cloud.undoable("one", "set a", "clear a"), cloud.undoable("two", "set b", "clear b"), act("bad", time.Hour, nil),
			}})
			r := cloud.start(settings{plans: []worker.Plan{p}})
			cloud.scaleIn(1)
			cloud.until(30*time.Minute, "answered", cloud.settled)
			cloud.answered(messages.Rollback)
			got := r.trail()
			if want := []string{"bad cancelled", "undo two ok", "undo one ok", "undo zero ok", "ROLLBACK"}; len(got) < 5 || !slices.Equal(got[len(got)-5:], want) || m.marks() != 0 {
				t.Errorf("the audit log ends %q, want %q; %d marks are left", got, want, m.marks())
			}
			// Three minutes are kept back for undoing.
			if a := cloud.State().Actions[0]; a.Completed.Sub(a.Started) > 17*time.Minute+30*time.Second {
				t.Errorf("answered after %v", a.Completed.Sub(a.Started))
			}
		})
	})
	t.Run("stopped", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			cloud := newCloud(t, scenario(3, false))
			slow := named{name: "slow", stepFunc: func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
				<-ctx.Done()
				time.Sleep(3 * time.Second)
				return "", ctx.Err()
			}}
			p := plan(time.Hour, worker.PlannedStep{Parallel: []worker.PlannedStep{{Step: slow}, act("other", time.Hour, nil)}})
			p.Always = []worker.PlannedStep{act("last", time.Second, nil)}
			r := cloud.start(settings{plans: []worker.Plan{p}, change: func(o *worker.Options) { o.ShutdownGrace = -1 }})
			cloud.scaleIn(1)
			cloud.until(time.Minute, "both run", func() bool { return len(r.find(audit.StepStarted)) == 2 })
			r.stop()
			if got, want := r.trail(), []string{"other cancelled", "slow cancelled"}; !slices.Equal(got, want) || len(r.find(audit.Released)) != 1 {
				t.Errorf("the audit log says %q, want %q and the action handed back", got, want)
			}
			framed(t, r)
			r.balanced()
		})
	})
}

// The steps for every end run when the job has succeeded, failed, or run into its deadline,
// in time kept back for them, and change nothing about the answer.
func TestAlways(t *testing.T) {
	t.Parallel()
	last := act("last", time.Minute, nil)
	last.Timeout = 2 * time.Minute
	bad := act("bad", time.Second, errTest)
	bad.Timeout = time.Minute
	endless := act("endless", 24*time.Hour, nil)
	endless.Timeout = time.Minute
	for _, c := range []struct {
		name          string
		steps, always []worker.PlannedStep
		trail         []string
		result        messages.Result
		reason        string
	}{
		{"it succeeds", []worker.PlannedStep{act("work", time.Minute, nil)}, []worker.PlannedStep{last},
			[]string{"work ok", "last ok", "CONTINUE"}, messages.Continue, "1 of 1 jobs succeeded"},
		{"it fails", []worker.PlannedStep{act("work", time.Minute, errTest), act("more", time.Minute, nil)}, []worker.PlannedStep{last},
			[]string{"work failed", "last ok", "ABANDON"}, messages.Abandon, "the backup failed"},
		{"the deadline passes", []worker.PlannedStep{act("work", time.Hour, nil)}, []worker.PlannedStep{last},
			[]string{"work cancelled", "last ok", "ABANDON"}, messages.Abandon, "the deadline has passed"},
		{"there is nothing else to do", nil, []worker.PlannedStep{last}, []string{"last ok", "CONTINUE"}, messages.Continue, "1 of 1 jobs succeeded"},
		{"one of them fails", []worker.PlannedStep{act("work", time.Minute, nil)}, []worker.PlannedStep{bad, last},
			[]string{"work ok", "bad failed", "last ok", "CONTINUE"}, messages.Continue, "1 of 1 jobs succeeded"},
		{"one of them hangs, at the deadline", []worker.PlannedStep{act("work", time.Hour, nil)}, []worker.PlannedStep{endless, last},
			[]string{"work cancelled", "endless failed", "last ok", "ABANDON"}, messages.Abandon, "the deadline has passed"},
		{"at once", []worker.PlannedStep{act("work", time.Minute, nil)}, []worker.PlannedStep{{Parallel: []worker.PlannedStep{last, act("tell", time.Second, nil)}}},
			[]string{"work ok", "tell ok", "last ok", "CONTINUE"}, messages.Continue, "1 of 1 jobs succeeded"},
		{"for a failure, none", []worker.PlannedStep{act("work", time.Minute, nil)}, []worker.PlannedStep{when(worker.Condition{Job: worker.JobFailed}, bad), when(worker.Condition{Job: worker.JobSucceeded}, last)},
			[]string{"work ok", "bad skipped", "last ok", "CONTINUE"}, messages.Continue, "1 of 1 jobs succeeded"},
		{"for a failure, one", []worker.PlannedStep{act("work", time.Hour, nil)}, []worker.PlannedStep{when(worker.Condition{Job: worker.JobFailed}, last), when(worker.Condition{Job: worker.JobSucceeded}, bad)},
			[]string{"work cancelled", "last ok", "bad skipped", "ABANDON"}, messages.Abandon, "the deadline has passed"},
		{"the instance is gone", []worker.PlannedStep{act("work", time.Minute, providers.ErrInstanceGone)}, []worker.PlannedStep{last},
			[]string{"work gone", "CONTINUE"}, messages.Continue, "the instance was gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, scenario(3, false))
				p := plan(20*time.Minute, c.steps...)
				p.Always = c.always
				r := cloud.start(settings{plans: []worker.Plan{p}})
				cloud.scaleIn(1)
				cloud.until(30*time.Minute, "answered", cloud.settled)
				cloud.answered(c.result)
				if got := r.trail(); !slices.Equal(got, c.trail) {
					t.Errorf("the audit log says %q, want %q", got, c.trail)
				}
				if done := r.find(audit.Completed); len(done) != 1 || !strings.Contains(done[0].Reason, c.reason) {
					t.Errorf("completed %+v, want one because of %q", done, c.reason)
				}
				if a := cloud.State().Actions[0]; a.Completed.Sub(a.Started) > 20*time.Minute+time.Second {
					t.Errorf("answered after %v, the deadline is 20m", a.Completed.Sub(a.Started))
				}
				framed(t, r)
				r.stop()
				r.balanced()
			})
		})
	}
}

// A job that is cut short has no end here: who takes over has it. Nor has one whose action
// is over already.
func TestAlwaysIsNotForInterruptedJobs(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"work", "last"} {
		t.Run("stopped in "+where, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, scenario(3, false))
				p := plan(time.Hour, act("work", time.Minute, nil))
				p.Always = []worker.PlannedStep{act("last", time.Minute, nil), act("very last", time.Minute, nil)}
				first := cloud.start(settings{name: "first", plans: []worker.Plan{p}, change: func(o *worker.Options) { o.ShutdownGrace = -1 }})
				cloud.scaleIn(1)
				cloud.until(10*time.Minute, "it is there", func() bool {
					return slices.ContainsFunc(first.find(audit.StepStarted), func(rec audit.Record) bool { return rec.Step == where })
				})
				first.stop()
				if n := len(first.find(audit.Completed)); n != 0 || len(first.find(audit.Released)) != 1 {
					t.Errorf("the stopped worker says %q, want the action handed back", first.trail())
				}
				second := cloud.start(settings{name: "second", plans: []worker.Plan{p}})
				cloud.until(30*time.Minute, "answered", cloud.settled)
				cloud.answered(messages.Continue)
				if got, want := second.trail(), []string{"work ok", "last ok", "very last ok", "CONTINUE"}; !slices.Equal(got, want) {
					t.Errorf("who takes over says %q, want %q", got, want)
				}
			})
		})
	}
	t.Run("over", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			cloud := newCloud(t, scenario(3, false))
			p := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, in messages.Instance, _ int) (string, error) {
				if _, err := cloud.scaling().Complete(ctx, in.Action, messages.Continue); err != nil {
					t.Error(err)
				}
				<-ctx.Done()
				return "", ctx.Err()
			})})
			p.Always = []worker.PlannedStep{act("last", time.Minute, nil)}
			r := cloud.start(settings{plans: []worker.Plan{p}})
			cloud.scaleIn(1)
			cloud.until(50*time.Minute, "settled", cloud.settled)
			if got, want := r.trail(), []string{"test cancelled"}; !slices.Equal(got, want) {
				t.Errorf("the audit log says %q, want %q", got, want)
			}
		})
	})
}

// An action that is lost while its last step still goes on after the deadline has no end either.
func TestAlwaysIsNotForActionsLostAfterTheDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(3, false))
		p := plan(20*time.Minute, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, in messages.Instance, _ int) (string, error) {
			<-ctx.Done()
			if _, err := cloud.scaling().Complete(context.WithoutCancel(ctx), in.Action, messages.Continue); err != nil {
				t.Error(err)
			}
			time.Sleep(9 * time.Minute) // until a heartbeat has told
			return "", ctx.Err()
		})})
		p.Always = []worker.PlannedStep{act("last", time.Second, nil)}
		p.Always[0].Timeout = 10 * time.Minute
		r := cloud.start(settings{plans: []worker.Plan{p}})
		cloud.scaleIn(1)
		cloud.until(50*time.Minute, "settled", cloud.settled)
		if got, want := r.trail(), []string{"test cancelled"}; !slices.Equal(got, want) {
			t.Errorf("the audit log says %q, want %q", got, want)
		}
	})
}

// Jobs that get no slot before their time is up have begun nothing, and have their end all
// the same, before the deadline.
func TestAlwaysOfJobsWithoutASlot(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		regional := scenario(6, true)
		regional.ScalingGroups[0].Tags = map[string]string{"role": "web"}
		cloud := newCloud(t, regional)
		p := plan(20*time.Minute, act("work", time.Hour, nil))
		p.Always = []worker.PlannedStep{when(worker.Condition{Tags: map[string]string{"role": "web"}}, act("last", 30*time.Second, nil))}
		p.Always[0].Timeout = time.Minute
		r := cloud.start(settings{plans: []worker.Plan{p}, change: func(o *worker.Options) { o.MaxJobs = 1 }})
		cloud.scaleIn(3)
		cloud.until(30*time.Minute, "answered", cloud.settled)
		cloud.answered(messages.Abandon)
		begun, ended := 0, 0
		for _, step := range r.trail() {
			switch step {
			case "work cancelled":
				begun++
			case "last ok":
				ended++
			}
		}
		if begun != 1 || ended != 3 {
			t.Errorf("%d jobs were begun and %d had their end, want 1 and 3: %q", begun, ended, r.trail())
		}
		for _, a := range cloud.State().Actions {
			if took := a.Completed.Sub(a.Started); took > 20*time.Minute+time.Second {
				t.Errorf("answered after %v, the deadline is 20m", took)
			}
		}
	})
}
