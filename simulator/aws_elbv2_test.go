package simulator

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	elb "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancing"
	elbv2 "github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2"
	"github.com/aws/aws-sdk-go-v2/service/elasticloadbalancingv2/types"
)

func (w awsWorld) elbv2() *elbv2.Client { return elbv2.NewFromConfig(w.config()) }

// arn is that of a target group of balancer lb.
func (w awsWorld) arn(group string) string {
	w.t.Helper()
	lb, _ := w.State().Balancer("lb")
	for _, g := range lb.ServerGroups {
		if g.ID == group {
			return g.ARN
		}
	}
	w.t.Fatalf("no target group %s", group)
	return ""
}

// targets are those of the ids and ports in turn; port 0 is none.
func targets(idsAndPorts ...any) []types.TargetDescription {
	var out []types.TargetDescription
	for i := 0; i < len(idsAndPorts); i += 2 {
		x := types.TargetDescription{Id: aws.String(idsAndPorts[i].(string))}
		if port := idsAndPorts[i+1].(int); port != 0 {
			x.Port = aws.Int32(int32(port))
		}
		out = append(out, x)
	}
	return out
}

func (w awsWorld) registerTargets(group string, idsAndPorts ...any) error {
	_, err := w.elbv2().RegisterTargets(w.t.Context(), &elbv2.RegisterTargetsInput{TargetGroupArn: aws.String(w.arn(group)), Targets: targets(idsAndPorts...)})
	return err
}

func (w awsWorld) deregisterTargets(group string, idsAndPorts ...any) error {
	_, err := w.elbv2().DeregisterTargets(w.t.Context(), &elbv2.DeregisterTargetsInput{TargetGroupArn: aws.String(w.arn(group)), Targets: targets(idsAndPorts...)})
	return err
}

// health is what DescribeTargetHealth says, as "id:port state reason", the ids replaced by
// their places in the scaling group.
func (w awsWorld) health(group string, idsAndPorts ...any) string {
	w.t.Helper()
	o, err := w.elbv2().DescribeTargetHealth(w.t.Context(), &elbv2.DescribeTargetHealthInput{TargetGroupArn: aws.String(w.arn(group)), Targets: targets(idsAndPorts...)})
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, x := range o.TargetHealthDescriptions {
		id := *x.Target.Id
		if i := slices.Index(w.instances(), id); i >= 0 {
			id = strconv.Itoa(i)
		}
		h := x.TargetHealth
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s:%d %s %s", id, aws.ToInt32(x.Target.Port), h.State, h.Reason)))
		if (h.Description == nil) != (h.State == types.TargetHealthStateEnumHealthy) || h.Reason != types.TargetHealthReasonEnumNotRegistered && aws.ToString(x.HealthCheckPort) != fmt.Sprint(*x.Target.Port) {
			w.t.Errorf("target %+v, health %+v", x, h)
		}
	}
	return strings.Join(out, "|")
}

// A target is draining for the whole delay, then it is not listed, and unused by its name.
func TestTargetLifeOfATarget(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsBalancer(2, typeApplication, func(b *BalancerConfig) { b.JobDuration = 10 * time.Second })}, func(w awsWorld) {
		id := w.instances()[0]
		wantText(t, "at first", w.health("sgp"), "0:8080 healthy|1:8080 healthy")
		check(t, w.deregisterTargets("sgp", id, 8080))
		for range 2 { // the second call does not make the delay longer
			time.Sleep(149 * time.Second)
			wantText(t, "in the delay", w.health("sgp"), "0:8080 draining Target.DeregistrationInProgress|1:8080 healthy")
			check(t, w.deregisterTargets("sgp", id, 8080))
		}
		time.Sleep(2 * time.Second)
		wantText(t, "after the delay", w.health("sgp"), "1:8080 healthy")
		wantText(t, "named, after the delay", w.health("sgp", id, 8080), "0:8080 unused Target.NotRegistered")
		wantText(t, "on another port", w.health("sgp", w.instances()[1], 9), "1:9 unused Target.NotRegistered")
		check(t, w.deregisterTargets("sgp", id, 8080, "i-0aa11bb22cc33dd44", 1))

		check(t, w.registerTargets("sgp", id, 8080))
		wantText(t, "new", w.health("sgp", id, 8080), "0:8080 initial Elb.RegistrationInProgress")
		time.Sleep(11 * time.Second)
		wantText(t, "registered", w.health("sgp", id, 8080), "0:8080 healthy")
		check(t, w.registerTargets("sgp", id, 8080))
		wantText(t, "registered twice", w.health("sgp"), "1:8080 healthy|0:8080 healthy")

		check(t, w.SetHealth(id, false))
		time.Sleep(time.Second)
		wantText(t, "ill", w.health("sgp", id, 8080), "0:8080 unhealthy Target.ResponseCodeMismatch")
	})
}

