package worker_test

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// maxFailures bounds what one schedule complains about: the first complaint tells most.
const maxFailures = 8

// broken says that a rule was broken, by something about subject: a token, a message or "".
func (s *schedule) broken(rule, subject, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.brokenLocked(rule, subject, format, args...)
}

// brokenLocked is broken with s.mu held.
func (s *schedule) brokenLocked(rule, subject, format string, args ...any) {
	s.t.Helper()
	first := slices.Contains(strings.Split(*until, ","), rule) && s.total.enough.CompareAndSwap(false, true)
	if s.failures++; s.failures > maxFailures && !first { // that one is told, whatever came before
		s.t.Fail()
		return
	}
	s.subjects[subject] = true
	s.t.Errorf("%s %s: %s", clock(time.Now()), rule, fmt.Sprintf(format, args...))
}

// facts are what the cloud itself says has happened.
type facts struct {
	events    []simulator.Event
	actions   map[string]simulator.ActionState
	over      map[string]time.Time // by token
	tokens    map[string]string    // by message id, of the cloud's own notifications
	deleted   map[string]time.Time
	visible   map[string][]time.Time
	arrived   map[string][]time.Time
	heartbeat map[string][]simulator.Event // by token
	copies    map[string]map[string]bool   // the messages that announced an action, by token
}

func (s *schedule) facts() *facts {
	f := &facts{
		events: s.cloud.Events(), actions: map[string]simulator.ActionState{}, over: map[string]time.Time{}, tokens: map[string]string{}, deleted: map[string]time.Time{},
		visible: map[string][]time.Time{}, arrived: map[string][]time.Time{}, heartbeat: map[string][]simulator.Event{}, copies: map[string]map[string]bool{},
	}
	for _, a := range s.cloud.State().Actions {
		f.actions[a.Token] = a
		f.copies[a.Token] = map[string]bool{}
	}
	for id, l := range s.letters {
		if l.kind == announcement || l.kind == again {
			f.copies[l.token][id] = true
		}
	}
	for _, e := range f.events {
		switch e.Type {
		case simulator.ActionCompleted, simulator.ActionTimedOut, simulator.ActionCancelled:
			f.over[e.Token] = e.Time
		case simulator.ActionHeartbeat:
			f.heartbeat[e.Token] = append(f.heartbeat[e.Token], e)
		case simulator.MessageSent:
			if e.Token != "" {
				f.tokens[e.MessageID] = e.Token
				f.copies[e.Token][e.MessageID] = true
			}
		case simulator.MessageVisible:
			f.visible[e.MessageID] = append(f.visible[e.MessageID], e.Time)
		case simulator.MessageReceived:
			f.arrived[e.MessageID] = append(f.arrived[e.MessageID], e.Time)
		case simulator.MessageDeleted:
			f.deleted[e.MessageID] = e.Time
		}
	}
	return f
}

// letter says what a message is.
func (s *schedule) letter(f *facts, id string) letter {
	if token, ok := f.tokens[id]; ok {
		return letter{kind: announcement, token: token}
	}
	return s.letters[id]
}

// judge holds what happened against the rules. What can be judged as it happens is in
// witness_test.go.
func (s *schedule) judge() {
	f := s.facts()
	s.judgeDeletions(f)
	s.judgeWaits(f)
	s.judgeHeartbeats(f)
	s.judgeOthersTrouble(f)
	s.judgeOvertime(f)
	for _, l := range s.history {
		s.judgeDeliveries(f, l)
		s.judgeRecords(f, l)
		s.judgeTakeover(f, l)
		s.judgeStop(f, l)
	}
	s.judgeCompletions(f)
}

