package simulator

import (
	"regexp"
	"time"
)

// The clouds that there are.
const (
	providerAlibaba = "alibaba"
	providerAWS     = "aws"
)

// The bounds of SQS 2012-11-05.
const (
	maxSQSName      = 80
	maxSQSMessage   = 1 << 20
	maxSQSWait      = 20 * time.Second
	maxSQSRetention = 14 * 24 * time.Hour
	maxSQSInFlight  = 120_000
)

var sqsNamePattern = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// DefaultAWSScenario is what DefaultScenario is, on AWS.
func DefaultAWSScenario() Scenario {
	return Scenario{
		Provider:  providerAWS,
		Region:    "eu-west-1",
		Queues:    []QueueConfig{{Name: "drain-q", VisibilityTimeout: time.Minute}},
		Balancers: []BalancerConfig{{ID: "alb-web"}},
		ScalingGroups: []GroupConfig{{
			ID:        "web-asg",
			Name:      "web-asg",
			Instances: 6,
			Balancers: []string{"alb-web"},
			Hooks: []HookConfig{
				{ID: "usher-drain", Name: "usher-drain", Transition: scaleIn, Queue: "drain-q"},
				{ID: "usher-prepare", Name: "usher-prepare", Transition: scaleOut, Queue: "drain-q", DefaultResult: resultAbandon},
			},
		}},
	}
}

// awsDefaults fills in what AWS has for what the other cloud has another default.
func (sc *Scenario) awsDefaults() {
	set(&sc.Region, "eu-west-1")
	set(&sc.Metadata.InstanceID, "i-0123456789abcdef0")
	set(&sc.OIDC.Provider, "oidc.eks.eu-west-1.amazonaws.com/id/USHER")
	sc.sqsDefaults()
}
