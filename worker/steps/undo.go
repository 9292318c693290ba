package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// Undo takes back what FailHealthCheck and BlockConnections have set up on the instance,
// and nothing else. It is a success when nothing is there.
type Undo struct {
	// Timeout is the step's own.
	Timeout time.Duration
	// Commander reaches the instance.
	Commander providers.Commander
	// Index is the step's position in the hook's plan.
	Index int
}

// Name is "undo".
func (s Undo) Name() string { return actionUndo }

// Validate says what is wrong with the settings, or nil.
func (s Undo) Validate() error {
	errs := firewall{action: actionUndo, timeout: s.Timeout}.validate()
	if s.Commander == nil {
		errs = append(errs, errors.New("undo: no commander to run the script"))
	}
	return errors.Join(errs...)
}

// Run removes the rules; the sentence says whether there were any.
func (s Undo) Run(ctx context.Context, in messages.Instance, _ int) (string, error) {
	detail, err := undo(ctx, s.Commander, in, s.Index, s.Timeout)
	if err != nil {
		return "", fmt.Errorf("undo on %s: %w", in.ID, err)
	}
	return detail, nil
}
