package configs

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const goodGroup = `provider: alibaba
region: cn-shenzhen
scaling_group: asg-wz9example0001
queue: {name: ess-lifecycle, endpoint: "https://1234567890123456.mns.cn-shenzhen.aliyuncs.com"}
hooks:
  - transition: scale_in
    deadline: 30m
    steps: []
`

const goodAWS = `provider: aws
region: eu-west-1
scaling_group: web-asg
queue: {name: drain-q}
hooks:
  - transition: scale_in
    deadline: 30m
    steps: []
`

// folder makes a folder of files, given as name and content by turns.
func folder(t *testing.T, files ...string) string {
	t.Helper()
	dir := t.TempDir()
	for i := 0; i < len(files); i += 2 {
		if err := os.WriteFile(filepath.Join(dir, files[i]), []byte(files[i+1]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// golden compares the problems of dir with the file, and holds what is true of every problem.
func golden(t *testing.T, dir, file string) {
	t.Helper()
	c, err := Load(dir, nil)
	problems, ok := errors.AsType[Errors](err)
	if !ok || c != nil {
		t.Fatalf("Load = %v, %v, want Errors alone", c, err)
	}
	for _, p := range problems {
		if p.File == "" || p.Message == "" || strings.ContainsAny(p.String(), "\n\r") {
			t.Errorf("problem %+v: want a file and a message on one line", p)
		}
	}
	got := strings.ReplaceAll(problems.Error(), dir, "DIR") + "\n"
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("got:\n%swant:\n%s", got, want)
	}
}

// each runs a test for each file or folder that the pattern finds.
func each(t *testing.T, pattern string, test func(t *testing.T, path string)) {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %v, %v", pattern, paths, err)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			t.Parallel()
			test(t, path)
		})
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestBadGroup(t *testing.T) {
	t.Parallel()
	each(t, "testdata/group/*.yaml", func(t *testing.T, path string) {
		dir := folder(t, "web.yaml", content(t, path))
		golden(t, dir, strings.TrimSuffix(path, ".yaml")+".golden")
	})
}

func TestBadWorker(t *testing.T) {
	t.Parallel()
	each(t, "testdata/worker/*.yaml", func(t *testing.T, path string) {
		dir := folder(t, WorkerFile, content(t, path), "web.yaml", goodGroup)
		golden(t, dir, strings.TrimSuffix(path, ".yaml")+".golden")
	})
}

func TestBadFolder(t *testing.T) {
	t.Parallel()
	each(t, "testdata/folder/*", func(t *testing.T, path string) {
		golden(t, path, filepath.Join(path, "golden.txt"))
	})
}
