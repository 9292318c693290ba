package simulator

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file is the API of the balancers whose changes are asynchronous: ALB (2020-06-16)
// and NLB (2022-04-30). The two differ in little: where it is marked.

// The limits of ALB and NLB.
const (
	maxServersACall   = 200 // of the calls that change a server group
	maxServersListed  = 40  // ServerIds of ListServerGroupServers
	maxGroupsListed   = 20  // ServerGroupIds of ListServerGroups
	defaultMaxResults = 20
	maxResults        = 100
	maxHealthResults  = 30 // of ALB's GetListenerHealthStatus
)

// errDryRun is what a dry run that would have passed gets.
var errDryRun = &rpcError{status: 400, code: "DryRunOperation", message: "Request validation has been passed with DryRun flag set."}

// spelt is how the service spells a resource type in its codes: NLB writes serverGroup
// where ALB writes ServerGroup. ALB's own codes are taken from NLB's table and from
// clients that retry on them (unconfirmed).
func (c *rpcCall) spelt(name string) string {
	if c.service == "nlb" && (name == "ServerGroup" || name == "Listener" || name == "LoadBalancer") {
		return strings.ToLower(name[:1]) + name[1:]
	}
	return name
}

func (c *rpcCall) errNoResource(name, id string) *rpcError {
	return &rpcError{status: 404, code: "ResourceNotFound." + c.spelt(name), message: fmt.Sprintf("The specified resource %s is not found.", id)}
}

func (c *rpcCall) errGroupBusy(g *serverGroup) *rpcError {
	return &rpcError{status: 400, code: "IncorrectStatus." + c.spelt("ServerGroup"), message: fmt.Sprintf("The status of %s [%s] is incorrect.", c.spelt("ServerGroup"), g.cfg.ID)}
}

// errIllegal is a parameter out of bounds.
func errIllegal(name string) *rpcError {
	return &rpcError{status: 400, code: "IllegalParam." + name, message: fmt.Sprintf("The param of %s is illegal.", name)}
}

// serviceOf is the API that a balancer is managed by.
func serviceOf(b *balancer) string {
	return map[string]string{typeCLB: "slb", typeALB: "alb", typeNLB: "nlb"}[b.cfg.Type]
}

// server is one entry of Servers.N.
type server struct {
	id, kind, description string
	port                  int
	weight                int
	weighted              bool
}

var serverFields = []string{"ServerId", "ServerType", "ServerIp", "Port", "Weight", "Description", "RemoteIpEnabled"}

// servers reads Servers.N: at most 200, without gaps.
func (c *rpcCall) servers() ([]server, *rpcError) {
	var out []server
	for {
		at := fmt.Sprintf("Servers.%d.", len(out)+1)
		if !slices.ContainsFunc(serverFields, func(field string) bool { return c.form.Has(at + field) }) {
			break
		}
		x, bad := c.server(at)
		if bad != nil {
			return nil, bad
		}
		if out = append(out, x); len(out) > maxServersACall {
			return nil, errIllegal("Servers")
		}
	}
	if len(out) == 0 {
		return nil, errMissing("Servers")
	}
	return out, nil
}

func (c *rpcCall) server(at string) (server, *rpcError) {
	x := server{id: c.form.Get(at + "ServerId"), kind: c.form.Get(at + "ServerType"), description: c.form.Get(at + "Description"), weight: 100}
	kinds, lowest := []string{"Ecs", "Eni", "Eci", "Ip", "Fc"}, 1
	if c.service == "nlb" {
		kinds, lowest = kinds[:4], 0 // a group of all ports has port 0
	}
	var ok bool
	switch {
	case x.id == "":
		return x, errMissing("ServerId")
	case x.kind == "":
		return x, errMissing("ServerType")
	case !slices.Contains(kinds, x.kind):
		return x, errIllegal("ServerType")
	case c.service == "alb" && x.kind != "Fc" && c.form.Get(at+"Port") == "":
		return x, errMissing("Port")
	}
	if x.port, ok = c.number(at+"Port", 0, lowest, 65535); !ok {
		return x, errIllegal("Port")
	}
	x.weighted = c.form.Get(at+"Weight") != ""
	if x.weight, ok = c.number(at+"Weight", 100, 0, 100); !ok {
		return x, errIllegal("Weight")
	}
	return x, nil
}

