package app

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// waited is what a wait_connections step on one instance came to.
type waited struct {
	mu      sync.Mutex
	records []audit.Record // of wait_connections, finished
	gaps    []float64      // that the scripts were given, in seconds
}

var patternGap = regexp.MustCompile(`(?m)^USHER_GAP='([0-9.]+)'$`)

// script notes the gap of a wait_connections script.
func (w *waited) script(text string) bool {
	found := patternGap.FindStringSubmatch(text)
	if found == nil {
		return false
	}
	gap, _ := strconv.ParseFloat(found[1], 64)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gaps = append(w.gaps, gap)
	return true
}

func (w *waited) observe(_ *simulator.Simulator, r audit.Record) {
	if r.Event != audit.StepFinished || r.Step != "wait_connections" {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records = append(w.records, r)
}

const drainedReport = `{"method":"ss","drained":true,"seconds":3,"polls":4,"checks":3,"listeners":1}`

// over: the action was answered, and its message deleted.
func (p *permitted) over() bool {
	st := p.sim.State()
	q, _ := st.Queue("ess-lifecycle")
	return len(st.Actions) == 1 && st.Actions[0].Status != "Pending" && q.Active+q.Inactive+q.Delayed == 0
}

// TestGap: how long connections are waited for at least is told by the health checks of the
// balancers, counted from when the instance was withdrawn from them.
func TestGap(t *testing.T) {
	t.Parallel()
	scenario := behindThree(4)
	for i, check := range []simulator.HealthCheck{
		{Interval: 2 * time.Second, Timeout: 5 * time.Second, Fall: 3}, // 21 s
		{Interval: 5 * time.Second, Timeout: 3 * time.Second, Fall: 2}, // 16 s
		{Interval: time.Second, Timeout: time.Second, Fall: 2},         // 4 s
	} {
		scenario.Balancers[i].HealthCheck = check
	}
	const (
		leave = "deregister: {balancers: auto}"
		wait  = "wait_connections: {ports: [80]}"
	)
	unavailable := func(services ...string) func(*simulator.Simulator) {
		return func(sim *simulator.Simulator) {
			for _, s := range services {
				if _, err := sim.InjectFault(simulator.Fault{Service: s, Kind: simulator.Fault5xx}); err != nil {
					t.Error(err)
				}
			}
		}
	}
	tests := map[string]struct {
		steps   []string
		lose    func(*simulator.Simulator)
		from    float64 // what is left of it, in seconds, but for the time that asking takes
		told    string
		refused string
	}{
		"left all of them":            {steps: []string{leave, wait}, told: "; gap 21s by the health checks of clb:lb-1, 21s of it over before"},
		"left one":                    {steps: []string{"deregister: {balancers: [alb:sgp-a], drain: skip, last_healthy: ignore}", wait}, told: "gap 16s by the health checks of alb:sgp-a"},
		"left without looking":        {steps: []string{"deregister: {balancers: [alb:auto], drain: skip, last_healthy: ignore}", wait}, told: "gap 16s by the health checks of alb:sgp-a"},
		"left a virtual group":        {steps: []string{"deregister: {balancers: [clb-vserver-group:rsp-1], drain: skip}", wait}, told: "gap 21s by the health checks of clb-vserver-group:rsp-1"},
		"stays in all of them":        {steps: []string{"wait: {for: 5s}", "wait_connections: {ports: [80], gap_from: auto}"}, from: 16, told: "gap 21s by the health checks of clb:lb-1, 5"},
		"stays in one":                {steps: []string{"wait_connections: {ports: [80], gap_from: [nlb:sgp-n]}"}, from: 4, told: "gap 4s by the health checks of nlb:sgp-n"},
		"a command counts by its end": {steps: []string{"wait: {for: 5s}", "command: {script: down}", "wait_connections: {ports: [80], gap: 12s}"}, from: 12, told: "; gap 12s"},
		"given":                       {steps: []string{leave, "wait_connections: {ports: [80], gap: 15m, timeout: 20m}"}, told: "; gap 15m0s, "},
		"given none":                  {steps: []string{leave, "wait_connections: {ports: [80], gap: 0s}"}, told: "; no gap"},
		"nothing is known":            {steps: []string{"wait: {for: 4s}", wait}, from: 6, told: "; gap 10s, 4s of it over before"},
		"none has it":                 {steps: []string{"wait_connections: {ports: [80], gap_from: [clb:lb-404]}"}, from: 10, told: "gap 10s by default, as its balancers tell of no health checks"},
		"can't be asked":              {steps: []string{"wait_connections: {ports: [80], gap_from: auto}"}, lose: unavailable("slb", "alb", "nlb"), from: 10, told: "gap 10s by default, as balancers could not be asked: "},
		"one can't be asked":          {steps: []string{"wait_connections: {ports: [80], gap_from: auto}"}, lose: unavailable("slb", "nlb"), from: 16, told: "gap 16s by the health checks of alb:sgp-a"},
		"the slow can't be asked":     {steps: []string{"wait_connections: {ports: [80], gap_from: auto}"}, lose: unavailable("slb", "alb"), from: 10, told: "gap 10s by default, as balancers could not be asked: "},
		"does not fit the timeout":    {steps: []string{"wait_connections: {ports: [80], gap_from: auto, timeout: 22s}"}, refused: "give the step more time, or set gap; gap 21s by the health checks of clb:lb-1"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := new(waited)
			commands := func(_, script string) simulator.CommandOutcome {
				if !w.script(script) {
					return simulator.CommandOutcome{Duration: 3 * time.Second}
				}
				return simulator.CommandOutcome{Output: drainedReport, Duration: 3 * time.Second}
			}
			runCommanded(t, scenario, commands, w.observe, func(p *permitted, start func() func()) {
				if tt.lose != nil {
					tt.lose(p.sim)
				}
				start()
				if _, err := p.sim.ScaleIn("asg-wz9example0001", 1); err != nil {
					t.Fatal(err)
				}
				p.until(2*time.Hour, "the action is over", p.over)
				if len(w.records) != 1 || !strings.Contains(w.records[0].Reason, tt.told) || !strings.Contains(w.records[0].Error, tt.refused) || (w.records[0].Result == "ok") != (tt.refused == "") {
					t.Errorf("audit %+v, want %q, %q", w.records, tt.told, tt.refused)
				}
				if tt.refused != "" {
					return
				}
				if len(w.gaps) != 1 || tt.from > 0 && (w.gaps[0] > tt.from || w.gaps[0] < tt.from-11) {
					t.Errorf("gaps %v, want %v at most", w.gaps, tt.from)
				}
			}, tt.steps...)
		})
	}
}