// A registration calls off a deregistration, and a target that leaves is checked again.
func TestTargetComesBackWhileDraining(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsBalancer(1, typeNetwork, nil)}, func(w awsWorld) {
		id := w.instances()[0]
		check(t, w.deregisterTargets("sgp", id, 8080))
		check(t, w.registerTargets("sgp", id, 8080))
		wantText(t, "at once", w.health("sgp"), "0:8080 initial Elb.InitialHealthChecking")
		time.Sleep(2 * drainingDefault)
		wantText(t, "long after", w.health("sgp"), "0:8080 healthy")
	})
}

// Every state and every reason that the API has comes over the wire.
func TestTargetStates(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsBalancer(1, typeApplication, nil)}, func(w awsWorld) {
		id, told := w.instances()[0], 0
		for _, state := range types.TargetHealthStateEnum("").Values() {
			if len(targetReasons[string(state)]) == 0 {
				t.Errorf("state %s has no reasons", state)
			}
			for reason := range targetReasons[string(state)] {
				check(t, w.SetTargetHealth(id, string(state), reason))
				wantText(t, "health", w.health("sgp"), strings.TrimSpace(fmt.Sprintf("0:8080 %s %s", state, reason)))
				told++
			}
		}
		for _, reason := range types.TargetHealthReasonEnum("").Values() {
			if !slices.ContainsFunc([]string{targetInitial, targetUnhealthy, targetUnused, targetDraining, targetUnavailable}, func(state string) bool {
				_, ok := targetReasons[state][string(reason)]
				return ok
			}) {
				t.Errorf("no state has the reason %s", reason)
			}
		}
		if told != 15 {
			t.Errorf("%d states with reasons", told)
		}
		if err := w.SetTargetHealth(id, "healthy", "Target.Timeout"); err == nil {
			t.Error("a healthy target with a reason")
		}
		if err := w.SetTargetHealth("i-none", "healthy", ""); err == nil {
			t.Error("no such instance")
		}
		check(t, w.SetTargetHealth(id, "", ""))
		wantText(t, "the truth", w.health("sgp"), "0:8080 healthy")
	})
}

// An instance has a target for each port, and one without a port has the group's. The
// deregistration of one leaves the others.
func TestTargetPorts(t *testing.T) {
	t.Parallel()
	sc := awsBalancer(1, typeApplication, func(b *BalancerConfig) { b.ServerGroups[0].Port = 9000 })
	sc.ScalingGroups[0].ServerGroups[0].Ports = nil
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		id := w.instances()[0]
		check(t, w.registerTargets("sgp", id, 8081, id, 8082))
		time.Sleep(time.Second)
		wantText(t, "all", w.health("sgp"), "0:9000 healthy|0:8081 healthy|0:8082 healthy")
		check(t, w.deregisterTargets("sgp", id, 0, id, 8082))
		time.Sleep(time.Second)
		wantText(t, "some", w.health("sgp"), "0:9000 draining Target.DeregistrationInProgress|0:8081 healthy|0:8082 draining Target.DeregistrationInProgress")
		wantText(t, "the default one", w.health("sgp", id, 0), "0:9000 draining Target.DeregistrationInProgress")
	})
}

