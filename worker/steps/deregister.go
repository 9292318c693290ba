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

// What Deregister.LastHealthy can be.
const (
	// LastWait lets DNSTTL pass first, while the instance goes on serving, or less if
	// another one gets healthy meanwhile.
	LastWait = "wait_dns_ttl"
	// LastRefuse fails the step before anything is touched.
	LastRefuse = "refuse"
	// LastIgnore does not look.
	LastIgnore = "ignore"
)

// confirmWithin is how long a removal may go without a trace in the balancer's listing
// until the job is asked what has become of it.
const confirmWithin = 15 * time.Second

// settingWithin is how long a removal waits to be told whether the balancer drains.
const settingWithin = 10 * time.Second

// Deregister takes the instance out of balancers, all its ports, and waits until they
// have let it go: it is no longer listed, and the time is over for which the balancer
// lets connections of a removed member run on.
//
// Where a balancer cuts connections when a member is removed, the instance is given the
// weight 0 first, for WeightZero. One without weights lists a member for as long as it
// drains, so that nothing is waited out there but that. A balancer that fails, or that can't be asked, does not
// keep the others waiting: all are tried, and the errors joined. Run again, or by two workers at the same time, the
// step goes on from what the balancers list.
type Deregister struct {
	// Balancers to leave. Those without an id stand for all of their kind that list the instance.
	Balancers []providers.Balancer
	// Drain waits for the balancers' own connection draining. It can't be seen whether a
	// connection is left, so all of the time that is set there is waited out. Without it, a
	// balancer without weights has let the instance go when it sends it nothing new.
	Drain bool
	// WeightZero is how long the instance keeps weight 0 before it is removed; 0: it is
	// removed at once, as it always is from a balancer without weights.
	WeightZero time.Duration
	// Margin is how much longer than its own draining a balancer may list the instance.
	Margin time.Duration
	// LastHealthy is what happens to the last healthy instance of a balancer, or of a zone
	// of one: LastWait, LastRefuse or LastIgnore. Instances that leave with it, by the
	// same lifecycle action or in this process, do not count.
	LastHealthy string
	DNSTTL      time.Duration
	Cloud       providers.Balancers
	// Departures is shared by all steps that may meet in a balancer.
	Departures *Departures
}

// Name is "deregister".
func (d Deregister) Name() string { return "deregister" }

// Withdrew is when the step began, once it is done: what has let the instance go need not
// find out about it any more.
func (Deregister) Withdrew(began, ended time.Time, err error) time.Time {
	if err != nil {
		return ended
	}
	return began
}

// Validate says what is wrong with the settings, or nil.
func (d Deregister) Validate() error {
	err := checkBalancers(d.Balancers, true)
	if d.WeightZero < 0 || d.Margin < 0 || d.DNSTTL < 0 {
		err = errors.Join(err, errors.New("weight_zero, margin and dns_ttl must not be negative"))
	}
	if !slices.Contains([]string{LastWait, LastRefuse, LastIgnore}, d.LastHealthy) {
		err = errors.Join(err, fmt.Errorf("last_healthy must be %s, %s or %s", LastWait, LastRefuse, LastIgnore))
	}
	if d.Cloud == nil || d.Departures == nil {
		err = errors.Join(err, errors.New("no balancers to call"))
	}
	if err != nil {
		return fmt.Errorf("deregister: %w", err)
	}
	return nil
}

// leave is one balancer that the instance leaves or has left.
type leave struct {
	from providers.Balancer
	// entry is which of Deregister.Balancers has found it.
	entry int
	// members are the instance's memberships there when the step looked first.
	members []providers.Membership
	// missing: there is no such balancer.
	missing bool
	// noted: Departures has the instance.
	noted  bool
	detail string
	err    error
}

// departing is one run of the step.
type departing struct {
	Deregister
	in    messages.Instance
	began time.Time
	// hold: what is found is not left yet.
	hold    bool
	running sync.WaitGroup

	mu     sync.Mutex
	leaves []*leave // guarded by mu while anything runs
}