// TestGapCostsNoCall: what deregister has asked is not asked again within the minute.
func TestGapCostsNoCall(t *testing.T) {
	t.Parallel()
	calls := map[bool]map[string]int{}
	for _, with := range []bool{false, true} {
		steps := []string{"deregister: {balancers: auto, weight_zero: 1s, drain: skip, last_healthy: ignore}"}
		if with {
			steps = append(steps, "wait_connections: {ports: [80]}")
		}
		w := new(waited)
		runCommanded(t, behindThree(4), func(_, script string) simulator.CommandOutcome {
			w.script(script)
			return simulator.CommandOutcome{Output: drainedReport}
		}, w.observe, func(p *permitted, start func() func()) {
			start()
			if _, err := p.sim.ScaleIn("asg-wz9example0001", 2); err != nil {
				t.Fatal(err)
			}
			p.until(time.Hour, "the action is over", p.over)
			calls[with] = p.sim.State().APICalls
		}, steps...)
	}
	for _, name := range []string{"alb.ListServerGroups", "nlb.ListServerGroups", "slb.DescribeLoadBalancerListeners", "slb.DescribeLoadBalancers"} {
		if with, without := calls[true][name], calls[false][name]; with == 0 || with > without {
			t.Errorf("%d of %s, %d without a gap", with, name, without)
		}
	}
	if n := calls[true]["ess.DescribeScalingGroups"]; n != 1 {
		t.Errorf("the group's record was read %d times for two instances", n)
	}
}

