package zerodrop

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
	"example.org/usher/zerodrop/load"
)

//go:embed topology.sh
var topology string

// patience bounds every wait. It is no expectation.
const patience = 5 * time.Minute

// scenario is one way in which an instance leaves.
type scenario struct {
	name, plan string
	balancer   func(*proof)
	kind       string // of balancer, for the record
	// example is usher's config, a file of configs/examples; or else steps are usher's
	// steps. Neither: there is no usher.
	example, steps string
	// native: usher is installed on the machines, too, and its scripts leave the work to it.
	native bool
	// end is how the machine ends when the instance is released.
	end     string
	service backendRole
	// clients is the load, all kinds of it at loadScale unless it says otherwise.
	clients clientsRole
}

func (s scenario) usher() bool { return s.example != "" || s.steps != "" }

// clientsRole is the load, sent from the clients' namespace until standard input ends.
type clientsRole struct {
	// File gets the record.
	File  string
	Scale float64
	Kinds []load.Kind // none: all
	// Downloads take from Shortest to Longest; zero: the load's own default.
	Shortest, Longest time.Duration
}

func (r *clientsRole) run(ctx context.Context) error {
	record, err := load.Run(ctx, load.Config{
		Target: vip, Scale: r.Scale, Kinds: r.Kinds, Length: load.MaxLength, ShortestDownload: r.Shortest, LongestDownload: r.Longest,
	})
	if err != nil {
		return err
	}
	text, err := json.Marshal(record)
	if err != nil {
		return err
	}
	return os.WriteFile(r.File, text, 0o600)
}

// process is one program of a proof.
type process struct {
	*exec.Cmd
	name   string
	held   io.Closer // its standard input: it ends when this is closed
	ended  chan struct{}
	mu     sync.Mutex
	output bytes.Buffer // guarded by mu
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.Write(b)
}

func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

// proof is one run of a scenario, in namespaces of its own.
type proof struct {
	*testing.T
	scenario
	name   string // of the network
	dir    string
	cloud  *process
	worker *process // nil without usher
	api    *http.Client
	marks  []mark
}

type mark struct {
	name string
	at   time.Time
}

func (p *proof) mark(name string) { p.marks = append(p.marks, mark{name, time.Now()}) }

// must ends the test at an error that is none of usher's.
func (p *proof) must(err error) {
	p.Helper()
	if err != nil {
		p.Fatal(err)
	}
}

// layOut makes the namespaces of a network (up), or takes them away (down).
func layOut(what, network string) error {
	cmd := exec.Command("sh", "-s", what, network)
	cmd.Stdin = strings.NewReader(topology)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("network namespaces %s, %s: %w: %s", network, what, err, out)
	}
	return nil
}

// newName is a name for a network that no other has, of this process or another.
func newName() string {
	return fmt.Sprintf("usher%d-%s", os.Getpid(), strings.ToLower(rand.Text()[:6]))
}

// network makes namespaces and takes them away in the end.
func network(t *testing.T) string {
	t.Helper()
	name := newName()
	t.Cleanup(func() {
		if err := layOut("down", name); err != nil {
			t.Error(err)
		}
	})
	if err := layOut("up", name); err != nil {
		t.Fatal(err)
	}
	return name
}

// able says what keeps this machine from making a proof, if anything does.
var able = sync.OnceValue(func() error {
	if os.Getuid() != 0 {
		return errors.New("network namespaces need root")
	}
	for _, program := range []string{"ip", "ss", "nft", "haproxy"} {
		if _, err := exec.LookPath(program); err != nil {
			return err
		}
	}
	name := newName()
	err := layOut("up", name)
	if err == nil {
		err = nft(name+"-lb", switchRules([machines]bool{true, true, true}))
	}
	return errors.Join(err, layOut("down", name))
})

