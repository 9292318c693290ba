package simulator

import (
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"time"
)

// State is a snapshot of the simulated cloud.
type State struct {
	Time      time.Time       `json:"time"`
	Region    string          `json:"region"`
	AccountID string          `json:"account_id"`
	Groups    []GroupState    `json:"groups"`
	Actions   []ActionState   `json:"actions"` // oldest first
	Queues    []QueueState    `json:"queues"`  // by name
	Topics    []TopicState    `json:"topics"`  // by name
	Balancers []BalancerState `json:"balancers"`
	// Commands counts the scripts that RunCommand was to run, one an instance.
	Commands int `json:"commands"`
	// APICalls counts by "service.Action", such as "mns.BatchReceiveMessage", every
	// call that arrived, refused ones too.
	APICalls map[string]int `json:"api_calls"`
	// Refusals counts the calls that were answered with an error by "service.Action Code",
	// such as "mns.BatchReceiveMessage MessageNotExist".
	Refusals map[string]int `json:"refusals"`
	Faults   []Fault        `json:"faults"`
}

// GroupState is a scaling group and its instances, oldest first. Released instances
// are not listed.
type GroupState struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Instances []InstanceState `json:"instances"`
}

// InstanceState is one instance.
type InstanceState struct {
	ID string `json:"id"`
	// State is the lifecycle state in the API's words, such as InService.
	State    string    `json:"state"`
	Address  string    `json:"address"` // its private IP address
	Port     int       `json:"port"`    // of its server; 0 while that is unknown
	Zone     string    `json:"zone"`
	Activity string    `json:"activity,omitempty"`
	Created  time.Time `json:"created"`
}

// ActionState is one lifecycle action.
type ActionState struct {
	Token      string   `json:"token"`
	Hook       string   `json:"hook"`
	HookName   string   `json:"hook_name"`
	Group      string   `json:"group"`
	Transition string   `json:"transition"`
	Activity   string   `json:"activity"`
	Instances  []string `json:"instances"`
	// Status is Pending, Timeout or Completed; Result the default one while Pending.
	Status string `json:"status"`
	Result string `json:"result"`
	// EndedBy is call, timeout, other_hook, or on AWS instance, when that is gone; empty
	// while Pending.
	EndedBy        string     `json:"ended_by,omitempty"`
	HeartbeatsUsed int        `json:"heartbeats_used"`
	Started        time.Time  `json:"started"`
	Deadline       time.Time  `json:"deadline"`
	Completed      *time.Time `json:"completed,omitempty"`
}

// QueueState is one queue and its counts of messages.
type QueueState struct {
	Name     string `json:"name"`
	Active   int    `json:"active"`
	Inactive int    `json:"inactive"` // received, hidden
	Delayed  int    `json:"delayed"`
}

// BalancerState is one balancer. Failed counts what a client saw as 502, 503 or a cut
// body; a request that its client gave up counts as neither.
type BalancerState struct {
	ID           string             `json:"id"`
	Type         string             `json:"type,omitempty"` // such as clb, or elb on AWS; empty: it has no API
	Address      string             `json:"address"`        // host:port of the first listener
	Served       int64              `json:"served"`
	Failed       int64              `json:"failed"`
	Listeners    []ListenerState    `json:"listeners"`
	ServerGroups []ServerGroupState `json:"server_groups"`
	// Members are those of each server group, followed by the last 100 that have left it.
	Members []MemberState `json:"members"`
}

// ListenerState is a listener of a balancer.
type ListenerState struct {
	ID          string `json:"id"`
	Port        int    `json:"port"`
	Protocol    string `json:"protocol"`
	ServerGroup string `json:"server_group"`
	Address     string `json:"address"` // host:port that it really listens on
}

// ServerGroupState is a server group: its Status is Available, or Configuring while a job
// changes it.
type ServerGroupState struct {
	ID     string `json:"id"`
	Name   string `json:"name"`
	Status string `json:"status"`
	ARN    string `json:"arn,omitempty"` // of a target group of AWS
}

// MemberState is a port of an instance in a server group.
type MemberState struct {
	Instance    string `json:"instance"`
	Address     string `json:"address"` // host:port
	ServerGroup string `json:"server_group"`
	Port        int    `json:"port"` // as the API has it; 0 in a default server group
	Weight      int    `json:"weight"`
	// Status is Adding, Available, Configuring or Removing; empty: it has left.
	Status string `json:"status,omitempty"`
	// InService says that it gets requests while it is healthy.
	InService bool `json:"in_service"`
	Healthy   bool `json:"healthy"`
	// Draining says that it is to leave or has left, and connections may live yet.
	Draining bool       `json:"draining"`
	InFlight int        `json:"in_flight"`
	Served   int64      `json:"served"`
	Failed   int64      `json:"failed"`
	Left     *time.Time `json:"left,omitempty"`
}

