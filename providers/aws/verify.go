package aws

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// Verify costs one DescribeAutoScalingInstances for each 50 instances and one
// DescribeInstances for each 100, over all that is verified within a moment, and one
// DescribeLifecycleHooks for each group now and then.
//
// No operation tells the actions that wait, nor their tokens. What is looked at is whether
// the instance waits in the group: that another hook holds it, or that it waits anew with
// another token, shows at the first heartbeat or at the answer, as ErrActionGone.
func (s *Scaling) Verify(ctx context.Context, actions []messages.Action) []providers.Verification {
	found := s.records(ctx, instancesOf(actions))
	looked := map[messages.InstanceID]*record{}
	for id, r := range found {
		// Of a member that does not wait nothing more is to be known.
		if r.err == nil && (r.member == nil || waits(r.member.state)) {
			looked[id] = r
		}
	}
	s.supplement(ctx, looked)
	soon, cancel := context.WithTimeout(ctx, hooksPatience)
	defer cancel()
	out := make([]providers.Verification, len(actions))
	for i, a := range actions {
		out[i] = s.decide(ctx, a, found)
		if out[i].Err == nil && out[i].State == providers.Pending {
			out[i].Shared = s.shared(soon, a)
		}
		if out[i].Err != nil {
			out[i] = providers.Verification{Err: fmt.Errorf("verify %s: %w", a.Token, out[i].Err)}
		}
	}
	return out
}

func instancesOf(actions []messages.Action) []messages.InstanceID {
	var ids []messages.InstanceID
	for _, a := range actions {
		ids = append(ids, a.Instances...)
	}
	return ids
}

// decide compares an action with what the cloud says of its instances. Those that are not
// members can be anywhere else: before they count as gone, the group and a hook of it must
// be where we look.
func (s *Scaling) decide(ctx context.Context, a messages.Action, found map[messages.InstanceID]*record) providers.Verification {
	pending := providers.Verification{State: providers.Pending, InGroup: true}
	for _, id := range a.Instances {
		r := found[id]
		if r.err != nil {
			return providers.Verification{Err: r.err}
		}
		v := look(a, id, r)
		if v.State == providers.Unlisted && r.member == nil {
			if err := s.exists(ctx, a.Group); err != nil {
				return providers.Verification{Err: err}
			}
		}
		if v.State != providers.Pending {
			return v
		}
		in := r.instance(id)
		in.Action = a
		in.Gone = r.machine.state == "terminated" // no step can reach it
		pending.Instances = append(pending.Instances, in)
		pending.Reason = fmt.Sprintf("instance %s is %s in the group", id, in.State)
		if in.Gone {
			pending.Reason += ", and EC2 says that it is terminated"
		}
	}
	return pending
}

// exists gives nil where the group has hooks. One without any gets no messages: it is in
// another region or account, or its name is another.
func (s *Scaling) exists(ctx context.Context, group messages.GroupID) error {
	hooks, err := s.hooks.Get(ctx, group, hooksAge)
	if err == nil && len(hooks) == 0 {
		err = s.noHook(group)
	}
	return err
}

// look is what the cloud says of one instance of an action.
func look(a messages.Action, id messages.InstanceID, r *record) providers.Verification {
	m := r.member
	switch {
	case m == nil && r.machine != nil && r.machine.state != "terminated" && r.machine.state != "shutting-down":
		return providers.Verification{
			State:  providers.Unclear,
			Reason: fmt.Sprintf("the cloud lists instance %s in no group, and EC2 says that it is %s", id, r.machine.state),
		}
	case m == nil:
		return providers.Verification{State: providers.Unlisted, Reason: fmt.Sprintf("the cloud lists instance %s in no group", id)}
	case m.group != a.Group:
		return mismatch(fmt.Sprintf("instance %s is in group %s, not %s", id, m.group, a.Group))
	case waitsFor(a.Transition, m.state) && r.machine == nil:
		// EC2 tells for an hour of one that is terminated. What it does not list is more likely
		// to be new, be it that it is let go already: it may serve, and is not to pass for gone.
		return providers.Verification{State: providers.Unclear, Reason: fmt.Sprintf("EC2 does not list instance %s yet", id)}
	case waitsFor(a.Transition, m.state):
		return providers.Verification{State: providers.Pending}
	case aboutToWait(a.Transition, m.state):
		return providers.Verification{State: providers.Unclear, Reason: fmt.Sprintf("instance %s is %s and does not wait yet", id, m.state)}
	case mayLag(a.Transition, m.state):
		return unlisted(id, m)
	case wentOn(a.Transition, m.state):
		return providers.Verification{State: providers.Over, Reason: fmt.Sprintf("instance %s is %s: its wait is over", id, m.state)}
	}
	return mismatch(fmt.Sprintf("instance %s is %s and does not wait", id, m.state))
}

// unlisted is said of an instance whose wait has not shown in the listing yet, or is long over.
func unlisted(id messages.InstanceID, m *member) providers.Verification {
	return providers.Verification{State: providers.Unlisted, Reason: fmt.Sprintf("instance %s is %s and does not wait", id, m.state)}
}

func mismatch(reason string) providers.Verification {
	return providers.Verification{State: providers.Mismatch, Reason: reason}
}

// hooksPatience is how long Verify and Ended wait for the hooks of groups, all together.
const hooksPatience = 2 * time.Second

