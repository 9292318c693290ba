package aws

import (
	"context"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancing"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancing/types"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// classicBalancer is a Classic Load Balancer as DescribeLoadBalancers describes it.
type classicBalancer struct {
	name      string
	instances map[messages.InstanceID]bool
	notice    time.Duration // until a failing instance gets nothing new
}

// classicPage is the most that DescribeLoadBalancers gives in one page (2012-06-01).
const classicPage = 400

// classicCall puts a carrier into a call.
func classicCall(c *carrier) func(*elasticloadbalancing.Options) {
	return func(o *elasticloadbalancing.Options) { o.HTTPClient, o.Retryer, o.Credentials = c, c, c }
}

// listClassics lists all Classic Load Balancers of the region.
func (b *Balancers) listClassics(ctx context.Context, _ struct{}) ([]classicBalancer, error) {
	return b.describeClassics(ctx, nil)
}

// readClassic describes one.
func (b *Balancers) readClassic(ctx context.Context, name string) (classicBalancer, error) {
	all, err := b.describeClassics(ctx, []string{name})
	for _, c := range all {
		if c.name == name {
			return c, nil
		}
	}
	if err == nil {
		// A service in trouble may answer with an empty list; of one that is gone it says so.
		err = &providers.Error{Op: "DescribeLoadBalancers", Kind: providers.ErrUnavailable, Message: "the answer does not list " + name}
	}
	return classicBalancer{}, err
}

func (b *Balancers) describeClassics(ctx context.Context, names []string) ([]classicBalancer, error) {
	op := b.looks("DescribeLoadBalancers")
	input := &elasticloadbalancing.DescribeLoadBalancersInput{LoadBalancerNames: names}
	if len(names) == 0 {
		input.PageSize = aws.Int32(classicPage)
	}
	var all []classicBalancer
	for range maxPages {
		answer, err := call(ctx, b.looking, op, func(ctx context.Context, c *carrier) (*elasticloadbalancing.DescribeLoadBalancersOutput, error) {
			return b.classic.DescribeLoadBalancers(ctx, input, classicCall(c))
		})
		if err != nil {
			return nil, err
		}
		for _, d := range answer.LoadBalancerDescriptions {
			if name := balancerName(aws.ToString(d.LoadBalancerName)); name != "" {
				all = append(all, describedClassic(name, d))
			}
		}
		if !lasting(answer.NextMarker, input.Marker) {
			return all, nil
		}
		input.Marker = answer.NextMarker
	}
	return nil, circle(op.name)
}

func describedClassic(name string, d types.LoadBalancerDescription) classicBalancer {
	c := classicBalancer{name: name, instances: map[messages.InstanceID]bool{}}
	for _, in := range d.Instances {
		c.instances[messages.InstanceID(aws.ToString(in.InstanceId))] = true
	}
	if h := d.HealthCheck; h != nil {
		c.notice = notice(h.Interval, h.Timeout, h.UnhealthyThreshold)
	}
	return c
}

// scanClassics searches all Classic Load Balancers: one listing tells which have the instance,
// and the health of those tells whether it is leaving.
func (b *Balancers) scanClassics(ctx context.Context, id messages.InstanceID) ([]providers.Membership, error) {
	all, err := b.classics.Believed(ctx, struct{}{}, scanAge, func(all []classicBalancer) bool { return len(all) == 0 })
	if err != nil {
		return nil, err
	}
	var in []string
	for _, c := range all {
		if c.instances[id] {
			in = append(in, c.name)
		}
	}
	return search(in, func(name string) ([]providers.Membership, error) {
		return b.findClassic(ctx, providers.Balancer{Kind: providers.ClassicELB, ID: name}, id)
	})
}

// classicMember is an instance as DescribeInstanceHealth lists it.
type classicMember struct {
	instance messages.InstanceID
	state    providers.MembershipState
	health   providers.Health
}

// listClassicHealth lists all instances of a balancer. What is leaving has no state of its
// own: the description says it, and reads InService (2012-06-01).
func (b *Balancers) listClassicHealth(ctx context.Context, name string) ([]classicMember, error) {
	answer, err := call(ctx, b.looking, b.looks("DescribeInstanceHealth"), func(ctx context.Context, c *carrier) (*elasticloadbalancing.DescribeInstanceHealthOutput, error) {
		return b.classic.DescribeInstanceHealth(ctx, &elasticloadbalancing.DescribeInstanceHealthInput{LoadBalancerName: &name}, classicCall(c))
	})
	if err != nil {
		return nil, err
	}
	var all []classicMember
	for _, s := range answer.InstanceStates {
		if m, there := classicState(s); there {
			all = append(all, m)
		}
	}
	return all, nil
}

// classicState translates an InstanceState; there is false for one that has been let go.
func classicState(s types.InstanceState) (m classicMember, there bool) {
	m = classicMember{instance: messages.InstanceID(aws.ToString(s.InstanceId)), state: providers.Joined, health: providers.HealthUnknown}
	description := strings.ToLower(aws.ToString(s.Description))
	switch state := aws.ToString(s.State); {
	case strings.Contains(description, "not currently registered"):
		return m, false
	case strings.Contains(description, "deregistration currently in progress"):
		m.state = providers.Leaving
	case same(state, "InService"):
		m.health = providers.Healthy
	case same(state, "OutOfService") && same(aws.ToString(s.ReasonCode), "ELB"):
		m.state = providers.Joining // its registration goes on
	case same(state, "OutOfService"):
		m.health = providers.Unhealthy
	}
	return m, true
}

func (m classicMember) membership(of providers.Balancer) providers.Membership {
	return providers.Membership{Balancer: of, Instance: m.instance, Weight: 100, State: m.state}
}

func (b *Balancers) findClassic(ctx context.Context, in providers.Balancer, id messages.InstanceID) ([]providers.Membership, error) {
	all, err := b.classicHealth.Get(ctx, in.ID, listingAge)
	var out []providers.Membership
	for _, m := range all {
		if m.instance == id {
			out = append(out, m.membership(in))
		}
	}
	return out, err
}

func (b *Balancers) classicMembers(ctx context.Context, of providers.Balancer) ([]providers.Member, error) {
	all, err := b.classicHealth.Get(ctx, of.ID, listingAge)
	if err != nil {
		return nil, err
	}
	settings, err := b.classicSettings.Get(ctx, of.ID, settingsAge)
	if err != nil {
		return nil, err
	}
	var out []providers.Member
	for _, m := range all {
		out = append(out, providers.Member{Membership: m.membership(of), Health: m.health})
	}
	if !settings.crossZone {
		err = b.inZones(ctx, out)
	}
	return out, err
}

// classicAttributes is how a Classic Load Balancer is set up.
type classicAttributes struct {
	draining  time.Duration
	crossZone bool
}

func (b *Balancers) readClassicSettings(ctx context.Context, name string) (classicAttributes, error) {
	op := b.looks("DescribeLoadBalancerAttributes")
	answer, err := call(ctx, b.looking, op, func(ctx context.Context, c *carrier) (*elasticloadbalancing.DescribeLoadBalancerAttributesOutput, error) {
		return b.classic.DescribeLoadBalancerAttributes(ctx, &elasticloadbalancing.DescribeLoadBalancerAttributesInput{LoadBalancerName: &name}, classicCall(c))
	})
	if err != nil {
		return classicAttributes{}, err
	}
	a := answer.LoadBalancerAttributes
	if a == nil || a.ConnectionDraining == nil {
		return classicAttributes{}, &providers.Error{Op: op.name, Kind: providers.ErrUnavailable, Message: "the answer does not tell of connection draining"}
	}
	var s classicAttributes
	if a.ConnectionDraining.Enabled {
		s.draining = min(time.Duration(max(aws.ToInt32(a.ConnectionDraining.Timeout), 0))*time.Second, maxDraining)
	}
	s.crossZone = a.CrossZoneLoadBalancing != nil && a.CrossZoneLoadBalancing.Enabled
	return s, nil
}

// changeClassic registers or deregisters instances.
func (b *Balancers) changeClassic(ctx context.Context, of changeOf, ms []providers.Membership) error {
	instances := make([]types.Instance, len(ms))
	for i, m := range ms {
		instances[i].InstanceId = aws.String(string(m.Instance))
	}
	name := of.balancer.ID
	resource := b.changes.arn("elasticloadbalancing", "", "loadbalancer/"+name)
	var err error
	if of.removing {
		_, err = call(ctx, b.changes, b.alters("DeregisterInstancesFromLoadBalancer", resource), func(ctx context.Context, c *carrier) (*elasticloadbalancing.DeregisterInstancesFromLoadBalancerOutput, error) {
			return b.classic.DeregisterInstancesFromLoadBalancer(ctx, &elasticloadbalancing.DeregisterInstancesFromLoadBalancerInput{LoadBalancerName: &name, Instances: instances}, classicCall(c))
		})
	} else {
		_, err = call(ctx, b.changes, b.alters("RegisterInstancesWithLoadBalancer", resource), func(ctx context.Context, c *carrier) (*elasticloadbalancing.RegisterInstancesWithLoadBalancerOutput, error) {
			return b.classic.RegisterInstancesWithLoadBalancer(ctx, &elasticloadbalancing.RegisterInstancesWithLoadBalancerInput{LoadBalancerName: &name, Instances: instances}, classicCall(c))
		})
	}
	return err
}
