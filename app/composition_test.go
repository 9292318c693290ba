package app

import (
	"reflect"
	"slices"
	"testing"
	"time"

	"example.org/usher/configs"
	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

const composed = `provider: alibaba
region: cn-shenzhen
scaling_group: asg-a
queue: {name: first, endpoint: "http://mns.cn-shenzhen.test"}
endpoints: {ess: "http://ess.cn-shenzhen.test", ecs: "http://ecs.cn-shenzhen.test"}
hooks:
  - transition: scale_in
    deadline: 30m
    steps:
      - parallel:
          - wait: {for: 3m}
          - wait: {for: 5m}
          - wait: {for: 1m, timeout: 2m, on_error: ignore, when: {transition: scale_out}}
      - wait: {for: 1m, when: {tags: {role: web}}}
      - wait: {for: 1m, when: {tags: {role: db}}}
    always:
      - wait: {for: 2m, when: {job: failed}}
      - parallel: {when: {job: succeeded}, steps: [{wait: {for: 1m}}, {wait: {for: 2m}}]}
`

// What a file says of steps at once, on conditions and at the end is what is done.
func TestComposedSteps(t *testing.T) {
	t.Parallel()
	s := region(shenzhen, 5, map[string][]string{"first": {"asg-a"}})
	s.ScalingGroups[0].Tags = map[string]string{"role": "web"}
	runReloaded(t, map[string]string{"usher.yaml": "http: \"off\"\n", "a.yaml": composed}, []simulator.Scenario{s}, func(r *reloaded) {
		r.scaleIn(shenzhen, "asg-a", 1)
		r.until(time.Hour, "it is over", func() bool { return r.settled(1) })
		r.drained()
		var trail []string
		var begin time.Time
		for _, rec := range r.find(audit.StepFinished) {
			if begin.IsZero() {
				begin = r.find(audit.Admitted)[0].Time
			}
			line := rec.Result + " at " + rec.Time.Sub(begin).Round(time.Minute).String()
			if rec.Result == "skipped" {
				line += " " + rec.Reason
			}
			trail = append(trail, line)
		}
		want := []string{
			"skipped at 0s when: the transition is scale_in, not scale_out", "ok at 3m0s", "ok at 5m0s", "ok at 6m0s", "skipped at 6m0s when: the tag role is not db",
			"skipped at 6m0s when: the job has not failed", "ok at 7m0s", "ok at 8m0s",
		}
		if !slices.Equal(trail, want) {
			t.Errorf("got %q, want %q", trail, want)
		}
	})
}

// A group whose steps stand on other lines is the same.
func TestLinesMakeNoChange(t *testing.T) {
	t.Parallel()
	group := func(line int) configs.Group {
		wait := func(line int) configs.Step {
			return configs.Step{Kind: configs.KindWait, Line: line, Wait: &configs.WaitStep{For: time.Second}}
		}
		both := configs.Step{Kind: configs.KindParallel, Line: line, Parallel: []configs.Step{wait(line + 1), wait(line + 2)}}
		return configs.Group{Hooks: []configs.Hook{{Steps: []configs.Step{wait(line), both}, Always: []configs.Step{both, wait(line + 5)}}}}
	}
	a, b := group(3), group(9)
	if !reflect.DeepEqual(withoutLines(a), withoutLines(b)) {
		t.Error("other lines are taken for a change")
	}
	if !reflect.DeepEqual(a, group(3)) {
		t.Error("the configuration itself was changed")
	}
}
