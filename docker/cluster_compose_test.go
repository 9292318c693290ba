package docker

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"example.org/usher/configs"
	"example.org/usher/worker/audit"
)

// TestCompose: compose.yaml, brought up as it is. Its two workers share a scale-in; one of
// them is killed half-way and comes back by its restart policy, the other is stopped
// half-way for good, and every action completes all the same.
func TestCompose(t *testing.T) {
	t.Parallel()
	c := newComposed(t)
	a, b := c.join("worker-a"), c.join("worker-b")
	c.checkWorker(a)
	c.checkWorker(b)

	// Where a machine is so slow that the jobs are over when the blow falls, it falls again.
	const patience = 5
	crashes := 0
	for hit := false; !hit; hit = a.lives()[crashes-1].unfinished() > 0 {
		if crashes == patience {
			t.Fatalf("%d kills, and none in the middle of a job", crashes)
		}
		c.busy(a, b)
		a.crash()
		crashes++
		until(t, "the engine starts the killed worker again", time.Minute, func() bool { return len(a.lives()) == crashes+1 })
	}
	b.event(audit.Completed, time.Minute)
	stops := 0
	for ; count(b.trail(), audit.Released) == 0; stops++ {
		if stops == patience {
			t.Fatalf("%d stops, and none in the middle of a job", stops)
		}
		if stops > 0 {
			c.compose("start", b.service)
		}
		c.busy(a, b)
		c.compose("stop", b.service)
		if code := b.inspect(".State.ExitCode"); code != "0" {
			t.Fatalf("%s: exit code %s after SIGTERM, want 0", b.service, code)
		}
	}
	c.settled(scaledIn, 2*time.Minute)
	if b.inspect(".State.Running") != "false" {
		t.Errorf("%s was stopped, and runs again", b.service)
	}

	h := c.judge("CONTINUE")
	h.closedOnce()
	if n := len(b.lives()); n != stops {
		t.Errorf("%s has lived %d times and was stopped %d times", b.service, n, stops)
	}
	for i, l := range a.lives() {
		if l.stopped != (i == crashes) {
			t.Errorf("%s was killed %d times; it has an orderly stop in life %d: %v", a.service, crashes, i+1, l.stopped)
		}
	}
	for _, n := range c.nodes {
		if count(n.trail(), audit.Completed) == 0 {
			t.Errorf("%s has completed nothing", n.name)
		}
	}
	t.Logf("%d actions, %d kills, %d stops, %d takeovers", len(h.actions), crashes, stops, h.takenOver())
}

// scaledIn is how many instances go at first. Both workers together may hold as many.
const scaledIn = 6

// composed is a fleet of what compose.yaml describes.
type composed struct {
	*fleet
	tool []string // the compose tool, with its flags
	env  []string
}

// service is a worker of a composed fleet.
type service struct {
	*node
	service string
}

func newComposed(t *testing.T) *composed {
	t.Helper()
	image := testImage(t)
	tool := composeTool(t)
	c := &composed{fleet: &fleet{cluster: &cluster{t: t, prefix: "usher-test-" + strings.ToLower(rand.Text()[:8]), folder: t.TempDir()}}}
	// The gate removes networks by their label. An action that is announced a second time
	// has two messages, and the judge knows of one.
	c.write("override.yaml", fmt.Sprintf(`networks: {default: {labels: {usher.test.image: %q}}}
services:
  worker-a: {environment: {USHER_RECONCILE_EVERY: "off"}}
  worker-b: {environment: {USHER_RECONCILE_EVERY: "off"}}
`, image))
	c.tool = append(tool, "--project-name", c.prefix, "--file", "compose.yaml", "--file", filepath.Join(c.folder, "override.yaml"))
	c.env = append(os.Environ(), "USHER_IMAGE="+image, "USHER_PORT=0") // the engine takes a free port
	t.Cleanup(func() {
		// The test's own context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		defer cancel()
		if out, err := c.command(ctx, "down", "--volumes", "--timeout", "2").CombinedOutput(); err != nil {
			t.Errorf("compose down: %v: %s", err, out)
		}
	})
	c.compose("up", "--detach")
	c.control = "http://" + strings.TrimSpace(docker(t, "port", c.container("simulator").name, "8700/tcp")) + "/simulator"
	return c
}

