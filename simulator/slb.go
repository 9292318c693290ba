package simulator

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// This file is the API of CLB (Slb 2014-05-15), whose changes have their effect at once.

// The limits of CLB.
const (
	maxBackendServers  = 20 // entries of a BackendServers
	defaultSLBPageSize = 50
	maxSLBPageSize     = 100
)

var (
	errSLBNoBalancer  = &rpcError{status: 404, code: "InvalidLoadBalancerId.NotFound", message: "The specified LoadBalancerId does not exist."}
	errSLBNoGroup     = &rpcError{status: 404, code: "InvalidVServerGroupId.NotFound", message: "The specified VServerGroupId does not exist."} // (unconfirmed)
	errSLBNoListener  = &rpcError{status: 404, code: "InvalidListenerPort.NotFound", message: "The specified ListenerPort does not exist."}     // (unconfirmed)
	errSLBConfiguring = &rpcError{status: 409, code: "BackendServer.configuring", message: "The backend server is being configured, please try again later."}
	errSLBNoIP        = &rpcError{status: 400, code: "ObtainIpFail", message: "Obtain ip failed: the server does not exist or is not running."}
	errSLBServers     = &rpcError{status: 400, code: "InvalidParameter", message: "The specified value of parameter \"BackendServers\" is not valid."}
	// These two name what the vendor describes in words only; the codes are unconfirmed.
	errSLBThere    = &rpcError{status: 400, code: "InvalidBackendServers.Duplicated", message: "The specified backend server is there already."}
	errSLBNotThere = &rpcError{status: 400, code: "InvalidBackendServers.Inconsistent", message: "The specified backend servers are not those of the list."}
)

// backendServer is an entry of BackendServers. Its numbers may be texts.
type backendServer struct {
	ServerID    string     `json:"ServerId"`
	Type        string     `json:"Type"`
	Port        textNumber `json:"Port"`
	Weight      textNumber `json:"Weight"`
	ServerIP    string     `json:"ServerIp"`
	Description string     `json:"Description"`
}

// textNumber is a number, or a text that is one. Its zero value is none.
type textNumber struct {
	value int
	there bool
}

// UnmarshalJSON takes 80 and "80".
func (n *textNumber) UnmarshalJSON(data []byte) (err error) {
	text := strings.Trim(string(data), `"`)
	if text == "" || text == "null" {
		return nil
	}
	n.there = true
	n.value, err = strconv.Atoi(text)
	return err
}

func (n textNumber) or(def int) int {
	if n.there {
		return n.value
	}
	return def
}

// backendServers reads a parameter that holds a JSON array in text.
func (c *rpcCall) backendServers(name string, ports bool) ([]backendServer, *rpcError) {
	text := c.form.Get(name)
	if text == "" {
		return nil, errMissing(name)
	}
	var out []backendServer
	if err := json.Unmarshal([]byte(text), &out); err != nil || len(out) == 0 || len(out) > maxBackendServers {
		return nil, errSLBServers
	}
	for i, x := range out {
		port := x.Port.or(0)
		kind := x.Type == "" || x.Type == "ecs" || x.Type == "eni" || x.Type == "eci"
		if x.ServerID == "" || !kind || x.Weight.or(0) < 0 || x.Weight.or(0) > 100 || ports && (port < 1 || port > 65535) {
			return nil, errSLBServers
		}
		if !ports {
			out[i].Port = textNumber{} // the default server group has none, whatever the entry says
		}
	}
	return out, nil
}

// slbGroup finds the server group that a call names: the default one of LoadBalancerId, or
// VServerGroupId. The caller holds s.mu.
func (s *Simulator) slbGroup(c *rpcCall, virtual bool) (*serverGroup, *rpcError) {
	name, missing := "LoadBalancerId", errSLBNoBalancer
	if virtual {
		name, missing = "VServerGroupId", errSLBNoGroup
	}
	id := c.form.Get(name)
	if id == "" {
		return nil, errMissing(name)
	}
	g := s.serverGroup(id)
	if g == nil || serviceOf(g.balancer) != "slb" || virtual == (g.balancer.cfg.ID == id) {
		return nil, missing
	}
	return g, nil
}

