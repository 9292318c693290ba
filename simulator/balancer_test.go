package simulator

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// client is a user of the balancer. It fetches a path and gives the status, 0 when
// there was no answer or a cut one, and the instance that answered.
func (w *world) fetch(client *http.Client, path string) (status int, instance string) {
	lb, _ := w.State().Balancer("lb")
	res, err := client.Get("http://" + lb.Address + path)
	if err != nil {
		return 0, ""
	}
	defer res.Body.Close()
	if _, err := io.ReadAll(res.Body); err != nil {
		return 0, ""
	}
	return res.StatusCode, res.Header.Get("X-Instance-Id")
}

func user(t *testing.T) *http.Client {
	transport := &http.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// until waits for a condition that a health check brings about.
func until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	limit := time.Now().Add(time.Minute)
	for !holds() {
		if time.Now().After(limit) {
			t.Fatalf("not within a minute: %s", what)
		}
		tick := time.NewTimer(5 * time.Millisecond)
		<-tick.C
	}
}

// counted gives a balancer's state once it has counted so many requests: the last answer
// reaches its client a moment before it is counted.
func (w *world) counted(id string, requests int) BalancerState {
	w.t.Helper()
	var lb BalancerState
	until(w.t, fmt.Sprintf("%s has counted %d requests", id, requests), func() bool {
		lb, _ = w.State().Balancer(id)
		return lb.Served+lb.Failed >= int64(requests)
	})
	return lb
}

func fast(n int, hooks ...HookConfig) Scenario {
	sc := oneGroup(n, hooks...)
	sc.Balancers[0].HealthCheck = HealthCheck{Interval: 20 * time.Millisecond}
	return sc
}

func TestBalancerGoesRound(t *testing.T) {
	t.Parallel()
	w, c := start(t, Options{Scenario: fast(3)}), user(t)
	seen := map[string]int{}
	for range 30 {
		status, instance := w.fetch(c, "/")
		if status != 200 {
			t.Fatalf("status %d", status)
		}
		seen[instance]++
	}
	lb := w.counted("lb", 30)
	if len(seen) != 3 || lb.Served != 30 || lb.Failed != 0 {
		t.Errorf("instances %v, balancer %+v", seen, lb)
	}
	for _, m := range lb.Members {
		if m.Served != 10 || seen[m.Instance] != 10 {
			t.Errorf("member %+v, seen %v", m, seen)
		}
	}
}

// TestScaleInWithoutADrain shows what the product is for: what is in flight when
// the machine stops is cut, and counted as the client saw it.
func TestScaleInWithoutADrain(t *testing.T) {
	t.Parallel()
	w, c := start(t, Options{Scenario: fast(1)}), user(t)
	in := w.firstInstance()
	lb, _ := w.State().Balancer("lb")
	download, err := c.Get("http://" + lb.Address + "/download?kb=1024&ms=20000") // its head is here, its body is not
	if err != nil {
		t.Fatal(err)
	}
	defer download.Body.Close()
	slow := make(chan int, 1)
	go func() {
		status, _ := w.fetch(c, "/slow?ms=20000")
		slow <- status
	}()
	until(t, "two requests in flight", func() bool { return w.inFlight(in.ID) == 2 })
	if _, err := w.ScaleIn("asg-1", 1); err != nil {
		t.Fatal(err)
	}
	if status := <-slow; status != 502 {
		t.Errorf("the slow request got %d, want 502", status)
	}
	if n, err := io.Copy(io.Discard, download.Body); err == nil {
		t.Errorf("the download was not cut: %d bytes", n)
	}
	until(t, "both are counted", func() bool { lb, _ := w.State().Balancer("lb"); return lb.Failed == 2 })
	if status, _ := w.fetch(c, "/"); status != 503 {
		t.Errorf("with no instance left: status %d, want 503", status)
	}
	if conn, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", in.Address, in.Port), time.Second); err == nil {
		conn.Close()
		t.Error("the released instance still listens")
	}
}

func (w *world) inFlight(instance string) int {
	lb, _ := w.State().Balancer("lb")
	for _, m := range lb.Members {
		if m.Instance == instance {
			return m.InFlight
		}
	}
	return 0
}

