package steps

import (
	"cmp"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// When WaitConnections takes the connections for drained.
const (
	// UntilQuiet: no connection has arrived for QuietFor and none is busy.
	UntilQuiet = "quiet"
	// UntilZero: there is no live connection. Neither enough under short requests nor
	// reached while a proxy keeps idle ones, but the classic rule.
	UntilZero = "zero"
)

// What the fields of WaitConnections mean when they are zero.
const (
	DefaultClearChecks    = 3
	DefaultEvery          = time.Second
	DefaultQuietFor       = 3 * time.Second
	DefaultLongestRequest = 10 * time.Second
)

// WaitConnections waits until the TCP connections to some ports of the instance are
// drained. It sends one shell script, which watches them from the inside and ends
// when they are. Two at once do no harm: what one leaves while it runs is at most a table of
// nftables that counts, its own. Where the instance has usher itself, the script leaves all
// to "usher host wait".
//
// A connection is busy while a request on it has no answer yet, as far as the
// kernel's counts and ages of its bytes can tell. They tell of the last bytes
// only: where one connection carries several requests at once (HTTP/2), or an
// answer that pauses for more than 3 s (server-sent events, WebSocket), one that
// has sent last and is silent looks idle, and one whose peer has sent last, be it
// a mere acknowledgement of its own protocol, busy. There, use UntilZero or ask the
// application. Connections in a network namespace of their own (a container behind
// address translation) are not seen at all; the sentence for the audit log then
// says that nothing listens on the ports.
type WaitConnections struct {
	// Ports are local ports of the instance.
	Ports []uint16
	// Exclude are networks whose connections do not count: the balancer's probes.
	Exclude []netip.Prefix
	// Until is UntilQuiet (when empty) or UntilZero.
	Until string
	// ClearChecks is how many polls in a row must be clear, Every apart; 0:
	// DefaultClearChecks and DefaultEvery.
	ClearChecks int
	Every       time.Duration
	// Tries is the most polls, counted once Gap is over; 0: as many as Timeout allows. Only
	// with UntilZero.
	Tries int
	// QuietFor is how long no connection may have arrived; 0: DefaultQuietFor. Only
	// with UntilQuiet.
	QuietFor time.Duration
	// Gap is the least time since messages.Instance.Withdrawn, or else from the start,
	// whatever is seen: how long a balancer may go on sending until it notices.
	Gap time.Duration
	// GapFrom are balancers whose health checks say how long that is; Gap is for when they
	// don't. Those without an id stand for all of their kind that the instance was in.
	GapFrom []providers.Balancer
	// Cloud is asked for them, and Departures for what the instance has left.
	Cloud      providers.Balancers
	Departures *Departures
	// LongestRequest is for connections that received and sent their last bytes within
	// one tick of the host's clock: nobody can tell whether that was an answer or the
	// next request. They are busy until they have been silent for so long; 0:
	// DefaultLongestRequest.
	LongestRequest time.Duration
	// Background is how many new connections a second are no arrivals: monitoring, probes
	// from elsewhere than Exclude. They are of all ports of the host together, and those of
	// Exclude that leave no trace count as well, unless the host's nftables may count those
	// that are meant. Not used with LocalAddress, when several instances share one host.
	Background int
	// LocalAddress is a template; set, only connections to that address count.
	LocalAddress string
	// Timeout is the step's own. The script ends somewhat sooner, so that it can still
	// say what was left.
	Timeout time.Duration
	// Commander reaches the instance.
	Commander providers.Commander
	// Index is the step's position in the hook's plan.
	Index int
}

// Exit codes of the script, after sysexits.h, clear of those that sh and awk use.
const (
	exitDrained  = 0
	exitUsage    = 64
	exitLacking  = 69
	exitDeadline = 75
)

// waitConnectionsScript is complete in itself and can be run by hand.
//
//go:embed wait_connections.sh
var waitConnectionsScript string

// Withdrew gives the zero time: the step only looks.
func (WaitConnections) Withdrew(_, _ time.Time, _ error) time.Time { return time.Time{} }

// Name is "wait_connections".
func (w WaitConnections) Name() string { return "wait_connections" }

// Validate says what is wrong with the settings, or nil.
func (w WaitConnections) Validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("wait_connections: "+format, args...))
	}
	if len(w.Ports) == 0 {
		bad("ports: name at least one, such as 80")
	}
	for _, p := range w.Ports {
		if p == 0 {
			bad("ports: a port goes from 1 to 65535, got 0")
		}
	}
	for _, p := range w.Exclude {
		if !p.IsValid() || (p.Addr().Is4In6() && p.Bits() < 96) {
			bad("exclude: %v is not a network such as 10.0.0.252/31 or 2001:db8::/64", p)
		}
	}
	if w.Until != "" && w.Until != UntilQuiet && w.Until != UntilZero {
		bad("until: %q is neither %s nor %s", w.Until, UntilQuiet, UntilZero)
	}
	if w.ClearChecks < 0 || w.Every < 0 || w.QuietFor < 0 || w.Gap < 0 || w.LongestRequest < 0 || w.Background < 0 {
		bad("clear_checks, every, quiet_for, gap, longest_request and background must not be negative")
	}
	switch {
	case w.Tries < 0 || w.Tries > 0 && w.Tries < cmp.Or(w.ClearChecks, DefaultClearChecks):
		bad("tries: at least as many as clear_checks, %d, got %d", cmp.Or(w.ClearChecks, DefaultClearChecks), w.Tries)
	case w.Tries > 0 && w.Until != UntilZero:
		bad("tries: only with until: zero")
	}
	if w.Every > 0 && w.Every < 100*time.Millisecond {
		bad("every: at least 100ms, got %v", w.Every)
	}
	if need, have := w.shortest(), w.scriptTimeout(); need >= have {
		bad("timeout: at its earliest the wait is over after %v, but the script has only %v of the %v timeout", need, have, w.Timeout)
	}
	if len(w.GapFrom) > 0 {
		if err := checkBalancers(w.GapFrom, true); err != nil {
			bad("gap_from: %w", err)
		}
		if w.Cloud == nil || w.Departures == nil {
			bad("gap_from: no balancers to call")
		}
	}
	if w.Commander == nil {
		bad("no commander to run the script")
	}
	if script, err := w.script(sample); err != nil {
		bad("%w", err)
	} else if len(script) > MaxScript {
		bad("exclude: too many networks: the script has %d bytes, the cloud takes at most %d", len(script), MaxScript)
	}
	return errors.Join(errs...)
}