// judgeDeletions is rule 1: each message that is gone was one to delete.
func (s *schedule) judgeDeletions(f *facts) {
	for id, at := range f.deleted {
		l := s.letter(f, id)
		switch l.kind {
		case announcement, again:
			if end := f.over[l.token]; end.IsZero() || end.After(at) {
				s.broken("rule 1", l.token, "message %s was deleted at %s, its action %s was over at %s", id, clock(at), l.token, clock(end))
			}
		case rubbish:
			kept := false
			for _, w := range s.history {
				for _, rec := range w.log {
					kept = kept || rec.Event == audit.Quarantined && rec.MessageID == id && !rec.Time.After(at) && rec.Body+string(rec.BodyBase64) == l.body
				}
			}
			if !kept {
				s.broken("rule 1", id, "message %s was deleted at %s, and what it said is in no audit log", id, clock(at))
			}
		case foreign:
			s.broken("rule 1", id, "message %s of a group that no config names was deleted", id)
		}
	}
}

// judgeWaits: no wait lapses while somebody could have prevented it.
func (s *schedule) judgeWaits(f *facts) {
	for token, a := range f.actions {
		if a.EndedBy == "timeout" && s.waitedLongest(a) {
			s.broken("rule 4", token, "%s (hook %s, from %s) waited until %s, as long as the cloud ever waits, and nobody answered before", token, a.Hook, clock(a.Started), clock(*a.Completed))
		} else if a.EndedBy == "timeout" && !s.excused(a) {
			rule := "rule 4"
			if s.groupsTroubled(a.Started, *a.Completed) {
				rule = "rule 10" // its own group's trouble would have been an excuse
			}
			s.broken(rule, token, "the wait of %s (hook %s, from %s) lapsed at %s, which no trouble excuses", token, a.Hook, clock(a.Started), clock(*a.Completed))
		}
	}
}

// judgeHeartbeats is rule 5.
func (s *schedule) judgeHeartbeats(f *facts) {
	for token, beats := range f.heartbeat {
		a := f.actions[token]
		if a.Completed == nil || len(f.copies[token]) > 1 || s.troubled(a.Group, a.Started, *a.Completed) {
			continue // two workers share the budget unknowingly; a call whose answer was lost counts, too
		}
		holder, deliveries := s.holder(token)
		if holder == nil || deliveries > 1 {
			continue
		}
		deadline := holder.hooks[a.Hook].deadline
		for i, e := range beats {
			// What is left to wait for, by the calls left less three in reserve.
			share := (deadline + time.Minute - e.Time.Sub(a.Started)) / time.Duration(max(1, 20-i-3))
			if asked, most := e.Until.Sub(e.Time), max(holder.floor, share)+35*time.Second; asked > most && s.on != messages.AWS {
				s.broken("rule 5", token, "heartbeat %d of %s asks for %v, and %v would do: so long a dead cluster holds the instances", i+1, token, asked, most)
			}
			if s.on == messages.AWS {
				s.judgeRestart(a, deadline, beats[:i+1])
				continue
			}
			if i == 0 {
				continue
			}
			last := beats[i-1]
			if gap, granted := e.Time.Sub(last.Time), last.Until.Sub(last.Time); gap < granted/2 {
				s.broken("rule 5", token, "heartbeat %d of %s comes %v after one that was good for %v", i+1, token, gap, granted)
			}
		}
	}
	for _, l := range s.history {
		for _, rec := range l.log {
			if rec.Event != audit.Heartbeat || !strings.Contains(rec.Error, "RecordTimesExceeded") {
				continue
			}
			token := string(rec.Token)
			if a := f.actions[token]; len(f.copies[token]) == 1 && !s.troubled(a.Group, a.Started, rec.Time) {
				s.broken("rule 5", token, "%s has sent more heartbeats for %s than the cloud allows", l.name, token)
			}
		}
	}
}

// judgeOvertime is rule 4, where it is not the worker that was refused: another hook's
// answer, perhaps another worker's, has ended the action.
func (s *schedule) judgeOvertime(f *facts) {
	for _, l := range s.history {
		for _, o := range l.overtime {
			if a := f.actions[o.token]; !s.troubled(a.Group, o.since.Add(-time.Minute), o.end) {
				s.broken("rule 4", o.token, "%s has gone on with a step of %s until %s, which another hook's answer has ended at %s", l.name, o.token, clock(o.end), clock(o.since))
			}
		}
	}
}

