package simulator

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// oneBalancer has n instances, on port 8080, in server group sgp of one balancer, which
// only its API manages.
func oneBalancer(n int, kind string, edit func(*BalancerConfig)) Scenario {
	sc := oneGroup(n)
	b := BalancerConfig{ID: "lb", Type: kind, ServerGroups: []ServerGroupConfig{{ID: "sgp"}}, HealthCheck: HealthCheck{Interval: 20 * time.Millisecond, Timeout: 10 * time.Second}}
	if kind == typeCLB {
		b.Listeners = []ListenerConfig{{Port: 80, Protocol: protocolHTTP, ServerGroup: "sgp"}}
	}
	if edit != nil {
		edit(&b)
	}
	sc.Balancers = []BalancerConfig{b}
	sc.ScalingGroups[0].Balancers = nil
	sc.ScalingGroups[0].ServerGroups = []MembershipConfig{{ID: "sgp", Ports: []int{8080}, Unattached: true}}
	return sc
}

// remove takes an instance out of an ALB or NLB server group sgp by its API.
func (w *world) remove(version, id string) {
	w.t.Helper()
	pairs := []string{"ServerGroupId", "sgp", "Servers.1.ServerId", id, "Servers.1.ServerType", "Ecs", "Servers.1.Port", "8080"}
	if version == albVersion {
		w.call(version, "RemoveServersFromServerGroup", pairs...)
	} else if r, err := w.nlb("RemoveServersFromServerGroup", pairs...); err != nil || r.status != 200 {
		w.t.Fatalf("remove: %v, %v", r, err)
	}
}

// member is where an instance stands in the one balancer, gone or not.
func (w *world) member(id string) MemberState {
	w.t.Helper()
	lb, _ := w.State().Balancer("lb")
	for _, m := range lb.Members {
		if m.Instance == id {
			return m
		}
	}
	w.t.Fatalf("%s is no member", id)
	return MemberState{}
}

func TestTrafficFollowsWeights(t *testing.T) {
	t.Parallel()
	w, c := start(t, Options{Scenario: oneBalancer(3, typeCLB, nil)}), user(t)
	g, _ := w.State().Group("asg-1")
	want := map[string]int{}
	servers := ""
	for i, weight := range []int{30, 10, 0} {
		want[g.Instances[i].ID] = weight
		servers += fmt.Sprintf(`,{"ServerId":%q,"Port":8080,"Weight":%d}`, g.Instances[i].ID, weight)
	}
	w.call(slbVersion, "SetVServerGroupAttribute", "VServerGroupId", "sgp", "BackendServers", "["+servers[1:]+"]")
	seen := map[string]int{}
	for range 40 {
		if status, id := w.fetch(c, "/"); status == 200 {
			seen[id]++
		}
	}
	for id, n := range want {
		if m := w.member(id); seen[id] != n || m.Weight != n || m.InService != (n > 0) || !m.Healthy {
			t.Errorf("%s: %d requests of 40, want %d: %+v", id, seen[id], n, m)
		}
	}
}

// A server that is being removed gets no new request; the one in flight ends.
func TestTrafficWhileRemoving(t *testing.T) {
	t.Parallel()
	w, c := start(t, Options{Scenario: oneBalancer(2, typeALB, func(b *BalancerConfig) { b.JobDuration = time.Hour })}), user(t)
	ctx, cancel := context.WithCancel(t.Context())
	var slow sync.WaitGroup
	defer slow.Wait()
	defer cancel()
	lb, _ := w.State().Balancer("lb")
	for range 2 { // one for each of the two
		slow.Go(func() {
			req, err := http.NewRequestWithContext(ctx, "GET", "http://"+lb.Address+"/slow?ms=100000", nil)
			if err != nil {
				t.Error(err)
			} else if res, err := c.Do(req); err == nil {
				t.Errorf("a request in flight ended with %d", res.StatusCode)
				res.Body.Close()
			}
		})
	}
	id := w.firstInstance().ID
	until(t, "a request in flight on each", func() bool {
		lb, _ := w.State().Balancer("lb")
		return lb.Members[0].InFlight == 1 && lb.Members[1].InFlight == 1
	})
	w.remove(albVersion, id)
	for range 10 {
		if status, instance := w.fetch(c, "/"); status != 200 || instance == id {
			t.Fatalf("status %d from %s while %s is being removed", status, instance, id)
		}
	}
	if m := w.member(id); m.Status != "Removing" || m.InService || !m.Draining || m.InFlight != 1 || m.Left != nil {
		t.Errorf("member %+v", m)
	}
	cancel()
	until(t, "it has drained", func() bool { return !w.member(id).Draining })
}

