package providertest

import (
	"errors"
	"slices"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

func hookGroup(w *world) messages.GroupID { return messages.GroupID(w.Group) }
func hookIn(w *world) messages.HookID     { return messages.HookID(w.HookIn) }

// lifecycle are the cases of an action from its announcement to its end.
var lifecycle = map[string]func(*world){
	"scale-in":  func(w *world) { w.through(w.scaleIn(w.Group, 3), messages.ScaleIn, messages.Continue) },
	"scale-out": func(w *world) { w.through(w.scaleOut(w.Group, 2), messages.ScaleOut, messages.Continue) },
	"abandoned": func(w *world) { w.through(w.scaleOut(w.Group, 1), messages.ScaleOut, messages.Abandon) },
	"hook": func(w *world) {
		for id, want := range map[string]providers.Hook{
			w.HookIn:  {Transition: messages.ScaleIn, DefaultResult: messages.Continue},
			w.HookOut: {Transition: messages.ScaleOut, DefaultResult: messages.Abandon},
		} {
			want.ID, want.Group, want.Timeout = messages.HookID(id), hookGroup(w), w.HookTimeout
			got, err := w.Lifecycle.Hook(w.ctx(), want.Group, want.ID)
			if want.Name = got.Name; err != nil || got != want || got.Name == "" {
				w.t.Errorf("hook %+v, %v, want %+v", got, err, want)
			}
		}
		_, err := w.Lifecycle.Hook(w.ctx(), hookGroup(w), "nobody")
		w.is("a hook that is none", err, providers.ErrNotFound)
		_, err = w.Lifecycle.Hook(w.ctx(), "asg-nobody", hookIn(w))
		w.is("a hook of no group", err, providers.ErrNotFound)
	},
	"instances": func(w *world) {
		a := w.scaleIn(w.Group, 1)[0]
		leaving, staying, gone := a.Action.Instances[0], w.members(w.Group)[5], messages.InstanceID("i-0fedcba9876543210")
		found, err := w.Lifecycle.Instances(w.ctx(), a.Region, []messages.InstanceID{gone, staying, leaving})
		if err != nil || len(found) != 3 {
			w.t.Fatalf("%+v, %v", found, err)
		}
		if found[0].ID != gone || !found[0].Gone {
			w.t.Errorf("one that is none: %+v", found[0])
		}
		for i, id := range []messages.InstanceID{staying, leaving} {
			record, _ := w.sim.State().Instance(string(id))
			if in := found[i+1]; in.ID != id || in.Gone || in.State != record.State || in.PrivateIP.String() != record.Address {
				w.t.Errorf("%+v, want %+v", in, record)
			}
		}
		tags, err := w.Lifecycle.Tags(w.ctx(), a.Region, []messages.InstanceID{staying, gone})
		if _, told := tags[gone]; err != nil || told || tags[staying]["tier"] != "web" {
			w.t.Errorf("tags %v, %v", tags, err)
		}
	},
	// How long a wait may be kept open, by the cloud's own record.
	"heartbeats": func(w *world) {
		a := w.scaleIn(w.Group, 1)[0].Action
		limits := w.Lifecycle.Limits(w.HookTimeout)
		if limits.Calls != w.Heartbeats || limits.MaxWait != w.LongestWait {
			w.t.Errorf("limits %+v", limits)
		}
		if same := limits.MinExtension == w.HookTimeout && limits.MaxExtension == w.HookTimeout; same == w.AskedLength {
			w.t.Errorf("a heartbeat is for %v to %v", limits.MinExtension, limits.MaxExtension)
		}
		time.Sleep(w.HookTimeout - time.Minute)
		if _, err := w.Lifecycle.Hook(w.ctx(), a.Group, a.Hook); err != nil { // how long the hook's own timeout is
			w.t.Fatal(err)
		}
		const asked = 3 * time.Minute
		want := w.HookTimeout
		if w.AskedLength {
			want = asked
		}
		sent := time.Now()
		grant, err := w.Lifecycle.Heartbeat(w.ctx(), a, asked)
		if err != nil || !grant.Until.Equal(sent.Add(want)) || grant.RequestID == "" {
			w.t.Errorf("granted %+v, %v, want %v", grant, err, want)
		}
		if s := w.action(a); !s.Deadline.Equal(grant.Until) || s.HeartbeatsUsed != 1 {
			w.t.Errorf("granted until %v, and the cloud has %+v", grant.Until, s)
		}
		time.Sleep(time.Until(grant.Until) - time.Second)
		if v := w.Lifecycle.Ended(w.ctx(), []messages.Action{a})[0]; v.Err != nil || v.State != providers.Pending {
			w.t.Errorf("just before: %+v", v)
		}
		time.Sleep(2 * time.Second)
		if v := w.Lifecycle.Ended(w.ctx(), []messages.Action{a})[0]; v.Err != nil || v.State != w.Released {
			w.t.Errorf("just after: %+v", v)
		}
	},
	// Heartbeats go on until the cloud takes no more: not later than the longest wait, after
	// which its default result has ended the action.
	"budget": func(w *world) {
		a, limits := w.scaleIn(w.Group, 1)[0].Action, w.Lifecycle.Limits(w.HookTimeout)
		began, beats := w.action(a).Started, 0
		for {
			_, err := w.Lifecycle.Heartbeat(w.ctx(), a, w.HookTimeout)
			if errors.Is(err, providers.ErrHeartbeatLimit) && beats == w.Heartbeats {
				break
			}
			if errors.Is(err, providers.ErrActionGone) && time.Since(began) >= w.LongestWait && !w.AskedLength {
				break
			}
			if err != nil || beats > 4*limits.Calls {
				w.t.Fatalf("heartbeat %d after %v: %v", beats+1, time.Since(began), err)
			}
			if s := w.action(a); s.Deadline.After(began.Add(limits.MaxWait)) {
				w.t.Fatalf("the wait goes on until %v, beyond %v", s.Deadline, limits.MaxWait)
			}
			beats++
			time.Sleep(w.HookTimeout / 2)
		}
		time.Sleep(limits.MaxWait)
		if s := w.action(a); s.EndedBy != "timeout" || s.Result != "CONTINUE" {
			w.t.Errorf("it has ended as %+v", s)
		}
	},
	"waiting": func(w *world) {
		actions := actionsOf(w.scaleIn(w.Group, 2))
		waiting, err := w.Lifecycle.Waiting(w.ctx(), hookGroup(w))
		if !w.Tokens {
			w.is("waiting", err, providers.ErrUnsupported)
			return
		}
		if err != nil || len(waiting) != len(actions) || waiting[0].Token != actions[0].Token || waiting[0].Hook != actions[0].Hook ||
			!slices.Equal(waiting[0].Instances, actions[0].Instances) || waiting[0].Transition != messages.ScaleIn {
			w.t.Fatalf("%+v, %v, want %+v", waiting, err, actions)
		}
		if _, err := w.Lifecycle.Complete(w.ctx(), waiting[0], messages.Continue); err != nil {
			w.t.Fatal(err)
		}
		if waiting, err = w.Lifecycle.Waiting(w.ctx(), hookGroup(w)); err != nil || len(waiting) != 0 {
			w.t.Errorf("after the answer: %+v, %v", waiting, err)
		}
		_, err = w.Lifecycle.Waiting(w.ctx(), "asg-nobody")
		w.is("of no group", err, providers.ErrNotFound)
	},
	"groups": func(w *world) {
		in, other := w.members(w.Group)[0], w.members(w.Other)[0]
		groups, err := w.Lifecycle.GroupsOf(w.ctx(), []messages.InstanceID{in, other, "i-0fedcba9876543210"})
		if w.Tokens {
			w.is("groups", err, providers.ErrUnsupported) // nothing names instances alone there
			return
		}
		if err != nil || len(groups) != 2 || groups[in] != hookGroup(w) || groups[other] != messages.GroupID(w.Other) {
			w.t.Errorf("%v, %v", groups, err)
		}
	},
	"rollback": func(w *world) {
		a := w.scaleIn(w.Group, 1)[0].Action
		_, err := w.Lifecycle.Complete(w.ctx(), a, messages.Rollback)
		if !w.Rollback {
			w.is("rollback", err, providers.ErrInvalid)
			if s := w.action(a); s.Status != "Pending" {
				w.t.Errorf("action %+v", s)
			}
			return
		}
		w.is("rollback", err, nil)
		time.Sleep(time.Minute)
		if s, _ := w.sim.State().Instance(string(a.Instances[0])); s.State != "InService" {
			w.t.Errorf("instance %+v", s)
		}
	},
}

// through takes actions through all that a worker does with them, and looks at what the
// cloud then says.
func (w *world) through(all []announced, transition messages.Transition, result messages.Result) {
	actions := actionsOf(all)
	state := w.WaitingToGo
	if transition == messages.ScaleOut {
		state = w.WaitingToCome
	}
	for i, v := range w.Lifecycle.Verify(w.ctx(), actions) {
		a := actions[i]
		if v.Err != nil || v.State != providers.Pending || v.Reason == "" || !v.InGroup || len(v.Instances) != len(a.Instances) {
			w.t.Fatalf("verification %+v", v)
		}
		if in := v.Instances[0]; in.ID != a.Instances[0] || in.State != state || !in.PrivateIP.IsValid() || in.Gone {
			w.t.Errorf("instance %+v, want %s in %s", in, a.Instances[0], state)
		}
		if a.Transition != transition || a.Group != hookGroup(w) || a.Region != w.Region {
			w.t.Errorf("announced as %+v", a)
		}
	}
	time.Sleep(w.HookTimeout / 2)
	var receipts []providers.Receipt
	for _, a := range all {
		d, err := w.Lifecycle.Heartbeat(w.ctx(), a.Action, w.HookTimeout)
		if left := time.Until(d.Until); err != nil || left != w.HookTimeout {
			w.t.Errorf("granted %v, %v", left, err)
		}
	}
	time.Sleep(w.HookTimeout / 2)
	for _, v := range w.Lifecycle.Ended(w.ctx(), actions) {
		if v.Err != nil || v.State != providers.Pending {
			w.t.Errorf("with a heartbeat: %+v", v)
		}
	}
	for _, a := range actions {
		if id, err := w.Lifecycle.Complete(w.ctx(), a, result); err != nil || id == "" {
			w.t.Errorf("complete: request %q, %v", id, err)
		}
		if s := w.action(a); s.Status != "Completed" || s.Result != string(result) || s.EndedBy != "call" || s.HeartbeatsUsed != 1 {
			w.t.Errorf("the cloud has %+v", s)
		}
	}
	time.Sleep(time.Minute)
	over := w.Released
	if transition == messages.ScaleOut && result == messages.Continue {
		over = providers.Over // its instance is at work
	}
	for _, ended := range [][]providers.Verification{w.Lifecycle.Ended(w.ctx(), actions), w.Lifecycle.Verify(w.ctx(), actions)} {
		for _, v := range ended {
			if v.Err != nil || v.State != over {
				w.t.Errorf("after the answer: %+v", v)
			}
		}
	}
	for _, a := range actions {
		in, there := w.sim.State().Instance(string(a.Instances[0]))
		if stays := transition == messages.ScaleOut && result == messages.Continue; there != stays || there && in.State != "InService" {
			w.t.Errorf("instance %+v, there %v", in, there)
		}
	}
	// The messages were hidden for less than this took.
	for _, d := range w.receive(len(all)) {
		receipts = append(receipts, d.Receipt)
	}
	for _, err := range w.Queue.Delete(w.ctx(), receipts) {
		w.is("delete", err, nil)
	}
	w.holds(0)
}

// duplicate are the cases of what comes twice.
var duplicate = map[string]func(*world){
	// A message that is sent twice is two deliveries of one action.
	"two deliveries": func(w *world) {
		a := w.scaleIn(w.Group, 1)[0]
		w.send(string(a.Body))
		b := w.decode(w.receive(1)[0])
		if a.MessageID == b.MessageID || a.Key() != b.Key() {
			w.t.Fatalf("%+v and %+v", a, b)
		}
		w.completedTwice(a, b, w.Clients)
	},
	// A message that is not deleted in time comes to another receiver.
	"two receivers": func(w *world) {
		a := w.scaleIn(w.Group, 1)[0]
		other := w.others(func(*Access) {})
		time.Sleep(w.Visibility + time.Second)
		got, err := other.Queue.Receive(w.ctx(), w.MaxBatch, time.Second)
		if err != nil || len(got) != 1 || got[0].MessageID != a.MessageID || got[0].Receives != 2 || got[0].Receipt == a.Receipt {
			w.t.Fatalf("%+v, %v", got, err)
		}
		w.completedTwice(a, w.decode(got[0]), other)
	},
}

// completedTwice: of two workers with one action, each answers; it ends once.
func (w *world) completedTwice(a, b announced, other Clients) {
	_, err := w.Lifecycle.Complete(w.ctx(), a.Action, messages.Continue)
	w.is("the first", err, nil)
	_, err = other.Lifecycle.Complete(w.ctx(), b.Action, messages.Continue)
	if w.AnsweredAlike {
		w.is("the second", err, nil)
	} else {
		w.is("the second", err, providers.ErrActionGone)
	}
	_, err = other.Lifecycle.Complete(w.ctx(), b.Action, messages.Abandon)
	w.is("another answer", err, providers.ErrActionGone)
	_, err = other.Lifecycle.Heartbeat(w.ctx(), b.Action, time.Minute)
	w.is("a heartbeat", err, providers.ErrActionGone)
	if s := w.action(a.Action); s.Result != "CONTINUE" || w.events(simulator.ActionCompleted) != 1 {
		w.t.Errorf("%d completions, the cloud has %+v", w.events(simulator.ActionCompleted), s)
	}
	w.is("delete", other.Queue.Delete(w.ctx(), []providers.Receipt{b.Receipt})[0], nil)
}

// stale are the cases of actions that are not, or not any more, what was announced.
var stale = map[string]func(*world){
	"over": func(w *world) {
		a := w.scaleIn(w.Group, 1)[0].Action
		if _, err := w.Lifecycle.Complete(w.ctx(), a, messages.Continue); err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(10 * time.Minute) // longer than a repeat is known
		w.gone(a)
	},
	"timed out": func(w *world) {
		a := w.scaleIn(w.Group, 1)[0].Action
		time.Sleep(w.HookTimeout + time.Second)
		w.gone(a)
		if s := w.action(a); s.EndedBy != "timeout" || s.Result != "CONTINUE" {
			w.t.Errorf("the cloud has %+v", s)
		}
	},
	"instance gone": func(w *world) {
		a := w.scaleIn(w.Group, 1)[0].Action
		if err := w.sim.Terminate(string(a.Instances[0])); err != nil {
			w.t.Fatal(err)
		}
		v := w.Lifecycle.Verify(w.ctx(), []messages.Action{a})[0]
		if v.Err != nil || v.State != w.Forged["instance gone"] {
			w.t.Errorf("%+v, want %s", v, w.Forged["instance gone"])
		}
		for _, in := range v.Instances {
			if !in.Gone {
				w.t.Errorf("an instance that is gone: %+v", in)
			}
		}
	},
	// What was made up, or belongs elsewhere, is not taken for what waits.
	"forged": func(w *world) {
		a := w.scaleIn(w.Group, 1)[0].Action
		other := w.scaleIn(w.Other, 1)[0].Action
		w.forged(a, map[string]func(*messages.Action){
			"true":             func(*messages.Action) {},
			"unknown token":    func(b *messages.Action) { b.Token = "00000000-0000-0000-0000-000000000000" },
			"instance at work": func(b *messages.Action) { b.Instances = w.members(w.Group)[5:] },
			"unknown instance": func(b *messages.Action) { b.Instances = []messages.InstanceID{"i-0fedcba9876543210"} },
			"another's":        func(b *messages.Action) { b.Instances = other.Instances },
			"another group":    func(b *messages.Action) { b.Group = messages.GroupID(w.Other) },
			"the other way":    func(b *messages.Action) { b.Transition = messages.ScaleOut },
			"another hook":     func(b *messages.Action) { b.Hook = messages.HookID(w.HookOut) },
			"another's, wholly": func(b *messages.Action) {
				b.Token, b.Activity, b.Instances = other.Token, other.Activity, other.Instances
			},
		})
	},
}

// gone: nothing can be done for the action any more.
func (w *world) gone(a messages.Action) {
	w.t.Helper()
	for _, v := range [][]providers.Verification{w.Lifecycle.Verify(w.ctx(), []messages.Action{a}), w.Lifecycle.Ended(w.ctx(), []messages.Action{a})} {
		if v[0].Err != nil || v[0].State != w.Released || v[0].Reason == "" {
			w.t.Errorf("%+v, want %s", v[0], w.Released)
		}
	}
	_, err := w.Lifecycle.Heartbeat(w.ctx(), a, time.Minute)
	w.is("heartbeat", err, providers.ErrActionGone)
	_, err = w.Lifecycle.Complete(w.ctx(), a, messages.Abandon)
	w.is("complete", err, providers.ErrActionGone)
}

// forged verifies variants of an action in one call, and compares them with the table.
func (w *world) forged(a messages.Action, variants map[string]func(*messages.Action)) {
	var names []string
	var actions []messages.Action
	for name, change := range variants {
		b := a
		change(&b)
		names, actions = append(names, name), append(actions, b)
	}
	for i, v := range w.Lifecycle.Verify(w.ctx(), actions) {
		want, known := w.Forged[names[i]]
		if !known || v.Err != nil || v.State != want || v.Reason == "" {
			w.t.Errorf("%s: %+v, want %q", names[i], v, want)
		}
	}
}
