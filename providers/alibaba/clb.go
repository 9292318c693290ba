package alibaba

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/internal/gather"
)

// clbGroup are the members of a CLB instance's default group or of a virtual one.
type clbGroup struct {
	// balancer is the CLB instance's id.
	balancer string
	members  []providers.Membership
}

func (g clbGroup) of(id messages.InstanceID) []providers.Membership {
	var out []providers.Membership
	for _, m := range g.members {
		if m.Instance == id {
			out = append(out, m)
		}
	}
	return out
}

// backend is a member as the Describe calls write it.
type backend struct {
	ServerID string `json:"ServerId"`
	Port     looseInt
	Weight   looseInt
}

// findCLB looks into the default group and all virtual groups of all CLB instances.
func (b *Balancers) findCLB(ctx context.Context, id messages.InstanceID) ([]providers.Membership, error) {
	ids, err := b.balancers.Get(ctx, struct{}{}, settingsAge)
	if err != nil {
		return nil, err
	}
	if len(ids) == 0 {
		b.balancers.Drop(struct{}{}) // weak evidence, not to be kept
	}
	var mu sync.Mutex
	var found []providers.Membership
	var errs []error
	failed := func(what string, err error) {
		mu.Lock()
		defer mu.Unlock()
		if err != nil && !errors.Is(err, providers.ErrNotFound) {
			errs = append(errs, fmt.Errorf("%s: %w", what, err))
		}
	}
	look := func(in providers.Balancer) {
		listed, err := b.lookCLB(ctx, in, id)
		failed(in.String(), err)
		mu.Lock()
		defer mu.Unlock()
		found = append(found, listed...)
	}
	var tasks []func()
	for _, lb := range ids {
		tasks = append(tasks, func() {
			look(providers.Balancer{Kind: providers.CLB, ID: lb})
			groups, err := b.vgroups.Believed(ctx, lb, listingAge, func(groups []string) bool { return len(groups) == 0 })
			failed("virtual server groups of "+lb, err)
			for _, g := range groups {
				look(providers.Balancer{Kind: providers.CLBGroup, ID: g})
			}
		})
	}
	atOnce(tasks)
	return found, errors.Join(errs...)
}

// lookCLB looks for an instance in one group. A listing that has it may be older than one
// that does not: others may have added it meanwhile.
func (b *Balancers) lookCLB(ctx context.Context, in providers.Balancer, id messages.InstanceID) ([]providers.Membership, error) {
	group, err := b.backends.Get(ctx, in, settingsAge)
	if listed := group.of(id); err != nil || len(listed) > 0 {
		return listed, err
	}
	group, err = b.backends.Believed(ctx, in, listingAge, func(g clbGroup) bool { return len(g.members) == 0 })
	return group.of(id), err
}

// listBalancers lists the region's CLB instances with DescribeLoadBalancers.
func (b *Balancers) listBalancers(ctx context.Context, _ struct{}) ([]string, error) {
	var ids []string
	for page := 1; page <= balancerMaxPages; page++ {
		var answer struct {
			TotalCount    looseInt
			LoadBalancers struct {
				LoadBalancer []struct {
					LoadBalancerID string `json:"LoadBalancerId"`
				}
			}
		}
		err := read(ctx, b.slb, "DescribeLoadBalancers", form{"PageNumber": strconv.Itoa(page), "PageSize": strconv.Itoa(balancerPage)}, &answer)
		if err != nil {
			return nil, err
		}
		for _, l := range answer.LoadBalancers.LoadBalancer {
			if identifier(l.LoadBalancerID) != "" {
				ids = append(ids, l.LoadBalancerID)
			}
		}
		if ids = gather.Distinct(ids); len(ids) >= int(answer.TotalCount) {
			return ids, nil
		}
		if len(answer.LoadBalancers.LoadBalancer) == 0 {
			break
		}
	}
	return nil, holes("DescribeLoadBalancers")
}

