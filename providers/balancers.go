package providers

import (
	"context"
	"time"

	"example.org/usher/messages"
)

// BalancerKind says which service a balancer is of, and what of it has members.
type BalancerKind string

// The kinds of Alibaba Cloud.
const (
	// CLB is the default server group of a Classic Load Balancer instance (lb-...). Its
	// members have no port of their own: the listeners say which.
	CLB BalancerKind = "clb"
	// CLBGroup is a virtual server group of a CLB instance (rsp-...).
	CLBGroup BalancerKind = "clb-vserver-group"
	// ALB and NLB are server groups (sgp-...) of an Application or Network Load Balancer.
	ALB BalancerKind = "alb"
	NLB BalancerKind = "nlb"
)

// The kinds of AWS.
const (
	// ClassicELB is a Classic Load Balancer, by its name. Its members have no port.
	ClassicELB BalancerKind = "elb"
	// TargetGroup is a target group of an Application or Network Load Balancer, by its ARN.
	TargetGroup BalancerKind = "target-group"
)

// Weighted says whether members of the kind have a weight. Those of the others are listed
// with 100, and SetWeight gives ErrUnsupported.
func (k BalancerKind) Weighted() bool { return k != ClassicELB && k != TargetGroup }

// Balancer is what instances are members of. Where a search is meant, an empty ID stands
// for all that the account has of the kind; CLB then includes CLBGroup.
type Balancer struct {
	Kind BalancerKind
	ID   string
}

// String is how configs write it, such as alb:sgp-example0001 or nlb:auto.
func (b Balancer) String() string {
	if b.ID == "" {
		return string(b.Kind) + ":auto"
	}
	return string(b.Kind) + ":" + b.ID
}

// Membership is one port of an instance in a balancer. An instance may have several.
type Membership struct {
	Balancer
	Instance messages.InstanceID
	// Port is 0 where the balancer knows none: CLB, and NLB groups of all ports.
	Port int
	// Weight is 0 to 100; at 0 nothing new is sent there.
	Weight int
	State  MembershipState
}

// MembershipState is what a balancer is doing with a membership.
type MembershipState string

// The states of a membership. One that is gone is not listed.
const (
	// Joining: it was added and is not in effect yet.
	Joining MembershipState = "joining"
	// Joined: it is in effect, or a change of it is.
	Joined MembershipState = "joined"
	// Leaving: it was removed, and is still listed.
	Leaving MembershipState = "leaving"
)

// Health is what a balancer's own checks say of a member.
type Health string

// The healths.
const (
	Healthy   Health = "healthy"
	Unhealthy Health = "unhealthy"
	// HealthUnknown: there is no check, or it has not run yet.
	HealthUnknown Health = "unknown"
)

// Member is a membership of any instance, with its balancer's word on it.
type Member struct {
	Membership
	// Zone is the instance's; "" when it is not known, or when it makes no difference to
	// the balancer, which sends across zones.
	Zone   string
	Health Health
}

// Change is a change of a membership that the balancer has taken on. Some go on after the
// call: ID is then the job's.
type Change struct {
	Balancer
	ID string
}

// Balancers are the load balancers of one account in one region. Calls for several
// instances at the same time share the cloud's calls where its API allows that.
//
// A change that the balancer refuses because it is busy with another one is repeated
// until ctx ends. ErrNotFound: there is no such balancer.
type Balancers interface {
	// Find lists all memberships of the instance in one balancer, or in all of a kind. What
	// this process has changed shows at once, what others have after some seconds; what others
	// have taken out of CLB, where all of it is searched, after a minute. With an error comes
	// what was found nevertheless.
	Find(ctx context.Context, in Balancer, id messages.InstanceID) ([]Membership, error)
	// Members lists all members of a balancer, of all instances, at most some seconds old.
	Members(ctx context.Context, of Balancer) ([]Member, error)
	// Draining is how long the balancer lets connections of a member that was removed run
	// on; 0: it cuts them, or says nothing about it.
	Draining(ctx context.Context, of Balancer) (time.Duration, error)
	// Notice is how long the balancer's health checks may take until nothing new is sent to a
	// member that fails them; 0: it has none, or does not tell.
	Notice(ctx context.Context, of Balancer) (time.Duration, error)
	// Attached are the balancers that the scaling group's own record names. The
	// auto-scaling service takes instances out of those and puts them in.
	Attached(ctx context.Context, group messages.GroupID) ([]Balancer, error)
	// Add makes the instance a member with port and weight. One that is there already is
	// left as it is.
	Add(ctx context.Context, m Membership) (Change, error)
	// SetWeight changes the weight of a membership to m.Weight. One that is not there is
	// no error.
	SetWeight(ctx context.Context, m Membership) (Change, error)
	// Remove ends a membership. One that is not there is no error.
	Remove(ctx context.Context, m Membership) (Change, error)
	// Failed asks about a change that was taken on. ErrChangeFailed: it has failed; nil: it
	// has not, so far as is known.
	Failed(ctx context.Context, c Change) error
}
