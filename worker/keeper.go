package worker

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// keeperSenders bounds the calls that one keeper has under way. A call takes a few
// milliseconds, or its timeout when the cloud hangs; 16 keep 1,000 held actions alive
// even when each call takes half a second.
const keeperSenders = 16

// keeper does what is due when it is due: a heap of duties and a bounded set of
// senders, however many actions are held. There is one for each queue, which extends
// messages, and one for each group, which sends heartbeats, so that one group's
// hanging calls hold up no other's.
type keeper struct {
	wake chan struct{} // holds one token when the head of the heap has changed

	mu  sync.Mutex
	due dutyHeap // guarded by mu
}

// duty is one thing to do again and again.
type duty struct {
	keeper *keeper
	// do does it and says when it is due again; the zero time ends the duty.
	do func(ctx context.Context) time.Time

	at      time.Time // guarded by keeper.mu
	index   int       // in the heap, -1 when not in it; guarded by keeper.mu
	stopped bool      // guarded by keeper.mu
}

func newKeeper() *keeper { return &keeper{wake: make(chan struct{}, 1)} }

// add lets do be called at the given time, and again when it says.
func (k *keeper) add(at time.Time, do func(ctx context.Context) time.Time) *duty {
	d := &duty{keeper: k, do: do, at: at, index: -1}
	k.push(d)
	return d
}

// stop ends the duty. A call that is under way is not waited for.
func (d *duty) stop() {
	if d == nil {
		return
	}
	d.keeper.mu.Lock()
	defer d.keeper.mu.Unlock()
	d.stopped = true
	if d.index >= 0 {
		heap.Remove(&d.keeper.due, d.index)
	}
}

func (k *keeper) isStopped(d *duty) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return d.stopped
}

func (k *keeper) push(d *duty) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if d.stopped {
		return
	}
	heap.Push(&k.due, d)
	if d.index == 0 {
		select {
		case k.wake <- struct{}{}:
		default:
		}
	}
}

// pop takes the first duty out of the heap if it is due, or says how long to wait.
func (k *keeper) pop() (d *duty, wait time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.due) == 0 {
		return nil, time.Hour
	}
	if wait := time.Until(k.due[0].at); wait > 0 {
		return nil, wait
	}
	return heap.Pop(&k.due).(*duty), 0
}

// run does the duties until ctx ends, and returns when no call is under way.
func (k *keeper) run(ctx context.Context) {
	work := make(chan *duty) // written by this loop, read by the senders
	var senders sync.WaitGroup
	defer senders.Wait()
	defer close(work)
	for range keeperSenders {
		senders.Go(func() {
			for d := range work {
				if k.isStopped(d) {
					continue // while it waited for a sender
				}
				if at := d.do(ctx); !at.IsZero() {
					k.mu.Lock()
					d.at = at
					k.mu.Unlock()
					k.push(d)
				}
			}
		})
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		d, wait := k.pop()
		if d != nil {
			select {
			case work <- d:
			case <-ctx.Done():
				return
			}
			continue
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-k.wake:
		case <-ctx.Done():
			return
		}
	}
}

// dutyHeap orders duties by when they are due; it implements heap.Interface.
type dutyHeap []*duty

func (h dutyHeap) Len() int           { return len(h) }
func (h dutyHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }
func (h dutyHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *dutyHeap) Push(x any) {
	d := x.(*duty)
	d.index = len(*h)
	*h = append(*h, d)
}
func (h *dutyHeap) Pop() any {
	old := *h
	d := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	d.index = -1
	return d
}
