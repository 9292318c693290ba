package worker_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// drawnEnds is what the schedules draw of a plan besides its steps.
type drawnEnds struct {
	// together is the first of the steps that run at once, at the plan's end.
	together int
	undoable []bool // by step
	always   bool
}

// endTakes is how long one undoing, or the step for every end, may take, and how long it
// takes at most where nothing is wrong.
const (
	endTakes = 15 * time.Second
	endNeeds = 2 * time.Second
)

// drawEnds draws for itself, so that the schedule of a seed is the same but for that.
func (s *schedule) drawEnds() {
	rng := rand.New(rand.NewPCG(s.seed, 0x656e6473))
	for _, g := range s.groups {
		for i := range g.hooks {
			h := &g.hooks[i]
			h.together = len(h.steps)
			if rng.IntN(3) == 0 {
				h.together = 0
				h.steps = append(h.steps, drawnStep{takes: time.Duration(rng.ExpFloat64() * float64(20*time.Second)), failure: pick(rng, 0, 0, 0.3), ignore: rng.IntN(5) == 0})
			}
			h.undoable = make([]bool, len(h.steps)+1) // one more, of a slower worker
			for n := range h.undoable {
				h.undoable[n] = rng.IntN(3) == 0
			}
			h.always = rng.IntN(2) == 0
		}
	}
}

// keeps says that an answer to a failure leaves the instances where they are.
func (h drawnHook) keeps() bool { return h.in && h.onFailure == messages.Rollback }

// kept is what the worker keeps back from the steps.
func (h drawnHook) kept() time.Duration {
	var sum time.Duration
	for n := range h.steps {
		if h.undoable[n] && h.keeps() {
			sum += endTakes
		}
	}
	if h.always {
		sum += endTakes
	}
	return sum
}

// compose puts the steps together as they were drawn.
func (l *life) compose(p *worker.Plan, g *drawnGroup, h drawnHook) {
	if h.together < len(p.Steps) {
		p.Steps = append(p.Steps[:h.together:h.together], worker.PlannedStep{Parallel: p.Steps[h.together:]})
	}
	if h.always {
		p.Always = []worker.PlannedStep{{Timeout: endTakes, Step: named{name: "always", stepFunc: func(ctx context.Context, in messages.Instance, _ int) (string, error) {
			return "", l.ending(ctx, h, in, -1)
		}}}}
	}
}

// undoableStep is one that can be undone.
type undoableStep struct {
	stepFunc
	l *life
	h drawnHook
	n int
}

func (u undoableStep) Undo(ctx context.Context, in messages.Instance) (string, error) {
	return "", u.l.ending(ctx, u.h, in, u.n)
}

// jobEnd is what is known of a job's end.
type jobEnd struct {
	begun, finished []int // steps, of those at once that have begun and ended too
	ignored         bool
	undone          []int
	always          int // how often
}

// mayBegin says whether the step's turn has come, and notes that it begins.
func (j *job) mayBegin(h drawnHook, n int) bool {
	if !slices.Contains(j.end.begun, n) {
		j.end.begun = append(j.end.begun, n)
	}
	return j.next == min(n, h.together) && !slices.Contains(j.end.finished, n)
}

// done notes that a step has ended well, or with a failure that is ignored.
func (j *job) done(h drawnHook, n int, v verdict) {
	j.end.finished = append(j.end.finished, n)
	if v == maybe && n >= min(h.together, len(h.steps)-1) {
		j.end.ignored = true // by one of those that decide at last
	}
	switch {
	case n < h.together:
		j.next++
	case len(j.end.finished) == len(h.steps):
		j.next = len(h.steps)
	}
	if j.next == len(h.steps) && j.verdict == unfinished {
		if j.verdict = fine; j.end.ignored {
			j.verdict = maybe
		}
	}
}

