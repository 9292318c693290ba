package simulator

import (
	"strings"
	"testing"
)

func policy(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPolicyAllows(t *testing.T) {
	t.Parallel()
	p := policy(t, `{"Version": "1", "Statement": [
		{"Effect": "Allow", "Action": ["mns:*Message", "ess:Describe*"], "Resource": "acs:mns:*:1:/queues/q?/messages"},
		{"Effect": "Allow", "Action": "ess:Describe*", "Resource": ["*"]},
		{"Effect": "Deny", "Action": "ess:DescribeScalingGroups", "Resource": "*"}]}`)
	for _, c := range []struct {
		action, resource string
		want             bool
	}{
		{"mns:SendMessage", "acs:mns:cn-shenzhen:1:/queues/q1/messages", true},
		{"mns:SendMessage", "acs:mns:cn-shenzhen:1:/queues/q12/messages", false},
		{"mns:SendMessage", "acs:mns:cn-shenzhen:2:/queues/q1/messages", false},
		{"mns:SendMessages", "acs:mns:cn-shenzhen:1:/queues/q1/messages", false},
		{"ess:DescribeLifecycleActions", "anything.at(all)", true},
		{"ess:DescribeScalingGroups", "anything", false},
		{"ess:CompleteLifecycleAction", "anything", false},
	} {
		if got := p.Allows(c.action, c.resource); got != c.want {
			t.Errorf("%s on %s: %v, want %v", c.action, c.resource, got, c.want)
		}
	}
	if new(Policy).Allows("ess:DescribeScalingGroups", "*") {
		t.Error("a policy without statements allows something")
	}
}

func TestPolicyRefused(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		``:                               "EOF",
		`{}`:                             "Version",
		`{"Version":"1"} {}`:             "more than one",
		`{"Version":"1","Statements":1}`: "unknown field",
		`{"Version":"1","Statement":[{"Effect":"Maybe","Action":"*","Resource":"*"}]}`:                            "Effect",
		`{"Version":"1","Statement":[{"Effect":"Allow","Resource":"*"}]}`:                                         "needs an Action",
		`{"Version":"1","Statement":[{"Effect":"Allow","Action":"Complete","Resource":"*"}]}`:                     "no action",
		`{"Version":"1","Statement":[{"Effect":"Allow","Action":"ess:*","Resource":"asg-1"}]}`:                    "acs:",
		`{"Version":"1","Statement":[{"Effect":"Allow","Action":"*","Resource":"*","Condition":{}}]}`:             "unknown field",
		`{"Version":"1","Statement":[{"Effect":"Allow","Action":["*"],"Resource":["*` + strings.Repeat("*", 7000): "at most",
	} {
		if _, err := ParsePolicy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80s: %v, want %q", text, err, want)
		}
	}
	if _, err := parseScenario("f.yaml", []byte("queues: [{name: q}]\npolicy: '{}'\n")); err == nil || !strings.Contains(err.Error(), "f.yaml:2: policy: Version") {
		t.Errorf("scenario: %v", err)
	}
}

