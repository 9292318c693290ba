package simulator

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The types of load balancers: three of Alibaba Cloud, three of AWS.
const (
	typeCLB = "clb"
	typeALB = "alb"
	typeNLB = "nlb"

	typeELB         = "elb" // a classic one
	typeApplication = "application"
	typeNetwork     = "network"
)

// What a target group of AWS names its targets by.
const (
	targetInstance = "instance"
	targetIP       = "ip"
)

// defaultDrain is for how long AWS lets connections live on where nothing else is said.
const defaultDrain = 5 * time.Minute

// The protocols of listeners. Requests of an http listener are shared out one by one, a
// connection of a tcp listener stays with its server.
const (
	protocolHTTP = "http"
	protocolTCP  = "tcp"
)

// BalancerConfig is one load balancer, a real proxy on loopback.
type BalancerConfig struct {
	ID string `yaml:"id"`
	// Type is clb, alb or nlb, on AWS elb, application or network: which API it has.
	// Without a type it has none, and is managed by Auto Scaling alone.
	Type   string `yaml:"type"`
	Listen string `yaml:"listen"` // of the first listener unless it has its own; a loopback address, default 127.0.0.1:0
	// ServerGroups of alb and nlb; vServer groups of clb, which has a default server
	// group under its own id besides; target groups of application and network. An elb has
	// that under its own id alone.
	ServerGroups []ServerGroupConfig `yaml:"server_groups"`
	Listeners    []ListenerConfig    `yaml:"listeners"` // default: one for each server group, ports 80, 81 ..
	HealthCheck  HealthCheck         `yaml:"health_check"`
	// ConnectionDrainTimeout is after what time the connections of a member that was
	// taken out or is unhealthy are cut; 0: never. It is the default of the server
	// groups, of clb and without a type that of the listeners. On AWS it is the
	// deregistration delay of target groups, and what connection draining allows on elb:
	// up to 1h, default 5m.
	ConnectionDrainTimeout time.Duration `yaml:"connection_drain_timeout"`
	// ConnectionDraining, on AWS only, false: no connection outlives its member's removal.
	// On elb it switches draining off, on target groups it makes the delay 0. Default true.
	ConnectionDraining *bool `yaml:"connection_draining"`
	// JobDuration is how long a change of a server group takes (alb and nlb, default
	// 1s). On clb, where a change has its effect at once, it is for how long the next
	// one is refused with BackendServer.configuring (default 0). On AWS it is how long a
	// registration is in progress (default 0).
	JobDuration time.Duration `yaml:"job_duration"`
	// DrainInJob makes the job of a removal, and the status Removing, last until the
	// removed servers' connections have drained. The vendor's page on connection draining
	// reads as if it were so; the API's own pages do not say (unconfirmed).
	DrainInJob bool `yaml:"drain_in_job"`
}

// ServerGroupConfig is a server group of ALB or NLB, a vServer group of CLB, or a target
// group of AWS.
type ServerGroupConfig struct {
	ID   string `yaml:"id"`
	Name string `yaml:"name"` // default: the id
	// ConnectionDrainTimeout of alb, nlb and target groups; default: the balancer's.
	ConnectionDrainTimeout time.Duration `yaml:"connection_drain_timeout"`
	// TargetType of a target group is instance (default) or ip: what names its targets.
	TargetType string `yaml:"target_type"`
	// Port of a target group is that of targets without one; default 80.
	Port int `yaml:"port"`
}

// ListenerConfig is a listener and the server group that it forwards to.
type ListenerConfig struct {
	ID          string `yaml:"id"`           // default: made of the balancer's id and the port
	Port        int    `yaml:"port"`         // as the API has it; nothing listens there
	Protocol    string `yaml:"protocol"`     // http or tcp; default tcp, on alb, elb, application and without a type http
	ServerGroup string `yaml:"server_group"` // default: the first
	BackendPort int    `yaml:"backend_port"` // clb and elb with the default server group; default: the port
	Listen      string `yaml:"listen"`       // where it really listens; a loopback address, default 127.0.0.1:0
	// ConnectionDrainTimeout of clb; default: the balancer's.
	ConnectionDrainTimeout time.Duration `yaml:"connection_drain_timeout"`
}

