package configs

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

// TestFirewallSteps: the blocks last for the deadline unless the file says otherwise, and
// connections may be refused behind any step that lets a balancer notice.
func TestFirewallSteps(t *testing.T) {
	t.Parallel()
	read := func(steps string) []Step {
		t.Helper()
		return load(t, nil, "web.yaml", strings.Replace(goodGroup, "    steps: []\n", "    steps:\n"+steps, 1)).Groups[0].Hooks[0].Steps
	}
	got := read(`
      - fail_health_check: {ports: [80], probes: [10.0.0.252/31, "fd00::/64"]}
      - wait_connections: {ports: [80], gap: 15s, until: zero}
      - block_connections: {ports: [80, 443], expires: 12m, timeout: 20s, retries: 1}
      - undo: {on_error: ignore}
`)
	want := []Step{
		{Kind: KindFailHealthCheck, Line: 10, Timeout: time.Minute, UndoTimeout: time.Minute, OnError: OnErrorFail, FailHealthCheck: &FailHealthCheckStep{
			Ports: []int{80}, Probes: []netip.Prefix{netip.MustParsePrefix("10.0.0.252/31"), netip.MustParsePrefix("fd00::/64")},
			Expires: 30 * time.Minute, Watch: 5 * time.Second, ProbeRate: 5,
		}},
		got[1],
		{Kind: KindBlockConnections, Line: 12, Timeout: 20 * time.Second, UndoTimeout: 20 * time.Second, Retries: 1, OnError: OnErrorFail, BlockConnections: &BlockConnectionsStep{
			Ports: []int{80, 443}, Expires: 12 * time.Minute,
		}},
		{Kind: KindUndo, Line: 13, Timeout: time.Minute, OnError: OnErrorIgnore, Undo: &UndoStep{}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("steps %+v, want %+v", got, want)
	}
	for _, before := range []string{
		"deregister: {balancers: auto}\n      - wait_connections: {ports: [80]}",
		"deregister: {balancers: auto}\n      - wait: {for: 10s}",
		"http: {url: \"http://{{.PrivateIP}}/down\"}\n      - wait: {for: 10s}\n      - command: {script: /opt/app/x.sh}",
		"exec: {command: [/opt/balancer, leave]}\n      - wait_connections: {ports: [80], until: zero, gap: 10s}",
		"block_connections: {ports: [22]}\n      - undo: {}\n      - command: {script: /opt/app/x.sh}\n      - wait: {for: 10s}",
	} {
		if strings.HasPrefix(before, KindBlockConnections) {
			before = "command: {script: /opt/app/x.sh}\n      - wait: {for: 10s}\n      - " + before
		}
		read("      - " + before + "\n      - block_connections: {ports: [80]}\n")
	}
}
