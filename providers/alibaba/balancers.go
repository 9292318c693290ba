package alibaba

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/responses"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/internal/gather"
)

const (
	// gatherFor is how long a call waits for others that it can be made together with.
	gatherFor = 250 * time.Millisecond
	// listingAge is how old a listing may be that our own changes have not made invalid.
	listingAge = 2 * time.Second
	// settingsAge is that for what seldom changes: which balancers there are, and how they are set up.
	settingsAge = time.Minute
	// balancerPage is the most that the listings of the balancers give in one page, and
	// balancerMaxPages ends one whose pages lead in a circle.
	balancerPage     = 100
	balancerMaxPages = 1000
	// busyPause is between two attempts at a change that is refused because another one runs.
	busyPause = 3 * time.Second
)

// Balancers are CLB, ALB and NLB as providers.Balancers. One value is meant to be shared by
// all scaling groups of an account in a region.
type Balancers struct {
	slb, alb, nlb *rpc
	ecs           *ecs
	ess           *rpc
	running       sync.WaitGroup // all batches and listings

	balancers  gather.Cache[struct{}, []string]           // the CLB instances
	vgroups    gather.Cache[string, []string]             // a CLB instance's virtual server groups
	owners     gather.Cache[string, string]               // a virtual server group's CLB instance
	backends   gather.Cache[providers.Balancer, clbGroup] // the members of CLB and CLBGroup
	clbDrains  gather.Cache[string, clbListeners]
	clbHealth  gather.Cache[string, []clbHealth]
	servers    gather.Cache[providers.Balancer, []server]      // the members of ALB and NLB
	settings   gather.Cache[providers.Balancer, groupSettings] // of ALB and NLB
	unhealthy  gather.Cache[providers.Balancer, map[memberKey]providers.Health]
	attachment gather.Cache[messages.GroupID, []providers.Balancer]
	zonesIn    gather.Cache[providers.Balancer, map[messages.InstanceID]string]
	zones      zoneBook

	mu sync.Mutex
	// guarded by mu: gatherers for what was asked for or changed so far.
	finding  map[providers.Balancer]*gather.Gatherer[messages.InstanceID, []providers.Membership]
	changing map[changeOf]*gather.Gatherer[providers.Membership, providers.Change]
	turns    map[providers.Balancer]chan struct{}
	missed   map[providers.Balancer]time.Time // when ListServerGroups did not list it
}

var _ providers.Balancers = (*Balancers)(nil)

// changeOf is one kind of change of one balancer.
type changeOf struct {
	balancer providers.Balancer
	what     changeKind
}

type changeKind int

const (
	adding changeKind = iota
	weighing
	removing
)

// NewBalancers makes the clients for o.Region. It does not call the services.
func NewBalancers(o Options) (*Balancers, error) {
	host := func(product string) func(string) string {
		return func(region string) string { return product + "." + region + ".aliyuncs.com" }
	}
	slb, err1 := newRPC(o, "slb", "SLBEndpoint", o.SLBEndpoint, host("slb"))
	alb, err2 := newRPC(o, "alb", "ALBEndpoint", o.ALBEndpoint, host("alb"))
	nlb, err3 := newRPC(o, "nlb", "NLBEndpoint", o.NLBEndpoint, host("nlb"))
	ess, err4 := newRPC(o, "ess", "ESSEndpoint", o.ESSEndpoint, essHost)
	e, err5 := newECS(o)
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		return nil, err
	}
	b := &Balancers{
		slb: slb, alb: alb, nlb: nlb, ess: ess, ecs: e,
		finding:  map[providers.Balancer]*gather.Gatherer[messages.InstanceID, []providers.Membership]{},
		changing: map[changeOf]*gather.Gatherer[providers.Membership, providers.Change]{},
		turns:    map[providers.Balancer]chan struct{}{},
		missed:   map[providers.Balancer]time.Time{},
	}
	b.balancers.Load, b.vgroups.Load, b.owners.Load = b.listBalancers, b.listVGroups, b.ownerOf
	b.backends.Load, b.clbDrains.Load, b.clbHealth.Load = b.listBackends, b.listListeners, b.listCLBHealth
	b.servers.Load, b.settings.Load, b.unhealthy.Load = b.listServers, b.readSettings, b.listUnhealthy
	b.attachment.Load, b.zonesIn.Load = b.listAttached, b.listZones
	for _, running := range []**sync.WaitGroup{
		&b.balancers.Running, &b.vgroups.Running, &b.owners.Running, &b.backends.Running, &b.clbDrains.Running, &b.clbHealth.Running,
		&b.servers.Running, &b.settings.Running, &b.unhealthy.Running, &b.attachment.Running, &b.zonesIn.Running,
	} {
		*running = &b.running
	}
	return b, nil
}

