package configs

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"example.org/usher/messages"
)

func TestComposition(t *testing.T) {
	t.Parallel()
	text := strings.Replace(goodGroup, "    steps: []\n", `    steps:
      - parallel: {when: {transition: scale_in}, steps: [{wait: {for: 5s, timeout: 2m}}, {command: {script: /opt/a.sh, timeout: 1m, retries: 2}}]}
      - parallel:
          - deregister: {balancers: auto, timeout: 3m, when: {tags: {role: web, "acs:x y": ""}}}
      - wait: {for: 1s, timeout: 30s}
    always:
      - command: {script: /opt/b.sh, timeout: 90s, when: {job: failed}}
      - parallel: [{wait: {for: 1s, timeout: 10s}}, {wait: {for: 1s, timeout: 20s}}]
`, 1)
	g := load(t, nil, "web.yaml", text).Groups[0]
	h := g.Hooks[0]
	if len(h.Steps) != 3 || len(h.Always) != 2 || len(h.Steps[0].Parallel) != 2 || len(h.Steps[1].Parallel) != 1 {
		t.Fatalf("hook %+v", h)
	}
	if got := h.Steps[0].When; !reflect.DeepEqual(got, Condition{Transition: messages.ScaleIn}) {
		t.Errorf("when %+v", got)
	}
	if got := h.Steps[1].Parallel[0].When; !reflect.DeepEqual(got, Condition{Tags: map[string]string{"role": "web", "acs:x y": ""}}) {
		t.Errorf("when %+v", got)
	}
	if got := h.Always[0].When; !reflect.DeepEqual(got, Condition{Job: JobFailed}) {
		t.Errorf("when %+v", got)
	}
	var kinds []string
	for s := range h.Each() {
		kinds = append(kinds, s.Kind)
	}
	if got := strings.Join(kinds, " "); got != "wait command deregister wait command wait wait" {
		t.Errorf("the steps are %s", got)
	}
	if got := h.Steps[0].Longest(); got != 3*time.Minute {
		t.Errorf("the first takes %v at the most", got)
	}
	if got := h.Kept(); got != 110*time.Second {
		t.Errorf("%v are kept back, want 1m50s", got)
	}
	if !g.UsesBalancers() {
		t.Error("a step in parallel calls balancers, and nobody knows")
	}
}

// The undoing of a step counts, in parallel one after the other.
func TestUndoCounts(t *testing.T) {
	t.Parallel()
	step := Step{Kind: KindCommand, Timeout: 10 * time.Minute, UndoTimeout: time.Minute}
	h := Hook{Deadline: 30 * time.Minute, OnFailure: messages.Rollback, Steps: []Step{step, {Kind: KindParallel, Parallel: []Step{step, step}}}, Always: []Step{{Kind: KindWait, Timeout: 6 * time.Minute}}}
	if got := h.Kept(); got != 9*time.Minute {
		t.Errorf("%v are kept back, want 9m", got)
	}
	leaves := h
	leaves.OnFailure = messages.Abandon
	if got := leaves.Kept(); got != 6*time.Minute {
		t.Errorf("%v are kept back for an instance that goes all the same, want 6m", got)
	}
	f := &file{name: "web.yaml"}
	f.fields(nodeOf(t, "steps: []"), "hooks[0]", "steps").checkSteps(h)
	const want = "steps need 10m + max(10m, 10m) + undo 1m + undo 1m + undo 1m + always 6m = 29m, the deadline is 28m"
	if len(f.problems) != 0 {
		t.Errorf("29m do not fit 30m: %v", f.problems)
	}
	h.Deadline = 28 * time.Minute
	f.fields(nodeOf(t, "steps: []"), "hooks[0]", "steps").checkSteps(h)
	if len(f.problems) != 1 || f.problems[0].Message != want {
		t.Errorf("problems %v, want %s", f.problems, want)
	}
}

func nodeOf(t *testing.T, text string) *yaml.Node {
	t.Helper()
	var n yaml.Node
	if err := yaml.Unmarshal([]byte(text), &n); err != nil {
		t.Fatal(err)
	}
	return n.Content[0]
}

// A webhook's URL and its key are secrets: neither a problem nor a value that is printed
// tells them.
func TestNotifyKeepsSecrets(t *testing.T) {
	t.Parallel()
	const token = "topsecret"
	wrong, err := os.ReadFile("testdata/group/notify-wrong.golden")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(wrong), token) {
		t.Error("a problem tells the token")
	}
	text := strings.Replace(goodGroup, "    steps: []\n", "    steps:\n      - notify: {format: slack, url: \"https://hooks.slack.com/services/T0/B0/"+token+"\"}\n"+
		"      - notify: {format: dingtalk, url_file: /etc/usher/ding, secret_file: /etc/usher/key, text: \"{{.InstanceID}} leaves\", when: {transition: scale_in}}\n", 1)
	c := load(t, nil, "web.yaml", text)
	steps := c.Groups[0].Hooks[0].Steps
	if got, want := steps[0], (Step{
		Kind: KindNotify, Line: 9, Timeout: time.Second, OnError: OnErrorIgnore,
		Notify: &NotifyStep{Format: NotifySlack, URL: Secret("https://hooks.slack.com/services/T0/B0/" + token), Text: DefaultNotifyText},
	}); !reflect.DeepEqual(got, want) {
		t.Errorf("step %+v %+v, want %+v %+v", got, got.Notify, want, want.Notify)
	}
	if got, want := steps[1].Notify, (&NotifyStep{Format: NotifyDingTalk, URLFile: "/etc/usher/ding", SecretFile: "/etc/usher/key", Text: "{{.InstanceID}} leaves"}); !reflect.DeepEqual(got, want) {
		t.Errorf("step %+v, want %+v", got, want)
	}
	if printed := fmt.Sprintf("%v %+v %#v %s", steps[0].Notify, *steps[0].Notify, *steps[0].Notify, steps[0].Notify.URL); strings.Contains(printed, token) {
		t.Error("the token is printed with the step")
	}
}
