package alibaba

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

const (
	simGroup = "asg-wz9example0001"
	simQueue = "ess-lifecycle"
)

// cloud is the simulator and the three clients, connected in memory.
type cloud struct {
	sim       *simulator.Simulator
	options   Options
	queue     *Queue
	scaling   *Scaling
	assistant *Assistant
}

// inCloud runs a test in a bubble with a cloud in it.
func inCloud(t *testing.T, change func(*simulator.Options), test func(t *testing.T, c *cloud)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		so := simulator.Options{AccessKeyID: testID, AccessKeySecret: testSecret, NoServers: true}
		if change != nil {
			change(&so)
		}
		sim, err := simulator.New(so)
		if err != nil {
			t.Fatal(err)
		}
		l := simulator.NewPipeListener()
		srv := &http.Server{Handler: sim}
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.Serve(l) }()
		t.Cleanup(func() { _ = sim.Close(); _ = srv.Close(); <-served })
		o := options("http://cloud.test")
		o.Region, o.QueueName, o.DialContext = "cn-shenzhen", simQueue, l.DialContext
		test(t, &cloud{sim: sim, options: o, queue: newQueue(t, o), scaling: newScaling(t, o), assistant: newAssistant(t, o)})
	})
}

// announced scales in by n and receives what the hook says.
func (c *cloud) announced(t *testing.T, n int) (providers.Delivery, messages.Action) {
	t.Helper()
	if _, err := c.sim.ScaleIn(simGroup, n); err != nil {
		t.Fatal(err)
	}
	got, err := c.queue.Receive(t.Context(), 16, 20*time.Second)
	if err != nil || len(got) != 1 {
		t.Fatalf("%d deliveries, %v", len(got), err)
	}
	notification, err := messages.Decode(got[0].Body, messages.Alibaba)
	if err != nil {
		t.Fatal(err)
	}
	return got[0], notification.Action
}

// inject arms a fault.
func (c *cloud) inject(t *testing.T, f simulator.Fault) {
	t.Helper()
	if _, err := c.sim.InjectFault(f); err != nil {
		t.Fatal(err)
	}
}

// TestForgedActivity: an activity that does not exist, which is where ESS is asked, proves
// nothing of the action.
func TestForgedActivity(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		_, a := c.announced(t, 1)
		a.Activity = "asa-nobody"
		if v := c.scaling.Verify(t.Context(), []messages.Action{a})[0]; v.Err != nil || v.State != providers.Unclear || v.Reason == "" {
			t.Errorf("%+v", v)
		}
	})
}

func TestASkewedClock(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		for _, skew := range []time.Duration{-16 * time.Minute, 16 * time.Minute} {
			c.queue.date = func() time.Time { return time.Now().Add(skew) }
			_, err := c.queue.Receive(t.Context(), 16, 0)
			wantKind(t, err, providers.ErrClock)
		}
		c.queue.date = func() time.Time { return time.Now().Add(14 * time.Minute) }
		if _, err := c.queue.Receive(t.Context(), 16, 0); err != nil {
			t.Error(err)
		}
	})
}