// TestScaleInWithAHook: requests in flight go on while the hook waits, new ones go
// elsewhere, and idle connections are gone.
func TestScaleInWithAHook(t *testing.T) {
	t.Parallel()
	w, c := start(t, Options{Scenario: fast(2, hookIn("ash-1", ""))}), user(t)
	for range 4 { // leaves an idle connection to each
		w.fetch(c, "/")
	}
	in := w.firstInstance()
	type answer struct {
		status   int
		instance string
	}
	slow := make(chan answer, 2)
	for range 2 { // one for each of the two instances
		go func() {
			status, instance := w.fetch(c, "/slow?ms=400")
			slow <- answer{status, instance}
		}()
	}
	until(t, "a request in flight", func() bool { return w.inFlight(in.ID) == 1 })
	act, err := w.ScaleIn("asg-1", 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if status, instance := w.fetch(c, "/"); status != 200 || instance == in.ID {
			t.Fatalf("status %d from %s while %s is being removed", status, instance, in.ID)
		}
	}
	for range 2 {
		if a := <-slow; a.status != 200 {
			t.Errorf("a request in flight ended with %d", a.status)
		}
	}
	res, err := c.Get(fmt.Sprintf("http://%s:%d/in_flight", in.Address, in.Port))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if strings.TrimSpace(string(b)) != `{"in_flight":0}` {
		t.Errorf("in flight: %s", b)
	}
	w.complete("ash-1", act.Tokens[0], "CONTINUE")
	if lb, _ := w.State().Balancer("lb"); lb.Failed != 0 {
		t.Errorf("balancer %+v, want no failure", lb)
	}
}

func TestHealthChecksAndRollback(t *testing.T) {
	t.Parallel()
	w, c := start(t, Options{Scenario: fast(2, hookIn("ash-1", ""))}), user(t)
	in := w.firstInstance()
	healthy := func() bool {
		lb, _ := w.State().Balancer("lb")
		for _, m := range lb.Members {
			if m.Instance == in.ID && m.InService {
				return m.Healthy
			}
		}
		return false
	}
	put := func(way string) {
		req, _ := http.NewRequest("PUT", fmt.Sprintf("http://%s:%d/actuator/health/%s", in.Address, in.Port, way), nil)
		res, err := c.Do(req)
		if err != nil || res.StatusCode != 204 {
			t.Fatalf("PUT %s: %v, %v", way, res, err)
		}
		res.Body.Close()
	}
	put("down")
	until(t, "out of rotation", func() bool { return !healthy() })
	for range 4 {
		if status, instance := w.fetch(c, "/"); status != 200 || instance == in.ID {
			t.Errorf("status %d from %s", status, instance)
		}
	}
	put("up")
	until(t, "back in rotation", healthy)
	act, _ := w.ScaleIn("asg-1", 1)
	if healthy() {
		t.Error("still in the balancer")
	}
	w.complete("ash-1", act.Tokens[0], "ROLLBACK")
	until(t, "back after the rollback", healthy)
	if got := w.states("asg-1"); got != "InService InService" {
		t.Errorf("states %s", got)
	}
}

func TestScaleOutJoinsAfterItsHook(t *testing.T) {
	t.Parallel()
	w, c := start(t, Options{Scenario: fast(0, HookConfig{ID: "ash-1", Transition: scaleOut})}), user(t)
	act, err := w.ScaleOut("asg-1", 1)
	if err != nil {
		t.Fatal(err)
	}
	in := w.firstInstance()
	if res, err := c.Get(fmt.Sprintf("http://%s:%d/healthz", in.Address, in.Port)); err != nil {
		t.Errorf("the booted instance does not answer: %v", err)
	} else {
		res.Body.Close()
	}
	if status, _ := w.fetch(c, "/"); status != 503 {
		t.Errorf("status %d before the hook has ended, want 503", status)
	}
	w.complete("ash-1", act.Tokens[0], "CONTINUE")
	until(t, "the instance serves", func() bool { status, _ := w.fetch(c, "/"); return status == 200 })
}

func TestConnectionDrainTimeout(t *testing.T) {
	t.Parallel()
	sc := fast(1, hookIn("ash-1", ""))
	sc.Balancers[0].ConnectionDrainTimeout = 100 * time.Millisecond
	w, c := start(t, Options{Scenario: sc}), user(t)
	status := make(chan int, 1)
	go func() {
		s, _ := w.fetch(c, "/slow?ms=20000")
		status <- s
	}()
	in := w.firstInstance()
	until(t, "a request in flight", func() bool { return w.inFlight(in.ID) == 1 })
	from := time.Now()
	w.ScaleIn("asg-1", 1)
	if s := <-status; s != 502 || time.Since(from) < 100*time.Millisecond {
		t.Errorf("status %d after %v, want 502 after 100ms", s, time.Since(from))
	}
}
