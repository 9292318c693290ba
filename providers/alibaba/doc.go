// Package alibaba is Alibaba Cloud as usher sees it: a queue of MNS (also called
// SMQ), Auto Scaling (ESS) for the lifecycle actions and ECS Cloud Assistant for
// the scripts.
//
// MNS is spoken by a client of our own over net/http, because the official one
// takes no context, repeats requests behind the caller's back and loses the HTTP
// status. ESS and ECS go through alibaba-cloud-sdk-go, which signs and decodes;
// its transport is ours, so that a call ends with its context, answers are
// bounded, refusals keep their status and no error carries a signed URL.
//
// # Repeats
//
// This package is the one layer that repeats a call, and each kind of call has
// its own rule:
//
//   - Receive is sent once. A repeat could hide a second batch of messages.
//   - Extend is repeated only when the first attempt surely changed nothing: the
//     receipt it carries is good for one change.
//   - Delete and Attributes are repeated on refusals that pass and on cut
//     connections, but not after a timeout.
//   - Heartbeat, too, is repeated only when it surely changed nothing: each one that
//     had its effect costs a call of the action's budget.
//   - The other ESS and ECS calls are idempotent and repeated on anything that
//     passes, as long as the caller's context lasts, at most MaxAttempts times.
//
// An error says by its Untouched whether all attempts together surely changed nothing.
// Nothing is repeated on a denial or when the cloud calls the request wrong; but when it
// is the keys that are refused, as expired or unknown, they are renewed and the call is
// sent once more.
//
// # Keys
//
// [Chain] finds the worker's own keys, [AssumedRole] gets those of a RAM role with them.
// Both renew them in the background, one renewal at a time, while calls go on with the
// old ones; Close waits for it.
package alibaba
