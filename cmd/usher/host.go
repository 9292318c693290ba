package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"example.org/usher/host"
	"example.org/usher/host/firewall"
)

// Exit codes of the host commands, those of the scripts: after sysexits.h.
const (
	hostExitUsage    = 64 // a setting is wrong
	hostExitLacking  = 69 // the host, or the permissions there, lack something
	hostExitDeadline = 75 // not drained in time; or an undo came in between
	hostExitRefused  = 77 // clients come from the probes' networks
)

// codeError ends a command with an exit code of its own; what is to be said was said.
type codeError int

func (e codeError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func hostCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "host",
		Short: "Drain the machine that this runs on, or look at it",
		Long: `host does on an instance, by system calls, what the worker's scripts do there with the
programs that they find. The scripts use it where it is on the PATH or in /usr/local/bin.
Settings may also come from the environment, as the scripts have them: --quiet-for is
USHER_QUIET_FOR.

Exit codes: 0 done, 64 a setting is wrong, 69 the host or the permissions lack something,
75 not drained in time (wait) or undone meanwhile (drain), 77 drain refused because clients
come from the probes' networks.`,
		Example: `  usher host drain --ports 80,443 --probes 10.0.0.252/31 --expires 10m
  usher host wait --ports 80,443 --exclude 10.0.0.252/31 --gap 15s --timeout 10m
  usher host status
  usher host undo`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SetOut(cmd.ErrOrStderr())
			return errors.Join(usageError{errors.New("say which host command to run")}, cmd.Help())
		},
	}
	cmd.AddCommand(hostDrainCommand(env), hostWaitCommand(env), hostUndoCommand(env), hostStatusCommand(env), hostProtocolCommand(env))
	return cmd
}

func hostWaitCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until the TCP connections to some local ports are drained",
		Long: `wait looks at the connections to some local ports until they are drained. With --until
quiet they are when for --quiet-for no connection has arrived, and in --checks polls in a
row none was busy: unread or unacknowledged bytes, bytes within 3 s, a request without an
answer. With --until zero they are when there is none.

It changes nothing. Whether connections arrive between two polls it learns from a counter
in a firewall table that ends with the process (needs CAP_NET_ADMIN), else from the host's
count of accepted connections; "arrivals" in the report says which.`,
		Example: `  usher host wait --ports 80,443 --exclude 10.0.0.252/31 --gap 15s --timeout 10m
  USHER_PORTS='80 443' USHER_TIMEOUT=600 usher host wait`,
		Args: cobra.NoArgs,
	}
	s := newHostSettings(cmd, env, "json")
	var w host.Settings
	s.add("ports", "", "local ports", hostPorts(&w.Ports))
	s.add("exclude", "", "networks whose connections do not count, such as 10.0.0.252/31,fd00::/64", hostNetworks(&w.Exclude))
	s.add("local", "", "the only local address whose connections count", hostAddress(&w.Local))
	s.add("until", host.UntilQuiet, "quiet: nothing new and nothing busy; zero: nothing live", func(text string) error {
		if text != host.UntilQuiet && text != host.UntilZero {
			return fmt.Errorf("%q is neither %s nor %s", text, host.UntilQuiet, host.UntilZero)
		}
		w.Until = text
		return nil
	})
	s.add("checks", "3", "so many polls in a row must be clear", hostNumber(&w.Checks, 1))
	s.add("every", "1s", "time between polls", hostSeconds(&w.Every, time.Millisecond))
	s.add("tries", "0", "give up after so many polls, counted once the gap is over; 0: any number", hostNumber(&w.Tries, 0))
	s.add("quiet-for", "3s", "time without a new connection (quiet)", hostSeconds(&w.QuietFor, 0))
	s.add("gap", "0s", "wait at least so long", hostSeconds(&w.Gap, 0))
	s.add("longest", "10s", "silence after which a connection whose last bytes came and went in one clock tick is idle", hostSeconds(&w.Longest, 0))
	s.add("background", "0", "new connections a second that are no traffic", func(text string) error {
		n, err := strconv.ParseFloat(text, 64)
		if err != nil || !(n >= 0) || math.IsInf(n, 0) {
			return fmt.Errorf("%q is no number from 0", text)
		}
		w.Background = n
		return nil
	})
	s.add("timeout", "60s", "give up after so long", hostSeconds(&w.Timeout, 0))
	cmd.RunE = s.run(func(ctx context.Context) (any, string, error) {
		r, err := host.Wait(ctx, w)
		if err == nil && !r.Drained {
			err = errNotDrained
		}
		return r, waited(r), err
	})
	return cmd
}

