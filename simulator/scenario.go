package simulator

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Scenario is what exists in the simulated cloud when it starts.
type Scenario struct {
	// Provider is the cloud: alibaba (the default) or aws.
	Provider string `yaml:"provider"`
	// Region is the one region there is; default cn-shenzhen, on AWS eu-west-1.
	Region string        `yaml:"region"`
	Queues []QueueConfig `yaml:"queues"`
	Topics []TopicConfig `yaml:"topics"`
	// EventBridge is where events go, for hooks and groups whose target is eventbus/default.
	EventBridge   EventBridgeConfig `yaml:"eventbridge"`
	Balancers     []BalancerConfig  `yaml:"balancers"`
	ScalingGroups []GroupConfig     `yaml:"scaling_groups"`
	Timings       Timings           `yaml:"timings"`
	// HeartbeatFromNow says what a heartbeat does, which the vendor does not: true
	// (the default) sets the deadline to now plus the length, even when that is
	// sooner than before; false adds the length to the old deadline.
	HeartbeatFromNow *bool `yaml:"heartbeat_from_now"`
	// Lax allows what the real service would refuse for being too short: hook
	// timeouts under 30 s and retention under 60 s.
	Lax bool `yaml:"lax"`
	// Policy is a RAM or IAM policy in JSON: what the base keys may do. Empty: everything.
	Policy string `yaml:"policy"`
	// Roles are the account's roles, which STS and the metadata give keys for.
	Roles    []RoleConfig   `yaml:"roles"`
	STS      STSConfig      `yaml:"sts"`
	OIDC     OIDCConfig     `yaml:"oidc"`
	Metadata MetadataConfig `yaml:"metadata"`
	// CloudEvents are what EC2 and Health tell of instances as time goes by; AWS only.
	CloudEvents []CloudEventConfig `yaml:"cloud_events"`
}

// QueueConfig is one queue of MNS, or of SQS, whose bounds are its own: a polling wait of up
// to 20 s, a retention of up to 336 h and messages of up to 1 MiB. Zero values take the
// service's defaults.
type QueueConfig struct {
	Name              string        `yaml:"name"`
	VisibilityTimeout time.Duration `yaml:"visibility_timeout"` // 1s..12h, default 30s
	PollingWait       time.Duration `yaml:"polling_wait"`       // 0..30s, default 0
	Retention         time.Duration `yaml:"retention"`          // 60s..168h, default 96h
	MaxMessageSize    int           `yaml:"max_message_size"`   // 1024..65536 bytes, default 65536
	// MaxInFlight is how many messages of a queue of SQS may be received and not deleted at
	// a time, default 120000.
	MaxInFlight int `yaml:"max_in_flight"`
	// DlqPolicy is set on the control plane; the API that is served here does not show it.
	DlqPolicy DlqPolicy `yaml:"dlq_policy"`
}

// DlqPolicy moves a message to another queue when it has been received MaxReceiveCount
// times and its last time hidden is over without a deletion. Id, body and the beginning
// of its retention stay as they are, and its receives go on being counted.
type DlqPolicy struct {
	DeadLetterTargetQueue string `yaml:"dead_letter_target_queue"` // empty: no policy
	MaxReceiveCount       int    `yaml:"max_receive_count"`        // 1..1000
}

// HealthCheck is how a balancer probes its members. Fall failures in a row take a
// member out of rotation, Rise successes in a row put it back.
type HealthCheck struct {
	Path     string        `yaml:"path"`     // default /healthz
	Interval time.Duration `yaml:"interval"` // default 1s
	Timeout  time.Duration `yaml:"timeout"`  // default 1s
	Fall     int           `yaml:"fall"`     // default 2
	Rise     int           `yaml:"rise"`     // default 2
}

