package worker_test

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

const reconcileEvery = 5 * time.Minute

// fleet is several workers that look for lost actions, and what their steps did.
type fleet struct {
	*cloud
	workers []*running

	mu   sync.Mutex
	runs map[messages.Token]int // guarded by mu; how often a job of the action was begun
}

// newFleet starts workers on a cloud; each job takes so long.
func newFleet(c *cloud, workers int, takes time.Duration, change func(*worker.Options)) *fleet {
	f := &fleet{cloud: c, runs: map[messages.Token]int{}}
	for i := range workers {
		f.join(fmt.Sprintf("w%d", i+1), takes, change)
	}
	return f
}

func (f *fleet) join(name string, takes time.Duration, change func(*worker.Options)) *running {
	step := stepFunc(func(ctx context.Context, in messages.Instance, _ int) (string, error) {
		f.mu.Lock()
		f.runs[in.Action.Token]++
		f.mu.Unlock()
		select {
		case <-time.After(takes):
			return "", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	})
	r := f.start(settings{name: name, plans: []worker.Plan{plan(4*time.Hour, worker.PlannedStep{Step: step})}, change: func(o *worker.Options) {
		o.ReconcileEvery = reconcileEvery
		if change != nil {
			change(o)
		}
	}})
	f.workers = append(f.workers, r)
	return r
}

// done stops the workers and checks what they leave: each action answered with CONTINUE
// after its jobs ran once.
func (f *fleet) done(jobs int) {
	f.t.Helper()
	for _, r := range f.workers {
		r.stop()
		r.balanced()
	}
	f.answered(messages.Continue)
	for _, a := range f.State().Actions {
		if n := f.runs[messages.Token(a.Token)]; n != jobs {
			f.t.Errorf("%d jobs were begun for action %s, want %d", n, a.Token, jobs)
		}
	}
	for _, q := range f.State().Queues {
		if q.Active+q.Inactive+q.Delayed > 0 {
			f.t.Errorf("messages are left: %+v", q)
		}
	}
}

func (f *fleet) find(e audit.Event) []audit.Record {
	var all []audit.Record
	for _, r := range f.workers {
		all = append(all, r.find(e)...)
	}
	return all
}

// A hook that notifies nobody still has its instances drained, by one worker, long
// before its timeout.
func TestReconcileAHookWithoutATarget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sc := scenario(10, true)
		sc.ScalingGroups[0].Hooks[0].Queue = ""
		f := newFleet(newCloud(t, sc), 3, 20*time.Minute, nil)
		f.scaleIn(4)
		f.until(time.Hour, "all actions answered", f.settled)
		f.done(1)
		for _, a := range f.State().Actions {
			if waited := a.Completed.Sub(a.Started); waited > 20*time.Minute+reconcileEvery+2*time.Minute {
				t.Errorf("action %s took %v", a.Token, waited)
			}
		}
		if n := len(f.find(audit.Announced)); n < 4 {
			t.Errorf("%d announcements for 4 actions", n)
		}
	})
}

// A message that is deleted by somebody else, whose queue was emptied, or that has
// outlived the queue's retention while no worker ran, takes no action with it.
func TestReconcileALostMessage(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(c *cloud){
		"queue made anew": func(c *cloud) { c.deleteQueue(); c.createQueue() },
		"retention":       func(c *cloud) { c.until(5*time.Minute, "the message is dropped", c.empty) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				sc := scenario(5, false)
				sc.Queues[0].Retention = time.Minute
				c := newCloud(t, sc)
				c.scaleIn(2)
				lose(c)
				f := newFleet(c, 2, time.Minute, nil)
				f.until(9*time.Minute, "the action is answered", f.settled)
				f.done(2)
			})
		})
	}
}

// Without a queue there is nobody to ask, and waiting for one would leave the instance
// to the default result.
func TestReconcileWithoutAQueue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCloud(t, scenario(5, false))
		f := newFleet(c, 1, 30*time.Minute, nil)
		c.deleteQueue()
		tokens := f.scaleIn(2)
		f.until(time.Hour, "the action is answered", f.over)
		f.done(2)
		adopted := f.find(audit.Adopted)
		if len(adopted) != 1 || string(adopted[0].Token) != tokens[0] || adopted[0].Reason == "" {
			t.Errorf("adopted: %+v", adopted)
		}
		if n := len(f.find(audit.Acked)); n != 1 {
			t.Errorf("%d closing records", n)
		}
	})
}

// What is adopted without a message takes and gives back its room like anything else.
func TestReconcileWithoutAQueueKeepsToItsRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sc := scenario(12, true)
		sc.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 6 * time.Hour
		c := newCloud(t, sc)
		f := newFleet(c, 1, time.Minute, func(o *worker.Options) { o.MaxActions = 3 })
		c.deleteQueue()
		f.scaleIn(8)
		f.until(time.Hour, "all actions answered", f.over)
		c.createQueue()
		time.Sleep(10 * time.Minute)
		f.scaleIn(3)
		f.until(time.Hour, "all actions answered", f.settled)
		f.done(1)
	})
}

