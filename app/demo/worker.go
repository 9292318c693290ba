package demo

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"example.org/usher/app"
	"example.org/usher/configs"
	"example.org/usher/messages"
	"example.org/usher/providers/alibaba"
	"example.org/usher/providers/aws"
	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// The files that the worker is started with, as an operator would write them.
const workerFile = `name: usher-demo
http: "off"
visibility_timeout: 30s
shutdown_grace: 0s
`

// plan is what the config is made of.
type plan struct {
	Provider, Region, Group, Queue, URL string
	// TargetGroup, when set, is the ARN of the one to take the instances out of; else their
	// application is told to go down, which fails the balancer's health check.
	TargetGroup string
	// Port is the instances' own; 0 when they have not all the same.
	Port int
	// Wait, when set, is waited instead of looking at the connections.
	Wait time.Duration
	// why is the reason for that.
	why string
}

// waitSlack is what a plan without a look at the connections adds to the longest request.
const waitSlack = 4 * time.Second

// newPlan looks at what this host can do. slow is how long the slowest request takes.
func newPlan(ctx context.Context, f *fleet, slow time.Duration, blind bool) plan {
	p := plan{Provider: f.provider, Region: f.region, Group: hookedGroup, Queue: f.queue, URL: f.url, TargetGroup: f.targetGroupARN()}
	p.Port = commonPort(f.sim.State())
	switch {
	case p.Port == 0:
		p.why = "the instances share one address here"
	case blind || !canLook(ctx):
		p.why = "this host cannot run the script that watches connections (it needs sh, awk, sleep and /proc/net/tcp)"
	default:
		return p
	}
	p.Wait = slow + waitSlack
	return p
}

// commonPort is the port that all instances of the hooked group serve on, 0 if there
// is none: where only 127.0.0.1 exists, each has a port of its own, and no address.
func commonPort(st simulator.State) int {
	g, _ := st.Group(hookedGroup)
	port, hosts := 0, map[string]bool{}
	for _, in := range g.Instances {
		if hosts[in.Address] || port != 0 && in.Port != port {
			return 0
		}
		port, hosts[in.Address] = in.Port, true
	}
	return port
}

// canLook tries what the script of wait_connections needs.
func canLook(ctx context.Context) bool {
	if runtime.GOOS != "linux" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	const try = `command -v sleep >/dev/null && awk 'BEGIN {
		if ((getline line < "/proc/uptime") <= 0 || (getline line < "/proc/net/tcp") <= 0) exit 1
	}' </dev/null`
	cmd := exec.CommandContext(ctx, "sh", "-c", try)
	cmd.Dir = os.TempDir() // where the simulator runs scripts
	return cmd.Run() == nil
}

// steps says in words what the plan does.
func (p plan) steps() string {
	down := "http tells the application to go down, then "
	switch {
	case p.TargetGroup != "":
		down = "deregister takes it out of the target group, then "
	case p.Port == 0:
		down = ""
	}
	if p.Wait > 0 {
		return fmt.Sprintf("%swait for %v, longer than any request takes", down, p.Wait)
	}
	return down + "wait_connections watches until no connection is left"
}

// count is how many steps that are.
func (p plan) count() int {
	if p.TargetGroup == "" && p.Port == 0 {
		return 1
	}
	return 2
}

// group is the config of the scaling group.
func (p plan) group() string {
	endpoints, deadline := `{ess: %[1]q, ecs: %[1]q}`, "45s"
	if p.Provider == configs.ProviderAWS {
		endpoints = `{autoscaling: %[1]q, elb: %[1]q, ssm: %[1]q, ec2: %[1]q, sts: %[1]q}`
	}
	var steps []string
	switch {
	case p.TargetGroup != "":
		deadline = "70s"
		steps = append(steps, fmt.Sprintf(`deregister: {balancers: ["target-group:%s"], drain: skip, last_healthy: ignore, timeout: 30s}`, p.TargetGroup))
	case p.Port != 0:
		steps = append(steps, fmt.Sprintf(`http: {method: PUT, url: "http://{{.PrivateIP}}:%d/actuator/health/down", expect: [204], timeout: 5s}`, p.Port))
	}
	if p.Wait > 0 {
		steps = append(steps, fmt.Sprintf("wait: {for: %s}", p.Wait))
	} else {
		steps = append(steps, fmt.Sprintf(`wait_connections: {ports: [%d], local_address: "{{.PrivateIP}}", until: zero, gap: 2s, timeout: 35s}`, p.Port))
	}
	return fmt.Sprintf(`provider: %s
region: %s
scaling_group: %s
queue: {name: %s, endpoint: %q}
endpoints: %s
hooks:
  - transition: scale_in
    deadline: %s
    on_success: CONTINUE
    on_failure: ABANDON
    steps:
      - %s
`, p.Provider, p.Region, p.Group, p.Queue, p.URL, fmt.Sprintf(endpoints, p.URL), deadline, strings.Join(steps, "\n      - "))
}

