package simulator

import "time"

// ledger is a map that forgets: what is older than keep, and the oldest beyond
// limit. The cloud keeps its own records for a while too.
type ledger[K comparable, V any] struct {
	limit  int
	keep   time.Duration
	byKey  map[K]V
	order  []ledgerKey[K] // oldest first, from head on
	head   int
	forget func(V) // called for each forgotten value, may be nil
}

type ledgerKey[K comparable] struct {
	key   K
	added time.Time
}

func newLedger[K comparable, V any](limit int, keep time.Duration) *ledger[K, V] {
	return &ledger[K, V]{limit: limit, keep: keep, byKey: map[K]V{}}
}

// add stores v under k, which must be new.
func (l *ledger[K, V]) add(k K, v V) {
	l.prune()
	l.byKey[k] = v
	l.order = append(l.order, ledgerKey[K]{k, time.Now()})
}

func (l *ledger[K, V]) get(k K) (V, bool) {
	l.prune()
	v, ok := l.byKey[k]
	return v, ok
}

func (l *ledger[K, V]) prune() {
	now := time.Now()
	for l.head < len(l.order) && (len(l.byKey) > l.limit || now.Sub(l.order[l.head].added) > l.keep) {
		k := l.order[l.head].key
		if l.forget != nil {
			l.forget(l.byKey[k])
		}
		delete(l.byKey, k)
		l.head++
	}
	if l.head > 1000 && l.head > len(l.order)/2 {
		l.order = append([]ledgerKey[K](nil), l.order[l.head:]...)
		l.head = 0
	}
}

// values lists all, oldest first.
func (l *ledger[K, V]) values() []V {
	l.prune()
	out := make([]V, 0, len(l.byKey))
	for _, k := range l.order[l.head:] {
		out = append(out, l.byKey[k.key])
	}
	return out
}
