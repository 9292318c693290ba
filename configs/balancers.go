package configs

import (
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"example.org/usher/messages"
)

// The defaults of deregister and register.
const (
	DefaultDeregisterTimeout = 10 * time.Minute
	DefaultRegisterTimeout   = 5 * time.Minute
	DefaultWeightZero        = 10 * time.Second
	DefaultMargin            = time.Minute
	DefaultDNSTTL            = time.Minute
	DefaultWeight            = 100
)

// What DeregisterStep.Drain can be.
const (
	// DrainWait waits for the balancers' own connection draining.
	DrainWait = "wait"
	// DrainSkip only waits until the balancers list the instance no longer.
	DrainSkip = "skip"
)

// What DeregisterStep.LastHealthy can be.
const (
	LastWait   = "wait_dns_ttl"
	LastRefuse = "refuse"
	LastIgnore = "ignore"
)

// What RegisterStep.Wait can be.
const (
	WaitHealthy = "healthy"
	WaitNone    = "none"
)

// balancerAuto stands for all balancers of a kind that list the instance.
const balancerAuto = "auto"

// The kinds of balancer.
const (
	BalancerCLB      = "clb"
	BalancerCLBGroup = "clb-vserver-group"
	BalancerALB      = "alb"
	BalancerNLB      = "nlb"

	BalancerELB         = "elb"
	BalancerTargetGroup = "target-group"
)

// Balancer is one balancer, or all of a kind.
type Balancer struct {
	// Kind is BalancerCLB, BalancerCLBGroup, BalancerALB or BalancerNLB, on AWS BalancerELB or
	// BalancerTargetGroup.
	Kind string
	// ID is of a CLB instance, a virtual server group, or a server group; of a classic balancer
	// its name, and of a target group its ARN. Empty: all of the kind, virtual server groups
	// being of CLB.
	ID string
}

// DeregisterStep takes the instance out of balancers.
type DeregisterStep struct {
	Balancers []Balancer
	// Drain is DrainWait or DrainSkip.
	Drain string
	// WeightZero is how long the instance keeps weight 0 before it is removed, where a
	// removal may cut connections; 0: not at all.
	WeightZero time.Duration
	// Margin is how much longer than its own draining a balancer may list the instance.
	Margin time.Duration
	// LastHealthy is LastWait, LastRefuse or LastIgnore; DNSTTL is for LastWait.
	LastHealthy string
	DNSTTL      time.Duration
}

// RegisterStep puts the instance into balancers.
type RegisterStep struct {
	Balancers []Balancer
	// Port is the instance's; 0: the one that a group's members have in common.
	Port   int
	Weight int
	// Ramp is how long the weight takes to grow to Weight; 0: it is there at once.
	Ramp time.Duration
	// Wait is WaitHealthy or WaitNone.
	Wait string
}

// UsesBalancers says whether one of the group's steps calls balancers.
func (g Group) UsesBalancers() bool {
	for _, h := range g.Plans() {
		for s := range h.Each() {
			if s.Deregister != nil || s.Register != nil || s.WaitConnections != nil && len(s.WaitConnections.GapFrom) > 0 {
				return true
			}
		}
	}
	return false
}

// unweighted refuses the keys that are about weights where members have none, and says so.
func (m fields) unweighted(keys ...string) bool {
	if m.cloud() != aws {
		return false
	}
	for _, key := range keys {
		if m.keys[key] != nil {
			m.refuse(key, "members of AWS's balancers have no weight")
		}
	}
	return true
}

func (f *file) deregisterStep(s *Step, n *yaml.Node, path string) {
	m := f.stepFields(n, path, "balancers", "drain", "weight_zero", "margin", "last_healthy", "dns_ttl")
	m.common(s, DefaultDeregisterTimeout)
	d := &DeregisterStep{
		Drain:       m.choice("drain", DrainWait, DrainWait, DrainSkip),
		WeightZero:  m.duration("weight_zero", DefaultWeightZero, 0, time.Hour),
		Margin:      m.duration("margin", DefaultMargin, time.Second, time.Hour),
		LastHealthy: m.choice("last_healthy", LastWait, LastWait, LastRefuse, LastIgnore),
	}
	s.Deregister = d
	if n.Kind != yaml.MappingNode {
		return
	}
	if m.unweighted("weight_zero") {
		d.WeightZero = 0
	}
	d.Balancers = m.balancers("balancers", true)
	if d.LastHealthy == LastWait {
		d.DNSTTL = m.duration("dns_ttl", DefaultDNSTTL, 0, time.Hour)
	} else if m.keys["dns_ttl"] != nil {
		m.refuse("dns_ttl", "only with last_healthy: %s", LastWait)
	}
	if need := d.DNSTTL + d.WeightZero; need >= s.Timeout {
		m.refuse("timeout", "dns_ttl %s and weight_zero %s take %s, the timeout is %s", show(d.DNSTTL), show(d.WeightZero), show(need), show(s.Timeout))
	}
}

