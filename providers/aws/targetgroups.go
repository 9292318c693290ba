package aws

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/internal/gather"
)

// The attributes of target groups and Network Load Balancers that matter here (ELBv2, 2015-12-01).
const (
	attributeDelay     = "deregistration_delay.timeout_seconds"
	attributeCrossZone = "load_balancing.cross_zone.enabled"
)

// groupPage is the most that DescribeTargetGroups gives in one page.
const groupPage = 400

// targetGroup is a target group as DescribeTargetGroups describes it.
type targetGroup struct {
	arn string
	// addresses: its targets are IP addresses, and not instances.
	addresses bool
	notice    time.Duration // until a failing target gets nothing new
	balancers []string      // the ARNs of those that send to it
}

// elbv2Call puts a carrier into a call.
func elbv2Call(c *carrier) func(*elasticloadbalancingv2.Options) {
	return func(o *elasticloadbalancingv2.Options) { o.HTTPClient, o.Retryer, o.Credentials = c, c, c }
}

// listGroups lists the target groups of the region whose targets are instances or addresses.
func (b *Balancers) listGroups(ctx context.Context, _ struct{}) ([]targetGroup, error) {
	return b.describeGroups(ctx, &elasticloadbalancingv2.DescribeTargetGroupsInput{PageSize: aws.Int32(groupPage)})
}

// readGroup describes one.
func (b *Balancers) readGroup(ctx context.Context, arn string) (targetGroup, error) {
	all, err := b.describeGroups(ctx, &elasticloadbalancingv2.DescribeTargetGroupsInput{TargetGroupArns: []string{arn}})
	for _, g := range all {
		if g.arn == arn {
			return g, nil
		}
	}
	if err == nil {
		// A service in trouble may answer with an empty list; of one that is gone it says so.
		err = &providers.Error{Op: "DescribeTargetGroups", Kind: providers.ErrUnavailable, Message: "the answer does not list " + arn}
	}
	return targetGroup{}, err
}

func (b *Balancers) describeGroups(ctx context.Context, input *elasticloadbalancingv2.DescribeTargetGroupsInput) ([]targetGroup, error) {
	op := b.looks("DescribeTargetGroups")
	var all []targetGroup
	for range maxPages {
		answer, err := call(ctx, b.looking, op, func(ctx context.Context, c *carrier) (*elasticloadbalancingv2.DescribeTargetGroupsOutput, error) {
			return b.elbv2.DescribeTargetGroups(ctx, input, elbv2Call(c))
		})
		if err != nil {
			return nil, err
		}
		for _, d := range answer.TargetGroups {
			known := d.TargetType == types.TargetTypeEnumInstance || d.TargetType == types.TargetTypeEnumIp
			if arn := balancerName(aws.ToString(d.TargetGroupArn)); arn != "" && known {
				all = append(all, describedGroup(arn, d))
			}
		}
		if !lasting(answer.NextMarker, input.Marker) {
			return all, nil
		}
		input.Marker = answer.NextMarker
	}
	return nil, circle(op.name)
}

func describedGroup(arn string, d types.TargetGroup) targetGroup {
	g := targetGroup{arn: arn, addresses: d.TargetType == types.TargetTypeEnumIp, balancers: d.LoadBalancerArns}
	if d.HealthCheckEnabled == nil || *d.HealthCheckEnabled {
		g.notice = notice(d.HealthCheckIntervalSeconds, d.HealthCheckTimeoutSeconds, d.UnhealthyThresholdCount)
	}
	return g
}

// target is a target as DescribeTargetHealth lists it.
type target struct {
	id   string // an instance's, or an IP address
	port int
	zone string // seldom told
	// state and health are both in the one word that the service has for them.
	state  providers.MembershipState
	health providers.Health
}

// address is the target's, if it is none of an instance.
func (t target) address() netip.Addr {
	addr, err := netip.ParseAddr(t.id)
	if err != nil {
		return netip.Addr{}
	}
	return addr.Unmap()
}

