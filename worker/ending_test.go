package worker_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
	"example.org/usher/worker/steps"
)

// machines are what scripts do to the simulated instances: "set X" and "clear X" change
// them, "fail" fails, "slow" takes half a minute.
type machines struct {
	mu  sync.Mutex
	set map[string]bool // guarded by mu; by instance and mark
	log []string        // guarded by mu
}

func (m *machines) run(id, script string) simulator.CommandOutcome {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = append(m.log, script)
	switch verb, what, _ := strings.Cut(script, " "); verb {
	case "set":
		m.set[id+" "+what] = true
	case "clear":
		delete(m.set, id+" "+what)
	case "slow":
		return simulator.CommandOutcome{Duration: 30 * time.Second}
	case "fail":
		return simulator.CommandOutcome{ExitCode: 1, Output: "no such table"}
	}
	return simulator.CommandOutcome{Duration: time.Second}
}

// ran gives the scripts that have run, in order.
func (m *machines) ran() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.log)
}

// marks counts what is set on all instances.
func (m *machines) marks() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.set)
}

func newMachines(t *testing.T, s simulator.Scenario) (*cloud, *machines) {
	t.Helper()
	m := &machines{set: map[string]bool{}}
	return newCloudWith(t, simulator.Options{Scenario: s, Commands: m.run}), m
}

// scripted is a step that runs a script on the instance, and has another one for undoing it.
type scripted struct {
	steps.Command
	name string
	undo string
}

func (s scripted) Name() string { return s.name }

func (s scripted) Undo(ctx context.Context, in messages.Instance) (string, error) {
	s.Script = s.undo
	return s.Command.Run(ctx, in, 0)
}

// script is a planned step that runs a script and can't be undone.
func (c *cloud) script(name, script string) worker.PlannedStep {
	return worker.PlannedStep{Timeout: 5 * time.Minute, Step: struct{ worker.Step }{
		scripted{Command: steps.Command{Script: script, Timeout: 5 * time.Minute, Commander: c.assistant()}, name: name},
	}}
}

// undoable is one that can be undone.
func (c *cloud) undoable(name, script, undo string) worker.PlannedStep {
	return worker.PlannedStep{Timeout: 5 * time.Minute, UndoTimeout: time.Minute, Step: scripted{
		Command: steps.Command{Script: script, Timeout: time.Minute, Commander: c.assistant()}, name: name, undo: undo,
	}}
}

// trail is what the audit log says of the steps, in order.
func (r *running) trail() []string {
	var list []string
	for _, rec := range r.records() {
		switch rec.Event {
		case audit.StepFinished:
			list = append(list, rec.Step+" "+rec.Result)
		case audit.Completed:
			list = append(list, rec.Result)
		}
	}
	return list
}

// kept is a plan whose failures keep the instances.
func kept(deadline time.Duration, steps ...worker.PlannedStep) worker.Plan {
	p := plan(deadline, steps...)
	p.OnFailure = messages.Rollback
	return p
}

