package simulator

import (
	"slices"
	"strings"
	"time"
)

// The statuses of a job, as ALB's ListAsynJobs writes them.
const (
	jobProcessing = "Processing"
	jobSucceeded  = "Succeeded"
	jobFailed     = "Failed"
)

// The statuses of a server group of ALB and NLB.
const (
	groupAvailable   = "Available"
	groupConfiguring = "Configuring"
)

// serverJob is an asynchronous change of a server group. Its fields are guarded by the
// simulator's mutex.
type serverJob struct {
	id, service, action string
	group               *serverGroup
	status              string
	created, modified   time.Time
	fails               bool
	leaving             []*member // of a removal
	end                 func()    // under both mutexes, unless the job fails
}

// status is the server group's own. A job that a call reads of is guarded by the
// simulator's mutex, which describe's caller holds.
func (g *serverGroup) status() string {
	if g.job != nil {
		return groupConfiguring
	}
	return groupAvailable
}

// serverGroup finds a server group by its id, and the balancer's default one by the
// balancer's.
func (s *Simulator) serverGroup(id string) *serverGroup { return s.serverGroups[id] }

// newMember is an instance as a server. The caller holds s.mu.
func newMember(in *instance, port, weight int, status string) *member {
	return &member{id: in.id, addr: in.addr, zone: in.zone, port: port, weight: weight, status: status}
}

// enter puts a member into its group for good. In a virtual balancer the first health
// check passes an interval later, unless the instance is sick.
func (s *Simulator) enter(g *serverGroup, m *member, healthy bool) {
	g.join(m, healthy)
	if g.balancer.virtual && !healthy {
		s.checkVirtually(m, g.balancer.cfg.HealthCheck.Interval, true)
	}
}

// checkVirtually lets a health check of a virtual member come to a result after a time,
// if the instance is then as it says. The caller holds s.mu.
func (s *Simulator) checkVirtually(m *member, after time.Duration, healthy bool) {
	s.clock.at(time.Now().Add(after), func() {
		in := s.instances[m.id]
		if in == nil || in.sick == healthy {
			return
		}
		b := m.group.balancer
		b.mu.Lock()
		defer b.mu.Unlock()
		if m.healthy == healthy && m.known || !m.leftAt.IsZero() {
			return
		}
		m.healthy, m.known, m.checked = healthy, true, m.checked || healthy
		m.why = checkResult{status: map[bool]int{true: 200, false: 503}[healthy]}
		switch {
		case m.status == serverRemoving:
		case healthy:
			m.keep()
		default:
			m.group.fail(m)
		}
	})
}

// startJob begins a change of a server group that has no job. fails makes it end without
// effect. The caller holds s.mu and the balancer's mutex.
func (s *Simulator) startJob(g *serverGroup, action string, fails bool, leaving []*member, end func()) *serverJob {
	j := &serverJob{
		id: newUUID(), service: serviceOf(g.balancer), action: action, group: g, status: jobProcessing,
		created: time.Now(), modified: time.Now(), fails: fails, leaving: leaving, end: end,
	}
	g.job = j
	s.jobs.add(j.id, j)
	s.clock.at(j.created.Add(g.balancer.cfg.JobDuration), func() { s.tryEndJob(j) })
	return j
}

// drainPoll is how often a job looks whether the servers that it removes have drained.
const drainPoll = 50 * time.Millisecond

// tryEndJob ends a job, later if it waits for connections to drain.
func (s *Simulator) tryEndJob(j *serverJob) {
	b := j.group.balancer
	b.mu.Lock()
	if wait := j.drainWait(); wait > 0 && !j.fails {
		b.mu.Unlock()
		s.clock.at(time.Now().Add(wait), func() { s.tryEndJob(j) })
		return
	}
	if j.fails {
		j.status = jobFailed
		for _, m := range j.group.members {
			j.group.undo(m)
		}
	} else {
		j.status = jobSucceeded
		j.end()
	}
	j.modified = time.Now()
	b.mu.Unlock()
	j.group.job = nil
	for j.group.job == nil && len(j.group.waiting) > 0 {
		next := j.group.waiting[0]
		j.group.waiting = j.group.waiting[1:]
		next()
	}
}

// drainWait is how long to wait before looking again; 0: all have drained.
func (j *serverJob) drainWait() time.Duration {
	b := j.group.balancer
	if !b.cfg.DrainInJob {
		return 0
	}
	var wait time.Duration
	for _, m := range j.leaving {
		switch {
		case !m.draining(b.virtual) || !m.leftAt.IsZero():
		case b.virtual:
			wait = max(wait, time.Until(m.drains))
		default:
			wait = max(wait, drainPoll)
		}
	}
	return wait
}

