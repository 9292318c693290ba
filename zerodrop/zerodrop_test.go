package zerodrop

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"example.org/usher/zerodrop/load"
)

// need skips where a proof can't be made.
func need(t *testing.T) {
	t.Helper()
	if err := able(); err != nil {
		t.Skip(err)
	}
}

// notInPart skips what is for the whole proof alone, which takes minutes.
func notInPart(t *testing.T) {
	t.Helper()
	if !*whole {
		t.Skip("the whole proof is run by: go test ./zerodrop -args -usher.all")
	}
}

// The balancers, each started with its cloud.

func l4(p *proof) {
	p.Helper()
	p.startCloud(false)
	x := p.startRole("the switch", "lb", role{Switch: &switchRole{}})
	p.until("the switch forwards", func() bool { return x.text() != "" })
}

func clb(p *proof) {
	p.Helper()
	p.startCloud(true)
	p.must(nft(p.name+"-lb", clbRules()))
}

// haproxy gives HAProxy with health checks at a path, or "" for TCP ones.
func haproxy(check string) func(*proof) {
	return func(p *proof) {
		p.Helper()
		p.startCloud(false)
		file, socket := filepath.Join(p.dir, "haproxy.cfg"), filepath.Join(p.dir, "haproxy")
		p.must(os.WriteFile(file, []byte(haproxyConfig(socket, check)), 0o600))
		p.start("haproxy", inside(p.name+"-lb", "haproxy", "-db", "-f", file))
		p.until("HAProxy listens", func() bool { _, err := os.Stat(socket); return err == nil })
	}
}

// What is lost without usher.
var rude = []scenario{
	{name: "kill", plan: "kill -9", balancer: l4, kind: "l4", end: endKill},
	{name: "vanish", plan: "the host vanishes: no FIN, no RST", balancer: l4, kind: "l4", end: endVanish},
	{name: "sigterm", plan: "SIGTERM, Go Shutdown", balancer: l4, kind: "l4", end: endTerm},
	{name: "kill", plan: "kill -9", balancer: haproxy(""), kind: "haproxy", end: endKill},
	{name: "sigterm", plan: "SIGTERM, Go Shutdown", balancer: haproxy(""), kind: "haproxy", end: endTerm},
}

// The recommended plans, one for each situation.
var recommended = []scenario{
	{name: "probes-only", plan: "drop probes, Connection: close, quiet, SIGTERM", balancer: l4, kind: "l4", example: "zero-drop-probes-only.yaml"},
	{name: "balancer-api", plan: "deregister, Connection: close, quiet, SIGTERM", balancer: clb, kind: "clb", example: "zero-drop-balancer-api.yaml"},
	{name: "actuator", plan: "health down, quiet, SIGTERM", balancer: haproxy("/actuator/health"), kind: "haproxy", example: "zero-drop-actuator.yaml"},
	{name: "nothing", plan: "drop probes, quiet", balancer: haproxy(""), kind: "haproxy", example: "zero-drop-nothing.yaml", service: backendRole{Plain: true}},
	{name: "probes-only-native", plan: "drop probes, Connection: close, quiet, SIGTERM, by usher on the instance", balancer: l4, kind: "l4", example: "zero-drop-probes-only.yaml", native: true},
}

// long has downloads of which each outlasts all else of the drain.
var long = scenario{
	name: "long-downloads", plan: "drop probes, Connection: close, quiet, SIGTERM; downloads of 50 to 60 s", balancer: l4, kind: "l4", example: "zero-drop-probes-only.yaml",
	clients: clientsRole{Shortest: 50 * time.Second, Longest: time.Minute},
}

// TestRude: without usher, more than 90 requests fail at each scale-in that kills, and at
// others, where probes are refused at once, not much fewer. Most are new connections to a
// host that is gone, until the balancer notices.
func TestRude(t *testing.T) {
	need(t)
	t.Parallel()
	for i, s := range rude {
		if i > 0 && !*whole {
			break
		}
		s.each(t, func(t *testing.T, r *load.Record) {
			least := 90
			if s.end == endTerm {
				least = 50 // the next probe may come at once
			}
			if n := r.Total().Failed; n <= least {
				t.Errorf("%d failed, want more than %d: %s", n, least, r)
			}
		})
	}
}

