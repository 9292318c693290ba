package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling"
	"github.com/aws/aws-sdk-go-v2/service/autoscaling/types"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/internal/gather"
)

// The limits of Auto Scaling 2011-01-01.
const (
	// An action waits for so many times its hook's timeout at most, and never longer than 48 hours.
	asgMaxTimeouts = 100
	asgMaxWait     = 48 * time.Hour
	// asgMaxIDs is how many InstanceIds one DescribeAutoScalingInstances takes.
	asgMaxIDs = 50
)

const (
	// lookFor is how long a question about an instance waits for others to share its call.
	lookFor = 50 * time.Millisecond
	// hooksFresh is how old the hooks of a group may be that are shown as they are, and
	// hooksAge how old for all else that depends on them.
	hooksFresh = 5 * time.Second
	hooksAge   = 5 * time.Minute
)

// Scaling is EC2 Auto Scaling as a Lifecycle. What it does not tell of an instance it asks
// of EC2.
type Scaling struct {
	// Answers and heartbeats have rate limits of their own, which what only asks does not
	// use up: the service's refusal of one kind slows that kind.
	asking, beats, answers *wire
	client                 autoscalingCalls
	ec2                    *ec2

	hooks    gather.Cache[messages.GroupID, []types.LifecycleHook]
	members  gather.Gatherer[messages.InstanceID, *member]
	machines gather.Gatherer[messages.InstanceID, *machine]
	running  sync.WaitGroup // of these three
}

var _ providers.Lifecycle = (*Scaling)(nil)

// member is what Auto Scaling says of an instance that is in a group.
type member struct {
	group       messages.GroupID
	state, zone string
}

// NewScaling makes a client of Auto Scaling in o.Region. It does not call the service.
func NewScaling(o Options) (*Scaling, error) {
	w, err1 := o.newWire("autoscaling", "AutoScalingEndpoint", o.AutoScalingEndpoint)
	e, err2 := newEC2(o)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	s := &Scaling{asking: w, beats: w.apart(), answers: w.apart(), client: newAutoScalingCalls(autoscaling.NewFromConfig(w.config())), ec2: e}
	s.hooks.Running, s.hooks.Load = &s.running, s.listHooks
	s.members.Running, s.members.Moment, s.members.Run = &s.running, lookFor, s.describeMembers
	s.machines.Running, s.machines.Moment, s.machines.Run = &s.running, lookFor, s.describeMachines
	return s, nil
}

// Close waits for calls whose callers have gone, and drops idle connections. No call may be
// made after it.
func (s *Scaling) Close() {
	s.running.Wait()
	s.asking.close()
	s.ec2.close()
}

// autoscaling gives the carrier to a call.
func (c *carrier) autoscaling(o *autoscaling.Options) {
	o.HTTPClient, o.Retryer, o.Credentials = c, c, c
}

// looks is an operation that only looks: IAM allows those of Auto Scaling on everything or
// not at all.
func (s *Scaling) looks(name string) operation {
	return operation{name: name, permission: "autoscaling:" + name, resource: "*"}
}

// changes is an operation on a group.
func (s *Scaling) changes(name string, group messages.GroupID) operation {
	return operation{
		name: name, permission: "autoscaling:" + name, missing: s.wrongPlace(group),
		resource: s.asking.arn("autoscaling", "", "autoScalingGroup:*:autoScalingGroupName/"+string(group)),
	}
}

// wrongPlace is the hint for a group that is not there.
func (s *Scaling) wrongPlace(group messages.GroupID) string {
	return fmt.Sprintf("check that the region %s and the account of these keys have the group %s with this hook: region, scaling_group, assume_role", s.asking.region, group)
}

// Limits is 100 times the hook's timeout and 48 hours at most. Each heartbeat gives the
// hook's own timeout, counted from the heartbeat.
func (s *Scaling) Limits(hookTimeout time.Duration) providers.HeartbeatLimits {
	return providers.HeartbeatLimits{
		Calls: asgMaxTimeouts, MaxWait: min(asgMaxWait, asgMaxTimeouts*hookTimeout),
		MinExtension: hookTimeout, MaxExtension: hookTimeout,
	}
}

// Waiting has nothing to do: no operation of Auto Scaling tells the tokens of actions.
func (s *Scaling) Waiting(context.Context, messages.GroupID) ([]messages.Action, error) {
	return nil, fmt.Errorf("list the actions that wait: %w", providers.ErrUnsupported)
}