// ownGroup finds the server group that a call names, if it is one of the service's. The
// caller holds s.mu.
func (s *Simulator) ownGroup(c *rpcCall, id string) (*serverGroup, *rpcError) {
	if id == "" {
		return nil, errMissing("ServerGroupId")
	}
	if g := s.serverGroup(id); g != nil && serviceOf(g.balancer) == c.service {
		return g, nil
	}
	return nil, c.errNoResource("ServerGroup", id)
}

// change makes one asynchronous change: it checks what the three calls have in common,
// and plan gives what starts the job.
func (s *Simulator) change(c *rpcCall, plan func(g *serverGroup, servers []server) (func() *serverJob, *rpcError)) (object, *rpcError) {
	servers, bad := c.servers()
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, bad := s.replay(c); o != nil || bad != nil {
		if bad == errIdempotent {
			bad = &rpcError{status: 400, code: "IdempotenceSignatureMismatch", message: bad.message}
		}
		return o, bad
	}
	g, bad := s.ownGroup(c, c.form.Get("ServerGroupId"))
	if bad != nil {
		return nil, bad
	}
	start, bad := plan(g, servers)
	switch {
	case bad != nil:
		return nil, bad
	case g.job != nil:
		return nil, c.errGroupBusy(g)
	case c.form.Get("DryRun") == "true":
		return nil, errDryRun
	}
	o := c.succeeded(object{"JobId": start().id})
	if c.service == "nlb" {
		o["ServerGroupId"] = g.cfg.ID
	}
	return s.remember(c, o), nil
}

// succeeded adds what answers of NLB say of themselves.
func (c *rpcCall) succeeded(o object) object {
	if c.service == "nlb" {
		o["Success"], o["HttpStatusCode"] = true, 200
	}
	return o
}

func (s *Simulator) addServersToServerGroup(_ context.Context, c *rpcCall) (object, *rpcError) {
	return s.change(c, func(g *serverGroup, servers []server) (func() *serverJob, *rpcError) {
		b := g.balancer
		b.mu.Lock()
		defer b.mu.Unlock()
		var members []*member
		for _, x := range servers {
			in := s.instances[x.id]
			twice := slices.ContainsFunc(members, func(m *member) bool { return m.id == x.id && m.port == x.port })
			switch {
			case in == nil || x.kind != "Ecs":
				return nil, c.errNoResource("BackendServer", x.id)
			case twice || g.find(x.id, x.port) != nil: // the code is unconfirmed
				return nil, &rpcError{status: 400, code: "ResourceAlreadyExist.BackendServer", message: "The specified resource " + x.id + " already exists."}
			}
			m := newMember(in, x.port, x.weight, serverAdding)
			m.description = x.description
			members = append(members, m)
		}
		return func() *serverJob { return s.addServers(g, members, c.jobFails, nil) }, nil
	})
}

func (s *Simulator) removeServersFromServerGroup(_ context.Context, c *rpcCall) (object, *rpcError) {
	return s.change(c, func(g *serverGroup, servers []server) (func() *serverJob, *rpcError) {
		members, bad := c.named(g, servers)
		return func() *serverJob { return s.removeServers(g, members, c.jobFails, nil) }, bad
	})
}

func (s *Simulator) updateServerGroupServersAttribute(_ context.Context, c *rpcCall) (object, *rpcError) {
	return s.change(c, func(g *serverGroup, servers []server) (func() *serverJob, *rpcError) {
		members, bad := c.named(g, servers)
		update := func(i int, m *member) {
			if servers[i].weighted {
				m.weight = servers[i].weight
			}
			m.description = cmp.Or(servers[i].description, m.description)
		}
		return func() *serverJob { return s.updateServers(g, members, c.jobFails, update) }, bad
	})
}

// named finds the members that a call names, all of them. A server that the group does
// not have makes the whole call fail.
func (c *rpcCall) named(g *serverGroup, servers []server) ([]*member, *rpcError) {
	g.balancer.mu.Lock()
	defer g.balancer.mu.Unlock()
	var out []*member
	for _, x := range servers {
		m := g.find(x.id, x.port)
		if m == nil || x.kind != "Ecs" {
			return nil, c.errNoResource("BackendServer", x.id)
		}
		out = append(out, m)
	}
	return out, nil
}

// results is a part of a list by MaxResults and NextToken, as ALB, NLB and one call of
// CLB have it: 20 by default.
func results(c *rpcCall, all []any, most int) (part []any, o object, bad *rpcError) {
	places := make([]int64, len(all))
	for i := range places {
		places[i] = int64(i)
	}
	return resultsAt(c, all, places, most)
}

