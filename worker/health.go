package worker

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"example.org/usher/providers"
)

// Ready gives nil when every queue answered its last receive and the cloud refused the
// keys nothing of late and knew all that the config names, and else what is wrong with each
// queue and group. A refusal counts until the same succeeds, or for denialFor after the last one.
func (w *Worker) Ready() error {
	var problems []error
	begin := time.Now().Add(-w.denialFor())
	for _, c := range w.all() {
		groups := c.served()
		if len(groups) == 0 {
			continue // no config names the queue any more
		}
		if err := c.problem(); err != nil {
			problems = append(problems, fmt.Errorf("queue %s: %w", c.name, err))
		}
		for what, err := range c.denials.since(begin) {
			problems = append(problems, fmt.Errorf("queue %s: %s: %w", c.name, what, err))
		}
		for _, g := range groups {
			for what, err := range g.denials.since(begin) {
				problems = append(problems, fmt.Errorf("scaling group %s: %s: %w", g.ID, what, err))
			}
		}
	}
	slices.SortFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(problems...)
}

// denialFor is for how long a refusal is told that is not repeated: what was refused may
// not be asked for again for days, and what is asked for at all is asked for more often.
const denialFor = 15 * time.Minute

// denialFor is longer where the search for lost actions, which repeats, is rarer.
func (w *Worker) denialFor() time.Duration { return max(denialFor, 2*w.o.ReconcileEvery) }

// denials is what the cloud refuses a worker at present: for its keys or for how it was set up.
type denials struct {
	mu   sync.Mutex
	what map[string]denial // guarded by mu; by what was being done
}

type denial struct {
	err error
	at  time.Time // of the last one
}

// note keeps err if the keys are its reason, and forgets the last one of its kind at a
// success, and with it all that failed for want of keys: now there are some. An error of
// another kind says nothing of the keys.
func (d *denials) note(what string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err == nil:
		delete(d.what, what)
		maps.DeleteFunc(d.what, func(_ string, n denial) bool { return errors.Is(n.err, providers.ErrCredentials) })
	case errors.Is(err, providers.ErrDenied), errors.Is(err, providers.ErrCredentials):
		d.keep(what, err)
	}
}

// noteVerify is note for a verification. What is not found there is no action, but the
// region or whatever else the config names.
func (d *denials) noteVerify(err error) {
	const what = "verify"
	d.note(what, err)
	if errors.Is(err, providers.ErrNotFound) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.keep(what, err)
	}
}

// keep is called with mu held.
func (d *denials) keep(what string, err error) {
	if d.what == nil {
		d.what = map[string]denial{}
	}
	d.what[what] = denial{err, time.Now()}
}

// since gives what was refused after begin.
func (d *denials) since(begin time.Time) map[string]error {
	d.mu.Lock()
	defer d.mu.Unlock()
	found := map[string]error{}
	for what, n := range d.what {
		if n.at.After(begin) {
			found[what] = n.err
		}
	}
	return found
}

// Healthy gives nil while polling moves and the audit log can be written. A queue that
// answers with errors does not make a worker unhealthy: a restart would not help.
func (w *Worker) Healthy() error {
	problems := []error{w.o.Audit.Err()}
	for _, c := range w.all() {
		if c.stuck() {
			problems = append(problems, fmt.Errorf("queue %s: polling is stuck", c.name))
		}
	}
	return errors.Join(problems...)
}
