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
	"example.org/usher/providers/aws"
	"example.org/usher/simulator"
	"example.org/usher/worker/steps"
)

const (
	awsGroup = "web-asg"
	awsARN   = "arn:aws:elasticloadbalancing:eu-west-1:111122223333:targetgroup/"
)

var (
	autoAWS = []providers.Balancer{{Kind: providers.ClassicELB}, {Kind: providers.TargetGroup}}
	classic = providers.Balancer{Kind: providers.ClassicELB, ID: "classic-1"}
)

// awsBalanced is a cloud with a group of instances behind a classic balancer, an application
// and a network one, and the client of its balancers.
type awsBalanced struct {
	*testing.T
	sim        *simulator.Simulator
	options    aws.Options
	cloud      *aws.Balancers
	departures *steps.Departures
	// web, pods and tcp are target groups: of instances, of addresses, and of the network balancer.
	web, pods, tcp providers.Balancer
}

func awsScenario(n int, unattached bool) simulator.Scenario {
	return simulator.Scenario{
		Provider: "aws",
		Queues:   []simulator.QueueConfig{{Name: "q"}},
		Balancers: []simulator.BalancerConfig{
			{ID: "classic-1", Type: "elb", ConnectionDrainTimeout: 30 * time.Second},
			{ID: "alb-1", Type: "application", ConnectionDrainTimeout: 40 * time.Second, ServerGroups: []simulator.ServerGroupConfig{
				{ID: "tg-web"}, {ID: "tg-pods", TargetType: "ip", ConnectionDrainTimeout: 20 * time.Second},
			}},
			{ID: "nlb-1", Type: "network", ConnectionDrainTimeout: time.Minute, ServerGroups: []simulator.ServerGroupConfig{{ID: "tg-tcp"}}},
		},
		ScalingGroups: []simulator.GroupConfig{{
			ID: awsGroup, Instances: n, Zones: []string{"eu-west-1a", "eu-west-1b"},
			Hooks: []simulator.HookConfig{{ID: "usher-drain", Name: "usher-drain", Transition: "scale_in", Queue: "q", HeartbeatTimeout: time.Hour}},
			ServerGroups: []simulator.MembershipConfig{
				{ID: "classic-1", Unattached: unattached}, {ID: "tg-web", Ports: []int{8080, 8081}, Unattached: unattached},
				{ID: "tg-pods", Ports: []int{9090}, Unattached: unattached}, {ID: "tg-tcp", Ports: []int{8443}, Unattached: unattached},
			},
		}},
	}
}

// inAWS runs a test in a bubble.
func inAWS(t *testing.T, scenario simulator.Scenario, test func(b *awsBalanced)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim, err := simulator.New(simulator.Options{AccessKeyID: testID, AccessKeySecret: testSecret, Scenario: scenario, NoServers: true})
		if err != nil {
			t.Fatal(err)
		}
		l := simulator.NewPipeListener()
		server := &http.Server{Handler: sim}
		served := make(chan struct{})
		go func() { defer close(served); _ = server.Serve(l) }()
		t.Cleanup(func() { _ = sim.Close(); _ = server.Close(); <-served })
		const at = "http://cloud.test"
		b := &awsBalanced{T: t, sim: sim, departures: new(steps.Departures), options: aws.Options{
			Region: "eu-west-1", ELBEndpoint: at, AutoScalingEndpoint: at, EC2Endpoint: at,
			Credentials: aws.StaticCredentials(testID, testSecret), DialContext: l.DialContext,
		}}
		b.cloud = b.client()
		time.Sleep(10 * time.Second) // the first health checks have run
		found, err := b.cloud.Find(b.Context(), autoAWS[1], b.instances(1)[0].ID)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range found {
			switch name := strings.Split(m.ID, "/")[1]; name {
			case "tg-web":
				b.web = m.Balancer
			case "tg-pods":
				b.pods = m.Balancer
			case "tg-tcp":
				b.tcp = m.Balancer
			}
		}
		test(b)
	})
}

// client is one more worker's.
func (b *awsBalanced) client() *aws.Balancers {
	b.Helper()
	c, err := aws.NewBalancers(b.options)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	return c
}

