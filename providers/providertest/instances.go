package providertest

import (
	"slices"
	"sync"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

// commands are the cases of scripts on instances.
var commands = map[string]func(*world){
	"run": func(w *world) {
		command := w.script("true", "good")
		id := w.started(command)
		if r, err := w.Commander.CommandResult(w.ctx(), id, command.Instance); err != nil || r.Done {
			w.t.Errorf("at once: %+v, %v", r, err)
		}
		if r := w.finished(id, command); r.Err != nil || r.ExitCode != 0 || r.Output != "fine\n" || r.RequestID == "" {
			w.t.Errorf("%+v", r)
		}
	},
	"exit code": func(w *world) {
		command := w.script("exit 7", "bad")
		if r := w.finished(w.started(command), command); r.Err != nil || r.ExitCode != 7 || r.Output != "no\n" {
			w.t.Errorf("%+v", r)
		}
	},
	// A second call with the same key runs nothing, by another client and after the end too.
	"same key": func(w *world) {
		command := w.script("true", "same")
		id := w.started(command)
		other := w.others(func(*Access) {})
		for _, again := range []providers.Commander{w.Commander, other.Commander} {
			if got, err := again.RunCommand(w.ctx(), command); err != nil || got != id {
				w.t.Errorf("a repeat is invocation %s, not %s; %v", got, id, err)
			}
			time.Sleep(time.Minute)
		}
		if n := w.sim.State().Commands; n != 1 {
			w.t.Errorf("%d scripts were run", n)
		}
		command.Key = "other"
		if got, err := w.Commander.RunCommand(w.ctx(), command); err != nil || got == id {
			w.t.Errorf("another key: %s, %v", got, err)
		}
	},
	"timeout": func(w *world) {
		command := w.script("sleep 100000", "long")
		r := w.finished(w.started(command), command)
		w.is("result", r.Err, providers.ErrCommandTimeout)
	},
	"no agent": func(w *world) {
		command := w.script("mute", "mute")
		r := w.finished(w.started(command), command)
		w.is("result", r.Err, providers.ErrAgentUnavailable)
	},
	"agent not there yet": func(w *world) {
		command := w.script("true", "early")
		command.Instance = w.scaleOut(w.Group, 1)[0].Action.Instances[0]
		if w.AgentAtOnce {
			_, err := w.Commander.RunCommand(w.ctx(), command)
			w.is("run", err, providers.ErrAgentUnavailable)
		} else {
			w.is("result", w.finished(w.started(command), command).Err, providers.ErrAgentUnavailable)
		}
		time.Sleep(time.Hour)
		command.Instance, command.Key = w.members(w.Group)[0], "later"
		if r := w.finished(w.started(command), command); r.Err != nil {
			w.t.Errorf("where the agent is: %+v", r)
		}
	},
	"instance gone": func(w *world) {
		command := w.script("true", "gone")
		if err := w.sim.Terminate(string(command.Instance)); err != nil {
			w.t.Fatal(err)
		}
		_, err := w.Commander.RunCommand(w.ctx(), command)
		w.is("run", err, providers.ErrInstanceGone)
		if n := w.sim.State().Commands; n != 0 {
			w.t.Errorf("%d scripts were run", n)
		}
	},
	"no command": func(w *world) {
		for name, change := range map[string]func(*providers.Command){
			"no instance": func(c *providers.Command) { c.Instance = "" }, "no script": func(c *providers.Command) { c.Script = "" },
			"no key": func(c *providers.Command) { c.Key = "" }, "a long key": func(c *providers.Command) { c.Key = string(make([]byte, 65)) },
			"a long script": func(c *providers.Command) { c.Script = string(slices.Repeat([]byte("x"), 16<<10+1)) },
		} {
			command := w.script("true", "k")
			change(&command)
			_, err := w.Commander.RunCommand(w.ctx(), command)
			w.is(name, err, providers.ErrInvalid)
		}
		if n := w.sim.State().Commands; n != 0 {
			w.t.Errorf("%d scripts were run", n)
		}
	},
}

// script is a command for the group's first instance.
func (w *world) script(text, key string) providers.Command {
	return providers.Command{Instance: w.members(w.Group)[0], Name: "suite " + key, Script: text, Timeout: time.Minute, Key: key}
}

func (w *world) started(c providers.Command) string {
	w.t.Helper()
	id, err := w.Commander.RunCommand(w.ctx(), c)
	if err != nil || id == "" {
		w.t.Fatalf("run: %q, %v", id, err)
	}
	return id
}

func (w *world) finished(id string, c providers.Command) providers.CommandResult {
	w.t.Helper()
	time.Sleep(3 * time.Minute)
	r, err := w.Commander.CommandResult(w.ctx(), id, c.Instance)
	if err != nil || !r.Done {
		w.t.Fatalf("result %+v, %v", r, err)
	}
	return r
}

// attached: the balancers that the group's own record names.
func attached(w *world) {
	got, err := w.Balancers.Attached(w.ctx(), hookGroup(w))
	if err != nil || len(got) != len(w.Attached) {
		w.t.Errorf("%v, %v, want %v", got, err, w.Attached)
	}
	for _, b := range w.Attached {
		if !slices.Contains(got, b) {
			w.t.Errorf("%v lacks %v", got, b)
		}
	}
	_, err = w.Balancers.Attached(w.ctx(), "asg-nobody")
	w.is("of no group", err, providers.ErrNotFound)
}

// balancers are the cases of each kind of balancer.
var balancers = map[string]func(*world, Behind){
	"find": func(w *world, b Behind) {
		w.settled()
		want := b.membership(w.members(w.Group)[0])
		want.State = providers.Joined
		for _, in := range []providers.Balancer{b.Balancer, {Kind: searched(b.Kind)}} {
			got, err := w.Balancers.Find(w.ctx(), in, want.Instance)
			if err != nil || !slices.Contains(got, want) {
				w.t.Errorf("in %s: %+v, %v, want %+v", in, got, err, want)
			}
			if got, err := w.Balancers.Find(w.ctx(), in, w.members(w.Other)[0]); err != nil || len(got) > 0 {
				w.t.Errorf("a stranger in %s: %+v, %v", in, got, err)
			}
		}
	},
	"members": func(w *world, b Behind) {
		w.settled()
		ids := w.members(w.Group)
		if err := w.sim.SetHealth(string(ids[0]), false); err != nil {
			w.t.Fatal(err)
		}
		w.settled()
		got, err := w.Balancers.Members(w.ctx(), b.Balancer)
		if err != nil || len(got) != len(ids) {
			w.t.Fatalf("%d members, %v, want %d", len(got), err, len(ids))
		}
		for _, m := range got {
			want := providers.Member{Membership: b.membership(m.Instance), Health: providers.Healthy, Zone: m.Zone}
			if want.State = providers.Joined; m.Instance == ids[0] {
				want.Health = providers.Unhealthy
			}
			if m != want || !slices.Contains(ids, m.Instance) {
				w.t.Errorf("%+v, want %+v", m, want)
			}
		}
	},
	"draining": func(w *world, b Behind) {
		if d, err := w.Balancers.Draining(w.ctx(), b.Balancer); err != nil || d != b.Draining {
			w.t.Errorf("drains %v, %v, want %v", d, err, b.Draining)
		}
		if d, err := w.Balancers.Notice(w.ctx(), b.Balancer); err != nil || d != b.Notice {
			w.t.Errorf("notices after %v, %v, want %v", d, err, b.Notice)
		}
	},
	"add": func(w *world, b Behind) {
		w.settled()
		m := b.membership(w.members(w.Other)[0])
		for range 2 { // one that is there is left as it is
			if c, err := w.Balancers.Add(w.ctx(), m); err != nil || c.Balancer != b.Balancer {
				w.t.Errorf("%+v, %v", c, err)
			} else if err := w.Balancers.Failed(w.ctx(), c); err != nil {
				w.t.Errorf("it has failed: %v", err)
			}
			w.settled()
			if n := w.memberships(b, m.Instance); n != 1 {
				w.t.Errorf("%d memberships", n)
			}
		}
		m.State = providers.Joined
		if got, err := w.Balancers.Find(w.ctx(), b.Balancer, m.Instance); err != nil || !slices.Equal(got, []providers.Membership{m}) {
			w.t.Errorf("%+v, %v, want %+v", got, err, m)
		}
	},
	// A member is removed through draining: it gets nothing new from then on.
	"remove": func(w *world, b Behind) {
		w.settled()
		m := b.membership(w.members(w.Group)[0])
		c, err := w.Balancers.Remove(w.ctx(), m)
		if err != nil || c.Balancer != b.Balancer {
			w.t.Fatalf("%+v, %v", c, err)
		}
		if b.Leaves > 0 {
			m.State = providers.Leaving
			if got, err := w.Balancers.Find(w.ctx(), b.Balancer, m.Instance); err != nil || !slices.Equal(got, []providers.Membership{m}) {
				w.t.Errorf("at once: %+v, %v, want %+v", got, err, m)
			}
		}
		for _, s := range w.sim.State().Members(string(m.Instance)) {
			if s.ServerGroup == b.ServerGroup && s.InService {
				w.t.Errorf("it still gets requests: %+v", s)
			}
		}
		time.Sleep(b.Leaves)
		w.settled()
		if got, err := w.Balancers.Find(w.ctx(), b.Balancer, m.Instance); err != nil || len(got) > 0 || w.memberships(b, m.Instance) > 0 {
			w.t.Errorf("in the end: %+v, %v", got, err)
		}
		w.is("the change", w.Balancers.Failed(w.ctx(), c), nil)
		_, err = w.Balancers.Remove(w.ctx(), m)
		w.is("again", err, nil)
		if n := len(w.members(w.Group)) - 1; w.inAll(b) != n {
			w.t.Errorf("%d members are left, want %d", w.inAll(b), n)
		}
	},
	"weight": func(w *world, b Behind) {
		w.settled()
		m := b.membership(w.members(w.Group)[0])
		m.Weight = 7
		_, err := w.Balancers.SetWeight(w.ctx(), m)
		if !b.Kind.Weighted() {
			w.is("weight", err, providers.ErrUnsupported)
			return
		}
		w.is("weight", err, nil)
		w.settled()
		for _, s := range w.sim.State().Members(string(m.Instance)) {
			if s.ServerGroup == b.ServerGroup && s.Weight != 7 {
				w.t.Errorf("%+v", s)
			}
		}
		m.Instance = w.members(w.Other)[0]
		_, err = w.Balancers.SetWeight(w.ctx(), m)
		w.is("weight of no member", err, nil)
	},
	"unknown": func(w *world, b Behind) {
		none := providers.Balancer{Kind: b.Kind, ID: b.ID[:len(b.ID)-1] + "0"}
		_, find := w.Balancers.Find(w.ctx(), none, w.members(w.Group)[0])
		_, members := w.Balancers.Members(w.ctx(), none)
		_, remove := w.Balancers.Remove(w.ctx(), providers.Membership{Balancer: none, Instance: w.members(w.Group)[0], Port: b.Port})
		for call, err := range map[string]error{"find": find, "members": members, "remove": remove} {
			w.is(call, err, providers.ErrNotFound)
		}
		_, draining := w.Balancers.Draining(w.ctx(), none)
		if b.NoneIsEmpty {
			w.is("draining", draining, nil)
		} else {
			w.is("draining", draining, providers.ErrNotFound)
		}
		other := providers.Balancer{Kind: "none", ID: "x"}
		_, err := w.Balancers.Find(w.ctx(), other, w.members(w.Group)[0])
		w.is("a kind that is none", err, providers.ErrInvalid)
	},
	// Calls for several instances at the same time share the cloud's.
	"shared": func(w *world, b Behind) {
		w.settled()
		ids := w.members(w.Group)
		shared := func(call Call, do func(messages.InstanceID) error) {
			api := b.APIs[call][0]
			before := w.count(api)
			var calls sync.WaitGroup
			for _, id := range ids {
				calls.Go(func() { w.is(string(call), do(id), nil) })
			}
			calls.Wait()
			if n := w.count(api) - before; n != 1 {
				w.t.Errorf("%d of %s for %d instances, want 1", n, api.Action, len(ids))
			}
		}
		shared(Find, func(id messages.InstanceID) error {
			got, err := w.Balancers.Find(w.ctx(), b.Balancer, id)
			if err == nil && len(got) != 1 {
				w.t.Errorf("%s: %+v", id, got)
			}
			return err
		})
		w.settled()
		shared(Remove, func(id messages.InstanceID) error {
			_, err := w.Balancers.Remove(w.ctx(), b.membership(id))
			return err
		})
		time.Sleep(b.Leaves)
		w.settled()
		if n := w.inAll(b); n != 0 {
			w.t.Errorf("%d members are left", n)
		}
	},
	// A removal whose answer is lost is done once, and said to be done.
	"lost": func(w *world, b Behind) {
		w.settled()
		apis := b.APIs[Remove]
		w.fault(apis[0], simulator.FaultDropAfterEffect, 1)
		m := b.membership(w.members(w.Group)[0])
		_, err := w.Balancers.Remove(w.ctx(), m)
		w.is("remove", err, nil)
		time.Sleep(b.Leaves)
		w.settled()
		if n := w.memberships(b, m.Instance); n != 0 || w.inAll(b) != len(w.members(w.Group))-1 {
			w.t.Errorf("%d memberships are left of it, %d in all", n, w.inAll(b))
		}
	},
}

// settled lets time pass in which what others have changed shows everywhere.
func (w *world) settled() { time.Sleep(70 * time.Second) }

// searched is the kind that a search finds a kind under.
func searched(k providers.BalancerKind) providers.BalancerKind {
	if k == providers.CLBGroup {
		return providers.CLB
	}
	return k
}

// memberships counts those of an instance, by the cloud's own record.
func (w *world) memberships(b Behind, id messages.InstanceID) int {
	n := 0
	for _, m := range w.sim.State().Members(string(id)) {
		if m.ServerGroup == b.ServerGroup {
			n++
		}
	}
	return n
}

// inAll counts the members of a balancer.
func (w *world) inAll(b Behind) int {
	n := 0
	for _, id := range slices.Concat(w.members(w.Group), w.members(w.Other)) {
		n += w.memberships(b, id)
	}
	return n
}
