package aws

import (
	"context"
	"net/netip"
	"sync"

	"example.org/usher/messages"
	"example.org/usher/providers/internal/gather"
)

// place is where an instance is. It does not change while the instance runs, and EC2 tells
// no address of one that is terminated.
type place struct {
	zone      string
	addresses []netip.Addr // private ones, the first of the primary interface first
}

// placeBook remembers places, and asks EC2 for those that it does not know.
type placeBook struct {
	ec2  *ec2
	look gather.Gatherer[messages.InstanceID, place]

	mu     sync.Mutex
	places map[messages.InstanceID]place      // guarded by mu
	owners map[netip.Addr]messages.InstanceID // guarded by mu
}

func newPlaceBook(o Options) (*placeBook, error) {
	e, err := newEC2(o)
	if err != nil {
		return nil, err
	}
	p := &placeBook{ec2: e, places: map[messages.InstanceID]place{}, owners: map[netip.Addr]messages.InstanceID{}}
	p.look.Moment, p.look.Run = gatherFor, p.ask
	return p, nil
}

func (p *placeBook) close() { p.ec2.close() }

// of gives the places of instances. One that EC2 does not list, or no address of, is left out.
func (p *placeBook) of(ctx context.Context, ids []messages.InstanceID) (map[messages.InstanceID]place, error) {
	out := map[messages.InstanceID]place{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var failed error
	for _, id := range ids {
		if known, ok := p.known(id); ok {
			mu.Lock()
			out[id] = known
			mu.Unlock()
			continue
		}
		wg.Go(func() { // the gatherer asks for all of them at once
			found, err := p.look.Do(ctx, id)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
			} else if found.zone != "" {
				out[id] = found
			}
		})
	}
	wg.Wait()
	return out, failed
}

func (p *placeBook) known(id messages.InstanceID) (place, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	known, ok := p.places[id]
	return known, ok
}

// at says whose a private address is, if that was looked up.
func (p *placeBook) at(addr netip.Addr) (messages.InstanceID, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, ok := p.owners[addr]
	return id, ok
}

func (p *placeBook) note(id messages.InstanceID, at place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.places) >= gather.CacheMost {
		clear(p.places)
		clear(p.owners)
	}
	p.places[id] = at
	for _, addr := range at.addresses {
		p.owners[addr] = id // an address that was another's before is this one's now
	}
}

// ask looks instances up in EC2.
func (p *placeBook) ask(ctx context.Context, ids []messages.InstanceID) map[messages.InstanceID]gather.Outcome[place] {
	out := map[messages.InstanceID]gather.Outcome[place]{}
	for len(ids) > 0 {
		n := min(ec2MaxIDs, len(ids))
		found, err := p.ec2.machines(ctx, ids[:n])
		if err == nil && len(found) == 0 {
			found, err = p.ec2.machines(ctx, ids[:n]) // one empty answer is not believed
		}
		for _, id := range ids[:n] {
			answer := gather.Outcome[place]{Err: err}
			if m, there := found[id]; there && err == nil {
				answer.Value = place{m.zone, m.addresses}
				if len(m.addresses) > 0 {
					p.note(id, answer.Value)
				}
			}
			out[id] = answer
		}
		ids = ids[n:]
	}
	return out
}