// holder is the one worker that admitted an action, and how many times anybody received it.
func (s *schedule) holder(token string) (l *life, deliveries int) {
	for _, w := range s.history {
		for _, rec := range w.log {
			if string(rec.Token) != token {
				continue
			}
			switch rec.Event {
			case audit.Received:
				deliveries++
			case audit.Admitted:
				l = w
			}
		}
	}
	return l, deliveries
}

// judgeOthersTrouble is rule 10: where an action is the only one of its group, and
// nothing is wrong but with other groups, its first step begins soon.
func (s *schedule) judgeOthersTrouble(f *facts) {
	const soon = 45 * time.Second
	first := map[string]time.Time{} // when the first step, or else the answer, came
	for _, l := range s.history {
		if l.maxActions < 100 || len(l.groups) < len(s.groups) {
			return
		}
		for _, rec := range l.log {
			if rec.Event == audit.StepStarted || rec.Event == audit.Completed || rec.Event == audit.Heartbeat && rec.Error != "" {
				if at, ok := first[string(rec.Token)]; !ok || rec.Time.Before(at) {
					first[string(rec.Token)] = rec.Time
				}
			}
		}
	}
	for token, a := range f.actions {
		until := a.Started.Add(soon)
		if s.hook(a).silent || s.madeUpIn(a.Group) || s.terminated[token] || a.Completed == nil || a.Completed.Before(until) || s.troubled(a.Group, a.Started.Add(-time.Minute), until) || s.jobless(a.Started, until) {
			continue
		}
		alone := true
		for _, other := range f.actions {
			alone = alone && (other.Token == token || other.Group != a.Group || other.Started.After(until) || other.Completed.Before(a.Started))
		}
		if at, ok := first[token]; alone && (!ok || at.After(until)) {
			s.broken("rule 10", token, "action %s of %s, from %s, is the only one of its group, and its first step was at %s", token, a.Group, clock(a.Started), clock(at))
		}
	}
}

// jobless says whether there was a time without any worker.
func (s *schedule) jobless(from, to time.Time) bool {
	for _, l := range s.history {
		if l.started.Before(from) && (l.ended.IsZero() || l.ended.After(to)) && (l.stopping.IsZero() || l.stopping.After(to)) && (l.killed.IsZero() || l.killed.After(to)) {
			return false
		}
	}
	return true
}

// judgeDeliveries is rules 8 and 11 and that what is held stays hidden: each delivery has
// one closing record, which fits what the message is.
func (s *schedule) judgeDeliveries(f *facts, l *life) {
	type trail struct {
		received, closing audit.Record
		open              int
		admitted          bool
	}
	trails, unsent := map[delivery]*trail{}, map[string]int{}
	for _, rec := range l.log {
		if rec.MessageID == "" {
			switch {
			case rec.Event == audit.Adopted:
				unsent[string(rec.Token)]++
			case rec.Event.Closes():
				unsent[string(rec.Token)]--
			}
			continue
		}
		if rec.Event == audit.Announced {
			continue // the message was sent, not received
		}
		d := delivery{rec.MessageID, rec.ReceiveCount}
		tr := trails[d]
		if rec.Event == audit.Received {
			if tr != nil {
				s.broken("rule 11", d.message, "%s has two records of receiving delivery %d of message %s", l.name, d.number, d.message)
			}
			trails[d] = &trail{received: rec, open: 1}
			continue
		}
		switch {
		case tr == nil && rec.Event == audit.Extended: // of a second message of the action, by the count of the first
		case tr == nil:
			s.broken("rule 11", d.message, "%s has a record %s of delivery %d of message %s, and none of receiving it", l.name, rec.Event, d.number, d.message)
		case rec.Event.Closes():
			if tr.open--; tr.open < 0 {
				s.broken("rule 11", d.message, "%s has a second closing record, %s after %s, of delivery %d of message %s", l.name, rec.Event, tr.closing.Event, d.number, d.message)
			}
			tr.closing = rec
		case rec.Event == audit.Admitted:
			tr.admitted = true
		case tr.open == 0 && rec.Event != audit.Extended && rec.Time.After(tr.closing.Time):
			s.broken("rule 11", d.message, "%s has a record %s of delivery %d of message %s after the closing one", l.name, rec.Event, d.number, d.message)
		}
	}
	for token, n := range unsent {
		if n != 0 && !l.gone() {
			s.broken("rule 11", token, "%s has begun %s without a message, and %+d closing records are missing", l.name, token, n)
		}
	}
	for d, tr := range trails {
		if tr.open > 0 && !l.gone() {
			s.broken("rule 11", d.message, "%s has no closing record of delivery %d of message %s", l.name, d.number, d.message)
		}
		until := tr.closing.Time
		switch {
		case tr.open > 0 && l.gone():
			until = l.killed
		case tr.open > 0:
			continue
		}
		for _, at := range f.visible[d.message] {
			if at.After(tr.received.Time) && at.Before(until) && !s.troubled("", tr.received.Time.Add(-time.Minute), at) {
				s.broken("rule 4", d.message, "message %s came out of hiding at %s, while %s held it from %s to %s", d.message, clock(at), l.name, clock(tr.received.Time), clock(until))
			}
		}
		if tr.open == 0 && (!l.gone() || tr.closing.Time.Before(l.killed)) {
			s.judgeClosing(f, l, d, tr.received, tr.closing)
		}
	}
}