// Targets by address: they stay when their machine is gone, and fail their checks.
func TestTargetIPs(t *testing.T) {
	t.Parallel()
	sc := awsBalancer(2, typeNetwork, func(b *BalancerConfig) { b.ServerGroups[0].TargetType = targetIP })
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		g, _ := w.State().Group("asg-1")
		ip, other := g.Instances[0].Address, g.Instances[1].Address
		wantText(t, "at first", w.health("sgp"), ip+":8080 healthy|"+other+":8080 healthy")
		check(t, w.registerTargets("sgp", ip, 81))
		check(t, w.deregisterTargets("sgp", ip, 8080))
		time.Sleep(time.Second)
		wantText(t, "changed", w.health("sgp"), ip+":8080 draining Target.DeregistrationInProgress|"+other+":8080 healthy|"+ip+":81 healthy")
		check(t, w.Terminate(g.Instances[0].ID))
		time.Sleep(time.Second)
		wantText(t, "gone", w.health("sgp"), ip+":8080 draining Target.DeregistrationInProgress|"+other+":8080 healthy|"+ip+":81 unhealthy Target.Timeout")
		time.Sleep(drainingDefault)
		wantText(t, "after the delay", w.health("sgp"), other+":8080 healthy|"+ip+":81 unhealthy Target.Timeout")
		check(t, w.deregisterTargets("sgp", ip, 81))
		time.Sleep(drainingDefault + time.Second)
		wantText(t, "cleared up", w.health("sgp"), other+":8080 healthy")
		wantText(t, "named", w.health("sgp", ip, 81), ip+":81 unused Target.NotRegistered")
		wantText(t, "of an instance's id", codeOf(w.registerTargets("sgp", w.instances()[0], 80)), "InvalidTarget")
		wantText(t, "of a stranger", codeOf(w.registerTargets("sgp", "192.0.2.1", 80)), "InvalidTarget")
	})
}

// An instance that is terminated leaves its groups of instances at once.
func TestTargetOfATerminatedInstance(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsBalancer(2, typeApplication, nil)}, func(w awsWorld) {
		id := w.instances()[0]
		check(t, w.deregisterTargets("sgp", id, 8080))
		check(t, w.Terminate(id))
		wantText(t, "the other", w.health("sgp"), "0:8080 healthy")
		wantText(t, "named", w.health("sgp", id, 8080), id+":8080 unused Target.NotRegistered")
		time.Sleep(drainingDefault)
		wantText(t, "to register it", codeOf(w.registerTargets("sgp", id, 8080)), "InvalidTarget")
	})
}

// Auto Scaling deregisters from what it is attached to, and its hooks begin when the whole
// delay is over, whoever began it.
func TestTargetDetachBeforeTheHook(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{typeApplication, typeNetwork, typeELB} {
		sc := awsBalancer(2, kind, func(b *BalancerConfig) { b.ConnectionDrainTimeout = time.Minute })
		sc.ScalingGroups[0].ServerGroups[0].Unattached = false
		sc.Queues = []QueueConfig{{Name: "q"}}
		sc.ScalingGroups[0].Hooks = []HookConfig{{ID: "drain", Transition: scaleIn, Queue: "q"}}
		bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
			id := w.instances()[0]
			if kind != typeELB {
				check(t, w.deregisterTargets("sgp", id, 8080))
			} else if _, err := w.deregisterClassic(id); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Second)
			if _, err := w.ScaleIn("asg-1", 1); err != nil {
				t.Fatal(err)
			}
			time.Sleep(39 * time.Second)
			if m := w.member(id); m.Status != serverRemoving || len(w.State().Actions) != 0 {
				t.Errorf("%s: in the delay %+v, %d actions", kind, m, len(w.State().Actions))
			}
			time.Sleep(2 * time.Second)
			if m := w.member(id); m.Left == nil || len(w.State().Actions) != 1 {
				t.Errorf("%s: after the delay %+v, %d actions", kind, m, len(w.State().Actions))
			}
		})
	}
}

// What Auto Scaling knows nothing of stays as it is while the hooks run.
func TestTargetUnattachedStays(t *testing.T) {
	t.Parallel()
	sc := awsBalancer(1, typeApplication, nil)
	sc.Queues = []QueueConfig{{Name: "q"}}
	sc.ScalingGroups[0].Hooks = []HookConfig{{ID: "drain", Transition: scaleIn, Queue: "q"}}
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		if _, err := w.ScaleIn("asg-1", 1); err != nil || len(w.State().Actions) != 1 {
			t.Fatalf("%d actions, %v", len(w.State().Actions), err)
		}
		wantText(t, "in the hook", w.health("sgp"), "0:8080 healthy")
	})
}

