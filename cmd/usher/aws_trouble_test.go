package main

import (
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"example.org/usher/simulator"
)

// awsKeys are the environment of a worker that the simulated AWS accepts.
var awsKeys = []string{"AWS_ACCESS_KEY_ID=" + keyID, "AWS_SECRET_ACCESS_KEY=" + keySecret, "AWS_EC2_METADATA_DISABLED=true"}

// startAWS serves the default scenario of AWS.
func startAWS(t *testing.T) *cloud {
	t.Helper()
	c := &cloud{process: start(t, os.Args[0], nil, "simulate", "--provider", "aws", "--listen", "127.0.0.1:0", "--access-key-id", keyID, "--access-key-secret", keySecret)}
	c.await(t, &c.stdout, "the line with the endpoints", func(text string) bool { return strings.HasSuffix(text, "\n") })
	c.url = decodeJSON[map[string]string](t, c.stdout.String())["sqs"]
	return c
}

// awsConfig writes the config folder of a worker for that scenario's group.
func awsConfig(t *testing.T, c *cloud, region, queue string) string {
	t.Helper()
	return writeFiles(t, map[string]string{
		"usher.yaml": "http: 127.0.0.1:0\nvisibility_timeout: 10s\nlog: {level: debug}\n",
		"web.yaml": strings.NewReplacer("URL", c.url, "REGION", region, "QUEUE", queue).Replace(`provider: aws
region: REGION
scaling_group: web-asg
queue: {name: QUEUE, endpoint: "URL"}
endpoints: {autoscaling: "URL", elb: "URL", ssm: "URL", ec2: "URL", sts: "URL"}
hooks: [{transition: scale_in, deadline: 5m, steps: [{wait: {for: 10ms}}]}]
`),
	})
}

// scaleInAWS takes one instance out of the group.
func (c *cloud) scaleInAWS(t *testing.T) {
	t.Helper()
	ask[simulator.Activity](t, c, http.MethodPost, "/simulator/scaling-groups/web-asg/scale-in", `{"count": 1}`)
}

// queued is how many messages the queue has, those that somebody holds too.
func (c *cloud) queued(t *testing.T) int {
	t.Helper()
	q, _ := c.state(t).Queue("drain-q")
	return q.Active + q.Inactive + q.Delayed
}

// awaitAnswered waits until all actions are answered and their messages are deleted, in that order.
func (c *cloud) awaitAnswered(t *testing.T) {
	t.Helper()
	until(t, "an answer", func() bool {
		actions := c.state(t).Actions
		return len(actions) > 0 && !slices.ContainsFunc(actions, func(a simulator.ActionState) bool {
			return a.Status != "Completed" || a.EndedBy != "call" || a.Result != "CONTINUE"
		}) && c.queued(t) == 0
	})
	c.wantOrder(t)
}

// TestAWSNotReady: what is wrong on AWS leaves the worker up and not ready, with an error that
// names the permission or the setting, and deletes nothing.
func TestAWSNotReady(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		env           []string
		region, queue string
		fault         string
		want          []string
	}{
		"no permission": {
			fault: `{"service": "autoscaling", "action": "CompleteLifecycleAction", "kind": "denied"}`,
			want:  []string{"autoscaling:CompleteLifecycleAction", "autoScalingGroupName/web-asg"},
		},
		"expired token": {
			fault: `{"service": "autoscaling", "kind": "error", "code": "ExpiredToken", "status": 403}`,
			want:  []string{"ExpiredToken", "expired"},
		},
		"unknown token": {env: append(slices.Clone(awsKeys), "AWS_SESSION_TOKEN="+mark+"Token"), want: []string{"queue drain-q: ", "denied", "session token is unknown"}},
		"wrong secret":  {env: []string{awsKeys[0], awsKeys[1] + "x", awsKeys[2]}, want: []string{"queue drain-q: ", "denied", "SignatureDoesNotMatch"}},
		"no keys":       {env: awsKeys[2:], want: []string{"queue drain-q: ", "no credentials", "AWS_ACCESS_KEY_ID"}},
		"wrong region":  {region: "eu-west-2", want: []string{"queue drain-q: ", "region"}},
		"no queue":      {queue: "drain-x", want: []string{"queue drain-x: ", "queue does not exist", "queue.name"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startAWS(t)
			if tt.fault != "" {
				c.fault(t, tt.fault)
			}
			region, queue, env := tt.region, tt.queue, tt.env
			if region == "" {
				region = "eu-west-1"
			}
			if queue == "" {
				queue = "drain-q"
			}
			if env == nil {
				env = awsKeys
			}
			c.scaleInAWS(t)
			w := startWorkerOn(t, nil, env, awsConfig(t, c, region, queue))
			w.wantUpNotReady(t, tt.want...)
			if n := c.queued(t); n != 1 {
				t.Errorf("the queue has %d messages, want the one that nobody answered", n)
			}
			if a := c.state(t).Actions[0]; a.Status != "Pending" {
				t.Errorf("the action is %s", a.Status)
			}
			if tt.fault != "" { // what is mended is gone on with
				c.clearFaults(t)
			} else {
				w = startWorkerOn(t, nil, awsKeys, awsConfig(t, c, "eu-west-1", "drain-q"))
			}
			c.awaitAnswered(t)
			w.awaitReady(t)
		})
	}
}
