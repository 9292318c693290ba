// Package aws is AWS as usher sees it: a standard queue of SQS, EC2 Auto Scaling for the
// lifecycle actions, EC2 for the addresses of instances, Elastic Load Balancing of both
// generations, and Systems Manager for the scripts. It implements the contract of package
// providers.
//
// The services are called with aws-sdk-go-v2, but EC2, whose package takes as long to compile
// as all else: it gets a small client of our own with the SDK's signer.
//
// # Repeats
//
// The SDK's adaptive retryer is the one layer that repeats a call, at most MaxAttempts times
// and as long as the caller's context lasts. Once a service refuses calls for their rate, it
// slows all that share a retryer: each client of a service has one, and answers and heartbeats
// of Auto Scaling have one each, so that what only asks does not delay them.
//
//   - Receive is sent once. A repeat could hide a second batch of messages.
//   - Extend and Delete may be repeated whatever became of the first attempt: the handle stays
//     good, and both say the same when said again. Entries of a batch that fail for the
//     service's own reasons are sent again by themselves.
//   - So may Heartbeat, unlike on a cloud that counts them: each lets the wait begin anew.
//   - Complete is refused the second time. After an attempt whose answer was lost the refusal
//     is taken for that one's success.
//
// An error says by its Untouched whether all attempts together surely changed nothing.
// Nothing is repeated on a denial or when the cloud calls the request wrong; but when it
// is the keys that are refused, as expired or unknown, they are renewed and the call is
// made once more. A clock that is off is corrected by the Date of the answers.
//
// # Keys
//
// [Chain] finds the worker's own keys, [AssumedRole] gets those of a role with them. Both
// renew them in the background, one renewal at a time, while calls go on with the old ones;
// Close waits for it.
//
// # What AWS does not tell
//
// No operation lists the actions that wait, nor their tokens: see [Scaling.Verify]. SQS
// neither says that a message was deleted before, nor that another receive has followed:
// see [Queue.Extend].
package aws