// Run looks where the instance is, and leaves. Each balancer is left as soon as it is found:
// one that can't be asked, and is asked again until ctx ends, keeps no other waiting. Only
// LastRefuse wants them all first, since it promises that nothing is touched.
func (d Deregister) Run(ctx context.Context, in messages.Instance, _ int) (string, error) {
	r := &departing{Deregister: d, in: in, began: time.Now(), hold: d.LastHealthy == LastRefuse}
	defer func() {
		for _, l := range r.leaves {
			if l.noted {
				d.Departures.end(l.from, in.ID)
			}
			if !l.missing {
				d.Departures.took(l.from, in.ID)
			}
		}
	}()
	errs := make([]error, len(d.Balancers)+1)
	if r.hold {
		each(d.Balancers, func(i int, _ providers.Balancer) { errs[i] = r.find(ctx, i) })
		err := errors.Join(errs...)
		if err == nil {
			err = d.refuse(ctx, in, r.leaves)
		}
		if err != nil {
			return "", fmt.Errorf("deregister %s: nothing was touched: %w", in.ID, notGone{err})
		}
		r.hold = false
		for _, l := range r.leaves {
			r.start(ctx, l)
		}
	}
	var attached []providers.Balancer
	known := make(chan struct{})
	r.running.Go(func() {
		defer close(known)
		attached, errs[len(d.Balancers)] = d.attached(ctx, in)
	})
	each(d.Balancers, func(i int, of providers.Balancer) {
		if d.LastHealthy != LastRefuse {
			errs[i] = r.find(ctx, i)
		}
		if <-known; of.ID != "" || errs[i] != nil {
			return
		}
		for _, from := range attached {
			if from.Kind == of.Kind || from.Kind == providers.CLBGroup && of.Kind == providers.CLB {
				r.add(ctx, leave{from: from, entry: i})
			}
		}
	})
	r.running.Wait()
	slices.SortStableFunc(r.leaves, func(a, b *leave) int { return a.entry - b.entry })
	var details []string
	for _, l := range r.leaves {
		if l.err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", l.from, l.err))
		} else {
			details = append(details, l.detail)
		}
	}
	if err := errors.Join(errs...); err != nil {
		done := ""
		if len(details) > 0 {
			done = " (" + strings.Join(details, "; ") + ")"
		}
		return "", fmt.Errorf("deregister %s%s: %w", in.ID, done, notGone{err})
	}
	if len(details) == 0 {
		return "no balancer lists the instance", nil
	}
	return strings.Join(details, "; "), nil
}

// find looks for the instance with one entry of the config, and again for as long as ctx
// lasts if that can't be told; what was found nevertheless is added at once. A balancer
// that is named is added even when it does not list the instance: it may have let it go a
// moment ago.
func (r *departing) find(ctx context.Context, entry int) error {
	of := r.Balancers[entry]
	var last error
	for empty := 0; ; {
		found, err := r.Cloud.Find(ctx, of, r.in.ID)
		order, members := byBalancer(found)
		for _, from := range order {
			r.add(ctx, leave{from: from, entry: entry, members: members[from]})
		}
		switch {
		case errors.Is(err, providers.ErrNotFound) && of.ID != "": // then it has no members
			r.add(ctx, leave{from: of, entry: entry, missing: true})
			return nil
		case err != nil && ctx.Err() != nil:
			return unanswered(err, last)
		case err != nil && !later(err):
			return err
		case err == nil && len(found) > 0:
			return nil
		case err == nil:
			// A service in trouble may answer with an empty list: only two of them are believed.
			if empty++; empty < 2 {
				break
			}
			if of.ID != "" {
				r.add(ctx, leave{from: of, entry: entry})
			}
			return nil
		}
		last = err
		if end := toGrid(ctx); end != nil {
			return unanswered(fmt.Errorf("look for it in %s: %w", of, end), err)
		}
	}
}

// add notes a balancer, and leaves it unless that is held. Two entries of the config may find
// the same one, and so may ESS's record.
func (r *departing) add(ctx context.Context, l leave) {
	slices.SortFunc(l.members, func(a, b providers.Membership) int { return a.Port - b.Port })
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, there := range r.leaves {
		if there.from == l.from && (len(there.members) > 0 || len(l.members) == 0) {
			return
		}
	}
	r.leaves = append(r.leaves, &l)
	if !r.hold {
		r.start(ctx, &l)
	}
}

