package alibaba

import (
	"testing"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/providertest"
	"example.org/usher/simulator"
)

// TestConformance: the provider keeps the contract as that of every cloud does.
func TestConformance(t *testing.T) {
	t.Parallel()
	type apis = map[providertest.Call][]providertest.API
	api := func(service, action string) []providertest.API {
		return []providertest.API{{Service: service, Action: action, Permission: service + ":" + action}}
	}
	members := func(ids ...string) []simulator.MembershipConfig {
		var out []simulator.MembershipConfig
		for _, id := range ids {
			m := simulator.MembershipConfig{ID: id, Ports: []int{8080}}
			if id == "lb-1" {
				m.Ports = nil
			}
			out = append(out, m)
		}
		return out
	}
	serverGroups := func(kind providers.BalancerKind, id string, weight int, draining, leaves time.Duration) providertest.Behind {
		service := string(kind)
		return providertest.Behind{
			Balancer: providers.Balancer{Kind: kind, ID: id}, ServerGroup: id, Port: 8080, Weight: weight, Draining: draining, Notice: 4 * time.Second, Leaves: leaves,
			APIs: apis{
				providertest.Find: api(service, "ListServerGroupServers"), providertest.Members: api(service, "ListServerGroupServers"),
				providertest.Draining: api(service, "ListServerGroups"), providertest.Notice: api(service, "ListServerGroups"), providertest.Add: api(service, "AddServersToServerGroup"),
				providertest.SetWeight: api(service, "UpdateServerGroupServersAttribute"), providertest.Remove: api(service, "RemoveServersFromServerGroup"),
			},
		}
	}
	groups := members("lb-1", "rsp-1", "sgp-a", "sgp-n")
	groups[3].Weight = 50
	providertest.Run(t, providertest.Cloud{
		Provider: messages.Alibaba,
		Scenario: simulator.Scenario{
			Region: "cn-shenzhen",
			Queues: []simulator.QueueConfig{{Name: "lifecycle", VisibilityTimeout: time.Minute, Retention: 24 * time.Hour}},
			Balancers: []simulator.BalancerConfig{
				{ID: "lb-1", Type: "clb", ServerGroups: []simulator.ServerGroupConfig{{ID: "rsp-1"}}, Listeners: []simulator.ListenerConfig{
					{Port: 80, Protocol: "http", BackendPort: 8080}, {Port: 443, ServerGroup: "rsp-1", ConnectionDrainTimeout: 30 * time.Second},
				}},
				{ID: "alb-1", Type: "alb", ServerGroups: []simulator.ServerGroupConfig{{ID: "sgp-a", ConnectionDrainTimeout: 20 * time.Second}}},
				{ID: "nlb-1", Type: "nlb", ServerGroups: []simulator.ServerGroupConfig{{ID: "sgp-n"}}},
			},
			ScalingGroups: []simulator.GroupConfig{
				{ID: "asg-web", Name: "web", Instances: 6, Tags: map[string]string{"tier": "web"}, ServerGroups: groups, Hooks: []simulator.HookConfig{
					{ID: "ash-in", Name: "in", Transition: "scale_in", Queue: "lifecycle", HeartbeatTimeout: 10 * time.Minute},
					{ID: "ash-out", Name: "out", Transition: "scale_out", Queue: "lifecycle", HeartbeatTimeout: 10 * time.Minute, DefaultResult: "ABANDON"},
				}},
				{ID: "asg-other", Instances: 2, Hooks: []simulator.HookConfig{{ID: "ash-other", Transition: "scale_in", Queue: "lifecycle"}}},
			},
			Timings: simulator.Timings{Agent: 30 * time.Minute},
			Roles:   []simulator.RoleConfig{{Name: "worker"}},
		},
		Region: "cn-shenzhen", QueueName: "lifecycle", Group: "asg-web", HookIn: "ash-in", HookOut: "ash-out",
		Other: "asg-other", Role: "worker", Visibility: time.Minute, HookTimeout: 10 * time.Minute,
		WaitingToGo: "Removing:Wait", WaitingToCome: "Pending:Wait",
		Connect: connect, PolicyVersion: "1", MaxAttempts: MaxAttempts, CallTimeout: DefaultCallTimeout,
		APIs: apis{
			providertest.Receive: api("mns", "ReceiveMessage"), providertest.Extend: api("mns", "ChangeMessageVisibility"),
			providertest.Delete: api("mns", "DeleteMessage"), providertest.DeleteBatch: api("mns", "BatchDeleteMessage"),
			providertest.Send: api("mns", "SendMessage"), providertest.Attributes: api("mns", "GetQueueAttributes"),
			providertest.Hook:      api("ess", "DescribeLifecycleHooks"),
			providertest.Verify:    append(api("ess", "DescribeLifecycleActions"), api("ess", "DescribeScalingInstances")...),
			providertest.Ended:     api("ess", "DescribeLifecycleActions"),
			providertest.Waiting:   append(api("ess", "DescribeScalingActivities"), append(api("ess", "DescribeLifecycleActions"), api("ess", "DescribeLifecycleHooks")...)...),
			providertest.Instances: api("ess", "DescribeScalingInstances"), providertest.Tags: api("ecs", "DescribeInstances"),
			providertest.Heartbeat: api("ess", "RecordLifecycleActionHeartbeat"), providertest.Complete: api("ess", "CompleteLifecycleAction"),
			providertest.RunCommand: api("ecs", "RunCommand"), providertest.CommandResult: api("ecs", "DescribeInvocationResults"),
			providertest.Attached: api("ess", "DescribeScalingGroups"),
		},
		Behind: []providertest.Behind{
			{
				Balancer: providers.Balancer{Kind: providers.CLB, ID: "lb-1"}, ServerGroup: "lb-1", Weight: 100, Notice: 4 * time.Second, NoneIsEmpty: true,
				APIs: apis{
					providertest.Find: api("slb", "DescribeLoadBalancerAttribute"), providertest.Members: api("slb", "DescribeLoadBalancerAttribute"),
					providertest.Draining: api("slb", "DescribeLoadBalancerListeners"), providertest.Notice: api("slb", "DescribeLoadBalancerListeners"), providertest.Add: api("slb", "AddBackendServers"),
					providertest.SetWeight: api("slb", "SetBackendServers"), providertest.Remove: api("slb", "RemoveBackendServers"),
				},
			},
			{
				Balancer: providers.Balancer{Kind: providers.CLBGroup, ID: "rsp-1"}, ServerGroup: "rsp-1", Port: 8080, Weight: 100, Draining: 30 * time.Second, Notice: 4 * time.Second,
				APIs: apis{
					providertest.Find: api("slb", "DescribeVServerGroupAttribute"), providertest.Members: api("slb", "DescribeVServerGroupAttribute"),
					providertest.Draining: api("slb", "DescribeLoadBalancerListeners"), providertest.Notice: api("slb", "DescribeLoadBalancerListeners"), providertest.Add: api("slb", "AddVServerGroupBackendServers"),
					providertest.SetWeight: api("slb", "SetVServerGroupAttribute"), providertest.Remove: api("slb", "RemoveVServerGroupBackendServers"),
				},
			},
			serverGroups(providers.ALB, "sgp-a", 100, 20*time.Second, time.Second),
			serverGroups(providers.NLB, "sgp-n", 50, 0, time.Second),
		},
		Attached: []providers.Balancer{{Kind: providers.CLB, ID: "lb-1"}, {Kind: providers.CLBGroup, ID: "rsp-1"}, {Kind: providers.ALB, ID: "sgp-a"}, {Kind: providers.NLB, ID: "sgp-n"}},
		Differences: providertest.Differences{
			MaxBatch: 16, MaxWait: 30 * time.Second, MaxBody: 64 << 10,
			NewReceipts: true, ReceiptsEnd: true, DeletedAgain: providers.ErrReceiptStale, LostExtend: providers.ErrUnavailable,
			ActionForAll: true, AnsweredAlike: true, LostHeartbeat: providers.ErrUnavailable, Released: providers.Over, AskedLength: true, Heartbeats: 20, LongestWait: 6 * time.Hour, Rollback: true, Tokens: true,
			Forged: map[string]providers.State{
				"true": providers.Pending, "unknown token": providers.Unlisted, "instance at work": providers.Mismatch, "unknown instance": providers.Mismatch,
				"another's": providers.Mismatch, "another group": providers.Mismatch, "the other way": providers.Mismatch, "another hook": providers.Unlisted,
				"another's, wholly": providers.Unlisted, "instance gone": providers.Pending,
			},
			NoAgent: "ClientNotRunning",
		},
	})
}

// connect makes clients for the suite.
func connect(t *testing.T, a providertest.Access) providertest.Clients {
	t.Helper()
	o := options(a.Endpoint)
	o.Region, o.QueueName, o.DialContext, o.STSEndpoint = a.Region, a.Queue, a.Dial, a.Endpoint
	o.Credentials = StaticCredentials(a.KeyID, a.Secret)
	if a.Role != "" {
		role, err := NewAssumedRole(o, Role{ARN: "acs:ram::" + simulator.DefaultAccountID + ":role/" + a.Role, Duration: time.Hour})
		if err != nil {
			t.Fatal(err)
		}
		defer role.Close()
		o.Credentials = static(keysOf(t, role))
	}
	return providertest.Clients{Queue: newQueue(t, o), Lifecycle: newScaling(t, o), Commander: newAssistant(t, o), Balancers: newBalancers(t, o)}
}
