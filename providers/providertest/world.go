package providertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

// The keys of the suite. The mark is in each: nothing may tell it.
const (
	mark   = "usherTESTsecret"
	keyID  = mark + "Id"
	secret = mark + "Key"
)

// world is one simulated cloud and clients of it.
type world struct {
	Clients
	*Cloud
	t      *testing.T
	sim    *simulator.Simulator
	access Access
}

// in runs a case in a bubble of its own, with a cloud of its own.
func (c *Cloud) in(t *testing.T, test func(w *world)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		sim, err := simulator.New(simulator.Options{
			AccessKeyID: keyID, AccessKeySecret: secret, NoServers: true, Scenario: c.Scenario, Commands: c.command,
		})
		if err != nil {
			t.Fatal(err)
		}
		l := simulator.NewPipeListener()
		srv := &http.Server{Handler: sim}
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.Serve(l) }()
		t.Cleanup(func() { _ = sim.Close(); _ = srv.Close(); <-served })
		w := &world{Cloud: c, t: t, sim: sim, access: Access{
			Dial: l.DialContext, Endpoint: "http://cloud.test", KeyID: keyID, Secret: secret, Region: c.Region, Queue: c.QueueName, VisibilityTimeout: c.Visibility,
		}}
		w.Clients = c.Connect(t, w.access)
		test(w)
	})
}

// command is what the simulated instances do with a script.
func (c *Cloud) command(_, script string) simulator.CommandOutcome {
	switch {
	case strings.Contains(script, "exit 7"):
		return simulator.CommandOutcome{ExitCode: 7, Output: "no\n"}
	case strings.Contains(script, "sleep"):
		return simulator.CommandOutcome{Duration: 24 * time.Hour}
	case strings.Contains(script, "mute"):
		return simulator.CommandOutcome{ErrorCode: c.NoAgent}
	}
	return simulator.CommandOutcome{Output: "fine\n", Duration: 3 * time.Second}
}

// others are clients like the world's own, with another access.
func (w *world) others(change func(*Access)) Clients {
	w.t.Helper()
	a := w.access
	change(&a)
	return w.Connect(w.t, a)
}

func (w *world) ctx() context.Context { return w.t.Context() }

// announced is a delivery and the action that it announces.
type announced struct {
	providers.Delivery
	messages.Action
}

// receive takes all that is visible, n deliveries in all.
func (w *world) receive(n int) []providers.Delivery {
	w.t.Helper()
	var all []providers.Delivery
	for range 10 + n {
		got, err := w.Queue.Receive(w.ctx(), w.MaxBatch, w.MaxWait)
		if err != nil {
			w.t.Fatalf("receive: %v", err)
		}
		if all = append(all, got...); len(all) >= n {
			break
		}
	}
	if len(all) != n {
		w.t.Fatalf("%d deliveries, want %d", len(all), n)
	}
	return all
}

// none checks that nothing is visible.
func (w *world) none() {
	w.t.Helper()
	if got, err := w.Queue.Receive(w.ctx(), w.MaxBatch, time.Second); err != nil || len(got) > 0 {
		w.t.Errorf("%d deliveries, %v, want none", len(got), err)
	}
}

// decode reads what a delivery announces, as the worker does.
func (w *world) decode(d providers.Delivery) announced {
	w.t.Helper()
	n, err := messages.Decode(d.Body, w.Provider)
	if err != nil {
		w.t.Fatal(err)
	}
	n.Region = cmp.Or(n.Region, w.Region)
	return announced{d, n.Action}
}

// scaleIn takes n instances out of a group and receives what its hook says.
func (w *world) scaleIn(group string, n int) []announced {
	w.t.Helper()
	if _, err := w.sim.ScaleIn(group, n); err != nil {
		w.t.Fatal(err)
	}
	return w.hear(n)
}

// scaleOut adds n instances.
func (w *world) scaleOut(group string, n int) []announced {
	w.t.Helper()
	if _, err := w.sim.ScaleOut(group, n); err != nil {
		w.t.Fatal(err)
	}
	return w.hear(n)
}

// hear receives what announces n instances.
func (w *world) hear(n int) []announced {
	w.t.Helper()
	actions := n
	if w.ActionForAll {
		actions = 1
	}
	var out []announced
	named := 0
	for _, d := range w.receive(actions) {
		a := w.decode(d)
		named += len(a.Instances)
		out = append(out, a)
	}
	if named != n {
		w.t.Fatalf("%d instances are named, want %d", named, n)
	}
	return out
}

func actionsOf(all []announced) []messages.Action {
	var out []messages.Action
	for _, a := range all {
		out = append(out, a.Action)
	}
	return out
}

