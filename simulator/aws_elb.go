package simulator

import (
	"fmt"
	"slices"
	"strconv"
)

// This file is the API of classic balancers (ELB 2012-06-01). Their members have no port:
// the listeners say it.

var elbOperations = map[string]awsOperation{
	"DescribeLoadBalancers":               (*Simulator).elbDescribeLoadBalancers,
	"DescribeLoadBalancerAttributes":      (*Simulator).elbDescribeLoadBalancerAttributes,
	"DescribeInstanceHealth":              (*Simulator).describeInstanceHealth,
	"RegisterInstancesWithLoadBalancer":   (*Simulator).registerInstancesWithLoadBalancer,
	"DeregisterInstancesFromLoadBalancer": (*Simulator).deregisterInstancesFromLoadBalancer,
}

// elbResources names what a call is about, as policies do: a balancer, or for what only
// looks, everything.
func (s *Simulator) elbResources(c *awsCall) []string {
	switch c.action {
	case "RegisterInstancesWithLoadBalancer", "DeregisterInstancesFromLoadBalancer":
		return []string{s.awsARN("elasticloadbalancing", "loadbalancer/"+c.text("LoadBalancerName"))}
	}
	return []string{"*"}
}

func errNoClassic(name string) *awsError {
	return &awsError{status: 400, code: "LoadBalancerNotFound", message: "There is no ACTIVE Load Balancer named '" + name + "'"}
}

// errInvalidEndPoint refuses what is no instance (text unconfirmed).
func errInvalidEndPoint(id string) *awsError {
	return &awsError{status: 400, code: "InvalidInstance", message: "Could not find EC2 instance " + id + "."}
}

type elbInstance struct{ InstanceId string }

type elbListenerDescription struct {
	Listener struct {
		Protocol         string
		LoadBalancerPort int
		InstanceProtocol string
		InstancePort     int
	}
}

type elbLoadBalancer struct {
	LoadBalancerName     string
	DNSName              string
	ListenerDescriptions memberList[elbListenerDescription]
	AvailabilityZones    memberList[string]
	VPCId                string
	Instances            memberList[elbInstance]
	HealthCheck          struct {
		Target                               string
		Interval, Timeout                    int
		UnhealthyThreshold, HealthyThreshold int
	}
	CreatedTime string
	Scheme      string
}

type elbLoadBalancers struct {
	LoadBalancerDescriptions memberList[elbLoadBalancer]
	NextMarker               string `xml:",omitempty"`
}

func (s *Simulator) elbDescribeLoadBalancers(c *awsCall) (awsAnswer, *awsError) {
	names := c.members("LoadBalancerNames")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		if s.classic(name) == nil {
			return nil, errNoClassic(name)
		}
	}
	part, next, bad := elbPage(c, s.awsBalancers(func(b *balancer) bool {
		return b.cfg.Type == typeELB && (len(names) == 0 || slices.Contains(names, b.cfg.ID))
	}))
	if bad != nil {
		return nil, bad
	}
	answer := &elbLoadBalancers{NextMarker: next}
	for _, b := range part {
		answer.LoadBalancerDescriptions.Items = append(answer.LoadBalancerDescriptions.Items, s.describeClassic(b))
	}
	return answer, nil
}

// classic finds a classic balancer; nil: there is none. The caller holds s.mu.
func (s *Simulator) classic(name string) *balancer {
	if b := s.balancers[name]; b != nil && b.cfg.Type == typeELB {
		return b
	}
	return nil
}

