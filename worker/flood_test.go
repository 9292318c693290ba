package worker_test

import (
	"context"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// counter is an audit log that only counts.
type counter struct {
	mu         sync.Mutex
	events     map[audit.Event]int // guarded by mu
	open, most int                 // guarded by mu; deliveries without a closing record, now and at the most
	goroutines int                 // guarded by mu; at the most
	bodies     map[string]int      // guarded by mu; quarantined
	watch      func(audit.Record)  // guarded by mu; may be nil
}

func newCounter() *counter { return &counter{events: map[audit.Event]int{}, bodies: map[string]int{}} }

func (l *counter) see(rec audit.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events[rec.Event]++
	switch {
	case rec.Event == audit.Received:
		l.open++
	case rec.Event.Closes():
		l.open--
	}
	l.most = max(l.most, l.open)
	if l.events[rec.Event]%100 == 1 {
		l.goroutines = max(l.goroutines, runtime.NumGoroutine())
	}
	if rec.Event == audit.Quarantined {
		l.bodies[rec.Body]++
	}
	if l.watch != nil {
		l.watch(rec)
	}
}

func (l *counter) count(e audit.Event) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.events[e]
}

// into makes a worker count there instead of writing a log.
func (l *counter) into(o *worker.Options) { o.Audit = audit.New(io.Discard, "flood", l.see) }

// A flood of garbage in front of a hundred true notifications: those are answered in
// time, what is held stays within its bounds, and no garbage is lost. Not parallel, since
// it counts goroutines.
func TestFloodOfGarbage(t *testing.T) {
	for name, on := range clouds {
		t.Run(string(name), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { floodOfGarbage(t, on) })
		})
	}
}

func floodOfGarbage(t *testing.T, on where) {
	const good, maxActions = 100, 500
	s := scenario(good+1, true)
	s.ScalingGroups[0].Hooks[0].Queue = "" // the test sends them, behind the garbage
	cloud := newCloudWith(t, simulator.Options{Scenario: on(s), NoEvents: true})
	cloud.scaleIn(good)
	begin := realTime()
	for i := range floodSize {
		cloud.send(fmt.Sprintf("garbage %d", i))
	}
	for _, a := range cloud.State().Actions {
		cloud.send(cloud.telling(a))
	}
	t.Logf("sent after %v", realTime().Sub(begin))
	cloud.inject(simulator.Fault{Service: "mns", Kind: simulator.FaultLatency, Latency: 10 * time.Millisecond})
	log := newCounter()
	r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}, change: func(o *worker.Options) {
		log.into(o)
		o.MaxActions, o.MaxReceives = maxActions, 2
	}})
	start := time.Now()
	cloud.until(8*time.Minute, "all true notifications are answered", cloud.over)
	t.Logf("answered after %v, of real time %v", time.Since(start), realTime().Sub(begin))
	cloud.answered(messages.Continue)
	cloud.until(time.Hour, "all garbage is quarantined", func() bool { return log.count(audit.Quarantined) >= floodSize && cloud.empty() })
	r.stop()
	t.Logf("quarantined after %v, of real time %v; %d held and %d goroutines at the most", time.Since(start), realTime().Sub(begin), log.most, log.goroutines)
	if len(log.bodies) != floodSize {
		t.Errorf("%d bodies are on record, want %d", len(log.bodies), floodSize)
	}
	if log.most > maxActions {
		t.Errorf("%d deliveries were held at once, want %d at the most", log.most, maxActions)
	}
	// One for each delivery, and those of both ends of the connections.
	if most := maxActions + 500; log.goroutines > most {
		t.Errorf("%d goroutines, want %d at the most", log.goroutines, most)
	}
	if log.open != 0 {
		t.Errorf("%d deliveries have no closing record", log.open)
	}
}

// realTime is the time outside the bubble, for what a test reports.
func realTime() time.Time {
	var now syscall.Timeval
	_ = syscall.Gettimeofday(&now)
	return time.Unix(now.Unix())
}

// neighbours is a cloud in which groups share a queue. The first floods it.
func neighbours(t *testing.T, on where, flood int, others ...int) *cloud {
	t.Helper()
	s := scenario(flood+1, true)
	s.ScalingGroups[0].Hooks[0].HeartbeatTimeout = 6 * time.Hour
	for i, n := range others {
		s.ScalingGroups = append(s.ScalingGroups, simulator.GroupConfig{
			ID: neighbour(i), Instances: n + 1, SplitActivity: true,
			Hooks: []simulator.HookConfig{{ID: fmt.Sprintf("ash-other%d", i), Transition: "scale_in", Queue: queueName, HeartbeatTimeout: 10 * time.Minute, DefaultResult: "ROLLBACK"}},
		})
	}
	return newCloudWith(t, simulator.Options{Scenario: on(s), NoEvents: true})
}