// composeTool is docker compose (version 2) where the docker command has it, or else
// docker-compose.
func composeTool(t *testing.T) []string {
	t.Helper()
	if command(t, "compose", "version").Run() == nil {
		return []string{"docker", "compose"}
	}
	if _, err := exec.LookPath("docker-compose"); err != nil {
		t.Skip("neither docker compose nor docker-compose is on this machine")
	}
	return []string{"docker-compose"}
}

func (c *composed) command(ctx context.Context, args ...string) *exec.Cmd {
	args = slices.Concat(c.tool, args)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = c.env
	return cmd
}

// compose runs a command of the compose tool and gives its standard output.
func (c *composed) compose(args ...string) string {
	c.t.Helper()
	out, err := c.command(c.t.Context(), args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		c.t.Fatalf("compose %s: %v: %s", strings.Join(args, " "), err, exit.Stderr)
	} else if err != nil {
		c.t.Fatalf("compose %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// container is the one of a service. In the end all that it has printed is looked through.
func (c *composed) container(name string) *container {
	c.t.Helper()
	id := strings.TrimSpace(c.compose("ps", "--quiet", name))
	if id == "" || strings.Contains(id, "\n") {
		c.t.Fatalf("the containers of %s are %q, want one", name, id)
	}
	c.t.Cleanup(func() { lookThrough(c.t, name, id) })
	return &container{t: c.t, name: id}
}

func (c *composed) join(name string) *service {
	c.t.Helper()
	s := &service{node: &node{container: c.container(name)}, service: name}
	c.nodes = append(c.nodes, s.node)
	return s
}

// checkWorker waits until the worker is healthy and looks at its rights and at how long it may take to stop.
func (c *composed) checkWorker(s *service) {
	c.t.Helper()
	until(c.t, s.service+" becomes healthy", time.Minute, func() bool { return s.inspect(".State.Health.Status") == "healthy" })
	s.hasNoRights()
	conf, err := configs.Load("compose/config", nil)
	if err != nil {
		c.t.Fatal(err)
	}
	seconds, err := strconv.Atoi(s.inspect(".Config.StopTimeout"))
	if err != nil {
		c.t.Fatalf("%s: stop_grace_period: %v", s.service, err)
	}
	// What is handed back needs calls after the grace.
	if has, want := time.Duration(seconds)*time.Second, conf.Worker.ShutdownGrace+5*time.Second; has < want {
		c.t.Errorf("%s: stop_grace_period is %v, and with its shutdown_grace it needs %v", s.service, has, want)
	}
}

// busy scales in until each of the workers is in the middle of a job.
func (c *composed) busy(workers ...*service) {
	c.t.Helper()
	until(c.t, "all workers are in the middle of a job", 2*time.Minute, func() bool {
		if n := scaledIn - c.pending(); n > 0 {
			c.scaleIn(n)
		}
		return !slices.ContainsFunc(workers, func(s *service) bool {
			lives := s.lives()
			return len(lives) == 0 || lives[len(lives)-1].unfinished() == 0
		})
	})
}

// crash ends the worker's process as the kernel would. The engine would take a kill of its
// own for a wish that the container stay down.
func (s *service) crash() {
	s.t.Helper()
	pid, err := strconv.Atoi(s.inspect(".State.Pid"))
	if err != nil || pid <= 1 {
		s.t.Fatalf("the process of %s: %d, %v", s.service, pid, err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		s.t.Fatalf("kill %s: %v", s.service, err)
	}
}

// unfinished counts the actions that have a job begun, and no end in this life.
func (l *life) unfinished() int {
	open := map[string]bool{}
	for _, rec := range l.records {
		if rec.Event == audit.StepStarted {
			open[string(rec.Token)] = true
		} else if rec.Event == audit.Completed || rec.Event.Closes() {
			delete(open, string(rec.Token))
		}
	}
	return len(open)
}

// closedOnce: of all closing records of an action, one says that it is over. Whoever is killed
// between the cloud's taking his answer and his own record of it leaves none.
func (h *history) closedOnce() {
	acked := map[string]int{}
	for _, l := range h.lives {
		for _, rec := range l.records {
			if rec.Event == audit.Acked {
				acked[string(rec.Token)]++
			}
		}
	}
	for token, at := range h.completed {
		d, ok := h.holder(token, at)
		if killed := ok && d.to != nil && !d.to.stopped; acked[token] != 1 && !killed {
			h.t.Errorf("the audit logs close action %s %d times as answered, want once", token, acked[token])
		}
	}
}
