package configs

import (
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxScript is what Cloud Assistant takes of a script: 16 KB as Base64 (RunCommand,
// ECS 2014-05-26).
const maxScript = 12 << 10

var (
	methods       = []string{"DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"}
	patternHeader = regexp.MustCompile("^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")
	patternHost   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9]([A-Za-z0-9-]{0,62}))*\.?$`)
)

func (m fields) headers() map[string]string {
	n := m.values["headers"]
	if n == nil {
		return nil
	}
	if n.Kind != yaml.MappingNode {
		m.refuse("headers", "want names and values, got %s", kind(n))
		return nil
	}
	if len(n.Content) > 2*maxList {
		m.refuse("headers", "at most %d, got %d", maxList, len(n.Content)/2)
		return nil
	}
	var names []string
	for i := 0; i < len(n.Content); i += 2 {
		names = append(names, n.Content[i].Value)
	}
	h := m.fields(n, m.at("headers"), names...)
	headers := map[string]string{}
	for _, name := range names {
		value, example, ok := h.template(name)
		canonical := http.CanonicalHeaderKey(name)
		_, twice := headers[canonical]
		switch {
		case h.keys[name] == nil || !ok:
		case !patternHeader.MatchString(name):
			h.problem(h.keys[name], h.at(name), "want a header's name such as X-Drain")
		case twice:
			h.refuse(name, "%s is there twice: the case of letters makes no difference", canonical)
		case strings.ContainsAny(example, "\r\n\x00"):
			h.refuse(name, "want one line")
		default:
			headers[canonical] = value
		}
	}
	return headers
}

func (m fields) hosts() []string {
	hosts, nodes, paths := m.texts("allow_hosts")
	for i, host := range hosts {
		_, addressErr := netip.ParseAddr(host)
		_, prefixErr := parsePrefix(host)
		if addressErr != nil && prefixErr != nil && !patternHost.MatchString(host) {
			m.problem(nodes[i], paths[i], "want a host name, an address or a prefix such as 10.0.0.0/8, got %s", clip(host))
		}
	}
	return hosts
}

func (f *file) waitConnectionsStep(s *Step, n *yaml.Node, path string) {
	m := f.stepFields(n, path, "ports", "exclude", "until", "clear_checks", "every", "quiet_for", "longest_request", "tries", "gap", "gap_from", "background", "local_address")
	m.common(s, DefaultWaitConnectionsTimeout)
	w := &WaitConnectionsStep{
		Exclude:        m.prefixes("exclude"),
		Until:          m.choice("until", UntilQuiet, UntilQuiet, UntilZero),
		ClearChecks:    m.count("clear_checks", DefaultClearChecks, 1, 1000),
		Every:          m.duration("every", DefaultEvery, time.Second, time.Hour),
		QuietFor:       m.duration("quiet_for", DefaultQuietFor, time.Second, time.Hour),
		LongestRequest: m.duration("longest_request", DefaultLongestRequest, time.Second, time.Hour),
		Tries:          m.count("tries", 0, 1, 1_000_000),
		Gap:            m.duration("gap", DefaultGap, 0, time.Hour),
		Background:     m.count("background", DefaultBackground, 0, 1_000_000),
	}
	if n.Kind == yaml.MappingNode && m.need("ports", "a list of port numbers, such as [80, 443]") {
		w.Ports = m.counts("ports", nil, 1, 65535)
	}
	w.LocalAddress = m.localAddress()
	if w.Until == UntilZero {
		for _, key := range []string{"quiet_for", "longest_request", "background"} {
			if m.keys[key] != nil {
				m.refuse(key, "only with until: quiet; until: zero counts established connections alone")
			}
		}
		w.QuietFor, w.LongestRequest, w.Background = 0, 0, 0
	} else if m.keys["tries"] != nil {
		m.refuse("tries", "only with until: zero; until: quiet ends with the timeout")
	}
	if w.Tries > 0 && w.Tries < w.ClearChecks {
		m.refuse("tries", "%d checks in a row must be clear, so at least %d tries", w.ClearChecks, w.ClearChecks)
	}
	switch {
	case n.Kind != yaml.MappingNode || m.keys["gap_from"] == nil:
		w.gapMeant = m.keys["gap"] != nil
	case m.keys["gap"] != nil:
		m.refuse("gap_from", "gap and gap_from exclude each other: gap is the time itself")
	default:
		w.GapFrom, w.gapMeant = m.balancers("gap_from", true), true
	}
	need := w.Gap + max(w.QuietFor, w.Every*time.Duration(w.ClearChecks-1))
	if need >= s.Timeout {
		m.refuse("timeout", "gap %s and then %d checks %s apart and %s of quiet take %s, the timeout is %s",
			show(w.Gap), w.ClearChecks, show(w.Every), show(w.QuietFor), show(need), show(s.Timeout))
	}
	s.WaitConnections = w
}

// gapsFrom has each wait_connections whose file says nothing of its gap take that from the
// balancers that a deregister step in front of it leaves.
func gapsFrom(h Hook) {
	var left []Balancer
	for s := range h.Each() {
		switch {
		case s.Deregister != nil:
			for _, b := range s.Deregister.Balancers {
				if !slices.Contains(left, b) {
					left = append(left, b)
				}
			}
		case s.WaitConnections != nil:
			if w := s.WaitConnections; !w.gapMeant {
				w.GapFrom = slices.Clone(left)
			}
			s.WaitConnections.gapMeant = false
		}
	}
}

func (m fields) localAddress() string {
	text, example, ok := m.template("local_address")
	if !ok || m.keys["local_address"] == nil {
		return ""
	}
	if _, err := netip.ParseAddr(example); err != nil {
		m.refuse("local_address", `want an address, or "{{.PrivateIP}}", got %s`, clip(text))
	}
	return text
}

// prefixes reads a list of networks; an address stands for itself alone.
func (m fields) prefixes(key string) []netip.Prefix {
	texts, nodes, paths := m.texts(key)
	var out []netip.Prefix
	for i, text := range texts {
		p, err := parsePrefix(text)
		switch {
		case err != nil:
			m.problem(nodes[i], paths[i], "want an address or a prefix such as 10.0.0.252/31, got %s", clip(text))
		case p != p.Masked():
			m.problem(nodes[i], paths[i], "%s has bits beyond its length, did you mean %s?", text, p.Masked())
		case slices.Contains(out, p):
			m.problem(nodes[i], paths[i], "%s is in the list twice", text)
		default:
			out = append(out, p)
		}
	}
	return out
}

func parsePrefix(text string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(text); err == nil && addr.Zone() == "" {
		return netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

func (f *file) commandStep(s *Step, n *yaml.Node, path string) {
	m := f.stepFields(n, path, "script")
	m.common(s, DefaultCommandTimeout)
	s.Command = &CommandStep{}
	if n.Kind != yaml.MappingNode || !m.need("script", "a path on the instance, or the lines of a shell script") {
		return
	}
	script, ok := m.text("script", "")
	switch {
	case !ok:
	case strings.TrimSpace(script) == "":
		m.refuse("script", "is empty: want a path on the instance, or the lines of a shell script")
	case len(script) > maxScript:
		m.refuse("script", "at most %d bytes, got %d", maxScript, len(script))
	case strings.ContainsRune(script, 0):
		m.refuse("script", "want text without zero bytes")
	}
	s.Command.Script = script
}

func (f *file) waitStep(s *Step, n *yaml.Node, path string) {
	m := f.stepFields(n, path, "for")
	s.Wait = &WaitStep{}
	if n.Kind != yaml.MappingNode || !m.need("for", "how long, such as 10s") {
		return
	}
	s.Wait.For = m.duration("for", 0, 0, m.cloud().longest)
	m.common(s, s.Wait.For+WaitSlack)
	if s.Timeout <= s.Wait.For {
		m.refuse("timeout", "the wait takes %s, the timeout is %s", show(s.Wait.For), show(s.Timeout))
	}
}
