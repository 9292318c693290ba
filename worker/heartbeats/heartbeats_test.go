package heartbeats

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// ess is the budget of ESS with the default floor.
func ess() Budget {
	return Budget{
		Calls:        20,
		MaxWait:      6 * time.Hour,
		MinExtension: 30 * time.Second,
		MaxExtension: 21600 * time.Second,
		Floor:        2 * time.Minute,
	}
}

func TestNext(t *testing.T) {
	t.Parallel()
	const s, m, h = time.Second, time.Minute, time.Hour
	tests := []struct {
		name              string
		budget            Budget
		elapsed, deadline time.Duration
		used              int
		want              time.Duration
		ok                bool
	}{
		{"an equal share of what remains", ess(), 20 * s, 6 * h, 0, 1270 * s, true},
		{"the share grows as calls are spent", ess(), 20 * s, 6 * h, 7, 2158 * s, true},
		{"the reserve pays for all that remains", ess(), 1 * h, 6 * h, 17, 5*h - 3*s, true},
		{"the last call too", ess(), 1 * h, 6 * h, 19, 5*h - 3*s, true},
		{"no call left", ess(), 1 * h, 6 * h, 20, 0, false},
		{"the floor", ess(), 20 * s, 10 * m, 0, 2 * m, true},
		{"a rest too short to ask for is taken along", ess(), 20 * s, 1*m + 45*s, 0, 145 * s, true},
		{"at the deadline", ess(), 10 * m, 10 * m, 0, 0, false},
		{"no room for the shortest extension", ess(), 6*h - 29*s, 6 * h, 0, 0, false},
		{"never past the cloud's longest wait", ess(), 6*h - 50*s, 6 * h, 0, 48 * s, true},
		{"whole seconds up", ess(), 20*s + 1, 6 * h, 18, 6*h - 23*s, true},
		{"fixed", Budget{Calls: 20, MaxWait: 6 * h, MinExtension: 30 * s, MaxExtension: 6 * h, Fixed: 10 * m}, 20 * s, 1 * h, 0, 10 * m, true},
		{"fixed where the calls would not last", Budget{Calls: 20, MaxWait: 6 * h, MinExtension: 30 * s, MaxExtension: 6 * h, Fixed: 10 * m}, 1 * h, 3 * h, 13, 1815 * s, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, ok := tt.budget.Next(tt.elapsed, tt.deadline, tt.used)
			if got != tt.want || ok != tt.ok {
				t.Errorf("Next(%v, %v, %d) = %v, %v, want %v, %v", tt.elapsed, tt.deadline, tt.used, got, ok, tt.want, tt.ok)
			}
		})
	}
}

// aws is the budget of an action of AWS whose hook has the timeout.
func aws(hookTimeout time.Duration) Budget {
	return Budget{Calls: 100, MaxWait: min(48*time.Hour, 100*hookTimeout), MinExtension: hookTimeout, MaxExtension: hookTimeout, Floor: 2 * time.Minute}
}

// TestPlanOfRestarts: where each heartbeat begins the hook's timeout anew, the beats go on
// until the wait can't last longer, however many that takes.
func TestPlanOfRestarts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		hookTimeout := time.Duration(rapid.IntRange(30, 7200).Draw(t, "hook timeout")) * time.Second
		b := aws(hookTimeout)
		deadline := seconds(t, 1, int((b.MaxWait+time.Hour)/time.Second), "deadline")
		until := hookTimeout
		for i, beat := range b.Plan(hookTimeout, deadline) {
			if beat.At >= until || beat.Extension != hookTimeout {
				t.Fatalf("beat %d is %+v, the wait lapses at %v", i, beat, until)
			}
			until = min(beat.At+hookTimeout, b.MaxWait)
		}
		if cutoff := b.Cutoff(deadline); until < cutoff || cutoff > b.MaxWait-AnswerMargin {
			t.Fatalf("the wait lapses at %v of %v, jobs end at %v", until, b.MaxWait, cutoff)
		}
	})
}

