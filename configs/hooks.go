package configs

import (
	"math"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"example.org/usher/messages"
)

func (m fields) hooks() []Hook {
	if m.keys["hooks"] == nil && m.keys["events"] != nil || !m.need("hooks", "a list with one entry for each lifecycle hook") {
		return nil
	}
	nodes, paths := m.list("hooks")
	if n := m.values["hooks"]; n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		m.refuse("hooks", "the list is empty: want one entry for each lifecycle hook")
	}
	hooks := make([]Hook, len(nodes))
	for i, n := range nodes {
		hooks[i] = m.hook(n, paths[i])
		for j := range i {
			if both := overlap(hooks[i], hooks[j]); both != "" {
				m.problem(n, paths[i], "%s is in %s already: want one entry for each hook", both, paths[j])
				break
			}
		}
	}
	return hooks
}

// overlap says which hook two entries would both match, as far as the files tell.
func overlap(a, b Hook) string {
	switch {
	case a.Transition != b.Transition || a.Transition == "":
		return ""
	case a.HookID == "" && a.HookName == "" || b.HookID == "" && b.HookName == "":
		return "every hook of " + string(a.Transition)
	case a.HookID == b.HookID && a.HookName == b.HookName:
		return "hook " + string(a.HookID) + a.HookName
	}
	return ""
}

func (f *file) hook(n *yaml.Node, path string) Hook {
	m := f.fields(n, path, "transition", "hook", "deadline", "on_success", "on_failure", "heartbeat", "steps", "always")
	var h Hook
	if n.Kind != yaml.MappingNode {
		return h
	}
	transitions := []string{string(messages.ScaleIn), string(messages.ScaleOut)}
	if m.need("transition", strings.Join(transitions, " or ")) {
		h.Transition = messages.Transition(m.choice("transition", "", transitions...))
	}
	h.HookID, h.HookName = m.selector()
	h.Deadline = m.deadline("hook fired")
	h.OnSuccess = m.result("on_success", messages.Continue)
	h.OnFailure = m.result("on_failure", messages.Abandon)
	h.Heartbeat = m.heartbeat(h.Deadline)
	m.work(&h)
	return h
}

// work reads the steps, and checks all of the hook or the event that concerns them.
func (m fields) work(h *Hook) {
	h.Steps = m.steps()
	h.Always = m.stepList("always")
	gapsFrom(*h)
	m.checkSteps(*h)
	m.checkConditions(*h)
	m.checkBalancers(*h)
	m.checkTransition(*h)
	m.checkFirewall(*h)
}

// selector reads which hook of the group is meant: its id or its name.
func (m fields) selector() (messages.HookID, string) {
	text, ok := m.text("hook", "")
	switch {
	case !ok || m.keys["hook"] == nil:
		return "", ""
	case m.cloud() == alibaba && patternHookID.MatchString(text):
		return messages.HookID(text), ""
	case m.cloud().hook(text):
		return "", text
	}
	m.refuse("hook", "want %s; got %s", m.cloud().wantHook, clip(text))
	return "", ""
}

// deadline gives 0 when it is missing or wrong.
func (m fields) deadline(since string) time.Duration {
	if !m.need("deadline", "how long after the "+since+" the steps must be done, such as 30m") {
		return 0
	}
	d := m.duration("deadline", 0, time.Second, math.MaxInt64)
	if c := m.cloud(); d > c.longest {
		m.refuse("deadline", "at most %s on %s, got %s%s", show(c.longest), c.service, show(d), c.whyLongest)
		return 0
	}
	return d
}

func (m fields) result(key string, absent messages.Result) messages.Result {
	c := m.cloud()
	if n := m.values[key]; n != nil && n.Value == string(messages.Rollback) && c.noRollback != "" {
		m.refuse(key, "%s (allowed: %s, %s)", c.noRollback, messages.Continue, messages.Abandon)
		return absent
	}
	var allowed []string
	for _, r := range c.results {
		allowed = append(allowed, string(r))
	}
	return messages.Result(m.choice(key, string(absent), allowed...))
}

