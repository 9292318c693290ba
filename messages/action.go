// Package messages turns the body of a queue message into a notification and
// names the things that a notification speaks of. It is pure: no I/O, no clock,
// no configuration, and nothing of usher's own is imported here.
package messages

import (
	"net/netip"
	"time"
)

// The identifiers a notification carries. Each is checked against a strict
// pattern when it is decoded (see Decode), so that a value of one of these types
// can go into a request parameter, an environment variable or a template as it is.
type (
	// InstanceID names a server, such as i-bp1aaaaaaaaaaaaaaaa1.
	InstanceID string
	// GroupID names a scaling group, such as asg-bp1example; on AWS, which has no ids of its
	// own for groups, by its name.
	GroupID string
	// HookID names a lifecycle hook, such as ash-bp1example; on AWS by its name, too.
	HookID string
	// ActivityID names the scaling activity that a lifecycle action pauses.
	ActivityID string
	// Token names one lifecycle action of a hook.
	Token string
)

// Valid says whether id looks like an instance's. Decode lets no other pass; ids that
// come from elsewhere have to be checked before they are used as those are.
func (id InstanceID) Valid() bool { return patternInstance.MatchString(string(id)) }

// Valid says whether id looks like a group's of the cloud: no other is let in by Decode.
func (id GroupID) Valid(of Cloud) bool {
	if of == AWS {
		return awsGroup.fits(string(id))
	}
	return patternGroup.MatchString(string(id))
}

// Valid says whether id looks like a hook's of the cloud.
func (id HookID) Valid(of Cloud) bool {
	if of == AWS {
		return awsHook.fits(string(id))
	}
	return patternHook.MatchString(string(id))
}

// Transition says which way an instance is going.
type Transition string

// The two transitions that a lifecycle hook can pause.
const (
	ScaleIn  Transition = "scale_in"
	ScaleOut Transition = "scale_out"
)

// Result is what ends the wait of a lifecycle action.
type Result string

// The results that ESS knows (CompleteLifecycleAction, 2014-08-28). On scale-in
// only Rollback keeps the instance: Continue and Abandon both remove it.
const (
	Continue Result = "CONTINUE"
	Abandon  Result = "ABANDON"
	Rollback Result = "ROLLBACK"
)

// Cloud is where a message comes from.
type Cloud string

// The clouds.
const (
	Alibaba Cloud = "alibaba"
	AWS     Cloud = "aws"
)

// Event is a warning about instances that nothing waits for: there is no hook and nothing
// to complete. Its action's token is the event's own id, its transition ScaleIn, and its
// group is not known before the cloud is asked.
type Event string

// The events (EventBridge of AWS, sources aws.ec2 and aws.health). A lifecycle hook's is empty.
const (
	SpotInterruption        Event = "spot_interruption"
	RebalanceRecommendation Event = "rebalance_recommendation"
	ScheduledChange         Event = "scheduled_change"
	StateChange             Event = "state_change"
)

// ActionKey identifies a lifecycle action: the same pair in two messages is the
// same action, announced twice.
type ActionKey struct {
	Hook  HookID
	Token Token
}

// Action is the pause that a notification announces. It ends once, with one
// result for all its instances.
type Action struct {
	Region     string
	Group      GroupID
	Hook       HookID
	HookName   string
	Transition Transition
	Token      Token
	// Event is set where the action is none of a lifecycle hook: see Event.
	Event Event
	// Activity is empty where the cloud names none (AWS).
	Activity ActivityID
	// Instances has at least one element and no duplicates.
	Instances []InstanceID
}

// Key identifies the action among all actions of an account.
func (a Action) Key() ActionKey { return ActionKey{Hook: a.Hook, Token: a.Token} }

// Notification is the decoded message that announces a lifecycle action.
type Notification struct {
	Action
	// AccountID is the main account that owns the group.
	AccountID string
	GroupName string
	// DefaultResult is what the cloud applies by itself when the wait runs out.
	DefaultResult Result
	// Metadata is free text that the hook's owner gave. It is data, never a name.
	Metadata      string
	RequestID     string
	ResourceARN   string
	ScalingRule   string
	ScheduledTask string
	// Origin and Destination are where the instances come from and go to: EC2, AutoScalingGroup,
	// WarmPool. Empty where the cloud does not say (AWS before 2021, and ESS).
	Origin, Destination string
	// Due is when the instances will be taken, whoever works on them; of an event alone. Zero: not known.
	Due time.Time
	// Time is when the hook fired or the event was sent, by the cloud's clock; zero when the message does not say.
	Time time.Time
	// Reannounced: the message is not the cloud's, but of a worker that saw the action
	// waiting and held no message about it. See Reannounce.
	Reannounced bool
}

// Instance is one server of a lifecycle action and what the cloud tells about it.
type Instance struct {
	ID InstanceID
	// PrivateIP is the zero Addr when the cloud does not tell it.
	PrivateIP netip.Addr
	Zone      string
	// State is the cloud's own word for the instance's lifecycle state.
	State string
	// Gone: the cloud no longer knows the instance.
	Gone bool
	// Tags are those that the instance has in the cloud; nil: they are not known. They are only
	// asked for where a plan depends on them.
	Tags map[string]string
	// Withdrawn is since when this worker has asked for nothing new to be sent to it: the end
	// of the last step so far that may have done so, at first the begin of the job. Zero: not
	// known.
	Withdrawn time.Time
	// Action is the lifecycle action that the instance waits in.
	Action Action
}
