package alibaba

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"example.org/usher/providers"
)

// Pacer spreads calls once the service has refused one for its rate, so that those which
// matter most get what the service grants: answers and heartbeats by turns, and changes of
// balancers, before anything that only asks. It finds the rate as TCP does, a little more with each success and a good
// part less with a refusal; nobody tells what the quota is, and others use it, too. Until
// the first refusal, and when the rate is high again, nobody waits. A quota is an account's:
// clients of one account and region share a Pacer. Every other turn goes to the client that
// has had none for longest, whatever it asks for, and so does each turn among calls of one
// class: a client whose calls are many, or all refused, does not take the others' turns.
// Its zero value is ready.
type Pacer struct {
	mu sync.Mutex // guards all below
	// vital bounds the calls that change something, and all those that ask as well: a refusal
	// of what asks says nothing against the others.
	vital, asking gate
	lines         [classes][]*turn
	answered      bool           // the last vital turn was an answer's
	fair          bool           // the next turn is that of the client that has had none for longest
	asked         time.Time      // the last turn of what only asks
	turns         uint64         // that have passed
	served        map[any]uint64 // the last turn of each client that waits for another
	timer         *time.Timer
}

// The classes of calls.
const (
	classAnswer = iota
	classHeartbeat
	classAsking
	classes
)

const (
	// paceFirst is the rate that pacing begins with, paceLeast the lowest it falls to, and
	// above paceMost it ends; calls a second.
	paceFirst, paceLeast, paceMost = 5.0, 1.0, 100.0
	// paceGain is added with each success: at any rate that is a tenth of it each second.
	paceGain = 0.1
	// paceLoss is what a refusal leaves. Those within paceOnce are one: they were sent at the same rate.
	paceLoss = 0.7
	paceOnce = time.Second
)

// gate is a rate of calls.
type gate struct {
	rate    float64   // 0: open
	next    time.Time // when the next call may pass
	lowered time.Time
}

// turn is a call that waits.
type turn struct {
	client any
	ready  chan struct{}
}

func class(action string) int {
	switch action {
	case "CompleteLifecycleAction":
		return classAnswer
	case "RecordLifecycleActionHeartbeat":
		return classHeartbeat
	}
	for _, change := range []string{"Add", "Remove", "Set", "Update"} { // of a balancer
		if strings.HasPrefix(action, change) {
			return classAnswer
		}
	}
	return classAsking
}