// Before an answer that keeps the instance the steps that its job has begun are undone, the
// last one first; before one that lets it go nothing is.
func TestUndo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		keep   func(time.Duration, ...worker.PlannedStep) worker.Plan
		plan   func(*cloud) []worker.PlannedStep
		trail  []string
		ran    []string
		result messages.Result
		marks  int
	}{
		{"a step fails", kept, func(c *cloud) []worker.PlannedStep {
			return []worker.PlannedStep{c.undoable("first", "set a", "clear a"), c.script("plain", "set x"), c.undoable("second", "set b", "clear b"), c.script("check", "fail"), c.undoable("never", "set c", "clear c")}
		}, []string{"first ok", "plain ok", "second ok", "check failed", "undo second ok", "undo first ok", "ROLLBACK"},
			[]string{"set a", "set x", "set b", "fail", "clear b", "clear a"}, messages.Rollback, 1},
		{"the step itself fails", kept, func(c *cloud) []worker.PlannedStep {
			return []worker.PlannedStep{c.undoable("first", "set a", "clear a"), c.undoable("second", "fail", "clear b")}
		}, []string{"first ok", "second failed", "undo second ok", "undo first ok", "ROLLBACK"},
			[]string{"set a", "fail", "clear b", "clear a"}, messages.Rollback, 0},
		{"an undo fails", kept, func(c *cloud) []worker.PlannedStep {
			return []worker.PlannedStep{c.undoable("first", "set a", "clear a"), c.undoable("second", "set b", "fail too"), c.script("check", "fail")}
		}, []string{"first ok", "second ok", "check failed", "undo second failed", "undo first ok", "ROLLBACK"},
			[]string{"set a", "set b", "fail", "fail too", "clear a"}, messages.Rollback, 1},
		{"all succeed", kept, func(c *cloud) []worker.PlannedStep {
			return []worker.PlannedStep{c.undoable("first", "set a", "clear a"), c.script("plain", "set x")}
		}, []string{"first ok", "plain ok", "CONTINUE"}, []string{"set a", "set x"}, messages.Continue, 2},
		{"the instance goes all the same", plan, func(c *cloud) []worker.PlannedStep {
			return []worker.PlannedStep{c.undoable("first", "set a", "clear a"), c.script("check", "fail")}
		}, []string{"first ok", "check failed", "ABANDON"}, []string{"set a", "fail"}, messages.Abandon, 1},
		{"a failure is ignored", kept, func(c *cloud) []worker.PlannedStep {
			ignored := c.script("check", "fail")
			ignored.IgnoreError = true
			return []worker.PlannedStep{c.undoable("first", "set a", "clear a"), ignored}
		}, []string{"first ok", "check ignored", "CONTINUE"}, []string{"set a", "fail"}, messages.Continue, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud, m := newMachines(t, scenario(3, false))
				r := cloud.start(settings{plans: []worker.Plan{c.keep(time.Hour, c.plan(cloud)...)}})
				cloud.scaleIn(1)
				cloud.until(30*time.Minute, "answered", cloud.settled)
				cloud.answered(c.result)
				if got := r.trail(); !slices.Equal(got, c.trail) {
					t.Errorf("the audit log says %q, want %q", got, c.trail)
				}
				if got := m.ran(); !slices.Equal(got, c.ran) || m.marks() != c.marks {
					t.Errorf("%q ran and left %d marks, want %q and %d", got, m.marks(), c.ran, c.marks)
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// The time that undoing may take is kept back: a job that runs into its deadline is undone
// and answered before it, and one whose undoing hangs is answered all the same.
func TestUndoAtTheDeadline(t *testing.T) {
	t.Parallel()
	for name, hangs := range map[string]bool{"undone": false, "the undoing hangs": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud, m := newMachines(t, scenario(3, false))
				block := cloud.undoable("block", "set a", "clear a")
				if hangs {
					block.Step = endless{}
				}
				r := cloud.start(settings{plans: []worker.Plan{kept(20*time.Minute, block, takes(time.Hour))}})
				cloud.scaleIn(1)
				cloud.until(30*time.Minute, "answered", cloud.settled)
				cloud.answered(messages.Rollback)
				a := cloud.State().Actions[0]
				took := a.Completed.Sub(a.Started)
				if least := 19 * time.Minute; took < least-time.Second || took > 20*time.Minute+2*time.Second {
					t.Errorf("answered after %v, want from %v to the deadline", took, least)
				}
				got, want := r.trail(), []string{"block ok", "test cancelled", "undo block ok", "ROLLBACK"}
				if hangs {
					want[2] = "undo block failed"
					if len(got) == len(want) && got[2] == "undo block cancelled" {
						want[2] = got[2] // its own time limit and the job's last moment are the same one
					}
				}
				if !slices.Equal(got, want) || !hangs && m.marks() != 0 {
					t.Errorf("the audit log says %q, want %q; %d marks are left", got, want, m.marks())
				}
				if done := r.find(audit.Completed); len(done) != 1 || !strings.Contains(done[0].Reason, "the deadline has passed") {
					t.Errorf("completed %+v, want one because of the deadline", done)
				}
			})
		})
	}
}

