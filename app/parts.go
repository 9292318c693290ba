package app

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"

	"example.org/usher/configs"
	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/worker"
	"example.org/usher/worker/steps"
)

// parts builds the clients of queues and groups from configurations, one after the other.
// What a new one leaves unchanged keeps the clients that it has, and so the worker knows
// that it is unchanged.
type parts struct {
	log        *slog.Logger
	clouds     map[string]cloud // by provider
	departures steps.Departures // of all groups: those of different roles may meet in a balancer
	outbox     *steps.Outbox    // of all groups; App.Run runs it

	mu     sync.Mutex
	queues map[queueKey]*queuePart // guarded by mu; those too that only actions in flight need
	groups map[groupKey]groupPart  // guarded by mu
}

type (
	queueKey struct {
		configs.Queue
		role assumed
	}
	groupKey struct {
		provider, region string
		id               messages.GroupID
	}
)

// queuePart is a queue's clients, without the groups that name it at present.
type queuePart struct {
	worker.Queue
	closeClients func()
	// building: a configuration is being built that names the queue, which an earlier one
	// did, too. unused: the worker has let go of it meanwhile. Both guarded by parts.mu.
	building, unused bool
}

// groupPart is a group's clients and steps, and what they were built from.
type groupPart struct {
	worker.Group
	config configs.Group
	// queue is where it is received. The worker closes a group's clients when the group leaves
	// its queue, so what comes to another one needs clients of its own.
	queue *queuePart
}

// built is what build has made of one configuration.
type built struct {
	queues []worker.Queue
	// All of the configuration's, and those of them that are new.
	queueParts, newQueues map[queueKey]*queuePart
	groupParts, newGroups map[groupKey]groupPart
}

func keyOf(g configs.Group) groupKey { return groupKey{g.Provider, g.Region, g.ScalingGroup} }

func newParts(o Options) *parts {
	p := &parts{
		log: o.Logger, clouds: map[string]cloud{},
		queues: map[queueKey]*queuePart{}, groups: map[groupKey]groupPart{}, outbox: steps.NewOutbox(o.Logger, o.DialContext),
	}
	for provider, build := range clouds {
		p.clouds[provider] = build(o)
	}
	return p
}

// build makes the clients: one for each queue, which groups may share, and some for each
// group, so that one group's trouble stays its own. It changes nothing that is in use;
// after an error all that it has made is closed.
func (p *parts) build(c *configs.Config) (_ *built, err error) {
	b := &built{
		queueParts: map[queueKey]*queuePart{}, newQueues: map[queueKey]*queuePart{},
		groupParts: map[groupKey]groupPart{}, newGroups: map[groupKey]groupPart{},
	}
	defer func() {
		if err != nil {
			p.discard(b)
		}
	}()
	index, queues := map[configs.Queue]int{}, map[configs.Queue]*queuePart{}
	for _, g := range c.Groups {
		in := p.clouds[g.Provider]
		i, ok := index[g.Queue]
		if !ok {
			// The groups that name it agree on the keys; the first says where those are got.
			part, err := p.queue(b, queueKey{g.Queue, in.assumed(g, g.Queue.Role)}, g, c.Worker.Quarantine.Queue)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", g.File, err)
			}
			i = len(b.queues)
			index[g.Queue], queues[g.Queue] = i, part
			b.queues = append(b.queues, part.Queue)
		}
		part, err := p.group(b, g, queues[g.Queue])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", g.File, err)
		}
		b.queues[i].Groups = append(b.queues[i].Groups, part.Group)
	}
	return b, nil
}

// discard closes what was built and is not taken over.
func (p *parts) discard(b *built) {
	for _, q := range b.newQueues {
		q.closeClients()
	}
	for _, g := range b.newGroups {
		g.Close()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, q := range b.queueParts {
		if q.building = false; q.unused {
			delete(p.queues, key)
			q.closeClients()
		}
	}
}

// take makes what was built the state that the next configuration is compared with.
func (p *parts) take(b *built) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.groups = b.groupParts
	maps.Copy(p.queues, b.queueParts)
	for _, q := range b.queueParts {
		q.building, q.unused = false, false
	}
}

// close closes all clients once more: those that a worker had which never ran.
func (p *parts) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, q := range p.queues {
		q.closeClients()
	}
	for _, g := range p.groups {
		g.Close()
	}
	for _, c := range p.clouds {
		c.close()
	}
	return nil
}

// queue gives the queue's part, which may still work off what it holds of an earlier
// configuration, or makes it.
func (p *parts) queue(b *built, key queueKey, g configs.Group, aside string) (*queuePart, error) {
	p.mu.Lock()
	part := p.queues[key]
	if part != nil {
		part.building = true
	}
	p.mu.Unlock()
	if part == nil {
		var err error
		if part, err = p.newQueue(key, g, aside); err != nil {
			return nil, err
		}
		b.newQueues[key] = part
	}
	b.queueParts[key] = part
	return part, nil
}

func (p *parts) newQueue(key queueKey, g configs.Group, aside string) (_ *queuePart, err error) {
	var clients closers
	defer func() {
		if err != nil {
			clients.close()
		}
	}()
	in := p.clouds[g.Provider]
	client, err := in.queue(g, key.role, key.Name, &clients)
	if err != nil {
		return nil, err
	}
	part := &queuePart{Queue: worker.Queue{Name: key.Name, Cloud: messages.Cloud(key.Provider), Region: key.Region, Queue: client}}
	if aside != "" {
		if part.Quarantine, err = in.queue(g, key.role, aside, &clients); err != nil {
			return nil, fmt.Errorf("the quarantine queue: %w", err)
		}
	}
	part.closeClients = clients.close
	part.Close = func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if part.building {
			part.unused = true // but for the one that is being built
			return
		}
		if p.queues[key] == part {
			delete(p.queues, key)
		}
		part.closeClients()
	}
	return part, nil
}

