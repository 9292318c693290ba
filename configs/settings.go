package configs

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/viper"
	"go.yaml.in/yaml/v3"

	"example.org/usher/messages"
)

// setting is one plain value of a file that the environment can override. Its key
// has one part for each level: queue.name stands in the map queue.
type setting[T any] struct {
	key string
	// absent is the value where neither the file nor the environment has one.
	absent string
	// number: the file writes it as a number, not as text.
	number bool
	// set reads the value; its error says what is allowed.
	set func(t *T, text string) error
}

var (
	patternName         = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$`)
	patternStem         = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	patternRegion       = regexp.MustCompile(`^[a-z]{2}(-[a-z0-9]{1,20}){1,4}$`)
	patternScalingGroup = regexp.MustCompile(`^asg-[A-Za-z0-9-]{1,60}$`)
	patternQueue        = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,255}$`)
	patternAside        = regexp.MustCompile(`^[A-Za-z0-9_-]{1,256}$`)
	patternAccount      = regexp.MustCompile(`^[0-9]{12}$`)
	patternHookID       = regexp.MustCompile(`^ash-[A-Za-z0-9-]{1,60}$`)
	patternHookName     = regexp.MustCompile(`^[\p{L}\p{N}][\p{L}\p{N}_.-]{1,63}$`)
)

func workerSettings() []setting[Worker] {
	return append([]setting[Worker]{
		{"name", hostName(), false, func(w *Worker, text string) error {
			w.Name = text
			return match(text, patternName.MatchString, "a name of at most 128 letters, digits, dots, _ and -")
		}},
		{"max_actions", fmt.Sprint(DefaultMaxActions), true, func(w *Worker, text string) (err error) {
			w.MaxActions, err = parseCount(text, 1, 1_000_000)
			return err
		}},
		{"max_jobs", fmt.Sprint(DefaultMaxJobs), true, func(w *Worker, text string) (err error) {
			w.MaxJobs, err = parseCount(text, 1, 100_000)
			return err
		}},
		{"max_receives", fmt.Sprint(DefaultMaxReceives), true, func(w *Worker, text string) (err error) {
			w.MaxReceives, err = parseCount(text, 1, 1000)
			return err
		}},
		{"quarantine.to", QuarantineAudit, false, func(w *Worker, text string) (err error) {
			w.Quarantine.To, err = parseChoice(text, QuarantineAudit, QuarantineDeadLetter, QuarantineQueue)
			return err
		}},
		{"quarantine.queue", "", false, func(w *Worker, text string) error {
			w.Quarantine.Queue = text
			if text == "" {
				return nil
			}
			return match(text, patternAside.MatchString, "a queue's name: letters, digits, - and _")
		}},
		{"visibility_timeout", show(DefaultVisibilityTimeout), false, func(w *Worker, text string) (err error) {
			// ChangeMessageVisibility (MNS 2015-06-06, SQS 2012-11-05) takes whole seconds up to 12 hours.
			w.VisibilityTimeout, err = parseDuration(text, 10*time.Second, 12*time.Hour)
			if err == nil && w.VisibilityTimeout%time.Second != 0 {
				err = fmt.Errorf("want whole seconds, got %s", show(w.VisibilityTimeout))
			}
			return err
		}},
		{"shutdown_grace", show(DefaultShutdownGrace), false, func(w *Worker, text string) (err error) {
			w.ShutdownGrace, err = parseDuration(text, 0, 24*time.Hour)
			return err
		}},
		{"reconcile.every", show(DefaultReconcileEvery), false, func(w *Worker, text string) (err error) {
			w.Reconcile.Every, err = parsePeriod(text)
			return err
		}},
		{"http", DefaultHTTP, false, func(w *Worker, text string) (err error) {
			w.HTTP, err = parseListen(text)
			return err
		}},
		{"log.level", DefaultLogLevel, false, func(w *Worker, text string) (err error) {
			w.Log.Level, err = parseChoice(text, "debug", "info", "warn", "error")
			return err
		}},
		{"log.format", DefaultLogFormat, false, func(w *Worker, text string) (err error) {
			w.Log.Format, err = parseChoice(text, "text", "json")
			return err
		}},
		{"audit.file", "", false, func(w *Worker, text string) error {
			w.Audit.File = text
			if strings.ContainsRune(text, 0) {
				return fmt.Errorf("want a file name")
			}
			return nil
		}},
	}, workerRoleSettings()...)
}

