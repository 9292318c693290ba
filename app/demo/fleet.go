package demo

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"

	"example.org/usher/configs"
	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/aws"
	"example.org/usher/simulator"
)

// The simulated cloud. Both groups are behind the one balancer and differ in the
// lifecycle hook alone. On AWS the balancer has a target group that Auto Scaling does not
// know: else it would take instances out itself, and wait for their requests.
const (
	plainGroup  = "asg-demo-without-hook"
	hookedGroup = "asg-demo-with-hook"
	groupSize   = 3
	fleetSize   = 2 * groupSize
	balancerID  = "alb-demo"
)

// stage is what tells the demo on one cloud from that on another.
type stage struct {
	provider, region, queue, hookID string
	// nameIsID: a group is called by its id.
	nameIsID bool
	// actions is how many lifecycle actions the scale-in makes.
	actions int
	// targetGroup is the name of the balancer's, "" if Auto Scaling itself keeps the
	// instances in the balancer.
	targetGroup string
	// without is what a scale-in does when nobody waits.
	without string
}

var stages = map[string]stage{
	configs.ProviderAlibaba: {
		provider: configs.ProviderAlibaba, region: "cn-shenzhen", queue: "ess-lifecycle", hookID: "ash-demo-drain", actions: 1,
		without: "takes 3 instances out of the balancer and stops them at once",
	},
	// AWS tells of each instance in an action of its own.
	configs.ProviderAWS: {
		provider: configs.ProviderAWS, region: "eu-west-1", queue: "drain-q", hookID: "drain-on-scale-in", nameIsID: true, actions: groupSize,
		targetGroup: "tg-demo", without: "stops 3 instances at once, while the target group still sends them requests",
	},
}

const (
	pollEvery   = 50 * time.Millisecond // of the simulator's state
	bootTime    = time.Second
	hookTimeout = 2 * time.Minute
	targetPort  = 80 // of the target group
)

// fleet is the cloud in a box with its endpoint on a real socket.
type fleet struct {
	stage
	sim              *simulator.Simulator
	url              string
	keyID, keySecret string
	balancer         string // its address
	server           *http.Server
	running          sync.WaitGroup
}

func (s stage) scenario() simulator.Scenario {
	name := func(id, name string) string {
		if s.nameIsID {
			return id
		}
		return name
	}
	balancer := simulator.BalancerConfig{
		ID: balancerID,
		// A busy machine is not to look like a sick instance.
		HealthCheck: simulator.HealthCheck{Timeout: 5 * time.Second, Fall: 3},
	}
	balancers, members := []string{balancerID}, []simulator.MembershipConfig(nil)
	if s.targetGroup != "" {
		balancer.Type, balancer.ServerGroups = "application", []simulator.ServerGroupConfig{{ID: s.targetGroup}}
		balancers, members = nil, []simulator.MembershipConfig{{ID: s.targetGroup, Unattached: true}}
	}
	return simulator.Scenario{
		Provider: s.provider, Region: s.region,
		Queues:    []simulator.QueueConfig{{Name: s.queue, VisibilityTimeout: 30 * time.Second}},
		Balancers: []simulator.BalancerConfig{balancer},
		ScalingGroups: []simulator.GroupConfig{
			{ID: plainGroup, Name: name(plainGroup, "without-hook"), Instances: groupSize, Balancers: balancers, ServerGroups: members},
			{
				ID: hookedGroup, Name: name(hookedGroup, "with-hook"), Instances: groupSize, Balancers: balancers, ServerGroups: members,
				Hooks: []simulator.HookConfig{{
					ID: s.hookID, Name: "drain-on-scale-in", Transition: "scale_in", Queue: s.queue, HeartbeatTimeout: hookTimeout,
				}},
			},
		},
		Timings: simulator.Timings{Boot: bootTime},
	}
}

func newFleet(s stage) (*fleet, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen on a free port of 127.0.0.1: %w", err)
	}
	f := &fleet{stage: s, url: "http://" + listener.Addr().String(), keyID: "demo" + rand.Text(), keySecret: rand.Text()}
	f.sim, err = simulator.New(simulator.Options{
		AccessKeyID: f.keyID, AccessKeySecret: f.keySecret, Scenario: s.scenario(), Exec: true,
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the simulated cloud: %w", err), listener.Close())
	}
	f.balancer = f.sim.State().Balancers[0].Address
	f.server = &http.Server{Handler: f.sim, ReadHeaderTimeout: 10 * time.Second}
	f.running.Go(func() { f.server.Serve(listener) }) // ends with close, which is no news
	return f, nil
}

// close stops the cloud, its instances and its balancer.
func (f *fleet) close() error {
	err := errors.Join(f.server.Close(), f.sim.Close())
	f.running.Wait()
	return err
}

// until waits for a state of the cloud.
func (f *fleet) until(ctx context.Context, what string, holds func(simulator.State) bool) error {
	for !holds(f.sim.State()) {
		if !rest(ctx, pollEvery) {
			return fmt.Errorf("wait until %s: %w", what, context.Cause(ctx))
		}
	}
	return nil
}

// targetGroupARN names the balancer's target group, "" where there is none.
func (f *fleet) targetGroupARN() string {
	for _, g := range f.sim.State().Balancers[0].ServerGroups {
		if f.targetGroup != "" && g.ID == f.targetGroup {
			return g.ARN
		}
	}
	return ""
}

// register puts new instances into the target group, as whoever keeps it does. Where Auto
// Scaling does so there is nothing to do.
func (f *fleet) register(ctx context.Context, ids []string) (err error) {
	if f.targetGroup == "" {
		return nil
	}
	b, err := aws.NewBalancers(aws.Options{
		Region: f.region, ELBEndpoint: f.url, AutoScalingEndpoint: f.url, EC2Endpoint: f.url, Credentials: aws.StaticCredentials(f.keyID, f.keySecret),
	})
	if err != nil {
		return fmt.Errorf("register the new instances: %w", err)
	}
	defer b.Close()
	group := providers.Balancer{Kind: providers.TargetGroup, ID: f.targetGroupARN()}
	for _, id := range ids {
		m := providers.Membership{Balancer: group, Instance: messages.InstanceID(id), Port: targetPort, Weight: 100}
		if _, err := b.Add(ctx, m); err != nil {
			return fmt.Errorf("register the new instances: %w", err)
		}
	}
	return nil
}

// serving says that Auto Scaling has brought these instances into service.
func serving(group string, ids []string) func(simulator.State) bool {
	return func(st simulator.State) bool {
		g, _ := st.Group(group)
		n := 0
		for _, in := range g.Instances {
			if slices.Contains(ids, in.ID) && in.State == "InService" {
				n++
			}
		}
		return n == len(ids)
	}
}

// inRotation lists the instances that the balancer sends requests to.
func inRotation(st simulator.State) []simulator.MemberState {
	return slices.DeleteFunc(slices.Clone(st.Balancers[0].Members), func(m simulator.MemberState) bool {
		return !m.InService || !m.Healthy
	})
}

func whole(st simulator.State) bool { return len(inRotation(st)) == fleetSize }

// busy says that each of the fleet has work in flight.
func busy(st simulator.State) bool {
	members := inRotation(st)
	return len(members) == fleetSize && !slices.ContainsFunc(members, func(m simulator.MemberState) bool { return m.InFlight < 2 })
}

// released says that none of the instances exists any more.
func released(group string, ids []string) func(simulator.State) bool {
	return func(st simulator.State) bool {
		g, _ := st.Group(group)
		return !slices.ContainsFunc(g.Instances, func(in simulator.InstanceState) bool { return slices.Contains(ids, in.ID) })
	}
}
