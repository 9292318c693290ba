package aws

import (
	"crypto/sha256"
	"encoding/hex"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/providertest"
	"example.org/usher/simulator"
)

// TestConformance: the provider keeps the contract as that of every cloud does.
func TestConformance(t *testing.T) {
	t.Parallel()
	type apis = map[providertest.Call][]providertest.API
	api := func(service string, actions ...string) []providertest.API {
		permissions := map[string]string{
			"elb": "elasticloadbalancing", "elbv2": "elasticloadbalancing",
			"ChangeMessageVisibilityBatch": "ChangeMessageVisibility", "DeleteMessageBatch": "DeleteMessage",
		}
		as := func(name string) string {
			if other, ok := permissions[name]; ok {
				return other
			}
			return name
		}
		var out []providertest.API
		for _, action := range actions {
			out = append(out, providertest.API{Service: service, Action: action, Permission: as(service) + ":" + as(action)})
		}
		return out
	}
	machines := api("ec2", "DescribeInstances")
	sum := sha256.Sum256([]byte("tg-web")) // the simulator's way to make an ARN of a name
	classic := providers.Balancer{Kind: providers.ClassicELB, ID: "classic-1"}
	targets := providers.Balancer{Kind: providers.TargetGroup, ID: "arn:aws:elasticloadbalancing:eu-west-1:111122223333:targetgroup/tg-web/" + hex.EncodeToString(sum[:8])}
	providertest.Run(t, providertest.Cloud{
		Provider: messages.AWS,
		Scenario: simulator.Scenario{
			Provider: "aws", Region: "eu-west-1",
			Queues: []simulator.QueueConfig{{Name: "drain-q", VisibilityTimeout: 30 * time.Second, Retention: 24 * time.Hour}},
			Balancers: []simulator.BalancerConfig{
				{ID: "classic-1", Type: "elb", ConnectionDrainTimeout: 30 * time.Second},
				{ID: "alb-1", Type: "application", ConnectionDrainTimeout: 40 * time.Second, ServerGroups: []simulator.ServerGroupConfig{{ID: "tg-web"}}},
			},
			ScalingGroups: []simulator.GroupConfig{
				{
					ID: "web-asg", Instances: 6, Tags: map[string]string{"tier": "web"},
					ServerGroups: []simulator.MembershipConfig{{ID: "classic-1"}, {ID: "tg-web", Ports: []int{8080}}},
					Hooks: []simulator.HookConfig{
						{ID: "usher-drain", Transition: "scale_in", Queue: "drain-q", HeartbeatTimeout: 10 * time.Minute, DefaultResult: "CONTINUE"},
						{ID: "usher-prepare", Transition: "scale_out", Queue: "drain-q", HeartbeatTimeout: 10 * time.Minute, DefaultResult: "ABANDON"},
					},
				},
				{ID: "other-asg", Instances: 2, Hooks: []simulator.HookConfig{{ID: "other-drain", Transition: "scale_in", Queue: "drain-q"}}},
			},
			Timings: simulator.Timings{Agent: 30 * time.Minute},
			Roles:   []simulator.RoleConfig{{Name: "worker"}},
		},
		Region: "eu-west-1", QueueName: "drain-q", Group: "web-asg", HookIn: "usher-drain", HookOut: "usher-prepare",
		Other: "other-asg", Role: "worker", Visibility: time.Minute, HookTimeout: 10 * time.Minute,
		WaitingToGo: "Terminating:Wait", WaitingToCome: "Pending:Wait",
		Connect: connect, PolicyVersion: "2012-10-17", MaxAttempts: MaxAttempts, CallTimeout: DefaultCallTimeout,
		APIs: apis{
			providertest.Receive: api("sqs", "ReceiveMessage"), providertest.Extend: api("sqs", "ChangeMessageVisibilityBatch"),
			providertest.Delete: api("sqs", "DeleteMessageBatch"), providertest.DeleteBatch: api("sqs", "DeleteMessageBatch"),
			providertest.Send: api("sqs", "SendMessage"), providertest.Attributes: api("sqs", "GetQueueAttributes"),
			providertest.Hook:       api("autoscaling", "DescribeLifecycleHooks"),
			providertest.Verify:     append(api("autoscaling", "DescribeAutoScalingInstances"), machines...),
			providertest.Ended:      api("autoscaling", "DescribeAutoScalingInstances"),
			providertest.Instances:  append(api("autoscaling", "DescribeAutoScalingInstances"), machines...),
			providertest.Tags:       machines,
			providertest.Heartbeat:  api("autoscaling", "RecordLifecycleActionHeartbeat"),
			providertest.Complete:   api("autoscaling", "CompleteLifecycleAction"),
			providertest.GroupsOf:   api("autoscaling", "DescribeAutoScalingInstances"),
			providertest.RunCommand: api("ssm", "SendCommand", "ListCommands"), providertest.CommandResult: api("ssm", "GetCommandInvocation"),
			providertest.Attached: api("autoscaling", "DescribeAutoScalingGroups"),
		},
		Behind: []providertest.Behind{
			{
				Balancer: classic, ServerGroup: "classic-1", Weight: 100, Draining: 30 * time.Second, Notice: 4 * time.Second,
				APIs: apis{
					providertest.Find: api("elb", "DescribeInstanceHealth"), providertest.Members: api("elb", "DescribeInstanceHealth"),
					providertest.Draining: api("elb", "DescribeLoadBalancerAttributes"), providertest.Notice: api("elb", "DescribeLoadBalancers"),
					providertest.Add: api("elb", "RegisterInstancesWithLoadBalancer"), providertest.Remove: api("elb", "DeregisterInstancesFromLoadBalancer"),
				},
			},
			{
				Balancer: targets, ServerGroup: "tg-web", Port: 8080, Weight: 100, Draining: 40 * time.Second, Notice: 4 * time.Second, Leaves: 40 * time.Second,
				APIs: apis{
					providertest.Find: api("elbv2", "DescribeTargetHealth"), providertest.Members: api("elbv2", "DescribeTargetHealth"),
					providertest.Draining: api("elbv2", "DescribeTargetGroupAttributes"), providertest.Notice: api("elbv2", "DescribeTargetGroups"),
					providertest.Add: api("elbv2", "RegisterTargets"), providertest.Remove: api("elbv2", "DeregisterTargets"),
				},
			},
		},
		Attached: []providers.Balancer{classic, targets},
		Differences: providertest.Differences{
			MaxBatch: 10, MaxWait: 20 * time.Second, MaxBody: 1 << 20, HiddenInAll: 12 * time.Hour,
			Heartbeats: 100, LongestWait: 100 * 10 * time.Minute, Released: providers.Unlisted,
			Forged: map[string]providers.State{
				"true": providers.Pending, "unknown token": providers.Pending, "instance at work": providers.Unlisted, "unknown instance": providers.Unlisted,
				"another's": providers.Mismatch, "another group": providers.Mismatch, "the other way": providers.Over, "another hook": providers.Pending,
				"another's, wholly": providers.Mismatch, "instance gone": providers.Unlisted,
			},
			AgentAtOnce: true, NoAgent: "ClientNotRunning",
		},
	})
}

