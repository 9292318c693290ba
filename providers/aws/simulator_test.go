package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"go.uber.org/goleak"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testID     = "AKIAEXAMPLE000000001"
	testSecret = "secret/of+the=tests"
	simGroup   = "web-asg"
	simQueue   = "drain-q"
	simHook    = "usher-drain"
	simRegion  = "eu-west-1"
	cloudURL   = "http://cloud.test"
)

// cloud is the simulator and the clients, connected in memory.
type cloud struct {
	sim     *simulator.Simulator
	options Options
	queue   *Queue
	scaling *Scaling
}

// inCloud runs a test in a bubble with a cloud in it. Its hooks wait for 5 minutes.
func inCloud(t *testing.T, change func(*simulator.Options), test func(t *testing.T, c *cloud)) {
	t.Helper()
	t.Parallel()
	inBubble(t, change, test)
}

func inBubble(t *testing.T, change func(*simulator.Options), test func(t *testing.T, c *cloud)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		so := simulator.Options{AccessKeyID: testID, AccessKeySecret: testSecret, NoServers: true, Scenario: simulator.DefaultAWSScenario()}
		for i := range so.Scenario.ScalingGroups[0].Hooks {
			so.Scenario.ScalingGroups[0].Hooks[i].HeartbeatTimeout = 5 * time.Minute
		}
		if change != nil {
			change(&so)
		}
		sim, err := simulator.New(so)
		if err != nil {
			t.Fatal(err)
		}
		l := simulator.NewPipeListener()
		srv := &http.Server{Handler: sim}
		served := make(chan struct{})
		go func() { defer close(served); _ = srv.Serve(l) }()
		t.Cleanup(func() { _ = sim.Close(); _ = srv.Close(); <-served })
		o := Options{
			Region: simRegion, QueueName: simQueue, VisibilityTimeout: time.Minute,
			SQSEndpoint: cloudURL, AutoScalingEndpoint: cloudURL, ELBEndpoint: cloudURL, SSMEndpoint: cloudURL, EC2Endpoint: cloudURL, STSEndpoint: cloudURL,
			Credentials: StaticCredentials(testID, testSecret), DialContext: l.DialContext,
		}
		test(t, &cloud{sim: sim, options: o, queue: newQueue(t, o), scaling: newScaling(t, o)})
	})
}

