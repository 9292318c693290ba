package configs

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestBalancerSteps(t *testing.T) {
	t.Parallel()
	in := strings.ReplaceAll(goodGroup, "steps: []", `steps:
      - deregister: {balancers: auto}
      - deregister: {balancers: ["clb:lb-1", "clb-vserver-group:rsp-1", "alb:sgp-1", "nlb:auto"], drain: skip, weight_zero: 0s, margin: 5s, last_healthy: refuse, timeout: 2m}`)
	c := load(t, nil, "web.yaml", in)
	if !c.Groups[0].UsesBalancers() {
		t.Error("the group uses balancers")
	}
	want := []Step{
		{Kind: KindDeregister, Line: 9, Timeout: 10 * time.Minute, Deregister: &DeregisterStep{
			Balancers: []Balancer{{Kind: "clb"}, {Kind: "alb"}, {Kind: "nlb"}}, Drain: DrainWait, WeightZero: 10 * time.Second, Margin: time.Minute,
			LastHealthy: LastWait, DNSTTL: time.Minute,
		}},
		{Kind: KindDeregister, Line: 10, Timeout: 2 * time.Minute, Deregister: &DeregisterStep{
			Balancers: []Balancer{{"clb", "lb-1"}, {"clb-vserver-group", "rsp-1"}, {"alb", "sgp-1"}, {Kind: "nlb"}}, Drain: DrainSkip,
			Margin: 5 * time.Second, LastHealthy: LastRefuse,
		}},
	}
	for i, s := range c.Groups[0].Hooks[0].Steps {
		want[i].OnError = OnErrorFail
		if !reflect.DeepEqual(s, want[i]) {
			t.Errorf("step %d: %+v %+v", i, s, s.Deregister)
		}
	}
	out := strings.ReplaceAll(strings.ReplaceAll(goodGroup, "scale_in", "scale_out"), "steps: []", `steps:
      - register: {balancers: ["clb:lb-1"]}
      - register: {balancers: ["alb:sgp-1"], port: 8080, weight: 20, ramp: 1m, wait: none, timeout: 3m}`)
	want = []Step{
		{Kind: KindRegister, Line: 9, Timeout: 5 * time.Minute, Register: &RegisterStep{Balancers: []Balancer{{"clb", "lb-1"}}, Weight: 100, Wait: WaitHealthy}},
		{Kind: KindRegister, Line: 10, Timeout: 3 * time.Minute, Register: &RegisterStep{
			Balancers: []Balancer{{"alb", "sgp-1"}}, Port: 8080, Weight: 20, Ramp: time.Minute, Wait: WaitNone,
		}},
	}
	for i, s := range load(t, nil, "web.yaml", out).Groups[0].Hooks[0].Steps {
		want[i].OnError = OnErrorFail
		if !reflect.DeepEqual(s, want[i]) {
			t.Errorf("step %d: %+v %+v", i, s, s.Register)
		}
	}
	if load(t, nil, "web.yaml", goodGroup).Groups[0].UsesBalancers() {
		t.Error("a group without such steps uses none")
	}
}

// TestGapFrom: whose health checks tell a wait's gap.
func TestGapFrom(t *testing.T) {
	alb, clb := Balancer{Kind: BalancerALB}, Balancer{Kind: BalancerCLB, ID: "lb-wz9example0001"}
	tests := map[string]struct {
		steps string
		gap   time.Duration
		from  []Balancer
		uses  bool
	}{
		"nothing":     {"[{wait_connections: {ports: [80]}}]", DefaultGap, nil, false},
		"given":       {"[{deregister: {balancers: [alb:auto]}}, {wait_connections: {ports: [80], gap: 0s}}]", 0, nil, true},
		"deregister":  {"[{deregister: {balancers: [alb:auto, clb:lb-wz9example0001]}}, {wait_connections: {ports: [80]}}]", DefaultGap, []Balancer{alb, clb}, true},
		"two of them": {"[{deregister: {balancers: [alb:auto]}}, {deregister: {balancers: [clb:lb-wz9example0001, alb:auto]}}, {wait_connections: {ports: [80]}}]", DefaultGap, []Balancer{alb, clb}, true},
		"behind it":   {"[{wait_connections: {ports: [80]}}, {deregister: {balancers: [alb:auto]}}]", DefaultGap, nil, true},
		"named":       {"[{wait_connections: {ports: [80], gap_from: [clb:lb-wz9example0001]}}]", DefaultGap, []Balancer{clb}, true},
		"auto":        {"[{wait_connections: {ports: [80], gap_from: auto}}]", DefaultGap, []Balancer{{Kind: BalancerCLB}, alb, {Kind: BalancerNLB}}, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			text := `provider: alibaba
region: cn-shenzhen
scaling_group: asg-wz9example0001
queue: {name: ess-lifecycle, endpoint: "https://1234567890123456.mns.cn-shenzhen.aliyuncs.com"}
hooks:
  - transition: scale_in
    deadline: 1h
    steps: ` + tt.steps + "\n"
			g := load(t, nil, "web.yaml", text).Groups[0]
			for _, s := range g.Hooks[0].Steps {
				if w := s.WaitConnections; w != nil && (w.Gap != tt.gap || !slices.Equal(w.GapFrom, tt.from) || w.gapMeant) {
					t.Errorf("got %+v", w)
				}
			}
			if g.UsesBalancers() != tt.uses {
				t.Errorf("uses balancers: %v", g.UsesBalancers())
			}
		})
	}
}
