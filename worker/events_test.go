package worker_test

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/simulator"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

// Events whose groups the cloud does not tell, at once or by hanging, end when their time is
// over: an interruption when the instance is taken, a recommendation at the plan's deadline.
func TestAWSEventThatIsNeverPlacedEnds(t *testing.T) {
	t.Parallel()
	for _, fault := range []simulator.Fault{
		{Service: "ess", Action: "DescribeAutoScalingInstances", Kind: simulator.FaultDenied},
		{Service: "ess", Action: "DescribeAutoScalingInstances", Kind: simulator.FaultHang},
	} {
		t.Run(string(fault.Kind), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, awsScenario(3))
				cloud.inject(fault)
				r := cloud.start(settings{plans: []worker.Plan{
					eventPlan(messages.SpotInterruption, time.Hour, takes(time.Second)),
					eventPlan(messages.RebalanceRecommendation, 20*time.Minute, takes(time.Second)),
				}})
				begin, ids := time.Now(), cloud.instancesOf(groupID)
				cloud.tell(messages.RebalanceRecommendation, ids[0])
				cloud.tell(messages.SpotInterruption, ids[1])
				for i, due := range []time.Duration{2 * time.Minute, 20 * time.Minute} {
					time.Sleep(due - 5*time.Second - time.Since(begin))
					if n := len(r.find(audit.Ignored)); n != i {
						t.Fatalf("%d events have ended shortly before %v, want %d", n, due, i)
					}
					cloud.until(time.Minute, "ended", func() bool { return len(r.find(audit.Ignored)) == i+1 })
					if rec := r.find(audit.Ignored)[i]; !strings.Contains(rec.Reason, "time is over") {
						t.Errorf("ended with %+v", rec)
					}
				}
				cloud.until(time.Minute, "deleted", cloud.empty)
				r.stop()
				r.balanced()
			})
		})
	}
}

// Events whose groups nobody tells do not take the room of what comes behind them.
func TestAWSEventsThatAreNotPlacedLeaveRoom(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, awsScenario(30))
		cloud.inject(simulator.Fault{Service: "ess", Action: "DescribeAutoScalingInstances", Kind: simulator.FaultDenied})
		r := cloud.start(settings{verify: worker.VerifyNever, change: func(o *worker.Options) { o.MaxActions = 8 }, plans: []worker.Plan{
			eventPlan(messages.RebalanceRecommendation, 24*time.Hour, takes(time.Second)), plan(time.Hour, takes(time.Second)),
		}})
		cloud.tell(messages.RebalanceRecommendation, cloud.instancesOf(groupID)[:25]...)
		time.Sleep(10 * time.Minute)
		cloud.scaleIn(1)
		cloud.until(time.Minute, "answered", cloud.over)
		cloud.answered(messages.Continue)
		cloud.ClearFaults()
		cloud.until(30*time.Minute, "all have their end", cloud.empty)
		if n := len(r.find(audit.StepStarted)); n < 25 {
			t.Errorf("%d jobs, want one for each event whose instance is there, and the hook's", n)
		}
		r.stop()
		r.balanced()
	})
}

// An event that comes again when it was done already is deleted, and its jobs do not run again.
func TestAWSEventAgainAfterItsEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cloud := newCloud(t, awsScenario(3))
		r := cloud.start(settings{plans: []worker.Plan{eventPlan(messages.RebalanceRecommendation, time.Hour, takes(time.Second))}})
		ids := cloud.instancesOf(groupID)
		body := func(event, instance string) string {
			return `{"version":"0","id":"` + event + `","detail-type":"EC2 Instance Rebalance Recommendation","source":"aws.ec2","account":"111122223333","time":"` +
				time.Now().UTC().Format(time.RFC3339) + `","region":"` + awsRegion + `","resources":[],"detail":{"instance-id":"` + instance + `"}}`
		}
		const event = "7bf73129-1428-4cd3-a780-95db273d1602"
		for n, again := range []struct{ id, instance string }{
			{event, ids[0]}, {event, ids[0]}, // the same
			{event, ids[1]}, // says something else, and only one of them can be true
			{"8bf73129-1428-4cd3-a780-95db273d1602", ids[0]},
		} {
			if _, err := cloud.SendMessage(queueName, body(again.id, again.instance)); err != nil {
				t.Fatal(err)
			}
			cloud.until(time.Minute, "deleted", cloud.empty)
			time.Sleep(9 * time.Minute)
			if jobs, want := len(r.find(audit.StepStarted)), []int{1, 1, 2, 3}[n]; jobs != want {
				t.Fatalf("%d jobs after message %d, want %d", jobs, n+1, want)
			}
		}
		if ignored := r.find(audit.Ignored); len(ignored) != 1 || !strings.Contains(ignored[0].Reason, "its jobs have ended") {
			t.Errorf("ignored %+v", ignored)
		}
		r.stop()
		r.balanced()
	})
}

// An event of which some instances are in no group yet begins when they are, or without them
// when it was put off often enough or there is no time to.
func TestAWSEventWaitsForInstancesInNoGroup(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		deadline time.Duration
		unlisted int32 // how often the cloud leaves the second instance out
		jobs     int
		putOff   int
	}{
		{"listed later", time.Hour, 1, 2, 1},
		{"never listed", time.Hour, 100, 1, 2},
		{"no time to wait", 25 * time.Second, 100, 1, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				cloud := newCloud(t, awsScenario(3))
				ids := cloud.instancesOf(groupID)
				var asked atomic.Int32
				cloud.front = func(w http.ResponseWriter, r *http.Request) bool {
					if !strings.HasPrefix(r.Host, "autoscaling.") || asked.Add(1) > c.unlisted {
						return false
					}
					w.Header().Set("Content-Type", "text/xml")
					fmt.Fprintf(w, `<DescribeAutoScalingInstancesResponse xmlns="http://autoscaling.amazonaws.com/doc/2011-01-01/"><DescribeAutoScalingInstancesResult>`+
						`<AutoScalingInstances><member><InstanceId>%s</InstanceId><AutoScalingGroupName>%s</AutoScalingGroupName><LifecycleState>InService</LifecycleState></member>`+
						`</AutoScalingInstances></DescribeAutoScalingInstancesResult></DescribeAutoScalingInstancesResponse>`, ids[0], groupID)
					return true
				}
				r := cloud.start(settings{plans: []worker.Plan{eventPlan(messages.ScheduledChange, c.deadline, takes(time.Second))}})
				cloud.tell(messages.ScheduledChange, ids[0], ids[1])
				cloud.until(2*time.Minute, "done", cloud.empty)
				if jobs, off := len(r.find(audit.StepStarted)), len(r.find(audit.Unrouted)); jobs != c.jobs || off != c.putOff {
					t.Errorf("%d jobs, put off %d times, want %d and %d", jobs, off, c.jobs, c.putOff)
				}
				r.stop()
				r.balanced()
			})
		})
	}
}
