package configs

import (
	"net/netip"
	"slices"
	"time"

	"go.yaml.in/yaml/v3"

	"example.org/usher/messages"
)

// The defaults of fail_health_check, block_connections and undo.
const (
	DefaultFirewallTimeout = time.Minute
	DefaultWatch           = 5 * time.Second
	DefaultProbeRate       = 5
)

// firewallSlack is what a step's timeout has for the way to the instance and back.
const firewallSlack = 5 * time.Second

// FailHealthCheckStep drops the balancer's probes on the instance.
type FailHealthCheckStep struct {
	Ports []int
	// Probes are the networks that the balancer probes from, and nothing else comes from.
	Probes []netip.Prefix
	// Expires is when it ends by itself: the hook's deadline, unless the file says otherwise.
	Expires time.Duration
	// Watch is how long the networks are watched for clients' traffic before.
	Watch time.Duration
	// ProbeRate is how many new connections a second from there are probes.
	ProbeRate int
}

// BlockConnectionsStep refuses new connections on the instance.
type BlockConnectionsStep struct {
	Ports []int
	// Expires is as in FailHealthCheckStep.
	Expires time.Duration
}

// UndoStep takes back what the two have set up on the instance.
type UndoStep struct{}

func (f *file) failHealthCheckStep(s *Step, n *yaml.Node, path string) {
	m := f.stepFields(n, path, "ports", "probes", "expires", "watch", "probe_rate")
	m.common(s, DefaultFirewallTimeout)
	h := &FailHealthCheckStep{
		Ports:     m.ports(),
		Expires:   m.expires(),
		Watch:     m.duration("watch", DefaultWatch, time.Second, time.Minute),
		ProbeRate: m.count("probe_rate", DefaultProbeRate, 1, 1000),
	}
	s.FailHealthCheck, s.UndoTimeout = h, s.Timeout
	if n.Kind != yaml.MappingNode || !m.need("probes", "a list of the networks that the balancer probes from, such as [10.0.0.252/31]") {
		return
	}
	h.Probes = m.prefixes("probes")
	if n := m.values["probes"]; n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		m.refuse("probes", "the list is empty: want the networks that the balancer probes from, such as [10.0.0.252/31]")
	}
	for _, p := range h.Probes {
		if p.Bits() == 0 {
			m.refuse("probes", "%s is everybody: want only what the balancer probes from", p)
		}
	}
	if need := h.Watch + firewallSlack; need > s.Timeout {
		m.refuse("timeout", "watch %s and %s for the way to the instance take %s, the timeout is %s", show(h.Watch), show(firewallSlack), show(need), show(s.Timeout))
	}
}

func (f *file) blockConnectionsStep(s *Step, n *yaml.Node, path string) {
	m := f.stepFields(n, path, "ports", "expires")
	m.common(s, DefaultFirewallTimeout)
	s.BlockConnections, s.UndoTimeout = &BlockConnectionsStep{Ports: m.ports(), Expires: m.expires()}, s.Timeout
	m.firewallTimeout(s)
}

func (f *file) undoStep(s *Step, n *yaml.Node, path string) {
	m := f.stepFields(n, path)
	m.common(s, DefaultFirewallTimeout)
	s.Undo = &UndoStep{}
	m.firewallTimeout(s)
}

func (m fields) firewallTimeout(s *Step) {
	if s.Timeout < firewallSlack {
		m.refuse("timeout", "at least %s, for the way to the instance, got %s", show(firewallSlack), show(s.Timeout))
	}
}

func (m fields) ports() []int {
	if m.node.Kind != yaml.MappingNode || !m.need("ports", "a list of port numbers, such as [80, 443]") {
		return nil
	}
	return m.counts("ports", nil, 1, 65535)
}

// expires gives 0 where the file leaves it to the hook's deadline.
func (m fields) expires() time.Duration {
	return m.duration("expires", 0, 10*time.Second, m.cloud().longest)
}