func newQueue(t *testing.T, o Options) *Queue {
	t.Helper()
	q, err := NewQueue(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	return q
}

func newScaling(t *testing.T, o Options) *Scaling {
	t.Helper()
	s, err := NewScaling(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// announced scales in by n and receives what the hook says, one action for each instance.
func (c *cloud) announced(t *testing.T, n int) ([]providers.Delivery, []messages.Action) {
	t.Helper()
	if _, err := c.sim.ScaleIn(simGroup, n); err != nil {
		t.Fatal(err)
	}
	return c.received(t, n)
}

// received receives n notifications.
func (c *cloud) received(t *testing.T, n int) (deliveries []providers.Delivery, actions []messages.Action) {
	t.Helper()
	for begun := time.Now(); len(deliveries) < n; {
		got, err := c.queue.Receive(t.Context(), 10, 20*time.Second)
		if err != nil || time.Since(begun) > time.Hour {
			t.Fatalf("%d deliveries of %d, %v", len(deliveries), n, err)
		}
		deliveries = append(deliveries, got...)
	}
	for _, d := range deliveries {
		actions = append(actions, decoded(t, d.Body))
	}
	return deliveries, actions
}

// inject arms a fault.
func (c *cloud) inject(t *testing.T, f simulator.Fault) {
	t.Helper()
	if _, err := c.sim.InjectFault(f); err != nil {
		t.Fatal(err)
	}
}

func (c *cloud) action(t *testing.T, a messages.Action) simulator.ActionState {
	t.Helper()
	s, ok := c.sim.State().Action(string(a.Token))
	if !ok {
		t.Fatalf("the cloud has no action %s", a.Token)
	}
	return s
}

// calls is how many calls of an operation the cloud has had.
func (c *cloud) calls(name string) int { return c.sim.State().APICalls[name] }

// wantKind checks the sentinel of an error and gives its details.
func wantKind(t *testing.T, err, kind error) *providers.Error {
	t.Helper()
	e, ok := errors.AsType[*providers.Error](err)
	if !ok || !errors.Is(err, kind) {
		t.Fatalf("got %v, want %v", err, kind)
	}
	return e
}

func verify(t *testing.T, s *Scaling, a messages.Action) providers.Verification {
	t.Helper()
	return s.Verify(t.Context(), []messages.Action{a})[0]
}

func TestAScaleInFromEndToEnd(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		ctx := t.Context()
		attributes, err := c.queue.Attributes(ctx)
		if err != nil || attributes.VisibilityTimeout != time.Minute || attributes.Retention != 96*time.Hour {
			t.Errorf("attributes %+v, %v", attributes, err)
		}
		start := time.Now()
		if got, err := c.queue.Receive(ctx, 10, 7*time.Second); err != nil || got != nil || time.Since(start).Round(time.Second) != 7*time.Second {
			t.Errorf("empty queue: %v, %v after %v", got, err, time.Since(start))
		}
		ds, actions := c.announced(t, 3)
		for _, d := range ds {
			if left := time.Until(d.Until); left < 50*time.Second || left > time.Minute || d.Receives != 1 || d.CloudTime.IsZero() || d.EnqueuedAt.IsZero() || d.Garbled || d.RequestID == "" {
				t.Errorf("delivery hidden for %v: %+v", left, d)
			}
		}
		a := actions[0]
		hook, err := c.scaling.Hook(ctx, a.Group, a.Hook)
		if err != nil || hook.Timeout != 5*time.Minute || hook.Transition != messages.ScaleIn || hook.DefaultResult != messages.Abandon || hook.Name != simHook {
			t.Errorf("hook %+v, %v", hook, err)
		}
		for i, v := range c.scaling.Verify(ctx, actions) {
			if v.Err != nil || v.State != providers.Pending || len(v.Instances) != 1 || v.Instances[0].State != "Terminating:Wait" || v.Instances[0].Gone ||
				!v.Instances[0].PrivateIP.IsValid() || v.Instances[0].Zone == "" || !v.InGroup || v.Shared || v.Instances[0].ID != actions[i].Instances[0] {
				t.Fatalf("verification %+v", v)
			}
		}
		found, err := c.scaling.Instances(ctx, simRegion, append([]messages.InstanceID{"i-0000000000000dead"}, a.Instances...))
		if err != nil || !found[0].Gone || found[1].Gone || found[1].ID != a.Instances[0] {
			t.Errorf("instances %+v, %v", found, err)
		}
		groups, err := c.scaling.GroupsOf(ctx, append([]messages.InstanceID{"i-0000000000000dead"}, a.Instances...))
		if err != nil || len(groups) != 1 || groups[a.Instances[0]] != simGroup {
			t.Errorf("groups %v, %v", groups, err)
		}
		tags, err := c.scaling.Tags(ctx, simRegion, append([]messages.InstanceID{"i-0000000000000dead"}, a.Instances...))
		if err != nil || len(tags) != 1 || tags[a.Instances[0]]["aws:autoscaling:groupName"] != simGroup {
			t.Errorf("tags %v, %v", tags, err)
		}
		time.Sleep(4 * time.Minute)
		grant, err := c.scaling.Heartbeat(ctx, a, 5*time.Minute)
		if left := time.Until(grant.Until); err != nil || left != 5*time.Minute || grant.RequestID == "" {
			t.Errorf("grant %+v, %v", grant, err)
		}
		// Whatever is asked for: it is the hook's timeout that counts, once it was read.
		if short, err := c.scaling.Heartbeat(ctx, actions[1], time.Minute); err != nil || time.Until(short.Until) != 5*time.Minute {
			t.Errorf("grant %+v, %v", short, err)
		}
		if short, err := newScaling(t, c.options).Heartbeat(ctx, actions[2], time.Minute); err != nil || time.Until(short.Until) != time.Minute {
			t.Errorf("grant %+v, %v", short, err)
		}
		if s := c.action(t, a); s.HeartbeatsUsed != 1 || s.Deadline.Before(grant.Until) {
			t.Errorf("after a heartbeat: %+v; granted until %v", s, grant.Until)
		}
		if v := c.scaling.Ended(ctx, []messages.Action{a})[0]; v.Err != nil || v.State != providers.Pending || v.Shared {
			t.Errorf("before the answer: %+v", v)
		}
		id, err := c.scaling.Complete(ctx, a, messages.Continue)
		if err != nil || id == "" {
			t.Fatal(err)
		}
		if s := c.action(t, a); s.Status != "Completed" || s.Result != "CONTINUE" || s.EndedBy != "call" {
			t.Errorf("after the answer: %+v", s)
		}
		if v := verify(t, c.scaling, a); v.State != providers.Over && v.State != providers.Unlisted {
			t.Errorf("after the answer: %+v", v)
		}
		for _, r := range []messages.Result{messages.Continue, messages.Abandon} {
			_, err = c.scaling.Complete(ctx, a, r)
			wantKind(t, err, providers.ErrActionGone)
		}
		_, err = c.scaling.Heartbeat(ctx, a, time.Minute)
		wantKind(t, err, providers.ErrActionGone)
		if err := errors.Join(c.queue.Delete(ctx, []providers.Receipt{ds[0].Receipt, ds[1].Receipt, ds[2].Receipt})...); err != nil {
			t.Error(err)
		}
		_, err = c.scaling.Hook(ctx, a.Group, "nobody")
		wantKind(t, err, providers.ErrNotFound)
		_, err = c.scaling.Complete(ctx, a, messages.Rollback)
		wantKind(t, err, providers.ErrInvalid)
		if _, err := c.scaling.Waiting(ctx, simGroup); !errors.Is(err, providers.ErrUnsupported) {
			t.Error(err)
		}
	})
}

func TestReceiptsInTheCloud(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		ctx := t.Context()
		for range 12 {
			if _, err := c.queue.Send(ctx, `{"body":"é < & \u0041"}`); err != nil {
				t.Fatal(err)
			}
		}
		var got []providers.Delivery
		for len(got) < 12 {
			more, err := c.queue.Receive(ctx, 100, time.Second)
			if err != nil || len(more) > 10 {
				t.Fatal(len(more), err)
			}
			got = append(got, more...)
		}
		time.Sleep(20 * time.Second)
		lease, err := c.queue.Extend(ctx, got[0].Receipt, 90*time.Second)
		if left := time.Until(lease.Until); err != nil || left > 90*time.Second || left < 89*time.Second || lease.Receipt != got[0].Receipt || lease.RequestID == "" {
			t.Fatalf("%+v, %v", lease, err)
		}
		_, err = c.queue.Extend(ctx, "no-such-handle", time.Minute)
		wantKind(t, err, providers.ErrReceiptStale)
		errs := c.queue.Delete(ctx, []providers.Receipt{got[1].Receipt, "no-such-handle", got[2].Receipt})
		for i, want := range []error{nil, providers.ErrReceiptStale, nil} {
			if !errors.Is(errs[i], want) {
				t.Errorf("%d: %v, want %v", i, errs[i], want)
			}
		}
		_, err = c.queue.Extend(ctx, got[1].Receipt, time.Minute)
		wantKind(t, err, providers.ErrReceiptStale)
		// Until is a bound: the message is still hidden at that moment, and soon visible after.
		time.Sleep(time.Until(lease.Until) - time.Millisecond)
		for {
			d, err := c.queue.Receive(ctx, 10, time.Second)
			if err != nil || hasMessage(d, got[0].MessageID) && time.Now().Before(lease.Until) {
				t.Fatalf("visible before Until: %v, %v", d, err)
			}
			if hasMessage(d, got[0].MessageID) {
				break
			}
		}
	})
}

