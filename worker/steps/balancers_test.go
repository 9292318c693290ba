package steps_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/alibaba"
	"example.org/usher/simulator"
	"example.org/usher/worker/steps"
)

const (
	testID     = "usherTESTsecretId"
	testSecret = "usherTESTsecretKey"
	testGroup  = "asg-wz9example0001"
)

var (
	clb     = providers.Balancer{Kind: providers.CLB, ID: "lb-1"}
	vgroup  = providers.Balancer{Kind: providers.CLBGroup, ID: "rsp-1"}
	alb     = providers.Balancer{Kind: providers.ALB, ID: "sgp-a"}
	nlb     = providers.Balancer{Kind: providers.NLB, ID: "sgp-n"}
	autoAll = []providers.Balancer{{Kind: providers.CLB}, {Kind: providers.ALB}, {Kind: providers.NLB}}
)

// balanced is a cloud with a group of n instances behind a CLB (default and virtual server
// group), an ALB and an NLB, and the client of its balancers.
type balanced struct {
	*testing.T
	sim        *simulator.Simulator
	options    alibaba.Options
	cloud      *alibaba.Balancers
	departures *steps.Departures
}

func balancedScenario(n int, unattached bool) simulator.Scenario {
	return simulator.Scenario{
		Queues: []simulator.QueueConfig{{Name: "q"}},
		Balancers: []simulator.BalancerConfig{
			{ID: "lb-1", Type: "clb", ServerGroups: []simulator.ServerGroupConfig{{ID: "rsp-1"}}, Listeners: []simulator.ListenerConfig{
				{Port: 80, Protocol: "http", BackendPort: 8080},
				{Port: 443, ServerGroup: "rsp-1", ConnectionDrainTimeout: 30 * time.Second},
			}},
			{ID: "alb-1", Type: "alb", ServerGroups: []simulator.ServerGroupConfig{{ID: "sgp-a", ConnectionDrainTimeout: 20 * time.Second}}, JobDuration: 3 * time.Second},
			{ID: "nlb-1", Type: "nlb", ServerGroups: []simulator.ServerGroupConfig{{ID: "sgp-n"}}, JobDuration: 5 * time.Second},
		},
		ScalingGroups: []simulator.GroupConfig{{
			ID: testGroup, Instances: n, Zones: []string{"cn-shenzhen-a", "cn-shenzhen-b"},
			Hooks: []simulator.HookConfig{{ID: "ash-1", Transition: "scale_in", Queue: "q", HeartbeatTimeout: time.Hour}},
			ServerGroups: []simulator.MembershipConfig{
				{ID: "lb-1", Unattached: unattached},
				{ID: "rsp-1", Ports: []int{8443, 9443}, Unattached: unattached},
				{ID: "sgp-a", Ports: []int{8080, 8081}, Unattached: unattached},
				{ID: "sgp-n", Ports: []int{8080}, Weight: 50, Unattached: unattached},
			},
		}},
	}
}

// inBalanced runs a test in a bubble.
func inBalanced(t *testing.T, scenario simulator.Scenario, test func(b *balanced)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim, err := simulator.New(simulator.Options{AccessKeyID: testID, AccessKeySecret: testSecret, Scenario: scenario, NoServers: true, Commands: drainedAtOnce})
		if err != nil {
			t.Fatal(err)
		}
		l := simulator.NewPipeListener()
		server := &http.Server{Handler: sim}
		served := make(chan struct{})
		go func() { defer close(served); _ = server.Serve(l) }()
		const at = "http://cloud.test"
		b := &balanced{T: t, sim: sim, departures: new(steps.Departures), options: alibaba.Options{
			Region: "cn-shenzhen", ESSEndpoint: at, ECSEndpoint: at, SLBEndpoint: at, ALBEndpoint: at, NLBEndpoint: at,
			Credentials: alibaba.StaticCredentials(testID, testSecret), DialContext: l.DialContext,
		}}
		b.cloud = b.client()
		t.Cleanup(func() { _ = sim.Close(); _ = server.Close(); <-served })
		test(b)
	})
}

// client is one more worker's.
func (b *balanced) client() *alibaba.Balancers {
	b.Helper()
	c, err := alibaba.NewBalancers(b.options)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	return c
}

// instances are the group's first n.
func (b *balanced) instances(n int) []messages.Instance {
	g, _ := b.sim.State().Group(testGroup)
	var out []messages.Instance
	for _, in := range g.Instances[:n] {
		out = append(out, messages.Instance{
			ID: messages.InstanceID(in.ID), PrivateIP: netip.MustParseAddr(in.Address), Zone: in.Zone, State: in.State,
			Action: messages.Action{Region: "cn-shenzhen", Group: testGroup, Hook: "ash-1", Token: "token-1", Transition: messages.ScaleIn, Instances: []messages.InstanceID{messages.InstanceID(in.ID)}},
		})
	}
	return out
}

