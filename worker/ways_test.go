package worker_test

import (
	"math/rand/v2"
	"strings"

	"example.org/usher/simulator"
)

// drawWays lets the notifications of each hook that has a queue come to it in another way:
// through a topic in one of its formats, or by EventBridge. It draws for itself, so that the
// schedule of a seed is the same but for that.
func (s *schedule) drawWays(sc *simulator.Scenario) {
	rng := rand.New(rand.NewPCG(s.seed, 0x746f706963))
	for _, format := range []string{"XML", "JSON", "SIMPLIFIED"} {
		sc.Topics = append(sc.Topics, simulator.TopicConfig{Name: strings.ToLower(format), Subscriptions: []simulator.SubscriptionConfig{
			{Name: "usher", Queue: queueName, ContentFormat: format, Encoding: pick(rng, "plain", "base64")},
		}})
	}
	sc.EventBridge = simulator.EventBridgeConfig{Queue: queueName, Data: pick(rng, "data", "content"), Encoding: pick(rng, "plain", "base64")}
	for _, g := range sc.ScalingGroups {
		for j := range g.Hooks {
			h := &g.Hooks[j]
			h.Encoding = pick(rng, "base64", "plain")
			way := pick(rng, "", "topic/xml", "topic/json", "topic/simplified", "eventbus/default")
			if h.Queue != "" && way != "" {
				h.Queue, h.Target = "", way
			}
		}
	}
}
