package providers

import (
	"errors"
	"fmt"
	"strings"
)

// The errors that the worker tells apart. A provider wraps one of them in an
// *Error; match with errors.Is.
var (
	// ErrThrottled: the cloud refused the call for its rate.
	ErrThrottled = errors.New("throttled")
	// ErrUnavailable: the cloud could not be reached, did not answer in time or failed by itself.
	ErrUnavailable = errors.New("unavailable")
	// ErrDenied: the credentials are refused or lack a permission.
	ErrDenied = errors.New("denied")
	// ErrCredentials: no credentials were found, or they could not be fetched.
	ErrCredentials = errors.New("no credentials")
	// ErrClock: the cloud refused the request's time; our clock is off by more than 15 minutes.
	ErrClock = errors.New("clock is off")
	// ErrQueueGone: the queue does not exist.
	ErrQueueGone = errors.New("queue does not exist")
	// ErrReceiptStale: the receipt no longer stands for the message.
	ErrReceiptStale = errors.New("receipt is stale")
	// ErrActionGone: the lifecycle action is over or was never there.
	ErrActionGone = errors.New("lifecycle action is over")
	// ErrHeartbeatLimit: the heartbeat budget of the action is spent.
	ErrHeartbeatLimit = errors.New("heartbeat budget is spent")
	// ErrNotFound: the thing asked for does not exist.
	ErrNotFound = errors.New("not found")
	// ErrInstanceGone: the instance does not exist any more.
	ErrInstanceGone = errors.New("instance is gone")
	// ErrAgentUnavailable: the instance runs no agent that could run a command, or it does not answer.
	ErrAgentUnavailable = errors.New("agent on the instance does not answer")
	// ErrCommandTimeout: the script was killed at its timeout.
	ErrCommandTimeout = errors.New("command timed out")
	// ErrCommandFailed: the script could not be run or was stopped.
	ErrCommandFailed = errors.New("command failed")
	// ErrBusy: a balancer refused a change because a former one is still being applied.
	ErrBusy = errors.New("busy with another change")
	// ErrChangeFailed: a balancer took a change on and then failed at it.
	ErrChangeFailed = errors.New("the balancer failed at the change")
	// ErrUnsupported: this cloud has nothing of the kind. It makes no call.
	ErrUnsupported = errors.New("not supported by this cloud")
	// ErrInvalid: the cloud says that the request itself is wrong.
	ErrInvalid = errors.New("request refused as invalid")
)

// Error is a refusal or a failure of one call to a cloud.
type Error struct {
	// Op is the API's name of the call, such as CompleteLifecycleAction.
	Op string
	// Kind is one of the sentinels of this package.
	Kind error
	// Status is the HTTP status, 0 when there was no answer.
	Status int
	// Code and Message are the cloud's own words; empty when there was no answer.
	Code, Message string
	// RequestID is the cloud's id of the call, for ActionTrail or CloudTrail.
	RequestID string
	// Hint says what an operator can do, when we know.
	Hint string
	// Untouched: the call surely changed nothing. Otherwise it may have had its effect
	// although it failed, as when only its answer was lost.
	Untouched bool
	// Cause is the error below, if any: a transport error, a context error.
	Cause error
}

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %v", e.Op, e.Kind)
	if e.Code != "" {
		fmt.Fprintf(&b, ": %s", e.Code)
	}
	if e.Message != "" {
		fmt.Fprintf(&b, ": %s", e.Message)
	}
	if e.Status != 0 {
		fmt.Fprintf(&b, " (HTTP %d)", e.Status)
	}
	if e.RequestID != "" {
		fmt.Fprintf(&b, " [request %s]", e.RequestID)
	}
	if e.Cause != nil {
		fmt.Fprintf(&b, ": %v", e.Cause)
	}
	if e.Hint != "" {
		fmt.Fprintf(&b, "; %s", e.Hint)
	}
	return b.String()
}

// Unwrap gives the sentinel and the cause, so that errors.Is finds both.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Cause}
}

// RequestID is the cloud's id of the call that failed with err, or "".
func RequestID(err error) string {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.RequestID
	}
	return ""
}

// Untouched says that the call which failed with err surely changed nothing.
func Untouched(err error) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Untouched
}
