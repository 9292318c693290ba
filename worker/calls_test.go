package worker_test

import (
	"context"
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// With 1,000 actions queued, all that is done for each of them but its answer shares calls:
// receives, verification and deletions come to 0.4 calls an action at most. On Alibaba Cloud
// one call more is needed, since tokens are listed by scaling activity, and here each action
// has one of its own.
//
// In a bubble no time passes while there is anything to do, so that how calls are shared does
// not depend on the machine.
func TestCallsOfAnAction(t *testing.T) {
	t.Parallel()
	const actions = 1_000
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(actions+1, true)))
		cloud.scaleIn(actions)
		cloud.until(time.Minute, "all are queued", func() bool { q, _ := cloud.State().Queue(queueName); return q.Active == actions })
		most := map[messages.Cloud]int{messages.Alibaba: 2_400, messages.AWS: 1_400}[cloud.name]
		before := allCalls(cloud.Simulator)
		p := plan(time.Hour, worker.PlannedStep{Step: stepFunc(func(context.Context, messages.Instance, int) (string, error) { return "", nil })})
		r := cloud.start(settings{plans: []worker.Plan{p}, verify: worker.VerifyAlways})
		cloud.until(10*time.Minute, "settled", cloud.settled)
		r.stop()
		cloud.answered(messages.Continue)
		if n := len(r.find(audit.Acked)); n != actions {
			t.Errorf("%d acked, want %d", n, actions)
		}
		if n := allCalls(cloud.Simulator) - before; n > most || n < actions {
			t.Errorf("%d calls for %d actions, want %d at most: %v", n, actions, most, cloud.State().APICalls)
		}
		r.balanced()
	})
}

// allCalls is how many calls a simulator has had.
func allCalls(sim *simulator.Simulator) int {
	n := 0
	for _, c := range sim.State().APICalls {
		n += c
	}
	return n
}
