package simulator

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancing"
	elbtypes "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancing/types"
	"github.com/aws/smithy-go"
)

// startAWS serves a simulated AWS on loopback, with sockets for its instances and balancers.
func startAWS(t testing.TB, o Options) awsWorld {
	t.Helper()
	return awsWorld{start(t, o)}
}

// config is what the clients of the SDK need.
func (w awsWorld) config() aws.Config {
	return aws.Config{
		Region: w.State().Region, Credentials: credentials.NewStaticCredentialsProvider(w.id, w.secret, w.token),
		HTTPClient: w.http, BaseEndpoint: &w.base, RetryMaxAttempts: 1,
	}
}

func (w awsWorld) elb() *elb.Client { return elb.NewFromConfig(w.config()) }

// codeOf is the code of an error of the SDK; empty: none.
func codeOf(err error) string {
	if e, ok := errors.AsType[smithy.APIError](err); ok {
		return e.ErrorCode()
	}
	return ""
}

// awsBalancer has n instances in one balancer lb of AWS that only its API manages: in its
// target group sgp, or for a classic one in itself.
func awsBalancer(n int, kind string, edit func(*BalancerConfig)) Scenario {
	b := BalancerConfig{ID: "lb", Type: kind, HealthCheck: HealthCheck{Interval: 20 * time.Millisecond, Timeout: 10 * time.Second}}
	g := GroupConfig{ID: "asg-1", Instances: n, ServerGroups: []MembershipConfig{{ID: "lb", Unattached: true}}}
	if kind != typeELB {
		b.ServerGroups = []ServerGroupConfig{{ID: "sgp"}}
		g.ServerGroups[0].ID, g.ServerGroups[0].Ports = "sgp", []int{8080}
	}
	if edit != nil {
		edit(&b)
	}
	return Scenario{Provider: providerAWS, Balancers: []BalancerConfig{b}, ScalingGroups: []GroupConfig{g}}
}

// instances are the ids of a scaling group, oldest first.
func (w awsWorld) instances() []string {
	g, _ := w.State().Group("asg-1")
	var out []string
	for _, in := range g.Instances {
		out = append(out, in.ID)
	}
	return out
}

func elbIDs(ids ...string) []elbtypes.Instance {
	var out []elbtypes.Instance
	for _, id := range ids {
		out = append(out, elbtypes.Instance{InstanceId: aws.String(id)})
	}
	return out
}

// classicStates tells what DescribeInstanceHealth says, as "state reason description".
func (w awsWorld) classicStates(ids ...string) string {
	w.t.Helper()
	o, err := w.elb().DescribeInstanceHealth(w.t.Context(), &elb.DescribeInstanceHealthInput{LoadBalancerName: aws.String("lb"), Instances: elbIDs(ids...)})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, x := range o.InstanceStates {
		out = append(out, fmt.Sprintf("%s %s %s", aws.ToString(x.State), aws.ToString(x.ReasonCode), aws.ToString(x.Description)))
	}
	return strings.Join(out, "|")
}

const (
	classicIn       = "InService N/A N/A"
	classicLeaving  = "InService N/A Instance deregistration currently in progress."
	classicNone     = "OutOfService Instance Instance is not currently registered with the LoadBalancer."
	classicJoining  = "OutOfService ELB Instance registration is still in progress."
	classicSick     = "OutOfService Instance Instance has failed at least the UnhealthyThreshold number of health checks consecutively."
	classicUnknown  = "Unknown ELB A transient error occurred. Please try again later."
	drainingDefault = 300 * time.Second
)

func (w awsWorld) deregisterClassic(ids ...string) (*elb.DeregisterInstancesFromLoadBalancerOutput, error) {
	return w.elb().DeregisterInstancesFromLoadBalancer(w.t.Context(), &elb.DeregisterInstancesFromLoadBalancerInput{LoadBalancerName: aws.String("lb"), Instances: elbIDs(ids...)})
}

func (w awsWorld) registerClassic(ids ...string) (*elb.RegisterInstancesWithLoadBalancerOutput, error) {
	return w.elb().RegisterInstancesWithLoadBalancer(w.t.Context(), &elb.RegisterInstancesWithLoadBalancerInput{LoadBalancerName: aws.String("lb"), Instances: elbIDs(ids...)})
}

