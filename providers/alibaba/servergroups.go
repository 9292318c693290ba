package alibaba

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/internal/gather"
)

// findMaxIDs is how many ServerIds one ListServerGroupServers takes (Alb 2020-06-16, Nlb 2022-04-30).
const findMaxIDs = 40

// server is a member as ListServerGroupServers of ALB and NLB writes it.
type server struct {
	ServerGroupID string `json:"ServerGroupId"`
	ServerID      string `json:"ServerId"`
	Port          looseInt
	Weight        looseInt
	Status        string
	ZoneID        string `json:"ZoneId"` // NLB alone
}

func (s server) membership(kind providers.BalancerKind) providers.Membership {
	state := providers.Joined
	switch strings.ToLower(s.Status) {
	case "adding":
		state = providers.Joining
	case "removing":
		state = providers.Leaving
	}
	return providers.Membership{
		Balancer: providers.Balancer{Kind: kind, ID: s.ServerGroupID}, Instance: messages.InstanceID(s.ServerID),
		Port: int(s.Port), Weight: int(s.Weight), State: state,
	}
}

func (b *Balancers) rpcOf(kind providers.BalancerKind) *rpc {
	if kind == providers.NLB {
		return b.nlb
	}
	return b.alb
}

// findServers looks instances up in one group or, where in names none, in all.
func (b *Balancers) findServers(ctx context.Context, in providers.Balancer, ids []messages.InstanceID) map[messages.InstanceID]gather.Outcome[[]providers.Membership] {
	answers := map[messages.InstanceID]gather.Outcome[[]providers.Membership]{}
	for len(ids) > 0 {
		n := min(findMaxIDs, len(ids))
		found, err := b.pagesOfServers(ctx, in, ids[:n])
		for _, id := range ids[:n] {
			answers[id] = gather.Outcome[[]providers.Membership]{Err: err}
		}
		for _, s := range found {
			id := messages.InstanceID(s.ServerID)
			meant := identifier(s.ServerGroupID) != "" && (in.ID == "" || in.ID == s.ServerGroupID)
			if a, asked := answers[id]; asked && meant {
				a.Value = append(a.Value, s.membership(in.Kind))
				answers[id] = a
			}
		}
		ids = ids[n:]
	}
	return answers
}

// pagesOfServers reads ListServerGroupServers to its end; ids, if any, restrict it.
func (b *Balancers) pagesOfServers(ctx context.Context, in providers.Balancer, ids []messages.InstanceID) ([]server, error) {
	const name = "ListServerGroupServers"
	var all []server
	next := ""
	for range balancerMaxPages {
		parameters := form{"MaxResults": strconv.Itoa(balancerPage)}
		if in.ID != "" {
			parameters["ServerGroupId"] = in.ID
		}
		for i, id := range ids {
			parameters["ServerIds."+strconv.Itoa(i+1)] = string(id)
		}
		if next != "" {
			parameters["NextToken"] = next
		}
		var answer struct {
			TotalCount looseInt
			NextToken  string
			Servers    []server
		}
		if err := read(ctx, b.rpcOf(in.Kind), name, parameters, &answer); err != nil {
			return nil, err
		}
		for _, s := range answer.Servers {
			if s.ServerGroupID == "" {
				s.ServerGroupID = in.ID
			}
			all = append(all, s)
		}
		if answer.NextToken == "" || answer.NextToken == next {
			if len(all) < int(answer.TotalCount) {
				return nil, holes(name)
			}
			return all, nil
		}
		next = answer.NextToken
	}
	return nil, holes(name)
}

func (b *Balancers) listServers(ctx context.Context, of providers.Balancer) ([]server, error) {
	return b.pagesOfServers(ctx, of, nil)
}

// groupSettings is how a server group is set up.
type groupSettings struct {
	draining  time.Duration
	notice    time.Duration // until a failing server gets nothing new
	crossZone bool
	// listeners send to the group, and balancers are theirs.
	listeners, balancers []string
}