// action is the cloud's own record of one.
func (w *world) action(a messages.Action) simulator.ActionState {
	w.t.Helper()
	s, ok := w.sim.State().Action(string(a.Token))
	if !ok {
		w.t.Fatalf("the cloud has no action %s", a.Token)
	}
	return s
}

// queue is the cloud's own count of the queue.
func (w *world) queue() simulator.QueueState {
	q, _ := w.sim.State().Queue(w.QueueName)
	return q
}

// holds checks how many messages the queue has, hidden or not.
func (w *world) holds(n int) {
	w.t.Helper()
	if q := w.queue(); q.Active+q.Inactive != n {
		w.t.Errorf("the queue holds %+v, want %d", q, n)
	}
}

// send puts messages into the queue as somebody else.
func (w *world) send(bodies ...string) {
	w.t.Helper()
	for _, body := range bodies {
		if _, err := w.sim.SendMessage(w.QueueName, body); err != nil {
			w.t.Fatal(err)
		}
	}
}

// members are the instances of a group.
func (w *world) members(group string) []messages.InstanceID {
	g, _ := w.sim.State().Group(group)
	var ids []messages.InstanceID
	for _, in := range g.Instances {
		ids = append(ids, messages.InstanceID(in.ID))
	}
	return ids
}

// fault arms one.
func (w *world) fault(api API, kind simulator.FaultKind, count int) {
	w.t.Helper()
	if _, err := w.sim.InjectFault(simulator.Fault{Service: api.Service, Action: api.Action, Kind: kind, Count: count}); err != nil {
		w.t.Fatal(err)
	}
}

// deny takes a permission away.
func (w *world) deny(permission string) {
	w.t.Helper()
	p, err := simulator.ParsePolicy(fmt.Appendf(nil, `{"Version":%q,"Statement":[{"Effect":"Allow","Action":"*","Resource":"*"},{"Effect":"Deny","Action":%q,"Resource":"*"}]}`,
		w.PolicyVersion, permission))
	if err != nil {
		w.t.Fatal(err)
	}
	w.sim.SetPolicy(p)
}

// count is how often an operation was called, refused calls too.
func (w *world) count(api API) int {
	calls := w.sim.State().APICalls
	n := calls[api.Service+"."+api.Action]
	if api.Action == "ReceiveMessage" { // MNS counts the batch by its own name
		n += calls[api.Service+".BatchReceiveMessage"]
	}
	return n
}

// record is all that calls can change in the cloud; what time alone does to it is left out.
func (w *world) record() string {
	s := w.sim.State()
	var b strings.Builder
	fmt.Fprintf(&b, "%d commands\n", s.Commands)
	for _, q := range s.Queues {
		fmt.Fprintf(&b, "queue %s: %d\n", q.Name, q.Active+q.Inactive+q.Delayed)
	}
	for _, a := range s.Actions {
		fmt.Fprintf(&b, "action %s: %s %s, %d heartbeats until %v\n", a.Token, a.Status, a.Result, a.HeartbeatsUsed, a.Deadline)
	}
	for _, g := range s.Groups {
		for _, in := range g.Instances {
			fmt.Fprintf(&b, "instance %s: %s\n", in.ID, in.State)
			for _, m := range s.Members(in.ID) {
				fmt.Fprintf(&b, "member of %s: port %d, weight %d, %s\n", m.ServerGroup, m.Port, m.Weight, m.Status)
			}
		}
	}
	for _, e := range []simulator.EventType{simulator.MessageExtended, simulator.MessageDeleted, simulator.ActionHeartbeat, simulator.ActionCompleted} {
		fmt.Fprintf(&b, "%d of %s\n", w.events(e), e)
	}
	return b.String()
}

// events counts those of a type.
func (w *world) events(of simulator.EventType) int {
	n := 0
	for _, e := range w.sim.Events() {
		if e.Type == of {
			n++
		}
	}
	return n
}

// is checks that an error matches want, nil: that there is none, and that it tells no key.
func (w *world) is(what string, err, want error) {
	w.t.Helper()
	if (err == nil) != (want == nil) || !errors.Is(err, want) {
		w.t.Errorf("%s: %v, want %v", what, err, want)
	}
	if err != nil && strings.Contains(err.Error(), mark) {
		w.t.Errorf("%s: a key is in the error", what)
	}
}

// told checks that an error names its operation and the cloud's request.
func (w *world) told(what string, err error) *providers.Error {
	w.t.Helper()
	e, ok := errors.AsType[*providers.Error](err)
	if !ok || e.Op == "" || e.RequestID == "" {
		w.t.Fatalf("%s: %v names no operation and request", what, err)
	}
	return e
}

// has finds a message among deliveries.
func has(ds []providers.Delivery, id string) bool {
	return slices.ContainsFunc(ds, func(d providers.Delivery) bool { return d.MessageID == id })
}