// judgeClosing: the closing record fits what the message is, and what the cloud says.
func (s *schedule) judgeClosing(f *facts, l *life, d delivery, received, closing audit.Record) {
	sent := s.letter(f, d.message)
	token := string(received.Token)
	calm := !s.troubled("", received.Time.Add(-time.Minute), closing.Time)
	wrong := func(rule, format string, args ...any) {
		s.broken(rule, cmp.Or(token, d.message), "%s closed delivery %d of message %s as %s (%s, %s): %s", l.name, d.number, d.message, closing.Event, closing.Reason, closing.Error, fmt.Sprintf(format, args...))
	}
	if garbled := l.garbled[d]; garbled {
		if closing.Event != audit.Rejected {
			wrong("rule 8", "it arrived garbled, and must be left in the queue")
		}
		return
	}
	switch closing.Event {
	case audit.Rejected:
		if sent.kind != rubbish {
			wrong("rule 8", "it is %s", sent.kind)
		} else if d.number >= l.maxReceives {
			wrong("rule 8", "it should be quarantined at delivery %d", l.maxReceives)
		}
	case audit.Quarantined:
		if sent.kind != rubbish {
			wrong("rule 8", "it is %s", sent.kind)
		} else if d.number < l.maxReceives || closing.Body+string(closing.BodyBase64) != sent.body {
			wrong("rule 8", "it should be at delivery %d, with its body", l.maxReceives)
		}
	case audit.Ignored:
		if sent.kind == rubbish || sent.kind == foreign {
			wrong("rule 8", "it is %s", sent.kind)
		}
	case audit.Unrouted:
		if sent.kind != foreign && l.groups[string(received.Group)] {
			wrong("rule 1", "its config names the group")
		}
	case audit.Stale:
		end := f.over[token]
		if (sent.kind == announcement || sent.kind == again) && closing.Error == "" && (end.IsZero() || end.After(closing.Time)) {
			wrong("rule 1", "it was over at %s", clock(end))
		}
	case audit.Lost:
		if len(f.copies[token]) == 1 && calm {
			wrong("rule 4", "nothing has happened that could have taken it away")
		}
	case audit.Acked:
		if _, gone := f.deleted[d.message]; !gone && calm {
			wrong("rule 11", "it was not deleted")
		}
		if sent.kind == forged {
			wrong("bad input", "it is %s", sent.kind)
		}
	case audit.Released:
		stopped := !l.stopping.IsZero() && !closing.Time.Before(l.stopping)
		if calm && !stopped && sent.kind == announcement && len(f.copies[token]) == 1 && l.maxActions >= 100 && !s.lies(token) {
			wrong("rule 1", "nothing kept it from being worked for")
		}
	}
}

// lies says whether a message was sent that says something wrong of the action.
func (s *schedule) lies(token string) bool {
	for _, l := range s.letters {
		if l.kind == forged && l.token == token {
			return true
		}
	}
	return false
}