// memberships tells what an instance is a member of: group, port, weight and status.
func (b *balanced) memberships(id messages.InstanceID) string {
	var out []string
	for _, m := range b.sim.State().Members(string(id)) {
		out = append(out, fmt.Sprintf("%s:%d=%d%s", m.ServerGroup, m.Port, m.Weight, strings.TrimPrefix(m.Status, "Available")))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

const everywhere = "lb-1:0=100 rsp-1:8443=100 rsp-1:9443=100 sgp-a:8080=100 sgp-a:8081=100 sgp-n:8080=50"

func (b *balanced) deregister(change func(*steps.Deregister)) steps.Deregister {
	b.Helper()
	d := steps.Deregister{
		Balancers: autoAll, Drain: true, WeightZero: 10 * time.Second, Margin: time.Minute, LastHealthy: steps.LastIgnore, DNSTTL: time.Minute,
		Cloud: b.cloud, Departures: b.departures,
	}
	if change != nil {
		change(&d)
	}
	if err := d.Validate(); err != nil || d.Name() != "deregister" {
		b.Fatal(err)
	}
	return d
}

func (b *balanced) run(s interface {
	Run(context.Context, messages.Instance, int) (string, error)
}, in messages.Instance, timeout time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(b.Context(), timeout)
	defer cancel()
	return s.Run(ctx, in, 0)
}

// calls counts the calls of the balancers' services since before, and of those that
// contain what, if that is given.
func (b *balanced) calls(before map[string]int, what ...string) int {
	n := 0
	for name, count := range b.sim.State().APICalls {
		if strings.HasPrefix(name, "mns") || strings.Contains(name, "LifecycleAction") {
			continue
		}
		if len(what) == 0 || slices.ContainsFunc(what, func(w string) bool { return strings.Contains(name, w) }) {
			n += count - before[name]
		}
	}
	return n
}

func (b *balanced) inject(f simulator.Fault) {
	b.Helper()
	if _, err := b.sim.InjectFault(f); err != nil {
		b.Fatal(err)
	}
}

func TestDeregister(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		in := b.instances(1)[0]
		if got := b.memberships(in.ID); got != everywhere {
			b.Fatalf("at first %s", got)
		}
		before := maps.Clone(b.sim.State().APICalls)
		began := time.Now()
		detail, err := b.run(b.deregister(nil), in, 10*time.Minute)
		if err != nil {
			b.Fatal(err)
		}
		b.Logf("%v, %d calls: %s\n%v", time.Since(began), b.calls(before), detail, b.sim.State().APICalls)
		if got := b.memberships(in.ID); got != "" {
			b.Errorf("still a member: %s", got)
		}
		for _, want := range []string{"left clb:lb-1; ", "left clb-vserver-group:rsp-1 port 8443, 9443, waited out its draining of 30s", "left alb:sgp-a port 8080, 8081, waited out its draining of 20s", "left nlb:sgp-n port 8080"} {
			if !strings.Contains(detail, want) {
				b.Errorf("no %q in %q", want, detail)
			}
		}
		for _, bal := range b.sim.State().Balancers {
			for _, m := range bal.Members {
				if m.Instance == string(in.ID) && m.Draining {
					b.Errorf("%s still drains", m.ServerGroup)
				}
				if m.Instance != string(in.ID) && m.Left != nil {
					b.Errorf("%s left, too", m.Instance)
				}
			}
		}
		// Again, as after a takeover: named balancers are looked at, and nothing is changed.
		before = maps.Clone(b.sim.State().APICalls)
		detail, err = b.run(b.deregister(func(d *steps.Deregister) { d.Balancers = []providers.Balancer{clb, vgroup, alb, nlb} }), in, 10*time.Minute)
		if err != nil || !strings.Contains(detail, "alb:sgp-a did not list it any more, waited out its draining of 20s") {
			b.Errorf("again: %q, %v", detail, err)
		}
		if n := b.calls(before, "Remove", "Set", "Update"); n != 0 {
			b.Errorf("%d changes", n)
		}
		detail, err = b.run(b.deregister(nil), in, 10*time.Minute)
		if err != nil || detail != "no balancer lists the instance" {
			b.Errorf("again: %q, %v", detail, err)
		}
	})
}

// TestDeregisterWhatESSHasTakenOut: nothing is changed, and the draining that may still run
// is waited out.
func TestDeregisterWhatESSHasTakenOut(t *testing.T) {
	inBalanced(t, balancedScenario(4, false), func(b *balanced) {
		in := b.instances(1)[0]
		if _, err := b.sim.ScaleIn(testGroup, 1); err != nil {
			b.Fatal(err)
		}
		time.Sleep(8 * time.Second) // its jobs
		before := maps.Clone(b.sim.State().APICalls)
		began := time.Now()
		detail, err := b.run(b.deregister(nil), in, 10*time.Minute)
		if err != nil || !strings.Contains(detail, "clb-vserver-group:rsp-1 did not list it any more, waited out its draining of 30s") ||
			strings.Contains(detail, "left ") || time.Since(began) < 30*time.Second {
			b.Errorf("%q, %v after %v", detail, err, time.Since(began))
		}
		if n := b.calls(before, "Remove", "Set", "Update"); n != 0 {
			b.Errorf("%d changes", n)
		}
		detail, err = b.run(b.deregister(func(d *steps.Deregister) { d.Drain = false }), in, 10*time.Minute)
		if err != nil || detail != "no balancer lists the instance" {
			b.Errorf("%q, %v", detail, err)
		}
		// The record of a group that is gone tells nothing.
		in.Action.Group = "asg-gone"
		if _, err := b.run(b.deregister(nil), in, time.Minute); err != nil {
			b.Error(err)
		}
	})
}