func TestTrafficIsCutAfterDraining(t *testing.T) {
	t.Parallel()
	w, c := start(t, Options{Scenario: oneBalancer(1, typeALB, func(b *BalancerConfig) {
		b.ConnectionDrainTimeout, b.JobDuration, b.DrainInJob = 200*time.Millisecond, time.Millisecond, true
	})}), user(t)
	status := make(chan int, 1)
	go func() {
		s, _ := w.fetch(c, "/slow?ms=20000")
		status <- s
	}()
	id := w.firstInstance().ID
	until(t, "a request in flight", func() bool { return w.member(id).InFlight == 1 })
	from := time.Now()
	w.remove(albVersion, id)
	if s := <-status; s != 502 || time.Since(from) < 200*time.Millisecond {
		t.Errorf("status %d after %v, want 502 after 200ms", s, time.Since(from))
	}
	until(t, "the job ends", func() bool { return w.member(id).Left != nil })
	if d := w.member(id).Left.Sub(from); d < 200*time.Millisecond {
		t.Errorf("the job ended after %v, before the draining", d)
	}
}

// line asks for a path over a connection that stays open and gives the instance that answers.
func line(t *testing.T, conn net.Conn, path string) string {
	t.Helper()
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	res.Body.Close()
	return res.Header.Get("X-Instance-Id")
}

