package steps

import (
	"context"
	"errors"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// firewallSteps are the three, with a commander.
func firewallSteps(c providers.Commander) (FailHealthCheck, BlockConnections, Undo) {
	return FailHealthCheck{Ports: []uint16{80}, Probes: probeNetwork("10.0.0.252/31"), Expires: 30 * time.Minute, Timeout: time.Minute, Commander: c},
		BlockConnections{Ports: []uint16{80}, Expires: 30 * time.Minute, Timeout: time.Minute, Commander: c},
		Undo{Timeout: time.Minute, Commander: c}
}

func probeNetwork(texts ...string) (out []netip.Prefix) {
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

// TestFirewallVerdict: what the instance sends back is judged, not trusted.
func TestFirewallVerdict(t *testing.T) {
	t.Parallel()
	const refused = `{"method":"nft","action":"fail_health_check","error":"x","watched":5,"syns":120,"packets":3000,"connections":30,"lasting":24}`
	for name, tt := range map[string]struct {
		r      reply
		detail string
		want   string
		kind   error
	}{
		"done": {ended(0, "motd\n"+`{"method":"nft","expires":1800,"watched":5,"syns":6,"packets":36,"connections":1,"lasting":0}`+"\n"),
			"probes are dropped for 30m0s, method nft; before that 6 new connections and 36 packets in 5 s, 1 connections open, 0 of them all the time", "", nil},
		"no ss": {ended(0, `{"method":"iptables-legacy","watched":5,"connections":-1}`),
			"probes are dropped for 30m0s, method iptables-legacy; before that 0 new connections and 0 packets in 5 s, open connections not counted (no ss)", "", nil},
		"another's words": {ended(0, `{"method":"nft\nevil"}`),
			"probes are dropped for 30m0s, method unknown; before that 0 new connections and 0 packets in 0 s, 0 connections open, 0 of them all the time", "", nil},
		"0, no report":   {ended(0, "hello"), "", "exit code 0 without a report", nil},
		"0, an error":    {ended(0, `{"error":"why"}`), "", `exit code 0 with an error: "why"`, nil},
		"refused":        {ended(77, refused), "", "120 new connections and 3000 packets in 5 s, 30 connections open, 24 of them all the time; name only addresses", nil},
		"undone":         {ended(75, `{"error":"undone meanwhile"}`), "", "nothing is in force", nil},
		"lacking":        {ended(69, `{"error":"no firewall to work with: \u001b[2J"}`), "", `lacks what changing its firewall needs (root, and nftables or iptables): "no firewall to work with: \x1b[2J"`, nil},
		"usage":          {ended(64, `{"error":"ports"}`), "", "refused its settings", nil},
		"killed":         {ended(137, `{"method":"nft"}`), "", "exit code 137", nil},
		"no sh":          {ended(127, ""), "", "exit code 127", nil},
		"instance gone":  {reply{res: providers.CommandResult{Done: true, Err: providers.ErrInstanceGone}}, "", "instance is gone", providers.ErrInstanceGone},
		"agent is dead":  {reply{res: providers.CommandResult{Done: true, Err: providers.ErrAgentUnavailable}}, "", "fail_health_check on i-bp1example1", providers.ErrAgentUnavailable},
		"a long message": {ended(69, `{"error":"`+strings.Repeat("x", 20000)+`"}`), "", "...", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				step, _, _ := firewallSteps(&replies{results: []reply{tt.r}})
				detail, err := step.Run(t.Context(), instance(""), 0)
				if detail != tt.detail || (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %q, %v; want %q, %q", detail, err, tt.detail, tt.want)
				}
				if tt.kind != nil && !errors.Is(err, tt.kind) {
					t.Errorf("%v does not match %v", err, tt.kind)
				}
				if err != nil && len(err.Error()) > 1000 {
					t.Errorf("%d bytes are too many to say", len(err.Error()))
				}
			})
		})
	}
}

// TestFirewallSends: the settings stand in front of the script as numbers and networks that
// do not overlap, all of it fits the cloud's limit, and no run is another's.
func TestFirewallSends(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := &replies{}
		sent := func(run func() (string, error)) providers.Command {
			t.Helper()
			r.results = []reply{ended(0, `{"method":"nft","removed":1}`)}
			if _, err := run(); err != nil {
				t.Fatal(err)
			}
			return r.sent
		}
		fail, block, undo := firewallSteps(r)
		fail.Ports = []uint16{80, 443}
		fail.Probes = probeNetwork("10.1.2.0/24", "10.0.0.253/31", "::ffff:10.1.0.0/112", "fd00::1/64", "10.1.0.0/16")
		fail.Expires = 1500 * time.Millisecond
		in := instance("10.0.0.7")
		keys := map[string]bool{}
		for range 2 {
			for want, run := range map[string]func() (string, error){
				"#!/bin/sh\nUSHER_ACTION='fail_health_check'\nUSHER_PORTS='80 443'\nUSHER_PROBES='10.0.0.252/31 10.1.0.0/16 fd00::/64'\nUSHER_EXPIRES='2'\nUSHER_WATCH='5'\nUSHER_PROBE_RATE='5'\nUSHER_TIMEOUT='14'\nUSHER_METHOD=''\n": func() (string, error) {
					return fail.Run(t.Context(), in, 0)
				},
				"#!/bin/sh\nUSHER_ACTION='block_connections'\nUSHER_PORTS='80'\nUSHER_PROBES=''\nUSHER_EXPIRES='1800'\n": func() (string, error) { return block.Run(t.Context(), in, 0) },
				"#!/bin/sh\nUSHER_ACTION='undo'\nUSHER_PORTS=''\n":                                                       func() (string, error) { return undo.Run(t.Context(), in, 0) },
			} {
				c := sent(run)
				if !strings.HasPrefix(c.Script, want) {
					t.Errorf("sent %s, want %s", c.Script[:len(want)], want)
				}
				if len(c.Script) > MaxScript*9/10 || c.Timeout != time.Minute || len(c.Key) != 64 || keys[c.Key] {
					t.Errorf("sent %d bytes, timeout %v, key %s", len(c.Script), c.Timeout, c.Key)
				}
				keys[c.Key] = true
			}
		}

		for _, step := range []interface {
			Name() string
			Undo(context.Context, messages.Instance) (string, error)
		}{fail, block} {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			c := sent(func() (string, error) { return step.Undo(ctx, in) })
			cancel()
			if !strings.Contains(c.Script, "USHER_ACTION='undo'") || c.Timeout != 20*time.Second {
				t.Errorf("sent %.100s, timeout %v", c.Script, c.Timeout)
			}
			if c := sent(func() (string, error) { return step.Undo(t.Context(), in) }); c.Timeout != undoTimeout {
				t.Errorf("without an end: timeout %v", c.Timeout)
			}
			r.results = []reply{ended(69, `{"error":"x"}`)}
			if _, err := step.Undo(t.Context(), in); err == nil || !strings.Contains(err.Error(), "undo "+step.Name()+" on i-bp1example1: the instance lacks") {
				t.Errorf("got %v", err)
			}
		}
	})
}

