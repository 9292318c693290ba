package worker_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers/alibaba"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// breakable is an output that can stop taking anything.
type breakable struct {
	*running
	mu     sync.Mutex
	broken bool // guarded by mu
}

func (b *breakable) set(broken bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken = broken
}

func (b *breakable) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken {
		return 0, errors.New("no space left on device")
	}
	return b.running.Write(p)
}

// A body is quarantined in the audit log before its message is deleted: while the log
// can't be written the message stays, however often it is delivered.
func TestQuarantineNeedsTheAuditLog(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(scenario(1, false)))
		out := &breakable{}
		r := cloud.start(settings{name: "w", change: func(o *worker.Options) {
			o.MaxReceives = 2
			o.Audit = audit.New(out, "w", nil)
		}, running: func(r *running) { out.running = r }})
		cloud.send("poison")
		cloud.until(time.Minute, "rejected once", func() bool { return len(r.find(audit.Rejected)) == 1 })
		out.set(true)
		cloud.until(10*time.Minute, "the queue delivers it again and again", func() bool {
			return cloud.State().APICalls[receives[cloud.name]] > 10 && r.w.Healthy() != nil
		})
		if cloud.empty() {
			t.Error("the message was deleted, and its body is nowhere")
		}
		out.set(false)
		cloud.until(10*time.Minute, "quarantined and deleted", cloud.empty)
		for _, rec := range r.find(audit.Quarantined) {
			if rec.Body != "poison" {
				t.Errorf("%+v", rec)
			}
		}
		if len(r.find(audit.Quarantined)) == 0 || r.w.Healthy() != nil {
			t.Errorf("%d quarantined, health %v", len(r.find(audit.Quarantined)), r.w.Healthy())
		}
		r.stop()
	})
}

// Somebody else has spent the action's heartbeats: the cloud's word ends the jobs in time
// for an answer, before the wait lapses and the default result strikes.
func TestHeartbeatsSpentElsewhere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, scenario(1, false))
		token := cloud.scaleIn(1)[0]
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(50*time.Minute))}})
		cloud.until(time.Minute, "admitted", func() bool { return len(r.find(audit.Admitted)) == 1 })
		other, err := alibaba.NewScaling(alibaba.Options{
			Region: "cn-shenzhen", ESSEndpoint: "http://ess.test", ECSEndpoint: "http://ecs.test",
			Credentials: alibaba.StaticCredentials(keyID, keySecret), DialContext: cloud.listener.DialContext,
		})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		own, _ := cloud.State().Action(token)
		action := messages.Action{Region: "cn-shenzhen", Group: groupID, Hook: messages.HookID(own.Hook), Token: messages.Token(token)}
		for range 20 - own.HeartbeatsUsed {
			if _, err := other.Heartbeat(t.Context(), action, 20*time.Minute); err != nil {
				t.Fatal(err)
			}
		}
		cloud.until(30*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Abandon)
		refused := 0
		for _, rec := range r.find(audit.Heartbeat) {
			if strings.Contains(rec.Error, "budget is spent") {
				refused++
			}
		}
		if refused != 1 {
			t.Errorf("%d refused heartbeats are recorded, want 1", refused)
		}
		r.stop()
		r.balanced()
	})
}