// TestOneBalancerFails: the others are left all the same, and the error names the permission.
func TestOneBalancerFails(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		in := b.instances(1)[0]
		b.inject(simulator.Fault{Service: "nlb", Action: "RemoveServersFromServerGroup", Kind: simulator.FaultDenied})
		_, err := b.run(b.deregister(nil), in, 10*time.Minute)
		if !errors.Is(err, providers.ErrDenied) || !strings.Contains(err.Error(), "allow nlb:RemoveServersFromServerGroup on acs:nlb:cn-shenzhen:*:servergroup/sgp-n in a RAM policy") ||
			!strings.Contains(err.Error(), "left alb:sgp-a") {
			b.Errorf("%v", err)
		}
		if got := b.memberships(in.ID); got != "sgp-n:8080=0" {
			b.Errorf("still in %q", got)
		}
		b.sim.ClearFaults()
		// A whole service that does not let itself be asked.
		in = b.instances(2)[1]
		b.inject(simulator.Fault{Service: "slb", Kind: simulator.FaultDenied})
		b.cloud = b.client()
		_, err = b.run(b.deregister(nil), in, 10*time.Minute)
		if !errors.Is(err, providers.ErrDenied) || !strings.Contains(err.Error(), "allow slb:DescribeLoadBalancers on *") {
			b.Errorf("%v", err)
		}
		if got := b.memberships(in.ID); got != "lb-1:0=100 rsp-1:8443=100 rsp-1:9443=100" {
			b.Errorf("still in %q", got)
		}
	})
}

// TestOneBalancerSaysGone: one that does not know the instance any more does not make the
// denial of another a success.
func TestOneBalancerSaysGone(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		in := b.instances(1)[0]
		b.inject(simulator.Fault{Service: "slb", Action: "RemoveBackendServers", Kind: simulator.FaultError, Code: "InvalidInstanceId.NotFound", Status: 404})
		b.inject(simulator.Fault{Service: "alb", Action: "RemoveServersFromServerGroup", Kind: simulator.FaultDenied})
		_, err := b.run(b.deregister(nil), in, 10*time.Minute)
		if errors.Is(err, providers.ErrInstanceGone) || !errors.Is(err, providers.ErrDenied) || providers.RequestID(err) == "" || !strings.Contains(err.Error(), "InvalidInstanceId.NotFound") {
			b.Errorf("%v", err)
		}
		b.sim.ClearFaults()
		if _, err := b.run(b.deregister(nil), in, 10*time.Minute); err != nil {
			b.Fatal(err)
		}
		b.inject(simulator.Fault{Service: "slb", Action: "AddBackendServers", Kind: simulator.FaultError, Code: "InvalidInstanceId.NotFound", Status: 404})
		b.inject(simulator.Fault{Service: "alb", Action: "AddServersToServerGroup", Kind: simulator.FaultDenied})
		_, err = b.run(b.register(nil), in, time.Minute)
		if errors.Is(err, providers.ErrInstanceGone) || !errors.Is(err, providers.ErrDenied) || !strings.Contains(err.Error(), "InvalidInstanceId.NotFound") {
			b.Errorf("%v", err)
		}
	})
}