func (r *departing) start(ctx context.Context, l *leave) {
	r.running.Go(func() { l.detail, l.err = r.leave(ctx, r.in, l, r.began) })
}

// attached are the balancers of the scaling group's record that the config means, too:
// ESS has taken the instance out of them shortly before. Nothing but their draining
// depends on it, so it is not asked where that is not waited for. Nor is Auto Scaling of AWS
// for its balancers, the ones without weights: it fires the hook when they have drained.
func (d Deregister) attached(ctx context.Context, in messages.Instance) ([]providers.Balancer, error) {
	meant := func(b providers.Balancer) bool {
		kind := b.Kind
		if kind == providers.CLBGroup {
			kind = providers.CLB
		}
		return slices.Contains(d.Balancers, providers.Balancer{Kind: kind})
	}
	if !d.Drain || !slices.ContainsFunc(d.Balancers, func(b providers.Balancer) bool { return b.ID == "" && b.Kind.Weighted() }) {
		return nil, nil
	}
	all, err := patient(ctx, func(ctx context.Context) ([]providers.Balancer, error) { return d.Cloud.Attached(ctx, in.Action.Group) })
	if errors.Is(err, providers.ErrNotFound) {
		err = nil
	}
	return slices.DeleteFunc(slices.Clone(all), func(b providers.Balancer) bool { return !meant(b) }), err
}

// refuse is why the instance must stay, or nil: then all departures are noted.
func (d Deregister) refuse(ctx context.Context, in messages.Instance, leaves []*leave) error {
	errs := make([]error, len(leaves))
	views := make([]view, len(leaves))
	from := make([]providers.Balancer, len(leaves))
	for began := time.Now(); ; began = time.Now() {
		each(leaves, func(i int, l *leave) {
			from[i] = l.from
			if views[i], errs[i] = d.view(ctx, in, l); errs[i] == nil {
				errs[i] = views[i].blind()
			}
			if errs[i] != nil {
				errs[i] = fmt.Errorf("%s: whether it is the last healthy one is not known: %w", l.from, errs[i])
			}
		})
		if err := errors.Join(errs...); err != nil {
			return err
		}
		if time.Since(began) < freshWithin {
			break // else the first answers are old by now
		}
	}
	noted := d.Departures.begin(from, in.ID, func() bool {
		for i := range views {
			if last := d.last(in, views[i]); last != "" {
				errs[i] = errors.New(last)
			}
		}
		return errors.Join(errs...) != nil
	})
	for _, l := range leaves {
		l.noted = noted
	}
	return errors.Join(errs...)
}

// view is what a balancer's members looked like.
type view struct {
	of      providers.Balancer
	members []providers.Member
	listed  time.Time // when they were asked for
	zone    string    // the instance's; "": zones make no difference
	// unseen: nothing new is sent to the instance any more, so that it is nobody's last one.
	unseen bool
	// checked: the health of one at least is known.
	checked bool
}

// view looks at a balancer's members, and a second time where no health is known: what
// says so may be empty for once.
func (d Deregister) view(ctx context.Context, in messages.Instance, l *leave) (view, error) {
	v := view{of: l.from}
	if !slices.ContainsFunc(serving(l.members), func(m providers.Membership) bool { return m.Weight > 0 }) {
		v.unseen = true
		return v, nil
	}
	for look := 0; look < 2 && !v.checked; look++ {
		if look > 0 {
			if err := toGrid(ctx); err != nil {
				return v, err
			}
		}
		var err error
		v.members, err = patient(ctx, func(ctx context.Context) ([]providers.Member, error) {
			v.listed = time.Now()
			members, err := d.Cloud.Members(ctx, l.from)
			// What belongs to the health may not be found either, which says nothing of the members.
			if errors.Is(err, providers.ErrNotFound) && !d.missing(ctx, in, l.from) {
				return nil, fmt.Errorf("%w: %v", providers.ErrUnavailable, err)
			}
			return members, err
		})
		if errors.Is(err, providers.ErrNotFound) {
			v.unseen = true
			return v, nil
		}
		if err != nil {
			return v, err
		}
		v.checked = slices.ContainsFunc(v.members, func(m providers.Member) bool { return m.Health == providers.Healthy || m.Health == providers.Unhealthy })
	}
	for _, m := range v.members {
		if m.Instance == in.ID && m.Zone != "" {
			v.zone = m.Zone
		}
	}
	return v, nil
}

