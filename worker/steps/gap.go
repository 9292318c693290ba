package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// gapWithin bounds the questions which balancers an instance has, and then those about their
// health checks. A tenth of the step's time is the most for either.
const gapWithin = 5 * time.Second

// gap is how long after its withdrawal an instance may still be sent something new.
type gap struct {
	whole time.Duration
	// source says in words where that is known from; "": it was given.
	source string
	// left is what of it is not over yet, and asking what the questions took.
	left, asking time.Duration
}

// String is for the audit log.
func (g gap) String() string {
	if g.whole == 0 && g.source == "" {
		return "no gap"
	}
	s := fmt.Sprintf("gap %v", g.whole)
	if g.source != "" {
		s += " " + g.source
	}
	if over := g.whole - g.left; over > 0 && g.whole > 0 {
		s += fmt.Sprintf(", %v of it over before", over.Round(100*time.Millisecond))
	}
	return s
}

// gap asks for what is not given.
func (w WaitConnections) gap(ctx context.Context, in messages.Instance) gap {
	g := gap{whole: w.Gap}
	if len(w.GapFrom) > 0 {
		began := time.Now()
		g.whole, g.source = w.notice(ctx, in)
		g.asking = time.Since(began)
	}
	g.left = g.whole
	if !in.Withdrawn.IsZero() {
		// Whole seconds, so that who takes over sends the same script, and joins the one that
		// runs, if its own steps took it as long.
		left := max(0, time.Until(in.Withdrawn.Add(g.whole))) + time.Second - 1
		g.left = min(g.whole, left.Truncate(time.Second))
	}
	return g
}

// notice is the longest that the health checks of the instance's balancers take. Where one
// could not be asked, it is not less than Gap.
func (w WaitConnections) notice(ctx context.Context, in messages.Instance) (time.Duration, string) {
	within := min(gapWithin, w.Timeout/10)
	asking, cancel := context.WithTimeout(ctx, within)
	from, err := w.gapBalancers(asking, in)
	cancel()
	asking, cancel = context.WithTimeout(ctx, within)
	defer cancel()
	told, errs := make([]time.Duration, len(from)), make([]error, len(from)+1)
	errs[len(from)] = err
	each(from, func(i int, of providers.Balancer) {
		told[i], errs[i] = w.Cloud.Notice(asking, of)
		if errors.Is(errs[i], providers.ErrNotFound) {
			errs[i] = nil // it sends nothing at all
		}
	})
	longest, slowest := time.Duration(0), ""
	for i, of := range from {
		if told[i] > longest {
			longest, slowest = told[i], of.String()
		}
	}
	err = errors.Join(errs...)
	switch {
	case longest > 0 && (err == nil || longest >= w.Gap):
		return longest, fmt.Sprintf("by the health checks of %s", slowest)
	case err != nil:
		return w.Gap, "by default, as balancers could not be asked: " + head(strings.ReplaceAll(err.Error(), "\n", "; "), 300)
	case len(from) == 0:
		return w.Gap, "by default, as no balancer is known to have had the instance"
	}
	return w.Gap, "by default, as its balancers tell of no health checks"
}

// gapBalancers are those that GapFrom names, or means: what this process has taken the instance
// out of, what lists it, and what the scaling group's record has, which ESS may have taken
// it out of. With an error comes what is known nevertheless.
func (w WaitConnections) gapBalancers(ctx context.Context, in messages.Instance) ([]providers.Balancer, error) {
	var out []providers.Balancer
	add := func(b providers.Balancer) {
		if !slices.Contains(out, b) {
			out = append(out, b)
		}
	}
	var kinds []providers.Balancer
	for _, of := range w.GapFrom {
		if of.ID == "" {
			kinds = append(kinds, of)
			continue
		}
		add(of)
	}
	if len(kinds) == 0 {
		return out, nil
	}
	meant := func(b providers.Balancer) bool {
		return slices.ContainsFunc(kinds, func(of providers.Balancer) bool {
			return of.Kind == b.Kind || of.Kind == providers.CLB && b.Kind == providers.CLBGroup
		})
	}
	taken := w.Departures.takenFrom(in.ID)
	errs := make([]error, len(kinds)+1)
	found := make([][]providers.Membership, len(kinds))
	var attached []providers.Balancer
	each(append(kinds, providers.Balancer{}), func(i int, of providers.Balancer) {
		switch {
		case i == len(kinds):
			attached, errs[i] = w.Cloud.Attached(ctx, in.Action.Group)
		case len(taken) == 0: // else a deregister step has looked
			found[i], errs[i] = w.Cloud.Find(ctx, of, in.ID)
		}
		if errors.Is(errs[i], providers.ErrNotFound) {
			errs[i] = nil
		}
	})
	for _, b := range append(taken, attached...) {
		if meant(b) {
			add(b)
		}
	}
	for _, ms := range found {
		for _, m := range ms {
			add(m.Balancer)
		}
	}
	return out, errors.Join(errs...)
}
