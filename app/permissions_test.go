package app

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/configs"
	"example.org/usher/providers/alibaba"
	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// shipped is the policy that operators are told to use, as it is.
const shipped = "../docs/ram-policy.json"

// mark is in every key of these tests. The gate looks for it in what they print.
const mark = "usherTESTsecret"

// jobFile is the group of the shipped policy, with a job that uses all that it allows.
const jobFile = `provider: alibaba
region: cn-shenzhen
scaling_group: asg-wz9example0001
queue: {name: ess-lifecycle, endpoint: "http://mns.test"}
endpoints: {ess: "http://ess.test", ecs: "http://ecs.test", slb: "http://slb.test", alb: "http://alb.test", nlb: "http://nlb.test"}
hooks:
  - transition: scale_in
    deadline: 50m
    on_failure: ROLLBACK
    steps:
      - deregister: {balancers: auto}
      - wait_connections: {ports: [80], timeout: 2m}
      - command: {script: /opt/app/backup.sh, timeout: 20m}
`

// allowed reads the actions of a policy.
func allowed(t *testing.T, text []byte) []string {
	t.Helper()
	var doc struct {
		Statement []struct{ Action any }
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	var actions []string
	for _, s := range doc.Statement {
		switch a := s.Action.(type) {
		case string:
			actions = append(actions, a)
		case []any:
			for _, one := range a {
				actions = append(actions, one.(string))
			}
		}
	}
	return actions
}

// parse makes the simulator's policy of text, without the actions in without.
func parse(t *testing.T, text []byte, without ...string) *simulator.Policy {
	t.Helper()
	for _, action := range without {
		n := bytes.Count(text, []byte(`"`+action+`"`))
		if n != 1 {
			t.Fatalf("the policy has %s %d times", action, n)
		}
		text = bytes.Replace(text, []byte(`"`+action+`"`), []byte(`"none:Removed"`), 1)
	}
	p, err := simulator.ParsePolicy(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// permitted is a worker, built from its config, and a cloud that enforces a policy.
type permitted struct {
	t       *testing.T
	sim     *simulator.Simulator
	app     *App
	journal // operational and audit log together
}

// until lets simulated time pass until ok.
func (p *permitted) until(limit time.Duration, what string, ok func() bool) {
	p.t.Helper()
	for end := time.Now().Add(limit); ; time.Sleep(time.Second) {
		synctest.Wait()
		if ok() {
			return
		}
		if time.Now().After(end) {
			text := p.logs()
			p.t.Fatalf("not within %v: %s\n%s", limit, what, text[max(0, len(text)-3000):])
		}
	}
}

// settled: both actions are over and their messages deleted.
func (p *permitted) settled() bool {
	st := p.sim.State()
	for _, a := range st.Actions {
		if a.Status == "Pending" {
			return false
		}
	}
	q, _ := st.Queue("ess-lifecycle")
	return len(st.Actions) == 2 && q.Active+q.Inactive+q.Delayed == 0
}

// lost looks for what must never be: an action that was not answered by a call, and a
// message that was deleted before its action was over.
func (p *permitted) lost(result string) {
	p.t.Helper()
	for _, a := range p.sim.State().Actions {
		if a.Status != "Completed" || a.EndedBy != "call" || a.Result != result {
			p.t.Errorf("action %s: %s %s by %q, want %s by a call", a.Token, a.Status, a.Result, a.EndedBy, result)
		}
	}
	over := map[string]bool{}
	for _, e := range p.sim.Events() {
		switch e.Type {
		case simulator.ActionCompleted, simulator.ActionTimedOut, simulator.ActionCancelled:
			over[e.Token] = true
		case simulator.MessageDeleted:
			if e.Token != "" && !over[e.Token] {
				p.t.Errorf("message %s was deleted before its action was over", e.MessageID)
			}
		}
	}
}

// runPermitted scales two instances in, in a bubble of its own, with a worker that the
// cloud allows what policy says.
func runPermitted(t *testing.T, policy *simulator.Policy, test func(p *permitted)) {
	t.Helper()
	runPermittedFile(t, jobFile, policy, test)
}

// runPermittedFile does so with another config.
func runPermittedFile(t *testing.T, file string, policy *simulator.Policy, test func(p *permitted)) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"web.yaml": file, "usher.yaml": "http: \"off\"\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config, err := configs.Load(dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		scenario := simulator.DefaultScenario()
		three := behindThree(1)
		scenario.Balancers = append(scenario.Balancers, three.Balancers...)
		scenario.Balancers[len(scenario.Balancers)-2].ServerGroups[0].ConnectionDrainTimeout = 0
		scenario.ScalingGroups[0].ServerGroups = three.ScalingGroups[0].ServerGroups
		scenario.ScalingGroups[0].SplitActivity = true
		scenario.ScalingGroups[0].Hooks[0].DefaultResult = "ABANDON"
		scenario.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 5 * time.Minute
		sim, err := simulator.New(simulator.Options{
			AccessKeyID: mark + "Id", AccessKeySecret: mark + "Key", Scenario: scenario, NoServers: true, Policy: policy,
			Commands: func(_, script string) simulator.CommandOutcome {
				if strings.Contains(script, "USHER_PORTS=") {
					return simulator.CommandOutcome{Output: `{"method":"ss","drained":true,"seconds":3,"checks":3,"listeners":1}` + "\n", Duration: 3 * time.Second}
				}
				return simulator.CommandOutcome{Duration: 8 * time.Minute}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		l, closeCloud := serve(sim)
		p := &permitted{t: t, sim: sim}
		p.app, err = New(Options{
			Config: config, Credentials: alibaba.StaticCredentials(mark+"Id", mark+"Key"), DialContext: l.DialContext,
			Audit: p, Logger: slog.New(slog.NewTextHandler(p, &slog.HandlerOptions{Level: slog.LevelDebug})),
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sim.ScaleIn("asg-wz9example0001", 2); err != nil {
			t.Fatal(err)
		}
		// Two messages that are deleted as they come, together: in a batch.
		for range 2 {
			if _, err := sim.SendMessage("ess-lifecycle", `{"product": "ECS", "name": "Instance:StateChange"}`); err != nil {
				t.Fatal(err)
			}
		}
		defer p.holdsNoKey(t)
		defer closeCloud()
		defer run(t, p.app, true)()
		test(p)
	})
}

// TestShippedPolicy: with exactly the policy that is shipped, everything works.
func TestShippedPolicy(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(shipped)
	if err != nil {
		t.Fatal(err)
	}
	runPermitted(t, parse(t, text), func(p *permitted) {
		p.until(40*time.Minute, "both actions are over", p.settled)
		p.lost("CONTINUE")
		if text := p.logs(); strings.Contains(text, "denied") || strings.Contains(text, "level=ERROR") {
			t.Errorf("something was denied:\n%s", text)
		}
		if err := p.app.worker.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
		used := slices.Collect(maps.Keys(p.sim.State().APICalls))
		slices.Sort(used)
		t.Logf("calls: %v", used)
	})
}

// TestPolicyWithoutBalancers: the statements of the kinds of balancer that a config does not
// name, or of all, can be left out.
func TestPolicyWithoutBalancers(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(shipped)
	if err != nil {
		t.Fatal(err)
	}
	without := func(prefixes ...string) []string {
		return slices.DeleteFunc(allowed(t, text), func(action string) bool {
			return !slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(action, p) })
		})
	}
	for step, missing := range map[string][]string{
		"- deregister: {balancers: [alb:auto]}":                          without("slb:", "nlb:"),
		"- deregister: {balancers: [nlb:auto]}":                          without("slb:", "alb:", "ecs:DescribeInstances"),
		"- deregister: {balancers: [clb:auto]}":                          without("alb:", "nlb:", "ecs:DescribeInstances"),
		"- deregister: {balancers: [clb:lb-1, clb-vserver-group:rsp-1]}": append(without("alb:", "nlb:", "ess:DescribeScalingGroups", "ecs:DescribeInstances"), "slb:DescribeLoadBalancers", "slb:DescribeVServerGroups"),
		"- wait: {for: 1s}":                                              without("slb:", "alb:", "nlb:", "ess:DescribeScalingGroups", "ecs:DescribeInstances"),
	} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			runPermittedFile(t, strings.Replace(jobFile, "- deregister: {balancers: auto}", step, 1), parse(t, text, missing...), func(p *permitted) {
				p.until(40*time.Minute, "both actions are over", p.settled)
				p.lost("CONTINUE")
				if text := p.logs(); strings.Contains(text, "denied") {
					t.Errorf("something was denied:\n%s", text)
				}
			})
		})
	}
}

