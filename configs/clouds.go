package configs

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"time"

	"example.org/usher/messages"
	"example.org/usher/worker/heartbeats"
)

// The providers.
const (
	ProviderAlibaba = string(messages.Alibaba)
	ProviderAWS     = string(messages.AWS)
)

// cloud is what tells the files of one provider from those of another.
type cloud struct {
	provider string
	// service is the auto-scaling service, as problems name it.
	service string
	// settings are the plain values that only files of this provider have.
	settings func() []setting[Group]

	region, queue, role                                         *regexp.Regexp
	scalingGroup, hook                                          func(text string) bool
	wantRegion, wantScalingGroup, wantQueue, wantHook, wantRole string

	// results are the answers to a hook; noRollback says why ROLLBACK is none of them.
	results    []messages.Result
	noRollback string
	// longest bounds deadlines and timeouts; whyLongest says where that is from.
	longest    time.Duration
	whyLongest string
	// hookTimeout is the timeout of hooks that name none; it is at most maxHookTimeout.
	hookTimeout, maxHookTimeout time.Duration

	// balancers are the kinds of balancer with what their ids look like, all those of autos can
	// be meant at once, and the members of the portless ones have no port of their own.
	balancers     map[string]*regexp.Regexp
	autos         []string
	portless      string
	balancerForms string
	// maxTagValue is what a tag's value may have, in characters.
	maxTagValue int
}

// What ESS grants one lifecycle action (RecordLifecycleActionHeartbeat, 2014-08-28).
const (
	essHeartbeats   = 20
	essMaxWait      = 6 * time.Hour
	essMinExtension = 30 * time.Second
	essMaxExtension = 21600 * time.Second
)

// What AWS grants: a hook has a timeout of up to 2 hours (PutLifecycleHook, Auto Scaling
// 2011-01-01), each heartbeat is worth it once more, and the wait ends after 48 hours or 100
// timeouts, whichever comes first. One receive hides a message for 12 hours at most
// (ChangeMessageVisibility, SQS 2012-11-05), in all.
const (
	awsTimeouts       = 100
	awsMaxWait        = 48 * time.Hour
	awsMaxHookTimeout = 2 * time.Hour
	awsMaxHidden      = 12 * time.Hour
)

// MinHookTimeout is the shortest timeout that a hook can have, in either cloud.
const MinHookTimeout = 30 * time.Second

// spotNotice is how long before it takes a spot instance EC2 warns.
const spotNotice = 2 * time.Minute

var alibaba = &cloud{
	provider: ProviderAlibaba, service: "ESS", settings: alibabaSettings,
	region: patternRegion, wantRegion: "a region such as cn-shenzhen",
	scalingGroup: patternScalingGroup.MatchString, wantScalingGroup: "the scaling group's id, such as asg-wz9example0001",
	queue: patternQueue, wantQueue: "a queue's name: letters, digits and -, beginning with a letter or digit",
	hook: patternHookName.MatchString, wantHook: "a hook's id such as ash-wz9example0001, or its name of 2 to 64 letters, digits, _, - and dots",
	role: patternRole, wantRole: "a role's ARN such as acs:ram::1234567890123456:role/usher",
	results: []messages.Result{messages.Continue, messages.Abandon, messages.Rollback},
	longest: essMaxWait, hookTimeout: 10 * time.Minute, maxHookTimeout: essMaxExtension,
	balancers: map[string]*regexp.Regexp{
		BalancerCLB:      regexp.MustCompile(`^lb-[A-Za-z0-9-]{1,60}$`),
		BalancerCLBGroup: regexp.MustCompile(`^rsp-[A-Za-z0-9-]{1,60}$`),
		BalancerALB:      regexp.MustCompile(`^sgp-[A-Za-z0-9-]{1,60}$`),
		BalancerNLB:      regexp.MustCompile(`^sgp-[A-Za-z0-9-]{1,60}$`),
	},
	autos: []string{BalancerCLB, BalancerALB, BalancerNLB}, portless: BalancerCLB,
	balancerForms: "clb:lb-..., clb-vserver-group:rsp-..., alb:sgp-..., nlb:sgp-...",
	maxTagValue:   maxTag,
}

// awsNames says what names of AWS are taken, and why no more: a message about any other would be
// refused (messages.Decode).
const awsNames = ", no part between slashes empty or beginning with - or a dot; AWS allows more, but it goes into URLs, commands and environments as it is"

