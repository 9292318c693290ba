package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"example.org/usher/configs"
	"example.org/usher/messages"
)

func validateCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "validate DIR",
		Short: "Show every problem in the config files, and the plan they make",
		Long: `validate reads a config folder as run would, the USHER_ variables included, and prints
every problem with its file and line, or for each hook the steps and what the deadline
costs in heartbeats. It asks no cloud: the hook's own timeout is taken to be
--hook-timeout, or else what the cloud gives a hook that names none: 10m, on AWS 1h.`,
		Example: `  usher validate /etc/usher
  usher validate ./configs --hook-timeout 5m --output json`,
		Args: cobra.ExactArgs(1),
	}
	format := output(cmd)
	timeout := cmd.Flags().Duration("hook-timeout", 0, "the timeout that the hooks have in the cloud (default 10m, on AWS 1h)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := configs.Load(args[0], env)
		if err := checkHookTimeout(c, *timeout, cmd.Flags().Changed("hook-timeout")); err != nil {
			return usageError{err}
		}
		if *format == "json" {
			return validateJSON(cmd.OutOrStdout(), c, err, *timeout)
		}
		if err != nil {
			fmt.Fprintln(cmd.ErrOrStderr(), err)
			return usageError{errReported}
		}
		printPlan(cmd.OutOrStdout(), c, *timeout)
		return nil
	}
	return cmd
}

// checkHookTimeout refuses a timeout that no hook can have, or none of the clouds of c, which
// is nil where the files are wrong.
func checkHookTimeout(c *configs.Config, timeout time.Duration, given bool) error {
	if !given {
		return nil
	}
	providers, longest := "ESS", 6*time.Hour
	if c != nil {
		for _, g := range c.Groups {
			if _, most := g.HookTimeouts(); most < longest {
				providers, longest = "AWS", most
			}
		}
	}
	if timeout < configs.MinHookTimeout || timeout > longest {
		return fmt.Errorf("--hook-timeout: 30s to %s on %s, got %v", short(longest), providers, timeout)
	}
	return nil
}

// hookTimeoutOf is the timeout that the group's hooks are taken to have.
func hookTimeoutOf(g configs.Group, given time.Duration) time.Duration {
	absent, _ := g.HookTimeouts()
	return cmp.Or(given, absent)
}

func printPlan(out io.Writer, c *configs.Config, hookTimeout time.Duration) {
	w := c.Worker
	reconcile := "off"
	if w.Reconcile.Every > 0 {
		reconcile = "every " + short(w.Reconcile.Every)
		if slices.ContainsFunc(c.Groups, func(g configs.Group) bool { return g.Provider == configs.ProviderAWS }) {
			reconcile += ", but on AWS: no API tells which tokens wait"
		}
	}
	fmt.Fprintf(out, "worker %s: up to %d jobs and %d actions a queue; lease %s; grace %s; reconcile %s\n",
		w.Name, w.MaxJobs, w.MaxActions, short(w.VisibilityTimeout), short(w.ShutdownGrace), reconcile)
	for _, g := range c.Groups {
		fmt.Fprintf(out, "\n%s: %s in %s, queue %s, verify %s\n", g.File, g.ScalingGroup, g.Region, g.Queue.Name, g.Verify)
		printRoles(out, g)
		for _, h := range g.Plans() {
			fmt.Fprintln(out, headline(h))
			for i, s := range h.Steps {
				if h.OnSuccess != messages.Rollback && h.OnFailure != messages.Rollback {
					s.UndoTimeout = 0 // the hook never answers so
				}
				printStep(out, fmt.Sprintf("    %d. ", i+1), s)
			}
			if len(h.Steps)+len(h.Always) == 0 {
				fmt.Fprintln(out, "    no steps: "+map[bool]string{true: "recorded alone", false: "answered at once"}[len(h.On) > 0])
			}
			if kept := h.Kept(); kept > 0 {
				fmt.Fprintf(out, "    the steps end %s before the deadline, for what comes behind them\n", short(kept))
			}
			for _, s := range h.Always {
				printStep(out, "    always: ", s)
			}
			printHeartbeats(out, g, h, hookTimeoutOf(g, hookTimeout))
		}
	}
	fmt.Fprintf(out, "\n%d files, no problem.\n", len(c.Groups))
}

// printStep prints a step, and those that it runs at once below it.
func printStep(out io.Writer, lead string, s configs.Step) {
	fmt.Fprintf(out, "%s%s, at most %s", lead, s.Kind, short(s.Longest()/time.Duration(s.Retries+1)))
	if s.Retries > 0 {
		fmt.Fprintf(out, " x %d attempts", s.Retries+1)
	}
	if s.OnError == configs.OnErrorIgnore {
		fmt.Fprint(out, ", errors ignored")
	}
	if s.UndoTimeout > 0 {
		fmt.Fprintf(out, ", undone in at most %s before a ROLLBACK", short(s.UndoTimeout))
	}
	fmt.Fprintln(out, condition(s.When))
	for _, member := range s.Parallel {
		printStep(out, strings.Repeat(" ", len(lead))+"- ", member)
	}
}

// condition says when a step runs.
func condition(c configs.Condition) string {
	var terms []string
	if c.Transition != "" {
		terms = append(terms, "at "+string(c.Transition))
	}
	for _, key := range slices.Sorted(maps.Keys(c.Tags)) {
		terms = append(terms, fmt.Sprintf("with tag %s=%s", key, c.Tags[key]))
	}
	if c.Job != "" {
		terms = append(terms, "if the job has "+c.Job)
	}
	if len(terms) == 0 {
		return ""
	}
	return ", only " + strings.Join(terms, " and ")
}

