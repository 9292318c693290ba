package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

const module = "example.org/usher"

// mayImport is which packages of ours each of them may import. Imports go one way:
// cmd, app, the worker and what it is made of, messages. The worker knows no cloud, a
// cloud knows no worker, and the simulator shares nothing with the client that it is
// used to test.
var mayImport = map[string][]string{
	// The command builds its parts with app alone; it reads files, decodes messages and
	// asks for health by itself, for the commands that do only that.
	"cmd/usher": {"app", "app/demo", "configs", "host", "host/firewall", "messages", "web"},
	"app/demo":  {"app", "configs", "messages", "providers", "providers/alibaba", "providers/aws", "simulator", "worker/audit"},
	"app": {
		"configs", "messages", "providers", "providers/alibaba", "providers/aws", "simulator", "web",
		"worker", "worker/audit", "worker/steps",
	},
	"configs":             {"messages", "worker/placeholders", "worker/heartbeats"},
	"worker":              {"messages", "providers", "worker/audit", "worker/heartbeats"},
	"worker/steps":        {"messages", "providers", "worker/placeholders"},
	"worker/audit":        {"messages"},
	"worker/placeholders": {},
	"worker/heartbeats":   {},
	"providers":           {"messages"},
	"providers/alibaba":   {"messages", "providers", "providers/internal/gather", "providers/internal/renewal"},
	"providers/aws":       {"messages", "providers", "providers/internal/gather", "providers/internal/renewal"},
	// What clouds share that is none of the contract.
	// The suite that the tests of each provider run.
	"providers/providertest":     {"messages", "providers", "simulator"},
	"providers/internal/gather":  {},
	"providers/internal/renewal": {},
	"messages":                   {},
	"simulator":                  {},
	"host":                       {"host/firewall", "host/sockdiag"}, // knows no worker: its scripts run it
	"host/firewall":              {},
	"host/sockdiag":              {},
	"host/hosttest":              {},
	"web":                        {},
	"zerodrop/report":            {"zerodrop/load"},
	"zerodrop":                   {}, // tests alone
	"zerodrop/load":              {}, // the clients of the proof know nothing of what they prove
	"docker":                     {}, // tests alone
}

// mayUse is who may import a module of others, by the beginning of the import path.
// go-retry stands here because one layer retries; viper, because all but configs take
// plain values.
var mayUse = map[string][]string{
	"github.com/spf13/viper":                  {"configs"},
	"github.com/spf13/cobra":                  {"cmd/usher"},
	"github.com/fsnotify/fsnotify":            {"app"},
	"golang.org/x/term":                       {"cmd/usher", "app/demo"},
	"github.com/aliyun/alibaba-cloud-sdk-go/": {"providers/alibaba"},
	"github.com/aliyun/credentials-go/":       {"providers/alibaba"},
	"github.com/aws/":                         {"providers/aws"},
	"github.com/sethvargo/go-retry":           {"providers/alibaba"},
	"gopkg.in/ini.v1":                         {"providers/alibaba"},
	"go.yaml.in/yaml/v3":                      {"configs", "simulator"},
	"github.com/google/nftables":              {"host/firewall"},
	"github.com/mdlayher/netlink":             {"host/firewall"},
	"gonum.org/v1/plot":                       {"zerodrop/report"}, // no part of usher itself
}

// listed is what go list says of a package.
type listed struct {
	ImportPath                         string
	Imports, TestImports, XTestImports []string
}

func goList(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Fatalf("go list: %v\n%s", err, exit.Stderr)
	} else if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("go list: %v", err)
		}
		packages = append(packages, p)
	}
}

// wrongImport checks one import against the tables; importer and imported as go list
// writes them.
func wrongImport(importer, imported string) error {
	name := strings.TrimPrefix(importer, module+"/")
	allowed, known := mayImport[name]
	if !known {
		return fmt.Errorf("%s is a new package: give it a row in mayImport", name)
	}
	if ours, ok := strings.CutPrefix(imported, module+"/"); ok {
		if !slices.Contains(allowed, ours) {
			return fmt.Errorf("%s imports %s; it may import only %s", name, ours, strings.Join(allowed, ", "))
		}
		return nil
	}
	for prefix, users := range mayUse {
		if strings.HasPrefix(imported+"/", strings.TrimSuffix(prefix, "/")+"/") && !slices.Contains(users, name) {
			return fmt.Errorf("%s imports %s, which is for %s alone", name, imported, strings.Join(users, " and "))
		}
	}
	return nil
}

