package main

import (
	"strings"
	"syscall"
	"testing"

	"example.org/usher/simulator"
)

// TestRoleOfTheInstance: a worker without a key of its own finds the role of its instance,
// assumes its group's with it, and sees an instance out.
func TestRoleOfTheInstance(t *testing.T) {
	t.Parallel()
	const arn = "acs:ram::" + simulator.DefaultAccountID + ":role/"
	c := startCloud(t, scenario(2, false)+`roles:
  - name: worker
    trust: [ecs]
    policy: '{"Version":"1","Statement":[{"Effect":"Allow","Action":["mns:*","sts:AssumeRole"],"Resource":"*"}]}'
  - name: web
    policy: '{"Version":"1","Statement":[{"Effect":"Allow","Action":["ess:*","ecs:*"],"Resource":"*"}]}'
metadata: {mode: v2, role: worker, session: 15m}
`)
	w := startWorker(t, c, []string{
		"USHER_ENDPOINTS_STS=" + c.url, "USHER_ENDPOINTS_METADATA=" + c.url,
		"USHER_GROUP_WEB_ASSUME_ROLE_ARN=" + arn + "web", "USHER_GROUP_WEB_QUEUE_ASSUME_ROLE=none",
	}, "- wait: {for: 50ms}", "")
	w.awaitReady(t)
	c.scaleIn(t, 1)
	c.awaitCompleted(t, 1, "CONTINUE")
	until(t, "the instance released", func() bool { return len(c.state(t).Groups[0].Instances) == 1 })
	w.signal(t, syscall.SIGTERM)
	w.wantExit(t)
	for refusal := range c.state(t).Refusals {
		if !strings.HasSuffix(refusal, " MessageNotExist") {
			t.Errorf("refused: %s", refusal)
		}
	}
	for _, want := range []string{`msg="credentials found" source="ECS metadata"`, `msg="credentials renewed" source="role ` + arn + `web"`} {
		if text := w.stderr.String(); !strings.Contains(text, want) {
			t.Errorf("the log lacks %s", want)
		}
	}
}

// TestNoKeysAnywhere: a worker that finds none says where it looked, and stays.
func TestNoKeysAnywhere(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(1, false)+"metadata: {mode: \"off\"}\n")
	w := startWorker(t, c, []string{"USHER_ENDPOINTS_METADATA=" + c.url}, "- wait: {for: 50ms}", "")
	w.await(t, &w.stderr, "where it looked", func(text string) bool {
		return strings.Contains(text, "no source applies: environment: ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET are not set; OIDC: ") &&
			strings.Contains(text, "ECS metadata: this instance has no RAM role; URI: ALIBABA_CLOUD_CREDENTIALS_URI is not set")
	})
	w.signal(t, syscall.SIGTERM)
	w.wantExit(t)
}
