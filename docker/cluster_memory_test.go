package docker

import (
	"testing"
	"time"

	"example.org/usher/worker/audit"
)

// TestOutOfMemory: something fills the memory of a worker's container, the kernel kills
// the worker for it, and another one follows within one lease.
func TestOutOfMemory(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	f := newFleet(t, setup{lease: lease, instances: 6, wait: 6 * time.Second})
	// What lies in a tmpfs counts as memory of the container, and of none of its processes:
	// the largest of these is killed, which is usher.
	a := f.launch("a", shellImage(t), nil, nil, "--memory", "64m", "--memory-swap", "64m", "--tmpfs", "/tmp:size=128m")
	f.scaleIn(2)
	f.calledBy(a, "begin", 2, time.Minute)
	b := f.worker("b", nil, nil)
	b.event(audit.Started, time.Minute)
	out, err := command(t, "exec", a.name, "dd", "if=/dev/zero", "of=/tmp/hog", "bs=64k").CombinedOutput()
	until(t, "the worker is killed", 30*time.Second, func() bool { return a.inspect(".State.Running") == "false" })
	// Nobody else sends SIGKILL. The engine's own word for it, OOMKilled, is not asked: it
	// comes from an event that may be later than the container's end.
	if code := a.inspect(".State.ExitCode"); code != "137" {
		t.Fatalf("exit code %s, want 137; the hog: %v: %s", code, err, out)
	}
	last := killed(t, a.container)
	taken := b.event(audit.Received, time.Minute)
	if late := taken.Time.Sub(last); late > lease+lease/2 {
		t.Errorf("the other worker took over %v after the first one was killed, want a lease, %v", late, lease)
	}
	f.settled(1, time.Minute)
	f.judge("CONTINUE")
	if n := count(b.trail(), audit.Completed); n != 1 {
		t.Errorf("the other worker has completed %d actions, want 1", n)
	}
}