// group gives the group's part if nothing of it has changed, or makes a new one.
func (p *parts) group(b *built, g configs.Group, queue *queuePart) (groupPart, error) {
	key := keyOf(g)
	p.mu.Lock()
	part, ok := p.groups[key]
	p.mu.Unlock()
	if !ok || part.queue != queue || !reflect.DeepEqual(withoutLines(part.config), withoutLines(g)) {
		group, err := p.newGroup(g)
		if err != nil {
			return groupPart{}, err
		}
		part = groupPart{Group: group, config: g, queue: queue}
		b.newGroups[key] = part
	}
	b.groupParts[key] = part
	return part, nil
}

// withoutLines is the group wherever in its file the steps stand.
func withoutLines(g configs.Group) configs.Group {
	g.Hooks, g.Events = slices.Clone(g.Hooks), slices.Clone(g.Events)
	for _, list := range [][]configs.Hook{g.Hooks, g.Events} {
		for i := range list {
			list[i].Steps, list[i].Always = lineless(list[i].Steps), lineless(list[i].Always)
		}
	}
	return g
}

func lineless(list []configs.Step) []configs.Step {
	list = slices.Clone(list)
	for i := range list {
		list[i].Line, list[i].Parallel = 0, lineless(list[i].Parallel)
	}
	return list
}

// newGroup makes the group's own clients, and its steps.
func (p *parts) newGroup(g configs.Group) (group worker.Group, err error) {
	var clients closers
	defer func() {
		if err != nil {
			clients.close()
		}
	}()
	in := p.clouds[g.Provider]
	made, err := in.group(g, in.assumed(g, g.AssumeRole), &clients)
	if err != nil {
		return worker.Group{}, err
	}
	group = worker.Group{
		Name: g.Name, Provider: g.Provider, Region: g.Region, ID: g.ScalingGroup, Account: made.account,
		Lifecycle: made.lifecycle, Verify: worker.Verify(g.Verify), MaxConcurrent: g.MaxConcurrent,
		Close: clients.close,
	}
	for _, h := range g.Plans() {
		maker := stepMaker{commander: made.commander, outbox: p.outbox, log: p.log.With("file", g.File)}
		if made.balancers != nil {
			maker.balancers = &balancersOf{made.balancers, &p.departures}
		}
		plan, err := maker.plan(h)
		if err != nil {
			return worker.Group{}, err
		}
		group.Plans = append(group.Plans, each(plan, h.On)...)
	}
	return group, nil
}

// each is the plan for each of the events, or for the hook's actions where there are none.
func each(plan worker.Plan, on []messages.Event) []worker.Plan {
	if len(on) == 0 {
		return []worker.Plan{plan}
	}
	plans := make([]worker.Plan, len(on))
	for i, event := range on {
		plans[i] = plan
		plans[i].Event = event
	}
	return plans
}

// stepMaker makes the steps of one hook.
type stepMaker struct {
	commander providers.Commander
	balancers *balancersOf
	outbox    *steps.Outbox
	log       *slog.Logger
	made      int // the next one's place in the hook, those in parallel and for every end counted
}

func (m *stepMaker) plan(h configs.Hook) (plan worker.Plan, err error) {
	plan = worker.Plan{
		Transition: h.Transition, Hook: cmp.Or(string(h.HookID), h.HookName), Deadline: h.Deadline,
		OnSuccess: h.OnSuccess, OnFailure: h.OnFailure,
		HeartbeatFloor: h.Heartbeat.Floor, HeartbeatExtension: h.Heartbeat.Extension,
	}
	if plan.Steps, err = m.list(h.Steps); err != nil {
		return plan, err
	}
	plan.Always, err = m.list(h.Always)
	return plan, err
}

func (m *stepMaker) list(list []configs.Step) ([]worker.PlannedStep, error) {
	var planned []worker.PlannedStep
	for _, s := range list {
		p := worker.PlannedStep{
			Timeout: s.Timeout, Retries: s.Retries, IgnoreError: s.OnError == configs.OnErrorIgnore, UndoTimeout: s.UndoTimeout,
			When: worker.Condition{Transition: s.When.Transition, Tags: s.When.Tags, Job: worker.JobState(s.When.Job)},
		}
		var err error
		if s.Kind == configs.KindParallel {
			if p.Parallel, err = m.list(s.Parallel); err != nil {
				return nil, err
			}
		} else {
			if p.Step, err = newStep(s, m.made, m.commander, m.balancers, m.outbox); err != nil {
				return nil, fmt.Errorf("line %d: %w", s.Line, err)
			}
			// Not a reason to stop: it may be on its way, and the other groups do without it.
			if files, ok := p.Step.(interface{ Unreadable() error }); ok {
				if err := files.Unreadable(); err != nil {
					m.log.Warn("a step's file can't be used as it is now, and the step needs it", "line", s.Line, "error", err)
				}
			}
			m.made++
		}
		planned = append(planned, p)
	}
	return planned, nil
}

// closers are the clients of one part. The last one is closed first: it may need the
// others, such as the session whose keys it signs with.
type closers []interface{ Close() }

func (c *closers) add(client interface{ Close() }) { *c = append(*c, client) }

func (c *closers) close() {
	for _, client := range slices.Backward(*c) {
		client.Close()
	}
}
