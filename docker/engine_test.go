package docker

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// testImage is the image to test. Tests that need it skip where nobody built one.
func testImage(t *testing.T) string { return named(t, "USHER_TEST_IMAGE") }

// shellImage is the same on a base image with a shell.
func shellImage(t *testing.T) string { return named(t, "USHER_TEST_SHELL_IMAGE") }

func named(t *testing.T, variable string) string {
	t.Helper()
	if _, err := exec.LookPath("docker"); err != nil {
		t.Skip("docker is not on this machine")
	}
	image := os.Getenv(variable)
	if image == "" {
		t.Skipf("%s names no image: docker/build.sh builds one", variable)
	}
	return image
}

// runFlags is docker run with the least rights that there are.
func runFlags(args ...string) []string {
	return append([]string{"run", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "200"}, args...)
}

func command(t *testing.T, args ...string) *exec.Cmd {
	return exec.CommandContext(t.Context(), "docker", args...)
}

// docker runs a docker command and gives its standard output.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := command(t, args...).Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Fatalf("docker %s: %v: %s", strings.Join(args, " "), err, exit.Stderr)
	} else if err != nil {
		t.Fatalf("docker %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}

// removed runs a docker command that takes something away, when the test is over.
func removed(t *testing.T, args ...string) {
	t.Cleanup(func() {
		// The test's own context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput(); err != nil {
			t.Errorf("docker %s: %v: %s", strings.Join(args, " "), err, out)
		}
	})
}

// container is a running one. Its standard output is read as it comes.
type container struct {
	t       *testing.T
	name    string
	changed chan struct{} // a line has arrived, or the last one has

	mu    sync.Mutex // guards all below
	lines [][]byte
	ended bool
}

// start runs a container, with all output followed, until the test is over.
func start(t *testing.T, name string, args ...string) *container {
	t.Helper()
	removed(t, "rm", "--force", "--volumes", name)
	docker(t, runFlags(append([]string{"--detach", "--name", name}, args...)...)...)
	t.Cleanup(func() { lookThrough(t, name, name) })
	c := &container{t: t, name: name, changed: make(chan struct{}, 1)}
	follow := command(t, "logs", "--follow", name)
	stdout, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatalf("docker logs %s: %v", name, err)
	}
	var reader sync.WaitGroup
	reader.Go(func() {
		s := bufio.NewScanner(stdout)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			c.note(bytes.Clone(s.Bytes()), false)
		}
		c.note(nil, true)
		_ = follow.Wait() // killed with the test's context, or ended with the container
	})
	t.Cleanup(reader.Wait)
	return c
}

// lookThrough searches what a container has printed for a secret, and shows it where the test has failed.
func lookThrough(t *testing.T, called, id string, flags ...string) {
	out, err := exec.Command("docker", append(append([]string{"logs"}, flags...), id)...).CombinedOutput()
	if bytes.Contains(out, []byte(mark)) {
		t.Errorf("%s printed a secret, or the id of a key", called)
	} else if t.Failed() {
		t.Logf("%s: %v\n%s", called, err, out)
	}
}

func (c *container) note(line []byte, ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = ended
	if !ended {
		c.lines = append(c.lines, line)
	}
	select {
	case c.changed <- struct{}{}:
	default: // the signal from before is still to be seen
	}
}

func (c *container) output() (lines [][]byte, ended bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lines, c.ended
}

// await gives the first line of the output that fits.
func (c *container) await(what string, limit time.Duration, fits func([]byte) bool) []byte {
	c.t.Helper()
	timeout := time.After(limit)
	for {
		lines, ended := c.output()
		for _, l := range lines {
			if fits(l) {
				return l
			}
		}
		if ended {
			c.t.Fatalf("%s ended without %s", c.name, what)
		}
		select {
		case <-c.changed:
		case <-timeout:
			c.t.Fatalf("%s: no %s within %v", c.name, what, limit)
		}
	}
}

// all waits until the container has ended and gives its whole output.
func (c *container) all(limit time.Duration) [][]byte {
	c.t.Helper()
	timeout := time.After(limit)
	for {
		lines, ended := c.output()
		if ended {
			return lines
		}
		select {
		case <-c.changed:
		case <-timeout:
			c.t.Fatalf("%s goes on after %v", c.name, limit)
		}
	}
}

// inspect gives one field of what the engine knows of the container.
func (c *container) inspect(field string) string {
	c.t.Helper()
	return strings.TrimSpace(docker(c.t, "inspect", "--format", "{{"+field+"}}", c.name))
}

// until asks again and again, for what tells nobody that it has changed.
func until(t *testing.T, what string, limit time.Duration, done func() bool) {
	t.Helper()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	timeout := time.After(limit)
	for !done() {
		select {
		case <-tick.C:
		case <-timeout:
			t.Fatalf("%s: not within %v", what, limit)
		}
	}
}
