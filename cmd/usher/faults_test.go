package main

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/usher/worker/audit"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestConfigFaults: a folder with faults of every kind. Each has its file and line, all are
// told at once, by validate as text and as JSON, by run, and by a worker that is to reload it.
func TestConfigFaults(t *testing.T) {
	t.Parallel()
	dir := filepath.Join("testdata", "faults")
	said := usher(t, "", "validate", dir)
	file := filepath.Join(dir, "golden.txt")
	if *update {
		if err := os.WriteFile(file, []byte(said.stderr), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := readFile(t, file)
	if said.code != 2 || said.stdout != "" || said.stderr != want {
		t.Errorf("validate: exit code %d, %s\n%s\nwant:\n%s", said.code, said.stdout, said.stderr, want)
	}
	problems := strings.Split(strings.TrimSpace(want), "\n")
	if len(problems) < 20 {
		t.Errorf("%d faults, want 20 at least", len(problems))
	}

	var answer struct {
		Valid    bool
		Problems []problemJSON
	}
	said = usher(t, "", "validate", dir, "-o", "json")
	if err := json.Unmarshal([]byte(said.stdout), &answer); err != nil || answer.Valid || said.code != 2 {
		t.Fatalf("%v, exit code %d", err, said.code)
	}
	if len(answer.Problems) != len(problems) {
		t.Errorf("%d problems as JSON, want %d", len(answer.Problems), len(problems))
	}
	for _, p := range answer.Problems {
		if p.File == "" || p.Line == 0 || p.Column == 0 || p.Message == "" {
			t.Errorf("without its place: %+v", p)
		}
	}

	said = usher(t, "", "run", "--config", dir)
	if said.code != 2 || !strings.Contains(said.stderr, strings.TrimSpace(want)) {
		t.Errorf("run: exit code %d\n%s", said.code, said.stderr)
	}
}

// TestConfigFaultsOfAReload: a worker that is given the same folder tells all of it, too.
func TestConfigFaultsOfAReload(t *testing.T) {
	t.Parallel()
	c := startCloud(t, scenario(2, true))
	one, link := configFor(t, c.url, "- wait: {for: 1ms}", ""), filepath.Join(t.TempDir(), "current")
	two, err := filepath.Abs(filepath.Join("testdata", "faults"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(one, link); err != nil {
		t.Fatal(err)
	}
	w := startWorkerOn(t, nil, keys, link)
	w.awaitReady(t)
	if err := os.Symlink(two, link+".new"); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(link+".new", link); err != nil {
		t.Fatal(err)
	}
	refused := w.awaitRecords(t, 1, audit.Reloaded)[0]
	problems := strings.Split(strings.TrimSpace(readFile(t, filepath.Join("testdata", "faults", "golden.txt"))), "\n")
	if refused.Result != "refused" || !strings.HasPrefix(refused.Error, strings.Join(problems[:10], "; ")) {
		t.Errorf("recorded: %+v", refused)
	}
	w.await(t, &w.stderr, "every problem", func(text string) bool {
		return strings.Count(text, `msg="config refused" problem=`) == len(problems)
	})
	c.scaleIn(t, 1)
	c.awaitCompleted(t, 1, "CONTINUE")
}