// judgeRecords: what a worker says of its answers is what the cloud says.
func (s *schedule) judgeRecords(f *facts, l *life) {
	for _, h := range l.hasty {
		if a := f.actions[h.token]; len(f.copies[h.token]) == 1 && !s.troubled(a.Group, a.Started, h.at) {
			s.broken("rule 2", h.token, "%s answers %s with %s at %s although none of its jobs has failed and its deadline is %v", l.name, h.token, h.result, clock(h.at), l.hooks[a.Hook].deadline)
		}
	}
	for _, u := range l.unended {
		if a := f.actions[u.token]; len(f.copies[u.token]) == 1 && !s.troubled(a.Group, a.Started, u.at) {
			s.broken("ends", u.token, "%s answers %s at %s, and %s of %s", l.name, u.token, clock(u.at), u.instance, u.lacks)
		}
	}
	completed := map[messages.Token]int{}
	for _, rec := range l.log {
		if rec.Event != audit.Completed {
			continue
		}
		a := f.actions[string(rec.Token)]
		if completed[rec.Token]++; completed[rec.Token] > 1 {
			s.broken("rule 3", string(rec.Token), "%s has completed %s %d times", l.name, rec.Token, completed[rec.Token])
		}
		if (a.EndedBy != "call" || a.Result != rec.Result) && !s.guessed(a, rec) {
			s.broken("rule 3", string(rec.Token), "%s has a record of completing %s with %s; the cloud says %s by %s", l.name, rec.Token, rec.Result, a.Result, a.EndedBy)
		}
		if rec.Reason == "" || rec.Result != "CONTINUE" && !strings.Contains(rec.Reason, "failed") {
			s.broken("rule 2", string(rec.Token), "%s has answered %s with %s for the reason %q", l.name, rec.Token, rec.Result, rec.Reason)
		}
	}
}

// judgeCompletions: over all workers, each action that a call has ended has one record
// of it. The cloud gives the same answer to the same request of two workers, so copies
// of a message, or an answer that was lost, may make it two, or none. While there is no
// queue that decides between them, each worker that has begun without a message may have one.
func (s *schedule) judgeCompletions(f *facts) {
	records, adopters, dead := map[string]int{}, map[string]int{}, map[string]bool{}
	for _, l := range s.history {
		for _, rec := range l.log {
			switch rec.Event {
			case audit.Completed:
				records[string(rec.Token)]++
			case audit.Adopted:
				adopters[string(rec.Token)]++
			case audit.Admitted:
				if l.gone() && !f.over[string(rec.Token)].Before(l.killed.Add(-30*time.Second)) {
					dead[string(rec.Token)] = true
				}
			}
		}
	}
	for token, a := range f.actions {
		copied := len(f.copies[token]) > 1
		if a.EndedBy != "call" || copied && s.on != messages.AWS { // which refuses the second of two answers, whoever gives it
			continue
		}
		n, calm := records[token], !s.troubled(a.Group, a.Completed.Add(-time.Minute), a.Completed.Add(time.Minute))
		if n > 1+adopters[token] && calm || n == 0 && calm && !dead[token] && !copied {
			s.broken("rule 11", token, "action %s, ended by a call, has %d records of being completed", token, n)
		}
	}
}

// judgeTakeover is rule 6: what a killed worker held comes out of hiding within its
// lease, and somebody has it.
func (s *schedule) judgeTakeover(f *facts, l *life) {
	if l.killed.IsZero() || s.struck(l.killed.Add(-time.Minute), l.killed.Add(2*time.Minute)) || !l.severed.IsZero() {
		return
	}
	held := map[string]audit.Record{}
	for _, rec := range l.log {
		switch {
		case rec.MessageID == "" || rec.Time.After(l.killed.Add(-time.Millisecond)):
		case rec.Event == audit.Admitted:
			held[rec.MessageID] = rec
		case rec.Event.Closes():
			delete(held, rec.MessageID)
		}
	}
	for id, rec := range held {
		if !rec.Time.Before(l.killed.Add(-3 * time.Second)) {
			continue // it may not have cut the queue's own time yet
		}
		// It is in a receive's answer by then, or gone.
		limit := l.killed.Add(l.visibility + 2*time.Second)
		freed := slices.ContainsFunc(f.visible[id], func(at time.Time) bool { return at.After(rec.Time) && !at.After(limit) })
		if gone, ok := f.deleted[id]; !freed && (!ok || gone.After(limit)) {
			s.broken("rule 6", id, "%s, killed at %s, held message %s, which nobody could have before %s", l.name, clock(l.killed), id, clock(limit))
		}
	}
}

