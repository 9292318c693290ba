package docker

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// mark is in every key and secret of these tests, so that it can be looked for in what
// the containers say. The gate looks for it in what the tests themselves print.
const mark = "usherTESTsecret"

const (
	group = "asg-wz9example0001"
	lease = 10 * time.Second
	drain = 10 * time.Second

	usherFile = "visibility_timeout: 10s\nshutdown_grace: 1s\n"
	groupFile = `provider: alibaba
region: cn-shenzhen
scaling_group: ` + group + `
queue: {name: ess-lifecycle, endpoint: "http://simulator:8700"}
endpoints: {ess: "http://simulator:8700", ecs: "http://simulator:8700"}
hooks:
  - transition: scale_in
    deadline: 2m
    on_failure: ABANDON
    steps:
      - wait: {for: 10s}
`
	// MNS hides a received message for as long as its queue says; the worker's
	// visibility_timeout counts from its first renewal on.
	scenarioFile = `queues: [{name: ess-lifecycle, visibility_timeout: 10s}]
scaling_groups:
  - id: ` + group + `
    instances: 6
    hooks: [{id: ash-wz9example0001, transition: scale_in, queue: ess-lifecycle}]
`
)

// cluster is a simulated cloud and workers, each in a container, on a network of their own.
type cluster struct {
	t       *testing.T
	prefix  string
	folder  string
	control string // where the simulator can be asked from here
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := newCloud(t, scenarioFile)
	c.write("config/usher.yaml", usherFile)
	c.write("config/web.yaml", groupFile)
	return c
}

// newCloud is a cluster with no worker yet, and no config for one.
func newCloud(t *testing.T, scenario string) *cluster {
	t.Helper()
	image := testImage(t)
	c := &cluster{t: t, prefix: "usher-test-" + strings.ToLower(rand.Text()[:8]), folder: t.TempDir()}
	c.write("scenario.yaml", scenario)
	docker(t, "network", "create", "--label", "usher.test.image="+image, c.prefix)
	removed(t, "network", "rm", c.prefix)
	s := start(t, c.prefix+"-simulator", "--network", c.prefix, "--network-alias", "simulator", "--publish", "127.0.0.1::8700", "--no-healthcheck",
		"--volume", c.folder+"/scenario.yaml:/scenario.yaml:ro",
		image, "simulate", "--scenario", "/scenario.yaml", "--listen", "0.0.0.0:8700", "--access-key-id", mark+"Id", "--access-key-secret", mark+"Key")
	s.await("endpoints", 30*time.Second, json.Valid)
	c.control = "http://" + strings.TrimSpace(docker(t, "port", s.name, "8700/tcp")) + "/simulator"
	until(t, "the simulator's published port answers", 10*time.Second, func() bool {
		res, err := http.Get(c.control + "/state")
		return err == nil && res.Body.Close() == nil && res.StatusCode == http.StatusOK
	})
	return c
}

// write makes a file that the containers' user, who is another one, can read.
func (c *cluster) write(name, content string) {
	c.t.Helper()
	name = filepath.Join(c.folder, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		c.t.Fatal(err)
	}
}

// worker starts one more.
func (c *cluster) worker(name string, flags ...string) *container {
	c.t.Helper()
	args := append([]string{
		"--network", c.prefix, "--volume", c.folder + "/config:/etc/usher:ro", "--health-interval", "1s",
		"--env", "USHER_NAME=" + name, "--env", "ALIBABA_CLOUD_ACCESS_KEY_ID=" + mark + "Id", "--env", "ALIBABA_CLOUD_ACCESS_KEY_SECRET=" + mark + "Key",
	}, flags...)
	return start(c.t, c.prefix+"-"+name, append(args, testImage(c.t))...)
}

// scaleIn starts to take n instances out of the group.
func (c *cluster) scaleIn(n int) {
	c.t.Helper()
	url := c.control + "/scaling-groups/" + group + "/scale-in"
	res, err := http.Post(url, "application/json", strings.NewReader(fmt.Sprintf(`{"count": %d}`, n)))
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		c.t.Fatalf("POST %s: %s", url, res.Status)
	}
}

func (c *cluster) state() (st simulator.State) {
	c.t.Helper()
	res, err := http.Get(c.control + "/state")
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&st); err != nil {
		c.t.Fatalf("the simulator's state: %v", err)
	}
	return st
}

