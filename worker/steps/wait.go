package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.org/usher/messages"
)

// Wait lets a fixed time pass.
type Wait struct {
	// For is how long, more than zero.
	For time.Duration
}

// Withdrew gives the zero time: a wait keeps nothing away.
func (Wait) Withdrew(_, _ time.Time, _ error) time.Time { return time.Time{} }

// Name is "wait".
func (w Wait) Name() string { return "wait" }

// Validate says what is wrong with the settings, or nil.
func (w Wait) Validate() error {
	if w.For <= 0 {
		return errors.New("wait: the time must be more than zero, such as 10s")
	}
	return nil
}

// Run waits; a repeat waits the whole time again.
func (w Wait) Run(ctx context.Context, _ messages.Instance, _ int) (string, error) {
	if err := pause(ctx, w.For); err != nil {
		return "", fmt.Errorf("wait %v: %w", w.For, err)
	}
	return fmt.Sprintf("waited %v", w.For), nil
}

// pause returns after d, or sooner with the reason why ctx ended.
func pause(ctx context.Context, d time.Duration) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