var aws = &cloud{
	provider: ProviderAWS, service: "AWS", settings: awsSettings,
	region:       regexp.MustCompile(`^[a-z]{2,4}(-[a-z]{1,20}){1,3}-[0-9]{1,2}$`),
	wantRegion:   "a region such as eu-west-1",
	scalingGroup: func(text string) bool { return messages.GroupID(text).Valid(messages.AWS) }, wantScalingGroup: "the Auto Scaling group's name: letters, digits, _ . - and /" + awsNames,
	queue: regexp.MustCompile(`^[A-Za-z0-9_-]{1,80}$`), wantQueue: "the name of a standard queue: up to 80 letters, digits, - and _ (a FIFO queue can't be what a hook notifies)",
	hook: func(text string) bool { return messages.HookID(text).Valid(messages.AWS) }, wantHook: "a hook's name: letters, digits, _ - and /" + awsNames,
	role: regexp.MustCompile(`^arn:aws(-cn|-us-gov|-eusc|-iso[a-z-]{0,8})?:iam::[0-9]{12}:role/[A-Za-z0-9_+=,.@/-]{1,512}$`), wantRole: "a role's ARN such as arn:aws:iam::111122223333:role/usher",
	results:    []messages.Result{messages.Continue, messages.Abandon},
	noRollback: "AWS has no ROLLBACK: at scale_in CONTINUE and ABANDON both terminate the instance, and no answer keeps it",
	longest:    awsMaxHidden - heartbeats.AnswerMargin,
	whyLongest: fmt.Sprintf(": one receive of SQS hides a message for %s at most, and the last %s are for the answer", show(awsMaxHidden), show(heartbeats.AnswerMargin)),

	hookTimeout: time.Hour, maxHookTimeout: awsMaxHookTimeout,
	balancers: map[string]*regexp.Regexp{
		BalancerELB:         regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,30}[A-Za-z0-9])?$`),
		BalancerTargetGroup: regexp.MustCompile(`^arn:aws[a-z-]{0,20}:elasticloadbalancing:[a-z0-9-]{1,40}:[0-9]{12}:targetgroup/[A-Za-z0-9-]{1,32}/[0-9a-f]{1,32}$`),
	},
	autos: []string{BalancerELB, BalancerTargetGroup}, portless: BalancerELB,
	balancerForms: "elb:NAME, target-group:arn:aws:elasticloadbalancing:...",
	maxTagValue:   256,
}

var clouds = []*cloud{alibaba, aws}

// cloudOf is the cloud of a provider; that of a file which names none is Alibaba Cloud.
func cloudOf(provider string) *cloud {
	i := slices.IndexFunc(clouds, func(c *cloud) bool { return c.provider == provider })
	return clouds[max(0, i)]
}

// cloud is that of the file. The worker's own file has the first one's.
func (f *file) cloud() *cloud { return cmp.Or(f.of, alibaba) }

// foreign says which other provider's group files have the key, "" for none.
func (f *file) foreign(key string) string {
	if f.of == nil {
		return ""
	}
	return f.of.foreign(key)
}

func (c *cloud) foreign(key string) string {
	for _, other := range clouds {
		if other == c {
			continue
		}
		has := func(s setting[Group]) bool { return s.key == key }
		if slices.ContainsFunc(other.settings(), has) && !slices.ContainsFunc(c.settings(), has) || other == aws && key == "events" {
			return other.provider
		}
	}
	return ""
}

// HookTimeouts are the timeout of the group's hooks that name none, and the longest that one
// can have.
func (g Group) HookTimeouts() (absent, longest time.Duration) {
	c := cloudOf(g.Provider)
	return c.hookTimeout, c.maxHookTimeout
}

// Budget is the heartbeat budget of one of the group's hooks, whose timeout in the cloud is
// hookTimeout.
func (g Group) Budget(h Hook, hookTimeout time.Duration) heartbeats.Budget {
	if g.Provider == ProviderAWS {
		return heartbeats.Budget{
			Calls: awsTimeouts, MaxWait: min(awsMaxWait, awsTimeouts*hookTimeout),
			MinExtension: hookTimeout, MaxExtension: hookTimeout,
		}
	}
	return heartbeats.Budget{
		Calls: essHeartbeats, MaxWait: essMaxWait,
		MinExtension: essMinExtension, MaxExtension: essMaxExtension,
		Floor: h.Heartbeat.Floor, Fixed: h.Heartbeat.Extension,
	}
}

// HeartbeatPlan lists the heartbeats that a job as long as the deadline costs, where
// hookTimeout is the timeout the hook has in the cloud. An event costs none.
func (g Group) HeartbeatPlan(h Hook, hookTimeout time.Duration) []heartbeats.Beat {
	if len(h.On) > 0 {
		return nil
	}
	return g.Budget(h, hookTimeout).Plan(hookTimeout, h.Deadline)
}

// WaitEnds is when, after the hook fired, the wait would end that the plan prolongs.
func (g Group) WaitEnds(h Hook, hookTimeout time.Duration) time.Duration {
	plan := g.HeartbeatPlan(h, hookTimeout)
	if len(plan) == 0 {
		return hookTimeout
	}
	last := plan[len(plan)-1]
	return g.Budget(h, hookTimeout).Lasts(last.At + last.Extension)
}