// TestReleased: a balancer that is told of the release, and so has no gap in which it does
// not notice, still cuts what is in flight.
func TestReleased(t *testing.T) {
	notInPart(t)
	need(t)
	t.Parallel()
	s := scenario{name: "kill", plan: "out of the balancer and kill -9", balancer: clb, kind: "clb", end: endKill}
	s.each(t, func(t *testing.T, r *load.Record) {
		if r.Total().Reasons[load.Cut] == 0 {
			t.Errorf("no download was cut: %s", r)
		}
	})
}

// TestRecommended: with usher, none fails and none is cut.
func TestRecommended(t *testing.T) {
	need(t)
	t.Parallel()
	plans := recommended
	if *recordTo != "" {
		plans = append(slices.Clone(plans), long)
	}
	for i, s := range plans {
		if i > 0 && !*whole {
			break
		}
		s.end = endKill
		s.each(t, func(t *testing.T, r *load.Record) {
			if r.Scenario.Result != "CONTINUE" {
				t.Errorf("the action ended with %q, not with CONTINUE", r.Scenario.Result)
			}
			total := r.Total()
			if total.Failed == 0 {
				return
			}
			// A client behind an L4 switch may send its next request on an idle connection
			// in the very moment in which the server closes it: HTTP/1.1 has no way to
			// prevent that. It is no byte of an answer, so a client may send it again.
			if s.kind == "l4" && total.Failed == 1 && total.Retryable == 1 {
				t.Logf("one request met the closing of its idle connection: %s", r)
				return
			}
			t.Errorf("%d failed, want none: %s", total.Failed, r)
		})
	}
}

// TestUntil: when short requests come on new connections all the time, there is hardly a
// moment in which one is established, so "zero, three times" is true under full traffic.
// Until quiet is not. The instance is taken out of nothing here, so no plan may say that
// it is drained.
func TestUntil(t *testing.T) {
	notInPart(t)
	need(t)
	t.Parallel()
	zero := scenario{name: "until-zero", plan: "until: zero under short connections", balancer: l4, kind: "l4", end: endKill,
		clients: clientsRole{Kinds: []load.Kind{load.Short}, Scale: 0.6}, // 20 a second on each host
		steps:   "{wait_connections: {ports: [8080], exclude: [198.18.1.253], until: zero, gap: 0s, timeout: 2m}}"}
	zero.each(t, func(t *testing.T, r *load.Record) {
		if n := r.Total().Failed; r.Scenario.Result != "CONTINUE" || n < 20 {
			t.Errorf("result %s, %d failed: want a false end, and what came in the 2 s after it lost: %s", r.Scenario.Result, n, r)
		}
	})
	quiet := zero
	quiet.name, quiet.plan = "until-quiet", "until: quiet under short connections"
	quiet.steps = "{wait_connections: {ports: [8080], exclude: [198.18.1.253], until: quiet, gap: 0s, timeout: 20s}}"
	quiet.each(t, func(t *testing.T, r *load.Record) {
		if n := r.Total().Failed; r.Scenario.Result != "ROLLBACK" || n > 0 {
			t.Errorf("result %s, %d failed: want the instance back in service, and nobody to notice: %s", r.Scenario.Result, n, r)
		}
	})
}

// each runs the scenario as often as it is asked for, as a test of its own.
func (s scenario) each(t *testing.T, judge func(*testing.T, *load.Record)) {
	t.Run(s.kind+"-"+s.name, func(t *testing.T) {
		t.Parallel()
		for i := range *repeats {
			t.Run(strconv.Itoa(i+1), func(t *testing.T) { judge(t, s.run(t, i+1)) })
		}
	})
}
