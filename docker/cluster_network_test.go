package docker

import (
	"sync"
	"testing"
	"time"

	"example.org/usher/worker/audit"
)

// TestCut: the network between a worker and the queue, or Auto Scaling, or both, is cut.
func TestCut(t *testing.T) {
	t.Parallel()
	const lease = 15 * time.Second

	// Cuts that are shorter than the third of a lease that a renewal has time for are not
	// even noticed: nobody else gets the message.
	for _, c := range []struct {
		name       string
		queue, ess bool
	}{{"queue for moments", true, false}, {"ess for moments", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, setup{lease: lease, instances: 6, wait: 25 * time.Second})
			queue, ess := newLink(), newLink()
			a := f.worker("a", queue, ess)
			f.scaleIn(2)
			f.calledBy(a, "begin", 2, time.Minute)
			b := f.worker("b", nil, nil)
			b.event(audit.Started, time.Minute)
			flapped := queue
			if c.ess {
				flapped = ess
			}
			over := make(chan struct{})
			var flapping sync.WaitGroup
			flapping.Go(func() {
				for {
					flapped.cut()
					rest(t, 2*time.Second)
					flapped.mend()
					select {
					case <-over:
						return
					case <-t.Context().Done():
						return
					case <-time.After(2 * time.Second):
					}
				}
			})
			stop := sync.OnceFunc(func() { close(over); flapping.Wait() })
			t.Cleanup(stop)
			f.settled(1, 90*time.Second)
			stop()

			if h := f.judge("CONTINUE"); h.takenOver() != 0 {
				t.Errorf("%d takeovers", h.takenOver())
			}
		})
	}

	// Longer than a lease: another worker takes over, and the first one, whose step has
	// ended meanwhile, neither begins the next one nor answers.
	t.Run("queue for longer than the lease", func(t *testing.T) {
		t.Parallel()
		f := newFleet(t, setup{lease: lease, instances: 6, wait: 20 * time.Second})
		queue := newLink()
		a := f.worker("a", queue, nil)
		f.scaleIn(1)
		f.calledBy(a, "begin", 1, time.Minute)
		b := f.worker("b", nil, nil)
		queue.cut()
		f.calledBy(b, "begin", 1, time.Minute)
		a.recorded("the end of its wait", time.Minute, func(rec audit.Record) bool {
			return rec.Event == audit.StepFinished && rec.Step == "wait"
		})
		rest(t, 3*time.Second) // for the next step, which must not begin
		queue.mend()
		f.settled(1, time.Minute)
		a.event(audit.Lost, time.Minute)
		f.judge("CONTINUE")
		if n := len(f.made(func(c call) bool { return c.node == "a" })); n != 1 {
			t.Errorf("the worker that was cut off has made %d calls, want the one from before", n)
		}
		if n := count(b.trail(), audit.Completed); n != 1 {
			t.Errorf("the other worker has completed %d actions, want 1", n)
		}
	})

	// With the queue at hand the worker keeps its message, however long Auto Scaling is
	// away, prolongs the wait as soon as it is back, and answers late rather than not.
	t.Run("ess for longer than the lease", func(t *testing.T) {
		t.Parallel()
		f := newFleet(t, setup{lease: lease, instances: 6, wait: 50 * time.Second, hookTimeout: 45 * time.Second})
		ess := newLink()
		a := f.worker("a", nil, ess)
		f.scaleIn(1)
		f.calledBy(a, "begin", 1, time.Minute)
		b := f.worker("b", nil, nil)
		b.event(audit.Started, time.Minute)
		ess.cut()
		rest(t, 36*time.Second) // a heartbeat falls due after 30 s
		ess.mend()
		until(t, "the wait is prolonged", time.Minute, func() bool { return f.state().APICalls["ess.RecordLifecycleActionHeartbeat"] > 0 })
		ess.cut()
		f.calledBy(a, "end", 1, time.Minute)
		rest(t, lease+time.Second)
		ess.mend()
		f.settled(1, time.Minute)
		h := f.judge("CONTINUE")
		if h.takenOver() != 0 {
			t.Errorf("%d takeovers", h.takenOver())
		}
		if n := len(h.of(a, func(rec audit.Record) bool { return rec.Event == audit.Completed })); n != 1 {
			t.Errorf("the worker has completed %d actions, want 1", n)
		}
	})

	// The container's own interface is taken away and given back.
	t.Run("all for longer than the lease", func(t *testing.T) {
		t.Parallel()
		f := newFleet(t, setup{lease: lease, instances: 6, wait: 20 * time.Second})
		a := f.worker("a", nil, nil)
		f.scaleIn(1)
		f.calledBy(a, "begin", 1, time.Minute)
		b := f.worker("b", nil, nil)
		docker(t, "network", "disconnect", f.prefix, a.name)
		f.calledBy(b, "begin", 1, time.Minute)
		a.recorded("the end of its wait", time.Minute, func(rec audit.Record) bool {
			return rec.Event == audit.StepFinished && rec.Step == "wait"
		})
		docker(t, "network", "connect", f.prefix, a.name)
		a.event(audit.Lost, time.Minute)
		f.settled(1, time.Minute)
		f.judge("CONTINUE")
		if n := len(f.made(func(c call) bool { return c.node == "a" })); n != 1 {
			t.Errorf("the worker that was cut off has made %d calls, want the one from before", n)
		}
	})
}

// TestSlowLink: half a second for each round trip, and 16 KB/s each way for all that a
// worker sends and gets. No lease and no wait lapses, though the jobs last longer than
// both, and the work is done in time.
func TestSlowLink(t *testing.T) {
	t.Parallel()
	f := newFleet(t, setup{lease: 10 * time.Second, instances: 40, wait: 40 * time.Second, hookTimeout: 30 * time.Second})
	slow := newLink()
	slow.delay, slow.rate = 250*time.Millisecond, 16<<10
	for range 6 {
		f.scaleIn(3)
		f.scaleOut(1)
	}
	f.worker("a", slow, slow)
	f.settled(12, 90*time.Second)
	h := f.judge("CONTINUE")
	if len(h.actions) != 12 || h.takenOver() != 0 {
		t.Errorf("%d actions with %d takeovers, want 12 with none", len(h.actions), h.takenOver())
	}
}
