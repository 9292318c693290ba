package worker_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers/alibaba"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
	"example.org/usher/worker/steps"
)

// launching is one group with one scale-out hook.
func launching() simulator.Scenario {
	s := scenario(1, false)
	s.ScalingGroups[0].Hooks[0].Transition = "scale_out"
	s.ScalingGroups[0].Hooks[0].DefaultResult = "ABANDON"
	return s
}

func launchPlan(deadline time.Duration, steps ...worker.PlannedStep) worker.Plan {
	p := plan(deadline, steps...)
	p.Transition = messages.ScaleOut
	return p
}

func (c *cloud) scaleOut(n int) simulator.Activity {
	c.t.Helper()
	act, err := c.ScaleOut(groupID, n)
	if err != nil {
		c.t.Fatal(err)
	}
	return act
}

// noted is what steps and scripts note for their test. The zero value is empty.
type noted[T any] struct {
	mu   sync.Mutex
	list []T // guarded by mu
}

func (n *noted[T]) add(v T) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, v)
}

func (n *noted[T]) all() []T {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.list)
}

// inService says which of the instances are.
func (c *cloud) inService(ids []string) (list []string) {
	state := c.State()
	for _, id := range ids {
		if in, ok := state.Instance(id); ok && in.State == "InService" {
			list = append(list, id)
		}
	}
	return list
}

// A machine that has just been started: the service does not tell its address yet, ECS
// does not know it, and Cloud Assistant comes up last. All of that is waited for, and the
// script runs once.
func TestLaunchIsWaitedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := launching()
		s.Timings = simulator.Timings{Boot: 40 * time.Second, Address: 25 * time.Second, Agent: 3 * time.Minute, Listing: 5 * time.Second}
		var ran, addresses noted[string]
		cloud := newCloudWith(t, simulator.Options{Scenario: s, Commands: func(id, _ string) simulator.CommandOutcome {
			ran.add(id)
			return simulator.CommandOutcome{Duration: 20 * time.Second}
		}})
		r := cloud.start(settings{plans: []worker.Plan{launchPlan(time.Hour,
			worker.PlannedStep{Step: stepFunc(func(_ context.Context, in messages.Instance, _ int) (string, error) {
				addresses.add(in.PrivateIP.String())
				return "", nil
			})},
			worker.PlannedStep{Step: steps.Command{Script: "/opt/app/install.sh", Timeout: 10 * time.Minute, Commander: cloud.assistant()}, Timeout: 10 * time.Minute},
		)}})
		act := cloud.scaleOut(1)
		cloud.until(10*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		in, _ := cloud.State().Instance(act.Instances[0])
		if !slices.Equal(addresses.all(), []string{in.Address}) || !slices.Equal(ran.all(), act.Instances) || in.State != "InService" {
			t.Errorf("steps saw %q, the script ran on %q, the instance is %+v", addresses.all(), ran.all(), in)
		}
		r.stop()
		r.balanced()
	})
}

// assistant reaches the instances of the cloud.
func (c *cloud) assistant() *alibaba.Assistant {
	c.t.Helper()
	a, err := alibaba.NewAssistant(alibaba.Options{
		Region: "cn-shenzhen", ECSEndpoint: "http://ecs.test", Credentials: alibaba.StaticCredentials(keyID, keySecret), DialContext: c.listener.DialContext,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(a.Close)
	return a
}

// scaling is a client of the cloud that is no worker's.
func (c *cloud) scaling() *alibaba.Scaling {
	c.t.Helper()
	s, err := alibaba.NewScaling(alibaba.Options{
		Region: "cn-shenzhen", ESSEndpoint: "http://ess.test", ECSEndpoint: "http://ecs.test", Credentials: alibaba.StaticCredentials(keyID, keySecret), DialContext: c.listener.DialContext,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(s.Close)
	return s
}

// A worker that takes over finds the script running that its predecessor has started after
// several tries, and does not start it again.
func TestLaunchIsTakenOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := launching()
		s.Timings.Agent = 20 * time.Second
		var ran atomic.Int64
		cloud := newCloudWith(t, simulator.Options{Scenario: s, Commands: func(string, string) simulator.CommandOutcome {
			ran.Add(1)
			return simulator.CommandOutcome{Duration: 5 * time.Minute}
		}})
		plans := []worker.Plan{launchPlan(time.Hour, worker.PlannedStep{Step: steps.Command{Script: "install", Timeout: 10 * time.Minute, Commander: cloud.assistant()}, Timeout: 10 * time.Minute})}
		a := cloud.start(settings{name: "a", plans: plans})
		act := cloud.scaleOut(1)
		cloud.until(time.Minute, "the script runs", func() bool { return ran.Load() == 1 })
		a.kill()
		cloud.start(settings{name: "b", plans: plans})
		cloud.until(20*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		if ran.Load() != 1 || len(cloud.inService(act.Instances)) != 1 {
			t.Errorf("the script ran %d times, %d in service", ran.Load(), len(cloud.inService(act.Instances)))
		}
	})
}

// Cloud Assistant never comes up: the step's timeout ends it, the failure result follows,
// and the reason says why.
func TestLaunchWithoutAnAgent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, launching())
		r := cloud.start(settings{plans: []worker.Plan{launchPlan(time.Hour,
			worker.PlannedStep{Step: steps.Command{Script: "install", Timeout: 5 * time.Minute, Commander: cloud.assistant()}, Timeout: 5 * time.Minute})}})
		act := cloud.scaleOut(2)
		cloud.until(10*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Abandon)
		if n := len(cloud.inService(act.Instances)); n != 0 {
			t.Errorf("%d in service", n)
		}
		reason := r.find(audit.Completed)[0].Reason
		if !strings.Contains(reason, "timed out after 5m0s") || !strings.Contains(reason, "ClientNotRunning") {
			t.Errorf("reason %q", reason)
		}
	})
}