// printRoles says whose keys make the calls, where they are not the worker's own.
func printRoles(out io.Writer, g configs.Group) {
	if g.AssumeRole.ARN != "" {
		fmt.Fprintf(out, "  with role %s, renewed every %s at most\n", g.AssumeRole.ARN, short(g.AssumeRole.Duration))
	}
	switch {
	case g.Queue.Role == g.AssumeRole:
	case g.Queue.Role.ARN == "":
		fmt.Fprintln(out, "  the queue is read with the worker's own keys")
	default:
		fmt.Fprintf(out, "  the queue is read with role %s\n", g.Queue.Role.ARN)
	}
}

// headline says what the steps below it are for.
func headline(h configs.Hook) string {
	if len(h.On) > 0 {
		var names []string
		for _, event := range h.On {
			names = append(names, string(event))
		}
		return fmt.Sprintf("  %s: deadline %s, nothing waits for an answer", strings.Join(names, ", "), short(h.Deadline))
	}
	which := ""
	if h.HookID != "" || h.HookName != "" {
		which = " " + string(h.HookID) + h.HookName
	}
	return fmt.Sprintf("  %s%s: deadline %s, %s on success, %s on failure", h.Transition, which, short(h.Deadline), h.OnSuccess, h.OnFailure)
}

func printHeartbeats(out io.Writer, g configs.Group, h configs.Hook, hookTimeout time.Duration) {
	if len(h.On) > 0 {
		return
	}
	plan, budget := g.HeartbeatPlan(h, hookTimeout), g.Budget(h, hookTimeout)
	most := fmt.Sprintf(" of %d at most", budget.Calls)
	if budget.Restarts() {
		most = "" // as many as the wait lasts
	}
	fmt.Fprintf(out, "    heartbeats: %d%s, with a hook timeout of %s", len(plan), most, short(hookTimeout))
	if len(plan) > 0 {
		first, longest := plan[0], plan[0].Extension
		for _, b := range plan {
			longest = max(longest, b.Extension)
		}
		fmt.Fprintf(out, "; the first after %s, each of %s to %s", short(first.At), short(first.Extension), short(longest))
	}
	fmt.Fprintln(out)
	if g.Provider == configs.ProviderAWS {
		fmt.Fprintf(out, "    AWS waits %s at most, the lesser of 48h and 100 timeouts", short(budget.MaxWait))
		if ends := g.WaitEnds(h, hookTimeout); ends < h.Deadline {
			fmt.Fprintf(out, "; it would end after %s, before the deadline: give the hook a longer timeout", short(ends))
		}
		fmt.Fprintln(out)
	}
}

// short drops the zero units that Duration.String writes.
func short(d time.Duration) string {
	s := d.Round(time.Second).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if n := len(s) - len(zero); n > 0 && s[n:] == zero {
			s = s[:n+1]
		}
	}
	return s
}

type problemJSON struct {
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Key     string `json:"key,omitempty"`
	Message string `json:"message"`
}

type hookJSON struct {
	File       string `json:"file"`
	Group      string `json:"scaling_group"`
	Transition string `json:"transition"`
	// On are the events, for what is no hook's.
	On         []messages.Event `json:"on,omitempty"`
	Deadline   float64          `json:"deadline_seconds"`
	Role       string           `json:"assume_role,omitempty"`
	QueueRole  string           `json:"queue_role,omitempty"`
	Heartbeats []beatJSON       `json:"heartbeats"`
}

type beatJSON struct {
	At        float64 `json:"at_seconds"`
	Extension float64 `json:"extension_seconds"`
}

// problems lists what configs.Load refused, for JSON.
func problems(err error) []problemJSON {
	list := []problemJSON{}
	found, ok := errors.AsType[configs.Errors](err)
	if err != nil && !ok {
		return append(list, problemJSON{Message: err.Error()})
	}
	for _, p := range found {
		list = append(list, problemJSON(p))
	}
	return list
}

func validateJSON(out io.Writer, c *configs.Config, loadErr error, hookTimeout time.Duration) error {
	answer := struct {
		Valid    bool          `json:"valid"`
		Problems []problemJSON `json:"problems"`
		Hooks    []hookJSON    `json:"hooks"`
	}{Valid: loadErr == nil, Problems: problems(loadErr), Hooks: []hookJSON{}}
	if loadErr == nil {
		for _, g := range c.Groups {
			for _, h := range g.Plans() {
				hook := hookJSON{On: h.On, File: g.File, Group: string(g.ScalingGroup), Transition: string(h.Transition), Deadline: h.Deadline.Seconds(), Role: g.AssumeRole.ARN, QueueRole: g.Queue.Role.ARN, Heartbeats: []beatJSON{}}
				for _, b := range g.HeartbeatPlan(h, hookTimeoutOf(g, hookTimeout)) {
					hook.Heartbeats = append(hook.Heartbeats, beatJSON{b.At.Seconds(), b.Extension.Seconds()})
				}
				answer.Hooks = append(answer.Hooks, hook)
			}
		}
	}
	e := json.NewEncoder(out)
	e.SetIndent("", "  ")
	if err := e.Encode(answer); err != nil {
		return err
	}
	if loadErr != nil {
		return usageError{errReported}
	}
	return nil
}
