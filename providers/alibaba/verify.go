package alibaba

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/aliyun/alibaba-cloud-sdk-go/services/ess"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// Verify costs one DescribeLifecycleActions for each scaling activity and then, for each
// 20 instances of pending actions, one DescribeScalingInstances, over all actions together;
// more only when ESS does not tell enough of an instance, which ECS is asked about then.
func (s *Scaling) Verify(ctx context.Context, actions []messages.Action) []providers.Verification {
	found := newRegister()
	listings := map[regionalActivity]*listing{}
	for _, a := range actions {
		key := s.activityOf(a)
		if listings[key] == nil && key.id != "" {
			listings[key] = new(listing)
		}
	}
	s.read(ctx, listings)
	s.readPending(ctx, actions, listings, found)

	out := make([]providers.Verification, len(actions))
	for i, a := range actions {
		key := s.activityOf(a)
		if key.id == "" {
			out[i] = mismatch("the notification names no scaling activity")
			continue
		}
		l := listings[key]
		if l.err != nil {
			out[i].Err = fmt.Errorf("verify %s: %w", a.Token, l.err)
			continue
		}
		if !l.whole && entry(a, l.actions) == nil {
			out[i].Err = fmt.Errorf("verify %s: %w", a.Token, holes("DescribeLifecycleActions"))
			continue
		}
		look := func(id messages.InstanceID) record { return found.get(key.region, id) }
		if out[i] = decide(a, l.actions, look); l.empty() {
			out[i] = contradicted(out[i], a, look)
		}
		out[i].Shared = shared(a, l)
	}
	return out
}

type regionalActivity struct {
	region string
	id     messages.ActivityID
}

// listing is what DescribeLifecycleActions says of an activity.
type listing struct {
	actions []ess.LifecycleAction
	// whole: all that the service counts is there. What is missing from a listing with
	// holes may well exist.
	whole bool
	// unknown: the service says that there is no such activity, which is more than an empty listing.
	unknown bool
	err     error
}

// empty: the service lists nothing, and does not say that there is nothing to list.
func (l *listing) empty() bool { return l.err == nil && !l.unknown && len(l.actions) == 0 }

func (s *Scaling) activityOf(a messages.Action) regionalActivity {
	return regionalActivity{region: s.regionOf(a), id: a.Activity}
}

// read asks for all activities, several calls at a time.
func (s *Scaling) read(ctx context.Context, listings map[regionalActivity]*listing) {
	var tasks []func()
	for key, l := range listings {
		tasks = append(tasks, func() {
			l.actions, l.whole, l.err = s.list(ctx, key.region, key.id)
			if isUnknownActivity(l.err) {
				*l = listing{whole: true, unknown: true}
			}
		})
	}
	atOnce(tasks)
}

// holes is the error for an answer that lists less than it counts, and not what was asked for.
func holes(op string) error {
	return &providers.Error{Op: op, Kind: providers.ErrUnavailable, Message: "the answer counts more than it lists"}
}

// readPending looks up the instances of pending actions: those that the cloud lists, since
// one answer ends the wait of all, and not those that a notification names. A forged one
// could name thousands, and each message cost hundreds of calls. Only of an action whose
// activity is listed as if it had none are a few looked up: see contradicted. Those that
// ESS tells too little of are asked of ECS.
func (s *Scaling) readPending(ctx context.Context, actions []messages.Action, listings map[regionalActivity]*listing, found *register) {
	pending := map[regionalInstance]bool{}
	for _, a := range actions {
		key := s.activityOf(a)
		l := listings[key]
		if l == nil {
			continue
		}
		if listed := entry(a, l.actions); listed != nil && strings.EqualFold(listed.LifecycleActionStatus, "Pending") {
			for _, id := range listed.InstanceIds.InstanceId {
				found.want(key.region, messages.InstanceID(id))
				pending[regionalInstance{key.region, messages.InstanceID(id)}] = true
			}
		} else if l.empty() {
			for _, id := range a.Instances[:min(len(a.Instances), essMaxIDs)] {
				found.want(key.region, id)
				pending[regionalInstance{key.region, id}] = true
			}
		}
	}
	s.lookUp(ctx, found)
	s.supplement(ctx, found, slices.DeleteFunc(found.incomplete(), func(key regionalInstance) bool { return !pending[key] }))
}

// entry finds an action among those of its activity.
func entry(a messages.Action, listed []ess.LifecycleAction) *ess.LifecycleAction {
	for i := range listed {
		if listed[i].LifecycleHookId == string(a.Hook) && listed[i].LifecycleActionToken == string(a.Token) {
			return &listed[i]
		}
	}
	return nil
}

// decide compares a notification with what the cloud lists. It does no I/O.
func decide(a messages.Action, listed []ess.LifecycleAction, look func(messages.InstanceID) record) providers.Verification {
	if v := status(a, listed); v.State != providers.Pending {
		return v
	}
	e := entry(a, listed)
	for _, id := range a.Instances {
		if !slices.Contains(e.InstanceIds.InstanceId, string(id)) {
			return mismatch(fmt.Sprintf("instance %s is not one of the action's", id))
		}
	}
	return decideInstances(a, e.InstanceIds.InstanceId, look)
}

