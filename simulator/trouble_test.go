package simulator

import (
	"net/url"
	"strings"
	"testing"
	"time"
)

// A message that was received as often as the policy says moves to the other queue when
// it would become visible again, not while it is hidden, and keeps its id and its age.
func TestDlqPolicy(t *testing.T) {
	t.Parallel()
	s := oneGroup(1)
	s.Queues[0].VisibilityTimeout = 10 * time.Second
	s.Queues[0].DlqPolicy = DlqPolicy{DeadLetterTargetQueue: "dead", MaxReceiveCount: 3}
	s.Queues = append(s.Queues, QueueConfig{Name: "dead", Retention: time.Hour})
	bubble(t, Options{Scenario: s}, func(w *world) {
		w.send("q", "poison")
		for range 3 {
			w.receiveOne("q", "0")
			time.Sleep(11 * time.Second)
		}
		w.refused(404, "MessageNotExist", "GET", "/queues/q/messages?waitseconds=0", "")
		w.send("dead", "younger")
		if n := len(w.types(MessageDeadLettered)); n != 1 {
			t.Errorf("%d messages moved", n)
		}
		m := w.receiveOne("dead", "0")
		if m.MessageBody != "poison" || m.DequeueCount != 4 {
			t.Errorf("the dead-letter queue gives %+v", m)
		}
		// It was sent half a minute before the other.
		time.Sleep(time.Hour - 30*time.Second)
		if q, _ := w.State().Queue("dead"); q.Active+q.Inactive != 1 {
			t.Errorf("after its retention the dead-letter queue holds %+v", q)
		}

		// Held beyond its times, extended again and again, it is received once.
		w.send("q", "held")
		handle := w.receiveOne("q", "0").ReceiptHandle
		for range 20 {
			time.Sleep(5 * time.Second)
			handle = w.extend("q", handle, 10)
		}
		w.must(204, "DELETE", "/queues/q/messages?ReceiptHandle="+url.QueryEscape(handle), "")
		if n := len(w.types(MessageDeadLettered)); n != 1 {
			t.Errorf("%d messages moved, want the first alone", n)
		}
	})
}

func TestBadDlqPolicy(t *testing.T) {
	t.Parallel()
	for want, p := range map[string]DlqPolicy{
		"can't be its own":   {"q", 3},
		`no queue "nowhere"`: {"nowhere", 3},
		"1 to 1000, got 0":   {DeadLetterTargetQueue: "dead"},
	} {
		s := oneGroup(1)
		s.Queues[0].DlqPolicy = p
		s.Queues = append(s.Queues, QueueConfig{Name: "dead"})
		_, err := New(Options{AccessKeyID: "id", AccessKeySecret: "secret", Scenario: s, NoServers: true})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", p, err, want)
		}
	}
}

// A quota lets a second's calls through at once, then its rate, and strikes the rest.
func TestThrottleByQuota(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneGroup(1)}, func(w *world) {
		w.fault(Fault{Service: "mns", Kind: FaultThrottle, PerSecond: 5})
		send := func(n int) (passed int) {
			for range n {
				if r, err := w.mns("GET", "/queues/q", ""); err == nil && r.status == 200 {
					passed++
				}
			}
			return passed
		}
		if n := send(20); n != 5 {
			t.Errorf("%d of 20 calls passed at once, want 5", n)
		}
		time.Sleep(400 * time.Millisecond)
		if n := send(20); n != 2 {
			t.Errorf("%d of 20 calls passed 400 ms later, want 2", n)
		}
		time.Sleep(time.Hour)
		if n := send(20); n != 5 {
			t.Errorf("%d of 20 calls passed an hour later, want 5", n)
		}
		if f := w.State().Faults[0]; f.Struck != 48 {
			t.Errorf("%d calls struck, want 48", f.Struck)
		}
		for _, f := range []Fault{
			{Service: "mns", Kind: FaultDrop, PerSecond: 5}, {Service: "mns", Kind: FaultThrottle, PerSecond: 5, Count: 1},
			{Service: "mns", Kind: FaultThrottle, PerSecond: -1}, {Service: "mns", Kind: FaultThrottle, Struck: 1},
			{Service: "mns", Kind: FaultPartial}, {Service: "ess", Action: "CompleteLifecycleAction", Kind: FaultEmpty},
		} {
			if _, err := w.InjectFault(f); err == nil {
				t.Errorf("accepted %+v", f)
			}
		}
	})
}

// Listings with holes, and empty ones.
func TestPartialListings(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: oneGroup(4, hookIn("ash-1", ""))}, func(w *world) {
		count := func(version string) (listed int, total any) {
			o := w.call(version, "DescribeScalingInstances", "ScalingGroupId", "asg-1")
			list, ok := o["ScalingInstances"].([]any)
			if !ok {
				list = o["ScalingInstances"].(map[string]any)["ScalingInstance"].([]any)
			}
			return len(list), o["TotalCount"]
		}
		for _, version := range []string{essOld, essNew} {
			for kind, want := range map[FaultKind][2]int{FaultPartial: {2, 4}, FaultEmpty: {0, 0}, FaultLatency: {4, 4}} {
				f := Fault{Service: "ess", Kind: kind}
				if kind == FaultLatency {
					f.Latency = time.Second
				}
				w.fault(f)
				if n, total := count(version); n != want[0] || total != float64(want[1]) {
					t.Errorf("%s %s: %d listed of %v, want %v", version, kind, n, total, want)
				}
				w.ClearFaults()
			}
		}
		// Other calls have their effect.
		w.fault(Fault{Service: "ess", Kind: FaultEmpty})
		act, err := w.ScaleIn("asg-1", 1)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		w.complete("ash-1", w.State().Actions[0].Token, "CONTINUE")
		if a := w.State().Actions[0]; a.Status != "Completed" || a.Activity != act.ID {
			t.Errorf("action %+v", a)
		}
	})
}

// A queue of either cloud hides what is sent for as long as its owner says.
func TestDelayMessages(t *testing.T) {
	t.Parallel()
	for _, provider := range []string{providerAlibaba, providerAWS} {
		s := Scenario{Provider: provider, Queues: []QueueConfig{{Name: "q"}}}
		bubble(t, Options{Scenario: s}, func(w *world) {
			sent := func(delayed, active int) {
				t.Helper()
				if q, _ := w.State().Queue("q"); q.Delayed != delayed || q.Active != active {
					t.Errorf("%s: the queue holds %+v, want %d delayed and %d active", provider, q, delayed, active)
				}
			}
			for name, d := range map[string]time.Duration{"q": time.Hour, "none": time.Second} {
				if err := w.DelayMessages(name, d); err == nil {
					t.Errorf("%s: %v for queue %s were taken", provider, d, name)
				}
			}
			if err := w.DelayMessages("q", 5*time.Second); err != nil {
				t.Fatal(err)
			}
			if _, err := w.SendMessage("q", "late"); err != nil {
				t.Fatal(err)
			}
			sent(1, 0)
			time.Sleep(6 * time.Second)
			sent(0, 1)
		})
	}
}