// folder is a new one, removed in the end. t.TempDir's may be too long a path for a socket.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "usher")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// start runs a program until the test ends, at the latest.
func (p *proof) start(name string, cmd *exec.Cmd) *process {
	p.Helper()
	x := &process{Cmd: cmd, name: name, ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = x, x
	held, err := cmd.StdinPipe()
	p.must(err)
	x.held = held
	if err := cmd.Start(); err != nil {
		p.Fatalf("start %s: %v", name, err)
	}
	go func() {
		cmd.Wait()
		close(x.ended)
	}()
	p.Cleanup(func() {
		held.Close()
		cmd.Process.Signal(syscall.SIGTERM) // for those that don't look at their input
		select {
		case <-x.ended:
		case <-time.After(20 * time.Second):
			cmd.Process.Kill()
			<-x.ended
		}
		if p.Failed() {
			text := x.text()
			p.Logf("%s said:\n%s", name, text[max(0, len(text)-8000):])
		}
	})
	return x
}

// startRole is start for a copy of this program.
func (p *proof) startRole(name, host string, r role) *process {
	p.Helper()
	cmd, err := copyOf(p.name+"-"+host, r)
	p.must(err)
	return p.start(name, cmd)
}

// until waits for something that nobody tells.
func (p *proof) until(what string, holds func() bool) {
	p.Helper()
	for limit := time.Now().Add(patience); !holds(); {
		for _, x := range []*process{p.cloud, p.worker} {
			if x == nil {
				continue
			}
			select {
			case <-x.ended:
				p.Fatalf("%s has ended while waiting until %s", x.name, what)
			default:
			}
		}
		if time.Now().After(limit) {
			p.Fatalf("waited %v until %s", patience, what)
		}
		rest(p.Context(), 20*time.Millisecond)
	}
}

// ask calls the simulator's own paths.
func (p *proof) ask(method, path, body string, into any) error {
	request, err := http.NewRequestWithContext(p.Context(), method, "http://cloud/simulator/"+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	response, err := p.api.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, text)
	}
	return errors.Join(err, json.Unmarshal(text, into))
}

func (p *proof) state() simulator.State {
	p.Helper()
	var st simulator.State
	p.must(p.ask("GET", "state", "", &st))
	return st
}

// startCloud makes the cloud and its instances, and waits until they are in service.
func (p *proof) startCloud(clb bool) {
	p.Helper()
	socket := filepath.Join(p.dir, "cloud")
	p.api = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
	p.Cleanup(p.api.CloseIdleConnections)
	tools := filepath.Join(p.dir, "tools")
	p.must(os.Mkdir(tools, 0o700))
	p.must(os.WriteFile(filepath.Join(tools, "systemctl"), []byte(systemctl), 0o700))
	if p.native {
		program, err := builtUsher()
		p.must(err)
		p.must(os.Symlink(program, filepath.Join(tools, "usher")))
	}
	p.cloud = p.startRole("the cloud", "lb", role{Cloud: &cloudRole{
		Network: p.name, Socket: socket, Tools: tools, Hook: p.usher(), Balancer: clb, End: p.end, Service: p.service,
	}})
	p.until("the cloud has its instances in service", func() bool {
		var st simulator.State
		if p.ask("GET", "state", "", &st) != nil {
			return false
		}
		for _, b := range st.Balancers {
			for _, m := range b.Members {
				if !m.Healthy {
					return false
				}
			}
		}
		return true
	})
}

// systemctl stops the service of a machine as systemd does: SIGTERM, and the wait for its
// end. Nothing else is asked of it.
const systemctl = `#!/bin/sh
set -eu
[ "$1 $2" = "stop app" ]
for pid in $(ss -Hltnp 'sport = :8080' | sed -n 's/.*pid=\([0-9]*\).*/\1/p' | sort -u); do
	kill -TERM "$pid"
	while [ -d "/proc/$pid" ]; do sleep 0.2; done
done
`

// startWorker starts usher with the scenario's plan.
func (p *proof) startWorker() {
	p.Helper()
	program, err := builtUsher()
	p.must(err)
	text := []byte(`provider: alibaba
hooks: [{transition: scale_in, deadline: 20m, on_failure: ROLLBACK, steps: [` + p.steps + `]}]
`)
	if p.example != "" {
		text, err = os.ReadFile(filepath.Join("..", "configs", "examples", p.example))
		p.must(err)
		// The one thing in it that is of the operator's own network, and no plain value.
		text = bytes.ReplaceAll(text, []byte("10.0.0.252/31"), []byte(probeSource))
	}
	config := filepath.Join(p.dir, "config")
	p.must(os.Mkdir(config, 0o700))
	p.must(os.WriteFile(filepath.Join(config, "usher.yaml"), []byte("name: usher-zerodrop\nhttp: \"off\"\nreconcile: {every: \"off\"}\n"), 0o600))
	p.must(os.WriteFile(filepath.Join(config, "web.yaml"), text, 0o600))
	cmd := inside(p.name+"-lb", program, "run", "--config", config)
	// What the machine sets for some other usher is not for this one.
	own := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "USHER_") })
	cmd.Env = append(own, "ALIBABA_CLOUD_ACCESS_KEY_ID="+keyID, "ALIBABA_CLOUD_ACCESS_KEY_SECRET="+keySecret)
	for key, value := range map[string]string{
		"REGION": region, "SCALING_GROUP": groupID, "QUEUE_NAME": queueName, "QUEUE_ENDPOINT": cloudURL, "ENDPOINTS_ESS": cloudURL,
		"ENDPOINTS_ECS": cloudURL, "ENDPOINTS_SLB": cloudURL, "ENDPOINTS_ALB": cloudURL, "ENDPOINTS_NLB": cloudURL,
	} {
		cmd.Env = append(cmd.Env, "USHER_GROUP_WEB_"+key+"="+value)
	}
	p.worker = p.start("usher", cmd)
	p.until("usher has started", func() bool { return len(p.audited(audit.Started)) > 0 })
}

