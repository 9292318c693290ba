package simulator

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"
)

// closet is machines that are servers of this process.
type closet struct {
	mu      sync.Mutex // guards all below
	running map[string]*httptest.Server
	stopped []string
	full    bool
}

func (c *closet) Start(id string) (netip.AddrPort, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.full {
		return netip.AddrPort{}, fmt.Errorf("no place for %s", id)
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, "machine of ", id) }))
	c.running[id] = s
	return s.Listener.Addr().(*net.TCPAddr).AddrPort(), nil
}

func (c *closet) Stop(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running[id].CloseClientConnections()
	c.running[id].Close()
	c.stopped = append(c.stopped, id)
}

func (c *closet) Command(ctx context.Context, id, script string) *exec.Cmd {
	return exec.CommandContext(ctx, "sh", "-c", "echo on "+id+"; "+script)
}

func (c *closet) ended() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.stopped, " ")
}

// TestMachines: the instances are the machines, to the clients, to Cloud Assistant and at
// their end, which each has once.
func TestMachines(t *testing.T) {
	t.Parallel()
	c := &closet{running: map[string]*httptest.Server{}}
	sc := oneGroup(2)
	sc.Balancers = []BalancerConfig{{ID: "lb-1"}}
	sc.ScalingGroups[0].Balancers = []string{"lb-1"}
	w := start(t, Options{Scenario: sc, Machines: c})

	ins := w.State().Groups[0].Instances
	for _, in := range ins {
		address := fmt.Sprintf("%s:%d", in.Address, in.Port)
		if want := c.running[in.ID].Listener.Addr().String(); address != want {
			t.Errorf("%s is at %s, want its machine's %s", in.ID, address, want)
		}
	}
	r := w.ended(w.run(ins[1].ID, "echo $USHER_SIMULATOR_INSTANCE; exit 3"))
	wantResult(t, r, "Failed", "Failed", "ExitCodeNonzero", 3, "on "+ins[1].ID+"\n"+ins[1].ID+"\n")

	limit := time.Now().Add(20 * time.Second)
	for !w.State().Balancers[0].Members[0].Healthy && time.Now().Before(limit) {
		<-time.NewTimer(10 * time.Millisecond).C
	}
	res, err := w.http.Get("http://" + w.State().Balancers[0].Address)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if body, err := io.ReadAll(res.Body); err != nil || !strings.HasPrefix(string(body), "machine of ") {
		t.Errorf("the balancer's answer is %q, %v, want a machine's", body, err)
	}

	if _, err := w.ScaleIn(sc.ScalingGroups[0].ID, 1); err != nil {
		t.Fatal(err)
	}
	if got := c.ended(); got != ins[0].ID {
		t.Errorf("stopped %q, want the oldest instance's machine, %s", got, ins[0].ID)
	}
	c.full = true
	if _, err := w.ScaleOut(sc.ScalingGroups[0].ID, 1); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, want := c.ended(), ins[0].ID+" "+ins[1].ID; got != want {
		t.Errorf("stopped %q, want each machine that was started, once: %q", got, want)
	}
}

func TestMachinesAreEnough(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]Options{
		"exec": {Exec: true}, "no servers": {NoServers: true},
		"commands": {Commands: func(string, string) CommandOutcome { return CommandOutcome{} }},
	} {
		o.AccessKeyID, o.AccessKeySecret, o.Machines = "id", "secret", &closet{}
		if _, err := New(o); err == nil || !strings.Contains(err.Error(), "leave out") {
			t.Errorf("Machines and %s: error %v", name, err)
		}
	}
}

// TestMachineDoesNotStart: a simulator that cannot have its instances is none.
func TestMachineDoesNotStart(t *testing.T) {
	t.Parallel()
	_, err := New(Options{AccessKeyID: "id", AccessKeySecret: "secret", Scenario: oneGroup(1), Machines: &closet{full: true}})
	if err == nil || !strings.Contains(err.Error(), "no place for i-") {
		t.Errorf("error %v, want the machine's own", err)
	}
}
