package app

import "sync"

// shared are clients that several parts use at a time. Each is closed with the last part
// that uses it.
type shared[K comparable, V interface{ Close() }] struct {
	mu  sync.Mutex
	all map[K]*share[V] // guarded by mu
}

type share[V interface{ Close() }] struct {
	client V
	users  int // guarded by shared.mu
}

// use gives the client for key, made if nobody uses it yet, and what ends this use.
func (s *shared[K, V]) use(key K, build func() (V, error)) (client V, end closeFunc, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	one := s.all[key]
	if one == nil {
		made, err := build()
		if err != nil {
			return client, nil, err
		}
		one = &share[V]{client: made}
		if s.all == nil {
			s.all = map[K]*share[V]{}
		}
		s.all[key] = one
	}
	one.users++
	return one.client, sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(s.all, key)
			one.client.Close()
		}
	}), nil
}

// closeFunc is a function as a client that can be closed.
type closeFunc func()

// Close calls the function.
func (f closeFunc) Close() { f() }
