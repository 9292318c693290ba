package steps

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

const (
	// firstRetry and lastRetry bound the pause before a script is sent again.
	firstRetry = 2 * time.Second
	lastRetry  = 15 * time.Second
	// unlistedLaunch is how long ECS may not know an instance that its hook has announced.
	unlistedLaunch = time.Minute
)

// runOn runs the script. On an instance that is being launched it waits, for as long as
// ctx lasts, until it can be run there: the hook fires when the machine is started, and
// Cloud Assistant is among the last things that come up.
func runOn(ctx context.Context, commander providers.Commander, in messages.Instance, c providers.Command) (providers.CommandResult, error) {
	if in.Action.Transition != messages.ScaleOut {
		return runScript(ctx, commander, c)
	}
	begin := time.Now()
	var last error
	for try := 0; ; try++ {
		sent := c
		sent.Key = tryKey(c.Key, try)
		res, err := runScript(ctx, commander, sent)
		if err != nil && ctx.Err() != nil && last != nil {
			return res, fmt.Errorf("%w; before that, after %d tries: %w", err, try, last)
		}
		// In both cases the script has not begun.
		early := errors.Is(err, providers.ErrAgentUnavailable) ||
			errors.Is(err, providers.ErrInstanceGone) && time.Since(begin) < unlistedLaunch
		if !early {
			return res, err
		}
		last = err
		if end := pause(ctx, min(firstRetry<<min(try, 10), lastRetry)); end != nil {
			return res, fmt.Errorf("%w; it could not be run in %d tries: %w", end, try+1, last)
		}
	}
}

// tryKey gives each try a key of its own: with the first one's, the cloud would answer
// with the first one's invocation, which has failed. A worker that takes over comes to the
// same keys, goes through the tries that failed and joins the one that runs.
func tryKey(key string, try int) string {
	if try == 0 {
		return key
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d", key, try))
	return hex.EncodeToString(sum[:])
}
