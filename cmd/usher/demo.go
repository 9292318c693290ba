package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"example.org/usher/app/demo"
	"example.org/usher/configs"
)

func demoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "See a scale-in with usher and without, on this machine",
		Long: `demo shows what usher is for. It needs no account: the cloud is simulated, on free ports
of 127.0.0.0/8; the requests, the balancer and the worker are real. A fleet of six
instances serves short, slow and kept-alive requests while three of them are scaled in:
first without usher, then with it. It ends, in less than a minute, with how many requests
failed each time, as the clients saw it.

With --output json the last line on standard output is one JSON object, and what
happens meanwhile goes to standard error. The exit code is 1 if requests failed with
usher, or none without.`,
		Example: `  usher demo
  usher demo --provider aws
  usher demo --output json 2>/dev/null`,
		Args: cobra.NoArgs,
	}
	format := output(cmd)
	provider := cmd.Flags().String("provider", configs.ProviderAlibaba, "the cloud that is simulated: alibaba or aws")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *provider != configs.ProviderAlibaba && *provider != configs.ProviderAWS {
			return usageError{fmt.Errorf("--provider: alibaba or aws, got %q", *provider)}
		}
		ctx, _, stop := signals(cmd.Context(), slog.New(slog.DiscardHandler))
		defer stop()
		o := demo.Options{Provider: *provider, Progress: cmd.OutOrStdout()}
		if *format == "json" {
			o.Progress = cmd.ErrOrStderr()
		}
		o.Screen = screen(o.Progress, os.Getenv)
		result, err := demo.Run(ctx, o)
		if result == nil {
			return err
		}
		return tell(cmd.OutOrStdout(), cmd.ErrOrStderr(), *format, result, err, o.Screen != nil && o.Screen.Colour)
	}
	return cmd
}

// tell prints how the demo ended and gives the command's error.
func tell(stdout, stderr io.Writer, format string, result *demo.Result, err error, colour bool) error {
	if errors.Is(err, demo.ErrUnexpected) {
		fmt.Fprintf(stderr, "\nThe worker's audit log:\n%s", result.AuditLog)
	}
	if format == "json" {
		return errors.Join(err, json.NewEncoder(stdout).Encode(result))
	}
	fmt.Fprintf(stdout, "\n%s", result.Summary(colour))
	return err
}

// screen is the terminal that w is, nil if it is none or cannot be drawn on.
func screen(w io.Writer, getenv func(string) string) *demo.Screen {
	file, ok := w.(*os.File)
	if !ok || getenv("TERM") == "dumb" || getenv("TERM") == "" || !term.IsTerminal(int(file.Fd())) {
		return nil
	}
	locale := cmp.Or(getenv("LC_ALL"), getenv("LC_CTYPE"), getenv("LANG"))
	return &demo.Screen{
		Size: func() (int, int) {
			if width, height, err := term.GetSize(int(file.Fd())); err == nil && width > 0 && height > 0 {
				return width, height
			}
			return 80, 24 // a terminal that does not tell
		},
		Colour:  getenv("NO_COLOR") == "",
		Unicode: strings.Contains(strings.ToUpper(strings.ReplaceAll(locale, "-", "")), "UTF8"),
	}
}
