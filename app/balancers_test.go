package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/configs"
	"example.org/usher/providers/alibaba"
	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// behindThree is a group of n instances behind a CLB (default and virtual server group), an
// ALB and an NLB, none of which ESS knows of.
func behindThree(n int) simulator.Scenario {
	return simulator.Scenario{
		Queues: []simulator.QueueConfig{{Name: "ess-lifecycle", VisibilityTimeout: time.Minute, PollingWait: 20 * time.Second}},
		Balancers: []simulator.BalancerConfig{
			{ID: "lb-1", Type: "clb", ServerGroups: []simulator.ServerGroupConfig{{ID: "rsp-1"}}, Listeners: []simulator.ListenerConfig{
				{Port: 80, Protocol: "http", BackendPort: 8080},
				{Port: 443, ServerGroup: "rsp-1", ConnectionDrainTimeout: 60 * time.Second},
			}},
			{ID: "alb-1", Type: "alb", ServerGroups: []simulator.ServerGroupConfig{{ID: "sgp-a", ConnectionDrainTimeout: 30 * time.Second}}, JobDuration: 3 * time.Second},
			{ID: "nlb-1", Type: "nlb", ServerGroups: []simulator.ServerGroupConfig{{ID: "sgp-n"}}, JobDuration: 5 * time.Second},
		},
		ScalingGroups: []simulator.GroupConfig{{
			ID: "asg-wz9example0001", Instances: n, Zones: []string{"cn-shenzhen-a", "cn-shenzhen-b"},
			Hooks: []simulator.HookConfig{{ID: "ash-wz9example0001", Transition: "scale_in", Queue: "ess-lifecycle"}},
			ServerGroups: []simulator.MembershipConfig{
				{ID: "lb-1", Unattached: true},
				{ID: "rsp-1", Ports: []int{8443, 9443}, Unattached: true},
				{ID: "sgp-a", Ports: []int{8080, 8081}, Unattached: true},
				{ID: "sgp-n", Ports: []int{8080}, Unattached: true},
			},
		}},
	}
}

// balancerFile is the group's config; steps stand on one line each.
func balancerFile(steps ...string) string {
	text := `provider: alibaba
region: cn-shenzhen
scaling_group: asg-wz9example0001
queue: {name: ess-lifecycle, endpoint: "http://mns.test"}
endpoints: {ess: "http://ess.test", ecs: "http://ecs.test", slb: "http://slb.test", alb: "http://alb.test", nlb: "http://nlb.test"}
hooks:
  - transition: scale_in
    deadline: 40m
    steps:
`
	for _, s := range steps {
		text += "      - " + s + "\n"
	}
	return text
}

// runBalanced makes a cloud in a bubble. start starts a worker with a config, and gives what
// stops it at once, in the middle of its jobs.
func runBalanced(t *testing.T, scenario simulator.Scenario, observe func(*simulator.Simulator, audit.Record), test func(p *permitted, start func() (stop func())), steps ...string) {
	t.Helper()
	runCommanded(t, scenario, nil, observe, test, steps...)
}

// runCommanded is runBalanced with machines that run scripts.
func runCommanded(t *testing.T, scenario simulator.Scenario, commands func(id, script string) simulator.CommandOutcome, observe func(*simulator.Simulator, audit.Record), test func(p *permitted, start func() (stop func())), steps ...string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"web.yaml": balancerFile(steps...), "usher.yaml": "http: \"off\"\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := configs.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		sim, err := simulator.New(simulator.Options{AccessKeyID: mark + "Id", AccessKeySecret: mark + "Key", Scenario: scenario, NoServers: true, Commands: commands})
		if err != nil {
			t.Fatal(err)
		}
		l, closeCloud := serve(sim)
		p := &permitted{t: t, sim: sim}
		var stops []func()
		start := func() func() {
			worker, err := New(Options{
				Config: config, Credentials: alibaba.StaticCredentials(mark+"Id", mark+"Key"), DialContext: l.DialContext, Audit: p,
				Observer: func(r audit.Record) {
					if observe != nil {
						observe(sim, r)
					}
				},
				Logger: slog.New(slog.NewTextHandler(p, nil)),
			})
			if err != nil {
				t.Fatal(err)
			}
			stop := run(t, worker, false)
			stops = append(stops, stop)
			return stop
		}
		defer func() {
			for _, stop := range stops {
				stop()
			}
			closeCloud()
			p.holdsNoKey(t)
		}()
		test(p, start)
	})
}

// balancerCalls are the calls that leaving costs, by product.
func balancerCalls(calls map[string]int) map[string]int {
	sum := map[string]int{}
	for name, n := range calls {
		service, action, _ := strings.Cut(name, ".")
		switch {
		case service == "slb", service == "alb", service == "nlb":
			sum[service] += n
			sum["all"] += n
		case action == "DescribeScalingGroups", action == "DescribeInstances":
			sum["others"] += n
			sum["all"] += n
		}
	}
	return sum
}