// A classic member leaves, in the words of the API, and comes back.
func TestClassicLifeOfAMember(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsBalancer(2, typeELB, func(b *BalancerConfig) { b.JobDuration = 10 * time.Second })}, func(w awsWorld) {
		ids := w.instances()
		wantText(t, "at first", w.classicStates(), classicIn+"|"+classicIn)
		o, err := w.deregisterClassic(ids[0])
		if err != nil || len(o.Instances) != 1 || aws.ToString(o.Instances[0].InstanceId) != ids[1] {
			t.Fatalf("deregister: %+v, %v", o, err)
		}
		wantText(t, "while it drains", w.classicStates(ids[0]), classicLeaving)
		wantText(t, "unnamed, while it drains", w.classicStates(), classicLeaving+"|"+classicIn)
		if _, err := w.deregisterClassic(ids[0]); err != nil {
			t.Errorf("deregister again: %v", err)
		}
		time.Sleep(drainingDefault - time.Second)
		wantText(t, "a second before the end", w.classicStates(ids[0]), classicLeaving)
		time.Sleep(2 * time.Second)
		wantText(t, "after draining", w.classicStates(ids[0]), classicNone)
		wantText(t, "unnamed, after draining", w.classicStates(), classicIn)
		if _, err := w.deregisterClassic(ids[0]); err != nil {
			t.Errorf("deregister what is not there: %v", err)
		}
		if o, err := w.registerClassic(ids...); err != nil || len(o.Instances) != 2 {
			t.Fatalf("register: %+v, %v", o, err)
		}
		wantText(t, "after the registration", w.classicStates(ids[0]), classicJoining)
		time.Sleep(11 * time.Second)
		wantText(t, "registered", w.classicStates(ids[0]), classicIn)

		check(t, w.SetHealth(ids[0], false))
		time.Sleep(time.Second)
		wantText(t, "ill", w.classicStates(ids[0]), classicSick)
		check(t, w.SetTargetHealth(ids[0], targetUnavailable, "Elb.InternalError"))
		wantText(t, "unknown", w.classicStates(ids[0]), classicUnknown)
	})
}

// A registration calls off a deregistration.
func TestClassicComesBackWhileDraining(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsBalancer(1, typeELB, nil)}, func(w awsWorld) {
		id := w.instances()[0]
		if _, err := w.deregisterClassic(id); err != nil {
			t.Fatal(err)
		}
		if _, err := w.registerClassic(id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * drainingDefault)
		wantText(t, "long after", w.classicStates(id), classicIn)
	})
}

func TestClassicDescriptions(t *testing.T) {
	t.Parallel()
	sc := awsBalancer(3, typeELB, nil)
	for i := range 4 {
		off := false
		sc.Balancers = append(sc.Balancers, BalancerConfig{ID: fmt.Sprint("other-", i), Type: typeELB, ConnectionDraining: &off})
	}
	sc.Balancers = append(sc.Balancers, BalancerConfig{ID: "new", Type: typeApplication, ServerGroups: []ServerGroupConfig{{ID: "tg"}}})
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		var names []string
		pages := elb.NewDescribeLoadBalancersPaginator(w.elb(), &elb.DescribeLoadBalancersInput{PageSize: aws.Int32(2)})
		for pages.HasMorePages() {
			page, err := pages.NextPage(w.t.Context())
			check(t, err)
			for _, b := range page.LoadBalancerDescriptions {
				names = append(names, fmt.Sprint(*b.LoadBalancerName, ":", len(b.Instances)))
			}
		}
		wantText(t, "balancers", strings.Join(names, " "), "lb:3 other-0:0 other-1:0 other-2:0 other-3:0")
		one, err := w.elb().DescribeLoadBalancers(w.t.Context(), &elb.DescribeLoadBalancersInput{LoadBalancerNames: []string{"lb"}})
		check(t, err)
		b := one.LoadBalancerDescriptions[0]
		if l := b.ListenerDescriptions[0].Listener; len(one.LoadBalancerDescriptions) != 1 || l.LoadBalancerPort != 80 || aws.ToInt32(l.InstancePort) != 80 || aws.ToString(l.Protocol) != "HTTP" || aws.ToString(b.HealthCheck.Target) != "HTTP:80/healthz" || aws.ToInt32(b.HealthCheck.UnhealthyThreshold) != 2 {
			t.Errorf("balancer %+v, listener %+v, check %+v", b, l, b.HealthCheck)
		}
		for name, want := range map[string]string{"lb": "true 300", "other-1": "false 300"} {
			a, err := w.elb().DescribeLoadBalancerAttributes(w.t.Context(), &elb.DescribeLoadBalancerAttributesInput{LoadBalancerName: &name})
			check(t, err)
			d := a.LoadBalancerAttributes.ConnectionDraining
			wantText(t, name, fmt.Sprint(d.Enabled, " ", aws.ToInt32(d.Timeout)), want)
		}
	})
}