// wait returns when the client's call may be sent.
func (p *Pacer) wait(ctx context.Context, client any, action string) *failure {
	t := &turn{client: client, ready: make(chan struct{})}
	c := class(action)
	p.mu.Lock()
	p.lines[c] = append(p.lines[c], t)
	p.admit()
	p.mu.Unlock()
	select {
	case <-t.ready:
		return nil
	default:
	}
	select {
	case <-t.ready:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines[c] = slices.DeleteFunc(p.lines[c], func(o *turn) bool { return o == t })
	p.forget(client)
	return &failure{certain: true, cloudError: &providers.Error{
		Op: action, Kind: providers.ErrThrottled, Cause: ctx.Err(),
		Message: "it was not its turn in time: calls are spread since the service refused some for their rate",
	}}
}

// admit lets pass what may pass now, and sets the timer for the rest. p.mu is held.
func (p *Pacer) admit() {
	now := time.Now()
	for {
		c, i, at, fair := p.next(now)
		if c < 0 {
			return
		}
		if wait := at.Sub(now); wait > 0 {
			if p.timer == nil {
				p.timer = time.AfterFunc(wait, func() {
					p.mu.Lock()
					defer p.mu.Unlock()
					p.admit()
				})
			} else {
				p.timer.Reset(wait)
			}
			return
		}
		t := p.lines[c][i]
		p.lines[c] = slices.Delete(p.lines[c], i, i+1)
		close(t.ready)
		p.fair = !fair
		p.serve(t)
		p.asking.pass(now)
		if c == classAsking {
			p.asked = now
		} else {
			p.answered = c == classAnswer
		}
		if c != classAsking || fair {
			p.vital.pass(now)
		}
	}
}

// next is whose turn it is and when: a class and the place in its line; -1: nobody waits.
// fair: it is the turn of the client that has had none for longest.
func (p *Pacer) next(now time.Time) (c, i int, at time.Time, fair bool) {
	c = p.first()
	if c < 0 {
		return c, 0, at, false
	}
	i, at = p.longest(c), p.vital.next
	if c == classAsking && p.asking.next.After(at) {
		at = p.asking.next
	}
	if !p.fair || c == classAsking {
		return c, i, at, false // with nobody else to wait for
	}
	best, place := c, i
	for other := range p.lines {
		if len(p.lines[other]) > 0 {
			if n := p.longest(other); p.before(p.lines[other][n], p.lines[best][place]) {
				best, place = other, n
			}
		}
	}
	soon := p.vital.next
	if best == classAsking {
		// Those of others do not count here, or what asks would wait for as long as they come.
		if own := p.asked.Add(p.asking.each()); own.After(soon) {
			soon = own
		}
	}
	if best != c && soon.After(now) && at.Before(soon) {
		return c, i, at, false
	}
	return best, place, soon, true
}

// before says whether a's client has had no turn for longer than b's.
func (p *Pacer) before(a, b *turn) bool { return p.served[a.client] < p.served[b.client] }

// longest is the place in a line of the first call of the client that has had no turn for longest.
func (p *Pacer) longest(c int) (place int) {
	for i, t := range p.lines[c] {
		if p.before(t, p.lines[c][place]) {
			place = i
		}
	}
	return place
}

// serve notes that a turn has passed.
func (p *Pacer) serve(t *turn) {
	p.turns++
	if p.served == nil {
		p.served = map[any]uint64{}
	}
	p.served[t.client] = p.turns
	p.forget(t.client)
}

// forget drops what is known of a client that waits for nothing.
func (p *Pacer) forget(client any) {
	for _, line := range p.lines {
		if slices.ContainsFunc(line, func(t *turn) bool { return t.client == client }) {
			return
		}
	}
	delete(p.served, client)
}

// first is the class whose turn is next; -1: nobody waits.
func (p *Pacer) first() int {
	order := [classes]int{classAnswer, classHeartbeat, classAsking}
	if p.answered {
		order[0], order[1] = classHeartbeat, classAnswer
	}
	for _, c := range order {
		if len(p.lines[c]) > 0 {
			return c
		}
	}
	return -1
}

// note takes in how a call went that wait has let pass.
func (p *Pacer) note(action string, throttled bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	vital := class(action) != classAsking
	switch {
	case throttled && vital:
		p.vital.lower()
		p.asking.lower()
	case throttled:
		p.asking.lower()
	case vital:
		p.vital.raise()
	default:
		p.asking.raise()
	}
	p.admit()
}

// each is the time from one call to the next.
func (g *gate) each() time.Duration {
	if g.rate == 0 {
		return 0
	}
	return time.Duration(float64(time.Second) / g.rate)
}

func (g *gate) pass(now time.Time) {
	if g.rate == 0 {
		return
	}
	if g.next.Before(now) {
		g.next = now
	}
	// What asks waits for what is vital, but not for a debt without end.
	each := g.each()
	g.next = g.next.Add(each)
	if most := now.Add(each + time.Second); g.next.After(most) {
		g.next = most
	}
}

func (g *gate) lower() {
	now := time.Now()
	if now.Sub(g.lowered) < paceOnce {
		return
	}
	g.lowered = now
	if g.rate == 0 {
		g.rate = paceFirst
	} else {
		g.rate = max(paceLeast, g.rate*paceLoss)
	}
	g.next = now
	g.pass(now)
}

func (g *gate) raise() {
	if g.rate == 0 {
		return
	}
	if g.rate += paceGain; g.rate > paceMost {
		g.rate, g.next = 0, time.Time{}
	}
}