// slbChange makes a change at once, and begins the time in which the balancer takes no
// other. apply runs under both mutexes.
func (s *Simulator) slbChange(c *rpcCall, virtual bool, apply func(g *serverGroup) *rpcError, text bool) (object, *rpcError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.slbGroup(c, virtual)
	if bad != nil {
		return nil, bad
	}
	b := g.balancer
	if time.Now().Before(b.settled) {
		return nil, errSLBConfiguring
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if bad := apply(g); bad != nil {
		return nil, bad
	}
	b.settled = time.Now().Add(b.cfg.JobDuration)
	o := object{"BackendServers": g.backendServers(virtual, text)}
	if virtual {
		o["VServerGroupId"], o["VServerGroupName"] = g.cfg.ID, g.name
	} else {
		o["LoadBalancerId"] = g.cfg.ID
	}
	return o, nil
}

// backendServers lists the members. SetBackendServers and AddBackendServers write the
// weight as text, the others as a number (SDK structs).
func (g *serverGroup) backendServers(ports, text bool) object {
	items := []any{}
	for _, m := range g.members {
		o := object{"ServerId": m.id, "Type": "ecs", "Weight": m.weight, "ServerIp": m.addr.Addr().String(), "VpcId": "vpc-simulated", "Description": m.description}
		if text {
			o["Weight"] = strconv.Itoa(m.weight)
		}
		if ports {
			o["Port"] = m.port
		}
		items = append(items, o)
	}
	return object{"BackendServer": items}
}

// addBackends adds servers. One that is twice in a request counts once; one that is there
// already is an error.
func (s *Simulator) addBackends(g *serverGroup, servers []backendServer) *rpcError {
	var members []*member
	for _, x := range servers {
		port := x.Port.or(0)
		in := s.instances[x.ServerID]
		switch {
		case in == nil || !in.running:
			return errSLBNoIP
		case g.find(x.ServerID, port) != nil:
			return errSLBThere
		case slices.ContainsFunc(members, func(m *member) bool { return m.id == x.ServerID && m.port == port }):
			continue
		}
		m := newMember(in, port, x.Weight.or(100), serverAvailable)
		m.description = x.Description
		members = append(members, m)
	}
	for _, m := range members {
		s.enter(g, m, false)
	}
	return nil
}

// setBackends changes weights. A server that the group does not have is refused.
func (g *serverGroup) setBackends(servers []backendServer) *rpcError {
	var members []*member
	for _, x := range servers {
		m := g.find(x.ServerID, x.Port.or(0))
		if m == nil {
			return errSLBNotThere
		}
		members = append(members, m)
	}
	for i, m := range members {
		m.weight = servers[i].Weight.or(100)
		m.tell(m.status)
	}
	return nil
}

// removeBackends takes servers out. Those that the group does not have are ignored.
func (g *serverGroup) removeBackends(servers []backendServer) *rpcError {
	for _, x := range servers {
		if m := g.find(x.ServerID, x.Port.or(0)); m != nil {
			g.drop(m)
		}
	}
	return nil
}

func (s *Simulator) addBackendServers(_ context.Context, c *rpcCall) (object, *rpcError) {
	return s.changeBackends(c, false, s.addBackends, true)
}

func (s *Simulator) setBackendServers(_ context.Context, c *rpcCall) (object, *rpcError) {
	return s.changeBackends(c, false, (*serverGroup).setBackends, true)
}

func (s *Simulator) removeBackendServers(_ context.Context, c *rpcCall) (object, *rpcError) {
	return s.changeBackends(c, false, (*serverGroup).removeBackends, false)
}

func (s *Simulator) addVServerGroupBackendServers(_ context.Context, c *rpcCall) (object, *rpcError) {
	return s.changeBackends(c, true, s.addBackends, false)
}

func (s *Simulator) removeVServerGroupBackendServers(_ context.Context, c *rpcCall) (object, *rpcError) {
	return s.changeBackends(c, true, (*serverGroup).removeBackends, false)
}

// changeBackends is slbChange for the servers that the call names.
func (s *Simulator) changeBackends(c *rpcCall, virtual bool, apply func(*serverGroup, []backendServer) *rpcError, text bool) (object, *rpcError) {
	servers, bad := c.backendServers("BackendServers", virtual)
	if bad != nil {
		return nil, bad
	}
	return s.slbChange(c, virtual, func(g *serverGroup) *rpcError { return apply(g, servers) }, text)
}

// setVServerGroupAttribute changes name and weights only.
func (s *Simulator) setVServerGroupAttribute(_ context.Context, c *rpcCall) (object, *rpcError) {
	var servers []backendServer
	if c.form.Get("BackendServers") != "" {
		var bad *rpcError
		if servers, bad = c.backendServers("BackendServers", true); bad != nil {
			return nil, bad
		}
	}
	return s.slbChange(c, true, func(g *serverGroup) *rpcError {
		if bad := g.setBackends(servers); bad != nil {
			return bad
		}
		if name := c.form.Get("VServerGroupName"); name != "" {
			g.name = name
		}
		return nil
	}, false)
}

// modifyVServerGroupBackendServers puts new servers in the place of old ones.
func (s *Simulator) modifyVServerGroupBackendServers(_ context.Context, c *rpcCall) (object, *rpcError) {
	old, bad := c.backendServers("OldBackendServers", true)
	if bad != nil {
		return nil, bad
	}
	fresh, bad := c.backendServers("NewBackendServers", true)
	if bad != nil {
		return nil, bad
	}
	return s.slbChange(c, true, func(g *serverGroup) *rpcError {
		for _, x := range fresh {
			if in := s.instances[x.ServerID]; in == nil || !in.running {
				return errSLBNoIP
			}
		}
		g.removeBackends(old)
		return s.addBackends(g, fresh)
	}, false)
}

func (s *Simulator) describeLoadBalancers(_ context.Context, c *rpcCall) (object, *rpcError) {
	id, name, server := c.form.Get("LoadBalancerId"), c.form.Get("LoadBalancerName"), c.form.Get("ServerId")
	if c.form.Get("RegionId") == "" {
		return nil, errMissing("RegionId")
	}
	number, ok := c.number("PageNumber", 1, 1, 1<<30)
	if !ok {
		return nil, errInvalid("PageNumber")
	}
	size, ok := c.number("PageSize", defaultSLBPageSize, 1, maxSLBPageSize)
	if !ok {
		return nil, errInvalid("PageSize")
	}
	ids := strings.Split(id, ",")
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []any
	for _, b := range s.ownBalancers("slb") {
		if (id == "" || slices.Contains(ids, b.cfg.ID)) && (name == "" || name == b.cfg.ID) && (server == "" || b.has(server)) {
			found = append(found, s.describeBalancer(b))
		}
	}
	p := page{number, size}
	o := p.describe(len(found))
	o["LoadBalancers"] = object{"LoadBalancer": append([]any{}, cut(p, found)...)}
	return o, nil
}

// has says whether an instance is a member of any of the balancer's server groups. The
// vendor says of ServerId only "the ID of a backend server" (unconfirmed for vServer groups).
func (b *balancer) has(id string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.groups, func(g *serverGroup) bool {
		return len(g.byID[id]) > 0
	})
}

