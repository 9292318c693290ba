package simulator

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// The lifecycle states that only AWS has (Auto Scaling 2011-01-01). Pending, Pending:Wait and
// InService are those of Alibaba Cloud.
const (
	statePendingProceed       = "Pending:Proceed"
	stateTerminating          = "Terminating"
	stateTerminatingWait      = "Terminating:Wait"
	stateTerminatingProceed   = "Terminating:Proceed"
	stateTerminatingRetained  = "Terminating:Retained"
	stateWarmedPending        = "Warmed:Pending"
	stateWarmedPendingWait    = "Warmed:Pending:Wait"
	stateWarmedPendingProceed = "Warmed:Pending:Proceed"
	stateWarmedTerminating    = "Warmed:Terminating"
	stateWarmedTermWait       = "Warmed:Terminating:Wait"
	stateWarmedTermProceed    = "Warmed:Terminating:Proceed"
	stateWarmedTermRetained   = "Warmed:Terminating:Retained"
	stateWarmedStopped        = "Warmed:Stopped"
	stateWarmedRunning        = "Warmed:Running"
)

// The states of an instance at EC2 (DescribeInstances, 2016-11-15).
const (
	powerPending      = "pending"
	powerRunning      = "running"
	powerShuttingDown = "shutting-down"
	powerTerminated   = "terminated"
	powerStopping     = "stopping"
	powerStopped      = "stopped"
)

// The end points of a way, as notifications have them.
const (
	placeEC2   = "EC2"
	placeGroup = "AutoScalingGroup"
	placePool  = "WarmPool"
)

// The ways of an instance on AWS.
var (
	awsLaunch   = way{placeEC2, placeGroup, statePending, statePendingWait, statePendingProceed}
	awsWarmUp   = way{placeEC2, placePool, stateWarmedPending, stateWarmedPendingWait, stateWarmedPendingProceed}
	awsCallUp   = way{placePool, placeGroup, statePending, statePendingWait, statePendingProceed}
	awsEnd      = way{placeGroup, placeEC2, stateTerminating, stateTerminatingWait, stateTerminatingProceed}
	awsReuse    = way{placeGroup, placePool, stateWarmedPending, stateWarmedPendingWait, stateWarmedPendingProceed}
	awsEndFresh = way{placePool, placeEC2, stateWarmedTerminating, stateWarmedTermWait, stateWarmedTermProceed}
)

// The limits of a wait (PutLifecycleHook, 2011-01-01).
const (
	awsMaxWait     = 48 * time.Hour
	awsMaxTimeouts = 100
)

// terminatedKept is for how long EC2 still tells of an instance that is gone.
const terminatedKept = time.Hour

// maxReplacePause bounds how far a group slows down whose launches are abandoned.
const (
	replacePause    = time.Minute
	maxReplacePause = time.Hour
)

// awsGroup is what a scaling group has on AWS only.
type awsGroup struct {
	uuid     string // in its ARN
	desired  int
	abandons int // launches in a row that were
}

// startAWSGroup fills in what a group has at the start besides its first instances.
func (s *Simulator) startAWSGroup(g *group) error {
	g.aws = awsGroup{uuid: s.newToken(), desired: g.cfg.Instances}
	for e := g.instances.Front(); e != nil; e = e.Next() {
		e.Value.(*instance).power = powerRunning
	}
	for range g.cfg.WarmPool.Size {
		in := s.newInstance(g, nil)
		in.power = powerStopped
		if g.cfg.WarmPool.State == poolRunning {
			if err := s.boot(in); err != nil {
				return err
			}
			in.power = powerRunning
		}
		s.setState(in, g.cfg.WarmPool.resting())
	}
	return nil
}

// newToken is what lifecycle actions are named by: a UUID, in lower case on AWS.
func (s *Simulator) newToken() string {
	if s.aws() {
		return strings.ToLower(newUUID())
	}
	return newUUID()
}

// awsWay is the way that an instance goes from the state that it is in.
func (in *instance) awsWay(transition string) way {
	warm := strings.HasPrefix(in.state, "Warmed:")
	switch {
	case transition == scaleOut && in.state == stateWarmedPending:
		return awsWarmUp
	case transition == scaleOut && warm:
		return awsCallUp
	case transition == scaleOut:
		return awsLaunch
	case warm:
		return awsEndFresh
	case in.state == stateInService && in.group.cfg.WarmPool.Reuse:
		return awsReuse
	}
	return awsEnd
}