// shortest is how long a wait takes when all is clear from the start.
func (w WaitConnections) shortest() time.Duration {
	checks := time.Duration(cmp.Or(w.ClearChecks, DefaultClearChecks)-1) * cmp.Or(w.Every, DefaultEvery)
	if w.Until == UntilZero {
		return max(checks, w.Gap)
	}
	return max(checks, w.Gap, cmp.Or(w.QuietFor, DefaultQuietFor))
}

// scriptTimeout is the script's own deadline. The rest of the timeout is for the
// command's way to the instance and for the last question about its result.
func (w WaitConnections) scriptTimeout() time.Duration {
	return w.Timeout - min(max(w.Timeout/10, 2*time.Second), 15*time.Second)
}

// Run waits until the connections are drained; the sentence says what was
// seen. It fails when they are not drained in time.
func (w WaitConnections) Run(ctx context.Context, in messages.Instance, attempt int) (string, error) {
	gap := w.gap(ctx, in)
	detail, err := w.watch(ctx, in, attempt, gap)
	if err != nil {
		return "", fmt.Errorf("wait_connections on %s: %w; %s", in.ID, err, gap)
	}
	return detail + "; " + gap.String(), nil
}

func (w WaitConnections) watch(ctx context.Context, in messages.Instance, attempt int, gap gap) (string, error) {
	w.Gap, w.Timeout = gap.left, w.Timeout-gap.asking
	if need, have := w.shortest(), w.scriptTimeout(); need >= have {
		return "", fmt.Errorf("at its earliest the wait is over after %v, but the script has only %v: give the step more time, or set gap", need, have)
	}
	script, err := w.script(factsOf(in))
	if err != nil {
		return "", err
	}
	res, err := runScript(ctx, w.Commander, providers.Command{
		Instance: in.ID,
		Name:     "usher wait_connections",
		Script:   script,
		Timeout:  w.Timeout,
		Key:      commandKey(w.Name(), in, w.Index, script, attempt),
	})
	if err != nil {
		return "", err
	}
	return verdict(res)
}

// script puts the settings in front of the script. Only numbers and addresses
// that were parsed get there, never text as it came.
func (w WaitConnections) script(f facts) (string, error) {
	local := ""
	if w.LocalAddress != "" {
		text, err := render("local_address", w.LocalAddress, f)
		if err != nil {
			return "", err
		}
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return "", fmt.Errorf("local_address: %s is not an IP address", head(text, 60))
		}
		local = addr.Unmap().String()
	}
	until := UntilQuiet
	if w.Until == UntilZero {
		until = UntilZero
	}
	var ports, exclude []string
	for _, p := range w.Ports {
		ports = append(ports, strconv.Itoa(int(p)))
	}
	for _, p := range w.Exclude {
		exclude = append(exclude, p.Masked().String())
	}
	var b strings.Builder
	b.WriteString("#!/bin/sh\n")
	set := func(name, value string) { fmt.Fprintf(&b, "USHER_%s='%s'\n", name, value) }
	set("PORTS", strings.Join(ports, " "))
	set("EXCLUDE", strings.Join(exclude, " "))
	set("LOCAL", local)
	set("UNTIL", until)
	set("CHECKS", strconv.Itoa(cmp.Or(w.ClearChecks, DefaultClearChecks)))
	set("EVERY", seconds(cmp.Or(w.Every, DefaultEvery)))
	set("QUIET_FOR", seconds(cmp.Or(w.QuietFor, DefaultQuietFor)))
	set("GAP", seconds(w.Gap))
	set("LONGEST", seconds(cmp.Or(w.LongestRequest, DefaultLongestRequest)))
	set("BACKGROUND", strconv.Itoa(w.Background))
	set("TIMEOUT", seconds(w.scriptTimeout()))
	set("TRIES", strconv.Itoa(w.Tries))
	set("METHOD", "")
	b.WriteString(compact(waitConnectionsScript))
	return b.String(), nil
}

