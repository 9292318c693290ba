// Command usher sees instances out of an auto-scaling group without a failed request.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitFailed = 1 // the command could not do its work
	exitUsage  = 2 // wrong usage, or a config with problems
)

// version is set by the linker (-X main.version=...).
var version = "development"

func main() {
	os.Exit(run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ()))
}

// usageError is a mistake in what the command was given, not in what it did.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// errReported ends a command that has printed already what went wrong.
var errReported = errors.New("reported")

// run is the whole program but the process: tests call it.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env []string) int {
	root := &cobra.Command{
		Use:   "usher",
		Short: "See instances out of an auto-scaling group without a failed request",
		Long: `usher long-polls a queue for the notifications of lifecycle hooks, drains each
instance that is about to leave, keeps the scaling group waiting meanwhile, and
ends the wait when the instance may go.`,
		Example: `  usher demo                     # the whole story on this machine, no account needed
  usher validate /etc/usher      # every problem in the config, and the plan
  usher run --config /etc/usher  # the worker`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SetOut(stderr)
			return errors.Join(usageError{errors.New("say which command to run")}, cmd.Help())
		},
	}
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.CompletionOptions.HiddenDefaultCmd = true
	root.AddCommand(runCommand(env), demoCommand(), simulateCommand(), validateCommand(env), decodeCommand(), healthCommand(), hostCommand(env))

	// What fails before a command's own work begins is wrong usage. Cobra checks required
	// flags after all hooks that come before RunE.
	working := false
	var all []*cobra.Command
	for _, cmd := range root.Commands() {
		all = append(append(all, cmd), cmd.Commands()...)
	}
	for _, cmd := range all {
		work := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			working = true
			return work(cmd, args)
		}
	}
	err := root.ExecuteContext(ctx)
	usage, isUsage := errors.AsType[usageError](err)
	code, hasCode := errors.AsType[codeError](err)
	switch {
	case err == nil:
		return 0
	case hasCode:
		return int(code)
	case errors.Is(err, errReported):
	case isUsage:
		fmt.Fprintf(stderr, "usher: %s\n", strings.TrimSpace(usage.Error()))
	default:
		fmt.Fprintf(stderr, "usher: %v\n", err)
	}
	if isUsage || !working {
		if !errors.Is(err, errReported) {
			fmt.Fprintln(stderr, "Run 'usher --help' for the commands and 'usher COMMAND --help' for examples.")
		}
		return exitUsage
	}
	return exitFailed
}

// output adds --output to a command and checks it.
func output(cmd *cobra.Command) *string {
	format := cmd.Flags().StringP("output", "o", "text", "text or json")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if *format != "text" && *format != "json" {
			return usageError{fmt.Errorf("--output: text or json, got %q", *format)}
		}
		return nil
	}
	return format
}
