package alibaba

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

const (
	allOfCLB = "clb-vserver-group:rsp-1/8443=100 joined, clb-vserver-group:rsp-1/9443=100 joined, clb:lb-1/0=100 joined"
)

// TestFindDoubtsEmptyLists: one empty answer of a service in trouble hides no membership, and
// those who look at the same time share the second look.
func TestFindDoubtsEmptyLists(t *testing.T) {
	for _, action := range []string{"DescribeLoadBalancerAttribute", "DescribeVServerGroups", "DescribeVServerGroupAttribute"} {
		t.Run(action, func(t *testing.T) {
			inBalancedCloud(t, 20, 0, func(t *testing.T, c *cloud, b *Balancers) {
				c.inject(t, simulator.Fault{Service: "slb", Action: action, Kind: simulator.FaultEmpty, Count: 1})
				all(c.members(simGroup), func(id messages.InstanceID) {
					if found, err := b.Find(t.Context(), providers.Balancer{Kind: providers.CLB}, id); err != nil || texts(found) != allOfCLB {
						t.Errorf("%s: %s, %v", id, texts(found), err)
					}
				})
				if n := c.sim.State().APICalls["slb."+action]; n != 2 {
					t.Errorf("%d calls, want the empty one and one more", n)
				}
			})
		})
	}
}

// TestFindSeesWhatOthersAdded: what another process or ESS has added shows in all of CLB after
// seconds, and what this process has added at once, to a group that was empty, too.
func TestFindSeesWhatOthersAdded(t *testing.T) {
	inBalancedCloud(t, 2, 0, func(t *testing.T, c *cloud, b *Balancers) {
		all, id, in := providers.Balancer{Kind: providers.CLB}, c.members("asg-others")[0], c.members(simGroup)
		find := func(want string) {
			t.Helper()
			if found, err := b.Find(t.Context(), all, id); err != nil || texts(found) != want {
				t.Errorf("%s, want %s, %v", texts(found), want, err)
			}
		}
		find("")
		other := newBalancers(t, c.options)
		if _, err := other.Add(t.Context(), providers.Membership{Balancer: simCLB, Instance: id, Weight: 10}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * time.Second)
		find("clb:lb-1/0=10 joined")

		for _, port := range []int{8443, 9443} {
			for _, in := range in {
				if _, err := b.Remove(t.Context(), providers.Membership{Balancer: simVGroup, Instance: in, Port: port}); err != nil {
					t.Fatal(err)
				}
			}
		}
		find("clb:lb-1/0=10 joined") // a list of virtual groups without members
		if _, err := b.Add(t.Context(), providers.Membership{Balancer: simVGroup, Instance: id, Port: 80, Weight: 10}); err != nil {
			t.Fatal(err)
		}
		find("clb-vserver-group:rsp-1/80=10 joined, clb:lb-1/0=10 joined")
	})
}

// healths are those of the members of the scaling group, in its order, at their first port.
func (c *cloud) healths(t *testing.T, b *Balancers, of providers.Balancer) (out []providers.Health) {
	t.Helper()
	members, err := b.Members(t.Context(), of)
	if err != nil {
		t.Fatalf("%s: %v", of, err)
	}
	for _, id := range c.members(simGroup) {
		i := slices.IndexFunc(members, func(m providers.Member) bool { return m.Instance == id })
		if i < 0 {
			t.Fatalf("%s does not list %s", of, id)
		}
		out = append(out, members[i].Health)
	}
	return out
}

