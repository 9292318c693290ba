package aws

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

const (
	balancedKey    = "AKIDUSHERTEST"
	balancedSecret = "usherTESTsecretKey"
	balancedGroup  = "web-asg"
)

// balanced is a cloud with a group of instances behind a classic balancer and target groups,
// and the client of its balancers.
type balanced struct {
	*testing.T
	*Balancers
	sim     *simulator.Simulator
	options Options
}

// classicELB is the classic balancer.
var classicELB = providers.Balancer{Kind: providers.ClassicELB, ID: "classic-1"}

// behindBalancers is n instances in a classic balancer, a target group of instances, one of
// addresses and one of a network balancer, with more target groups of others.
func behindBalancers(n, more int) simulator.Scenario {
	sc := simulator.Scenario{
		Provider: "aws",
		Queues:   []simulator.QueueConfig{{Name: "q"}},
		Balancers: []simulator.BalancerConfig{
			{ID: "classic-1", Type: "elb", ConnectionDrainTimeout: 30 * time.Second},
			{ID: "alb-1", Type: "application", ConnectionDrainTimeout: 40 * time.Second, ServerGroups: []simulator.ServerGroupConfig{
				{ID: "tg-web"}, {ID: "tg-pods", TargetType: "ip", ConnectionDrainTimeout: 20 * time.Second},
			}},
			{ID: "nlb-1", Type: "network", ServerGroups: []simulator.ServerGroupConfig{{ID: "tg-tcp"}}},
		},
		ScalingGroups: []simulator.GroupConfig{{
			ID: balancedGroup, Instances: n, Zones: []string{"eu-west-1a", "eu-west-1b"},
			ServerGroups: []simulator.MembershipConfig{
				{ID: "classic-1", Unattached: true}, {ID: "tg-web", Ports: []int{8080, 8081}}, {ID: "tg-pods", Ports: []int{9090}, Unattached: true},
				{ID: "tg-tcp", Ports: []int{8443}},
			},
		}, {ID: "others", Instances: 2}},
	}
	for i := range more {
		id := fmt.Sprintf("tg-more-%d", i)
		sc.Balancers[1].ServerGroups = append(sc.Balancers[1].ServerGroups, simulator.ServerGroupConfig{ID: id})
		sc.ScalingGroups[1].ServerGroups = append(sc.ScalingGroups[1].ServerGroups, simulator.MembershipConfig{ID: id, Ports: []int{80}, Unattached: true})
	}
	return sc
}

// inBalanced runs a test in a bubble.
func inBalanced(t *testing.T, scenario simulator.Scenario, test func(b *balanced)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim, err := simulator.New(simulator.Options{AccessKeyID: balancedKey, AccessKeySecret: balancedSecret, NoServers: true, Scenario: scenario})
		if err != nil {
			t.Fatal(err)
		}
		l := simulator.NewPipeListener()
		srv := &http.Server{Handler: sim}
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.Serve(l) }()
		t.Cleanup(func() { _ = sim.Close(); _ = srv.Close(); <-served })
		const at = "http://cloud.test"
		b := &balanced{T: t, sim: sim, options: Options{
			Region: "eu-west-1", ELBEndpoint: at, AutoScalingEndpoint: at, EC2Endpoint: at,
			Credentials: StaticCredentials(balancedKey, balancedSecret), DialContext: l.DialContext,
		}}
		b.Balancers = b.client()
		time.Sleep(10 * time.Second) // the first health checks have run
		test(b)
	})
}

// client is one more worker's.
func (b *balanced) client() *Balancers {
	b.Helper()
	c, err := NewBalancers(b.options)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(c.Close)
	return c
}

// group is a target group by its scenario's id.
func (b *balanced) target(id string) providers.Balancer {
	b.Helper()
	all, err := b.listGroups(b.Context(), struct{}{})
	if err != nil {
		b.Fatal(err)
	}
	for _, g := range all {
		if strings.Contains(g.arn, ":targetgroup/"+id+"/") {
			return providers.Balancer{Kind: providers.TargetGroup, ID: g.arn}
		}
	}
	b.Fatalf("no target group %s", id)
	return providers.Balancer{}
}