// awsFleet has balancers with so many target groups, the last of them without a listener.
func awsFleet(balancers, groups int) Scenario {
	sc := Scenario{Provider: providerAWS}
	for i := range balancers {
		b := BalancerConfig{ID: fmt.Sprint("lb-", i), Type: typeApplication}
		for j := range groups {
			b.ServerGroups = append(b.ServerGroups, ServerGroupConfig{ID: fmt.Sprintf("tg-%d-%d", i, j)})
			if j < groups-1 {
				b.Listeners = append(b.Listeners, ListenerConfig{Port: 80 + j, ServerGroup: b.ServerGroups[j].ID})
			}
		}
		sc.Balancers = append(sc.Balancers, b)
	}
	return sc
}

func TestTargetGroupPages(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsFleet(3, 3)}, func(w awsWorld) {
		var seen []types.TargetGroup
		counts := ""
		pages := elbv2.NewDescribeTargetGroupsPaginator(w.elbv2(), &elbv2.DescribeTargetGroupsInput{PageSize: aws.Int32(4)})
		for pages.HasMorePages() {
			page, err := pages.NextPage(w.t.Context())
			check(t, err)
			counts += fmt.Sprint(len(page.TargetGroups), " ")
			seen = append(seen, page.TargetGroups...)
		}
		wantText(t, "pages", counts, "4 4 1 ")
		arns := map[string]bool{}
		for i, g := range seen {
			arns[*g.TargetGroupArn] = true
			if *g.TargetGroupName != fmt.Sprintf("tg-%d-%d", i/3, i%3) || !strings.HasPrefix(*g.TargetGroupArn, "arn:aws:elasticloadbalancing:eu-west-1:111122223333:targetgroup/"+*g.TargetGroupName+"/") ||
				g.TargetType != "instance" || g.Protocol != "HTTP" || *g.Port != 80 || len(g.LoadBalancerArns) != map[bool]int{true: 0, false: 1}[i%3 == 2] {
				t.Errorf("target group %d: %+v", i, g)
			}
		}
		if len(arns) != 9 {
			t.Errorf("%d different ARNs", len(arns))
		}
		for what, c := range map[string]struct {
			in   *elbv2.DescribeTargetGroupsInput
			want string
		}{
			"by name":     {&elbv2.DescribeTargetGroupsInput{Names: []string{"tg-2-1", "tg-0-2"}}, "tg-0-2 tg-2-1"},
			"by ARN":      {&elbv2.DescribeTargetGroupsInput{TargetGroupArns: []string{*seen[4].TargetGroupArn}}, "tg-1-1"},
			"by balancer": {&elbv2.DescribeTargetGroupsInput{LoadBalancerArn: &seen[3].LoadBalancerArns[0]}, "tg-1-0 tg-1-1"},
		} {
			o, err := w.elbv2().DescribeTargetGroups(w.t.Context(), c.in)
			check(t, err)
			var names []string
			for _, g := range o.TargetGroups {
				names = append(names, *g.TargetGroupName)
			}
			wantText(t, what, strings.Join(names, " "), c.want)
		}
		lbs, err := w.elbv2().DescribeLoadBalancers(w.t.Context(), &elbv2.DescribeLoadBalancersInput{Names: []string{"lb-1"}})
		check(t, err)
		if b := lbs.LoadBalancers[0]; len(lbs.LoadBalancers) != 1 || *b.LoadBalancerArn != seen[3].LoadBalancerArns[0] || b.Type != "application" || b.State.Code != "active" || b.CreatedTime == nil {
			t.Errorf("load balancers %+v", lbs.LoadBalancers)
		}
		part, err := w.elbv2().DescribeLoadBalancers(w.t.Context(), &elbv2.DescribeLoadBalancersInput{PageSize: aws.Int32(2)})
		check(t, err)
		rest, err := w.elbv2().DescribeLoadBalancers(w.t.Context(), &elbv2.DescribeLoadBalancersInput{Marker: part.NextMarker})
		check(t, err)
		if len(part.LoadBalancers) != 2 || len(rest.LoadBalancers) != 1 || rest.NextMarker != nil {
			t.Errorf("pages of %d and %d balancers", len(part.LoadBalancers), len(rest.LoadBalancers))
		}
		if _, err := w.InjectFault(Fault{Service: "elbv2", Action: "DescribeTargetGroups", Kind: FaultEmpty, Count: 1}); err != nil {
			t.Fatal(err)
		}
		if o, err := w.elbv2().DescribeTargetGroups(w.t.Context(), &elbv2.DescribeTargetGroupsInput{}); err != nil || len(o.TargetGroups) != 0 {
			t.Errorf("with the fault: %+v, %v", o, err)
		}
	})
}