func (s *Simulator) describeBalancer(b *balancer) object {
	host, _, _ := strings.Cut(b.listeners[0].addr, ":")
	return object{
		"LoadBalancerId": b.cfg.ID, "LoadBalancerName": b.cfg.ID, "LoadBalancerStatus": "active", "Address": host, "AddressType": "intranet",
		"NetworkType": "vpc", "VpcId": "vpc-simulated", "RegionId": s.scenario.Region, "RegionIdAlias": s.scenario.Region,
		"MasterZoneId": s.scenario.Region + "-a", "SlaveZoneId": s.scenario.Region + "-b",
	}
}

func (s *Simulator) describeLoadBalancerAttribute(_ context.Context, c *rpcCall) (object, *rpcError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.slbGroup(c, false)
	if bad != nil {
		return nil, bad
	}
	b := g.balancer
	o := s.describeBalancer(b)
	ports, protocols := []any{}, []any{}
	for _, l := range b.listeners {
		ports = append(ports, l.cfg.Port)
		protocols = append(protocols, object{"ListenerPort": l.cfg.Port, "ListenerProtocol": l.cfg.Protocol, "ListenerForward": "off", "Description": ""})
	}
	o["ListenerPorts"] = object{"ListenerPort": ports}
	o["ListenerPortsAndProtocol"] = object{"ListenerPortAndProtocol": protocols}
	b.mu.Lock()
	defer b.mu.Unlock()
	o["BackendServers"] = g.backendServers(false, false)
	return o, nil
}

