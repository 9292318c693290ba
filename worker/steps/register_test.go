package steps_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
	"example.org/usher/worker/steps"
)

func (b *balanced) register(change func(*steps.Register)) steps.Register {
	b.Helper()
	r := steps.Register{Balancers: []providers.Balancer{clb, vgroup, alb, nlb}, Port: 8080, Weight: 100, Healthy: true, Cloud: b.cloud}
	if change != nil {
		change(&r)
	}
	if err := r.Validate(); err != nil || r.Name() != "register" {
		b.Fatal(err)
	}
	return r
}

// outside is an instance that is in no balancer.
func (b *balanced) outside() messages.Instance {
	b.Helper()
	in := b.instances(1)[0]
	if _, err := b.run(b.deregister(func(d *steps.Deregister) { d.Drain, d.WeightZero = false, 0 }), in, 5*time.Minute); err != nil {
		b.Fatal(err)
	}
	return in
}

func TestRegister(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		in := b.outside()
		before := maps.Clone(b.sim.State().APICalls)
		detail, err := b.run(b.register(nil), in, 5*time.Minute)
		if err != nil {
			b.Fatal(err)
		}
		if want := "joined clb:lb-1 with weight 100, healthy; joined clb-vserver-group:rsp-1 port 8080 with weight 100, healthy; " +
			"joined alb:sgp-a port 8080 with weight 100, healthy; joined nlb:sgp-n port 8080 with weight 100, healthy"; detail != want {
			b.Errorf("got %q", detail)
		}
		const joined = "lb-1:0=100 rsp-1:8080=100 sgp-a:8080=100 sgp-n:8080=100"
		if got := b.memberships(in.ID); got != joined {
			b.Errorf("a member of %s", got)
		}
		b.Logf("%d calls", b.calls(before))
		// Again: nothing is changed. A weight that is higher is left as it is.
		before = maps.Clone(b.sim.State().APICalls)
		for _, weight := range []int{100, 20} {
			if _, err := b.run(b.register(func(r *steps.Register) { r.Weight, r.Ramp = weight, time.Minute }), in, 5*time.Minute); err != nil {
				b.Error(err)
			}
		}
		if n := b.calls(before, "Add", "Set", "Update"); n != 0 || b.memberships(in.ID) != joined {
			b.Errorf("%d changes, %s", n, b.memberships(in.ID))
		}
	})
}

// TestRamp: the weight grows in five equal steps, and one that takes over goes on.
func TestRamp(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		in := b.outside()
		step := b.register(func(r *steps.Register) {
			r.Balancers, r.Ramp, r.Weight = []providers.Balancer{clb, alb}, 4*time.Minute, 50
		})
		seen := make(chan []string)
		stop := make(chan struct{})
		go func() {
			var all []string
			for {
				if got := b.memberships(in.ID); !strings.Contains(got, "Configuring") && !strings.Contains(got, "Adding") {
					for _, m := range strings.Fields(got) {
						if strings.HasPrefix(m, "sgp-a") && !slices.Contains(all, m) {
							all = append(all, m)
						}
					}
				}
				select {
				case <-stop:
					seen <- all
					return
				case <-time.After(500 * time.Millisecond):
				}
			}
		}()
		if _, err := b.run(step, in, 100*time.Second); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "its weight is 20 of 50") {
			b.Errorf("interrupted: %v", err)
		}
		began := time.Now()
		other := step
		other.Cloud = b.client()
		if _, err := b.run(other, in, 5*time.Minute); err != nil {
			b.Error(err)
		}
		if took := time.Since(began); took < 3*time.Minute || took > 4*time.Minute {
			b.Errorf("the rest took %v", took)
		}
		time.Sleep(10 * time.Second)
		close(stop)
		if got := fmt.Sprint(<-seen); got != "[sgp-a:8080=10 sgp-a:8080=20 sgp-a:8080=30 sgp-a:8080=40 sgp-a:8080=50]" {
			b.Errorf("weights %s", got)
		}
		if got := b.memberships(in.ID); got != "lb-1:0=50 sgp-a:8080=50" {
			b.Errorf("a member of %s", got)
		}
	})
}

func TestRegisterFails(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		in := b.outside()
		only := func(of providers.Balancer) steps.Register {
			return b.register(func(r *steps.Register) { r.Balancers = []providers.Balancer{of} })
		}
		for _, kind := range []providers.BalancerKind{providers.CLB, providers.CLBGroup, providers.ALB, providers.NLB} {
			if _, err := b.run(only(providers.Balancer{Kind: kind, ID: "none"}), in, time.Minute); !errors.Is(err, providers.ErrNotFound) {
				b.Errorf("no such %s: %v", kind, err)
			}
		}
		// A sick instance is not found healthy, and the others are joined all the same.
		if err := b.sim.SetHealth(string(in.ID), false); err != nil {
			b.Fatal(err)
		}
		_, err := b.run(b.register(nil), in, time.Minute)
		if err == nil || !strings.Contains(err.Error(), "alb:sgp-a: the balancer's checks have not found it healthy in two looks, it is un") || strings.Count(err.Error(), "checks have not found it") != 4 {
			b.Errorf("sick: %v", err)
		}
		if _, err := b.run(b.register(func(r *steps.Register) { r.Healthy = false }), in, time.Minute); err != nil {
			b.Errorf("sick, nobody asks: %v", err)
		}
		if err := b.sim.SetHealth(string(in.ID), true); err != nil {
			b.Fatal(err)
		}
		if _, err := b.run(b.register(nil), in, time.Minute); err != nil {
			b.Errorf("well again: %v", err)
		}

		// A job that fails.
		in = b.outside()
		b.inject(simulator.Fault{Service: "nlb", Action: "AddServersToServerGroup", Kind: simulator.FaultJobFails, Count: 1})
		if _, err := b.run(only(nlb), in, time.Minute); !errors.Is(err, providers.ErrChangeFailed) {
			b.Errorf("a failed job: %v", err)
		}
		if _, err := b.run(only(nlb), in, time.Minute); err != nil {
			b.Errorf("and again: %v", err)
		}
		b.inject(simulator.Fault{Service: "alb", Action: "AddServersToServerGroup", Kind: simulator.FaultDenied})
		if _, err := b.run(only(alb), in, time.Minute); !errors.Is(err, providers.ErrDenied) || !strings.Contains(err.Error(), "allow alb:AddServersToServerGroup on acs:alb:cn-shenzhen:*:servergroup/sgp-a") {
			b.Errorf("denied: %v", err)
		}
	})
}

