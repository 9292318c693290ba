// Package renewal keeps the keys of one source and renews them in the background before they end.
package renewal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"
)

const (
	// before is how long before their end keys are renewed; of short-lived ones a
	// third of their life. The vendor's libraries begin 3 minutes before: with 5 there is
	// time for some failures more.
	before = 5 * time.Minute
	// lookAgain is after what time a source is asked again that tells no end, or that has
	// no newer keys yet.
	lookAgain = 30 * time.Second
	// Limit bounds one renewal with all its attempts.
	Limit = time.Minute
	// After a failure the source is left alone for a time that grows between these two.
	pauseMin = time.Second
	PauseMax = 30 * time.Second
	// RefusedAge: keys that are refused although they are younger than this are not
	// renewed for it. Newer ones would fare no better, and a storm of refusals must not
	// become one of renewals.
	RefusedAge = 30 * time.Second
)

// Fetched is what a source of keys gave. The zero value of K is no keys.
type Fetched[K comparable] struct {
	Keys K
	// Expires is their end by our clock; zero: they have none.
	Expires time.Time
}

// Renewing keeps the keys of one source, and renews them before they end. There is at
// most one renewal at a time, whoever asks; callers get the old keys meanwhile, as long
// as they are good, and wait only when there are none, within their own time: a renewal
// that outlasts it goes on.
type Renewing[K comparable] struct {
	// fetch gets new keys. It runs in the one goroutine that there may be.
	fetch  func(context.Context) (Fetched[K], error)
	what   string // they are, for errors and logs
	logger *slog.Logger

	life context.Context // ended by Close; renewals belong to no single call
	end  context.CancelFunc
	work sync.WaitGroup

	mu       sync.Mutex    // guards all below
	has      Fetched[K]    // the zero value: nothing yet
	asked    time.Time     // when has was fetched
	due      time.Time     // when to fetch again
	flight   chan struct{} // closed when the renewal that runs is over; nil: none runs
	err      error         // why the last renewal failed; nil: it did not
	failures int           // in a row
	rest     time.Time     // no renewal before
	told     time.Time     // when a failure was logged last; zero: the last renewal did not fail
	lost     bool          // it said that there were no keys
	slow     bool          // it was logged that the renewal that runs takes long
}

// New makes a Renewing of what fetch gives, which runs in one goroutine at a time. what names
// the keys in errors and logs. It fetches nothing yet.
func New[K comparable](what string, logger *slog.Logger, fetch func(context.Context) (Fetched[K], error)) *Renewing[K] {
	r := &Renewing[K]{fetch: fetch, what: what, logger: logger}
	r.life, r.end = context.WithCancel(context.Background())
	return r
}

// ErrClosed is what is left of credentials after Close.
var ErrClosed = errors.New("credentials were closed")

// ErrExpired is what a source's own clock, or a cache in it, can bring about.
var ErrExpired = errors.New("the keys that it gives have expired already: check its clock and this host's")

// Close ends a renewal that runs, and waits for it.
func (r *Renewing[K]) Close() {
	r.mu.Lock() // no renewal begins behind our back
	r.end()
	r.mu.Unlock()
	r.work.Wait()
}

// Get gives the keys, renewing them under way when they are due.
func (r *Renewing[K]) Get(ctx context.Context) (K, error) {
	for {
		r.mu.Lock()
		now := time.Now()
		good := r.has.Good(now)
		if r.flight == nil && !now.Before(r.rest) && (!good || !now.Before(r.due)) {
			r.launch()
		}
		keys, flight, err := r.has.Keys, r.flight, cmp.Or(r.err, ErrClosed)
		r.mu.Unlock()
		switch {
		case good:
			return keys, nil
		case flight == nil:
			return *new(K), err
		}
		select {
		case <-flight:
		case <-ctx.Done():
			return *new(K), r.late(ctx)
		}
	}
}

// late is the error of a caller that stops waiting for its first keys. That they take
// longer than a call may is logged once a renewal, unless a failure was told just now.
func (r *Renewing[K]) late(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	err := fmt.Errorf("wait for %s: %w", r.what, stoppedWaiting(ctx))
	if !errors.Is(err, ErrLate) {
		return err
	}
	if r.err != nil {
		err = fmt.Errorf("%w; the last one failed: %v", err, r.err)
	}
	now := time.Now()
	toldNow := r.lost && !r.told.IsZero() && now.Sub(r.told) < time.Minute
	if r.flight != nil && !r.slow && !toldNow {
		r.slow = true
		r.logger.Error("no credentials", slog.String("source", r.what), slog.Any("error", err))
	}
	return err
}

