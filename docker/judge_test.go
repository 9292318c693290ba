package docker

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// history is what the cloud, the workers' audit logs and the steps' own calls say of a
// run that is over. All of them have one clock, this machine's.
type history struct {
	t          *testing.T
	events     []simulator.Event
	actions    map[string]simulator.ActionState // by token
	deliveries map[string][]delivery            // by message, in order
	message    map[string]string                // by token
	completed  map[string]time.Time             // by token; when the cloud took an answer
	lives      []*life
}

// delivery is one arrival of a message somewhere; to is nil when no audit log has it:
// the worker was killed too soon, or the answer never reached it.
type delivery struct {
	receives int
	at       time.Time
	to       *life
}

// life is a worker from one start to its end.
type life struct {
	node    *node
	name    string
	records []audit.Record
	stopped bool // in order; what was killed cannot be blamed for what it did not write
}

// judge stops what still runs and holds what has happened against the rules. Every
// action must have ended with want.
func (f *fleet) judge(want string) *history {
	f.t.Helper()
	for _, n := range f.nodes {
		if n.inspect(".State.Running") == "true" {
			n.stop()
		}
	}
	h := &history{
		t: f.t, events: f.happened(), actions: map[string]simulator.ActionState{},
		deliveries: map[string][]delivery{}, message: map[string]string{}, completed: map[string]time.Time{},
	}
	for _, n := range f.nodes {
		h.lives = append(h.lives, n.lives()...)
	}
	for _, a := range f.state().Actions {
		h.actions[a.Token] = a
		if a.EndedBy != "call" || a.Result != want {
			h.t.Errorf("action %s, from %s: ended by %q with %s, want %s by a worker", a.Token, a.Started.Format(time.StampMilli), a.EndedBy, a.Result, want)
		}
	}
	h.read()
	h.closed()
	h.answered()
	for _, c := range f.made(func(call) bool { return true }) {
		h.mayAct("its call at the "+c.point+" of a job", c.node, c.token, c.at)
	}
	return h
}

// read takes the cloud's events and the deliveries' receivers.
func (h *history) read() {
	for _, e := range h.events {
		switch e.Type {
		case simulator.ActionCompleted:
			h.completed[e.Token] = e.Time
		case simulator.MessageReceived:
			h.deliveries[e.MessageID] = append(h.deliveries[e.MessageID], delivery{receives: e.Receives, at: e.Time})
			if e.Token != "" {
				h.message[e.Token] = e.MessageID
			}
		case simulator.MessageDeleted:
			if _, over := h.completed[e.Token]; e.Token != "" && !over {
				h.t.Errorf("message %s was deleted at %s, before its action %s had ended", e.MessageID, e.Time.Format(time.StampMilli), e.Token)
			}
		}
	}
	for _, l := range h.lives {
		for _, rec := range l.records {
			if rec.Event != audit.Received {
				continue
			}
			list := h.deliveries[rec.MessageID]
			i := slices.IndexFunc(list, func(d delivery) bool { return d.receives == rec.ReceiveCount })
			switch {
			case i < 0:
				h.t.Errorf("%s has a record of delivery %d of message %s, which the cloud has not", l.name, rec.ReceiveCount, rec.MessageID)
			case list[i].to != nil:
				h.t.Errorf("delivery %d of message %s has arrived at %s and at %s", rec.ReceiveCount, rec.MessageID, list[i].to.name, l.name)
			default:
				list[i].to = l
			}
		}
	}
}

// holder is who had the message of an action at t, by the cloud's record. False: nobody yet.
func (h *history) holder(token string, t time.Time) (delivery, bool) {
	var last delivery
	for _, d := range h.deliveries[h.message[token]] {
		if d.at.Before(t) {
			last = d
		}
	}
	return last, last.receives > 0
}

