package worker

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker/audit"
	"example.org/usher/worker/heartbeats"
)

const (
	// judges bounds the batches of one group that are verified at once.
	judges = 4
	// verifyTimeout bounds one question to the cloud, the provider's retries included.
	verifyTimeout = time.Minute
	// unlistedFor is how young an action may be to be asked for again when the cloud
	// does not list it: its listing may lag behind its own notification.
	unlistedFor = 30 * time.Second
	// askAgain bounds the pause before a batch is asked about again, askAgainSoon the one while
	// an action in it is younger than unlistedFor: a wait may be as short as that, and nothing
	// prolongs it yet.
	askAgain     = 20 * time.Second
	askAgainSoon = 5 * time.Second
	// goneFor is how long an instance must be missing for the worker to believe that it is
	// gone: its action would be answered without a step.
	goneFor = 10 * time.Second
	// unclearFirst and unclearMost bound how long an action that the cloud contradicts itself
	// about is put off, longer each time.
	unclearFirst = 30 * time.Second
	unclearMost  = 2 * time.Minute
	// hookFor is how long a hook's settings are good.
	hookFor = 5 * time.Minute
	// hookAgain is how long a hook that could not be read is not asked for again, so that
	// a batch of actions does not wait for one hanging call each before its first heartbeat.
	hookAgain = 30 * time.Second
	// maxEnded is how many actions are remembered that have ended before any is forgotten.
	maxEnded = 1000
	// settledFor is how long an event is remembered at the least whose jobs have ended, since
	// nothing but its id tells a duplicate from another, and an action that this worker has
	// answered. maxSettled bounds how many are.
	settledFor = 10 * time.Minute
	maxSettled = 10_000
	// maxHooks bounds the hooks of a group that are remembered.
	maxHooks = 100
	// hookTimeoutUnknown is assumed when the cloud does not tell: its shortest (ESS
	// CreateLifecycleHook, 2014-08-28: 30 s).
	hookTimeoutUnknown = 30 * time.Second
	// hookTimeoutMost is the longest of a hook (Auto Scaling PutLifecycleHook, 2011-01-01;
	// that of ESS is longer, and its waits do not depend on it).
	hookTimeoutMost = 2 * time.Hour
)

// group is a scaling group at work, as one configuration describes it. An action keeps the
// one that it was received under; what all of them share is share.
type group struct {
	Group
	log    *slog.Logger
	share  *share
	beats  *keeper
	judges chan struct{} // one token for each batch that is being verified
	errors *repeated
	// reconcileErrors are those of the looks for lost actions.
	reconcileErrors *repeated
	// placeErrors are those of the looks for the groups of instances.
	placeErrors *repeated
	// denials are about all that the group asks of the cloud.
	denials denials

	holding    int                // guarded by its consumer's mu
	moved      time.Time          // guarded by its consumer's mu; when it last closed an action, or held its first
	endLooking context.CancelFunc // guarded by its consumer's mu; ends its reconciler, nil: there is none
	endBeating context.CancelFunc // guarded by its consumer's mu; ends its keeper, nil: it does not run
	// watching: a duty looks at the actions that are watched.
	watching bool // guarded by admissions.mu

	mu    sync.Mutex
	hooks map[messages.HookID]knownHook // guarded by mu
	// reading: a duty reads a hook again.
	reading bool // guarded by mu
}

type knownHook struct {
	name    string // "" is not known
	timeout time.Duration
	known   bool      // timeout is the cloud's word, now or once
	missing bool      // the group has no such hook
	until   time.Time // when it is asked for again
}

func newGroup(w *Worker, g Group) *group {
	log := w.log.With(keyGroup, g.ID)
	return &group{
		Group: g, log: log, share: w.pool.share(groupKey{g.Region, g.ID}, g.MaxConcurrent), beats: newKeeper(),
		judges:          make(chan struct{}, judges),
		errors:          &repeated{log: log, msg: "can't verify"},
		reconcileErrors: &repeated{log: log, msg: "can't look for actions whose message was lost"},
		placeErrors:     &repeated{log: log, msg: "can't find the groups of an event's instances"},
		hooks:           map[messages.HookID]knownHook{},
	}
}

func (g *group) key() groupKey { return groupKey{g.Region, g.ID} }

// isOf says that the group may be the one of an account, "" for one that is not named.
func (g *group) isOf(account string) bool {
	return account == "" || g.Account == "" || account == g.Account
}