// endless is a step that does nothing, and whose undoing does not end by itself.
type endless struct{}

func (endless) Name() string { return "block" }

func (endless) Run(context.Context, messages.Instance, int) (string, error) { return "", nil }

func (endless) Undo(ctx context.Context, _ messages.Instance) (string, error) {
	<-ctx.Done()
	return "", ctx.Err()
}

// A worker that is stopped undoes nothing, neither in the middle of the steps nor of the
// undoing: the one that takes over begins with the first step.
func TestUndoIsNotForHandedBackJobs(t *testing.T) {
	t.Parallel()
	for _, at := range []string{"set a", "slow undo"} {
		t.Run("stopped at "+at, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud, m := newMachines(t, scenario(3, false))
				p := kept(time.Hour, cloud.undoable("block", "set a", "slow undo"), cloud.script("wait", "slow wait"), cloud.script("check", "fail"))
				first := cloud.start(settings{name: "first", plans: []worker.Plan{p}, change: func(o *worker.Options) { o.ShutdownGrace = -1 }})
				cloud.scaleIn(1)
				cloud.until(10*time.Minute, "it is there", func() bool { return slices.Contains(m.ran(), at) })
				first.stop()
				if got := first.trail(); slices.Contains(got, "undo block ok") || slices.Contains(got, "ROLLBACK") {
					t.Errorf("the stopped worker says %q", got)
				}
				if released := first.find(audit.Released); len(released) != 1 {
					t.Errorf("released %+v, want the action handed back", released)
				}
				second := cloud.start(settings{name: "second", plans: []worker.Plan{p}})
				cloud.until(30*time.Minute, "answered", cloud.settled)
				cloud.answered(messages.Rollback)
				if got, want := second.trail(), []string{"block ok", "wait ok", "check failed", "undo block ok", "ROLLBACK"}; !slices.Equal(got, want) {
					t.Errorf("who takes over says %q, want %q", got, want)
				}
				first.balanced()
				second.balanced()
			})
		})
	}
}

// A step whose time was over before it could begin, since nobody could say whether its message
// was still ours, has begun nothing that could be undone.
func TestUndoIsNotForStepsThatNeverRan(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(3, false)
		s.Queues[0].VisibilityTimeout = time.Hour // what is not renewed is ours all the same
		cloud, m := newMachines(t, s)
		cloud.inject(simulator.Fault{Service: "mns", Action: "ChangeMessageVisibility", Kind: simulator.FaultHang})
		r := cloud.start(settings{plans: []worker.Plan{kept(20*time.Minute, cloud.undoable("block", "set a", "clear a"), takes(10*time.Minute), cloud.undoable("never", "set b", "clear b"))}})
		cloud.scaleIn(1)
		time.Sleep(18*time.Minute + 30*time.Second) // two of the minutes are kept for the undoing
		cloud.ClearFaults()
		cloud.until(5*time.Minute, "answered", cloud.settled)
		cloud.answered(messages.Rollback)
		if got, want := r.trail(), []string{"block ok", "test ok", "undo block ok", "ROLLBACK"}; !slices.Equal(got, want) {
			t.Errorf("the audit log says %q, want %q", got, want)
		}
		if got, want := m.ran(), []string{"set a", "clear a"}; !slices.Equal(got, want) {
			t.Errorf("%q ran, want %q", got, want)
		}
		r.stop()
		r.balanced()
	})
}