func hasMessage(ds []providers.Delivery, id string) bool {
	for _, d := range ds {
		if d.MessageID == id && d.Receives == 2 {
			return true
		}
	}
	return false
}

// TestExtensionsShareCalls: of a hundred, sent at the same time, ten travel in a call.
func TestExtensionsShareCalls(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		for range 100 {
			if _, err := c.sim.SendMessage(simQueue, "body"); err != nil {
				t.Fatal(err)
			}
		}
		errs := make(chan error, 100)
		for got := 0; got < 100; {
			ds, err := c.queue.Receive(t.Context(), 10, time.Second)
			if err != nil {
				t.Fatal(err)
			}
			got += len(ds)
			for _, d := range ds {
				go func() {
					time.Sleep(30*time.Second - time.Since(d.ReceivedAt)%time.Second)
					_, err := c.queue.Extend(t.Context(), d.Receipt, time.Minute)
					errs <- err
				}()
			}
		}
		for range 100 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		if n := c.calls("sqs.ChangeMessageVisibilityBatch"); n > 20 || n == 0 {
			t.Errorf("%d calls for 100 extensions", n)
		}
	})
}

// TestTheTwelveHoursOfAReceive: the cap is refused with the reason.
func TestTheTwelveHoursOfAReceive(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		if _, err := c.sim.SendMessage(simQueue, "body"); err != nil {
			t.Fatal(err)
		}
		ds, err := c.queue.Receive(t.Context(), 1, time.Second)
		if err != nil || len(ds) != 1 {
			t.Fatal(ds, err)
		}
		if _, err := c.queue.Extend(t.Context(), ds[0].Receipt, 24*time.Hour); err != nil {
			t.Errorf("as long as may be: %v", err)
		}
		time.Sleep(11 * time.Hour)
		_, err = c.queue.Extend(t.Context(), ds[0].Receipt, 2*time.Hour)
		if e := wantKind(t, err, providers.ErrInvalid); !strings.Contains(e.Hint, "12 hours") {
			t.Error(err)
		}
		if _, err := c.queue.Extend(t.Context(), ds[0].Receipt, 30*time.Minute); err != nil {
			t.Error(err)
		}
	})
}