// blind is the error of who must know the health and does not.
func (v view) blind() error {
	if v.unseen || v.checked {
		return nil
	}
	return errors.New("the balancer tells the health of none of its members; if it has no health checks, set last_healthy to wait_dns_ttl or ignore")
}

// last says in words whether the instance is the last healthy one, if those that are leaving
// do not count; "": it is not. Where nobody's health is known, all count as healthy.
// The lock of d.Departures is held.
func (d Deregister) last(in messages.Instance, v view) string {
	if v.unseen {
		return ""
	}
	others, near := 0, 0
	for _, m := range v.members {
		if m.Instance == in.ID || m.Weight == 0 || m.State != providers.Joined || v.checked && m.Health != providers.Healthy ||
			slices.Contains(in.Action.Instances, m.Instance) || d.Departures.leaving(v.of, m.Instance, v.listed) {
			continue
		}
		others++
		if m.Zone == v.zone {
			near++
		}
	}
	switch {
	case others == 0:
		return fmt.Sprintf("%s is the last healthy instance of %s", in.ID, v.of)
	case v.zone != "" && near == 0:
		return fmt.Sprintf("%s is the last healthy instance of %s in zone %s", in.ID, v.of, v.zone)
	}
	return ""
}

// lastNow is last's word, now that the departure is noted.
func (d Deregister) lastNow(ctx context.Context, in messages.Instance, l *leave) (string, error) {
	v, err := d.view(ctx, in, l)
	if err != nil {
		return "", err
	}
	d.Departures.mu.Lock()
	defer d.Departures.mu.Unlock()
	return d.last(in, v), nil
}

// linger waits while the instance is the last healthy one, but no longer than DNSTTL. Where
// that can't be told it waits, too; doubt is then why, if it is nothing that passes.
func (d Deregister) linger(ctx context.Context, in messages.Instance, l *leave) (note string, doubt, err error) {
	l.noted = d.Departures.begin([]providers.Balancer{l.from}, in.ID, func() bool { return false })
	alone := false
	for began := time.Now(); ; {
		asking, cancel := context.WithTimeout(ctx, max(time.Second, d.DNSTTL-time.Since(began)))
		last, unknown := d.lastNow(asking, in, l)
		cancel()
		left := d.DNSTTL - time.Since(began)
		switch {
		case ctx.Err() != nil:
			return "", nil, context.Cause(ctx)
		case unknown == nil && last == "":
			if alone {
				note = fmt.Sprintf(", after %v as the last healthy one", time.Since(began).Round(time.Second))
			}
			return note, nil, nil
		case left <= 0:
			return fmt.Sprintf(", as the last healthy one, after the %v that DNS answers live", d.DNSTTL), nil, nil
		case unknown != nil && !passes(unknown) || errors.Is(unknown, providers.ErrDenied):
			return "", unknown, pause(ctx, left)
		}
		alone = alone || unknown == nil
		if err := pause(ctx, min(left, balancerPoll)); err != nil {
			return "", nil, err
		}
	}
}

// serving are the memberships that were not removed yet.
func serving(ms []providers.Membership) []providers.Membership {
	return slices.DeleteFunc(slices.Clone(ms), func(m providers.Membership) bool { return m.State == providers.Leaving })
}

// awaited are the memberships whose end is waited for: without Drain, what drains in a
// balancer without weights counts as gone.
func (d Deregister) awaited(from providers.Balancer, ms []providers.Membership) []providers.Membership {
	if d.Drain || from.Kind.Weighted() {
		return ms
	}
	return serving(ms)
}

