package steps

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// What firewall.sh can do, as its setting USHER_ACTION.
const (
	actionFailHealthCheck  = "fail_health_check"
	actionBlockConnections = "block_connections"
	actionUndo             = "undo"
)

// Exit codes of firewall.sh beyond those of wait_connections.sh.
const (
	// exitUndone: while it watched, an undo ended it.
	exitUndone = 75
	// exitRefused: clients come from the probes' networks.
	exitRefused = 77
)

// firewallScript is complete in itself and can be run by hand.
//
//go:embed firewall.sh
var firewallScript string

// unused are the functions of firewallScript that an action does not call. They are not
// sent: all of it is more than the cloud takes.
var unused = map[string][]string{
	actionFailHealthCheck:  {"status", "status_in", "in_force", "nft_members", "undo", "undo_in", "each", "filtered", "sweep", "block_connections"},
	actionBlockConnections: {"status", "status_in", "in_force", "nft_members", "undo", "undo_in", "each", "filtered", "sweep", "fail_health_check", "nft_watch", "commas", "nft_counter", "tally", "look", "numbers", "tables_watch", "unless_undone", "undone"},
	actionUndo:             {"status", "status_in", "in_force", "nft_members", "fail_health_check", "block_connections", "nft_table", "nft_set", "nft_watch", "commas", "nft_counter", "tally", "rules", "put", "count", "tables_watch", "unless_undone", "undone", "refused", "usable", "choose", "look", "numbers"},
}

// firewall is one run of firewall.sh. Zero fields are not sent: the action needs none.
type firewall struct {
	action    string
	ports     []uint16
	probes    []netip.Prefix
	expires   time.Duration
	watch     time.Duration
	probeRate int
	timeout   time.Duration
}

// script puts the settings in front of the script: numbers and networks that were parsed.
func (f firewall) script() string {
	var ports, probes []string
	for _, p := range f.ports {
		ports = append(ports, strconv.Itoa(int(p)))
	}
	for _, p := range distinct(f.probes) {
		probes = append(probes, p.String())
	}
	var b strings.Builder
	b.WriteString("#!/bin/sh\n")
	set := func(name, value string) { fmt.Fprintf(&b, "USHER_%s='%s'\n", name, value) }
	set("ACTION", f.action)
	set("PORTS", strings.Join(ports, " "))
	set("PROBES", strings.Join(probes, " "))
	set("EXPIRES", wholeSeconds(f.expires))
	set("WATCH", wholeSeconds(f.watch))
	set("PROBE_RATE", strconv.Itoa(f.probeRate))
	set("TIMEOUT", wholeSeconds(f.lockTimeout()))
	set("METHOD", "")
	b.WriteString(compact(without(firewallScript, unused[f.action])))
	return b.String()
}

// lockTimeout is how long iptables waits for others that change rules. The rest of the
// timeout is for the command's way to the instance and for the watch.
func (f firewall) lockTimeout() time.Duration {
	return max((f.timeout-f.watch)/4, time.Second)
}

// wholeSeconds is d for a firewall, which counts in whole seconds: no less than asked for.
func wholeSeconds(d time.Duration) string {
	return strconv.FormatInt(int64((d+time.Second-1)/time.Second), 10)
}

// distinct are the networks without those that others contain: nftables takes no overlap.
func distinct(networks []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range networks {
		if p.Addr().Is4In6() {
			p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
		}
		p = p.Masked()
		contains := func(wide, narrow netip.Prefix) bool {
			return wide.Bits() <= narrow.Bits() && wide.Contains(narrow.Addr())
		}
		if !slices.ContainsFunc(out, func(q netip.Prefix) bool { return contains(q, p) }) {
			out = append(slices.DeleteFunc(out, func(q netip.Prefix) bool { return contains(p, q) }), p)
		}
	}
	return out
}

// without drops the functions of those names from a script whose functions end with a
// line that is a brace.
func without(script string, names []string) string {
	var b strings.Builder
	dropping := false
	for line := range strings.Lines(script) {
		if name, rest, ok := strings.Cut(line, "() {"); ok && slices.Contains(names, name) {
			dropping = rest == "\n"
			continue
		}
		if !dropping {
			b.WriteString(line)
		}
		dropping = dropping && line != "}\n"
	}
	return b.String()
}