// Members lists what an instance is a member of now, in all balancers.
func (st State) Members(instance string) []MemberState {
	var out []MemberState
	for _, b := range st.Balancers {
		for _, m := range b.Members {
			if m.Instance == instance && m.Left == nil {
				out = append(out, m)
			}
		}
	}
	return out
}

// Group finds a scaling group.
func (st State) Group(id string) (GroupState, bool) {
	return find(st.Groups, func(g GroupState) bool { return g.ID == id })
}

// Action finds a lifecycle action by its token.
func (st State) Action(token string) (ActionState, bool) {
	return find(st.Actions, func(a ActionState) bool { return a.Token == token })
}

// Queue finds a queue.
func (st State) Queue(name string) (QueueState, bool) {
	return find(st.Queues, func(q QueueState) bool { return q.Name == name })
}

// Topic finds a topic.
func (st State) Topic(name string) (TopicState, bool) {
	return find(st.Topics, func(t TopicState) bool { return t.Name == name })
}

// Balancer finds a balancer.
func (st State) Balancer(id string) (BalancerState, bool) {
	return find(st.Balancers, func(b BalancerState) bool { return b.ID == id })
}

// Instance finds an instance that is not released.
func (st State) Instance(id string) (InstanceState, bool) {
	for _, g := range st.Groups {
		if in, ok := find(g.Instances, func(in InstanceState) bool { return in.ID == id }); ok {
			return in, true
		}
	}
	return InstanceState{}, false
}

func find[T any](list []T, fits func(T) bool) (T, bool) {
	if i := slices.IndexFunc(list, fits); i >= 0 {
		return list[i], true
	}
	var none T
	return none, false
}

// State takes a snapshot.
func (s *Simulator) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clock.catchUp()
	st := State{
		Time: time.Now(), Region: s.scenario.Region, AccountID: s.account, Commands: s.commands,
		Groups: []GroupState{}, Actions: []ActionState{}, Queues: []QueueState{}, Balancers: []BalancerState{}, Faults: []Fault{},
		APICalls: maps.Clone(s.calls), Refusals: maps.Clone(s.refusals),
	}
	for _, g := range s.groups {
		st.Groups = append(st.Groups, g.describe())
	}
	for _, act := range s.activities.values() {
		for _, a := range act.actions {
			st.Actions = append(st.Actions, a.describe())
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.queues)) {
		q := s.queues[name]
		st.Queues = append(st.Queues, QueueState{Name: name, Active: q.nActive, Inactive: q.nHidden, Delayed: q.nDelayed})
	}
	for _, name := range slices.Sorted(maps.Keys(s.sqs)) {
		q := s.sqs[name]
		st.Queues = append(st.Queues, QueueState{Name: name, Active: q.ready.Len(), Inactive: q.nHidden, Delayed: q.nDelayed})
	}
	st.Topics = s.topicStates()
	for _, cfg := range s.scenario.Balancers {
		st.Balancers = append(st.Balancers, s.balancers[cfg.ID].describe())
	}
	for _, f := range s.faults {
		left := f.Fault
		left.Count = f.left
		st.Faults = append(st.Faults, left)
	}
	return st
}

func (g *group) describe() GroupState {
	st := GroupState{ID: g.cfg.ID, Name: g.cfg.Name, Instances: []InstanceState{}}
	for e := g.instances.Front(); e != nil; e = e.Next() {
		in := e.Value.(*instance)
		x := InstanceState{ID: in.id, State: in.state, Address: in.addr.Addr().String(), Port: int(in.addr.Port()), Zone: in.zone, Created: in.created}
		if in.activity != nil {
			x.Activity = in.activity.id
		}
		st.Instances = append(st.Instances, x)
	}
	return st
}

func (a *action) describe() ActionState {
	return ActionState{
		Token: a.token, Hook: a.hook.cfg.ID, HookName: a.hook.cfg.Name, Group: a.hook.group.cfg.ID,
		Transition: a.hook.cfg.Transition, Activity: a.activity.id, Instances: slices.Clone(a.activity.ids),
		Status: a.status, Result: a.result, EndedBy: a.endedBy, HeartbeatsUsed: a.heartbeats,
		Started: a.started, Deadline: a.deadline, Completed: timePointer(a.ended),
	}
}

func port(a netip.AddrPort) string { return strconv.Itoa(int(a.Port())) }

// InputError is a control call that cannot be done; its text says what is allowed.
type InputError struct {
	text     string
	notFound bool
}

func (e *InputError) Error() string { return e.text }