// TestHealthInTrouble: one empty answer does not make all members healthy or the group gone,
// nor does a listener that is not there any more.
func TestHealthInTrouble(t *testing.T) {
	for name, row := range map[string]struct {
		of    providers.Balancer
		fault simulator.Fault
	}{
		"no health":            {simCLB, simulator.Fault{Service: "slb", Action: "DescribeHealthStatus", Kind: simulator.FaultEmpty}},
		"no health of a group": {simVGroup, simulator.Fault{Service: "slb", Action: "DescribeHealthStatus", Kind: simulator.FaultEmpty}},
		"listener gone":        {simALB, simulator.Fault{Service: "alb", Action: "GetListenerHealthStatus", Kind: simulator.FaultError, Code: "ResourceNotFound.Listener", Status: 404}},
		"no listeners":         {simNLB, simulator.Fault{Service: "nlb", Action: "ListListeners", Kind: simulator.FaultEmpty}},
	} {
		t.Run(name, func(t *testing.T) {
			inBalancedCloud(t, 2, 0, func(t *testing.T, c *cloud, b *Balancers) {
				if err := c.sim.SetHealth(string(c.members(simGroup)[0]), false); err != nil {
					t.Fatal(err)
				}
				time.Sleep(10 * time.Second)
				row.fault.Count = 1
				c.inject(t, row.fault)
				if got := c.healths(t, b, row.of); !slices.Equal(got, []providers.Health{providers.Unhealthy, providers.Healthy}) {
					t.Errorf("after one: %v", got)
				}
				time.Sleep(10 * time.Second)
				row.fault.Count = 0
				c.inject(t, row.fault)
				if got := c.healths(t, b, row.of); !slices.Equal(got, []providers.Health{providers.HealthUnknown, providers.HealthUnknown}) {
					t.Errorf("nothing is known: %v", got)
				}
			})
		})
	}
}

// TestGroupNotListed: that ListServerGroups leaves a group out is believed when it comes
// twice, or when the group's members are refused, too.
func TestGroupNotListed(t *testing.T) {
	inBalancedCloud(t, 2, 0, func(t *testing.T, c *cloud, b *Balancers) {
		for _, of := range []providers.Balancer{simALB, simNLB} {
			c.inject(t, simulator.Fault{Service: string(of.Kind), Action: "ListServerGroups", Kind: simulator.FaultEmpty, Count: 4})
			_, err := b.Draining(t.Context(), of)
			wantKind(t, err, providers.ErrUnavailable)
			_, err = b.Draining(t.Context(), of)
			wantKind(t, err, providers.ErrNotFound)
			time.Sleep(2 * settingsAge)
			_, err = b.Members(t.Context(), of)
			wantKind(t, err, providers.ErrUnavailable)
			gone := providers.Balancer{Kind: of.Kind, ID: "sgp-none"}
			_, err = b.Draining(t.Context(), gone)
			wantKind(t, err, providers.ErrNotFound)
			if got := c.healths(t, b, of); !slices.Equal(got, []providers.Health{providers.Healthy, providers.Healthy}) {
				t.Errorf("%s: %v", of, got)
			}
			c.inject(t, simulator.Fault{Service: string(of.Kind), Action: "ListServerGroups", Kind: simulator.FaultEmpty, Count: 1})
			time.Sleep(2 * settingsAge)
			_, err = b.Draining(t.Context(), of)
			wantKind(t, err, providers.ErrUnavailable)
		}
	})
}

// TestCallerLeavesItsBatch: what a caller gave up before the batch was sent is not done,
// unless another caller wants the same.
func TestCallerLeavesItsBatch(t *testing.T) {
	inBalancedCloud(t, 3, 0, func(t *testing.T, c *cloud, b *Balancers) {
		ids := c.members(simGroup)
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		remove := func(ctx context.Context, id messages.InstanceID, want error) func() {
			return func() {
				if _, err := b.Remove(ctx, providers.Membership{Balancer: simNLB, Instance: id, Port: 8080}); !errors.Is(err, want) {
					t.Errorf("remove %s: %v", id, err)
				}
			}
		}
		atOnce([]func(){
			remove(short, ids[0], context.DeadlineExceeded), // alone
			remove(short, ids[1], context.DeadlineExceeded), remove(t.Context(), ids[1], nil),
			remove(t.Context(), ids[2], nil),
		})
		time.Sleep(5 * time.Second)
		for i, want := range []string{"nlb:sgp-n/8080=50 joined", "", ""} {
			if found, err := b.Find(t.Context(), simNLB, ids[i]); err != nil || texts(found) != want {
				t.Errorf("instance %d: %s, %v", i, texts(found), err)
			}
		}
	})
}