// listVGroups lists the virtual server groups of a CLB instance that have members.
func (b *Balancers) listVGroups(ctx context.Context, balancer string) ([]string, error) {
	var answer struct {
		VServerGroups struct {
			VServerGroup []struct {
				VServerGroupID string `json:"VServerGroupId"`
				ServerCount    *looseInt
			}
		}
	}
	if err := read(ctx, b.slb, "DescribeVServerGroups", form{"LoadBalancerId": balancer}, &answer); err != nil {
		return nil, err
	}
	var ids []string
	for _, g := range answer.VServerGroups.VServerGroup {
		if identifier(g.VServerGroupID) != "" && (g.ServerCount == nil || *g.ServerCount > 0) {
			ids = append(ids, g.VServerGroupID)
		}
	}
	return ids, nil
}

// listBackends reads the members of one group.
func (b *Balancers) listBackends(ctx context.Context, in providers.Balancer) (clbGroup, error) {
	var answer struct {
		LoadBalancerID string `json:"LoadBalancerId"`
		BackendServers struct{ BackendServer []backend }
	}
	name, parameters := "DescribeLoadBalancerAttribute", form{"LoadBalancerId": in.ID}
	if in.Kind == providers.CLBGroup {
		name, parameters = "DescribeVServerGroupAttribute", form{"VServerGroupId": in.ID}
	}
	if err := read(ctx, b.slb, name, parameters, &answer); err != nil {
		return clbGroup{}, err
	}
	group := clbGroup{balancer: identifier(answer.LoadBalancerID)}
	if in.Kind == providers.CLB {
		group.balancer = in.ID
	}
	for _, s := range answer.BackendServers.BackendServer {
		m := providers.Membership{Balancer: in, Instance: messages.InstanceID(s.ServerID), Weight: int(s.Weight), State: providers.Joined}
		if in.Kind == providers.CLBGroup {
			m.Port = int(s.Port)
		}
		group.members = append(group.members, m)
	}
	return group, nil
}

// ownerOf is the CLB instance of a virtual server group.
func (b *Balancers) ownerOf(ctx context.Context, group string) (string, error) {
	g, err := b.backends.Get(ctx, providers.Balancer{Kind: providers.CLBGroup, ID: group}, settingsAge)
	return g.balancer, err
}

func (b *Balancers) balancerOf(ctx context.Context, of providers.Balancer) (string, error) {
	if of.Kind == providers.CLB {
		return of.ID, nil
	}
	return b.owners.Get(ctx, of.ID, settingsAge)
}

// clbListener is a listener of a CLB instance, so far as it matters here.
type clbListener struct {
	port      int
	protocol  string
	group     string // "": the default group
	unchecked bool   // health checks are off
	draining  time.Duration
	notice    time.Duration // until a failing server gets nothing new
}

type clbListeners []clbListener

// listListeners reads the listeners of a CLB instance with DescribeLoadBalancerListeners.
// ConnectionDrain is a setting of TCP and UDP listeners, 10 to 900 s.
func (b *Balancers) listListeners(ctx context.Context, balancer string) (clbListeners, error) {
	type config struct {
		ConnectionDrain        string
		ConnectionDrainTimeout looseInt
		// The second is of TCP and UDP alone, as in alibaba-cloud-sdk-go's answer.
		HealthCheck, HealthCheckSwitch string
		// The timeout has one name for TCP and UDP, and another for HTTP and HTTPS.
		HealthCheckConnectTimeout, HealthCheckTimeout looseInt
		HealthCheckInterval, UnhealthyThreshold       looseInt
	}
	var all clbListeners
	next := ""
	for range balancerMaxPages {
		var answer struct {
			NextToken string
			Listeners []struct {
				ListenerPort                            looseInt
				ListenerProtocol                        string
				VServerGroupID                          string `json:"VServerGroupId"`
				TCPListenerConfig, UDPListenerConfig    config
				HTTPListenerConfig, HTTPSListenerConfig config
			}
		}
		parameters := form{"LoadBalancerId.1": balancer, "MaxResults": strconv.Itoa(balancerPage)}
		if next != "" {
			parameters["NextToken"] = next
		}
		if err := read(ctx, b.slb, "DescribeLoadBalancerListeners", parameters, &answer); err != nil {
			return nil, err
		}
		for _, l := range answer.Listeners {
			listener := clbListener{port: int(l.ListenerPort), protocol: l.ListenerProtocol, group: l.VServerGroupID}
			for _, d := range []config{l.TCPListenerConfig, l.UDPListenerConfig, l.HTTPListenerConfig, l.HTTPSListenerConfig} {
				listener.unchecked = listener.unchecked || strings.EqualFold(d.HealthCheck, "off") || strings.EqualFold(d.HealthCheckSwitch, "off")
				if strings.EqualFold(d.ConnectionDrain, "on") {
					listener.draining = max(listener.draining, draining(d.ConnectionDrainTimeout))
				}
				timeout := max(d.HealthCheckConnectTimeout, d.HealthCheckTimeout)
				listener.notice = max(listener.notice, notice(d.HealthCheckInterval, timeout, d.UnhealthyThreshold))
			}
			if listener.unchecked {
				listener.notice = 0
			}
			all = append(all, listener)
		}
		if answer.NextToken == "" || answer.NextToken == next {
			return all, nil
		}
		next = answer.NextToken
	}
	return nil, holes("DescribeLoadBalancerListeners")
}

