package app

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"
)

// lookEvery is how often the folder is looked at without being told of a change: where
// the kernel tells of none (network file systems), or the folder itself was replaced.
const lookEvery = 30 * time.Second

// watch reloads the configuration when its files change or somebody asks for it, until
// ctx ends.
func (a *App) watch(ctx context.Context) {
	if a.o.Folder == "" {
		a.obey(ctx)
		return
	}
	var events <-chan fsnotify.Event
	var failures <-chan error
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		a.log.Warn("the kernel does not tell of changes of config files, they are looked at every now and then", "every", lookEvery, "error", err)
	} else {
		defer watcher.Close()
		events, failures = watcher.Events, watcher.Errors
	}
	see := func() {
		if watcher == nil {
			return
		}
		if isLink(a.o.Folder) {
			_ = watcher.Add(filepath.Dir(filepath.Clean(a.o.Folder))) // where it is replaced
		}
		// Anew each time: the path may lead to another folder than before.
		_ = watcher.Remove(a.o.Folder)
		if err := watcher.Add(a.o.Folder); err != nil {
			a.log.Warn("can't watch the config folder, it is looked at every now and then", "folder", a.o.Folder, "every", lookEvery, "error", err)
		}
	}
	see()
	a.reload(ctx, false) // it may have changed since it was read for the start

	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	settled := time.NewTimer(0)
	settled.Stop()
	defer settled.Stop()
	var since time.Time // of the first change that was not looked at yet
	for {
		select {
		case <-ctx.Done():
			return
		case e := <-events:
			if filepath.Clean(e.Name) == filepath.Clean(a.o.Folder) {
				see()
			}
			if since.IsZero() {
				since = time.Now()
			}
			if time.Since(since) < settleMost {
				settled.Reset(settleFor)
			}
		case err := <-failures:
			a.log.Warn("changes of config files may have been missed", "error", err)
			settled.Reset(settleFor)
		case <-settled.C:
			since = time.Time{}
			a.reload(ctx, false)
		case <-tick.C:
			see()
			a.reload(ctx, false)
		case s := <-a.o.Reload:
			a.log.Info("reading the config again", "signal", s.String())
			a.reload(ctx, true)
		}
	}
}

// obey reloads when it is asked for alone.
func (a *App) obey(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.o.Reload:
			a.reload(ctx, true)
		}
	}
}

func isLink(name string) bool {
	info, err := os.Lstat(filepath.Clean(name))
	return err == nil && info.Mode()&os.ModeSymlink != 0
}