// TestAMessageAtTheEndOfAPoll: its lease counts from when the poll was sent, and most of it
// is left, however short it is, and however long the queue itself would wait.
func TestAMessageAtTheEndOfAPoll(t *testing.T) {
	for _, visibility := range []time.Duration{2 * time.Second, 10 * time.Second, 15 * time.Second, 20 * time.Second, 50 * time.Second, time.Minute, time.Hour} {
		for _, asked := range []time.Duration{0, time.Second, 20 * time.Second} {
			t.Run(fmt.Sprintf("%v of %v", asked, visibility), func(t *testing.T) {
				inCloud(t, func(o *simulator.Options) { o.Scenario.Queues[0].PollingWait = 20 * time.Second }, func(t *testing.T, c *cloud) {
					o := c.options
					o.VisibilityTimeout = visibility
					q := newQueue(t, o)
					begun := time.Now()
					if ds, err := q.Receive(t.Context(), 1, asked); err != nil || len(ds) > 0 {
						t.Fatal(ds, err)
					}
					poll := time.Since(begun)
					var late sync.WaitGroup
					late.Go(func() {
						time.Sleep(poll - time.Millisecond)
						if _, err := c.sim.SendMessage(simQueue, "body"); err != nil {
							t.Error(err)
						}
					})
					ds, err := q.Receive(t.Context(), 1, asked)
					late.Wait()
					if err != nil || len(ds) != 1 {
						t.Fatalf("%v after a poll of %v: %v", ds, poll, err)
					}
					if left := time.Until(ds[0].Until); left < visibility/2 {
						t.Errorf("after a poll of %v, %v is left", poll, left)
					}
					if asked == 20*time.Second && poll != q.MaxWait() {
						t.Errorf("polls for %v, says %v", poll, q.MaxWait())
					}
				})
			})
		}
	}
}

// TestAGarbledBody: its neighbours are delivered as they are.
func TestAGarbledBody(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		c.inject(t, simulator.Fault{Service: "sqs", Action: "ReceiveMessage", Kind: simulator.FaultCorrupt, Count: 1})
		_, _ = c.sim.SendMessage(simQueue, `{"a":1}`)
		ds, err := c.queue.Receive(t.Context(), 10, 20*time.Second)
		if err != nil || len(ds) != 1 || !ds[0].Garbled {
			t.Fatalf("%+v, %v", ds, err)
		}
		time.Sleep(time.Minute)
		ds, err = c.queue.Receive(t.Context(), 10, 20*time.Second)
		if err != nil || len(ds) != 1 || ds[0].Garbled || string(ds[0].Body) != `{"a":1}` {
			t.Fatalf("%+v, %v", ds, err)
		}
	})
}

func TestForgedNotificationsDoNotVerify(t *testing.T) {
	inCloud(t, func(so *simulator.Options) {
		other := so.Scenario.ScalingGroups[0]
		other.ID, other.Name, other.Balancers = "other-asg", "other-asg", nil
		so.Scenario.ScalingGroups = append(so.Scenario.ScalingGroups, other)
	}, func(t *testing.T, c *cloud) {
		_, actions := c.announced(t, 1)
		a := actions[0]
		change := func(f func(*messages.Action)) messages.Action {
			b := a
			f(&b)
			return b
		}
		group, _ := c.sim.State().Group(simGroup)
		other, _ := c.sim.State().Group("other-asg")
		inService := ""
		for _, in := range group.Instances {
			if in.ID != string(a.Instances[0]) {
				inService = in.ID
			}
		}
		named := func(id string) messages.Action {
			return change(func(b *messages.Action) { b.Instances = []messages.InstanceID{messages.InstanceID(id)} })
		}
		forged := []messages.Action{
			a, named(inService), named(other.Instances[0].ID), named("i-0000000000000dead"),
			change(func(b *messages.Action) { b.Group = "other-asg" }),
			change(func(b *messages.Action) { b.Transition = messages.ScaleOut }),
		}
		want := []providers.State{providers.Pending, providers.Unlisted, providers.Mismatch, providers.Unlisted, providers.Mismatch, providers.Over}
		for i, v := range c.scaling.Verify(t.Context(), forged) {
			if v.Err != nil || v.State != want[i] || v.Reason == "" {
				t.Errorf("%d: %+v, want %s", i, v, want[i])
			}
		}
		// Where the group is not, an instance that is not listed proves nothing.
		gone := named("i-0000000000000dead")
		gone.Group = "nobody-asg"
		if e := wantKind(t, verify(t, c.scaling, gone).Err, providers.ErrNotFound); !strings.Contains(e.Hint, "region") {
			t.Error(e)
		}
	})
}