// write puts the config files into a new folder.
func (p plan) write() (dir string, err error) {
	dir, err = temporaryFolder()
	if err != nil {
		return "", err
	}
	err = errors.Join(
		os.WriteFile(filepath.Join(dir, configs.WorkerFile), []byte(workerFile), 0o600),
		os.WriteFile(filepath.Join(dir, "demo.yaml"), []byte(p.group()), 0o600),
	)
	if err != nil {
		return "", errors.Join(fmt.Errorf("write the worker's config: %w", err), os.RemoveAll(dir))
	}
	return dir, nil
}

// temporaryFolder also works in a container whose root file system is read-only:
// there /dev/shm can be written to.
func temporaryFolder() (string, error) {
	var problems []error
	for _, parent := range []string{"", "/dev/shm"} {
		dir, err := os.MkdirTemp(parent, "usher-demo-")
		if err == nil {
			return dir, nil
		}
		problems = append(problems, err)
	}
	return "", fmt.Errorf("make a folder for the worker's config: %w", errors.Join(problems...))
}

// helper is a worker, as usher run starts it, that sees the hooked group's
// instances out, and what it told in its audit log.
type helper struct {
	actions int          // that it is to answer
	stop    func() error // lets it end, and waits
	changed chan struct{}

	mu      sync.Mutex // guards all below
	log     bytes.Buffer
	records []audit.Record
	ended   bool
}

// startHelper starts a worker. see gets each audit record.
func startHelper(ctx context.Context, f *fleet, p plan, see func(audit.Record)) (*helper, error) {
	dir, err := p.write()
	if err != nil {
		return nil, err
	}
	// The worker reads its files once, so the folder can go at once.
	config, err := configs.Load(dir, nil)
	if err := errors.Join(err, os.RemoveAll(dir)); err != nil {
		return nil, fmt.Errorf("load the worker's config: %w", err)
	}
	h := &helper{actions: f.actions, changed: make(chan struct{}, 1)}
	a, err := app.New(app.Options{
		Config: config, Audit: h,
		Credentials: alibaba.StaticCredentials(f.keyID, f.keySecret), AWSCredentials: aws.StaticCredentials(f.keyID, f.keySecret),
		Observer: func(r audit.Record) {
			h.observe(r)
			see(r)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start the worker: %w", err)
	}
	receiving, end := context.WithCancel(ctx)
	var running sync.WaitGroup
	var runErr error
	running.Go(func() {
		runErr = a.Run(receiving, ctx)
		h.mu.Lock()
		defer h.mu.Unlock()
		h.ended = true
		h.wake()
	})
	h.stop = sync.OnceValue(func() error {
		end()
		running.Wait()
		return runErr
	})
	return h, nil
}

// Write keeps the audit log.
func (h *helper) Write(b []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.log.Write(b)
}

func (h *helper) observe(r audit.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.records = append(h.records, r)
	h.wake()
}

func (h *helper) wake() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

// answered waits for the records that close the lifecycle actions of the scale-in. It
// fails when the cloud got no result: then the hook would wait for long.
func (h *helper) answered(ctx context.Context) error {
	for {
		h.mu.Lock()
		done, err := verdict(h.records, h.actions)
		ended := h.ended
		h.mu.Unlock()
		switch {
		case done:
			return err
		case ended:
			return errors.New("the worker ended before the scale-in did")
		}
		select {
		case <-h.changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for the worker to answer the lifecycle hook: %w", context.Cause(ctx))
		}
	}
}

// verdict says whether so many actions are closed, or one is that has no result.
func verdict(records []audit.Record, actions int) (closed bool, err error) {
	completed, done := map[messages.Token]bool{}, 0
	for _, r := range records {
		if r.Event == audit.Completed {
			completed[r.Token] = true
		}
		if !r.Event.Closes() || r.Event == audit.Ignored {
			continue
		}
		if !completed[r.Token] {
			return true, fmt.Errorf("the worker closed the lifecycle action without a result: %s, %s", r.Event, cmp.Or(r.Error, r.Reason, "no reason"))
		}
		done++
	}
	return done >= actions, nil
}

// outcome is how many instances went through every step, and the result that the
// cloud accepted.
func (h *helper) outcome(steps int) (drained int, result messages.Result) {
	h.mu.Lock()
	defer h.mu.Unlock()
	done := map[messages.InstanceID]int{}
	for _, r := range h.records {
		switch {
		case r.Event == audit.Completed:
			result = messages.Result(r.Result)
		case r.Event == audit.StepFinished && r.Result == "ok":
			if done[r.Instance]++; done[r.Instance] == steps {
				drained++
			}
		}
	}
	return drained, result
}

// auditLog is all that the worker wrote.
func (h *helper) auditLog() []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	return bytes.Clone(h.log.Bytes())
}
