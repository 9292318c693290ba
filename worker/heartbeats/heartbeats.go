// Package heartbeats is the arithmetic of prolonging a lifecycle hook's wait: when
// to send the next heartbeat and how much to ask for, so that the few calls a cloud
// allows last until the deadline, and so that a cluster that died does not hold an
// instance for long. It is pure: no clock, no I/O; all times count from when the
// hook fired.
package heartbeats

import "time"

// Reserve is how many calls the division of the remaining time leaves out: they pay
// for takeovers, each of which beats at once, and for beats whose answer was lost.
// The last beats may use them.
const Reserve = 3

// AnswerMargin is how long the wait is planned to outlast the deadline, so that an
// answer given at the deadline still finds the action waiting.
const AnswerMargin = time.Minute

// ReturnMargin is how much sooner than the longest time that a queue hides one receive of a
// message it is given back: that time begins before the answer is here. No renewal may lead
// into it.
const ReturnMargin = 30 * time.Second

// AgeError is how much older an action may be than its worker thinks: the cloud tells its
// time in whole seconds, and the answer that holds it was on its way.
const AgeError = 2 * time.Second

// Budget is what the cloud and the operator allow one lifecycle action.
type Budget struct {
	// Calls is how many heartbeats the cloud takes for one action.
	Calls int
	// MaxWait is the longest an action may wait in all.
	MaxWait time.Duration
	// MinExtension and MaxExtension bound one heartbeat, in whole seconds. Where they are one,
	// see Restarts.
	MinExtension, MaxExtension time.Duration
	// Floor is the shortest extension worth a call. A beat falls due when a third of
	// the wait is left, so a worker that takes over within a third of Floor finds the
	// action still waiting.
	Floor time.Duration
	// Fixed is the operator's own length; 0: as long as needed. A longer extension is
	// asked for only where the calls left would not last.
	Fixed time.Duration
}

// Beat is one heartbeat of a plan.
type Beat struct {
	// At is when it is sent.
	At time.Duration
	// Extension is how long the cloud is asked to wait from then.
	Extension time.Duration
}

// Restarts says that a heartbeat begins the hook's own timeout anew, whatever is asked for
// (RecordLifecycleActionHeartbeat, 2011-01-01). Such a cloud bounds how long an action waits
// in all, and not the calls; the last beat lasts until that bound and no longer.
func (b Budget) Restarts() bool { return b.MinExtension == b.MaxExtension }

// Next is the length of a heartbeat sent when elapsed has passed and used calls are
// spent. Not ok: the deadline is over, no call is left, or the cloud would not wait
// long enough for another. That is no reason to stop working: the earlier beats have
// made the wait last as long as it can.
func (b Budget) Next(elapsed, deadline time.Duration, used int) (extension time.Duration, ok bool) {
	if b.Restarts() {
		return b.MinExtension, elapsed < min(deadline, b.MaxWait-AgeError)
	}
	left := b.Calls - used
	room := min(b.MaxExtension, (b.MaxWait - AgeError - elapsed).Truncate(time.Second))
	if elapsed >= deadline || left <= 0 || room < b.MinExtension {
		return 0, false
	}
	remaining := b.target(deadline) - elapsed
	share := remaining / time.Duration(max(1, left-Reserve))
	want := max(b.MinExtension, b.Floor, b.Fixed, share)
	if remaining-want < b.MinExtension {
		// The rest would be too short to be asked for later.
		want = max(want, remaining)
	}
	return min(ceilSeconds(want), room), true
}

// Lasts is until when a wait lasts that was granted until then.
func (b Budget) Lasts(until time.Duration) time.Duration { return min(until, b.MaxWait-AgeError) }

// BeatAt is when the wait that was granted at sent should be prolonged: when a third
// of it is left.
func BeatAt(sent, granted time.Duration) time.Duration {
	return sent + granted - granted/3
}

// First is when a worker that received the action at elapsed sends its first beat.
// While the hook's own timeout is young nobody has beaten, and nobody needs to, so
// that takeovers in that time are free. Later the worker cannot know how long its
// predecessor made the wait last, and beats at once.
func First(hookTimeout, elapsed time.Duration) time.Duration {
	return max(elapsed, BeatAt(0, hookTimeout))
}

// Needed says whether a wait that ends at until must be prolonged for the deadline's sake.
func (b Budget) Needed(until, deadline time.Duration) bool {
	return until < b.target(deadline)
}

// Cutoff is when jobs must end so that an answer is given while the action still
// waits: the deadline, or the margin before the cloud's longest wait.
func (b Budget) Cutoff(deadline time.Duration) time.Duration {
	return min(deadline, b.MaxWait-AnswerMargin)
}

// Plan lists the heartbeats of a job that lasts until the deadline, without a takeover.
func (b Budget) Plan(hookTimeout, deadline time.Duration) []Beat {
	var plan []Beat
	at, until := BeatAt(0, hookTimeout), hookTimeout
	for b.Needed(until, deadline) {
		extension, ok := b.Next(at, deadline, len(plan))
		if !ok {
			break
		}
		plan = append(plan, Beat{At: at, Extension: extension})
		at, until = BeatAt(at, extension), b.Lasts(at+extension)
	}
	return plan
}

// Used is how many calls a worker that kept to the plan would have spent by now.
func (b Budget) Used(hookTimeout, deadline, elapsed time.Duration) int {
	used := 0
	for _, beat := range b.Plan(hookTimeout, deadline) {
		if beat.At <= elapsed {
			used++
		}
	}
	return used
}

// Assumed is the number of spent calls that a worker gives to Next. The first worker
// of an action has counted them all itself: own. A later one, which beats at once
// when it takes over, cannot know: it assumes the plan's count and one more for each
// takeover up to its own, and goes on to do so with each beat. Takeovers stretch the
// beats, so that this counts too many rather than too few; every worker of the
// action counts alike, so that whoever assumes that the calls run out has a
// predecessor that made the wait last.
func (b Budget) Assumed(hookTimeout, deadline, elapsed time.Duration, takeovers, own int) int {
	if takeovers == 0 || b.Restarts() {
		return own
	}
	return max(own, b.Used(hookTimeout, deadline, elapsed)+takeovers)
}

// target is until when the wait should last: past the deadline by the margin. The
// cloud counts whole seconds, so the last ones of its longest wait are out of reach.
func (b Budget) target(deadline time.Duration) time.Duration {
	return min(deadline+AnswerMargin, b.MaxWait-AgeError-time.Second)
}

func ceilSeconds(d time.Duration) time.Duration {
	if whole := d.Truncate(time.Second); whole < d {
		return whole + time.Second
	}
	return d
}