// Replicas see each other's long drains wait in the cloud, and do not begin them a second time.
func TestReconcileLeavesHeldActionsAlone(t *testing.T) {
	hours(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(newCloud(t, scenario(20, true)), 3, 3*time.Hour, nil)
		f.scaleIn(6)
		f.until(4*time.Hour, "all actions answered", f.settled)
		// Who holds an action gets its announcements before they are passed on for the last
		// time, if not always, then nearly so.
		twice := 0
		for token, n := range f.runs {
			if n > 1 {
				twice++
				f.runs[token] = 1
			}
		}
		if twice > 1 {
			t.Errorf("%d of 6 actions were begun twice", twice)
		}
		f.done(1)
		// Each of two replicas announces each action once, not at each look.
		if n := len(f.find(audit.Announced)); n == 0 || n > 2*6 {
			t.Errorf("%d announcements", n)
		}
	})
}

// A worker that begins with an announced action and dies hands it to the others like
// any other: through the queue.
func TestReconcileSurvivesACrash(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sc := scenario(5, false)
		sc.ScalingGroups[0].Hooks[0].Queue = ""
		c := newCloud(t, sc)
		f := newFleet(c, 1, 10*time.Minute, nil)
		f.scaleIn(1)
		first := f.workers[0]
		f.until(10*time.Minute, "the job begins", func() bool { return len(first.find(audit.StepStarted)) > 0 })
		first.kill()
		f.workers = nil
		f.join("w2", 10*time.Minute, nil)
		f.until(15*time.Minute, "the action is answered", f.settled)
		f.done(2)
	})
}

// Thousands of notifications that nobody has received yet are not lost, and are not
// announced again on top.
func TestReconcileWaitsForABacklog(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sc := scenario(60, true)
		sc.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 6 * time.Hour
		f := newFleet(newCloud(t, sc), 1, 10*time.Minute, func(o *worker.Options) { o.MaxActions, o.MaxJobs = 5, 5 })
		f.scaleIn(40)
		f.until(3*time.Hour, "all actions answered", f.settled)
		f.done(1)
		if list := f.find(audit.Announced); len(list) > 0 {
			t.Errorf("announced although its message was in the queue: %+v", list[0])
		}
	})
}

// Reconciliation that lacks a permission says so, once a minute at most, and does no harm to the rest.
func TestReconcileDenied(t *testing.T) {
	t.Parallel()
	for _, at := range []simulator.Fault{
		{Service: "mns", Action: "SendMessage", Kind: simulator.FaultDenied},
		{Service: "ess", Action: "DescribeScalingActivities", Kind: simulator.FaultDenied},
	} {
		t.Run(at.Action, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				sc := scenario(8, true)
				sc.ScalingGroups[0].Hooks = append(sc.ScalingGroups[0].Hooks, simulator.HookConfig{
					ID: "ash-mute", Transition: "scale_in", HeartbeatTimeout: time.Hour, DefaultResult: "CONTINUE",
				})
				c := newCloud(t, sc)
				var logs bytes.Buffer
				f := newFleet(c, 1, time.Minute, nil)
				r := f.start(settings{name: "w2", plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}, logs: &logs, change: func(o *worker.Options) {
					o.ReconcileEvery = reconcileEvery
				}})
				c.inject(at)
				f.scaleIn(2)
				time.Sleep(30 * time.Minute)
				answered := func(hook string) (n int) {
					for _, a := range f.State().Actions {
						if a.Hook == hook && a.EndedBy == "call" {
							n++
						}
					}
					return n
				}
				if answered(hookID) != 2 || answered("ash-mute") != 0 {
					t.Errorf("%d and %d answered, want 2 and 0", answered(hookID), answered("ash-mute"))
				}
				c.ClearFaults()
				f.until(30*time.Minute, "the permission helps", func() bool { return answered("ash-mute") == 2 })
				for _, r := range []*running{r, f.workers[0]} {
					r.stop()
					r.balanced()
				}
				f.answered(messages.Continue)
				text := logs.String()
				if n := strings.Count(text, "can't look for actions whose message was lost"); n == 0 || n > 10 || !strings.Contains(text, at.Action) || !strings.Contains(text, "RAM policy") {
					t.Errorf("%d lines about it:\n%s", n, text)
				}
			})
		})
	}
}

// A hook that no plan is for is not ours, and a mark on a forged message opens no door.
func TestReconcileTouchesNothingElse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sc := scenario(8, false)
		sc.ScalingGroups[0].Hooks = []simulator.HookConfig{{ID: "ash-out", Transition: "scale_out", HeartbeatTimeout: time.Hour, DefaultResult: "CONTINUE"}}
		c := newCloud(t, sc)
		f := newFleet(c, 2, time.Minute, nil)
		if _, err := c.ScaleOut(groupID, 1); err != nil {
			t.Fatal(err)
		}
		forged, err := messages.Reannounce(messages.Action{
			Region: "cn-shenzhen", Group: groupID, Hook: "ash-out", Transition: messages.ScaleIn, Token: "11111111-2222-3333-4444-555555555555",
			Activity: "asa-forged", Instances: []messages.InstanceID{messages.InstanceID(c.State().Groups[0].Instances[0].ID)},
		})
		if err != nil {
			t.Fatal(err)
		}
		c.send(forged)
		time.Sleep(50 * time.Minute)
		for _, r := range f.workers {
			r.stop()
			r.balanced()
		}
		if len(f.runs) > 0 || len(f.find(audit.Announced)) > 0 {
			t.Errorf("jobs %v, announced %v", f.runs, f.find(audit.Announced))
		}
		if stale := f.find(audit.Stale); len(stale) != 1 || !c.empty() {
			t.Errorf("the forged announcement: %+v, queue empty: %v", stale, c.empty())
		}
		if n := len(f.find(audit.Received)); n > 21 { // passed on twenty times
			t.Errorf("it was received %d times", n)
		}
	})
}