// TestRegisterFailsPartly: what was joined stays, and the error says so.
func TestRegisterFailsPartly(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		in := b.outside()
		b.inject(simulator.Fault{Service: "nlb", Kind: simulator.FaultDenied})
		_, err := b.run(b.register(func(r *steps.Register) { r.Balancers = []providers.Balancer{clb, nlb} }), in, time.Minute)
		if !errors.Is(err, providers.ErrDenied) || !strings.Contains(err.Error(), "(joined clb:lb-1 with weight 100, healthy): nlb:sgp-n: ") {
			b.Errorf("%v", err)
		}
		if got := b.memberships(in.ID); got != "lb-1:0=100" {
			b.Errorf("a member of %s", got)
		}
	})
}

// TestRegisterAtOnce: the member that was added a moment ago and is named by no check yet is not
// taken for healthy.
func TestRegisterAtOnce(t *testing.T) {
	for _, took := range []time.Duration{time.Millisecond, 500 * time.Millisecond, time.Second, 1200 * time.Millisecond} {
		t.Run(took.String(), func(t *testing.T) {
			scenario := balancedScenario(4, true)
			scenario.Balancers[1].JobDuration = took
			inBalanced(t, scenario, func(b *balanced) {
				in := b.outside()
				if err := b.sim.SetHealth(string(in.ID), false); err != nil {
					b.Fatal(err)
				}
				time.Sleep(30 * time.Second)
				for _, other := range b.instances(4)[1:] { // one port in common
					if _, err := b.cloud.Remove(b.Context(), providers.Membership{Balancer: alb, Instance: other.ID, Port: 8081}); err != nil {
						b.Fatal(err)
					}
				}
				time.Sleep(30 * time.Second)
				_, err := b.run(b.register(func(r *steps.Register) { r.Balancers, r.Port = []providers.Balancer{alb}, 0 }), in, time.Minute)
				if err == nil || !strings.Contains(err.Error(), "checks have not found it healthy in two looks, it is un") {
					b.Errorf("%v", err)
				}
			})
		})
	}
}

// TestRegisterPort: without one the group's own is taken, if it has one.
func TestRegisterPort(t *testing.T) {
	scenario := balancedScenario(2, true)
	scenario.Balancers[2].ServerGroups = append(scenario.Balancers[2].ServerGroups, simulator.ServerGroupConfig{ID: "sgp-empty"})
	inBalanced(t, scenario, func(b *balanced) {
		in := b.outside()
		join := func(of providers.Balancer) error {
			_, err := b.run(b.register(func(r *steps.Register) { r.Balancers, r.Port = []providers.Balancer{of}, 0 }), in, time.Minute)
			return err
		}
		if err := join(nlb); err != nil || b.memberships(in.ID) != "sgp-n:8080=100" {
			b.Errorf("one port: %v, %s", err, b.memberships(in.ID))
		}
		if err := join(alb); err == nil || !strings.Contains(err.Error(), "its members have different ports ([8080 8081]): say port") {
			b.Errorf("two ports: %v", err)
		}
		if err := join(providers.Balancer{Kind: providers.NLB, ID: "sgp-empty"}); err == nil || !strings.Contains(err.Error(), "no members whose port could be taken") {
			b.Errorf("no members: %v", err)
		}
	})
}

// TestTwoWorkersJoin: at the same time, and while the instance is still leaving from before.
func TestTwoWorkersJoin(t *testing.T) {
	inBalanced(t, balancedScenario(4, true), func(b *balanced) {
		in := b.instances(1)[0]
		if _, err := b.run(b.deregister(func(d *steps.Deregister) { d.Balancers = []providers.Balancer{nlb} }), in, 11*time.Second); !errors.Is(err, context.DeadlineExceeded) {
			b.Fatal(err)
		}
		other := b.register(func(r *steps.Register) { r.Cloud, r.Weight = b.client(), 60 })
		done := make(chan error)
		go func() { _, err := b.run(other, in, 5*time.Minute); done <- err }()
		if _, err := b.run(b.register(func(r *steps.Register) { r.Weight = 60 }), in, 5*time.Minute); err != nil {
			b.Error(err)
		}
		if err := <-done; err != nil {
			b.Error(err)
		}
		if got := b.memberships(in.ID); !strings.HasSuffix(got, "sgp-n:8080=60") {
			b.Errorf("a member of %s", got)
		}
	})
}