// listTargets lists all targets of a group.
func (b *Balancers) listTargets(ctx context.Context, arn string) ([]target, error) {
	answer, err := call(ctx, b.looking, b.looks("DescribeTargetHealth"), func(ctx context.Context, c *carrier) (*elasticloadbalancingv2.DescribeTargetHealthOutput, error) {
		return b.elbv2.DescribeTargetHealth(ctx, &elasticloadbalancingv2.DescribeTargetHealthInput{TargetGroupArn: &arn}, elbv2Call(c))
	})
	if err != nil {
		return nil, err
	}
	var all []target
	for _, d := range answer.TargetHealthDescriptions {
		if t, there := targetOf(d); there {
			all = append(all, t)
		}
	}
	return all, nil
}

// targetOf translates a TargetHealthDescription; there is false for one that the group has
// let go, which is listed no more unless it is asked for by its id.
func targetOf(d types.TargetHealthDescription) (t target, there bool) {
	if d.Target == nil || d.TargetHealth == nil {
		return t, false
	}
	t = target{
		id: aws.ToString(d.Target.Id), port: int(aws.ToInt32(d.Target.Port)), zone: aws.ToString(d.Target.AvailabilityZone),
		state: providers.Joined, health: providers.HealthUnknown,
	}
	if t.zone == "all" { // an address outside the VPC
		t.zone = ""
	}
	switch d.TargetHealth.State {
	case types.TargetHealthStateEnumHealthy:
		t.health = providers.Healthy
	case types.TargetHealthStateEnumUnhealthy, types.TargetHealthStateEnumUnhealthyDraining:
		// unhealthy.draining is no deregistration: a Network Load Balancer lets the
		// connections of an unhealthy target run on for a while.
		t.health = providers.Unhealthy
	case types.TargetHealthStateEnumDraining:
		t.state = providers.Leaving
	case types.TargetHealthStateEnumInitial:
		if d.TargetHealth.Reason == types.TargetHealthReasonEnumRegistrationInProgress {
			t.state = providers.Joining
		}
	case types.TargetHealthStateEnumUnused:
		return t, d.TargetHealth.Reason != types.TargetHealthReasonEnumNotRegistered
	}
	return t, true
}

// membership is the target's, of the instance that it is of.
func (t target) membership(of providers.Balancer, id messages.InstanceID) providers.Membership {
	return providers.Membership{Balancer: of, Instance: id, Port: t.port, Weight: 100, State: t.state}
}

// findTargets looks for an instance, or for its addresses, in one group.
func (b *Balancers) findTargets(ctx context.Context, in providers.Balancer, id messages.InstanceID) ([]providers.Membership, error) {
	all, err := b.targets.Get(ctx, in.ID, listingAge)
	if err != nil {
		return nil, err
	}
	return b.ofInstance(ctx, in, all, id)
}

// ofInstance picks the memberships of an instance. Only where a target is an address does EC2
// have to tell those of the instance; one that has none any more is nowhere.
func (b *Balancers) ofInstance(ctx context.Context, in providers.Balancer, all []target, id messages.InstanceID) ([]providers.Membership, error) {
	own, err := b.targetsOf(ctx, all, id)
	var out []providers.Membership
	for _, t := range own {
		out = append(out, t.membership(in, id))
	}
	return gather.Distinct(out), err
}

func (b *Balancers) targetsOf(ctx context.Context, all []target, id messages.InstanceID) ([]target, error) {
	var addresses []netip.Addr
	if slices.ContainsFunc(all, func(t target) bool { return t.address().IsValid() }) {
		places, err := b.places.of(ctx, []messages.InstanceID{id})
		if err != nil {
			return nil, err
		}
		addresses = places[id].addresses
	}
	var own []target
	for _, t := range all {
		if t.id == string(id) || slices.Contains(addresses, t.address()) {
			own = append(own, t)
		}
	}
	return own, nil
}

