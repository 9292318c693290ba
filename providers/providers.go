// Package providers is the contract between usher and a cloud: what the worker
// asks of a queue, of an auto-scaling service and of an instance, and the errors
// that it tells apart. One package below this one implements it for each cloud.
//
// Methods are safe for concurrent use, return soon after their context ends, and
// give errors that match one of this package's sentinels or the context's own.
// The provider is the one layer that retries a call: a caller that gets an error
// decides what it means for its work and does not just call again.
package providers

import (
	"context"
	"time"

	"example.org/usher/messages"
)

// Receipt is the key to extend or delete one delivery of a message. MNS calls it
// the receipt handle.
type Receipt string

// Delivery is one arrival of a message.
type Delivery struct {
	MessageID string
	Receipt   Receipt
	Body      []byte
	// Garbled: the body is not the one that the queue holds, by the queue's own digest
	// of it. It may be right the next time.
	Garbled bool
	// Receives counts the deliveries of this message up to this one, from 1.
	Receives int
	// EnqueuedAt and CloudTime are read off the cloud's clock: when the message was
	// sent to the queue, and when the cloud answered this receive. Their difference
	// is an age that does not depend on our clock. CloudTime is zero if not told.
	EnqueuedAt, CloudTime time.Time
	// ReceivedAt is our clock when the answer had arrived.
	ReceivedAt time.Time
	// Until is how long the message surely stays hidden, on our clock, counted from
	// before the request was sent.
	Until time.Time
	// RequestID is the cloud's id of the receive call.
	RequestID string
}

// Lease is what Extend was granted.
type Lease struct {
	// Receipt replaces the one that was extended.
	Receipt Receipt
	// Until is how long the message surely stays hidden, on our clock, counted from
	// before the request was sent.
	Until     time.Time
	RequestID string
}

// QueueAttributes is how the queue itself is set up.
type QueueAttributes struct {
	VisibilityTimeout time.Duration
	// Retention is how long the queue keeps a message, counted from its sending,
	// whether it is received or not.
	Retention time.Duration
}

// Queue is one message queue.
type Queue interface {
	// Receive waits up to wait for at most n deliveries; none and nil: the queue is
	// empty. It makes one attempt only: repeating a receive whose answer was lost
	// would hide a second batch for a whole visibility timeout.
	Receive(ctx context.Context, n int, wait time.Duration) ([]Delivery, error)
	// Extend hides the message for d from now, in whole seconds, at least one. Only
	// the receipt it returns is good afterwards. ErrReceiptStale: the message was
	// deleted, has expired, or belongs to another receiver by now.
	Extend(ctx context.Context, r Receipt, d time.Duration) (Lease, error)
	// Delete deletes up to MaxBatch messages in one call and returns an error for
	// each receipt, nil where it is gone. A message that did not exist gives ErrReceiptStale.
	Delete(ctx context.Context, rs []Receipt) []error
	// Send puts a message into the queue and returns its id. body is text that the
	// queue's protocol can carry (MNS: what XML 1.0 can). After an error the message may
	// be there all the same, and after a success it may be there twice.
	Send(ctx context.Context, body string) (messageID string, err error)
	// Attributes reads the queue's own settings.
	Attributes(ctx context.Context) (QueueAttributes, error)
	// MaxBatch is how many deliveries one Receive or Delete can carry, and MaxWait
	// the longest long poll.
	MaxBatch() int
	MaxWait() time.Duration
}

// Hook is how a lifecycle hook is set up in the cloud.
type Hook struct {
	ID         messages.HookID
	Name       string
	Group      messages.GroupID
	Transition messages.Transition
	// Timeout is how long the cloud waits for an answer or a heartbeat after the hook fired.
	Timeout       time.Duration
	DefaultResult messages.Result
}

// State is what the cloud says of a lifecycle action.
type State string

const (
	// Pending: the action waits for an answer, and its instances wait in their group.
	Pending State = "pending"
	// Over: the action was answered, has timed out or was cancelled.
	Over State = "over"
	// Unlisted: the cloud does not list the action. Right after a hook has fired it
	// may just not list it yet. Where the cloud lists instances only, those of the action
	// are as they are before such a wait, and may be again long after it.
	Unlisted State = "unlisted"
	// Mismatch: the cloud's record contradicts the notification: other instances,
	// another group, or instances that do not wait.
	Mismatch State = "mismatch"
	// Unclear: the cloud does not list the action, and lists other things that could not be
	// so without it; or it lists the action, and instances that do not wait yet. It must be
	// asked again later.
	Unclear State = "unclear"
)