// MembershipConfig puts a scaling group's instances into a server group.
type MembershipConfig struct {
	ID    string `yaml:"id"`    // of the server group; for the default one of a clb, the balancer's
	Ports []int  `yaml:"ports"` // a membership each; none for the default server group of a clb or elb; default: the target group's
	// Weight is 1 to 100, default 100.
	Weight int `yaml:"weight"`
	// Unattached keeps it from Auto Scaling: only the instances that are there at the
	// start are members, DescribeScalingGroups does not list the server group, and what
	// is to leave or to join it is the business of others.
	Unattached bool `yaml:"unattached"`
}

// groups are the server groups, with the one that has the balancer's id.
func (b BalancerConfig) groups() []ServerGroupConfig {
	var own []ServerGroupConfig
	if b.hasOwnGroup() {
		own = append(own, ServerGroupConfig{ID: b.ID, Name: b.ID})
		if b.Type == typeELB {
			own[0].ConnectionDrainTimeout = b.ConnectionDrainTimeout
		}
	}
	return append(own, b.ServerGroups...)
}

// hasOwnGroup says whether there is a server group under the balancer's own id.
func (b BalancerConfig) hasOwnGroup() bool {
	return b.Type == "" || b.Type == typeCLB || b.Type == typeELB
}

// perListener says where the balancer sets connection draining.
func (b BalancerConfig) perListener() bool { return b.Type == "" || b.Type == typeCLB }

// hasTargets says whether the server groups are target groups.
func (b BalancerConfig) hasTargets() bool { return b.Type == typeApplication || b.Type == typeNetwork }

// onAWS says whether the balancer is one of AWS, with an API.
func (b BalancerConfig) onAWS() bool { return b.Type == typeELB || b.hasTargets() }

// byAddress says whether the target group names its targets by address.
func (b BalancerConfig) byAddress(group string) bool {
	return slices.ContainsFunc(b.ServerGroups, func(g ServerGroupConfig) bool { return g.ID == group && g.TargetType == targetIP })
}

// drains says whether connections may outlive their member's removal, on AWS.
func (b BalancerConfig) drains() bool { return b.ConnectionDraining == nil || *b.ConnectionDraining }

func (b *BalancerConfig) setDefaults() {
	set(&b.Listen, "127.0.0.1:0")
	set(&b.HealthCheck.Path, "/healthz")
	set(&b.HealthCheck.Interval, time.Second)
	set(&b.HealthCheck.Timeout, time.Second)
	set(&b.HealthCheck.Fall, 2)
	set(&b.HealthCheck.Rise, 2)
	if b.Type == typeALB || b.Type == typeNLB {
		set(&b.JobDuration, time.Second)
	}
	if b.onAWS() && b.drains() {
		set(&b.ConnectionDrainTimeout, defaultDrain)
	}
	b.ServerGroups = slices.Clone(b.ServerGroups)
	for i := range b.ServerGroups {
		g := &b.ServerGroups[i]
		set(&g.Name, g.ID)
		if !b.perListener() {
			set(&g.ConnectionDrainTimeout, b.ConnectionDrainTimeout)
		}
		if b.hasTargets() {
			set(&g.TargetType, targetInstance)
			set(&g.Port, 80)
		}
	}
	b.Listeners = slices.Clone(b.Listeners)
	if len(b.Listeners) == 0 {
		for i, g := range b.groups() {
			b.Listeners = append(b.Listeners, ListenerConfig{Port: 80 + i, ServerGroup: g.ID})
		}
	}
	for i := range b.Listeners {
		b.setListener(&b.Listeners[i], i == 0)
	}
}

func (b *BalancerConfig) setListener(l *ListenerConfig, first bool) {
	if first {
		set(&l.Listen, b.Listen)
	}
	set(&l.Listen, "127.0.0.1:0")
	if b.Type == "" || b.Type == typeALB || b.Type == typeELB || b.Type == typeApplication {
		set(&l.Protocol, protocolHTTP)
	}
	set(&l.Protocol, protocolTCP)
	if groups := b.groups(); len(groups) > 0 {
		set(&l.ServerGroup, groups[0].ID)
	}
	set(&l.BackendPort, l.Port)
	id := fmt.Sprintf("lsn-%s-%d", b.ID, l.Port)
	if b.Type == typeNLB {
		id = fmt.Sprintf("lsn-%s@%d", b.ID, l.Port)
	}
	set(&l.ID, id)
	if b.perListener() && (b.Type == "" || l.Protocol == protocolTCP) {
		set(&l.ConnectionDrainTimeout, b.ConnectionDrainTimeout)
	}
}

// serverGroups says which server groups there are, and of which balancer.
type serverGroups map[string]BalancerConfig

