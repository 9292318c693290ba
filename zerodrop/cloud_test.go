package zerodrop

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"example.org/usher/simulator"
)

// The simulated cloud of every scenario.
const (
	groupID   = "asg-zerodrop0001"
	clbID     = "lb-zerodrop0001"
	queueName = "ess-lifecycle"
	region    = "cn-shenzhen"
	keyID     = "usherTESTsecretKeyId"
	keySecret = "usherTESTsecretKey"
	cloudURL  = "http://127.0.0.1:7000" // in the balancer's namespace
	// clbAddress is where the cloud's own balancer listens, in the same namespace.
	clbAddress = "127.0.0.1:7080"
	machines   = 3
)

// How a machine ends when its instance is released.
const (
	endKill   = "kill"   // kill -9 of all that runs there
	endVanish = "vanish" // its cable is pulled: no FIN, no RST
	endTerm   = "term"   // SIGTERM to the service, as an operating system shuts down
)

// cloudRole is the simulator in the balancer's namespace, with the backends' namespaces
// as its machines.
type cloudRole struct {
	// Network is the name that topology.sh got.
	Network string
	// Socket is a path: the simulator is served there too, for the test.
	Socket string
	// Tools is a folder of programs that scripts find on each machine, before all others.
	Tools string
	// Hook says that a lifecycle hook waits for usher when an instance leaves.
	Hook bool
	// Balancer says that there is a CLB, and the instances are in it.
	Balancer bool
	// End is how a machine ends.
	End string
	// Service is what runs on each machine.
	Service backendRole
}

func (r *cloudRole) scenario() simulator.Scenario {
	group := simulator.GroupConfig{ID: groupID, Name: "web", Instances: machines}
	if r.Hook {
		group.Hooks = []simulator.HookConfig{{ID: "ash-zerodrop0001", Name: "drain-on-scale-in", Transition: "scale_in", Queue: queueName}}
	}
	s := simulator.Scenario{
		Region: region,
		Queues: []simulator.QueueConfig{{Name: queueName, VisibilityTimeout: time.Minute}},
	}
	if r.Balancer {
		// Auto Scaling does not take the instances out: that is usher's step, or nobody's.
		group.ServerGroups = []simulator.MembershipConfig{{ID: clbID, Unattached: true}}
		s.Balancers = []simulator.BalancerConfig{{
			ID: clbID, Type: "clb", Listen: clbAddress, HealthCheck: simulator.HealthCheck{Path: "/", Fall: 3},
			Listeners: []simulator.ListenerConfig{{Port: 80, BackendPort: servicePort}},
		}}
	}
	s.ScalingGroups = []simulator.GroupConfig{group}
	return s
}

// run serves the cloud until ctx ends.
func (r *cloudRole) run(ctx context.Context) error {
	if err := os.Setenv("PATH", r.Tools+":"+os.Getenv("PATH")); err != nil { // scripts get it
		return err
	}
	hosts := &namespaces{role: r, of: map[string]*machine{}}
	sim, err := simulator.New(simulator.Options{AccessKeyID: keyID, AccessKeySecret: keySecret, Scenario: r.scenario(), Machines: hosts})
	if err != nil {
		return err
	}
	defer hosts.ending.Wait()
	defer sim.Close()
	address, _ := strings.CutPrefix(cloudURL, "http://")
	api, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	control, err := net.Listen("unix", r.Socket)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: sim}
	var serving sync.WaitGroup
	for _, l := range []net.Listener{api, control} {
		serving.Go(func() { server.Serve(l) })
	}
	<-ctx.Done()
	err = server.Close()
	serving.Wait()
	return err
}

// namespaces are the simulator's machines: NAME-b1, NAME-b2 and NAME-b3, in the order
// in which they are asked for.
type namespaces struct {
	role   *cloudRole
	ending sync.WaitGroup

	mu sync.Mutex // guards all below
	of map[string]*machine
}

// machine is one namespace with its service.
type machine struct {
	index   int // from 1
	name    string
	service *exec.Cmd
	held    *os.File      // the service's standard input: it ends with it
	ended   chan struct{} // closed when the service has ended, and is no zombie
}

func (n *namespaces) Start(instanceID string) (netip.AddrPort, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	index := len(n.of) + 1
	if index > machines {
		return netip.AddrPort{}, fmt.Errorf("all %d machines are taken", machines)
	}
	m := &machine{index: index, name: fmt.Sprintf("%s-b%d", n.role.Network, index)}
	service := n.role.Service
	service.Instance = instanceID
	if err := m.start(service); err != nil {
		return netip.AddrPort{}, err
	}
	n.of[instanceID] = m
	return netip.AddrPortFrom(backendAddress(index), servicePort), nil
}

// backendAddress is the address of NAME-bINDEX.
func backendAddress(index int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, 1, byte(10 + index)})
}

// start runs the service and waits until it listens.
func (m *machine) start(service backendRole) error {
	cmd, err := copyOf(m.name, role{Backend: &service})
	if err != nil {
		return err
	}
	stdin, held, err := os.Pipe()
	if err != nil {
		return err
	}
	defer stdin.Close()
	cmd.Stdin, cmd.Stderr = stdin, os.Stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return errors.Join(err, held.Close())
	}
	if err := cmd.Start(); err != nil {
		return errors.Join(err, held.Close())
	}
	m.service, m.held, m.ended = cmd, held, make(chan struct{})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		return fmt.Errorf("the service of %s does not begin: %q, %w", m.name, line, err)
	}
	go func() {
		cmd.Wait() // how it ended is told by its clients
		close(m.ended)
	}()
	return nil
}

func (n *namespaces) Stop(instanceID string) {
	n.mu.Lock()
	m := n.of[instanceID]
	n.mu.Unlock()
	if m == nil {
		return
	}
	if n.role.End == endVanish {
		run("ip", "-n", n.role.Network+"-fab", "link", "set", fmt.Sprintf("brb-b%d", m.index), "down")
	}
	if n.role.End != endTerm {
		m.kill()
		return
	}
	m.service.Process.Signal(syscall.SIGTERM)
	n.ending.Go(func() {
		rest, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		select {
		case <-m.ended:
		case <-rest.Done():
		}
		m.kill()
	})
}

// kill ends all processes of the namespace.
func (m *machine) kill() {
	out, err := exec.Command("ip", "netns", "pids", m.name).Output()
	if err != nil {
		fmt.Fprintf(os.Stderr, "list the processes of %s: %v\n", m.name, err)
	}
	for text := range strings.FieldsSeq(string(out)) {
		if pid, err := strconv.Atoi(text); err == nil {
			syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func (n *namespaces) Command(ctx context.Context, instanceID, script string) *exec.Cmd {
	n.mu.Lock()
	defer n.mu.Unlock()
	return exec.CommandContext(ctx, "ip", "netns", "exec", n.of[instanceID].name, "sh", "-c", script)
}

// run runs a program whose failure shows in what comes of the scenario.
func run(program string, args ...string) {
	if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%s %s: %v: %s\n", program, strings.Join(args, " "), err, out)
	}
}
