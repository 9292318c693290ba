package app

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/configs"
	"example.org/usher/simulator"
)

const (
	account = simulator.DefaultAccountID
	ownRole = "usher-worker"
)

// roleFile is a group whose drain takes nearly all that ESS allows.
const roleFile = `provider: alibaba
region: cn-shenzhen
scaling_group: GROUP
queue: {name: ess-lifecycle, endpoint: "http://mns.test"QUEUE}
endpoints: {ess: "http://ess.test", ecs: "http://ecs.test", sts: "http://sts.test"}
ROLE
hooks:
  - transition: scale_in
    deadline: 6h
    on_failure: ROLLBACK
    steps:
      - command: {script: /opt/app/drain.sh, timeout: 350m}
`

// rolesTest is a worker, built from its config, whose keys come from the cloud and expire.
type rolesTest struct {
	files  map[string]string // beside usher.yaml
	env    map[string]string
	change func(*simulator.Scenario)
	// before runs in the bubble, before the worker begins.
	before func(t *testing.T, sim *simulator.Simulator, home string)
}

// run gives a test the worker of such a config, in a bubble of its own. The vendor's
// settings are the process's: these tests are not parallel.
func (r rolesTest) run(t *testing.T, test func(p *permitted)) {
	t.Helper()
	for _, entry := range os.Environ() {
		if name, _, _ := strings.Cut(entry, "="); strings.HasPrefix(name, "ALIBABA_CLOUD_") {
			t.Setenv(name, "")
		}
	}
	home, dir := t.TempDir(), t.TempDir()
	t.Setenv("HOME", home)
	for name, value := range r.env {
		t.Setenv(name, strings.ReplaceAll(value, "HOME", home))
	}
	r.files["usher.yaml"] = "name: w1\nhttp: \"off\"\nendpoints: {sts: \"http://sts.test\", metadata: \"http://metadata.test\"}\n"
	for name, text := range r.files {
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
		scenario.Roles = []simulator.RoleConfig{{Name: ownRole, Trust: []string{"ecs", "oidc", "account"}}}
		scenario.Metadata = simulator.MetadataConfig{Role: ownRole, Session: 2 * time.Hour}
		if r.change != nil {
			r.change(&scenario)
		}
		sim, err := simulator.New(simulator.Options{
			AccessKeyID: mark + "Id", AccessKeySecret: mark + "Key", Scenario: scenario, NoServers: true,
			Commands: func(string, string) simulator.CommandOutcome {
				return simulator.CommandOutcome{Duration: 340 * time.Minute}
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		if r.before != nil {
			r.before(t, sim, home)
		}
		l, closeCloud := serve(sim)
		p := &permitted{t: t, sim: sim}
		p.app, err = New(Options{
			Config: config, DialContext: l.DialContext, Audit: p,
			Logger: slog.New(slog.NewTextHandler(p, &slog.HandlerOptions{Level: slog.LevelDebug})),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer p.holdsNoKey(t)
		defer closeCloud()
		defer run(t, p.app, true)()
		test(p)
	})
}

// refused is what the cloud has refused, but for polls of an empty queue.
func (p *permitted) refused() map[string]int {
	refused := p.sim.State().Refusals
	delete(refused, "mns.BatchReceiveMessage MessageNotExist")
	return refused
}

// rotating writes the pod's token anew every 20 minutes; each is good for 25.
func rotating(t *testing.T, sim *simulator.Simulator, home string) {
	file := filepath.Join(home, "token")
	write := func() { // at once, as the kubelet does: never half a token
		err := os.WriteFile(file+".new", []byte(sim.IssueOIDCToken(25*time.Minute)), 0o600)
		if err = errors.Join(err, os.Rename(file+".new", file)); err != nil {
			t.Error(err)
		}
	}
	write()
	done := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		for {
			select {
			case <-time.After(20 * time.Minute):
				write()
			case <-done:
				return
			}
		}
	})
	t.Cleanup(func() { close(done); work.Wait() })
}

// withRole is roleFile for a group, with what it says of roles.
func withRole(group, role, queue string) string {
	return strings.NewReplacer("GROUP", group, "ROLE", role, "QUEUE", queue).Replace(roleFile)
}

// pod is the environment of a pod with RRSA.
func pod() map[string]string {
	return map[string]string{
		"ALIBABA_CLOUD_ROLE_ARN": "acs:ram::" + account + ":role/" + ownRole, "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": "acs:ram::" + account + ":oidc-provider/ack-rrsa",
		"ALIBABA_CLOUD_OIDC_TOKEN_FILE": "HOME/token",
	}
}

// TestASixHourDrainOverExpiries: keys of each kind that ends are renewed under way, and
// not one call of a drain of nearly six hours is refused.
func TestASixHourDrainOverExpiries(t *testing.T) {
	const web = "asg-wz9example0001"
	assume := "assume_role: {arn: \"acs:ram::" + account + ":role/web\"}"
	withWeb := func(s *simulator.Scenario) { s.Roles = append(s.Roles, simulator.RoleConfig{Name: "web"}) }
	for name, test := range map[string]struct {
		rolesTest
		renewed string // the call that gets new keys
	}{
		"ECS role":                {rolesTest{}, "metadata.Credentials"},
		"OIDC":                    {rolesTest{env: pod(), before: rotating}, "sts.AssumeRoleWithOIDC"},
		"AssumeRole on ECS role":  {rolesTest{files: map[string]string{"web.yaml": withRole(web, assume, "")}, change: withWeb}, "sts.AssumeRole"},
		"AssumeRole on OIDC":      {rolesTest{files: map[string]string{"web.yaml": withRole(web, assume, "")}, change: withWeb, env: pod(), before: rotating}, "sts.AssumeRole"},
		"AssumeRole but for MNS":  {rolesTest{files: map[string]string{"web.yaml": withRole(web, assume, ", assume_role: none")}, change: withWeb}, "sts.AssumeRole"},
		"AssumeRole on long keys": {rolesTest{files: map[string]string{"web.yaml": withRole(web, assume, "")}, change: withWeb, env: map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_ID": mark + "Id", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": mark + "Key"}}, "sts.AssumeRole"},
	} {
		t.Run(name, func(t *testing.T) {
			if underRace && name != "AssumeRole on OIDC" {
				t.Skip("under the race detector one of them is enough: it has two layers of keys to renew")
			}
			if test.files == nil {
				test.files = map[string]string{"web.yaml": withRole(web, "", "")}
			}
			test.run(t, func(p *permitted) {
				begun := time.Now()
				for range 2 { // two actions
					if _, err := p.sim.ScaleIn(web, 1); err != nil {
						t.Fatal(err)
					}
				}
				p.until(6*time.Hour, "both actions are over", p.settled)
				p.lost("CONTINUE")
				if took := time.Since(begun); took < 5*time.Hour+40*time.Minute {
					t.Errorf("the drain took %v", took)
				}
				if refused := p.refused(); len(refused) > 0 {
					t.Errorf("refused: %v", refused)
				}
				if n := p.sim.State().APICalls[test.renewed]; n < 3 || n > 10 {
					t.Errorf("%d calls of %s: %v", n, test.renewed, p.sim.State().APICalls)
				}
				if err := p.app.worker.Ready(); err != nil {
					t.Errorf("not ready: %v", err)
				}
				if text := p.logs(); strings.Contains(text, "level=ERROR") || strings.Contains(text, "level=WARN") {
					t.Errorf("something went wrong:\n%s", text)
				}
			})
		})
	}
}

// policyOf allows actions, each with its resource.
func policyOf(pairs ...string) string {
	var statements []string
	for i := 0; i+1 < len(pairs); i += 2 {
		statements = append(statements, `{"Effect":"Allow","Action":["`+strings.ReplaceAll(pairs[i], " ", `","`)+`"],"Resource":"`+pairs[i+1]+`"}`)
	}
	return `{"Version":"1","Statement":[` + strings.Join(statements, ",") + `]}`
}

// groupPolicy allows what the calls for one group need.
func groupPolicy(group string) string {
	return policyOf("ess:CompleteLifecycleAction ess:RecordLifecycleActionHeartbeat", "acs:ess:*:*:scalinggroup/"+group,
		"ess:DescribeLifecycleActions ess:DescribeLifecycleHooks ess:DescribeScalingInstances ess:DescribeScalingActivities ecs:RunCommand ecs:DescribeInvocationResults ecs:DescribeInstances", "*")
}

const queueActions = "mns:ReceiveMessage mns:BatchReceiveMessage mns:DeleteMessage mns:BatchDeleteMessage mns:ChangeMessageVisibility mns:GetQueueAttributes mns:SendMessage"

// twoGroups are a second group in the cloud, and a role for each that may touch its own
// group alone. The worker's own keys may read the queue and assume the roles.
func twoGroups(s *simulator.Scenario) {
	second := s.ScalingGroups[0]
	second.ID, second.Name = "asg-wz9example0002", "api"
	second.Hooks = []simulator.HookConfig{{ID: "ash-wz9example0003", Transition: "scale_in", Queue: "ess-lifecycle", DefaultResult: "ABANDON"}}
	s.ScalingGroups = append(s.ScalingGroups, second)
	s.Roles[0].Policy = policyOf(queueActions, "*", "sts:AssumeRole", "acs:ram::"+account+":role/*")
	s.Roles = append(s.Roles, simulator.RoleConfig{Name: "web", Policy: groupPolicy("asg-wz9example0001")}, simulator.RoleConfig{Name: "api", Policy: groupPolicy("asg-wz9example0002")})
}

// TestTwoGroupsWithTwoRoles: groups of one worker share a queue, and each of them calls
// with the keys of its own role.
func TestTwoGroupsWithTwoRoles(t *testing.T) {
	files := func(web, api string) map[string]string {
		role := "assume_role: {duration: 15m, arn: \"acs:ram::" + account + ":role/"
		return map[string]string{
			"web.yaml": withRole("asg-wz9example0001", role+web+"\"}", ", assume_role: none"),
			"api.yaml": withRole("asg-wz9example0002", role+api+"\"}", ", assume_role: none"),
		}
	}
	t.Run("its own", func(t *testing.T) {
		rolesTest{files: files("web", "api"), change: twoGroups}.run(t, func(p *permitted) {
			for _, group := range []string{"asg-wz9example0001", "asg-wz9example0002"} {
				if _, err := p.sim.ScaleIn(group, 1); err != nil {
					t.Fatal(err)
				}
			}
			p.until(6*time.Hour, "both actions are over", p.settled)
			p.lost("CONTINUE")
			if refused := p.refused(); len(refused) > 0 {
				t.Errorf("refused: %v", refused)
			}
			// A session of 15 minutes is renewed every ten, for each role.
			if n := p.sim.State().APICalls["sts.AssumeRole"]; n < 2*24 || n > 2*40 {
				t.Errorf("%d sessions", n)
			}
		})
	})
	t.Run("each other's", func(t *testing.T) {
		rolesTest{files: files("api", "web"), change: twoGroups}.run(t, func(p *permitted) {
			if _, err := p.sim.ScaleIn("asg-wz9example0001", 1); err != nil {
				t.Fatal(err)
			}
			const said = "allow ess:RecordLifecycleActionHeartbeat on acs:ess:cn-shenzhen:*:scalinggroup/asg-wz9example0001"
			p.until(time.Hour, "the log names what the other role may not", func() bool { return strings.Contains(p.logs(), said) })
		})
	})
}

// TestMissingAssumeRole: a worker that may not assume a group's role says so, with the
// role, on /readyz too, loses nothing, and works once it may.
func TestMissingAssumeRole(t *testing.T) {
	hours(t)
	arn := "acs:ram::" + account + ":role/usher-web"
	text, err := os.ReadFile(shipped)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct{ policy, said string }{
		"permission": {policyOf(queueActions, "*"), "allow sts:AssumeRole on " + arn + " in a RAM policy of these keys, and let the role's trust policy name them"},
		"role":       {policyOf("sts:AssumeRole", "*"), "there is no role " + arn},
	} {
		t.Run(name, func(t *testing.T) {
			rolesTest{
				files: map[string]string{"web.yaml": withRole("asg-wz9example0001", "assume_role: {arn: \""+arn+"\"}", "")},
				env:   map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_ID": mark + "Id", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": mark + "Key"},
				change: func(s *simulator.Scenario) {
					s.Policy = row.policy
					if name == "permission" { // the role may do what is shipped, and so may the keys in the end
						s.Roles = append(s.Roles, simulator.RoleConfig{Name: "usher-web", Policy: string(text)})
					}
				},
			}.run(t, func(p *permitted) {
				if _, err := p.sim.ScaleIn("asg-wz9example0001", 1); err != nil {
					t.Fatal(err)
				}
				p.until(10*time.Minute, "the log says "+row.said, func() bool { return strings.Contains(p.logs(), row.said) })
				if ready := p.app.worker.Ready(); ready == nil || !strings.Contains(ready.Error(), row.said) {
					t.Errorf("ready: %v", ready)
				}
				if n := p.sim.State().APICalls["sts.AssumeRole"]; n > 60 {
					t.Errorf("%d calls of AssumeRole in ten minutes", n)
				}
				if name != "permission" {
					return
				}
				if n := p.sim.State().Refusals["sts.AssumeRole NoPermission"]; n == 0 {
					t.Error("nothing was refused")
				}
				p.sim.SetPolicy(parse(t, text))
				p.until(6*time.Hour, "the action is over", func() bool {
					st := p.sim.State()
					return len(st.Actions) == 1 && st.Actions[0].Status != "Pending"
				})
				p.lost("CONTINUE")
			})
		})
	}
}