// TestEmptyAnswersAreNotBelieved: an instance that EC2 knows is missing from the listing of
// Auto Scaling, which does not make its action over.
func TestEmptyAnswersAreNotBelieved(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		_, actions := c.announced(t, 1)
		c.inject(t, simulator.Fault{Service: "autoscaling", Action: "DescribeAutoScalingInstances", Kind: simulator.FaultEmpty})
		if v := verify(t, c.scaling, actions[0]); v.Err != nil || v.State != providers.Unclear {
			t.Errorf("%+v", v)
		}
		if v := c.scaling.Ended(t.Context(), actions)[0]; v.Err != nil || v.State != providers.Unlisted {
			t.Errorf("%+v", v)
		}
	})
}

// TestAnotherHookIsTold: the ABANDON of one hook ends the actions of the others.
func TestAnotherHookIsTold(t *testing.T) {
	inCloud(t, func(so *simulator.Options) {
		hooks := &so.Scenario.ScalingGroups[0].Hooks
		*hooks = append(*hooks, simulator.HookConfig{ID: "backup", Name: "backup", Transition: "scale_in", Queue: simQueue, HeartbeatTimeout: time.Minute})
	}, func(t *testing.T, c *cloud) {
		_, actions := c.announced(t, 1)
		if v := verify(t, c.scaling, actions[0]); v.Err != nil || v.State != providers.Pending || !v.Shared {
			t.Errorf("%+v", v)
		}
	})
}

// TestALaunch: the other transition.
func TestALaunch(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		if _, err := c.sim.ScaleOut(simGroup, 1); err != nil {
			t.Fatal(err)
		}
		_, actions := c.received(t, 1)
		v := verify(t, c.scaling, actions[0])
		if v.Err != nil || v.State != providers.Pending || v.Instances[0].State != "Pending:Wait" || actions[0].Transition != messages.ScaleOut {
			t.Fatalf("%+v", v)
		}
		if _, err := c.scaling.Complete(t.Context(), actions[0], messages.Continue); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if v := verify(t, c.scaling, actions[0]); v.Err != nil || v.State != providers.Over {
			t.Errorf("%+v", v)
		}
	})
}

// TestTheEndOfAllWaiting: heartbeats hold an action open for a hundred timeouts, then it is over.
func TestTheEndOfAllWaiting(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		_, actions := c.announced(t, 1)
		a := actions[0]
		hook, err := c.scaling.Hook(t.Context(), a.Group, a.Hook)
		if err != nil {
			t.Fatal(err)
		}
		limits := c.scaling.Limits(hook.Timeout)
		if limits.MaxWait != 500*time.Minute || limits.MinExtension != hook.Timeout || limits.MaxExtension != hook.Timeout || limits.Calls != 100 {
			t.Errorf("limits %+v", limits)
		}
		if l := c.scaling.Limits(2 * time.Hour); l.MaxWait != 48*time.Hour {
			t.Errorf("limits %+v", l)
		}
		start := time.Now()
		for err == nil {
			time.Sleep(4 * time.Minute)
			_, err = c.scaling.Heartbeat(t.Context(), a, 5*time.Minute)
		}
		wantKind(t, err, providers.ErrActionGone)
		if d := time.Since(start); d < limits.MaxWait-5*time.Minute || d > limits.MaxWait+5*time.Minute {
			t.Errorf("it was over after %v", d)
		}
	})
}

