// Package zerodrop proves, counted by clients, that a scale-in driven by usher fails no
// request and cuts no download where the same scale-in without it does.
//
// Each scenario has network namespaces of its own (topology.sh): one of clients, one of
// the balancer, three of backends. The cloud is the simulator with those namespaces as
// its machines, so that RunCommand runs its script in the backend's namespace and a
// release ends all that runs there. The worker is the program of cmd/usher, started from
// a folder of config files. All else is this test's binary, started again in a role.
//
//	go test ./zerodrop                                          one without usher, one with it
//	go test ./zerodrop -args -usher.all                         each scenario once
//	go test ./zerodrop -timeout 2h -args -usher.repeats 5 -usher.record DIR
package zerodrop

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

var (
	whole    = flag.Bool("usher.all", false, "run every scenario, not only the first of those with and without usher")
	repeats  = flag.Int("usher.repeats", 1, "how often each scenario runs, each time in new namespaces")
	recordTo = flag.String("usher.record", "", "a folder for the record of each run; also makes the runs as long as those of the reference")
)

// atOnce is how many scenarios run side by side.
const atOnce = 3

// asRole names the variable that makes this binary one of the programs of a scenario. Its
// value is a role's JSON.
const asRole = "USHER_ZERODROP_ROLE"

// role is what a copy of this binary is to be.
type role struct {
	Backend *backendRole `json:",omitempty"`
	Cloud   *cloudRole   `json:",omitempty"`
	Clients *clientsRole `json:",omitempty"`
	Switch  *switchRole  `json:",omitempty"`
}

func TestMain(m *testing.M) {
	text, ok := os.LookupEnv(asRole)
	if !ok {
		flag.Parse()
		*whole = *whole || *repeats > 1 || *recordTo != ""
		// They wait more than they work, and would be one a core.
		flag.Set("test.parallel", fmt.Sprint(atOnce))
		code := m.Run()
		if builtIn != "" {
			os.RemoveAll(builtIn)
		}
		os.Exit(code)
	}
	var r role
	err := json.Unmarshal([]byte(text), &r)
	// Whoever started this process holds its standard input: it does not outlive them.
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	switch {
	case err != nil:
	case r.Backend != nil:
		err = r.Backend.run(ctx)
	case r.Cloud != nil:
		err = r.Cloud.run(ctx)
	case r.Clients != nil:
		err = r.Clients.run(ctx)
	case r.Switch != nil:
		err = r.Switch.run(ctx)
	default:
		err = fmt.Errorf("no role in %s", text)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// inside is a command in a network namespace. ip becomes the program: the process id, and
// so its signals, are the program's.
func inside(namespace, program string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", namespace, program}, args...)...)
}

// copyOf is this binary in a namespace, in a role.
func copyOf(namespace string, r role) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	text, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("write a role: %w", err)
	}
	cmd := inside(namespace, self)
	// Under the race detector a process would sleep for a second before it ends.
	cmd.Env = append(os.Environ(), asRole+"="+string(text), "GORACE=atexit_sleep_ms=0")
	return cmd, nil
}

// builtIn is the folder of the program that builtUsher made, removed by TestMain.
var builtIn string

// builtUsher builds the program once.
var builtUsher = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "usher-zerodrop-")
	if err != nil {
		return "", err
	}
	builtIn = dir
	program := filepath.Join(dir, "usher")
	if out, err := exec.Command("go", "build", "-o", program, "../cmd/usher").CombinedOutput(); err != nil {
		return "", fmt.Errorf("build usher: %w\n%s", err, out)
	}
	return program, nil
})