// TestTroubleKeepsNoTurn: a change that the balancer refuses for half an hour does not keep
// another kind of change from it.
func TestTroubleKeepsNoTurn(t *testing.T) {
	inBalancedCloud(t, 2, 0, func(t *testing.T, c *cloud, b *Balancers) {
		c.inject(t, simulator.Fault{Service: "alb", Action: "AddServersToServerGroup", Kind: simulator.Fault5xx})
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
		defer cancel()
		began := time.Now()
		var added sync.WaitGroup
		added.Go(func() {
			_, err := b.Add(ctx, providers.Membership{Balancer: simALB, Instance: c.members("asg-others")[0], Port: 8080, Weight: 1})
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("add: %v", err)
			}
		})
		time.Sleep(time.Second)
		for _, id := range c.members(simGroup) {
			if _, err := b.Remove(t.Context(), providers.Membership{Balancer: simALB, Instance: id, Port: 8080}); err != nil {
				t.Errorf("remove: %v", err)
			}
		}
		if took := time.Since(began); took > 5*time.Minute {
			t.Errorf("two removals waited %v", took)
		}
		added.Wait()
		if took := time.Since(began); took < 30*time.Minute {
			t.Errorf("the addition gave up after %v", took)
		}
	})
}

// TestHealthIsNoOlderThanMembership: a member that was just added is not healthy because a
// list from before it names only others, or names it from an earlier membership.
func TestHealthIsNoOlderThanMembership(t *testing.T) {
	inBalancedCloud(t, 2, 0, func(t *testing.T, c *cloud, b *Balancers) {
		id := c.members(simGroup)[0]
		time.Sleep(10 * time.Second)
		for _, of := range []providers.Balancer{simALB, simNLB, simVGroup, simCLB} {
			m := providers.Membership{Balancer: of, Instance: id, Weight: 10}
			switch of {
			case simVGroup:
				m.Port = 9443
			case simALB, simNLB:
				m.Port = 8080
			}
			health := func() providers.Health {
				t.Helper()
				members, err := b.Members(t.Context(), of)
				if err != nil {
					t.Fatal(err)
				}
				for _, has := range members {
					if has.Instance == id && has.Port == m.Port {
						return has.Health
					}
				}
				return "not listed"
			}
			_ = health()
			if _, err := b.Remove(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			for range 20 { // however long the jobs take
				_ = health()
				time.Sleep(130 * time.Millisecond)
			}
			if _, err := b.Add(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			for range 10 {
				if h := health(); h == providers.Healthy {
					t.Errorf("%s: healthy, and no check has run yet", of)
				}
				time.Sleep(130 * time.Millisecond)
			}
			if time.Sleep(time.Minute); health() != providers.Healthy {
				t.Errorf("%s: %s after a minute", of, health())
			}
		}
	})
}

// TestZonesLeftOut: an instance that DescribeInstances leaves out is asked for again.
func TestZonesLeftOut(t *testing.T) {
	inBalancedCloud(t, 2, 0, func(t *testing.T, c *cloud, b *Balancers) {
		zones := func() string {
			members, err := b.Members(t.Context(), simALB)
			if err != nil {
				t.Fatal(err)
			}
			var all []string
			for _, m := range members {
				all = append(all, m.Zone)
			}
			slices.Sort(all)
			return strings.Join(slices.Compact(all), " ")
		}
		c.inject(t, simulator.Fault{Service: "ecs", Action: "DescribeInstances", Kind: simulator.FaultEmpty, Count: 2})
		if got := zones(); got != "" {
			t.Errorf("zones %q of no answer", got)
		}
		c.inject(t, simulator.Fault{Service: "ecs", Action: "DescribeInstances", Kind: simulator.FaultEmpty, Count: 1})
		for range 2 {
			if got := zones(); got != "cn-shenzhen-a cn-shenzhen-b" {
				t.Errorf("zones %q", got)
			}
		}
		if n := c.sim.State().APICalls["ecs.DescribeInstances"]; n != 4 {
			t.Errorf("%d calls, want two pairs", n)
		}
	})
}

// TestHealthByListener: rows of another group's listener, and those of a listener without
// checks, make no member worse. In a group for all ports, a server is what is said of any port.
func TestHealthByListener(t *testing.T) {
	row := func(server, status string, port, listener int) string {
		return fmt.Sprintf(`{"ServerId":%q,"Port":%d,"ListenerPort":%d,"Protocol":"tcp","ServerHealthStatus":%q}`, server, port, listener, status)
	}
	server := loopback(t, func(x seen) string {
		switch action := x.params().Get("Action"); action {
		case "DescribeLoadBalancerAttribute":
			return rpcOK(`,"BackendServers":{"BackendServer":[{"ServerId":"i-1","Weight":1},{"ServerId":"i-2","Weight":1},{"ServerId":"i-3","Weight":1},{"ServerId":"i-4","Weight":1}]}`)
		case "DescribeLoadBalancerListeners":
			return rpcOK(`,"Listeners":[{"ListenerPort":80,"ListenerProtocol":"udp","UDPListenerConfig":{"HealthCheckSwitch":"off"}},{"ListenerPort":80,"ListenerProtocol":"tcp"},` +
				`{"ListenerPort":81,"ListenerProtocol":"tcp","VServerGroupId":"rsp-1"},{"ListenerPort":82,"ListenerProtocol":"tcp","TCPListenerConfig":{"HealthCheck":"off"}}]`)
		case "DescribeHealthStatus":
			return rpcOK(`,"BackendServers":{"BackendServer":[` + strings.Join([]string{
				row("i-1", "normal", 8080, 80), row("i-1", "abnormal", 9090, 81), row("i-1", "unavailable", 8080, 82),
				row("i-2", "abnormal", 8080, 80), row("i-2", "normal", 9090, 81),
				row("i-3", "abnormal", 9090, 81), row("i-4", "unavailable", 8080, 82),
			}, ",") + `]}`)
		case "ListServerGroupServers":
			return rpcOK(`,"Servers":[{"ServerId":"i-1","ServerGroupId":"sgp-n","Port":0,"Status":"Available"},{"ServerId":"i-2","ServerGroupId":"sgp-n","Port":0,"Status":"Available"}]`)
		case "ListServerGroups":
			return rpcOK(`,"ServerGroups":[{"ServerGroupId":"sgp-n","CrossZoneEnabled":true,"RelatedLoadBalancerIds":["nlb-1"]}]`)
		case "ListListeners":
			return rpcOK(`,"Listeners":[{"ListenerId":"lsn-1","ServerGroupId":"sgp-n"}]`)
		case "GetListenerHealthStatus":
			return rpcOK(`,"ListenerHealthStatus":[{"ServerGroupInfos":[{"ServerGroupId":"sgp-n","NonNormalServers":[{"Port":1,"Status":"Unhealthy"},{"ServerId":"i-2","Port":8080,"Status":"Unhealthy"}]}]}]`)
		default:
			return rpcRefusal(400, "InvalidAction", action)
		}
	})
	b := newBalancers(t, options(server.url()))
	for of, want := range map[providers.Balancer][]providers.Health{
		simCLB: {providers.Healthy, providers.Unhealthy, providers.Unhealthy, providers.HealthUnknown},
		simNLB: {providers.Healthy, providers.Unhealthy},
	} {
		members, err := b.Members(t.Context(), of)
		var got []providers.Health
		for _, m := range members {
			got = append(got, m.Health)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", of, got, err)
		}
	}
}

// TestDeniedServer: where RAM names instances, those that it denies keep none of the others
// in; where it denies them all, that costs few calls.
func TestDeniedServer(t *testing.T) {
	denied := func(servers ...string) *scripted {
		return loopback(t, func(x seen) string {
			for name, value := range x.params() {
				if strings.HasSuffix(name, ".ServerId") && (len(servers) == 0 || slices.Contains(servers, value[0])) {
					return rpcRefusal(403, "Forbidden.NoPermission", "You are not authorized.")
				}
			}
			return rpcOK(`,"JobId":"job-1"`)
		})
	}
	var ids []messages.InstanceID
	for i := range 200 {
		ids = append(ids, messages.InstanceID(fmt.Sprintf("i-%03d", i)))
	}
	for name, row := range map[string]struct {
		server *scripted
		refuse []messages.InstanceID
	}{
		"two": {denied("i-007", "i-123"), []messages.InstanceID{"i-007", "i-123"}},
		"all": {denied(), ids},
	} {
		b := newBalancers(t, options(row.server.url()))
		var ms []providers.Membership
		for _, id := range ids {
			ms = append(ms, providers.Membership{Balancer: simALB, Instance: id, Port: 8080})
		}
		for m, got := range b.apply(t.Context(), changeOf{simALB, removing}, ms) {
			if slices.Contains(row.refuse, m.Instance) != errors.Is(got.Err, providers.ErrDenied) || !errors.Is(got.Err, providers.ErrDenied) && got.Err != nil {
				t.Errorf("%s: %s: %v", name, m.Instance, got.Err)
			}
		}
		if n := len(row.server.requests()); n > 1+2*mostSplits {
			t.Errorf("%s: %d calls", name, n)
		}
	}
}
