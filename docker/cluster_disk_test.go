package docker

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// TestFullDisk: the disk of the audit log is full. Drains go on, the worker says that it
// is unhealthy, what would be quarantined stays in the queue, and once there is room again
// all records are there.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	f := newFleet(t, setup{lease: 10 * time.Second, usher: "max_receives: 1\n", instances: 10, wait: 2 * time.Second})
	disk := f.smallDisk()
	a := f.worker("a", nil, nil, "--volume", disk.name+":/audit", "--env", "USHER_AUDIT_FILE=/audit/usher.jsonl")
	until(t, "the worker is healthy", 30*time.Second, func() bool { return healthy(a) })
	f.scaleIn(1)
	f.settled(1, time.Minute)

	disk.fill()
	f.scaleIn(2)
	f.settled(2, time.Minute) // while the disk is full
	if healthy(a) {
		t.Error("the worker calls itself healthy, and its audit log can't be written")
	}
	f.post("/queues/ess-lifecycle/messages", `{"body": "rubbish"}`)
	until(t, "the rubbish is hidden for later", time.Minute, func() bool { return f.rubbish(simulator.MessageExtended) > 0 })
	if f.rubbish(simulator.MessageDeleted) != 0 {
		t.Error("a quarantined message was deleted, and its body is in no file")
	}

	disk.empty()
	until(t, "the rubbish is quarantined", 2*time.Minute, func() bool { return f.rubbish(simulator.MessageDeleted) == 1 })
	until(t, "the worker is healthy again", 30*time.Second, func() bool { return healthy(a) })

	// Once more, and nothing happens that would be recorded when there is room again.
	disk.fill()
	f.scaleIn(1)
	f.settled(3, time.Minute)
	until(t, "the worker notices", 30*time.Second, func() bool { return !healthy(a) })
	disk.empty()
	until(t, "the worker is healthy though idle", 30*time.Second, func() bool { return healthy(a) })

	a.stop()
	disk.fetch(a.file)
	h := f.judge("CONTINUE")
	for id, list := range h.deliveries {
		for _, d := range list {
			if d.to == nil {
				t.Errorf("delivery %d of message %s is in no record", d.receives, id)
			}
		}
	}
	kept := h.of(a, func(rec audit.Record) bool { return rec.Event == audit.Quarantined && rec.Body == "rubbish" })
	if len(kept) < 2 { // each delivery has one, that from when the disk was full too
		t.Errorf("%d records have the quarantined body", len(kept))
	}
}

// healthy asks the worker as a container's health check does.
func healthy(n *node) bool {
	n.t.Helper()
	return command(n.t, "exec", n.name, "/usher", "health").Run() == nil
}

// rubbish counts what happened to messages that announce nothing.
func (f *fleet) rubbish(what simulator.EventType) (n int) {
	f.t.Helper()
	for _, e := range f.happened() {
		if e.Type == what && e.Token == "" {
			n++
		}
	}
	return n
}

// disk is a small file system, and a container with a shell that holds it.
type disk struct {
	f            *fleet
	name, holder string
}

func (f *fleet) smallDisk() *disk {
	f.t.Helper()
	d := &disk{f: f, name: f.prefix + "-disk", holder: f.prefix + "-holder"}
	removed(f.t, "volume", "rm", d.name)
	docker(f.t, "volume", "create", "--label", "usher.test.image="+testImage(f.t),
		"--opt", "type=tmpfs", "--opt", "device=tmpfs", "--opt", "o=size=256k,uid=65532", d.name)
	removed(f.t, "rm", "--force", "--volumes", d.holder)
	docker(f.t, runFlags("--detach", "--name", d.holder, "--network", "none", "--no-healthcheck", "--volume", d.name+":/audit",
		"--entrypoint", "/bin/sleep", shellImage(f.t), "1000")...)
	return d
}

func (d *disk) fill() {
	d.f.t.Helper()
	out, err := command(d.f.t, "exec", d.holder, "dd", "if=/dev/zero", "of=/audit/full", "bs=1k").CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("No space left on device")) {
		d.f.t.Fatalf("fill the disk: %v: %s", err, out)
	}
}

func (d *disk) empty() {
	d.f.t.Helper()
	docker(d.f.t, "exec", d.holder, "rm", "/audit/full")
}

// fetch copies the audit log to where the judge reads it.
func (d *disk) fetch(to string) {
	d.f.t.Helper()
	out, err := exec.Command("docker", "exec", d.holder, "cat", "/audit/"+filepath.Base(to)).Output()
	if err != nil {
		d.f.t.Fatal(err)
	}
	if err := os.WriteFile(to, out, 0o600); err != nil {
		d.f.t.Fatal(err)
	}
}