// What a worker that died had blocked is undone by the one that takes over, also where that
// one does not come so far itself.
func TestUndoOfWhatADeadWorkerBegan(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]bool{"an earlier step fails": false, "no time is left": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud, m := newMachines(t, scenario(3, false))
				var tries atomic.Int32
				deadline := time.Hour
				if late {
					deadline = 3 * time.Minute
				}
				p := kept(deadline, worker.PlannedStep{Step: stepFunc(func(context.Context, messages.Instance, int) (string, error) {
					if tries.Add(1) > 1 {
						return "", errors.New("the application does not answer")
					}
					return "", nil
				})}, cloud.undoable("block", "set a", "clear a"), takes(time.Hour))
				first := cloud.start(settings{name: "first", plans: []worker.Plan{p}})
				cloud.scaleIn(1)
				cloud.until(10*time.Minute, "it is there", func() bool { return slices.Contains(m.ran(), "set a") })
				first.kill()
				if late {
					time.Sleep(2 * time.Minute)
				}
				second := cloud.start(settings{name: "second", plans: []worker.Plan{p}})
				cloud.until(30*time.Minute, "answered", cloud.settled)
				cloud.answered(messages.Rollback)
				if m.marks() != 0 {
					t.Errorf("%d instances stay blocked; %q", m.marks(), second.trail())
				}
				second.stop()
				second.balanced()
			})
		})
	}
}

// A ROLLBACK keeps the instance whatever another hook's plan has begun there, and whether
// that one still works or has answered before.
func TestUndoOfWhatAnotherHookBegan(t *testing.T) {
	t.Parallel()
	for name, lasts := range map[string]time.Duration{"it still works": time.Hour, "it has answered": time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, plans := twoHooks(messages.ScaleIn, 3, false, act("", 0, nil), act("backup", 5*time.Minute, errTest))
				cloud, m := newMachines(t, s)
				plans[0].Steps = []worker.PlannedStep{cloud.undoable("block", "set a", "clear a"), takes(lasts)}
				r := cloud.start(settings{plans: plans})
				cloud.scaleIn(1)
				cloud.until(30*time.Minute, "answered", cloud.settled)
				if trail := r.trail(); m.marks() != 0 || !slices.Contains(trail, "undo block ok") {
					t.Errorf("%d instances stay blocked: %q", m.marks(), trail)
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// What is somebody else's, or gone, is left alone.
func TestUndoIsNotForLostOrGoneJobs(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*cloud, messages.Instance){
		"gone": func(c *cloud, in messages.Instance) {
			if err := c.Terminate(string(in.ID)); err != nil {
				c.t.Error(err)
			}
		},
		"over": func(c *cloud, in messages.Instance) {
			if _, err := c.scaling().Complete(c.t.Context(), in.Action, messages.Continue); err != nil {
				c.t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud, m := newMachines(t, scenario(3, false))
				r := cloud.start(settings{plans: []worker.Plan{kept(20*time.Minute, cloud.undoable("block", "set a", "clear a"), worker.PlannedStep{
					Step: stepFunc(func(ctx context.Context, in messages.Instance, _ int) (string, error) {
						end(cloud, in)
						select {
						case <-ctx.Done():
							return "", ctx.Err()
						case <-time.After(8 * time.Minute):
							return "", errors.New("requests are still open")
						}
					}),
				})}})
				cloud.scaleIn(1)
				cloud.until(30*time.Minute, "settled", cloud.settled)
				if got := m.ran(); !slices.Equal(got, []string{"set a"}) {
					t.Errorf("%q ran, want no undoing", got)
				}
				for _, step := range r.trail() {
					if strings.HasPrefix(step, "undo") {
						t.Errorf("the audit log says %q", r.trail())
					}
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// One answer is for all instances of an action: what keeps the one whose job failed keeps
// the others, and all of them are undone.
func TestUndoIsOfAllThatTheAnswerKeeps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud, m := newMachines(t, scenario(6, false))
		var failing sync.Once
		p := kept(time.Hour, cloud.undoable("block", "set a", "clear a"), worker.PlannedStep{
			Step: stepFunc(func(context.Context, messages.Instance, int) (_ string, err error) {
				failing.Do(func() { err = fmt.Errorf("the backup failed") })
				return "", err
			}),
		})
		r := cloud.start(settings{plans: []worker.Plan{p}})
		cloud.scaleIn(3)
		cloud.until(30*time.Minute, "answered", cloud.settled)
		cloud.answered(messages.Rollback)
		if n, ran := m.marks(), m.ran(); n != 0 || len(ran) != 6 {
			t.Errorf("%d instances are left blocked, %q ran", n, ran)
		}
		r.stop()
		r.balanced()
	})
}