// Close waits for calls whose callers have gone, and drops idle connections. No call may
// be made after it.
func (b *Balancers) Close() {
	b.running.Wait()
	for _, r := range []*rpc{b.slb, b.alb, b.nlb, b.ess, b.ecs.rpc} {
		r.close()
	}
}

// form are the parameters of a call.
type form map[string]string

// commonCall makes a call through the SDK's CommonRequest, with its parameters in the form
// body: 200 servers in the query would make a URL that proxies cut or log. NLB takes some
// in the query alone.
func commonCall(ctx context.Context, r *rpc, again func(*failure) bool, op rpcOp, inQuery bool, parameters form, into any) error {
	response, err := invokeWhen(ctx, r, again, op, r.region, func() (acsRequest, *responses.CommonResponse) {
		request := requests.NewCommonRequest()
		request.Method = requests.POST
		request.Product, request.Version, request.ApiName = productNames[r.product], productVersions[r.product], op.name
		for name, value := range parameters {
			if inQuery {
				request.QueryParams[name] = value
			} else {
				request.FormParams[name] = value
			}
		}
		request.TransToAcsRequest()
		return request, responses.NewCommonResponse()
	})
	if err != nil {
		return err
	}
	if err := json.Unmarshal(response.GetHttpContentBytes(), into); err != nil {
		return &providers.Error{Op: op.name, Kind: providers.ErrUnavailable, Status: response.GetHttpStatus(), Message: "read answer: " + told(err.Error(), Keys{}, mostMessage)}
	}
	return nil
}

var (
	productNames    = map[string]string{"slb": "Slb", "alb": "Alb", "nlb": "Nlb", "ess": "Ess"}
	productVersions = map[string]string{"slb": "2014-05-15", "alb": "2020-06-16", "nlb": "2022-04-30", "ess": "2014-08-28"}
)

// read is a call that only asks.
func read(ctx context.Context, r *rpc, name string, parameters form, into any) error {
	return commonCall(ctx, r, whenPassing, looks(name), false, parameters, into)
}

// unlessBusy: what is refused because another change runs is repeated by the one who
// made the change, slower and for longer.
func unlessBusy(f *failure) bool { return f.passing && f.Kind != providers.ErrBusy }

// Find gives the memberships of an instance, all its ports, in one balancer or in all of a kind.
func (b *Balancers) Find(ctx context.Context, in providers.Balancer, id messages.InstanceID) ([]providers.Membership, error) {
	var found []providers.Membership
	var err error
	switch {
	case !id.Valid():
		err = &providers.Error{Op: "Find", Kind: providers.ErrInvalid, Untouched: true, Message: fmt.Sprintf("%q is no instance", id)}
	case in.Kind == providers.ALB, in.Kind == providers.NLB:
		found, err = b.finder(in).Do(ctx, id)
	case in.Kind == providers.CLB && in.ID == "":
		found, err = b.findCLB(ctx, id)
	case in.Kind == providers.CLB, in.Kind == providers.CLBGroup:
		var group clbGroup
		group, err = b.backends.Get(ctx, in, listingAge)
		found = group.of(id)
	default:
		err = noKind("Find", in)
	}
	if err != nil {
		return found, fmt.Errorf("find %s in %s: %w", id, in, err)
	}
	return found, nil
}

func noKind(op string, b providers.Balancer) error {
	return &providers.Error{Op: op, Kind: providers.ErrInvalid, Untouched: true, Message: fmt.Sprintf("there are no balancers of the kind %q", b.Kind)}
}

// finder gathers look-ups in one group, or in all, which ALB and NLB answer for 40 instances at a time.
func (b *Balancers) finder(in providers.Balancer) *gather.Gatherer[messages.InstanceID, []providers.Membership] {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.finding[in]
	if g == nil {
		g = &gather.Gatherer[messages.InstanceID, []providers.Membership]{
			Moment: gatherFor, Running: &b.running,
			Run: func(ctx context.Context, ids []messages.InstanceID) map[messages.InstanceID]gather.Outcome[[]providers.Membership] {
				return b.findServers(ctx, in, ids)
			},
		}
		b.finding[in] = g
	}
	return g
}