// undo takes back what a job that failed had begun. One that was joining is not there.
func (g *serverGroup) undo(m *member) {
	switch m.status {
	case serverAdding:
		g.drop(m)
	case serverRemoving:
		m.keep()
		m.turn(serverAvailable)
	case serverConfiguring:
		m.turn(serverAvailable)
	}
}

// addServers, removeServers and updateServers are the changes of a server group of ALB
// and NLB: a status at once, the effect when the job is done. The caller holds s.mu.
func (s *Simulator) addServers(g *serverGroup, members []*member, fails bool, then func()) *serverJob {
	b := g.balancer
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range members {
		m.status = serverAdding
		s.enter(g, m, false)
	}
	return s.startJob(g, "AddServersToServerGroup", fails, nil, func() {
		for _, m := range members {
			if m.status == serverAdding {
				m.turn(serverAvailable)
			}
		}
		s.afterJob(then)
	})
}

func (s *Simulator) removeServers(g *serverGroup, members []*member, fails bool, then func()) *serverJob {
	b := g.balancer
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range members {
		g.retire(m)
	}
	return s.startJob(g, "RemoveServersFromServerGroup", fails, members, func() {
		for _, m := range members {
			g.drop(m)
		}
		s.afterJob(then)
	})
}

func (s *Simulator) updateServers(g *serverGroup, members []*member, fails bool, update func(i int, m *member)) *serverJob {
	b := g.balancer
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range members {
		m.turn(serverConfiguring)
	}
	return s.startJob(g, "UpdateServerGroupServersAttribute", fails, nil, func() {
		for i, m := range members {
			update(i, m)
			if m.status == serverConfiguring {
				m.turn(serverAvailable)
			}
		}
	})
}

// afterJob runs f outside of the balancer's mutex, in this same moment.
func (s *Simulator) afterJob(f func()) {
	if f != nil {
		s.clock.at(time.Now(), f)
	}
}

// whenFree runs a change of Auto Scaling's own as soon as no job changes the group; its
// changes wait for their turn rather than fail.
func (s *Simulator) whenFree(g *serverGroup, f func()) {
	if g.job == nil {
		f()
		return
	}
	g.waiting = append(g.waiting, f)
}

// attachment is a membership that Auto Scaling keeps up, or not.
type attachment struct {
	group *serverGroup
	cfg   MembershipConfig
}

// attachments are all memberships of a group's first instances.
func (s *Simulator) attachments(cfg GroupConfig) []attachment {
	var out []attachment
	for _, id := range cfg.Balancers {
		out = append(out, attachment{s.serverGroup(id), MembershipConfig{ID: id, Weight: 100}})
	}
	for _, m := range cfg.ServerGroups {
		out = append(out, attachment{s.serverGroup(m.ID), m})
	}
	return out
}

// members makes a member for each instance and port.
func (a attachment) members(ins []*instance) []*member {
	var out []*member
	for _, in := range ins {
		for _, port := range a.ports() {
			if a.group.find(in.id, port) == nil {
				out = append(out, newMember(in, port, a.cfg.Weight, serverAvailable))
			}
		}
	}
	return out
}

func (a attachment) ports() []int {
	if len(a.cfg.Ports) == 0 {
		return []int{a.group.cfg.Port}
	}
	return a.cfg.Ports
}

// found are the members that the instances have in the group, on any port: an instance
// that leaves a scaling group leaves all of them.
func (a attachment) found(ins []*instance) []*member {
	var out []*member
	for _, in := range ins {
		for _, m := range a.group.byID[in.id] {
			if m.status != serverRemoving {
				out = append(out, m)
			}
		}
	}
	return out
}

// asynchronous says whether changes of the balancer take a job.
func (b *balancer) asynchronous() bool { return b.cfg.Type == typeALB || b.cfg.Type == typeNLB }

// settle puts the first instances of a group where they are members at the start.
func (s *Simulator) settle(g *group, in *instance) {
	for _, a := range g.attachments {
		b := a.group.balancer
		b.mu.Lock()
		for _, m := range a.members([]*instance{in}) {
			s.enter(a.group, m, true)
		}
		b.mu.Unlock()
	}
}

// attach puts instances into the server groups that Auto Scaling knows of, and runs then
// when they are all in. The caller holds s.mu.
func (s *Simulator) attach(g *group, ins []*instance, then func()) {
	s.forAttached(g, then, func(a attachment, done func()) {
		b := a.group.balancer
		b.mu.Lock()
		members := a.members(ins)
		if !b.asynchronous() {
			for _, m := range members {
				s.register(a.group, m)
			}
		}
		b.mu.Unlock()
		if !b.asynchronous() || len(members) == 0 {
			done()
			return
		}
		s.addServers(a.group, members, false, done)
	})
}