func (f *file) registerStep(s *Step, n *yaml.Node, path string) {
	m := f.stepFields(n, path, "balancers", "port", "weight", "ramp", "wait")
	m.common(s, DefaultRegisterTimeout)
	r := &RegisterStep{
		Port:   m.count("port", 0, 1, 65535),
		Weight: m.count("weight", DefaultWeight, 1, 100),
		Ramp:   m.duration("ramp", 0, 0, time.Hour),
		Wait:   m.choice("wait", WaitHealthy, WaitHealthy, WaitNone),
	}
	s.Register = r
	if n.Kind != yaml.MappingNode {
		return
	}
	if m.unweighted("weight", "ramp") {
		r.Weight, r.Ramp = DefaultWeight, 0
	}
	r.Balancers = m.balancers("balancers", false)
	if r.Ramp >= s.Timeout {
		m.refuse("timeout", "ramp takes %s, the timeout is %s", show(r.Ramp), show(s.Timeout))
	}
	portless := m.cloud().portless
	if m.keys["port"] != nil && len(r.Balancers) > 0 && !slices.ContainsFunc(r.Balancers, func(b Balancer) bool { return b.Kind != portless }) {
		m.refuse("port", "the listeners of %s say the port: only the members of groups have one", portless)
	}
}

// balancers reads auto, or a list of balancers.
func (m fields) balancers(key string, auto bool) []Balancer {
	c := m.cloud()
	forms := c.balancerForms
	if auto {
		forms = strings.Join(c.autos, ":auto, ") + ":auto, " + forms
	}
	allowed := "a list of " + forms
	if auto {
		allowed = "auto, or " + allowed
	}
	if !m.need(key, allowed) {
		return nil
	}
	if n := m.values[key]; n.Kind == yaml.ScalarNode {
		switch {
		case n.Value == balancerAuto && auto:
			var all []Balancer
			for _, kind := range c.autos {
				all = append(all, Balancer{Kind: kind})
			}
			return all
		case n.Value == balancerAuto:
			m.refuse(key, noAuto, c.service)
		default:
			m.refuse(key, "want %s, got %s", allowed, kind(n))
		}
		return nil
	}
	texts, nodes, paths := m.texts(key)
	if n := m.values[key]; n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		m.refuse(key, "the list is empty: want %s", allowed)
	}
	var out []Balancer
	for i, text := range texts {
		name, id, _ := strings.Cut(text, ":")
		b := Balancer{Kind: name, ID: id}
		pattern := c.balancers[name]
		switch {
		case id == balancerAuto && !auto && pattern != nil:
			m.problem(nodes[i], paths[i], noAuto, c.service)
			continue
		case id == balancerAuto && slices.Contains(c.autos, name):
			b.ID = ""
		case pattern == nil && foreignBalancer(c, name) != "":
			m.problem(nodes[i], paths[i], "%s is of provider: %s; want one of %s", name, foreignBalancer(c, name), forms)
			continue
		case pattern == nil || !pattern.MatchString(id):
			m.problem(nodes[i], paths[i], "want one of %s, got %s", forms, clip(text))
			continue
		case name == BalancerTargetGroup && m.region != "" && strings.Split(id, ":")[3] != m.region:
			m.problem(nodes[i], paths[i], "is in %s, the group is in %s", strings.Split(id, ":")[3], m.region)
			continue
		}
		if slices.Contains(out, b) {
			m.problem(nodes[i], paths[i], "%s is in the list twice", text)
			continue
		}
		out = append(out, b)
	}
	return out
}

const noAuto = "auto is for deregister: %s puts an instance into the balancers it knows when the hook ends; name the others"

// foreignBalancer is the provider of a kind of balancer that c has not, "" for none.
func foreignBalancer(c *cloud, kind string) string {
	for _, other := range clouds {
		if other != c && other.balancers[kind] != nil {
			return other.provider
		}
	}
	return ""
}

// checkBalancers refuses what would work against the cloud's own scaling.
func (m fields) checkBalancers(h Hook) {
	for s := range h.Each() {
		if s.Register != nil && h.Transition == messages.ScaleIn || s.Deregister != nil && h.Transition == messages.ScaleOut {
			m.refuse("steps", "line %d: %s is not for %s: instances %s", s.Line, s.Kind, h.Transition,
				map[messages.Transition]string{messages.ScaleIn: "leave", messages.ScaleOut: "join"}[h.Transition])
		}
	}
}