// mayAct says so when a worker did something that only the holder of the message may do.
func (h *history) mayAct(what, name, token string, at time.Time) {
	d, ok := h.holder(token, at)
	switch {
	case !ok:
		h.t.Errorf("%s: %s for %s at %s, and nobody had the message", name, what, token, at.Format(time.StampMilli))
	case d.to == nil:
		h.t.Errorf("%s: %s for %s at %s, after delivery %d to an unknown receiver at %s", name, what, token, at.Format(time.StampMilli), d.receives, d.at.Format(time.StampMilli))
	case d.to.name != name:
		h.t.Errorf("%s: %s for %s at %s, after %s had taken it over at %s", name, what, token, at.Format(time.StampMilli), d.to.name, d.at.Format(time.StampMilli))
	}
}

// closed: one closing record for each delivery, unless its receiver was killed.
func (h *history) closed() {
	type key struct {
		message  string
		receives int
	}
	for _, l := range h.lives {
		received, closing := map[key]bool{}, map[key][]audit.Event{}
		for _, rec := range l.records {
			k := key{rec.MessageID, rec.ReceiveCount}
			switch {
			case rec.Event == audit.Received:
				received[k] = true
			case rec.Event.Closes():
				closing[k] = append(closing[k], rec.Event)
				if !received[k] {
					h.t.Errorf("%s closes delivery %d of message %s as %s, and has not received it", l.name, k.receives, k.message, rec.Event)
				}
			case rec.Event == audit.StepStarted:
				h.mayAct("step "+rec.Step, l.name, string(rec.Token), rec.Time)
			}
		}
		for k := range received {
			if n := len(closing[k]); n > 1 || n == 0 && l.stopped {
				h.t.Errorf("%s has %d closing records of delivery %d of message %s: %v", l.name, n, k.receives, k.message, closing[k])
			}
		}
	}
}

// answered: each action by one worker, which had its message then.
func (h *history) answered() {
	by := map[string]*life{}
	for _, l := range h.lives {
		for _, rec := range l.records {
			if rec.Event != audit.Completed {
				continue
			}
			token := string(rec.Token)
			if other := by[token]; other != nil {
				h.t.Errorf("%s and %s have each a record of having answered %s", other.name, l.name, token)
			}
			by[token] = l
			if a := h.actions[token]; a.Result != rec.Result {
				h.t.Errorf("%s has a record of answering %s with %s, the cloud has %s", l.name, token, rec.Result, a.Result)
			}
			h.mayAct("its answer", l.name, token, h.completed[token])
		}
	}
	for token, at := range h.completed {
		if d, ok := h.holder(token, at); by[token] == nil && (!ok || d.to == nil || d.to.stopped) {
			h.t.Errorf("the answer to %s at %s is in no audit log, though whoever had it was not killed", token, at.Format(time.StampMilli))
		}
	}
}

// takenOver counts the deliveries after the first one of each message.
func (h *history) takenOver() (n int) {
	for _, list := range h.deliveries {
		n += len(list) - 1
	}
	return n
}

// of are the records of a node that fit.
func (h *history) of(n *node, fits func(audit.Record) bool) (list []audit.Record) {
	for _, l := range h.lives {
		if l.node != n {
			continue
		}
		for _, rec := range l.records {
			if fits(rec) {
				list = append(list, rec)
			}
		}
	}
	return list
}

// lives reads the whole audit log of a worker.
func (n *node) lives() (list []*life) {
	n.t.Helper()
	data := n.written()
	if len(data) > 0 && !bytes.HasSuffix(data, []byte("\n")) {
		n.t.Errorf("%s: the audit log ends in the middle of a record", n.name)
	}
	for line := range bytes.Lines(data) {
		rec := n.parse(line)
		if rec.Event == audit.Started {
			list = append(list, &life{node: n, name: rec.Worker})
		}
		if len(list) == 0 {
			n.t.Fatalf("%s: the audit log begins with %s", n.name, line)
		}
		l := list[len(list)-1]
		l.records = append(l.records, rec)
		l.stopped = l.stopped || rec.Event == audit.Stopped
	}
	return list
}