// members are the ids of a scaling group's instances.
func (b *balanced) members(group string) []messages.InstanceID {
	g, _ := b.sim.State().Group(group)
	var ids []messages.InstanceID
	for _, in := range g.Instances {
		ids = append(ids, messages.InstanceID(in.ID))
	}
	return ids
}

// calls counts those of some operations since before; all of them if none is named.
func (b *balanced) calls(before map[string]int, names ...string) int {
	n := 0
	for name, count := range b.sim.State().APICalls {
		_, operation, _ := strings.Cut(name, ".")
		if len(names) == 0 || slices.Contains(names, operation) {
			n += count - before[name]
		}
	}
	return n
}

func (b *balanced) snapshot() map[string]int { return maps.Clone(b.sim.State().APICalls) }

// inject arms a fault.
func (b *balanced) inject(f simulator.Fault) {
	b.Helper()
	if _, err := b.sim.InjectFault(f); err != nil {
		b.Fatal(err)
	}
}

// forAll runs do for each at the same time.
func forAll[T any](list []T, do func(T)) {
	var wg sync.WaitGroup
	for _, of := range list {
		wg.Go(func() { do(of) })
	}
	wg.Wait()
}

// shown tells memberships by the names of their balancers.
func shown(ms []providers.Membership) string {
	var out []string
	for _, m := range ms {
		name := m.ID
		if parts := strings.Split(m.ID, "/"); len(parts) == 3 {
			name = parts[1]
		}
		out = append(out, fmt.Sprintf("%s/%d=%d %s", name, m.Port, m.Weight, m.State))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestFindOnAWS: named or searched for, by instance or by address; what was found is shared by
// all who ask at the same time.
func TestFindOnAWS(t *testing.T) {
	inBalanced(t, behindBalancers(20, 30), func(b *balanced) {
		before := b.snapshot()
		forAll(b.members(balancedGroup), func(id messages.InstanceID) {
			for _, row := range []struct {
				in   providers.Balancer
				want string
			}{
				{providers.Balancer{Kind: providers.TargetGroup}, "tg-pods/9090=100 joined, tg-tcp/8443=100 joined, tg-web/8080=100 joined, tg-web/8081=100 joined"},
				{providers.Balancer{Kind: providers.ClassicELB}, "classic-1/0=100 joined"},
			} {
				found, err := b.Find(b.Context(), row.in, id)
				if err != nil || shown(found) != row.want {
					b.Errorf("%s: %s, %v", row.in, shown(found), err)
				}
			}
		})
		// One of each target group, its first page, the classic listing and its health, and the
		// addresses of all instances at once.
		for name, want := range map[string]int{
			"DescribeTargetHealth": 33, "DescribeTargetGroups": 1, "DescribeLoadBalancers": 1, "DescribeInstanceHealth": 1, "DescribeInstances": 1,
		} {
			if n := b.calls(before, name); n != want {
				b.Errorf("%d calls of %s, want %d", n, name, want)
			}
		}
		for in, want := range map[providers.Balancer]string{
			classicELB: "classic-1/0=100 joined", b.target("tg-pods"): "tg-pods/9090=100 joined",
		} {
			if found, err := b.Find(b.Context(), in, b.members(balancedGroup)[3]); err != nil || shown(found) != want {
				b.Errorf("%s: %s, %v", in, shown(found), err)
			}
			if found, err := b.Find(b.Context(), in, b.members("others")[0]); err != nil || len(found) > 0 {
				b.Errorf("%s has one of others: %s, %v", in, shown(found), err)
			}
		}
	})
}

func TestFindPagesOfTargetGroups(t *testing.T) {
	inBalanced(t, behindBalancers(1, 450), func(b *balanced) {
		before := b.snapshot()
		found, err := b.Find(b.Context(), providers.Balancer{Kind: providers.TargetGroup}, b.members(balancedGroup)[0])
		if err != nil || len(found) != 4 {
			b.Errorf("%s, %v", shown(found), err)
		}
		if n := b.calls(before, "DescribeTargetGroups"); n != 2 {
			b.Errorf("%d pages of target groups, want 2", n)
		}
	})
}

// TestRemoveOnAWS: removals of several instances are one call for each balancer, a target is
// leaving for its whole delay, and then it is gone.
func TestRemoveOnAWS(t *testing.T) {
	inBalanced(t, behindBalancers(12, 0), func(b *balanced) {
		ids := b.members(balancedGroup)[:10]
		web, pods := b.target("tg-web"), b.target("tg-pods")
		for _, of := range []struct {
			providers.Balancer
			ports []int
			drain time.Duration
			call  string
		}{
			{web, []int{8080, 8081}, 40 * time.Second, "DeregisterTargets"}, {pods, []int{9090}, 20 * time.Second, "DeregisterTargets"},
			{classicELB, []int{0}, 30 * time.Second, "DeregisterInstancesFromLoadBalancer"},
		} {
			if d, err := b.Draining(b.Context(), of.Balancer); err != nil || d != of.drain {
				b.Errorf("%s drains for %v, %v", of.Balancer, d, err)
			}
			before := b.snapshot()
			forAll(ids, func(id messages.InstanceID) {
				for _, port := range of.ports {
					if c, err := b.Remove(b.Context(), providers.Membership{Balancer: of.Balancer, Instance: id, Port: port}); err != nil || b.Failed(b.Context(), c) != nil {
						b.Errorf("remove %s: %v", id, err)
					}
				}
			})
			if n := b.calls(before, of.call); n > 2*len(of.ports) {
				b.Errorf("%d calls of %s for %d instances", n, of.call, len(ids))
			}
			for _, id := range ids {
				found, err := b.Find(b.Context(), of.Balancer, id)
				if err != nil || len(found) != len(of.ports) || found[0].State != providers.Leaving {
					b.Errorf("%s: %s, %v", of.Balancer, shown(found), err)
				}
			}
			time.Sleep(of.drain + 5*time.Second)
			for _, id := range ids {
				if found, err := b.Find(b.Context(), of.Balancer, id); err != nil || len(found) > 0 {
					b.Errorf("%s: %s, %v", of.Balancer, shown(found), err)
				}
			}
			// Once more: it is no error.
			if _, err := b.Remove(b.Context(), providers.Membership{Balancer: of.Balancer, Instance: ids[0], Port: of.ports[0]}); err != nil {
				b.Errorf("%s: %v", of.Balancer, err)
			}
		}
	})
}

// TestAddOnAWS: an instance that the balancer does not want keeps no other out.
func TestAddOnAWS(t *testing.T) {
	inBalanced(t, behindBalancers(3, 0), func(b *balanced) {
		others := b.members("others")
		const unknown = messages.InstanceID("i-0123456789abcdef0")
		for _, of := range []providers.Balancer{classicELB, b.target("tg-web"), b.target("tg-pods")} {
			port := 8080
			if of == classicELB {
				port = 0
			}
			forAll(append(slices.Clone(others), unknown), func(id messages.InstanceID) {
				_, err := b.Add(b.Context(), providers.Membership{Balancer: of, Instance: id, Port: port, Weight: 100})
				if (err != nil) != (id == unknown) {
					b.Errorf("%s: add %s: %v", of, id, err)
				}
			})
			time.Sleep(10 * time.Second)
			members, err := b.Members(b.Context(), of)
			if err != nil {
				b.Fatal(err)
			}
			healthy := 0
			for _, m := range members {
				if m.Health == providers.Healthy && slices.Contains(others, m.Instance) && m.Port == port {
					healthy++
				}
			}
			if healthy != len(others) {
				b.Errorf("%s: %d of the others are healthy: %+v", of, healthy, members)
			}
		}
	})
}

func TestWeightsOnAWS(t *testing.T) {
	inBalanced(t, behindBalancers(1, 0), func(b *balanced) {
		before := b.snapshot()
		for _, of := range []providers.Balancer{classicELB, {Kind: providers.TargetGroup, ID: "arn:aws:elasticloadbalancing:eu-west-1:111122223333:targetgroup/x/1"}} {
			if _, err := b.SetWeight(b.Context(), providers.Membership{Balancer: of, Instance: "i-1"}); !errors.Is(err, providers.ErrUnsupported) || !providers.Untouched(err) {
				b.Errorf("%s: %v", of, err)
			}
		}
		alien := providers.Balancer{Kind: providers.ALB, ID: "sgp-1"}
		_, err1 := b.Find(b.Context(), alien, "i-1")
		_, err2 := b.Members(b.Context(), alien)
		_, err3 := b.Draining(b.Context(), alien)
		_, err4 := b.Notice(b.Context(), alien)
		_, err5 := b.Add(b.Context(), providers.Membership{Balancer: alien, Instance: "i-1"})
		_, err6 := b.Remove(b.Context(), providers.Membership{Balancer: classicELB, Instance: "web 1"})
		_, err7 := b.Find(b.Context(), classicELB, "web 1")
		for i, err := range []error{err1, err2, err3, err4, err5, err6, err7} {
			if !errors.Is(err, providers.ErrInvalid) {
				b.Errorf("error %d: %v", i+1, err)
			}
		}
		if n := b.calls(before); n != 0 {
			b.Errorf("%d calls were made", n)
		}
	})
}

// TestMissingBalancers: what does not exist is told apart from what has no members.
func TestMissingBalancers(t *testing.T) {
	inBalanced(t, behindBalancers(1, 0), func(b *balanced) {
		id := b.members(balancedGroup)[0]
		for _, of := range []providers.Balancer{{Kind: providers.ClassicELB, ID: "no-such"}, {Kind: providers.TargetGroup, ID: strings.Replace(b.target("tg-web").ID, "tg-web", "no-such", 1)}} {
			_, err1 := b.Find(b.Context(), of, id)
			_, err2 := b.Members(b.Context(), of)
			_, err3 := b.Draining(b.Context(), of)
			_, err4 := b.Notice(b.Context(), of)
			_, err5 := b.Remove(b.Context(), providers.Membership{Balancer: of, Instance: id, Port: 80})
			for i, err := range []error{err1, err2, err3, err4, err5} {
				e, ok := errors.AsType[*providers.Error](err)
				if !ok || !errors.Is(err, providers.ErrNotFound) || !strings.Contains(e.Hint, "eu-west-1") {
					b.Errorf("%s: error %d: %v", of, i+1, err)
				}
			}
		}
	})
}

// TestHealthOnAWS: every state of a target, and of a classic balancer's instance.
func TestHealthOnAWS(t *testing.T) {
	inBalanced(t, behindBalancers(3, 0), func(b *balanced) {
		id := b.members(balancedGroup)[0]
		web := b.target("tg-web")
		for _, row := range []struct {
			state, reason string
			membership    providers.MembershipState
			health        providers.Health
		}{
			{"healthy", "", providers.Joined, providers.Healthy},
			{"unhealthy", "Target.Timeout", providers.Joined, providers.Unhealthy},
			{"unhealthy.draining", "Target.FailedHealthChecks", providers.Joined, providers.Unhealthy},
			{"initial", "Elb.InitialHealthChecking", providers.Joined, providers.HealthUnknown},
			{"initial", "Elb.RegistrationInProgress", providers.Joining, providers.HealthUnknown},
			{"draining", "Target.DeregistrationInProgress", providers.Leaving, providers.HealthUnknown},
			{"unused", "Target.NotInUse", providers.Joined, providers.HealthUnknown},
			{"unused", "Target.NotRegistered", "", ""},
			{"unavailable", "Elb.InternalError", providers.Joined, providers.HealthUnknown},
		} {
			if err := b.sim.SetTargetHealth(string(id), row.state, row.reason); err != nil {
				b.Fatal(err)
			}
			time.Sleep(listingAge + time.Second)
			members, err := b.Members(b.Context(), web)
			if err != nil {
				b.Fatal(err)
			}
			var state providers.MembershipState
			var health providers.Health
			for _, m := range members {
				switch {
				case m.Instance == id:
					state, health = m.State, m.Health
				case m.Health != providers.Healthy || m.Zone != "":
					b.Errorf("%+v", m)
				}
			}
			if state != row.membership || health != row.health {
				b.Errorf("%s, %s: %s, %s", row.state, row.reason, state, health)
			}
		}
		if err := b.sim.SetTargetHealth(string(id), "", ""); err != nil {
			b.Fatal(err)
		}
		if err := b.sim.SetHealth(string(id), false); err != nil {
			b.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		for _, of := range []providers.Balancer{web, classicELB} {
			members, err := b.Members(b.Context(), of)
			if err != nil || len(members) == 0 {
				b.Fatal(err)
			}
			for _, m := range members {
				if (m.Health == providers.Unhealthy) != (m.Instance == id) {
					b.Errorf("%s: %+v", of, m)
				}
			}
		}
	})
}

// TestNoticeOnAWS reads the health checks.
func TestNoticeOnAWS(t *testing.T) {
	sc := behindBalancers(1, 0)
	for i := range sc.Balancers {
		sc.Balancers[i].HealthCheck = simulator.HealthCheck{Interval: 10 * time.Second, Timeout: 5 * time.Second, Fall: 3}
	}
	inBalanced(t, sc, func(b *balanced) {
		for _, of := range []providers.Balancer{classicELB, b.target("tg-web"), b.target("tg-tcp")} {
			if d, err := b.Notice(b.Context(), of); err != nil || d != 45*time.Second {
				b.Errorf("%s: %v, %v", of, d, err)
			}
		}
	})
}

// TestOneEmptyListing: a single empty answer does not make a search miss a target group.
func TestOneEmptyListing(t *testing.T) {
	inBalanced(t, behindBalancers(2, 0), func(b *balanced) {
		id := b.members(balancedGroup)[0]
		for _, f := range []simulator.Fault{
			{Service: "elbv2", Action: "DescribeTargetHealth"}, {Service: "elbv2", Action: "DescribeTargetGroups"}, {Service: "elb", Action: "DescribeLoadBalancers"},
		} {
			action := f.Action
			f.Kind, f.Count = simulator.FaultEmpty, 1
			b.inject(f)
			other := b.client()
			groups, err1 := other.Find(b.Context(), providers.Balancer{Kind: providers.TargetGroup}, id)
			classic, err2 := other.Find(b.Context(), providers.Balancer{Kind: providers.ClassicELB}, id)
			if err1 != nil || err2 != nil || len(groups) != 4 && action != "DescribeTargetGroups" || len(classic) != 1 {
				b.Errorf("%s: %s; %s; %v, %v", action, shown(groups), shown(classic), err1, err2)
			}
			if groups, err := other.Find(b.Context(), providers.Balancer{Kind: providers.TargetGroup}, id); err != nil || len(groups) != 4 {
				b.Errorf("%s, again: %s, %v", action, shown(groups), err)
			}
		}
	})
}

// TestStormOnBalancers: a change goes on for as long as its caller waits; a search names what
// it found beside its error.
func TestStormOnBalancers(t *testing.T) {
	inBalanced(t, behindBalancers(2, 0), func(b *balanced) {
		id, web := b.members(balancedGroup)[0], b.target("tg-web")
		b.inject(simulator.Fault{Service: "elbv2", Action: "DeregisterTargets", Kind: simulator.FaultThrottle, Count: 20})
		began := time.Now()
		if _, err := b.Remove(b.Context(), providers.Membership{Balancer: web, Instance: id, Port: 8080}); err != nil {
			b.Error(err)
		}
		b.Logf("took %v", time.Since(began))
		if found, err := b.Find(b.Context(), web, id); err != nil || shown(found) != "tg-web/8080=100 leaving, tg-web/8081=100 joined" {
			b.Errorf("%s, %v", shown(found), err)
		}
	})
}

// TestZonesOnAWS: a network balancer does not send across zones, so that the zone of its targets
// matters, and a classic one and an application one here do.
func TestZonesOnAWS(t *testing.T) {
	inBalanced(t, behindBalancers(4, 0), func(b *balanced) {
		g, _ := b.sim.State().Group(balancedGroup)
		zones := map[messages.InstanceID]string{}
		for _, in := range g.Instances {
			zones[messages.InstanceID(in.ID)] = in.Zone
		}
		before := b.snapshot()
		for range 2 {
			members, err := b.Members(b.Context(), b.target("tg-tcp"))
			if err != nil || len(members) != 4 {
				b.Fatalf("%d members, %v", len(members), err)
			}
			for _, m := range members {
				if m.Zone == "" || m.Zone != zones[m.Instance] {
					b.Errorf("%s is in %s, got %q", m.Instance, zones[m.Instance], m.Zone)
				}
			}
		}
		if n := b.calls(before, "DescribeInstances", "DescribeLoadBalancerAttributes", "DescribeTargetGroupAttributes"); n != 3 {
			b.Errorf("%d calls for what does not change, want 3", n)
		}
		for _, of := range []providers.Balancer{classicELB, b.target("tg-web"), b.target("tg-pods")} {
			members, err := b.Members(b.Context(), of)
			if err != nil || len(members) == 0 {
				b.Fatalf("%s: %d members, %v", of, len(members), err)
			}
			for _, m := range members {
				if m.Zone != "" {
					b.Errorf("%s: %+v", of, m)
				}
			}
		}
	})
}

// TestAttachedOnAWS: the group's own record names what Auto Scaling keeps its instances in.
func TestAttachedOnAWS(t *testing.T) {
	inBalanced(t, behindBalancers(1, 1), func(b *balanced) {
		attached, err := b.Attached(b.Context(), balancedGroup)
		if want := []providers.Balancer{b.target("tg-web"), b.target("tg-tcp")}; err != nil || !slices.Equal(attached, want) {
			b.Errorf("%v, %v", attached, err)
		}
		if attached, err := b.Attached(b.Context(), "others"); err != nil || len(attached) > 0 {
			b.Errorf("others: %v, %v", attached, err)
		}
		if _, err := b.Attached(b.Context(), "no-such"); !errors.Is(err, providers.ErrNotFound) {
			b.Errorf("a group that is not there: %v", err)
		}
	})
}

// TestDeniedBalancers: an error names the permission that is missing, and on what.
func TestDeniedBalancers(t *testing.T) {
	inBalanced(t, behindBalancers(1, 0), func(b *balanced) {
		id, web := b.members(balancedGroup)[0], b.target("tg-web")
		ask := func(service, action string, call func() error) {
			b.Helper()
			b.inject(simulator.Fault{Service: service, Action: action, Kind: simulator.FaultDenied, Count: 1})
			err := call()
			e, ok := errors.AsType[*providers.Error](err)
			namespace := map[string]string{"elb": "elasticloadbalancing", "elbv2": "elasticloadbalancing", "autoscaling": "autoscaling", "ec2": "ec2"}[service]
			if !ok || !errors.Is(err, providers.ErrDenied) || !strings.Contains(e.Hint, namespace+":"+action) {
				b.Errorf("%s: %v", action, err)
			}
		}
		find := func(in providers.Balancer) func() error {
			return func() error { _, err := b.client().Find(b.Context(), in, id); return err }
		}
		ask("elbv2", "DescribeTargetGroups", find(providers.Balancer{Kind: providers.TargetGroup}))
		ask("elbv2", "DescribeTargetHealth", find(web))
		ask("ec2", "DescribeInstances", find(b.target("tg-pods")))
		ask("elb", "DescribeLoadBalancers", find(providers.Balancer{Kind: providers.ClassicELB}))
		ask("elb", "DescribeInstanceHealth", find(classicELB))
		ask("elbv2", "DescribeTargetGroupAttributes", func() error { _, err := b.Draining(b.Context(), web); return err })
		ask("elb", "DescribeLoadBalancerAttributes", func() error { _, err := b.Draining(b.Context(), classicELB); return err })
		ask("elbv2", "DescribeLoadBalancerAttributes", func() error { _, err := b.Members(b.Context(), b.target("tg-tcp")); return err })
		ask("autoscaling", "DescribeAutoScalingGroups", func() error { _, err := b.Attached(b.Context(), balancedGroup); return err })
		for _, of := range []providers.Balancer{web, classicELB} {
			m := providers.Membership{Balancer: of, Instance: id}
			names := map[providers.BalancerKind][2]string{providers.TargetGroup: {"DeregisterTargets", "RegisterTargets"}, providers.ClassicELB: {"DeregisterInstancesFromLoadBalancer", "RegisterInstancesWithLoadBalancer"}}[of.Kind]
			service := map[providers.BalancerKind]string{providers.TargetGroup: "elbv2", providers.ClassicELB: "elb"}[of.Kind]
			ask(service, names[0], func() error { _, err := b.Remove(b.Context(), m); return err })
			ask(service, names[1], func() error { _, err := b.Add(b.Context(), m); return err })
		}
	})
}

// TestSearchNamesWhatItFound: one target group that can't be read keeps no other back.
func TestSearchNamesWhatItFound(t *testing.T) {
	inBalanced(t, behindBalancers(1, 0), func(b *balanced) {
		b.inject(simulator.Fault{Service: "elbv2", Action: "DescribeTargetHealth", Kind: simulator.FaultDenied, Count: 1})
		found, err := b.Find(b.Context(), providers.Balancer{Kind: providers.TargetGroup}, b.members(balancedGroup)[0])
		if len(found) == 0 || !errors.Is(err, providers.ErrDenied) {
			b.Errorf("%s, %v", shown(found), err)
		}
	})
}

// TestLostChange: a change whose answer was lost is made again, and is none then.
func TestLostChange(t *testing.T) {
	inBalanced(t, behindBalancers(2, 0), func(b *balanced) {
		id, web := b.members(balancedGroup)[0], b.target("tg-web")
		for _, of := range []struct {
			providers.Balancer
			service, action string
		}{{web, "elbv2", "DeregisterTargets"}, {classicELB, "elb", "DeregisterInstancesFromLoadBalancer"}} {
			b.inject(simulator.Fault{Service: of.service, Action: of.action, Kind: simulator.FaultDropAfterEffect, Count: 1})
			m := providers.Membership{Balancer: of.Balancer, Instance: id, Port: 8080}
			if of.Balancer == classicELB {
				m.Port = 0
			}
			if _, err := b.Remove(b.Context(), m); err != nil {
				b.Errorf("%s: %v", of.Balancer, err)
			}
			found, err := b.Find(b.Context(), of.Balancer, id)
			if err != nil || len(found) == 0 || found[0].State != providers.Leaving {
				b.Errorf("%s: %s, %v", of.Balancer, shown(found), err)
			}
		}
	})
}

// TestGivingUpAChange: who waits no longer gets the context's error, and nothing is left running.
func TestGivingUpAChange(t *testing.T) {
	inBalanced(t, behindBalancers(1, 0), func(b *balanced) {
		b.inject(simulator.Fault{Service: "elbv2", Action: "DeregisterTargets", Kind: simulator.Fault5xx})
		ctx, cancel := context.WithTimeout(b.Context(), 40*time.Second)
		defer cancel()
		_, err := b.Remove(ctx, providers.Membership{Balancer: b.target("tg-web"), Instance: b.members(balancedGroup)[0], Port: 8080})
		if !errors.Is(err, context.DeadlineExceeded) {
			b.Error(err)
		}
	})
}

// TestGoneFromAddresses: of an instance that EC2 lists no more, no address is searched for.
func TestGoneFromAddresses(t *testing.T) {
	inBalanced(t, behindBalancers(1, 0), func(b *balanced) {
		for _, in := range []providers.Balancer{{Kind: providers.TargetGroup}, b.target("tg-pods")} {
			if found, err := b.Find(b.Context(), in, "i-0123456789abcdef0"); err != nil || len(found) > 0 {
				b.Errorf("%s: %s, %v", in, shown(found), err)
			}
		}
	})
}