// audited gives usher's audit records of an event.
func (p *proof) audited(event audit.Event) []audit.Record {
	var records []audit.Record
	if p.worker == nil {
		return nil
	}
	for line := range strings.Lines(p.worker.text()) {
		var r audit.Record
		if json.Unmarshal([]byte(line), &r) == nil && r.Event == event {
			records = append(records, r)
		}
	}
	return records
}

// run lets the first instance leave under load and gives what the clients saw.
func (s scenario) run(t *testing.T, repeat int) *load.Record {
	t.Helper()
	p := &proof{T: t, scenario: s, name: network(t), dir: folder(t)}
	p.balancer(p)
	if s.usher() {
		p.startWorker()
	}
	clients := s.clients
	clients.File, clients.Scale = filepath.Join(p.dir, "record"), cmp.Or(clients.Scale, loadScale)
	generator := p.startRole("the clients", "cli", role{Clients: &clients})
	rest(t.Context(), warmUp())

	var activity simulator.Activity
	began := time.Now()
	p.mark("scale-in")
	p.must(p.ask("POST", "scaling-groups/"+groupID+"/scale-in", `{"count": 1}`, &activity))
	p.until("the scale-in is over", p.over)
	if len(p.state().Groups[0].Instances) < machines {
		p.mark("released")
	} else {
		p.mark("kept")
	}
	drained := time.Since(began)
	if s.usher() {
		p.until("usher has closed the action", func() bool { return len(p.audited(audit.Acked)) > 0 })
	}
	// An idle client sends once in 9 s: by then each has met what is left.
	rest(t.Context(), after)
	generator.held.Close()
	select {
	case <-generator.ended:
	case <-time.After(patience):
		t.Fatal("the clients do not end")
	}
	text, err := os.ReadFile(clients.File)
	p.must(err)
	record := &load.Record{}
	p.must(json.Unmarshal(text, record))
	record.Scenario = load.Scenario{
		Name: s.name, Plan: s.plan, Balancer: s.kind, Repeat: repeat, Usher: s.usher(),
		DrainSeconds: drained.Seconds(),
	}
	for _, r := range p.audited(audit.Completed) {
		record.Scenario.Result = r.Result
	}
	for _, r := range p.audited(audit.StepFinished) { // a plot is to show when each ended
		p.marks = append(p.marks, mark{r.Step, r.Time})
		t.Logf("%s %s after %.1f s: %s%s", r.Step, r.Result, float64(r.DurationMS)/1000, r.Reason, r.Error)
	}
	byUsher := func(r audit.Record) bool { return strings.Contains(r.Reason, "method native") }
	if s.native && !slices.ContainsFunc(p.audited(audit.StepFinished), byUsher) {
		t.Error("no step was left to usher on the instance")
	}
	for _, m := range p.marks {
		record.Mark(m.name, m.at)
	}
	t.Logf("%s, %s: gone after %.1f s: %s", s.kind, s.name, drained.Seconds(), record)
	for _, f := range record.Failures[:min(10, len(record.Failures))] {
		t.Logf("failed at %d ms: %s, %s after %d ms: %s", f.MS-began.Sub(record.Began).Milliseconds(), f.Kind, f.Reason, f.AfterMS, f.Error)
	}
	if *recordTo != "" {
		_, err := record.Write(*recordTo)
		p.must(err)
	}
	return record
}

// over says that the instance is gone, or is to stay.
func (p *proof) over() bool {
	st := p.state()
	return len(st.Groups[0].Instances) < machines || len(st.Actions) > 0 && st.Actions[0].Status == "Completed"
}

// The load and its time.
const (
	// loadScale times the load of the load package: 200 new connections a second, 48 active
	// and 18 idle clients that keep theirs, 8 slow requests and 3 downloads a second. The
	// third of it that one backend has is more than 90 in the 2 s that a balancer needs at
	// least to notice that it is gone, however busy the machine.
	loadScale = 2
	// after is how long traffic goes on when the instance is gone.
	after = 10 * time.Second
)

// warmUp is how long it flows before.
func warmUp() time.Duration {
	if *recordTo != "" {
		return 10 * time.Second
	}
	return 5 * time.Second
}