// leave takes the instance out of one balancer and waits until that has let it go.
func (d Deregister) leave(ctx context.Context, in messages.Instance, l *leave, began time.Time) (string, error) {
	note := ""
	var doubt error
	if d.LastHealthy == LastWait {
		var err error
		if note, doubt, err = d.linger(ctx, in, l); err != nil {
			return "", err
		}
	}
	setting := d.ask(ctx, in, l)
	defer setting.end()
	gone := began // at the latest, where it was not seen leaving
	listed := len(l.members) > 0
	if stay := serving(l.members); len(stay) > 0 {
		if err := d.quiet(ctx, l.from, stay, setting); err != nil {
			return "", err
		}
		changes, err := d.changeAll(ctx, stay, d.Cloud.Remove)
		if err != nil {
			return "", err
		}
		if gone, listed, err = d.confirm(ctx, in, l.from, changes); err != nil {
			return "", err
		}
	}
	// Without weights, what is not listed has drained, and what drains is listed.
	tells := !l.from.Kind.Weighted()
	draining := time.Duration(0)
	if d.Drain && !tells || listed {
		var unknown error
		if draining, unknown = setting.wait(); unknown != nil {
			return "", fmt.Errorf("how long its connections may run on is not known: %w", unknown)
		}
	}
	if doubt != nil {
		return "", fmt.Errorf("it was taken out, and whether it was the last healthy one is not known: %w", doubt)
	}
	if d.Drain && !tells {
		if err := pause(ctx, time.Until(gone.Add(draining))); err != nil {
			return "", fmt.Errorf("connections drain for %v: %w", draining, err)
		}
	}
	if listed {
		if err := d.absent(ctx, in, l.from, gone.Add(draining+d.Margin)); err != nil {
			return "", err
		}
	}
	drained := ""
	switch {
	case d.Drain && tells && listed:
		drained = ", waited until it had drained"
	case d.Drain && draining > 0 && !tells:
		drained = fmt.Sprintf(", waited out its draining of %v", draining)
	}
	return told(l, drained, note), nil
}

// told is the sentence for the audit log: it says no more than what was seen.
func told(l *leave, drained, note string) string {
	switch {
	case len(l.members) == 0:
		return fmt.Sprintf("%s did not list it any more%s", l.from, drained)
	case len(serving(l.members)) == 0:
		return fmt.Sprintf("%s was letting it go already%s%s", l.from, portsOf(l.members), drained)
	}
	return fmt.Sprintf("left %s%s%s%s", l.from, portsOf(l.members), note, drained)
}

// setting is a balancer's draining, asked for beside what does not depend on it.
type setting struct {
	done     chan struct{}
	end      func() // stops asking, and waits for that
	draining time.Duration
	err      error
}

// ask begins to ask for the draining.
func (d Deregister) ask(ctx context.Context, in messages.Instance, l *leave) *setting {
	ctx, cancel := context.WithCancel(ctx)
	s := &setting{done: make(chan struct{})}
	s.end = func() { cancel(); <-s.done }
	go func() {
		defer close(s.done)
		if !l.missing {
			s.draining, s.err = d.draining(ctx, in, l.from)
		}
	}()
	return s
}

func (s *setting) wait() (time.Duration, error) {
	<-s.done
	return s.draining, s.err
}

// soon is the draining if that is known within settingWithin, and else 0.
func (s *setting) soon() time.Duration {
	t := time.NewTimer(settingWithin)
	defer t.Stop()
	select {
	case <-s.done:
		return s.draining
	case <-t.C:
		return 0
	}
}

// draining is the balancer's own setting, asked for until ctx ends. One that is gone cuts
// nothing any more, but only the listing of its members says that it is gone: a setting
// that is not found may be missing for once.
func (d Deregister) draining(ctx context.Context, in messages.Instance, from providers.Balancer) (time.Duration, error) {
	for {
		draining, err := d.Cloud.Draining(ctx, from)
		if !errors.Is(err, providers.ErrNotFound) && !later(err) {
			return draining, err
		}
		if d.missing(ctx, in, from) {
			return 0, nil
		}
		if end := toGrid(ctx); end != nil {
			return 0, unanswered(end, err)
		}
	}
}

// missing: there is no such balancer.
func (d Deregister) missing(ctx context.Context, in messages.Instance, of providers.Balancer) bool {
	_, err := d.Cloud.Find(ctx, of, in.ID)
	return errors.Is(err, providers.ErrNotFound)
}