// describeAWS fills in the texts of an activity, which on AWS has one instance.
func (act *activity) describeAWS(in *instance) {
	act.id = strings.ToLower(newUUID())
	act.way = in.awsWay(act.transition)
	word := "Launching a new EC2 instance: "
	if act.transition == scaleIn {
		word = "Terminating EC2 instance: "
	}
	act.description = word + in.id
	act.cause = fmt.Sprintf("At %s a user request was simulated.", act.start.UTC().Format(time.RFC3339))
}

// resize changes the capacity that a group wants to have; on Alibaba Cloud nothing does.
func (s *Simulator) resize(g *group, by int) error {
	if !s.aws() {
		return nil
	}
	want := max(0, g.aws.desired+by)
	if want < g.cfg.MinSize || want > g.cfg.MaxSize {
		return badInput("group %s has sizes of %d to %d, not %d", g.cfg.ID, g.cfg.MinSize, g.cfg.MaxSize, want)
	}
	g.aws.desired = want
	return nil
}

// maxWaitAWS is the global timeout of a hook.
func (h HookConfig) maxWaitAWS() time.Duration {
	return min(awsMaxWait, awsMaxTimeouts*h.HeartbeatTimeout)
}

// prolongAWS is a heartbeat: it starts the hook's timeout anew, up to the global timeout.
func (s *Simulator) prolongAWS(a *action) {
	at := time.Now().Add(a.hook.cfg.HeartbeatTimeout)
	if last := a.started.Add(a.hook.cfg.maxWaitAWS()); at.After(last) {
		at = last
	}
	a.heartbeats++
	s.setDeadline(a, at)
	s.recordAction(ActionHeartbeat, a)
}

// concludeAWS does with the instances what the last result says.
func (s *Simulator) concludeAWS(act *activity, result string) {
	g := act.group
	switch {
	case result == resultContinue && act.way.destination == placePool:
		s.enterPool(act)
	case result == resultContinue && act.transition == scaleOut:
		g.aws.abandons = 0
		s.enterService(act, activitySuccessful, "")
	case act.transition == scaleIn && result != resultContinue && g.cfg.Retain:
		s.setStates(act, act.way.retained())
		s.endActivity(act, activitySuccessful, "")
	case act.transition == scaleIn:
		s.setStates(act, act.way.ending())
		s.stopAll(act, activitySuccessful, "")
	default:
		s.setStates(act, act.way.ending())
		s.stopAll(act, activityCancelled, "Instance failed to complete user's Lifecycle Action: Lifecycle Action was abandoned.")
		s.replaceAbandoned(act)
	}
}

// ending is the last state of an instance that is terminated, whatever its way was.
func (w way) ending() string {
	if strings.HasPrefix(w.moving, "Warmed:") {
		return stateWarmedTermProceed
	}
	return stateTerminatingProceed
}

// retained is the state of an instance that the group's policy keeps.
func (w way) retained() string {
	if strings.HasPrefix(w.moving, "Warmed:") {
		return stateWarmedTermRetained
	}
	return stateTerminatingRetained
}

// replaceAbandoned launches an instance for one whose launch was abandoned, later each time
// that this happens in a row.
func (s *Simulator) replaceAbandoned(act *activity) {
	g := act.group
	if !g.cfg.Replace {
		if act.way.destination == placeGroup {
			g.aws.desired = max(0, g.aws.desired-1)
		}
		return
	}
	pause := min(replacePause<<min(g.aws.abandons, 10), maxReplacePause)
	g.aws.abandons++
	s.after(pause, func() { s.replace(g, act.way) })
}

// replace launches one instance more, into the pool if the one that it is for was to go there.
func (s *Simulator) replace(g *group, w way) {
	if w.destination == placePool || w.origin == placePool && w.destination == placeEC2 {
		s.fillPool(g)
		return
	}
	s.startActivity(g, scaleOut, s.newcomers(g, 1))
	s.fillPool(g)
}

// takeWarm chooses up to n instances that rest in the warm pool, the oldest first.
func (g *group) takeWarm(n int) []*instance {
	var chosen []*instance
	if !g.cfg.WarmPool.exists() {
		return nil
	}
	for e := g.instances.Front(); e != nil && len(chosen) < n; e = e.Next() {
		if in := e.Value.(*instance); in.state == stateWarmedStopped || in.state == stateWarmedRunning {
			chosen = append(chosen, in)
		}
	}
	return chosen
}