// checkFirewall fills in when the blocks of the hook end, and refuses those that would lose
// requests: a block that ends before the drain does puts the instance back into the
// balancer, and one that refuses connections while the balancer still sends loses the
// instance's share of them.
func (m fields) checkFirewall(h Hook) {
	nodes, paths := m.list("steps")
	refuse := func(s Step, key, format string, args ...any) {
		i := slices.IndexFunc(nodes, func(n *yaml.Node) bool {
			return n.Line == s.Line && len(n.Content) == 2 && n.Content[0].Value == s.Kind
		})
		if key != "" {
			key = "." + key
		}
		m.problem(nodes[i].Content[0], paths[i]+"."+s.Kind+key, format, args...)
	}
	for i, s := range h.Steps {
		var expires *time.Duration
		switch s.Kind {
		case KindFailHealthCheck:
			expires = &s.FailHealthCheck.Expires
		case KindBlockConnections:
			expires = &s.BlockConnections.Expires
			if h.Transition == messages.ScaleIn && !afterGap(h.Steps[:i], Condition{Transition: h.Transition, Tags: s.When.Tags}) {
				refuse(s, "", "comes too early: until the balancer has stopped sending, its share of the requests would be lost. "+
					"Want in front of it a step that takes the instance out (deregister, fail_health_check, http, command or exec, with on_error: fail), "+
					"and then one that lets the balancer notice: wait, or wait_connections with a gap or until: quiet")
			}
		case KindUndo:
		default:
			continue
		}
		if h.Transition == messages.ScaleOut {
			refuse(s, "", "is not for scale_out: an instance that joins has no traffic to keep away")
		}
		if expires == nil {
			continue
		}
		if *expires == 0 {
			*expires = h.Deadline
		}
		var rest time.Duration
		for _, s := range slices.Concat(h.Steps[i+1:], h.Always) {
			rest += s.Longest()
		}
		if *expires < rest {
			refuse(s, "expires", "the steps behind it may take %s, it would end after %s and let the balancer send again meanwhile; by default it lasts for the deadline",
				show(rest), show(*expires))
		}
		if twice(s.Kind, h.Steps[:i]) {
			refuse(s, "", "is there twice: it would replace the first one, name all ports and networks in one")
		}
	}
}

// afterGap says whether the steps take the instance out of the balancer, and then give the
// balancer time to notice: each of them whenever the condition holds. An undo may let it
// back in.
func afterGap(before []Step, when Condition) bool {
	out, noticed := false, false
	for _, s := range before {
		switch s.Kind {
		case KindParallel:
			out = out || slices.ContainsFunc(s.Parallel, func(m Step) bool { return m.takesOut() && s.When.covers(when) && m.When.covers(when) })
		case KindUndo:
			out, noticed = false, false
		case KindWait:
			noticed = noticed || out && s.Wait.For > 0 && s.When.covers(when)
		case KindWaitConnections:
			w := s.WaitConnections
			noticed = noticed || out && (w.Gap > 0 || w.Until == UntilQuiet) && s.When.covers(when)
		default:
			out = out || s.takesOut() && s.When.covers(when)
		}
	}
	return noticed
}

// takesOut says whether the step may take the instance out of its balancer, and its failure
// ends the job.
func (s Step) takesOut() bool {
	switch s.Kind {
	case KindDeregister, KindFailHealthCheck, KindHTTP, KindCommand, KindExec:
		return s.OnError == OnErrorFail
	}
	return false
}

// covers says whether the condition holds whenever the other one does.
func (c Condition) covers(other Condition) bool {
	for key, value := range c.Tags {
		if got, ok := other.Tags[key]; !ok || got != value {
			return false
		}
	}
	return c.Transition == "" || c.Transition == other.Transition
}

// twice says whether a step of the kind is in force already.
func twice(kind string, before []Step) bool {
	found := false
	for _, s := range before {
		found = s.Kind == kind || found && s.Kind != KindUndo
	}
	return found
}