// groupSettings are those of the cloud's files.
func groupSettings(c *cloud) []setting[Group] {
	return slices.Concat([]setting[Group]{
		{"provider", "", false, func(g *Group, text string) (err error) {
			g.Provider, err = parseChoice(text, ProviderAlibaba, ProviderAWS)
			return err
		}},
		{"region", "", false, func(g *Group, text string) error {
			g.Region = text
			return match(text, c.region.MatchString, c.wantRegion)
		}},
		{"scaling_group", "", false, func(g *Group, text string) error {
			g.ScalingGroup = messages.GroupID(text)
			return match(text, c.scalingGroup, c.wantScalingGroup)
		}},
		{"queue.name", "", false, func(g *Group, text string) error {
			g.Queue.Name = text
			return match(text, c.queue.MatchString, c.wantQueue)
		}},
	}, c.settings(), []setting[Group]{
		{"verify", DefaultVerify, false, func(g *Group, text string) (err error) {
			g.Verify, err = parseChoice(text, VerifyAlways, VerifyRedelivered, VerifyNever)
			return err
		}},
		{"max_concurrent", "0", true, func(g *Group, text string) (err error) {
			g.MaxConcurrent, err = parseCount(text, 0, 100_000)
			return err
		}},
	}, roleSettings(c))
}

func alibabaSettings() []setting[Group] {
	return []setting[Group]{
		{"queue.endpoint", "", false, func(g *Group, text string) (err error) {
			if text == "" {
				return fmt.Errorf("is required: a URL such as https://1234567890123456.mns.cn-shenzhen.aliyuncs.com")
			}
			g.Queue.Endpoint, err = parseEndpoint(text)
			return err
		}},
		endpointSetting("endpoints.ess", func(g *Group) *string { return &g.Endpoints.ESS }),
		endpointSetting("endpoints.ecs", func(g *Group) *string { return &g.Endpoints.ECS }),
		endpointSetting("endpoints.slb", func(g *Group) *string { return &g.Endpoints.SLB }),
		endpointSetting("endpoints.alb", func(g *Group) *string { return &g.Endpoints.ALB }),
		endpointSetting("endpoints.nlb", func(g *Group) *string { return &g.Endpoints.NLB }),
	}
}

func awsSettings() []setting[Group] {
	return []setting[Group]{
		endpointSetting("queue.endpoint", func(g *Group) *string { return &g.Queue.Endpoint }),
		{"queue.account", "", false, func(g *Group, text string) error {
			g.Queue.Account = text
			if text == "" {
				return nil
			}
			return match(text, patternAccount.MatchString, "the 12 digits of the account that the queue belongs to, in quotes")
		}},
		endpointSetting("endpoints.autoscaling", func(g *Group) *string { return &g.Endpoints.AutoScaling }),
		endpointSetting("endpoints.elb", func(g *Group) *string { return &g.Endpoints.ELB }),
		endpointSetting("endpoints.ssm", func(g *Group) *string { return &g.Endpoints.SSM }),
		endpointSetting("endpoints.ec2", func(g *Group) *string { return &g.Endpoints.EC2 }),
	}
}

// endpointSetting is an address that may be left out.
func endpointSetting(key string, of func(g *Group) *string) setting[Group] {
	return setting[Group]{key, "", false, func(g *Group, text string) (err error) {
		*of(g), err = optionalEndpoint(text)
		return err
	}}
}

// match refuses text that is empty or does not fit.
func match(text string, fits func(string) bool, want string) error {
	if text == "" {
		return fmt.Errorf("is required: %s", want)
	}
	if !fits(text) {
		return fmt.Errorf("want %s, got %s", want, clip(text))
	}
	return nil
}

func optionalEndpoint(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	return parseEndpoint(text)
}

// parseListen reads a listen address; empty and off mean none.
func parseListen(text string) (string, error) {
	if text == "" || text == "off" {
		return "", nil
	}
	_, port, err := net.SplitHostPort(text)
	if err == nil {
		_, err = parseCount(port, 0, 65535)
	}
	if err != nil {
		return "", fmt.Errorf("want an address and port such as %s, or off, got %s", DefaultHTTP, clip(text))
	}
	return text, nil
}

