package worker_test

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// aside is the queue for messages that can't be read, or that its policy moves.
const aside = "poison"

// twoQueues is one group's cloud with a second queue, where policy sends what was
// received so often; 0: no policy.
func twoQueues(instances, maxReceiveCount int) simulator.Scenario {
	s := scenario(instances, true)
	s.Queues = append(s.Queues, simulator.QueueConfig{Name: aside})
	if maxReceiveCount > 0 {
		s.Queues[0].DlqPolicy = simulator.DlqPolicy{DeadLetterTargetQueue: aside, MaxReceiveCount: maxReceiveCount}
	}
	return s
}

// provider is a client of a queue.
func (c *cloud) provider(name string) queueOf {
	c.t.Helper()
	queue, _ := c.clients(settings{}, &running{t: c.t, listener: c.listener}, slog.New(slog.DiscardHandler))
	return queue(name)
}

// bodies takes all that the queue holds.
func (c *cloud) bodies(name string) map[string]int {
	c.t.Helper()
	got := map[string]int{}
	for q := c.provider(name); ; {
		batch, err := q.Receive(c.t.Context(), q.MaxBatch(), 0)
		if err != nil {
			c.t.Fatal(err)
		}
		if len(batch) == 0 {
			return got
		}
		for _, d := range batch {
			got[string(d.Body)]++
		}
	}
}

func (c *cloud) held(name string) int {
	q, _ := c.State().Queue(name)
	return q.Active + q.Inactive + q.Delayed
}

// With a dead-letter policy usher never deletes what it can't read: the queue moves it.
// The body is on record once, whoever of two workers has that delivery.
func TestQuarantineByDeadLetterPolicy(t *testing.T) {
	t.Parallel()
	for _, count := range []int{2, 3, 5} { // below max_receives, as often, more often
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			t.Parallel()
			eachCloud(t, func(t *testing.T, on where) {
				cloud := newCloud(t, on(twoQueues(3, count)))
				s := settings{plans: []worker.Plan{plan(time.Hour, takes(20*time.Minute))}, change: func(o *worker.Options) {
					o.MaxReceives, o.Quarantine = 3, worker.QuarantineDeadLetter
				}}
				a, b := cloud.start(s), cloud.start(s)
				const bad = 40
				for i := range bad {
					cloud.send(fmt.Sprintf("garbage %d", i))
				}
				cloud.scaleIn(2)
				cloud.until(10*time.Minute, "the policy moves all of it", func() bool { return cloud.held(aside) == bad && cloud.held(queueName) == 2 })
				bodies := map[string]int{}
				for _, rec := range append(a.find(audit.Quarantined), b.find(audit.Quarantined)...) {
					bodies[rec.Body]++
					if rec.ReceiveCount != 3 || !strings.Contains(rec.Reason, "dead-letter policy") || rec.Error == "" {
						t.Errorf("record %+v", rec)
					}
				}
				dead := cloud.bodies(aside)
				for i := range bad {
					body, want := fmt.Sprintf("garbage %d", i), 1
					if count < 3 {
						want = 0 // moved before
					}
					if bodies[body] != want || dead[body] != 1 {
						t.Errorf("%s is on record %d times, want %d, and moved %d times", body, bodies[body], want, dead[body])
					}
				}
				if n := cloud.count(simulator.MessageDeleted); n != 0 {
					t.Errorf("%d messages were deleted", n)
				}
				cloud.until(time.Hour, "settled", cloud.settled)
				cloud.answered(messages.Continue)
				a.stop()
				b.stop()
				a.balanced()
				b.balanced()
			})
		})
	}
}

// Left to a policy that does not exist, a message comes back ever later, and stays.
func TestDeadLetterPolicyIsMissing(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(twoQueues(3, 0)))
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour)}, change: func(o *worker.Options) { o.Quarantine = worker.QuarantineDeadLetter }})
		cloud.send("poison")
		time.Sleep(8 * time.Hour)
		synctest.Wait()
		if n := len(r.find(audit.Quarantined)); n != 1 {
			t.Errorf("on record %d times", n)
		}
		if n := len(r.find(audit.Received)); n < 20 || n > 45 {
			t.Errorf("%d deliveries in eight hours, want one each quarter of an hour", n)
		}
		if cloud.held(queueName) != 1 {
			t.Error("the message is gone")
		}
		rejected := r.find(audit.Rejected)
		if last := rejected[len(rejected)-1]; !strings.Contains(last.Reason, "no dead-letter policy") {
			t.Errorf("reason %q", last.Reason)
		}
		r.stop()
		r.balanced()
	})
}