// quiet gives the instance the weight 0 where a removal may cut what is on its way: always
// on CLB, whose HTTP listeners have no draining, and elsewhere where none is set, or
// where nobody says whether one is.
func (d Deregister) quiet(ctx context.Context, from providers.Balancer, ms []providers.Membership, s *setting) error {
	classic := from.Kind == providers.CLB || from.Kind == providers.CLBGroup
	if d.WeightZero == 0 || !from.Kind.Weighted() || !classic && s.soon() > 0 {
		return nil
	}
	var open []providers.Membership
	for _, m := range ms {
		if m.Weight > 0 {
			m.Weight = 0
			open = append(open, m)
		}
	}
	if _, err := d.changeAll(ctx, open, d.Cloud.SetWeight); err != nil {
		return err
	}
	return pause(ctx, d.WeightZero)
}

// changeAll makes one kind of change to several memberships at once.
func (d Deregister) changeAll(ctx context.Context, ms []providers.Membership, change func(context.Context, providers.Membership) (providers.Change, error)) ([]providers.Change, error) {
	changes := make([]providers.Change, len(ms))
	errs := make([]error, len(ms))
	each(ms, func(i int, m providers.Membership) {
		changes[i], errs[i] = change(ctx, m)
		if errors.Is(errs[i], providers.ErrNotFound) {
			errs[i] = nil // no such balancer any more
		}
	})
	return changes, errors.Join(errs...)
}

// confirm follows a removal until it is in effect, or for as long as such a job usually
// takes: one that was taken on may fail, and that must not be found out only when the
// draining would be over. Two looks in a row, and the job, must not speak against it: one
// listing may be empty for once. gone is when the balancer had stopped sending at the latest.
func (d Deregister) confirm(ctx context.Context, in messages.Instance, from providers.Balancer, changes []providers.Change) (gone time.Time, listed bool, err error) {
	end, empty := time.Now().Add(confirmWithin), 0
	for {
		left, err := d.listed(ctx, in, from)
		if err != nil {
			return gone, false, err
		}
		if stopped := len(serving(left)) == 0; !stopped {
			gone = time.Time{}
		} else if gone.IsZero() {
			gone = time.Now()
		}
		if len(d.awaited(from, left)) > 0 {
			empty = 0
		} else if empty++; empty == 2 {
			return gone, false, d.failed(ctx, changes)
		}
		if time.Now().After(end) && empty == 0 {
			if gone.IsZero() {
				gone = time.Now()
			}
			return gone, true, d.failed(ctx, changes)
		}
		if err := toGrid(ctx); err != nil {
			return gone, false, fmt.Errorf("the removal is not in effect yet: %w", err)
		}
	}
}

// failed asks what has become of changes; nil: none is known to have failed.
func (d Deregister) failed(ctx context.Context, changes []providers.Change) error {
	for i, c := range changes {
		if slices.Contains(changes[:i], c) {
			continue
		}
		if err := d.Departures.failed(ctx, d.Cloud, c); err != nil {
			return err
		}
	}
	return nil
}

// listed are the instance's memberships in one balancer now.
func (d Deregister) listed(ctx context.Context, in messages.Instance, from providers.Balancer) ([]providers.Membership, error) {
	left, err := patient(ctx, func(ctx context.Context) ([]providers.Membership, error) { return d.Cloud.Find(ctx, from, in.ID) })
	if errors.Is(err, providers.ErrNotFound) {
		return nil, nil
	}
	return left, err
}

// absent waits until the balancer does not list the instance any more, in two looks in a row.
func (d Deregister) absent(ctx context.Context, in messages.Instance, from providers.Balancer, until time.Time) error {
	for empty := 0; ; {
		left, err := d.listed(ctx, in, from)
		left = d.awaited(from, left)
		switch {
		case err != nil:
			return err
		case len(left) == 0:
			if empty++; empty == 2 {
				return nil
			}
		case time.Now().After(until):
			return fmt.Errorf("it is still listed%s, as %s, %v after its draining should be over", portsOf(left), left[0].State, d.Margin)
		default:
			empty = 0
		}
		if err := toGrid(ctx); err != nil && len(left) > 0 {
			return fmt.Errorf("it is still listed%s: %w", portsOf(left), err)
		} else if err != nil {
			return fmt.Errorf("it was not listed for once only: %w", err)
		}
	}
}