func TestImportsGoOneWay(t *testing.T) {
	t.Parallel()
	missing := maps.Clone(mayImport)
	for _, p := range goList(t, "-json=ImportPath,Imports", "./...") {
		delete(missing, strings.TrimPrefix(p.ImportPath, module+"/"))
		for _, imported := range append(p.Imports, "fmt") { // one at least, so that its row is looked for
			if err := wrongImport(p.ImportPath, imported); err != nil {
				t.Error(err)
			}
		}
	}
	for name := range missing {
		t.Errorf("mayImport has a row for %s, which does not exist", name)
	}
}

// TestWrongImports: the test above can fail.
func TestWrongImports(t *testing.T) {
	t.Parallel()
	for importer, imported := range map[string]string{
		"worker":            module + "/providers/alibaba",
		"providers/alibaba": module + "/worker",
		"simulator":         module + "/messages",
		"messages":          module + "/providers",
		"app":               "github.com/spf13/viper",
		"worker/steps":      "github.com/sethvargo/go-retry",
		"web":               "github.com/aliyun/alibaba-cloud-sdk-go/services/ess",
		"util":              "fmt",
	} {
		if wrongImport(module+"/"+importer, imported) == nil {
			t.Errorf("%s may import %s", importer, imported)
		}
	}
	if err := wrongImport(module+"/configs", "github.com/spf13/viper"); err != nil {
		t.Error(err)
	}
}

// TestSimulatorIsTestedAlone: not even its tests use the client or the decoder that
// it is used to test.
func TestSimulatorIsTestedAlone(t *testing.T) {
	t.Parallel()
	for _, p := range goList(t, "-json=ImportPath,TestImports,XTestImports", "./simulator", "./messages", "./worker/heartbeats") {
		for _, imported := range append(p.TestImports, p.XTestImports...) {
			if strings.HasPrefix(imported, module+"/") && imported != p.ImportPath {
				t.Errorf("tests of %s import %s", p.ImportPath, imported)
			}
		}
	}
}

// TestHeavyPackagesStayOut: what nothing of ours may pull in, at any distance.
// services/ecs of the Alibaba SDK alone takes as long to compile as all else, and so does
// service/ec2 of the one of AWS.
func TestHeavyPackagesStayOut(t *testing.T) {
	t.Parallel()
	packages := goList(t, "-deps", "-test", "-json=ImportPath", "./...")
	found := map[string]bool{}
	for _, p := range packages {
		path, _, _ := strings.Cut(p.ImportPath, " ") // "path [path.test]"
		found[path] = true
	}
	if found["github.com/aliyun/alibaba-cloud-sdk-go/services/ecs"] {
		t.Error("services/ecs is imported: call ECS through the SDK's CommonRequest")
	}
	if found["github.com/aws/aws-sdk-go-v2/service/ec2"] {
		t.Error("service/ec2 is imported: ask EC2 through the small client in providers/aws")
	}
	if !found["github.com/aliyun/alibaba-cloud-sdk-go/services/ess"] {
		t.Error("services/ess is not found: this test looks in the wrong place")
	}
}

// unwanted is text that a file of the project must not have: marks of unfinished work,
// and paths of the machine where it was written.
var unwanted = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X)\b|(^|[^\w./-])/wo` + `rk/`)

func TestFilesAreFinished(t *testing.T) {
	t.Parallel()
	checked := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == ".git" || d.Name() == "dist" {
				return filepath.SkipDir
			}
			return nil
		}
		if info, err := d.Info(); err != nil || !d.Type().IsRegular() || info.Size() > 1<<20 {
			return err // a binary that was built here
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !utf8.Valid(text) {
			return nil
		}
		checked++
		for i, line := range strings.Split(string(text), "\n") {
			if found := unwanted.FindString(line); found != "" {
				t.Errorf("%s:%d: %q has no place here", path, i+1, found)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if checked < 50 {
		t.Errorf("only %d files were checked", checked)
	}
	for _, text := range []string{"// TO" + "DO: later", "see /wo" + "rk/shared", "\"/wo" + "rk/main\""} {
		if !unwanted.MatchString(text) {
			t.Errorf("%q is not found", text)
		}
	}
	if unwanted.MatchString("https://example.org/wo" + "rk/ and TO" + "DOS") {
		t.Error("too much is found")
	}
}