// Members lists a balancer's members with health and zone.
func (b *Balancers) Members(ctx context.Context, of providers.Balancer) (members []providers.Member, err error) {
	switch of.Kind {
	case providers.CLB, providers.CLBGroup:
		members, err = b.clbMembers(ctx, of)
	case providers.ALB, providers.NLB:
		members, err = b.groupMembers(ctx, of)
	default:
		err = noKind("Members", of)
	}
	if err != nil {
		return nil, fmt.Errorf("members of %s: %w", of, err)
	}
	return members, nil
}

// Draining reads the group's ConnectionDrainTimeout (ALB, NLB), or the longest of the TCP and
// UDP listeners that send to it (CLB), where ConnectionDrain is on.
func (b *Balancers) Draining(ctx context.Context, of providers.Balancer) (d time.Duration, err error) {
	switch of.Kind {
	case providers.CLB, providers.CLBGroup:
		d, err = b.clbDraining(ctx, of)
	case providers.ALB, providers.NLB:
		var s groupSettings
		s, err = b.settings.Get(ctx, of, settingsAge)
		d = s.draining
	default:
		err = noKind("Draining", of)
	}
	if err != nil {
		return 0, fmt.Errorf("connection draining of %s: %w", of, err)
	}
	return d, nil
}

// Notice reads the group's health check (ALB, NLB), or that of the listener that sends to it
// and is the slowest to notice (CLB).
func (b *Balancers) Notice(ctx context.Context, of providers.Balancer) (d time.Duration, err error) {
	switch of.Kind {
	case providers.CLB, providers.CLBGroup:
		d, err = b.clbNotice(ctx, of)
	case providers.ALB, providers.NLB:
		var s groupSettings
		s, err = b.settings.Get(ctx, of, settingsAge)
		d = s.notice
	default:
		err = noKind("Notice", of)
	}
	if err != nil {
		return 0, fmt.Errorf("health checks of %s: %w", of, err)
	}
	return d, nil
}

// Attached reads the group's record with DescribeScalingGroups.
func (b *Balancers) Attached(ctx context.Context, group messages.GroupID) ([]providers.Balancer, error) {
	attached, err := b.attachment.Get(ctx, group, settingsAge)
	if err != nil {
		return nil, fmt.Errorf("balancers of group %s: %w", group, err)
	}
	return attached, nil
}

func (b *Balancers) listAttached(ctx context.Context, group messages.GroupID) ([]providers.Balancer, error) {
	type serverGroup struct {
		ServerGroupID    string `json:"ServerGroupId"`
		ALBServerGroupID string `json:"AlbServerGroupId"`
		Type             string
	}
	var answer struct {
		ScalingGroups struct {
			ScalingGroup []struct {
				ScalingGroupID  string `json:"ScalingGroupId"`
				LoadBalancerIDs struct {
					LoadBalancerID []string `json:"LoadBalancerId"`
				} `json:"LoadBalancerIds"`
				VServerGroups struct {
					VServerGroup []struct {
						VServerGroupAttributes struct {
							VServerGroupAttribute []struct {
								VServerGroupID string `json:"VServerGroupId"`
							}
						}
					}
				}
				ALBServerGroups struct{ AlbServerGroup []serverGroup } `json:"AlbServerGroups"`
				ServerGroups    struct{ ServerGroup []serverGroup }
			}
		}
	}
	if err := read(ctx, b.ess, "DescribeScalingGroups", form{"ScalingGroupId.1": string(group)}, &answer); err != nil {
		return nil, err
	}
	var out []providers.Balancer
	note := func(kind providers.BalancerKind, id string) {
		if identifier(id) != "" {
			out = append(out, providers.Balancer{Kind: kind, ID: id})
		}
	}
	known := false
	for _, g := range answer.ScalingGroups.ScalingGroup {
		if g.ScalingGroupID != string(group) {
			continue
		}
		known = true
		for _, id := range g.LoadBalancerIDs.LoadBalancerID {
			note(providers.CLB, id)
		}
		for _, v := range g.VServerGroups.VServerGroup {
			for _, a := range v.VServerGroupAttributes.VServerGroupAttribute {
				note(providers.CLBGroup, a.VServerGroupID)
			}
		}
		for _, s := range g.ALBServerGroups.AlbServerGroup {
			note(providers.ALB, s.ALBServerGroupID)
		}
		for _, s := range g.ServerGroups.ServerGroup {
			switch s.Type {
			case "ALB":
				note(providers.ALB, s.ServerGroupID)
			case "NLB":
				note(providers.NLB, s.ServerGroupID)
			}
		}
	}
	if !known {
		return nil, &providers.Error{Op: "DescribeScalingGroups", Kind: providers.ErrNotFound}
	}
	return gather.Distinct(out), nil
}

