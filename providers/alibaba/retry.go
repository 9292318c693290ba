package alibaba

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sethvargo/go-retry"

	"example.org/usher/providers"
	"example.org/usher/providers/internal/renewal"
)

// MaxAttempts is the most often one call is sent. With the waits between (full
// jitter below 0.2, 0.4, 0.8 ... 10 s) all attempts take 8 s on average and 23 s at
// most, and the time that they run.
const MaxAttempts = 8

const (
	backoffBase = 200 * time.Millisecond
	backoffCap  = 10 * time.Second
)

// newBackoff waits a random part of a growing time: many workers that were refused
// together do not come back together. A wait that would go past the context's deadline
// is cut to what is left, once: the time is used for a last attempt, not slept away, and
// attempts do not follow faster and faster.
func newBackoff(ctx context.Context) retry.Backoff {
	growing := retry.WithCappedDuration(backoffCap, retry.NewExponential(backoffBase))
	cut := false
	fitting := retry.BackoffFunc(func() (time.Duration, bool) {
		next, stop := growing.Next()
		deadline, ok := ctx.Deadline()
		if left := time.Until(deadline); ok && next > left {
			next, stop, cut = left, cut || left <= 0, true
		}
		return next, stop
	})
	return retry.WithMaxRetries(MaxAttempts-1, retry.WithFullJitter(fitting))
}

// repeat runs attempt until it succeeds, fails for good by the rule again, or the
// context ends. The error is a *providers.Error, or the context's own when that was
// cancelled; after a deadline it is both.
func (w *wire) repeat(ctx context.Context, op string, again func(*failure) bool, attempt func(context.Context) *failure) error {
	var last *failure
	tries, renewed := 0, false
	err := retry.Do(ctx, newBackoff(ctx), func(ctx context.Context) error {
		if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) <= 0 {
			// A process that was stopped may come here before its timers have ended the context.
			<-ctx.Done()
			return ctx.Err()
		}
		tries++
		f := attempt(ctx)
		if f != nil && f.refused != (Keys{}) && !renewed {
			// Once a call: what is refused with new keys, too, is refused. The refusal is
			// certain, so that any call may be sent again.
			if renewed = true; w.renewed(ctx, f) {
				tries++
				f = attempt(ctx)
			}
		}
		if f == nil {
			return nil
		}
		f.Untouched = f.certain && (last == nil || last.Untouched)
		if last != nil && f.ended(ctx) {
			// What went wrong before tells more than that the time is over; but this attempt
			// was on its way, too.
			last.Untouched = f.Untouched
		} else {
			last = f
		}
		if !again(f) {
			return f
		}
		w.logger.LogAttrs(ctx, slog.LevelDebug, "cloud call failed, may be repeated",
			slog.String("op", op), slog.Int("attempt", tries), slog.Any("error", f.cloudError))
		return retry.RetryableError(f)
	})
	if err == nil {
		return nil
	}
	return conclude(ctx, op, last, err)
}

// renewed gets new keys for an attempt whose keys were refused, if there are any to get
// within a call's time.
func (w *wire) renewed(ctx context.Context, f *failure) bool {
	source, ok := w.credentials.(renewer)
	if !ok {
		return false
	}
	waiting, cancel := renewal.Awaiting(ctx, w.timeout)
	defer cancel()
	other, err := source.renew(waiting, f.refused)
	if err != nil && f.Cause == nil && ctx.Err() == nil {
		f.Cause = fmt.Errorf("new keys could not be had: %w", err)
	}
	return other
}

// conclude is the error that leaves this package.
func conclude(ctx context.Context, op string, last *failure, err error) error {
	if f, ok := errors.AsType[*failure](err); ok && !f.ended(ctx) {
		return f.cloudError
	}
	// The context ended, before or during an attempt or while waiting for the next one.
	if last == nil {
		last = &failure{cloudError: &providers.Error{Op: op, Kind: providers.ErrUnavailable, Untouched: true}}
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return fmt.Errorf("%s: %w", op, ctx.Err())
	}
	if last.Cause == nil || errors.Is(last.Cause, ctx.Err()) {
		last.Cause = ctx.Err()
	} else {
		last.Cause = fmt.Errorf("%w, after %w", ctx.Err(), last.Cause)
	}
	return last.cloudError
}

// The rules for what is sent again.
func never(*failure) bool { return false }

// whenUntouched: only if the attempt surely changed nothing.
func whenUntouched(f *failure) bool { return f.passing && f.certain }

// unlessSlow: a service that hangs costs one time limit, not several.
func unlessSlow(f *failure) bool { return f.passing && !f.timedOut }

// whenPassing: also after a time limit.
func whenPassing(f *failure) bool { return f.passing }
