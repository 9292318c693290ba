package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	golog "log"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"example.org/usher/app"
	"example.org/usher/configs"
)

func runCommand(env []string) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run --config DIR",
		Short: "Run the worker",
		Long: `run works until it is told to stop. The first SIGTERM or SIGINT ends receiving and lets
jobs finish for shutdown_grace; what is left then, or at a second signal, is handed back
to the queue for another worker. The exit code is 0 either way.

The operational log goes to standard error. The audit log goes to standard output, or
to audit.file of usher.yaml. Credentials come from ALIBABA_CLOUD_ACCESS_KEY_ID,
ALIBABA_CLOUD_ACCESS_KEY_SECRET and, for temporary keys, ALIBABA_CLOUD_SECURITY_TOKEN.

When the files of the folder change, or at SIGHUP, they are read again: all of them are
taken over, or none. Actions under way go on with the config that they began with.`,
		Example: `  usher run --config /etc/usher
  USHER_MAX_JOBS=20 usher run --config ./configs --http 0.0.0.0:9090`,
		Args: cobra.NoArgs,
	}
	dir := cmd.Flags().String("config", lookup(env, "USHER_CONFIG"), "the folder with one file a scaling group and usher.yaml (USHER_CONFIG)")
	address := cmd.Flags().String("http", "", "where /healthz and /readyz are served, or off (default: http of usher.yaml, 127.0.0.1:9090)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		hangups := make(chan os.Signal, 1) // one that waits is enough: all files are read
		signal.Notify(hangups, syscall.SIGHUP)
		defer signal.Stop(hangups)
		read := func() (*configs.Config, error) {
			c, err := load(*dir, env)
			if err == nil && cmd.Flags().Changed("http") {
				c.Worker.HTTP, err = listenAddress(*address)
			}
			return c, err
		}
		c, err := read()
		if err != nil {
			return err
		}
		if slices.Contains(strings.Split(lookup(env, "DEBUG"), ","), "sdk") {
			return usageError{errors.New("DEBUG: with sdk in it the cloud's SDK would print signed requests and security tokens into the audit log; unset it")}
		}
		// Whoever reads the audit log or the operational one may die. The worker must not die
		// of that with all that it holds: it is unhealthy then, and can be stopped in order.
		// (Ignoring the signal would do, too, but the programs of exec steps would inherit that.)
		pipes := make(chan os.Signal, 1)
		signal.Notify(pipes, syscall.SIGPIPE)
		defer signal.Stop(pipes)
		log, level := newLogger(cmd.ErrOrStderr(), c.Worker.Log)
		tameLibraries(log)
		a, err := app.New(app.Options{
			Config: c, Audit: cmd.OutOrStdout(), Logger: log, Level: level, Load: read, Folder: *dir, Reload: hangups,
		})
		if err != nil {
			return err
		}
		receiving, working, stop := signals(cmd.Context(), log)
		defer stop()
		log.Info("started", "version", version, "config", *dir, "groups", len(c.Groups), "worker", c.Worker.Name)
		err = a.Run(receiving, working)
		log.Info("stopped")
		return err
	}
	return cmd
}

// listenAddress reads --http as http of usher.yaml is read; "": nowhere.
func listenAddress(text string) (string, error) {
	if text == "" || text == "off" {
		return "", nil
	}
	if _, _, err := net.SplitHostPort(text); err != nil {
		return "", usageError{fmt.Errorf("--http: want an address and port such as %s, or off, got %q", configs.DefaultHTTP, text)}
	}
	return text, nil
}

// load reads the config and makes its problems wrong usage.
func load(dir string, env []string) (*configs.Config, error) {
	if dir == "" {
		return nil, usageError{errors.New("--config: name the folder with the config files")}
	}
	c, err := configs.Load(dir, env)
	if err != nil {
		return nil, usageError{err}
	}
	return c, nil
}

// signals gives two contexts: the first SIGTERM or SIGINT ends receiving, the second
// ends working.
func signals(ctx context.Context, log *slog.Logger) (receiving, working context.Context, stop func()) {
	received := make(chan os.Signal, 2) // room for both signals that matter
	signal.Notify(received, syscall.SIGTERM, syscall.SIGINT)
	working, endWorking := context.WithCancelCause(ctx)
	receiving, endReceiving := context.WithCancelCause(working)
	done := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		for _, end := range []context.CancelCauseFunc{endReceiving, endWorking} {
			select {
			case s := <-received:
				log.Info("stopping", "signal", s.String())
				end(fmt.Errorf("received %s", s))
			case <-done:
				return
			}
		}
	}()
	return receiving, working, func() {
		signal.Stop(received)
		close(done)
		<-watched
		endWorking(nil)
	}
}

func newLogger(w io.Writer, l configs.Log) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	level.Set(app.LogLevel(l.Level))
	o := &slog.HandlerOptions{Level: level}
	if l.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o)), level
	}
	return slog.New(slog.NewTextHandler(w, o)), level
}

// mostOfLibraries is how much of what a library logs by itself is told.
const mostOfLibraries = 80

// tameLibraries puts what libraries say on Go's own log into ours, cut short: net/http
// quotes there what a server has sent unasked, up to 4 KB, which may be an echo of a
// signed request.
func tameLibraries(log *slog.Logger) {
	golog.SetFlags(0)
	golog.SetOutput(libraries{log})
}

type libraries struct{ log *slog.Logger }

func (l libraries) Write(text []byte) (int, error) {
	said := strings.ToValidUTF8(strings.TrimSpace(string(text[:min(len(text), mostOfLibraries)])), "")
	l.log.Warn("a library says something", "text", said)
	return len(text), nil
}

func lookup(env []string, name string) string {
	for _, kv := range env {
		if len(kv) > len(name) && kv[:len(name)] == name && kv[len(name)] == '=' {
			return kv[len(name)+1:]
		}
	}
	return ""
}