// GroupConfig is one scaling group and the instances it starts with.
type GroupConfig struct {
	ID        string `yaml:"id"`
	Name      string `yaml:"name"` // default: the id
	Instances int    `yaml:"instances"`
	// Tags are those of the group's machines, as ECS tells them.
	Tags map[string]string `yaml:"tags"`
	// Balancers are those whose default server group Auto Scaling puts the instances into
	// and takes them out of.
	Balancers []string `yaml:"balancers"`
	// ServerGroups are the other server groups that the instances are in.
	ServerGroups []MembershipConfig `yaml:"server_groups"`
	Zones        []string           `yaml:"zones"` // the instances take turns; default: the region's first
	Hooks        []HookConfig       `yaml:"hooks"`
	// SplitActivity makes a scaling activity of its own, and so a token and a
	// notification, for each instance instead of one for all.
	SplitActivity bool `yaml:"split_activity"`
	// Events is where event notifications of the group's activities go: queue/{name},
	// topic/{name} or eventbus/default; empty: nowhere. On AWS a queue gets them through SNS.
	Events string `yaml:"events"`

	// The rest is for AWS.

	// MinSize and MaxSize bound the desired capacity; default 0 and what the simulator has.
	MinSize int `yaml:"min_size"`
	MaxSize int `yaml:"max_size"`
	// Retain keeps the instances whose termination was abandoned: an InstanceLifecyclePolicy
	// with TerminateHookAbandon=retain.
	Retain bool `yaml:"retain"`
	// Replace launches an instance for one whose launch was abandoned, as the service always
	// does, after a minute and later each time in a row; also for one that is lost. Without it
	// the desired capacity shrinks.
	Replace  bool           `yaml:"replace"`
	WarmPool WarmPoolConfig `yaml:"warm_pool"`
}

// HookConfig is one lifecycle hook.
type HookConfig struct {
	ID         string `yaml:"id"`         // default: made up
	Name       string `yaml:"name"`       // default: the id
	Transition string `yaml:"transition"` // scale_in or scale_out
	// HeartbeatTimeout is the first wait, 30s..6h, default 10m; on AWS every wait, 30s..2h,
	// default 1h.
	HeartbeatTimeout time.Duration `yaml:"heartbeat_timeout"`
	// DefaultResult is CONTINUE (default), ABANDON or ROLLBACK; on AWS CONTINUE or ABANDON
	// (default).
	DefaultResult string `yaml:"default_result"`
	Queue         string `yaml:"queue"` // that it notifies; the same as target: queue/{name}
	// Target is what it notifies: queue/{name}, topic/{name} or eventbus/default. With
	// neither this nor Queue the hook tells nobody.
	Target   string `yaml:"target"`
	Metadata string `yaml:"metadata"`
	Encoding string `yaml:"encoding"` // base64 (default) or plain; on AWS plain
	// Delivery, on AWS, is how the notification gets into Queue: direct (default), sns, sns_raw,
	// eventbridge, or both, which is direct and eventbridge.
	Delivery string `yaml:"delivery"`
}

// Timings is how long things take that take no time by default.
type Timings struct {
	Boot time.Duration `yaml:"boot"` // a new instance is Pending for so long before its hooks fire
	// From then on: until when the service of a new instance answers 503 to all but its
	// health check at /healthz, until when Cloud Assistant does not run on it, and until when
	// ECS does not list it and ESS does not tell its address.
	WarmUp  time.Duration `yaml:"warm_up"`
	Agent   time.Duration `yaml:"agent"`
	Address time.Duration `yaml:"address"`
	Stop    time.Duration `yaml:"stop"` // from the end of the waits to the release
	// Command is how long an invocation takes to fail on an instance without the
	// agent; default 1s.
	Command time.Duration `yaml:"command"`
	// Listing is for how long DescribeLifecycleActions does not list a new action yet; on AWS,
	// for how long DescribeAutoScalingInstances tells the state from before it.
	Listing time.Duration `yaml:"listing"`
}

// The results of a lifecycle action.
const (
	resultContinue = "CONTINUE"
	resultAbandon  = "ABANDON"
	resultRollback = "ROLLBACK"
)

const (
	scaleIn  = "scale_in"
	scaleOut = "scale_out"
)

