package app

import (
	"log/slog"
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

// TestFirewallSteps: a config's steps reach the instance with their settings, in their
// order, and a refusal fails the job.
func TestFirewallSteps(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{"usher.yaml": "http: \"off\"\n", "web.yaml": balancerFile(
		"fail_health_check: {ports: [80, 443], probes: [10.0.0.252/31], probe_rate: 9, watch: 7s}",
		"wait: {for: 20s}",
		"block_connections: {ports: [443], expires: 30m}",
		"undo: {}",
	)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := configs.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		refuses string // the action that the instance refuses
		sent    []string
		result  string
		reason  string
	}{
		"done": {"", []string{
			"fail_health_check PORTS=80 443 PROBES=10.0.0.252/31 EXPIRES=2400 WATCH=7 PROBE_RATE=9",
			"block_connections PORTS=443 PROBES= EXPIRES=1800 WATCH=0 PROBE_RATE=0",
			"undo PORTS= PROBES= EXPIRES=0 WATCH=0 PROBE_RATE=0",
		}, "CONTINUE", "method nft"},
		"refused": {"fail_health_check", []string{"fail_health_check PORTS=80 443 PROBES=10.0.0.252/31 EXPIRES=2400 WATCH=7 PROBE_RATE=9"}, "ABANDON", "carry clients' traffic: 90 new connections"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var mu sync.Mutex
				var sent, said []string // guarded by mu
				instance := func(_, script string) simulator.CommandOutcome {
					settings := map[string]string{}
					for line := range strings.Lines(script) {
						if name, value, ok := strings.Cut(strings.TrimSpace(line), "='"); ok && strings.HasPrefix(name, "USHER_") {
							settings[strings.TrimPrefix(name, "USHER_")] = strings.TrimSuffix(value, "'")
						}
					}
					line := settings["ACTION"]
					for _, name := range []string{"PORTS", "PROBES", "EXPIRES", "WATCH", "PROBE_RATE"} {
						line += " " + name + "=" + settings[name]
					}
					mu.Lock()
					defer mu.Unlock()
					sent = append(sent, line)
					if settings["ACTION"] == tt.refuses {
						return simulator.CommandOutcome{ExitCode: 77, Output: `{"error":"x","watched":7,"syns":90}`}
					}
					return simulator.CommandOutcome{Output: `{"method":"nft","removed":1}`}
				}
				scenario := behindThree(3)
				sim, err := simulator.New(simulator.Options{AccessKeyID: mark + "Id", AccessKeySecret: mark + "Key", Scenario: scenario, NoServers: true, Commands: instance})
				if err != nil {
					t.Fatal(err)
				}
				l, closeCloud := serve(sim)
				defer closeCloud()
				p := &permitted{t: t, sim: sim}
				worker, err := New(Options{
					Config: config, Credentials: alibaba.StaticCredentials(mark+"Id", mark+"Key"), DialContext: l.DialContext, Audit: p,
					Observer: func(r audit.Record) {
						if r.Event == audit.StepFinished {
							mu.Lock()
							defer mu.Unlock()
							said = append(said, r.Reason+r.Error)
						}
					},
					Logger: slog.New(slog.NewTextHandler(p, nil)),
				})
				if err != nil {
					t.Fatal(err)
				}
				defer run(t, worker, false)()
				if _, err := sim.ScaleIn("asg-wz9example0001", 1); err != nil {
					t.Fatal(err)
				}
				p.until(30*time.Minute, "the action is over", func() bool {
					st := sim.State()
					return len(st.Actions) == 1 && st.Actions[0].Status == "Completed"
				})
				mu.Lock()
				defer mu.Unlock()
				// Behind a failure there may be an undo of what had begun.
				for len(sent) > len(tt.sent) && tt.refuses != "" && strings.HasPrefix(sent[len(sent)-1], "undo ") {
					sent = sent[:len(sent)-1]
				}
				if a := sim.State().Actions[0]; a.Result != tt.result || !slices.Equal(sent, tt.sent) || len(said) == 0 || !strings.Contains(said[0], tt.reason) {
					t.Errorf("%s after %q, which said %q; want %s after %q and %q", a.Result, sent, said, tt.result, tt.sent, tt.reason)
				}
			})
		})
	}
}
