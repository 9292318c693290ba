package alibaba

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

var (
	simCLB    = providers.Balancer{Kind: providers.CLB, ID: "lb-1"}
	simVGroup = providers.Balancer{Kind: providers.CLBGroup, ID: "rsp-1"}
	simALB    = providers.Balancer{Kind: providers.ALB, ID: "sgp-a"}
	simNLB    = providers.Balancer{Kind: providers.NLB, ID: "sgp-n"}
)

// behindBalancers is n instances in four server groups, with more groups of each kind.
func behindBalancers(n, more int) simulator.Scenario {
	sc := simulator.Scenario{
		Queues: []simulator.QueueConfig{{Name: simQueue}},
		Balancers: []simulator.BalancerConfig{
			{ID: "lb-1", Type: "clb", ServerGroups: []simulator.ServerGroupConfig{{ID: "rsp-1"}}, Listeners: []simulator.ListenerConfig{
				{Port: 80, Protocol: "http", BackendPort: 8080}, {Port: 443, ServerGroup: "rsp-1", ConnectionDrainTimeout: 30 * time.Second},
			}},
			{ID: "alb-1", Type: "alb", ServerGroups: []simulator.ServerGroupConfig{{ID: "sgp-a", ConnectionDrainTimeout: 20 * time.Second}}},
			{ID: "nlb-1", Type: "nlb", ServerGroups: []simulator.ServerGroupConfig{{ID: "sgp-n"}}},
		},
		ScalingGroups: []simulator.GroupConfig{{
			ID: simGroup, Instances: n, Zones: []string{"cn-shenzhen-a", "cn-shenzhen-b"},
			ServerGroups: []simulator.MembershipConfig{
				{ID: "lb-1", Unattached: true}, {ID: "rsp-1", Ports: []int{8443, 9443}, Unattached: true},
				{ID: "sgp-a", Ports: []int{8080, 8081}}, {ID: "sgp-n", Ports: []int{8080}, Weight: 50},
			},
		}, {
			ID: "asg-others", Instances: 2,
		}},
	}
	for i := range more {
		for j, kind := range []string{"rsp", "sgp-a", "sgp-n"} {
			id := fmt.Sprintf("%s-more-%d", kind, i)
			sc.Balancers[j].ServerGroups = append(sc.Balancers[j].ServerGroups, simulator.ServerGroupConfig{ID: id})
			sc.ScalingGroups[1].ServerGroups = append(sc.ScalingGroups[1].ServerGroups, simulator.MembershipConfig{ID: id, Ports: []int{80}, Unattached: true})
		}
	}
	return sc
}

func inBalancedCloud(t *testing.T, n, more int, test func(t *testing.T, c *cloud, b *Balancers)) {
	t.Helper()
	inCloud(t, func(o *simulator.Options) { o.Scenario = behindBalancers(n, more) }, func(t *testing.T, c *cloud) {
		test(t, c, newBalancers(t, c.options))
	})
}