// clbDraining is the longest draining of the listeners that send to the group.
func (b *Balancers) clbDraining(ctx context.Context, of providers.Balancer) (time.Duration, error) {
	return b.clbLongest(ctx, of, func(l clbListener) time.Duration { return l.draining })
}

func (b *Balancers) clbNotice(ctx context.Context, of providers.Balancer) (time.Duration, error) {
	return b.clbLongest(ctx, of, func(l clbListener) time.Duration { return l.notice })
}

// clbLongest is the longest setting of the listeners that send to the group. One that
// names no group may do so by a forwarding rule, so its setting counts for all.
func (b *Balancers) clbLongest(ctx context.Context, of providers.Balancer, setting func(clbListener) time.Duration) (time.Duration, error) {
	balancer, err := b.balancerOf(ctx, of)
	if err != nil {
		return 0, err
	}
	listeners, err := b.clbDrains.Get(ctx, balancer, settingsAge)
	var longest time.Duration
	for _, l := range listeners {
		if l.group == "" || of.Kind == providers.CLBGroup && l.group == of.ID {
			longest = max(longest, setting(l))
		}
	}
	return longest, err
}

// clbHealth is the health of a server behind one listener.
type clbHealth struct {
	ServerID     string `json:"ServerId"`
	Port         looseInt
	ListenerPort looseInt
	Protocol     string
	Status       string `json:"ServerHealthStatus"`
}

func (b *Balancers) listCLBHealth(ctx context.Context, balancer string) ([]clbHealth, error) {
	var answer struct {
		BackendServers struct{ BackendServer []clbHealth }
	}
	err := read(ctx, b.slb, "DescribeHealthStatus", form{"LoadBalancerId": balancer}, &answer)
	return answer.BackendServers.BackendServer, err
}

// clbMembers: a member is as healthy as the worst that a listener of its group says.
func (b *Balancers) clbMembers(ctx context.Context, of providers.Balancer) ([]providers.Member, error) {
	group, moment, err := b.backends.Since(ctx, of, listingAge, 0)
	if err != nil {
		return nil, err
	}
	balancer, err := b.balancerOf(ctx, of)
	if err != nil {
		return nil, err
	}
	listeners, err := b.clbDrains.Get(ctx, balancer, settingsAge)
	if err != nil {
		return nil, err
	}
	// What was said before they were listed may be of a former membership.
	health, moment, err := b.clbHealth.Since(ctx, balancer, listingAge, moment)
	out, told := withHealth(of, group.members, health, listeners)
	if err == nil && !told && len(out) > 0 {
		// No listener sends to it, or a service in trouble has answered with an empty list.
		health, _, err = b.clbHealth.Since(ctx, balancer, listingAge, moment)
		out, _ = withHealth(of, group.members, health, listeners)
	}
	return out, err
}