// connect makes clients for the suite.
func connect(t *testing.T, a providertest.Access) providertest.Clients {
	t.Helper()
	o := Options{
		Region: a.Region, QueueName: a.Queue, VisibilityTimeout: a.VisibilityTimeout, DialContext: a.Dial,
		SQSEndpoint: a.Endpoint, AutoScalingEndpoint: a.Endpoint, ELBEndpoint: a.Endpoint, SSMEndpoint: a.Endpoint, EC2Endpoint: a.Endpoint, STSEndpoint: a.Endpoint,
		Credentials: StaticCredentials(a.KeyID, a.Secret),
	}
	if a.Role != "" {
		role, err := NewAssumedRole(o, Role{ARN: "arn:aws:iam::" + simulator.DefaultAWSAccountID + ":role/" + a.Role, Duration: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		defer role.Close()
		keys, err := role.Retrieve(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		o.Credentials = static(awssdk.Credentials{AccessKeyID: keys.AccessKeyID, SecretAccessKey: keys.SecretAccessKey, SessionToken: keys.SessionToken})
	}
	queue, err1 := NewQueue(o)
	scaling, err2 := NewScaling(o)
	commander, err3 := NewCommander(o)
	balancers, err4 := NewBalancers(o)
	for _, err := range []error{err1, err2, err3, err4} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { balancers.Close(); commander.Close(); scaling.Close(); queue.Close() })
	return providertest.Clients{Queue: queue, Lifecycle: scaling, Commander: commander, Balancers: balancers}
}
