package docker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/usher/worker/audit"
)

// fleet is a cluster whose jobs call this process at each step, so that what a worker
// did to an instance is known from outside of it.
type fleet struct {
	*cluster
	setup   setup
	gateway string // this machine, as the containers reach it
	cloud   string // the simulator, as this process reaches it
	desk    string // where the steps call
	nodes   []*node

	mu    sync.Mutex
	calls []call // guarded by mu
}

// setup is what differs from scenario to scenario.
type setup struct {
	lease time.Duration
	usher string // lines of usher.yaml
	// hookTimeout is how long a wait lasts without heartbeats.
	hookTimeout time.Duration
	instances   int
	// wait is what a scale-in job does between its first and its last call.
	wait time.Duration
	// out is the same for a scale-out; 0: as wait.
	out time.Duration
}

// call is one that a step has made.
type call struct {
	at                             time.Time
	node, transition, point, token string
	instance                       string
}

// node is a worker of a fleet: one container, which may live more than once.
type node struct {
	*container
	file string // its audit log; none: it is the container's standard output
}

// The default results differ from what a worker answers when all goes well.
const fleetScenario = `queues: [{name: ess-lifecycle, visibility_timeout: LEASE}]
scaling_groups:
  - id: ` + group + `
    instances: INSTANCES
    hooks:
      - {id: ash-wz9example0001, transition: scale_in, queue: ess-lifecycle, heartbeat_timeout: TIMEOUT, default_result: ROLLBACK}
      - {id: ash-wz9example0002, transition: scale_out, queue: ess-lifecycle, heartbeat_timeout: TIMEOUT, default_result: ABANDON}
`

const fleetGroup = `provider: alibaba
region: cn-shenzhen
scaling_group: ` + group + `
queue: {name: ess-lifecycle, endpoint: "http://QUEUE"}
endpoints: {ess: "http://ESS", ecs: "http://ESS"}
hooks:
  - transition: scale_in
    deadline: 20m
    on_failure: ABANDON
    steps:
      - http: {method: PUT, url: "http://DESK/NODE/{{.Transition}}/begin/{{.Token}}/{{.InstanceID}}", allow_hosts: [GATEWAY], retries: 2}
      - wait: {for: WAIT}
      - http: {method: PUT, url: "http://DESK/NODE/{{.Transition}}/end/{{.Token}}/{{.InstanceID}}", allow_hosts: [GATEWAY], retries: 2}
  - transition: scale_out
    deadline: 20m
    on_failure: ABANDON
    steps:
      - http: {method: PUT, url: "http://DESK/NODE/{{.Transition}}/begin/{{.Token}}/{{.InstanceID}}", allow_hosts: [GATEWAY], retries: 2}
      - wait: {for: OUT}
      - http: {method: PUT, url: "http://DESK/NODE/{{.Transition}}/end/{{.Token}}/{{.InstanceID}}", allow_hosts: [GATEWAY], retries: 2}
`

func newFleet(t *testing.T, s setup) *fleet {
	t.Helper()
	if s.out == 0 {
		s.out = s.wait
	}
	if s.hookTimeout == 0 {
		s.hookTimeout = 2 * time.Minute
	}
	text := strings.NewReplacer("LEASE", s.lease.String(), "TIMEOUT", s.hookTimeout.String(), "INSTANCES", fmt.Sprint(s.instances)).Replace(fleetScenario)
	f := &fleet{cluster: newCloud(t, text), setup: s}
	f.gateway = strings.TrimSpace(docker(t, "network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", f.prefix))
	f.cloud = strings.TrimSuffix(strings.TrimPrefix(f.control, "http://"), "/simulator")
	f.openDesk()
	return f
}

// openDesk lets the steps call this process.
func (f *fleet) openDesk() {
	f.t.Helper()
	l, err := net.Listen("tcp", net.JoinHostPort(f.gateway, "0"))
	if err != nil {
		f.t.Fatalf("listen on the network's gateway, which must be this machine: %v", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("PUT /{node}/{transition}/{point}/{token}/{instance}", func(_ http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.calls = append(f.calls, call{
			at: time.Now(), node: r.PathValue("node"), transition: r.PathValue("transition"), point: r.PathValue("point"),
			token: r.PathValue("token"), instance: r.PathValue("instance"),
		})
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Minute}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) }) // ends with Close
	f.t.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
	f.desk = l.Addr().String()
}

// made are the calls of the steps up to now that fit.
func (f *fleet) made(fits func(call) bool) (list []call) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if fits(c) {
			list = append(list, c)
		}
	}
	return list
}

// calledBy waits for n calls at point by the node.
func (f *fleet) calledBy(n *node, point string, count int, limit time.Duration) []call {
	f.t.Helper()
	var list []call
	until(f.t, fmt.Sprintf("%d calls at the %s of a job by %s", count, point, n.name), limit, func() bool {
		list = f.made(func(c call) bool { return f.prefix+"-"+c.node == n.name && c.point == point })
		return len(list) >= count
	})
	return list
}

// worker starts one more that reaches the cloud through queue and ess, nil: directly.
func (f *fleet) worker(name string, queue, ess *link, flags ...string) *node {
	f.t.Helper()
	return f.launch(name, testImage(f.t), queue, ess, flags...)
}