// TestPolicyIsEnforced: each call needs its action on its resource, and is refused in the
// words of its service otherwise.
func TestPolicyIsEnforced(t *testing.T) {
	t.Parallel()
	sc := oneGroup(3, hookIn("ash-1", ""))
	sc.Policy = `{"Version":"1","Statement":[]}`
	w := start(t, Options{Scenario: sc, NoServers: true, AccountID: "1"})
	act, err := w.ScaleIn("asg-1", 1)
	if err != nil {
		t.Fatal(err)
	}
	only := func(action, resource string) {
		t.Helper()
		w.SetPolicy(policy(t, `{"Version":"1","Statement":[{"Effect":"Allow","Action":`+action+`,"Resource":"`+resource+`"}]}`))
	}
	const messages = "/queues/q/messages"
	region := w.scenario.Region
	for _, c := range []struct {
		method, target, body string
		action, resource     string // all that it needs
	}{
		{"POST", messages, "<Message><MessageBody>x</MessageBody></Message>", `"mns:SendMessage"`, messages},
		{"GET", messages, "", `"mns:ReceiveMessage"`, messages},
		{"GET", messages + "?numOfMessages=2", "", `["mns:ReceiveMessage","mns:BatchReceiveMessage"]`, messages},
		{"DELETE", messages + "?ReceiptHandle=x", "", `"mns:DeleteMessage"`, messages},
		{"DELETE", messages, "<ReceiptHandles><ReceiptHandle>x</ReceiptHandle></ReceiptHandles>", `["mns:DeleteMessage","mns:BatchDeleteMessage"]`, messages},
		{"PUT", messages + "?ReceiptHandle=x&VisibilityTimeout=3", "", `"mns:ChangeMessageVisibility"`, messages},
		{"GET", "/queues/q", "", `"mns:GetQueueAttributes"`, "/queues/q"},
		{"GET", "/queues", "", `"mns:ListQueue"`, "/queues"},
	} {
		arn := "acs:mns:" + region + ":1:" + c.resource
		only(c.action, arn)
		if r, err := w.mns(c.method, c.target, c.body); err != nil || strings.Contains(r.body, "AccessDenied") {
			t.Errorf("%s %s with %s: %v, %v", c.method, c.target, c.action, r, err)
		}
		only(c.action, arn+"x")
		w.refused(403, "AccessDenied", c.method, c.target, c.body)
		only(`"ess:*"`, "*")
		w.refused(403, "AccessDenied", c.method, c.target, c.body)
		if strings.HasPrefix(c.action, "[") { // the names of both are needed
			single, batch, _ := strings.Cut(strings.Trim(c.action, "[]"), ",")
			for _, one := range []string{single, batch} {
				only(one, arn)
				w.refused(403, "AccessDenied", c.method, c.target, c.body)
			}
		}
	}
	hook := []string{"LifecycleHookId", "ash-1", "LifecycleActionToken", act.Tokens[0]}
	for _, c := range []struct {
		version, action, resource string
		parameters                []string
	}{
		{ecsVersion, "ecs:RunCommand", "acs:ecs:" + region + ":1:instance/" + act.Instances[0], []string{
			"InstanceId.1", act.Instances[0], "Type", "RunShellScript", "CommandContent", "dHJ1ZQ==", "ContentEncoding", "Base64"}},
		{essOld, "ess:RecordLifecycleActionHeartbeat", "acs:ess:" + region + ":1:scalinggroup/asg-1", hook},
		{essOld, "ess:CompleteLifecycleAction", "acs:ess:" + region + ":1:scalinggroup/asg-1", hook},
		{essOld, "ess:DescribeLifecycleActions", "*", []string{"ScalingActivityId", act.ID}},
		{ecsVersion, "ecs:DescribeInstances", "*", nil},
	} {
		_, name, _ := strings.Cut(c.action, ":")
		only(`"mns:*"`, "*")
		denied := w.fails(403, "Forbidden.RAM", c.version, name, c.parameters...)
		if detail, _ := denied["AccessDeniedDetail"].(map[string]any); detail["AuthAction"] != c.action {
			t.Errorf("%s: %v", c.action, denied)
		}
		only(`"`+c.action+`"`, "acs:oss:*")
		w.fails(403, "Forbidden.RAM", c.version, name, c.parameters...)
		only(`"`+c.action+`"`, c.resource)
		w.call(c.version, name, c.parameters...)
	}
	only(`"ess:*"`, "acs:ess:*:*:scalinggroup/asg-1")
	w.fails(403, "Forbidden.RAM", essOld, "CompleteLifecycleAction", "LifecycleHookId", "ash-1", "LifecycleActionToken", "unknown")

	if r := w.control("PUT", "/simulator/policy", `{"Version":"1","Statement":[]}`); r.status != 204 {
		t.Errorf("control: %v", r)
	}
	w.fails(403, "Forbidden.RAM", essOld, "DescribeScalingGroups")
	if r := w.control("DELETE", "/simulator/policy", ""); r.status != 204 {
		t.Errorf("control: %v", r)
	}
	w.call(essOld, "DescribeScalingGroups")
	for method, status := range map[string]int{"PUT": 400, "GET": 405} {
		if r := w.control(method, "/simulator/policy", "{}"); r.status != status {
			t.Errorf("control %s: %v", method, r)
		}
	}
}
