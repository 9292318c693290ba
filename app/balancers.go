package app

import (
	"fmt"

	"example.org/usher/configs"
	"example.org/usher/providers"
	"example.org/usher/worker"
	"example.org/usher/worker/steps"
)

// balancersOf is what the balancer steps of a group have.
type balancersOf struct {
	providers.Balancers
	departures *steps.Departures
}

func named(list []configs.Balancer) []providers.Balancer {
	out := make([]providers.Balancer, len(list))
	for i, c := range list {
		out[i] = providers.Balancer{Kind: providers.BalancerKind(c.Kind), ID: c.ID}
	}
	return out
}

// newBalancerStep builds deregister and register.
func newBalancerStep(s configs.Step, b *balancersOf) (worker.Step, error) {
	switch {
	case b == nil:
	case s.Deregister != nil:
		d := s.Deregister
		return checked(steps.Deregister{
			Balancers: named(d.Balancers), Drain: d.Drain == configs.DrainWait, WeightZero: d.WeightZero, Margin: d.Margin,
			LastHealthy: d.LastHealthy, DNSTTL: d.DNSTTL, Cloud: b.Balancers, Departures: b.departures,
		})
	case s.Register != nil:
		r := s.Register
		return checked(steps.Register{
			Balancers: named(r.Balancers), Port: r.Port, Weight: r.Weight, Ramp: r.Ramp, Healthy: r.Wait == configs.WaitHealthy, Cloud: b.Balancers,
		})
	}
	return nil, fmt.Errorf("no step is called %q", s.Kind)
}
