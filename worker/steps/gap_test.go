package steps_test

import (
	"strings"
	"testing"
	"time"

	"example.org/usher/providers"
	"example.org/usher/providers/alibaba"
	"example.org/usher/simulator"
	"example.org/usher/worker/steps"
)

// drainedAtOnce is what a machine makes of any script.
func drainedAtOnce(string, string) simulator.CommandOutcome {
	return simulator.CommandOutcome{Output: `{"method":"ss","drained":true,"checks":3,"listeners":1}`, Duration: time.Second}
}

// TestGapOfBalancers: the gap is what the slowest of the balancers takes to notice, those that
// are named or those that are found, and the sentence for the audit log says whose it is.
func TestGapOfBalancers(t *testing.T) {
	t.Parallel()
	checks := []simulator.HealthCheck{
		{Interval: 2 * time.Second, Timeout: 5 * time.Second, Fall: 3}, // clb: 21 s
		{Interval: 5 * time.Second, Timeout: 3 * time.Second, Fall: 2}, // alb: 16 s
		{Interval: time.Second, Timeout: time.Second, Fall: 2},         // nlb: 4 s
	}
	unknown := providers.Balancer{Kind: providers.CLB, ID: "lb-404"}
	for name, tt := range map[string]struct {
		from       []providers.Balancer
		unattached bool // its scaling group's record has none of them
		leaves     bool // a deregister step has taken it out before
		lose       string
		told       string
	}{
		"named":                 {from: []providers.Balancer{nlb, alb}, told: "gap 16s by the health checks of alb:sgp-a"},
		"attached":              {from: autoAll, told: "gap 21s by the health checks of clb:lb-1"},
		"found":                 {from: autoAll, unattached: true, told: "gap 21s by the health checks of clb:lb-1"},
		"of one kind":           {from: autoAll[2:], unattached: true, told: "gap 4s by the health checks of nlb:sgp-n"},
		"left before":           {from: autoAll, unattached: true, leaves: true, told: "gap 21s by the health checks of clb:lb-1"},
		"none there":            {from: []providers.Balancer{unknown}, told: "gap 12s by default, as its balancers tell of no health checks"},
		"not to be asked":       {from: []providers.Balancer{alb}, lose: "alb", told: "gap 12s by default, as balancers could not be asked: "},
		"slowest can't be":      {from: []providers.Balancer{clb, nlb}, lose: "slb", told: "gap 12s by default, as balancers could not be asked: "},
		"another can't be":      {from: []providers.Balancer{alb, nlb}, lose: "nlb", told: "gap 16s by the health checks of alb:sgp-a"},
		"given":                 {told: "; gap 12s"},
		"its group isn't known": {from: autoAll, lose: "ess", told: "gap 21s by the health checks of clb:lb-1"},
	} {
		scenario := balancedScenario(4, tt.unattached)
		for i, check := range checks {
			scenario.Balancers[i].HealthCheck = check
		}
		t.Run(name, func(t *testing.T) {
			inBalanced(t, scenario, func(b *balanced) {
				assistant, err := alibaba.NewAssistant(b.options)
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(assistant.Close)
				in := b.instances(1)[0]
				if tt.leaves {
					if _, err := b.run(b.deregister(nil), in, 20*time.Minute); err != nil {
						b.Fatal(err)
					}
				}
				if tt.lose != "" {
					b.inject(simulator.Fault{Service: tt.lose, Kind: simulator.Fault5xx})
				}
				in.Withdrawn = time.Now()
				detail, err := b.run(steps.WaitConnections{
					Ports: []uint16{80}, Gap: 12 * time.Second, GapFrom: tt.from, Cloud: b.cloud, Departures: b.departures,
					Timeout: 10 * time.Minute, Commander: assistant,
				}, in, 10*time.Minute)
				if err != nil || !strings.Contains(detail, tt.told) {
					b.Errorf("%q, %v, want %q", detail, err, tt.told)
				}
			})
		})
	}
}
