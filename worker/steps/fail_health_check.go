package steps

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// What the fields of FailHealthCheck mean when they are zero.
const (
	DefaultWatch     = 5 * time.Second
	DefaultProbeRate = 5
)

// FailHealthCheck keeps a balancer's probes from the instance, which goes on serving all
// others: new connections from the networks that it probes from are dropped on the
// instance, until the balancer finds it unhealthy and sends no more. Follow it by a wait
// that is longer than that takes.
//
// A proxy often probes from the address that it also brings requests from. So the networks
// are watched first, for Watch: where more connections come from there than probes make,
// or connections that last or carry much, the step fails and has changed nothing. A few
// requests on connections of their own can't be told from probes, below ProbeRate.
//
// It ends by itself after Expires, or with Undo.
type FailHealthCheck struct {
	// Ports are the local ports that are probed.
	Ports []uint16
	// Probes are the networks that the balancer probes from.
	Probes []netip.Prefix
	// Expires is when the probes come through again, however the drain went.
	Expires time.Duration
	// Watch is rounded up to whole seconds; 0: DefaultWatch.
	Watch time.Duration
	// ProbeRate is how many new connections a second are probes: those of all the
	// balancer's nodes, to all ports together; 0: DefaultProbeRate.
	ProbeRate int
	// Timeout is the step's own.
	Timeout time.Duration
	// Commander reaches the instance.
	Commander providers.Commander
	// Index is the step's position in the hook's plan.
	Index int
}

// Name is "fail_health_check".
func (s FailHealthCheck) Name() string { return actionFailHealthCheck }

// Validate says what is wrong with the settings, or nil.
func (s FailHealthCheck) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("fail_health_check: "+format, args...))
	}
	if len(s.Probes) == 0 {
		bad("probes: name at least one network that the balancer probes from")
	}
	for _, p := range s.Probes {
		switch {
		case !p.IsValid() || p.Addr().Is4In6() && p.Bits() < 96:
			bad("probes: %v is not a network such as 10.0.0.252/31 or 2001:db8::/64", p)
			return errors.Join(errs...)
		case p.Bits() == 0 || p.Addr().Is4In6() && p.Bits() == 96:
			bad("probes: %v is everybody, not only the balancer", p)
		}
	}
	if s.Watch < 0 || s.ProbeRate < 0 || s.ProbeRate > 1000 {
		bad("watch must not be negative, and probe_rate goes to 1000")
	}
	if s.Commander == nil {
		bad("no commander to run the script")
	}
	return errors.Join(append(errs, s.firewall().validate()...)...)
}

func (s FailHealthCheck) firewall() firewall {
	return firewall{
		action: actionFailHealthCheck, ports: s.Ports, probes: s.Probes, expires: s.Expires, timeout: s.Timeout,
		watch: cmp.Or(s.Watch, DefaultWatch), probeRate: cmp.Or(s.ProbeRate, DefaultProbeRate),
	}
}

// Run drops the probes; the sentence says by which means, and what came from their
// networks before.
func (s FailHealthCheck) Run(ctx context.Context, in messages.Instance, _ int) (string, error) {
	r, err := s.firewall().run(ctx, s.Commander, in, s.Index)
	if err != nil {
		return "", fmt.Errorf("fail_health_check on %s: %w", in.ID, err)
	}
	return fmt.Sprintf("probes are dropped for %v, method %s; before that %s", s.Expires, r.method(), r.seen()), nil
}

// Undo lets the probes through again, and new connections. It may be called when nothing
// was set up.
func (s FailHealthCheck) Undo(ctx context.Context, in messages.Instance) (string, error) {
	detail, err := undo(ctx, s.Commander, in, s.Index, timeLeft(ctx))
	if err != nil {
		return "", fmt.Errorf("undo fail_health_check on %s: %w", in.ID, err)
	}
	return detail, nil
}
