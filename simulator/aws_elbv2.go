package simulator

import (
	"encoding/base64"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file is the API of the balancers with target groups (ELBv2 2015-12-01).

var elbv2Operations = map[string]awsOperation{
	"DescribeLoadBalancers":          (*Simulator).elbv2DescribeLoadBalancers,
	"DescribeLoadBalancerAttributes": (*Simulator).elbv2DescribeLoadBalancerAttributes,
	"DescribeTargetGroups":           (*Simulator).describeTargetGroups,
	"DescribeTargetGroupAttributes":  (*Simulator).describeTargetGroupAttributes,
	"ModifyTargetGroupAttributes":    (*Simulator).modifyTargetGroupAttributes,
	"DescribeTargetHealth":           (*Simulator).describeTargetHealth,
	"RegisterTargets":                (*Simulator).registerTargets,
	"DeregisterTargets":              (*Simulator).deregisterTargets,
}

// delayAttribute is the one attribute of a target group that can be changed here.
const delayAttribute = "deregistration_delay.timeout_seconds"

// maxELBPage is how many balancers or target groups a page has, at most and by default.
const maxELBPage = 400

var (
	errNoTargetGroup  = &awsError{status: 400, code: "TargetGroupNotFound", message: "One or more target groups not found"}
	errNoLoadBalancer = &awsError{status: 400, code: "LoadBalancerNotFound", message: "One or more load balancers not found"}
)

func errELBValidation(format string, values ...any) *awsError {
	return &awsError{status: 400, code: "ValidationError", message: fmt.Sprintf(format, values...)}
}

// errMissingMember refuses a call without a required parameter, which is named in lower
// camel case (text unconfirmed).
func errMissingMember(name string) *awsError {
	return errELBValidation("1 validation error detected: Value null at '%s%s' failed to satisfy constraint: Member must not be null", strings.ToLower(name[:1]), name[1:])
}

// elbv2Resources names what a call is about, as policies do: a target group, or for what
// only looks, everything.
func (s *Simulator) elbv2Resources(c *awsCall) []string {
	switch c.action {
	case "RegisterTargets", "DeregisterTargets", "ModifyTargetGroupAttributes":
		return []string{c.text("TargetGroupArn")}
	}
	return []string{"*"}
}

// elbPage cuts a list by Marker and PageSize; next is empty on the last page.
func elbPage[T any](c *awsCall, all []T) (part []T, next string, bad *awsError) {
	size, from := maxELBPage, 0
	if text := c.text("PageSize"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxELBPage {
			return nil, "", errELBValidation("1 validation error detected: Value '%s' at 'pageSize' failed to satisfy constraint: Member must have value between 1 and %d", text, maxELBPage)
		}
		size = n
	}
	if marker := c.text("Marker"); marker != "" {
		text, err := base64.RawURLEncoding.DecodeString(marker)
		n, err2 := strconv.Atoi(string(text))
		if err != nil || err2 != nil || n < 0 || n > len(all) {
			return nil, "", errELBValidation("The marker '%s' is not valid", marker)
		}
		from = n
	}
	to := min(from+size, len(all))
	if to < len(all) {
		next = base64.RawURLEncoding.EncodeToString([]byte(strconv.Itoa(to)))
	}
	return all[from:to], next, nil
}

// awsBalancers are the balancers that fit, in the scenario's order. The caller holds s.mu.
func (s *Simulator) awsBalancers(fits func(*balancer) bool) []*balancer {
	var out []*balancer
	for _, cfg := range s.scenario.Balancers {
		if b := s.balancers[cfg.ID]; fits(b) {
			out = append(out, b)
		}
	}
	return out
}

type elbv2LoadBalancer struct {
	LoadBalancerArn       string
	DNSName               string
	CanonicalHostedZoneId string
	CreatedTime           string
	LoadBalancerName      string
	Scheme                string
	VpcId                 string
	State                 struct{ Code string }
	Type                  string
	AvailabilityZones     memberList[struct{ ZoneName string }]
	IpAddressType         string
}

type elbv2LoadBalancers struct {
	LoadBalancers memberList[elbv2LoadBalancer]
	NextMarker    string `xml:",omitempty"`
}

// The made-up names of the network that everything is in.
const (
	awsVPC        = "vpc-0a1b2c3d4e5f60718"
	awsHostedZone = "Z32O12XQLNTSW2"
)

func (s *Simulator) elbv2DescribeLoadBalancers(c *awsCall) (awsAnswer, *awsError) {
	arns, names := c.members("LoadBalancerArns"), c.members("Names")
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.awsBalancers(func(b *balancer) bool {
		return b.cfg.hasTargets() && (len(arns) == 0 || slices.Contains(arns, s.loadBalancerARN(b))) && (len(names) == 0 || slices.Contains(names, b.cfg.ID))
	})
	if len(found) < max(len(arns), len(names)) {
		return nil, errNoLoadBalancer
	}
	part, next, bad := elbPage(c, found)
	if bad != nil {
		return nil, bad
	}
	answer := &elbv2LoadBalancers{NextMarker: next}
	for _, b := range part {
		o := elbv2LoadBalancer{
			LoadBalancerArn: s.loadBalancerARN(b), DNSName: s.balancerDNS(b), CanonicalHostedZoneId: awsHostedZone, CreatedTime: s.elbTime(b.created),
			LoadBalancerName: b.cfg.ID, Scheme: "internal", VpcId: awsVPC, Type: b.cfg.Type, IpAddressType: "ipv4",
		}
		o.State.Code = "active"
		o.AvailabilityZones.Items = append(o.AvailabilityZones.Items, struct{ ZoneName string }{s.scenario.Region + "a"})
		answer.LoadBalancers.Items = append(answer.LoadBalancers.Items, o)
	}
	return answer, nil
}

type elbv2LoadBalancerAttributes struct {
	Attributes memberList[elbAttribute]
}

// elbv2DescribeLoadBalancerAttributes tells whether a balancer sends across zones: always
// where it is an application one, and by default not where it is a network one.
func (s *Simulator) elbv2DescribeLoadBalancerAttributes(c *awsCall) (awsAnswer, *awsError) {
	arn := c.text("LoadBalancerArn")
	if arn == "" {
		return nil, errMissingMember("LoadBalancerArn")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.awsBalancers(func(b *balancer) bool { return b.cfg.hasTargets() && s.loadBalancerARN(b) == arn })
	if len(found) == 0 {
		return nil, errNoLoadBalancer
	}
	answer := &elbv2LoadBalancerAttributes{}
	across := strconv.FormatBool(found[0].cfg.Type == typeApplication)
	answer.Attributes.Items = []elbAttribute{{"deletion_protection.enabled", "false"}, {"load_balancing.cross_zone.enabled", across}}
	return answer, nil
}

// balancerDNS is the name of a balancer in the DNS, which nothing here serves.
func (s *Simulator) balancerDNS(b *balancer) string {
	return "internal-" + b.cfg.ID + "-" + resourceHex(b.cfg.ID)[:10] + "." + s.scenario.Region + ".elb.amazonaws.com"
}

func (s *Simulator) elbTime(t time.Time) string {
	return s.cloudTime(t).UTC().Format("2006-01-02T15:04:05.000Z")
}

type targetGroupDescription struct {
	TargetGroupArn             string
	TargetGroupName            string
	Protocol                   string
	Port                       int
	VpcId                      string
	HealthCheckProtocol        string
	HealthCheckPort            string
	HealthCheckEnabled         bool
	HealthCheckIntervalSeconds int
	HealthCheckTimeoutSeconds  int
	HealthyThresholdCount      int
	UnhealthyThresholdCount    int
	HealthCheckPath            string
	Matcher                    struct{ HttpCode string }
	LoadBalancerArns           memberList[string]
	TargetType                 string
	IpAddressType              string
}

type targetGroupDescriptions struct {
	TargetGroups memberList[targetGroupDescription]
	NextMarker   string `xml:",omitempty"`
}

func (s *Simulator) describeTargetGroups(c *awsCall) (awsAnswer, *awsError) {
	lb, arns, names := c.text("LoadBalancerArn"), c.members("TargetGroupArns"), c.members("Names")
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*serverGroup
	known := lb == ""
	for _, b := range s.awsBalancers(func(b *balancer) bool { return b.cfg.hasTargets() }) {
		arn := s.loadBalancerARN(b)
		known = known || arn == lb
		for _, g := range b.groups {
			if (lb == "" || lb == arn && g.inUse()) && (len(arns) == 0 || slices.Contains(arns, g.arn)) && (len(names) == 0 || slices.Contains(names, g.cfg.Name)) {
				found = append(found, g)
			}
		}
	}
	switch {
	case !known:
		return nil, errNoLoadBalancer
	case len(found) < max(len(arns), len(names)):
		return nil, errNoTargetGroup
	}
	part, next, bad := elbPage(c, found)
	if bad != nil {
		return nil, bad
	}
	answer := &targetGroupDescriptions{NextMarker: next}
	for _, g := range part {
		answer.TargetGroups.Items = append(answer.TargetGroups.Items, s.describeTargetGroup(g))
	}
	return answer, nil
}

func (s *Simulator) describeTargetGroup(g *serverGroup) targetGroupDescription {
	check := g.balancer.cfg.HealthCheck
	o := targetGroupDescription{
		TargetGroupArn: g.arn, TargetGroupName: g.cfg.Name, Port: g.cfg.Port, VpcId: awsVPC, TargetType: g.cfg.TargetType, IpAddressType: "ipv4",
		Protocol: map[string]string{typeApplication: "HTTP", typeNetwork: "TCP"}[g.balancer.cfg.Type],
		// The checks are HTTP, whatever the traffic is.
		HealthCheckProtocol: "HTTP", HealthCheckPort: "traffic-port", HealthCheckEnabled: true, HealthCheckPath: check.Path,
		HealthCheckIntervalSeconds: wholeSeconds(check.Interval), HealthCheckTimeoutSeconds: wholeSeconds(check.Timeout),
		HealthyThresholdCount: check.Rise, UnhealthyThresholdCount: check.Fall,
	}
	o.Matcher.HttpCode = "200-399"
	if g.inUse() {
		o.LoadBalancerArns.Items = []string{s.loadBalancerARN(g.balancer)}
	}
	return o
}

// wholeSeconds rounds up: a scenario may be faster than the API has words for.
func wholeSeconds(d time.Duration) int { return int(math.Ceil(d.Seconds())) }

// targetGroup finds the target group of TargetGroupArn. The caller holds s.mu.
func (s *Simulator) targetGroup(c *awsCall) (*serverGroup, *awsError) {
	arn := c.text("TargetGroupArn")
	switch {
	case arn == "":
		return nil, errMissingMember("TargetGroupArn")
	case !strings.HasPrefix(arn, "arn:aws:elasticloadbalancing:") || !strings.Contains(arn, ":targetgroup/"):
		return nil, errELBValidation("'%s' is not a valid target group ARN", arn)
	}
	for _, g := range s.serverGroups {
		if g.arn == arn {
			return g, nil
		}
	}
	return nil, errNoTargetGroup
}

type elbAttribute struct{ Key, Value string }

type targetGroupAttributes struct {
	Attributes memberList[elbAttribute]
}

func (s *Simulator) describeTargetGroupAttributes(c *awsCall) (awsAnswer, *awsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.targetGroup(c)
	if bad != nil {
		return nil, bad
	}
	g.balancer.mu.Lock()
	defer g.balancer.mu.Unlock()
	return g.attributes(), nil
}

// attributes are some of a target group's. What outlives the delay is cut, which is the
// default of application balancers, and a choice of network ones.
func (g *serverGroup) attributes() *targetGroupAttributes {
	answer := &targetGroupAttributes{}
	answer.Attributes.Items = []elbAttribute{{delayAttribute, strconv.Itoa(wholeSeconds(g.delay()))}, {"stickiness.enabled", "false"}}
	if g.balancer.cfg.Type == typeNetwork {
		answer.Attributes.Items = append(answer.Attributes.Items, elbAttribute{"deregistration_delay.connection_termination.enabled", "true"})
	}
	return answer
}

func (s *Simulator) modifyTargetGroupAttributes(c *awsCall) (awsAnswer, *awsError) {
	var delay time.Duration
	indexes := c.indexes("Attributes.member")
	if len(indexes) == 0 {
		return nil, errMissingMember("Attributes")
	}
	for _, i := range indexes {
		at := fmt.Sprintf("Attributes.member.%d.", i)
		key, value := c.text(at+"Key"), c.text(at+"Value")
		if key != delayAttribute {
			return nil, errELBValidation("Target group attribute key '%s' is not recognized", key)
		}
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 || n > 3600 {
			return nil, errELBValidation("Value '%s' for attribute '%s' is not valid", value, key)
		}
		delay = time.Duration(n) * time.Second
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.targetGroup(c)
	if bad != nil {
		return nil, bad
	}
	g.balancer.mu.Lock()
	defer g.balancer.mu.Unlock()
	g.cfg.ConnectionDrainTimeout = delay
	return g.attributes(), nil
}

// targetRef is an entry of Targets: what names the target, and its port.
type targetRef struct {
	ID   string `xml:"Id"`
	Port int
}

// targets reads Targets.member.N. A port that is absent is the target group's own, as for
// a target that was registered without one.
func (c *awsCall) targets(g *serverGroup) ([]targetRef, *awsError) {
	var out []targetRef
	for _, i := range c.indexes("Targets.member") {
		at := fmt.Sprintf("Targets.member.%d.", i)
		x := targetRef{ID: c.text(at + "Id"), Port: g.cfg.Port}
		if x.ID == "" {
			return nil, errMissingMember(fmt.Sprintf("Targets.%d.member.id", i))
		}
		if text := c.text(at + "Port"); text != "" {
			n, err := strconv.Atoi(text)
			if err != nil || n < 1 || n > 65535 {
				return nil, errELBValidation("1 validation error detected: Value '%s' at 'targets.%d.member.port' failed to satisfy constraint: Member must have value between 1 and 65535", text, i)
			}
			x.Port = n
		}
		if !slices.Contains(out, x) {
			out = append(out, x)
		}
	}
	return out, nil
}

// targetID is what the API names a member by.
func (g *serverGroup) targetID(m *member) string {
	if g.cfg.TargetType == targetIP {
		return m.addr.Addr().String()
	}
	return m.id
}

// target finds a member by the API's name. The caller holds the balancer's mutex.
func (g *serverGroup) target(x targetRef) *member {
	for _, m := range g.members {
		if m.port == x.Port && g.targetID(m) == x.ID {
			return m
		}
	}
	return nil
}

// targetInstance finds the machine that a target would be on; nil: none. The caller holds s.mu.
func (s *Simulator) targetInstance(g *serverGroup, id string) *instance {
	if g.cfg.TargetType != targetIP {
		return s.instances[id]
	}
	addr, err := netip.ParseAddr(id)
	if err != nil {
		return nil
	}
	for _, in := range s.instances {
		if in.addr.Addr() == addr {
			return in
		}
	}
	return nil
}

func errNoTarget(g *serverGroup, id string) *awsError {
	if g.cfg.TargetType == targetIP {
		return &awsError{status: 400, code: "InvalidTarget", message: "The IP address '" + id + "' is not within the VPC '" + awsVPC + "'"}
	}
	return &awsError{status: 400, code: "InvalidTarget", message: "The following targets are not in the target group VPC '" + awsVPC + "': '" + id + "'"}
}

// changeTargets is what RegisterTargets and DeregisterTargets have in common. change runs
// under both mutexes.
func (s *Simulator) changeTargets(c *awsCall, change func(*serverGroup, []targetRef) *awsError) (awsAnswer, *awsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.targetGroup(c)
	if bad != nil {
		return nil, bad
	}
	targets, bad := c.targets(g)
	switch {
	case bad != nil:
		return nil, bad
	case len(targets) == 0:
		return nil, errMissingMember("Targets")
	}
	g.balancer.mu.Lock()
	defer g.balancer.mu.Unlock()
	if bad := change(g, targets); bad != nil {
		return nil, bad
	}
	return &struct{}{}, nil
}

// registerTargets takes all targets or none.
func (s *Simulator) registerTargets(c *awsCall) (awsAnswer, *awsError) {
	return s.changeTargets(c, func(g *serverGroup, targets []targetRef) *awsError {
		var machines []*instance
		for _, x := range targets {
			in := s.targetInstance(g, x.ID)
			switch {
			case in == nil:
				return errNoTarget(g, x.ID)
			case !in.running && g.cfg.TargetType == targetInstance:
				return &awsError{status: 400, code: "InvalidTarget", message: "The following targets are not in a running state and cannot be registered: '" + x.ID + "'"}
			}
			machines = append(machines, in)
		}
		for i, in := range machines {
			s.reregister(g, in, targets[i].Port)
		}
		return nil
	})
}

// deregisterTargets says nothing of targets that are not there.
func (s *Simulator) deregisterTargets(c *awsCall) (awsAnswer, *awsError) {
	return s.changeTargets(c, func(g *serverGroup, targets []targetRef) *awsError {
		var members []*member
		for _, x := range targets {
			if m := g.target(x); m != nil {
				members = append(members, m)
			}
		}
		s.deregister(g, members)
		return nil
	})
}

type targetHealthDescription struct {
	Target          targetRef
	HealthCheckPort string `xml:",omitempty"`
	TargetHealth    struct {
		State       string
		Reason      string `xml:",omitempty"`
		Description string `xml:",omitempty"`
	}
}

type targetHealthDescriptions struct {
	TargetHealthDescriptions memberList[targetHealthDescription]
}

func (s *Simulator) describeTargetHealth(c *awsCall) (awsAnswer, *awsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.targetGroup(c)
	if bad != nil {
		return nil, bad
	}
	named, bad := c.targets(g)
	if bad != nil {
		return nil, bad
	}
	g.balancer.mu.Lock()
	defer g.balancer.mu.Unlock()
	answer := &targetHealthDescriptions{}
	list := &answer.TargetHealthDescriptions.Items
	if len(named) == 0 {
		for _, m := range g.members {
			*list = append(*list, s.describeTarget(g, targetRef{g.targetID(m), m.port}, m))
		}
		return answer, nil
	}
	for _, x := range named {
		m := g.target(x)
		if m == nil && !s.knowsTarget(g, x.ID) {
			return nil, errNoTarget(g, x.ID)
		}
		*list = append(*list, s.describeTarget(g, x, m))
	}
	return answer, nil
}

// knowsTarget says whether there is such a machine, or was one in the group.
func (s *Simulator) knowsTarget(g *serverGroup, id string) bool {
	return s.targetInstance(g, id) != nil || slices.ContainsFunc(g.left, func(m *member) bool { return g.targetID(m) == id })
}

// describeTarget tells of a target; m is nil if the group does not have it.
func (s *Simulator) describeTarget(g *serverGroup, x targetRef, m *member) targetHealthDescription {
	health := newTargetHealth(targetUnused, "Target.NotRegistered")
	o := targetHealthDescription{Target: x}
	if m != nil {
		health = s.targetHealth(g, m)
		o.HealthCheckPort = strconv.Itoa(m.port)
	}
	o.TargetHealth.State, o.TargetHealth.Reason, o.TargetHealth.Description = health.state, health.reason, health.description
	return o
}
