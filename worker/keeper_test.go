package worker

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func startKeeper(t *testing.T) *keeper {
	t.Helper()
	k := newKeeper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan struct{})
	go func() {
		defer close(done)
		k.run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return k
}

func TestKeeperDoesWhatIsDueWhenItIsDue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := startKeeper(t)
		begin := time.Now()
		var mu sync.Mutex
		var late time.Duration
		calls := 0
		duty := func(at time.Time, again int, every time.Duration) *duty {
			return k.add(at, func(context.Context) time.Time {
				mu.Lock()
				defer mu.Unlock()
				calls++
				late = max(late, time.Since(at))
				if again--; again < 0 {
					return time.Time{}
				}
				at = at.Add(every)
				return at
			})
		}
		// Added in the wrong order, some in the past, and all at once.
		for i := range 1000 {
			duty(begin.Add(time.Duration(1000-i)*time.Second), 3, time.Duration(i)*time.Second)
		}
		duty(begin, 0, 0)
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if calls != 4001 || late != 0 {
			t.Errorf("%d calls, the latest %v late; want 4001 in time", calls, late)
		}
	})
}

func TestKeeperStopsADuty(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := startKeeper(t)
		var calls atomic.Int32
		every := func(context.Context) time.Time { calls.Add(1); return time.Now().Add(time.Minute) }
		waiting := k.add(time.Now().Add(time.Minute), every)
		waiting.stop()
		waiting.stop() // twice is once
		// One that is stopped while it runs is not done again.
		var running *duty
		began := make(chan struct{})
		running = k.add(time.Now(), func(context.Context) time.Time {
			close(began)
			time.Sleep(time.Second)
			return time.Now().Add(time.Minute)
		})
		<-began
		running.stop()
		time.Sleep(time.Hour)
		if n := calls.Load(); n != 0 {
			t.Errorf("a stopped duty was done %d times", n)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		if len(k.due) != 0 {
			t.Errorf("%d duties left", len(k.due))
		}
	})
}

// Hanging calls take their senders and no more; when the keeper ends, they end.
func TestKeeperWithHangingCalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := startKeeper(t)
		var under, most atomic.Int32
		for range 3 * keeperSenders {
			k.add(time.Now(), func(ctx context.Context) time.Time {
				n := under.Add(1)
				for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
				}
				<-ctx.Done()
				under.Add(-1)
				return time.Time{}
			})
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if n := most.Load(); n != keeperSenders {
			t.Errorf("%d calls under way, want %d", n, keeperSenders)
		}
	})
}