func TestTargetGroupAttributes(t *testing.T) {
	t.Parallel()
	sc := awsBalancer(1, typeNetwork, func(b *BalancerConfig) {
		b.ServerGroups = append(b.ServerGroups, ServerGroupConfig{ID: "quick", ConnectionDrainTimeout: 20 * time.Second})
	})
	sc.Balancers = append(sc.Balancers, BalancerConfig{ID: "other", Type: typeApplication, ConnectionDraining: new(false), ServerGroups: []ServerGroupConfig{{ID: "at-once"}}})
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		delay := func(arn string) string {
			o, err := w.elbv2().DescribeTargetGroupAttributes(w.t.Context(), &elbv2.DescribeTargetGroupAttributesInput{TargetGroupArn: &arn})
			check(t, err)
			for _, a := range o.Attributes {
				if *a.Key == delayAttribute {
					return *a.Value
				}
			}
			return ""
		}
		other, _ := w.State().Balancer("other")
		wantText(t, "delays", delay(w.arn("sgp"))+" "+delay(w.arn("quick"))+" "+delay(other.ServerGroups[0].ARN), "300 20 0")
		_, err := w.elbv2().ModifyTargetGroupAttributes(w.t.Context(), &elbv2.ModifyTargetGroupAttributesInput{
			TargetGroupArn: aws.String(w.arn("sgp")), Attributes: []types.TargetGroupAttribute{{Key: aws.String(delayAttribute), Value: aws.String("60")}},
		})
		check(t, err)
		wantText(t, "changed", delay(w.arn("sgp")), "60")
		check(t, w.deregisterTargets("sgp", w.instances()[0], 8080))
		time.Sleep(59 * time.Second)
		wantText(t, "in the delay", w.health("sgp"), "0:8080 draining Target.DeregistrationInProgress")
		time.Sleep(2 * time.Second)
		wantText(t, "after it", w.health("sgp"), "")
	})
}

func TestTargetErrors(t *testing.T) {
	t.Parallel()
	sc := awsBalancer(1, typeApplication, nil)
	sc.Timings.Boot = time.Hour
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		if _, err := w.ScaleOut("asg-1", 1); err != nil {
			t.Fatal(err)
		}
		id, booting, arn := w.instances()[0], w.instances()[1], w.arn("sgp")
		none := arn[:len(arn)-1] + "g"
		at := func(pairs ...string) []string { return append([]string{"TargetGroupArn", arn}, pairs...) }
		for _, c := range []struct {
			code, action string
			pairs        []string
		}{
			{"TargetGroupNotFound", "DescribeTargetHealth", []string{"TargetGroupArn", none}},
			{"TargetGroupNotFound", "DeregisterTargets", []string{"TargetGroupArn", none, "Targets.member.1.Id", id}},
			{"TargetGroupNotFound", "DescribeTargetGroups", []string{"Names.member.1", "sgp", "Names.member.2", "none"}},
			{"TargetGroupNotFound", "DescribeTargetGroups", []string{"TargetGroupArns.member.1", none}},
			{"TargetGroupNotFound", "DescribeTargetGroupAttributes", []string{"TargetGroupArn", none}},
			{"TargetGroupNotFound", "ModifyTargetGroupAttributes", []string{"TargetGroupArn", none, "Attributes.member.1.Key", delayAttribute, "Attributes.member.1.Value", "1"}},
			{"LoadBalancerNotFound", "DescribeTargetGroups", []string{"LoadBalancerArn", none}},
			{"LoadBalancerNotFound", "DescribeLoadBalancers", []string{"Names.member.1", "none"}},
			{"ValidationError", "DescribeTargetHealth", nil},
			{"ValidationError", "DescribeTargetHealth", []string{"TargetGroupArn", "sgp"}},
			{"ValidationError", "DescribeTargetHealth", at("Targets.member.1.Port", "80")},
			{"ValidationError", "DeregisterTargets", at()},
			{"ValidationError", "DeregisterTargets", at("Targets.member.1.Id", id, "Targets.member.1.Port", "0")},
			{"ValidationError", "RegisterTargets", at("Targets.member.1.Id", id, "Targets.member.1.Port", "65536")},
			{"ValidationError", "DescribeTargetGroups", []string{"PageSize", "0"}},
			{"ValidationError", "DescribeTargetGroups", []string{"Marker", "MTAw"}}, // 100
			{"ValidationError", "ModifyTargetGroupAttributes", at()},
			{"ValidationError", "ModifyTargetGroupAttributes", at("Attributes.member.1.Key", "other", "Attributes.member.1.Value", "1")},
			{"ValidationError", "ModifyTargetGroupAttributes", at("Attributes.member.1.Key", delayAttribute, "Attributes.member.1.Value", "3601")},
			{"InvalidTarget", "DescribeTargetHealth", at("Targets.member.1.Id", "i-0aa11bb22cc33dd44")},
			{"InvalidTarget", "RegisterTargets", at("Targets.member.1.Id", id, "Targets.member.2.Id", "i-0aa11bb22cc33dd44")},
			{"InvalidTarget", "RegisterTargets", at("Targets.member.1.Id", booting)},
			{"InvalidAction", "DeleteTargetGroup", at()},
		} {
			w.refusedWith(w.query("elbv2", c.action, c.pairs...), 400, "<Code>"+c.code+"</Code>")
		}
		wantText(t, "after all", w.health("sgp"), "0:8080 healthy")
	})
}