func (s *Simulator) describeClassic(b *balancer) elbLoadBalancer {
	check := b.cfg.HealthCheck
	o := elbLoadBalancer{
		LoadBalancerName: b.cfg.ID, DNSName: s.balancerDNS(b), VPCId: awsVPC, CreatedTime: s.elbTime(b.created), Scheme: "internal",
	}
	o.AvailabilityZones.Items = []string{s.scenario.Region + "a"}
	o.HealthCheck.Target = "HTTP:" + strconv.Itoa(b.listeners[0].cfg.BackendPort) + check.Path
	o.HealthCheck.Interval, o.HealthCheck.Timeout = wholeSeconds(check.Interval), wholeSeconds(check.Timeout)
	o.HealthCheck.UnhealthyThreshold, o.HealthCheck.HealthyThreshold = check.Fall, check.Rise
	for _, l := range b.listeners {
		var x elbListenerDescription
		x.Listener.Protocol = map[string]string{protocolHTTP: "HTTP", protocolTCP: "TCP"}[l.cfg.Protocol]
		x.Listener.InstanceProtocol, x.Listener.LoadBalancerPort, x.Listener.InstancePort = x.Listener.Protocol, l.cfg.Port, l.cfg.BackendPort
		o.ListenerDescriptions.Items = append(o.ListenerDescriptions.Items, x)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	o.Instances = b.groups[0].registered()
	return o
}

// registered lists the instances of a classic balancer, without those that are leaving.
// The caller holds the balancer's mutex.
func (g *serverGroup) registered() memberList[elbInstance] {
	var list memberList[elbInstance]
	for _, m := range g.members {
		if m.status != serverRemoving {
			list.Items = append(list.Items, elbInstance{m.id})
		}
	}
	return list
}

type elbAttributes struct {
	LoadBalancerAttributes struct {
		CrossZoneLoadBalancing struct{ Enabled bool }
		AccessLog              struct{ Enabled bool }
		ConnectionDraining     struct {
			Enabled bool
			Timeout int
		}
		ConnectionSettings struct{ IdleTimeout int }
	}
}

func (s *Simulator) elbDescribeLoadBalancerAttributes(c *awsCall) (awsAnswer, *awsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, bad := s.namedClassic(c)
	if bad != nil {
		return nil, bad
	}
	answer := &elbAttributes{}
	a := &answer.LoadBalancerAttributes
	a.CrossZoneLoadBalancing.Enabled, a.ConnectionSettings.IdleTimeout = true, 60
	a.ConnectionDraining.Enabled, a.ConnectionDraining.Timeout = b.cfg.drains(), wholeSeconds(defaultDrain)
	if b.cfg.drains() {
		a.ConnectionDraining.Timeout = wholeSeconds(b.groups[0].delay())
	}
	return answer, nil
}

// namedClassic finds the balancer of LoadBalancerName. The caller holds s.mu.
func (s *Simulator) namedClassic(c *awsCall) (*balancer, *awsError) {
	name := c.text("LoadBalancerName")
	if name == "" {
		return nil, errMissingMember("LoadBalancerName")
	}
	if b := s.classic(name); b != nil {
		return b, nil
	}
	return nil, errNoClassic(name)
}

// classicInstances reads Instances.member.N.InstanceId. An instance that there is not is
// refused, and that goes for one that is gone (unconfirmed).
func (s *Simulator) classicInstances(c *awsCall) ([]*instance, *awsError) {
	var out []*instance
	for _, i := range c.indexes("Instances.member") {
		id := c.text(fmt.Sprintf("Instances.member.%d.InstanceId", i))
		switch in := s.instances[id]; {
		case in == nil:
			return nil, errInvalidEndPoint(id)
		case !slices.Contains(out, in):
			out = append(out, in)
		}
	}
	return out, nil
}

type elbInstances struct {
	Instances memberList[elbInstance]
}

// changeClassic is what registering and deregistering have in common. change runs under
// both mutexes.
func (s *Simulator) changeClassic(c *awsCall, change func(*serverGroup, []*instance)) (awsAnswer, *awsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, bad := s.namedClassic(c)
	if bad != nil {
		return nil, bad
	}
	ins, bad := s.classicInstances(c)
	switch {
	case bad != nil:
		return nil, bad
	case len(ins) == 0:
		return nil, errMissingMember("Instances")
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	change(b.groups[0], ins)
	return &elbInstances{b.groups[0].registered()}, nil
}

func (s *Simulator) registerInstancesWithLoadBalancer(c *awsCall) (awsAnswer, *awsError) {
	return s.changeClassic(c, func(g *serverGroup, ins []*instance) {
		for _, in := range ins {
			s.reregister(g, in, 0)
		}
	})
}

// deregisterInstancesFromLoadBalancer says nothing of instances that are not registered.
func (s *Simulator) deregisterInstancesFromLoadBalancer(c *awsCall) (awsAnswer, *awsError) {
	return s.changeClassic(c, func(g *serverGroup, ins []*instance) {
		for _, in := range ins {
			if m := g.find(in.id, 0); m != nil {
				s.deregister(g, []*member{m})
			}
		}
	})
}

// elbInstanceState is what DescribeInstanceHealth says of an instance.
type elbInstanceState struct{ InstanceId, State, ReasonCode, Description string }

type elbInstanceStates struct {
	InstanceStates memberList[elbInstanceState]
}

// describeInstanceHealth tells of the instances that are named, or of all that are in the
// balancer or on their way out of it.
func (s *Simulator) describeInstanceHealth(c *awsCall) (awsAnswer, *awsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, bad := s.namedClassic(c)
	if bad != nil {
		return nil, bad
	}
	ins, bad := s.classicInstances(c)
	if bad != nil {
		return nil, bad
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	g, answer := b.groups[0], &elbInstanceStates{}
	list := &answer.InstanceStates.Items
	for _, in := range ins {
		*list = append(*list, s.classicHealth(in.id, g.find(in.id, 0)))
	}
	if len(ins) == 0 {
		for _, m := range g.members {
			*list = append(*list, s.classicHealth(m.id, m))
		}
	}
	return answer, nil
}

// classicHealth tells of an instance; m is nil if the balancer does not have it.
func (s *Simulator) classicHealth(id string, m *member) elbInstanceState {
	in := s.instances[id]
	switch {
	case m == nil:
		return elbInstanceState{id, "OutOfService", "Instance", "Instance is not currently registered with the LoadBalancer."}
	case m.status == serverRemoving:
		return elbInstanceState{id, "InService", "N/A", "Instance deregistration currently in progress."}
	case in != nil && in.told.state == targetUnavailable:
		return elbInstanceState{id, "Unknown", "ELB", "A transient error occurred. Please try again later."}
	case in != nil && !in.running:
		return elbInstanceState{id, "OutOfService", "Instance", "Instance is in pending state."}
	case !m.known || m.status == serverAdding:
		return elbInstanceState{id, "OutOfService", "ELB", "Instance registration is still in progress."}
	case m.healthy:
		return elbInstanceState{id, "InService", "N/A", "N/A"}
	}
	return elbInstanceState{id, "OutOfService", "Instance", "Instance has failed at least the UnhealthyThreshold number of health checks consecutively."}
}
