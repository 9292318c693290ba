package docker

import (
	"testing"
	"time"

	"example.org/usher/worker/audit"
)

// TestPaused: a worker whose process is stopped for longer than its lease finds out when
// it goes on that its actions are somebody else's.
func TestPaused(t *testing.T) {
	t.Parallel()
	fast := setup{lease: 10 * time.Second, instances: 6, wait: 4 * time.Second}

	// One action drains and one waits for its slot. The pause begins in the middle of a
	// step and outlasts it.
	t.Run("draining", func(t *testing.T) {
		t.Parallel()
		s := fast
		s.usher = "max_jobs: 1\n"
		f := newFleet(t, s)
		a := f.worker("a", nil, nil)
		f.scaleIn(1)
		f.scaleIn(1)
		f.calledBy(a, "begin", 1, time.Minute)
		until(t, "both actions are admitted", time.Minute, func() bool { return count(a.trail(), audit.Admitted) == 2 })
		docker(t, "pause", a.name)
		b := f.worker("b", nil, nil)
		f.calledBy(b, "begin", 1, time.Minute)
		until(t, "the other worker holds both", time.Minute, func() bool { return count(b.trail(), audit.Admitted) == 2 })
		docker(t, "unpause", a.name)
		f.settled(2, time.Minute)
		until(t, "both actions are closed", time.Minute, func() bool { return count(a.trail(), audit.Lost) == 2 })

		f.judge("CONTINUE")
		if n := len(f.made(func(c call) bool { return c.node == "a" })); n != 1 {
			t.Errorf("the paused worker has made %d calls, want the one from before the pause", n)
		}
		if n := count(b.trail(), audit.Completed); n != 2 {
			t.Errorf("the other worker has completed %d actions, want 2", n)
		}
	})

	// The cloud throttles the answer; the pause begins between two attempts at it.
	t.Run("answering", func(t *testing.T) {
		t.Parallel()
		f := newFleet(t, fast)
		f.throttle("ess", "CompleteLifecycleAction")
		a := f.worker("a", nil, nil)
		f.scaleIn(2)
		until(t, "an answer is refused", time.Minute, func() bool { return f.state().APICalls["ess.CompleteLifecycleAction"] > 1 })
		docker(t, "kill", "--signal", "STOP", a.name)
		b := f.worker("b", nil, nil)
		f.calledBy(b, "begin", 2, time.Minute)
		f.mended()
		docker(t, "kill", "--signal", "CONT", a.name)
		a.event(audit.Lost, 20*time.Second)
		f.settled(1, time.Minute)

		f.judge("CONTINUE")
		if n := count(b.trail(), audit.Completed); n != 1 {
			t.Errorf("the other worker has completed %d actions, want 1", n)
		}
	})

	// The action is over, and the queue refuses to delete its message until another worker has it.
	t.Run("deleting", func(t *testing.T) {
		t.Parallel()
		f := newFleet(t, fast)
		f.throttle("mns", "DeleteMessage")
		a := f.worker("a", nil, nil)
		f.scaleIn(1)
		a.event(audit.Completed, time.Minute)
		docker(t, "kill", "--signal", "STOP", a.name)
		b := f.worker("b", nil, nil)
		b.event(audit.Received, time.Minute)
		f.mended()
		docker(t, "kill", "--signal", "CONT", a.name)
		f.settled(1, time.Minute)
		b.recorded("a closed delivery", time.Minute, func(rec audit.Record) bool { return rec.Event.Closes() })
		a.recorded("a closed delivery", time.Minute, func(rec audit.Record) bool { return rec.Event.Closes() })

		f.judge("CONTINUE")
		if n := len(f.made(func(c call) bool { return c.node == "b" })); n != 0 {
			t.Errorf("the other worker has made %d calls for an action that was over", n)
		}
	})
}

func count(list []audit.Record, e audit.Event) (n int) {
	for _, rec := range list {
		if rec.Event == e {
			n++
		}
	}
	return n
}
