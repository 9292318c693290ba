package simulator

import (
	"container/heap"
	"sync"
	"time"
)

// schedule runs functions at their times, one after the other and with mu held. It
// keeps a single timer of package time for all of them.
type schedule struct {
	mu      *sync.Mutex // the simulator's; guards all below
	entries entryHeap
	seq     uint64
	timer   *time.Timer
	armed   time.Time // when timer fires; zero: not armed
	closed  bool
	running sync.WaitGroup // one for each pending or running shot of timer
}

// entry is something due at a time.
type entry struct {
	at    time.Time
	seq   uint64
	index int // in the heap; -1 when not scheduled
	run   func()
}

// at schedules run. The caller holds mu.
func (c *schedule) at(t time.Time, run func()) *entry {
	c.seq++
	e := &entry{at: t, seq: c.seq, run: run}
	if c.closed {
		e.index = -1
		return e
	}
	heap.Push(&c.entries, e)
	c.arm()
	return e
}

// cancel takes e off the schedule. It may be nil or have run already.
func (c *schedule) cancel(e *entry) {
	if e != nil && e.index >= 0 {
		heap.Remove(&c.entries, e.index)
	}
}

// arm sets the timer for the first entry, unless it fires early enough already:
// a shot too early just arms it again.
func (c *schedule) arm() {
	if c.closed || len(c.entries) == 0 {
		return
	}
	next := c.entries[0].at
	if !c.armed.IsZero() && !next.Before(c.armed) {
		return
	}
	c.armed = next
	wait := max(0, time.Until(next))
	if c.timer == nil {
		c.running.Add(1)
		c.timer = time.AfterFunc(wait, c.tick)
	} else if !c.timer.Reset(wait) {
		c.running.Add(1)
	}
}

func (c *schedule) tick() {
	defer c.running.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = time.Time{}
	c.catchUp()
	c.arm()
}

// catchUp runs what is due, without waiting for the timer, which may be late: a call finds
// the world as it is at its own time. The caller holds mu.
func (c *schedule) catchUp() {
	for !c.closed && len(c.entries) > 0 && !c.entries[0].at.After(time.Now()) {
		heap.Pop(&c.entries).(*entry).run()
	}
}

// close forgets all entries. The caller holds mu and calls wait after letting go of it.
func (c *schedule) close() {
	c.closed = true
	c.entries = nil
	if c.timer != nil && c.timer.Stop() {
		c.running.Done()
	}
}

func (c *schedule) wait() { c.running.Wait() }

// entryHeap orders by time and, at the same time, by who came first.
type entryHeap []*entry

func (h entryHeap) Len() int { return len(h) }
func (h entryHeap) Less(i, j int) bool {
	if !h[i].at.Equal(h[j].at) {
		return h[i].at.Before(h[j].at)
	}
	return h[i].seq < h[j].seq
}
func (h entryHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *entryHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}
func (h *entryHeap) Pop() any {
	last := len(*h) - 1
	e := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	e.index = -1
	return e
}
