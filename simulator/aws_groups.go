package simulator

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// WarmPoolConfig is a warm pool: instances of a group that have been launched and wait.
type WarmPoolConfig struct {
	Size  int    `yaml:"size"`  // how many rest in it at the start, and are launched again as they leave
	State string `yaml:"state"` // in which they rest: stopped (default) or running
	// Reuse has instances that leave service at a scale-in go back into the pool.
	Reuse bool `yaml:"reuse"`
}

// The states in which a warm pool's instances rest.
const (
	poolStopped = "stopped"
	poolRunning = "running"
)

func (p WarmPoolConfig) exists() bool { return p.Size > 0 || p.Reuse }

// resting is the lifecycle state of an instance in the pool.
func (p WarmPoolConfig) resting() string {
	if p.State == poolRunning {
		return stateWarmedRunning
	}
	return stateWarmedStopped
}

// The ways that a hook's notification takes into its queue.
const (
	deliverDirect = "direct"
	deliverSNS    = "sns"
	deliverSNSRaw = "sns_raw"
	deliverBus    = "eventbridge"
	deliverBoth   = "both"
)

var deliveries = []string{deliverDirect, deliverSNS, deliverSNSRaw, deliverBus, deliverBoth}

// The bounds of a hook (PutLifecycleHook, 2011-01-01).
const (
	maxAWSHookTimeout = 2 * time.Hour
	maxAWSMetadata    = 4000
	maxAWSHooks       = 50
)

var awsHookPattern = regexp.MustCompile(`^[A-Za-z0-9_/-]{1,255}$`)

// awsDefaults fills in a group's: its id is its name, and each instance has an activity of its own.
func (g *GroupConfig) awsDefaults() {
	g.Name = g.ID
	g.SplitActivity = true
	set(&g.MaxSize, maxInstances)
	set(&g.WarmPool.State, poolStopped)
}

// awsDefaults fills in a hook's, whose id is its name.
func (h *HookConfig) awsDefaults() {
	set(&h.ID, h.Name)
	h.Name = h.ID
	set(&h.HeartbeatTimeout, time.Hour)
	set(&h.DefaultResult, resultAbandon)
	set(&h.Encoding, "plain")
	if h.Target == targetEventBus {
		set(&h.Delivery, deliverBus)
	}
	set(&h.Delivery, deliverDirect)
	if name, ok := strings.CutPrefix(h.Target, "queue/"); ok && h.Queue == "" {
		h.Queue, h.Target = name, ""
	}
}

// direct says whether the hook's own target is notified, bus whether a rule sends its events on.
func (h HookConfig) direct() bool { return h.Delivery != deliverBus && h.Queue != "" }
func (h HookConfig) bus() bool    { return h.Delivery == deliverBus || h.Delivery == deliverBoth }

// awsGroups checks what groups and hooks have on AWS only.
func (c *checker) awsGroups(sc Scenario, queues map[string]bool) {
	if sc.Provider != providerAWS {
		c.notOnAlibaba(sc)
		return
	}
	for i, g := range sc.ScalingGroups {
		at := fmt.Sprintf("scaling_groups[%d].", i)
		if g.MinSize < 0 || g.MinSize > g.Instances {
			c.add(at+"min_size", "must be 0 to instances, which is %d, got %d", g.Instances, g.MinSize)
		}
		if g.MaxSize < g.Instances || g.MaxSize > maxInstances {
			c.add(at+"max_size", "must be instances, which is %d, to %d, got %d", g.Instances, maxInstances, g.MaxSize)
		}
		c.oneOf(at+"warm_pool.state", g.WarmPool.State, poolStopped, poolRunning)
		if g.WarmPool.Size < 0 || g.WarmPool.Size > maxInstances {
			c.add(at+"warm_pool.size", "must be 0 to %d, got %d", maxInstances, g.WarmPool.Size)
		}
		if strings.HasPrefix(g.Events, "topic/") {
			c.add(at+"events", "on AWS it is queue/{name}, which gets them through SNS, or %s", targetEventBus)
		}
		if len(g.Hooks) > maxAWSHooks {
			c.add(at+"hooks", "at most %d, got %d", maxAWSHooks, len(g.Hooks))
		}
		for j, h := range g.Hooks {
			c.awsHook(fmt.Sprintf("%shooks[%d].", at, j), sc, h)
		}
	}
	if len(sc.Topics) > 0 {
		c.add("topics", "on AWS a hook has delivery: sns instead")
	}
	c.cloudEvents(sc)
}

func (c *checker) awsHook(at string, sc Scenario, h HookConfig) {
	c.oneOf(at+"delivery", h.Delivery, deliveries...)
	if !printable(h.Metadata) || len(h.Metadata) > maxAWSMetadata {
		c.add(at+"metadata", "must be at most %d printable characters of ASCII", maxAWSMetadata)
	}
	switch {
	case strings.HasPrefix(h.Target, "topic/"):
		c.add(at+"target", "on AWS set queue, and delivery: sns")
	case h.Delivery == deliverBus && h.Queue == "" && sc.EventBridge.Queue == "":
		c.add(at+"delivery", "%s needs a queue, or eventbridge.queue", deliverBus)
	case h.Delivery != deliverBus && h.Delivery != deliverDirect && h.Queue == "":
		c.add(at+"delivery", "%s needs a queue", h.Delivery)
	}
}

// notOnAlibaba refuses what only AWS has.
func (c *checker) notOnAlibaba(sc Scenario) {
	only := func(path string, there bool) {
		if there {
			c.add(path, "is for provider %s", providerAWS)
		}
	}
	only("cloud_events", len(sc.CloudEvents) > 0)
	only("eventbridge.state_changes", sc.EventBridge.StateChanges)
	for i, g := range sc.ScalingGroups {
		at := fmt.Sprintf("scaling_groups[%d].", i)
		only(at+"min_size", g.MinSize != 0)
		only(at+"max_size", g.MaxSize != 0)
		only(at+"retain", g.Retain)
		only(at+"replace", g.Replace)
		only(at+"warm_pool", g.WarmPool != WarmPoolConfig{})
		for j, h := range g.Hooks {
			only(fmt.Sprintf("%shooks[%d].delivery", at, j), h.Delivery != "")
		}
	}
}

// cloudEvents checks those that come by themselves.
func (c *checker) cloudEvents(sc Scenario) {
	for i, e := range sc.CloudEvents {
		at := fmt.Sprintf("cloud_events[%d].", i)
		c.between(at+"after", e.After, 0, 30*24*time.Hour)
		if !slices.ContainsFunc(sc.ScalingGroups, func(g GroupConfig) bool { return g.ID == e.Group }) {
			c.add(at+"group", "no scaling group %q", e.Group)
		}
		if e.Count < 1 || e.Count > maxInstances {
			c.add(at+"count", "must be 1 to %d, got %d", maxInstances, e.Count)
		}
		if err := e.event().check(); err != nil {
			c.add(at+"event", "%v", err)
		}
		if sc.EventBridge.Queue == "" {
			c.add(at+"event", "needs eventbridge.queue")
		}
	}
}

func printable(text string) bool { return isASCII(text) }