func TestWrongKeysInTheCloud(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		ctx := t.Context()
		o := c.options
		for name, keys := range map[string]aws.CredentialsProvider{"wrong secret": StaticCredentials(testID, "other"), "unknown id": StaticCredentials("AKIANOBODY0000000000", testSecret)} {
			o.Credentials = keys
			_, err := newQueue(t, o).Receive(ctx, 10, time.Second)
			if e := wantKind(t, err, providers.ErrDenied); e.Hint == "" || strings.Contains(err.Error(), "Canonical") {
				t.Errorf("%s: %+v", name, e)
			}
			s := newScaling(t, o)
			_, err = s.Hook(ctx, simGroup, simHook)
			if e := wantKind(t, err, providers.ErrDenied); e.Hint == "" {
				t.Errorf("%s: %+v", name, e)
			}
			_, err = s.Tags(ctx, "", []messages.InstanceID{"i-0000000000000dead"})
			if e := wantKind(t, err, providers.ErrDenied); e.Hint == "" {
				t.Errorf("%s: %+v", name, e)
			}
		}
	})
}

// TestAnotherRegion: the settings that are wrong are named, and nothing passes for over.
func TestAnotherRegion(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		_, actions := c.announced(t, 1)
		o := c.options
		o.Region = "us-east-1"
		_, receive := newQueue(t, o).Receive(t.Context(), 10, time.Second)
		s := newScaling(t, o)
		_, tags := s.Tags(t.Context(), "", actions[0].Instances)
		_, complete := s.Complete(t.Context(), actions[0], messages.Continue)
		for what, err := range map[string]error{"receive": receive, "verify": verify(t, s, actions[0]).Err, "tags": tags, "complete": complete} {
			if e := wantKind(t, err, providers.ErrDenied); !strings.Contains(e.Hint, "region us-east-1") {
				t.Errorf("%s: %v", what, err)
			}
		}
	})
}

func TestAMissingQueue(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		o := c.options
		o.QueueName = "nobody-q"
		q := newQueue(t, o)
		_, err := q.Receive(t.Context(), 10, time.Second)
		e := wantKind(t, err, providers.ErrQueueGone)
		if !strings.Contains(e.Hint, "nobody-q") || !strings.Contains(e.Hint, "queue.name") || !strings.Contains(e.Hint, simRegion) {
			t.Error(err)
		}
		_, err = q.Attributes(t.Context())
		wantKind(t, err, providers.ErrQueueGone)
		wantKind(t, q.Delete(t.Context(), []providers.Receipt{"handle"})[0], providers.ErrQueueGone)
	})
}

func TestMissingPermissionsAreNamed(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		ds, actions := c.announced(t, 1)
		d, a := ds[0], actions[0]
		for _, service := range []string{"sqs", "autoscaling", "ec2"} {
			c.inject(t, simulator.Fault{Service: service, Kind: simulator.FaultDenied})
		}
		ctx := t.Context()
		_, receive := c.queue.Receive(ctx, 10, time.Second)
		_, extend := c.queue.Extend(ctx, d.Receipt, time.Minute)
		_, send := c.queue.Send(ctx, "body")
		_, heartbeat := c.scaling.Heartbeat(ctx, a, time.Minute)
		_, complete := c.scaling.Complete(ctx, a, messages.Continue)
		_, hook := c.scaling.Hook(ctx, a.Group, a.Hook)
		_, tags := c.scaling.Tags(ctx, "", a.Instances)
		_, ask := newQueue(t, c.options).Receive(ctx, 10, time.Second)
		for permission, err := range map[string]error{
			"sqs:GetQueueUrl": ask, "sqs:ReceiveMessage": receive, "sqs:ChangeMessageVisibility": extend, "sqs:SendMessage": send,
			"sqs:DeleteMessage":                          c.queue.Delete(ctx, []providers.Receipt{d.Receipt})[0],
			"autoscaling:RecordLifecycleActionHeartbeat": heartbeat, "autoscaling:CompleteLifecycleAction": complete,
			"autoscaling:DescribeLifecycleHooks": hook, "autoscaling:DescribeAutoScalingInstances": verify(t, c.scaling, a).Err,
			"ec2:DescribeInstances": tags,
		} {
			e := wantKind(t, err, providers.ErrDenied)
			if !strings.Contains(e.Hint, "allow "+permission+" on ") || !e.Untouched || strings.Contains(permission, "Complete") && !strings.Contains(e.Hint, "autoScalingGroupName/web-asg") {
				t.Errorf("%s: %v", permission, err)
			}
		}
		if s := c.action(t, a); s.Status != "Pending" {
			t.Errorf("%+v", s)
		}
	})
}

