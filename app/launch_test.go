package app

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/usher/configs"
	"example.org/usher/providers/alibaba"
	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

const (
	plainGroup  = "asg-plain"
	hookedGroup = "asg-hooked"
)

// launchFile is a scale-out as README.md has it: install, then wait until it answers.
const launchFile = `provider: alibaba
region: cn-shenzhen
scaling_group: asg-hooked
queue: {name: ess-lifecycle, endpoint: %[1]q}
endpoints: {ess: %[1]q, ecs: %[1]q}
hooks:
  - transition: scale_out
    deadline: 1h
    on_failure: ABANDON
    steps:
      - command: {script: "exit 0", timeout: 20m}
      - http: {url: "http://{{.PrivateIP}}:%[2]d/actuator/health", every: 100ms, clear_checks: 3, timeout: 30m}
`

// fleetOfTwo is two groups behind one balancer, one of them with a hook. New instances look
// healthy to the balancer as soon as their process runs, and work when they are told to.
func fleetOfTwo() simulator.Scenario {
	return simulator.Scenario{
		Region:    "cn-shenzhen",
		Queues:    []simulator.QueueConfig{{Name: "ess-lifecycle", VisibilityTimeout: 30 * time.Second}},
		Balancers: []simulator.BalancerConfig{{ID: "alb-web", HealthCheck: simulator.HealthCheck{Interval: 50 * time.Millisecond, Timeout: time.Minute, Fall: 10}}},
		ScalingGroups: []simulator.GroupConfig{
			{ID: plainGroup, Instances: 1, Balancers: []string{"alb-web"}},
			{ID: hookedGroup, Instances: 1, Balancers: []string{"alb-web"}, Hooks: []simulator.HookConfig{
				{ID: "ash-launch", Transition: "scale_out", Queue: "ess-lifecycle", DefaultResult: "ABANDON"},
			}},
		},
		Timings: simulator.Timings{Boot: 200 * time.Millisecond, Agent: 500 * time.Millisecond, WarmUp: time.Hour},
	}
}

// clients ask the balancer without a pause, each request on a connection of its own.
type clients struct {
	requests, failed atomic.Int64
	stop             context.CancelFunc
	running          sync.WaitGroup
}

func startClients(ctx context.Context, address string) *clients {
	c := &clients{}
	ctx, c.stop = context.WithCancel(ctx)
	for range 3 {
		c.running.Go(func() {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
			for ctx.Err() == nil {
				status, err := fetch(ctx, client, "http://"+address+"/")
				if ctx.Err() != nil {
					return // cut short by ourselves
				}
				c.requests.Add(1)
				if err != nil || status != http.StatusOK {
					c.failed.Add(1)
				}
			}
		})
	}
	return c
}

func fetch(ctx context.Context, client *http.Client, url string) (int, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	res, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	_, err = io.Copy(io.Discard, res.Body)
	return res.StatusCode, err
}

// settle ends the clients and says what they saw.
func (c *clients) settle() (requests, failed int64) {
	c.stop()
	c.running.Wait()
	return c.requests.Load(), c.failed.Load()
}

// No request goes to an instance that is not ready: the same scale-out under traffic,
// without usher and with it, over real sockets. Both counts are the clients' own.
func TestScaleOutUnderTraffic(t *testing.T) {
	t.Parallel()
	sim, err := simulator.New(simulator.Options{AccessKeyID: mark + "Id", AccessKeySecret: mark + "Key", Scenario: fleetOfTwo(), Exec: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sim.Close(); err != nil {
			t.Error(err)
		}
	})
	server := httptest.NewServer(sim)
	t.Cleanup(server.Close)
	balancer := sim.State().Balancers[0].Address
	// Nothing here ends by a clock of its own: go test's timeout does.
	until := func(what string, ok func(simulator.State) bool) {
		t.Helper()
		for !ok(sim.State()) {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-t.Context().Done():
				t.Fatalf("not yet: %s", what)
			}
		}
	}
	scaleOut := func(group string) string {
		t.Helper()
		act, err := sim.ScaleOut(group, 1)
		if err != nil {
			t.Fatal(err)
		}
		return act.Instances[0]
	}
	warmedUp := func(id string) {
		t.Helper()
		in, _ := sim.State().Instance(id)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, fmt.Sprintf("http://%s:%d/actuator/health/up", in.Address, in.Port), nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
	}
	served := func(st simulator.State, id string) int64 {
		for _, m := range st.Balancers[0].Members {
			if m.Instance == id && m.InService {
				return m.Served
			}
		}
		return -1
	}

	without := startClients(t.Context(), balancer)
	id := scaleOut(plainGroup)
	until("clients meet the instance that is not ready", func(simulator.State) bool { return without.failed.Load() > 0 })
	warmedUp(id)
	before := int64(0)
	until("it serves", func(st simulator.State) bool {
		if before == 0 {
			before = served(st, id)
		}
		return served(st, id) > before+10
	})
	requests, failed := without.settle()
	t.Logf("without usher: %d requests, %d failed", requests, failed)

	worker, logs := startApp(t, fmt.Sprintf(launchFile, server.URL, sim.State().Groups[0].Instances[0].Port))
	with := startClients(t.Context(), balancer)
	id = scaleOut(hookedGroup)
	until("usher asks whether it is ready", func(simulator.State) bool { return logs.steps.Load() == 2 })
	sent := with.requests.Load()
	until("clients go on meanwhile", func(simulator.State) bool { return with.requests.Load() > sent+200 })
	if n := served(sim.State(), id); n >= 0 {
		t.Errorf("the balancer has the instance, which has served %d requests, before it is ready", n)
	}
	warmedUp(id)
	until("it serves", func(st simulator.State) bool { return served(st, id) > 10 })
	requests, failed = with.settle()
	t.Logf("with usher: %d requests, %d failed", requests, failed)
	if failed > 0 {
		t.Errorf("%d of %d requests failed although usher was there", failed, requests)
	}
	until("the message is deleted", func(st simulator.State) bool { return st.Queues[0].Active+st.Queues[0].Inactive == 0 })
	worker()
	a := sim.State().Actions[0]
	if a.EndedBy != "call" || a.Result != "CONTINUE" {
		t.Errorf("action %+v", a)
	}
	if text := logs.text(); bytes.Contains(text, []byte(mark)) || !bytes.Contains(text, []byte(`"event":"acked"`)) {
		t.Errorf("audit log:\n%s", text)
	}
}

// auditLog is a worker's, and how many steps have begun.
type auditLog struct {
	steps atomic.Int64
	mu    sync.Mutex
	log   bytes.Buffer // guarded by mu
}

func (l *auditLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log.Write(p)
}

func (l *auditLog) text() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.log.Bytes())
}

func (l *auditLog) observe(rec audit.Record) {
	if rec.Event == audit.StepStarted {
		l.steps.Add(1)
	}
}

// startApp runs the worker of usher run on the group's file. stop ends it as SIGTERM does.
func startApp(t *testing.T, group string) (stop func(), logs *auditLog) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"web.yaml": group, "usher.yaml": "http: \"off\"\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := configs.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	logs = &auditLog{}
	a, err := New(Options{Config: config, Credentials: alibaba.StaticCredentials(mark+"Id", mark+"Key"), Audit: logs, Observer: logs.observe})
	if err != nil {
		t.Fatal(err)
	}
	working, cut := context.WithCancel(context.WithoutCancel(t.Context()))
	receiving, end := context.WithCancel(working)
	done := make(chan error, 1)
	go func() { done <- a.Run(receiving, working) }()
	stop = sync.OnceFunc(func() {
		end()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cut(); stop() })
	return stop, logs
}