// TestFirewallScripts: what is left out of the script that is sent is not called in it. A
// shell would find out on the instance only, and on some of its ways.
func TestFirewallScripts(t *testing.T) {
	t.Parallel()
	for action, missing := range unused {
		script := firewall{action: action}.script()
		for _, name := range missing {
			defined := "\n" + name + "() {"
			if !strings.Contains(firewallScript, defined) || strings.Contains(script, defined) {
				t.Errorf("%s: there is no function %s, or it is sent", action, name)
			}
			call := regexp.MustCompile(`(?m)(^|\|\| |&& |; |\$\(|! |then |do |\) )` + name + `([ );\n])`).FindString(script)
			if unused[name] == nil && name != "status" && call != "" {
				t.Errorf("%s: %s is not sent, but called: %q", action, name, call)
			}
		}
	}
}

func TestFirewallValidate(t *testing.T) {
	t.Parallel()
	many := make([]netip.Prefix, 900)
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{198, byte(18 + i/256), byte(i), 0}), 24)
	}
	type all struct {
		FailHealthCheck
		BlockConnections
		Undo
	}
	for name, tt := range map[string]struct {
		change func(*all)
		want   []string // of the three, "": fine
	}{
		"good":             {func(*all) {}, []string{"", "", ""}},
		"no ports":         {func(a *all) { a.FailHealthCheck.Ports, a.BlockConnections.Ports = nil, nil }, []string{"ports", "ports", ""}},
		"port 0":           {func(a *all) { a.FailHealthCheck.Ports, a.BlockConnections.Ports = []uint16{0}, []uint16{80, 0} }, []string{"got 0", "got 0", ""}},
		"no probes":        {func(a *all) { a.Probes = nil }, []string{"at least one network", "", ""}},
		"network":          {func(a *all) { a.Probes = []netip.Prefix{{}} }, []string{"not a network", "", ""}},
		"mapped":           {func(a *all) { a.Probes = probeNetwork("::ffff:10.0.0.0/90") }, []string{"not a network", "", ""}},
		"everybody":        {func(a *all) { a.Probes = probeNetwork("0.0.0.0/0") }, []string{"everybody", "", ""}},
		"mapped everybody": {func(a *all) { a.Probes = probeNetwork("::ffff:0.0.0.0/96") }, []string{"everybody", "", ""}},
		"networks":         {func(a *all) { a.Probes = many }, []string{"too many", "", ""}},
		"no end":           {func(a *all) { a.FailHealthCheck.Expires, a.BlockConnections.Expires = 0, 25*time.Hour }, []string{"expires", "expires", ""}},
		"rate":             {func(a *all) { a.ProbeRate = 1001 }, []string{"probe_rate", "", ""}},
		"watch":            {func(a *all) { a.Watch = -1 }, []string{"watch", "", ""}},
		"watch too long":   {func(a *all) { a.Watch = 56 * time.Second }, []string{"timeout: at least 1m1s", "", ""}},
		"timeout": {func(a *all) {
			a.FailHealthCheck.Timeout, a.BlockConnections.Timeout, a.Undo.Timeout = 9*time.Second, 4*time.Second, 4*time.Second
		}, []string{"timeout: at least 10s", "timeout: at least 5s", "timeout: at least 5s"}},
		"no commander": {func(a *all) {
			a.FailHealthCheck.Commander, a.BlockConnections.Commander, a.Undo.Commander = nil, nil, nil
		}, []string{"commander", "commander", "commander"}},
	} {
		var a all
		a.FailHealthCheck, a.BlockConnections, a.Undo = firewallSteps(&replies{})
		tt.change(&a)
		for i, err := range []error{a.FailHealthCheck.Validate(), a.BlockConnections.Validate(), a.Undo.Validate()} {
			if (err == nil) != (tt.want[i] == "") || err != nil && !strings.Contains(err.Error(), tt.want[i]) {
				t.Errorf("%s: step %d: got %v, want %q", name, i, err, tt.want[i])
			}
		}
	}
	if !slices.Equal(distinct(probeNetwork("10.0.0.0/8", "10.0.0.0/8", "fd00::/8", "fd00:1::/32")), probeNetwork("10.0.0.0/8", "fd00::/8")) {
		t.Error("networks overlap")
	}
}