// The service's own limits (ESS 2014-08-28, MNS 2015-06-06).
const (
	minHookTimeout     = 30 * time.Second
	maxHookTimeout     = 6 * time.Hour
	defaultHookTimeout = 10 * time.Minute
	minRetention       = time.Minute
	maxRetention       = 7 * 24 * time.Hour
	defaultRetention   = 4 * 24 * time.Hour
	maxVisibility      = 12 * time.Hour
	maxPollingWait     = 30 * time.Second
	minMessageSize     = 1024
	maxMessageSize     = 65536
	maxInstances       = 50_000
)

// DefaultScenario is a web group of six instances behind one balancer, with a
// scale-in and a scale-out hook that notify one queue.
func DefaultScenario() Scenario {
	return Scenario{
		Region:    "cn-shenzhen",
		Queues:    []QueueConfig{{Name: "ess-lifecycle", VisibilityTimeout: time.Minute}},
		Balancers: []BalancerConfig{{ID: "alb-web"}},
		ScalingGroups: []GroupConfig{{
			ID:        "asg-wz9example0001",
			Name:      "web",
			Instances: 6,
			Balancers: []string{"alb-web"},
			Hooks: []HookConfig{
				{ID: "ash-wz9example0001", Name: "drain-on-scale-in", Transition: scaleIn, Queue: "ess-lifecycle"},
				{ID: "ash-wz9example0002", Name: "prepare-on-scale-out", Transition: scaleOut, Queue: "ess-lifecycle", DefaultResult: resultAbandon},
			},
		}},
	}
}

// LoadScenario reads a YAML file. Its error lists every problem, one a line, with
// file and line; unknown keys are problems.
func LoadScenario(path string) (Scenario, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Scenario{}, fmt.Errorf("read scenario: %w", err)
	}
	return parseScenario(path, data)
}

func parseScenario(path string, data []byte) (Scenario, error) {
	var sc Scenario
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	err := dec.Decode(&sc)
	if errors.Is(err, io.EOF) {
		return Scenario{}, fmt.Errorf("%s:1: the scenario is empty; it needs queues and scaling_groups", path)
	}
	if err != nil {
		return Scenario{}, yamlError(path, err)
	}
	if dec.Decode(new(yaml.Node)) != io.EOF {
		return Scenario{}, fmt.Errorf("%s: only one YAML document is allowed", path)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return Scenario{}, yamlError(path, err)
	}
	var problems []error
	for _, p := range sc.withDefaults().problems() {
		problems = append(problems, fmt.Errorf("%s:%d: %w", path, lineOf(&root, p.path), p))
	}
	return sc, errors.Join(problems...)
}

var (
	unknownField = regexp.MustCompile(`^line (\d+): field (.+) not found in type simulator\.(\w+)$`)
	lineMessage  = regexp.MustCompile(`^(?:yaml: )?line (\d+): (.+)$`)
)

// yamlError puts file and line in front of what the decoder says and names the
// allowed keys where a key is unknown.
func yamlError(path string, err error) error {
	texts := []string{err.Error()}
	if te, ok := errors.AsType[*yaml.TypeError](err); ok {
		texts = te.Errors
	}
	var out []error
	for _, text := range texts {
		if m := unknownField.FindStringSubmatch(text); m != nil {
			out = append(out, fmt.Errorf("%s:%s: unknown key %q; allowed are %s", path, m[1], m[2], strings.Join(allowedKeys(m[3]), ", ")))
		} else if m := lineMessage.FindStringSubmatch(text); m != nil {
			out = append(out, fmt.Errorf("%s:%s: %s", path, m[1], m[2]))
		} else {
			out = append(out, fmt.Errorf("%s: %s", path, text))
		}
	}
	return errors.Join(out...)
}