func TestClassicErrors(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsBalancer(1, typeELB, nil)}, func(w awsWorld) {
		id := w.instances()[0]
		at := []string{"LoadBalancerName", "lb", "Instances.member.1.InstanceId"}
		for _, c := range []struct {
			code, action string
			pairs        []string
		}{
			{"LoadBalancerNotFound", "DescribeInstanceHealth", []string{"LoadBalancerName", "none"}},
			{"LoadBalancerNotFound", "DescribeLoadBalancers", []string{"LoadBalancerNames.member.1", "lb", "LoadBalancerNames.member.2", "none"}},
			{"LoadBalancerNotFound", "DescribeLoadBalancerAttributes", []string{"LoadBalancerName", "none"}},
			{"LoadBalancerNotFound", "DeregisterInstancesFromLoadBalancer", []string{"LoadBalancerName", "none", "Instances.member.1.InstanceId", id}},
			{"ValidationError", "DescribeInstanceHealth", nil},
			{"ValidationError", "DeregisterInstancesFromLoadBalancer", at[:2]},
			{"ValidationError", "DescribeLoadBalancers", []string{"PageSize", "401"}},
			{"ValidationError", "DescribeLoadBalancers", []string{"PageSize", "x"}},
			{"ValidationError", "DescribeLoadBalancers", []string{"Marker", "@"}},
			{"ValidationError", "DescribeLoadBalancers", []string{"Marker", "LTE"}}, // -1
			{"InvalidInstance", "RegisterInstancesWithLoadBalancer", append(at, "i-0aa11bb22cc33dd44")},
			{"InvalidInstance", "DeregisterInstancesFromLoadBalancer", append(at, "")},
			{"InvalidInstance", "DescribeInstanceHealth", append(at, "10.0.0.1")},
			{"InvalidAction", "CreateLoadBalancer", nil},
		} {
			w.refusedWith(w.query("elb", c.action, c.pairs...), 400, "<Code>"+c.code+"</Code>")
		}
		wantText(t, "after all", w.classicStates(), classicIn)
	})
}