func (s *Simulator) describeVServerGroups(_ context.Context, c *rpcCall) (object, *rpcError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.slbGroup(c, false)
	if bad != nil {
		return nil, bad
	}
	b := g.balancer
	b.mu.Lock()
	defer b.mu.Unlock()
	items := []any{}
	for _, g := range b.groups[1:] {
		o := object{"VServerGroupId": g.cfg.ID, "VServerGroupName": g.name, "ServerCount": len(g.members)}
		if c.form.Get("IncludeListener") == "true" {
			listeners := []any{}
			for _, l := range b.listeners {
				if l.group == g {
					listeners = append(listeners, object{"Port": l.cfg.Port, "Protocol": l.cfg.Protocol})
				}
			}
			o["AssociatedObjects"] = object{"Listeners": object{"Listener": listeners}, "Rules": object{"Rule": []any{}}}
		}
		items = append(items, o)
	}
	return object{"VServerGroups": object{"VServerGroup": items}}, nil
}

func (s *Simulator) describeVServerGroupAttribute(_ context.Context, c *rpcCall) (object, *rpcError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.slbGroup(c, true)
	if bad != nil {
		return nil, bad
	}
	b := g.balancer
	b.mu.Lock()
	defer b.mu.Unlock()
	return object{
		"VServerGroupId": g.cfg.ID, "VServerGroupName": g.name, "LoadBalancerId": b.cfg.ID, "BackendServers": g.backendServers(true, false),
	}, nil
}

// describeHealthStatus has an entry for each listener and server.
func (s *Simulator) describeHealthStatus(_ context.Context, c *rpcCall) (object, *rpcError) {
	port, ok := c.number("ListenerPort", 0, 1, 65535)
	if !ok {
		return nil, errInvalid("ListenerPort")
	}
	protocol := c.form.Get("ListenerProtocol")
	s.mu.Lock()
	defer s.mu.Unlock()
	g, bad := s.slbGroup(c, false)
	if bad != nil {
		return nil, bad
	}
	b := g.balancer
	b.mu.Lock()
	defer b.mu.Unlock()
	items := []any{}
	found := false
	for _, l := range b.listeners {
		if port != 0 && port != l.cfg.Port || protocol != "" && protocol != l.cfg.Protocol {
			continue
		}
		found = true
		for _, m := range l.group.members {
			items = append(items, object{
				"ServerId": m.id, "ServerIp": m.addr.Addr().String(), "Port": l.backendPort(m), "ListenerPort": l.cfg.Port, "Protocol": l.cfg.Protocol,
				"ServerHealthStatus": m.health(), "Type": "ecs",
			})
		}
	}
	if port != 0 && !found {
		return nil, errSLBNoListener
	}
	return object{"BackendServers": object{"BackendServer": items}}, nil
}

// backendPort is where the listener sends a member's requests to.
func (l *listener) backendPort(m *member) int {
	if m.port == 0 {
		return l.cfg.BackendPort
	}
	return m.port
}

// health is a member's ServerHealthStatus.
func (m *member) health() string {
	switch {
	case !m.known:
		return "unavailable"
	case m.healthy:
		return "normal"
	}
	return "abnormal"
}