// TestATokenOfAnotherInstance: a true token with an instance that is not its own prolongs and ends
// nothing.
func TestATokenOfAnotherInstance(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		_, actions := c.announced(t, 2)
		lie := actions[0]
		lie.Instances = actions[1].Instances
		_, err := c.scaling.Heartbeat(t.Context(), lie, time.Minute)
		wantKind(t, err, providers.ErrActionGone)
		_, err = c.scaling.Complete(t.Context(), lie, messages.Continue)
		wantKind(t, err, providers.ErrActionGone)
		for _, a := range actions {
			if s := c.action(t, a); s.Status != "Pending" || s.HeartbeatsUsed != 0 {
				t.Errorf("%+v", s)
			}
			if _, err := c.scaling.Complete(t.Context(), a, messages.Continue); err != nil {
				t.Error(err)
			}
		}
	})
}

func TestAThrottleStorm(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		_, actions := c.announced(t, 1)
		c.inject(t, simulator.Fault{Service: "autoscaling", Kind: simulator.FaultThrottle, Count: 5})
		if _, err := c.scaling.Complete(t.Context(), actions[0], messages.Continue); err != nil {
			t.Error(err)
		}
		if n := c.calls("autoscaling.CompleteLifecycleAction"); n != 6 {
			t.Errorf("%d calls for 5 refusals", n)
		}
		c.inject(t, simulator.Fault{Service: "autoscaling", Kind: simulator.FaultThrottle})
		_, err := c.scaling.Complete(t.Context(), actions[0], messages.Continue)
		if e := wantKind(t, err, providers.ErrThrottled); !e.Untouched {
			t.Errorf("%+v", e)
		}
		if n := c.calls("autoscaling.CompleteLifecycleAction"); n != 6+MaxAttempts {
			t.Errorf("%d calls", n)
		}
	})
}

// TestAThrottledScanDelaysNoHeartbeat: what asks is slowed, and what keeps actions alive is not.
func TestAThrottledScanDelaysNoHeartbeat(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		_, actions := c.announced(t, 2)
		c.inject(t, simulator.Fault{Service: "autoscaling", Action: "DescribeAutoScalingInstances", Kind: simulator.FaultThrottle})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan []providers.Verification)
		go func() { done <- c.scaling.Verify(ctx, actions) }()
		time.Sleep(10 * time.Second) // the scan is slowed by now
		begun := time.Now()
		if _, err := c.scaling.Heartbeat(t.Context(), actions[0], time.Minute); err != nil {
			t.Error(err)
		}
		if _, err := c.scaling.Complete(t.Context(), actions[1], messages.Continue); err != nil {
			t.Error(err)
		}
		if d := time.Since(begun); d > time.Second {
			t.Errorf("they took %v", d)
		}
		cancel()
		for _, v := range <-done {
			if !errors.Is(v.Err, context.Canceled) && !errors.Is(v.Err, providers.ErrThrottled) {
				t.Errorf("%+v", v)
			}
		}
	})
}

// TestALostReply: the answer to what had its effect is cut off.
func TestALostReply(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		ds, actions := c.announced(t, 2)
		for _, call := range [][2]string{
			{"autoscaling", "CompleteLifecycleAction"}, {"autoscaling", "RecordLifecycleActionHeartbeat"},
			{"sqs", "DeleteMessage"}, {"sqs", "ChangeMessageVisibility"},
		} {
			c.inject(t, simulator.Fault{Service: call[0], Action: call[1], Kind: simulator.FaultDropAfterEffect, Count: 1})
		}
		ctx := t.Context()
		grant, err := c.scaling.Heartbeat(ctx, actions[0], time.Minute)
		if s := c.action(t, actions[0]); err != nil || s.HeartbeatsUsed != 2 || grant.Until.After(s.Deadline) {
			t.Errorf("%+v, %v: %+v", grant, err, s)
		}
		if _, err := c.queue.Extend(ctx, ds[0].Receipt, time.Minute); err != nil {
			t.Error(err)
		}
		id, err := c.scaling.Complete(ctx, actions[0], messages.Continue)
		if s := c.action(t, actions[0]); err != nil || id == "" || s.Result != "CONTINUE" || s.EndedBy != "call" {
			t.Errorf("%q, %v: %+v", id, err, s)
		}
		if err := c.queue.Delete(ctx, []providers.Receipt{ds[0].Receipt})[0]; err != nil {
			t.Error(err)
		}
		// Of a call of one attempt it is not known whether it had its effect.
		c.inject(t, simulator.Fault{Service: "sqs", Action: "ReceiveMessage", Kind: simulator.FaultDropAfterEffect, Count: 1})
		_, _ = c.sim.SendMessage(simQueue, "body")
		_, err = c.queue.Receive(ctx, 10, time.Second)
		if e := wantKind(t, err, providers.ErrUnavailable); e.Untouched {
			t.Errorf("%+v", e)
		}
	})
}