// happened is the cloud's own record.
func (c *cluster) happened() (list []simulator.Event) {
	c.t.Helper()
	res, err := http.Get(c.control + "/events")
	if err != nil {
		c.t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&list); err != nil {
		c.t.Fatalf("the simulator's events: %v", err)
	}
	return list
}

// extended is the last time that a delivery was hidden for longer, or for less.
func (c *cluster) extended(message string, receives int) (last simulator.Event) {
	c.t.Helper()
	for _, e := range c.happened() {
		if e.Type == simulator.MessageExtended && e.MessageID == message && e.Receives == receives {
			last = e
		}
	}
	return last
}

// completed checks what the cloud knows in the end: one action, ended by a worker's
// CONTINUE, no message left, the instances gone.
func (c *cluster) completed(instances int) simulator.ActionState {
	c.t.Helper()
	st := c.state()
	if len(st.Actions) != 1 {
		c.t.Fatalf("%d lifecycle actions, want 1", len(st.Actions))
	}
	a := st.Actions[0]
	if a.Status != "Completed" || a.Result != "CONTINUE" || a.EndedBy != "call" || len(a.Instances) != instances {
		c.t.Errorf("the action: %+v", a)
	}
	if q, _ := st.Queue("ess-lifecycle"); q.Active+q.Inactive+q.Delayed != 0 {
		c.t.Errorf("the queue: %+v, want it empty", q)
	}
	if g, _ := st.Group(group); len(g.Instances) != 6-instances {
		c.t.Errorf("%d instances are left, want %d", len(g.Instances), 6-instances)
	}
	return a
}

// event waits for an audit record of the worker.
func (c *container) event(e audit.Event, limit time.Duration) audit.Record {
	c.t.Helper()
	var rec audit.Record
	c.await("audit record "+string(e), limit, func(line []byte) bool {
		rec = audit.Record{}
		decode(c.t, line, &rec)
		return rec.Event == e
	})
	return rec
}

// events are those of the whole audit log; every line of the output is a record.
func (c *container) events() (list []audit.Event) {
	c.t.Helper()
	for _, line := range c.all(10 * time.Second) {
		var rec audit.Record
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.DisallowUnknownFields()
		if err := dec.Decode(&rec); err != nil || rec.Schema != audit.Schema || rec.Time.IsZero() {
			c.t.Errorf("%s: %v in the audit log: %s", c.name, err, line)
		}
		list = append(list, rec.Event)
	}
	return list
}

// stop ends a worker as docker stop does: one that takes longer than 20 s is killed, and
// has another exit code.
func (c *container) stop() {
	c.t.Helper()
	docker(c.t, "stop", "--time", "20", c.name)
	if code := c.inspect(".State.ExitCode"); code != "0" {
		c.t.Errorf("%s: exit code %s after SIGTERM, want 0", c.name, code)
	}
}

// inOrder says whether each of want comes in list, in that order.
func inOrder(list []audit.Event, want ...audit.Event) bool {
	for _, e := range want {
		i := slices.Index(list, e)
		if i < 0 {
			return false
		}
		list = list[i+1:]
	}
	return true
}

// TestWorker: a container with the least rights becomes healthy, drains, completes,
// deletes, and stops with exit code 0.
func TestWorker(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	w := c.worker("a", "--env", "TZ=Asia/Kathmandu")
	until(t, "the worker becomes healthy", 30*time.Second, func() bool { return w.inspect(".State.Health.Status") == "healthy" })
	w.hasNoRights()

	c.scaleIn(2)
	w.event(audit.Acked, time.Minute)
	c.completed(2)
	w.stop()
	if list := w.events(); !inOrder(list, audit.Started, audit.Received, audit.Admitted, audit.StepStarted, audit.StepFinished, audit.Completed, audit.Acked, audit.Stopped) {
		t.Errorf("the audit log: %v", list)
	}
	// No other zone has this offset: the log's times show that the zones are there.
	var log bytes.Buffer
	logs := command(t, "logs", w.name)
	logs.Stderr = &log
	if err := logs.Run(); err != nil || !regexp.MustCompile(`time=\S+\+05:45 `).Match(log.Bytes()) {
		t.Errorf("%v; no time of Kathmandu in the log:\n%s", err, log.Bytes())
	}
}

