package worker_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// life is one worker from its start to its end, and what it was seen to do.
type life struct {
	*running
	s                                *schedule
	name                             string
	started                          time.Time
	groups                           map[string]bool
	hooks                            map[string]drawnHook // its own plans
	visibility, grace, floor         time.Duration
	maxJobs, maxActions, maxReceives int
	queue                            worker.Queue // as it is configured

	severed time.Time   // of the schedule's own goroutine
	over    atomic.Bool // Run has returned

	wmu sync.Mutex // guards all below
	// When it was killed or told to stop, and when it had ended.
	killed, stopping, ended time.Time
	log                     []audit.Record
	atWork                  map[string]int // steps at work, by token
	jobs                    map[jobKey]*job
	received                map[string][]string  // message ids, by token
	receipts                map[string]string    // message ids, by receipt
	leases                  map[string]time.Time // until when a message is its own, by id
	garbled                 map[delivery]bool    // that did not arrive as they are in the queue
	adopted                 map[string]bool      // begun without a message, by token
	admitted                map[string]time.Time // when last, by token
	refused                 map[string]time.Time // when the cloud said last that it is not ours any more, by token
	completed               map[string]time.Time // when the cloud took our answer, by token
	hasty                   []hastyAnswer
	unended                 []unendedJob
	overtime                []overtime
}

// overtime is a step that went on after another hook's answer had ended its action.
type overtime struct {
	token      string
	since, end time.Time
}

// noticedWithin is how long it may take until a worker sees that: one look every half
// minute, and what a look takes. On AWS the instance is not listed any more then, which is
// believed when the next look says so, too.
var noticedWithin = map[messages.Cloud]time.Duration{messages.Alibaba: 32 * time.Second, messages.AWS: 66 * time.Second}

// hastyAnswer was given although no job had failed. Heartbeats whose answers were lost
// count, too, so that trouble may spend a budget which the cloud says is left.
type hastyAnswer struct {
	token  string
	at     time.Time
	result messages.Result
}

type jobKey struct{ token, instance string }

// delivery is one arrival of a message.
type delivery struct {
	message string
	number  int
}

// job is what is known of the job of one instance, since its action was admitted.
type job struct {
	next    int // the step that must come next
	verdict verdict
	end     jobEnd
}

type verdict int

const (
	unfinished verdict = iota
	maybe              // an ignored error, which counts unless the whole job was cut short
	fine
	failed
)

// end notes that something ended now.
func (l *life) end(at *time.Time) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	*at = time.Now()
}

// gone says that nothing the worker does is seen by anybody any more.
func (l *life) gone() bool { return !l.killed.IsZero() }

// stillRuns complains about what a worker does after its end.
func (l *life) stillRuns(what string) {
	if l.over.Load() {
		l.s.broken("rule 7", "", "%s has ended, and %s", l.name, what)
	}
}

// observe is the audit log's reader.
func (l *life) observe(rec audit.Record) {
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.log = append(l.log, rec)
	if rec.Event == audit.Adopted {
		l.adopted[string(rec.Token)] = true
	}
	if rec.Event == audit.Admitted {
		l.admitted[string(rec.Token)] = time.Now()
		for key := range l.jobs {
			if key.token == string(rec.Token) {
				delete(l.jobs, key)
			}
		}
	}
}

func (l *life) job(token, instance string) *job {
	key := jobKey{token, instance}
	if l.jobs[key] == nil {
		l.jobs[key] = new(job)
	}
	return l.jobs[key]
}

// strict is what identifiers must look like when anything is done with them.
var strict = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)

func (l *life) judgeAction(a messages.Action, ids ...messages.InstanceID) {
	texts := []string{string(a.Token), string(a.Hook), string(a.Group), a.Region}
	if a.Activity != "" || l.s.on != messages.AWS { // which names none
		texts = append(texts, string(a.Activity))
	}
	for _, id := range ids {
		texts = append(texts, string(id))
	}
	for _, text := range texts {
		if !strict.MatchString(text) {
			l.s.broken("rule 9", string(a.Token), "%s makes use of %q", l.name, text)
		}
	}
}

// mine says whether nobody else has received the action's messages since we did.
// s.mu and l.wmu are held.
func (l *life) mine(token string) bool {
	return l.adopted[token] || slices.ContainsFunc(l.received[token], func(id string) bool { return l.s.receivers[id] == l.name })
}