// instances are the group's first n.
func (b *awsBalanced) instances(n int) []messages.Instance {
	g, _ := b.sim.State().Group(awsGroup)
	var out []messages.Instance
	for _, in := range g.Instances[:n] {
		id := messages.InstanceID(in.ID)
		out = append(out, messages.Instance{
			ID: id, PrivateIP: netip.MustParseAddr(in.Address), Zone: in.Zone, State: in.State,
			Action: messages.Action{Region: "eu-west-1", Group: awsGroup, Hook: "usher-drain", Token: "token-1", Transition: messages.ScaleIn, Instances: []messages.InstanceID{id}},
		})
	}
	return out
}

// memberships tells what an instance is a member of.
func (b *awsBalanced) memberships(id messages.InstanceID) string {
	var out []string
	for _, m := range b.sim.State().Members(string(id)) {
		out = append(out, fmt.Sprintf("%s:%d%s", m.ServerGroup, m.Port, strings.TrimPrefix(m.Status, "Available")))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

func (b *awsBalanced) calls(before map[string]int, what ...string) int {
	return (&balanced{T: b.T, sim: b.sim}).calls(before, what...)
}

func (b *awsBalanced) run(s interface {
	Run(context.Context, messages.Instance, int) (string, error)
}, in messages.Instance, timeout time.Duration) (string, error) {
	return (&balanced{T: b.T}).run(s, in, timeout)
}

func (b *awsBalanced) inject(f simulator.Fault) {
	b.Helper()
	(&balanced{T: b.T, sim: b.sim}).inject(f)
}

func (b *awsBalanced) deregister(change func(*steps.Deregister)) steps.Deregister {
	b.Helper()
	d := steps.Deregister{
		Balancers: autoAWS, Drain: true, WeightZero: 10 * time.Second, Margin: time.Minute, LastHealthy: steps.LastIgnore, DNSTTL: time.Minute,
		Cloud: b.cloud, Departures: b.departures,
	}
	if change != nil {
		change(&d)
	}
	if err := d.Validate(); err != nil {
		b.Fatal(err)
	}
	return d
}

func (b *awsBalanced) register(change func(*steps.Register)) steps.Register {
	b.Helper()
	r := steps.Register{Balancers: []providers.Balancer{classic, b.web, b.pods}, Port: 8080, Weight: 100, Healthy: true, Cloud: b.cloud}
	if change != nil {
		change(&r)
	}
	if err := r.Validate(); err != nil {
		b.Fatal(err)
	}
	return r
}

// TestDeregisterOnAWS: without weights, an instance leaves at once, and the step lasts until
// no balancer lists it as draining any more.
func TestDeregisterOnAWS(t *testing.T) {
	inAWS(t, awsScenario(4, true), func(b *awsBalanced) {
		in := b.instances(1)[0]
		if got, want := b.memberships(in.ID), "classic-1:0 tg-pods:9090 tg-tcp:8443 tg-web:8080 tg-web:8081"; got != want {
			b.Fatalf("at first %s", got)
		}
		before := maps.Clone(b.sim.State().APICalls)
		began := time.Now()
		detail, err := b.run(b.deregister(nil), in, 10*time.Minute)
		if err != nil {
			b.Fatal(err)
		}
		took := time.Since(began)
		b.Logf("%v, %d calls: %s", took, b.calls(before), detail)
		if got := b.memberships(in.ID); got != "" {
			b.Errorf("still a member: %s", got)
		}
		if took < time.Minute || took > 80*time.Second {
			b.Errorf("took %v, and the longest draining is 1m", took)
		}
		for _, want := range []string{
			"left elb:classic-1, waited until it had drained", "left " + b.web.String() + " port 8080, 8081, waited until it had drained",
			"left " + b.pods.String() + " port 9090, waited until it had drained", "left " + b.tcp.String() + " port 8443, waited until it had drained",
		} {
			if !strings.Contains(detail, want) {
				b.Errorf("no %q in %q", want, detail)
			}
		}
		if n := b.calls(before, "DescribeAutoScalingGroups"); n != 0 {
			b.Errorf("%d calls for what Auto Scaling has drained already", n)
		}
		// Again, as after a takeover: what does not list it has drained.
		before, began = maps.Clone(b.sim.State().APICalls), time.Now()
		detail, err = b.run(b.deregister(func(d *steps.Deregister) { d.Balancers = []providers.Balancer{classic, b.web} }), in, 10*time.Minute)
		if want := "elb:classic-1 did not list it any more; " + b.web.String() + " did not list it any more"; err != nil || detail != want || time.Since(began) > 15*time.Second {
			b.Errorf("again: %q, %v after %v", detail, err, time.Since(began))
		}
		if n := b.calls(before, "Deregister"); n != 0 {
			b.Errorf("%d changes", n)
		}
	})
}

// TestTakeOverWhileDraining: a second worker waits for what the first had begun, and no longer.
func TestTakeOverWhileDraining(t *testing.T) {
	inAWS(t, awsScenario(4, true), func(b *awsBalanced) {
		in := b.instances(1)[0]
		step := b.deregister(func(d *steps.Deregister) { d.Balancers = []providers.Balancer{b.web} })
		if _, err := b.run(step, in, 25*time.Second); !errors.Is(err, context.DeadlineExceeded) {
			b.Error(err)
		}
		other := step
		other.Cloud, other.Departures = b.client(), new(steps.Departures)
		began := time.Now()
		detail, err := b.run(other, in, 10*time.Minute)
		if want := b.web.String() + " was letting it go already port 8080, 8081, waited until it had drained"; err != nil || detail != want {
			b.Errorf("%q, %v", detail, err)
		}
		if took := time.Since(began); took > 35*time.Second {
			b.Errorf("took %v, and 15s were left", took)
		}
	})
}

// TestSkipDrainingOnAWS: without drain, an instance has left as soon as nothing new is sent to it.
func TestSkipDrainingOnAWS(t *testing.T) {
	inAWS(t, awsScenario(4, true), func(b *awsBalanced) {
		in := b.instances(1)[0]
		began := time.Now()
		detail, err := b.run(b.deregister(func(d *steps.Deregister) { d.Drain = false }), in, 10*time.Minute)
		if err != nil || strings.Contains(detail, "drained") || time.Since(began) > 15*time.Second {
			b.Errorf("%q, %v after %v", detail, err, time.Since(began))
		}
		if got, want := b.memberships(in.ID), "tg-tcp:8443Removing tg-web:8080Removing tg-web:8081Removing"; !strings.HasSuffix(got, want) {
			b.Errorf("a member of %s", got)
		}
	})
}

// TestLastHealthyOnAWS: the last healthy one of a network balancer's zone is kept, and said so.
func TestLastHealthyOnAWS(t *testing.T) {
	inAWS(t, awsScenario(3, true), func(b *awsBalanced) {
		all := b.instances(3)
		zones := map[string]int{}
		for _, in := range all {
			zones[in.Zone]++
		}
		i := slices.IndexFunc(all, func(in messages.Instance) bool { return zones[in.Zone] == 1 })
		refuse := func(of ...providers.Balancer) steps.Deregister {
			return b.deregister(func(d *steps.Deregister) { d.Balancers, d.LastHealthy = of, steps.LastRefuse })
		}
		if _, err := b.run(refuse(b.tcp), all[i], time.Minute); err == nil || !strings.Contains(err.Error(), "nothing was touched") || !strings.Contains(err.Error(), "in zone "+all[i].Zone) {
			b.Errorf("the last one of its zone: %v", err)
		}
		if _, err := b.run(refuse(b.web, b.pods), all[i], 5*time.Minute); err != nil {
			b.Errorf("zones make no difference there: %v", err)
		}
		for _, in := range all {
			if in.ID != all[i].ID && in.ID != all[(i+1)%3].ID {
				if err := b.sim.SetHealth(string(in.ID), false); err != nil {
					b.Fatal(err)
				}
			}
		}
		time.Sleep(10 * time.Second)
		last := all[(i+1)%3]
		for _, of := range []providers.Balancer{b.web, b.pods} {
			if _, err := b.run(refuse(of), last, time.Minute); err == nil || !strings.Contains(err.Error(), "is the last healthy instance of "+of.String()) {
				b.Errorf("%s: %v", of, err)
			}
		}
		began := time.Now()
		detail, err := b.run(b.deregister(func(d *steps.Deregister) { d.Balancers, d.LastHealthy = []providers.Balancer{b.web}, steps.LastWait }), last, 5*time.Minute)
		if err != nil || !strings.Contains(detail, "as the last healthy one, after the 1m0s that DNS answers live") || time.Since(began) < 100*time.Second {
			b.Errorf("%q, %v after %v", detail, err, time.Since(began))
		}
	})
}

// TestTwentyLeaveOnAWS: what they ask and change at the same time are common calls.
func TestTwentyLeaveOnAWS(t *testing.T) {
	inAWS(t, awsScenario(24, true), func(b *awsBalanced) {
		before := maps.Clone(b.sim.State().APICalls)
		done := make(chan error)
		leaving := b.instances(20)
		for _, in := range leaving {
			go func() { _, err := b.run(b.deregister(nil), in, 10*time.Minute); done <- err }()
		}
		for range leaving {
			if err := <-done; err != nil {
				b.Error(err)
			}
		}
		for _, in := range leaving {
			if got := b.memberships(in.ID); got != "" {
				b.Errorf("%s is in %s", in.ID, got)
			}
		}
		b.Logf("%d calls: %v", b.calls(before), b.sim.State().APICalls)
		if n := b.calls(before, "Deregister"); n > 8 {
			b.Errorf("%d changes for four balancers", n)
		}
	})
}

// TestOneBalancerFailsOnAWS: the others are left all the same, and the error names the permission.
func TestOneBalancerFailsOnAWS(t *testing.T) {
	inAWS(t, awsScenario(4, true), func(b *awsBalanced) {
		in := b.instances(1)[0]
		b.inject(simulator.Fault{Service: "elbv2", Action: "DeregisterTargets", Kind: simulator.FaultDenied})
		_, err := b.run(b.deregister(nil), in, 10*time.Minute)
		if !errors.Is(err, providers.ErrDenied) || !strings.Contains(err.Error(), "allow elasticloadbalancing:DeregisterTargets on "+b.web.ID) || !strings.Contains(err.Error(), "left elb:classic-1") {
			b.Errorf("%v", err)
		}
	})
}

func TestRegisterOnAWS(t *testing.T) {
	inAWS(t, awsScenario(4, true), func(b *awsBalanced) {
		in := b.instances(1)[0]
		if _, err := b.run(b.deregister(nil), in, 10*time.Minute); err != nil {
			b.Fatal(err)
		}
		detail, err := b.run(b.register(nil), in, 5*time.Minute)
		if want := fmt.Sprintf("joined elb:classic-1, healthy; joined %s port 8080, healthy; joined %s port 8080, healthy", b.web, b.pods); err != nil || detail != want {
			b.Errorf("%q, %v", detail, err)
		}
		const joined = "classic-1:0 tg-pods:8080 tg-web:8080"
		if got := b.memberships(in.ID); got != joined {
			b.Errorf("a member of %s", got)
		}
		before := maps.Clone(b.sim.State().APICalls)
		if _, err := b.run(b.register(func(r *steps.Register) { r.Weight = 0 }), in, 5*time.Minute); err != nil {
			b.Error(err)
		}
		if n := b.calls(before, "Register"); n != 0 || b.memberships(in.ID) != joined {
			b.Errorf("%d changes, %s", n, b.memberships(in.ID))
		}
		// One that is ill is waited for in vain.
		if err := b.sim.SetHealth(string(in.ID), false); err != nil {
			b.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if _, err := b.run(b.register(nil), in, 63*time.Second); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "it is unhealthy") {
			b.Error(err)
		}
	})
}

func TestSettingsWithoutWeights(t *testing.T) {
	t.Parallel()
	group := providers.Balancer{Kind: providers.TargetGroup, ID: awsARN + "web/0123456789abcdef"}
	r := steps.Register{Balancers: []providers.Balancer{group}, Cloud: new(aws.Balancers)}
	if err := r.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*steps.Register){
		"weight":          func(r *steps.Register) { r.Weight = 50 },
		"ramp":            func(r *steps.Register) { r.Weight, r.Ramp = 100, time.Minute },
		"beside weighted": func(r *steps.Register) { r.Balancers, r.Weight = append(r.Balancers, alb), 50 },
	} {
		bad := r
		bad.Balancers = slices.Clone(r.Balancers)
		change(&bad)
		if err := bad.Validate(); err == nil || !strings.Contains(err.Error(), group.String()+" has no weights") || !strings.Contains(err.Error(), "leave weight and ramp out") {
			t.Errorf("%s: %v", name, err)
		}
	}
	r.Balancers = []providers.Balancer{{Kind: providers.TargetGroup}}
	if err := r.Validate(); err == nil || !strings.Contains(err.Error(), "target-group:auto: a balancer must be named") {
		t.Error(err)
	}
}