func newBalancers(t *testing.T, o Options) *Balancers {
	t.Helper()
	b, err := NewBalancers(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// members are the ids of a scaling group's instances.
func (c *cloud) members(group string) []messages.InstanceID {
	g, _ := c.sim.State().Group(group)
	var ids []messages.InstanceID
	for _, in := range g.Instances {
		ids = append(ids, messages.InstanceID(in.ID))
	}
	return ids
}

// all runs do for each at the same time.
func all[T any](list []T, do func(T)) {
	var wg sync.WaitGroup
	for _, of := range list {
		wg.Go(func() { do(of) })
	}
	wg.Wait()
}

func texts(ms []providers.Membership) string {
	var out []string
	for _, m := range ms {
		out = append(out, fmt.Sprintf("%s/%d=%d %s", m.Balancer, m.Port, m.Weight, m.State))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestFindAmongManyGroups: 1500 server groups of others cost no call more on ALB and NLB, and on
// CLB one each, for all instances together.
func TestFindAmongManyGroups(t *testing.T) {
	inBalancedCloud(t, 20, 500, func(t *testing.T, c *cloud, b *Balancers) {
		for range 2 {
			before := maps.Clone(c.sim.State().APICalls)
			all(c.members(simGroup), func(id messages.InstanceID) {
				for _, row := range []struct {
					kind providers.BalancerKind
					want string
				}{
					{providers.ALB, "alb:sgp-a/8080=100 joined, alb:sgp-a/8081=100 joined"},
					{providers.NLB, "nlb:sgp-n/8080=50 joined"},
					{providers.CLB, "clb-vserver-group:rsp-1/8443=100 joined, clb-vserver-group:rsp-1/9443=100 joined, clb:lb-1/0=100 joined"},
				} {
					found, err := b.Find(t.Context(), providers.Balancer{Kind: row.kind}, id)
					if err != nil || texts(found) != row.want {
						t.Errorf("%s: %s, %v", row.kind, texts(found), err)
					}
				}
			})
			calls := c.sim.State().APICalls
			if n := calls["alb.ListServerGroupServers"] - before["alb.ListServerGroupServers"]; n > 1 {
				t.Errorf("%d look-ups of ALB: 20 instances fit into one", n)
			}
			clb := 0
			for name, n := range calls {
				if strings.HasPrefix(name, "slb.") {
					clb += n - before[name]
				}
			}
			// Once: the instances, the default group, the list of groups, and 501 groups.
			if want := 504; clb > want || before["slb.DescribeLoadBalancers"] > 0 && clb > 0 {
				t.Errorf("%d calls of CLB, then %d", before["slb.DescribeLoadBalancers"], clb)
			}
		}
	})
}

// TestPagesOfMembers: a group of 130 members with two ports takes three pages.
func TestPagesOfMembers(t *testing.T) {
	inBalancedCloud(t, 130, 0, func(t *testing.T, c *cloud, b *Balancers) {
		all([]providers.Balancer{simCLB, simVGroup, simALB, simNLB}, func(of providers.Balancer) {
			all(slices.Repeat([]int{0}, 20), func(int) {
				want := map[providers.Balancer]int{simCLB: 130, simVGroup: 260, simALB: 260, simNLB: 130}[of]
				got, err := b.Members(t.Context(), of)
				if err != nil || len(got) != want || got[0].Health != providers.Healthy {
					t.Errorf("%s: %d members, %v", of, len(got), err)
				}
				zoned := slices.ContainsFunc(got, func(m providers.Member) bool { return m.Zone == "cn-shenzhen-b" })
				if zoned != (of.Kind == providers.ALB || of.Kind == providers.NLB) {
					t.Errorf("%s: zones %v", of, zoned)
				}
			})
		})
		calls := c.sim.State().APICalls
		// Two groups of one CLB share it, unless one has listed its members later.
		if n := calls["slb.DescribeHealthStatus"]; n != 1 && n != 2 {
			t.Errorf("%d of slb.DescribeHealthStatus, want 1 or 2", n)
		}
		for name, want := range map[string]int{"alb.ListServerGroupServers": 3, "nlb.ListServerGroupServers": 2, "alb.GetListenerHealthStatus": 1, "ecs.DescribeInstances": 2} {
			if calls[name] != want {
				t.Errorf("%d of %s, want %d", calls[name], name, want)
			}
		}
	})
}

func TestHealth(t *testing.T) {
	inBalancedCloud(t, 3, 0, func(t *testing.T, c *cloud, b *Balancers) {
		ids := c.members(simGroup)
		if err := c.sim.SetHealth(string(ids[0]), false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		for _, of := range []providers.Balancer{simCLB, simVGroup, simALB, simNLB} {
			fresh := c.members("asg-others")[0]
			port := 8080
			if of == simCLB {
				port = 0
			}
			if _, err := b.Add(t.Context(), providers.Membership{Balancer: of, Instance: fresh, Port: port, Weight: 10}); err != nil {
				t.Fatal(err)
			}
			got, err := b.Members(t.Context(), of)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range got {
				want := providers.Healthy
				switch m.Instance {
				case ids[0]:
					want = providers.Unhealthy
				case fresh:
					want = providers.HealthUnknown // no check has run yet
				}
				if m.Health != want {
					t.Errorf("%s: %s is %s, want %s", of, m.Instance, m.Health, want)
				}
			}
		}
	})
}

// TestDrainingAndAttached reads how balancers are set up, and which of them ESS knows.
func TestDrainingAndAttached(t *testing.T) {
	inBalancedCloud(t, 1, 0, func(t *testing.T, c *cloud, b *Balancers) {
		for of, want := range map[providers.Balancer]time.Duration{simCLB: 0, simVGroup: 30 * time.Second, simALB: 20 * time.Second, simNLB: 0} {
			if d, err := b.Draining(t.Context(), of); err != nil || d != want {
				t.Errorf("%s drains %v, %v", of, d, err)
			}
			// Two failures, a second apart, of a second each.
			if d, err := b.Notice(t.Context(), of); err != nil || d != 4*time.Second {
				t.Errorf("%s notices after %v, %v", of, d, err)
			}
		}
		attached, err := b.Attached(t.Context(), simGroup)
		if err != nil || !slices.Contains(attached, simALB) || !slices.Contains(attached, simNLB) || len(attached) != 2 {
			t.Errorf("attached: %v, %v", attached, err)
		}
		_, err = b.Attached(t.Context(), "asg-none")
		wantKind(t, err, providers.ErrNotFound)
	})
}

// TestChangesGather: 230 memberships leave in as few calls as each API takes, whatever the
// moment in which they are asked for.
func TestChangesGather(t *testing.T) {
	inBalancedCloud(t, 115, 0, func(t *testing.T, c *cloud, b *Balancers) {
		var ms []providers.Membership
		for _, id := range c.members(simGroup) {
			ms = append(ms,
				providers.Membership{Balancer: simCLB, Instance: id}, providers.Membership{Balancer: simVGroup, Instance: id, Port: 8443},
				providers.Membership{Balancer: simVGroup, Instance: id, Port: 9443}, providers.Membership{Balancer: simALB, Instance: id, Port: 8080},
				providers.Membership{Balancer: simALB, Instance: id, Port: 8081}, providers.Membership{Balancer: simNLB, Instance: id, Port: 8080},
			)
		}
		change := func(do func(context.Context, providers.Membership) (providers.Change, error)) {
			all(ms, func(m providers.Membership) {
				m.Weight = 7
				if c, err := do(t.Context(), m); err != nil || c.Balancer != m.Balancer {
					t.Errorf("%+v: %+v, %v", m, c, err)
				}
			})
		}
		change(b.SetWeight)
		time.Sleep(3 * time.Second)
		for _, m := range c.sim.State().Members(string(ms[0].Instance)) {
			if m.Weight != 7 {
				t.Errorf("weight of %s: %d", m.ServerGroup, m.Weight)
			}
		}
		change(b.Remove)
		time.Sleep(3 * time.Second)
		for _, id := range c.members(simGroup) {
			if left := c.sim.State().Members(string(id)); len(left) > 0 {
				t.Errorf("%s is in %+v", id, left)
			}
		}
		change(b.Remove)    // again
		change(b.SetWeight) // of what is not there
		change(b.Add)
		time.Sleep(3 * time.Second)
		change(b.Add) // again
		for _, id := range c.members(simGroup) {
			if n := len(c.sim.State().Members(string(id))); n != 6 {
				t.Errorf("%s has %d memberships", id, n)
			}
		}
		calls := c.sim.State().APICalls
		for name, most := range map[string]int{
			"slb.AddBackendServers": 12, "slb.AddVServerGroupBackendServers": 24, "alb.RemoveServersFromServerGroup": 6, "nlb.RemoveServersFromServerGroup": 3,
		} {
			if calls[name] > most {
				t.Errorf("%d of %s, want at most %d", calls[name], name, most)
			}
		}
	})
}

// TestOneSpoilsABatch: what the balancer does not want keeps none of the others out of it.
func TestOneSpoilsABatch(t *testing.T) {
	inBalancedCloud(t, 6, 0, func(t *testing.T, c *cloud, b *Balancers) {
		ids := c.members(simGroup)
		for _, of := range []providers.Balancer{simCLB, simVGroup, simALB, simNLB} {
			port := map[providers.Balancer]int{simVGroup: 8443, simALB: 8080, simNLB: 8080}[of]
			leaving := append([]messages.InstanceID{"i-released"}, ids...)
			all(leaving, func(id messages.InstanceID) {
				if _, err := b.Remove(t.Context(), providers.Membership{Balancer: of, Instance: id, Port: port}); err != nil {
					t.Errorf("remove: %v", err)
				}
			})
			time.Sleep(3 * time.Second)
			all(leaving, func(id messages.InstanceID) {
				_, err := b.Add(t.Context(), providers.Membership{Balancer: of, Instance: id, Port: port, Weight: 50})
				if (err == nil) != (id != "i-released") {
					t.Errorf("add %s to %s: %v", id, of, err)
				}
			})
			time.Sleep(30 * time.Second)
			for _, id := range ids {
				if found, err := b.Find(t.Context(), of, id); err != nil || !slices.ContainsFunc(found, func(m providers.Membership) bool { return m.Port == port && m.Weight == 50 }) {
					t.Errorf("%s in %s: %v, %v", id, of, texts(found), err)
				}
			}
		}
	})
}

// TestJobs: what has become of a change that was taken on.
func TestJobs(t *testing.T) {
	inBalancedCloud(t, 2, 0, func(t *testing.T, c *cloud, b *Balancers) {
		id := c.members(simGroup)[0]
		for _, of := range []providers.Balancer{simALB, simNLB} {
			m := providers.Membership{Balancer: of, Instance: id, Port: 8080}
			c.inject(t, simulator.Fault{Service: string(of.Kind), Action: "RemoveServersFromServerGroup", Kind: simulator.FaultJobFails, Count: 1})
			failed, err := b.Remove(t.Context(), m)
			if err != nil || failed.ID == "" {
				t.Fatalf("%+v, %v", failed, err)
			}
			if err := b.Failed(t.Context(), failed); err != nil {
				t.Errorf("still going on: %v", err)
			}
			time.Sleep(3 * time.Second)
			wantKind(t, b.Failed(t.Context(), failed), providers.ErrChangeFailed)
			done, err := b.Remove(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(3 * time.Second)
			if err := b.Failed(t.Context(), done); err != nil {
				t.Errorf("it has succeeded: %v", err)
			}
			c.inject(t, simulator.Fault{Service: string(of.Kind), Kind: simulator.FaultDenied, Count: 1})
			wantKind(t, b.Failed(t.Context(), done), providers.ErrDenied)
		}
		if err := b.Failed(t.Context(), providers.Change{Balancer: simCLB}); err != nil {
			t.Errorf("CLB has no jobs: %v", err)
		}
	})
}

// TestCallersGiveUp: a caller that goes leaves the batch to the others, and the last one ends it.
func TestCallersGiveUp(t *testing.T) {
	inBalancedCloud(t, 3, 0, func(t *testing.T, c *cloud, b *Balancers) {
		ids := c.members(simGroup)
		c.inject(t, simulator.Fault{Service: "alb", Action: "ListServerGroupServers", Kind: simulator.FaultHang})
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		all(ids, func(id messages.InstanceID) {
			if _, err := b.Find(short, simALB, id); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a hanging look-up: %v", err)
			}
		})
		if _, err := b.Find(short, simALB, ids[0]); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("after the end: %v", err)
		}
		if _, err := b.Members(short, simALB); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("members after the end: %v", err)
		}
		c.sim.ClearFaults()

		// One gives up before the batch begins, and one is left.
		done := make(chan error)
		go func() { _, err := b.Find(t.Context(), simALB, ids[0]); done <- err }()
		short, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := b.Find(short, simALB, ids[1]); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("too short: %v", err)
		}
		if err := <-done; err != nil {
			t.Errorf("the one who stayed: %v", err)
		}

		// While a change is refused as busy, the next one gathers; both end with their context.
		c.inject(t, simulator.Fault{Service: "nlb", Kind: simulator.FaultError, Code: "IncorrectStatus.serverGroup"})
		short, cancel = context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		before := c.sim.State().APICalls["nlb.RemoveServersFromServerGroup"]
		all(ids, func(id messages.InstanceID) {
			if id == ids[2] {
				time.Sleep(5 * time.Second)
			}
			_, err := b.Remove(short, providers.Membership{Balancer: simNLB, Instance: id, Port: 8080})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("busy to the end: %v", err)
			}
		})
		if n := c.sim.State().APICalls["nlb.RemoveServersFromServerGroup"] - before; n < 4 || n > 7 {
			t.Errorf("%d attempts in 20 s, 3 to 4.5 s apart", n)
		}
	})
}

func TestBalancersThatAreNone(t *testing.T) {
	inBalancedCloud(t, 1, 0, func(t *testing.T, c *cloud, b *Balancers) {
		ctx, id := t.Context(), c.members(simGroup)[0]
		none := providers.Balancer{Kind: "elb", ID: "x"}
		_, err := b.Find(ctx, none, id)
		wantKind(t, err, providers.ErrInvalid)
		_, err = b.Find(ctx, simALB, "i-1; reboot")
		wantKind(t, err, providers.ErrInvalid)
		_, err = b.Members(ctx, none)
		wantKind(t, err, providers.ErrInvalid)
		_, err = b.Draining(ctx, none)
		wantKind(t, err, providers.ErrInvalid)
		_, err = b.Notice(ctx, none)
		wantKind(t, err, providers.ErrInvalid)
		for _, m := range []providers.Membership{
			{Balancer: none, Instance: id}, {Balancer: providers.Balancer{Kind: providers.ALB}, Instance: id}, {Balancer: simALB, Instance: "x"},
			{Balancer: simALB, Instance: id, Port: 70000}, {Balancer: simALB, Instance: id, Port: 80, Weight: 101},
		} {
			_, err := b.SetWeight(ctx, m)
			wantKind(t, err, providers.ErrInvalid)
		}
		for kind, missing := range map[providers.BalancerKind]string{providers.CLB: "lb-none", providers.CLBGroup: "rsp-none", providers.ALB: "sgp-none", providers.NLB: "sgp-none"} {
			of := providers.Balancer{Kind: kind, ID: missing}
			_, err := b.Find(ctx, of, id)
			wantKind(t, err, providers.ErrNotFound)
			_, err = b.Members(ctx, of)
			wantKind(t, err, providers.ErrNotFound)
			if d, err := b.Draining(ctx, of); kind != providers.CLB {
				wantKind(t, err, providers.ErrNotFound)
			} else if d != 0 || err != nil { // CLB lists no listeners of it, and says no more
				t.Errorf("%v, %v", d, err)
			}
			_, err = b.Remove(ctx, providers.Membership{Balancer: of, Instance: id, Port: 80})
			wantKind(t, err, providers.ErrNotFound)
		}
	})
	o := options("http://cloud.test")
	o.SLBEndpoint, o.ALBEndpoint, o.NLBEndpoint = "ftp://x", "http://a/b", "http://u:p@h"
	_, err := NewBalancers(o)
	for _, want := range []string{"SLBEndpoint", "ALBEndpoint", "NLBEndpoint"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is accepted: %v", want, err)
		}
	}
	if (providers.Balancer{Kind: providers.ALB}).String() != "alb:auto" || simVGroup.String() != "clb-vserver-group:rsp-1" {
		t.Error("balancers are not called as in configs")
	}
}