// compact drops indentation and lines that are comments: the file is for reading,
// the cloud's limit is for what is sent. The script has no text over several lines.
func compact(script string) string {
	var b strings.Builder
	for line := range strings.Lines(script) {
		line = strings.TrimLeft(line, "\t")
		if !strings.HasPrefix(line, "#") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// seconds is d as the script reads it: 1, 0.5.
func seconds(d time.Duration) string {
	return strconv.FormatFloat(d.Round(time.Millisecond).Seconds(), 'f', -1, 64)
}

// report is the last line of the script's output.
type report struct {
	Method       string   `json:"method"`
	Drained      bool     `json:"drained"`
	Seconds      float64  `json:"seconds"`
	Polls        int      `json:"polls"`
	Checks       int      `json:"checks"`
	Established  int      `json:"established"`
	Live         int      `json:"live"`
	Busy         int      `json:"busy"`
	New          int      `json:"new"`
	Listeners    int      `json:"listeners"`
	SinceNew     float64  `json:"since_new"`
	Counter      string   `json:"counter"`
	Arrivals     string   `json:"arrivals"` // native's word for it
	PassiveOpens int      `json:"passive_opens"`
	Arriving     bool     `json:"arriving"`
	Error        string   `json:"error"`
	Left         []string `json:"left"`
}

// verdict reads what the script came to.
func verdict(res providers.CommandResult) (string, error) {
	r, err := readReport(res.Output)
	switch {
	case err != nil:
		return "", fmt.Errorf("exit code %d without a report: %w; output ends with %s", res.ExitCode, err, tail(res.Output, outputTail))
	case res.ExitCode == exitDrained && !r.Drained:
		return "", fmt.Errorf("exit code 0, but the report does not say that it is drained; output ends with %s", tail(res.Output, outputTail))
	case res.ExitCode == exitDrained:
		return r.drained(), nil
	case res.ExitCode == exitDeadline:
		return "", errors.New(r.notDrained())
	case res.ExitCode == exitLacking:
		return "", fmt.Errorf("the instance lacks what watching its connections needs: %s", head(r.Error, outputTail))
	case res.ExitCode == exitUsage:
		return "", fmt.Errorf("the script refused its settings: %s", head(r.Error, outputTail))
	}
	return "", fmt.Errorf("exit code %d, output ends with %s", res.ExitCode, tail(res.Output, outputTail))
}

// readReport wants one report, at the end: what a login shell prints may stand in front
// of it. Of two, nobody knows which counts.
func readReport(output string) (report, error) {
	output = strings.TrimSpace(output)
	before, line := "", output
	if i := strings.LastIndexByte(output, '\n'); i >= 0 {
		before, line = output[:i], output[i+1:]
	}
	var r, other report
	if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &r) != nil {
		return report{}, errors.New("the last line is no JSON object")
	}
	for line := range strings.Lines(before) {
		if strings.HasPrefix(line, "{") && json.Unmarshal([]byte(line), &other) == nil && other.Method != "" {
			return report{}, errors.New("there is more than one")
		}
	}
	return r, nil
}

// drained says why the wait is over.
func (r report) drained() string {
	s := fmt.Sprintf("drained after %.0f s: %d checks clear, %d connections, %d busy, method %s",
		r.Seconds, r.Checks, r.Established, r.Busy, r.method())
	if r.Counter == "nft" {
		s += ", arrivals counted by nft"
	}
	if r.Listeners == 0 {
		// The service has stopped, or it lives in a network namespace of its own,
		// where the script cannot see its connections.
		s += ", nothing listens on the ports"
	}
	return s
}

// notDrained says what was waited for in vain.
func (r report) notDrained() string {
	s := fmt.Sprintf("not drained after %.0f s and %d polls: %d busy, %d live, last new connection %.0f s ago, method %s",
		r.Seconds, r.Polls, r.Busy, r.Live, r.SinceNew, r.method())
	if r.Arriving {
		where := "on the host, probes and other ports included: see background"
		if r.countsPorts() {
			where = "at the ports"
		}
		s += fmt.Sprintf(", connections still arrive %s (%d lately)", where, r.PassiveOpens)
	}
	if len(r.Left) > 0 {
		// Ten at most by the script's own count; its output is not trusted with more.
		s += ", left: " + head(strings.Join(r.Left[:min(len(r.Left), 10)], ", "), 1000)
	}
	return s
}

// countsPorts says whether what arrived was counted by the first packets to the ports alone.
func (r report) countsPorts() bool { return r.Counter == "nft" || r.Arrivals == "syn" }

// method is one of the words the script knows, or that of usher on the instance, whatever
// the host sent.
func (r report) method() string {
	if r.Method == "native" || r.Method == "ss" || r.Method == "proc" {
		return r.Method
	}
	return "unknown"
}