// validate says what is wrong with what the actions have in common.
func (f firewall) validate() []error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf(f.action+": "+format, args...))
	}
	if len(f.ports) == 0 && f.action != actionUndo {
		bad("ports: name at least one, such as 80")
	}
	if slices.Contains(f.ports, 0) {
		bad("ports: a port goes from 1 to 65535, got 0")
	}
	if f.action != actionUndo && (f.expires < time.Second || f.expires > 24*time.Hour) {
		bad("expires: from 1s to 24h, got %v", f.expires)
	}
	if least := f.watch + 5*time.Second; f.timeout < least {
		bad("timeout: at least %v, got %v", least, f.timeout)
	}
	if n := len(f.script()); n > MaxScript {
		bad("too many ports or networks: the script has %d bytes, the cloud takes at most %d", n, MaxScript)
	}
	return errs
}

// run runs the script on the instance, and anew each time: what an earlier run has set up
// may have been undone since, so none is joined. Two at once come to what one does.
func (f firewall) run(ctx context.Context, commander providers.Commander, in messages.Instance, index int) (firewallReport, error) {
	script := f.script()
	res, err := runScript(ctx, commander, providers.Command{
		Instance: in.ID,
		Name:     "usher " + f.action,
		Script:   script,
		Timeout:  f.timeout,
		Key:      commandKey(f.action+" "+rand.Text(), in, index, script, 0),
	})
	if err != nil {
		return firewallReport{}, err
	}
	return readFirewall(res)
}

// firewallReport is the last line of the script's output.
type firewallReport struct {
	Method      string `json:"method"`
	Error       string `json:"error"`
	Watched     int    `json:"watched"`
	SYNs        int    `json:"syns"`
	Packets     int    `json:"packets"`
	Connections int    `json:"connections"`
	Lasting     int    `json:"lasting"`
	Removed     int    `json:"removed"`
}

// readFirewall gives the report of a script that has done its work.
func readFirewall(res providers.CommandResult) (firewallReport, error) {
	output := strings.TrimSpace(res.Output)
	var r firewallReport
	if err := json.Unmarshal([]byte(output[strings.LastIndexByte(output, '\n')+1:]), &r); err != nil {
		return firewallReport{}, fmt.Errorf("exit code %d without a report: the last line is no JSON object; output ends with %s", res.ExitCode, tail(res.Output, outputTail))
	}
	switch res.ExitCode {
	case 0:
		if r.Error != "" {
			return firewallReport{}, fmt.Errorf("exit code 0 with an error: %s", head(r.Error, outputTail))
		}
		return r, nil
	case exitRefused:
		return r, fmt.Errorf("refused, nothing is changed: the probes' networks carry clients' traffic: %s; name only addresses "+
			"that nothing but probes comes from, raise probe_rate if these are probes, or take the instance out with deregister or http", r.seen())
	case exitUndone:
		return firewallReport{}, errors.New("an undo on the instance came in between: nothing is in force")
	case exitLacking:
		return firewallReport{}, fmt.Errorf("the instance lacks what changing its firewall needs (root, and nftables or iptables): %s", head(r.Error, outputTail))
	case exitUsage:
		return firewallReport{}, fmt.Errorf("the script refused its settings: %s", head(r.Error, outputTail))
	}
	return firewallReport{}, fmt.Errorf("exit code %d, output ends with %s", res.ExitCode, tail(res.Output, outputTail))
}

// seen says what the watch has counted.
func (r firewallReport) seen() string {
	s := fmt.Sprintf("%d new connections and %d packets in %d s", r.SYNs, r.Packets, r.Watched)
	if r.Connections < 0 {
		return s + ", open connections not counted (no ss)"
	}
	return s + fmt.Sprintf(", %d connections open, %d of them all the time", r.Connections, r.Lasting)
}

// method are the words that the script knows, whatever the host sent.
func (r firewallReport) method() string {
	words := strings.Fields(r.Method)
	for _, w := range words {
		if !slices.Contains([]string{"none", "nft", "iptables-nft", "iptables-legacy", "native"}, w) {
			return "unknown"
		}
	}
	return strings.Join(words, ", ")
}

// undoTimeout is for an undo whose context has no end.
const undoTimeout = 30 * time.Second

// undo removes what the steps have set up on the instance, whichever did; the sentence
// says whether anything was there.
func undo(ctx context.Context, commander providers.Commander, in messages.Instance, index int, timeout time.Duration) (string, error) {
	r, err := firewall{action: actionUndo, timeout: timeout}.run(ctx, commander, in, index)
	if err != nil {
		return "", err
	}
	if r.Removed == 0 {
		return "nothing was there to undo, looked with " + r.method(), nil
	}
	return "probes and new connections come through again, looked with " + r.method(), nil
}

// timeLeft is how long ctx lasts, undoTimeout when it has no end.
func timeLeft(ctx context.Context) time.Duration {
	if deadline, ok := ctx.Deadline(); ok {
		return max(time.Until(deadline), time.Second)
	}
	return undoTimeout
}