// readSettings reads one group with ListServerGroups.
func (b *Balancers) readSettings(ctx context.Context, of providers.Balancer) (groupSettings, error) {
	type drain struct {
		ConnectionDrainEnabled bool
		ConnectionDrainTimeout looseInt
	}
	type check struct {
		HealthCheckEnabled                            bool
		HealthCheckTimeout, HealthCheckConnectTimeout looseInt // ALB, NLB
		HealthCheckInterval, UnhealthyThreshold       looseInt
	}
	var answer struct {
		ServerGroups []struct {
			drain
			HealthCheckConfig, HealthCheck check  // ALB, NLB
			ServerGroupID                  string `json:"ServerGroupId"`
			ConnectionDrainConfig          drain
			CrossZoneEnabled               bool
			RelatedListenerIDs             []string `json:"RelatedListenerIds"`
			RelatedLoadBalancerIDs         []string `json:"RelatedLoadBalancerIds"`
		}
	}
	parameters := form{"ServerGroupIds.1": of.ID, "MaxResults": strconv.Itoa(balancerPage)}
	if of.Kind == providers.ALB {
		parameters["ShowRelationEnabled"] = "true"
	}
	if err := read(ctx, b.rpcOf(of.Kind), "ListServerGroups", parameters, &answer); err != nil {
		return groupSettings{}, err
	}
	for _, g := range answer.ServerGroups {
		if g.ServerGroupID != of.ID {
			continue
		}
		s := groupSettings{crossZone: g.CrossZoneEnabled, listeners: g.RelatedListenerIDs, balancers: g.RelatedLoadBalancerIDs}
		for _, d := range []drain{g.drain, g.ConnectionDrainConfig} {
			if d.ConnectionDrainEnabled {
				s.draining = max(s.draining, draining(d.ConnectionDrainTimeout))
			}
		}
		for _, c := range []check{g.HealthCheckConfig, g.HealthCheck} {
			if c.HealthCheckEnabled {
				s.notice = max(s.notice, notice(c.HealthCheckInterval, max(c.HealthCheckTimeout, c.HealthCheckConnectTimeout), c.UnhealthyThreshold))
			}
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.missed, of)
		return s, nil
	}
	return groupSettings{}, b.missing(ctx, of)
}

// missing is the error of a group that ListServerGroups did not list. A service in trouble
// may answer with an empty list: two of them are believed, or one and the listing of the
// members, if that refuses the group, too.
func (b *Balancers) missing(ctx context.Context, of providers.Balancer) error {
	_, err := b.servers.Get(ctx, of, listingAge)
	b.mu.Lock()
	defer b.mu.Unlock()
	e := &providers.Error{Op: "ListServerGroups", Kind: providers.ErrUnavailable, Message: "no group " + of.ID}
	if before, ok := b.missed[of]; ok && time.Since(before) <= settingsAge || errors.Is(err, providers.ErrNotFound) {
		e.Kind = providers.ErrNotFound
	}
	b.missed[of] = time.Now()
	return e
}

// groupMembers: a member that no listener's health list has is healthy, since those name
// only what is not normal; but not one that is being added, nor by a list from before it
// was seen as a member. A group behind no listener is not checked.
func (b *Balancers) groupMembers(ctx context.Context, of providers.Balancer) ([]providers.Member, error) {
	servers, moment, err := b.servers.Since(ctx, of, listingAge, 0)
	if err != nil {
		return nil, err
	}
	settings, err := b.settings.Get(ctx, of, settingsAge)
	if err != nil {
		return nil, err
	}
	said, _, err := b.unhealthy.Since(ctx, of, listingAge, moment)
	if err != nil {
		return nil, err
	}
	var zones map[messages.InstanceID]string
	if !settings.crossZone {
		if zones, err = b.zonesIn.Get(ctx, of, settingsAge); err != nil {
			return nil, fmt.Errorf("zones: %w", err)
		}
	}
	var out []providers.Member
	for _, s := range servers {
		m := providers.Member{Membership: s.membership(of.Kind), Health: providers.Healthy}
		if h, there := said[memberKey{s.ServerID, int(s.Port)}]; there {
			m.Health = h
		} else if h, there := said[memberKey{}]; there {
			m.Health = h
		} else if m.State == providers.Joining {
			m.Health = providers.HealthUnknown
		}
		m.Zone = zones[m.Instance]
		out = append(out, m)
	}
	return out, nil
}

