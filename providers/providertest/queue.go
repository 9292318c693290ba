package providertest

import (
	"context"
	"strings"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

// queues are the cases of the queue alone.
var queues = map[string]func(*world){
	"attributes": func(w *world) {
		cfg := w.Scenario.Queues[0]
		got, err := w.Queue.Attributes(w.ctx())
		if err != nil || got.VisibilityTimeout != cfg.VisibilityTimeout || got.Retention != cfg.Retention {
			w.t.Errorf("attributes %+v, %v, want those of %+v", got, err, cfg)
		}
		if w.Queue.MaxBatch() != w.MaxBatch || w.Queue.MaxWait() != w.MaxWait {
			w.t.Errorf("at most %d messages and %v", w.Queue.MaxBatch(), w.Queue.MaxWait())
		}
	},
	"retention": func(w *world) {
		w.send("kept", "kept")
		time.Sleep(w.Scenario.Queues[0].Retention - time.Minute)
		d := w.receive(2)[0]
		if age := d.CloudTime.Sub(d.EnqueuedAt); age < w.Scenario.Queues[0].Retention-time.Minute-2*time.Second || d.CloudTime.IsZero() {
			w.t.Errorf("its age is %v: %+v", age, d)
		}
		time.Sleep(2 * time.Minute) // retention counts from the sending, whether received or not
		w.none()
		w.holds(0)
	},
	"long poll": func(w *world) {
		began := time.Now()
		if got, err := w.Queue.Receive(w.ctx(), w.MaxBatch, 7*time.Second); err != nil || got != nil || time.Since(began) != 7*time.Second {
			w.t.Errorf("an empty queue: %v, %v after %v", got, err, time.Since(began))
		}
		if got, err := w.Queue.Receive(w.ctx(), w.MaxBatch, time.Hour); err != nil || got != nil || time.Since(began) != 7*time.Second+w.MaxWait {
			w.t.Errorf("the longest poll: %v, %v after %v", got, err, time.Since(began))
		}
		began = time.Now()
		time.AfterFunc(5*time.Second, func() { w.send("hello") })
		got, err := w.Queue.Receive(w.ctx(), w.MaxBatch, w.MaxWait)
		if err != nil || len(got) != 1 || string(got[0].Body) != "hello" || time.Since(began) != 5*time.Second {
			w.t.Errorf("a message while polling: %+v, %v after %v", got, err, time.Since(began))
		}
	},
	// A poll that its caller gives up takes no message with it.
	"cancelled poll": func(w *world) {
		ctx, cancel := context.WithCancel(w.ctx())
		time.AfterFunc(5*time.Second, cancel)
		began := time.Now()
		_, err := w.Queue.Receive(ctx, w.MaxBatch, w.MaxWait)
		w.is("cancelled", err, context.Canceled)
		if took := time.Since(began); took != 5*time.Second {
			w.t.Errorf("returned after %v, want at once", took)
		}
		time.Sleep(time.Second)
		w.send("later")
		if d := w.receive(1)[0]; d.Receives != 1 {
			w.t.Errorf("it was taken before: %+v", d)
		}
	},
	"batch": func(w *world) {
		for range w.MaxBatch + 5 {
			w.send("one of many")
		}
		all := w.receive(w.MaxBatch + 5)
		ids := map[string]bool{}
		var receipts []providers.Receipt
		for _, d := range all {
			ids[d.MessageID] = true
			receipts = append(receipts, d.Receipt)
		}
		if len(ids) != len(all) {
			w.t.Errorf("%d messages in %d deliveries", len(ids), len(all))
		}
		for i, err := range w.Queue.Delete(w.ctx(), receipts) { // more than one call takes
			if err != nil {
				w.t.Errorf("deletion %d: %v", i, err)
			}
		}
		w.holds(0)
		if most, n := 2, w.count(w.APIs[DeleteBatch][0]); n > most {
			w.t.Errorf("%d calls, want %d", n, most)
		}
	},
	"partial failure": func(w *world) {
		w.send("a", "b", "c")
		got := w.receive(3)
		errs := w.Queue.Delete(w.ctx(), []providers.Receipt{got[0].Receipt, "no-such-receipt", got[1].Receipt})
		for i, want := range []error{nil, providers.ErrReceiptStale, nil} {
			w.is("deletion "+string(rune('0'+i)), errs[i], want)
		}
		w.holds(1)
	},
	"hidden": func(w *world) {
		sent := time.Now()
		w.send("hide me")
		d := w.receive(1)[0]
		if d.Receives != 1 || d.RequestID == "" || d.Garbled || string(d.Body) != "hide me" || d.EnqueuedAt.Before(sent.Add(-time.Second)) {
			w.t.Errorf("delivery %+v", d)
		}
		if left := time.Until(d.Until); left > w.Visibility || left < w.Visibility-2*time.Second {
			w.t.Errorf("hidden for %v", left)
		}
		w.hiddenUntil(d.Until, d.MessageID)
		time.Sleep(2 * time.Second)
		again := w.receive(1)[0]
		if again.MessageID != d.MessageID || again.Receives != 2 || again.Receipt == d.Receipt {
			w.t.Errorf("delivery %+v after %+v", again, d)
		}
	},
	"extended": func(w *world) {
		w.send("hide me")
		d := w.receive(1)[0]
		time.Sleep(20 * time.Second)
		sent := time.Now()
		lease, err := w.Queue.Extend(w.ctx(), d.Receipt, 90*time.Second)
		if left := lease.Until.Sub(sent); err != nil || left < 90*time.Second || left > 91*time.Second || lease.RequestID == "" { // calls may wait a moment for others
			w.t.Fatalf("%+v, %v", lease, err)
		}
		if fresh := lease.Receipt != d.Receipt; fresh != w.NewReceipts {
			w.t.Errorf("the receipt is new: %v, want %v", fresh, w.NewReceipts)
		}
		_, err = w.Queue.Extend(w.ctx(), d.Receipt, time.Minute)
		if w.NewReceipts {
			w.is("with the old receipt", err, providers.ErrReceiptStale)
		} else {
			w.is("with the same receipt", err, nil)
			lease, err = w.Queue.Extend(w.ctx(), lease.Receipt, 90*time.Second)
			w.is("again", err, nil)
		}
		w.hiddenUntil(lease.Until, d.MessageID)
		time.Sleep(2 * time.Second)
		if again := w.receive(1); again[0].Receives != 2 {
			w.t.Errorf("delivery %+v", again[0])
		}
	},
	"handed back": func(w *world) {
		w.send("take it")
		d := w.receive(1)[0]
		if _, err := w.Queue.Extend(w.ctx(), d.Receipt, time.Second); err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(1500 * time.Millisecond)
		if again := w.receive(1)[0]; again.MessageID != d.MessageID || again.Receives != 2 {
			w.t.Errorf("delivery %+v", again)
		}
	},
	"hidden for long": func(w *world) {
		w.send("hide me")
		r := w.receive(1)[0].Receipt
		for hidden := w.Visibility; hidden < 13*time.Hour; hidden += time.Hour - time.Minute {
			lease, err := w.Queue.Extend(w.ctx(), r, time.Hour)
			if w.HiddenInAll > 0 && hidden-w.Visibility+time.Hour > w.HiddenInAll {
				w.is("beyond the longest", err, providers.ErrInvalid)
				return
			}
			if err != nil {
				w.t.Fatalf("after %v: %v", hidden, err)
			}
			r = lease.Receipt
			time.Sleep(time.Hour - time.Minute)
		}
		if w.HiddenInAll > 0 {
			w.t.Errorf("hidden for longer than %v", w.HiddenInAll)
		}
	},
	"deleted": func(w *world) {
		w.send("a")
		d := w.receive(1)[0]
		w.is("delete", w.Queue.Delete(w.ctx(), []providers.Receipt{d.Receipt})[0], nil)
		w.holds(0)
		w.is("again", w.Queue.Delete(w.ctx(), []providers.Receipt{d.Receipt})[0], w.DeletedAgain)
		_, err := w.Queue.Extend(w.ctx(), d.Receipt, time.Minute)
		w.is("extend", err, providers.ErrReceiptStale)
		_, err = w.Queue.Extend(w.ctx(), "no-such-receipt", time.Minute)
		w.is("extend what was never given", err, providers.ErrReceiptStale)
		time.Sleep(2 * w.Visibility)
		w.none()
	},
	// What a receipt is good for when its message is visible again.
	"run out": func(w *world) {
		w.send("a")
		d := w.receive(1)[0]
		time.Sleep(w.Visibility + time.Second)
		_, err := w.Queue.Extend(w.ctx(), d.Receipt, time.Minute)
		if w.ReceiptsEnd {
			w.is("extend", err, providers.ErrReceiptStale)
			w.is("delete", w.Queue.Delete(w.ctx(), []providers.Receipt{d.Receipt})[0], providers.ErrReceiptStale)
			w.holds(1)
			return
		}
		w.is("extend", err, nil)
		w.none()
		w.is("delete", w.Queue.Delete(w.ctx(), []providers.Receipt{d.Receipt})[0], nil)
		w.holds(0)
	},
	// The message is another receiver's by now: no old receipt takes it away.
	"another's": func(w *world) {
		w.send("a")
		old := w.receive(1)[0]
		time.Sleep(w.Visibility + time.Second)
		fresh := w.receive(1)[0]
		err := w.Queue.Delete(w.ctx(), []providers.Receipt{old.Receipt})[0]
		if w.ReceiptsEnd {
			w.is("delete with the old one", err, providers.ErrReceiptStale)
			_, err = w.Queue.Extend(w.ctx(), old.Receipt, time.Minute)
			w.is("extend with the old one", err, providers.ErrReceiptStale)
		} else {
			w.is("delete with the old one", err, nil)
		}
		w.holds(1)
		w.is("delete with the new one", w.Queue.Delete(w.ctx(), []providers.Receipt{fresh.Receipt})[0], nil)
		w.holds(0)
	},
	"sent": func(w *world) {
		for _, body := range []string{`{"a":"<b>&\"'"}`, "two\nlines\tand ü 漢", strings.Repeat("x", w.MaxBody)} {
			id, err := w.Queue.Send(w.ctx(), body)
			if err != nil {
				w.t.Fatal(err)
			}
			if d := w.receive(1)[0]; d.MessageID != id || string(d.Body) != body {
				w.t.Errorf("sent %.20q as %s, received %.20q as %s", body, id, d.Body, d.MessageID)
			} else if err := w.Queue.Delete(w.ctx(), []providers.Receipt{d.Receipt})[0]; err != nil {
				w.t.Error(err)
			}
		}
		for _, body := range []string{"a\x00b", "\xff", "\ufffe", strings.Repeat("x", w.MaxBody+1)} {
			_, err := w.Queue.Send(w.ctx(), body)
			w.is("a body that no message can have", err, providers.ErrInvalid)
			if !providers.Untouched(err) {
				w.t.Errorf("a refusal is said to have had an effect: %v", err)
			}
		}
		w.holds(0)
	},
	// A body that was garbled on its way is marked, and comes again whole.
	"garbled": func(w *world) {
		w.fault(w.APIs[Receive][0], simulator.FaultCorrupt, 1)
		w.send("whole")
		d := w.receive(1)[0]
		if !d.Garbled || string(d.Body) == "whole" || d.Receipt == "" {
			w.t.Errorf("garbled %v: %q", d.Garbled, d.Body)
		}
		time.Sleep(w.Visibility + time.Second)
		if d = w.receive(1)[0]; d.Garbled || string(d.Body) != "whole" || d.Receives != 2 {
			w.t.Errorf("garbled %v: %q, %d receives", d.Garbled, d.Body, d.Receives)
		}
		// One that was garbled when it was sent fits its digest: it is no notification.
		w.fault(w.APIs[Send][0], simulator.FaultCorrupt, 1)
		if _, err := w.sim.ScaleIn(w.Group, 1); err != nil {
			w.t.Fatal(err)
		}
		if d = w.receive(1)[0]; d.Garbled {
			w.t.Errorf("garbled by its digest: %+v", d)
		}
		if _, err := messages.Decode(d.Body, w.Provider); err == nil {
			w.t.Errorf("it is read nevertheless: %q", d.Body)
		}
	},
	// A message that the cloud itself stores twice is two of one action, and one that comes
	// late is of one that is over.
	"copied and late": func(w *world) {
		w.fault(w.APIs[Send][0], simulator.FaultDuplicate, 1)
		if _, err := w.sim.ScaleIn(w.Group, 1); err != nil {
			w.t.Fatal(err)
		}
		got := w.receive(2)
		a, b := w.decode(got[0]), w.decode(got[1])
		if a.MessageID == b.MessageID || a.Key() != b.Key() {
			w.t.Errorf("%+v and %+v", a, b)
		}
		for _, err := range w.Queue.Delete(w.ctx(), []providers.Receipt{a.Receipt, b.Receipt}) {
			w.is("delete", err, nil)
		}
		if _, err := w.Lifecycle.Complete(w.ctx(), a.Action, messages.Continue); err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(10 * time.Minute) // longer than a repeat is known
		w.send(string(a.Body))
		w.gone(w.decode(w.receive(1)[0]).Action)
	},
	"gone and made anew": func(w *world) {
		w.send("before")
		d := w.receive(1)[0]
		if err := w.sim.DeleteQueue(w.QueueName); err != nil {
			w.t.Fatal(err)
		}
		_, receive := w.Queue.Receive(w.ctx(), w.MaxBatch, time.Second)
		_, attributes := w.Queue.Attributes(w.ctx())
		_, send := w.Queue.Send(w.ctx(), "x")
		for call, err := range map[string]error{"receive": receive, "attributes": attributes, "send": send, "delete": w.Queue.Delete(w.ctx(), []providers.Receipt{d.Receipt})[0]} {
			w.is(call, err, providers.ErrQueueGone)
			if e := w.told(call, err); !strings.Contains(e.Hint, w.QueueName) {
				w.t.Errorf("%s: the queue is not named: %v", call, err)
			}
		}
		time.Sleep(2 * time.Minute)
		if err := w.sim.CreateQueue(w.Scenario.Queues[0]); err != nil {
			w.t.Fatal(err)
		}
		w.is("the old receipt", w.Queue.Delete(w.ctx(), []providers.Receipt{d.Receipt})[0], providers.ErrReceiptStale)
		w.send("after")
		if d := w.receive(1)[0]; string(d.Body) != "after" {
			w.t.Errorf("received %q", d.Body)
		}
	},
	"gone while polled": func(w *world) {
		time.AfterFunc(3*time.Second, func() { _ = w.sim.DeleteQueue(w.QueueName) })
		_, err := w.Queue.Receive(w.ctx(), w.MaxBatch, w.MaxWait)
		w.is("poll", err, providers.ErrQueueGone)
	},
	"another name": func(w *world) {
		other := w.others(func(a *Access) { a.Queue = "nobody" })
		_, err := other.Queue.Receive(w.ctx(), w.MaxBatch, time.Second)
		w.is("receive", err, providers.ErrQueueGone)
		if e := w.told("receive", err); !strings.Contains(e.Hint, "nobody") {
			w.t.Errorf("the queue is not named: %v", err)
		}
	},
}

// hiddenUntil: the message is not seen before a moment.
func (w *world) hiddenUntil(until time.Time, id string) {
	w.t.Helper()
	time.Sleep(time.Until(until) - 1100*time.Millisecond)
	if got, err := w.Queue.Receive(w.ctx(), w.MaxBatch, time.Second); err != nil || has(got, id) {
		w.t.Errorf("visible too early: %+v, %v", got, err)
	}
}

// lost are the cases of calls whose answer is lost after their effect.
var lost = map[string]func(*world){
	// What the answer had is hidden, and comes again after its time.
	"receive": func(w *world) {
		w.send("a")
		w.drop(Receive)
		_, err := w.Queue.Receive(w.ctx(), w.MaxBatch, time.Second)
		w.is("receive", err, providers.ErrUnavailable)
		if n := w.count(w.APIs[Receive][0]); n != 1 {
			w.t.Errorf("sent %d times", n)
		}
		w.none()
		time.Sleep(w.Visibility + time.Second)
		if d := w.receive(1)[0]; d.Receives != 2 {
			w.t.Errorf("delivery %+v", d)
		}
	},
	"extend": func(w *world) {
		w.send("a")
		d := w.receive(1)[0]
		w.drop(Extend)
		lease, err := w.Queue.Extend(w.ctx(), d.Receipt, 3*time.Minute)
		w.is("extend", err, w.LostExtend)
		if w.LostExtend != nil {
			if n := w.count(w.APIs[Extend][0]); n != 1 || providers.Untouched(err) {
				w.t.Errorf("sent %d times, untouched %v", n, providers.Untouched(err))
			}
			_, err = w.Queue.Extend(w.ctx(), d.Receipt, time.Minute)
			w.is("once more", err, providers.ErrReceiptStale)
		}
		time.Sleep(2 * time.Minute)
		w.none() // it had its effect
		if w.LostExtend == nil {
			w.is("delete", w.Queue.Delete(w.ctx(), []providers.Receipt{lease.Receipt})[0], nil)
			w.holds(0)
		}
	},
	"delete": func(w *world) {
		w.send("a")
		d := w.receive(1)[0]
		w.drop(Delete)
		if err := w.Queue.Delete(w.ctx(), []providers.Receipt{d.Receipt})[0]; err != nil {
			w.is("delete", err, w.DeletedAgain)
		}
		w.holds(0)
	},
	"delete of two": func(w *world) {
		w.send("a", "b", "c")
		got := w.receive(3)
		w.drop(DeleteBatch)
		for _, err := range w.Queue.Delete(w.ctx(), []providers.Receipt{got[0].Receipt, got[1].Receipt}) {
			if err != nil {
				w.is("delete", err, w.DeletedAgain)
			}
		}
		w.holds(1)
	},
	// Two messages rather than none.
	"send": func(w *world) {
		w.drop(Send)
		_, err := w.Queue.Send(w.ctx(), "a")
		w.is("send", err, nil)
		w.holds(2)
	},
	"heartbeat": func(w *world) {
		a := w.scaleIn(w.Group, 1)[0].Action
		time.Sleep(time.Minute)
		w.drop(Heartbeat)
		_, err := w.Lifecycle.Heartbeat(w.ctx(), a, w.HookTimeout)
		w.is("heartbeat", err, w.LostHeartbeat)
		want := 1
		if w.LostHeartbeat == nil {
			want = 2 // it was repeated
		}
		s := w.action(a)
		if late := time.Since(s.Deadline.Add(-w.HookTimeout)); s.HeartbeatsUsed != want || providers.Untouched(err) || late < 0 || late > time.Second {
			w.t.Errorf("untouched %v, the cloud has %+v", providers.Untouched(err), s)
		}
	},
	"complete": func(w *world) {
		a := w.scaleIn(w.Group, 1)[0].Action
		w.drop(Complete)
		_, err := w.Lifecycle.Complete(w.ctx(), a, messages.Abandon)
		w.is("complete", err, nil)
		if s := w.action(a); s.Result != "ABANDON" || s.EndedBy != "call" || w.events(simulator.ActionCompleted) != 1 {
			w.t.Errorf("the cloud has %+v", s)
		}
	},
	"command": func(w *world) {
		command := providers.Command{Instance: w.members(w.Group)[0], Script: "true", Timeout: time.Minute, Key: "lost"}
		w.drop(RunCommand)
		id, err := w.Commander.RunCommand(w.ctx(), command)
		w.is("run", err, nil)
		if n := w.sim.State().Commands; n != 1 {
			w.t.Errorf("%d scripts were run", n)
		}
		time.Sleep(time.Minute)
		if r, err := w.Commander.CommandResult(w.ctx(), id, command.Instance); err != nil || !r.Done || r.Output != "fine\n" {
			w.t.Errorf("%+v, %v", r, err)
		}
	},
}

// drop lets the answer of a call be lost once, when it has had its effect.
func (w *world) drop(call Call) {
	w.t.Helper()
	w.fault(w.APIs[call][0], simulator.FaultDropAfterEffect, 1)
}