// A launching instance that is gone is no success: it is not ready, and one answer goes
// for all. Were it CONTINUE, the instances that are left would join as if all had.
func TestLaunchedInstanceDies(t *testing.T) {
	t.Parallel()
	const poll = 2 * time.Minute
	for name, tt := range map[string]struct {
		die       time.Duration // after the scale-out
		all       bool
		onFailure messages.Result
		want      int // in service
	}{
		"before anybody looks":  {time.Second, false, messages.Abandon, 0},
		"in the middle":         {time.Minute, false, messages.Abandon, 0},
		"all in the middle":     {time.Minute, true, messages.Abandon, 0},
		"the others join":       {time.Minute, false, messages.Continue, 2},
		"all before":            {time.Second, true, messages.Abandon, 0},
		"the others are rolled": {time.Minute, false, messages.Rollback, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := launching()
				s.Timings.Listing = 2 * time.Second
				cloud := newCloud(t, s)
				p := launchPlan(time.Hour, worker.PlannedStep{Timeout: poll, Step: stepFunc(func(ctx context.Context, in messages.Instance, _ int) (string, error) {
					for begun := time.Now(); sleep(ctx, time.Second); {
						if _, there := cloud.State().Instance(string(in.ID)); there && time.Since(begun) > 90*time.Second {
							return "", nil
						}
					}
					return "", errors.New("it does not answer")
				})})
				p.OnFailure = tt.onFailure
				r := cloud.start(settings{plans: []worker.Plan{p}})
				act := cloud.scaleOut(3)
				time.Sleep(tt.die)
				dead := act.Instances[1:2]
				if tt.all {
					dead = act.Instances
				}
				for _, id := range dead {
					if err := cloud.Terminate(id); err != nil {
						t.Error(err)
					}
				}
				cloud.until(10*time.Minute, "settled", cloud.settled)
				cloud.answered(tt.onFailure)
				if n := len(cloud.inService(act.Instances)); n != tt.want {
					t.Errorf("%d in service, want %d", n, tt.want)
				}
				reason := r.find(audit.Completed)[0].Reason
				if !strings.Contains(reason, "of 3 jobs failed") || !strings.Contains(reason, "instance is gone") {
					t.Errorf("reason %q", reason)
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// The deadline passes while the instance does not answer.
func TestLaunchDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, launching())
		r := cloud.start(settings{plans: []worker.Plan{launchPlan(20*time.Minute, takes(time.Hour))}})
		act := cloud.scaleOut(1)
		cloud.until(25*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Abandon)
		if got := r.find(audit.Completed)[0]; !strings.Contains(got.Reason, "the deadline has passed") || len(cloud.inService(act.Instances)) != 0 {
			t.Errorf("completed for the reason %q", got.Reason)
		}
	})
}