// hasNoRights looks at the worker's process from outside.
func (c *container) hasNoRights() {
	c.t.Helper()
	if c.inspect(".HostConfig.ReadonlyRootfs") != "true" {
		c.t.Error("the root file system can be written to")
	}
	status, err := os.ReadFile("/proc/" + c.inspect(".State.Pid") + "/status")
	if err != nil {
		c.t.Fatalf("the engine must run on this machine: %v", err)
	}
	for _, want := range []string{
		"Uid:\t65532\t65532\t65532\t65532\n", "Gid:\t65532\t65532\t65532\t65532\n",
		"CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n", "NoNewPrivs:\t1\n",
	} {
		if !bytes.Contains(status, []byte(want)) {
			c.t.Errorf("the worker's process has no %q:\n%s", want, status)
		}
	}
}

// TestUnhealthy: the health check fails where no worker answers.
func TestUnhealthy(t *testing.T) {
	t.Parallel()
	name := "usher-test-" + strings.ToLower(rand.Text()[:8])
	s := start(t, name, "--network", "none", "--health-interval", "1s", "--health-retries", "1", "--health-start-period", "0s",
		testImage(t), "simulate", "--access-key-id", mark+"Id", "--access-key-secret", mark+"Key")
	until(t, "the container becomes unhealthy", 30*time.Second, func() bool { return s.inspect(".State.Health.Status") == "unhealthy" })
}

// TestKill: a worker that is killed in the middle of a drain is followed by another one
// within one lease.
func TestKill(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.scaleIn(2) // before the second worker is there, so that the first one has it
	first := c.worker("a")
	begun := first.event(audit.StepStarted, time.Minute)
	second := c.worker("b")
	second.event(audit.Started, time.Minute)
	docker(t, "kill", "--signal", "KILL", first.name)

	taken := second.event(audit.Admitted, time.Minute)
	if taken.Token != begun.Token || taken.ReceiveCount < 2 {
		t.Errorf("the second worker admitted %+v after %+v", taken, begun)
	}
	// The lease may have been renewed just before the end.
	last := killed(t, first)
	if late := taken.Time.Sub(last); late > lease+lease/2 {
		t.Errorf("the second worker took over %v after the first one died, want a lease, %v", late, lease)
	}
	second.event(audit.Acked, time.Minute)
	done := c.completed(2)
	if took := done.Completed.Sub(taken.Time); took < drain {
		t.Errorf("the second worker completed after %v: it did not begin the drain again, which takes %v", took, drain)
	}
	second.stop()
	if list := first.events(); slices.Contains(list, audit.Completed) || slices.Contains(list, audit.Stopped) {
		t.Errorf("the first worker was not killed in the middle: %v", list)
	}
}

// killed is when the container ended.
func killed(t *testing.T, c *container) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339Nano, c.inspect(".State.FinishedAt"))
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// TestStop: a worker that is stopped in the middle of a drain hands it to another one
// at once, not after a lease.
func TestStop(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.scaleIn(1)
	first := c.worker("a")
	first.event(audit.StepStarted, time.Minute)
	second := c.worker("b")
	second.event(audit.Started, time.Minute)
	first.stop()
	released := first.event(audit.Released, time.Minute)
	taken := second.event(audit.Received, time.Minute)
	if taken.Token != released.Token {
		t.Errorf("released %+v, taken over %+v", released, taken)
	}
	// A second is the shortest time that MNS hides a message for.
	last := c.extended(released.MessageID, released.ReceiveCount)
	if last.Until == nil || last.Until.Sub(last.Time) > time.Second {
		t.Errorf("the cloud was told to hide the message until %v, at %v; want a second", last.Until, last.Time)
	}
	second.event(audit.Acked, time.Minute)
	c.completed(1)
	second.stop()
	if list := first.events(); !inOrder(list, audit.StepStarted, audit.Released, audit.Stopped) {
		t.Errorf("the audit log: %v", list)
	}
}

// TestMain gives up on what the tests ask for over HTTP.
func TestMain(m *testing.M) {
	http.DefaultClient.Timeout = 10 * time.Second
	os.Exit(m.Run())
}