// TestMissingPermission takes each permission of the shipped policy away: the log names it,
// the worker is not ready where it can't work without it, nothing is lost, and all is
// done once the permission is there.
func TestMissingPermission(t *testing.T) {
	hours(t)
	t.Parallel()
	text, err := os.ReadFile(shipped)
	if err != nil {
		t.Fatal(err)
	}
	const (
		messages = " on acs:mns:*:*:/queues/ess-lifecycle/messages"
		group    = " on acs:ess:cn-shenzhen:*:scalinggroup/asg-wz9example0001"
		all      = " on *"
		// A deletion may have been alone or not.
		ofBatch = "( and mns:BatchDeleteMessage)?"
	)
	type missing struct {
		said string // in the operational log, and what may stand there or not
		// result is the answer when the permission stays away: of a job that can do without
		// it, or that fails as any step may. "": the worker waits for the permission.
		result string
		quiet  bool // the worker stays ready
	}
	rows := map[string]missing{
		"mns:ReceiveMessage":                    {said: "mns:ReceiveMessage and mns:BatchReceiveMessage" + messages},
		"mns:BatchReceiveMessage":               {said: "mns:ReceiveMessage and mns:BatchReceiveMessage" + messages},
		"mns:DeleteMessage":                     {said: "mns:DeleteMessage" + ofBatch + messages},
		"mns:BatchDeleteMessage":                {said: "mns:DeleteMessage and mns:BatchDeleteMessage" + messages},
		"mns:ChangeMessageVisibility":           {said: "mns:ChangeMessageVisibility" + messages},
		"mns:GetQueueAttributes":                {said: "mns:GetQueueAttributes on acs:mns:*:*:/queues/ess-lifecycle", result: "CONTINUE", quiet: true},
		"ess:CompleteLifecycleAction":           {said: "ess:CompleteLifecycleAction" + group},
		"ess:RecordLifecycleActionHeartbeat":    {said: "ess:RecordLifecycleActionHeartbeat" + group},
		"ess:DescribeLifecycleActions":          {said: "ess:DescribeLifecycleActions" + all},
		"ess:DescribeScalingInstances":          {said: "ess:DescribeScalingInstances" + all},
		"ess:DescribeLifecycleHooks":            {said: "ess:DescribeLifecycleHooks" + all, result: "CONTINUE"},
		"ess:DescribeScalingActivities":         {said: "ess:DescribeScalingActivities" + all, result: "CONTINUE"},
		"ess:DescribeScalingGroups":             {said: "ess:DescribeScalingGroups" + all, result: "ROLLBACK", quiet: true},
		"slb:DescribeLoadBalancers":             {said: "slb:DescribeLoadBalancers" + all, result: "ROLLBACK", quiet: true},
		"slb:DescribeLoadBalancerAttribute":     {said: "slb:DescribeLoadBalancerAttribute" + all, result: "ROLLBACK", quiet: true},
		"slb:DescribeVServerGroups":             {said: "slb:DescribeVServerGroups" + all, result: "ROLLBACK", quiet: true},
		"slb:DescribeVServerGroupAttribute":     {said: "slb:DescribeVServerGroupAttribute" + all, result: "ROLLBACK", quiet: true},
		"slb:DescribeLoadBalancerListeners":     {said: "slb:DescribeLoadBalancerListeners" + all, result: "ROLLBACK", quiet: true},
		"slb:DescribeHealthStatus":              {said: "slb:DescribeHealthStatus" + all, result: "ROLLBACK", quiet: true},
		"slb:SetBackendServers":                 {said: "slb:SetBackendServers on acs:slb:cn-shenzhen:*:loadbalancer/lb-1", result: "ROLLBACK", quiet: true},
		"slb:RemoveBackendServers":              {said: "slb:RemoveBackendServers on acs:slb:cn-shenzhen:*:loadbalancer/lb-1", result: "ROLLBACK", quiet: true},
		"slb:SetVServerGroupAttribute":          {said: "slb:SetVServerGroupAttribute on acs:slb:cn-shenzhen:*:loadbalancer/lb-1", result: "ROLLBACK", quiet: true},
		"slb:RemoveVServerGroupBackendServers":  {said: "slb:RemoveVServerGroupBackendServers on acs:slb:cn-shenzhen:*:loadbalancer/lb-1", result: "ROLLBACK", quiet: true},
		"alb:ListServerGroups":                  {said: "alb:ListServerGroups" + all, result: "ROLLBACK", quiet: true},
		"alb:ListServerGroupServers":            {said: "alb:ListServerGroupServers" + all, result: "ROLLBACK", quiet: true},
		"alb:GetListenerHealthStatus":           {said: "alb:GetListenerHealthStatus" + all, result: "ROLLBACK", quiet: true},
		"alb:UpdateServerGroupServersAttribute": {said: "alb:UpdateServerGroupServersAttribute on acs:alb:cn-shenzhen:*:servergroup/sgp-a", result: "ROLLBACK", quiet: true},
		"alb:RemoveServersFromServerGroup":      {said: "alb:RemoveServersFromServerGroup on acs:alb:cn-shenzhen:*:servergroup/sgp-a", result: "ROLLBACK", quiet: true},
		"nlb:ListServerGroups":                  {said: "nlb:ListServerGroups" + all, result: "ROLLBACK", quiet: true},
		"nlb:ListServerGroupServers":            {said: "nlb:ListServerGroupServers" + all, result: "ROLLBACK", quiet: true},
		"nlb:GetListenerHealthStatus":           {said: "nlb:GetListenerHealthStatus" + all, result: "ROLLBACK", quiet: true},
		"nlb:UpdateServerGroupServersAttribute": {said: "nlb:UpdateServerGroupServersAttribute on acs:nlb:cn-shenzhen:*:servergroup/sgp-n", result: "ROLLBACK", quiet: true},
		"nlb:RemoveServersFromServerGroup":      {said: "nlb:RemoveServersFromServerGroup on acs:nlb:cn-shenzhen:*:servergroup/sgp-n", result: "ROLLBACK", quiet: true},
		"nlb:ListListeners":                     {said: "nlb:ListListeners" + all, result: "ROLLBACK", quiet: true},
		// Only for register, for a change that takes long, and where ALB does not name its listeners.
		"slb:AddBackendServers":             {result: "CONTINUE", quiet: true},
		"slb:AddVServerGroupBackendServers": {result: "CONTINUE", quiet: true},
		"alb:AddServersToServerGroup":       {result: "CONTINUE", quiet: true},
		"nlb:AddServersToServerGroup":       {result: "CONTINUE", quiet: true},
		"alb:ListAsynJobs":                  {result: "CONTINUE", quiet: true},
		"nlb:GetJobStatus":                  {result: "CONTINUE", quiet: true},
		"alb:ListListeners":                 {result: "CONTINUE", quiet: true},
		// Only for groups with assume_role: see TestMissingAssumeRole.
		"sts:AssumeRole": {result: "CONTINUE", quiet: true},
		// Only for an action whose message is lost.
		"mns:SendMessage": {result: "CONTINUE", quiet: true},
		// Only what ESS does not tell is asked of ECS, and the zones of what is behind an ALB.
		"ecs:DescribeInstances":         {said: "ecs:DescribeInstances" + all, result: "ROLLBACK", quiet: true},
		"ecs:RunCommand":                {said: "ecs:RunCommand on acs:ecs:cn-shenzhen:*:instance/i-", result: "ROLLBACK", quiet: true},
		"ecs:DescribeInvocationResults": {said: "ecs:DescribeInvocationResults" + all, result: "ROLLBACK", quiet: true},
	}
	for _, action := range allowed(t, text) {
		row, ok := rows[action]
		if !ok {
			t.Errorf("the policy allows %s, and no row says what happens without it", action)
			continue
		}
		delete(rows, action)
		t.Run(action, func(t *testing.T) {
			t.Parallel()
			pattern := strings.ReplaceAll(regexp.QuoteMeta("; allow "+row.said), regexp.QuoteMeta(ofBatch), ofBatch)
			said := regexp.MustCompile(pattern).MatchString
			runPermitted(t, parse(t, text, action), func(p *permitted) {
				if row.said == "" {
					p.until(45*time.Minute, "both actions are over without it", p.settled)
				} else {
					p.until(20*time.Minute, "the log names "+row.said, func() bool {
						return said(p.logs())
					})
				}
				ready := p.app.worker.Ready()
				if row.result != "" {
					p.until(45*time.Minute, "both actions are over without it", p.settled)
					p.lost(row.result)
				}
				if row.quiet != (ready == nil) || ready != nil && !said(ready.Error()) {
					t.Errorf("ready: %v", ready)
				}
				p.sim.SetPolicy(parse(t, text))
				p.until(45*time.Minute, "both actions are over", p.settled)
				if row.result == "" {
					p.lost("CONTINUE")
				}
				p.until(10*time.Minute, "the worker is ready", func() bool { return row.result != "" || p.app.worker.Ready() == nil })
				if n := strings.Count(p.logs(), `"event":"`+string(audit.Lost)+`"`); n != 0 {
					t.Errorf("%d actions were lost", n)
				}
			})
		})
	}
	for action := range rows {
		t.Errorf("the policy does not allow %s", action)
	}
}