func allowedKeys(typeName string) []string {
	var keys []string
	for _, v := range []any{
		Scenario{}, QueueConfig{}, DlqPolicy{}, TopicConfig{}, SubscriptionConfig{}, EventBridgeConfig{},
		BalancerConfig{}, ServerGroupConfig{}, ListenerConfig{}, HealthCheck{}, GroupConfig{}, MembershipConfig{}, HookConfig{}, Timings{},
		RoleConfig{}, STSConfig{}, OIDCConfig{}, MetadataConfig{}, WarmPoolConfig{}, CloudEventConfig{},
	} {
		if t := reflect.TypeOf(v); t.Name() == typeName {
			for f := range t.NumField() {
				keys = append(keys, t.Field(f).Tag.Get("yaml"))
			}
		}
	}
	return keys
}

// lineOf finds the line of a path such as scaling_groups[0].hooks[1].queue, or of
// the nearest thing above it that the file has.
func lineOf(root *yaml.Node, path string) int {
	node, line := root, 1
	if node.Kind == yaml.DocumentNode && len(node.Content) > 0 {
		node = node.Content[0]
		line = node.Line
	}
	for part := range strings.FieldsFuncSeq(path, func(r rune) bool { return strings.ContainsRune(".[]", r) }) {
		next, at := child(node, part)
		if next == nil {
			return line
		}
		node, line = next, at
	}
	return line
}

// child gives the element of a list or the value of a key, and where it begins.
func child(node *yaml.Node, part string) (*yaml.Node, int) {
	if i, err := strconv.Atoi(part); err == nil && node.Kind == yaml.SequenceNode && i < len(node.Content) {
		return node.Content[i], node.Content[i].Line
	}
	if node.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == part {
				return node.Content[i+1], node.Content[i].Line
			}
		}
	}
	return nil, 0
}

// withDefaults fills in the service's defaults; lists are copied before.
func (sc Scenario) withDefaults() Scenario {
	set(&sc.Provider, providerAlibaba)
	if sc.Provider == providerAWS {
		sc.awsDefaults()
	}
	set(&sc.Region, "cn-shenzhen")
	set(&sc.Timings.Command, time.Second)
	sc.rolesWithDefaults()
	if sc.HeartbeatFromNow == nil {
		sc.HeartbeatFromNow = new(true)
	}
	sc.Queues = slices.Clone(sc.Queues)
	for i := range sc.Queues {
		q := &sc.Queues[i]
		set(&q.VisibilityTimeout, 30*time.Second)
		set(&q.Retention, defaultRetention)
		set(&q.MaxMessageSize, maxMessageSize)
	}
	sc.Topics = slices.Clone(sc.Topics)
	for i := range sc.Topics {
		t := &sc.Topics[i]
		set(&t.MaxMessageSize, maxMessageSize)
		t.Subscriptions = slices.Clone(t.Subscriptions)
		for j := range t.Subscriptions {
			t.Subscriptions[j] = t.Subscriptions[j].withDefaults()
		}
	}
	set(&sc.EventBridge.Data, "data")
	set(&sc.EventBridge.Encoding, "plain")
	sc.Balancers = slices.Clone(sc.Balancers)
	for i := range sc.Balancers {
		sc.Balancers[i].setDefaults()
	}
	sc.ScalingGroups = slices.Clone(sc.ScalingGroups)
	for i := range sc.ScalingGroups {
		g := &sc.ScalingGroups[i]
		if sc.Provider == providerAWS {
			g.awsDefaults()
		}
		set(&g.Name, g.ID)
		if len(g.Zones) == 0 {
			g.Zones = []string{sc.Region + map[bool]string{true: "a", false: "-a"}[sc.Provider == providerAWS]}
		}
		g.ServerGroups = slices.Clone(g.ServerGroups)
		for j := range g.ServerGroups {
			set(&g.ServerGroups[j].Weight, 100)
		}
		g.Hooks = slices.Clone(g.Hooks)
		for j := range g.Hooks {
			h := &g.Hooks[j]
			if sc.Provider == providerAWS {
				h.awsDefaults()
			}
			set(&h.ID, "ash-wz9"+randomText(17))
			set(&h.Name, h.ID)
			set(&h.HeartbeatTimeout, defaultHookTimeout)
			set(&h.DefaultResult, resultContinue)
			set(&h.Encoding, "base64")
		}
	}
	return sc
}