// scanGroups searches all target groups: there is no call that says which of them have an instance.
func (b *Balancers) scanGroups(ctx context.Context, id messages.InstanceID) ([]providers.Membership, error) {
	all, err := b.groups.Get(ctx, struct{}{}, settingsAge)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		b.groups.Drop(struct{}{}) // weak evidence, not to be kept
	}
	return search(all, func(g targetGroup) ([]providers.Membership, error) {
		targets, err := b.targets.Believed(ctx, g.arn, scanAge, func(all []target) bool { return len(all) == 0 })
		if err != nil {
			return nil, err
		}
		return b.ofInstance(ctx, providers.Balancer{Kind: providers.TargetGroup, ID: g.arn}, targets, id)
	})
}

// groupMembers names targets that are addresses by the instances that were looked for so far,
// and others by themselves: of those it is enough that they are there.
func (b *Balancers) groupMembers(ctx context.Context, of providers.Balancer) ([]providers.Member, error) {
	all, err := b.targets.Get(ctx, of.ID, listingAge)
	if err != nil {
		return nil, err
	}
	across, err := b.acrossZones(ctx, of.ID)
	if err != nil {
		return nil, err
	}
	var out []providers.Member
	for _, t := range all {
		id := messages.InstanceID(t.id)
		if addr := t.address(); addr.IsValid() {
			if known, ok := b.places.at(addr); ok {
				id = known
			}
		}
		m := providers.Member{Membership: t.membership(of, id), Health: t.health}
		if !across {
			m.Zone = t.zone
		}
		out = append(out, m)
	}
	if !across {
		err = b.inZones(ctx, out)
	}
	return out, err
}