func TestAServiceInTrouble(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		_, actions := c.announced(t, 2)
		ctx := t.Context()
		for _, kind := range []simulator.FaultKind{simulator.Fault5xx, simulator.FaultDrop, simulator.FaultHang} {
			for _, service := range []string{"autoscaling", "ec2"} {
				c.inject(t, simulator.Fault{Service: service, Kind: kind, Count: 2})
			}
			if v := verify(t, c.scaling, actions[0]); v.Err != nil || v.State != providers.Pending {
				t.Errorf("%s: %+v", kind, v)
			}
			// One attempt only.
			c.inject(t, simulator.Fault{Service: "sqs", Action: "ReceiveMessage", Kind: kind, Count: 1})
			n := c.calls("sqs.ReceiveMessage")
			begun := time.Now()
			_, err := c.queue.Receive(ctx, 10, 20*time.Second)
			if wantKind(t, err, providers.ErrUnavailable); time.Since(begun) > 20*time.Second+pollMargin || c.calls("sqs.ReceiveMessage") > n+1 {
				t.Errorf("%s: %d calls and %v", kind, c.calls("sqs.ReceiveMessage")-n, time.Since(begun))
			}
		}
		// One that is slow is waited for.
		c.inject(t, simulator.Fault{Service: "autoscaling", Kind: simulator.FaultLatency, Latency: 8 * time.Second, Count: 1})
		slow := time.Now()
		if _, err := c.scaling.Heartbeat(ctx, actions[0], time.Minute); err != nil || time.Since(slow) != 8*time.Second {
			t.Errorf("%v after %v", err, time.Since(slow))
		}
		// The caller's own end is told as such, and at once.
		c.inject(t, simulator.Fault{Service: "autoscaling", Kind: simulator.FaultHang})
		ending, cancel := context.WithCancel(ctx)
		begun := time.Now()
		time.AfterFunc(3*time.Second, cancel)
		_, err := c.scaling.Complete(ending, actions[0], messages.Continue)
		if !errors.Is(err, context.Canceled) || time.Since(begun) != 3*time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		short, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		_, err = c.scaling.Complete(short, actions[0], messages.Continue)
		if e := wantKind(t, err, providers.ErrUnavailable); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "no answer in time") || e.Untouched {
			t.Errorf("%v", err)
		}
	})
}

// TestASkewedClock: EC2's client of ours corrects it as the SDK does.
func TestASkewedClock(t *testing.T) {
	inCloud(t, nil, func(t *testing.T, c *cloud) {
		c.scaling.ec2.skew.Store(int64(time.Hour))
		_, actions := c.announced(t, 1)
		tags, err := c.scaling.Tags(t.Context(), "", actions[0].Instances)
		if err != nil || len(tags) != 1 {
			t.Errorf("%v, %v", tags, err)
		}
		if n := c.calls("ec2.DescribeInstances"); n != 2 {
			t.Errorf("%d calls", n)
		}
	})
}

// TestCallsOfAThousandActions: what an action costs, with all that is done for it.
func TestCallsOfAThousandActions(t *testing.T) {
	const n = 1000
	inCloud(t, func(so *simulator.Options) {
		so.Scenario.ScalingGroups[0].Instances = n
		so.Scenario.ScalingGroups[0].Balancers = nil
	}, func(t *testing.T, c *cloud) {
		if _, err := c.sim.ScaleIn(simGroup, n); err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		before := total(c)
		for done := 0; done < n; {
			ds, err := c.queue.Receive(ctx, 10, 20*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			var actions []messages.Action
			var receipts []providers.Receipt
			for _, d := range ds {
				actions, receipts = append(actions, decoded(t, d.Body)), append(receipts, d.Receipt)
			}
			for i, v := range c.scaling.Verify(ctx, actions) {
				if v.Err != nil || v.State != providers.Pending {
					t.Fatalf("%+v", v)
				}
				if _, err := c.scaling.Complete(ctx, actions[i], messages.Continue); err != nil {
					t.Fatal(err)
				}
			}
			if err := errors.Join(c.queue.Delete(ctx, receipts)...); err != nil {
				t.Fatal(err)
			}
			done += len(ds)
		}
		if calls := total(c) - before; float64(calls) > 1.4*n+2 { // the URL and the hooks, once
			t.Errorf("%d calls for %d actions: %v", calls, n, c.sim.State().APICalls)
		}
	})
}

func total(c *cloud) (sum int) {
	for _, n := range c.sim.State().APICalls {
		sum += n
	}
	return sum
}