// resultsAt is results for a list that may change between two pages: places rise along
// it, and an element keeps its place, so that none is missed. The vendor does not say
// what its tokens do then (unconfirmed).
func resultsAt(c *rpcCall, all []any, places []int64, most int) (part []any, o object, bad *rpcError) {
	size, ok := c.number("MaxResults", min(defaultMaxResults, most), 1, most)
	if !ok {
		return nil, nil, errIllegal("MaxResults")
	}
	from := 0
	if token := c.form.Get("NextToken"); token != "" {
		text, err := base64.URLEncoding.DecodeString(token)
		if err != nil {
			return nil, nil, errIllegal("NextToken")
		}
		last, err := strconv.ParseInt(string(text), 10, 64)
		if err != nil {
			return nil, nil, errIllegal("NextToken")
		}
		for from < len(all) && places[from] <= last {
			from++
		}
	}
	to, next := min(from+size, len(all)), ""
	if to < len(all) {
		next = base64.URLEncoding.EncodeToString([]byte(strconv.FormatInt(places[to-1], 10)))
	}
	return all[from:to], c.succeeded(object{"TotalCount": len(all), "MaxResults": size, "NextToken": next}), nil
}

// ownBalancers are those of the service, in the scenario's order.
func (s *Simulator) ownBalancers(service string) []*balancer {
	var out []*balancer
	for _, cfg := range s.scenario.Balancers {
		if b := s.balancers[cfg.ID]; serviceOf(b) == service {
			out = append(out, b)
		}
	}
	return out
}