// TestKeysThatHangAreNoReasonToRestart: while the source of the queue's keys hangs,
// /readyz says so within a call's time, and /healthz stays well: a restart, which would
// cut what runs, would not help.
func TestKeysThatHangAreNoReasonToRestart(t *testing.T) {
	arn := "acs:ram::" + account + ":role/usher-web"
	rolesTest{
		files:  map[string]string{"web.yaml": withRole("asg-wz9example0001", "", ", assume_role: \""+arn+"\"")},
		change: func(s *simulator.Scenario) { s.Roles = append(s.Roles, simulator.RoleConfig{Name: "usher-web"}) },
		before: func(t *testing.T, sim *simulator.Simulator, _ string) {
			if _, err := sim.InjectFault(simulator.Fault{Service: "sts", Kind: simulator.FaultHang}); err != nil {
				t.Fatal(err)
			}
		},
	}.run(t, func(p *permitted) {
		const says = "no keys came in time"
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if ready := p.app.worker.Ready(); ready == nil || !strings.Contains(ready.Error(), "no credentials: wait for role "+arn+": "+says) {
			t.Errorf("ready: %v", ready)
		}
		if !strings.Contains(p.logs(), `msg="no credentials"`) {
			t.Errorf("the log does not tell:\n%s", p.logs())
		}
		for range 5 * 60 {
			time.Sleep(time.Second)
			synctest.Wait()
			if err := p.app.worker.Healthy(); err != nil {
				t.Fatalf("healthy: %v", err)
			}
			if p.app.worker.Ready() == nil {
				t.Fatal("ready without keys")
			}
		}
		p.sim.ClearFaults()
		p.until(time.Minute, "ready", func() bool { return p.app.worker.Ready() == nil })
	})
}