// TestOneServiceIsDown: a service that can't be asked for as long as the step lasts keeps the
// instance in its own balancers alone, and the others are left at once.
func TestOneServiceIsDown(t *testing.T) {
	for name, c := range map[string]struct {
		fault      simulator.Fault
		still, why string
	}{
		"alb":                 {simulator.Fault{Service: "alb", Kind: simulator.Fault5xx}, "sgp-a:8080=100 sgp-a:8081=100", " in alb:auto: "},
		"slb":                 {simulator.Fault{Service: "slb", Kind: simulator.FaultThrottle}, "lb-1:0=100 rsp-1:8443=100 rsp-1:9443=100", " in clb:auto: "},
		"record":              {simulator.Fault{Service: "ess", Kind: simulator.Fault5xx}, "", "balancers of group " + testGroup + ": "},
		"settings":            {simulator.Fault{Service: "alb", Action: "ListServerGroups", Kind: simulator.Fault5xx}, "", "alb:sgp-a: how long its connections may run on is not known: "},
		"no setting for once": {simulator.Fault{Service: "alb", Action: "ListServerGroups", Kind: simulator.FaultEmpty, Count: 2}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			inBalanced(t, balancedScenario(4, true), func(b *balanced) {
				in := b.instances(1)[0]
				b.inject(c.fault)
				seen := make(chan string)
				go func() { time.Sleep(90 * time.Second); seen <- b.memberships(in.ID) }()
				began := time.Now()
				done := make(chan error)
				go func() { _, err := b.run(b.deregister(nil), in, 10*time.Minute); done <- err }()
				if c.why == "" {
					if err := <-done; err != nil || time.Since(began) < 20*time.Second {
						b.Errorf("%v after %v: its draining is 20 s", err, time.Since(began))
					}
				}
				if got := <-seen; got != c.still {
					b.Errorf("after 90 s in %q, want %q", got, c.still)
				}
				if c.why == "" {
					return
				}
				err := <-done
				if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), c.why) || !strings.Contains(err.Error(), "left nlb:sgp-n port 8080") {
					b.Errorf("%v", err)
				}
			})
		})
	}
}

// TestBusyBalancers: what is refused because another change is being applied is tried again,
// whatever the case of the code's letters.
func TestBusyBalancers(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		in := b.instances(1)[0]
		for service, codes := range map[string][]string{
			"slb": {"BackendServer.configuring", "ServiceIsConfiguring"}, "alb": {"IncorrectStatus.ServerGroup", "SystemBusy", "conflict.lock"},
			"nlb": {"incorrectstatus.servergroup", "Conflict.Lock", "IdempotenceProcessing"},
		} {
			for _, code := range codes {
				for _, action := range []string{"RemoveBackendServers", "RemoveVServerGroupBackendServers", "SetBackendServers", "RemoveServersFromServerGroup", "UpdateServerGroupServersAttribute"} {
					weighs := strings.HasPrefix(action, "Update") // where nothing is drained
					if strings.Contains(action, "Backend") == (service == "slb") && !(weighs && service == "alb") {
						b.inject(simulator.Fault{Service: service, Action: action, Kind: simulator.FaultError, Code: code, Count: 2})
					}
				}
			}
		}
		b.inject(simulator.Fault{Service: "alb", Action: "ListServerGroupServers", Kind: simulator.FaultThrottle, Count: 30})
		b.inject(simulator.Fault{Service: "nlb", Action: "ListServerGroups", Kind: simulator.Fault5xx, Count: 30})
		b.inject(simulator.Fault{Service: "nlb", Action: "RemoveServersFromServerGroup", Kind: simulator.FaultDropAfterEffect, Count: 1})
		if _, err := b.run(b.deregister(nil), in, 20*time.Minute); err != nil {
			b.Error(err)
		}
		if got := b.memberships(in.ID); got != "" {
			b.Errorf("still in %q", got)
		}
		for _, f := range b.sim.State().Faults {
			b.Errorf("%+v never struck to its end", f)
		}
	})
}

// TestNothingToLeave: balancers that do not exist, and that list others only.
func TestNothingToLeave(t *testing.T) {
	inBalanced(t, balancedScenario(2, true), func(b *balanced) {
		in := b.instances(1)[0]
		missing := []providers.Balancer{
			{Kind: providers.CLB, ID: "lb-none"}, {Kind: providers.CLBGroup, ID: "rsp-none"}, {Kind: providers.ALB, ID: "sgp-none"}, {Kind: providers.NLB, ID: "sgp-none"},
		}
		for _, last := range []string{steps.LastWait, steps.LastRefuse} {
			if detail, err := b.run(b.deregister(func(d *steps.Deregister) { d.Balancers, d.LastHealthy = missing, last }), in, time.Minute); err != nil || strings.Count(detail, "did not list it any more") != 4 {
				b.Errorf("%q, %v", detail, err)
			}
		}
		in.ID = "i-stranger"
		if detail, err := b.run(b.deregister(func(d *steps.Deregister) { d.Balancers = []providers.Balancer{alb} }), in, time.Minute); err != nil || detail != "alb:sgp-a did not list it any more, waited out its draining of 20s" {
			b.Errorf("%q, %v", detail, err)
		}
	})
}

// TestEmptyListings: a service that lists nothing for once, or less than it counts, is not believed.
func TestEmptyListings(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		in := b.instances(1)[0]
		b.inject(simulator.Fault{Service: "alb", Action: "ListServerGroupServers", Kind: simulator.FaultEmpty, Count: 1})
		b.inject(simulator.Fault{Service: "nlb", Action: "ListServerGroupServers", Kind: simulator.FaultPartial, Count: 1})
		b.inject(simulator.Fault{Service: "slb", Action: "DescribeLoadBalancers", Kind: simulator.FaultEmpty, Count: 1})
		if _, err := b.run(b.deregister(nil), in, 10*time.Minute); err != nil {
			b.Error(err)
		}
		if got := b.memberships(in.ID); got != "" {
			b.Errorf("still in %q", got)
		}
	})
}

