// Package app builds a worker and all its parts from a configuration, in one
// straight line, and runs it. It is the one place that knows concrete types.
package app

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"

	"example.org/usher/configs"
	"example.org/usher/providers"
	"example.org/usher/providers/alibaba"
	"example.org/usher/providers/aws"
	"example.org/usher/web"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
	"example.org/usher/worker/steps"
)

// Options is what a configuration does not say.
type Options struct {
	Config *configs.Config
	// Credentials and AWSCredentials are the worker's own, for every call to the one or the
	// other cloud that no role makes; nil: those that the vendor's chain finds.
	Credentials    alibaba.Credentials
	AWSCredentials aws.Credentials
	// DialContext replaces the net package's dialer for calls to the cloud; nil: none.
	DialContext func(ctx context.Context, network, addr string) (net.Conn, error)
	// Audit gets the audit log when the configuration names no file for it.
	Audit io.Writer
	// Observer, if not nil, sees each audit record; it must return soon.
	Observer func(audit.Record)
	Logger   *slog.Logger
	// Level, if not nil, is set to the level that a new configuration gives the log.
	Level *slog.LevelVar
	// Load reads the configuration anew while the worker runs; nil: it never changes.
	Load func() (*configs.Config, error)
	// Folder, if not empty, is watched: when its files change they are loaded.
	Folder string
	// Reload, if not nil, asks with each value that the configuration be loaded now.
	Reload <-chan os.Signal
}

// App is a worker with its parts, made by New.
type App struct {
	o        Options
	worker   *worker.Worker
	log      *slog.Logger
	recorder *audit.Recorder
	parts    *parts
	force    force
	listener net.Listener // nil: no health endpoints
	closers  []func() error
}

// New builds everything and starts nothing, but it opens the audit file and the
// listener of the health endpoints: what can't be opened should be known at once.
func New(o Options) (_ *App, err error) {
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	a := &App{o: o, log: o.Logger, parts: newParts(o)}
	a.closers = append(a.closers, a.parts.close)
	defer func() {
		if err != nil {
			err = errors.Join(err, a.Close())
		}
	}()
	c := o.Config
	out, torn := o.Audit, false
	if c.Worker.Audit.File != "" {
		file, err := os.OpenFile(c.Worker.Audit.File, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, fmt.Errorf("open the audit log: %w", err)
		}
		a.closers = append(a.closers, file.Close)
		out, torn = file, endsTorn(c.Worker.Audit.File)
	}
	a.recorder = audit.New(out, c.Worker.Name, o.Observer)
	if torn {
		a.recorder.EndLine()
	}
	built, err := a.parts.build(c)
	if err != nil {
		return nil, err
	}
	a.parts.take(built)
	a.force.config = c
	grace := c.Worker.ShutdownGrace
	if grace == 0 {
		grace = -1 // the worker's word for none
	}
	a.worker, err = worker.New(worker.Options{
		Queues:            built.queues,
		MaxActions:        c.Worker.MaxActions,
		MaxJobs:           c.Worker.MaxJobs,
		MaxReceives:       c.Worker.MaxReceives,
		Quarantine:        worker.Quarantine(c.Worker.Quarantine.To),
		VisibilityTimeout: c.Worker.VisibilityTimeout,
		ShutdownGrace:     grace,
		ReconcileEvery:    c.Worker.Reconcile.Every,
		Audit:             a.recorder,
		Logger:            a.log,
	})
	if err != nil {
		return nil, fmt.Errorf("build the worker: %w", err)
	}
	if c.Worker.HTTP != "" {
		a.listener, err = net.Listen("tcp", c.Worker.HTTP)
		if err != nil {
			return nil, fmt.Errorf("listen for health checks (http: in usher.yaml, --http): %w", err)
		}
	}
	return a, nil
}

// endsTorn says whether the last line of an audit file has no end: the worker that wrote
// it was killed while its disk was full. What can't be read is no such file.
func endsTorn(name string) bool {
	info, err := os.Stat(name)
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	file, err := os.Open(name)
	if err != nil {
		return false
	}
	defer file.Close()
	var last [1]byte
	_, err = file.ReadAt(last[:], info.Size()-1)
	return err == nil && last[0] != '\n'
}

