package aws

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancing"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/internal/gather"
)

const (
	// gatherFor is how long a change waits for others that it can be made together with.
	gatherFor = 250 * time.Millisecond
	// listingAge is how old a listing may be that our own changes have not made invalid.
	listingAge = 2 * time.Second
	// scanAge is that where all balancers are searched: no call says which ones have an
	// instance, and an account may have hundreds of target groups.
	scanAge = 10 * time.Second
	// settingsAge is that for what seldom changes: how balancers are set up.
	settingsAge = time.Minute
	// changePause is between two attempts at a change when the service is out of order.
	changePause = 3 * time.Second
	// scanners is how many balancers one search reads at a time.
	scanners = 8
)

// Balancers are Classic Load Balancers (ELB, 2012-06-01) and target groups (ELBv2, 2015-12-01)
// as providers.Balancers. One value is meant to be shared by all scaling groups of an account
// in a region.
type Balancers struct {
	// The two generations of ELB share an endpoint. Changes have a rate limit of their own,
	// which a search of hundreds of target groups does not use up.
	looking, changes *wire
	scaling          *wire
	classic          classicCalls
	elbv2            elbv2Calls
	autoscaling      autoscalingCalls
	places           *placeBook
	running          sync.WaitGroup // all batches and listings

	groups     gather.Cache[struct{}, []targetGroup] // all of instances and addresses
	group      gather.Cache[string, targetGroup]
	targets    gather.Cache[string, []target]
	attributes gather.Cache[string, map[string]string] // of target groups
	crossZone  gather.Cache[string, bool]              // of Network Load Balancers

	classics        gather.Cache[struct{}, []classicBalancer]
	classicOne      gather.Cache[string, classicBalancer]
	classicHealth   gather.Cache[string, []classicMember]
	classicSettings gather.Cache[string, classicAttributes]

	attachment gather.Cache[messages.GroupID, []providers.Balancer]

	mu       sync.Mutex
	changing map[changeOf]*gather.Gatherer[providers.Membership, providers.Change] // guarded by mu
}

var _ providers.Balancers = (*Balancers)(nil)

// changeOf is one kind of change of one balancer.
type changeOf struct {
	balancer providers.Balancer
	removing bool // else adding
}

// NewBalancers makes the clients for o.Region. It does not call the services.
func NewBalancers(o Options) (*Balancers, error) {
	looking, err1 := o.newWire("elasticloadbalancing", "ELBEndpoint", o.ELBEndpoint)
	scaling, err2 := o.newWire("autoscaling", "AutoScalingEndpoint", o.AutoScalingEndpoint)
	places, err3 := newPlaceBook(o)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	b := &Balancers{
		looking: looking, changes: looking.apart(), scaling: scaling, places: places,
		classic:     newClassicCalls(elasticloadbalancing.NewFromConfig(looking.config())),
		elbv2:       newELBv2Calls(elasticloadbalancingv2.NewFromConfig(looking.config())),
		autoscaling: newAutoScalingCalls(autoscaling.NewFromConfig(scaling.config())),
		changing:    map[changeOf]*gather.Gatherer[providers.Membership, providers.Change]{},
	}
	b.groups.Load, b.group.Load, b.targets.Load = b.listGroups, b.readGroup, b.listTargets
	b.attributes.Load, b.crossZone.Load = b.readAttributes, b.readCrossZone
	b.classics.Load, b.classicOne.Load = b.listClassics, b.readClassic
	b.classicHealth.Load, b.classicSettings.Load = b.listClassicHealth, b.readClassicSettings
	b.attachment.Load = b.listAttached
	for _, running := range []**sync.WaitGroup{
		&b.groups.Running, &b.group.Running, &b.targets.Running, &b.attributes.Running, &b.crossZone.Running,
		&b.classics.Running, &b.classicOne.Running, &b.classicHealth.Running, &b.classicSettings.Running,
		&b.attachment.Running, &b.places.look.Running,
	} {
		*running = &b.running
	}
	return b, nil
}