// listUnhealthy asks the group's listeners again if a listener was deleted since they were
// listed, or if none of them knows the group.
func (b *Balancers) listUnhealthy(ctx context.Context, of providers.Balancer) (map[memberKey]providers.Health, error) {
	said, sure, err := b.askListeners(ctx, of)
	if err == nil && !sure {
		b.settings.Drop(of)
		said, _, err = b.askListeners(ctx, of)
	}
	return said, err
}

// askListeners reads GetListenerHealthStatus of each listener that sends to the group. The
// entry without a server is for all that no other names, where nothing is checked.
func (b *Balancers) askListeners(ctx context.Context, of providers.Balancer) (said map[memberKey]providers.Health, sure bool, err error) {
	settings, err := b.settings.Get(ctx, of, settingsAge)
	if err != nil {
		return nil, false, err
	}
	listeners, err := b.listenersOf(ctx, of, settings)
	if err != nil {
		return nil, false, err
	}
	said = map[memberKey]providers.Health{}
	checked, gone := false, false
	for _, listener := range listeners {
		groups, err := b.listenerHealth(ctx, of.Kind, listener)
		if errors.Is(err, providers.ErrNotFound) {
			gone = true
			continue
		}
		if err != nil {
			return nil, false, err
		}
		for _, g := range groups {
			if g.ServerGroupID != of.ID {
				continue
			}
			checked = true
			for _, s := range g.NonNormalServers {
				if s.ServerID == "" {
					continue
				}
				now := providers.HealthUnknown
				if strings.EqualFold(s.Status, "Unhealthy") {
					now = providers.Unhealthy
				}
				// In a group for all ports, what is said of any port is said of the server.
				for _, key := range gather.Distinct([]memberKey{{s.ServerID, int(s.Port)}, {s.ServerID, 0}}) {
					said[key] = worse(said[key], now)
				}
			}
		}
	}
	if !checked {
		said[memberKey{}] = providers.HealthUnknown
	}
	unused := len(settings.listeners) == 0 && len(settings.balancers) == 0
	return said, !gone && (checked || unused), nil
}

// serverGroupHealth is what GetListenerHealthStatus says of one group.
type serverGroupHealth struct {
	ServerGroupID    string `json:"ServerGroupId"`
	NonNormalServers []struct {
		ServerID string `json:"ServerId"`
		Port     looseInt
		Status   string
	}
}

// listenerHealth reads one listener with its rules, page by page.
func (b *Balancers) listenerHealth(ctx context.Context, kind providers.BalancerKind, listener string) ([]serverGroupHealth, error) {
	const name = "GetListenerHealthStatus"
	type status struct{ ServerGroupInfos []serverGroupHealth }
	var all []serverGroupHealth
	next := ""
	for range balancerMaxPages {
		parameters := form{"ListenerId": listener}
		if kind == providers.ALB {
			parameters["IncludeRule"] = "true"
		}
		if next != "" {
			parameters["NextToken"] = next
		}
		var answer struct {
			NextToken            string
			ListenerHealthStatus []status
			RuleHealthStatus     []status
		}
		if err := commonCall(ctx, b.rpcOf(kind), whenPassing, looks(name), kind == providers.NLB, parameters, &answer); err != nil {
			return nil, err
		}
		for _, s := range append(answer.ListenerHealthStatus, answer.RuleHealthStatus...) {
			all = append(all, s.ServerGroupInfos...)
		}
		if answer.NextToken == "" || answer.NextToken == next {
			return all, nil
		}
		next = answer.NextToken
	}
	return nil, holes(name)
}