// TestTwoWorkersLeave: two workers take the same instance out at the same time, and one that
// takes over in the middle of a removal ends it.
func TestTwoWorkersLeave(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		ins := b.instances(4)
		other := b.deregister(func(d *steps.Deregister) { d.Cloud, d.Departures = b.client(), new(steps.Departures) })
		done := make(chan error)
		go func() { _, err := b.run(other, ins[0], 10*time.Minute); done <- err }()
		if _, err := b.run(b.deregister(nil), ins[0], 10*time.Minute); err != nil {
			b.Error(err)
		}
		if err := <-done; err != nil {
			b.Error(err)
		}
		if got := b.memberships(ins[0].ID); got != "" {
			b.Errorf("still in %q", got)
		}
		for _, after := range []time.Duration{300 * time.Millisecond, time.Second, 11 * time.Second, 13 * time.Second} {
			in := ins[1]
			ins = ins[1:]
			_, err := b.run(b.deregister(nil), in, after)
			if !errors.Is(err, context.DeadlineExceeded) {
				b.Fatalf("after %v: %v", after, err)
			}
			if _, err := b.run(other, in, 10*time.Minute); err != nil {
				b.Errorf("taken over after %v: %v", after, err)
			}
			if got := b.memberships(in.ID); got != "" {
				b.Errorf("taken over after %v: still in %q", after, got)
			}
			if len(ins) == 1 {
				break
			}
		}
	})
}

// TestDrainingIsBounded: a balancer that does not let the instance go fails the step, when
// its own draining and the margin are over.
func TestDrainingIsBounded(t *testing.T) {
	scenario := balancedScenario(4, true)
	scenario.Balancers[1].JobDuration = time.Hour
	inBalanced(t, scenario, func(b *balanced) {
		began := time.Now()
		_, err := b.run(b.deregister(nil), b.instances(1)[0], 30*time.Minute)
		if err == nil || !strings.Contains(err.Error(), "alb:sgp-a: it is still listed port 8080, 8081, as leaving, 1m0s after its draining should be over") {
			b.Errorf("%v", err)
		}
		if took := time.Since(began); took < 80*time.Second || took > 95*time.Second {
			b.Errorf("took %v", took)
		}
		_, err = b.run(b.deregister(nil), b.instances(1)[0], 10*time.Second)
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "connections drain for 20s") {
			b.Errorf("%v", err)
		}
	})
}

// TestFailedJob: a job that the balancer took on and failed at is found out soon.
func TestFailedJob(t *testing.T) {
	for _, of := range []providers.Balancer{alb, nlb} {
		t.Run(of.String(), func(t *testing.T) {
			inBalanced(t, balancedScenario(4, true), func(b *balanced) {
				in := b.instances(1)[0]
				b.inject(simulator.Fault{Service: string(of.Kind), Action: "RemoveServersFromServerGroup", Kind: simulator.FaultJobFails, Count: 1})
				step := b.deregister(func(d *steps.Deregister) { d.Balancers = []providers.Balancer{of} })
				began := time.Now()
				_, err := b.run(step, in, 10*time.Minute)
				if !errors.Is(err, providers.ErrChangeFailed) || time.Since(began) > time.Minute {
					b.Errorf("%v after %v", err, time.Since(began))
				}
				if _, err := b.run(step, in, 10*time.Minute); err != nil {
					b.Errorf("the next attempt: %v", err)
				}
			})
		})
	}
}

// TestFailedJobAndAnEmptyListing: one listing without the instance is no proof that a removal
// is in effect.
func TestFailedJobAndAnEmptyListing(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		in := b.instances(1)[0]
		b.inject(simulator.Fault{Service: "alb", Action: "RemoveServersFromServerGroup", Kind: simulator.FaultJobFails})
		injected := make(chan struct{})
		go func() { // when the look-up that finds it is over
			defer close(injected)
			time.Sleep(400 * time.Millisecond)
			b.inject(simulator.Fault{Service: "alb", Action: "ListServerGroupServers", Kind: simulator.FaultEmpty, Count: 1})
		}()
		_, err := b.run(b.deregister(func(d *steps.Deregister) { d.Balancers = []providers.Balancer{alb} }), in, 10*time.Minute)
		<-injected
		if !errors.Is(err, providers.ErrChangeFailed) {
			b.Errorf("%v, in %s", err, b.memberships(in.ID))
		}
		if left := b.sim.State().Faults; len(left) != 1 {
			b.Errorf("the listing was not empty: %+v", left)
		}
	})
}