// acrossZones says whether a group's targets get requests from all zones: as the group's own
// attribute has it, or else as its balancers do.
func (b *Balancers) acrossZones(ctx context.Context, arn string) (bool, error) {
	attributes, err := b.attributes.Get(ctx, arn, settingsAge)
	if err != nil {
		return false, err
	}
	switch strings.ToLower(attributes[attributeCrossZone]) {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	group, err := b.group.Get(ctx, arn, settingsAge)
	if err != nil {
		return false, err
	}
	for _, balancer := range group.balancers {
		if strings.Contains(balancer, ":loadbalancer/app/") {
			continue // it always does
		}
		across, err := b.crossZone.Get(ctx, balancer, settingsAge)
		if errors.Is(err, providers.ErrNotFound) {
			continue
		}
		if err != nil || !across {
			return false, err
		}
	}
	return true, nil
}

// readCrossZone reads the attribute of a Network or Gateway Load Balancer, where it is off by default.
func (b *Balancers) readCrossZone(ctx context.Context, arn string) (bool, error) {
	answer, err := call(ctx, b.looking, b.looks("DescribeLoadBalancerAttributes"), func(ctx context.Context, c *carrier) (*elasticloadbalancingv2.DescribeLoadBalancerAttributesOutput, error) {
		return b.elbv2.DescribeLoadBalancerAttributes(ctx, &elasticloadbalancingv2.DescribeLoadBalancerAttributesInput{LoadBalancerArn: &arn}, elbv2Call(c))
	})
	if err != nil {
		return false, err
	}
	for _, a := range answer.Attributes {
		if aws.ToString(a.Key) == attributeCrossZone {
			return same(aws.ToString(a.Value), "true"), nil
		}
	}
	return false, nil
}

func (b *Balancers) readAttributes(ctx context.Context, arn string) (map[string]string, error) {
	answer, err := call(ctx, b.looking, b.looks("DescribeTargetGroupAttributes"), func(ctx context.Context, c *carrier) (*elasticloadbalancingv2.DescribeTargetGroupAttributesOutput, error) {
		return b.elbv2.DescribeTargetGroupAttributes(ctx, &elasticloadbalancingv2.DescribeTargetGroupAttributesInput{TargetGroupArn: &arn}, elbv2Call(c))
	})
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, a := range answer.Attributes {
		out[aws.ToString(a.Key)] = aws.ToString(a.Value)
	}
	return out, nil
}

// deregistrationDelay is how long a target drains.
func (b *Balancers) deregistrationDelay(ctx context.Context, of providers.Balancer) (time.Duration, error) {
	attributes, err := b.attributes.Get(ctx, of.ID, settingsAge)
	if err != nil {
		return 0, err
	}
	seconds, err := strconv.Atoi(attributes[attributeDelay])
	if err != nil || seconds < 0 {
		return 0, &providers.Error{Op: "DescribeTargetGroupAttributes", Kind: providers.ErrUnavailable, Message: "the answer does not tell " + attributeDelay}
	}
	return min(time.Duration(min(seconds, 1<<30))*time.Second, maxDraining), nil
}

// changeTargets registers or deregisters targets.
func (b *Balancers) changeTargets(ctx context.Context, of changeOf, ms []providers.Membership) error {
	arn := of.balancer.ID
	targets, err := b.targetsFor(ctx, of, ms)
	if err != nil || len(targets) == 0 {
		return err
	}
	if of.removing {
		_, err = call(ctx, b.changes, b.alters("DeregisterTargets", arn), func(ctx context.Context, c *carrier) (*elasticloadbalancingv2.DeregisterTargetsOutput, error) {
			return b.elbv2.DeregisterTargets(ctx, &elasticloadbalancingv2.DeregisterTargetsInput{TargetGroupArn: &arn, Targets: targets}, elbv2Call(c))
		})
	} else {
		_, err = call(ctx, b.changes, b.alters("RegisterTargets", arn), func(ctx context.Context, c *carrier) (*elasticloadbalancingv2.RegisterTargetsOutput, error) {
			return b.elbv2.RegisterTargets(ctx, &elasticloadbalancingv2.RegisterTargetsInput{TargetGroupArn: &arn, Targets: targets}, elbv2Call(c))
		})
	}
	return err
}

// targetsFor are the targets that stand for memberships: the instances, or in a group of
// addresses the ones that are registered, and to add an instance its first.
func (b *Balancers) targetsFor(ctx context.Context, of changeOf, ms []providers.Membership) ([]types.TargetDescription, error) {
	group, err := b.group.Get(ctx, of.balancer.ID, settingsAge)
	if err != nil {
		return nil, err
	}
	var out []types.TargetDescription
	note := func(id string, port int) {
		d := types.TargetDescription{Id: &id}
		if port != 0 {
			d.Port = aws.Int32(int32(port))
		}
		out = append(out, d)
	}
	if !group.addresses {
		for _, m := range ms {
			note(string(m.Instance), m.Port)
		}
		return out, nil
	}
	if !of.removing {
		return out, b.toAdd(ctx, ms, note)
	}
	all, err := b.targets.Get(ctx, of.balancer.ID, listingAge)
	if err != nil {
		return nil, err
	}
	for _, m := range ms {
		own, err := b.targetsOf(ctx, all, m.Instance)
		if err != nil {
			return nil, err
		}
		for _, t := range own {
			if t.port == m.Port {
				note(t.id, t.port)
			}
		}
	}
	return out, nil
}

// toAdd notes the addresses of instances that are to join.
func (b *Balancers) toAdd(ctx context.Context, ms []providers.Membership, note func(id string, port int)) error {
	var ids []messages.InstanceID
	for _, m := range ms {
		ids = append(ids, m.Instance)
	}
	places, err := b.places.of(ctx, gather.Distinct(ids))
	if err != nil {
		return err
	}
	for _, m := range ms {
		addresses := places[m.Instance].addresses
		if len(addresses) == 0 {
			return &providers.Error{Op: "RegisterTargets", Kind: providers.ErrInvalid, Untouched: true, Message: "EC2 lists no private address of " + string(m.Instance)}
		}
		note(addresses[0].String(), m.Port)
	}
	return nil
}