// plan finds what to do for an action; nil: nothing is configured. A plan that names
// the hook goes before one that only names the transition.
func (g *group) plan(a messages.Action) *Plan {
	var general *Plan
	for i := range g.Plans {
		p := &g.Plans[i]
		switch {
		case p.Transition != a.Transition || p.Event != a.Event:
		case p.Hook == "":
			general = p
		case p.Hook == string(a.Hook) || p.Hook == a.HookName:
			return p
		}
	}
	return general
}

// noPlan says that plan finds none.
func (g *group) noPlan(a messages.Action) string {
	return "the config of " + string(g.ID) + " has no plan for its hook " + string(a.Hook) + " (" + string(a.Transition) + ")"
}

// budget is what the cloud and the plan allow an action of the hook. Of one that is not known
// the heartbeats are as short as any hook's, and the wait may last as long as any.
func (g *group) budget(p *Plan, h knownHook) heartbeats.Budget {
	limits := g.Lifecycle.Limits(cmp.Or(h.timeout, hookTimeoutUnknown))
	if !h.known {
		limits.MaxWait = g.longestWait()
	}
	return heartbeats.Budget{
		Calls: limits.Calls, MaxWait: limits.MaxWait,
		MinExtension: limits.MinExtension, MaxExtension: limits.MaxExtension,
		Floor: p.HeartbeatFloor, Fixed: p.HeartbeatExtension,
	}
}

// longestWait is how long an action of any hook may wait.
func (g *group) longestWait() time.Duration { return g.Lifecycle.Limits(hookTimeoutMost).MaxWait }

// judge asks the cloud about a batch of the group's actions, as long as it takes, and
// admits or closes each. It ends with receiving: what is not confirmed by then is
// handed back. One group's judging does not wait for another's.
func (g *group) judge(receiving context.Context, batch []*action) {
	defer func() {
		// Side by side: where the queue hangs, each takes its time limit.
		for _, a := range batch {
			g.share.pool.run(func() { a.consumer.handBack(a, "the worker is stopping before the action was verified") })
		}
	}()
	select {
	case g.judges <- struct{}{}:
		defer func() { <-g.judges }()
	case <-receiving.Done():
		return
	}
	for attempt := 0; len(batch) > 0; attempt++ {
		most := askAgain
		if slices.ContainsFunc(batch, func(a *action) bool { return time.Since(a.start) < unlistedFor }) {
			most = askAgainSoon
		}
		if attempt > 0 && !pause(receiving, backoff(attempt, 2*time.Second, most)) {
			return
		}
		batch = g.judgeOnce(receiving, batch)
	}
}

// judgeOnce gives back the actions that must be asked for again.
func (g *group) judgeOnce(receiving context.Context, batch []*action) (again []*action) {
	ctx, cancel := context.WithTimeout(receiving, verifyTimeout)
	defer cancel()
	var ask []*action
	var questions []messages.Action
	for _, a := range batch {
		switch {
		case a.held.Err() != nil:
			a.consumer.closeEnded(a)
		case a.consumer.w.admissions.hasSettled(a.claim):
			// Where no token can be asked about (Auto Scaling 2011-01-01), it passes for pending
			// for as long as another hook holds the instance.
			g.share.pool.run(func() {
				a.consumer.stale(a, providers.Verification{State: providers.Over, Reason: "this worker has answered it before"})
			})
		case g.Verify == VerifyNever || g.Verify == VerifyRedelivered && a.delivery.Receives <= 1:
			g.admit(receiving, a, nil, "not verified, as configured")
		default:
			ask = append(ask, a)
			questions = append(questions, a.Action)
		}
	}
	if len(ask) == 0 {
		return nil
	}
	asked := time.Now()
	for _, a := range ask {
		if a.verified = asked; a.asked.IsZero() {
			a.asked = asked
		}
	}
	for i, v := range g.Lifecycle.Verify(ctx, questions) {
		a := ask[i]
		g.denials.noteVerify(v.Err)
		switch {
		case v.Err != nil:
			if receiving.Err() == nil {
				g.errors.note(v.Err)
			}
			again = append(again, a)
		case v.State == providers.Pending && asked.Sub(a.asked) < goneFor && slices.ContainsFunc(v.Instances, func(in messages.Instance) bool { return in.Gone }):
			again = append(again, a)
		case v.State == providers.Pending && !v.InGroup && g.hook(receiving, a.Hook).missing:
			// The action is real, and another group's for all we know: only the hook could tell,
			// where the cloud does not list its instances in any group.
			g.unclear(a, asked, "the group has no hook "+string(a.Hook))
		case v.State == providers.Pending:
			g.errors.note(nil)
			a.shared = v.Shared
			if !g.nameHook(receiving, a) {
				again = append(again, a)
			} else if a.plan == nil {
				g.share.pool.run(func() { a.consumer.putOff(a, g.noPlan(a.Action)) })
			} else {
				g.admit(receiving, a, v.Instances, v.Reason)
			}
		case (v.State == providers.Unlisted || v.State == providers.Unclear) && asked.Sub(a.start) < unlistedFor:
			// Its age when it was asked for counts: the listing may have been read long before
			// the last part of the answer came.
			again = append(again, a)
		case v.State == providers.Unclear:
			g.errors.note(nil)
			g.unclear(a, asked, v.Reason)
		default:
			g.errors.note(nil)
			// Not in this goroutine: a deletion waits for others to share its call.
			g.share.pool.run(func() { a.consumer.stale(a, v) })
		}
	}
	return again
}