// TestFailedJobIsAsked: that the listing shows the instance no more is not believed against
// the job's own word.
func TestFailedJobIsAsked(t *testing.T) {
	scenario := balancedScenario(4, true)
	scenario.Balancers[2].JobDuration = time.Second
	inBalanced(t, scenario, func(b *balanced) {
		in := b.instances(1)[0]
		b.inject(simulator.Fault{Service: "nlb", Action: "RemoveServersFromServerGroup", Kind: simulator.FaultJobFails})
		injected := make(chan struct{})
		go func() { // after the look-up, while the weight is 0
			defer close(injected)
			time.Sleep(8 * time.Second)
			b.inject(simulator.Fault{Service: "nlb", Action: "ListServerGroupServers", Kind: simulator.FaultEmpty})
		}()
		_, err := b.run(b.deregister(func(d *steps.Deregister) { d.Balancers = []providers.Balancer{nlb} }), in, 10*time.Minute)
		<-injected
		if !errors.Is(err, providers.ErrChangeFailed) {
			b.Errorf("%v, in %s", err, b.memberships(in.ID))
		}
	})
}

// TestLastHealthy: of four instances in two zones, two are in each.
func TestLastHealthy(t *testing.T) {
	setup := func(b *balanced, last string) (ins []messages.Instance, step steps.Deregister) {
		g, _ := b.sim.State().Group(testGroup)
		return b.instances(len(g.Instances)), b.deregister(func(d *steps.Deregister) { d.LastHealthy, d.Drain, d.WeightZero = last, false, 0 })
	}
	sick := func(b *balanced, in messages.Instance, well bool) {
		b.Helper()
		if err := b.sim.SetHealth(string(in.ID), well); err != nil {
			b.Fatal(err)
		}
		time.Sleep(10 * time.Second)
	}
	t.Run("refuse in the zone", func(t *testing.T) {
		inBalanced(t, balancedScenario(4, true), func(b *balanced) {
			ins, step := setup(b, steps.LastRefuse)
			sick(b, ins[2], false) // ins[0] is alone in zone a
			_, err := b.run(step, ins[0], time.Minute)
			if err == nil || !strings.Contains(err.Error(), "nothing was touched: ") ||
				!strings.Contains(err.Error(), string(ins[0].ID)+" is the last healthy instance of alb:sgp-a in zone cn-shenzhen-a") || strings.Contains(err.Error(), "clb") {
				b.Errorf("%v", err)
			}
			if got := b.memberships(ins[0].ID); got != everywhere {
				b.Errorf("touched: %s", got)
			}
			if _, err := b.run(step, ins[1], time.Minute); err != nil {
				b.Errorf("one of two in zone b: %v", err)
			}
			if _, err := b.run(step, ins[3], time.Minute); err == nil || !strings.Contains(err.Error(), "in zone cn-shenzhen-b") {
				b.Errorf("the last one of zone b: %v", err)
			}
		})
	})
	t.Run("refuse without a word", func(t *testing.T) {
		inBalanced(t, balancedScenario(4, true), func(b *balanced) {
			ins, step := setup(b, steps.LastRefuse)
			b.inject(simulator.Fault{Service: "slb", Action: "DescribeHealthStatus", Kind: simulator.FaultDenied})
			_, err := b.run(step, ins[0], time.Minute)
			if !errors.Is(err, providers.ErrDenied) || !strings.Contains(err.Error(), "whether it is the last healthy one is not known") || b.memberships(ins[0].ID) != everywhere {
				b.Errorf("%v, %s", err, b.memberships(ins[0].ID))
			}
		})
	})
	t.Run("two at the same time", func(t *testing.T) {
		inBalanced(t, balancedScenario(4, true), func(b *balanced) {
			ins, step := setup(b, steps.LastRefuse)
			errs := make(chan error)
			for _, in := range []messages.Instance{ins[0], ins[2]} {
				go func() { _, err := b.run(step, in, time.Minute); errs <- err }()
			}
			if first, second := <-errs, <-errs; (first == nil) == (second == nil) {
				b.Errorf("one of the two is the last of its zone: %v, %v", first, second)
			}
		})
	})
	t.Run("wait", func(t *testing.T) {
		inBalanced(t, balancedScenario(2, true), func(b *balanced) {
			ins, step := setup(b, steps.LastWait)
			began := time.Now()
			go func() {
				time.Sleep(50 * time.Second)
				if got := b.memberships(ins[0].ID); got != "" && !strings.Contains(got, "sgp-a:8080=100 sgp-a:8081=100 sgp-n:8080=50") {
					b.Errorf("after 50 s: %s", got)
				}
			}()
			detail, err := b.run(step, ins[0], 5*time.Minute)
			if err != nil || time.Since(began) < time.Minute || !strings.Contains(detail, "left nlb:sgp-n port 8080, as the last healthy one, after the 1m0s that DNS answers live") || !strings.Contains(detail, "left clb:lb-1;") {
				b.Errorf("%q, %v after %v", detail, err, time.Since(began))
			}
		})
	})
	t.Run("two wait at the same time", func(t *testing.T) {
		inBalanced(t, balancedScenario(4, true), func(b *balanced) {
			ins, step := setup(b, steps.LastWait)
			began := time.Now()
			done := make(chan error)
			for _, in := range []messages.Instance{ins[0], ins[2]} { // both of zone a
				go func() { _, err := b.run(step, in, 5*time.Minute); done <- err }()
			}
			for range 2 {
				if err := <-done; err != nil || time.Since(began) < time.Minute {
					b.Errorf("%v after %v: neither may count on the other", err, time.Since(began))
				}
			}
		})
	})
	t.Run("wait once", func(t *testing.T) {
		inBalanced(t, balancedScenario(2, true), func(b *balanced) {
			ins, step := setup(b, steps.LastWait)
			step.WeightZero = 10 * time.Second
			step.Balancers = []providers.Balancer{nlb}
			if _, err := b.run(step, ins[0], 65*time.Second); !errors.Is(err, context.DeadlineExceeded) {
				b.Fatal(err)
			}
			time.Sleep(10 * time.Second)
			if got := b.memberships(ins[0].ID); !strings.HasSuffix(got, "sgp-n:8080=0") {
				b.Fatalf("a member of %s", got)
			}
			began := time.Now()
			if _, err := b.run(step, ins[0], 5*time.Minute); err != nil || time.Since(began) > 30*time.Second {
				b.Errorf("%v after %v: nothing new was sent to it any more", err, time.Since(began))
			}
		})
	})
	t.Run("wait for another one", func(t *testing.T) {
		inBalanced(t, balancedScenario(4, true), func(b *balanced) {
			ins, step := setup(b, steps.LastWait)
			sick(b, ins[2], false)
			go func() { time.Sleep(20 * time.Second); _ = b.sim.SetHealth(string(ins[2].ID), true) }()
			began := time.Now()
			detail, err := b.run(step, ins[0], 5*time.Minute)
			if took := time.Since(began); err != nil || took < 20*time.Second || took > 45*time.Second || !strings.Contains(detail, "as the last healthy one") {
				b.Errorf("%q, %v after %v", detail, err, took)
			}
		})
	})
	t.Run("wait without a word", func(t *testing.T) {
		inBalanced(t, balancedScenario(4, true), func(b *balanced) {
			ins, step := setup(b, steps.LastWait)
			b.inject(simulator.Fault{Service: "alb", Action: "GetListenerHealthStatus", Kind: simulator.FaultDenied})
			_, err := b.run(step, ins[0], 5*time.Minute)
			if !errors.Is(err, providers.ErrDenied) || !strings.Contains(err.Error(), "allow alb:GetListenerHealthStatus") || b.memberships(ins[0].ID) != "" {
				b.Errorf("%v, %s", err, b.memberships(ins[0].ID))
			}
		})
	})
}