// TestManyLeaveThreeBalancers: 120 instances in one scale-in, six memberships each. The
// simulator refuses what is beyond the APIs' limits for a batch and a page.
func TestManyLeaveThreeBalancers(t *testing.T) {
	t.Parallel()
	const n = 120
	left := 0
	observe := func(sim *simulator.Simulator, r audit.Record) {
		if r.Event != audit.StepFinished {
			return
		}
		left++
		st := sim.State()
		if ms := st.Members(string(r.Instance)); len(ms) > 0 || r.Result != "ok" {
			t.Errorf("%s: %s with %d memberships: %s %s", r.Instance, r.Result, len(ms), r.Reason, r.Error)
		}
		for _, b := range st.Balancers {
			for _, m := range b.Members {
				if m.Instance == string(r.Instance) && m.Draining {
					t.Errorf("%s still drains in %s", r.Instance, m.ServerGroup)
				}
			}
		}
	}
	runBalanced(t, behindThree(n+10), observe, func(p *permitted, start func() func()) {
		start()
		began := time.Now()
		if _, err := p.sim.ScaleIn("asg-wz9example0001", n); err != nil {
			t.Fatal(err)
		}
		p.until(30*time.Minute, "the action is over", func() bool {
			st := p.sim.State()
			return len(st.Actions) == 1 && st.Actions[0].Status == "Completed"
		})
		took := time.Since(began)
		if a := p.sim.State().Actions[0]; a.Result != "CONTINUE" || left != n {
			t.Errorf("%d left; %+v\n%s", left, a, p.logs())
		}
		calls := p.sim.State().APICalls
		sum := balancerCalls(calls)
		for _, name := range slices.Sorted(maps.Keys(calls)) {
			t.Log(name, calls[name])
		}
		t.Logf("%v for %d instances, %.2f calls each: %v", took, n, float64(sum["all"])/n, sum)
		if sum["all"] > n*5/4 {
			t.Errorf("%d calls, more than five for four instances: %v", sum["all"], sum)
		}
		// max_jobs lets 100 leave together, and then 20.
		for name, most := range map[string]int{
			"alb.RemoveServersFromServerGroup": 2, "nlb.RemoveServersFromServerGroup": 2, "slb.RemoveBackendServers": 6, "slb.RemoveVServerGroupBackendServers": 12,
			"ecs.DescribeInstances": 2,
		} {
			if calls[name] > most {
				t.Errorf("%d of %s, at most %d were expected", calls[name], name, most)
			}
		}
	}, "deregister: {balancers: auto}")
}

// TestTakeoverInMidRemoval: a worker that stops at any moment of a deregistration leaves it to
// another, which ends it. Nobody else's memberships are touched.
func TestTakeoverInMidRemoval(t *testing.T) {
	t.Parallel()
	members := func(p *permitted, id string) (n, weightless int) {
		for _, m := range p.sim.State().Members(id) {
			if n++; m.Weight == 0 || m.Status == "Removing" {
				weightless++
			}
		}
		return n, weightless
	}
	for name, reached := range map[string]func(n, weightless int) bool{
		"before anything":    func(n, weightless int) bool { return n == 6 && weightless == 0 },
		"at weight 0":        func(n, weightless int) bool { return weightless >= 4 },
		"some are removed":   func(n, _ int) bool { return n > 0 && n <= 5 },
		"while they drain":   func(n, _ int) bool { return n == 0 },
		"and stopped at end": func(n, _ int) bool { return false },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runBalanced(t, behindThree(4), nil, func(p *permitted, start func() func()) {
				stop := start()
				activity, err := p.sim.ScaleIn("asg-wz9example0001", 1)
				if err != nil {
					t.Fatal(err)
				}
				over := func() bool { return p.sim.State().Actions[0].Status != "Pending" }
				p.until(10*time.Minute, "the moment has come", func() bool {
					n, weightless := members(p, activity.Instances[0])
					return strings.Contains(p.logs(), `"event":"step_started"`) && reached(n, weightless) || over()
				})
				stop()
				start()
				p.until(10*time.Minute, "the action is over", over)
				if a := p.sim.State().Actions[0]; a.Status != "Completed" || a.Result != "CONTINUE" || a.EndedBy != "call" {
					t.Errorf("%+v\n%s", a, p.logs())
				}
				if n, _ := members(p, activity.Instances[0]); n != 0 {
					t.Errorf("%d memberships are left", n)
				}
				g, _ := p.sim.State().Group("asg-wz9example0001")
				for _, in := range g.Instances {
					if n, weightless := members(p, in.ID); in.ID != activity.Instances[0] && (n != 6 || weightless != 0) {
						t.Errorf("%s has %d memberships, %d without weight", in.ID, n, weightless)
					}
				}
			}, "deregister: {balancers: auto}")
		})
	}
}

