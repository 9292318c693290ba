package worker_test

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// receives is the call that each cloud has for receiving.
var receives = map[messages.Cloud]string{messages.Alibaba: "mns.BatchReceiveMessage", messages.AWS: "sqs.ReceiveMessage"}

// reloadable is a worker whose queues and groups a test replaces.
type reloadable struct {
	*cloud
	*running
	queue worker.Queue // as it is in force
	// closed are the parts that the worker said it needs no more, by name.
	mu     sync.Mutex
	closed []string // guarded by mu
}

// closes makes a part's Close, which closes its client.
func (r *reloadable) closes(name string, client any) func() {
	return func() {
		client.(interface{ Close() }).Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.closed = append(r.closed, name)
	}
}

func (r *reloadable) isClosed(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.closed, name)
}

// group is a new configuration of a group, with clients of its own.
func (r *reloadable) group(name, id string, plans ...worker.Plan) worker.Group {
	r.cloud.t.Helper()
	_, lifecycle := r.newClients()
	client := lifecycle(id)
	return worker.Group{
		Name: name, Provider: string(r.cloud.name), Region: r.State().Region, ID: messages.GroupID(id), Lifecycle: client, Plans: plans,
		Close: r.closes(name, client),
	}
}

// newClients makes clients as the worker's own are made.
func (r *reloadable) newClients() (func(queue string) queueOf, func(group string) providers.Lifecycle) {
	return r.clients(settings{}, r.running, slog.New(slog.NewTextHandler(logWriter{r.running}, nil)))
}

// apply puts these groups on the one queue in force.
func (r *reloadable) apply(groups ...worker.Group) {
	r.cloud.t.Helper()
	r.queue.Groups = groups
	queues := []worker.Queue{r.queue}
	if len(groups) == 0 {
		queues = nil
	}
	if err := r.w.Apply(queues, 10); err != nil {
		r.cloud.t.Fatal(err)
	}
	synctest.Wait()
}

func startReloadable(c *cloud, s settings) *reloadable {
	r := &reloadable{cloud: c}
	change := s.change
	s.change = func(o *worker.Options) {
		o.MaxJobs = 10
		if change != nil {
			change(o)
		}
		o.Queues[0].Close = r.closes("queue", o.Queues[0].Queue)
		for i := range o.Queues[0].Groups {
			g := &o.Queues[0].Groups[i]
			g.Close = r.closes(g.Name, g.Lifecycle)
		}
		r.queue = o.Queues[0]
	}
	r.running = c.start(s)
	return r
}

// endedWith is how many actions were ended with the result by a call.
func (c *cloud) endedWith(result messages.Result) int {
	n := 0
	for _, a := range c.State().Actions {
		if a.EndedBy == "call" && a.Result == string(result) {
			n++
		}
	}
	return n
}

// An action keeps the plan and the clients that it began with, the running ones as well as
// those that wait for a slot; what comes later has the new ones.
func TestReloadKeepsWhatIsHeld(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		c := newCloud(t, on(scenario(10, true)))
		before := plan(2*time.Hour, takes(20*time.Minute))
		before.OnSuccess = messages.Abandon
		r := startReloadable(c, settings{plans: []worker.Plan{before}, change: func(o *worker.Options) { o.Queues[0].Groups[0].MaxConcurrent = 2 }})
		c.scaleIn(4)
		c.until(time.Minute, "two run and two wait", func() bool {
			return len(r.find(audit.Admitted)) == 4 && len(r.find(audit.StepStarted)) == 2
		})
		now := r.group("new", groupID, plan(time.Hour, takes(time.Minute)))
		now.MaxConcurrent = 2
		r.apply(now)
		c.scaleIn(2)
		c.until(15*time.Minute, "two more wait", func() bool { return len(r.find(audit.Admitted)) == 6 })
		if n := len(r.find(audit.StepStarted)); n != 2 {
			t.Errorf("%d jobs run, the group may have 2 under both configurations together", n)
		}
		c.until(20*time.Minute, "the first two are done", func() bool { return c.endedWith(messages.Abandon) == 2 })
		if r.isClosed(groupID) {
			t.Error("closed while actions are held")
		}
		c.until(time.Hour, "all are done", c.settled)
		if n, m := c.endedWith(messages.Abandon), c.endedWith(messages.Continue); n != 4 || m != 2 {
			t.Errorf("%d actions ended by the plan that they began with, and %d by the new one; want 4 and 2", n, m)
		}
		if !r.isClosed(groupID) || r.isClosed("new") {
			t.Errorf("closed: %v", r.closed)
		}
		r.stop()
		if slices.Sort(r.closed); !slices.Equal(r.closed, []string{groupID, "new", "queue"}) {
			t.Errorf("closed after the end: %v", r.closed)
		}
		r.balanced()
		if n := len(r.find(audit.Released)); n != 0 {
			t.Errorf("%d deliveries were handed back", n)
		}
	})
}