func (s *Simulator) describeLoadBalancerListeners(_ context.Context, c *rpcCall) (object, *rpcError) {
	ids, protocol := c.repeated("LoadBalancerId"), c.form.Get("ListenerProtocol")
	port, ok := c.number("ListenerPort", 0, 1, 65535)
	switch {
	case !ok:
		return nil, errInvalid("ListenerPort")
	case len(ids) > 10:
		return nil, errInvalid("LoadBalancerId")
	case c.form.Get("RegionId") == "":
		return nil, errMissing("RegionId")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []any{}
	for _, b := range s.ownBalancers("slb") {
		for _, l := range b.listeners {
			if (len(ids) == 0 || slices.Contains(ids, b.cfg.ID)) && (protocol == "" || protocol == l.cfg.Protocol) && (port == 0 || port == l.cfg.Port) {
				o := l.slb(b)
				o[strings.ToUpper(l.cfg.Protocol)+"ListenerConfig"] = l.slbConfig()
				all = append(all, o)
			}
		}
	}
	part, o, bad := results(c, all, maxSLBPageSize)
	if bad != nil {
		return nil, bad
	}
	o["Listeners"] = part
	return o, nil
}

// slb is what both listings of a listener have in common.
func (l *listener) slb(b *balancer) object {
	o := object{
		"LoadBalancerId": b.cfg.ID, "ListenerPort": l.cfg.Port, "ListenerProtocol": l.cfg.Protocol, "Status": "running", "Scheduler": "wrr",
		"Description": "", "Bandwidth": -1,
	}
	if l.group.cfg.ID == b.cfg.ID {
		o["BackendServerPort"] = l.cfg.BackendPort
	} else {
		o["VServerGroupId"] = l.group.cfg.ID
	}
	return o
}

// slbConfig is what depends on the protocol. Only TCP has connection draining here.
func (l *listener) slbConfig() object {
	check := l.group.balancer.cfg.HealthCheck
	o := object{
		"HealthCheck": "on", "HealthCheckType": "http", "HealthCheckURI": check.Path, "HealthCheckInterval": whole(check.Interval),
		"HealthyThreshold": check.Rise, "UnhealthyThreshold": check.Fall,
	}
	if l.cfg.Protocol != protocolTCP {
		o["HealthCheckTimeout"] = whole(check.Timeout)
	} else {
		o["HealthCheckConnectTimeout"] = whole(check.Timeout)
		o["ConnectionDrain"] = "off"
		if d := l.drain(); d > 0 {
			o["ConnectionDrain"], o["ConnectionDrainTimeout"] = "on", whole(d)
		}
	}
	return o
}

// describeListenerAttribute is the call of one protocol.
func describeListenerAttribute(protocol string) rpcOperation {
	return func(s *Simulator, _ context.Context, c *rpcCall) (object, *rpcError) {
		if c.form.Get("ListenerPort") == "" {
			return nil, errMissing("ListenerPort")
		}
		port, ok := c.number("ListenerPort", 0, 1, 65535)
		if !ok {
			return nil, errInvalid("ListenerPort")
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		g, bad := s.slbGroup(c, false)
		if bad != nil {
			return nil, bad
		}
		for _, l := range g.balancer.listeners {
			if l.cfg.Port == port && l.cfg.Protocol == protocol {
				o := l.slb(g.balancer)
				for name, v := range l.slbConfig() {
					o[name] = v
				}
				return o, nil
			}
		}
		return nil, errSLBNoListener
	}
}

// slbResource is what RAM allows a call of CLB on: the balancer.
func (s *Simulator) slbResource(c *rpcCall) string {
	id := c.form.Get("LoadBalancerId")
	if id == "" && len(c.repeated("LoadBalancerId")) == 1 {
		id = c.repeated("LoadBalancerId")[0]
	}
	if g := s.serverGroup(c.form.Get("VServerGroupId")); g != nil {
		id = g.balancer.cfg.ID
	}
	if id == "" || strings.Contains(id, ",") {
		id = "*"
	}
	return s.arn("slb", fmt.Sprintf("loadbalancer/%s", id))
}