// TestTrafficWhileOneLeaves: real servers behind real balancers that ESS does not know of, and
// clients at all three. No request fails, from before the scale-in to after the instance's end.
func TestTrafficWhileOneLeaves(t *testing.T) {
	t.Parallel()
	scenario := behindThree(3)
	// A slow machine's checks and drains must not look like a sick one's.
	for i := range scenario.Balancers {
		b := &scenario.Balancers[i]
		b.HealthCheck = simulator.HealthCheck{Timeout: time.Minute, Fall: 10}
		b.JobDuration = 0
		for j := range b.ServerGroups {
			b.ServerGroups[j].ConnectionDrainTimeout = 0
		}
		for j := range b.Listeners {
			b.Listeners[j].ConnectionDrainTimeout = 0
		}
	}
	sim, err := simulator.New(simulator.Options{AccessKeyID: mark + "Id", AccessKeySecret: mark + "Key", Scenario: scenario})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = sim.Close() })
	api := httptest.NewServer(sim)
	t.Cleanup(api.Close)

	tr := newTraffic()
	quiet := httptest.NewServer(tr)
	t.Cleanup(quiet.Close)
	dir := t.TempDir()
	text := strings.NewReplacer("http://mns.test", api.URL, "http://ess.test", api.URL, "http://ecs.test", api.URL,
		"http://slb.test", api.URL, "http://alb.test", api.URL, "http://nlb.test", api.URL).Replace(balancerFile(
		"deregister: {balancers: auto, weight_zero: 1s, last_healthy: refuse}",
		// What was on its way when the balancers had let it go has ended.
		fmt.Sprintf("http: {url: %q, every: 200ms, timeout: 5m, allow_hosts: [127.0.0.1]}", quiet.URL)))
	for name, text := range map[string]string{"web.yaml": text, "usher.yaml": "http: \"off\"\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := configs.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &permitted{t: t, sim: sim}
	p.app, err = New(Options{Config: config, Credentials: alibaba.StaticCredentials(mark+"Id", mark+"Key"), Audit: p, Logger: slog.New(slog.NewTextHandler(p, nil))})
	if err != nil {
		t.Fatal(err)
	}
	receiving, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.app.Run(receiving, context.WithoutCancel(receiving)) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()

	each := func(do func(url string)) {
		for _, b := range sim.State().Balancers {
			for _, l := range b.Listeners {
				do("http://" + l.Address + "/")
			}
		}
	}
	each(func(url string) { tr.ask(url, func() bool { return true }) }) // each instance has served at each
	activity, err := sim.ScaleIn("asg-wz9example0001", 1)
	if err != nil {
		t.Fatal(err)
	}
	released := func() bool {
		g, _ := sim.State().Group("asg-wz9example0001")
		return len(g.Instances) == 2
	}
	var clients sync.WaitGroup
	each(func(url string) { clients.Go(func() { tr.ask(url, released) }) })
	clients.Wait()
	if tr.failed != nil || tr.asked < 200 {
		t.Errorf("%d requests: %v\n%s", tr.asked, tr.failed, p.logs())
	}
	served := map[string]int64{}
	for _, b := range sim.State().Balancers {
		if b.Failed != 0 {
			t.Errorf("%s: %d of %d failed", b.ID, b.Failed, b.Served+b.Failed)
		}
		for _, m := range b.Members {
			if m.Instance == activity.Instances[0] && m.Served > 0 {
				served[b.ID] += m.Served
			}
		}
	}
	if a := sim.State().Actions[0]; a.Result != "CONTINUE" || a.EndedBy != "call" || len(served) != 3 {
		t.Errorf("%+v; it had served %v", a, served)
	}
	t.Logf("%d requests, of which the one that left had %v", tr.asked, served)
}

// traffic counts requests, and knows which are on their way.
type traffic struct {
	client *http.Client

	mu     sync.Mutex // guards all below
	asked  int
	failed error
	going  map[int]bool // by number
	before int          // the number of requests when quiet was asked for first
}

func newTraffic() *traffic {
	// Each request has a connection of its own: none is tried a second time.
	return &traffic{client: &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, going: map[int]bool{}, before: -1}
}

// ask makes requests, one after the other, until the end and then some more.
func (tr *traffic) ask(url string, end func() bool) {
	for more := 50; more > 0; {
		tr.mu.Lock()
		n := tr.asked
		tr.asked++
		tr.going[n] = true
		tr.mu.Unlock()
		resp, err := tr.client.Get(url)
		if err == nil {
			_, err = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				err = errors.Join(err, errors.New(resp.Status))
			}
		}
		tr.mu.Lock()
		delete(tr.going, n)
		tr.failed = errors.Join(tr.failed, err)
		failed := tr.failed != nil
		tr.mu.Unlock()
		if failed {
			return
		}
		if end() {
			more--
		}
	}
}

// ServeHTTP says OK when no request is on its way any more that began before it was first asked.
func (tr *traffic) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	if tr.before < 0 {
		tr.before = tr.asked
	}
	for n := range tr.going {
		if n < tr.before {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
	}
}