// parsePeriod reads how often something is done; off means never.
func parsePeriod(text string) (time.Duration, error) {
	if text == "off" {
		return 0, nil
	}
	d, err := parseDuration(text, 10*time.Second, 6*time.Hour)
	if err != nil {
		err = fmt.Errorf("%w, or off", err)
	}
	return d, err
}

// hostName is the worker's name where the operator gives none.
func hostName() string {
	if name, err := os.Hostname(); err == nil && patternName.MatchString(name) {
		return name
	}
	return "usher"
}

// override is a value from the environment and the variable it came in.
type override struct {
	variable, value string
}

// apply lays the three layers over each other, default, file and environment, and
// sets each value of t. It gives the keys that are right.
func apply[T any](t *T, top fields, settings []setting[T], env map[string]override) (good map[string]bool) {
	layers := viper.New()
	inFile, unread := readSettings(top, settings)
	good = map[string]bool{}
	for _, s := range settings {
		layers.SetDefault(s.key, s.absent)
		good[s.key] = !unread[s.key]
		if n := inFile[s.key]; n != nil {
			if message := wrongType(s, n); message != "" {
				top.problem(place(top, s.key), s.key, "%s", message)
				good[s.key] = false
			} else if err := layers.MergeConfigMap(nested(s.key, n.Value)); err != nil {
				top.problem(n, s.key, "%s", err)
			}
		}
		if o, ok := env[s.key]; ok {
			layers.Set(s.key, o.value)
		}
	}
	for _, s := range settings {
		o, overridden := env[s.key]
		err := s.set(t, layers.GetString(s.key))
		switch {
		case err == nil || !good[s.key] && !overridden:
			continue
		case overridden:
			top.file.problems = append(top.file.problems, Problem{Key: o.variable, Message: err.Error()})
		default:
			top.problem(place(top, s.key), s.key, "%s", err)
		}
		good[s.key] = false
	}
	return good
}

// readSettings finds the settings' nodes, and the keys that stand in a section that is no map.
func readSettings[T any](top fields, settings []setting[T]) (out map[string]*yaml.Node, unread map[string]bool) {
	out, unread = map[string]*yaml.Node{}, map[string]bool{}
	inside := sections(settings)
	for _, name := range topKeys(settings) {
		n := top.values[name]
		known := inside[name]
		if n == nil {
			continue
		}
		if known == nil {
			out[name] = n
			continue
		}
		section := top.fields(n, name, known...)
		for _, key := range known {
			unread[name+"."+key] = n.Kind != yaml.MappingNode
			if value := section.values[key]; value != nil {
				out[name+"."+key] = value
			}
		}
	}
	return out, unread
}

// wrongType says what is wrong with a node before its text is looked at.
func wrongType[T any](s setting[T], n *yaml.Node) string {
	tag := n.ShortTag()
	switch {
	case n.Kind != yaml.ScalarNode || tag == "!!null":
		if s.number {
			return "want a whole number, got " + kind(n)
		}
		return "want text, got " + kind(n)
	case s.number && tag != "!!int":
		return "want a whole number, without quotes, got " + kind(n)
	case !s.number && tag != "!!str":
		if err := s.set(new(T), n.Value); err != nil {
			return err.Error()
		}
		return "want text in quotes, got " + kind(n)
	}
	return ""
}

// sections lists the keys that stand inside a map, by the map's name.
func sections[T any](settings []setting[T]) map[string][]string {
	out := map[string][]string{}
	for _, s := range settings {
		if name, key, ok := strings.Cut(s.key, "."); ok {
			out[name] = append(out[name], key)
		}
	}
	return out
}

// topKeys lists the keys that a file may have at its top.
func topKeys[T any](settings []setting[T]) []string {
	var out []string
	for _, s := range settings {
		name, _, _ := strings.Cut(s.key, ".")
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// place finds the node of a setting's key, or of the map that it is missing from.
func place(top fields, key string) *yaml.Node {
	name, rest, inside := strings.Cut(key, ".")
	section := top.values[name]
	if !inside || section == nil || section.Kind != yaml.MappingNode {
		return top.place(name)
	}
	for i := 0; i+1 < len(section.Content); i += 2 {
		if section.Content[i].Value == rest {
			return section.Content[i]
		}
	}
	return top.place(name)
}

func nested(key, text string) map[string]any {
	if name, rest, ok := strings.Cut(key, "."); ok {
		return map[string]any{name: map[string]any{rest: text}}
	}
	return map[string]any{key: text}
}