// Add adds one port of an instance: with AddBackendServers, AddVServerGroupBackendServers or
// AddServersToServerGroup.
func (b *Balancers) Add(ctx context.Context, m providers.Membership) (providers.Change, error) {
	return b.change(ctx, adding, m)
}

// SetWeight uses SetBackendServers, SetVServerGroupAttribute or UpdateServerGroupServersAttribute.
func (b *Balancers) SetWeight(ctx context.Context, m providers.Membership) (providers.Change, error) {
	return b.change(ctx, weighing, m)
}

// Remove uses RemoveBackendServers, RemoveVServerGroupBackendServers or RemoveServersFromServerGroup.
func (b *Balancers) Remove(ctx context.Context, m providers.Membership) (providers.Change, error) {
	return b.change(ctx, removing, m)
}

var changeWords = map[changeKind]string{adding: "add %s to %s", weighing: "set the weight of %s in %s", removing: "remove %s from %s"}

// change hands the change of one membership to its balancer's gatherer.
func (b *Balancers) change(ctx context.Context, what changeKind, m providers.Membership) (providers.Change, error) {
	var err error
	switch {
	case m.Kind != providers.CLB && m.Kind != providers.CLBGroup && m.Kind != providers.ALB && m.Kind != providers.NLB:
		err = noKind("change", m.Balancer)
	case !m.Instance.Valid() || m.ID == "" || m.Port < 0 || m.Port > 65535 || m.Weight < 0 || m.Weight > 100:
		err = &providers.Error{Op: "change", Kind: providers.ErrInvalid, Untouched: true, Message: fmt.Sprintf("%+v is no membership", m)}
	}
	if err == nil {
		m.State = ""
		if what == removing {
			m.Weight = 0 // two who remove the same one need not agree on it
		}
		var c providers.Change
		if c, err = b.changer(changeOf{m.Balancer, what}).Do(ctx, m); err == nil {
			return c, nil
		}
	}
	return providers.Change{}, fmt.Errorf(changeWords[what]+": %w", portOf(m), m.Balancer, err)
}

// portOf names one membership.
func portOf(m providers.Membership) string {
	if m.Port == 0 {
		return string(m.Instance)
	}
	return fmt.Sprintf("%s port %d", m.Instance, m.Port)
}

// changer gathers one kind of change of one balancer. Its batches take turns: what the first
// is refused for, the next would be, too.
func (b *Balancers) changer(of changeOf) *gather.Gatherer[providers.Membership, providers.Change] {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.changing[of]
	if g == nil {
		g = &gather.Gatherer[providers.Membership, providers.Change]{
			Moment: gatherFor, Running: &b.running, Turn: newTurn(),
			Run: func(ctx context.Context, ms []providers.Membership) map[providers.Membership]gather.Outcome[providers.Change] {
				return b.apply(ctx, of, ms)
			},
		}
		b.changing[of] = g
	}
	return g
}

// turnOf is for the calls that change a balancer: it would refuse a second one while the
// first is being applied.
func (b *Balancers) turnOf(of providers.Balancer) chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.turns[of] == nil {
		b.turns[of] = newTurn()
	}
	return b.turns[of]
}

// newTurn holds a token for one at a time.
func newTurn() chan struct{} {
	turn := make(chan struct{}, 1)
	turn <- struct{}{}
	return turn
}

// The most servers one change may name: Slb 2014-05-15; Alb 2020-06-16 and Nlb 2022-04-30.
const (
	clbMaxServers   = 20
	groupMaxServers = 200
)