// errNotDrained: the time is over.
var errNotDrained = errors.New("not drained in time")

func waited(r host.Report) string {
	if r.Drained {
		return fmt.Sprintf("drained after %.1f s: %d checks clear, %d connections, %d busy", r.Seconds, r.Checks, r.Established, r.Busy)
	}
	s := fmt.Sprintf("not drained after %.1f s: %d busy, %d live, last new connection %.1f s ago", r.Seconds, r.Busy, r.Live, r.SinceNew)
	if r.Arriving {
		s += fmt.Sprintf(", connections still arrive (%d lately)", r.PassiveOpens)
	}
	if len(r.Left) > 0 {
		s += ", left: " + strings.Join(r.Left, ", ")
	}
	return s
}

func hostDrainCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Let a balancer's probes of this host fail, or refuse new connections",
		Long: `drain drops new connections from the networks of --probes to the ports, so that a balancer
that only knows health checks takes this host out; all others are served on. It watches
those networks before, and refuses if clients come from there too.

With --block it refuses all other new connections with a reset. Do that late: every
connection that comes before the balancer has noticed fails.

Connections that are open go on. All ends by itself when it expires, or with "usher host
undo". The rules are in an nftables table of their own, inet usher; it needs CAP_NET_ADMIN.
It may be called again: what is there stays, and lasts the longer of both times.`,
		Example: `  usher host drain --ports 80,443 --probes 10.0.0.252/31 --expires 10m
  usher host drain --ports 80,443 --block --expires 2m`,
		Args: cobra.NoArgs,
	}
	s := newHostSettings(cmd, env, "json")
	var d host.DrainSettings
	s.add("ports", "", "local ports", hostPorts(&d.Ports))
	s.add("probes", "", "networks that the balancer probes from, such as 10.0.0.252/31,fd00::/64", hostNetworks(&d.Probes))
	s.add("expires", "10m", "it ends by itself after so long", hostSeconds(&d.Expires, time.Second))
	s.add("watch", "5s", "so long the probes' networks are watched before", hostSeconds(&d.Watch, 0))
	s.add("probe-rate", "5", "so many new connections a second from there are probes", hostNumber(&d.ProbeRate, 0))
	cmd.Flags().BoolVar(&d.Block, "block", false, "refuse all other new connections")
	cmd.RunE = s.run(func(ctx context.Context) (any, string, error) {
		if len(d.Probes) == 0 && !d.Block {
			return nil, "", settingError{errors.New("say whose connections are dropped (--probes), or refuse all (--block)")}
		}
		if len(d.Probes) > 0 && (d.Watch < time.Second || d.ProbeRate == 0) {
			return nil, "", settingError{errors.New("--watch: at least 1s, and --probe-rate: at least 1, with --probes")}
		}
		for _, p := range d.Probes {
			if p.Bits() == 0 {
				return nil, "", settingError{fmt.Errorf("--probes: %v is everybody", p)}
			}
		}
		r, err := host.Drain(ctx, d)
		if err != nil {
			r.Error = err.Error()
		}
		done := "new connections from the probes' networks are dropped"
		if len(d.Probes) == 0 {
			done = "new connections are refused"
		} else if d.Block {
			done += ", all others refused"
		}
		return r, fmt.Sprintf("%s, for %v", done, d.Expires), err
	})
	return cmd
}

func hostUndoCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "undo",
		Short: "Take back what drain has done",
		Long: `undo deletes usher's own firewall table, and with it all that drain or the worker's
nftables rules have shut out. Nothing to undo is fine.`,
		Example: `  usher host undo`,
		Args:    cobra.NoArgs,
	}
	s := newHostSettings(cmd, env, "json")
	cmd.RunE = s.run(func(context.Context) (any, string, error) {
		r, err := host.Undo()
		if err != nil {
			r.Error = err.Error()
		}
		if r.Removed == 0 {
			return r, "nothing was there to undo", err
		}
		return r, "probes and new connections come through again", err
	})
	return cmd
}

func hostStatusCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what is shut out of this host, and for how long",
		Long: `status shows what drain has shut out and for how long it lasts, and how many connections
others have tried to open since.`,
		Example: `  usher host status
  usher host status --output json`,
		Args: cobra.NoArgs,
	}
	s := newHostSettings(cmd, env, "text")
	cmd.RunE = s.run(func(context.Context) (any, string, error) {
		r, err := host.Status()
		if err != nil {
			r.Error = err.Error()
		}
		return r, stands(r), err
	})
	return cmd
}

func stands(r host.StatusReport) string {
	if r.ProbePorts == "" && r.BlockedPorts == "" {
		return "nothing is shut out"
	}
	var lines []string
	if r.ProbePorts != "" {
		lines = append(lines, fmt.Sprintf("dropped: new connections from %s to ports %s", r.Probes, r.ProbePorts))
	}
	if r.BlockedPorts != "" {
		lines = append(lines, fmt.Sprintf("refused: new connections to ports %s", r.BlockedPorts))
	}
	return strings.Join(append(lines, fmt.Sprintf("ends in %v, %d others have knocked since", time.Duration(r.Expires)*time.Second, r.Arrivals)), "\n")
}

func hostProtocolCommand(env []string) *cobra.Command {
	actions := []string{host.ActionWait, host.ActionFailHealthCheck, host.ActionBlockConnections, host.ActionUndo, host.ActionStatus}
	return &cobra.Command{
		Use:   "protocol ACTION",
		Short: "Say whether this host can do an action, for the worker's scripts",
		Long: `protocol prints the number of what the host commands and the worker's scripts have agreed
on, if an action can be done here: wait, fail_health_check, block_connections, undo, status.`,
		Example: `  usher host protocol wait`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(actions, args[0]) {
				return usageError{fmt.Errorf("an action is one of %s", strings.Join(actions, ", "))}
			}
			if err := host.Able(args[0]); err != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "usher: %v\n", err)
				return codeError(hostExitLacking)
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), host.Protocol)
			return err
		},
	}
}

// settingError is a setting that is wrong.
type settingError struct{ error }

// hostSettings are the settings of a host command: each a flag and a variable of the
// environment, which counts where the flag is not given.
type hostSettings struct {
	cmd    *cobra.Command
	env    []string
	output string
	list   []hostSetting
}

type hostSetting struct {
	flag, value string
	parse       func(string) error
}

func newHostSettings(cmd *cobra.Command, env []string, output string) *hostSettings {
	s := &hostSettings{cmd: cmd, env: env}
	cmd.Flags().StringVarP(&s.output, "output", "o", output, "text or json")
	return s
}

func (s *hostSettings) add(flag, value, usage string, parse func(string) error) {
	s.cmd.Flags().String(flag, value, usage)
	s.list = append(s.list, hostSetting{flag, value, parse})
}

// read takes in all settings and says what is wrong with them.
func (s *hostSettings) read() error {
	var errs []error
	if s.output != "text" && s.output != "json" {
		errs = append(errs, fmt.Errorf("--output: text or json, got %q", s.output))
		s.output = "text"
	}
	for _, set := range s.list {
		from, text := "--"+set.flag, set.value
		if f := s.cmd.Flags().Lookup(set.flag); f.Changed {
			text = f.Value.String()
		} else {
			name := "USHER_" + strings.ToUpper(strings.ReplaceAll(set.flag, "-", "_"))
			for _, pair := range s.env {
				if value, ok := strings.CutPrefix(pair, name+"="); ok && value != "" {
					from, text = name, value
				}
			}
		}
		if err := set.parse(text); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", from, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return settingError{err}
	}
	return nil
}

