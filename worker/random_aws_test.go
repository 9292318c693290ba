package worker_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// The same schedules, judged by the same rules, on AWS. What is drawn otherwise there:
//
//   - There is no ROLLBACK, neither as an answer nor as a default result, so that no step is undone.
//   - No operation lists what waits, so that no message is lost on purpose and no hook is silent.
//   - Each instance has an action of its own, and no activity is named.
//   - A heartbeat lasts as long as the hook's timeout, whatever is asked; so does the wait
//     100 times, and no longer.
//   - Tokens can't be verified: see forgeOnAWS.
func TestRandomSchedulesOnAWS(t *testing.T) {
	t.Parallel()
	runSchedules(t, messages.AWS, fewOnAWS)
}

// boundByAWS changes what was drawn of the cloud as a whole.
func (s *schedule) boundByAWS() {
	s.reconcile = 0
	s.skew = s.skew * 2 / 7 // it refuses what was signed more than five minutes before or after
}

// moveToAWS makes a cloud that was drawn one of AWS. It draws for itself by which way the
// notifications of each hook come.
func (s *schedule) moveToAWS(sc *simulator.Scenario) {
	rng := rand.New(rand.NewPCG(s.seed, 0x617773))
	sc.Provider, sc.Region = string(messages.AWS), awsRegion
	for i := range sc.ScalingGroups {
		g := &sc.ScalingGroups[i]
		for j := range g.Hooks {
			h := &g.Hooks[j]
			h.Delivery = pick(rng, "direct", "direct", "sns", "sns_raw", "eventbridge", "eventbridge", "both")
			if h.DefaultResult == "ROLLBACK" {
				h.DefaultResult = "ABANDON"
			}
		}
		if rng.IntN(4) == 0 {
			g.WarmPool = simulator.WarmPoolConfig{Size: 1 + rng.IntN(2), State: pick(rng, "stopped", "running"), Reuse: rng.IntN(2) == 0}
			s.groups[i].pool = true
		}
		g.Retain = rng.IntN(6) == 0
	}
}

// awsWords are the words of a notification on AWS for those of Alibaba Cloud. Where it has
// none, another is as good to try what a text may do.
var awsWords = map[string]string{
	"lifecycleActionToken": "LifecycleActionToken", "lifecycleHookId": "LifecycleHookName", "lifecycleTransition": "LifecycleTransition",
	"scalingActivityId": "Origin", "instanceIds": "EC2InstanceId", "scalingGroupId": "AutoScalingGroupName", "requestId": "RequestId",
}

// nobody is an instance that no cloud has.
const nobody = "i-0f0f0f0f0f0f0f0f0"

// notificationOfAWS is notification on AWS, which takes the last of several instances.
func notificationOfAWS(change map[string]any) string {
	fields := map[string]any{
		"Destination": "EC2", "LifecycleHookName": hookID, "AccountId": "111122223333", "RequestId": "R",
		"LifecycleTransition": "autoscaling:EC2_INSTANCE_TERMINATING", "AutoScalingGroupName": groupID, "Service": "AWS Auto Scaling",
		"EC2InstanceId": nobody, "LifecycleActionToken": "c8beae68-cb77-4e60-986d-1e8bbf1a6b99",
	}
	for word, v := range change {
		switch own := awsWords[word]; {
		case own == "LifecycleTransition":
			fields[own] = map[any]string{"SCALE_IN": "autoscaling:EC2_INSTANCE_TERMINATING", "SCALE_OUT": "autoscaling:EC2_INSTANCE_LAUNCHING"}[v]
		case own == "EC2InstanceId":
			if fields[own] = v; fmt.Sprintf("%T", v) == "[]string" {
				list := v.([]string)
				fields[own] = list[len(list)-1]
			}
		case word == "scalingActivityId" && !strings.Contains(v.(string), " "): // of a true one
		case own != "":
			fields[own] = v
		}
	}
	body, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return string(body)
}

// forgeOnAWS makes a message that lies about a. What the cloud refutes when it is asked are
// instances: unknown ones, those of other groups, and those that have joined in place of one
// that is to. Of a scale-in no other instance of the group will do, nor of any transition in a
// group with a warm pool: it may wait itself before the message is received, for an action of
// its own.
//
// Nobody can be asked about tokens. One that was made up passes for true as long as its
// instance waits, until the first heartbeat or the answer is refused. What is held against
// the worker is then what the message says, and that the true action comes to no harm.
func (s *schedule) forgeOnAWS(a simulator.ActionState) letter {
	rng := s.rng
	l := letter{kind: forged, token: a.Token, body: s.claim(a, map[string]any{"instanceIds": []string{nobody}})}
	other := pick(rng, s.groups...)
	switch rng.IntN(6) {
	case 0:
	case 1:
		if a.Transition != "scale_out" || s.group(a.Group).pool {
			break
		}
		g, _ := s.cloud.State().Group(a.Group)
		for _, in := range g.Instances {
			if in.State == "InService" {
				l.body = s.claim(a, map[string]any{"instanceIds": []string{in.ID}})
			}
		}
	case 2:
		return s.makeUp(a)
	case 3, 4:
		// Another group's action, in the name of a group that is worked for.
		if other.id == a.Group {
			break
		}
		l.body = s.claim(a, map[string]any{"scalingGroupId": other.id})
		planned := slices.ContainsFunc(other.hooks, func(h drawnHook) bool { return h.in == (a.Transition == "scale_in") })
		if !other.general || !planned {
			l.kind = foreign
		}
	default:
		if g, _ := s.cloud.State().Group(other.id); other.id != a.Group && len(g.Instances) > 0 {
			l.body = s.claim(a, map[string]any{"instanceIds": []string{pick(rng, g.Instances...).ID}})
		}
	}
	return l
}