func TestRestartsKnowNoNumber(t *testing.T) {
	t.Parallel()
	b := aws(30 * time.Second)
	if d, ok := b.Next(40*time.Minute, time.Hour, 1000); !ok || d != 30*time.Second {
		t.Errorf("after 1000 calls: %v, %v", d, ok)
	}
	if d, ok := b.Next(b.MaxWait-time.Second, time.Hour, 0); ok {
		t.Errorf("at the end of the longest wait: %v", d)
	}
	if got := b.Assumed(30*time.Second, time.Hour, 40*time.Minute, 5, 7); got != 7 {
		t.Errorf("a worker that took over assumes %d calls", got)
	}
}

func TestBeatAtLeavesAThird(t *testing.T) {
	t.Parallel()
	if got := BeatAt(time.Minute, 30*time.Second); got != 80*time.Second {
		t.Errorf("BeatAt(1m, 30s) = %v, want 1m20s", got)
	}
}

func TestPlanOfALongDrainStaysWithinTheReserve(t *testing.T) {
	t.Parallel()
	plan := ess().Plan(30*time.Second, 5*time.Hour+50*time.Minute)
	if len(plan) == 0 || len(plan) > 20-Reserve {
		t.Errorf("%d heartbeats, want 1 to %d: %v", len(plan), 20-Reserve, plan)
	}
	if n := len(ess().Plan(10*time.Minute, 8*time.Minute)); n != 0 {
		t.Errorf("a deadline within the hook's own timeout costs %d heartbeats, want none", n)
	}
}

func TestCutoffLeavesTimeToAnswer(t *testing.T) {
	t.Parallel()
	if got := ess().Cutoff(30 * time.Minute); got != 30*time.Minute {
		t.Errorf("Cutoff(30m) = %v, want the deadline itself", got)
	}
	if got, want := ess().Cutoff(6*time.Hour), 6*time.Hour-AnswerMargin; got != want {
		t.Errorf("Cutoff(6h) = %v, want %v", got, want)
	}
}

func drawBudget(t *rapid.T, deadline time.Duration) Budget {
	b := ess()
	b.Floor = time.Duration(rapid.IntRange(30, 21600).Draw(t, "floor")) * time.Second
	if rapid.Bool().Draw(t, "fixed") {
		b.Floor = 0
		// The shortest that validation lets through: 20 calls, each worth two thirds.
		smallest := max(30, int((deadline*3/40+time.Second-1)/time.Second))
		b.Fixed = time.Duration(rapid.IntRange(smallest, 21600).Draw(t, "extension")) * time.Second
	}
	return b
}

func seconds(t *rapid.T, low, high int, name string) time.Duration {
	d := time.Duration(rapid.IntRange(low, high).Draw(t, name)) * time.Second
	return d + time.Duration(rapid.IntRange(0, 1).Draw(t, name+" odd"))*333*time.Millisecond
}

// TestPlanLasts: for any hook and deadline the plan fits the budget, and the wait
// never lapses before jobs must have ended.
func TestPlanLasts(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		hookTimeout := time.Duration(rapid.IntRange(30, 21600).Draw(t, "hook timeout")) * time.Second
		deadline := min(seconds(t, 1, 21600, "deadline"), 6*time.Hour)
		b := drawBudget(t, deadline)
		plan := b.Plan(hookTimeout, deadline)
		if len(plan) > b.Calls {
			t.Fatalf("%d heartbeats, the cloud takes %d", len(plan), b.Calls)
		}
		until := hookTimeout
		for i, beat := range plan {
			if beat.At >= until {
				t.Fatalf("beat %d at %v comes after the wait lapsed at %v", i, beat.At, until)
			}
			if beat.Extension < b.MinExtension || beat.Extension > b.MaxExtension || beat.Extension%time.Second != 0 {
				t.Fatalf("beat %d asks for %v", i, beat.Extension)
			}
			if until = beat.At + beat.Extension; until > b.MaxWait {
				t.Fatalf("beat %d waits until %v, past the longest wait", i, until)
			}
			if used := b.Used(hookTimeout, deadline, beat.At); used != i+1 {
				t.Fatalf("Used at beat %d = %d", i, used)
			}
		}
		if until < b.Cutoff(deadline) {
			t.Fatalf("the wait lapses at %v, jobs end at %v", until, b.Cutoff(deadline))
		}
	})
}

