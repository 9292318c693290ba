package worker_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers/alibaba"
	"example.org/usher/simulator"
	"example.org/usher/worker"
)

const otherID, otherQueue = "asg-other", "other"

// trouble is what one group, groupID, is in, while another, otherID, is to be drained as
// if it were alone.
type trouble struct {
	name string
	// hang: its steps do not end. api answers its calls to ESS instead of the cloud; nil:
	// the cloud does. loseQueue: its queue is deleted.
	hang      bool
	api       func(http.ResponseWriter, *http.Request)
	loseQueue bool
	// elsewhere: the groups are of two regions or accounts, which have a quota each.
	elsewhere bool
	// actions of it begin at once.
	actions int
	// slower is how much longer the other one's may take.
	slower time.Duration
}

func hanging(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func throttling(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	fmt.Fprint(w, `{"Code": "Throttling.User", "Message": "Request was denied due to user flow control.", "RequestId": "R-1", "HostId": "ess.test"}`)
}

func failing(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }

// latencies scales the other group in by one, again and again, and gives how long each
// action took from its notification to its completion.
func latencies(t *testing.T, tr trouble, sharedQueue bool) (took []time.Duration) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(60, true)
		other := s.ScalingGroups[0]
		other.ID, other.Instances = otherID, 20
		queue := queueName
		if !sharedQueue {
			queue = otherQueue
			s.Queues = append(s.Queues, simulator.QueueConfig{Name: otherQueue, VisibilityTimeout: 30 * time.Second})
		}
		other.Hooks = []simulator.HookConfig{{ID: "ash-other", Transition: "scale_in", Queue: queue, HeartbeatTimeout: 10 * time.Minute}}
		s.ScalingGroups = append(s.ScalingGroups, other)
		cloud := newCloud(t, s)
		var begun atomic.Bool
		cloud.front = func(w http.ResponseWriter, r *http.Request) bool {
			if tr.api == nil || !begun.Load() || !strings.HasPrefix(r.Host, "ess-"+groupID) {
				return false
			}
			tr.api(w, r)
			return true
		}
		var r *running
		r = cloud.start(settings{
			groups:   []string{groupID, otherID},
			endpoint: func(group string) string { return "http://ess-" + group + ".test" },
			running:  func(started *running) { r = started },
			change: func(o *worker.Options) {
				o.MaxJobs, o.ReconcileEvery = 8, time.Minute
				groups := o.Queues[0].Groups
				groups[0].Plans = []worker.Plan{plan(3*time.Hour, takes(20*time.Second))}
				if tr.hang {
					groups[0].Plans = []worker.Plan{plan(3*time.Hour, takes(24*time.Hour))}
				}
				groups[1].Plans = []worker.Plan{plan(time.Hour, takes(20*time.Second))}
				if tr.elsewhere {
					l, err := alibaba.NewScaling(alibaba.Options{
						Region: "cn-shenzhen", ESSEndpoint: "http://ess-" + otherID + ".test", ECSEndpoint: "http://ecs.test",
						Credentials: alibaba.StaticCredentials(keyID, keySecret), DialContext: r.dial, Pacer: new(alibaba.Pacer),
					})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(l.Close)
					groups[1].Lifecycle = l
				}
				if sharedQueue {
					return
				}
				q, err := alibaba.NewQueue(alibaba.Options{
					Region: "cn-shenzhen", QueueName: otherQueue, QueueEndpoint: "http://mns.test",
					Credentials: alibaba.StaticCredentials(keyID, keySecret), DialContext: r.dial,
				})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(q.Close)
				o.Queues = append(o.Queues, worker.Queue{Name: otherQueue, Queue: q, Groups: groups[1:]})
				o.Queues[0].Groups = groups[:1]
			},
		})
		cloud.until(time.Minute, "it is ready", func() bool { return r.w.Ready() == nil })
		if tr.actions > 0 {
			if tr.hang {
				cloud.scaleIn(tr.actions)
				time.Sleep(10 * time.Second)
			}
			begun.Store(true)
			if !tr.hang {
				cloud.scaleIn(tr.actions)
			}
			time.Sleep(30 * time.Second) // the trouble has come up to everything
		}
		if tr.loseQueue {
			cloud.deleteQueue()
		}
		for i := range 12 {
			if _, err := cloud.ScaleIn(otherID, 1); err != nil {
				t.Fatal(err)
			}
			var a simulator.ActionState
			cloud.until(30*time.Minute, "the other group is drained", func() bool {
				n := 0
				for _, one := range cloud.State().Actions {
					if one.Group == otherID && one.Status != "Pending" {
						a = one
						n++
					}
				}
				return n == i+1
			})
			if a.EndedBy != "call" || a.Result != string(messages.Continue) {
				t.Errorf("action %d ended as %s by %s", i, a.Result, a.EndedBy)
			}
			took = append(took, a.Completed.Sub(a.Started))
			time.Sleep(time.Duration(i) * 7 * time.Second)
		}
		r.endWork()
		r.wait()
	})
	return took
}

// One group's steps hang, its API hangs, throttles or fails, its queue is gone: another is
// drained as fast as if it were alone, whether they share a queue or not. The pool they
// share always. Where they share a quota, too, of which the service grants the one group
// nothing at all, the other pays a few turns of the slowest pace for each action.
func TestOneGroupsTroubleIsItsOwn(t *testing.T) {
	hours(t)
	t.Parallel()
	alone := map[bool][]time.Duration{true: latencies(t, trouble{}, true), false: latencies(t, trouble{}, false)}
	for _, tr := range []trouble{
		{name: "steps hang", hang: true, actions: 50},
		{name: "steps and API hang", hang: true, api: hanging, actions: 50},
		{name: "API hangs", api: hanging, actions: 50},
		{name: "API throttles", api: throttling, actions: 50, slower: 20 * time.Second},
		{name: "heartbeats are throttled", hang: true, api: throttling, actions: 50, slower: 20 * time.Second},
		{name: "API throttles elsewhere", api: throttling, actions: 50, elsewhere: true},
		{name: "heartbeats are throttled elsewhere", hang: true, api: throttling, actions: 50, elsewhere: true},
		{name: "API fails", api: failing, actions: 50},
		{name: "queue is gone", hang: true, loseQueue: true, actions: 50},
	} {
		for _, shared := range []bool{true, false} {
			if shared && tr.loseQueue {
				continue
			}
			t.Run(fmt.Sprintf("%s/shared queue %v", tr.name, shared), func(t *testing.T) {
				t.Parallel()
				alone, beside := alone[shared], latencies(t, tr, shared)
				t.Logf("alone %v, beside %v", alone, beside)
				for i := range alone {
					// A second, for deletions that share a call and the like.
					if beside[i] > alone[i]+max(tr.slower, time.Second) {
						t.Errorf("action %d: %v beside the group in trouble, %v alone", i, beside[i], alone[i])
					}
				}
			})
		}
	}
}