// The last group of a queue is removed: it is not received from any more, what is held
// (running, waiting for a slot, or being verified) is finished and nothing handed back.
// When the group is there again, so is its queue.
func TestReloadRemovesAndAddsAGroup(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(20, true)
		s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 3 * time.Hour
		c := newCloud(t, on(s))
		r := startReloadable(c, settings{plans: []worker.Plan{plan(2*time.Hour, takes(10*time.Minute))}, change: func(o *worker.Options) { o.MaxJobs = 3 }})
		c.scaleIn(5)
		c.until(time.Minute, "three run and two wait", func() bool {
			return len(r.find(audit.Admitted)) == 5 && len(r.find(audit.StepStarted)) == 3
		})
		c.inject(simulator.Fault{Service: "ess", Action: "DescribeLifecycleActions", Kind: simulator.FaultHang})
		c.scaleIn(2)
		c.until(time.Minute, "two are being verified", func() bool { return len(r.find(audit.Received)) == 7 })
		r.apply()
		c.ClearFaults()
		received := c.State().APICalls[receives[c.name]]
		c.scaleIn(1) // nobody is to receive this one
		c.until(time.Hour, "what is held is done", func() bool { return c.endedWith(messages.Continue) == 7 })
		synctest.Wait()
		if n := c.State().APICalls[receives[c.name]]; n != received || len(r.find(audit.Received)) != 7 {
			t.Errorf("received %d times after the group was removed", n-received)
		}
		if n := len(r.find(audit.Released)); n != 0 {
			t.Errorf("%d deliveries were handed back", n)
		}
		c.until(time.Minute, "its clients are closed", func() bool { return r.isClosed(groupID) && r.isClosed("queue") })
		if err := r.w.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}

		r.apply(r.group("again", groupID, plan(time.Hour, takes(time.Second))))
		c.until(time.Minute, "what came meanwhile is drained", c.settled)
		// Once more, while something is held: its consumer goes on.
		r.apply(r.group("slow", groupID, plan(time.Hour, takes(10*time.Minute))))
		c.scaleIn(1)
		c.until(time.Minute, "it runs", func() bool { return len(r.find(audit.Admitted)) == 9 })
		r.apply()
		time.Sleep(time.Minute)
		r.apply(r.group("fast", groupID, plan(time.Hour, takes(time.Second))))
		c.scaleIn(1)
		c.until(time.Minute, "the new one is done first", func() bool { return c.endedWith(messages.Continue) == 9 })
		c.until(time.Hour, "all are done", c.settled)
		r.stop()
		c.answered(messages.Continue)
		r.balanced()
	})
}

// One of two groups that share a queue comes and goes. The other one's drain is the same
// as ever, and its messages are received by the same consumer.
func TestReloadOfAGroupOnASharedQueue(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(10, true)
		other := s.ScalingGroups[0]
		other.ID = "asg-other"
		other.Hooks = []simulator.HookConfig{{ID: "ash-other", Transition: "scale_in", Queue: queueName, HeartbeatTimeout: 10 * time.Minute}}
		s.ScalingGroups = append(s.ScalingGroups, other)
		c := newCloud(t, on(s))
		r := startReloadable(c, settings{plans: []worker.Plan{plan(time.Hour, takes(30*time.Second))}, groups: []string{groupID, "asg-other"}})
		stays, goes := r.queue.Groups[0], r.queue.Groups[1]
		c.until(time.Minute, "it is ready", func() bool { return r.w.Ready() == nil })
		for i := range 6 {
			if i%2 == 0 {
				r.apply(stays)
			} else {
				goes = r.group("again", "asg-other", goes.Plans...)
				r.apply(stays, goes)
			}
			begin := time.Now()
			c.scaleIn(1)
			c.until(time.Minute, "it is drained", func() bool { return c.endedWith(messages.Continue) == i+1 })
			if took := time.Since(begin); took > 33*time.Second {
				t.Errorf("reload %d: took %v", i, took)
			}
			time.Sleep(time.Minute)
		}
		if n := c.State().APICalls[c.service("mns")+".GetQueueAttributes"]; n > 2 {
			t.Errorf("the queue's attributes were read %d times: its consumer was begun anew", n)
		}
		r.stop()
		r.balanced()
	})
}