// unclear puts an action off that the cloud can't be believed to know or not to know. It
// is over at the latest when no wait can last so long.
func (g *group) unclear(a *action, asked time.Time, reason string) {
	g.share.pool.run(func() {
		if asked.Sub(a.start) >= g.longestWait() {
			a.consumer.stale(a, providers.Verification{State: providers.Unclear, Reason: reason})
			return
		}
		delay := growing(unclearFirst, a.delivery.Receives-1, unclearMost)
		a.consumer.giveBack(a, delay, "the cloud must be asked again: "+reason)
	})
}

// nameHook puts the hook's own name in the place of the one in the message, which nobody
// has confirmed: whoever writes to the queue must not choose the plan by it. False: a
// plan depends on the name, and the cloud does not tell it.
func (g *group) nameHook(ctx context.Context, a *action) bool {
	named := slices.ContainsFunc(g.Plans, func(p Plan) bool {
		return p.Transition == a.Transition && p.Hook != "" && p.Hook != string(a.Hook)
	})
	if !named || a.plan.Hook == string(a.Hook) {
		return true
	}
	known := g.hook(ctx, a.Hook)
	if known.name == "" {
		return false
	}
	a.HookName = known.name
	if a.plan = g.plan(a.Action); a.plan != nil {
		a.budget = g.budget(a.plan, known)
	}
	return true
}

// stale closes an action that the cloud says is over or was never true. Nothing was touched.
func (c *consumer) stale(a *action, v providers.Verification) {
	c.close(a, audit.Stale, "", v.Reason, c.ack(a))
}

// admit lets an action wait for a slot, its wait prolonged from now on. instances is
// nil when the cloud was not asked.
func (g *group) admit(ctx context.Context, a *action, instances []messages.Instance, reason string) {
	// Before it is among the admissions, where others look at it.
	a.instances = instances
	if instances == nil {
		// For all that is known, at either transition: the first look tells. Where the cloud is
		// never to be asked, the next heartbeat does.
		a.shared = g.Verify != VerifyNever
		for _, id := range a.Instances {
			a.instances = append(a.instances, messages.Instance{ID: id})
		}
	} else {
		a.Instances = nil
		for i := range instances {
			a.Instances = append(a.Instances, instances[i].ID)
		}
	}
	for i := range a.instances {
		a.instances[i].Action = a.Action
	}
	if !a.consumer.w.admissions.claim(a) {
		// Another message about the same action says something else of it, and was confirmed
		// first. This one finds the action over when it comes back.
		g.share.pool.run(func() { a.consumer.putOff(a, "another message about the same action is held, or was until now") })
		return
	}
	a.to(eventAdmit)
	a.record(audit.Record{Event: audit.Admitted, Instances: a.Instances, Reason: reason})
	a.log.Info("admitted", keyInstances, len(a.Instances), "receives", a.delivery.Receives)
	hook := g.hook(ctx, a.Hook)
	a.budget = g.budget(a.plan, hook)
	a.beginBeats(hook)
	if a.shared {
		a.consumer.watch(a)
	}
	a.begin(ctx)
}

// begin lets the jobs begin as soon as there is a slot, unless receiving has ended.
func (a *action) begin(receiving context.Context) {
	// From here on a slot, the deadline, or whatever else ends the jobs begins the rest
	// of the action's life, whichever comes first.
	a.endBy(a.cutoff(), errDeadline)
	share := a.group.share
	t := share.submit(func(release func()) { a.consumer.see(a, release) })
	context.AfterFunc(a.jobs, func() {
		if t.withdraw() {
			share.pool.run(func() { a.consumer.see(a, func() {}) })
		}
	})
	if receiving.Err() != nil {
		a.endWaiting()
	}
}