// apply makes the changes of a batch, as many in one call as it takes.
func (b *Balancers) apply(ctx context.Context, of changeOf, ms []providers.Membership) map[providers.Membership]gather.Outcome[providers.Change] {
	most := groupMaxServers
	if of.balancer.Kind == providers.CLB || of.balancer.Kind == providers.CLBGroup {
		most = clbMaxServers
	}
	done := &applied{answers: map[providers.Membership]gather.Outcome[providers.Change]{}, splits: mostSplits}
	for len(ms) > 0 {
		n := min(most, len(ms))
		b.applyChunk(ctx, of, ms[:n], done)
		ms = ms[n:]
	}
	return done.answers
}

// applied is what has become of a batch.
type applied struct {
	answers map[providers.Membership]gather.Outcome[providers.Change]
	// splits is how many more denied calls may be tried again by halves.
	splits int
}

// mostSplits finds two servers among 200 that RAM denies, and costs 32 calls more where it
// denies them all.
const mostSplits = 16

// applyChunk makes one call. Where that is refused for what it names, those that are as
// they should be are left out of it, and otherwise its halves are tried apart: one server
// that the balancer does not want, or that RAM denies, must not keep the others in.
func (b *Balancers) applyChunk(ctx context.Context, of changeOf, ms []providers.Membership, done *applied) {
	c, err := b.send(ctx, of, ms)
	b.changed(of.balancer)
	halves := func() {
		b.applyChunk(ctx, of, ms[:len(ms)/2], done)
		b.applyChunk(ctx, of, ms[len(ms)/2:], done)
	}
	if errors.Is(err, providers.ErrDenied) && len(ms) > 1 && done.splits > 0 && ctx.Err() == nil {
		done.splits--
		halves()
		return
	}
	blamed := errors.Is(err, providers.ErrNotFound) || errors.Is(err, providers.ErrInvalid) || errors.Is(err, providers.ErrInstanceGone)
	if blamed && ctx.Err() == nil {
		var open []providers.Membership
		listed, unlisted := b.listed(ctx, of.balancer)
		for _, m := range ms {
			if unlisted == nil && settled(of.what, m, listed) {
				done.answers[m] = gather.Outcome[providers.Change]{Value: providers.Change{Balancer: of.balancer}}
				continue
			}
			open = append(open, m)
		}
		switch {
		case len(open) == 0:
			return
		case len(open) < len(ms):
			b.applyChunk(ctx, of, open, done)
			return
		case len(ms) > 1 && unlisted == nil:
			halves()
			return
		}
	}
	for _, m := range ms {
		done.answers[m] = gather.Outcome[providers.Change]{Value: c, Err: err}
	}
}

// settled: the listing shows the membership as the change would make it, or without what
// it would change.
func settled(what changeKind, m providers.Membership, listed []providers.Membership) bool {
	for _, l := range listed {
		if l.Instance == m.Instance && l.Port == m.Port {
			return what == adding && l.State != providers.Leaving || what == removing && l.State == providers.Leaving
		}
	}
	return what != adding
}

// send makes one change, and again for as long as the balancer is busy with another one,
// throttled or out of order. Between two attempts, the turn is for the other kinds of
// change: one that is refused for long must not keep an instance in.
func (b *Balancers) send(ctx context.Context, of changeOf, ms []providers.Membership) (providers.Change, error) {
	// One token for all attempts: a repeat whose first answer was lost is given that answer.
	token := clientToken(of.balancer.String(), strconv.FormatUint(rand.Uint64(), 36), strconv.FormatUint(rand.Uint64(), 36))
	for {
		id, err := b.sendInTurn(ctx, of, ms, token)
		passing := errors.Is(err, providers.ErrBusy) || errors.Is(err, providers.ErrThrottled) || errors.Is(err, providers.ErrUnavailable)
		if err == nil || !passing || !gather.Sleep(ctx, busyPause+rand.N(busyPause/2)) {
			return providers.Change{Balancer: of.balancer, ID: id}, err
		}
	}
}

