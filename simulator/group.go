package simulator

import (
	"container/list"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// The lifecycle states of an instance, as the API writes them.
const (
	statePending      = "Pending"
	statePendingWait  = "Pending:Wait"
	stateInService    = "InService"
	stateRemoving     = "Removing"
	stateRemovingWait = "Removing:Wait"
	// stateReleased is for events only: a released instance is not listed anywhere.
	stateReleased = "Released"
)

// way is what an instance moves along in an activity. The end points and the state after the
// waits are AWS's only.
type way struct{ origin, destination, moving, waiting, proceeding string }

// essWays are the ways on Alibaba Cloud, by the transition.
var essWays = map[string]way{
	scaleIn:  {moving: stateRemoving, waiting: stateRemovingWait},
	scaleOut: {moving: statePending, waiting: statePendingWait},
}

// The statuses of a lifecycle action, and how it ended.
const (
	actionPending   = "Pending"
	actionTimeout   = "Timeout"
	actionCompleted = "Completed"

	endedByCall     = "call"
	endedByTimeout  = "timeout"
	endedByHook     = "other_hook"
	endedByInstance = "instance"
)

// The statuses of a scaling activity.
const (
	activityInProgress = "InProgress"
	activitySuccessful = "Successful"
	activityFailed     = "Failed"
	activityCancelled  = "Cancelled" // on AWS only
)

// The heartbeat budget of one lifecycle action (RecordLifecycleActionHeartbeat, 2014-08-28).
const (
	maxHeartbeats = 20
	maxWait       = 6 * time.Hour
)

type group struct {
	cfg   GroupConfig
	index int
	hooks []*hook
	// attachments are the server groups that the instances are in.
	attachments []attachment
	instances   *list.List // of *instance, oldest first
	made        int        // instances so far
	inService   int
	created     time.Time
	aws         awsGroup
}

type hook struct {
	cfg   HookConfig
	group *group
	arn   string
	role  string // that may notify the target; AWS only
}

type instance struct {
	id       string
	group    *group
	place    *list.Element
	state    string
	before   string    // its state before the activity that moves it; "": that made it
	activity *activity // that made or moves it
	created  time.Time
	power    string // its state at EC2; AWS only
	addr     netip.AddrPort
	zone     string
	sick     bool              // fails its health checks
	running  bool              // booted, and not stopped
	agentAt  time.Time         // when Cloud Assistant begins to run on it
	knownAt  time.Time         // when ECS lists it and ESS tells its address
	backend  *backend          // nil with NoServers, with Machines, or while it boots
	runs     map[*run]struct{} // commands that have not ended
	told     targetHealth      // what DescribeTargetHealth says of it, if that is set
}

type activity struct {
	id          string
	group       *group
	transition  string
	status      string
	message     string
	cause       string
	instances   []*instance // none any more when it has ended
	ids         []string
	actions     []*action
	pending     int // actions that still wait
	start, end  time.Time
	capacity    int // instances in service at the start
	description string
	way         way // between what the instances move, and what the states on it are called
}

// actionKey is what the lifecycle calls name an action by.
type actionKey struct{ hook, token string }

type action struct {
	hook       *hook
	activity   *activity
	token      string
	status     string
	result     string // the default one while pending
	heartbeats int
	started    time.Time
	deadline   time.Time
	ended      time.Time
	endedBy    string
	timeout    *entry
}

func (s *Simulator) newGroup(index int, cfg GroupConfig) error {
	g := &group{cfg: cfg, index: index, instances: list.New(), created: time.Now()}
	for _, h := range cfg.Hooks {
		g.hooks = append(g.hooks, s.newHook(g, h))
	}
	s.groups = append(s.groups, g)
	g.attachments = s.attachments(cfg)
	for range cfg.Instances {
		in := s.newInstance(g, nil)
		if err := s.boot(in); err != nil {
			return err
		}
		s.settle(g, in)
		s.setState(in, stateInService)
	}
	if s.aws() {
		return s.startAWSGroup(g)
	}
	return nil
}

func (s *Simulator) newHook(g *group, cfg HookConfig) *hook {
	h := &hook{cfg: cfg, group: g}
	if s.aws() {
		h.arn = s.notificationARN(cfg)
	} else {
		h.arn = s.targetARN(cfg.target())
	}
	return h
}

func (s *Simulator) newInstance(g *group, act *activity) *instance {
	in := &instance{
		id:    s.newInstanceID(),
		group: g, activity: act, created: time.Now(),
		addr: s.hosts.address(g.index, g.made),
		zone: g.cfg.Zones[g.made%len(g.cfg.Zones)],
	}
	g.made++
	in.place = g.instances.PushBack(in)
	s.instances[in.id] = in
	s.setState(in, statePending)
	return in
}

func (s *Simulator) newInstanceID() string {
	if s.aws() {
		return "i-0" + strings.ToLower(randomHex(16))
	}
	return "i-wz9" + randomText(17)
}

func (s *Simulator) setState(in *instance, state string) {
	if in.state == stateInService {
		in.group.inService--
	}
	if state == stateInService {
		in.group.inService++
	}
	in.state = state
	e := Event{Type: InstanceChanged, Group: in.group.cfg.ID, Instance: in.id, State: state}
	if in.activity != nil {
		e.Activity = in.activity.id
	}
	s.record(e)
}

// boot starts the instance's server.
func (s *Simulator) boot(in *instance) error {
	in.running = true
	if s.options.NoServers {
		return nil
	}
	if s.options.Machines != nil {
		return s.bootMachine(in)
	}
	b, err := s.hosts.start(in.id, in.addr)
	if err != nil {
		return fmt.Errorf("start the server of instance %s: %w", in.id, err)
	}
	in.backend, in.addr = b, b.addr
	return nil
}

// enterService puts an activity's instances into their balancers and ends it then.
func (s *Simulator) enterService(act *activity, status, message string) {
	s.setStates(act, act.way.proceeding)
	s.attach(act.group, act.instances, func() {
		for _, in := range act.instances {
			s.setState(in, stateInService)
		}
		s.endActivity(act, status, message)
	})
}

// setStates gives all instances of an activity a state; empty: they keep theirs.
func (s *Simulator) setStates(act *activity, state string) {
	if state == "" {
		return
	}
	for _, in := range act.instances {
		s.setState(in, state)
	}
}

// release stops the machine at once, as pulling its plug would, and forgets it.
func (s *Simulator) release(in *instance) {
	s.halt(in)
	s.forget(in)
	in.group.instances.Remove(in.place)
	delete(s.instances, in.id)
	s.bury(in)
	s.setState(in, stateReleased)
	s.interruptCommands(in)
}

func (s *Simulator) group(id string) *group {
	for _, g := range s.groups {
		if g.cfg.ID == id {
			return g
		}
	}
	return nil
}

// Activity is a scaling activity, as ScaleIn and ScaleOut start it.
type Activity struct {
	ID         string `json:"id"`
	Group      string `json:"group"`
	Transition string `json:"transition"`
	// Status is InProgress, Successful or Failed.
	Status    string   `json:"status"`
	Instances []string `json:"instances"`
	// Tokens name the lifecycle actions that the activity waits for or has waited for: none
	// yet while instances boot, or jobs of ALB and NLB take them out.
	Tokens []string `json:"tokens,omitempty"`
	// Activities are all that were started where the group has split_activity; the
	// other fields are then those of all together, ID and Status of the first.
	Activities []string   `json:"activities,omitempty"`
	Started    time.Time  `json:"started"`
	Ended      *time.Time `json:"ended,omitempty"`
}

func (act *activity) describe() Activity {
	a := Activity{
		ID: act.id, Group: act.group.cfg.ID, Transition: act.transition, Status: act.status,
		Instances: slices.Clone(act.ids), Started: act.start, Ended: timePointer(act.end),
	}
	for _, x := range act.actions {
		a.Tokens = append(a.Tokens, x.token)
	}
	return a
}

// ScaleIn removes the oldest count instances in service from a group: out of the
// balancers that it is attached to, then the hooks, then released. Without a hook they
// are released right away.
func (s *Simulator) ScaleIn(groupID string, count int) (Activity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.scalable(groupID, count)
	if err != nil {
		return Activity{}, err
	}
	if count > g.inService {
		return Activity{}, badInput("group %s has %d instances in service, cannot remove %d", groupID, g.inService, count)
	}
	if err := s.resize(g, -count); err != nil {
		return Activity{}, err
	}
	return s.startActivities(g, scaleIn, g.oldest(count)), nil
}

// ScaleOut adds count instances to a group: they boot, wait for the hooks, then join
// the balancers.
func (s *Simulator) ScaleOut(groupID string, count int) (Activity, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.scalable(groupID, count)
	if err != nil {
		return Activity{}, err
	}
	if n := len(s.instances); n+count > maxInstances {
		return Activity{}, badInput("there are %d instances, at most %d are allowed", n, maxInstances)
	}
	if err := s.resize(g, count); err != nil {
		return Activity{}, err
	}
	a := s.startActivities(g, scaleOut, s.newcomers(g, count))
	s.fillPool(g)
	return a, nil
}

// oldest chooses the count oldest instances in service, if there are so many.
func (g *group) oldest(count int) []*instance {
	var chosen []*instance
	for e := g.instances.Front(); e != nil && len(chosen) < count; e = e.Next() {
		if in := e.Value.(*instance); in.state == stateInService {
			chosen = append(chosen, in)
		}
	}
	return chosen
}

// newcomers are the instances of a scale-out: those of the warm pool, then new ones.
func (s *Simulator) newcomers(g *group, count int) []*instance {
	chosen := g.takeWarm(count)
	for len(chosen) < count {
		chosen = append(chosen, s.newInstance(g, nil))
	}
	return chosen
}

func (s *Simulator) scalable(groupID string, count int) (*group, error) {
	g := s.group(groupID)
	switch {
	case s.closed:
		return nil, badInput("the simulator is closed")
	case g == nil:
		var ids []string
		for _, g := range s.groups {
			ids = append(ids, g.cfg.ID)
		}
		return nil, notFound("scaling group", groupID, ids)
	case count < 1:
		return nil, badInput("count must be 1 or more, got %d", count)
	}
	return g, nil
}

func (s *Simulator) startActivities(g *group, transition string, ins []*instance) Activity {
	size := len(ins)
	if g.cfg.SplitActivity {
		size = 1
	}
	var all Activity
	for part := range slices.Chunk(ins, size) {
		a := s.startActivity(g, transition, part).describe()
		if !g.cfg.SplitActivity {
			return a
		}
		if all.ID == "" {
			all = a
			all.Instances, all.Tokens = nil, nil
		}
		all.Activities = append(all.Activities, a.ID)
		all.Instances = append(all.Instances, a.Instances...)
		all.Tokens = append(all.Tokens, a.Tokens...)
	}
	return all
}

func (s *Simulator) startActivity(g *group, transition string, ins []*instance) *activity {
	act := s.newActivity(g, transition, ins)
	s.enlist(act)
	s.begin(act)
	return act
}

// enlist makes an activity known.
func (s *Simulator) enlist(act *activity) {
	for _, in := range act.instances {
		in.activity = act
		act.ids = append(act.ids, in.id)
	}
	s.activities.add(act.id, act)
	s.record(Event{Type: ActivityStarted, Group: act.group.cfg.ID, Activity: act.id, State: act.status})
	s.tellActivity(act)
}

// begin does what an activity does before its hooks.
func (s *Simulator) begin(act *activity) {
	for _, in := range act.instances {
		if in.state != act.way.moving {
			in.before = in.state
			s.setState(in, act.way.moving)
		}
	}
	if act.transition == scaleIn {
		s.detach(act.group, act.instances, func() { s.fireHooks(act) })
		return
	}
	for _, in := range act.instances {
		if !in.running {
			s.setPower(in, powerPending)
		}
	}
	s.after(s.scenario.Timings.Boot, func() {
		s.launch(act)
		s.fireHooks(act)
	})
}

func (s *Simulator) newActivity(g *group, transition string, ins []*instance) *activity {
	act := &activity{
		group: g, transition: transition, status: activityInProgress,
		instances: slices.Clone(ins), start: time.Now(), capacity: g.inService,
	}
	if s.aws() {
		act.describeAWS(ins[0])
		return act
	}
	act.id, act.way = "asa-wz9"+randomText(17), essWays[transition]
	act.cause = "A user requests to execute a simulated scaling activity."
	act.description = fmt.Sprintf("%s %q ECS instance(s)", map[string]string{scaleIn: "Remove", scaleOut: "Add"}[transition], fmt.Sprint(len(ins)))
	return act
}

// after runs f, at once when d is 0. The caller holds s.mu.
func (s *Simulator) after(d time.Duration, f func()) {
	if d <= 0 {
		f()
		return
	}
	s.clock.at(time.Now().Add(d), f)
}

// fireHooks starts an action for each hook of the activity's transition; all wait at
// the same time. Without a hook the activity goes on at once.
func (s *Simulator) fireHooks(act *activity) {
	if act.status != activityInProgress {
		return
	}
	for _, h := range act.group.hooks {
		if h.cfg.Transition == act.transition {
			s.fireHook(act, h)
		}
	}
	if act.pending == 0 {
		s.conclude(act, resultContinue)
		return
	}
	s.setStates(act, act.way.waiting)
	// A notification goes out when the wait has begun, so that nobody learns of an
	// action that is not there yet.
	for _, a := range act.actions {
		s.notify(a)
	}
}

func (s *Simulator) fireHook(act *activity, h *hook) {
	a := &action{
		hook: h, activity: act, token: s.newToken(), status: actionPending, result: h.cfg.DefaultResult, started: time.Now(),
	}
	act.actions = append(act.actions, a)
	act.pending++
	s.actions[actionKey{h.cfg.ID, a.token}] = a
	s.setDeadline(a, a.started.Add(h.cfg.HeartbeatTimeout))
	s.recordAction(ActionStarted, a)
}

func (s *Simulator) recordAction(t EventType, a *action) {
	s.record(Event{
		Type: t, Group: a.hook.group.cfg.ID, Activity: a.activity.id, Hook: a.hook.cfg.ID, Token: a.token,
		Result: a.result, State: a.status, Until: timePointer(a.deadline),
	})
}

// setDeadline sets when the default result strikes.
func (s *Simulator) setDeadline(a *action, at time.Time) {
	s.clock.cancel(a.timeout)
	a.deadline = at
	a.timeout = s.clock.at(at, func() { s.endAction(a, actionTimeout, a.hook.cfg.DefaultResult, endedByTimeout) })
}

// endAction ends one wait. On scale-in any result but CONTINUE ends the other hooks'
// waits early; on scale-out all run out and the last one decides. On AWS an ABANDON ends them
// early both ways: an instance that is not wanted any more is terminated at once.
func (s *Simulator) endAction(a *action, status, result, by string) {
	act := a.activity
	s.markEnded(a, status, result, by)
	if (act.transition == scaleIn || s.aws()) && result != resultContinue {
		s.cancelActions(act, endedByHook)
	}
	if act.pending == 0 {
		s.conclude(act, result)
	}
}

// cancelActions ends what still waits, for a reason that is no result of its own.
func (s *Simulator) cancelActions(act *activity, by string) {
	for _, a := range act.actions {
		if a.status == actionPending {
			s.markEnded(a, actionCompleted, a.result, by)
		}
	}
}

var endEvents = map[string]EventType{
	endedByCall: ActionCompleted, endedByTimeout: ActionTimedOut, endedByHook: ActionCancelled, endedByInstance: ActionCancelled,
}

func (s *Simulator) markEnded(a *action, status, result, by string) {
	s.clock.cancel(a.timeout)
	a.status, a.result, a.endedBy, a.ended, a.timeout = status, result, by, time.Now(), nil
	a.activity.pending--
	s.recordAction(endEvents[by], a)
}

// conclude does with the instances what the last result says.
func (s *Simulator) conclude(act *activity, result string) {
	switch {
	case s.aws():
		s.concludeAWS(act, result)
	case act.transition == scaleIn && result == resultRollback:
		s.enterService(act, activityFailed, "The activity was rolled back by a lifecycle hook.")
	case act.transition == scaleOut && result == resultContinue:
		s.enterService(act, activitySuccessful, "")
	case act.transition == scaleOut:
		s.stopAll(act, activityFailed, "The activity was abandoned by a lifecycle hook.")
	default:
		s.stopAll(act, activitySuccessful, "")
	}
}

// stopAll releases the activity's instances when they have had the time to stop.
func (s *Simulator) stopAll(act *activity, status, message string) {
	if s.scenario.Timings.Stop > 0 && !s.aws() {
		for _, in := range act.instances {
			s.setState(in, stateRemoving)
		}
	}
	s.after(s.scenario.Timings.Stop, func() {
		for _, in := range act.instances {
			s.release(in)
		}
		s.endActivity(act, status, message)
	})
}

func (s *Simulator) endActivity(act *activity, status, message string) {
	if act.status != activityInProgress {
		return // what became of its last instance has ended it before
	}
	act.status, act.message, act.end, act.instances = status, message, time.Now(), nil
	s.record(Event{Type: ActivityEnded, Group: act.group.cfg.ID, Activity: act.id, State: status})
	s.tellActivity(act)
}

// forgetActivity drops what an old activity has left behind.
func (s *Simulator) forgetActivity(act *activity) {
	for _, a := range act.actions {
		if a.status != actionPending {
			delete(s.actions, actionKey{a.hook.cfg.ID, a.token})
		}
	}
}

// notification is the message that a lifecycle hook sends.
type notification struct {
	Content     notificationContent `json:"content"`
	Product     string              `json:"product"`
	RegionID    string              `json:"regionId"`
	ResourceARN string              `json:"resourceArn"`
	Time        string              `json:"time"`
	UserID      string              `json:"userId"`
}

type notificationContent struct {
	DefaultResult  string   `json:"defaultResult"`
	InstanceIDs    []string `json:"instanceIds"`
	Token          string   `json:"lifecycleActionToken"`
	HookID         string   `json:"lifecycleHookId"`
	HookName       string   `json:"lifecycleHookName"`
	Transition     string   `json:"lifecycleTransition"`
	Metadata       string   `json:"notificationMetadata,omitempty"`
	RequestID      string   `json:"requestId"`
	ActivityID     string   `json:"scalingActivityId"`
	GroupID        string   `json:"scalingGroupId"`
	GroupName      string   `json:"scalingGroupName"`
	ScalingRuleID  string   `json:"scalingRuleId,omitempty"`
	ScheduledTasks string   `json:"scheduledTaskId,omitempty"`
}

var wireTransition = map[string]string{scaleIn: "SCALE_IN", scaleOut: "SCALE_OUT"}

// notify sends a's notification to what its hook names.
func (s *Simulator) notify(a *action) {
	if s.aws() {
		s.notifyAWS(a)
		return
	}
	g := a.hook.group
	content := notificationContent{
		DefaultResult: a.hook.cfg.DefaultResult, InstanceIDs: a.activity.ids, Token: a.token,
		HookID: a.hook.cfg.ID, HookName: a.hook.cfg.Name, Transition: wireTransition[a.hook.cfg.Transition],
		Metadata: a.hook.cfg.Metadata, RequestID: newUUID(), ActivityID: a.activity.id,
		GroupID: g.cfg.ID, GroupName: g.cfg.Name,
	}
	s.tell(a.hook.cfg.target(), a.hook.cfg.Encoding, told{
		name:    "ess:LifecycleHook:" + map[string]string{scaleIn: "ScaleIn", scaleOut: "ScaleOut"}[a.hook.cfg.Transition],
		content: content, at: a.started, group: g, action: a,
		whole: notification{
			Content: content, Product: "ESS", RegionID: s.scenario.Region, ResourceARN: s.groupARN(g),
			Time: s.cloudTime(a.started).UTC().Format(messageTime), UserID: s.account,
		},
	})
}
