package worker

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"example.org/usher/providers"
)

// The keys of the operational log.
const (
	keyQueue     = "queue"
	keyGroup     = "scaling_group"
	keyHook      = "hook"
	keyEvent     = "event"
	keyToken     = "token"
	keyInstance  = "instance"
	keyStep      = "step"
	keyMessage   = "message_id"
	keyReason    = "reason"
	keyError     = "error"
	keyGrace     = "grace"
	keyResult    = "result"
	keyInstances = "instances"
	keyStack     = "stack"
)

// repeatEvery is how often an error that lasts is logged again.
const repeatEvery = time.Minute

// repeated logs an error that keeps coming back: when its kind changes, once a minute,
// and once when it is over.
type repeated struct {
	log *slog.Logger
	msg string

	mu   sync.Mutex
	kind error     // guarded by mu; nil: no error at present
	last time.Time // guarded by mu
}

func (r *repeated) note(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case err == nil && r.kind != nil:
		r.log.Info(r.msg+": over", "was", r.kind)
		r.kind = nil
	case err == nil:
	case r.kind == nil || !errors.Is(err, r.kind) || time.Since(r.last) >= repeatEvery:
		r.kind, r.last = errorKind(err), time.Now()
		level := slog.LevelWarn
		if needsOperator(err) {
			level = slog.LevelError
		}
		r.log.Log(context.Background(), level, r.msg, keyError, err)
	}
}

// errorKind is the sentinel that err matches, or what it comes down to: what it is
// wrapped in is made anew each time.
func errorKind(err error) error {
	if e, ok := errors.AsType[*providers.Error](err); ok && e.Kind != nil {
		return e.Kind
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	return err
}

// needsOperator says that waiting alone will not mend err.
func needsOperator(err error) bool {
	for _, kind := range []error{providers.ErrDenied, providers.ErrCredentials, providers.ErrClock, providers.ErrQueueGone, providers.ErrInvalid} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// backoff is a wait before attempt+1 with full jitter: up to base doubled each time,
// at most most, and at least a tenth of it, so that no loop spins.
func backoff(attempt int, base, most time.Duration) time.Duration {
	d := min(base<<min(attempt, 20), most)
	return d/10 + rand.N(d-d/10)
}

// jitter spreads d over the tenth below it, so that what began together does not go on together.
func jitter(d time.Duration) time.Duration {
	if d < 10 {
		return d
	}
	return d - rand.N(d/10)
}

// pause waits for d, and says whether ctx lasted that long.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
