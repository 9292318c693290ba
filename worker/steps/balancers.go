package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// balancerPoll is how far apart two looks at a balancer are. All instances look at the same
// moments, on a common grid, so that one call can answer for many of them.
const balancerPoll = 5 * time.Second

// toGrid pauses until the next common moment. That is not so near that the next look could be
// answered with the last one's listing (see providers.Balancers).
func toGrid(ctx context.Context) error {
	now := time.Now()
	return pause(ctx, now.Add(balancerPoll/2).Truncate(balancerPoll).Add(balancerPoll).Sub(now))
}

// later says that a question which failed with err is asked again: what passes by itself. A
// denial is not waited for.
func later(err error) bool {
	return errors.Is(err, providers.ErrThrottled) || errors.Is(err, providers.ErrUnavailable)
}

// patient makes a call that only asks until it is answered. What passes is asked again as
// long as ctx lasts.
func patient[T any](ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	for last := error(nil); ; {
		got, err := ask(ctx)
		switch {
		case ctx.Err() != nil && err != nil:
			return got, unanswered(err, last)
		case !later(err):
			return got, err
		}
		last = err
		if end := toGrid(ctx); end != nil {
			return got, unanswered(end, err)
		}
	}
}

// unanswered is why asking has ended, with the last failure, if there was one.
func unanswered(end, last error) error {
	if last == nil {
		return end
	}
	return fmt.Errorf("%w: %w", end, last)
}

// each does something for all at the same time, and waits for all.
func each[T any](list []T, do func(i int, of T)) {
	var wg sync.WaitGroup
	for i, of := range list {
		wg.Go(func() { do(i, of) })
	}
	wg.Wait()
}

// balancerKinds are those of all clouds.
var balancerKinds = []providers.BalancerKind{
	providers.CLB, providers.CLBGroup, providers.ALB, providers.NLB, providers.ClassicELB, providers.TargetGroup,
}

// checkBalancers says what is wrong with a list of balancers.
func checkBalancers(list []providers.Balancer, auto bool) error {
	var errs []error
	if len(list) == 0 {
		errs = append(errs, errors.New("no balancers are named"))
	}
	seen := map[providers.Balancer]bool{}
	for _, b := range list {
		switch {
		case b.ID == "" && (!auto || b.Kind == providers.CLBGroup):
			errs = append(errs, fmt.Errorf("%s: a balancer must be named", b))
		case !slices.Contains(balancerKinds, b.Kind):
			errs = append(errs, fmt.Errorf("%s: there is no such kind of balancer", b))
		case seen[b]:
			errs = append(errs, fmt.Errorf("%s is there twice", b))
		}
		seen[b] = true
	}
	return errors.Join(errs...)
}

// Departures are the instances that this process is taking out of balancers, so that of two
// that leave at the same time each knows not to count on the other. Steps that may meet
// in a balancer share one. Its zero value is ready.
type Departures struct {
	mu      sync.Mutex
	entries map[departure]*presence // guarded by mu
	// taken are the balancers that instances were in; guarded by mu.
	taken map[messages.InstanceID]*taken
	// asking are the questions about changes that are on their way; guarded by mu.
	asking map[providers.Change]*question
}

type departure struct {
	from providers.Balancer
	id   messages.InstanceID
}

// presence is how many steps are taking an instance out, and when the last one had ended.
type presence struct {
	running int
	ended   time.Time
}

const (
	// departuresKept is how long those that have ended are remembered.
	departuresKept = 10 * time.Minute
	// memberAge is more than the age of what Members answers, and freshWithin is how long
	// such answers are relied on. Together they are less than departuresKept.
	memberAge   = 10 * time.Second
	freshWithin = time.Minute
)

// begin notes that an instance is about to leave several balancers, unless alone says that
// it must stay in one of them. Nobody else can begin while alone is asked.
func (d *Departures) begin(from []providers.Balancer, id messages.InstanceID, alone func() bool) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if alone() {
		return false
	}
	if d.entries == nil {
		d.entries = map[departure]*presence{}
	}
	for _, b := range from {
		key := departure{b, id}
		if d.entries[key] == nil {
			d.entries[key] = new(presence)
		}
		d.entries[key].running++
	}
	return true
}

