package worker

import (
	"slices"
	"sync"
)

// pool bounds the jobs that run at once. What waits for a slot is a ticket in its
// group's line, not a goroutine. Groups take turns, a group may not take the last slots
// that groups without a running job would need, and the last quarter of all slots is for
// groups that have less than an equal share of it: one whose jobs all hang neither stops
// another's nor leaves it a single slot.
type pool struct {
	running sync.WaitGroup

	mu    sync.Mutex // guards what follows, and all shares and tickets
	max   int
	taken int
	lines []*share
	turn  int // index into lines of the group to be asked next
}

// share is one group's part of the pool.
type share struct {
	pool  *pool
	key   groupKey
	users int // the configurations of the group that are in use
	max   int // 0: no bound of its own
	taken int
	line  []*ticket
}

// ticket stands for work that waits for a slot.
type ticket struct {
	share *share
	start func(release func()) // nil once started or withdrawn
}

func newPool(size int) *pool { return &pool{max: size} }

// share gives the group's part, bounded by size from now on. Each call needs one of leave.
func (p *pool) share(key groupKey, size int) *share {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.lines, func(s *share) bool { return s.key == key })
	if i < 0 {
		i = len(p.lines)
		p.lines = append(p.lines, &share{pool: p, key: key})
	}
	s := p.lines[i]
	s.users++
	s.max = size
	p.admit()
	return s
}

// leave gives the share up; with the last user's, its part is free for other groups.
func (s *share) leave() {
	p := s.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if s.users--; s.users > 0 {
		return
	}
	i := slices.Index(p.lines, s)
	p.lines = slices.Delete(p.lines, i, i+1)
	if p.turn > i {
		p.turn--
	}
	if p.turn >= len(p.lines) {
		p.turn = 0
	}
	p.admit()
}

// resize changes how many jobs may run. Those that run go on.
func (p *pool) resize(size int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.max = size
	p.admit()
}

// submit lets start run, in a goroutine of its own, when a slot is free. start must
// call release once it no longer needs the slot; further calls of it do nothing.
func (s *share) submit(start func(release func())) *ticket {
	t := &ticket{share: s, start: start}
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	s.line = append(s.line, t)
	s.pool.admit()
	return t
}

// withdraw takes t out of the line. False: it has started, or was withdrawn before.
func (t *ticket) withdraw() bool {
	p := t.share.pool
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.start == nil {
		return false
	}
	t.start = nil
	t.share.line = slices.DeleteFunc(t.share.line, func(o *ticket) bool { return o == t })
	return true
}

// run starts f without a slot, in a goroutine that wait waits for.
func (p *pool) run(f func()) { p.running.Go(f) }

// wait returns when all that was started has ended. Nothing may be submitted any more.
func (p *pool) wait() { p.running.Wait() }

// admit starts what there are slots for, one of each group in turn. p.mu is held.
func (p *pool) admit() {
	for refused := 0; refused < len(p.lines); {
		s := p.lines[p.turn]
		p.turn = (p.turn + 1) % len(p.lines)
		if !p.mayStart(s) {
			refused++
			continue
		}
		refused = 0
		t := s.line[0]
		s.line[0], s.line = nil, s.line[1:]
		start := t.start
		t.start = nil
		p.taken++
		s.taken++
		release := sync.OnceFunc(func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.taken--
			s.taken--
			p.admit()
		})
		p.running.Go(func() {
			defer release()
			start(release)
		})
	}
}

func (p *pool) mayStart(s *share) bool {
	if len(s.line) == 0 || p.taken >= p.max || s.max > 0 && s.taken >= s.max {
		return false
	}
	if s.taken == 0 {
		return true
	}
	if quarter := p.max / 4; len(p.lines) > 1 && p.taken >= p.max-quarter && s.taken >= max(1, quarter/len(p.lines)) {
		return false
	}
	reserved := 0
	for _, other := range p.lines {
		if other != s && other.taken == 0 {
			reserved++
		}
	}
	return p.taken+reserved < p.max
}
