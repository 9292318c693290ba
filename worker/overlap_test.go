package worker_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// endings are the ways in which a hook's wait can end: the worker answers, or its
// heartbeats do not get through and the hook's default result strikes.
var endings = []string{"CONTINUE", "ABANDON", "ROLLBACK", "CONTINUE by default", "ABANDON by default", "ROLLBACK by default"}

// overlapTable is what becomes of an instance that two hooks hold, by how the first of them
// ends (the row) and how the second one would (the column, in the order of endings). Early:
// the first one's end ends the second's wait, too. From the table of
// CompleteLifecycleAction and the section on several hooks (ESS 2014-08-28): at scale-in
// the removal goes on with CONTINUE and ABANDON, and is taken back by ROLLBACK; the
// first ABANDON or ROLLBACK ends the other waits. At scale-out all waits run out, and the
// last to end decides: CONTINUE lets the instance join, the others release it.
const overlapTable = `
scale_in  CONTINUE             released released service  released released service
scale_in  ABANDON              released-early released-early released-early released-early released-early released-early
scale_in  ROLLBACK             service-early service-early service-early service-early service-early service-early
scale_in  CONTINUE by default  released released service  released released service
scale_in  ABANDON by default   released-early released-early released-early released-early released-early released-early
scale_in  ROLLBACK by default  service-early service-early service-early service-early service-early service-early
scale_out CONTINUE             service  released released service  released released
scale_out ABANDON              service  released released service  released released
scale_out ROLLBACK             service  released released service  released released
scale_out CONTINUE by default  service  released released service  released released
scale_out ABANDON by default   service  released released service  released released
scale_out ROLLBACK by default  service  released released service  released released
`

// overlap is one combination.
type overlap struct {
	transition    messages.Transition
	first, second string
	inService     bool // the instances, in the end
	early         bool
}

func readOverlaps(t *testing.T) (list []overlap) {
	for line := range strings.Lines(strings.TrimSpace(overlapTable)) {
		words := strings.Fields(strings.ReplaceAll(line, " by default", "~by~default"))
		if len(words) != 2+len(endings) {
			t.Fatalf("line %q", line)
		}
		for i, word := range words[2:] {
			state, early := strings.CutSuffix(word, "-early")
			list = append(list, overlap{messages.Transition(words[0]), strings.ReplaceAll(words[1], "~", " "), endings[i], state == "service", early})
		}
	}
	if len(list) != 72 {
		t.Fatalf("%d combinations, want 2 transitions of 36", len(list))
	}
	return list
}

// When the hooks' waits end. A wait that ends early does so at firstEnds, and its jobs must
// have noticed long before secondEnds: at once where the worker itself has answered
// the first, and within one look at the cloud elsewhere.
const (
	firstEnds  = 60 * time.Second
	secondEnds = 5 * time.Minute
	noticed    = 32 * time.Second
)

// Each combination of how two hooks of one activity end, in both orders of their ids and
// messages, held by one worker or by one each, ends as the table says, and leaves
// nothing: no message, no wait, no step at work, no action that is not closed once.
func TestTwoHooksOverlap(t *testing.T) {
	t.Parallel()
	for _, o := range readOverlaps(t) {
		for _, swapped := range []bool{false, true} {
			for workers := 1; workers <= 2; workers++ {
				t.Run(fmt.Sprintf("%s %s then %s swapped=%v workers=%d", o.transition, o.first, o.second, swapped, workers), func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) { o.run(t, swapped, workers) })
				})
			}
		}
	}
}

// overlapping is one hook of a combination.
type overlapping struct {
	id, ending string
	after      time.Duration
	ended      noted[time.Time] // when each of its jobs was cut short, or had ended
}

func (h *overlapping) byDefault() bool { return strings.HasSuffix(h.ending, "by default") }

func (h *overlapping) result() messages.Result {
	return messages.Result(strings.TrimSuffix(h.ending, " by default"))
}