// shared says whether another hook's answer may end a's wait: an ABANDON does, of any hook
// of the same transition. Each hook has an action of its own. Where the hooks can't be read it
// may: that costs looks at the action, and holds it up no longer than ctx lasts.
func (s *Scaling) shared(ctx context.Context, a messages.Action) bool {
	hooks, err := s.hooks.Get(ctx, a.Group, hooksAge)
	return err != nil || slices.ContainsFunc(hooks, func(h types.LifecycleHook) bool {
		return aws.ToString(h.LifecycleHookName) != string(a.Hook) && transitions[aws.ToString(h.LifecycleTransition)] == a.Transition
	})
}

// Ended costs one DescribeAutoScalingInstances for each 50 instances. An action is over when
// its instance does not wait any more; that the service does not list one proves nothing.
func (s *Scaling) Ended(ctx context.Context, actions []messages.Action) []providers.Verification {
	found := s.records(ctx, instancesOf(actions))
	soon, cancel := context.WithTimeout(ctx, hooksPatience)
	defer cancel()
	out := make([]providers.Verification, len(actions))
	for i, a := range actions {
		out[i] = ended(a, found)
		if out[i].Err == nil && out[i].State == providers.Pending {
			out[i].Shared = s.shared(soon, a)
		}
		if out[i].Err != nil {
			out[i] = providers.Verification{Err: fmt.Errorf("has %s ended: %w", a.Token, out[i].Err)}
		}
	}
	return out
}

func ended(a messages.Action, found map[messages.InstanceID]*record) providers.Verification {
	for _, id := range a.Instances {
		switch r := found[id]; {
		case r.err != nil:
			return providers.Verification{Err: r.err}
		case r.member == nil:
			return providers.Verification{State: providers.Unlisted, Reason: fmt.Sprintf("the cloud lists instance %s in no group", id)}
		case r.member.group == a.Group && mayLag(a.Transition, r.member.state):
			return unlisted(id, r.member)
		case r.member.group != a.Group || !waitsFor(a.Transition, r.member.state) && !aboutToWait(a.Transition, r.member.state):
			return providers.Verification{State: providers.Over, Reason: fmt.Sprintf("instance %s is %s in group %s", id, r.member.state, r.member.group)}
		}
	}
	return providers.Verification{State: providers.Pending}
}

// The LifecycleStates (Auto Scaling, 2011-01-01) in which a hook holds an instance. On its
// way into a warm pool it waits in Warmed:Pending:Wait, whether it comes from the launch or,
// at scale-in, from service; when its root volume is replaced, in a state of its own.
var waiting = map[messages.Transition][]string{
	messages.ScaleIn:  {"Terminating:Wait", "Warmed:Pending:Wait", "Warmed:Terminating:Wait", "ReplacingRootVolume:Wait"},
	messages.ScaleOut: {"Pending:Wait", "Warmed:Pending:Wait", "ReplacingRootVolume:Wait"},
}

// before are the states just before: the description of an instance may lag behind the hook.
var before = map[messages.Transition][]string{
	messages.ScaleIn:  {"Terminating", "Warmed:Pending", "Warmed:Terminating", "ReplacingRootVolume"},
	messages.ScaleOut: {"Pending", "Warmed:Pending", "ReplacingRootVolume", "RootVolumeReplaced"},
}

// resting are the states of an instance that nothing moves, from which a transition may begin,
// and those of the other transition that one may break off: of one that moves at once no
// state in between may ever show. The instance may be back in them long after the wait.
var resting = map[messages.Transition][]string{
	messages.ScaleIn: {
		"Pending", "Pending:Wait", "Pending:Proceed", "InService", "EnteringStandby", "Standby",
		"Warmed:Stopped", "Warmed:Running", "Warmed:Hibernated",
	},
	messages.ScaleOut: {"Standby", "Warmed:Stopped", "Warmed:Running", "Warmed:Hibernated"},
}

// after are the states that an instance goes through once its wait is over.
var after = map[messages.Transition][]string{
	messages.ScaleIn: {
		"Terminating:Proceed", "Terminating:Retained", "Terminated",
		"Warmed:Pending:Proceed", "Warmed:Pending:Retained",
		"Warmed:Terminating:Proceed", "Warmed:Terminating:Retained", "Warmed:Terminated",
		"ReplacingRootVolume:Proceed", "RootVolumeReplaced",
	},
	messages.ScaleOut: {
		"Pending:Proceed", "InService", "Terminating", "Terminating:Wait", "Terminating:Proceed", "Terminating:Retained", "Terminated",
		"Warmed:Pending:Proceed", "Warmed:Pending:Retained",
		"Warmed:Terminating", "Warmed:Terminating:Wait", "Warmed:Terminating:Proceed", "Warmed:Terminating:Retained", "Warmed:Terminated",
		"ReplacingRootVolume:Proceed", "EnteringStandby", "Detaching", "Detached",
	},
}

func waits(state string) bool {
	return waitsFor(messages.ScaleIn, state) || waitsFor(messages.ScaleOut, state)
}

func waitsFor(t messages.Transition, state string) bool    { return slices.Contains(waiting[t], state) }
func aboutToWait(t messages.Transition, state string) bool { return slices.Contains(before[t], state) }
func mayLag(t messages.Transition, state string) bool      { return slices.Contains(resting[t], state) }
func wentOn(t messages.Transition, state string) bool      { return slices.Contains(after[t], state) }