func TestTheCloudHangs(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		_, a := c.announced(t, 1)
		c.inject(t, simulator.Fault{Service: "ess", Kind: simulator.FaultHang, Count: 1})
		start := time.Now()
		if _, err := c.scaling.Heartbeat(t.Context(), a, time.Minute); !errors.Is(err, providers.ErrUnavailable) || providers.Untouched(err) {
			t.Errorf("got %v, untouched %v", err, providers.Untouched(err))
		}
		if took := time.Since(start); took != DefaultCallTimeout {
			t.Errorf("a heartbeat took %v", took)
		}
		// What may be repeated is, once its time limit has passed.
		c.inject(t, simulator.Fault{Service: "ess", Kind: simulator.FaultHang, Count: 1})
		start = time.Now()
		if _, err := c.scaling.Hook(t.Context(), a.Group, a.Hook); err != nil {
			t.Error(err)
		}
		if took := time.Since(start); took < DefaultCallTimeout || took > DefaultCallTimeout+backoffBase {
			t.Errorf("took %v", took)
		}
		c.inject(t, simulator.Fault{Service: "mns", Kind: simulator.FaultHang})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		_, err := c.queue.Receive(ctx, 16, 30*time.Second)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

func TestWhatWaitsInTheCloud(t *testing.T) {
	change := func(o *simulator.Options) {
		o.Scenario = simulator.Scenario{
			Region: "cn-shenzhen", Queues: []simulator.QueueConfig{{Name: simQueue}},
			ScalingGroups: []simulator.GroupConfig{
				{ID: simGroup, Instances: 70, SplitActivity: true, Hooks: []simulator.HookConfig{
					{ID: "ash-in", Name: "in", Transition: "scale_in"},
					{ID: "ash-backup", Name: "backup", Transition: "scale_in", Queue: simQueue},
					{ID: "ash-out", Name: "out", Transition: "scale_out", Queue: simQueue},
				}},
				{ID: "asg-other", Instances: 4, Hooks: []simulator.HookConfig{{ID: "ash-other", Transition: "scale_in", Queue: simQueue}}},
			},
		}
	}
	inCloud(t, change, func(t *testing.T, c *cloud) {
		ctx := t.Context()
		if waiting, err := c.scaling.Waiting(ctx, simGroup); err != nil || len(waiting) != 0 {
			t.Errorf("a group at rest: %v, %v", waiting, err)
		}
		for _, id := range []messages.GroupID{simGroup, "asg-other"} {
			if _, err := c.sim.ScaleIn(string(id), 3); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.sim.ScaleIn(simGroup, 57); err != nil { // more activities than one page has
			t.Fatal(err)
		}
		if _, err := c.sim.ScaleOut(simGroup, 2); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		waiting, err := c.scaling.Waiting(ctx, simGroup)
		if err != nil {
			t.Fatal(err)
		}
		// Each is what the cloud has, whole enough to be verified and completed.
		for i, v := range c.scaling.Verify(ctx, waiting) {
			if v.State != providers.Pending {
				t.Errorf("%+v: %+v", waiting[i], v)
			}
		}
		want := map[messages.HookID]int{"ash-in": 60, "ash-backup": 60, "ash-out": 2}
		names := map[messages.HookID]string{"ash-in": "in", "ash-backup": "backup", "ash-out": "out"}
		for _, a := range waiting {
			want[a.Hook]--
			if names[a.Hook] != a.HookName || (a.Transition == messages.ScaleOut) != (a.Hook == "ash-out") || a.Group != simGroup || a.Region != "cn-shenzhen" {
				t.Errorf("listed as %+v", a)
			}
		}
		for hook, missing := range want {
			if missing != 0 {
				t.Errorf("hook %s: %d missing", hook, missing)
			}
		}
		if _, err := c.scaling.Complete(ctx, waiting[0], messages.Continue); err != nil {
			t.Fatal(err)
		}
		if again, err := c.scaling.Waiting(ctx, simGroup); err != nil || len(again) != len(waiting)-1 {
			t.Errorf("after an answer %d wait, %v, want %d", len(again), err, len(waiting)-1)
		}
		for _, op := range []string{"DescribeScalingActivities", "DescribeLifecycleActions", "DescribeLifecycleHooks"} {
			c.inject(t, simulator.Fault{Service: "ess", Action: op, Kind: simulator.FaultDenied, Count: 1})
			if got, err := c.scaling.Waiting(ctx, simGroup); !errors.Is(err, providers.ErrDenied) || got != nil || !strings.Contains(err.Error(), "ess:"+op) {
				t.Errorf("without %s: %d actions, %v", op, len(got), err)
			}
		}
		if _, err := c.scaling.Waiting(ctx, "asg-nowhere"); !errors.Is(err, providers.ErrNotFound) {
			t.Errorf("of no group: %v", err)
		}
	})
}