// withHealth gives members their health, and says whether any of them was found there. What
// a listener without checks says is nothing. A listener of another group counts for those
// of which no other tells: it may send to this one by a forwarding rule.
func withHealth(of providers.Balancer, members []providers.Membership, health []clbHealth, listeners clbListeners) (out []providers.Member, told bool) {
	own, others := map[memberKey]providers.Health{}, map[memberKey]providers.Health{}
	for _, h := range health {
		key := memberKey{h.ServerID, int(h.Port)}
		if of.Kind == providers.CLB {
			key.port = 0
		}
		now := providers.HealthUnknown
		switch strings.ToLower(h.Status) {
		case "normal":
			now = providers.Healthy
		case "abnormal":
			now = providers.Unhealthy
		}
		said := others
		if l, ok := listeners.of(h); ok && l.unchecked {
			continue
		} else if ok && (l.group == "" || of.Kind == providers.CLBGroup && l.group == of.ID) {
			said = own
		}
		said[key] = worse(said[key], now)
	}
	for _, m := range members {
		key := memberKey{string(m.Instance), m.Port}
		member := providers.Member{Membership: m, Health: own[key]}
		if member.Health == "" {
			member.Health = others[key]
		}
		if member.Health == "" {
			member.Health = providers.HealthUnknown
		} else {
			told = true
		}
		out = append(out, member)
	}
	return out, told
}

// of is the listener that a row of the health list is about.
func (all clbListeners) of(h clbHealth) (clbListener, bool) {
	for _, l := range all {
		if l.port == int(h.ListenerPort) && (h.Protocol == "" || l.protocol == "" || strings.EqualFold(l.protocol, h.Protocol)) {
			return l, true
		}
	}
	return clbListener{}, false
}

// memberKey is a server's port in a group.
type memberKey struct {
	server string
	port   int
}

// worse is the worse of two healths, the first of which may be none yet.
func worse(a, b providers.Health) providers.Health {
	rank := map[providers.Health]int{"": 0, providers.Healthy: 1, providers.HealthUnknown: 2, providers.Unhealthy: 3}
	if rank[a] > rank[b] {
		return a
	}
	return b
}

// changedBackend is an element of the parameter BackendServers.
type changedBackend struct {
	ServerID string `json:"ServerId"`
	Type     string
	Port     string `json:",omitempty"`
	Weight   string `json:",omitempty"`
}

func backendsText(what changeKind, ms []providers.Membership) (string, error) {
	list := make([]changedBackend, len(ms))
	for i, m := range ms {
		list[i] = changedBackend{ServerID: string(m.Instance), Type: "ecs"}
		if m.Kind == providers.CLBGroup {
			list[i].Port = strconv.Itoa(m.Port)
		}
		if what != removing {
			list[i].Weight = strconv.Itoa(m.Weight)
		}
	}
	text, err := json.Marshal(list)
	if err != nil {
		return "", fmt.Errorf("encode servers: %w", err)
	}
	return string(text), nil
}

// changeBackends changes a CLB instance's default group.
func (b *Balancers) changeBackends(ctx context.Context, of changeOf, ms []providers.Membership) error {
	name := map[changeKind]string{adding: "AddBackendServers", weighing: "SetBackendServers", removing: "RemoveBackendServers"}[of.what]
	return b.changeCLB(ctx, of, ms, name, "LoadBalancerId", of.balancer.ID)
}

// changeVGroup changes a virtual server group.
func (b *Balancers) changeVGroup(ctx context.Context, of changeOf, ms []providers.Membership) error {
	name := map[changeKind]string{
		adding: "AddVServerGroupBackendServers", weighing: "SetVServerGroupAttribute", removing: "RemoveVServerGroupBackendServers",
	}[of.what]
	balancer, err := b.balancerOf(ctx, of.balancer) // for the resource that a refusal names
	if err != nil {
		balancer = "*"
	}
	return b.changeCLB(ctx, of, ms, name, "VServerGroupId", balancer)
}

func (b *Balancers) changeCLB(ctx context.Context, of changeOf, ms []providers.Membership, name, parameter, balancer string) error {
	text, err := backendsText(of.what, ms)
	if err != nil {
		return err
	}
	var answer struct{}
	return commonCall(ctx, b.slb, unlessBusy, b.operation(b.slb, name, "loadbalancer/"+balancer), false,
		form{parameter: of.balancer.ID, "BackendServers": text}, &answer)
}