// TestBrokenHosts: what goes wrong on the way to an instance or on it is a clear failure of
// the step, or the instance's end; nothing but a whole report is a drain.
func TestBrokenHosts(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 30<<10)
	says := func(code int, output string) simulator.CommandOutcome {
		return simulator.CommandOutcome{ExitCode: code, Output: output, Duration: 3 * time.Second}
	}
	breaks := func(code string) simulator.CommandOutcome {
		return simulator.CommandOutcome{ErrorCode: code, Duration: 30 * time.Second}
	}
	tests := map[string]struct {
		outcome simulator.CommandOutcome
		lose    bool   // the instance is released in the middle
		result  string // of the step
		told    string
	}{
		"drained":               {says(0, drainedReport), false, "ok", "drained after 3 s"},
		"no agent":              {breaks("ClientNotRunning"), false, "failed", "The aliyun service is not running"},
		"agent dies in between": {breaks("ClientNotResponse"), false, "failed", "ClientNotResponse"},
		"agent is silent":       {simulator.CommandOutcome{Output: drainedReport, Duration: time.Hour}, false, "failed", "timed out"},
		"agent is killed":       {breaks("ExecutionInterrupted"), false, "failed", "ExecutionInterrupted"},
		"agent's disk is full":  {breaks("ExecutionException"), false, "failed", "ExecutionException"},
		"is stopped":            {breaks("InstanceNotRunning"), false, "failed", "InstanceNotRunning"},
		"was released":          {breaks("InstanceReleased"), false, "gone", "instance is gone"},
		"is released meanwhile": {simulator.CommandOutcome{Output: drainedReport, Duration: 5 * time.Minute}, true, "failed", "ExecutionInterrupted"},
		"lacks awk":             {says(69, `{"error":"there is no awk"}`), false, "failed", "lacks what watching its connections needs: \"there is no awk\""},
		"lacks sh":              {says(127, ""), false, "failed", "exit code 127 without a report"},
		"not in time": {says(75, `{"method":"proc","drained":false,"seconds":585,"polls":580,"busy":2,"live":3,"left":["198.51.100.7:41000 queue","198.51.100.8:41001 unknown"]}`), false, "failed",
			`2 busy, 3 live, last new connection 0 s ago, method proc, left: "198.51.100.7:41000 queue, 198.51.100.8:41001 unknown"`},
		"says nothing":     {says(0, ""), false, "failed", "exit code 0 without a report"},
		"says garbage":     {says(0, "\x00\xff\xfe{]\n"), false, "failed", "exit code 0 without a report"},
		"says it twice":    {says(0, `{"method":"ss","drained":false}`+"\n"+drainedReport), false, "failed", "there is more than one"},
		"says the other":   {says(0, `{"method":"ss","drained":false,"busy":1}`), false, "failed", "does not say that it is drained"},
		"is cut off":       {says(0, long+"\n"+drainedReport), false, "failed", "more bytes were dropped by Cloud Assistant"},
		"begins after all": {says(0, drainedReport+"\n"+long), false, "failed", "exit code 0 without a report"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := new(waited)
			runCommanded(t, behindThree(4), func(string, string) simulator.CommandOutcome { return tt.outcome }, w.observe, func(p *permitted, start func() func()) {
				start()
				activity, err := p.sim.ScaleIn("asg-wz9example0001", 1)
				if err != nil {
					t.Fatal(err)
				}
				if tt.lose {
					p.until(time.Minute, "the script runs", func() bool { return p.sim.State().Commands > 0 })
					if err := p.sim.Terminate(activity.Instances[0]); err != nil {
						t.Fatal(err)
					}
				}
				p.until(2*time.Hour, "the action is over", p.over)
				result := "ABANDON"
				if tt.result != "failed" || tt.lose {
					result = "CONTINUE"
				}
				if a := p.sim.State().Actions[0]; a.Result != result || a.EndedBy != "call" {
					t.Errorf("%s by %s, want %s\n%s", a.Result, a.EndedBy, result, p.logs())
				}
				if len(w.records) != 1 || w.records[0].Result != tt.result || !strings.Contains(w.records[0].Reason+w.records[0].Error, tt.told) {
					t.Errorf("audit %+v, want %s: %s", w.records, tt.result, tt.told)
				}
				for _, r := range w.records {
					if text := r.Reason + r.Error; len(text) > 1500 || tt.result != "ok" && strings.Contains(text, "drained after 3 s") {
						t.Errorf("told %q", text)
					}
				}
			}, "wait_connections: {ports: [80], gap: 5s}")
		})
	}
}

// TestTakeoverOfAWait: a worker dies while its script watches an instance. The one that takes
// over joins it, or watches for itself where it counts the gap anew.
func TestTakeoverOfAWait(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		before string
		gaps   []float64 // of the scripts
	}{
		"joins":       {"wait: {for: 10s}", []float64{110}},
		"has its own": {"deregister: {balancers: [\"nlb:sgp-n\"], weight_zero: 30s}", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := new(waited)
			commands := func(_, script string) simulator.CommandOutcome {
				w.script(script)
				return simulator.CommandOutcome{Output: drainedReport, Duration: 3 * time.Minute}
			}
			runCommanded(t, behindThree(4), commands, w.observe, func(p *permitted, start func() func()) {
				stop := start()
				if _, err := p.sim.ScaleIn("asg-wz9example0001", 1); err != nil {
					t.Error(err)
				}
				p.until(10*time.Minute, "the script runs", func() bool { return p.sim.State().Commands == 1 })
				time.Sleep(time.Minute)
				stop()
				start()
				p.until(time.Hour, "the action is over", p.over)
				if a := p.sim.State().Actions[0]; a.Result != "CONTINUE" || a.EndedBy != "call" {
					t.Errorf("%+v\n%s", a, p.logs())
				}
				if tt.gaps != nil && !slices.Equal(w.gaps, tt.gaps) || tt.gaps == nil && (len(w.gaps) != 2 || w.gaps[0] >= w.gaps[1]) {
					t.Errorf("scripts with gaps of %v", w.gaps)
				}
				var results []string
				for _, r := range w.records {
					results = append(results, r.Result)
				}
				if !slices.Equal(results, []string{"cancelled", "ok"}) {
					t.Errorf("audit %+v", w.records)
				}
			}, tt.before, "wait_connections: {ports: [80], gap: 2m}")
		})
	}
}