// Close waits for calls whose callers have gone, and drops idle connections. No call may
// be made after it.
func (b *Balancers) Close() {
	b.running.Wait()
	b.looking.close()
	b.scaling.close()
	b.places.close()
}

// call makes one call of ELB or Auto Scaling. DependencyThrottle (ELB, 2012-06-01) is the one
// throttling that the SDK does not know for it.
func call[O any](ctx context.Context, w *wire, op operation, do func(context.Context, *carrier) (O, error)) (O, error) {
	out, _, err := invoke(ctx, w, op, do)
	if e, ok := errors.AsType[*providers.Error](err); ok && e.Code == "DependencyThrottle" {
		e.Kind = providers.ErrThrottled
	}
	return out, err
}

// looks is a call that only asks.
func (b *Balancers) looks(name string) operation {
	return operation{
		name: name, permission: "elasticloadbalancing:" + name, resource: "*",
		missing: "there is no such balancer in " + b.looking.region + ": check its name or ARN, and whether it is of this account",
	}
}

// Find gives the memberships of an instance, all its ports, in one balancer or in all of a kind.
func (b *Balancers) Find(ctx context.Context, in providers.Balancer, id messages.InstanceID) (found []providers.Membership, err error) {
	switch {
	case !id.Valid():
		err = &providers.Error{Op: "Find", Kind: providers.ErrInvalid, Untouched: true, Message: fmt.Sprintf("%q is no instance", id)}
	case in.Kind == providers.TargetGroup && in.ID == "":
		found, err = b.scanGroups(ctx, id)
	case in.Kind == providers.TargetGroup:
		found, err = b.findTargets(ctx, in, id)
	case in.Kind == providers.ClassicELB && in.ID == "":
		found, err = b.scanClassics(ctx, id)
	case in.Kind == providers.ClassicELB:
		found, err = b.findClassic(ctx, in, id)
	default:
		err = noKind("Find", in)
	}
	if err != nil {
		return found, fmt.Errorf("find %s in %s: %w", id, in, err)
	}
	return found, nil
}

func noKind(op string, b providers.Balancer) error {
	return &providers.Error{Op: op, Kind: providers.ErrInvalid, Untouched: true, Message: fmt.Sprintf("there are no balancers of the kind %q", b.Kind)}
}