// listHooks sends DescribeLifecycleHooks for all hooks of a group.
func (s *Scaling) listHooks(ctx context.Context, group messages.GroupID) ([]types.LifecycleHook, error) {
	op := s.looks("DescribeLifecycleHooks")
	op.missing = s.wrongPlace(group)
	out, _, err := invoke(ctx, s.asking, op, func(ctx context.Context, c *carrier) (*autoscaling.DescribeLifecycleHooksOutput, error) {
		return s.client.DescribeLifecycleHooks(ctx, &autoscaling.DescribeLifecycleHooksInput{AutoScalingGroupName: (*string)(&group)}, c.autoscaling)
	})
	if err != nil {
		return nil, err
	}
	return out.LifecycleHooks, nil
}

// Hook reads one hook with DescribeLifecycleHooks.
func (s *Scaling) Hook(ctx context.Context, group messages.GroupID, hook messages.HookID) (providers.Hook, error) {
	h, err := s.hook(ctx, group, hook, hooksFresh)
	if err != nil {
		return providers.Hook{}, fmt.Errorf("hook %s of group %s: %w", hook, group, err)
	}
	return providers.Hook{
		ID: hook, Name: string(hook), Group: group,
		Transition:    transitions[aws.ToString(h.LifecycleTransition)],
		Timeout:       time.Duration(aws.ToInt32(h.HeartbeatTimeout)) * time.Second,
		DefaultResult: messages.Result(aws.ToString(h.DefaultResult)),
	}, nil
}

var transitions = map[string]messages.Transition{
	"autoscaling:EC2_INSTANCE_TERMINATING": messages.ScaleIn,
	"autoscaling:EC2_INSTANCE_LAUNCHING":   messages.ScaleOut,
}

func (s *Scaling) hook(ctx context.Context, group messages.GroupID, hook messages.HookID, age time.Duration) (types.LifecycleHook, error) {
	hooks, err := s.hooks.Get(ctx, group, age)
	if err != nil {
		return types.LifecycleHook{}, err
	}
	for _, h := range hooks {
		if aws.ToString(h.LifecycleHookName) == string(hook) {
			return h, nil
		}
	}
	return types.LifecycleHook{}, s.noHook(group)
}

func (s *Scaling) noHook(group messages.GroupID) error {
	return &providers.Error{
		Op: "DescribeLifecycleHooks", Kind: providers.ErrNotFound, Hint: s.wrongPlace(group), Untouched: true,
		Message: "the answer has no such hook",
	}
}

// Heartbeat sends RecordLifecycleActionHeartbeat, which lets the wait begin anew with the
// hook's timeout, whatever d is. It is repeated like any call: heartbeats do not count here,
// only the time does. Until counts with the hook's timeout where the hook was read in the
// last minutes, and else with d, which the caller has from the same hook. The end of all
// waiting, see Limits, is not looked at.
func (s *Scaling) Heartbeat(ctx context.Context, a messages.Action, d time.Duration) (providers.Grant, error) {
	_, c, err := invoke(ctx, s.beats, s.changes("RecordLifecycleActionHeartbeat", a.Group), func(ctx context.Context, c *carrier) (*autoscaling.RecordLifecycleActionHeartbeatOutput, error) {
		return s.client.RecordLifecycleActionHeartbeat(ctx, &autoscaling.RecordLifecycleActionHeartbeatInput{
			AutoScalingGroupName: (*string)(&a.Group), LifecycleHookName: (*string)(&a.Hook), LifecycleActionToken: (*string)(&a.Token), InstanceId: instanceOf(a),
		}, c.autoscaling)
	})
	if err != nil {
		return providers.Grant{}, fmt.Errorf("heartbeat of %s: %w", a.Token, err)
	}
	return providers.Grant{Until: c.sent.Add(s.timeout(a, d)), RequestID: c.requestID()}, nil
}

// instanceOf is the one instance that an action has. It is sent along with the token: a message that
// gives a true token another instance must not have the action prolonged, or answered, for what was
// done to that one. The service takes both (2011-01-01); that it compares them is not documented.
func instanceOf(a messages.Action) *string {
	if len(a.Instances) != 1 {
		return nil
	}
	return (*string)(&a.Instances[0])
}