// TestRefuseNeedsToKnow: what is not told for once, or not told at all, is no permission to
// leave. The other instance of the two is sick, so that the one that should leave is the last.
func TestRefuseNeedsToKnow(t *testing.T) {
	for name, c := range map[string]struct {
		of     providers.Balancer
		faults []simulator.Fault
		why    string
	}{
		"no group for once":         {alb, []simulator.Fault{{Service: "alb", Action: "ListServerGroups", Kind: simulator.FaultEmpty, Count: 1}}, "is the last healthy instance of alb:sgp-a"},
		"no health for once":        {clb, []simulator.Fault{{Service: "slb", Action: "DescribeHealthStatus", Kind: simulator.FaultEmpty, Count: 1}}, "is the last healthy instance of clb:lb-1"},
		"no health":                 {clb, []simulator.Fault{{Service: "slb", Action: "DescribeHealthStatus", Kind: simulator.FaultEmpty}}, "clb:lb-1: whether it is the last healthy one is not known: the balancer tells the health of none of its members"},
		"the members are throttled": {alb, []simulator.Fault{{Service: "alb", Action: "GetListenerHealthStatus", Kind: simulator.FaultThrottle}}, "alb:sgp-a: whether it is the last healthy one is not known: "},
		"one of two can't be asked": {alb, []simulator.Fault{{Service: "nlb", Action: "ListServerGroupServers", Kind: simulator.Fault5xx}}, " in nlb:auto: "},
	} {
		t.Run(name, func(t *testing.T) {
			inBalanced(t, balancedScenario(2, true), func(b *balanced) {
				ins := b.instances(2)
				if err := b.sim.SetHealth(string(ins[1].ID), false); err != nil {
					b.Fatal(err)
				}
				time.Sleep(20 * time.Second)
				for _, f := range c.faults {
					b.inject(f)
				}
				_, err := b.run(b.deregister(func(d *steps.Deregister) {
					d.Balancers, d.LastHealthy, d.Drain = []providers.Balancer{c.of}, steps.LastRefuse, false
					if strings.Contains(c.why, "nlb") {
						d.Balancers = append(d.Balancers, providers.Balancer{Kind: providers.NLB})
					}
				}), ins[0], time.Minute)
				if err == nil || !strings.Contains(err.Error(), c.why) || !strings.Contains(err.Error(), "nothing was touched: ") {
					b.Errorf("%v", err)
				}
				if got := b.memberships(ins[0].ID); got != everywhere {
					b.Errorf("touched: %s", got)
				}
			})
		})
	}
}

