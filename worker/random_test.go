package worker_test

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
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

var (
	firstSeed = flag.Uint64("usher.seed", 1, "seed of the first random schedule; the others follow it")
	schedules = flag.Int("usher.schedules", 0, "how many random schedules to run on a cloud; 0: a few")
	until     = flag.String("usher.until", "", "end the run with the first complaint about this rule, such as \"rule 4\"; several with commas")
)

// Whatever happens, and in whatever order: fleets, plans, faults, crashes, stops, cuts
// and rubbish are drawn at random, and the cloud's own record, the audit logs and the
// jobs themselves are the judges; docs/proof.md says which rule is held against what. A
// failure names the rule and its seed; since the scheduler and the jitters are not part
// of the seed, a rare failure may need it a few times:
//
//	go test ./worker -run 'TestRandomSchedules$' -usher.seed 42 -usher.schedules 1 -count 20
//
// With -failfast the first schedule that fails ends the run, with -usher.until the first
// that complains about a certain rule.
func TestRandomSchedules(t *testing.T) {
	t.Parallel()
	runSchedules(t, messages.Alibaba, fewSchedules)
}

// runSchedules runs as many schedules on a cloud as the flags say, or else a few.
func runSchedules(t *testing.T, on messages.Cloud, few int) {
	n := cmp.Or(*schedules, few)
	if testing.Short() {
		n = min(n, 50)
	}
	var total tally
	t.Cleanup(func() {
		t.Logf("%d schedules from seed %d on %s: %.0f simulated hours, %d lifecycle actions, %d workers", total.schedules.Load(), *firstSeed, on,
			time.Duration(total.simulated.Load()).Hours(), total.actions.Load(), total.workers.Load())
	})
	failFast := flag.Lookup("test.failfast").Value.String() == "true"
	for i := range n {
		seed := *firstSeed + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			if total.enough.Load() {
				return
			}
			t.Cleanup(func() {
				if failFast && t.Failed() {
					total.enough.Store(true)
				}
			})
			synctest.Test(t, func(t *testing.T) { runSchedule(t, on, seed, &total) })
		})
	}
}

// tally is what all schedules together came to.
type tally struct {
	schedules, simulated, actions, workers atomic.Int64
	enough                                 atomic.Bool // no more schedules are to begin
}

// schedule is one random run.
type schedule struct {
	t     *testing.T
	total *tally
	on    messages.Cloud
	cloud *cloud
	seed  uint64
	rng   *rand.Rand
	log   []string // what was done, printed on failure

	groups []*drawnGroup
	verify worker.Verify
	// reconcile is how often workers look for actions whose message is lost, 0: never.
	// Only then messages are lost on purpose.
	reconcile time.Duration
	skew      time.Duration // how far the cloud's clock is ahead, but for its jumps
	history   []*life       // all workers, in the order of their start
	alive     []*life
	retired   []*life // killed, or stopping
	rolledOut bool    // new workers have the whole config

	troubles    []span        // of the cloud and of single workers: a wait may lapse meanwhile, or a message come twice
	interrupted []span        // of the cloud alone, from the first strike to the last
	delay       time.Duration // of the queue
	emptied     []time.Time   // when the queue was deleted, and all messages with it

	terminated map[string]bool // the actions one of whose machines was ended from outside, by token

	mu      sync.Mutex
	bodies  map[string]letter // guarded by mu; what was sent besides the cloud's own notifications, by body
	letters map[string]letter // guarded by mu; the same, by message id
	// madeUp are, by token, the actions that were never announced and that no cloud can be
	// asked about; as they were told.
	madeUp    map[string]simulator.ActionState // guarded by mu
	receivers map[string]string                // guarded by mu; who received a message last, by its id
	subjects  map[string]bool                  // guarded by mu; tokens and message ids that a failure is about
	failures  int                              // guarded by mu
}

type span struct{ from, to time.Time }

// drawnGroup is a scaling group.
type drawnGroup struct {
	id    string
	hooks []drawnHook
	// general: its plans name no hook, so that whatever names the group is judged.
	general bool
	pool    bool // it has a warm pool

	mu       sync.Mutex
	trouble  simulator.FaultKind // guarded by mu; what befalls the group's calls to ESS
	troubles []span              // guarded by mu
}

// drawnHook is a hook and its plan.
type drawnHook struct {
	id        string
	in        bool
	silent    bool // it tells nobody
	timeout   time.Duration
	deadline  time.Duration
	onFailure messages.Result
	steps     []drawnStep
	drawnEnds
}

