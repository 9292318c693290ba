package simulator

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// python runs Debian's own Python, without what its environment and its user's home say.
const python = "/usr/bin/python3"

// TestBoto3 drives the simulator with Debian's boto3, which speaks Query where the SDK for
// Go speaks JSON, and has an implementation of its own of all else.
func TestBoto3(t *testing.T) {
	t.Parallel()
	if out, err := exec.CommandContext(t.Context(), python, "-I", "-c", "import boto3").CombinedOutput(); err != nil {
		t.Skipf("python3-boto3 is not installed: %v %s", err, out)
	}
	for _, part := range []string{"sqs", "sts", "autoscaling", "ec2", "elb", "elbv2", "ssm"} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			w := start(t, Options{Scenario: botoScenario(), NoServers: true, Commands: func(_, script string) CommandOutcome {
				return CommandOutcome{Output: "ran: " + script + "\n"}
			}})
			home := t.TempDir()
			cmd := exec.CommandContext(t.Context(), python, "-I", "-B", "testdata/boto3_drive.py", w.base, part)
			cmd.Env = []string{
				"HOME=" + home, "PATH=" + os.Getenv("PATH"), "AWS_EC2_METADATA_DISABLED=true",
				"AWS_ACCESS_KEY_ID=" + w.id, "AWS_SECRET_ACCESS_KEY=" + w.secret, "AWS_DEFAULT_REGION=eu-west-1",
			}
			out, err := cmd.CombinedOutput()
			if err != nil || strings.TrimSpace(string(out)) != part {
				t.Errorf("%s: %v\n%s", part, err, out)
			}
		})
	}
}

// botoScenario has one of each. Its times are so long that a slow machine sees none end.
func botoScenario() Scenario {
	sc := DefaultAWSScenario()
	sc.Queues[0].VisibilityTimeout = time.Hour
	sc.Roles = []RoleConfig{{
		Name: "drainer", Policy: `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sqs:GetQueueUrl","Resource":"*"}]}`,
	}}
	sc.Balancers = []BalancerConfig{{ID: "alb-web", Type: typeApplication, ServerGroups: []ServerGroupConfig{{ID: "sgp"}}}, {ID: "classic", Type: typeELB}}
	g := &sc.ScalingGroups[0]
	g.Instances, g.Balancers = 3, nil
	g.ServerGroups = []MembershipConfig{{ID: "sgp", Unattached: true, Ports: []int{8080}}, {ID: "classic", Unattached: true}}
	for i := range g.Hooks {
		g.Hooks[i].HeartbeatTimeout = time.Hour
	}
	return sc
}
