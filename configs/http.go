package configs

import (
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// What an http step that polls has where its file does not say.
const (
	DefaultHTTPEvery = time.Second
	// DefaultPresetChecks is the clear_checks of presets.
	DefaultPresetChecks = 3
)

func (f *file) httpStep(s *Step, n *yaml.Node, path string) {
	m := f.stepFields(n, path, "preset", "method", "url", "headers", "body", "expect", "verify_url", "verify_expect", "field", "at_most",
		"every", "clear_checks", "gap", "tries", "call_timeout", "on_refused", "token_file", "cert_file", "key_file", "ca_file", "server_name",
		"allow_hosts", "repeatable")
	h := &HTTPStep{Preset: m.choice("preset", "", PresetDown, PresetUp, PresetAskClose, PresetInFlight)}
	timeout, method, expect, every, checks := DefaultHTTPTimeout, http.MethodGet, []int{http.StatusOK}, time.Duration(0), 1
	verified := []int{http.StatusOK}
	if m.keys["verify_url"] != nil {
		every = DefaultHTTPEvery
	}
	if h.Preset != "" {
		method, expect, verified = http.MethodPut, nil, nil
		if every > 0 {
			checks = DefaultPresetChecks
		}
	}
	switch h.Preset {
	case PresetDown:
		verified = []int{http.StatusServiceUnavailable}
	case PresetUp:
		verified = []int{http.StatusOK}
	case PresetInFlight:
		timeout, method, every, checks = DefaultWaitConnectionsTimeout, http.MethodGet, DefaultHTTPEvery, DefaultPresetChecks
	}
	m.common(s, timeout)
	h.Method = m.choice("method", method, methods...)
	h.URL = m.url()
	h.Headers = m.headers()
	h.Body, _, _ = m.template("body")
	h.Expect = m.counts("expect", expect, 100, 599)
	h.VerifyURL = m.verifyURL(h.Preset)
	if h.VerifyURL != "" {
		h.VerifyExpect = m.counts("verify_expect", verified, 100, 599)
	} else if m.keys["verify_url"] == nil && m.keys["verify_expect"] != nil {
		m.refuse("verify_expect", "needs verify_url, the URL that is to answer so")
	}
	h.Field = m.jsonPath("field")
	h.AtMost = m.count("at_most", 0, 0, 1_000_000)
	for _, key := range []string{"field", "at_most"} {
		if h.Preset != PresetInFlight && m.keys[key] != nil {
			m.refuse(key, "only with preset: in_flight, which counts requests")
		}
	}
	h.OnRefused = m.choice("on_refused", OnRefusedFail, OnRefusedFail, OnRefusedDone)
	if h.Preset == PresetUp && h.OnRefused == OnRefusedDone {
		m.refuse("on_refused", "an application that nobody listens for is not up")
	}
	m.polling(s, h, every, checks)
	m.secrets(h)
	h.AllowHosts = m.hosts()
	if repeatable := m.flag("repeatable"); !repeatable && (h.Method == http.MethodPost || h.Method == http.MethodPatch) {
		m.refuse("method", "a worker that takes over from one that died sends the %s again: say repeatable: true if that does no harm", h.Method)
	}
	s.HTTP = h
}

// polling reads how often and how long is asked.
func (m fields) polling(s *Step, h *HTTPStep, every time.Duration, checks int) {
	h.Every = m.duration("every", every, 100*time.Millisecond, time.Hour)
	h.ClearChecks = m.count("clear_checks", checks, 1, 1000)
	h.Gap = m.duration("gap", 0, 0, time.Hour)
	h.Tries = m.count("tries", 0, 1, 100_000)
	h.CallTimeout = m.duration("call_timeout", 0, 100*time.Millisecond, m.cloud().longest)
	if every == 0 && m.keys["every"] == nil {
		if h.ClearChecks > 1 {
			m.refuse("clear_checks", "more than one check needs every, the pause between them, such as every: 3s")
		}
		for _, key := range []string{"gap", "tries"} {
			if m.keys[key] != nil {
				m.refuse(key, "needs every, the pause between the checks, such as every: 3s")
			}
		}
		return
	}
	need := h.Every * time.Duration(h.ClearChecks-1)
	switch {
	case need >= s.Timeout:
		m.refuse("timeout", "%d checks %s apart take %s, the timeout is %s", h.ClearChecks, show(h.Every), show(need), show(s.Timeout))
	case h.Gap >= s.Timeout:
		m.refuse("timeout", "gap takes %s, the timeout is %s", show(h.Gap), show(s.Timeout))
	}
	if h.Tries == 0 {
		return
	}
	switch longest := h.Every * time.Duration(h.Tries-1); {
	case h.Tries < h.ClearChecks:
		m.refuse("tries", "%d are fewer than clear_checks, %d", h.Tries, h.ClearChecks)
	case longest < h.Gap:
		m.refuse("tries", "%d, %s apart, take %s, gap is %s", h.Tries, show(h.Every), show(longest), show(h.Gap))
	}
}

// verifyURL reads what is asked after the call.
func (m fields) verifyURL(preset string) string {
	const health = "the URL that the balancer checks, which is to answer"
	switch {
	case preset == PresetInFlight && m.keys["verify_url"] != nil:
		m.refuse("verify_url", "not with preset: in_flight, which asks url itself until it tells none")
		return ""
	case m.node.Kind != yaml.MappingNode,
		preset == PresetDown && !m.need("verify_url", health+" 503 then (or as verify_expect says)"),
		preset == PresetUp && !m.need("verify_url", health+" 200 then (or as verify_expect says)"),
		m.keys["verify_url"] == nil:
		return ""
	}
	return m.urlAt("verify_url")
}

func (m fields) url() string {
	if m.node.Kind != yaml.MappingNode || !m.need("url", `such as "http://{{.PrivateIP}}:8080/healthz"`) {
		return ""
	}
	return m.urlAt("url")
}

func (m fields) urlAt(key string) string {
	text, example, ok := m.template(key)
	if !ok {
		return ""
	}
	if _, err := parseURL(example); err != nil {
		m.refuse(key, "%s", err)
		return ""
	}
	return text
}

func (m fields) jsonPath(key string) string {
	text, ok := m.text(key, "")
	if ok && m.keys[key] != nil && slices.Contains(strings.Split(text, "."), "") {
		m.refuse(key, "want a key, or several with dots between them, such as measurements.0.value, got %s", clip(text))
	}
	return text
}

// secrets reads where tokens and certificates are. The files themselves are looked at when the
// step runs: a config is checked on other machines too, and they are replaced as they expire.
func (m fields) secrets(h *HTTPStep) {
	h.TokenFile = m.filePath("token_file")
	h.CertFile = m.filePath("cert_file")
	h.KeyFile = m.filePath("key_file")
	h.CAFile = m.filePath("ca_file")
	if h.TokenFile != "" && h.Headers["Authorization"] != "" {
		m.refuse("token_file", "headers.Authorization is there too: want one of them")
	}
	if (m.keys["cert_file"] == nil) != (m.keys["key_file"] == nil) {
		m.refuse("cert_file", "cert_file and key_file need each other: a certificate and its private key")
	}
	name, example, ok := m.template("server_name")
	if ok && m.keys["server_name"] != nil && !patternHost.MatchString(example) {
		m.refuse("server_name", "want a host's name, such as web.internal, got %s", clip(name))
	}
	h.ServerName = name
	secure := func(url string) bool { return strings.HasPrefix(strings.ToLower(url), "https:") }
	if secure(h.URL) || secure(h.VerifyURL) {
		return
	}
	for _, key := range []string{"cert_file", "key_file", "ca_file", "server_name"} {
		if m.keys[key] != nil && h.URL != "" {
			m.refuse(key, "only with https: neither url nor verify_url begins with https://")
		}
	}
}

func (m fields) filePath(key string) string {
	text, ok := m.text(key, "")
	if ok && m.keys[key] != nil && (!path.IsAbs(text) || path.Clean(text) == "/" || strings.ContainsRune(text, 0)) {
		m.refuse(key, "want the absolute path of a file, got %s", clip(text))
		return ""
	}
	return text
}
