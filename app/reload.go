package app

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"example.org/usher/configs"
	"example.org/usher/worker"
	"example.org/usher/worker/audit"
)

const (
	// settleFor is how long the folder's files must have been left alone before they are
	// read, and settleMost how long that is waited for.
	settleFor  = 500 * time.Millisecond
	settleMost = 10 * time.Second
	// maxTold bounds the problems that one audit record tells of.
	maxTold = 20
)

// force is which configuration is in force.
type force struct {
	// config and digest are the reloader's alone once the worker runs. digest stands for
	// the files that were looked at last, whether they were taken over or not.
	config *configs.Config
	digest string

	mu      sync.Mutex
	refused string // guarded by mu; why that on disk is not in force, "": it is
}

// refusal says on /readyz that the configuration on disk is not in force.
func (f *force) refusal() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.refused
}

func (f *force) setRefusal(text string) (before string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, f.refused = f.refused, text
	return before
}

// reload reads the configuration and takes it over whole, or refuses it whole. Unless
// asked by an operator, it looks first whether there is anything new.
func (a *App) reload(ctx context.Context, asked bool) {
	if !asked && configs.Digest(a.o.Folder) == a.force.digest {
		return
	}
	c, digest, err := a.read(ctx)
	if ctx.Err() != nil {
		return
	}
	first := a.force.digest == ""
	a.force.digest = digest
	if err != nil {
		a.refuse(ctx, err)
		return
	}
	change := compare(a.force.config, c)
	if change.isNone() {
		// Said where somebody waits for it: who asked, or who has mended the files.
		if before := a.force.setRefusal(""); asked || before != "" && !first {
			a.log.Info("config read again: it is the one in force")
			a.recordReload(ctx, audit.Record{Result: "ok", Reason: "nothing has changed"})
		}
		return
	}
	if err := a.apply(c, change); errors.Is(err, worker.ErrStopping) {
		return
	} else if err != nil {
		a.refuse(ctx, err)
		return
	}
	a.force.config = c
	a.force.setRefusal("")
	a.log.Info("config reloaded", "changes", change.String(), "groups", len(c.Groups))
	a.recordReload(ctx, audit.Record{Result: "ok", Reason: change.String()})
}

// read loads the configuration once its files hold still.
func (a *App) read(ctx context.Context) (c *configs.Config, digest string, err error) {
	if a.o.Folder == "" {
		c, err = a.o.Load()
		return c, "", err
	}
	for end := time.Now().Add(settleMost); ; {
		digest = configs.Digest(a.o.Folder)
		c, err = a.o.Load()
		if digest == configs.Digest(a.o.Folder) || time.Now().After(end) {
			return c, digest, err
		}
		if !pause(ctx, settleFor) {
			return nil, digest, context.Cause(ctx)
		}
	}
}

// apply takes a configuration over. After an error the one before is in force.
func (a *App) apply(c *configs.Config, change change) error {
	var late []error
	for _, key := range change.restart {
		late = append(late, fmt.Errorf("%s: %s: takes effect at a start only: restart the worker, or take the change back; until then no other change is taken over either",
			configs.WorkerFile, key))
	}
	if late != nil {
		return errors.Join(late...)
	}
	built, err := a.parts.build(c)
	if err != nil {
		return err
	}
	if err := a.worker.Apply(built.queues, c.Worker.MaxJobs); err != nil {
		a.parts.discard(built)
		return err
	}
	a.parts.take(built)
	if a.o.Level != nil {
		a.o.Level.Set(LogLevel(c.Worker.Log.Level))
	}
	return nil
}

// refuse says loudly that a configuration is not taken over, and why.
func (a *App) refuse(ctx context.Context, why error) {
	problems := strings.Split(why.Error(), "\n")
	a.force.setRefusal(fmt.Sprintf("the config on disk was refused at %s, the one before stays in force: %s; the log has all",
		time.Now().UTC().Format(time.RFC3339), count(len(problems), "problem")))
	a.log.Error("config refused, the one before stays in force", "problems", len(problems))
	for _, p := range problems {
		a.log.Error("config refused", "problem", p)
	}
	told := problems[:min(len(problems), maxTold)]
	if more := len(problems) - len(told); more > 0 {
		told = append(slices.Clone(told), fmt.Sprintf("%d more", more))
	}
	a.recordReload(ctx, audit.Record{
		Result: "refused", Reason: "the config before stays in force: " + count(len(problems), "problem"), Error: strings.Join(told, "; "),
	})
}

func (a *App) recordReload(ctx context.Context, rec audit.Record) {
	rec.Event = audit.Reloaded
	if err := a.recorder.Write(ctx, rec); err != nil {
		a.log.Error("can't write the audit log", "error", err)
	}
}

// change is what differs between two configurations.
type change struct {
	added, removed, changed []string // files of groups
	worker                  []string // keys of usher.yaml that take effect at once
	restart                 []string // keys of usher.yaml that take effect at a start only
}

func (c change) isNone() bool {
	return len(c.added)+len(c.removed)+len(c.changed)+len(c.worker)+len(c.restart) == 0
}

func (c change) String() string {
	var parts []string
	for _, p := range []struct {
		what  string
		names []string
	}{{"added", c.added}, {"removed", c.removed}, {"changed", c.changed}, {configs.WorkerFile, c.worker}} {
		if len(p.names) > 0 {
			parts = append(parts, p.what+": "+strings.Join(p.names, ", "))
		}
	}
	return strings.Join(parts, "; ")
}

// compare finds out what is to be done about a new configuration.
func compare(before, now *configs.Config) (c change) {
	known := map[groupKey]configs.Group{}
	for _, g := range before.Groups {
		known[keyOf(g)] = g
	}
	for _, g := range now.Groups {
		key := keyOf(g)
		if old, ok := known[key]; !ok {
			c.added = append(c.added, g.File)
		} else if !reflect.DeepEqual(withoutLines(old), withoutLines(g)) {
			c.changed = append(c.changed, g.File)
		}
		delete(known, key)
	}
	for _, g := range before.Groups {
		if _, left := known[keyOf(g)]; left {
			c.removed = append(c.removed, g.File)
		}
	}
	for _, key := range configs.WorkerChanges(before.Worker, now.Worker) {
		switch key {
		case "max_jobs", "log.level":
			c.worker = append(c.worker, key)
		default:
			c.restart = append(c.restart, key)
		}
	}
	return c
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// LogLevel reads a level that the configuration has checked.
func LogLevel(text string) (level slog.Level) {
	if err := level.UnmarshalText([]byte(text)); err != nil {
		return slog.LevelInfo
	}
	return level
}

// pause waits for d, and says whether ctx lasted that long.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