func (c *checker) balancers(sc Scenario) (map[string]bool, serverGroups) {
	seen, groups, listeners := map[string]bool{}, serverGroups{}, map[string]bool{}
	for i, b := range sc.Balancers {
		at := fmt.Sprintf("balancers[%d].", i)
		c.unique(at+"id", b.ID, seen, idPattern)
		if b.Type != "" {
			c.oneOf(at+"type", b.Type, sc.balancerTypes()...)
		}
		c.balancer(at, sc, b)
		for _, g := range b.groups() {
			groups[g.ID] = b
		}
		for j, l := range b.Listeners {
			if listeners[l.ID] {
				c.add(fmt.Sprintf("%slisteners[%d].id", at, j), "%q is there twice", l.ID)
			}
			listeners[l.ID] = true
		}
	}
	ids := map[string]bool{}
	for i, b := range sc.Balancers {
		if b.hasOwnGroup() {
			ids[b.ID] = true
		}
		for j, g := range b.ServerGroups {
			c.unique(fmt.Sprintf("balancers[%d].server_groups[%d].id", i, j), g.ID, ids, idPattern)
		}
	}
	return seen, groups
}

func (c *checker) balancer(at string, sc Scenario, b BalancerConfig) {
	c.loopback(at+"listen", b.Listen)
	if !strings.HasPrefix(b.HealthCheck.Path, "/") {
		c.add(at+"health_check.path", "must begin with /, got %q", b.HealthCheck.Path)
	}
	c.between(at+"health_check.interval", b.HealthCheck.Interval, 10*time.Millisecond, time.Minute)
	c.between(at+"health_check.timeout", b.HealthCheck.Timeout, 10*time.Millisecond, 5*time.Minute)
	c.drain(at, sc, b, b.ConnectionDrainTimeout)
	c.between(at+"job_duration", b.JobDuration, 0, time.Hour)
	for name, n := range map[string]int{"fall": b.HealthCheck.Fall, "rise": b.HealthCheck.Rise} {
		if n < 1 || n > 10 {
			c.add(at+"health_check."+name, "must be 1 to 10, got %d", n)
		}
	}
	switch {
	case b.Type == "" && len(b.ServerGroups) > 0:
		c.add(at+"server_groups", "a balancer without a type has none")
	case b.Type == typeELB && len(b.ServerGroups) > 0:
		c.add(at+"server_groups", "elb has none; members go into the one with its id")
	case !b.hasOwnGroup() && len(b.ServerGroups) == 0:
		c.add(at+"server_groups", "%s needs one or more", b.Type)
	}
	if b.ConnectionDraining != nil && !b.onAWS() {
		c.add(at+"connection_draining", "only elb, application and network have it")
	}
	for j, g := range b.ServerGroups {
		at := fmt.Sprintf("%sserver_groups[%d].", at, j)
		c.drain(at, sc, b, g.ConnectionDrainTimeout)
		c.targetGroup(at, b, g)
		if b.Type == typeCLB && g.ConnectionDrainTimeout > 0 {
			c.add(at+"connection_drain_timeout", "clb sets it on its listeners")
		}
	}
	ports := map[int]bool{}
	for j, l := range b.Listeners {
		at := fmt.Sprintf("%slisteners[%d].", at, j)
		c.listener(at, sc, b, l)
		if ports[l.Port] {
			c.add(at+"port", "%d is there twice", l.Port)
		}
		ports[l.Port] = true
	}
}

func (c *checker) listener(at string, sc Scenario, b BalancerConfig, l ListenerConfig) {
	c.port(at+"port", l.Port)
	c.port(at+"backend_port", l.BackendPort)
	c.loopback(at+"listen", l.Listen)
	c.drain(at, sc, b, l.ConnectionDrainTimeout)
	switch b.Type {
	case typeALB, typeApplication:
		c.oneOf(at+"protocol", l.Protocol, protocolHTTP)
	case typeNLB, typeNetwork:
		c.oneOf(at+"protocol", l.Protocol, protocolTCP)
	default:
		c.oneOf(at+"protocol", l.Protocol, protocolHTTP, protocolTCP)
	}
	groups := map[string]bool{}
	for _, g := range b.groups() {
		groups[g.ID] = true
	}
	if !groups[l.ServerGroup] {
		c.add(at+"server_group", "no server group %q; there are %s", l.ServerGroup, names(groups))
	}
	switch {
	case l.ConnectionDrainTimeout == 0:
	case b.Type == typeELB:
		c.add(at+"connection_drain_timeout", "elb sets it on the balancer")
	case !b.perListener():
		c.add(at+"connection_drain_timeout", "%s sets it on its server groups", b.Type)
	case b.Type == typeCLB && l.Protocol != protocolTCP:
		c.add(at+"connection_drain_timeout", "clb has it on tcp listeners only")
	}
}