// Throttling and an unhealthy service arrive as the SDK expects them, and a policy that
// allows to look and not to touch holds.
func TestTargetRefusals(t *testing.T) {
	t.Parallel()
	sc := awsBalancer(1, typeApplication, nil)
	sc.Policy = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["elasticloadbalancing:Describe*"],"Resource":"*"}]}`
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		id := w.instances()[0]
		if err := w.deregisterTargets("sgp", id, 8080); codeOf(err) != "AccessDenied" || !strings.Contains(err.Error(), "elasticloadbalancing:DeregisterTargets on resource: "+w.arn("sgp")) {
			t.Errorf("without the permission: %v", err)
		}
		for _, f := range []Fault{
			{Service: "elbv2", Action: "DescribeTargetHealth", Kind: FaultThrottle, Count: 1},
			{Service: "elbv2", Kind: FaultError, Code: "HealthUnavailable", Status: 500, Count: 1},
		} {
			if _, err := w.InjectFault(f); err != nil {
				t.Fatal(err)
			}
		}
		for _, want := range []string{"Throttling", "HealthUnavailable"} {
			_, err := w.elbv2().DescribeTargetHealth(w.t.Context(), &elbv2.DescribeTargetHealthInput{TargetGroupArn: aws.String(w.arn("sgp"))})
			wantText(t, "refusal", codeOf(err), want)
		}
		wantText(t, "afterwards", w.health("sgp"), "0:8080 healthy")
	})
}

// While a target drains it gets no new request, and what it has goes on, until the delay
// is over: then it is cut. The target is draining all the while, busy or not.
func TestTargetDrainsTraffic(t *testing.T) {
	t.Parallel()
	for _, delay := range []time.Duration{time.Hour, 100 * time.Millisecond} {
		w := startAWS(t, Options{Scenario: awsBalancer(2, typeApplication, func(b *BalancerConfig) { b.ConnectionDrainTimeout = delay })})
		id, statuses := w.instances()[0], w.slowRequests(2)
		check(t, w.deregisterTargets("sgp", id, 8080))
		c := user(t)
		for range 10 {
			if status, instance := w.fetch(c, "/"); status != 200 || instance == id {
				t.Fatalf("status %d from %s while %s drains", status, instance, id)
			}
		}
		if delay == time.Hour {
			if m := w.member(id); m.InFlight != 1 || !m.Draining || m.InService || m.Left != nil {
				t.Errorf("while it drains: %+v", m)
			}
			wantText(t, "while it drains", w.health("sgp"), "0:8080 draining Target.DeregistrationInProgress|1:8080 healthy")
			continue
		}
		if status := <-statuses; status != http.StatusBadGateway {
			t.Errorf("the request in flight got %d, want 502 at the end of the delay", status)
		}
		until(t, "it has left", func() bool { return w.member(id).Left != nil })
		wantText(t, "at the end", w.health("sgp"), "1:8080 healthy")
		select {
		case status := <-statuses:
			t.Errorf("the other target's request ended too, with %d", status)
		default:
		}
	}
}

// A target with nothing in flight stays draining all the same, when a classic balancer has
// let the instance go long since.
func TestTargetIdleKeepsDraining(t *testing.T) {
	t.Parallel()
	sc := awsBalancer(1, typeApplication, func(b *BalancerConfig) { b.ConnectionDrainTimeout = time.Hour })
	sc.Balancers = append(sc.Balancers, BalancerConfig{ID: "old", Type: typeELB, ConnectionDrainTimeout: time.Hour})
	sc.ScalingGroups[0].ServerGroups = append(sc.ScalingGroups[0].ServerGroups, MembershipConfig{ID: "old", Unattached: true})
	w := startAWS(t, Options{Scenario: sc})
	id := w.instances()[0]
	check(t, w.deregisterTargets("sgp", id, 8080))
	_, err := w.elb().DeregisterInstancesFromLoadBalancer(t.Context(), &elb.DeregisterInstancesFromLoadBalancerInput{LoadBalancerName: aws.String("old"), Instances: elbIDs(id)})
	check(t, err)
	until(t, "the classic balancer has let it go", func() bool {
		old, _ := w.State().Balancer("old")
		return old.Members[0].Left != nil
	})
	wantText(t, "idle", w.health("sgp"), "0:8080 draining Target.DeregistrationInProgress")
}

// Over a network balancer a connection outlives its target's deregistration, until the
// delay is over.
func TestTargetConnectionsDrain(t *testing.T) {
	t.Parallel()
	for _, delay := range []time.Duration{time.Hour, 100 * time.Millisecond} {
		w := startAWS(t, Options{Scenario: awsBalancer(2, typeNetwork, func(b *BalancerConfig) { b.ConnectionDrainTimeout = delay })})
		conn := w.dial()
		id := line(t, conn, "/")
		check(t, w.deregisterTargets("sgp", id, 8080))
		for range 4 {
			if got := line(t, w.dial(), "/"); got == id {
				t.Errorf("a new connection leads to %s, which drains", id)
			}
		}
		if delay == time.Hour {
			wantText(t, "the old connection", line(t, conn, "/"), id)
			continue
		}
		if _, err := conn.Read(make([]byte, 1)); err == nil {
			t.Error("not cut at the end of the delay")
		}
	}
}

// With a delay of 0 all is cut at once.
func TestTargetWithoutDelay(t *testing.T) {
	t.Parallel()
	w := startAWS(t, Options{Scenario: awsBalancer(1, typeApplication, func(b *BalancerConfig) { b.ConnectionDraining = new(false) })})
	id, statuses := w.instances()[0], w.slowRequests(1)
	check(t, w.deregisterTargets("sgp", id, 8080))
	wantText(t, "at once", w.health("sgp"), "")
	if status := <-statuses; status != http.StatusBadGateway {
		t.Errorf("the request in flight got %d, want 502", status)
	}
}

// The reasons of a target that fails its checks come from what the checks saw. When all
// fail, the balancer takes them all: a request in flight lives on, and new ones arrive.
func TestTargetFailsItsChecks(t *testing.T) {
	t.Parallel()
	w := startAWS(t, Options{Scenario: awsBalancer(2, typeApplication, nil)})
	g, _ := w.State().Group("asg-1")
	statuses, c := w.slowRequests(2), user(t)
	check(t, w.SetHealth(g.Instances[0].ID, false))
	until(t, "one is ill", func() bool {
		return w.health("sgp") == "0:8080 unhealthy Target.ResponseCodeMismatch|1:8080 healthy"
	})
	for range 4 {
		if status, id := w.fetch(c, "/"); status != 200 || id != g.Instances[1].ID {
			t.Errorf("status %d from %s, which is ill", status, id)
		}
	}
	check(t, w.SetHealth(g.Instances[1].ID, false))
	until(t, "all are ill", func() bool { return strings.Count(w.health("sgp"), "unhealthy") == 2 })
	seen := map[string]bool{}
	for range 4 {
		if status, id := w.fetch(c, "/"); status == 200 {
			seen[id] = true
		}
	}
	if len(seen) != 2 || len(statuses) != 0 {
		t.Errorf("%d of the ill targets serve, %d requests in flight have ended", len(seen), len(statuses))
	}
}

// Over a network balancer the connections of a target end when it is found ill.
func TestTargetConnectionsEndWhenIll(t *testing.T) {
	t.Parallel()
	w := startAWS(t, Options{Scenario: awsBalancer(2, typeNetwork, nil)})
	conn := w.dial()
	check(t, w.SetHealth(line(t, conn, "/"), false))
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection to an ill target lives")
	}
}

// A target whose server takes no connections fails its checks for that.
func TestTargetRefusesConnections(t *testing.T) {
	t.Parallel()
	w := startAWS(t, Options{Scenario: awsBalancer(1, typeNetwork, func(b *BalancerConfig) { b.ServerGroups[0].TargetType = targetIP })})
	in := w.firstInstance()
	check(t, w.Terminate(in.ID))
	until(t, "it is ill", func() bool { return w.health("sgp") == in.Address+":8080 unhealthy Target.FailedHealthChecks" })
}

// A target whose server does not answer in time fails its checks for that.
func TestTargetTimesOut(t *testing.T) {
	t.Parallel()
	deaf, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer deaf.Close()
	result := probe(t.Context(), &http.Client{Timeout: 20 * time.Millisecond, Transport: &http.Transport{DisableKeepAlives: true}}, "http://"+deaf.Addr().String())
	if got := result.targetHealth(); got.state != targetUnhealthy || got.reason != "Target.Timeout" {
		t.Errorf("%+v", got)
	}
}

func TestAWSBalancerScenarios(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"balancers:\n  - id: lb\n    type: clb\n":                                                                                                                                                  `type`,
		"balancers:\n  - id: lb\n    type: network\n":                                                                                                                                              `server_groups: network needs one or more`,
		"balancers:\n  - id: lb\n    type: elb\n    server_groups: [{id: a}]\n":                                                                                                                    `elb has none`,
		"balancers:\n  - id: lb\n    type: application\n    server_groups: [{id: a, target_type: lambda}]\n":                                                                                       `target_type`,
		"balancers:\n  - id: lb\n    type: application\n    server_groups: [{id: a, name: a_b}]\n":                                                                                                 `does not match`,
		"balancers:\n  - id: lb\n    type: application\n    connection_drain_timeout: 61m\n    server_groups: [{id: a}]\n":                                                                         `connection_drain_timeout`,
		"balancers:\n  - id: lb\n    type: application\n    connection_draining: false\n    server_groups: [{id: a, connection_drain_timeout: 1s}]\n":                                              `connection_draining is false`,
		"balancers:\n  - id: lb\n    connection_draining: false\n":                                                                                                                                 `only elb, application and network`,
		"balancers:\n  - id: lb\n    type: elb\n    listeners: [{port: 80, connection_drain_timeout: 1s}]\n":                                                                                       `elb sets it on the balancer`,
		"balancers:\n  - id: lb\n    type: network\n    server_groups: [{id: a}]\n    listeners: [{port: 80, protocol: http}]\n":                                                                   `protocol`,
		"balancers:\n  - id: lb\n    type: network\n    server_groups: [{id: a, target_type: ip}]\nscaling_groups:\n  - id: g\n    server_groups: [{id: a}]\n":                                     `Auto Scaling attaches target groups of type instance only`,
		"balancers:\n  - id: lb\n    type: elb\nscaling_groups:\n  - id: g\n    server_groups: [{id: lb, ports: [80]}]\n":                                                                          `the listeners of "lb" say the port`,
		"balancers:\n  - id: lb\n    type: network\n    server_groups: [{id: a}, {id: b, target_type: ip}]\nscaling_groups:\n  - id: g\n    server_groups: [{id: a}, {id: b, unattached: true}]\n": "",
	} {
		_, err := parseScenario("x", []byte("provider: aws\n"+text))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s\n%v, want %q", text, err, want)
		}
	}
	_, err := parseScenario("x", []byte("balancers:\n  - id: lb\n    type: alb\n    server_groups: [{id: a, target_type: ip, port: 80}]\n"))
	if err == nil || !strings.Contains(err.Error(), "only application and network have it") {
		t.Errorf("target groups on the other cloud: %v", err)
	}
}