// Nothing that the worker sends gets through until the default result has struck: the
// instance has joined or not without it, and the audit log says so.
func TestLaunchDefaultResult(t *testing.T) {
	t.Parallel()
	for _, result := range []string{"CONTINUE", "ABANDON"} {
		t.Run(result, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := launching()
				s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = time.Minute
				s.ScalingGroups[0].Hooks[0].DefaultResult = result
				cloud := newCloud(t, s)
				cloud.front = func(w http.ResponseWriter, r *http.Request) bool {
					refused := r.URL.Query().Get("Action") == "RecordLifecycleActionHeartbeat"
					if refused {
						w.WriteHeader(http.StatusServiceUnavailable)
					}
					return refused
				}
				r := cloud.start(settings{plans: []worker.Plan{launchPlan(time.Hour, takes(10*time.Minute))}})
				act := cloud.scaleOut(1)
				cloud.until(20*time.Minute, "settled", cloud.settled)
				if a := cloud.State().Actions[0]; a.EndedBy != "timeout" || a.Result != result {
					t.Errorf("action %+v", a)
				}
				if n := len(cloud.inService(act.Instances)); n != map[string]int{"CONTINUE": 1}[result] {
					t.Errorf("%d in service", n)
				}
				acked := r.find(audit.Acked)
				if len(r.find(audit.Completed)) != 0 || len(acked) != 1 || !strings.Contains(acked[0].Reason, "it was over before our answer") {
					t.Errorf("closed with %+v", acked)
				}
			})
		})
	}
}

// The service lists the action, and its instance as one that does not wait yet, for
// longer than listings usually lag. The message is not dropped for that.
func TestLaunchStateLagsBehind(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, launching())
		begun := time.Now()
		cloud.front = func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("Action") != "DescribeScalingInstances" || time.Since(begun) > 90*time.Second {
				return false
			}
			answer := httptest.NewRecorder()
			cloud.Simulator.ServeHTTP(answer, r)
			w.Header().Set("Content-Type", answer.Header().Get("Content-Type"))
			w.WriteHeader(answer.Code)
			w.Write(bytes.ReplaceAll(answer.Body.Bytes(), []byte("Pending:Wait"), []byte("Pending")))
			return true
		}
		r := cloud.start(settings{plans: []worker.Plan{launchPlan(time.Hour, takes(time.Second))}})
		act := cloud.scaleOut(1)
		cloud.until(10*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		if len(cloud.inService(act.Instances)) != 1 || len(r.find(audit.Stale)) != 0 {
			t.Errorf("in service %q, stale %+v", cloud.inService(act.Instances), r.find(audit.Stale))
		}
	})
}

// A machine that neither ESS nor ECS lists for a while, although its action is listed with
// it: were it taken for gone as one is that leaves, it would be released.
func TestLaunchIsNotListedAtFirst(t *testing.T) {
	t.Parallel()
	for name, list := range map[string][]worker.PlannedStep{"steps": {takes(time.Second)}, "no steps": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, launching())
				begun := time.Now()
				cloud.front = func(w http.ResponseWriter, r *http.Request) bool {
					r.ParseForm()
					nothing := map[string]string{
						"DescribeScalingInstances": `{"TotalCount":0,"PageNumber":1,"PageSize":50,"ScalingInstances":{"ScalingInstance":[]},"RequestId":"R"}`,
						"DescribeInstances":        `{"TotalCount":0,"PageNumber":1,"PageSize":50,"Instances":{"Instance":[]},"RequestId":"R"}`,
					}[r.Form.Get("Action")]
					if nothing == "" || time.Since(begun) > 45*time.Second {
						return false
					}
					w.Header().Set("Content-Type", "application/json")
					io.WriteString(w, nothing)
					return true
				}
				r := cloud.start(settings{plans: []worker.Plan{launchPlan(time.Hour, list...)}})
				act := cloud.scaleOut(2)
				cloud.until(10*time.Minute, "settled", cloud.settled)
				cloud.answered(messages.Continue)
				if n := len(cloud.inService(act.Instances)); n != 2 {
					t.Errorf("%d in service", n)
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// An address that never becomes known keeps the steps waiting for a minute, no longer:
// a script needs none.
func TestLaunchWithoutAnAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := launching()
		s.Timings.Address = time.Hour
		cloud := newCloud(t, s)
		var began noted[time.Duration]
		begun := time.Now()
		r := cloud.start(settings{plans: []worker.Plan{launchPlan(time.Hour, worker.PlannedStep{
			Step: stepFunc(func(_ context.Context, in messages.Instance, _ int) (string, error) {
				if began.add(time.Since(begun)); in.PrivateIP.IsValid() || in.Gone {
					t.Errorf("instance %+v", in)
				}
				return "", nil
			}),
		})}})
		cloud.scaleOut(1)
		cloud.until(10*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		if all := began.all(); len(all) != 1 || all[0] < unlistedLaunch || all[0] > unlistedLaunch+15*time.Second {
			t.Errorf("the step began after %v", all)
		}
		r.stop()
	})
}

const unlistedLaunch = time.Minute