// TestLeftMeanwhile: what another one listed before an instance began to leave does not count
// that instance once it has left.
func TestLeftMeanwhile(t *testing.T) {
	scenario := balancedScenario(2, true)
	scenario.ScalingGroups[0].Zones = scenario.ScalingGroups[0].Zones[:1]
	scenario.Balancers[1].JobDuration = time.Millisecond
	inBalanced(t, scenario, func(b *balanced) {
		ins := b.instances(2)
		step := b.deregister(func(d *steps.Deregister) {
			d.Balancers, d.LastHealthy, d.Drain, d.WeightZero = []providers.Balancer{alb}, steps.LastRefuse, false, 0
		})
		b.inject(simulator.Fault{Service: "alb", Action: "RemoveServersFromServerGroup", Kind: simulator.FaultLatency, Latency: 300 * time.Millisecond, Count: 1})
		if _, err := b.cloud.Draining(b.Context(), alb); err != nil { // it is kept for a minute
			b.Fatal(err)
		}
		time.Sleep(59700 * time.Millisecond)
		done := make(chan error)
		run := func(in messages.Instance) { _, err := b.run(step, in, 5*time.Minute); done <- err }
		go run(ins[0])
		time.Sleep(265 * time.Millisecond)
		// The second one has listed the members, and waits for the group's settings.
		b.inject(simulator.Fault{Service: "alb", Action: "ListServerGroups", Kind: simulator.FaultLatency, Latency: 12 * time.Second, Count: 1})
		go run(ins[1])
		first, second := <-done, <-done
		if first != nil || second == nil || !strings.Contains(second.Error(), "is the last healthy instance of alb:sgp-a") {
			b.Errorf("%v; %v", first, second)
		}
		if b.memberships(ins[0].ID) != strings.Join(strings.Fields(everywhere)[:3], " ")+" sgp-n:8080=50" || b.memberships(ins[1].ID) != everywhere {
			b.Errorf("in %q and %q", b.memberships(ins[0].ID), b.memberships(ins[1].ID))
		}
		if left := b.sim.State().Faults; len(left) != 0 {
			b.Errorf("the settings were not slow: %+v", left)
		}
	})
}

// TestNoHealthIsWaitedForOnce: where nothing is checked all count as healthy, so that one of
// two leaves without the wait of a last one.
func TestNoHealthIsWaitedForOnce(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		in := b.instances(1)[0]
		b.inject(simulator.Fault{Service: "slb", Action: "DescribeHealthStatus", Kind: simulator.FaultEmpty})
		began := time.Now()
		detail, err := b.run(b.deregister(func(d *steps.Deregister) {
			d.Balancers, d.LastHealthy, d.WeightZero = []providers.Balancer{clb}, steps.LastWait, 0
		}), in, 5*time.Minute)
		if err != nil || time.Since(began) > 30*time.Second || detail != "left clb:lb-1" {
			b.Errorf("%q, %v after %v", detail, err, time.Since(began))
		}
	})
}

func TestBalancerStepsAreChecked(t *testing.T) {
	t.Parallel()
	good := func() (steps.Deregister, steps.Register) {
		cloud := new(alibaba.Balancers)
		return steps.Deregister{Balancers: autoAll, LastHealthy: steps.LastIgnore, Cloud: cloud, Departures: new(steps.Departures)},
			steps.Register{Balancers: []providers.Balancer{clb}, Weight: 100, Cloud: cloud}
	}
	d, r := good()
	if err := errors.Join(d.Validate(), r.Validate()); err != nil {
		t.Fatal(err)
	}
	for i, change := range []func(d *steps.Deregister, r *steps.Register){
		func(d *steps.Deregister, r *steps.Register) { d.Balancers, r.Balancers = nil, nil },
		func(d *steps.Deregister, r *steps.Register) {
			d.Balancers, r.Balancers = []providers.Balancer{{Kind: "router", ID: "x"}}, []providers.Balancer{{Kind: "router", ID: "x"}}
		},
		func(d *steps.Deregister, r *steps.Register) {
			d.Balancers, r.Balancers = []providers.Balancer{alb, alb}, autoAll
		},
		func(d *steps.Deregister, r *steps.Register) { d.WeightZero, r.Weight = -1, 0 },
		func(d *steps.Deregister, r *steps.Register) { d.LastHealthy, r.Port = "", -1 },
		func(d *steps.Deregister, r *steps.Register) { d.Cloud, r.Cloud = nil, nil },
		func(d *steps.Deregister, r *steps.Register) { d.Departures, r.Ramp = nil, -1 },
	} {
		d, r := good()
		change(&d, &r)
		if d.Validate() == nil || r.Validate() == nil {
			t.Errorf("case %d: %v, %v", i, d.Validate(), r.Validate())
		}
	}
}