// judgeStop is rule 7: a stop takes no longer than it may, and what is left is there for
// others at once.
func (s *schedule) judgeStop(f *facts, l *life) {
	if l.stopping.IsZero() || l.gone() {
		return
	}
	calm := !s.struck(l.stopping.Add(-time.Minute), l.ended) && l.severed.IsZero() && !s.groupsTroubled(l.stopping, l.ended)
	most := max(0, l.grace) + 45*time.Second
	if calm {
		most = max(0, l.grace) + 12*time.Second
	}
	if took := l.ended.Sub(l.stopping); took > most {
		s.broken("rule 7", "", "%s took %v to stop, its grace is %v", l.name, took, l.grace)
	}
	for _, rec := range l.log {
		early := 2 * time.Second
		if s.struck(rec.Time.Add(-10*time.Second), rec.Time) {
			early = 10 * time.Second // it was free when the call came, whose answer came late
		}
		switch {
		case rec.Event != audit.Released || rec.Time.Before(l.stopping) || rec.Error != "":
		case rec.MessageID == "" || s.lostSince(rec.Time) || !strings.HasPrefix(rec.Reason, "the worker is stopping"):
		case !slices.ContainsFunc(f.visible[rec.MessageID], func(at time.Time) bool {
			return at.After(rec.Time.Add(-early)) && at.Before(rec.Time.Add(2*time.Second))
		}):
			s.broken("rule 7", rec.MessageID, "%s handed message %s back at %s, and nobody could have it then", l.name, rec.MessageID, clock(rec.Time))
		}
	}
	if !calm {
		return
	}
	// Whatever it had received, nobody has to wait for when it is gone.
	for id, arrivals := range f.arrived {
		var last time.Time
		for _, rec := range l.log {
			if rec.Event == audit.Received && rec.MessageID == id {
				last = rec.Time
			}
		}
		if last.IsZero() || s.lostSince(last) || slices.ContainsFunc(arrivals, func(at time.Time) bool { return at.After(last.Add(time.Second)) && at.Before(l.ended) }) {
			continue
		}
		if k := s.letter(f, id).kind; k != announcement || !l.groups[f.actions[s.letter(f, id).token].Group] || len(f.copies[s.letter(f, id).token]) > 1 || l.maxActions < 100 {
			continue // left in the queue, or put off, on purpose
		}
		gone, deleted := f.deleted[id]
		free := slices.ContainsFunc(f.visible[id], func(at time.Time) bool { return at.After(last) && at.Before(l.ended.Add(2*time.Second)) })
		if !free && (!deleted || gone.After(l.ended.Add(time.Second))) {
			s.broken("rule 7", id, "%s has ended at %s, and message %s, which it held, was neither deleted nor handed back", l.name, clock(l.ended), id)
		}
	}
}

// lostSince says whether the queue was deleted, and all messages with it.
func (s *schedule) lostSince(t time.Time) bool {
	return slices.ContainsFunc(s.emptied, func(at time.Time) bool { return at.After(t) })
}

// hook is the one that an action waits for.
func (s *schedule) hook(a simulator.ActionState) drawnHook {
	for _, g := range s.groups {
		for _, h := range g.hooks {
			if h.id == a.Hook {
				return h
			}
		}
	}
	return drawnHook{}
}

// overlaps says whether any of the spans has part of the time.
func overlaps(list []span, from, to time.Time) bool {
	return slices.ContainsFunc(list, func(x span) bool { return x.from.Before(to) && x.to.After(from) })
}

