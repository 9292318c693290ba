package worker_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

var runBreaks = flag.Bool("usher.breaks", false, "let random schedules find each deliberate break")

const (
	// breakSchedules is within how many schedules a break must be found.
	breakSchedules = 2000
	// breakTimeout is how long that may take on a busy machine.
	breakTimeout = 5 * time.Minute
)

// A break is a change of the source that breaks a rule: see testdata/breaks. With
// -usher.breaks each is compiled in, and random schedules must complain about its rule.
// Without, each must at least still be what it was: its text there once, its result Go
// that compiles.
//
//	go test ./worker -run TestBreaks -args -usher.breaks
func TestBreaks(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/breaks/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no breaks: %v", err)
	}
	exports := sync.OnceValues(func() (map[string]string, error) { return listExports(context.WithoutCancel(t.Context())) })
	rules := map[string]bool{}
	for _, file := range files {
		b := readBreak(t, file)
		for _, rule := range b.rules {
			rules[rule] = true
		}
		t.Run(b.name, func(t *testing.T) {
			t.Parallel()
			patched := b.apply(t)
			exports, err := exports()
			if err != nil {
				t.Fatal(err)
			}
			typeCheck(t, patched, exports)
			if *runBreaks {
				b.find(t, patched)
			}
		})
	}
	for n := range 11 {
		if rule := fmt.Sprintf("rule %d", n+1); !rules[rule] {
			t.Errorf("nothing breaks %s", rule)
		}
	}
}

// deliberate is one break.
type deliberate struct {
	name  string
	rules []string // any of which must be what schedules complain about
	test  string   // that runs them: those of the cloud that the break shows on
	why   string
	edits []edit
}

type edit struct{ file, old, new string } // file counts from the module's root

var editHead = regexp.MustCompile(`(?m)^-- (\S+): old\n`)

// readBreak reads the rules, a line that says what is broken, and the edits. Behind the rules
// may stand that it shows on AWS.
func readBreak(t *testing.T, file string) deliberate {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	text := string(data)
	heads := editHead.FindAllStringSubmatchIndex(text, -1)
	if len(heads) == 0 {
		t.Fatalf("%s has no edit", file)
	}
	rules, why, _ := strings.Cut(text[:heads[0][0]], "\n")
	b := deliberate{name: strings.TrimSuffix(filepath.Base(file), ".txt"), test: "TestRandomSchedules", why: strings.TrimSpace(why)}
	rules, onAWS := strings.CutSuffix(rules, " on AWS")
	if b.rules = strings.Split(rules, ", "); onAWS {
		b.test += "OnAWS"
	}
	for i, head := range heads {
		end := len(text)
		if i+1 < len(heads) {
			end = heads[i+1][0]
		}
		before, after, ok := strings.Cut(text[head[1]:end], "\n-- new\n")
		if !ok {
			t.Fatalf("%s: an edit has no new text", file)
		}
		b.edits = append(b.edits, edit{text[head[2]:head[3]], before, strings.TrimSuffix(after, "\n")})
	}
	return b
}

// apply gives the sources that the break changes, by their path.
func (b deliberate) apply(t *testing.T) map[string]string {
	t.Helper()
	patched := map[string]string{}
	for _, e := range b.edits {
		path, err := filepath.Abs(filepath.Join("..", filepath.FromSlash(e.file)))
		if err != nil {
			t.Fatal(err)
		}
		text, ok := patched[path]
		if !ok {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			text = string(data)
		}
		if n := strings.Count(text, e.old); n != 1 {
			t.Fatalf("%s has this %d times, want it once:\n%s", e.file, n, e.old)
		}
		patched[path] = strings.Replace(text, e.old, e.new, 1)
	}
	return patched
}

// listExports gives the files with what each package that the worker needs exports.
func listExports(ctx context.Context) (map[string]string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", ".").Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	exports := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		exports[path] = file
	}
	return exports, nil
}

// typeCheck checks the packages that the patched files are in.
func typeCheck(t *testing.T, patched map[string]string, exports map[string]string) {
	t.Helper()
	dirs := map[string]bool{}
	for path := range patched {
		dirs[filepath.Dir(path)] = true
	}
	for dir := range dirs {
		set := token.NewFileSet()
		paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		var files []*ast.File
		for _, path := range paths {
			if strings.HasSuffix(path, "_test.go") {
				continue
			}
			var source any
			if text, ok := patched[path]; ok {
				source = text
			}
			f, err := parser.ParseFile(set, path, source, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			files = append(files, f)
		}
		config := types.Config{Importer: importer.ForCompiler(set, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })}
		if _, err := config.Check(filepath.Base(dir), set, files, nil); err != nil {
			t.Fatal(err)
		}
	}
}

// building admits one build at a time, which keeps all processors busy by itself.
var building sync.Mutex

// find compiles the break in and lets schedules find it.
func (b deliberate) find(t *testing.T, patched map[string]string) {
	dir := t.TempDir()
	replace := map[string]string{}
	for i, path := range slices.Sorted(maps.Keys(patched)) {
		replace[path] = filepath.Join(dir, fmt.Sprintf("%d.go", i))
		if err := os.WriteFile(replace[path], []byte(patched[path]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "broken.test")
	building.Lock()
	out, err := exec.CommandContext(t.Context(), "go", "test", "-c", "-vet=off", "-gcflags=-N -l", "-ldflags=-s -w", "-overlay", filepath.Join(dir, "overlay.json"), "-o", binary, ".").CombinedOutput()
	building.Unlock()
	if err != nil {
		t.Fatalf("go test -c: %v\n%s", err, out)
	}

	ctx, cancel := context.WithTimeout(t.Context(), breakTimeout)
	defer cancel()
	begin := time.Now()
	child := exec.CommandContext(ctx, binary, "-test.run=^"+b.test+"$", "-test.v",
		fmt.Sprintf("-usher.schedules=%d", breakSchedules), "-usher.until="+strings.Join(b.rules, ","))
	out, err = child.CombinedOutput()
	took := time.Since(begin)
	if _, failed := errors.AsType[*exec.ExitError](err); !failed || ctx.Err() != nil {
		t.Fatalf("not found in %v (%v): %s", took, err, b.why)
	}
	found := complaints(out, `(`+strings.Join(b.rules, "|")+`): .*`)
	if len(found) == 0 {
		t.Fatalf("%s\nis not found as breaking %s, but %v:\n%s\n%s", b.why, strings.Join(b.rules, " or "), err, strings.Join(complaints(out, `.*`), "\n"), out[max(0, len(out)-4000):])
	}
	schedules := regexp.MustCompile(`(\d+) schedules from seed`).FindStringSubmatch(string(out))
	t.Logf("%s Found in schedule %s, in %v: %.200s", b.why, slices.Concat(schedules, []string{"?", "?"})[1], took.Round(time.Millisecond), found[0])
}

// complaints are the first of those that out has, without what comes before the rule.
func complaints(out []byte, pattern string) []string {
	var list []string
	for _, m := range regexp.MustCompile(`_test\.go:\d+: [0-9:.]{12} (`+pattern+`)`).FindAllSubmatch(out, 10) {
		list = append(list, string(m[1]))
	}
	return list
}