// Good says whether there are keys, and they have not ended.
func (f Fetched[K]) Good(now time.Time) bool {
	return f.Keys != *new(K) && (f.Expires.IsZero() || now.Before(f.Expires))
}

// Renew says whether there are other keys than those which the cloud has refused. It
// fetches new ones first, once for all who ask.
func (r *Renewing[K]) Renew(ctx context.Context, refused K) (bool, error) {
	r.mu.Lock()
	now := time.Now()
	switch {
	case r.has.Keys != refused:
		other := r.has.Good(now)
		r.mu.Unlock()
		return other, nil
	case r.flight != nil:
	case now.Sub(r.asked) < RefusedAge || now.Before(r.rest):
		err := r.err
		r.mu.Unlock()
		return false, err
	default:
		r.launch()
	}
	flight := r.flight
	r.mu.Unlock()
	if flight == nil {
		return false, ErrClosed
	}
	select {
	case <-flight:
	case <-ctx.Done():
		return false, stoppedWaiting(ctx)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.has.Keys != refused, r.err
}

// launch begins a renewal, unless all is over. The caller holds r.mu.
func (r *Renewing[K]) launch() {
	if r.life.Err() != nil {
		return
	}
	flight := make(chan struct{})
	r.flight, r.slow = flight, false
	r.work.Go(func() {
		defer close(flight)
		ctx, cancel := context.WithTimeout(r.life, Limit)
		defer cancel()
		got, err := r.fetch(ctx)
		if err == nil && !got.Good(time.Now()) {
			err = ErrExpired
		}
		r.landed(got, err)
	})
}

func (r *Renewing[K]) landed(got Fetched[K], err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.flight, r.err = nil, err
	if err != nil {
		r.failed(now)
		return
	}
	fresh := got.Keys != r.has.Keys
	r.has, r.asked, r.due = got, now, due(now, got.Expires)
	if fresh && (r.failures > 0 || !got.Expires.IsZero()) {
		r.logger.Info("credentials renewed", slog.String("source", r.what), slog.Time("expires", got.Expires))
	}
	r.failures, r.rest, r.told = 0, time.Time{}, time.Time{}
}

// failed lets the source rest, and says so: at once, and then once a minute. The caller
// holds r.mu.
func (r *Renewing[K]) failed(now time.Time) {
	if r.life.Err() != nil {
		return
	}
	pause := min(pauseMin<<min(r.failures, 10), PauseMax)
	r.failures++
	r.rest = now.Add(pause)
	good := r.has.Good(now)
	if !r.told.IsZero() && now.Sub(r.told) < time.Minute && r.lost == !good {
		return
	}
	r.told, r.lost = now, !good
	if good {
		r.logger.Warn("credentials could not be renewed, the old ones are in use", slog.String("source", r.what),
			slog.Time("expires", r.has.Expires), slog.Any("error", r.err))
		return
	}
	r.logger.Error("no credentials", slog.String("source", r.what), slog.Any("error", r.err))
}

// due is when keys are to be renewed: some minutes before their end, workers that began
// together apart from each other, and not at once again.
func due(now, expires time.Time) time.Time {
	soon := now.Add(lookAgain)
	if expires.IsZero() {
		return soon
	}
	before := min(before, expires.Sub(now)/3)
	if at := expires.Add(-before - rand.N(before/5+1)); at.After(soon) {
		return at
	}
	return soon
}

// ErrLate is the cause of the end of a call's wait for keys. It is not
// context.DeadlineExceeded, which tells a caller that its own context has ended.
var ErrLate = errors.New("no keys came in time, the renewal goes on")

// Awaiting bounds by limit what a call waits for keys: whoever polls a queue expects an
// answer or an error soon, and a source may take until Limit to fail.
func Awaiting(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w (%v)", ErrLate, limit))
}

// stoppedWaiting is the error of a wait that ctx has ended: its own, or that of its bound.
func stoppedWaiting(ctx context.Context) error {
	if cause := context.Cause(ctx); errors.Is(cause, ErrLate) {
		return cause
	}
	return ctx.Err()
}