// admissions are the actions that the cloud confirmed, over all queues: a group that was
// moved to another queue may be told of one action by both. The zero value is ready.
type admissions struct {
	mu       sync.Mutex
	admitted map[messages.ActionKey]*action   // guarded by mu; those that are held
	finished map[messages.ActionKey]time.Time // guarded by mu; when those that were admitted were closed, for a minute at least
	settled  map[claim]time.Time              // guarded by mu; when the jobs of events ended and actions were answered, which not every cloud can be asked about
	pruned   time.Time                        // guarded by mu; when the old ones among the settled were forgotten
}

// noteSettled remembers that the jobs of an event have ended, or that an action was answered.
// By all that its message says: a lie that shares its token must not end the true one.
func (s *admissions) noteSettled(which claim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.settled == nil {
		s.settled = map[claim]time.Time{}
	}
	now := time.Now()
	if len(s.settled) >= maxEnded && now.Sub(s.pruned) >= time.Minute { // a look at all for each would cost more than the answers
		maps.DeleteFunc(s.settled, func(_ claim, at time.Time) bool { return now.Sub(at) > settledFor })
		s.pruned = now
	}
	for known := range s.settled {
		if len(s.settled) < maxSettled {
			break
		}
		delete(s.settled, known)
	}
	s.settled[which] = now
}

// hasSettled says that this was so not long ago.
func (s *admissions) hasSettled(which claim) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.settled[which]
	return ok
}

// claim makes a the one that works on its hook and token; false: there is one, or
// there was one when the cloud was asked, whose answer may be older than that one's end.
func (s *admissions) claim(a *action) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	finished, ok := s.finished[a.Key()]
	_, settled := s.settled[a.claim]
	if s.admitted[a.Key()] != nil || settled || ok && !a.verified.IsZero() && !finished.Before(a.verified) {
		return false
	}
	if s.admitted == nil {
		s.admitted, s.finished = map[messages.ActionKey]*action{}, map[messages.ActionKey]time.Time{}
	}
	s.admitted[a.Key()] = a
	return true
}

// end notes that a is closed.
func (s *admissions) end(a *action) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.admitted[a.Key()] != a {
		return
	}
	delete(s.admitted, a.Key())
	if len(s.finished) >= maxEnded {
		maps.DeleteFunc(s.finished, func(_ messages.ActionKey, at time.Time) bool { return time.Since(at) > verifyTimeout })
	}
	s.finished[a.Key()] = time.Now()
}

// lastHook is what is known of a hook of the group. It asks for nothing; where that is old, it
// is read again behind the caller's back, one hook at a time.
func (g *group) lastHook(id messages.HookID) knownHook {
	g.mu.Lock()
	defer g.mu.Unlock()
	known := g.hooks[id]
	if g.reading || time.Now().Before(known.until) {
		return known
	}
	g.reading = true
	g.beats.add(time.Now(), func(ctx context.Context) time.Time {
		g.hook(ctx, id)
		g.mu.Lock()
		defer g.mu.Unlock()
		g.reading = false
		return time.Time{}
	})
	return known
}

// hook is what is known of a hook of the group, asked of the cloud now and then.
func (g *group) hook(ctx context.Context, id messages.HookID) knownHook {
	g.mu.Lock()
	known, ok := g.hooks[id]
	g.mu.Unlock()
	if ok && time.Now().Before(known.until) {
		return known
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	h, err := g.Lifecycle.Hook(ctx, g.ID, id)
	g.denials.note("read hooks", err)
	now := knownHook{name: h.Name, timeout: h.Timeout, known: true, until: time.Now().Add(hookFor)}
	if err != nil {
		g.log.Warn("can't read the hook, its timeout is taken to be what it was, or else the shortest", keyHook, id, keyError, err)
		now = knownHook{
			name: known.name, timeout: cmp.Or(known.timeout, hookTimeoutUnknown), known: known.known, missing: errors.Is(err, providers.ErrNotFound),
			until: time.Now().Add(hookAgain),
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.hooks) >= maxHooks {
		clear(g.hooks) // no group has so many: their names are made up
	}
	g.hooks[id] = now
	return now
}