// Verification is the cloud's word on one notification.
type Verification struct {
	State State
	// Reason says in words what was found, for the audit log.
	Reason string
	// Instances are all instances of the action as the cloud lists them, set when
	// State is Pending. An instance that the cloud no longer knows is marked Gone.
	Instances []messages.Instance
	// InGroup: the cloud lists all instances that exist, at least one, in the action's own
	// group, which is one proof more that the action is that group's.
	InGroup bool
	// Shared: the answer to another hook's action may end this one early.
	Shared bool
	// Err, when set, says that the cloud gave no answer; the other fields are empty. It is not
	// ErrNotFound for an action that the cloud does not know, only for where it was asked.
	Err error
}

// Grant is what a heartbeat was granted.
type Grant struct {
	// Until is when the wait lapses at the earliest, on our clock, counted from
	// before the request was sent.
	Until     time.Time
	RequestID string
}

// HeartbeatLimits is the cloud's budget for one lifecycle action.
type HeartbeatLimits struct {
	// Calls is how many heartbeats one action may have.
	Calls int
	// MaxWait is the longest an action may wait in all, from when the hook fired.
	MaxWait time.Duration
	// MinExtension and MaxExtension bound the length of one heartbeat. Where the cloud
	// extends by the hook's own timeout, both are that.
	MinExtension, MaxExtension time.Duration
}

// Lifecycle is the auto-scaling service.
type Lifecycle interface {
	// Hook reads the settings of a hook of a group. ErrNotFound: the group has no such hook.
	Hook(ctx context.Context, group messages.GroupID, hook messages.HookID) (Hook, error)
	// Verify says for each action, in the order given, whether it is pending and its
	// instances are where the notification says. It batches what the cloud's API can batch.
	Verify(ctx context.Context, actions []messages.Action) []Verification
	// Ended says for each action, in the order given, whether the cloud lists it as Over, at
	// less cost than Verify: it looks at no instance, and sets State, Reason, Shared and Err.
	Ended(ctx context.Context, actions []messages.Action) []Verification
	// Waiting lists the actions of the group that are pending, with all their instances,
	// whoever works on them. One that begins or ends meanwhile may be missing or be there.
	// ErrUnsupported: the cloud tells no tokens (Auto Scaling, 2011-01-01).
	Waiting(ctx context.Context, group messages.GroupID) ([]messages.Action, error)
	// Instances looks instances up, in the order given; one that the cloud does not
	// know is marked Gone.
	Instances(ctx context.Context, region string, ids []messages.InstanceID) ([]messages.Instance, error)
	// Tags gives the tags of instances, those of one that has none as an empty map. One that
	// the cloud does not list is left out.
	Tags(ctx context.Context, region string, ids []messages.InstanceID) (map[messages.InstanceID]map[string]string, error)
	// Heartbeat asks the cloud to wait for d from now. ErrActionGone: there is nothing
	// left to wait for. ErrHeartbeatLimit: the budget of the action is spent. It is not
	// repeated unless it was surely without effect, since each one that had its effect
	// counts: see Untouched.
	Heartbeat(ctx context.Context, a messages.Action, d time.Duration) (Grant, error)
	// Complete ends the wait of all instances of the action and returns the cloud's
	// request id. ErrActionGone: it was over already.
	Complete(ctx context.Context, a messages.Action, r messages.Result) (requestID string, err error)
	// Limits is the heartbeat budget of an action whose hook has the timeout.
	Limits(hookTimeout time.Duration) HeartbeatLimits
	// GroupsOf says which scaling group each instance is in; one that is in none is left
	// out. ErrUnsupported: the cloud sends no events that name instances alone.
	GroupsOf(ctx context.Context, ids []messages.InstanceID) (map[messages.InstanceID]messages.GroupID, error)
}

// Command is a script to run on an instance.
type Command struct {
	Instance messages.InstanceID
	// Name is shown in the cloud's console.
	Name string
	// Script is a shell script, up to 16 KB.
	Script string
	// Timeout is when the cloud kills the script.
	Timeout time.Duration
	// Key makes a repeat harmless: a second call with the same key answers with the
	// first call's invocation instead of running the script again. At most 64 ASCII characters.
	Key string
}

// CommandResult is how far an invocation has come.
type CommandResult struct {
	// Done: the invocation has ended, one way or another.
	Done bool
	// ExitCode is the script's, set when Done and Err is nil.
	ExitCode int
	// Output is what the script printed, cut by the cloud (ESS: above 24 KB).
	Output string
	// Err, when Done, says why the script did not run to its end: ErrInstanceGone,
	// ErrAgentUnavailable, ErrCommandTimeout or ErrCommandFailed.
	Err       error
	RequestID string
}

// Commander runs scripts on instances: Cloud Assistant, SSM.
type Commander interface {
	// RunCommand starts the script and returns the id of the invocation.
	RunCommand(ctx context.Context, c Command) (invocation string, err error)
	// CommandResult asks how far the invocation is on the instance.
	CommandResult(ctx context.Context, invocation string, id messages.InstanceID) (CommandResult, error)
}