// TestChangesGoFirst: what a service grants while it throttles goes to changes before look-ups.
func TestChangesGoFirst(t *testing.T) {
	inBalancedCloud(t, 60, 0, func(t *testing.T, c *cloud, b *Balancers) {
		ids := c.members(simGroup)
		c.inject(t, simulator.Fault{Service: "slb", Kind: simulator.FaultThrottle, PerSecond: 2})
		looking, stop := context.WithCancel(t.Context())
		defer stop()
		var looks sync.WaitGroup
		for range 8 {
			looks.Go(func() {
				for looking.Err() == nil {
					b.changed(simCLB)
					b.changed(simVGroup)
					_, _ = b.Find(looking, simCLB, ids[0])
					_, _ = b.Find(looking, simVGroup, ids[0])
				}
			})
		}
		time.Sleep(time.Minute)
		began := time.Now()
		all(ids, func(id messages.InstanceID) {
			if _, err := b.Remove(t.Context(), providers.Membership{Balancer: simCLB, Instance: id}); err != nil {
				t.Errorf("remove: %v", err)
			}
		})
		if took := time.Since(began); took > time.Minute {
			t.Errorf("three changes took %v at two calls a second", took)
		}
		stop()
		looks.Wait()
	})
	for action, want := range map[string]int{"RemoveBackendServers": classAnswer, "UpdateServerGroupServersAttribute": classAnswer, "DescribeHealthStatus": classAsking, "RunCommand": classAsking} {
		if got := class(action); got != want {
			t.Errorf("%s is of class %d, want %d", action, got, want)
		}
	}
}