// timeout is that of an action's hook, as far as it is known without asking.
func (s *Scaling) timeout(a messages.Action, otherwise time.Duration) time.Duration {
	hooks, ok := s.hooks.Peek(a.Group, hooksAge)
	if !ok {
		return otherwise
	}
	for _, h := range hooks {
		if aws.ToString(h.LifecycleHookName) == string(a.Hook) && h.HeartbeatTimeout != nil {
			return time.Duration(*h.HeartbeatTimeout) * time.Second
		}
	}
	return otherwise
}

// Complete sends CompleteLifecycleAction. Auto Scaling refuses the second one of an action
// as it refuses one that was never there. When an attempt of this call was lost and the
// next is refused so, then the lost one had its effect: that is a success. It may be wrong
// when the wait ran out between the two, a second or so apart, which changes nothing.
func (s *Scaling) Complete(ctx context.Context, a messages.Action, r messages.Result) (string, error) {
	if r != messages.Continue && r != messages.Abandon {
		return "", fmt.Errorf("complete %s with %s: %w", a.Token, r, &providers.Error{
			Op: "CompleteLifecycleAction", Kind: providers.ErrInvalid, Untouched: true, Message: "AWS knows CONTINUE and ABANDON",
		})
	}
	_, c, err := invoke(ctx, s.answers, s.changes("CompleteLifecycleAction", a.Group), func(ctx context.Context, c *carrier) (*autoscaling.CompleteLifecycleActionOutput, error) {
		return s.client.CompleteLifecycleAction(ctx, &autoscaling.CompleteLifecycleActionInput{
			AutoScalingGroupName: (*string)(&a.Group), LifecycleHookName: (*string)(&a.Hook), LifecycleActionToken: (*string)(&a.Token), InstanceId: instanceOf(a),
			LifecycleActionResult: (*string)(&r),
		}, c.autoscaling)
	})
	if errors.Is(err, providers.ErrActionGone) && !providers.Untouched(err) {
		return providers.RequestID(err), nil
	}
	if err != nil {
		return "", fmt.Errorf("complete %s with %s: %w", a.Token, r, err)
	}
	return c.requestID(), nil
}

// describeMembers sends DescribeAutoScalingInstances, 50 ids in one call. It leaves out what
// the service does not list.
func (s *Scaling) describeMembers(ctx context.Context, ids []messages.InstanceID) map[messages.InstanceID]gather.Outcome[*member] {
	return inChunks(ids, asgMaxIDs, func(chunk []messages.InstanceID) (map[messages.InstanceID]*member, error) {
		in := &autoscaling.DescribeAutoScalingInstancesInput{}
		for _, id := range chunk {
			in.InstanceIds = append(in.InstanceIds, string(id))
		}
		out, _, err := invoke(ctx, s.asking, s.looks("DescribeAutoScalingInstances"), func(ctx context.Context, c *carrier) (*autoscaling.DescribeAutoScalingInstancesOutput, error) {
			return s.client.DescribeAutoScalingInstances(ctx, in, c.autoscaling)
		})
		if err != nil {
			return nil, err
		}
		if out.NextToken != nil {
			return nil, &providers.Error{Op: "DescribeAutoScalingInstances", Kind: providers.ErrUnavailable, Message: "the answer has further pages for 50 ids"}
		}
		found := map[messages.InstanceID]*member{}
		for _, in := range out.AutoScalingInstances {
			found[messages.InstanceID(aws.ToString(in.InstanceId))] = &member{
				group: messages.GroupID(aws.ToString(in.AutoScalingGroupName)), state: aws.ToString(in.LifecycleState), zone: aws.ToString(in.AvailabilityZone),
			}
		}
		return found, nil
	})
}

// describeMachines asks EC2, and leaves out what it does not list.
func (s *Scaling) describeMachines(ctx context.Context, ids []messages.InstanceID) map[messages.InstanceID]gather.Outcome[*machine] {
	return inChunks(ids, ec2MaxIDs, func(chunk []messages.InstanceID) (map[messages.InstanceID]*machine, error) {
		found, err := s.ec2.machines(ctx, chunk)
		pointers := map[messages.InstanceID]*machine{}
		for id, m := range found {
			pointers[id] = &m
		}
		return pointers, err
	})
}

// inChunks asks for many ids, several calls at a time.
func inChunks[V any](ids []messages.InstanceID, most int, ask func([]messages.InstanceID) (map[messages.InstanceID]V, error)) map[messages.InstanceID]gather.Outcome[V] {
	var mu sync.Mutex
	out := map[messages.InstanceID]gather.Outcome[V]{}
	var tasks []func()
	for chunk := range slices.Chunk(ids, most) {
		tasks = append(tasks, func() {
			found, err := ask(chunk)
			mu.Lock()
			defer mu.Unlock()
			for _, id := range chunk {
				if err != nil {
					out[id] = gather.Outcome[V]{Err: err}
				} else if v, ok := found[id]; ok {
					out[id] = gather.Outcome[V]{Value: v}
				}
			}
		})
	}
	atOnce(tasks)
	return out
}

