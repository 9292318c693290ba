// Package steps holds the things a job can do for one instance: a step each.
//
// A step is a plain struct. Its fields are the operator's settings, its Validate
// method says what is wrong with them, and after Validate it is never written
// again: one value serves all instances of a hook, from many goroutines at once.
//
// A job may run twice. A worker that dies leaves its action to another one, which
// starts from the first step, sometimes while the first worker still lives.
// Therefore a step only looks (wait, wait_connections), or names its effect with
// a key that is the same for every worker (command), or repeats a request that
// the operator wrote knowing so (http), or sets up what is there once however often
// it is set up (fail_health_check, block_connections, undo).
//
// Run is what the worker calls: attempt counts from 0 and grows when the worker runs
// a failed step again. It returns a short sentence for the audit log. The context
// ends at the step's timeout; retrying, and what a failure means for the job, is the
// worker's business.
package steps
