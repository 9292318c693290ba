package simulator

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"time"
)

// errActionOver covers an unknown token, the wrong hook, and actions that were
// completed, timed out or cancelled: there is nothing to wait for.
var (
	errActionOver      = &rpcError{status: 400, code: "LifecycleHookIdAndLifecycleActionToken.Invalid", message: "The specified lifecycleActionToken and lifecycleHookId you provided does not match any in process lifecycle action."}
	errTimeExceeded    = &rpcError{status: 400, code: "LifecycleAction.TimeExceeded", message: "The specified parameter heartbeatTime exceed lifecycleAction max suspend time."}
	errRecordTimes     = &rpcError{status: 400, code: "LifecycleAction.RecordTimesExceeded", message: "The specified lifecycleAction exceed lifecycleAction max record times."}
	errGroupNotFound   = &rpcError{status: 404, code: "InvalidScalingGroupId.NotFound", message: "The specified scaling group does not exist."}
	defaultBeatSeconds = 600
)

const essTime = "2006-01-02T15:04Z"

// pendingAction finds the action that the two parameters name, as long as it waits.
func (s *Simulator) pendingAction(hookID, token string) (*action, *rpcError) {
	a := s.actions[actionKey{hookID, token}]
	if a == nil || a.status != actionPending {
		return nil, errActionOver
	}
	return a, nil
}