type drawnStep struct {
	takes, timeout time.Duration
	hangs          bool    // until its context ends
	failure        float64 // its likelihood, of each attempt
	retries        int
	ignore         bool
	slow           time.Duration // how long it goes on when its context has ended
}

// letter is what a message is in truth.
type letter struct {
	kind  kind
	token string
	body  string
	lost  bool // with its queue
}

type kind string

const (
	announcement kind = "announcement"    // true, from the cloud or a copy of it
	again        kind = "announced again" // true, sent by a worker which saw the action wait
	forged       kind = "forged"          // contradicts what the cloud says, in a group that is worked for
	madeUp       kind = "made up"         // the same, but the cloud can't be asked: only its refusals tell
	foreign      kind = "foreign"         // of a group or hook that no worker knows
	unrelated    kind = "unrelated"       // well-formed and about something else
	rubbish      kind = "rubbish"         // can't be decoded
)

func pick[T any](rng *rand.Rand, list ...T) T { return list[rng.IntN(len(list))] }

func runSchedule(t *testing.T, on messages.Cloud, seed uint64, total *tally) {
	rng := rand.New(rand.NewPCG(seed, 0x75736865))
	s := &schedule{
		t: t, total: total, on: on, seed: seed, rng: rng, bodies: map[string]letter{}, madeUp: map[string]simulator.ActionState{},
		letters: map[string]letter{}, receivers: map[string]string{}, subjects: map[string]bool{}, terminated: map[string]bool{},
	}
	begin := time.Now()
	s.draw()
	t.Cleanup(func() {
		total.schedules.Add(1)
		total.simulated.Add(int64(time.Since(begin)))
		total.actions.Add(int64(len(s.cloud.State().Actions)))
		total.workers.Add(int64(len(s.history)))
		if t.Failed() {
			t.Logf("seed %d\n%s", seed, s.story())
		}
	})
	for range 1 + rng.IntN(3) {
		s.startWorker()
	}
	peaceful := rng.IntN(4) == 0
	for range 5 + rng.IntN(12) {
		s.act(peaceful)
		s.sleep(time.Duration(rng.ExpFloat64() * float64(20*time.Second)))
	}
	s.settle()
	s.judge()
}