func (s *Simulator) listServerGroupServers(_ context.Context, c *rpcCall) (object, *rpcError) {
	ids, ips := c.repeated("ServerId"), c.repeated("ServerIp")
	switch {
	case len(ids) > maxServersListed:
		return nil, errIllegal("ServerIds")
	case len(ips) > maxServersListed:
		return nil, errIllegal("ServerIps")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var groups []*serverGroup
	if id := c.form.Get("ServerGroupId"); id != "" {
		g, bad := s.ownGroup(c, id)
		if bad != nil {
			return nil, bad
		}
		groups = append(groups, g)
	} else {
		for _, b := range s.ownBalancers(c.service) {
			groups = append(groups, b.groups...)
		}
	}
	all, places := []any{}, []int64{}
	for i, g := range groups {
		g.balancer.mu.Lock()
		for _, m := range g.members {
			if (len(ids) == 0 || slices.Contains(ids, m.id)) && (len(ips) == 0 || slices.Contains(ips, m.addr.Addr().String())) {
				all = append(all, c.listed(g, m))
				places = append(places, int64(i)<<40|m.seq)
			}
		}
		g.balancer.mu.Unlock()
	}
	part, o, bad := resultsAt(c, all, places, maxResults)
	if bad != nil {
		return nil, bad
	}
	o["Servers"] = part
	return o, nil
}

// listed is a member as ListServerGroupServers has it. NLB tells its zone.
func (c *rpcCall) listed(g *serverGroup, m *member) object {
	o := object{
		"ServerId": m.id, "ServerType": "Ecs", "ServerIp": m.addr.Addr().String(), "Port": m.port, "Weight": m.weight,
		"Status": m.status, "ServerGroupId": g.cfg.ID, "Description": m.description,
	}
	if c.service == "nlb" {
		o["ZoneId"] = m.zone
	} else {
		o["RemoteIpEnabled"] = false
	}
	return o
}

func (s *Simulator) listServerGroups(_ context.Context, c *rpcCall) (object, *rpcError) {
	ids, names := c.repeated("ServerGroupId"), c.repeated("ServerGroupName")
	if len(ids) > maxGroupsListed {
		return nil, errIllegal("ServerGroupIds")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []any{}
	for _, b := range s.ownBalancers(c.service) {
		for _, g := range b.groups {
			if (len(ids) == 0 || slices.Contains(ids, g.cfg.ID)) && (len(names) == 0 || slices.Contains(names, g.name)) {
				all = append(all, s.describeServerGroup(c, g))
			}
		}
	}
	part, o, bad := results(c, all, maxResults)
	if bad != nil {
		return nil, bad
	}
	o["ServerGroups"] = part
	return o, nil
}

// whole is a time in seconds, as the APIs have it, rounded up.
func whole(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

func (s *Simulator) describeServerGroup(c *rpcCall, g *serverGroup) object {
	b := g.balancer
	b.mu.Lock()
	count := len(g.members)
	b.mu.Unlock()
	listeners := []any{}
	for _, l := range b.listeners {
		if l.group == g {
			listeners = append(listeners, l.cfg.ID)
		}
	}
	balancers := []any{}
	if len(listeners) > 0 {
		balancers = append(balancers, b.cfg.ID)
	}
	enabled, seconds := g.cfg.ConnectionDrainTimeout > 0, whole(g.cfg.ConnectionDrainTimeout)
	check := b.cfg.HealthCheck
	o := object{
		"ServerGroupId": g.cfg.ID, "ServerGroupName": g.name, "ServerGroupStatus": g.status(), "ServerGroupType": "Instance",
		"ServerCount": count, "VpcId": "vpc-simulated", "Scheduler": "Wrr", "RelatedLoadBalancerIds": balancers,
	}
	if c.service == "nlb" {
		o["ConnectionDrainEnabled"], o["ConnectionDrainTimeout"] = enabled, seconds
		o["Protocol"], o["RegionId"], o["AnyPortEnabled"] = "TCP", s.scenario.Region, false
		o["HealthCheck"] = object{
			"HealthCheckEnabled": true, "HealthCheckType": "HTTP", "HealthCheckUrl": check.Path, "HealthCheckInterval": whole(check.Interval),
			"HealthCheckConnectTimeout": whole(check.Timeout), "HealthyThreshold": check.Rise, "UnhealthyThreshold": check.Fall,
		}
		return o
	}
	o["ConnectionDrainConfig"] = object{"ConnectionDrainEnabled": enabled, "ConnectionDrainTimeout": seconds}
	o["Protocol"], o["RelatedListenerIds"] = "HTTP", listeners
	o["HealthCheckConfig"] = object{
		"HealthCheckEnabled": true, "HealthCheckProtocol": "HTTP", "HealthCheckPath": check.Path, "HealthCheckInterval": whole(check.Interval),
		"HealthCheckTimeout": whole(check.Timeout), "HealthyThreshold": check.Rise, "UnhealthyThreshold": check.Fall,
	}
	return o
}

// listAsynJobs lists jobs, newest first. It is spelt so.
func (s *Simulator) listAsynJobs(_ context.Context, c *rpcCall) (object, *rpcError) {
	ids, resources, api := c.repeated("JobId"), c.repeated("ResourceId"), c.form.Get("ApiName")
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []any{}
	for _, j := range slices.Backward(s.jobs.values()) {
		if j.service == c.service && (len(ids) == 0 || slices.Contains(ids, j.id)) && (len(resources) == 0 || slices.Contains(resources, j.group.cfg.ID)) && (api == "" || api == j.action) {
			all = append(all, j.wire())
		}
	}
	part, o, bad := results(c, all, maxResults)
	if bad != nil {
		return nil, bad
	}
	o["Jobs"] = part
	return o, nil
}

func (j *serverJob) wire() object {
	o := object{
		"Id": j.id, "Status": j.status, "ApiName": j.action, "ResourceId": j.group.cfg.ID, "ResourceType": "servergroup",
		"OperateType": "Update", "CreateTime": j.created.UnixMilli(), "ModifyTime": j.modified.UnixMilli(), "ErrorCode": "", "ErrorMessage": "",
	}
	if j.status == jobFailed { // a code for tests
		o["ErrorCode"], o["ErrorMessage"] = "SystemError", "The job failed."
	}
	return o
}

// getJobStatus is NLB's. It writes processing with a small p; what it says of a failed
// job is not documented (unconfirmed).
func (s *Simulator) getJobStatus(_ context.Context, c *rpcCall) (object, *rpcError) {
	id := c.form.Get("JobId")
	if id == "" {
		return nil, errMissing("JobId")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	j, ok := s.jobs.get(id)
	if !ok || j.service != c.service {
		return nil, c.errNoResource("Job", id)
	}
	status := j.status
	if status == jobProcessing {
		status = strings.ToLower(status)
	}
	return c.succeeded(object{"Status": status}), nil
}

func (s *Simulator) listListeners(_ context.Context, c *rpcCall) (object, *rpcError) {
	ids, balancers, protocol := c.repeated("ListenerId"), c.repeated("LoadBalancerId"), c.form.Get("ListenerProtocol")
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []any{}
	for _, b := range s.ownBalancers(c.service) {
		for _, l := range b.listeners {
			if (len(ids) == 0 || slices.Contains(ids, l.cfg.ID)) && (len(balancers) == 0 || slices.Contains(balancers, b.cfg.ID)) && (protocol == "" || strings.EqualFold(protocol, l.cfg.Protocol)) {
				all = append(all, s.describeListener(c, b, l))
			}
		}
	}
	part, o, bad := results(c, all, maxResults)
	if bad != nil {
		return nil, bad
	}
	o["Listeners"] = part
	return o, nil
}

func (s *Simulator) getListenerAttribute(_ context.Context, c *rpcCall) (object, *rpcError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, l, bad := s.ownListener(c)
	if bad != nil {
		return nil, bad
	}
	return c.succeeded(s.describeListener(c, b, l)), nil
}

func (s *Simulator) ownListener(c *rpcCall) (*balancer, *listener, *rpcError) {
	id := c.form.Get("ListenerId")
	if id == "" {
		return nil, nil, errMissing("ListenerId")
	}
	for _, b := range s.ownBalancers(c.service) {
		for _, l := range b.listeners {
			if l.cfg.ID == id {
				return b, l, nil
			}
		}
	}
	return nil, nil, c.errNoResource("Listener", id)
}

func (s *Simulator) describeListener(c *rpcCall, b *balancer, l *listener) object {
	o := object{
		"ListenerId": l.cfg.ID, "ListenerPort": l.cfg.Port, "ListenerProtocol": strings.ToUpper(l.cfg.Protocol), "ListenerStatus": "Running",
		"LoadBalancerId": b.cfg.ID, "ListenerDescription": "",
	}
	if c.service == "nlb" {
		o["ServerGroupId"], o["RegionId"] = l.group.cfg.ID, s.scenario.Region
		return o
	}
	o["DefaultActions"] = []any{object{"Type": "ForwardGroup", "ForwardGroupConfig": object{
		"ServerGroupTuples": []any{object{"ServerGroupId": l.group.cfg.ID, "Weight": 100}},
	}}}
	return o
}

// listLoadBalancers tells of no more than what is needed to find a balancer.
func (s *Simulator) listLoadBalancers(_ context.Context, c *rpcCall) (object, *rpcError) {
	ids := c.repeated("LoadBalancerId")
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []any{}
	for _, b := range s.ownBalancers(c.service) {
		if len(ids) == 0 || slices.Contains(ids, b.cfg.ID) {
			all = append(all, object{
				"LoadBalancerId": b.cfg.ID, "LoadBalancerName": b.cfg.ID, "LoadBalancerStatus": "Active",
				"DNSName": b.cfg.ID + "." + s.scenario.Region + "." + c.service + ".aliyuncs.com", "AddressType": "Intranet", "VpcId": "vpc-simulated",
			})
		}
	}
	part, o, bad := results(c, all, maxResults)
	if bad != nil {
		return nil, bad
	}
	o["LoadBalancers"] = part
	return o, nil
}

// getListenerHealthStatus tells of the servers that are not well. A listener has no
// forwarding rules here, so that MaxResults, which pages through rules, has one page.
func (s *Simulator) getListenerHealthStatus(_ context.Context, c *rpcCall) (object, *rpcError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, l, bad := s.ownListener(c)
	if bad != nil {
		return nil, bad
	}
	b.mu.Lock()
	servers := []any{}
	for _, m := range l.group.members {
		if status, reason := m.trouble(); status != "" {
			servers = append(servers, object{
				"ServerId": m.id, "ServerIp": m.addr.Addr().String(), "Port": m.port, "Status": status, "Reason": reason,
			})
		}
	}
	b.mu.Unlock()
	info := object{"ServerGroupId": l.group.cfg.ID, "NonNormalServers": servers}
	most := maxResults
	if c.service == "nlb" {
		info["HeathCheckEnabled"] = true // spelt so
	} else {
		info["HealthCheckEnabled"], info["ActionType"] = "on", "ForwardGroup"
		most = maxHealthResults
	}
	part, o, bad := results(c, []any{object{
		"ListenerId": l.cfg.ID, "ListenerPort": l.cfg.Port, "ListenerProtocol": strings.ToUpper(l.cfg.Protocol), "ServerGroupInfos": []any{info},
	}}, most)
	if bad != nil {
		return nil, bad
	}
	o["ListenerHealthStatus"] = part
	if c.service == "alb" {
		o["RuleHealthStatus"] = []any{}
	}
	return o, nil
}

// trouble is a member's status in NonNormalServers; empty: it is well.
func (m *member) trouble() (status string, reason object) {
	switch {
	case m.weight == 0:
		return "Unused", object{"ReasonCode": ""}
	case !m.known:
		return "Initial", object{"ReasonCode": ""}
	case !m.healthy:
		return "Unhealthy", object{"ReasonCode": "RESPONSE_MISMATCH"}
	}
	return "", nil
}