// pooled counts the instances that are in the warm pool or on the way into it.
func (g *group) pooled() int {
	n := 0
	for e := g.instances.Front(); e != nil; e = e.Next() {
		in := e.Value.(*instance)
		if strings.HasPrefix(in.state, "Warmed:") && !strings.HasPrefix(in.state, stateWarmedTerminating) {
			n++
		}
	}
	return n
}

// fillPool launches what the warm pool lacks.
func (s *Simulator) fillPool(g *group) {
	if !g.cfg.WarmPool.exists() {
		return
	}
	for n := g.pooled(); n < g.cfg.WarmPool.Size; n++ {
		in := s.newInstance(g, nil)
		s.setState(in, stateWarmedPending)
		s.startActivity(g, scaleOut, []*instance{in})
	}
}

// enterPool ends an activity in the warm pool.
func (s *Simulator) enterPool(act *activity) {
	s.setStates(act, act.way.proceeding)
	s.after(s.scenario.Timings.Stop, func() {
		for _, in := range act.instances {
			if act.group.cfg.WarmPool.State == poolStopped {
				s.setPower(in, powerStopping)
				s.halt(in)
				s.setPower(in, powerStopped)
			}
			s.setState(in, act.group.cfg.WarmPool.resting())
			s.interruptCommands(in)
		}
		s.endActivity(act, activitySuccessful, "")
	})
}

// setPower changes the state of an instance at EC2, which its bus may tell.
func (s *Simulator) setPower(in *instance, power string) {
	if !s.aws() || in.power == power {
		return
	}
	in.power = power
	if rule := s.scenario.EventBridge; rule.StateChanges {
		s.sendCloudEvent(rule.Queue, CloudEvent{Event: eventStateChange, State: power}, []*instance{in})
	}
}

// bury keeps an instance that is gone for as long as EC2 tells of it.
func (s *Simulator) bury(in *instance) {
	if s.aws() {
		s.setPower(in, powerShuttingDown)
		s.setPower(in, powerTerminated)
		s.graves.add(in.id, in)
	}
}

// lost ends what goes on with an instance that was taken from outside, and that was in a state.
func (s *Simulator) lost(in *instance, was string) {
	g := in.group
	if act := in.activity; act != nil && act.status == activityInProgress {
		s.cancelActions(act, endedByInstance)
		if act.transition == scaleIn {
			s.endActivity(act, activitySuccessful, "")
			return
		}
		s.endActivity(act, activityCancelled, "The instance was terminated.")
	}
	switch {
	case was == stateTerminatingRetained || was == stateWarmedTermRetained:
	case g.cfg.Replace && strings.HasPrefix(was, "Warmed:"):
		s.fillPool(g)
	case g.cfg.Replace:
		s.replace(g, awsEnd)
	case !strings.HasPrefix(was, "Warmed:"):
		g.aws.desired = max(0, g.aws.desired-1)
	}
}

// abort takes an instance out of the activity that goes on with it.
func (s *Simulator) abort(in *instance) {
	act := in.activity
	if act == nil || act.status != activityInProgress {
		return
	}
	act.instances = slices.DeleteFunc(slices.Clone(act.instances), func(o *instance) bool { return o == in })
	s.cancelActions(act, endedByInstance)
	s.endActivity(act, activityCancelled, "The instance is being terminated.")
}

// terminate has a group end one of its instances, as TerminateInstanceInAutoScalingGroup
// does. One that is on its way out already goes on as it does.
func (s *Simulator) terminate(in *instance, decrement bool) *activity {
	g := in.group
	if strings.HasPrefix(in.state, stateTerminating) || strings.HasPrefix(in.state, stateWarmedTerminating) {
		if in.state == stateTerminatingRetained || in.state == stateWarmedTermRetained {
			return s.endRetained(in)
		}
		return in.activity
	}
	s.abort(in)
	if decrement && !strings.HasPrefix(in.state, "Warmed:") {
		g.aws.desired = max(0, g.aws.desired-1)
	}
	w := in.awsWay(scaleIn)
	if w == awsReuse { // asked for by name it is not kept
		w = awsEnd
	}
	act := s.newActivity(g, scaleIn, []*instance{in})
	act.way = w
	s.enlist(act)
	s.begin(act)
	if !decrement {
		s.replace(g, w)
	}
	return act
}

// endRetained ends an instance that the policy had kept; no hook waits for it again.
func (s *Simulator) endRetained(in *instance) *activity {
	act := s.newActivity(in.group, scaleIn, []*instance{in})
	s.enlist(act)
	s.setStates(act, act.way.ending())
	s.stopAll(act, activitySuccessful, "")
	return act
}