func neighbour(i int) string { return fmt.Sprintf("asg-other%d", i) }

// begun counts the steps that began, by group.
type begun struct {
	mu sync.Mutex
	n  map[messages.GroupID]int // guarded by mu
}

func (b *begun) of(id string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.n[messages.GroupID(id)]
}

// step hangs for the groups that are named, and takes a minute for others.
func (b *begun) step(hangs ...string) worker.PlannedStep {
	b.n = map[messages.GroupID]int{}
	return worker.PlannedStep{Step: stepFunc(func(ctx context.Context, in messages.Instance, _ int) (string, error) {
		b.mu.Lock()
		b.n[in.Action.Group]++
		b.mu.Unlock()
		if slices.Contains(hangs, string(in.Action.Group)) {
			<-ctx.Done()
			return "", ctx.Err()
		}
		select {
		case <-time.After(time.Minute):
			return "", nil
		case <-ctx.Done():
			return "", ctx.Err()
		}
	})}
}

// ended counts the actions of a group that a call has ended with CONTINUE.
func (c *cloud) ended(group string) (n int) {
	for _, a := range c.State().Actions {
		if a.Group == group && a.EndedBy == "call" && a.Result == "CONTINUE" {
			n++
		}
	}
	return n
}

// One group floods a shared queue with 10,000 notifications, its steps hang and the API
// is throttled: the drains of another begin within seconds and end in time.
func TestFloodOfOneGroup(t *testing.T) {
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		const due = 5
		cloud := neighbours(t, on, floodSize/10, due)
		if _, err := cloud.ScaleIn(groupID, floodSize/10); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		cloud.inject(simulator.Fault{Service: "mns", Kind: simulator.FaultLatency, Latency: 10 * time.Millisecond})
		cloud.inject(simulator.Fault{Service: "ess", Kind: simulator.FaultThrottle, PerSecond: 20})
		var steps begun
		log := newCounter()
		r := cloud.start(settings{
			groups: []string{groupID, neighbour(0)}, plans: []worker.Plan{plan(3*time.Hour, steps.step(groupID))},
			change: log.into,
		})
		for _, after := range []time.Duration{0, 10 * time.Second, time.Minute} {
			time.Sleep(after)
			done := cloud.ended(neighbour(0))
			before := steps.of(neighbour(0))
			if _, err := cloud.ScaleIn(neighbour(0), 1); err != nil {
				t.Fatal(err)
			}
			sent := time.Now()
			cloud.until(30*time.Second, "the other group's drain begins", func() bool { return steps.of(neighbour(0)) > before })
			t.Logf("begun after %v, %d of the flood begun", time.Since(sent), steps.of(groupID))
			cloud.until(3*time.Minute, "and is answered", func() bool { return cloud.ended(neighbour(0)) > done })
			t.Logf("answered after %v", time.Since(sent))
		}
		if log.most > worker.DefaultMaxActions {
			t.Errorf("%d held at once", log.most)
		}
		t.Logf("%d received, %d released, %+v, calls %v", log.count(audit.Received), log.count(audit.Released), cloud.State().Faults, cloud.State().APICalls)
		r.endWork()
		r.wait()
		if log.open != 0 {
			t.Errorf("%d deliveries have no closing record", log.open)
		}
	})
}

// Two groups flood: the third still gets its share of the room.
func TestFloodOfTwoGroups(t *testing.T) {
	hours(t)
	t.Parallel()
	eachCloud(t, func(t *testing.T, on where) {
		flood := 500
		if on.isAWS() {
			flood = 150 // more than there is room for, too, and each costs more calls
		}
		cloud := neighbours(t, on, flood, flood, 4)
		for _, id := range []string{groupID, neighbour(0)} {
			if _, err := cloud.ScaleIn(id, flood); err != nil {
				t.Fatal(err)
			}
		}
		var steps begun
		log := newCounter()
		r := cloud.start(settings{
			groups: []string{groupID, neighbour(0), neighbour(1)}, plans: []worker.Plan{plan(3*time.Hour, steps.step(groupID, neighbour(0)))},
			change: func(o *worker.Options) { log.into(o); o.MaxActions, o.MaxJobs = 100, 40 },
		})
		time.Sleep(5 * time.Minute)
		if _, err := cloud.ScaleIn(neighbour(1), 3); err != nil {
			t.Fatal(err)
		}
		cloud.until(30*time.Second, "the third group's drains begin", func() bool { return steps.of(neighbour(1)) == 3 })
		cloud.until(3*time.Minute, "and are answered", func() bool { return cloud.ended(neighbour(1)) == 3 })
		r.endWork()
		r.wait()
		if log.open != 0 {
			t.Errorf("%d deliveries have no closing record", log.open)
		}
	})
}