func (m fields) heartbeat(deadline time.Duration) Heartbeat {
	planned := Heartbeat{} // Load fills the floor in: it depends on the worker's lease
	n := m.values["heartbeat"]
	if n == nil {
		return planned
	}
	if m.cloud() == aws {
		m.refuse("heartbeat", "each heartbeat on AWS is worth the hook's own timeout, which usher reads from the cloud: set HeartbeatTimeout there (PutLifecycleHook)")
		return planned
	}
	h := m.fields(n, m.at("heartbeat"), "floor", "extension")
	planned.Floor = h.duration("floor", 0, essMinExtension, essMaxExtension)
	if h.keys["extension"] == nil {
		return planned
	}
	if h.keys["floor"] != nil {
		h.refuse("extension", "floor and extension exclude each other: floor is for planned lengths, extension replaces them")
	}
	extension := h.duration("extension", 0, essMinExtension, essMaxExtension)
	if extension == 0 {
		return planned
	}
	if calls := beats(deadline, extension); calls > essHeartbeats {
		h.refuse("extension", "%s / (2/3 x %s) = %d heartbeats, at most %d on ESS: the smallest extension that fits is %s",
			show(deadline), show(extension), calls, essHeartbeats, show(smallestExtension(deadline)))
	}
	return Heartbeat{Extension: extension}
}

// beats is how many heartbeats of one length a deadline costs: each is sent when a
// third of the one before is left, so that it is worth two thirds of its length.
func beats(deadline, extension time.Duration) int {
	return int((3*deadline + 2*extension - 1) / (2 * extension))
}

// smallestExtension is the shortest, in whole seconds, whose beats fit the budget.
func smallestExtension(deadline time.Duration) time.Duration {
	shortest := (3*deadline + 2*essHeartbeats - 1) / (2 * essHeartbeats)
	return (shortest + time.Second - 1).Truncate(time.Second)
}

// stepKinds are the steps there are, in the order in which errors list them.
var stepKinds = []string{
	KindBlockConnections, KindCommand, KindDeregister, KindExec, KindFailHealthCheck, KindHTTP, KindNotify, KindParallel, KindRegister, KindUndo,
	KindWait, KindWaitConnections,
}

func (m fields) steps() []Step {
	if !m.need("steps", "a list of "+strings.Join(stepKinds, ", ")+"; write steps: [] for none") {
		return nil
	}
	return m.stepList("steps")
}

func (m fields) stepList(key string) (steps []Step) {
	nodes, paths := m.list(key)
	for i, n := range nodes {
		if s, ok := m.step(n, paths[i]); ok {
			steps = append(steps, s)
		}
	}
	return steps
}

// step reads a map with one key, the step's kind.
func (f *file) step(n *yaml.Node, path string) (Step, bool) {
	kinds := strings.Join(stepKinds, ", ")
	if n.Kind != yaml.MappingNode {
		f.problem(n, path, "want one step such as wait: {for: 10s}, got %s; allowed: %s", kind(n), kinds)
		return Step{}, false
	}
	if len(n.Content) != 2 {
		f.problem(n, path, "want exactly one of %s, got %d keys: each step begins with a - of its own", kinds, len(n.Content)/2)
		return Step{}, false
	}
	name := n.Content[0].Value
	if !slices.Contains(stepKinds, name) {
		f.problem(n.Content[0], path+"."+printable(name), "unknown step%s (allowed: %s)", suggest(name, stepKinds), kinds)
		return Step{}, false
	}
	s := Step{Kind: name, Line: n.Line}
	body, path := n.Content[1], path+"."+name
	switch name {
	case KindHTTP:
		f.httpStep(&s, body, path)
	case KindWaitConnections:
		f.waitConnectionsStep(&s, body, path)
	case KindCommand:
		f.commandStep(&s, body, path)
	case KindExec:
		f.execStep(&s, body, path)
	case KindWait:
		f.waitStep(&s, body, path)
	case KindDeregister:
		f.deregisterStep(&s, body, path)
	case KindRegister:
		f.registerStep(&s, body, path)
	case KindNotify:
		f.notifyStep(&s, body, path)
	case KindParallel:
		f.parallelStep(&s, body, path)
	case KindFailHealthCheck:
		f.failHealthCheckStep(&s, body, path)
	case KindBlockConnections:
		f.blockConnectionsStep(&s, body, path)
	case KindUndo:
		f.undoStep(&s, body, path)
	}
	return s, true
}

// common reads what every step has.
func (m fields) common(s *Step, timeout time.Duration) {
	s.Timeout = m.duration("timeout", timeout, time.Second, m.cloud().longest)
	s.Retries = m.count("retries", 0, 0, 100)
	s.OnError = m.choice("on_error", OnErrorFail, OnErrorFail, OnErrorIgnore)
	s.When = m.when()
}

// stepFields are the keys of a step: those of its kind and those of every step.
func (f *file) stepFields(n *yaml.Node, path string, own ...string) fields {
	return f.fields(n, path, append(own, "timeout", "retries", "on_error", "when")...)
}