func (s *Simulator) completeLifecycleAction(_ context.Context, c *rpcCall) (object, *rpcError) {
	hookID, token, result := c.form.Get("LifecycleHookId"), c.form.Get("LifecycleActionToken"), c.form.Get("LifecycleActionResult")
	switch {
	case hookID == "":
		return nil, errMissing("LifecycleHookId")
	case token == "":
		return nil, errMissing("LifecycleActionToken")
	case result != "" && result != resultContinue && result != resultAbandon && result != resultRollback:
		return nil, errInvalidESS("LifecycleActionResult")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, bad := s.replay(c); o != nil || bad != nil {
		return o, bad
	}
	a, bad := s.pendingAction(hookID, token)
	if bad != nil {
		return nil, bad
	}
	if result == "" {
		result = resultContinue // the text of 2014; 2022 says the hook's default
		if c.version == essNew {
			result = a.hook.cfg.DefaultResult
		}
	}
	s.endAction(a, actionCompleted, result, endedByCall)
	return s.remember(c, object{}), nil
}

// recordLifecycleActionHeartbeat reads its parameters in lower case, as the API
// has them; an old sample of the vendor's writes capitals.
func (s *Simulator) recordLifecycleActionHeartbeat(_ context.Context, c *rpcCall) (object, *rpcError) {
	hookID := cmp.Or(c.form.Get("lifecycleHookId"), c.form.Get("LifecycleHookId"))
	token := cmp.Or(c.form.Get("lifecycleActionToken"), c.form.Get("LifecycleActionToken"))
	name := "heartbeatTimeout"
	if !c.form.Has(name) {
		name = "HeartbeatTimeout"
	}
	switch {
	case hookID == "":
		return nil, errMissing("lifecycleHookId")
	case token == "":
		return nil, errMissing("lifecycleActionToken")
	}
	seconds, ok := c.number(name, defaultBeatSeconds, int(minHookTimeout/time.Second), int(maxHookTimeout/time.Second))
	if !ok {
		return nil, errInvalidESS("heartbeatTimeout")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a, bad := s.pendingAction(hookID, token)
	if bad != nil {
		return nil, bad
	}
	return object{}, s.heartbeat(a, time.Duration(seconds)*time.Second)
}

// heartbeat moves the deadline within the budget of 20 calls and 6 hours. A refused
// call costs nothing of it.
func (s *Simulator) heartbeat(a *action, length time.Duration) *rpcError {
	if a.heartbeats >= maxHeartbeats {
		return errRecordTimes
	}
	from := a.deadline
	if *s.scenario.HeartbeatFromNow {
		from = time.Now()
	}
	at := from.Add(length)
	if at.After(a.started.Add(maxWait)) {
		return errTimeExceeded
	}
	a.heartbeats++
	s.setDeadline(a, at)
	s.recordAction(ActionHeartbeat, a)
	return nil
}

func (s *Simulator) describeLifecycleActions(_ context.Context, c *rpcCall) (object, *rpcError) {
	id, status := c.form.Get("ScalingActivityId"), c.form.Get("LifecycleActionStatus")
	switch {
	case id == "":
		return nil, errMissing("ScalingActivityId")
	case status != "" && status != actionPending && status != actionTimeout && status != actionCompleted:
		return nil, errInvalid("LifecycleActionStatus")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []any
	if act, ok := s.activities.get(id); ok {
		for _, a := range act.actions {
			listed := time.Since(a.started) >= s.scenario.Timings.Listing
			if listed && (status == "" || status == a.status) {
				found = append(found, c.lifecycleAction(a))
			}
		}
	}
	part, size, next, bad := window(c, found)
	if bad != nil {
		return nil, bad
	}
	return object{"TotalCount": len(found), "MaxResults": size, "NextToken": next, "LifecycleActions": c.list("LifecycleAction", part)}, nil
}

func (c *rpcCall) lifecycleAction(a *action) object {
	return object{
		"LifecycleHookId": a.hook.cfg.ID, "LifecycleActionToken": a.token, "LifecycleActionStatus": a.status,
		"LifecycleActionResult": a.result, "InstanceIds": c.list("InstanceId", anys(a.activity.ids)),
	}
}

func anys[T any](list []T) []any {
	out := make([]any, len(list))
	for i, v := range list {
		out[i] = v
	}
	return out
}

func (s *Simulator) describeLifecycleHooks(_ context.Context, c *rpcCall) (object, *rpcError) {
	groupID, name, ids := c.form.Get("ScalingGroupId"), c.form.Get("LifecycleHookName"), c.repeated("LifecycleHookId")
	p, bad := c.page(50)
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if groupID != "" && s.group(groupID) == nil {
		return nil, errGroupNotFound
	}
	var found []any
	for _, g := range s.groups {
		for _, h := range g.hooks {
			if (groupID == "" || groupID == g.cfg.ID) && (name == "" || name == h.cfg.Name) && (len(ids) == 0 || slices.Contains(ids, h.cfg.ID)) {
				found = append(found, h.describe())
			}
		}
	}
	o := p.describe(len(found))
	o["LifecycleHooks"] = c.list("LifecycleHook", cut(p, found))
	return o, nil
}

func (h *hook) describe() object {
	return object{
		"LifecycleHookId": h.cfg.ID, "LifecycleHookName": h.cfg.Name, "ScalingGroupId": h.group.cfg.ID,
		"LifecycleTransition": wireTransition[h.cfg.Transition], "DefaultResult": h.cfg.DefaultResult,
		"HeartbeatTimeout": int(h.cfg.HeartbeatTimeout / time.Second), "NotificationArn": h.arn,
		"NotificationMetadata": h.cfg.Metadata, "LifecycleHookStatus": "Active",
	}
}

func (s *Simulator) describeScalingInstances(_ context.Context, c *rpcCall) (object, *rpcError) {
	groupID, ids := c.form.Get("ScalingGroupId"), c.repeated("InstanceId")
	maxPage := 50
	if c.version == essNew {
		maxPage = 100
	}
	p, bad := c.page(maxPage)
	switch {
	case bad != nil:
		return nil, bad
	case c.form.Get("RegionId") == "":
		return nil, errMissing("RegionId")
	case len(ids) > 20:
		return nil, errInvalid("InstanceId")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if groupID != "" && s.group(groupID) == nil {
		return nil, errGroupNotFound
	}
	var found []*instance
	for _, in := range s.candidates(ids) {
		if in.matches(c, groupID) {
			found = append(found, in)
		}
	}
	var items []any
	for _, in := range cut(p, found) {
		items = append(items, s.scalingInstance(in))
	}
	o := p.describe(len(found))
	o["TotalSpotCount"] = 0
	o["ScalingInstances"] = c.list("ScalingInstance", items)
	return o, nil
}

// candidates are the instances with these ids, or all.
func (s *Simulator) candidates(ids []string) []*instance {
	var out []*instance
	if len(ids) > 0 {
		for i, id := range ids {
			if in := s.instances[id]; in != nil && !slices.Contains(ids[:i], id) {
				out = append(out, in)
			}
		}
		return out
	}
	for _, g := range s.groups {
		for e := g.instances.Front(); e != nil; e = e.Next() {
			out = append(out, e.Value.(*instance))
		}
	}
	return out
}

func (in *instance) matches(c *rpcCall, groupID string) bool {
	state, activityID := c.form.Get("LifecycleState"), c.form.Get("ScalingActivityId")
	health, creation := c.form.Get("HealthStatus"), c.form.Get("CreationType")
	return (groupID == "" || groupID == in.group.cfg.ID) &&
		(state == "" || state == in.state) &&
		(health == "" || health == "Healthy") &&
		(creation == "" || creation == "AutoCreated") &&
		(activityID == "" || in.activity != nil && in.activity.id == activityID)
}

func (s *Simulator) scalingInstance(in *instance) object {
	o := object{
		"InstanceId": in.id, "LifecycleState": in.state, "HealthStatus": "Healthy", "ScalingGroupId": in.group.cfg.ID,
		"CreationType": "AutoCreated", "CreationTime": in.created.UTC().Format(essTime), "CreatedTime": in.created.UTC().Format(time.RFC3339),
		"ZoneId": in.zone, "PrivateIpAddress": in.addr.Addr().String(), "Entrusted": false,
		"WarmupState": "NoNeedWarmup", "SpotStrategy": "NoSpot", "WeightedCapacity": 1,
		"InstanceType": "ecs.simulated.large", "ScalingConfigurationId": "asc-simulated", "LoadBalancerWeight": 50,
	}
	if in.activity != nil {
		o["ScalingActivityId"] = in.activity.id
	}
	if !in.known() {
		o["PrivateIpAddress"] = ""
	}
	return o
}

func (s *Simulator) describeScalingActivities(_ context.Context, c *rpcCall) (object, *rpcError) {
	groupID, ids, status := c.form.Get("ScalingGroupId"), c.repeated("ScalingActivityId"), c.form.Get("StatusCode")
	p, bad := c.page(50)
	switch {
	case bad != nil:
		return nil, bad
	case c.form.Get("RegionId") == "":
		return nil, errMissing("RegionId")
	case groupID == "" && len(ids) == 0:
		return nil, errMissing("ScalingGroupId")
	case len(ids) > 20:
		return nil, errInvalid("ScalingActivityId")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if groupID != "" && s.group(groupID) == nil {
		return nil, errGroupNotFound
	}
	var found []any
	for _, act := range slices.Backward(s.activities.values()) { // newest first
		if (groupID == "" || groupID == act.group.cfg.ID) && (len(ids) == 0 || slices.Contains(ids, act.id)) && (status == "" || status == act.status) {
			found = append(found, act.wire())
		}
	}
	o := p.describe(len(found))
	o["ScalingActivities"] = c.list("ScalingActivity", cut(p, found))
	return o, nil
}

func (act *activity) wire() object {
	o := object{
		"ScalingActivityId": act.id, "ScalingGroupId": act.group.cfg.ID, "StatusCode": act.status, "StatusMessage": act.message,
		"Progress": 0, "Cause": act.cause, "Description": act.description, "StartTime": act.start.UTC().Format(essTime),
		"TotalCapacity": strconv.Itoa(act.capacity), "AutoCreatedCapacity": strconv.Itoa(act.capacity), "AttachedCapacity": "0",
		"ScalingInstanceNumber": len(act.ids), "LifecycleHookContext": object{"DisableLifecycleHook": false},
	}
	if !act.end.IsZero() {
		o["Progress"], o["EndTime"] = 100, act.end.UTC().Format(essTime)
	}
	return o
}

func (s *Simulator) describeScalingGroups(_ context.Context, c *rpcCall) (object, *rpcError) {
	ids, name := c.repeated("ScalingGroupId"), c.form.Get("ScalingGroupName")
	p, bad := c.page(50)
	switch {
	case bad != nil:
		return nil, bad
	case c.form.Get("RegionId") == "":
		return nil, errMissing("RegionId")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []any
	for _, g := range s.groups {
		if (len(ids) == 0 || slices.Contains(ids, g.cfg.ID)) && (name == "" || name == g.cfg.Name) {
			found = append(found, s.scalingGroup(c, g))
		}
	}
	o := p.describe(len(found))
	o["ScalingGroups"] = c.list("ScalingGroup", cut(p, found))
	return o, nil
}

func (s *Simulator) scalingGroup(c *rpcCall, g *group) object {
	counts := map[string]int{}
	for e := g.instances.Front(); e != nil; e = e.Next() {
		counts[e.Value.(*instance).state]++
	}
	o := object{
		"ScalingGroupId": g.cfg.ID, "ScalingGroupName": g.cfg.Name, "RegionId": s.scenario.Region, "LifecycleState": "Active",
		"CreationTime": g.created.UTC().Format(essTime), "TotalCapacity": g.instances.Len(), "TotalInstanceCount": g.instances.Len(),
		"ActiveCapacity": counts[stateInService], "PendingCapacity": counts[statePending], "PendingWaitCapacity": counts[statePendingWait],
		"RemovingCapacity": counts[stateRemoving], "RemovingWaitCapacity": counts[stateRemovingWait],
		"MinSize": 0, "MaxSize": maxInstances,
	}
	maps.Copy(o, c.attachedBalancers(g))
	return o
}