// Whoever can write to the queue can forge announcements, for which a worker stands back
// so that others get them: true notifications behind a flood of those are not kept waiting.
func TestFloodOfAnnouncements(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := scenario(11, true)
		s.ScalingGroups[0].Hooks[0].Queue = ""
		cloud := newCloud(t, s)
		cloud.scaleIn(10)
		for i := range floodSize / 100 {
			forged, err := messages.Reannounce(messages.Action{
				Region: "cn-shenzhen", Group: groupID, Hook: hookID, Transition: messages.ScaleIn, Activity: "asa-none",
				Token: messages.Token(fmt.Sprintf("FORGED-%08d", i)), Instances: []messages.InstanceID{"i-none"},
			})
			if err != nil {
				t.Fatal(err)
			}
			cloud.send(forged)
		}
		for _, a := range cloud.State().Actions {
			cloud.send(telling(a, nil))
		}
		r := cloud.start(settings{plans: []worker.Plan{plan(time.Hour, takes(time.Minute))}})
		cloud.until(30*time.Second, "the true actions have begun", func() bool { return len(r.find(audit.StepStarted)) == 10 })
		cloud.until(5*time.Minute, "answered", cloud.over)
		cloud.answered(messages.Continue)
		cloud.until(10*time.Minute, "the forged are closed", cloud.empty)
		r.stop()
		r.balanced()
	})
}

// An API that takes five calls a second, all kinds together, and hundreds of actions due:
// what is held stays alive, what is done is answered, and in between all others are
// verified, without a call in four being refused.
func TestQuotaOfFiveCalls(t *testing.T) {
	hours(t)
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const long, due = 60, 300
		s := scenario(due+1, true)
		s.ScalingGroups = append(s.ScalingGroups, simulator.GroupConfig{
			ID: neighbour(0), Instances: long + 1, SplitActivity: true,
			Hooks: []simulator.HookConfig{{ID: "ash-long", Transition: "scale_in", Queue: queueName, HeartbeatTimeout: 2 * time.Minute, DefaultResult: "ROLLBACK"}},
		})
		cloud := newCloud(t, s)
		log := newCounter()
		steps := worker.PlannedStep{Step: stepFunc(func(ctx context.Context, in messages.Instance, _ int) (string, error) {
			d := time.Minute
			if in.Action.Group != groupID {
				d = 20 * time.Minute
			}
			return "", waitFor(ctx, d)
		})}
		r := cloud.start(settings{groups: []string{groupID, neighbour(0)}, plans: []worker.Plan{plan(time.Hour, steps)}, change: func(o *worker.Options) {
			log.into(o)
			o.MaxJobs = 1000
		}})
		if _, err := cloud.ScaleIn(neighbour(0), long); err != nil {
			t.Fatal(err)
		}
		cloud.until(10*time.Second, "the long ones are held", func() bool { return log.count(audit.Admitted) == long })
		before := calls(cloud, "ess.")
		cloud.inject(simulator.Fault{Service: "ess", Kind: simulator.FaultThrottle, PerSecond: 5, Latency: 50 * time.Millisecond})
		cloud.inject(simulator.Fault{Service: "ess", Kind: simulator.FaultLatency, Latency: 50 * time.Millisecond})
		start := time.Now()
		cloud.scaleIn(due)
		cloud.until(30*time.Minute, "the others are answered", func() bool { return cloud.ended(groupID) == due })
		took := time.Since(start)
		made, refused := calls(cloud, "ess.")-before, cloud.State().Faults[0].Struck
		t.Logf("%d answered after %v, %d calls, %d refused, %v", due, took, made, refused, cloud.State().APICalls)
		cloud.until(time.Hour, "settled", cloud.settled)
		cloud.answered(messages.Continue)
		made, refused = calls(cloud, "ess.")-before, cloud.State().Faults[0].Struck
		t.Logf("all answered after %v, %d calls, %d refused", time.Since(start), made, refused)
		if refused*4 > made {
			t.Errorf("%d of %d calls were refused", refused, made)
		}
		r.stop()
		if log.open != 0 {
			t.Errorf("%d deliveries have no closing record", log.open)
		}
	})
}

func waitFor(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// calls counts the calls of a service.
func calls(c *cloud, service string) (n int) {
	for name, count := range c.State().APICalls {
		if strings.HasPrefix(name, service) {
			n += count
		}
	}
	return n
}
