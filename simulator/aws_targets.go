package simulator

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"time"
)

// This file is what the balancers of AWS do with their members: classic ones (elb) and
// target groups alike.

// targetGroupARN names a target group. It follows from the id, so that a configuration can
// be written before the cloud is there.
func (s *Simulator) targetGroupARN(g ServerGroupConfig) string {
	return s.awsARN("elasticloadbalancing", "targetgroup/"+g.Name+"/"+resourceHex(g.ID))
}

// loadBalancerARN names a balancer that has target groups.
func (s *Simulator) loadBalancerARN(b *balancer) string {
	kind := map[string]string{typeApplication: "app", typeNetwork: "net"}[b.cfg.Type]
	return s.awsARN("elasticloadbalancing", "loadbalancer/"+kind+"/"+b.cfg.ID+"/"+resourceHex(b.cfg.ID))
}

// resourceHex is the last part of a name, made up but always the same.
func resourceHex(id string) string {
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:8])
}

// awsAttachments are the classic balancers and the target groups that Auto Scaling keeps a
// group's instances in: the names of those, the ARNs of these. The caller holds s.mu.
func (g *group) awsAttachments() (balancers, targetGroups []string) {
	for _, a := range g.attachments {
		switch b := a.group.balancer; {
		case a.cfg.Unattached:
		case b.cfg.Type == typeELB:
			balancers = append(balancers, b.cfg.ID)
		case b.cfg.hasTargets():
			targetGroups = append(targetGroups, a.group.arn)
		}
	}
	return balancers, targetGroups
}

// register puts a member into its group: at once, or when its registration is through. The
// caller holds s.mu and the balancer's mutex.
func (s *Simulator) register(g *serverGroup, m *member) {
	if !g.balancer.cfg.onAWS() || g.balancer.cfg.JobDuration == 0 {
		s.enter(g, m, false)
		return
	}
	m.status = serverAdding
	s.enter(g, m, false)
	s.clock.at(time.Now().Add(g.balancer.cfg.JobDuration), func() {
		g.balancer.mu.Lock()
		defer g.balancer.mu.Unlock()
		if m.status == serverAdding {
			m.turn(serverAvailable)
		}
	})
}

// reregister is register for a server that may be there already. One that is leaving comes
// back as a new member, and what the old one has on its way still has its time.
func (s *Simulator) reregister(g *serverGroup, in *instance, port int) {
	if m := g.find(in.id, port); m != nil {
		if m.status != serverRemoving {
			return
		}
		g.drop(m)
	}
	s.register(g, newMember(in, port, 100, serverAvailable))
}

// delay is for how long a member that is taken out may keep its connections.
func (g *serverGroup) delay() time.Duration { return g.cfg.ConnectionDrainTimeout }

// deregister takes members out: no new request from now on. A target stays on the list,
// draining, for the whole delay; a classic balancer's member until nothing is on its way
// any more, at most for the delay. Then what is left is cut. The caller holds s.mu and the
// balancer's mutex.
func (s *Simulator) deregister(g *serverGroup, members []*member) {
	for _, m := range members {
		if m.status == serverRemoving {
			continue
		}
		m.leaves = time.Now().Add(g.delay())
		g.retire(m)
		if g.delay() == 0 {
			m.cut()
			g.drop(m)
			continue
		}
		s.clock.at(g.look(m), func() { s.endDeregistration(g, m) })
	}
}

// look is when a deregistration may be over: for a classic balancer as soon as nothing is
// on its way, and in one without sockets something always is.
func (g *serverGroup) look(m *member) time.Time {
	next := time.Now().Add(drainPoll)
	if g.balancer.virtual || g.balancer.cfg.hasTargets() || next.After(m.leaves) {
		return m.leaves
	}
	return next
}

func (s *Simulator) endDeregistration(g *serverGroup, m *member) {
	g.balancer.mu.Lock()
	defer g.balancer.mu.Unlock()
	if !m.leftAt.IsZero() {
		return
	}
	if time.Now().Before(m.leaves) && (g.cfg.TargetType != "" || len(m.passages) > 0) {
		s.clock.at(g.look(m), func() { s.endDeregistration(g, m) })
		return
	}
	m.cut()
	g.drop(m)
}

// cut ends all that is on its way through a member. The caller holds the balancer's mutex.
func (m *member) cut() {
	for p := range m.passages {
		p.end()
	}
}

// awaitDeregistration deregisters instances on behalf of Auto Scaling, and runs then when
// none of them is a member any more: it waits for those too that somebody else has
// deregistered. The caller holds s.mu.
func (s *Simulator) awaitDeregistration(g *serverGroup, ins []*instance, then func()) {
	b := g.balancer
	b.mu.Lock()
	defer b.mu.Unlock()
	var members []*member
	for _, in := range ins {
		members = append(members, g.byID[in.id]...)
	}
	s.deregister(g, members)
	s.whenLeft(g, members, then)
}