func (b *Balancers) sendInTurn(ctx context.Context, of changeOf, ms []providers.Membership, token string) (string, error) {
	turn := b.turnOf(of.balancer)
	select {
	case <-turn:
		defer func() { turn <- struct{}{} }()
		return b.sendOnce(ctx, of, ms, token)
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

func (b *Balancers) sendOnce(ctx context.Context, of changeOf, ms []providers.Membership, token string) (string, error) {
	switch of.balancer.Kind {
	case providers.CLB:
		return "", b.changeBackends(ctx, of, ms)
	case providers.CLBGroup:
		return "", b.changeVGroup(ctx, of, ms)
	}
	return b.changeServers(ctx, of, ms, token)
}

// changed forgets what our own change has made invalid.
func (b *Balancers) changed(of providers.Balancer) {
	b.backends.Drop(of)
	b.servers.Drop(of)
	if of.Kind == providers.CLBGroup {
		b.vgroups.Clear() // those lists leave groups without members out
	}
}

// listed are the members of a balancer now.
func (b *Balancers) listed(ctx context.Context, of providers.Balancer) ([]providers.Membership, error) {
	if of.Kind == providers.CLB || of.Kind == providers.CLBGroup {
		group, err := b.backends.Get(ctx, of, 0)
		return group.members, err
	}
	servers, err := b.servers.Get(ctx, of, 0)
	var out []providers.Membership
	for _, s := range servers {
		out = append(out, s.membership(of.Kind))
	}
	return out, err
}

// Failed asks for the job of a change: ListAsynJobs (ALB), GetJobStatus (NLB).
func (b *Balancers) Failed(ctx context.Context, c providers.Change) error {
	if c.ID == "" {
		return nil
	}
	if err := b.job(ctx, c); err != nil {
		return fmt.Errorf("job %s of %s: %w", c.ID, c.Balancer, err)
	}
	return nil
}

// maxDraining is the longest that any of them can be set to.
const maxDraining = 900 * time.Second

func draining(seconds looseInt) time.Duration {
	return time.Duration(min(max(seconds, 0), looseInt(maxDraining/time.Second))) * time.Second
}

// maxNotice is more than the slowest health checks that can be set up: 10 failures, 50 s
// apart, after 300 s each.
const maxNotice = time.Hour

// notice is how long failures take to be noticed: each may only be told by the timeout, and
// the first is looked for up to one interval later.
func notice(interval, timeout, failures looseInt) time.Duration {
	most := looseInt(maxNotice / time.Second)
	if interval < 1 || failures < 1 {
		return 0
	}
	each := min(interval, most) + min(max(timeout, 0), most)
	return time.Duration(min(each*min(failures, most), most)) * time.Second
}

// operation is a change as RAM knows it.
func (b *Balancers) operation(r *rpc, name, resource string) rpcOp {
	return rpcOp{name, fmt.Sprintf("acs:%s:%s:*:%s", r.product, r.region, resource)}
}

// zoneBook remembers the zones of instances: those never change.
type zoneBook struct {
	mu    sync.Mutex
	known map[messages.InstanceID]string // guarded by mu
}

func (z *zoneBook) get(id messages.InstanceID) (string, bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	zone, ok := z.known[id]
	return zone, ok
}

func (z *zoneBook) put(id messages.InstanceID, zone string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.known == nil || len(z.known) >= gather.CacheMost {
		z.known = map[messages.InstanceID]string{}
	}
	z.known[id] = zone
}

// listZones gives the zones of a group's members, of which ALB tells nothing. ECS is asked
// for those that are not known yet.
func (b *Balancers) listZones(ctx context.Context, of providers.Balancer) (map[messages.InstanceID]string, error) {
	servers, err := b.servers.Get(ctx, of, listingAge)
	if err != nil {
		return nil, err
	}
	out := map[messages.InstanceID]string{}
	var open []messages.InstanceID
	for _, s := range servers {
		id := messages.InstanceID(s.ServerID)
		if zone, ok := b.zones.get(id); ok {
			out[id] = zone
		} else if s.ZoneID != "" {
			out[id] = s.ZoneID
		} else if id.Valid() {
			open = append(open, id)
		}
	}
	for open = gather.Distinct(open); len(open) > 0; {
		n := min(ecsMaxIDs, len(open))
		found, err := b.ecs.machines(ctx, b.ecs.region, open[:n])
		if err == nil && len(found) == 0 {
			found, err = b.ecs.machines(ctx, b.ecs.region, open[:n]) // one empty answer is not believed
		}
		if err != nil {
			return nil, err
		}
		for _, id := range open[:n] {
			zone := found[id].ZoneID
			if zone == "" {
				b.zonesIn.Drop(of) // to be asked again
				continue
			}
			out[id] = zone
			b.zones.put(id, zone)
		}
		open = open[n:]
	}
	return out, nil
}

// indexed writes a repeated parameter: Name.1, Name.2 ...
func (f form) indexed(name string, values ...string) form {
	for i, v := range values {
		f[name+"."+strconv.Itoa(i+1)] = v
	}
	return f
}