func (f *fleet) launch(name, image string, queue, ess *link, flags ...string) *node {
	f.t.Helper()
	address := func(l *link) string {
		if l == nil {
			return "simulator:8700"
		}
		return l.relay(f.t, f.gateway, f.cloud)
	}
	f.write("config-"+name+"/web.yaml", strings.NewReplacer(
		"QUEUE", address(queue), "ESS", address(ess), "DESK", f.desk, "NODE", name, "GATEWAY", f.gateway,
		"WAIT", f.setup.wait.String(), "OUT", f.setup.out.String(),
	).Replace(fleetGroup))
	// An action that is announced a second time has two messages, and the judge knows of one.
	f.write("config-"+name+"/usher.yaml", "reconcile: {every: off}\nvisibility_timeout: "+f.setup.lease.String()+"\n"+f.setup.usher)
	logs := filepath.Join(f.folder, "audit-"+name)
	if err := os.Mkdir(logs, 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Chmod(logs, 0o777); err != nil { // the worker is another user
		f.t.Fatal(err)
	}
	n := &node{container: &container{t: f.t, name: f.prefix + "-" + name}, file: filepath.Join(logs, "usher.jsonl")}
	removed(f.t, "rm", "--force", "--volumes", n.name)
	f.t.Cleanup(func() { lookThrough(f.t, n.name, n.name, "--tail", "60") })
	args := []string{
		"--detach", "--name", n.name, "--network", f.prefix, "--no-healthcheck",
		"--volume", f.folder + "/config-" + name + ":/etc/usher:ro", "--volume", logs + ":/logs",
		"--env", "USHER_NAME=" + name, "--env", "USHER_AUDIT_FILE=/logs/usher.jsonl",
		"--env", "ALIBABA_CLOUD_ACCESS_KEY_ID=" + mark + "Id", "--env", "ALIBABA_CLOUD_ACCESS_KEY_SECRET=" + mark + "Key",
	}
	docker(f.t, runFlags(append(append(args, flags...), image)...)...)
	f.nodes = append(f.nodes, n)
	return n
}

// written is the worker's audit log up to now, as it is.
func (n *node) written() []byte {
	n.t.Helper()
	if n.file == "" {
		return []byte(docker(n.t, "logs", n.name))
	}
	data, err := os.ReadFile(n.file)
	if err != nil && !os.IsNotExist(err) { // it may have been killed before it opened the file
		n.t.Fatal(err)
	}
	return data
}

// trail is the worker's audit log up to now.
func (n *node) trail() (list []audit.Record) {
	n.t.Helper()
	data := n.written()
	// What comes after the last newline is still being written.
	data = data[:bytes.LastIndexByte(data, '\n')+1]
	for line := range bytes.Lines(data) {
		list = append(list, n.parse(line))
	}
	return list
}

func (n *node) parse(line []byte) (rec audit.Record) {
	n.t.Helper()
	dec := json.NewDecoder(bytes.NewReader(line))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&rec); err != nil || rec.Schema != audit.Schema || rec.Time.IsZero() || dec.More() {
		n.t.Errorf("%s: %v in the audit log: %q", n.name, err, line)
	}
	return rec
}

// recorded waits for an audit record that fits.
func (n *node) recorded(what string, limit time.Duration, fits func(audit.Record) bool) (found audit.Record) {
	n.t.Helper()
	until(n.t, n.name+": audit record of "+what, limit, func() bool {
		for _, rec := range n.trail() {
			if fits(rec) {
				found = rec
				return true
			}
		}
		return false
	})
	return found
}

func (n *node) event(e audit.Event, limit time.Duration) audit.Record {
	n.t.Helper()
	return n.recorded(string(e), limit, func(rec audit.Record) bool { return rec.Event == e })
}

// post drives the simulator.
func (f *fleet) post(path, body string) {
	f.t.Helper()
	if err := f.try(path, body); err != nil {
		f.t.Fatal(err)
	}
}

// try is post for other goroutines than the test's.
func (f *fleet) try(path, body string) error {
	res, err := http.Post(f.control+path, "application/json", strings.NewReader(body))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode/100 != 2 {
		return fmt.Errorf("POST %s %s: %s", path, body, res.Status)
	}
	return nil
}

// scale begins a scale-in or a scale-out of n instances.
func (f *fleet) scale(way string, n int) error {
	return f.try("/scaling-groups/"+group+"/"+way, fmt.Sprintf(`{"count": %d}`, n))
}

func (f *fleet) scaleOut(n int) {
	f.t.Helper()
	if err := f.scale("scale-out", n); err != nil {
		f.t.Fatal(err)
	}
}

// throttle refuses all calls of one kind until mended.
func (f *fleet) throttle(service, action string) {
	f.t.Helper()
	f.post("/faults", fmt.Sprintf(`{"service": %q, "action": %q, "kind": "throttle"}`, service, action))
}

// mended ends all faults.
func (f *fleet) mended() {
	f.t.Helper()
	req, err := http.NewRequestWithContext(f.t.Context(), http.MethodDelete, f.control+"/faults", nil)
	if err != nil {
		f.t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil || res.StatusCode != http.StatusNoContent {
		f.t.Fatalf("DELETE faults: %s, %v", res.Status, err)
	}
}

// settled waits until n actions have ended and no message is left.
func (f *fleet) settled(n int, limit time.Duration) {
	f.t.Helper()
	until(f.t, fmt.Sprintf("%d actions are over and the queue is empty", n), limit, func() bool {
		st := f.state()
		for _, a := range st.Actions {
			if a.EndedBy == "" {
				return false
			}
		}
		q, _ := st.Queue("ess-lifecycle")
		return len(st.Actions) >= n && q.Active+q.Inactive+q.Delayed == 0
	})
}

// rest waits, unless the test is cut short.
func rest(t *testing.T, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-t.Context().Done():
	}
}