// A group that is moved to another queue is drained from there; what it holds of the first
// one is not begun a second time.
func TestReloadMovesAGroupToAnotherQueue(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		s := scenario(10, true)
		s.Queues = append(s.Queues, simulator.QueueConfig{Name: "second", VisibilityTimeout: 30 * time.Second})
		c := newCloud(t, on(s))
		var runs atomic.Int32
		p := plan(2*time.Hour, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, _ messages.Instance, _ int) (string, error) {
			runs.Add(1)
			select {
			case <-time.After(40 * time.Minute):
			case <-ctx.Done():
			}
			return "", ctx.Err()
		})})
		r := startReloadable(c, settings{plans: []worker.Plan{p}, change: func(o *worker.Options) { o.ReconcileEvery = time.Minute }})
		c.scaleIn(2)
		c.until(time.Minute, "they run", func() bool { return runs.Load() == 2 })
		queue, _ := r.newClients()
		second := queue("second")
		r.queue.Name, r.queue.Queue, r.queue.Close = "second", second, r.closes("second", second)
		r.apply(r.group("moved", groupID, p))
		c.until(2*time.Hour, "they are done", c.settled)
		if n := runs.Load(); n != 2 || len(r.find(audit.Announced)) != 0 {
			t.Errorf("%d jobs ran, %d actions were announced again", n, len(r.find(audit.Announced)))
		}
		r.stop()
		c.answered(messages.Continue)
		r.balanced()
	})
}

// What can't be taken over changes nothing, and a worker that stops takes nothing over.
func TestReloadThatCannotBe(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		c := newCloud(t, on(scenario(2, true)))
		r := startReloadable(c, settings{plans: []worker.Plan{plan(time.Hour, takes(time.Second))}})
		twice := r.queue
		twice.Groups = []worker.Group{r.group("a", "asg-a"), r.group("b", "asg-a")}
		if err := r.w.Apply([]worker.Queue{twice}, 10); err == nil {
			t.Error("a group that is there twice was taken over")
		}
		if err := r.w.Apply([]worker.Queue{r.queue}, 0); err == nil {
			t.Error("no slot for a group, and taken over")
		}
		c.scaleIn(1)
		c.until(time.Minute, "the group that it has is drained", c.settled)
		r.stop()
		if err := r.w.Apply([]worker.Queue{r.queue}, 10); !errors.Is(err, worker.ErrStopping) {
			t.Errorf("Apply after the end: %v", err)
		}
	})
}

// An event of AWS is about instances of several groups, and held by each: it keeps the plans
// that it began with when one group is configured anew and another is removed. One whose
// groups are still being looked for has what is in force when they are known.
func TestAWSReloadUnderAnEvent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const otherGroup = "asg-other"
		s := awsScenario(4)
		other := s.ScalingGroups[0]
		other.ID, other.Hooks = otherGroup, nil
		s.ScalingGroups = append(s.ScalingGroups, other)
		c := newCloud(t, s)
		var did noted[string]
		does := func(name string, d time.Duration) worker.Plan {
			return eventPlan(messages.ScheduledChange, 2*time.Hour, worker.PlannedStep{Step: stepFunc(func(ctx context.Context, in messages.Instance, _ int) (string, error) {
				if err := pauseFor(ctx, d); err != nil {
					return "", err
				}
				did.add(name + " of " + string(in.Action.Group))
				return "", nil
			})})
		}
		r := startReloadable(c, settings{groups: []string{groupID, otherGroup}, plans: []worker.Plan{does("old", 20*time.Minute)}})
		web, beside := c.instancesOf(groupID), c.instancesOf(otherGroup)
		c.tell(messages.ScheduledChange, web[0], beside[0])
		c.until(time.Minute, "both jobs run", func() bool { return len(r.find(audit.StepStarted)) == 2 })
		r.apply(r.group("new", groupID, does("new", time.Second)))
		c.tell(messages.ScheduledChange, web[1])
		c.until(time.Minute, "the next one has the new plan", func() bool { return slices.Equal(did.all(), []string{"new of " + groupID}) })
		if r.isClosed(groupID) || r.isClosed(otherGroup) {
			t.Errorf("closed while an event is held: %v", r.closed)
		}
		c.until(30*time.Minute, "all are over", c.empty)
		jobs := did.all()
		if slices.Sort(jobs); !slices.Equal(jobs, []string{"new of " + groupID, "old of " + otherGroup, "old of " + groupID}) {
			t.Errorf("jobs: %q", jobs)
		}
		c.until(time.Minute, "the clients that are needed no more are closed", func() bool { return r.isClosed(groupID) && r.isClosed(otherGroup) })

		c.inject(simulator.Fault{Service: "ess", Action: "DescribeLifecycleActions", Kind: simulator.FaultHang})
		c.tell(messages.ScheduledChange, web[2])
		c.until(time.Minute, "it is asked about", func() bool { return len(r.find(audit.Received)) == 3 })
		r.apply(r.group("newer", groupID, does("newer", time.Second)))
		c.ClearFaults()
		c.until(2*time.Minute, "it is over", c.empty)
		if jobs := did.all(); len(jobs) != 4 || jobs[3] != "newer of "+groupID {
			t.Errorf("jobs: %q", jobs)
		}
		r.stop()
		r.balanced()
	})
}
