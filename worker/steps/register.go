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

// rampSteps is in how many equal steps a weight grows.
const rampSteps = 5

// Register puts the instance into balancers and waits until they send to it.
//
// It is added with a small weight if there is a ramp, found healthy by the balancer's own
// checks if that is asked for, and then given its weight step by step. Run again, or by
// two workers at the same time, the step goes on from what the balancers list, and never
// lowers a weight.
type Register struct {
	// Balancers to join, each with an id.
	Balancers []providers.Balancer
	// Port is the instance's; 0: the one that the members of the group have in common.
	// CLB's default group has none, nor has a Classic Load Balancer of AWS.
	Port int
	// Weight is 1 to 100. Where balancers have no weights it is 0 or 100, and makes no difference.
	Weight int
	// Ramp is how long the weight takes to grow; 0: it is there at once.
	Ramp time.Duration
	// Healthy waits until the balancer's checks have found the instance healthy.
	Healthy bool
	Cloud   providers.Balancers
}

// Name is "register".
func (r Register) Name() string { return "register" }

// Validate says what is wrong with the settings, or nil.
func (r Register) Validate() error {
	err := checkBalancers(r.Balancers, false)
	weightless := slices.IndexFunc(r.Balancers, func(b providers.Balancer) bool { return !b.Kind.Weighted() })
	if r.Port < 0 || r.Port > 65535 || r.Weight < 1 && weightless < 0 || r.Weight < 0 || r.Weight > 100 || r.Ramp < 0 {
		err = errors.Join(err, errors.New("want a port from 1 to 65535, a weight from 1 to 100, and a ramp that is not negative"))
	} else if weightless >= 0 && (r.Weight%100 != 0 || r.Ramp > 0) {
		err = errors.Join(err, fmt.Errorf("%s has no weights, a member gets its share at once: leave weight and ramp out", r.Balancers[weightless]))
	}
	if r.Cloud == nil {
		err = errors.Join(err, errors.New("no balancers to call"))
	}
	if err != nil {
		return fmt.Errorf("register: %w", err)
	}
	return nil
}

// Run joins all balancers at the same time. One that fails does not stop the others, and
// those that were joined are not left again: the error says which.
func (r Register) Run(ctx context.Context, in messages.Instance, _ int) (string, error) {
	details := make([]string, len(r.Balancers))
	errs := make([]error, len(r.Balancers))
	each(r.Balancers, func(i int, to providers.Balancer) {
		var err error
		if details[i], err = r.join(ctx, in, to); err != nil {
			errs[i] = fmt.Errorf("%s: %w", to, err)
		}
	})
	if err := errors.Join(errs...); err != nil {
		done := ""
		if joined := slices.DeleteFunc(details, func(d string) bool { return d == "" }); len(joined) > 0 {
			done = " (" + strings.Join(joined, "; ") + ")"
		}
		return "", fmt.Errorf("register %s%s: %w", in.ID, done, notGone{err})
	}
	return strings.Join(details, "; "), nil
}

func (r Register) join(ctx context.Context, in messages.Instance, to providers.Balancer) (string, error) {
	want := providers.Membership{Balancer: to, Instance: in.ID, Weight: r.Weight}
	var err error
	if want.Port, err = r.port(ctx, to); err != nil {
		return "", err
	}
	now, err := r.enter(ctx, want)
	if err != nil {
		return "", err
	}
	if r.Healthy {
		if err := r.healthy(ctx, want); err != nil {
			return "", err
		}
	}
	if err := r.grow(ctx, want, now); err != nil {
		return "", err
	}
	how := ""
	if to.Kind.Weighted() {
		how = fmt.Sprintf(" with weight %d", r.Weight)
	}
	if r.Healthy {
		how += ", healthy"
	}
	return fmt.Sprintf("joined %s%s%s", to, portsOf([]providers.Membership{want}), how), nil
}