// run is a command's work. work gives its report and the same for a person; both are told
// of a failure too, with the exit code that belongs to it.
func (s *hostSettings) run(work func(context.Context) (report any, text string, err error)) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		var report any
		var text string
		err := s.read()
		if err == nil {
			report, text, err = work(ctx)
		}
		code := hostExit(err)
		if s.output == "text" {
			if err == nil || errors.Is(err, errNotDrained) {
				fmt.Fprintln(cmd.OutOrStdout(), text)
			} else {
				fmt.Fprintf(cmd.ErrOrStderr(), "usher: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
			}
		} else if err := printReport(cmd.OutOrStdout(), report, err); err != nil {
			return err
		}
		if code != 0 {
			return codeError(code)
		}
		return nil
	}
}

// printReport writes a report as a line, or the error of a command that came to none.
func printReport(out io.Writer, report any, err error) error {
	if r, ok := report.(host.Report); report == nil || ok && err != nil && !errors.Is(err, errNotDrained) {
		report = struct {
			Method string `json:"method"`
			Polls  int    `json:"polls,omitempty"`
			Error  string `json:"error"`
		}{"native", r.Polls, strings.ReplaceAll(err.Error(), "\n", "; ")}
	}
	line, err := json.Marshal(report)
	if err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	_, err = fmt.Fprintf(out, "%s\n", line)
	return err
}

func hostExit(err error) int {
	_, setting := errors.AsType[settingError](err)
	switch {
	case err == nil:
		return 0
	case setting:
		return hostExitUsage
	case errors.Is(err, errNotDrained), errors.Is(err, firewall.ErrUndone):
		return hostExitDeadline
	case errors.Is(err, host.ErrTraffic):
		return hostExitRefused
	case errors.Is(err, host.ErrLacking):
		return hostExitLacking
	}
	return exitFailed
}

// words are a list's, with commas or spaces between.
func words(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ' ' })
}

// maxHostPorts is far more than any service has.
const maxHostPorts = 1000

func hostPorts(to *[]uint16) func(string) error {
	return func(text string) error {
		for _, word := range words(text) {
			n, err := strconv.ParseUint(word, 10, 16)
			if err != nil || n == 0 {
				return fmt.Errorf("a port goes from 1 to 65535, got %q", word)
			}
			if !slices.Contains(*to, uint16(n)) {
				*to = append(*to, uint16(n))
			}
		}
		if len(*to) == 0 || len(*to) > maxHostPorts {
			return fmt.Errorf("name 1 to %d ports, such as 80,443", maxHostPorts)
		}
		return nil
	}
}

func hostNetworks(to *[]netip.Prefix) func(string) error {
	return func(text string) error {
		for _, word := range words(text) {
			var p netip.Prefix
			if addr, err := netip.ParseAddr(word); err == nil && addr.Zone() == "" {
				p = netip.PrefixFrom(addr, addr.BitLen())
			} else if p, err = netip.ParsePrefix(word); err != nil {
				return fmt.Errorf("%q is not a network such as 10.0.0.252/31 or fd00::/64", word)
			}
			if p.Addr().Is4In6() {
				if p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96); !p.IsValid() {
					return fmt.Errorf("%q is more than IPv4", word)
				}
			}
			*to = append(*to, p.Masked())
		}
		return nil
	}
}

func hostAddress(to *netip.Addr) func(string) error {
	return func(text string) error {
		if text == "" {
			return nil
		}
		addr, err := netip.ParseAddr(text)
		if err != nil || addr.Zone() != "" {
			return fmt.Errorf("%q is not an address", text)
		}
		*to = addr.Unmap()
		return nil
	}
}

func hostNumber(to *int, least uint64) func(string) error {
	return func(text string) error {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil || n < least {
			return fmt.Errorf("%q is no number from %d", text, least)
		}
		*to = int(n)
		return nil
	}
}

// hostSeconds reads a number of seconds or a duration, from least on.
func hostSeconds(to *time.Duration, least time.Duration) func(string) error {
	const most = 365 * 24 * time.Hour
	return func(text string) error {
		d, err := time.ParseDuration(text)
		if n, bad := strconv.ParseFloat(text, 64); bad == nil && n < most.Seconds() {
			d, err = time.Duration(n*float64(time.Second)), nil
		}
		if err != nil || d < least || d > most {
			return fmt.Errorf("a time such as 0.5 or 3s, from %v to %v, got %q", least, most, text)
		}
		*to = d
		return nil
	}
}