func (s *schedule) note(format string, args ...any) {
	s.log = append(s.log, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

func (s *schedule) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// draw makes the cloud.
func (s *schedule) draw() {
	rng := s.rng
	s.verify = pick(rng, worker.VerifyAlways, worker.VerifyAlways, worker.VerifyAlways, worker.VerifyAlways, worker.VerifyAlways, worker.VerifyRedelivered)
	s.reconcile = pick(rng, 0, 0, 0, time.Duration(30+rng.IntN(120))*time.Second)
	s.skew = pick(rng, 0, 0, time.Duration(rng.Int64N(int64(28*time.Minute)))-14*time.Minute)
	if s.on == messages.AWS {
		s.boundByAWS()
	}
	sc := simulator.Scenario{
		Region: "cn-shenzhen",
		Queues: []simulator.QueueConfig{{Name: queueName, VisibilityTimeout: pick[time.Duration](rng, 5, 30, 60) * time.Second}},
	}
	for i := range pick(rng, 1, 2, 2, 3) {
		g := &drawnGroup{id: fmt.Sprintf("asg-%d", i), general: rng.IntN(3) == 0}
		group := simulator.GroupConfig{ID: g.id, Instances: 4 + rng.IntN(8), SplitActivity: rng.IntN(2) == 0}
		for j := range 1 + rng.IntN(3) {
			h := drawnHook{
				id: fmt.Sprintf("ash-%d-%d", i, j), in: j == 0 || rng.IntN(2) == 0,
				timeout:   pick(rng, 30*time.Second, time.Minute, 5*time.Minute, time.Hour),
				deadline:  pick(rng, 3*time.Minute, 20*time.Minute, 20*time.Minute, 2*time.Hour),
				onFailure: pick(rng, messages.Abandon, messages.Rollback, messages.Rollback, messages.Continue),
				silent:    s.reconcile > 0 && rng.IntN(4) == 0,
			}
			if s.on == messages.AWS && h.onFailure == messages.Rollback {
				h.onFailure = messages.Abandon // which lets the instances go, too: there is no ROLLBACK
			}
			if g.general && slices.ContainsFunc(g.hooks, func(o drawnHook) bool { return o.in == h.in }) {
				continue
			}
			for range rng.IntN(3) {
				h.steps = append(h.steps, drawnStep{
					takes:   time.Duration(rng.ExpFloat64() * float64(pick(rng, time.Second, time.Minute, 3*time.Minute))),
					timeout: pick(rng, 0, 0, 2*time.Minute), failure: pick(rng, 0, 0, 0, 0.05, 0.4), hangs: rng.IntN(20) == 0,
					retries: rng.IntN(3), ignore: rng.IntN(5) == 0, slow: pick(rng, 0, 0, 3*time.Second),
				})
			}
			g.hooks = append(g.hooks, h)
			group.Hooks = append(group.Hooks, simulator.HookConfig{
				ID: h.id, Name: h.id, Transition: map[bool]string{true: "scale_in", false: "scale_out"}[h.in],
				Queue: map[bool]string{false: queueName}[h.silent], HeartbeatTimeout: h.timeout, DefaultResult: pick(rng, "CONTINUE", "ABANDON", "ROLLBACK"),
			})
		}
		s.groups = append(s.groups, g)
		sc.ScalingGroups = append(sc.ScalingGroups, group)
	}
	sc.Timings.Listing = pick(rng, 0, 0, 5*time.Second)
	sc.Timings.Boot = pick(rng, 0, 0, 20*time.Second)
	sc.Timings.Address = pick(rng, 0, 0, 15*time.Second)
	if s.on == messages.AWS {
		s.moveToAWS(&sc)
	} else {
		s.drawWays(&sc)
	}
	s.drawEnds()
	s.cloud = newCloud(s.t, sc)
	s.cloud.front = s.befall
	s.cloud.SetClock(s.skew)
}

func (s *schedule) group(id string) *drawnGroup {
	for _, g := range s.groups {
		if g.id == id {
			return g
		}
	}
	return nil
}

func (g *drawnGroup) host() string { return g.id + ".scaling.test" }

// befall lets a group's trouble strike its calls.
func (s *schedule) befall(w http.ResponseWriter, r *http.Request) bool {
	for _, g := range s.groups {
		if g.host() != r.Host {
			continue
		}
		g.mu.Lock()
		trouble := g.trouble
		g.mu.Unlock()
		switch trouble {
		case "":
			return false
		case simulator.FaultHang:
			io.Copy(io.Discard, r.Body) // only then the server notices that the client has gone
			<-r.Context().Done()
			panic(http.ErrAbortHandler)
		case simulator.FaultDrop:
			panic(http.ErrAbortHandler)
		case simulator.FaultThrottle:
			contentType, body := "application/json", `{"Code":"Throttling.User","Message":"Request was denied due to user flow control.","RequestId":"R","HostId":"`+r.Host+`"}`
			if s.on == messages.AWS {
				contentType, body = "text/xml", `<ErrorResponse><Error><Type>Sender</Type><Code>Throttling</Code><Message>Rate exceeded</Message></Error><RequestId>R</RequestId></ErrorResponse>`
			}
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(http.StatusBadRequest)
			io.WriteString(w, body)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		return true
	}
	return false
}

// startWorker starts one with limits of its own: configs differ while they are rolled out.
func (s *schedule) startWorker() *life {
	rng := s.rng
	l := &life{
		s: s, name: fmt.Sprintf("w%d", len(s.history)+1), started: time.Now(), hooks: map[string]drawnHook{}, groups: map[string]bool{},
		visibility:  pick[time.Duration](rng, 10, 20, 30, 60) * time.Second,
		grace:       pick(rng, -1, 5*time.Second, 30*time.Second, 10*time.Minute),
		maxActions:  pick(rng, 100, 100, 100, 100, 100, 3),
		maxReceives: 2 + rng.IntN(5),
		atWork:      map[string]int{}, jobs: map[jobKey]*job{}, received: map[string][]string{}, adopted: map[string]bool{}, admitted: map[string]time.Time{},
		refused: map[string]time.Time{}, completed: map[string]time.Time{}, receipts: map[string]string{}, leases: map[string]time.Time{}, garbled: map[delivery]bool{},
	}
	l.floor = pick(rng, 4*l.visibility, 10*time.Minute, time.Hour)
	l.maxJobs = pick(rng, len(s.groups), max(2, len(s.groups)), 5, 100)
	without := -1
	if len(s.groups) > 1 && !s.rolledOut && rng.IntN(6) == 0 {
		without = rng.IntN(len(s.groups)) // its config has yet to be rolled out
	}
	slower := rng.IntN(6) == 0
	var ids []string
	plans := map[string][]worker.Plan{}
	for i, g := range s.groups {
		if i == without {
			continue
		}
		ids = append(ids, g.id)
		l.groups[g.id] = true
		for _, h := range g.hooks {
			if slower {
				h.deadline *= 2
				h.steps = append(slices.Clone(h.steps), drawnStep{takes: 5 * time.Second})
			}
			l.hooks[h.id] = h
			p := worker.Plan{
				Transition: messages.ScaleIn, Hook: h.id, Deadline: h.deadline, OnSuccess: messages.Continue, OnFailure: h.onFailure, HeartbeatFloor: l.floor,
			}
			if g.general {
				p.Hook = ""
			}
			if !h.in {
				p.Transition = messages.ScaleOut
			}
			for n, st := range h.steps {
				p.Steps = append(p.Steps, worker.PlannedStep{Step: l.step(g, h, n, st), Timeout: st.timeout, Retries: st.retries, IgnoreError: st.ignore, UndoTimeout: endTakes})
			}
			l.compose(&p, g, h)
			plans[g.id] = append(plans[g.id], p)
		}
	}
	s.note("start %s for %v: visibility %v, grace %v, floor %v, %d jobs, %d actions, %d receives", l.name, ids, l.visibility, l.grace, l.floor, l.maxJobs, l.maxActions, l.maxReceives)
	l.running = s.cloud.start(settings{
		name: l.name, groups: ids, verify: s.verify, timeout: 5 * time.Second, endpoint: func(id string) string { return "http://" + s.group(id).host() },
		lease: l.visibility,
		change: func(o *worker.Options) {
			o.VisibilityTimeout, o.ShutdownGrace, o.MaxJobs, o.MaxActions, o.MaxReceives = l.visibility, l.grace, l.maxJobs, l.maxActions, l.maxReceives
			o.ReconcileEvery = s.reconcile
			o.Audit = audit.New(io.Discard, l.name, l.observe)
			o.Queues[0].Queue = watchedQueue{o.Queues[0].Queue, l}
			for i := range o.Queues[0].Groups {
				g := &o.Queues[0].Groups[i]
				g.Lifecycle = watchedLifecycle{g.Lifecycle, l}
				g.Plans = plans[string(g.ID)]
			}
			l.queue = o.Queues[0]
		},
	})
	s.alive = append(s.alive, l)
	s.history = append(s.history, l)
	return l
}

// act does one random thing.
func (s *schedule) act(peaceful bool) {
	rng := s.rng
	choice := rng.IntN(30)
	if peaceful && choice > 7 && choice < 27 {
		choice = rng.IntN(8)
	}
	switch choice {
	case 0, 1, 2, 3:
		g, n := pick(rng, s.groups...), 1+rng.IntN(4)
		_, err := s.cloud.ScaleIn(g.id, n)
		s.note("scale %s in by %d: %v", g.id, n, err)
	case 4, 23, 24:
		g := pick(rng, s.groups...)
		s.note("scale %s out", g.id)
		if _, err := s.cloud.ScaleOut(g.id, 1+rng.IntN(3)); err != nil {
			s.t.Error(err)
		}
	case 5:
		if len(s.alive) < 3 {
			s.startWorker()
		}
	case 6, 21:
		s.garbage()
	case 25, 26:
		s.terminate()
	case 7:
		// Not far: an age that comes out wrong by a jump is not to make a wait lapse.
		jump := time.Duration(rng.Int64N(int64(5*time.Second))) - 2500*time.Millisecond
		s.note("the cloud's clock jumps to %v ahead", s.skew+jump)
		s.cloud.SetClock(s.skew + jump)
	case 27, 28, 29:
		s.reload(pick(rng, s.alive...), peaceful)
	case 8:
		s.replay()
	case 9, 10, 11, 12:
		s.fault()
	case 13, 22:
		s.groupTrouble()
	case 14, 15:
		l := s.remove()
		s.note("kill %s", l.name)
		l.end(&l.killed)
		l.kill()
		l.over.Store(true)
		s.trouble(l.killed, time.Now().Add(s.longestLease(l)+20*time.Second))
		s.keepOne()
	case 16:
		l := s.remove()
		s.note("stop %s", l.name)
		s.stop(l)
		s.keepOne()
	case 17:
		l := pick(rng, s.alive...)
		if l.severed.IsZero() {
			s.note("cut %s off", l.name)
			l.severed = time.Now()
			l.sever()
			return
		}
		s.mendWorker(l)
	case 18, 19:
		s.delay = time.Duration(rng.IntN(11)) * time.Second
		if len(s.cloud.State().Faults) > 0 {
			return // they would strike this request, too
		}
		s.note("messages come %v late from now on", s.delay)
		s.cloud.delay(s.delay)
	case 20:
		if s.reconcile == 0 || len(s.cloud.State().Faults) > 0 {
			return
		}
		away := time.Duration(rng.ExpFloat64() * float64(pick(rng, 0, 20*time.Second)))
		s.note("delete the queue, and make it anew after %v", away)
		s.cloud.deleteQueue()
		s.emptied = append(s.emptied, time.Now())
		s.mu.Lock()
		for id, l := range s.letters {
			l.lost = true
			s.letters[id] = l
		}
		s.mu.Unlock()
		s.interrupted = append(s.interrupted, span{time.Now(), time.Now().Add(away + time.Minute)})
		s.trouble(time.Now(), time.Now().Add(away+s.slowest()))
		s.sleep(away)
		s.cloud.ClearFaults()
		s.cloud.createQueue()
	}
}

// reload gives a worker its config anew: some of its groups have changed, or all are gone
// for a moment.
func (s *schedule) reload(l *life, peaceful bool) {
	all := slices.Clone(l.queue.Groups)
	changed := 0
	for i := range all {
		if s.rng.IntN(2) == 0 {
			continue
		}
		changed++
		all[i].Lifecycle = watchedLifecycle{l.lifecycle(string(all[i].ID)), l}
	}
	apply := func(groups ...worker.Group) {
		q := l.queue
		q.Groups = groups
		if err := l.w.Apply([]worker.Queue{q}, l.maxJobs); err != nil {
			s.t.Fatalf("reload: %v", err)
		}
	}
	if !peaceful && s.rng.IntN(3) == 0 {
		s.note("reload %s: no group, and %d of %d changed", l.name, changed, len(all))
		// A receive that is cut short may hide messages for the queue's own timeout.
		s.trouble(time.Now(), time.Now().Add(80*time.Second))
		if s.rng.IntN(2) == 0 {
			apply()
		} else if err := l.w.Apply(nil, l.maxJobs); err != nil {
			s.t.Fatalf("reload: %v", err)
		}
		s.sleep(time.Duration(s.rng.IntN(3)) * 20 * time.Millisecond)
	} else {
		s.note("reload %s: %d of %d groups have changed", l.name, changed, len(all))
	}
	apply(all...)
	l.queue.Groups = all
}

// slowest is how long a lost action may wait until somebody has begun with it: two looks
// of a worker and the doubt between them, and an announcement that is passed on for a while.
func (s *schedule) slowest() time.Duration { return 2*s.reconcile + 4*time.Minute }

// longestLease is how long l's messages may stay hidden when it is gone.
func (s *schedule) longestLease(l *life) time.Duration { return max(l.visibility, time.Minute) }

// stop ends a worker as SIGTERM does, and does not wait for it.
func (s *schedule) stop(l *life) {
	l.end(&l.stopping)
	l.endRecv()
	go func() {
		<-l.done
		l.over.Store(true)
		l.end(&l.ended)
	}()
	// A receive that is cut short may hide messages for the queue's own timeout.
	s.trouble(time.Now(), time.Now().Add(max(0, l.grace)+80*time.Second))
}

func (s *schedule) remove() *life {
	i := s.rng.IntN(len(s.alive))
	l := s.alive[i]
	s.alive = slices.Delete(s.alive, i, i+1)
	s.retired = append(s.retired, l)
	if !l.severed.IsZero() {
		s.trouble(l.severed, time.Now().Add(s.longestLease(l)+time.Minute))
	}
	return l
}

// keepOne sees to it that somebody is there who works for all groups.
func (s *schedule) keepOne() {
	for len(s.alive) == 0 || s.rng.IntN(2) == 0 && len(s.alive) < 3 {
		s.startWorker()
	}
}

func (s *schedule) mendWorker(l *life) {
	s.note("mend %s", l.name)
	s.trouble(l.severed, time.Now().Add(s.longestLease(l)+time.Minute))
	l.severed = time.Time{}
	l.mend()
}

func (s *schedule) trouble(from, to time.Time) { s.troubles = append(s.troubles, span{from, to}) }

// post sends a message of our own.
func (s *schedule) post(l letter) {
	s.mu.Lock()
	defer s.mu.Unlock() // till it is known by its id, too: nobody may receive it before
	s.bodies[l.body] = l
	id, err := s.cloud.SendMessage(queueName, l.body)
	if err != nil {
		s.t.Error(err)
	}
	s.letters[id] = l
}

// claim is a notification that says what the cloud says of a, but for the changes.
func (s *schedule) claim(a simulator.ActionState, change map[string]any) string {
	fields := map[string]any{
		"lifecycleActionToken": a.Token, "lifecycleHookId": a.Hook, "lifecycleHookName": a.HookName, "lifecycleTransition": wireTransition[a.Transition],
		"scalingActivityId": a.Activity, "instanceIds": a.Instances, "scalingGroupId": a.Group,
	}
	for k, v := range change {
		fields[k] = v
	}
	return s.notification(fields)
}

// notification is one of the cloud's own, with changed fields.
func (s *schedule) notification(change map[string]any) string {
	if s.on == messages.AWS {
		return notificationOfAWS(change)
	}
	return notification(change)
}

// terminate ends a machine that a hook holds.
func (s *schedule) terminate() {
	state := s.cloud.State()
	waiting := slices.DeleteFunc(state.Actions, func(a simulator.ActionState) bool { return a.Status != "Pending" })
	if len(waiting) == 0 {
		return
	}
	a := pick(s.rng, waiting...)
	id := pick(s.rng, a.Instances...)
	if _, there := state.Instance(id); !there {
		return
	}
	s.note("terminate %s of %s", id, a.Token)
	if err := s.cloud.Terminate(id); err != nil {
		s.t.Error(err)
	}
	// Nobody believes that it is gone before a while has passed.
	s.trouble(time.Now(), time.Now().Add(30*time.Second))
	for _, o := range waiting {
		if o.Activity == a.Activity {
			s.terminated[o.Token] = true
		}
	}
}

// garbage sends what no worker must act on.
func (s *schedule) garbage() {
	rng := s.rng
	body := pick(rng, "hello", "{", base64.StdEncoding.EncodeToString([]byte{0xff, 0xfe, 0x00}), strings.Repeat("z", 3000), s.notification(map[string]any{"instanceIds": 7}))
	l := letter{kind: rubbish, body: fmt.Sprintf("%s %d", body, rng.Uint32())}
	actions := s.cloud.State().Actions
	switch choice := rng.IntN(8); {
	case choice == 0:
		l = letter{kind: unrelated, body: fmt.Sprintf(unrelatedTo[s.on], rng.Uint32())}
	case choice == 1:
		l = letter{kind: foreign, body: s.notification(map[string]any{"scalingGroupId": "asg-nobody", "requestId": fmt.Sprint(rng.Uint32())})}
	case (choice == 2 || choice == 3) && len(actions) > 0:
		// What a shell or a URL would make something else of.
		a := pick(rng, actions...)
		l.body = s.claim(a, pick(rng, map[string]any{"instanceIds": append(a.Instances, "i-$(reboot)")}, map[string]any{"lifecycleActionToken": a.Token + "&x=1"},
			map[string]any{"scalingGroupId": a.Group + "/../x"}, map[string]any{"lifecycleHookId": "ash-`id`"}, map[string]any{"scalingActivityId": "asa-1 -1"}))
	case choice > 3 && len(actions) > 0 && s.verify == worker.VerifyAlways && s.on == messages.AWS:
		l = s.forgeOnAWS(pick(rng, actions...))
	case choice > 3 && len(actions) > 0 && s.verify == worker.VerifyAlways:
		l = s.forge(pick(rng, actions...))
	}
	s.note("send %s %.300s", l.kind, l.body)
	s.post(l)
}

// unrelatedTo are messages about something else, each with a number.
var unrelatedTo = map[messages.Cloud]string{
	messages.Alibaba: `{"product":"ECS","name":"Instance:StateChange","content":{"n":%d}}`,
	messages.AWS:     `{"version":"0","detail-type":"EC2 Instance Launch Successful","source":"aws.autoscaling","detail":{"n":%d}}`,
}

// forge makes a message that lies about a.
func (s *schedule) forge(a simulator.ActionState) letter {
	rng := s.rng
	other := pick(rng, s.groups...)
	elsewhere := pick(rng, s.cloud.State().Groups...).Instances
	l := letter{kind: forged, token: a.Token}
	switch rng.IntN(6) {
	case 0:
		l.body = s.claim(a, map[string]any{"instanceIds": append(a.Instances, "i-forged")})
	case 1:
		l.body = s.claim(a, map[string]any{"scalingActivityId": "asa-none"})
	case 2:
		l.body = s.claim(a, map[string]any{"lifecycleActionToken": "C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99"})
		l.token = ""
	case 3, 4:
		// Another group's action, in the name of a group that is worked for.
		if other.id == a.Group {
			l.body = s.claim(a, map[string]any{"instanceIds": []string{"i-forged"}})
			break
		}
		l.body = s.claim(a, map[string]any{"scalingGroupId": other.id})
		planned := slices.ContainsFunc(other.hooks, func(h drawnHook) bool { return h.in == (a.Transition == "scale_in") })
		if !other.general || !planned {
			l.kind = foreign
		}
	default:
		for _, in := range elsewhere {
			if !slices.Contains(a.Instances, in.ID) {
				l.body = s.claim(a, map[string]any{"instanceIds": []string{in.ID}})
			}
		}
		if l.body == "" {
			l.body = s.claim(a, map[string]any{"instanceIds": []string{"i-forged"}})
		}
	}
	return l
}

var wireTransition = map[string]string{"scale_in": "SCALE_IN", "scale_out": "SCALE_OUT"}

// replay sends a true notification a second time, at once or much later.
func (s *schedule) replay() {
	actions := s.cloud.State().Actions
	if len(actions) == 0 || s.verify != worker.VerifyAlways {
		return
	}
	if held := s.heldByOthers(actions); len(held) > 0 {
		actions = held
	}
	a := pick(s.rng, actions...)
	l := letter{kind: announcement, token: a.Token, body: s.claim(a, nil)}
	if s.rng.IntN(2) == 0 {
		l.body = base64.StdEncoding.EncodeToString([]byte(l.body))
	}
	late := pick(s.rng, 0, time.Duration(s.rng.ExpFloat64()*float64(time.Minute)))
	s.note("replay %s after %v", a.Token, late)
	s.sleep(late)
	s.post(l)
}

type faultAction struct{ service, action string }

// faultActions are what a cloud's faults can be about. The services are called by the names
// of Alibaba Cloud's: see inject.
var faultActions = map[messages.Cloud][]faultAction{
	messages.Alibaba: {
		{"ess", "CompleteLifecycleAction"}, {"ess", "RecordLifecycleActionHeartbeat"}, {"ess", "DescribeLifecycleActions"},
		{"ess", "DescribeScalingInstances"}, {"ess", "DescribeLifecycleHooks"}, {"mns", "ReceiveMessage"}, {"mns", "DeleteMessage"},
		{"mns", "ChangeMessageVisibility"}, {"mns", "GetQueueAttributes"}, {"mns", ""}, {"ess", ""},
	},
	messages.AWS: {
		{"ess", "CompleteLifecycleAction"}, {"ess", "RecordLifecycleActionHeartbeat"}, {"ess", "DescribeAutoScalingInstances"},
		{"ecs", "DescribeInstances"}, {"ess", "DescribeLifecycleHooks"}, {"mns", "ReceiveMessage"}, {"mns", "DeleteMessage"},
		{"mns", "ChangeMessageVisibility"}, {"mns", "GetQueueUrl"}, {"mns", ""}, {"ess", ""},
	},
}

// longestTrouble is over when settle has waited.
const longestTrouble = 5 * time.Minute

// fault injects a fault that ends by itself.
func (s *schedule) fault() {
	rng := s.rng
	at := pick(rng, faultActions[s.on]...)
	f := simulator.Fault{Service: at.service, Action: at.action, Rate: pick(rng, 0, 0.5)}
	f.Kind = pick(rng, simulator.Fault5xx, simulator.FaultThrottle, simulator.FaultHang, simulator.FaultDrop, simulator.FaultDropAfterEffect, simulator.FaultDenied, simulator.FaultLatency)
	if f.Kind == simulator.FaultLatency {
		f.Latency = time.Duration(1+rng.IntN(8)) * time.Second
	}
	switch choice := rng.IntN(8); {
	case choice == 0 && s.verify == worker.VerifyAlways:
		// By count: were each receive to add what it takes, no time would ever pass.
		f = simulator.Fault{Service: "mns", Action: pick(rng, "SendMessage", "ReceiveMessage"), Kind: simulator.FaultDuplicate, Count: 1 + rng.IntN(4)}
	case choice == 1:
		f = simulator.Fault{Service: "mns", Action: "ReceiveMessage", Kind: simulator.FaultCorrupt, Rate: f.Rate}
	}
	lasts := min(time.Duration(rng.ExpFloat64()*float64(40*time.Second)), longestTrouble)
	s.note("fault %s.%s %s rate %v for %v", f.Service, f.Action, f.Kind, f.Rate, lasts)
	s.cloud.inject(f)
	s.trouble(time.Now(), time.Now().Add(lasts+time.Minute+80*time.Second))
	s.interrupted = append(s.interrupted, span{time.Now(), time.Now().Add(lasts + 30*time.Second)})
	if rng.IntN(2) == 0 {
		go func() { s.sleepThenClear(lasts) }() // other things happen meanwhile
		return
	}
	s.sleepThenClear(lasts)
}

// sleepThenClear ends all faults at once, which is early for some.
func (s *schedule) sleepThenClear(d time.Duration) {
	time.Sleep(d)
	s.cloud.ClearFaults()
}

// groupTrouble lets all calls for one group fail for a while, which is no excuse for
// anything that happens to another's.
func (s *schedule) groupTrouble() {
	g := pick(s.rng, s.groups...)
	trouble := pick(s.rng, simulator.FaultHang, simulator.FaultHang, simulator.FaultThrottle, simulator.Fault5xx, simulator.FaultDrop)
	lasts := min(time.Duration(s.rng.ExpFloat64()*float64(2*time.Minute)), longestTrouble)
	s.note("all calls for %s: %s for %v", g.id, trouble, lasts)
	g.mu.Lock()
	g.trouble = trouble
	g.troubles = append(g.troubles, span{time.Now(), time.Now().Add(lasts + 80*time.Second)})
	g.mu.Unlock()
	go func() {
		time.Sleep(lasts)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.trouble = ""
	}()
	if s.rng.IntN(2) == 0 {
		_, err := s.cloud.ScaleIn(g.id, 1)
		s.note("scale %s in by 1: %v", g.id, err)
	}
}

// settle lets the cloud be well and waits until nothing is left to do.
func (s *schedule) settle() {
	s.sleep(longestTrouble) // the last fault has been cleared by then, or is now
	s.cloud.ClearFaults()
	for _, g := range s.groups {
		g.mu.Lock()
		if n := len(g.troubles); n > 0 && g.trouble != "" {
			g.trouble, g.troubles[n-1].to = "", time.Now().Add(80*time.Second)
		}
		g.mu.Unlock()
	}
	for _, l := range s.alive {
		if !l.severed.IsZero() {
			s.mendWorker(l)
		}
	}
	for _, l := range slices.Clone(s.alive) {
		if len(l.groups) < len(s.groups) { // the new config has been rolled out by now
			s.note("stop %s", l.name)
			s.stop(l)
			s.alive = slices.DeleteFunc(s.alive, func(o *life) bool { return o == l })
			s.retired = append(s.retired, l)
		}
	}
	s.rolledOut = true
	if len(s.alive) == 0 {
		s.startWorker()
	}
	s.note("all is well")
	for begin := time.Now(); !s.settled(); s.sleep(5 * time.Second) {
		if time.Since(begin) > 8*time.Hour {
			s.broken("rule 8", "", "not settled within 8 hours: %s", s.cloud.describe())
			break
		}
	}
	s.note("settled")
	s.sleep(time.Minute)
	for _, l := range slices.Clone(s.alive) {
		at := time.Now()
		s.stop(l)
		l.wait()
		if took := time.Since(at); took > time.Second && !l.adopting(at) {
			s.broken("rule 7", "", "%s had nothing to do, and took %v to stop", l.name, took)
		}
	}
	for _, l := range s.retired {
		<-l.done
	}
	synctest.Wait()
}

// adopting says whether l held an action without a message at that time. Nobody tells it
// before its next heartbeat that another worker has answered.
func (l *life) adopting(at time.Time) bool {
	open := map[messages.Token]bool{}
	for _, rec := range l.log {
		switch {
		case rec.Time.After(at):
		case rec.Event == audit.Adopted:
			open[rec.Token] = true
		case rec.Event.Closes() && rec.MessageID == "":
			delete(open, rec.Token)
		}
	}
	return len(open) > 0
}

// settled says whether every action has ended, and every message is gone that any
// worker should have taken care of.
func (s *schedule) settled() bool {
	state := s.cloud.State()
	for _, a := range state.Actions {
		if a.Status == "Pending" {
			return false
		}
	}
	q, _ := state.Queue(queueName)
	s.mu.Lock()
	defer s.mu.Unlock()
	left := q.Active + q.Inactive + q.Delayed
	for _, l := range s.letters {
		if l.kind == foreign && !l.lost {
			left--
		}
	}
	return left == 0
}

// errStep is a step's failure.
var errStep = errors.New("drawn to fail")

// step does what was drawn, and notes what it came to.
func (l *life) step(g *drawnGroup, h drawnHook, n int, st drawnStep) worker.Step {
	run := stepFunc(func(ctx context.Context, in messages.Instance, attempt int) (_ string, err error) {
		begun := l.beginStep(g, h, n, in, attempt)
		defer func() { l.endStep(ctx, begun, h, n, in, attempt, err) }()
		takes := st.takes
		if st.hangs {
			takes = 24 * time.Hour
		}
		timer := time.NewTimer(takes)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			time.Sleep(st.slow)
			return "", ctx.Err()
		}
		if _, there := l.s.cloud.State().Instance(string(in.ID)); !there {
			return "", providers.ErrInstanceGone
		}
		if rand.Float64() < st.failure {
			return "", errStep
		}
		return "", nil
	})
	if h.undoable[n] {
		return undoableStep{run, l, h, n}
	}
	return run
}