// beginStep judges a step as it begins.
func (l *life) beginStep(g *drawnGroup, h drawnHook, n int, in messages.Instance, attempt int) time.Time {
	s, token := l.s, string(in.Action.Token)
	l.judgeAction(in.Action, in.ID)
	l.stillRuns("a step of " + token + " begins")
	known, ok := s.told(s.cloud.State(), token)
	switch {
	case !ok || !slices.Contains(known.Instances, string(in.ID)):
		s.broken("bad input", token, "%s drains %s for %s, which the cloud never said", l.name, in.ID, token)
	case known.Group != g.id || known.Hook != h.id:
		s.broken("bad input", token, "%s drains %s for %s of %s by the plan of %s %s", l.name, in.ID, token, known.Group, g.id, h.id)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.atWork[token]++
	if l.gone() {
		return time.Now()
	}
	j := l.job(token, string(in.ID))
	if !j.mayBegin(h, n) {
		s.brokenLocked("rule 6", token, "%s begins step %d of %s for %s, its next is %d since it was admitted", l.name, n, token, in.ID, j.next)
	}
	l.judgeBegin(token, fmt.Sprintf("step %d", n))
	return time.Now()
}

// judgeBegin: nothing begins for an action that is not ours any more. s.mu and l.wmu are held.
func (l *life) judgeBegin(token, what string) {
	if at := l.refused[token]; at.After(l.admitted[token]) && time.Now().After(at) {
		l.s.brokenLocked("rule 4", token, "%s begins %s of %s although the cloud has refused it at %s", l.name, what, token, clock(at))
	}
	if !l.mine(token) {
		l.s.brokenLocked("rule 6", token, "%s begins %s of %s although others have received its messages since", l.name, what, token)
	}
}

// endStep notes what a step came to.
func (l *life) endStep(ctx context.Context, begun time.Time, h drawnHook, n int, in messages.Instance, attempt int, err error) {
	s, token, st := l.s, string(in.Action.Token), h.steps[n]
	l.stillRuns("a step of " + token + " ends")
	state := s.cloud.State()
	cause := ""
	if ctx.Err() != nil {
		cause = context.Cause(ctx).Error()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.atWork[token]--
	if l.gone() {
		return
	}
	if at := l.refused[token]; at.After(l.admitted[token]) && !at.Before(begun) && time.Since(at) > st.slow+time.Second {
		s.brokenLocked("rule 4", token, "%s goes on with step %d of %s for %v after the cloud has refused it", l.name, n, token, time.Since(at))
	}
	l.judgeLapsed(token, st.slow, fmt.Sprintf("step %d", n))
	if strings.Contains(cause, "the worker is stopping") && (l.stopping.IsZero() || time.Since(l.stopping) < l.grace) {
		s.brokenLocked("rule 7", token, "%s cuts step %d of %s short, %v after it was told to stop, its grace is %v", l.name, n, token, time.Since(l.stopping), l.grace)
	}
	if a, ok := state.Action(token); ok && a.EndedBy == "other_hook" {
		since := *a.Completed
		if at := l.admitted[token]; s.verify == worker.VerifyRedelivered && at.After(since) {
			since = at // before, nobody was to ask
		}
		if time.Since(since) > noticedWithin[s.on]+st.slow {
			l.overtime = append(l.overtime, overtime{token, since, time.Now()})
		}
	}
	own := cause == "" || strings.HasPrefix(cause, "timed out after") // the step's own end
	j := l.job(token, string(in.ID))
	switch {
	case errors.Is(err, providers.ErrInstanceGone):
		// It has left, as it was to; or it has not joined, as it was not.
		if j.verdict = maybe; !h.in {
			j.verdict = failed
		}
	case err == nil:
		j.done(h, n, fine)
	case attempt < st.retries || !own:
	case st.ignore:
		j.done(h, n, maybe)
	default:
		j.verdict = failed
	}
}

// watchedQueue passes on to the real queue and notes who received what.
type watchedQueue struct {
	providers.Queue
	l *life
}

func (q watchedQueue) Receive(ctx context.Context, n int, wait time.Duration) ([]providers.Delivery, error) {
	l, s := q.l, q.l.s
	l.stillRuns("receives")
	l.wmu.Lock()
	told := l.stopping
	l.wmu.Unlock()
	if !told.IsZero() && time.Now().After(told) {
		s.broken("rule 7", "", "%s receives, and was told to stop at %s", l.name, clock(told))
	}
	batch, err := q.Queue.Receive(ctx, n, wait)
	s.mu.Lock()
	defer s.mu.Unlock()
	l.wmu.Lock()
	defer l.wmu.Unlock()
	for _, d := range batch {
		s.receivers[d.MessageID] = l.name
		l.receipts[string(d.Receipt)], l.leases[d.MessageID] = d.MessageID, d.Until
		if d.Garbled {
			l.garbled[delivery{d.MessageID, d.Receives}] = true
			continue
		}
		if known, ok := s.bodies[string(d.Body)]; ok && s.letters[d.MessageID].kind == "" { // a copy that a fault has made
			s.letters[d.MessageID] = known
		}
		if note, err := messages.Decode(d.Body, s.on); err == nil {
			l.received[string(note.Token)] = append(l.received[string(note.Token)], d.MessageID)
		}
	}
	return batch, err
}

func (q watchedQueue) Extend(ctx context.Context, r providers.Receipt, d time.Duration) (providers.Lease, error) {
	l := q.l
	l.stillRuns("extends a message")
	begun := time.Now()
	lease, err := q.Queue.Extend(ctx, r, d)
	l.wmu.Lock()
	defer l.wmu.Unlock()
	message := l.receipts[string(r)]
	if err == nil {
		l.receipts[string(lease.Receipt)], l.leases[message] = message, lease.Until
	}
	if errors.Is(err, providers.ErrReceiptStale) {
		for token, ids := range l.received {
			if slices.Contains(ids, message) && l.holds(message) && l.admitted[token].Before(begun) {
				l.refused[token] = time.Now()
			}
		}
	}
	return lease, err
}

// holds says whether the message's last delivery here was admitted and is not closed.
func (l *life) holds(message string) bool {
	held := false
	for _, rec := range l.log {
		if rec.MessageID == message {
			held = rec.Event == audit.Admitted || held && !rec.Event.Closes()
		}
	}
	return held
}

func (q watchedQueue) Send(ctx context.Context, body string) (string, error) {
	l, s := q.l, q.l.s
	l.stillRuns("sends a message")
	note, err := messages.Decode([]byte(body), s.on)
	if err != nil {
		s.broken("rule 8", "", "%s sends what it could not read: %v", l.name, err)
	}
	l.judgeTarget(note.Action, "announces")
	sent := letter{kind: again, token: string(note.Token), body: body}
	s.mu.Lock()
	s.bodies[body] = sent
	s.mu.Unlock()
	return q.Queue.Send(ctx, body)
}

func (q watchedQueue) Delete(ctx context.Context, rs []providers.Receipt) []error {
	q.l.stillRuns("deletes a message")
	return q.Queue.Delete(ctx, rs)
}

// watchedLifecycle passes on to the real one, and judges each call as it is made.
type watchedLifecycle struct {
	providers.Lifecycle
	l *life
}

func (w watchedLifecycle) Verify(ctx context.Context, actions []messages.Action) []providers.Verification {
	w.l.stillRuns("verifies")
	for _, a := range actions {
		w.l.judgeAction(a, a.Instances...)
	}
	return w.Lifecycle.Verify(ctx, actions)
}

func (w watchedLifecycle) Ended(ctx context.Context, actions []messages.Action) []providers.Verification {
	w.l.stillRuns("looks whether others have ended its actions")
	list := w.Lifecycle.Ended(ctx, actions)
	w.l.wmu.Lock()
	defer w.l.wmu.Unlock()
	for i, v := range list {
		if v.State == providers.Over {
			w.l.refused[string(actions[i].Token)] = time.Now()
		}
	}
	return list
}

func (w watchedLifecycle) Heartbeat(ctx context.Context, a messages.Action, d time.Duration) (providers.Grant, error) {
	l, token := w.l, string(a.Token)
	l.stillRuns("sends a heartbeat")
	l.judgeAction(a, a.Instances...)
	l.judgeTarget(a, "sends a heartbeat for")
	l.wmu.Lock()
	at := l.completed[token]
	l.wmu.Unlock()
	if !at.IsZero() && time.Now().After(at) {
		l.s.broken("rule 5", token, "%s sends a heartbeat for %s, which it has completed at %s", l.name, token, clock(at))
	}
	grant, err := w.Lifecycle.Heartbeat(ctx, a, d)
	if errors.Is(err, providers.ErrActionGone) {
		l.wmu.Lock()
		defer l.wmu.Unlock()
		l.refused[token] = time.Now()
	}
	return grant, err
}

func (w watchedLifecycle) Complete(ctx context.Context, a messages.Action, r messages.Result) (string, error) {
	l, token := w.l, string(a.Token)
	l.stillRuns("answers")
	l.judgeAction(a, a.Instances...)
	l.judgeTarget(a, "answers")
	l.judgeAnswer(a, r)
	requestID, err := w.Lifecycle.Complete(ctx, a, r)
	if err == nil {
		l.wmu.Lock()
		defer l.wmu.Unlock()
		l.completed[token] = time.Now()
	}
	return requestID, err
}

// judgeTarget: whatever changes an action is only done to one that the cloud has in
// this very group.
func (l *life) judgeTarget(a messages.Action, does string) {
	known, ok := l.s.told(l.s.cloud.State(), string(a.Token))
	if !ok || known.Hook != string(a.Hook) || known.Group != string(a.Group) {
		l.s.broken("bad input", string(a.Token), "%s %s %s of hook %s in %s, which the cloud never announced", l.name, does, a.Token, a.Hook, a.Group)
	}
}

// judgeAnswer: no job may run any more, CONTINUE needs all jobs to have succeeded, any
// other result a failure, and nobody else may have the message.
func (l *life) judgeAnswer(a messages.Action, r messages.Result) {
	s, token := l.s, string(a.Token)
	state := s.cloud.State()
	known, ok := s.told(state, token)
	if !ok {
		return // said already
	}
	h := l.hooks[known.Hook]
	s.mu.Lock()
	defer s.mu.Unlock()
	l.wmu.Lock()
	defer l.wmu.Unlock()
	if l.gone() {
		return // it reaches nobody
	}
	if n := l.atWork[token]; n > 0 {
		s.brokenLocked("rule 2", token, "%s answers %s while %d of its steps run", l.name, token, n)
	}
	if at := l.completed[token]; !at.IsZero() {
		s.brokenLocked("rule 3", token, "%s answers %s again, the cloud took its answer at %s", l.name, token, clock(at))
	}
	all, sure, failure := true, true, false
	for _, id := range known.Instances {
		v := l.job(token, id).verdict
		failure = failure || v == failed
		_, there := state.Instance(id)
		switch {
		case len(h.steps) == 0 && !there && !h.in:
			v = maybe // it may have been seen while it was there
		case len(h.steps) == 0:
			v = fine
		case !there && v != fine && h.in:
			v = maybe // released by another hook's answer, or ended: nothing is left to do
		case !there && v != fine && v != maybe:
			failure = true // it can't join
		}
		all, sure = all && (v == fine || v == maybe), sure && v == fine
	}
	if r == messages.Continue && !all && h.onFailure != messages.Continue {
		s.brokenLocked("rule 2", token, "%s answers %s (hook %s) with CONTINUE although not all its jobs have succeeded", l.name, token, known.Hook)
	}
	if r != messages.Continue && sure {
		s.brokenLocked("rule 2", token, "%s answers %s with %s although all its jobs have succeeded", l.name, token, r)
	}
	// Time that ran out is a failure, too: the deadline's, or that of a budget which is nearly spent.
	late := time.Since(known.Started) > s.cutoff(h)-h.kept()-6*time.Second || s.nearlySpent(known)
	if r != messages.Continue && !failure && !late && !sure {
		l.hasty = append(l.hasty, hastyAnswer{token, time.Now(), r})
	}
	l.judgeEnds(known, h, state, r)
	if !l.mine(token) {
		s.brokenLocked("rule 3", token, "%s answers %s although others have received its messages since", l.name, token)
	}
}

func clock(t time.Time) string { return t.UTC().Format("15:04:05.000") }
