package alibaba

import (
	"context"
	"fmt"
	"strings"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/ess"

	"example.org/usher/messages"
)

// Waiting costs one DescribeScalingActivities for a group at rest, and one
// DescribeLifecycleActions more for each activity that is under way. The group's hooks
// are asked for only if something is pending.
func (s *Scaling) Waiting(ctx context.Context, group messages.GroupID) ([]messages.Action, error) {
	activities, err := s.underWay(ctx, group)
	if err != nil {
		return nil, fmt.Errorf("what waits in group %s: %w", group, err)
	}
	listings := make([]listing, len(activities))
	var tasks []func()
	for i := range activities {
		tasks = append(tasks, func() {
			if listings[i].actions, _, listings[i].err = s.list(ctx, s.region, activities[i]); isUnknownActivity(listings[i].err) {
				listings[i].err = nil // it has ended meanwhile
			}
		})
	}
	atOnce(tasks)

	var waiting []messages.Action
	for i, l := range listings {
		if l.err != nil {
			return nil, fmt.Errorf("what waits in group %s: %w", group, l.err)
		}
		for _, listed := range l.actions {
			if !strings.EqualFold(listed.LifecycleActionStatus, "Pending") || len(listed.InstanceIds.InstanceId) == 0 {
				continue
			}
			a := messages.Action{
				Region: s.region, Group: group, Activity: activities[i],
				Hook: messages.HookID(listed.LifecycleHookId), Token: messages.Token(listed.LifecycleActionToken),
			}
			for _, id := range listed.InstanceIds.InstanceId {
				a.Instances = append(a.Instances, messages.InstanceID(id))
			}
			waiting = append(waiting, a)
		}
	}
	if len(waiting) == 0 {
		return nil, nil
	}
	hooks, err := s.hooks(ctx, group)
	if err != nil {
		return nil, fmt.Errorf("what waits in group %s: %w", group, err)
	}
	for i := range waiting {
		// A hook that was deleted since has ended the wait of its actions.
		h := hooks[waiting[i].Hook]
		waiting[i].HookName, waiting[i].Transition = h.LifecycleHookName, messages.Transition(strings.ToLower(h.LifecycleTransition))
	}
	return waiting, nil
}

// underWay lists the group's activities that are in progress, page by page.
func (s *Scaling) underWay(ctx context.Context, group messages.GroupID) ([]messages.ActivityID, error) {
	var all []messages.ActivityID
	for page := 1; page <= essMaxPages; page++ {
		response, err := invoke(ctx, s.rpc, looks("DescribeScalingActivities"), s.region, func() (acsRequest, *ess.DescribeScalingActivitiesResponse) {
			request := ess.CreateDescribeScalingActivitiesRequest()
			request.ScalingGroupId = string(group)
			request.StatusCode = "InProgress"
			request.PageSize = requests.NewInteger(essPage)
			request.PageNumber = requests.NewInteger(page)
			return request, ess.CreateDescribeScalingActivitiesResponse()
		})
		if err != nil {
			return nil, err
		}
		for _, activity := range response.ScalingActivities.ScalingActivity {
			all = append(all, messages.ActivityID(activity.ScalingActivityId))
		}
		if len(response.ScalingActivities.ScalingActivity) < essPage {
			break
		}
	}
	return all, nil
}

// hooks gives all hooks of the group; ESS allows ten.
func (s *Scaling) hooks(ctx context.Context, group messages.GroupID) (map[messages.HookID]ess.LifecycleHook, error) {
	response, err := invoke(ctx, s.rpc, looks("DescribeLifecycleHooks"), s.region, func() (acsRequest, *ess.DescribeLifecycleHooksResponse) {
		request := ess.CreateDescribeLifecycleHooksRequest()
		request.ScalingGroupId = string(group)
		request.PageSize = requests.NewInteger(essPage)
		return request, ess.CreateDescribeLifecycleHooksResponse()
	})
	if err != nil {
		return nil, err
	}
	hooks := map[messages.HookID]ess.LifecycleHook{}
	for _, h := range response.LifecycleHooks.LifecycleHook {
		hooks[messages.HookID(h.LifecycleHookId)] = h
	}
	return hooks, nil
}