// leaving says of an instance whether it is about to leave a balancer, or has ended that so
// lately that members which were listed at that time may still show it. d.mu is held.
func (d *Departures) leaving(from providers.Balancer, id messages.InstanceID, listed time.Time) bool {
	p := d.entries[departure{from, id}]
	return p != nil && (p.running > 0 || p.ended.After(listed.Add(-memberAge)))
}

// end closes what begin has noted, and forgets what nobody can ask for any more.
func (d *Departures) end(from providers.Balancer, id messages.InstanceID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	p := d.entries[departure{from, id}]
	p.running--
	p.ended = now
	for key, p := range d.entries {
		if p.running == 0 && now.Sub(p.ended) > departuresKept {
			delete(d.entries, key)
		}
	}
}

// taken is what an instance was taken out of, and when the last of it was noted.
type taken struct {
	from  []providers.Balancer
	noted time.Time
}

// took notes that an instance was in a balancer, for whoever asks once that lists it no more.
func (d *Departures) took(from providers.Balancer, id messages.InstanceID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for other, t := range d.taken {
		if now.Sub(t.noted) > departuresKept {
			delete(d.taken, other)
		}
	}
	if d.taken == nil {
		d.taken = map[messages.InstanceID]*taken{}
	}
	if d.taken[id] == nil {
		d.taken[id] = new(taken)
	}
	if t := d.taken[id]; !slices.Contains(t.from, from) {
		t.from = append(t.from, from)
	}
	d.taken[id].noted = now
}

// takenFrom are the balancers that took has noted for an instance.
func (d *Departures) takenFrom(id messages.InstanceID) []providers.Balancer {
	d.mu.Lock()
	defer d.mu.Unlock()
	if t := d.taken[id]; t != nil {
		return slices.Clone(t.from)
	}
	return nil
}

// question is one that several wait for.
type question struct {
	done chan struct{}
	err  error
}

// askWithin bounds a question about a change: without an answer the listing decides alone.
const askWithin = 10 * time.Second

// failed asks what has become of a change, once for all who want to know at the same time.
// nil: it is not known to have failed.
func (d *Departures) failed(ctx context.Context, cloud providers.Balancers, c providers.Change) error {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	d.mu.Lock()
	v, asked := d.asking[c]
	if !asked {
		if d.asking == nil {
			d.asking = map[providers.Change]*question{}
		}
		v = &question{done: make(chan struct{})}
		d.asking[c] = v
	}
	d.mu.Unlock()
	if !asked {
		v.err = cloud.Failed(ctx, c)
		d.mu.Lock()
		delete(d.asking, c)
		d.mu.Unlock()
		close(v.done)
	}
	select {
	case <-v.done:
		if errors.Is(v.err, providers.ErrChangeFailed) {
			return v.err
		}
	case <-ctx.Done():
	}
	return nil
}

// notGone hides from errors.Is that a balancer took the instance for gone. It is an error of
// one balancer, and the worker would take the whole step for done; it asks ECS itself
// once the step has failed.
type notGone struct{ err error }

func (e notGone) Error() string { return e.err.Error() }

// Is and As look into the error, which is not unwrapped.
func (e notGone) Is(target error) bool {
	return target != providers.ErrInstanceGone && errors.Is(e.err, target)
}

func (e notGone) As(target any) bool { return errors.As(e.err, target) }

// byBalancer splits memberships, in the order of their first appearance.
func byBalancer(ms []providers.Membership) (order []providers.Balancer, of map[providers.Balancer][]providers.Membership) {
	of = map[providers.Balancer][]providers.Membership{}
	for _, m := range ms {
		if of[m.Balancer] == nil {
			order = append(order, m.Balancer)
		}
		of[m.Balancer] = append(of[m.Balancer], m)
	}
	return order, of
}

// portsOf names the ports of memberships, as in " port 80, 443"; nothing where they have none.
func portsOf(ms []providers.Membership) string {
	var ports []string
	for _, m := range ms {
		if m.Port != 0 {
			ports = append(ports, fmt.Sprint(m.Port))
		}
	}
	if len(ports) == 0 {
		return ""
	}
	return " port " + strings.Join(ports, ", ")
}
