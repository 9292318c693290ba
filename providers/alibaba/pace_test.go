package alibaba

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

// Under a quota of five calls a second a crowd of questions neither starves answers and
// heartbeats nor has more than a few calls refused, and when the quota is gone so is the pacing.
func TestPacing(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		unknown := messages.Action{Hook: "ash-wz9example0001", Token: "00000000-0000-0000-0000-000000000000", Region: "cn-shenzhen"}
		var asking, vital sync.WaitGroup
		crowd := func(n int) {
			for range n {
				asking.Go(func() {
					if _, err := c.scaling.Hook(ctx, simGroup, "ash-wz9example0001"); err != nil {
						t.Error(err)
					}
				})
			}
		}
		calls := func() int {
			n := 0
			for _, count := range c.sim.State().APICalls {
				n += count
			}
			return n
		}
		c.inject(t, simulator.Fault{Service: "ess", Kind: simulator.FaultThrottle, PerSecond: 5})
		crowd(300)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		answered := c.sim.State().APICalls["ess.DescribeLifecycleHooks"]
		// Those of the first moment were sent before anybody knew.
		callsBefore, refusedBefore := calls(), c.sim.State().Faults[0].Struck
		begin := time.Now()
		for range 15 {
			vital.Go(func() {
				if _, err := c.scaling.Complete(ctx, unknown, messages.Continue); !errors.Is(err, providers.ErrActionGone) {
					t.Errorf("complete: %v", err)
				}
			})
			vital.Go(func() {
				if _, err := c.scaling.Heartbeat(ctx, unknown, time.Minute); !errors.Is(err, providers.ErrActionGone) {
					t.Errorf("heartbeat: %v", err)
				}
			})
		}
		vital.Wait()
		took := time.Since(begin)
		if took > 25*time.Second {
			t.Errorf("30 vital calls took %v under a quota of 5 a second", took)
		}
		asked := c.sim.State().APICalls["ess.DescribeLifecycleHooks"] - answered
		asking.Wait()
		all, refused := calls()-callsBefore, c.sim.State().Faults[0].Struck-refusedBefore
		t.Logf("vital calls after %v, %d questions meanwhile; all after %v, %d calls, %d refused, before that %d of %d", took, asked, time.Since(begin), all, refused, refusedBefore, callsBefore)
		if refused*5 > all {
			t.Errorf("%d of %d calls refused", refused, all)
		}

		// A caller whose time is up before its turn has not touched anything.
		crowd(50)
		synctest.Wait()
		short, stop := context.WithTimeout(ctx, time.Second)
		_, err := c.scaling.Hook(short, simGroup, "ash-wz9example0001")
		stop()
		if !errors.Is(err, providers.ErrThrottled) || !errors.Is(err, context.DeadlineExceeded) || !providers.Untouched(err) {
			t.Errorf("out of time: %v", err)
		}
		asking.Wait()

		c.sim.ClearFaults()
		crowd(1500)
		asking.Wait()
		begin = time.Now()
		crowd(1000)
		asking.Wait()
		if took := time.Since(begin); took != 0 {
			t.Errorf("without a quota 1000 calls took %v", took)
		}
	})
}

// A refusal of what only asks does not slow what is vital.
func TestPacingOfQuestionsAlone(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		c.inject(t, simulator.Fault{Service: "ess", Action: "DescribeLifecycleHooks", Kind: simulator.FaultThrottle})
		var asking sync.WaitGroup
		for range 50 {
			asking.Go(func() {
				if _, err := c.scaling.Hook(t.Context(), simGroup, "ash-wz9example0001"); !errors.Is(err, providers.ErrThrottled) {
					t.Errorf("hook: %v", err)
				}
			})
		}
		time.Sleep(5 * time.Second)
		begin := time.Now()
		for range 100 {
			if _, err := c.scaling.Heartbeat(t.Context(), messages.Action{Hook: "ash-x", Token: "00000000", Region: "cn-shenzhen"}, time.Minute); !errors.Is(err, providers.ErrActionGone) {
				t.Errorf("heartbeat: %v", err)
			}
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("100 heartbeats took %v", took)
		}
		asking.Wait()
	})
}
