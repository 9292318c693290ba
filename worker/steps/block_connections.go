package steps

import (
	"context"
	"errors"
	"fmt"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// BlockConnections refuses new TCP connections to some ports of the instance with a reset,
// wherever they come from, the instance itself included. Connections that are open go on.
// It is for those who come late: a client that has kept an old address, a balancer's node
// that has not heard. Refused before the balancer has stopped sending, its share of the
// requests is lost.
//
// It ends by itself after Expires, or with Undo.
type BlockConnections struct {
	// Ports are local ports.
	Ports []uint16
	// Expires is when new connections come through again, however the drain went.
	Expires time.Duration
	// Timeout is the step's own.
	Timeout time.Duration
	// Commander reaches the instance.
	Commander providers.Commander
	// Index is the step's position in the hook's plan.
	Index int
}

// Name is "block_connections".
func (s BlockConnections) Name() string { return actionBlockConnections }

// Withdrew gives the zero time: what is refused was sent after the gap, if at all.
func (BlockConnections) Withdrew(_, _ time.Time, _ error) time.Time { return time.Time{} }

// Validate says what is wrong with the settings, or nil.
func (s BlockConnections) Validate() error {
	errs := s.firewall().validate()
	if s.Commander == nil {
		errs = append(errs, errors.New("block_connections: no commander to run the script"))
	}
	return errors.Join(errs...)
}

func (s BlockConnections) firewall() firewall {
	return firewall{action: actionBlockConnections, ports: s.Ports, expires: s.Expires, timeout: s.Timeout}
}

// Run refuses new connections from then on; the sentence says by which means.
func (s BlockConnections) Run(ctx context.Context, in messages.Instance, _ int) (string, error) {
	r, err := s.firewall().run(ctx, s.Commander, in, s.Index)
	if err != nil {
		return "", fmt.Errorf("block_connections on %s: %w", in.ID, err)
	}
	return fmt.Sprintf("new connections are refused for %v, method %s", s.Expires, r.method()), nil
}

// Undo lets new connections through again, and probes. It may be called when nothing was
// set up.
func (s BlockConnections) Undo(ctx context.Context, in messages.Instance) (string, error) {
	detail, err := undo(ctx, s.Commander, in, s.Index, timeLeft(ctx))
	if err != nil {
		return "", fmt.Errorf("undo block_connections on %s: %w", in.ID, err)
	}
	return detail, nil
}