// contradicted looks, where an activity is listed without any action, at what the cloud
// says of the instances. One that waits in the group waits for some action; one that
// exists and is in no group is missing from more than one listing. An empty listing is
// worth less than that.
func contradicted(v providers.Verification, a messages.Action, look func(messages.InstanceID) record) providers.Verification {
	for _, id := range a.Instances {
		r := look(id)
		switch {
		case r.err != nil:
			return providers.Verification{Err: fmt.Errorf("verify %s: %w", a.Token, r.err)}
		case r.known != nil && r.known.ScalingGroupId == string(a.Group) && waits(a.Transition, r.known.LifecycleState):
			v.State = providers.Unclear
			v.Reason += fmt.Sprintf(", but instance %s waits in the group", id)
			return v
		case r.known == nil && r.machine != nil:
			v.State = providers.Unclear
			v.Reason += fmt.Sprintf(", and instance %s, which exists, in no group", id)
			return v
		}
	}
	return v
}

// decideInstances looks at each instance that the cloud lists for a pending action. A
// contradiction outweighs a state that merely lags.
func decideInstances(a messages.Action, ids []string, look func(messages.InstanceID) record) providers.Verification {
	pending := providers.Verification{State: providers.Pending}
	lagging, gone, inGroup := "", 0, 0
	for _, text := range ids {
		id := messages.InstanceID(text)
		if !id.Valid() {
			// It would go where the ids of a notification go, which are checked.
			return providers.Verification{Err: fmt.Errorf("verify %s: %w", a.Token, &providers.Error{
				Op: "DescribeLifecycleActions", Kind: providers.ErrUnavailable, Message: fmt.Sprintf("the answer lists %.60q as an instance", text),
			})}
		}
		r := look(id)
		if r.err != nil {
			return providers.Verification{Err: fmt.Errorf("verify %s: %w", a.Token, r.err)}
		}
		in := r.instance(id)
		in.Action = a
		pending.Instances = append(pending.Instances, in)
		switch {
		case in.Gone:
			gone++
		case r.known == nil:
			// It exists, and is in no group by the listing, which can lag. That it belongs to
			// the action is the cloud's own word.
		case r.known.ScalingGroupId != string(a.Group):
			return mismatch(fmt.Sprintf("instance %s is in group %s, not %s", id, r.known.ScalingGroupId, a.Group))
		case waits(a.Transition, in.State):
			inGroup++
		case aboutToWait(a.Transition, in.State):
			lagging = fmt.Sprintf("instance %s is %s and does not wait yet", id, in.State)
		default:
			return mismatch(fmt.Sprintf("instance %s is %s and does not wait", id, in.State))
		}
	}
	if lagging != "" {
		// The cloud's own list has it in an action that is pending: it is not to be dropped
		// for a state that comes late, however late.
		return providers.Verification{State: providers.Unclear, Reason: lagging}
	}
	pending.InGroup = inGroup > 0 && inGroup+gone == len(ids)
	pending.Reason = fmt.Sprintf("the action is pending with %d instances", len(ids))
	if gone > 0 {
		pending.Reason += fmt.Sprintf(", %d of them gone", gone)
	}
	return pending
}

func mismatch(reason string) providers.Verification {
	return providers.Verification{State: providers.Mismatch, Reason: reason}
}

// waits tells the states in which a hook holds an instance. The API says Removing:Wait
// and Pending:Wait; Terminating:Wait and Adding:Wait are the words of older articles and
// of the console.
func waits(t messages.Transition, state string) bool {
	return isState(state, t, []string{"Removing:Wait", "Terminating:Wait"}, []string{"Pending:Wait", "Adding:Wait"})
}

// aboutToWait tells the states just before: the description of an instance may lag
// behind the hook.
func aboutToWait(t messages.Transition, state string) bool {
	return isState(state, t, []string{"Removing", "Terminating"}, []string{"Pending", "Adding"})
}

func isState(state string, t messages.Transition, in, out []string) bool {
	words := in
	if t == messages.ScaleOut {
		words = out
	}
	return slices.ContainsFunc(words, func(word string) bool { return strings.EqualFold(word, state) })
}

// isUnknownActivity: the service says that there is no such activity. That something else is
// unknown to it, such as the region where an endpoint is another region's, says nothing of
// the activity, and its messages would be deleted for it.
func isUnknownActivity(err error) bool {
	e, ok := errors.AsType[*providers.Error](err)
	if !ok || !errors.Is(e, providers.ErrNotFound) {
		return false
	}
	code := strings.ToLower(e.Code)
	return strings.HasPrefix(code, "invalidscalingactivityid.") || strings.HasPrefix(code, "invalidscalingactivity.")
}