func newStep(s configs.Step, index int, commander providers.Commander, balancers *balancersOf, outbox *steps.Outbox) (worker.Step, error) {
	switch s.Kind {
	case configs.KindDeregister, configs.KindRegister:
		return newBalancerStep(s, balancers)
	case configs.KindWait:
		return checked(steps.Wait{For: s.Wait.For})
	case configs.KindHTTP:
		h := s.HTTP
		return checked(steps.HTTP{
			Method: h.Method, URL: h.URL, Headers: h.Headers, Body: h.Body, Expect: h.Expect,
			InFlight: h.Preset == configs.PresetInFlight, Field: h.Field, AtMost: h.AtMost,
			VerifyURL: h.VerifyURL, VerifyExpect: h.VerifyExpect, VerifyClose: h.Preset == configs.PresetAskClose,
			Every: h.Every, ClearChecks: h.ClearChecks, Gap: h.Gap, Tries: h.Tries, CallTimeout: h.CallTimeout,
			RefusedIsGood: h.OnRefused == configs.OnRefusedDone, AllowHosts: h.AllowHosts,
			TokenFile: h.TokenFile, CertFile: h.CertFile, KeyFile: h.KeyFile, CAFile: h.CAFile, ServerName: h.ServerName,
		})
	case configs.KindCommand:
		return checked(steps.Command{Script: s.Command.Script, Timeout: s.Timeout, Commander: commander, Index: index})
	case configs.KindExec:
		e := s.Exec
		return checked(steps.Exec{Command: e.Command, Dir: e.Dir, Env: e.Env, Inherit: e.Inherit, GoneCode: e.GoneCode})
	case configs.KindNotify:
		n := s.Notify
		return checked(steps.Notify{Format: n.Format, URL: string(n.URL), URLFile: n.URLFile, SecretFile: n.SecretFile, Text: n.Text, Outbox: outbox})
	case configs.KindWaitConnections:
		w := s.WaitConnections
		step := steps.WaitConnections{
			Ports: ports(w.Ports), Exclude: w.Exclude, Until: w.Until, ClearChecks: w.ClearChecks, Every: w.Every,
			QuietFor: w.QuietFor, LongestRequest: w.LongestRequest, Tries: w.Tries, Gap: w.Gap, Background: w.Background, LocalAddress: w.LocalAddress,
			Timeout: s.Timeout, Commander: commander, Index: index,
		}
		if len(w.GapFrom) > 0 && balancers != nil {
			step.GapFrom, step.Cloud, step.Departures = named(w.GapFrom), balancers.Balancers, balancers.departures
		}
		return checked(step)
	case configs.KindFailHealthCheck:
		h := s.FailHealthCheck
		return checked(steps.FailHealthCheck{
			Ports: ports(h.Ports), Probes: h.Probes, Expires: h.Expires, Watch: h.Watch, ProbeRate: h.ProbeRate,
			Timeout: s.Timeout, Commander: commander, Index: index,
		})
	case configs.KindBlockConnections:
		b := s.BlockConnections
		return checked(steps.BlockConnections{Ports: ports(b.Ports), Expires: b.Expires, Timeout: s.Timeout, Commander: commander, Index: index})
	case configs.KindUndo:
		return checked(steps.Undo{Timeout: s.Timeout, Commander: commander, Index: index})
	}
	return nil, fmt.Errorf("no step is called %q", s.Kind)
}

// ports are the numbers of a file, which holds none that is larger.
func ports(numbers []int) []uint16 {
	out := make([]uint16, len(numbers))
	for i, n := range numbers {
		out[i] = uint16(n)
	}
	return out
}

func checked(s interface {
	worker.Step
	Validate() error
}) (worker.Step, error) {
	return s, s.Validate()
}

// Run works until receiving ends and what it holds is done, or working ends (see
// worker.Worker), serving the health endpoints meanwhile. It closes what New opened.
func (a *App) Run(receiving, working context.Context) (err error) {
	defer func() { err = errors.Join(err, a.Close()) }()
	serving, stop := context.WithCancel(context.WithoutCancel(working))
	defer stop()
	var beside sync.WaitGroup
	var serveErr error
	if a.listener != nil {
		beside.Go(func() {
			serveErr = web.Serve(serving, a.listener, web.Handler(a.worker.Healthy, a.worker.Ready, a.force.refusal))
		})
		a.log.Info("serving /healthz and /readyz", "address", a.listener.Addr().String())
	}
	beside.Go(func() { a.parts.outbox.Run(serving) })
	if a.o.Load != nil {
		watching, end := context.WithCancel(receiving)
		defer end()
		beside.Go(func() { a.watch(watching) })
		err = a.worker.Run(receiving, working)
		end()
	} else {
		err = a.worker.Run(receiving, working)
	}
	stop()
	beside.Wait()
	return errors.Join(err, serveErr)
}

// Address is where the health endpoints are served, "" when they are not.
func (a *App) Address() string {
	if a.listener == nil {
		return ""
	}
	return a.listener.Addr().String()
}

// Close closes what New opened. Run does so itself.
func (a *App) Close() error {
	var problems []error
	for _, c := range a.closers {
		problems = append(problems, c())
	}
	a.closers = nil
	if a.listener != nil {
		if err := a.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}