// Throttling, and a policy that allows to look and not to touch.
func TestClassicRefusals(t *testing.T) {
	t.Parallel()
	sc := awsBalancer(1, typeELB, nil)
	sc.Policy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["elasticloadbalancing:Describe*"],"Resource":"*"}]}`
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		if _, err := w.deregisterClassic(w.instances()...); codeOf(err) != "AccessDenied" || !strings.Contains(err.Error(), "elasticloadbalancing:DeregisterInstancesFromLoadBalancer on resource: arn:aws:elasticloadbalancing:eu-west-1:111122223333:loadbalancer/lb") {
			t.Errorf("without the permission: %v", err)
		}
		if _, err := w.InjectFault(Fault{Service: "elb", Action: "DescribeInstanceHealth", Kind: FaultThrottle, Count: 1}); err != nil {
			t.Fatal(err)
		}
		_, err := w.elb().DescribeInstanceHealth(w.t.Context(), &elb.DescribeInstanceHealthInput{LoadBalancerName: aws.String("lb")})
		wantText(t, "throttled", codeOf(err), "Throttling")
		wantText(t, "afterwards", w.classicStates(), classicIn)
		if st := w.State(); st.APICalls["elb.DescribeInstanceHealth"] != 2 || st.Refusals["elb.DescribeInstanceHealth Throttling"] != 1 {
			t.Errorf("calls %v, refusals %v", st.APICalls, st.Refusals)
		}
	})
}

// slowRequests has n requests in flight that would take very long. Their statuses, 0 for a
// cut one, come out of the channel.
func (w awsWorld) slowRequests(n int) (statuses chan int) {
	w.t.Helper()
	statuses = make(chan int, n)
	ctx, cancel := context.WithCancel(w.t.Context())
	var all sync.WaitGroup
	w.t.Cleanup(func() {
		cancel()
		all.Wait()
	})
	client := user(w.t.(*testing.T))
	client.Timeout = 0
	lb, _ := w.State().Balancer("lb")
	for range n {
		all.Go(func() {
			req, err := http.NewRequestWithContext(ctx, "GET", "http://"+lb.Address+"/slow?ms=500000", nil)
			if err != nil {
				w.t.Error(err)
				return
			}
			res, err := client.Do(req)
			if err != nil {
				statuses <- 0
				return
			}
			res.Body.Close()
			statuses <- res.StatusCode
		})
	}
	until(w.t, "the requests are in flight", func() bool {
		lb, _ := w.State().Balancer("lb")
		in := 0
		for _, m := range lb.Members {
			in += m.InFlight
		}
		return in == n
	})
	return statuses
}

// While a member drains it gets no new request, and what it has goes on: until the time is
// over, when it is cut.
func TestClassicDrainsTraffic(t *testing.T) {
	t.Parallel()
	for _, limit := range []time.Duration{time.Hour, 100 * time.Millisecond} {
		w := startAWS(t, Options{Scenario: awsBalancer(2, typeELB, func(b *BalancerConfig) { b.ConnectionDrainTimeout = limit })})
		id, statuses := w.instances()[0], w.slowRequests(2)
		if _, err := w.deregisterClassic(id); err != nil {
			t.Fatal(err)
		}
		c := user(t)
		for range 10 {
			if status, instance := w.fetch(c, "/"); status != 200 || instance == id {
				t.Fatalf("status %d from %s while %s drains", status, instance, id)
			}
		}
		if limit == time.Hour {
			if m := w.member(id); m.InFlight != 1 || !m.Draining || m.InService || m.Left != nil {
				t.Errorf("while it drains: %+v", m)
			}
			wantText(t, "while it drains", w.classicStates(id), classicLeaving)
			continue
		}
		if status := <-statuses; status != http.StatusBadGateway {
			t.Errorf("the request in flight got %d, want 502 at the end of draining", status)
		}
		until(t, "it has left", func() bool { return w.member(id).Left != nil })
		wantText(t, "at the end", w.classicStates(id), classicNone)
		select {
		case status := <-statuses:
			t.Errorf("the other member's request ended too, with %d", status)
		default:
		}
	}
}

// A classic member has left as soon as its last request has ended, however long it may take.
func TestClassicLeavesWhenDrained(t *testing.T) {
	t.Parallel()
	w := startAWS(t, Options{Scenario: awsBalancer(1, typeELB, func(b *BalancerConfig) { b.ConnectionDrainTimeout = time.Hour })})
	id := w.instances()[0]
	if _, err := w.deregisterClassic(id); err != nil {
		t.Fatal(err)
	}
	until(t, "it has left", func() bool { return w.classicStates(id) == classicNone })
}

// Without connection draining all is cut at once.
func TestClassicWithoutDraining(t *testing.T) {
	t.Parallel()
	w := startAWS(t, Options{Scenario: awsBalancer(1, typeELB, func(b *BalancerConfig) { b.ConnectionDraining = new(false) })})
	id, statuses := w.instances()[0], w.slowRequests(1)
	if _, err := w.deregisterClassic(id); err != nil {
		t.Fatal(err)
	}
	wantText(t, "at once", w.classicStates(id), classicNone)
	if status := <-statuses; status != http.StatusBadGateway {
		t.Errorf("the request in flight got %d, want 502", status)
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantText(t testing.TB, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}