// With a queue of its own a message is there before it is deleted here, whole.
func TestQuarantineQueue(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		cloud := newCloud(t, on(twoQueues(3, 0)))
		q := cloud.provider(aside)
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}, change: func(o *worker.Options) {
			o.Quarantine, o.Queues[0].Quarantine = worker.QuarantineQueue, q
		}})
		unsafe := map[messages.Cloud]string{
			messages.Alibaba: notification(map[string]any{"instanceIds": []string{"i-$(id)"}}),
			messages.AWS:     hookMessage(map[string]any{"EC2InstanceId": "i-$(id)"}),
		}[cloud.name]
		bad := []string{"hello", `{"a":"<b>&"}`, "two\nlines", strings.Repeat("z", 65_000), unsafe}
		for _, b := range bad {
			cloud.send(b)
		}
		cloud.scaleIn(2)
		cloud.until(10*time.Minute, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		got := cloud.bodies(aside)
		for _, b := range bad {
			if got[b] != 1 {
				t.Errorf("%.30q is in the quarantine queue %d times", b, got[b])
			}
		}
		for _, rec := range r.find(audit.Quarantined) {
			if !strings.Contains(rec.Reason, "sent to the quarantine queue as message ") || rec.Body == "" {
				t.Errorf("record %+v", rec)
			}
		}
		if n := len(r.find(audit.Quarantined)); n != len(bad) {
			t.Errorf("%d quarantined", n)
		}
		sent := 0
		for _, e := range cloud.Events() {
			if e.Queue == aside && e.Type == simulator.MessageSent {
				sent++
			}
			if e.Queue == queueName && e.Type == simulator.MessageDeleted && e.Token == "" {
				if sent--; sent < 0 {
					t.Error("a message was deleted before it was sent to the other queue")
				}
			}
		}
		r.stop()
		r.balanced()
	})
}

// While the quarantine queue takes nothing, the message stays where it is, and comes back
// ever later.
func TestQuarantineQueueFails(t *testing.T) {
	t.Parallel()
	for _, kind := range []simulator.FaultKind{simulator.Fault5xx, simulator.FaultThrottle, simulator.FaultHang, simulator.FaultDrop, simulator.FaultDenied, "gone"} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			eachCloud(t, func(t *testing.T, on where) {
				cloud := newCloud(t, on(twoQueues(3, 0)))
				q := cloud.provider(aside)
				if kind == "gone" {
					q = cloud.provider("not-there")
				} else {
					cloud.inject(simulator.Fault{Service: "mns", Action: "SendMessage", Kind: kind})
				}
				r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}, change: func(o *worker.Options) {
					o.Quarantine, o.Queues[0].Quarantine = worker.QuarantineQueue, q
				}})
				cloud.send("poison")
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				if n := len(r.find(audit.Quarantined)); n != 0 || cloud.held(queueName) != 1 {
					t.Errorf("%d quarantined, %d in the queue", n, cloud.held(queueName))
				}
				if n := len(r.find(audit.Received)); n > 18 {
					t.Errorf("%d deliveries in two hours", n)
				}
				rejected := r.find(audit.Rejected)
				if last := rejected[len(rejected)-1]; !strings.Contains(last.Reason, "could not be sent") || !strings.Contains(last.Error, "put message") {
					t.Errorf("record %+v", last)
				}
				// What can be read goes on meanwhile.
				cloud.scaleIn(1)
				cloud.until(5*time.Minute, "answered", cloud.over)
				cloud.answered(messages.Continue)
				if kind != "gone" {
					cloud.ClearFaults()
					cloud.until(20*time.Minute, "quarantined", func() bool { return cloud.held(aside) == 1 && cloud.empty() })
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// Half an hour of work on a queue whose policy allows three receives: the message is
// received once and stays; each takeover counts, and the third still has it.
func TestLongDrainUnderDeadLetterPolicy(t *testing.T) {
	t.Parallel()
	for kills, moved := range map[int]bool{0: false, 2: false, 3: true} {
		t.Run(fmt.Sprint(kills), func(t *testing.T) {
			t.Parallel()
			eachCloud(t, func(t *testing.T, on where) {
				cloud := newCloud(t, on(twoQueues(3, 3)))
				s := settings{plans: []worker.Plan{plan(3*time.Hour, takes(30*time.Minute))}}
				cloud.scaleIn(1)
				for range kills {
					r := cloud.start(s)
					cloud.until(5*time.Minute, "it holds the action", func() bool { return len(r.find(audit.StepStarted)) == 1 })
					time.Sleep(5 * time.Minute)
					r.kill()
				}
				r := cloud.start(s)
				if moved {
					cloud.until(5*time.Minute, "the policy moves it", func() bool { return cloud.held(aside) == 1 })
					r.stop()
					return
				}
				cloud.until(time.Hour, "settled", cloud.settled)
				cloud.answered(messages.Continue)
				if n := cloud.count(simulator.MessageReceived); n != kills+1 || cloud.held(aside) != 0 {
					t.Errorf("%d deliveries after %d kills, %d dead letters", n, kills, cloud.held(aside))
				}
				r.stop()
				r.balanced()
			})
		})
	}
}

// Messages that arrive garbled every time are never put aside, and never in the way of
// others: each comes once a minute, at the most.
func TestAlwaysGarbled(t *testing.T) {
	hours(t)
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(51, true)
		s.Queues[0].VisibilityTimeout = time.Second
		cloud := newCloud(t, on(s))
		const bad = 200
		for i := range bad {
			if _, err := cloud.SendDamaged(queueName, fmt.Sprintf("damaged %d", i)); err != nil {
				t.Fatal(err)
			}
		}
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}, change: func(o *worker.Options) { o.MaxActions, o.MaxReceives = 64, 3 }})
		time.Sleep(20 * time.Minute)
		cloud.scaleIn(50)
		cloud.until(5*time.Minute, "all true actions are answered", cloud.over)
		cloud.answered(messages.Continue)
		cloud.until(time.Minute, "all garbled messages are there, and no other", func() bool { return cloud.held(queueName) == bad })
		if n := len(r.find(audit.Received)) / bad; n > 32 {
			t.Errorf("%d deliveries of each in half an hour", n)
		}
		if n := len(r.find(audit.Quarantined)); n != 0 {
			t.Errorf("%d quarantined", n)
		}
		r.stop()
		r.balanced()
	})
}