// troubled says whether anything was wrong with the cloud, any worker, or the group.
func (s *schedule) troubled(group string, from, to time.Time) bool {
	if g := s.group(group); g != nil && overlaps(g.troubles, from, to) {
		return true
	}
	return overlaps(s.troubles, from, to)
}

// struck says whether a fault of the cloud's was about.
func (s *schedule) struck(from, to time.Time) bool { return overlaps(s.interrupted, from, to) }

func (s *schedule) groupsTroubled(from, to time.Time) bool {
	return slices.ContainsFunc(s.groups, func(g *drawnGroup) bool { return overlaps(g.troubles, from, to) })
}

// excused says whether trouble lasted as long as a wait may be short when it begins: a
// third of the hook's own timeout or of the shortest heartbeat. Another group's trouble
// is no excuse.
func (s *schedule) excused(a simulator.ActionState) bool {
	shortest := s.hook(a).timeout
	troubles := append(slices.Clone(s.troubles), s.group(a.Group).troubles...)
	if s.hook(a).silent && shortest < s.slowest()+time.Minute {
		return true // it has to be found first
	}
	for _, l := range s.history {
		if l.maxActions < 100 {
			return true // what nobody has room for is in nobody's care
		}
		if s.on != messages.AWS { // where each heartbeat lasts as long as the first wait
			shortest = min(shortest, l.floor)
		}
		for _, rec := range l.log {
			if rec.Event == audit.Unrouted && string(rec.Token) == a.Token {
				troubles = append(troubles, span{rec.Time, rec.Time.Add(15 * time.Minute)})
			}
		}
	}
	slices.SortFunc(troubles, func(x, y span) int { return x.from.Compare(y.from) })
	var merged []span
	for _, t := range troubles {
		if n := len(merged); n > 0 && !t.from.After(merged[n-1].to) {
			if t.to.After(merged[n-1].to) {
				merged[n-1].to = t.to
			}
			continue
		}
		merged = append(merged, t)
	}
	for _, t := range merged {
		from, to := t.from, t.to
		if a.Started.After(from) {
			from = a.Started
		}
		if a.Completed.Before(to) {
			to = *a.Completed
		}
		if to.Sub(from) > shortest/3-10*time.Second {
			return true
		}
	}
	return false
}

// story is what a failure prints: how it was drawn, what was done, and what happened to
// those that the failure is about.
func (s *schedule) story() string {
	type line struct {
		at   time.Time
		text string
	}
	var lines []line
	about := func(token, message string) bool {
		return token != "" && s.subjects[token] || message != "" && (s.subjects[message] || s.subjects[s.letters[message].token] && s.letters[message].token != "")
	}
	for _, e := range s.cloud.Events() {
		if about(e.Token, e.MessageID) && e.Type != simulator.MessageExtended {
			lines = append(lines, line{e.Time, fmt.Sprintf("cloud %s %s %s %s %s", e.Type, e.Token, e.MessageID, e.Result, e.State)})
		}
	}
	for _, l := range s.history {
		for _, rec := range l.log {
			if about(string(rec.Token), rec.MessageID) && rec.Event != audit.Extended {
				lines = append(lines, line{rec.Time, fmt.Sprintf("%s %s %s %s #%d %s %s %s %s %s", l.name, rec.Event, rec.Token, rec.MessageID, rec.ReceiveCount, rec.Instance, rec.Step, rec.Result, rec.Reason, rec.Error)})
			}
		}
	}
	slices.SortStableFunc(lines, func(x, y line) int { return x.at.Compare(y.at) })
	var b strings.Builder
	fmt.Fprintf(&b, "verify %s, cloud's clock ahead by %v\n", s.verify, s.skew)
	for _, g := range s.groups {
		fmt.Fprintf(&b, "%s general %v %+v\n", g.id, g.general, g.hooks)
	}
	b.WriteString(strings.Join(s.log, "\n") + "\n")
	const most = 120
	for i, l := range lines {
		if i == most {
			fmt.Fprintf(&b, "and %d lines more\n", len(lines)-most)
			break
		}
		fmt.Fprintf(&b, "%s %s\n", clock(l.at), l.text)
	}
	return b.String()
}