// search looks into many balancers, a few at a time. With errors comes what was found
// nevertheless; a balancer that is gone since it was listed has no members.
func search[T any](in []T, look func(T) ([]providers.Membership, error)) ([]providers.Membership, error) {
	var mu sync.Mutex
	var found []providers.Membership
	var errs []error
	var wg sync.WaitGroup
	slots := make(chan struct{}, scanners)
	for _, of := range in {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			listed, err := look(of)
			mu.Lock()
			defer mu.Unlock()
			found = append(found, listed...)
			if err != nil && !errors.Is(err, providers.ErrNotFound) {
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	return found, errors.Join(errs...)
}

// Members lists a balancer's members with health and, where it makes a difference, zone.
func (b *Balancers) Members(ctx context.Context, of providers.Balancer) (members []providers.Member, err error) {
	switch of.Kind {
	case providers.ClassicELB:
		members, err = b.classicMembers(ctx, of)
	case providers.TargetGroup:
		members, err = b.groupMembers(ctx, of)
	default:
		err = noKind("Members", of)
	}
	if err != nil {
		return nil, fmt.Errorf("members of %s: %w", of, err)
	}
	return members, nil
}

// inZones fills in the zones of members, for balancers that do not send across zones.
func (b *Balancers) inZones(ctx context.Context, members []providers.Member) error {
	var ids []messages.InstanceID
	for _, m := range members {
		if m.Zone == "" && m.Instance.Valid() {
			ids = append(ids, m.Instance)
		}
	}
	places, err := b.places.of(ctx, ids)
	if err != nil {
		return fmt.Errorf("zones: %w", err)
	}
	for i, m := range members {
		if m.Zone == "" {
			members[i].Zone = places[m.Instance].zone
		}
	}
	return nil
}

// Draining reads deregistration_delay.timeout_seconds (target groups), or the ConnectionDraining
// of the balancer's attributes where that is on (classic).
func (b *Balancers) Draining(ctx context.Context, of providers.Balancer) (d time.Duration, err error) {
	switch of.Kind {
	case providers.ClassicELB:
		var s classicAttributes
		s, err = b.classicSettings.Get(ctx, of.ID, settingsAge)
		d = s.draining
	case providers.TargetGroup:
		d, err = b.deregistrationDelay(ctx, of)
	default:
		err = noKind("Draining", of)
	}
	if err != nil {
		return 0, fmt.Errorf("connection draining of %s: %w", of, err)
	}
	return d, nil
}

// Notice reads the health check of the target group or the classic balancer.
func (b *Balancers) Notice(ctx context.Context, of providers.Balancer) (d time.Duration, err error) {
	switch of.Kind {
	case providers.ClassicELB:
		var c classicBalancer
		c, err = b.classicOne.Get(ctx, of.ID, settingsAge)
		d = c.notice
	case providers.TargetGroup:
		var g targetGroup
		g, err = b.group.Get(ctx, of.ID, settingsAge)
		d = g.notice
	default:
		err = noKind("Notice", of)
	}
	if err != nil {
		return 0, fmt.Errorf("health checks of %s: %w", of, err)
	}
	return d, nil
}

const (
	// maxDraining is the longest that any of them can be set to.
	maxDraining = time.Hour
	// maxNotice is more than the slowest health checks that can be set up: 10 failures,
	// 300 s apart, the last told by a timeout of 120 s.
	maxNotice = 2 * time.Hour
)

// notice is how long failures take to be noticed: each may only be told by the timeout, and
// the first is looked for up to one interval later.
func notice(interval, timeout, failures *int32) time.Duration {
	every, tells, times := aws.ToInt32(interval), aws.ToInt32(timeout), aws.ToInt32(failures)
	if every < 1 || times < 1 {
		return 0
	}
	each := time.Duration(every)*time.Second + time.Duration(max(tells, 0))*time.Second
	return min(min(each, maxNotice)*time.Duration(min(times, 100)), maxNotice)
}

// Attached reads the group's record with DescribeAutoScalingGroups: TargetGroupARNs,
// LoadBalancerNames, and both once more among TrafficSources.
func (b *Balancers) Attached(ctx context.Context, group messages.GroupID) ([]providers.Balancer, error) {
	attached, err := b.attachment.Get(ctx, group, settingsAge)
	if err != nil {
		return nil, fmt.Errorf("balancers of group %s: %w", group, err)
	}
	return attached, nil
}

func (b *Balancers) listAttached(ctx context.Context, group messages.GroupID) ([]providers.Balancer, error) {
	const name = "DescribeAutoScalingGroups"
	op := operation{name: name, permission: "autoscaling:" + name, resource: "*"}
	answer, err := call(ctx, b.scaling, op, func(ctx context.Context, c *carrier) (*autoscaling.DescribeAutoScalingGroupsOutput, error) {
		return b.autoscaling.DescribeAutoScalingGroups(ctx, &autoscaling.DescribeAutoScalingGroupsInput{AutoScalingGroupNames: []string{string(group)}},
			func(o *autoscaling.Options) { o.HTTPClient, o.Retryer, o.Credentials = c, c, c })
	})
	if err != nil {
		return nil, err
	}
	var out []providers.Balancer
	note := func(kind providers.BalancerKind, id string) {
		if balancerName(id) != "" {
			out = append(out, providers.Balancer{Kind: kind, ID: id})
		}
	}
	known := false
	for _, g := range answer.AutoScalingGroups {
		if aws.ToString(g.AutoScalingGroupName) != string(group) {
			continue
		}
		known = true
		for _, arn := range g.TargetGroupARNs {
			note(providers.TargetGroup, arn)
		}
		for _, name := range g.LoadBalancerNames {
			note(providers.ClassicELB, name)
		}
		for _, s := range g.TrafficSources {
			switch aws.ToString(s.Type) {
			case "elbv2":
				note(providers.TargetGroup, aws.ToString(s.Identifier))
			case "elb":
				note(providers.ClassicELB, aws.ToString(s.Identifier))
			}
		}
	}
	if !known {
		return nil, &providers.Error{Op: name, Kind: providers.ErrNotFound, Message: "the answer does not list the group"}
	}
	return gather.Distinct(out), nil
}

// balancerPattern is what names and ARNs look like, which go into logs.
var balancerPattern = regexp.MustCompile(`^[A-Za-z0-9:/._-]{1,256}$`)

// balancerName is text, or nothing if it is no name of a balancer.
func balancerName(text string) string {
	if balancerPattern.MatchString(text) {
		return text
	}
	return ""
}

// Add adds one port of an instance: with RegisterTargets or RegisterInstancesWithLoadBalancer.
func (b *Balancers) Add(ctx context.Context, m providers.Membership) (providers.Change, error) {
	return b.change(ctx, false, m)
}

// SetWeight gives ErrUnsupported: neither kind has weights of its members.
func (b *Balancers) SetWeight(_ context.Context, m providers.Membership) (providers.Change, error) {
	err := &providers.Error{Op: "SetWeight", Kind: providers.ErrUnsupported, Untouched: true, Message: "its members have no weights"}
	return providers.Change{}, fmt.Errorf("set the weight of %s in %s: %w", portOf(m), m.Balancer, err)
}

// Remove uses DeregisterTargets or DeregisterInstancesFromLoadBalancer.
func (b *Balancers) Remove(ctx context.Context, m providers.Membership) (providers.Change, error) {
	return b.change(ctx, true, m)
}

// Failed knows of no change that fails after it was taken on: both kinds make them at once.
func (b *Balancers) Failed(context.Context, providers.Change) error { return nil }

// change hands the change of one membership to its balancer's gatherer.
func (b *Balancers) change(ctx context.Context, removing bool, m providers.Membership) (providers.Change, error) {
	var err error
	switch {
	case m.Kind != providers.ClassicELB && m.Kind != providers.TargetGroup:
		err = noKind("change", m.Balancer)
	case !m.Instance.Valid() || m.ID == "" || m.Port < 0 || m.Port > 65535:
		err = &providers.Error{Op: "change", Kind: providers.ErrInvalid, Untouched: true, Message: fmt.Sprintf("%+v is no membership", m)}
	}
	if err == nil {
		m.State, m.Weight = "", 0 // two who want the same need not agree on what makes no difference
		var c providers.Change
		if c, err = b.changer(changeOf{m.Balancer, removing}).Do(ctx, m); err == nil {
			return c, nil
		}
	}
	words := "add %s to %s: %w"
	if removing {
		words = "remove %s from %s: %w"
	}
	return providers.Change{}, fmt.Errorf(words, portOf(m), m.Balancer, err)
}

// portOf names one membership.
func portOf(m providers.Membership) string {
	if m.Port == 0 {
		return string(m.Instance)
	}
	return fmt.Sprintf("%s port %d", m.Instance, m.Port)
}

// changer gathers one kind of change of one balancer. Its batches take turns: what the first
// is refused for, the next would be, too.
func (b *Balancers) changer(of changeOf) *gather.Gatherer[providers.Membership, providers.Change] {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.changing[of]
	if g == nil {
		g = &gather.Gatherer[providers.Membership, providers.Change]{
			Moment: gatherFor, Running: &b.running, Turn: newTurn(),
			Run: func(ctx context.Context, ms []providers.Membership) map[providers.Membership]gather.Outcome[providers.Change] {
				return b.apply(ctx, of, ms)
			},
		}
		b.changing[of] = g
	}
	return g
}

// newTurn holds a token for one at a time.
func newTurn() chan struct{} {
	turn := make(chan struct{}, 1)
	turn <- struct{}{}
	return turn
}

// The most members one change names. The models of ELB 2012-06-01 and ELBv2 2015-12-01 give
// no bound; these are safe ones.
const (
	classicMaxMembers = 20
	groupMaxMembers   = 100
)

// apply makes the changes of a batch, as many in one call as it takes.
func (b *Balancers) apply(ctx context.Context, of changeOf, ms []providers.Membership) map[providers.Membership]gather.Outcome[providers.Change] {
	most := groupMaxMembers
	if of.balancer.Kind == providers.ClassicELB {
		most = classicMaxMembers
	}
	answers := map[providers.Membership]gather.Outcome[providers.Change]{}
	for len(ms) > 0 {
		n := min(most, len(ms))
		b.applyChunk(ctx, of, ms[:n], answers)
		ms = ms[n:]
	}
	return answers
}

// applyChunk makes one call. Where that is refused for what it names, those that are as
// they should be are left out of it, and otherwise its halves are tried apart: one instance
// that the balancer does not want, of another VPC or terminated, must not keep the others in.
func (b *Balancers) applyChunk(ctx context.Context, of changeOf, ms []providers.Membership, answers map[providers.Membership]gather.Outcome[providers.Change]) {
	err := b.send(ctx, of, ms)
	b.changed(of.balancer)
	done := providers.Change{Balancer: of.balancer}
	blamed := errors.Is(err, providers.ErrInvalid) || errors.Is(err, providers.ErrInstanceGone)
	if blamed && ctx.Err() == nil {
		var open []providers.Membership
		listed, unlisted := b.listed(ctx, of.balancer, ms)
		for _, m := range ms {
			if unlisted == nil && settled(of, m, listed) {
				answers[m] = gather.Outcome[providers.Change]{Value: done}
				continue
			}
			open = append(open, m)
		}
		switch {
		case len(open) == 0:
			return
		case len(open) < len(ms):
			b.applyChunk(ctx, of, open, answers)
			return
		case len(ms) > 1 && unlisted == nil:
			b.applyChunk(ctx, of, ms[:len(ms)/2], answers)
			b.applyChunk(ctx, of, ms[len(ms)/2:], answers)
			return
		}
	}
	for _, m := range ms {
		answers[m] = gather.Outcome[providers.Change]{Value: done, Err: err}
	}
}

// settled: the listing shows the membership as the change would make it, or without what
// it would change.
func settled(of changeOf, m providers.Membership, listed []providers.Membership) bool {
	for _, l := range listed {
		if l.Instance == m.Instance && l.Port == m.Port {
			return of.removing == (l.State == providers.Leaving)
		}
	}
	return of.removing
}

// listed are the instances' memberships of a balancer now.
func (b *Balancers) listed(ctx context.Context, of providers.Balancer, ms []providers.Membership) ([]providers.Membership, error) {
	var out []providers.Membership
	for _, m := range ms {
		found, err := b.Find(ctx, of, m.Instance)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// send makes one change, and again for as long as the service is busy, throttled or out of
// order: a change that was made already is none the second time.
func (b *Balancers) send(ctx context.Context, of changeOf, ms []providers.Membership) error {
	for {
		var err error
		if of.balancer.Kind == providers.ClassicELB {
			err = b.changeClassic(ctx, of, ms)
		} else {
			err = b.changeTargets(ctx, of, ms)
		}
		passing := errors.Is(err, providers.ErrBusy) || errors.Is(err, providers.ErrThrottled) || errors.Is(err, providers.ErrUnavailable)
		if err == nil || !passing || !gather.Sleep(ctx, changePause+rand.N(changePause/2)) {
			return err
		}
	}
}

// changed forgets what our own change has made invalid.
func (b *Balancers) changed(of providers.Balancer) {
	if of.Kind == providers.TargetGroup {
		b.targets.Drop(of.ID)
		return
	}
	b.classicHealth.Drop(of.ID)
	b.classics.Clear()
}

// alters is a call that changes a balancer, as IAM knows it.
func (b *Balancers) alters(name, resource string) operation {
	return operation{
		name: name, permission: "elasticloadbalancing:" + name, resource: resource,
		missing: "there is no such balancer in " + b.looking.region + ": check its name or ARN, and whether it is of this account",
	}
}

// same compares words of an answer without their case.
func same(a, b string) bool { return strings.EqualFold(a, b) }