func set[T comparable](p *T, def T) {
	var zero T
	if *p == zero {
		*p = def
	}
}

// problem is one thing wrong with a scenario.
type problem struct{ path, text string }

func (p problem) Error() string { return p.path + ": " + p.text }

var (
	idPattern        = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
	queueNamePattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]*$`)
	hookNamePattern  = regexp.MustCompile(`^[\p{L}\p{N}][\p{L}\p{N}_.-]{1,63}$`)
)

// checker collects problems.
type checker struct{ found []problem }

func (c *checker) add(path, format string, args ...any) {
	c.found = append(c.found, problem{path, fmt.Sprintf(format, args...)})
}

func (c *checker) between(path string, got, low, high time.Duration) {
	if got < low || got > high {
		c.add(path, "must be %v to %v, got %v", low, high, got)
	}
}

func (c *checker) oneOf(path, got string, allowed ...string) {
	if !slices.Contains(allowed, got) {
		c.add(path, "must be one of %s, got %q", strings.Join(allowed, ", "), got)
	}
}

// unique checks an identifier and that seen does not have it yet.
func (c *checker) unique(path, id string, seen map[string]bool, pattern *regexp.Regexp) {
	switch {
	case !pattern.MatchString(id):
		c.add(path, "%q does not match %v", id, pattern)
	case seen[id]:
		c.add(path, "%q is there twice", id)
	}
	seen[id] = true
}

// problems lists what is wrong with a scenario that has its defaults.
func (sc Scenario) problems() []problem {
	c := &checker{}
	c.oneOf("provider", sc.Provider, providerAlibaba, providerAWS)
	if len(c.found) > 0 {
		return c.found // without it nothing has bounds
	}
	if !idPattern.MatchString(sc.Region) {
		c.add("region", "%q is no region id", sc.Region)
	}
	if sc.Policy != "" {
		if _, err := ParsePolicy([]byte(sc.Policy)); err != nil {
			c.add("policy", "%v", strings.TrimPrefix(err.Error(), "policy: "))
		}
	}
	c.roles(sc)
	queues := c.queues(sc)
	topics := c.topics(sc, queues)
	balancers, serverGroups := c.balancers(sc)
	c.groups(sc, queues, balancers, serverGroups)
	c.targets(sc, queues, topics)
	c.awsGroups(sc, queues)
	for name, d := range map[string]time.Duration{"boot": sc.Timings.Boot, "warm_up": sc.Timings.WarmUp, "agent": sc.Timings.Agent, "address": sc.Timings.Address, "stop": sc.Timings.Stop, "command": sc.Timings.Command, "listing": sc.Timings.Listing} {
		c.between("timings."+name, d, 0, time.Hour)
	}
	return c.found
}

// queueBounds are what a queue's settings may be, by provider.
var queueBounds = map[string]struct {
	name            *regexp.Regexp
	length, size    int
	wait, retention time.Duration
}{
	providerAlibaba: {queueNamePattern, maxQueueName, maxMessageSize, maxPollingWait, maxRetention},
	providerAWS:     {sqsNamePattern, maxSQSName, maxSQSMessage, maxSQSWait, maxSQSRetention},
}

func (c *checker) queues(sc Scenario) map[string]bool {
	seen := map[string]bool{}
	bounds := queueBounds[sc.Provider]
	for i, q := range sc.Queues {
		at := fmt.Sprintf("queues[%d].", i)
		c.unique(at+"name", q.Name, seen, bounds.name)
		if len(q.Name) > bounds.length {
			c.add(at+"name", "at most %d characters, got %d", bounds.length, len(q.Name))
		}
		c.between(at+"visibility_timeout", q.VisibilityTimeout, time.Second, maxVisibility)
		c.between(at+"polling_wait", q.PollingWait, 0, bounds.wait)
		c.between(at+"retention", q.Retention, minUnlessLax(sc, minRetention), bounds.retention)
		if q.MaxMessageSize < minMessageSize || q.MaxMessageSize > bounds.size {
			c.add(at+"max_message_size", "must be %d to %d bytes, got %d", minMessageSize, bounds.size, q.MaxMessageSize)
		}
	}
	for i, q := range sc.Queues {
		at, p := fmt.Sprintf("queues[%d].dlq_policy", i), q.DlqPolicy
		switch {
		case p == DlqPolicy{}:
		case p.DeadLetterTargetQueue == q.Name:
			c.add(at+".dead_letter_target_queue", "a queue can't be its own")
		case !seen[p.DeadLetterTargetQueue]:
			c.add(at+".dead_letter_target_queue", "no queue %q; there are %s", p.DeadLetterTargetQueue, names(seen))
		case p.MaxReceiveCount < 1 || p.MaxReceiveCount > 1000:
			c.add(at+".max_receive_count", "must be 1 to 1000, got %d", p.MaxReceiveCount)
		}
	}
	return seen
}

func minUnlessLax(sc Scenario, low time.Duration) time.Duration {
	if sc.Lax {
		return time.Millisecond
	}
	return low
}

func (c *checker) groups(sc Scenario, queues, balancers map[string]bool, serverGroups serverGroups) {
	groups, hooks := map[string]bool{}, map[string]bool{}
	if len(sc.ScalingGroups) > 250 {
		c.add("scaling_groups", "at most 250, got %d", len(sc.ScalingGroups))
	}
	for i, g := range sc.ScalingGroups {
		at := fmt.Sprintf("scaling_groups[%d].", i)
		c.unique(at+"id", g.ID, groups, idPattern)
		if g.Instances < 0 || g.Instances > maxInstances {
			c.add(at+"instances", "must be 0 to %d, got %d", maxInstances, g.Instances)
		}
		c.memberships(at, g, balancers, serverGroups)
		if sc.Provider == providerAWS {
			hooks = map[string]bool{} // a name is the group's own
		}
		for j, h := range g.Hooks {
			c.hook(fmt.Sprintf("%shooks[%d].", at, j), sc, h, queues, hooks)
		}
	}
}

// hookBounds are what a hook's settings may be, by provider.
var hookBounds = map[string]struct {
	id, name           *regexp.Regexp
	timeout            time.Duration
	results, encodings []string
}{
	providerAlibaba: {idPattern, hookNamePattern, maxHookTimeout, []string{resultContinue, resultAbandon, resultRollback}, []string{"base64", "plain"}},
	providerAWS:     {awsHookPattern, awsHookPattern, maxAWSHookTimeout, []string{resultContinue, resultAbandon}, []string{"plain"}},
}

func (c *checker) hook(at string, sc Scenario, h HookConfig, queues, hooks map[string]bool) {
	bounds := hookBounds[sc.Provider]
	c.unique(at+"id", h.ID, hooks, bounds.id)
	if !bounds.name.MatchString(h.Name) {
		c.add(at+"name", "%q does not match %v", h.Name, bounds.name)
	}
	c.oneOf(at+"transition", h.Transition, scaleIn, scaleOut)
	c.between(at+"heartbeat_timeout", h.HeartbeatTimeout, minUnlessLax(sc, minHookTimeout), bounds.timeout)
	c.oneOf(at+"default_result", h.DefaultResult, bounds.results...)
	c.oneOf(at+"encoding", h.Encoding, bounds.encodings...)
	if h.Queue != "" && !queues[h.Queue] {
		c.add(at+"queue", "no queue %q; there are %s", h.Queue, names(queues))
	}
	if len(h.Metadata) > 4096 {
		c.add(at+"metadata", "at most 4096 bytes, got %d", len(h.Metadata))
	}
}

func names(set map[string]bool) string {
	if len(set) == 0 {
		return "none"
	}
	return strings.Join(slices.Sorted(maps.Keys(set)), ", ")
}