// targetGroup checks what only target groups have.
func (c *checker) targetGroup(at string, b BalancerConfig, g ServerGroupConfig) {
	if b.hasTargets() {
		c.oneOf(at+"target_type", g.TargetType, targetInstance, targetIP)
		c.port(at+"port", g.Port)
		if !targetGroupNamePattern.MatchString(g.Name) {
			c.add(at+"name", "%q does not match %v", g.Name, targetGroupNamePattern)
		}
		return
	}
	if g.TargetType != "" {
		c.add(at+"target_type", "only application and network have it")
	}
	if g.Port != 0 {
		c.add(at+"port", "only application and network have it")
	}
}

var targetGroupNamePattern = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?$`)

// balancerTypes are those that the scenario's cloud has.
func (sc Scenario) balancerTypes() []string {
	if sc.Provider == providerAWS {
		return []string{typeELB, typeApplication, typeNetwork}
	}
	return []string{typeCLB, typeALB, typeNLB}
}

// drain checks a connection drain timeout: 10-900 s on CLB, 0-900 s on ALB and NLB, up to
// 3600 s on AWS.
func (c *checker) drain(at string, sc Scenario, b BalancerConfig, d time.Duration) {
	low, high := time.Duration(0), 15*time.Minute
	switch {
	case b.Type == typeCLB && d != 0 && !sc.Lax:
		low = 10 * time.Second
	case b.onAWS():
		high = time.Hour
	}
	if b.onAWS() && !b.drains() && d != 0 {
		c.add(at+"connection_drain_timeout", "connection_draining is false")
	}
	c.between(at+"connection_drain_timeout", d, low, high)
}

func (c *checker) loopback(path, text string) {
	if addr, err := netip.ParseAddrPort(text); err != nil || !addr.Addr().IsLoopback() {
		c.add(path, "must be a loopback address with a port, such as 127.0.0.1:0, got %q", text)
	}
}

func (c *checker) port(path string, n int) {
	if n < 1 || n > 65535 {
		c.add(path, "must be 1 to 65535, got %d", n)
	}
}

// memberships checks where a scaling group's instances are members.
func (c *checker) memberships(at string, g GroupConfig, balancers map[string]bool, groups serverGroups) {
	for j, id := range g.Balancers {
		path := fmt.Sprintf("%sbalancers[%d]", at, j)
		if !balancers[id] {
			c.add(path, "no balancer %q; there are %s", id, names(balancers))
		} else if _, there := groups[id]; !there {
			c.add(path, "%q has no default server group; name one of its own under server_groups", id)
		}
	}
	seen := map[string]bool{}
	for j, m := range g.ServerGroups {
		at := fmt.Sprintf("%sserver_groups[%d].", at, j)
		b, there := groups[m.ID]
		switch {
		case !there:
			ids := map[string]bool{}
			for id := range groups {
				ids[id] = true
			}
			c.add(at+"id", "no server group %q; there are %s", m.ID, names(ids))
		case seen[m.ID] || slices.Contains(g.Balancers, m.ID):
			c.add(at+"id", "%q is there twice", m.ID)
		case b.ID == m.ID && len(m.Ports) > 0:
			c.add(at+"ports", "the listeners of %q say the port", m.ID)
		case b.ID != m.ID && len(m.Ports) == 0 && !b.hasTargets():
			c.add(at+"ports", "needs one or more")
		case !m.Unattached && b.byAddress(m.ID):
			c.add(at+"unattached", "must be true: Auto Scaling attaches target groups of type instance only")
		}
		seen[m.ID] = true
		ports := map[int]bool{}
		for _, p := range m.Ports {
			c.port(at+"ports", p)
			if ports[p] {
				c.add(at+"ports", "%d is there twice", p)
			}
			ports[p] = true
		}
		if m.Weight < 1 || m.Weight > 100 {
			c.add(at+"weight", "must be 1 to 100, got %d", m.Weight)
		}
	}
	zones := map[string]bool{}
	for j, z := range g.Zones {
		c.unique(fmt.Sprintf("%szones[%d]", at, j), z, zones, idPattern)
	}
}