// plan ends the wait by an answer after h.after, or never.
func (h *overlapping) plan(transition messages.Transition) worker.Plan {
	return worker.Plan{
		Transition: transition, Hook: h.id, Deadline: time.Hour, HeartbeatFloor: time.Hour,
		OnSuccess: messages.Continue, OnFailure: h.result(),
		Steps: []worker.PlannedStep{{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
			defer func() { h.ended.add(time.Now()) }()
			after := h.after
			if h.byDefault() {
				after = 40 * time.Minute
			}
			if !sleep(ctx, after) {
				return "", ctx.Err()
			}
			if h.result() == messages.Continue {
				return "", nil
			}
			return "", errors.New("it does not work")
		})}},
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func (o overlap) run(t *testing.T, swapped bool, workers int) {
	first := &overlapping{id: "ash-a", ending: o.first, after: firstEnds}
	second := &overlapping{id: "ash-b", ending: o.second, after: secondEnds}
	hooks := []*overlapping{first, second}
	if swapped {
		slices.Reverse(hooks)
	}
	s := scenario(2, false)
	s.ScalingGroups[0].Hooks = nil
	var plans []worker.Plan
	for _, h := range hooks {
		hook := simulator.HookConfig{ID: h.id, Transition: string(o.transition), Queue: queueName, HeartbeatTimeout: 30 * time.Minute, DefaultResult: "ROLLBACK"}
		if h.byDefault() {
			hook.HeartbeatTimeout, hook.DefaultResult = h.after, string(h.result())
		}
		s.ScalingGroups[0].Hooks = append(s.ScalingGroups[0].Hooks, hook)
		plans = append(plans, h.plan(o.transition))
	}
	cloud := newCloud(t, s)
	cloud.front = func(w http.ResponseWriter, r *http.Request) bool {
		q := r.URL.Query()
		if q.Get("Action") != "RecordLifecycleActionHeartbeat" {
			return false
		}
		for _, h := range hooks {
			if h.byDefault() && q.Get("lifecycleHookId") == h.id {
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}
		}
		return false
	}
	var running []*running
	for i := range workers {
		running = append(running, cloud.start(settings{name: fmt.Sprintf("w%d", i+1), plans: plans, change: func(o *worker.Options) {
			if workers > 1 {
				o.MaxActions = 1 // so that each takes one
			}
		}}))
	}
	scale := cloud.ScaleIn
	if o.transition == messages.ScaleOut {
		scale = cloud.ScaleOut
	}
	begun := time.Now()
	act, err := scale(groupID, 2)
	if err != nil {
		t.Fatal(err)
	}
	cloud.until(20*time.Second, "both are held", func() bool {
		held := 0
		for _, r := range running {
			if n := len(r.find(audit.Admitted)); workers == 2 && n > 1 {
				t.Fatal("one worker holds both")
			} else {
				held += n
			}
		}
		return held == 2
	})
	cloud.until(20*time.Minute, "settled", cloud.settled)
	for _, r := range running {
		r.stop()
		r.balanced()
	}
	synctest.Wait()
	cloud.ordered()

	o.judgeInstances(t, cloud, act)
	o.judgeAction(t, cloud, running, first, begun.Add(firstEnds), false)
	end := begun.Add(secondEnds)
	if o.early {
		end = begun.Add(firstEnds)
	}
	o.judgeAction(t, cloud, running, second, end, o.early)
}

func (o overlap) judgeInstances(t *testing.T, cloud *cloud, act simulator.Activity) {
	state := cloud.State()
	for _, id := range act.Instances {
		in, there := state.Instance(id)
		if o.inService != (there && in.State == "InService") || !o.inService && there {
			t.Errorf("instance %s is %q, want it in service: %v", id, in.State, o.inService)
		}
	}
}

// judgeAction: h's wait ended as it should at the time, its job soon after, and the
// audit logs together close it once.
func (o overlap) judgeAction(t *testing.T, cloud *cloud, workers []*running, h *overlapping, end time.Time, early bool) {
	state := cloud.State()
	i := slices.IndexFunc(state.Actions, func(a simulator.ActionState) bool { return a.Hook == h.id })
	a := state.Actions[i]
	by := "call"
	switch {
	case early:
		by = "other_hook"
	case h.byDefault():
		by = "timeout"
	}
	if a.EndedBy != by || !early && a.Result != string(h.result()) {
		t.Errorf("%s ended as %s by %s, want %s by %s", h.id, a.Result, a.EndedBy, h.result(), by)
	}
	if d := a.Completed.Sub(end); d < -time.Second || d > 5*time.Second {
		t.Errorf("%s ended %v after its time", h.id, d)
	}
	for _, at := range h.ended.all() {
		if late := at.Sub(*a.Completed); early && late > o.notices(len(workers)) {
			t.Errorf("a job for %s went on for %v", h.id, late)
		}
	}
	if n := len(h.ended.all()); n != 2 {
		t.Errorf("%d jobs for %s, want one for each instance", n, h.id)
	}
	completed, acked := 0, 0
	for _, w := range workers {
		for _, rec := range w.records() {
			switch {
			case string(rec.Token) != a.Token:
			case rec.Event == audit.Completed:
				completed++
				if rec.Result != string(h.result()) {
					t.Errorf("%s was answered with %s", h.id, rec.Result)
				}
			case rec.Event == audit.Acked:
				acked++
			case rec.Event.Closes():
				if rec.Event != audit.Released || len(workers) == 1 {
					t.Errorf("%s was closed as %s: %s", h.id, rec.Event, rec.Reason)
				}
			}
		}
	}
	if want := map[bool]int{true: 1}[by == "call"]; completed != want || acked != 1 {
		t.Errorf("%s: %d records of an answer, want %d; closed %d times, want once", h.id, completed, want, acked)
	}
}

// notices is how long after its early end a wait's job may go on.
func (o overlap) notices(workers int) time.Duration {
	if workers == 1 && !strings.HasSuffix(o.first, "by default") {
		return time.Second
	}
	return noticed
}
