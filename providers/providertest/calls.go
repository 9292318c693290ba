package providertest

import (
	"context"
	"fmt"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// stage is what a call needs to exist: an action that waits with its delivery, another
// delivery, an invocation, and an instance that is a member.
type stage struct {
	announced
	spare      providers.Delivery
	invocation string
	member     messages.InstanceID
	stranger   messages.InstanceID // a member of nothing
}

// staged sets the stage.
func (w *world) staged() stage {
	w.t.Helper()
	s := stage{announced: w.scaleIn(w.Group, 1)[0], member: w.members(w.Group)[5], stranger: w.members(w.Other)[0]}
	w.send("spare")
	s.spare = w.receive(1)[0]
	var err error
	s.invocation, err = w.Commander.RunCommand(w.ctx(), providers.Command{Instance: s.member, Name: "staged", Script: "true", Timeout: time.Minute, Key: "staged"})
	if err != nil {
		w.t.Fatal(err)
	}
	time.Sleep(20 * time.Second) // whatever begins slowly has begun
	return s
}

// membership is one of an instance behind a balancer.
func (b Behind) membership(id messages.InstanceID) providers.Membership {
	return providers.Membership{Balancer: b.Balancer, Instance: id, Port: b.Port, Weight: b.Weight}
}

// exercise is one call with what it is made with, and the operations that it makes.
type exercise struct {
	call Call
	on   *Behind // nil: none
	apis []API
	do   func(ctx context.Context, w *world, s stage) error
}

func (x exercise) name() string {
	if x.on != nil {
		return fmt.Sprintf("%s of %s", x.call, x.on.Kind)
	}
	return string(x.call)
}

// changes says whether the call changes a balancer, which goes on until its context ends.
func (x exercise) changes() bool { return x.call == Add || x.call == SetWeight || x.call == Remove }

// all are the exercises of the contract, those that a cloud has no operation for too.
func (c *Cloud) all() []exercise {
	var out []exercise
	for _, x := range onClients {
		x.apis = c.APIs[x.call]
		out = append(out, x)
	}
	for _, b := range c.Behind {
		for call, do := range onBalancers {
			out = append(out, exercise{call: call, on: &b, apis: b.APIs[call], do: func(ctx context.Context, w *world, s stage) error { return do(ctx, w, b, s) }})
		}
	}
	return out
}

// exercises are those that the cloud has operations for, missing the others.
func (c *Cloud) exercises() (out []exercise) {
	for _, x := range c.all() {
		if len(x.apis) > 0 {
			out = append(out, x)
		}
	}
	return out
}

func (c *Cloud) missing() (out []exercise) {
	for _, x := range c.all() {
		if len(x.apis) == 0 {
			out = append(out, x)
		}
	}
	return out
}

var onClients = []exercise{
	{call: Receive, do: func(ctx context.Context, w *world, _ stage) error {
		_, err := w.Queue.Receive(ctx, w.MaxBatch, time.Second)
		return err
	}},
	{call: Extend, do: func(ctx context.Context, w *world, s stage) error {
		_, err := w.Queue.Extend(ctx, s.Receipt, 3*time.Minute)
		return err
	}},
	{call: Delete, do: func(ctx context.Context, w *world, s stage) error {
		return w.Queue.Delete(ctx, []providers.Receipt{s.Receipt})[0]
	}},
	{call: DeleteBatch, do: func(ctx context.Context, w *world, s stage) error {
		return w.Queue.Delete(ctx, []providers.Receipt{s.spare.Receipt, s.Receipt})[1]
	}},
	{call: Send, do: func(ctx context.Context, w *world, _ stage) error {
		_, err := w.Queue.Send(ctx, "sent")
		return err
	}},
	{call: Attributes, do: func(ctx context.Context, w *world, _ stage) error {
		_, err := w.Queue.Attributes(ctx)
		return err
	}},
	{call: Hook, do: func(ctx context.Context, w *world, s stage) error {
		_, err := w.Lifecycle.Hook(ctx, s.Group, s.Hook)
		return err
	}},
	{call: Verify, do: func(ctx context.Context, w *world, s stage) error {
		return w.Lifecycle.Verify(ctx, []messages.Action{s.Action})[0].Err
	}},
	{call: Ended, do: func(ctx context.Context, w *world, s stage) error {
		return w.Lifecycle.Ended(ctx, []messages.Action{s.Action})[0].Err
	}},
	{call: Waiting, do: func(ctx context.Context, w *world, s stage) error {
		_, err := w.Lifecycle.Waiting(ctx, s.Group)
		return err
	}},
	{call: Instances, do: func(ctx context.Context, w *world, s stage) error {
		_, err := w.Lifecycle.Instances(ctx, s.Region, s.Action.Instances)
		return err
	}},
	{call: Tags, do: func(ctx context.Context, w *world, s stage) error {
		_, err := w.Lifecycle.Tags(ctx, s.Region, s.Action.Instances)
		return err
	}},
	{call: Heartbeat, do: func(ctx context.Context, w *world, s stage) error {
		_, err := w.Lifecycle.Heartbeat(ctx, s.Action, time.Minute)
		return err
	}},
	{call: Complete, do: func(ctx context.Context, w *world, s stage) error {
		_, err := w.Lifecycle.Complete(ctx, s.Action, messages.Continue)
		return err
	}},
	{call: GroupsOf, do: func(ctx context.Context, w *world, s stage) error {
		_, err := w.Lifecycle.GroupsOf(ctx, s.Action.Instances)
		return err
	}},
	{call: RunCommand, do: func(ctx context.Context, w *world, s stage) error {
		_, err := w.Commander.RunCommand(ctx, providers.Command{Instance: s.member, Script: "true", Timeout: time.Minute, Key: "exercise"})
		return err
	}},
	{call: CommandResult, do: func(ctx context.Context, w *world, s stage) error {
		_, err := w.Commander.CommandResult(ctx, s.invocation, s.member)
		return err
	}},
	{call: Attached, do: func(ctx context.Context, w *world, s stage) error {
		_, err := w.Balancers.Attached(ctx, s.Group)
		return err
	}},
}

var onBalancers = map[Call]func(ctx context.Context, w *world, b Behind, s stage) error{
	Find: func(ctx context.Context, w *world, b Behind, s stage) error {
		_, err := w.Balancers.Find(ctx, b.Balancer, s.member)
		return err
	},
	Members: func(ctx context.Context, w *world, b Behind, _ stage) error {
		_, err := w.Balancers.Members(ctx, b.Balancer)
		return err
	},
	Draining: func(ctx context.Context, w *world, b Behind, _ stage) error {
		_, err := w.Balancers.Draining(ctx, b.Balancer)
		return err
	},
	Notice: func(ctx context.Context, w *world, b Behind, _ stage) error {
		_, err := w.Balancers.Notice(ctx, b.Balancer)
		return err
	},
	Add: func(ctx context.Context, w *world, b Behind, s stage) error {
		_, err := w.Balancers.Add(ctx, b.membership(s.stranger))
		return err
	},
	SetWeight: func(ctx context.Context, w *world, b Behind, s stage) error {
		m := b.membership(s.member)
		m.Weight = 7
		_, err := w.Balancers.SetWeight(ctx, m)
		return err
	},
	Remove: func(ctx context.Context, w *world, b Behind, s stage) error {
		_, err := w.Balancers.Remove(ctx, b.membership(s.member))
		return err
	},
}