// story replays one action under workers that take over from each other, each of
// which beats when First and Assumed say. It
// returns the calls that were really spent, when the wait would lapse, and whether
// it ever did while jobs could still run.
func story(b Budget, hookTimeout, deadline time.Duration, takeovers []time.Duration) (spent int, until time.Duration, lapsed bool) {
	until = hookTimeout
	due, own, number := BeatAt(0, hookTimeout), 0, 0
	beat := func(now time.Duration) {
		extension, ok := b.Next(now, deadline, b.Assumed(hookTimeout, deadline, now, number, own))
		if !ok {
			return
		}
		spent++
		own++
		until = max(until, now+extension)
		due = BeatAt(now, extension)
	}
	for i, at := range append(slices.Sorted(slices.Values(takeovers)), b.Cutoff(deadline)) {
		for due < at && b.Needed(until, deadline) {
			now := due
			if beat(now); due == now {
				break
			}
		}
		if until < at {
			return spent, until, true
		}
		if i < len(takeovers) {
			number, own, due = i+1, 0, First(hookTimeout, at)
			if due == at {
				beat(at)
			}
		}
	}
	return spent, until, false
}

// TestTakeoversKeepTheBudget: five takeovers at random moments of drains up to six
// hours, and the wait still lasts on 20 calls.
func TestTakeoversKeepTheBudget(t *testing.T) {
	t.Parallel()
	rapid.Check(t, takeoversKeepTheBudget)
}

// FuzzTakeovers looks for stories that the random ones have missed.
func FuzzTakeovers(f *testing.F) {
	f.Add([]byte{0})
	f.Add([]byte("\x01\x02\x03\x04\x05\x06\x07\x08\xff\xfe\xfd\xfc\x80\x40\x20\x10\x01\x02\x03\x04\x05\x06\x07\x08"))
	f.Fuzz(rapid.MakeFuzz(takeoversKeepTheBudget))
}

func takeoversKeepTheBudget(t *rapid.T) {
	hookTimeout := time.Duration(rapid.IntRange(30, 21600).Draw(t, "hook timeout")) * time.Second
	deadline := 6 * time.Hour
	if rapid.Bool().Draw(t, "short") {
		deadline = min(seconds(t, 60, 21600, "deadline"), deadline)
	}
	b := drawBudget(t, deadline)
	var takeovers []time.Duration
	for range rapid.IntRange(0, 5).Draw(t, "takeovers") {
		takeovers = append(takeovers, min(seconds(t, 0, int(deadline/time.Second), "takeover"), b.Cutoff(deadline)))
	}
	spent, until, lapsed := story(b, hookTimeout, deadline, takeovers)
	if spent > b.Calls {
		t.Fatalf("%d heartbeats, the cloud takes %d", spent, b.Calls)
	}
	if lapsed {
		t.Fatalf("the wait lapsed at %v, takeovers at %v", until, takeovers)
	}
}

// TestTakeoversInARow: the stories that cost most calls. Five takeovers right after
// the first beat came due all beat, and so do five close to the end.
func TestTakeoversInARow(t *testing.T) {
	t.Parallel()
	const hookTimeout = 30 * time.Second
	for deadline := 10 * time.Minute; deadline <= 6*time.Hour; deadline += 61 * time.Second {
		for _, floor := range []time.Duration{30 * time.Second, 2 * time.Minute, 4 * time.Minute} {
			b := ess()
			b.Floor = floor
			for _, first := range []time.Duration{BeatAt(0, hookTimeout), deadline / 2, deadline * 9 / 10} {
				takeovers := []time.Duration{first, first + time.Second, first + 2*time.Second, first + 3*time.Second, first + 4*time.Second}
				if spent, until, lapsed := story(b, hookTimeout, deadline, takeovers); spent > b.Calls || lapsed {
					t.Errorf("deadline %v, floor %v, takeovers from %v: %d heartbeats, the wait lasts until %v", deadline, floor, first, spent, until)
				}
			}
		}
	}
}