// makeUp tells of an action like a with a token of its own.
func (s *schedule) makeUp(a simulator.ActionState) letter {
	a.Token = fmt.Sprintf("%08x-0000-4000-a000-%012x", s.rng.Uint32(), s.rng.Uint32())
	a.Activity, a.Started, a.Completed, a.EndedBy, a.HeartbeatsUsed = "", time.Now(), nil, "", 0
	s.mu.Lock()
	defer s.mu.Unlock()
	s.madeUp[a.Token] = a
	return letter{kind: madeUp, token: a.Token, body: s.claim(a, nil)}
}

// heldByOthers are, on AWS, the actions that were answered while another hook goes on holding
// their instance: nobody but who has answered can know that they are over.
func (s *schedule) heldByOthers(actions []simulator.ActionState) []simulator.ActionState {
	held := map[string]bool{}
	for _, a := range actions {
		held[a.Activity] = held[a.Activity] || a.Status == "Pending"
	}
	return slices.DeleteFunc(slices.Clone(actions), func(a simulator.ActionState) bool {
		return s.on != messages.AWS || a.EndedBy != "call" || !held[a.Activity]
	})
}

// told is what the cloud has said of an action, or a message that made it up.
func (s *schedule) told(state simulator.State, token string) (simulator.ActionState, bool) {
	if a, ok := state.Action(token); ok {
		return a, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok := s.madeUp[token]
	return a, ok
}

// madeUpIn says whether an action of a group was made up: its jobs may take the slots of true ones.
func (s *schedule) madeUpIn(group string) bool {
	for _, a := range s.madeUp {
		if a.Group == group {
			return true
		}
	}
	return false
}

// longestWait is how long an action of the hook waits at most.
func (h drawnHook) longestWait() time.Duration { return min(48*time.Hour, 100*h.timeout) }

// waitedLongest says that an action was kept waiting, by heartbeats, as long as its cloud ever
// waits, and that nothing kept anybody from answering it in the end.
func (s *schedule) waitedLongest(a simulator.ActionState) bool {
	lasted := a.Completed.Sub(a.Started)
	return s.on == messages.AWS && lasted > s.hook(a).longestWait()-time.Second && !s.troubled(a.Group, a.Completed.Add(-5*time.Minute), *a.Completed)
}

// cutoff is when the jobs of an action must have ended.
func (s *schedule) cutoff(h drawnHook) time.Duration {
	if s.on == messages.AWS {
		return min(h.deadline, h.longestWait()-time.Minute)
	}
	return h.deadline
}

// nearlySpent says that an action has had so many heartbeats that those of a worker which
// counts too many may be over. AWS counts the time alone.
func (s *schedule) nearlySpent(a simulator.ActionState) bool {
	return s.on != messages.AWS && a.HeartbeatsUsed >= 12
}

// judgeRestart is rule 5 where a heartbeat lets the hook's own timeout begin anew: the last one
// of beats was due, and of use.
func (s *schedule) judgeRestart(a simulator.ActionState, deadline time.Duration, beats []simulator.Event) {
	h, n := s.hook(a), len(beats)
	e, since := beats[n-1], a.Started
	if n > 1 {
		since = beats[n-2].Time
	}
	lasted := min(since.Add(h.timeout).Sub(a.Started), h.longestWait())
	// They fall due when a third is left, and up to a fifth sooner: an account's calls are spread.
	// How long ago the hook fired is known as well as two clocks agree.
	if gap := e.Time.Sub(since); gap < h.timeout*9/20-5*time.Second {
		s.broken("rule 5", a.Token, "heartbeat %d of %s comes %v after the last or the beginning, which is good for %v", n, a.Token, gap, h.timeout)
	}
	if needed := min(deadline+time.Minute, h.longestWait()-6*time.Second); lasted > needed+6*time.Second {
		s.broken("rule 5", a.Token, "heartbeat %d of %s comes although it waits for %v, and needs no more than %v", n, a.Token, lasted, needed)
	}
}

// judgeLapsed is rule 4 where no call tells that a message is somebody else's: its own clock
// tells a worker until when it may act, and at the next try to prolong that the jobs end. What
// was going on for it has ended now. s.mu and l.wmu are held.
func (l *life) judgeLapsed(token string, slow time.Duration, what string) {
	if l.s.on != messages.AWS {
		return
	}
	noticed := max(2*time.Second, l.visibility/10) + slow + time.Second
	for _, id := range l.received[token] {
		if until := l.leases[id]; time.Since(until) > noticed && l.holds(id) {
			l.s.brokenLocked("rule 4", token, "%s goes on with %s of %s for %v after its hold on message %s has lapsed", l.name, what, token, time.Since(until), id)
		}
	}
}

// guessed says that the worker can't know better than it has recorded. AWS refuses a second
// answer as it refuses one to what is over; after an attempt whose answer was lost that is
// taken for the success of that attempt.
func (s *schedule) guessed(a simulator.ActionState, rec audit.Record) bool {
	return s.on == messages.AWS && s.troubled(string(rec.Group), rec.Time.Add(-time.Minute), rec.Time)
}
