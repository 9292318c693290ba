package docker

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"example.org/usher/worker/audit"
)

// TestRollingRestart: under load the workers are replaced one after another. Jobs that fit
// into the grace end where they began, the others begin elsewhere at once.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	const (
		lease = 30 * time.Second // nothing may wait for so long
		grace = 8 * time.Second
		soon  = lease / 3
	)
	// A scale-in takes 3 s, a scale-out more than the grace.
	f := newFleet(t, setup{
		lease: lease, usher: "shutdown_grace: " + grace.String() + "\n", instances: 60, hookTimeout: 3 * time.Minute,
		wait: 3 * time.Second, out: 20 * time.Second,
	})
	type stop struct {
		n  *node
		at time.Time
	}
	var stops []stop
	workers := []*node{f.worker("a1", nil, nil), f.worker("b1", nil, nil), f.worker("c1", nil, nil)}
	over, done := make(chan struct{}), make(chan struct{})
	finish := sync.OnceFunc(func() { close(over); <-done })
	actions := 0
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			scale := "scale-in"
			if i%3 == 2 {
				scale = "scale-out"
			}
			if err := f.scale(scale, 1); err != nil {
				t.Error(err)
				return
			}
			actions++
			select {
			case <-over:
				return
			case <-time.After(700 * time.Millisecond):
			}
		}
	}()
	t.Cleanup(finish)
	for round := 2; round <= 3; round++ {
		for i, name := range []string{"a", "b", "c"} {
			old := workers[i]
			begun := func() int { return count(old.trail(), audit.StepStarted) }
			until(t, old.name+" has something to do", time.Minute, func() bool { return begun() > 0 })
			workers[i] = f.worker(fmt.Sprint(name, round), nil, nil)
			workers[i].event(audit.Started, time.Minute)
			stops = append(stops, stop{old, time.Now()})
			old.stop()
		}
	}
	finish()
	f.settled(actions, 2*time.Minute)

	h := f.judge("CONTINUE")
	if len(h.actions) != actions {
		t.Errorf("the cloud has %d actions, %d were begun", len(h.actions), actions)
	}
	handed := 0
	for _, s := range stops {
		for _, rec := range h.of(s.n, func(rec audit.Record) bool { return rec.Event == audit.Released }) {
			handed++
			token := string(rec.Token)
			begun := h.of(s.n, func(r audit.Record) bool {
				return r.Event == audit.StepStarted && r.Token == rec.Token && r.Time.Before(s.at)
			})
			if rec.Transition == "scale_in" && len(begun) > 0 {
				t.Errorf("%s had begun %s before it was stopped and has handed it back: its job takes less than the grace", s.n.name, token)
			}
			next := h.next(token, rec.Time)
			switch {
			case next.at.IsZero():
				t.Errorf("%s has handed %s back, and nobody has received it", s.n.name, token)
			case next.at.Sub(rec.Time) > soon:
				t.Errorf("%s has handed %s back, and it waited %v for the next worker", s.n.name, token, next.at.Sub(rec.Time))
			case next.to == nil: // cut short by the next stop
			default:
				again := h.of(next.to.node, func(r audit.Record) bool {
					return r.Event == audit.StepStarted && r.Token == rec.Token && r.Time.After(rec.Time)
				})
				if len(again) == 0 || again[0].Time.Sub(rec.Time) > soon {
					t.Errorf("%s has handed %s back to %s, which has not begun it within %v: %+v", s.n.name, token, next.to.name, soon, again)
				}
			}
		}
	}
	unknown := 0
	for _, list := range h.deliveries {
		for _, d := range list {
			if d.to == nil {
				unknown++
			}
		}
	}
	t.Logf("%d actions, %d stops, %d handed back, %d deliveries cut short by a stop", actions, len(stops), handed, unknown)
	if handed == 0 {
		t.Error("nothing was handed back: the jobs do not outlast the grace")
	}
	if unknown > len(stops) {
		t.Errorf("%d deliveries arrived nowhere", unknown)
	}
}

// next is the first delivery of an action's message after t.
func (h *history) next(token string, t time.Time) delivery {
	for _, d := range h.deliveries[h.message[token]] {
		if d.at.After(t) {
			return d
		}
	}
	return delivery{}
}
