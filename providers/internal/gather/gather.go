// Package gather lets concurrent callers share calls to a cloud: what several ask for within a
// moment becomes one call, and what one has read is read once for all.
package gather

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Gatherer puts what several callers ask for within a moment into common calls. A batch is
// one goroutine, from its first caller to its end; when all its callers have given up, its
// context ends. An idle gatherer costs nothing but its memory.
type Gatherer[K comparable, V any] struct {
	// Moment is how long the first caller waits for others.
	Moment time.Duration
	// Turn, if not nil, holds a token that a batch needs while it runs. The next one goes
	// on gathering meanwhile.
	Turn chan struct{}
	// Join lets callers join a batch that runs already, for those whose key is always the same.
	Join bool
	// Run answers for all keys. What it leaves out gets the zero value.
	Run func(ctx context.Context, keys []K) map[K]Outcome[V]
	// Running counts the batches; their owner waits for it.
	Running *sync.WaitGroup

	mu   sync.Mutex
	next *gathering[K, V] // guarded by mu; takes callers
}

// Outcome is the answer for one key.
type Outcome[V any] struct {
	Value V
	Err   error
}

type gathering[K comparable, V any] struct {
	ctx    context.Context // ends when nobody waits
	cancel context.CancelFunc
	// keys are one for each caller; guarded by the gatherer's mu, like waiting.
	keys []K
	// waiting counts the callers.
	waiting int
	done    chan struct{}
	answers map[K]Outcome[V] // readable when done
}

// Do asks for a key and waits for its answer, or until ctx ends.
func (g *Gatherer[K, V]) Do(ctx context.Context, key K) (V, error) {
	var none V
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	g.mu.Lock()
	b := g.next
	if b == nil {
		b = &gathering[K, V]{done: make(chan struct{})}
		b.ctx, b.cancel = context.WithCancel(context.WithoutCancel(ctx))
		g.next = b
		g.Running.Go(func() { g.see(b) })
	}
	b.keys = append(b.keys, key)
	b.waiting++
	g.mu.Unlock()
	select {
	case <-b.done:
		answer := b.answers[key]
		return answer.Value, answer.Err
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// Unless another caller has asked for it, too, a batch that has not begun is without it.
	i := slices.Index(b.keys, key)
	b.keys = slices.Delete(b.keys, i, i+1)
	if b.waiting--; b.waiting == 0 {
		if g.next == b {
			g.next = nil
		}
		b.cancel()
	}
	return none, context.Cause(ctx)
}

// see takes a batch through its life.
func (g *Gatherer[K, V]) see(b *gathering[K, V]) {
	defer close(b.done)
	defer b.cancel()
	if !Sleep(b.ctx, g.Moment) {
		return
	}
	if g.Turn != nil {
		select {
		case <-g.Turn:
			defer func() { g.Turn <- struct{}{} }()
		case <-b.ctx.Done():
			return
		}
	}
	keys := g.gathered(b, !g.Join)
	b.answers = g.Run(b.ctx, keys)
	g.gathered(b, true)
}

// gathered gives the keys of a batch and, if last, lets it take no more.
func (g *Gatherer[K, V]) gathered(b *gathering[K, V], last bool) []K {
	g.mu.Lock()
	defer g.mu.Unlock()
	if last && g.next == b {
		g.next = nil
	}
	return Distinct(b.keys)
}

// Distinct drops repetitions and keeps the order.
func Distinct[K comparable](keys []K) []K {
	seen := map[K]bool{}
	var out []K
	for _, k := range keys {
		if !seen[k] {
			seen[k] = true
			out = append(out, k)
		}
	}
	return out
}

// Sleep says whether the time has passed before ctx ended.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// Cache keeps what a listing has answered, for each key, and lets callers who ask at the
// same time share one answer.
type Cache[K comparable, V any] struct {
	Load    func(ctx context.Context, key K) (V, error)
	Running *sync.WaitGroup

	mu      sync.Mutex
	entries map[K]*cacheEntry[V] // guarded by mu
}

type cacheEntry[V any] struct {
	began time.Time
	// first and last are the moments of the reading's beginning and end.
	first, last uint64
	share       Gatherer[struct{}, V]
	// kept is set when an answer has come.
	kept  bool
	value V
}

// moments tells of two readings which came first, where the time may be the same.
var moments atomic.Uint64

// CacheMost bounds what a cache remembers; beyond, it forgets all.
const CacheMost = 10_000

// Get gives an answer at most age old, counted from before the call. Errors are not kept.
func (c *Cache[K, V]) Get(ctx context.Context, key K, age time.Duration) (V, error) {
	value, _, err := c.Since(ctx, key, age, 0)
	return value, err
}

// Since gives an answer at most age old whose reading began after a moment, and the moment
// of its end.
func (c *Cache[K, V]) Since(ctx context.Context, key K, age time.Duration, moment uint64) (V, uint64, error) {
	c.mu.Lock()
	e := c.entries[key]
	if e != nil && e.first > moment && e.kept && time.Since(e.began) <= age {
		defer c.mu.Unlock()
		return e.value, e.last, nil
	}
	if e == nil || e.kept || e.first <= moment {
		if c.entries == nil || len(c.entries) >= CacheMost {
			c.entries = map[K]*cacheEntry[V]{}
		}
		e = c.reading(key)
		c.entries[key] = e
	}
	c.mu.Unlock()
	value, err := e.share.Do(ctx, struct{}{})
	c.mu.Lock()
	defer c.mu.Unlock()
	return value, e.last, err
}

// Believed gives an answer at most age old, or the one after it if that is empty: a service
// in trouble may answer with an empty list.
func (c *Cache[K, V]) Believed(ctx context.Context, key K, age time.Duration, empty func(V) bool) (V, error) {
	value, moment, err := c.Since(ctx, key, age, 0)
	if err == nil && empty(value) {
		value, _, err = c.Since(ctx, key, age, moment)
	}
	return value, err
}

// reading is an entry that its first caller will load.
func (c *Cache[K, V]) reading(key K) *cacheEntry[V] {
	e := &cacheEntry[V]{began: time.Now(), first: moments.Add(1)}
	e.share.Running, e.share.Join = c.Running, true
	e.share.Run = func(ctx context.Context, _ []struct{}) map[struct{}]Outcome[V] {
		c.mu.Lock()
		kept := e.kept
		c.mu.Unlock()
		if kept { // the caller came when the answer did
			return map[struct{}]Outcome[V]{{}: {e.value, nil}}
		}
		value, err := c.Load(ctx, key)
		c.mu.Lock()
		defer c.mu.Unlock()
		if err == nil {
			e.kept, e.value, e.last = true, value, moments.Add(1)
		} else if c.entries[key] == e {
			delete(c.entries, key)
		}
		return map[struct{}]Outcome[V]{{}: {value, err}}
	}
	return e
}

// Drop forgets a key: what is being loaded goes to those who wait, and to nobody after them.
func (c *Cache[K, V]) Drop(key K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, key)
}

// Clear forgets all keys.
func (c *Cache[K, V]) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.entries = nil
}

// Peek gives an answer at most age old if there is one, and asks nobody.
func (c *Cache[K, V]) Peek(key K, age time.Duration) (value V, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.entries[key]; e != nil && e.kept && time.Since(e.began) <= age {
		return e.value, true
	}
	return value, false
}
