package worker_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/simulator"
	"example.org/usher/worker"
)

// TestRefusalsLapse: /readyz names what the cloud refuses while it goes on, and for a
// quarter of an hour after the last time, though nobody asks again for a heartbeat once
// the action is over.
func TestRefusalsLapse(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(3, false))
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(20*time.Minute))}})
		cloud.inject(simulator.Fault{Service: "ess", Action: "RecordLifecycleActionHeartbeat", Kind: simulator.FaultError, Code: "Forbidden.RAM", Status: 403})
		named := func() bool {
			err := r.w.Ready()
			return err != nil && strings.Contains(err.Error(), "heartbeat: ")
		}
		cloud.scaleIn(1)
		cloud.until(10*time.Minute, "the refusal is named", named)
		for !cloud.settled() {
			time.Sleep(time.Second)
			synctest.Wait()
			if !named() {
				t.Fatalf("ready: %v", r.w.Ready())
			}
		}
		time.Sleep(time.Minute)
		if !named() {
			t.Errorf("a minute after the action's end: %v", r.w.Ready())
		}
		time.Sleep(15 * time.Minute)
		if err := r.w.Ready(); err != nil {
			t.Errorf("long after the last refusal: %v", err)
		}
		r.stop()
	})
}

// TestRefusalsEndWithSuccess: what is allowed in the end is not told any more, at once.
func TestRefusalsEndWithSuccess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(3, false))
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(20*time.Minute))}})
		cloud.inject(simulator.Fault{Service: "ess", Action: "RecordLifecycleActionHeartbeat", Kind: simulator.FaultError, Code: "Forbidden.RAM", Status: 403})
		cloud.scaleIn(1)
		cloud.until(10*time.Minute, "the refusal is named", func() bool { return r.w.Ready() != nil })
		cloud.ClearFaults()
		cloud.until(2*time.Minute, "ready", func() bool { return r.w.Ready() == nil })
		cloud.until(time.Hour, "answered", cloud.settled)
		r.stop()
	})
}