func (w *world) dial() net.Conn {
	w.t.Helper()
	lb, _ := w.State().Balancer("lb")
	conn, err := net.Dial("tcp", lb.Address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

// Over NLB a connection stays with its server, whatever becomes of that server's weight
// and membership, until the drain timeout or for ever.
func TestConnectionsOutliveTheirServersMembership(t *testing.T) {
	t.Parallel()
	for _, drain := range []time.Duration{0, 150 * time.Millisecond} {
		w := start(t, Options{Scenario: oneBalancer(2, typeNLB, func(b *BalancerConfig) {
			b.ConnectionDrainTimeout, b.JobDuration = drain, time.Millisecond
		})})
		conn := w.dial()
		id := line(t, conn, "/")
		if r, err := w.nlb("UpdateServerGroupServersAttribute", "ServerGroupId", "sgp", "Servers.1.ServerId", id, "Servers.1.ServerType", "Ecs", "Servers.1.Port", "8080", "Servers.1.Weight", "0"); err != nil || r.status != 200 {
			t.Fatalf("weight: %v, %v", r, err)
		}
		until(t, "weight 0", func() bool { return w.member(id).Weight == 0 && w.member(id).Status == "Available" })
		if got := line(t, conn, "/"); got != id {
			t.Errorf("with weight 0 the connection leads to %s, not %s", got, id)
		}
		for range 4 {
			if got := line(t, w.dial(), "/"); got == id {
				t.Errorf("a new connection leads to %s, whose weight is 0", id)
			}
		}
		from := time.Now()
		w.remove(nlbVersion, id)
		if drain == 0 {
			until(t, "it has left", func() bool { return w.member(id).Left != nil })
			if got := line(t, conn, "/"); got != id || !w.member(id).Draining {
				t.Errorf("after the removal the connection leads to %s: %+v", got, w.member(id))
			}
			continue
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil || time.Since(from) < drain {
			t.Errorf("cut after %v: %v", time.Since(from), err)
		}
	}
}

// A connection ends when its server does, and with the simulator at the latest.
func TestConnectionEndsWithItsServer(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneBalancer(2, typeNLB, nil)})
	first, second := w.dial(), w.dial()
	old := line(t, first, "/")
	line(t, second, "/")
	if old != w.firstInstance().ID {
		first, second = second, first
	}
	if _, err := w.ScaleIn("asg-1", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := first.Read(make([]byte, 1)); err == nil {
		t.Error("the connection to the released instance lives")
	}
	if got := line(t, second, "/"); got != w.firstInstance().ID {
		t.Errorf("the other connection leads to %s", got)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := second.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives the simulator")
	}
}

// Servers come and go by the API while traffic flows: as long as one of them stays, no
// request is lost.
func TestChurnCostsNoRequest(t *testing.T) {
	t.Parallel()
	w, c := start(t, Options{Scenario: oneBalancer(4, typeALB, func(b *BalancerConfig) { b.JobDuration = time.Millisecond })}), user(t)
	g, _ := w.State().Group("asg-1")
	var all sync.WaitGroup
	for i, in := range g.Instances[1:] {
		all.Go(func() {
			at := []string{"ServerGroupId", "sgp", "Servers.1.ServerId", in.ID, "Servers.1.ServerType", "Ecs", "Servers.1.Port", "8080", "Servers.1.Weight", fmt.Sprint(10 * i)}
			for n := range 60 {
				action := []string{"RemoveServersFromServerGroup", "AddServersToServerGroup", "UpdateServerGroupServersAttribute"}[n%3]
				if _, err := w.rpc("POST", albVersion, action, at...); err != nil { // refused while another's job runs
					t.Errorf("%s: %v", action, err)
				}
			}
		})
	}
	for range 2 {
		all.Go(func() {
			for range 100 {
				if status, id := w.fetch(c, "/"); status != 200 {
					t.Errorf("status %d from %q", status, id)
				}
			}
		})
	}
	all.Wait()
	until(t, "the last job is done", func() bool { return w.State().Balancers[0].ServerGroups[0].Status == "Available" })
	listed := flat(t, w.call(albVersion, "ListServerGroupServers", "ServerGroupId", "sgp"), "Servers")
	for _, m := range w.State().Balancers[0].Members {
		if there := brief(listed, m.Instance) != ""; m.Left == nil && !there {
			t.Errorf("%+v is a member, and not listed", m)
		}
	}
	if lb := w.counted("lb", 200); lb.Failed != 0 {
		t.Errorf("served %d, failed %d", lb.Served, lb.Failed)
	}
}

// A server that fails its checks gets no new request, and the connections it has are cut
// after the drain timeout.
func TestUnhealthyServerDrains(t *testing.T) {
	t.Parallel()
	w := start(t, Options{Scenario: oneBalancer(2, typeNLB, func(b *BalancerConfig) { b.ConnectionDrainTimeout = 100 * time.Millisecond })})
	conn := w.dial()
	id := line(t, conn, "/")
	if r := w.control("POST", "/simulator/instances/"+id+"/health", `{"healthy": false}`); r.status != 204 {
		t.Fatalf("control: %v", r)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("not cut")
	}
	for range 4 {
		if got := line(t, w.dial(), "/"); got == id {
			t.Error("a sick server gets a new connection")
		}
	}
	if r := w.control("POST", "/simulator/instances/"+id+"/health", `{"healthy": true}`); r.status != 204 {
		t.Fatalf("control: %v", r)
	}
	until(t, "well again", func() bool { return w.member(id).Healthy })
}

// A server that was added gets requests when the job is done and a check has passed, not
// before.
func TestAddedServerServes(t *testing.T) {
	t.Parallel()
	for _, job := range []time.Duration{time.Hour, time.Millisecond} {
		w, c := start(t, Options{Scenario: oneBalancer(0, typeALB, func(b *BalancerConfig) { b.JobDuration = job })}), user(t)
		if _, err := w.ScaleOut("asg-1", 1); err != nil {
			t.Fatal(err)
		}
		id := w.firstInstance().ID
		w.call(albVersion, "AddServersToServerGroup", "ServerGroupId", "sgp", "Servers.1.ServerId", id, "Servers.1.ServerType", "Ecs", "Servers.1.Port", "8080")
		until(t, "a check has passed", func() bool { return w.member(id).Healthy })
		if job == time.Millisecond {
			until(t, "it serves", func() bool { status, _ := w.fetch(c, "/"); return status == 200 })
		} else if status, _ := w.fetch(c, "/"); status != 503 {
			t.Errorf("status %d while it is added, want 503", status)
		}
	}
}

// A balancer that cannot listen is told of, and nothing of it is left running.
func TestBalancerThatCannotListen(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	sc := oneBalancer(1, typeCLB, func(b *BalancerConfig) {
		b.Listeners = append(b.Listeners, ListenerConfig{Port: 81, Listen: taken.Addr().String()})
	})
	if _, err := New(Options{AccessKeyID: testKey, AccessKeySecret: testSecret, Scenario: sc}); err == nil || !strings.Contains(err.Error(), "balancer lb") {
		t.Errorf("%v", err)
	}
}