// TestStandardHosts: without endpoints of its own, each product has its host, and HTTPS.
func TestStandardHosts(t *testing.T) {
	t.Parallel()
	dialled := make(chan string)
	ctx, cancel := context.WithCancel(t.Context())
	o := options("http://cloud.test")
	o.Region = "cn-shenzhen"
	o.SLBEndpoint, o.ALBEndpoint, o.NLBEndpoint = "", "", ""
	o.DialContext = func(_ context.Context, _, addr string) (net.Conn, error) {
		select {
		case dialled <- addr:
		case <-ctx.Done():
		}
		return nil, errors.New("no network here")
	}
	b := newBalancers(t, o)
	var finds sync.WaitGroup
	defer finds.Wait()
	defer cancel()
	for _, kind := range []providers.BalancerKind{providers.CLB, providers.ALB, providers.NLB} {
		finds.Go(func() { _, _ = b.Find(ctx, providers.Balancer{Kind: kind}, "i-bp1a") })
	}
	open := map[string]bool{"slb.cn-shenzhen.aliyuncs.com:443": true, "alb.cn-shenzhen.aliyuncs.com:443": true, "nlb.cn-shenzhen.aliyuncs.com:443": true}
	for len(open) > 0 {
		addr := <-dialled
		if !strings.HasSuffix(addr, ".cn-shenzhen.aliyuncs.com:443") {
			t.Fatalf("dialled %s", addr)
		}
		delete(open, addr)
	}
}