// port is the one configured, or the one that the others of the group have.
func (r Register) port(ctx context.Context, to providers.Balancer) (int, error) {
	switch {
	case to.Kind == providers.CLB || to.Kind == providers.ClassicELB:
		return 0, nil
	case r.Port != 0:
		return r.Port, nil
	}
	members, err := patient(ctx, func(ctx context.Context) ([]providers.Member, error) { return r.Cloud.Members(ctx, to) })
	if err != nil {
		return 0, err
	}
	var ports []int
	for _, m := range members {
		ports = append(ports, m.Port)
	}
	slices.Sort(ports)
	switch ports = slices.Compact(ports); len(ports) {
	case 0:
		return 0, errors.New("it has no members whose port could be taken: say port")
	case 1:
		return ports[0], nil
	}
	return 0, fmt.Errorf("its members have different ports (%v): say port", ports[:min(len(ports), 10)])
}

// enter adds the instance unless it is there, waits until that is in effect, and gives
// the membership as it is then.
func (r Register) enter(ctx context.Context, want providers.Membership) (providers.Membership, error) {
	var added providers.Change
	var asked time.Time
	for first := true; ; first = false {
		now, there, err := r.find(ctx, want)
		switch {
		case err != nil:
			return now, err
		case there && now.State == providers.Joined:
			return now, nil
		case !there && asked.IsZero():
			add := want
			if r.Ramp > 0 {
				add.Weight = r.rampWeight(1)
			}
			if added, err = r.Cloud.Add(ctx, add); err != nil {
				return now, err
			}
			asked = time.Now()
		case !asked.IsZero() && time.Since(asked) > confirmWithin:
			if err := r.Cloud.Failed(ctx, added); errors.Is(err, providers.ErrChangeFailed) {
				return now, err
			}
		}
		// One that is leaving, from before, has to be gone before it can be added.
		if first && !asked.IsZero() {
			continue // CLB lists it at once
		}
		if err := toGrid(ctx); err != nil {
			return now, fmt.Errorf("it is not in effect yet: %w", err)
		}
	}
}

func (r Register) find(ctx context.Context, want providers.Membership) (providers.Membership, bool, error) {
	found, err := patient(ctx, func(ctx context.Context) ([]providers.Membership, error) {
		return r.Cloud.Find(ctx, want.Balancer, want.Instance)
	})
	for _, m := range found {
		if m.Port == want.Port {
			return m, true, err
		}
	}
	return providers.Membership{}, false, err
}

// healthy waits for the balancer's own checks. Two looks in a row must say so: a listing may
// not have the first check's word yet.
func (r Register) healthy(ctx context.Context, want providers.Membership) error {
	for well := 0; ; {
		members, err := patient(ctx, func(ctx context.Context) ([]providers.Member, error) { return r.Cloud.Members(ctx, want.Balancer) })
		if err != nil {
			return err
		}
		said := providers.Health("not listed")
		for _, m := range members {
			if m.Instance == want.Instance && m.Port == want.Port {
				said = m.Health
			}
		}
		if said != providers.Healthy {
			well = 0
		} else if well++; well == 2 {
			return nil
		}
		if err := toGrid(ctx); err != nil {
			return fmt.Errorf("the balancer's checks have not found it healthy in two looks, it is %s: %w", said, err)
		}
	}
}

// rampWeight is the weight after n of rampSteps.
func (r Register) rampWeight(n int) int { return max(1, r.Weight*n/rampSteps) }

// grow raises the weight from what it is to what it should be.
func (r Register) grow(ctx context.Context, want, now providers.Membership) error {
	for n := 2; r.Ramp > 0 && n <= rampSteps && now.Weight < r.Weight; n++ {
		next := r.rampWeight(n)
		if next <= now.Weight {
			continue // a worker before us came so far
		}
		if err := pause(ctx, r.Ramp/(rampSteps-1)); err != nil {
			return fmt.Errorf("its weight is %d of %d: %w", now.Weight, r.Weight, err)
		}
		if err := r.weigh(ctx, want, next); err != nil {
			return err
		}
		now.Weight = next
	}
	if now.Weight >= r.Weight {
		return nil
	}
	return r.weigh(ctx, want, r.Weight)
}

// weigh sets a weight, unless another worker has set a higher one meanwhile.
func (r Register) weigh(ctx context.Context, want providers.Membership, weight int) error {
	now, there, err := r.find(ctx, want)
	switch {
	case err != nil:
		return err
	case !there:
		return errors.New("it was taken out again by somebody else")
	case now.Weight >= weight:
		return nil
	}
	want.Weight = weight
	_, err = r.Cloud.SetWeight(ctx, want)
	return err
}
