package providertest

import (
	"context"
	"net"
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

// Cloud is one cloud, its provider, and what the suite needs to know of both.
type Cloud struct {
	Provider messages.Cloud
	// Scenario has one queue, two scaling groups and what is below. The queue hides a message
	// for Visibility. Group has 6 instances, which are members of every balancer in Behind,
	// with the hooks HookIn and HookOut at HookTimeout and the default results CONTINUE and
	// ABANDON. Other has 2 instances in no balancer, with a hook for scale-in. A new instance
	// has its agent after half an hour. Role is a role that the base keys may assume.
	Scenario                   simulator.Scenario
	Region, QueueName, Group   string
	HookIn, HookOut            string
	Other, Role                string
	Visibility, HookTimeout    time.Duration
	WaitingToGo, WaitingToCome string // the states of an instance that waits, in the API's words
	// Connect makes clients that t closes in the end.
	Connect func(t *testing.T, a Access) Clients
	// PolicyVersion is that of a policy document.
	PolicyVersion string
	// MaxAttempts is how often a call is sent at most, and CallTimeout bounds one attempt.
	MaxAttempts int
	CallTimeout time.Duration
	// APIs are the operations that the calls make, at least one each. A call that is not
	// there is one that the cloud has no operation for: it gives ErrUnsupported.
	APIs map[Call][]API
	// Behind are balancers, one of each kind.
	Behind []Behind
	// Attached are those of them that the group's record names.
	Attached []providers.Balancer
	Differences
}

// Access is how to reach a simulated cloud, and with which keys.
type Access struct {
	// Dial replaces the net package's dialer.
	Dial func(ctx context.Context, network, addr string) (net.Conn, error)
	// Endpoint is a URL for all services.
	Endpoint          string
	KeyID, Secret     string
	Region, Queue     string
	VisibilityTimeout time.Duration
	// Role, if set, is one to assume with the keys. The clients get its temporary keys once,
	// good for an hour, and do not renew them.
	Role string
}

// Clients are a provider's clients for one queue and one region.
type Clients struct {
	Queue     providers.Queue
	Lifecycle providers.Lifecycle
	Commander providers.Commander
	Balancers providers.Balancers
}

// API is one operation of a cloud.
type API struct {
	// Service and Action are what faults and counts of the simulator call it.
	Service, Action string
	// Permission is what a policy calls it, with the service.
	Permission string
}

// Call is one call of the contract, as interface and method.
type Call string

// The calls. Those from Find to Remove are in Behind.APIs.
const (
	Receive       Call = "Queue.Receive"
	Extend        Call = "Queue.Extend"
	Delete        Call = "Queue.Delete"
	DeleteBatch   Call = "Queue.Delete of two"
	Send          Call = "Queue.Send"
	Attributes    Call = "Queue.Attributes"
	Hook          Call = "Lifecycle.Hook"
	Verify        Call = "Lifecycle.Verify"
	Ended         Call = "Lifecycle.Ended"
	Waiting       Call = "Lifecycle.Waiting"
	Instances     Call = "Lifecycle.Instances"
	Tags          Call = "Lifecycle.Tags"
	Heartbeat     Call = "Lifecycle.Heartbeat"
	Complete      Call = "Lifecycle.Complete"
	GroupsOf      Call = "Lifecycle.GroupsOf"
	RunCommand    Call = "Commander.RunCommand"
	CommandResult Call = "Commander.CommandResult"
	Attached      Call = "Balancers.Attached"
	Find          Call = "Balancers.Find"
	Members       Call = "Balancers.Members"
	Draining      Call = "Balancers.Draining"
	Notice        Call = "Balancers.Notice"
	Add           Call = "Balancers.Add"
	SetWeight     Call = "Balancers.SetWeight"
	Remove        Call = "Balancers.Remove"
)

// Behind is a balancer that the instances of the group are behind.
type Behind struct {
	providers.Balancer
	// ServerGroup is what the simulator calls it.
	ServerGroup string
	// Port is that of each membership, and Weight its weight.
	Port, Weight int
	// Draining is how long a member's connections run on after its removal.
	Draining time.Duration
	// Notice is how long its health checks take to notice.
	Notice time.Duration
	// Leaves is for how long a member that was removed is still listed, as Leaving.
	Leaves time.Duration
	// NoneIsEmpty: Draining of a balancer that does not exist says 0, since the listing it is
	// read from is just empty.
	NoneIsEmpty bool
	APIs        map[Call][]API
}

// Differences are where the clouds differ, as a caller of the contract can see it.
type Differences struct {
	// MaxBatch and MaxWait are the bounds of BatchReceiveMessage (MNS 2015-06-06: 16
	// messages, 30 s) and ReceiveMessage (SQS 2012-11-05: 10 messages, 20 s).
	MaxBatch int
	MaxWait  time.Duration
	// MaxBody is the longest body in bytes that SendMessage takes (MNS: 64 KB, SQS: 1 MiB).
	MaxBody int
	// NewReceipts: ChangeMessageVisibility of MNS answers with a new handle, and the old one
	// ends. SQS goes on with the old one.
	NewReceipts bool
	// ReceiptsEnd: on MNS a handle ends with the time that its message is hidden for. On SQS it
	// goes on until the message is received again, and longer: that ChangeMessageVisibility and
	// DeleteMessage take it then says nothing of the message.
	ReceiptsEnd bool
	// DeletedAgain is what a second deletion says: MessageNotExist on MNS, and success on SQS
	// (DeleteMessage).
	DeletedAgain error
	// HiddenInAll is how long one receive can hide a message with all its extensions. SQS
	// refuses ChangeMessageVisibility beyond 12 hours from the receive; 0: MNS counts each
	// extension for itself.
	HiddenInAll time.Duration
	// LostExtend is what Extend says when the first answer was lost: on MNS the handle that was
	// sent is used up, so that no repeat can help. On SQS the repeat does the same again.
	LostExtend error

	// ActionForAll: one activity of ESS has one token and one message for all its instances
	// of a hook. Auto Scaling of AWS has one for each instance.
	ActionForAll bool
	// AnsweredAlike: ESS knows the repeat of CompleteLifecycleAction by its ClientToken and
	// answers it as the first. AWS has no such parameter: a second worker's call finds "No active
	// Lifecycle Action". That of a call whose own answer was lost is a success on both.
	AnsweredAlike bool
	// LostHeartbeat is what Heartbeat says when its answer was lost: on ESS it may have counted
	// and is not repeated. On AWS heartbeats do not count, the time does.
	LostHeartbeat error
	// AskedLength: RecordLifecycleActionHeartbeat of ESS has the parameter heartbeatTimeout. That of
	// AWS grants the hook's own timeout, whatever is asked for.
	AskedLength bool
	// Heartbeats is how many an action may have, and MaxWait how long it may wait in all: 20
	// and 6 h on ESS, on AWS 100 times the hook's timeout and 48 h at most.
	Heartbeats  int
	LongestWait time.Duration
	// Rollback: ESS has a third result, ROLLBACK, which keeps the instance at scale-in. AWS
	// refuses it as CompleteLifecycleAction's LifecycleActionResult.
	Rollback bool
	// Tokens: ESS lists its actions with their tokens (DescribeLifecycleActions), so that Verify
	// tells a token that was made up, and Waiting lists what waits. AWS lists none: it is the
	// instance's state that is verified (DescribeAutoScalingInstances).
	Tokens bool
	// Released is what Verify and Ended say of an action whose instance is gone for good: ESS
	// keeps the action's record, on AWS there is nothing left to be listed.
	Released providers.State
	// Forged is what Verify says of what is not so: see the case.
	Forged map[string]providers.State

	// AgentAtOnce: SendCommand of SSM refuses an instance whose agent is not registered
	// (InvalidInstanceId). RunCommand of ECS takes the command on, which fails afterwards.
	AgentAtOnce bool
	// NoAgent is the simulator's word for an instance without agent.
	NoAgent string
}