// detach takes instances out of the server groups that Auto Scaling knows of, and runs
// then when they are all out.
func (s *Simulator) detach(g *group, ins []*instance, then func()) {
	s.forAttached(g, then, func(a attachment, done func()) {
		b := a.group.balancer
		if b.cfg.onAWS() {
			s.awaitDeregistration(a.group, ins, done)
			return
		}
		b.mu.Lock()
		members := a.found(ins)
		if !b.asynchronous() {
			for _, m := range members {
				a.group.drop(m)
			}
		}
		b.mu.Unlock()
		if !b.asynchronous() || len(members) == 0 {
			done()
			return
		}
		s.removeServers(a.group, members, false, done)
	})
}

// forAttached has a change made in each attached server group, as soon as that is free,
// and runs then after the last.
func (s *Simulator) forAttached(g *group, then func(), change func(a attachment, done func())) {
	pending := 1
	done := func() {
		if pending--; pending == 0 {
			then()
		}
	}
	for _, a := range g.attachments {
		if !a.cfg.Unattached {
			pending++
			s.whenFree(a.group, func() { change(a, done) })
		}
	}
	done()
}

// forget takes a released instance out of every server group at once: a machine that is
// gone has no connections either. That ALB and NLB do so by themselves, and not only
// CLB, is an assumption. A target group that knows addresses alone does not learn of it.
func (s *Simulator) forget(in *instance) {
	for _, b := range s.balancers {
		b.mu.Lock()
		for _, g := range b.groups {
			if g.cfg.TargetType == targetIP {
				s.abandon(g, in.id)
				continue
			}
			for _, m := range slices.Clone(g.byID[in.id]) {
				g.drop(m)
			}
		}
		b.mu.Unlock()
	}
}

// SetHealth makes an instance answer health checks with failure, or well again. With
// Options.NoServers the balancers notice after as many intervals as their checks need.
func (s *Simulator) SetHealth(instanceID string, healthy bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	in := s.instances[instanceID]
	if in == nil {
		return &InputError{text: "there is no instance " + instanceID, notFound: true}
	}
	in.sick = !healthy
	if in.backend != nil {
		in.backend.down.Store(!healthy)
	}
	if !s.options.NoServers {
		return nil
	}
	for _, b := range s.balancers {
		n := b.cfg.HealthCheck.Fall
		if healthy {
			n = b.cfg.HealthCheck.Rise
		}
		b.mu.Lock()
		for _, g := range b.groups {
			for _, m := range g.byID[in.id] {
				s.checkVirtually(m, time.Duration(n)*b.cfg.HealthCheck.Interval, healthy)
			}
		}
		b.mu.Unlock()
	}
	return nil
}

// attachedBalancers is what DescribeScalingGroups says of the balancers that Auto Scaling
// puts instances into. That an ALB server group stands in AlbServerGroups and in
// ServerGroups alike is an assumption: the vendor has a call of its own to attach each
// way and one description for both lists.
func (c *rpcCall) attachedBalancers(g *group) object {
	var balancers, configs, virtual, alb, groups []any
	for _, a := range g.attachments {
		b := a.group.balancer
		switch {
		case a.cfg.Unattached || b.cfg.Type == "":
		case b.cfg.Type == typeCLB && a.group.cfg.ID == b.cfg.ID:
			balancers = append(balancers, b.cfg.ID)
			configs = append(configs, object{"LoadBalancerId": b.cfg.ID, "Weight": a.cfg.Weight})
		case b.cfg.Type == typeCLB:
			var ports []any
			for _, port := range a.cfg.Ports {
				ports = append(ports, object{"VServerGroupId": a.group.cfg.ID, "Port": port, "Weight": a.cfg.Weight})
			}
			virtual = append(virtual, object{"LoadBalancerId": b.cfg.ID, "VServerGroupAttributes": c.list("VServerGroupAttribute", ports)})
		default:
			for _, port := range a.cfg.Ports {
				if b.cfg.Type == typeALB {
					alb = append(alb, object{"AlbServerGroupId": a.group.cfg.ID, "Port": port, "Weight": a.cfg.Weight})
				}
				groups = append(groups, object{"ServerGroupId": a.group.cfg.ID, "Type": strings.ToUpper(b.cfg.Type), "Port": port, "Weight": a.cfg.Weight})
			}
		}
	}
	return object{
		"LoadBalancerIds": c.list("LoadBalancerId", balancers), "LoadBalancerConfigs": c.list("LoadBalancerConfig", configs),
		"VServerGroups":   c.list("VServerGroup", virtual),
		"AlbServerGroups": c.list("AlbServerGroup", alb), "ServerGroups": c.list("ServerGroup", groups),
	}
}
