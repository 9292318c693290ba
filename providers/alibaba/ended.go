package alibaba

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aliyun/alibaba-cloud-sdk-go/services/ess"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// Ended costs one DescribeLifecycleActions for each scaling activity.
func (s *Scaling) Ended(ctx context.Context, actions []messages.Action) []providers.Verification {
	listings := map[regionalActivity]*listing{}
	for _, a := range actions {
		if key := s.activityOf(a); key.id != "" {
			listings[key] = new(listing)
		}
	}
	s.read(ctx, listings)
	out := make([]providers.Verification, len(actions))
	for i, a := range actions {
		l := listings[s.activityOf(a)]
		switch {
		case l == nil:
			out[i] = mismatch("the action names no scaling activity")
		case l.err != nil:
			out[i].Err = fmt.Errorf("has %s ended: %w", a.Token, l.err)
		default:
			out[i] = status(a, l.actions)
			out[i].Shared = shared(a, l)
		}
	}
	return out
}

// status is what the listing says of an action itself.
func status(a messages.Action, listed []ess.LifecycleAction) providers.Verification {
	e := entry(a, listed)
	if e == nil {
		return providers.Verification{State: providers.Unlisted, Reason: fmt.Sprintf("the cloud does not list the action in activity %s", a.Activity)}
	}
	switch strings.ToLower(e.LifecycleActionStatus) {
	case "completed", "timeout":
		return providers.Verification{State: providers.Over, Reason: "the cloud lists the action as " + e.LifecycleActionStatus}
	case "pending":
		return providers.Verification{State: providers.Pending}
	}
	return providers.Verification{State: providers.Unlisted, Reason: fmt.Sprintf("the cloud lists the action with the unknown status %q", e.LifecycleActionStatus)}
}

// shared says whether another hook's answer may end a's wait. Only at scale-in does one
// end the others' (CompleteLifecycleAction, ESS 2014-08-28). What a listing with holes
// lacks may be the other hook's action.
func shared(a messages.Action, l *listing) bool {
	return a.Transition == messages.ScaleIn && (!l.whole || slices.ContainsFunc(l.actions, func(other ess.LifecycleAction) bool {
		return other.LifecycleHookId != string(a.Hook) && strings.EqualFold(other.LifecycleActionStatus, "Pending")
	}))
}
