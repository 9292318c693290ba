package worker

import (
	"context"
	"slices"
	"time"

	"example.org/usher/messages"
)

// unlistedLaunch is how long a launching instance may be missing, or without an address,
// until its job goes on as it is: what asks for it may know it later than its hook. Were it
// taken for gone too early, its action would be answered with a failure and the machine,
// which only was not listed yet, released.
const unlistedLaunch = time.Minute

// awaitLaunch looks launching instances up until the cloud lists all of them, with their
// addresses if there are steps, for a minute at most.
func (c *consumer) awaitLaunch(a *action) {
	unlisted := func(in messages.Instance) bool { return in.Gone || len(a.plan.Steps) > 0 && !in.PrivateIP.IsValid() }
	until := time.Now().Add(unlistedLaunch)
	for attempt := 0; slices.ContainsFunc(a.instances, unlisted); attempt++ {
		if time.Now().After(until) {
			a.log.Warn("instances are launched that the cloud does not list, or not with their addresses; steps that need those will fail")
			return
		}
		// Those of an action that was not verified have not been looked up at all.
		if (attempt > 0 || a.instances[0].State != "") && !pause(a.jobs, backoff(attempt, 2*time.Second, 10*time.Second)) {
			return
		}
		ctx, cancel := context.WithTimeout(a.jobs, callTimeout)
		known, err := a.group.Lifecycle.Instances(ctx, a.Region, a.Instances)
		cancel()
		if err != nil {
			a.log.Warn("can't look launching instances up, they will be looked up again", keyError, err)
			continue
		}
		for i := range known {
			known[i].Action = a.Action
		}
		a.instances = known
	}
}
