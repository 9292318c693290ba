package simulator

import (
	"cmp"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

var autoscalingOperations = map[string]awsOperation{
	"CompleteLifecycleAction":             (*Simulator).awsCompleteLifecycleAction,
	"RecordLifecycleActionHeartbeat":      (*Simulator).awsRecordHeartbeat,
	"DescribeLifecycleHooks":              (*Simulator).awsDescribeLifecycleHooks,
	"PutLifecycleHook":                    (*Simulator).awsPutLifecycleHook,
	"DeleteLifecycleHook":                 (*Simulator).awsDeleteLifecycleHook,
	"DescribeAutoScalingInstances":        (*Simulator).awsDescribeAutoScalingInstances,
	"DescribeAutoScalingGroups":           (*Simulator).awsDescribeAutoScalingGroups,
	"TerminateInstanceInAutoScalingGroup": (*Simulator).awsTerminateInstance,
	"SetDesiredCapacity":                  (*Simulator).awsSetDesiredCapacity,
}

// The limits of Auto Scaling 2011-01-01.
const (
	maxScalingName       = 255
	maxScalingInstanceID = 19
	scalingTokenLength   = 36
	maxScalingIDs        = 50
	maxScalingRecords    = 50
	maxGroupRecords      = 100
	maxTerminateIDs      = 100
)

// autoscalingResources names what a call is about, as policies do; a Describe call is about "*".
func (s *Simulator) autoscalingResources(c *awsCall) []string {
	if lists(c.action) {
		return []string{"*"}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g := s.group(c.text("AutoScalingGroupName"))
	if g == nil && c.has("InstanceId") {
		if in := s.instances[c.text("InstanceId")]; in != nil {
			g = in.group
		}
	}
	if g == nil {
		return []string{s.awsARN("autoscaling", "autoScalingGroup:*:autoScalingGroupName/"+c.text("AutoScalingGroupName"))}
	}
	return []string{s.autoScalingGroupARN(g)}
}

func errScaling(format string, args ...any) *awsError {
	return &awsError{status: 400, code: "ValidationError", message: fmt.Sprintf(format, args...)}
}

// errConstraint is how Auto Scaling refuses a parameter by its model. Value is null where it
// is missing.
func errConstraint(value, name, constraint string) *awsError {
	if value != "null" {
		value = "'" + value + "'"
	}
	name = strings.ToLower(name[:1]) + name[1:]
	return errScaling("1 validation error detected: Value %s at '%s' failed to satisfy constraint: %s", value, name, constraint)
}

func errScalingGroup(name string) *awsError {
	return errScaling("AutoScalingGroup name not found - AutoScalingGroup '%s' not found", name)
}

func errNoInstance(id string) *awsError {
	return errScaling("Instance Id not found - No managed instance found for instance ID: %s", id)
}

// name reads a required name.
func (c *awsCall) name255(parameter string) (string, *awsError) {
	v := c.text(parameter)
	switch {
	case v == "":
		return "", errConstraint("null", parameter, "Member must not be null")
	case len(v) > maxScalingName:
		return "", errConstraint(v, parameter, "Member must have length less than or equal to 255")
	}
	return v, nil
}

// integer reads an integer within bounds; def when it is absent.
func (c *awsCall) integer(name string, def, low, high int) (int, *awsError) {
	if !c.has(name) {
		return def, nil
	}
	n, err := strconv.Atoi(c.text(name))
	switch {
	case err != nil:
		return 0, &awsError{status: 400, code: "MalformedInput", message: "Could not parse " + name + " as an integer."}
	case n < low:
		return 0, errConstraint(c.text(name), name, fmt.Sprintf("Member must have value greater than or equal to %d", low))
	case n > high:
		return 0, errConstraint(c.text(name), name, fmt.Sprintf("Member must have value less than or equal to %d", high))
	}
	return n, nil
}

// boolean reads true or false; absent is an error where it is required, else false.
func (c *awsCall) boolean(name string, required bool) (bool, *awsError) {
	switch v := c.text(name); {
	case v == "" && !required:
		return false, nil
	case v == "":
		return false, errConstraint("null", name, "Member must not be null")
	case v == "true" || v == "false":
		return v == "true", nil
	}
	return false, &awsError{status: 400, code: "MalformedInput", message: "Could not parse " + name + " as a boolean."}
}

// scalingGroupOf finds the group that a call names. The caller holds s.mu.
func (s *Simulator) scalingGroupOf(c *awsCall) (*group, *awsError) {
	name, bad := c.name255("AutoScalingGroupName")
	if bad != nil {
		return nil, bad
	}
	g := s.group(name)
	if g == nil {
		return nil, errScalingGroup(name)
	}
	return g, nil
}

func (g *group) hook(name string) *hook {
	for _, h := range g.hooks {
		if h.cfg.ID == name {
			return h
		}
	}
	return nil
}

// waitingAction finds the action that a call names by its token, or by the instance whose hook
// it is. The caller holds s.mu.
func (s *Simulator) waitingAction(c *awsCall) (*action, *awsError) {
	name, bad := c.name255("LifecycleHookName")
	if bad != nil {
		return nil, bad
	}
	token, id := c.text("LifecycleActionToken"), c.text("InstanceId")
	switch {
	case c.has("LifecycleActionToken") && len(token) < scalingTokenLength:
		return nil, errConstraint(token, "LifecycleActionToken", "Member must have length greater than or equal to 36")
	case len(token) > scalingTokenLength:
		return nil, errConstraint(token, "LifecycleActionToken", "Member must have length less than or equal to 36")
	case c.has("InstanceId") && id == "":
		return nil, errConstraint(id, "InstanceId", "Member must have length greater than or equal to 1")
	case len(id) > maxScalingInstanceID:
		return nil, errConstraint(id, "InstanceId", "Member must have length less than or equal to 19")
	case token == "" && id == "":
		return nil, errScaling("You must specify either LifecycleActionToken or InstanceId")
	}
	g, bad := s.scalingGroupOf(c)
	if bad != nil {
		return nil, bad
	}
	if g.hook(name) == nil {
		return nil, errScaling("Lifecycle hook '%s' not found for AutoScalingGroup '%s'", name, g.cfg.ID)
	}
	if token != "" {
		a := s.actions[actionKey{name, token}]
		if a == nil || a.status != actionPending || a.hook.group != g || id != "" && a.activity.ids[0] != id {
			return nil, errScaling("No active Lifecycle Action found with token %s", token)
		}
		return a, nil
	}
	if a := s.waitingOf(g, name, id); a != nil {
		return a, nil
	}
	return nil, errScaling("No active Lifecycle Action found with instance ID %s", id)
}

// waitingOf is the action of a hook that an instance waits for; nil: none.
func (s *Simulator) waitingOf(g *group, hookName, id string) *action {
	in := s.instances[id]
	if in == nil || in.group != g || in.activity == nil {
		return nil
	}
	for _, a := range in.activity.actions {
		if a.hook.cfg.ID == hookName && a.status == actionPending {
			return a
		}
	}
	return nil
}

func (s *Simulator) awsCompleteLifecycleAction(c *awsCall) (awsAnswer, *awsError) {
	result := c.text("LifecycleActionResult")
	switch {
	case result == "":
		return nil, errConstraint("null", "LifecycleActionResult", "Member must not be null")
	case result != resultContinue && result != resultAbandon:
		return nil, errScaling("Lifecycle Action Result must be %s or %s, not %s", resultContinue, resultAbandon, result)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a, bad := s.waitingAction(c)
	if bad != nil {
		return nil, bad
	}
	s.endAction(a, actionCompleted, result, endedByCall)
	return &struct{}{}, nil
}

func (s *Simulator) awsRecordHeartbeat(c *awsCall) (awsAnswer, *awsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, bad := s.waitingAction(c)
	if bad != nil {
		return nil, bad
	}
	s.prolongAWS(a)
	return &struct{}{}, nil
}

type hookAnswer struct {
	AutoScalingGroupName  string
	LifecycleHookName     string
	LifecycleTransition   string
	NotificationTargetARN string `xml:",omitempty"`
	RoleARN               string `xml:",omitempty"`
	NotificationMetadata  string `xml:",omitempty"`
	HeartbeatTimeout      int
	GlobalTimeout         int
	DefaultResult         string
}

func (s *Simulator) awsDescribeLifecycleHooks(c *awsCall) (awsAnswer, *awsError) {
	asked := c.members("LifecycleHookNames")
	if len(asked) > maxScalingIDs {
		return nil, errConstraint(fmt.Sprint(asked), "LifecycleHookNames", "Member must have length less than or equal to 50")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.scalingGroupOf(c)
	if bad != nil {
		return nil, bad
	}
	out := &struct{ LifecycleHooks memberList[hookAnswer] }{}
	for _, h := range g.hooks {
		if len(asked) == 0 || slices.Contains(asked, h.cfg.ID) {
			out.LifecycleHooks.Items = append(out.LifecycleHooks.Items, s.hookAnswer(h))
		}
	}
	return out, nil
}

func (s *Simulator) hookAnswer(h *hook) hookAnswer {
	a := hookAnswer{
		AutoScalingGroupName: h.group.cfg.ID, LifecycleHookName: h.cfg.ID, LifecycleTransition: awsTransition[h.cfg.Transition],
		NotificationTargetARN: h.arn, RoleARN: h.role, NotificationMetadata: h.cfg.Metadata,
		HeartbeatTimeout: wholeSeconds(h.cfg.HeartbeatTimeout), GlobalTimeout: wholeSeconds(h.cfg.maxWaitAWS()), DefaultResult: h.cfg.DefaultResult,
	}
	return a
}

// awsPutLifecycleHook makes a hook or changes one. Actions that wait go on under the old terms;
// whether they do at the service is not documented (unconfirmed).
func (s *Simulator) awsPutLifecycleHook(c *awsCall) (awsAnswer, *awsError) {
	name, bad := c.name255("LifecycleHookName")
	if bad != nil {
		return nil, bad
	}
	if !awsHookPattern.MatchString(name) {
		return nil, errConstraint(name, "LifecycleHookName", `Member must satisfy regular expression pattern: [A-Za-z0-9\-_\/]+`)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.scalingGroupOf(c)
	if bad != nil {
		return nil, bad
	}
	old := g.hook(name)
	h := &hook{group: g, cfg: HookConfig{ID: name, Name: name, HeartbeatTimeout: time.Hour, DefaultResult: resultAbandon, Encoding: "plain", Delivery: deliverDirect}}
	if old != nil {
		h.cfg, h.arn, h.role = old.cfg, old.arn, old.role
	} else if len(g.hooks) >= maxAWSHooks {
		return nil, &awsError{status: 400, code: "LimitExceeded", message: "You have reached your limit of 50 lifecycle hooks for this Auto Scaling group."}
	}
	if bad := s.changeHook(c, h, old == nil); bad != nil {
		return nil, bad
	}
	if i := slices.Index(g.hooks, old); i >= 0 {
		g.hooks[i] = h
	} else {
		g.hooks = append(g.hooks, h)
	}
	if c.text("NotificationTargetARN") != "" {
		s.sendTest(h)
	}
	return &struct{}{}, nil
}

// changeHook sets what a call says of a hook.
func (s *Simulator) changeHook(c *awsCall, h *hook, isNew bool) *awsError {
	seconds, bad := c.integer("HeartbeatTimeout", wholeSeconds(h.cfg.HeartbeatTimeout), int(minHookTimeout/time.Second), int(maxAWSHookTimeout/time.Second))
	if bad != nil {
		return bad
	}
	if c.has("HeartbeatTimeout") {
		h.cfg.HeartbeatTimeout = time.Duration(seconds) * time.Second
	}
	switch transition := c.text("LifecycleTransition"); transition {
	case "":
		if isNew {
			return errScaling("LifecycleTransition is required when creating a lifecycle hook")
		}
	case awsTransition[scaleIn]:
		h.cfg.Transition = scaleIn
	case awsTransition[scaleOut]:
		h.cfg.Transition = scaleOut
	default:
		return errScaling("Lifecycle Transition must be %s or %s, not %s", awsTransition[scaleOut], awsTransition[scaleIn], transition)
	}
	switch result := c.text("DefaultResult"); result {
	case "":
	case resultContinue, resultAbandon:
		h.cfg.DefaultResult = result
	default:
		return errScaling("Default Result must be %s or %s, not %s", resultContinue, resultAbandon, result)
	}
	if c.has("NotificationMetadata") {
		text := c.text("NotificationMetadata")
		if len(text) > maxAWSMetadata || !isASCII(text) {
			return errConstraint(text, "NotificationMetadata", "Member must have length between 1 and 4000 of printable ASCII")
		}
		h.cfg.Metadata = text
	}
	return s.changeTarget(c, h)
}

// changeTarget sets what a call says of a hook's target; an empty one clears it.
func (s *Simulator) changeTarget(c *awsCall, h *hook) *awsError {
	if c.has("RoleARN") {
		h.role = c.text("RoleARN")
	}
	if !c.has("NotificationTargetARN") {
		return nil
	}
	arn := c.text("NotificationTargetARN")
	if arn == "" {
		h.arn, h.cfg.Queue = "", ""
		return nil
	}
	queue, delivery, ok := s.deliveryOf(arn)
	switch {
	case !ok:
		return errScaling("Unable to publish test message to notification target %s using IAM role %s. Please check your target and role configuration and try to put lifecycle hook again.", arn, h.role)
	case h.role == "":
		return errScaling("RoleARN is required with a NotificationTargetARN")
	}
	if h.cfg.bus() && delivery == deliverDirect {
		delivery = deliverBoth
	}
	h.arn, h.cfg.Queue, h.cfg.Target, h.cfg.Delivery = arn, queue, "", delivery
	return nil
}

// awsDeleteLifecycleHook ends what waits for the hook first.
func (s *Simulator) awsDeleteLifecycleHook(c *awsCall) (awsAnswer, *awsError) {
	name, bad := c.name255("LifecycleHookName")
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.scalingGroupOf(c)
	if bad != nil {
		return nil, bad
	}
	h := g.hook(name)
	if h == nil {
		return nil, errScaling("No Lifecycle Hook found with name: %s", name)
	}
	g.hooks = slices.DeleteFunc(slices.Clone(g.hooks), func(o *hook) bool { return o == h })
	result := map[string]string{scaleIn: resultContinue, scaleOut: resultAbandon}[h.cfg.Transition]
	for _, act := range s.activities.values() {
		for _, a := range act.actions {
			if act.group == g && a.hook.cfg.ID == name && a.status == actionPending {
				s.endAction(a, actionCompleted, result, endedByCall)
			}
		}
	}
	return &struct{}{}, nil
}

type templateAnswer struct{ LaunchTemplateId, LaunchTemplateName, Version string }

type scalingInstanceAnswer struct {
	InstanceID           string `xml:"InstanceId"`
	InstanceType         string
	AutoScalingGroupName string `xml:",omitempty"`
	AvailabilityZone     string
	LifecycleState       string
	HealthStatus         string
	ProtectedFromScaleIn bool
	LaunchTemplate       templateAnswer
}

func scalingInstanceAnswerOf(in *instance, group, health string) scalingInstanceAnswer {
	return scalingInstanceAnswer{
		InstanceID: in.id, InstanceType: awsInstanceType, AutoScalingGroupName: group, AvailabilityZone: in.zone,
		LifecycleState: in.state, HealthStatus: health, LaunchTemplate: templateAnswer{awsTemplate, in.group.cfg.ID, "1"},
	}
}

func (s *Simulator) awsDescribeAutoScalingInstances(c *awsCall) (awsAnswer, *awsError) {
	ids := c.members("InstanceIds")
	if len(ids) > maxScalingIDs {
		return nil, errConstraint(fmt.Sprint(ids), "InstanceIds", "Member must have length less than or equal to 50")
	}
	size, bad := c.integer("MaxRecords", maxScalingRecords, 1, maxScalingRecords)
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	part, next, bad := awsPage(c, s.candidates(ids), size)
	if bad != nil {
		return nil, bad
	}
	out := &struct {
		AutoScalingInstances memberList[scalingInstanceAnswer]
		NextToken            string `xml:",omitempty"`
	}{NextToken: next}
	for _, in := range part {
		answer := scalingInstanceAnswerOf(in, in.group.cfg.ID, "HEALTHY")
		answer.LifecycleState = s.listedState(in)
		out.AutoScalingInstances.Items = append(out.AutoScalingInstances.Items, answer)
	}
	return out, nil
}

// listedState is the state of an instance as listings tell it, which lag behind its hooks.
func (s *Simulator) listedState(in *instance) string {
	act := in.activity
	if act == nil || len(act.actions) == 0 || in.state != act.way.waiting || time.Since(act.actions[0].started) >= s.scenario.Timings.Listing {
		return in.state
	}
	return cmp.Or(in.before, act.way.moving)
}

// awsPage cuts a part out of a list by NextToken.
func awsPage[T any](c *awsCall, all []T, size int) (part []T, next string, bad *awsError) {
	from := 0
	if token := c.text("NextToken"); token != "" {
		text, err := base64.URLEncoding.DecodeString(token)
		if err == nil {
			from, err = strconv.Atoi(string(text))
		}
		if err != nil || from < 0 || from > len(all) {
			return nil, "", &awsError{status: 400, code: "InvalidNextToken", message: "The token '" + token + "' is invalid."}
		}
	}
	to := min(from+size, len(all))
	if to < len(all) {
		next = base64.URLEncoding.EncodeToString([]byte(strconv.Itoa(to)))
	}
	return all[from:to], next, nil
}

type scalingGroupAnswer struct {
	AutoScalingGroupName    string
	AutoScalingGroupARN     string
	MinSize                 int
	MaxSize                 int
	DesiredCapacity         int
	DefaultCooldown         int
	AvailabilityZones       memberList[string]
	LoadBalancerNames       memberList[string]
	TargetGroupARNs         memberList[string]
	TrafficSources          memberList[trafficSourceAnswer]
	HealthCheckType         string
	HealthCheckGracePeriod  int
	Instances               memberList[scalingInstanceAnswer]
	CreatedTime             string
	VPCZoneIdentifier       string
	TerminationPolicies     memberList[string]
	Tags                    memberList[scalingTagAnswer]
	ServiceLinkedRoleARN    string
	WarmPoolConfiguration   *warmPoolAnswer
	WarmPoolSize            int                    `xml:",omitempty"`
	InstanceLifecyclePolicy *lifecyclePolicyAnswer `xml:",omitempty"`
}

type trafficSourceAnswer struct{ Identifier, Type string }

type scalingTagAnswer struct {
	Key, Value, ResourceId, ResourceType string
	PropagateAtLaunch                    bool
}

type warmPoolAnswer struct {
	MinSize             int
	PoolState           string
	InstanceReusePolicy struct{ ReuseOnScaleIn bool }
}

type lifecyclePolicyAnswer struct {
	RetentionTriggers struct{ TerminateHookAbandon string }
}

func (s *Simulator) awsDescribeAutoScalingGroups(c *awsCall) (awsAnswer, *awsError) {
	asked := c.members("AutoScalingGroupNames")
	size, bad := c.integer("MaxRecords", maxScalingRecords, 1, maxGroupRecords)
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*group
	for _, g := range s.groups {
		if len(asked) == 0 || slices.Contains(asked, g.cfg.ID) {
			found = append(found, g)
		}
	}
	part, next, bad := awsPage(c, found, size)
	if bad != nil {
		return nil, bad
	}
	out := &struct {
		AutoScalingGroups memberList[scalingGroupAnswer]
		NextToken         string `xml:",omitempty"`
	}{NextToken: next}
	for _, g := range part {
		out.AutoScalingGroups.Items = append(out.AutoScalingGroups.Items, s.scalingGroupAnswer(g))
	}
	return out, nil
}

func (s *Simulator) scalingGroupAnswer(g *group) scalingGroupAnswer {
	a := scalingGroupAnswer{
		AutoScalingGroupName: g.cfg.ID, AutoScalingGroupARN: s.autoScalingGroupARN(g), MinSize: g.cfg.MinSize, MaxSize: g.cfg.MaxSize,
		DesiredCapacity: g.aws.desired, DefaultCooldown: 300, AvailabilityZones: memberList[string]{g.cfg.Zones}, HealthCheckType: "EC2",
		CreatedTime: s.milli(g.created), VPCZoneIdentifier: awsSubnet, TerminationPolicies: memberList[string]{[]string{"Default"}},
		ServiceLinkedRoleARN: "arn:aws:iam::" + s.account + ":role/aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling",
	}
	for _, key := range slices.Sorted(maps.Keys(g.cfg.Tags)) {
		a.Tags.Items = append(a.Tags.Items, scalingTagAnswer{key, g.cfg.Tags[key], g.cfg.ID, "auto-scaling-group", true})
	}
	for e := g.instances.Front(); e != nil; e = e.Next() {
		// Those of the warm pool have a call of their own.
		if in := e.Value.(*instance); !strings.HasPrefix(in.state, "Warmed:") {
			a.Instances.Items = append(a.Instances.Items, scalingInstanceAnswerOf(in, "", "Healthy"))
		}
	}
	a.LoadBalancerNames.Items, a.TargetGroupARNs.Items = g.awsAttachments()
	for _, name := range a.LoadBalancerNames.Items {
		a.TrafficSources.Items = append(a.TrafficSources.Items, trafficSourceAnswer{name, "elb"})
	}
	for _, arn := range a.TargetGroupARNs.Items {
		a.TrafficSources.Items = append(a.TrafficSources.Items, trafficSourceAnswer{arn, "elbv2"})
	}
	if p := g.cfg.WarmPool; p.exists() {
		a.WarmPoolConfiguration = &warmPoolAnswer{MinSize: p.Size, PoolState: strings.ToUpper(p.State[:1]) + p.State[1:]}
		a.WarmPoolConfiguration.InstanceReusePolicy.ReuseOnScaleIn = p.Reuse
		a.WarmPoolSize = g.pooled()
	}
	if g.cfg.Retain {
		a.InstanceLifecyclePolicy = &lifecyclePolicyAnswer{}
		a.InstanceLifecyclePolicy.RetentionTriggers.TerminateHookAbandon = "retain"
	}
	return a
}

type scalingActivityAnswer struct {
	ActivityID           string `xml:"ActivityId"`
	AutoScalingGroupName string
	Description          string
	Cause                string
	StartTime            string
	EndTime              string `xml:",omitempty"`
	StatusCode           string
	Progress             int
}

func (s *Simulator) scalingActivityAnswer(act *activity) scalingActivityAnswer {
	a := scalingActivityAnswer{
		ActivityID: act.id, AutoScalingGroupName: act.group.cfg.ID, Description: act.description, Cause: act.cause,
		StartTime: s.milli(act.start), StatusCode: act.status,
	}
	if !act.end.IsZero() {
		a.EndTime, a.Progress = s.milli(act.end), 100
	}
	return a
}

func (s *Simulator) awsTerminateInstance(c *awsCall) (awsAnswer, *awsError) {
	decrement, bad := c.boolean("ShouldDecrementDesiredCapacity", true)
	if bad != nil {
		return nil, bad
	}
	id, ids := c.text("InstanceId"), c.members("InstanceIds")
	switch {
	case id == "" && len(ids) == 0:
		return nil, errConstraint("null", "InstanceId", "Member must not be null")
	case id != "" && len(ids) > 0:
		return nil, errScaling("Specify either InstanceId or InstanceIds, not both")
	case len(ids) > maxTerminateIDs:
		return nil, errConstraint(fmt.Sprint(ids), "InstanceIds", "Member must have length less than or equal to 100")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if id != "" {
		ids = []string{id}
	} else if _, bad := s.scalingGroupOf(c); bad != nil {
		return nil, bad
	}
	ins, bad := s.toTerminate(c.text("AutoScalingGroupName"), ids, decrement)
	if bad != nil {
		return nil, bad
	}
	var done []scalingActivityAnswer
	for _, in := range ins {
		done = append(done, s.scalingActivityAnswer(s.terminate(in, decrement)))
	}
	if id != "" {
		return &struct{ Activity scalingActivityAnswer }{done[0]}, nil
	}
	return &struct {
		Activities memberList[scalingActivityAnswer]
	}{memberList[scalingActivityAnswer]{done}}, nil
}

// toTerminate finds instances that a group may do without.
func (s *Simulator) toTerminate(groupName string, ids []string, decrement bool) ([]*instance, *awsError) {
	var ins []*instance
	leaving := map[*group]int{}
	for _, id := range ids {
		in := s.instances[id]
		if in == nil || groupName != "" && in.group.cfg.ID != groupName {
			return nil, errNoInstance(id)
		}
		if slices.Contains(ins, in) {
			continue
		}
		ins = append(ins, in)
		if g := in.group; decrement && in.state == stateInService {
			if leaving[g]++; g.aws.desired-leaving[g] < g.cfg.MinSize {
				return nil, errScaling("Currently, desiredSize equals minSize (%d). Terminating instance without replacement will violate group's min size constraint. Either set shouldDecrementDesiredCapacity flag to false or lower group's min size.", g.cfg.MinSize)
			}
		}
	}
	return ins, nil
}

// awsSetDesiredCapacity starts the activities that lead there. It has no result at all.
func (s *Simulator) awsSetDesiredCapacity(c *awsCall) (awsAnswer, *awsError) {
	if !c.has("DesiredCapacity") {
		return nil, errConstraint("null", "DesiredCapacity", "Member must not be null")
	}
	want, bad := c.integer("DesiredCapacity", 0, 0, 1<<31-1)
	if bad != nil {
		return nil, bad
	}
	honor, bad := c.boolean("HonorCooldown", false)
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.scalingGroupOf(c)
	if bad != nil {
		return nil, bad
	}
	switch {
	case want > g.cfg.MaxSize:
		return nil, errScaling("New SetDesiredCapacity value %d is above max value %d for the AutoScalingGroup.", want, g.cfg.MaxSize)
	case want < g.cfg.MinSize:
		return nil, errScaling("New SetDesiredCapacity value %d is below min value %d for the AutoScalingGroup.", want, g.cfg.MinSize)
	case honor && s.busy(g):
		return nil, &awsError{status: 400, code: "ScalingActivityInProgress", message: "Scaling activity is in progress and blocking this action"}
	}
	s.setDesired(g, want)
	return nil, nil
}

// setDesired scales in or out to a capacity. Like ScaleIn it chooses the oldest in service;
// what is on its way in yet, and more than is wanted, stays.
func (s *Simulator) setDesired(g *group, want int) {
	by := want - g.aws.desired
	g.aws.desired = want
	if by > 0 {
		s.startActivities(g, scaleOut, s.newcomers(g, by))
		s.fillPool(g)
	} else if chosen := g.oldest(min(-by, g.inService)); len(chosen) > 0 {
		s.startActivities(g, scaleIn, chosen)
	}
}

// busy says whether a scaling activity of the group goes on.
func (s *Simulator) busy(g *group) bool {
	for e := g.instances.Front(); e != nil; e = e.Next() {
		if act := e.Value.(*instance).activity; act != nil && act.status == activityInProgress {
			return true
		}
	}
	return false
}