// TestAnySuccessShowsThatThereAreKeys: once a group has keys, /readyz tells nothing more
// of what failed for want of them, although it is not asked for again for minutes.
func TestAnySuccessShowsThatThereAreKeys(t *testing.T) {
	rolesTest{
		files: map[string]string{"web.yaml": withRole("asg-wz9example0001", "assume_role: {arn: \"acs:ram::"+account+":role/usher-web\"}", ", assume_role: none")},
		env:   map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_ID": mark + "Id", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": mark + "Key"},
		change: func(s *simulator.Scenario) {
			s.Roles = append(s.Roles, simulator.RoleConfig{Name: "usher-web"})
		},
		before: func(t *testing.T, sim *simulator.Simulator, _ string) {
			if _, err := sim.InjectFault(simulator.Fault{Service: "sts", Kind: simulator.FaultHang}); err != nil {
				t.Fatal(err)
			}
		},
	}.run(t, func(p *permitted) {
		p.until(6*time.Minute, "the search for lost actions failed", func() bool {
			ready := p.app.worker.Ready()
			return ready != nil && strings.Contains(ready.Error(), "find lost actions: ") && strings.Contains(ready.Error(), "no credentials")
		})
		p.sim.ClearFaults()
		if _, err := p.sim.ScaleIn("asg-wz9example0001", 1); err != nil {
			t.Fatal(err)
		}
		p.until(2*time.Minute, "ready", func() bool { return p.app.worker.Ready() == nil })
	})
}