// FuzzBalancerAnswers: whatever the balancers answer, from the wire to what the steps are given.
func FuzzBalancerAnswers(f *testing.F) {
	for _, body := range []string{
		`{"RequestId":"1","TotalCount":1,"LoadBalancers":{"LoadBalancer":[{"LoadBalancerId":"lb-1"}]},"VServerGroups":{"VServerGroup":[{"VServerGroupId":"rsp-1","ServerCount":"2"}]},"LoadBalancerId":"lb-1",` +
			`"BackendServers":{"BackendServer":[{"ServerId":"i-1","Port":"80","Weight":100,"ServerHealthStatus":"normal","ListenerPort":80}]}}`,
		`{"RequestId":"1","Listeners":[{"ListenerPort":443,"VServerGroupId":"rsp-1","TCPListenerConfig":{"ConnectionDrain":"on","ConnectionDrainTimeout":99999999999}}]}`,
		`{"RequestId":"1","TotalCount":"2","NextToken":"x","Servers":[{"ServerId":"i-1","ServerGroupId":"sgp-a","Port":80,"Weight":-5,"Status":"Removing"},{"ServerId":"\u0000"}]}`,
		`{"RequestId":"1","ServerGroups":[{"ServerGroupId":"sgp-a","ConnectionDrainConfig":{"ConnectionDrainEnabled":true,"ConnectionDrainTimeout":-1},"RelatedListenerIds":["lsn-1"]}]}`,
		`{"RequestId":"1","ListenerHealthStatus":[{"ServerGroupInfos":[{"ServerGroupId":"sgp-a","NonNormalServers":[{"ServerId":"i-1","Port":80,"Status":"Unhealthy"}]}]}]}`,
		`{"RequestId":"1","Jobs":[{"Id":"j","Status":"Failed","ErrorCode":"\u001b","ErrorMessage":"x\ny"}],"Status":"failed"}`,
		`{"RequestId":"1","ScalingGroups":{"ScalingGroup":[{"ScalingGroupId":"asg-1","LoadBalancerIds":{"LoadBalancerId":["lb-1","\n"]},"AlbServerGroups":{"AlbServerGroup":[{"AlbServerGroupId":"sgp-1"}]}}]}}`,
		`{"RequestId":"1","Servers":7}`, "[[[", "",
	} {
		f.Add(200, []byte(body))
		f.Add(409, []byte(body))
	}
	var mu sync.Mutex
	var status int
	var body []byte
	l := simulator.NewPipeListener()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		w.WriteHeader(status)
		_, _ = w.Write(body)
	})}
	served := make(chan struct{})
	go func() { defer close(served); _ = server.Serve(l) }()
	o := options("http://cloud.test")
	o.DialContext = l.DialContext
	b, err := NewBalancers(o)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { b.Close(); _ = server.Close(); <-served })
	f.Fuzz(func(t *testing.T, s int, text []byte) {
		if s < 200 || s > 599 {
			t.Skip()
		}
		mu.Lock()
		status, body = s, text
		mu.Unlock()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer cancel()
		told := func(err error) {
			if !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, providers.ErrChangeFailed) && !errors.Is(err, providers.ErrBusy) {
				wantTold(t, err)
			}
		}
		known := func(ms []providers.Membership) {
			for _, m := range ms {
				if identifier(m.ID) == "" || m.State == "" {
					t.Errorf("membership %+v", m)
				}
			}
		}
		atOnce([]func(){
			func() { _, err := b.listBalancers(ctx, struct{}{}); told(err) },
			func() { _, err := b.listVGroups(ctx, "lb-1"); told(err) },
			func() { g, err := b.listBackends(ctx, simVGroup); told(err); known(g.members) },
			func() {
				all, err := b.listListeners(ctx, "lb-1")
				told(err)
				for _, l := range all {
					if l.draining < 0 || l.draining > maxDraining {
						t.Errorf("draining %v", l.draining)
					}
				}
			},
			func() { _, err := b.listCLBHealth(ctx, "lb-1"); told(err) },
			func() {
				for _, a := range b.findServers(ctx, providers.Balancer{Kind: providers.ALB}, []messages.InstanceID{"i-1"}) {
					told(a.Err)
					known(a.Value)
				}
			},
			func() {
				s, err := b.readSettings(ctx, simALB)
				told(err)
				if s.draining < 0 || s.draining > maxDraining {
					t.Errorf("draining %v", s.draining)
				}
			},
			func() { _, err := b.listenerHealth(ctx, providers.NLB, "lsn-1"); told(err) },
			func() { told(b.job(ctx, providers.Change{Balancer: simALB, ID: "j"})) },
			func() {
				attached, err := b.listAttached(ctx, "asg-1")
				told(err)
				for _, a := range attached {
					if identifier(a.ID) == "" {
						t.Errorf("attached %+v", a)
					}
				}
			},
		})
	})
}