// whenLeft runs f, without the balancer's mutex, as soon as the members have left. The
// caller holds s.mu and the balancer's mutex.
func (s *Simulator) whenLeft(g *serverGroup, members []*member, f func()) {
	at := time.Now()
	for _, m := range members {
		if m.leftAt.IsZero() {
			at = latest(at, g.look(m))
		}
	}
	s.clock.at(at, func() {
		g.balancer.mu.Lock()
		if slices.ContainsFunc(members, func(m *member) bool { return m.leftAt.IsZero() }) {
			s.whenLeft(g, members, f)
			g.balancer.mu.Unlock()
			return
		}
		g.balancer.mu.Unlock()
		f()
	})
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// abandon leaves the targets of a machine that is gone in a group that knows addresses
// alone: its health checks fail from now on. The caller holds s.mu and the balancer's mutex.
func (s *Simulator) abandon(g *serverGroup, id string) {
	if !g.balancer.virtual {
		return
	}
	check := g.balancer.cfg.HealthCheck
	for _, m := range g.byID[id] {
		s.clock.at(time.Now().Add(time.Duration(check.Fall)*check.Interval), func() {
			g.balancer.mu.Lock()
			defer g.balancer.mu.Unlock()
			m.healthy, m.known, m.why = false, true, checkResult{timedOut: true}
		})
	}
}

// fail is what becomes of the connections of a member that has turned unhealthy: an
// application balancer lets them live, a network one cuts them, the others drain.
func (g *serverGroup) fail(m *member) {
	switch cfg := g.balancer.cfg; {
	case cfg.Type == typeApplication:
	case cfg.Type == typeNetwork, cfg.Type == typeELB && !cfg.drains():
		m.cut()
	default:
		g.drain(m)
	}
}

// failsOpen says whether the group gets requests although no target is healthy: when all
// that have been checked are ill, a balancer with target groups takes them all.
func (g *serverGroup) failsOpen() bool {
	return g.balancer.cfg.hasTargets() && !slices.ContainsFunc(g.members, func(m *member) bool { return m.inService() && (m.healthy || !m.known) })
}

// targetHealth is what the API says of a target.
type targetHealth struct{ state, reason, description string }

// The states of a target.
const (
	targetInitial     = "initial"
	targetHealthy     = "healthy"
	targetUnhealthy   = "unhealthy"
	targetUnused      = "unused"
	targetDraining    = "draining"
	targetUnavailable = "unavailable"
	// targetUnhealthyDraining is of network balancers that let an ill target's connections live.
	targetUnhealthyDraining = "unhealthy.draining"
)

// targetReasons are the reasons that each state can have, with what is said of them (texts
// partly unconfirmed).
var targetReasons = map[string]map[string]string{
	targetInitial: {
		"Elb.RegistrationInProgress": "Target registration is in progress",
		"Elb.InitialHealthChecking":  "Initial health checks in progress",
	},
	targetHealthy: {"": ""},
	targetUnhealthy: {
		"Target.ResponseCodeMismatch": "Health checks failed with these codes: [503]",
		"Target.Timeout":              "Request timed out",
		"Target.FailedHealthChecks":   "Health checks failed",
		"Elb.InternalError":           "Health checks failed due to an internal error",
	},
	targetUnhealthyDraining: {"Target.FailedHealthChecks": "Health checks failed"},
	targetUnused: {
		"Target.NotRegistered": "Target is not registered to the target group",
		"Target.NotInUse":      "Target group is not configured to receive traffic from the load balancer",
		"Target.InvalidState":  "Target is in the stopped state",
		"Target.IpUnusable":    "The target IP address is reserved for use by load balancers",
	},
	targetDraining: {"Target.DeregistrationInProgress": "Target deregistration is in progress"},
	targetUnavailable: {
		"Target.HealthCheckDisabled": "Health checks are not enabled for this target",
		"Elb.InternalError":          "Target health is unavailable due to an internal error",
	},
}

func newTargetHealth(state, reason string) targetHealth {
	return targetHealth{state, reason, targetReasons[state][reason]}
}

// SetTargetHealth makes the API say this of all targets of an instance, whatever traffic
// sees: a state and a reason of DescribeTargetHealth 2015-12-01, such as unavailable and
// Elb.InternalError. An empty state lets it tell the truth again.
func (s *Simulator) SetTargetHealth(instanceID, state, reason string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.instances[instanceID]
	if in == nil {
		return &InputError{text: "there is no instance " + instanceID, notFound: true}
	}
	if _, known := targetReasons[state][reason]; !known && state != "" {
		return badInput("there is no target state %q with the reason %q", state, reason)
	}
	in.told = newTargetHealth(state, reason)
	return nil
}

// targetHealth is where a member stands. The caller holds s.mu and the balancer's mutex.
func (s *Simulator) targetHealth(g *serverGroup, m *member) targetHealth {
	in := s.instances[m.id]
	switch {
	case in != nil && in.told.state != "":
		return in.told
	case m.status == serverRemoving:
		return newTargetHealth(targetDraining, "Target.DeregistrationInProgress")
	case in != nil && !in.running:
		return newTargetHealth(targetUnused, "Target.InvalidState")
	case !g.inUse():
		return newTargetHealth(targetUnused, "Target.NotInUse")
	case m.status == serverAdding:
		return newTargetHealth(targetInitial, "Elb.RegistrationInProgress")
	case !m.known:
		return newTargetHealth(targetInitial, "Elb.InitialHealthChecking")
	case m.healthy:
		return newTargetHealth(targetHealthy, "")
	}
	return m.why.targetHealth()
}

// targetHealth is why a target is unhealthy.
func (r checkResult) targetHealth() targetHealth {
	switch {
	case r.timedOut:
		return newTargetHealth(targetUnhealthy, "Target.Timeout")
	case r.status == 0 || r.ok(): // refused, or the way back to health has begun
		return newTargetHealth(targetUnhealthy, "Target.FailedHealthChecks")
	}
	h := newTargetHealth(targetUnhealthy, "Target.ResponseCodeMismatch")
	h.description = fmt.Sprintf("Health checks failed with these codes: [%d]", r.status)
	return h
}

// inUse says whether a listener sends anything to the group.
func (g *serverGroup) inUse() bool {
	return slices.ContainsFunc(g.balancer.listeners, func(l *listener) bool { return l.group == g })
}