// record is what the cloud says of an instance: an error, or what Auto Scaling and, where
// it was asked, EC2 know.
type record struct {
	err     error
	member  *member
	machine *machine
}

// records looks instances up at Auto Scaling.
func (s *Scaling) records(ctx context.Context, ids []messages.InstanceID) map[messages.InstanceID]*record {
	found := map[messages.InstanceID]*record{}
	for _, id := range ids {
		found[id] = &record{}
	}
	each(found, func(id messages.InstanceID, r *record) { r.member, r.err = s.members.Do(ctx, id) })
	return found
}

// supplement asks EC2 about some of them.
func (s *Scaling) supplement(ctx context.Context, found map[messages.InstanceID]*record) {
	each(found, func(id messages.InstanceID, r *record) {
		if r.err == nil {
			r.machine, r.err = s.machines.Do(ctx, id)
		}
	})
}

// each runs f for all at the same time: those who ask share calls, so that none may wait
// for another.
func each(found map[messages.InstanceID]*record, f func(messages.InstanceID, *record)) {
	var wg sync.WaitGroup
	for id, r := range found {
		wg.Go(func() { f(id, r) })
	}
	wg.Wait()
}

// instance translates a record. EC2 lists a terminated instance for about an hour.
func (r *record) instance(id messages.InstanceID) messages.Instance {
	out := messages.Instance{ID: id, Gone: r.member == nil && (r.machine == nil || r.machine.state == "terminated")}
	if r.machine != nil {
		out.PrivateIP, out.Zone, out.State = r.machine.address(), r.machine.zone, r.machine.state
	}
	if r.member != nil {
		out.Zone, out.State = cmp.Or(r.member.zone, out.Zone), r.member.state
	}
	return out
}

// Instances looks instances up with DescribeAutoScalingInstances and DescribeInstances.
func (s *Scaling) Instances(ctx context.Context, region string, ids []messages.InstanceID) ([]messages.Instance, error) {
	if err := s.here(region); err != nil {
		return nil, fmt.Errorf("instances: %w", err)
	}
	found := s.records(ctx, ids)
	s.supplement(ctx, found)
	out := make([]messages.Instance, len(ids))
	for i, id := range ids {
		if err := found[id].err; err != nil {
			return nil, fmt.Errorf("instances: %w", err)
		}
		out[i] = found[id].instance(id)
	}
	return out, nil
}

// Tags reads the tags of instances with DescribeInstances.
func (s *Scaling) Tags(ctx context.Context, region string, ids []messages.InstanceID) (map[messages.InstanceID]map[string]string, error) {
	if err := s.here(region); err != nil {
		return nil, fmt.Errorf("read tags: %w", err)
	}
	found := map[messages.InstanceID]*record{}
	for _, id := range ids {
		found[id] = &record{}
	}
	s.supplement(ctx, found)
	tags := map[messages.InstanceID]map[string]string{}
	for id, r := range found {
		if r.err != nil {
			return nil, fmt.Errorf("read tags: %w", r.err)
		}
		if r.machine != nil {
			tags[id] = maps.Clone(r.machine.tags)
		}
	}
	return tags, nil
}

// here refuses another region than the client's: endpoints and keys are for one.
func (s *Scaling) here(region string) error {
	if region == "" || region == s.asking.region {
		return nil
	}
	return &providers.Error{
		Op: "DescribeInstances", Kind: providers.ErrInvalid, Untouched: true, Message: fmt.Sprintf("this client is for %s, not for %s", s.asking.region, region),
	}
}

// GroupsOf asks with DescribeAutoScalingInstances, 50 instances in one call.
func (s *Scaling) GroupsOf(ctx context.Context, ids []messages.InstanceID) (map[messages.InstanceID]messages.GroupID, error) {
	groups := map[messages.InstanceID]messages.GroupID{}
	for id, r := range s.records(ctx, ids) {
		if r.err != nil {
			return nil, fmt.Errorf("find the groups of instances: %w", r.err)
		}
		if r.member != nil {
			groups[id] = r.member.group
		}
	}
	return groups, nil
}
