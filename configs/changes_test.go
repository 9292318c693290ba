package configs

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// An exec step as it is read.
func TestExecStep(t *testing.T) {
	t.Parallel()
	c := load(t, nil, "web.yaml", goodGroup[:len(goodGroup)-len("[]\n")]+`
      - exec:
          command: [/bin/drain, "{{.InstanceID}}", "", "a b"]
          dir: /srv
          env: {A: "{{.Token}}", B: ""}
          inherit: [LANG]
          gone_code: 68
          timeout: 5m
      - exec: {command: [/bin/drain]}
`)
	steps := c.Groups[0].Hooks[0].Steps
	want := &ExecStep{
		Command: []string{"/bin/drain", "{{.InstanceID}}", "", "a b"}, Dir: "/srv",
		Env: map[string]string{"A": "{{.Token}}", "B": ""}, Inherit: []string{"LANG"}, GoneCode: 68,
	}
	if !reflect.DeepEqual(steps[0].Exec, want) || steps[0].Timeout != 5*time.Minute {
		t.Errorf("got %+v, want %+v", steps[0].Exec, want)
	}
	if !reflect.DeepEqual(steps[1].Exec, &ExecStep{Command: []string{"/bin/drain"}}) || steps[1].Timeout != DefaultExecTimeout {
		t.Errorf("got %+v", steps[1].Exec)
	}
}

// Every change of what Load reads changes the digest, and nothing else does.
func TestDigest(t *testing.T) {
	t.Parallel()
	dir := folder(t, "web.yaml", goodGroup, "notes.txt", "x", ".hidden.yaml", "y")
	seen := map[string]string{Digest(dir): "at first"}
	step := func(what string, changes bool, do func() error) {
		t.Helper()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		d := Digest(dir)
		if was, known := seen[d]; known == changes {
			t.Errorf("%s: changed %v (the digest is that of %q), want %v", what, !known, was, changes)
		}
		seen[d] = what
	}
	write := func(name, text string) func() error {
		return func() error { return os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600) }
	}
	step("the same again", false, write("web.yaml", goodGroup))
	step("other files", false, write("notes.txt", "z"))
	step("a hidden file", false, write(".hidden.yaml", "z"))
	step("a comment", true, write("web.yaml", goodGroup+"# why\n"))
	step("a new file", true, write("b.yml", ""))
	step("a name", true, func() error { return os.Rename(filepath.Join(dir, "b.yml"), filepath.Join(dir, "c.yml")) })
	step("without it again", false, func() error {
		return os.Rename(filepath.Join(dir, "c.yml"), filepath.Join(dir, "c.txt"))
	})
	step("a folder", true, func() error { return os.Mkdir(filepath.Join(dir, "d.yaml"), 0o700) })
	step("none", true, func() error { return os.RemoveAll(dir) })
}

// Each key of usher.yaml is looked at when configurations are compared.
func TestWorkerChanges(t *testing.T) {
	t.Parallel()
	changes := map[string]func(*Worker){
		"name": func(w *Worker) { w.Name += "x" }, "max_actions": func(w *Worker) { w.MaxActions++ }, "max_jobs": func(w *Worker) { w.MaxJobs++ },
		"max_receives": func(w *Worker) { w.MaxReceives++ }, "quarantine": func(w *Worker) { w.Quarantine.To += "x" },
		"visibility_timeout": func(w *Worker) { w.VisibilityTimeout++ }, "shutdown_grace": func(w *Worker) { w.ShutdownGrace++ },
		"reconcile.every": func(w *Worker) { w.Reconcile.Every++ }, "http": func(w *Worker) { w.HTTP += "x" },
		"log.level": func(w *Worker) { w.Log.Level += "x" }, "log.format": func(w *Worker) { w.Log.Format += "x" },
		"audit.file": func(w *Worker) { w.Audit.File += "x" }, "endpoints.sts": func(w *Worker) { w.Endpoints.STS += "x" },
		"endpoints.metadata": func(w *Worker) { w.Endpoints.Metadata += "x" },
	}
	for key, change := range changes {
		var w Worker
		change(&w)
		if got := WorkerChanges(Worker{}, w); !slices.Equal(got, []string{key}) {
			t.Errorf("%s: got %v", key, got)
		}
	}
	if got := WorkerChanges(Worker{}, Worker{}); got != nil {
		t.Errorf("nothing has changed: %v", got)
	}
	// A setting that comes later must not be forgotten here.
	for _, s := range workerSettings() {
		if key, _, _ := strings.Cut(s.key, "."); changes[s.key] == nil && changes[key] == nil {
			t.Errorf("%s is not compared", s.key)
		}
	}
}
