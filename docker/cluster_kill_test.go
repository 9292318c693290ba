package docker

import (
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seed  = flag.Uint64("usher.seed", 0, "seed of the random kills; 0: a new one")
	kills = flag.Int64("usher.kills", 200, "how many workers to kill under load")
)

// TestKills: workers are killed at random moments, about one a second, under a steady
// stream of scale-ins and scale-outs, and started again at once.
func TestKills(t *testing.T) {
	t.Parallel()
	f := newFleet(t, setup{lease: 10 * time.Second, usher: "max_jobs: 4\nshutdown_grace: 10s\n", instances: 60, wait: 2 * time.Second})
	from := *seed
	if from == 0 {
		from = rand.Uint64()
	}
	t.Logf("again: -usher.seed=%d", from)

	var left atomic.Int64
	left.Store(*kills)
	over := make(chan struct{}) // closed when the killers have ended
	var killers sync.WaitGroup
	for i, name := range []string{"a", "b", "c"} {
		n := f.worker(name, nil, nil)
		rng := rand.New(rand.NewPCG(from, uint64(i)))
		killers.Go(func() {
			for left.Add(-1) >= 0 && t.Context().Err() == nil {
				rest(t, 20*time.Millisecond+time.Duration(rng.ExpFloat64()*float64(2200*time.Millisecond)))
				for _, args := range [][]string{{"kill", "--signal", "KILL", n.name}, {"start", n.name}} {
					if out, err := command(t, args...).CombinedOutput(); err != nil && t.Context().Err() == nil {
						t.Errorf("docker %s: %v: %s", args, err, out)
						return
					}
				}
			}
		})
	}
	go func() {
		defer close(over)
		killers.Wait()
	}()
	t.Cleanup(func() { <-over }) // the test's context, which ends them, has ended before
	actions := 0
	rng := rand.New(rand.NewPCG(from, 99))
	for going := true; going; {
		// What goes out comes in, so that the fleet keeps its size.
		count := 1 + rng.IntN(2)
		for _, scale := range []func(int){f.scaleIn, f.scaleOut} {
			if f.pending() < 25 { // more would be more than the fleet has, on a slow machine
				scale(count)
				actions++
			}
			select {
			case <-over:
				going = false
			case <-time.After(time.Duration(1+rng.IntN(2000)) * time.Millisecond):
			}
		}
	}
	f.settled(actions, 3*time.Minute)

	h := f.judge("CONTINUE")
	t.Logf("%d kills, %d actions, %d takeovers", *kills, actions, h.takenOver())
	if len(h.actions) != actions {
		t.Errorf("the cloud has %d actions, %d were begun", len(h.actions), actions)
	}
	if *kills >= 100 && h.takenOver() < int(*kills)/10 {
		t.Errorf("only %d takeovers: the kills have hit nothing", h.takenOver())
	}
}

// pending counts the actions that have not ended.
func (f *fleet) pending() (n int) {
	f.t.Helper()
	for _, a := range f.state().Actions {
		if a.EndedBy == "" {
			n++
		}
	}
	return n
}
