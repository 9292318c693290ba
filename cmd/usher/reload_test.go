package main

import (
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"example.org/usher/simulator"
	"example.org/usher/worker/audit"
)

// replaceFile writes a file as careful programs do: beside it, and renamed over it.
func replaceFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(name+".new", name); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// awaitResult waits until n actions have been ended so.
func (c *cloud) awaitResult(t *testing.T, n int, result string) {
	t.Helper()
	until(t, result, func() bool {
		return len(slices.DeleteFunc(c.state(t).Actions, func(a simulator.ActionState) bool { return a.EndedBy != "call" || a.Result != result })) == n
	})
}

// TestReload: changed files are taken over by themselves and at SIGHUP, bad ones are
// refused so that it is seen, and the worker works on.
func TestReload(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(6, true))
	dir := configFor(t, c.url, "- wait: {for: 1ms}", "")
	w := startWorkerOn(t, nil, keys, dir)
	w.awaitReady(t)
	file := filepath.Join(dir, "web.yaml")
	good := readFile(t, file)

	replaceFile(t, file, strings.Replace(good, "5m", "9h", 1))
	refused := w.awaitRecords(t, 1, audit.Reloaded)[0]
	if refused.Result != "refused" || refused.Error != "web.yaml:8: hooks[0].deadline: at most 6h on ESS, got 9h" {
		t.Errorf("recorded: %+v", refused)
	}
	w.await(t, &w.stderr, "what is wrong", func(text string) bool {
		return strings.Contains(text, `level=ERROR msg="config refused" problem="web.yaml:8: hooks[0].deadline`)
	})
	status, text := fetch(t, newRequest(t, http.MethodGet, "http://"+w.address+"/readyz", ""))
	if status != http.StatusOK || !strings.HasPrefix(text, "ok\nthe config on disk was refused at ") {
		t.Errorf("/readyz: %d %s", status, text)
	}
	c.scaleIn(t, 1)
	c.awaitResult(t, 1, "CONTINUE")
	// Asked for by hand it is refused again.
	w.signal(t, syscall.SIGHUP)
	w.awaitRecords(t, 2, audit.Reloaded)

	replaceFile(t, file, strings.Replace(good, "on_failure", "on_success: ROLLBACK\n    on_failure", 1))
	now := w.awaitRecords(t, 3, audit.Reloaded)[2]
	if now.Result != "ok" || now.Reason != "changed: web.yaml" {
		t.Errorf("recorded: %+v", now)
	}
	c.scaleIn(t, 1)
	c.awaitResult(t, 1, "ROLLBACK")
	if status, text := fetch(t, newRequest(t, http.MethodGet, "http://"+w.address+"/readyz", "")); status != http.StatusOK || text != "ok\n" {
		t.Errorf("/readyz: %d %s", status, text)
	}

	// The level of the log is of those keys that take effect at once.
	replaceFile(t, filepath.Join(dir, "usher.yaml"), strings.Replace(readFile(t, filepath.Join(dir, "usher.yaml")), "debug", "error", 1))
	now = w.awaitRecords(t, 4, audit.Reloaded)[3]
	if now.Result != "ok" || now.Reason != "usher.yaml: log.level" {
		t.Errorf("recorded: %+v", now)
	}
	w.signal(t, syscall.SIGTERM)
	w.wantExit(t)
	if strings.Contains(w.stderr.String(), "msg=stopped") {
		t.Error("the log says at level error what is only information")
	}
}

// TestReloadOfAConfigMap: Kubernetes keeps the files of a ConfigMap in a folder of their
// own, and changes them all by renaming the one link that leads there.
func TestReloadOfAConfigMap(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(6, true))
	made := configFor(t, c.url, "- wait: {for: 1ms}", "")
	dir := t.TempDir()
	files := map[string]string{}
	for _, name := range []string{"web.yaml", "usher.yaml"} {
		files[name] = readFile(t, filepath.Join(made, name))
	}
	version := func(name string, files map[string]string) {
		t.Helper()
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		for file, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name, file), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(name, filepath.Join(dir, "..data_tmp")); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")); err != nil {
			t.Fatal(err)
		}
	}
	version("..1", files)
	for file := range files {
		if err := os.Symlink(filepath.Join("..data", file), filepath.Join(dir, file)); err != nil {
			t.Fatal(err)
		}
	}
	w := startWorkerOn(t, nil, keys, dir)
	w.awaitReady(t)

	next := maps.Clone(files)
	next["web.yaml"] = strings.Replace(files["web.yaml"], "on_failure", "on_success: ROLLBACK\n    on_failure", 1)
	version("..2", next)
	if err := os.RemoveAll(filepath.Join(dir, "..1")); err != nil {
		t.Fatal(err)
	}
	now := w.awaitRecords(t, 1, audit.Reloaded)[0]
	if now.Result != "ok" || now.Reason != "changed: web.yaml" {
		t.Errorf("recorded: %+v", now)
	}
	c.scaleIn(t, 1)
	c.awaitCompleted(t, 1, "ROLLBACK")
	w.signal(t, syscall.SIGTERM)
	w.wantExit(t)
}

// TestReloadOfAReplacedFolder: the folder is a link, which leads elsewhere after a
// deployment.
func TestReloadOfAReplacedFolder(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(6, true))
	one, two := configFor(t, c.url, "- wait: {for: 1ms}", ""), configFor(t, c.url, "- wait: {for: 2ms}", "")
	dir := filepath.Join(t.TempDir(), "current")
	if err := os.Symlink(one, dir); err != nil {
		t.Fatal(err)
	}
	w := startWorkerOn(t, nil, keys, dir)
	w.awaitReady(t)
	if err := os.Symlink(two, dir+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(dir+".new", dir); err != nil {
		t.Fatal(err)
	}
	w.awaitRecords(t, 1, audit.Reloaded)
	// What is changed there from now on is seen, too.
	replaceFile(t, filepath.Join(two, "web.yaml"), strings.Replace(readFile(t, filepath.Join(two, "web.yaml")), "2ms", "3ms", 1))
	records := w.awaitRecords(t, 2, audit.Reloaded)
	if slices.ContainsFunc(records, func(r audit.Record) bool { return r.Result != "ok" || r.Reason != "changed: web.yaml" }) {
		t.Errorf("recorded: %+v", records)
	}
	w.signal(t, syscall.SIGTERM)
	w.wantExit(t)
}