// listenersOf are the listeners that may send to a group: ALB names them, NLB names the
// balancers, whose listeners are listed.
func (b *Balancers) listenersOf(ctx context.Context, of providers.Balancer, s groupSettings) ([]string, error) {
	if len(s.listeners) > 0 || len(s.balancers) == 0 {
		return s.listeners, nil
	}
	const name = "ListListeners"
	var ids []string
	next := ""
	for range balancerMaxPages {
		parameters := form{"MaxResults": strconv.Itoa(balancerPage)}.indexed("LoadBalancerIds", s.balancers...)
		if next != "" {
			parameters["NextToken"] = next
		}
		var answer struct {
			NextToken string
			Listeners []struct {
				ListenerID    string `json:"ListenerId"`
				ServerGroupID string `json:"ServerGroupId"` // NLB alone
			}
		}
		if err := read(ctx, b.rpcOf(of.Kind), name, parameters, &answer); err != nil {
			return nil, err
		}
		for _, l := range answer.Listeners {
			if l.ServerGroupID == "" || l.ServerGroupID == of.ID {
				ids = append(ids, l.ListenerID)
			}
		}
		if answer.NextToken == "" || answer.NextToken == next {
			return ids, nil
		}
		next = answer.NextToken
	}
	return nil, holes(name)
}

// changeServers changes a server group and gives the job's id.
func (b *Balancers) changeServers(ctx context.Context, of changeOf, ms []providers.Membership, token string) (string, error) {
	name := map[changeKind]string{
		adding: "AddServersToServerGroup", weighing: "UpdateServerGroupServersAttribute", removing: "RemoveServersFromServerGroup",
	}[of.what]
	parameters := form{"ServerGroupId": of.balancer.ID, "ClientToken": token}
	for i, m := range ms {
		p := "Servers." + strconv.Itoa(i+1) + "."
		parameters[p+"ServerId"], parameters[p+"ServerType"], parameters[p+"Port"] = string(m.Instance), "Ecs", strconv.Itoa(m.Port)
		if of.what != removing {
			parameters[p+"Weight"] = strconv.Itoa(m.Weight)
		}
	}
	var answer struct {
		JobID string `json:"JobId"`
	}
	r := b.rpcOf(of.balancer.Kind)
	err := commonCall(ctx, r, unlessBusy, b.operation(r, name, "servergroup/"+of.balancer.ID), false, parameters, &answer)
	return identifier(answer.JobID), err
}

// job gives the error of a job that has failed.
func (b *Balancers) job(ctx context.Context, c providers.Change) error {
	var answer struct {
		Status string // NLB
		Jobs   []struct{ Id, Status, ErrorCode, ErrorMessage string }
	}
	var err error
	if c.Kind == providers.NLB {
		err = commonCall(ctx, b.nlb, whenPassing, looks("GetJobStatus"), true, form{"JobId": c.ID}, &answer)
	} else {
		err = read(ctx, b.alb, "ListAsynJobs", form{"JobIds.1": c.ID}, &answer)
	}
	if err != nil {
		return err
	}
	failed := func(op, status, code, message string) error {
		// NLB does not document how a failure is called.
		if !strings.HasPrefix(strings.ToLower(status), "fail") {
			return nil
		}
		return &providers.Error{Op: op, Kind: providers.ErrChangeFailed, Code: told(code, Keys{}, mostCode), Message: told(message, Keys{}, mostMessage)}
	}
	for _, j := range answer.Jobs {
		if j.Id == c.ID {
			return failed("ListAsynJobs", j.Status, j.ErrorCode, j.ErrorMessage)
		}
	}
	return failed("GetJobStatus", answer.Status, "", "")
}
