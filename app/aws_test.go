package app

import (
	"cmp"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/configs"
	"example.org/usher/providers/aws"
	"example.org/usher/simulator"
)

// shippedAWS is the policy that operators on AWS are told to use, as it is.
const shippedAWS = "../docs/iam-policy.json"

// awsFile is the group of that policy, with a job that uses all that it allows.
const awsFile = `provider: aws
region: eu-west-1
scaling_group: web-asg
queue: {name: drain-q, endpoint: "http://sqs.test"}
endpoints: {autoscaling: "http://autoscaling.test", elb: "http://elb.test", ssm: "http://ssm.test", ec2: "http://ec2.test", sts: "http://sts.test"}
hooks:
  - transition: scale_in
    deadline: 50m
    steps:
      - deregister: {balancers: auto}
      - wait_connections: {ports: [80], timeout: 2m}
      - command: {script: /opt/app/backup.sh, timeout: 20m}
`

// awsFleet is a group behind a classic balancer and a target group that Auto Scaling does not
// know of.
func awsFleet() simulator.Scenario {
	scenario := simulator.DefaultAWSScenario()
	scenario.Balancers = append(scenario.Balancers,
		simulator.BalancerConfig{ID: "shop", Type: "elb", ConnectionDrainTimeout: 30 * time.Second},
		simulator.BalancerConfig{ID: "alb-1", Type: "application", ConnectionDrainTimeout: 40 * time.Second, ServerGroups: []simulator.ServerGroupConfig{{ID: "tg-web"}}})
	scenario.ScalingGroups[0].ServerGroups = []simulator.MembershipConfig{{ID: "shop", Unattached: true}, {ID: "tg-web", Unattached: true}}
	scenario.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 5 * time.Minute
	return scenario
}

// settledAWS: both actions are over and their messages deleted.
func (p *permitted) settledAWS() bool {
	st := p.sim.State()
	for _, a := range st.Actions {
		if a.Status == "Pending" {
			return false
		}
	}
	q, _ := st.Queue("drain-q")
	return len(st.Actions) == 2 && q.Active+q.Inactive+q.Delayed == 0
}

// runAWS scales two instances of the simulated AWS in, in a bubble of its own, with a worker
// that the cloud allows what policy says.
func runAWS(t *testing.T, file string, policy *simulator.Policy, test func(p *permitted)) {
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
		sim, err := simulator.New(simulator.Options{
			AccessKeyID: mark + "Id", AccessKeySecret: mark + "Key", Scenario: awsFleet(), NoServers: true, Policy: policy,
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
			Config: config, AWSCredentials: aws.StaticCredentials(mark+"Id", mark+"Key"), DialContext: l.DialContext,
			Audit: p, Logger: slog.New(slog.NewTextHandler(p, &slog.HandlerOptions{Level: slog.LevelDebug})),
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := sim.ScaleIn("web-asg", 2); err != nil {
			t.Fatal(err)
		}
		defer p.holdsNoKey(t)
		defer closeCloud()
		defer run(t, p.app, true)()
		test(p)
	})
}

// TestShippedPolicyOfAWS: with exactly the policy that is shipped, everything works.
func TestShippedPolicyOfAWS(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile(shippedAWS)
	if err != nil {
		t.Fatal(err)
	}
	runAWS(t, awsFile, parse(t, text), func(p *permitted) {
		p.until(40*time.Minute, "both actions are over", p.settledAWS)
		p.lost("CONTINUE")
		if text := p.logs(); strings.Contains(text, "denied") || strings.Contains(text, "level=ERROR") {
			t.Errorf("something was denied:\n%s", text)
		}
		if err := p.app.worker.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
		t.Logf("calls: %v", slices.Sorted(maps.Keys(p.sim.State().APICalls)))
	})
}

// TestMissingPermissionOnAWS takes each permission of the shipped policy away: the log names it,
// the worker is not ready where it can't work without it, nothing is deleted before it is
// answered, and all is done once the permission is there.
func TestMissingPermissionOnAWS(t *testing.T) {
	hours(t)
	t.Parallel()
	text, err := os.ReadFile(shippedAWS)
	if err != nil {
		t.Fatal(err)
	}
	const (
		queue = " on arn:aws:sqs:eu-west-1:*:drain-q"
		group = " on arn:aws:autoscaling:eu-west-1:*:autoScalingGroup:*:autoScalingGroupName/web-asg"
		all   = " on *"
	)
	// What the worker can't do without. Without the others a step fails, or a warning is missed.
	waits := map[string]string{
		"sqs:GetQueueUrl":                            queue,
		"sqs:ReceiveMessage":                         queue,
		"sqs:ChangeMessageVisibility":                queue,
		"sqs:DeleteMessage":                          queue,
		"autoscaling:CompleteLifecycleAction":        group,
		"autoscaling:RecordLifecycleActionHeartbeat": group,
		"autoscaling:DescribeAutoScalingInstances":   all,
		"autoscaling:DescribeLifecycleHooks":         all,
		"ec2:DescribeInstances":                      all,
	}
	actions := allowed(t, text)
	for action := range waits {
		if !slices.Contains(actions, action) {
			t.Errorf("the policy does not allow %s", action)
		}
	}
	for _, action := range actions {
		t.Run(action, func(t *testing.T) {
			t.Parallel()
			runAWS(t, awsFile, parse(t, text, action), func(p *permitted) {
				p.until(40*time.Minute, "the log names "+action, func() bool { return strings.Contains(p.logs(), "allow "+action+cmp.Or(waits[action], " on ")) })
				if on, must := waits[action]; must {
					p.until(time.Minute, "not ready for "+action, func() bool {
						err := p.app.worker.Ready()
						return err != nil && strings.Contains(err.Error(), action+on)
					})
					p.sim.SetPolicy(parse(t, text))
				}
				p.until(2*time.Hour, "both actions are over", p.settledAWS)
				p.inOrder()
				if _, must := waits[action]; must {
					p.until(time.Hour, "ready again", func() bool { return p.app.worker.Ready() == nil })
				}
			})
		})
	}
}

// inOrder looks for a message that was deleted before its action was over.
func (p *permitted) inOrder() {
	p.t.Helper()
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