// ending is the undoing of step n, or for -1 the step for every end, and judges it.
func (l *life) ending(ctx context.Context, h drawnHook, in messages.Instance, n int) error {
	s, token, what := l.s, string(in.Action.Token), "its end"
	if n >= 0 {
		what = fmt.Sprintf("the undoing of step %d", n)
	}
	l.judgeAction(in.Action, in.ID)
	l.stillRuns(what + " of " + token + " begins")
	s.mu.Lock()
	l.wmu.Lock()
	l.atWork[token]++
	if !l.gone() {
		l.judgeBegin(token, what)
		switch j := l.job(token, string(in.ID)); {
		case n < 0:
			if j.end.always++; j.end.always > 1 || len(j.end.undone) > 0 {
				s.brokenLocked("ends", token, "%s comes to the end of %s of %s for the second time, or after undoing it", l.name, in.ID, token)
			}
		case h.id != string(in.Action.Hook) && l.hooks[string(in.Action.Hook)].keeps():
			// What another hook's plan may have begun is undone, too.
		case !h.keeps():
			s.brokenLocked("ends", token, "%s undoes step %d of %s of %s, which goes all the same", l.name, n, in.ID, token)
		case !slices.ContainsFunc(in.Action.Instances, func(id messages.InstanceID) bool { return l.job(token, string(id)).verdict != fine }):
			s.brokenLocked("ends", token, "%s undoes step %d of %s of %s, where all jobs have succeeded", l.name, n, in.ID, token)
		case !slices.Contains(j.end.begun, n) && !l.handedOn(token):
			s.brokenLocked("ends", token, "%s undoes step %d of %s of %s, which was not begun", l.name, n, in.ID, token)
		case slices.ContainsFunc(j.end.undone, func(o int) bool { return o <= n }):
			s.brokenLocked("ends", token, "%s undoes step %d of %s of %s out of its turn, after %v", l.name, n, in.ID, token, j.end.undone)
		default:
			j.end.undone = append(j.end.undone, n)
		}
	}
	l.wmu.Unlock()
	s.mu.Unlock()
	timer := time.NewTimer(rand.N(endNeeds))
	defer timer.Stop()
	var err error
	select {
	case <-timer.C:
		if rand.IntN(5) == 0 {
			err = errStep
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	l.wmu.Lock()
	defer l.wmu.Unlock()
	l.atWork[token]--
	if cause := context.Cause(ctx); err != nil && cause != nil && strings.Contains(cause.Error(), "the worker is stopping") && (l.stopping.IsZero() || time.Since(l.stopping) < l.grace) && !l.gone() {
		s.brokenLocked("rule 7", token, "%s cuts %s of %s short, %v after it was told to stop, its grace is %v", l.name, what, token, time.Since(l.stopping), l.grace)
	}
	return err
}

// handedOn says that another life may have begun the action before this one. s.mu and l.wmu
// are held.
func (l *life) handedOn(token string) bool {
	return l.adopted[token] || slices.ContainsFunc(l.log, func(r audit.Record) bool {
		return string(r.Token) == token && (r.ReceiveCount > 1 || l.s.letters[r.MessageID].kind == again)
	})
}

// unendedJob was answered without its end.
type unendedJob struct {
	token, instance, lacks string
	at                     time.Time
}

// judgeEnds: before answer r each job has had its end, and is undone if r keeps its instance.
// Trouble, or a budget that is nearly spent, may take the time for it. s.mu and l.wmu are held.
func (l *life) judgeEnds(a simulator.ActionState, h drawnHook, state simulator.State, r messages.Result) {
	if l.s.nearlySpent(a) || l.admitted[a.Token].After(a.Started.Add(l.s.cutoff(h)-endTakes)) {
		return // the time was over when it came, or nearly
	}
	for _, id := range a.Instances {
		j := l.job(a.Token, id)
		if _, there := state.Instance(id); !there || j.verdict == maybe {
			continue // it may have been seen to be gone
		}
		lacks := func(what string) {
			l.unended = append(l.unended, unendedJob{a.Token, id, what, time.Now()})
		}
		if h.always && j.end.always == 0 {
			lacks("it has not had its end")
		}
		for _, n := range j.end.begun {
			if r == messages.Rollback && h.keeps() && h.undoable[n] && !slices.Contains(j.end.undone, n) {
				lacks(fmt.Sprintf("step %d is not undone although it stays", n))
			}
		}
	}
}
