package steps

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.org/usher/host/hosttest"
)

// inNamespace is set for the copy of the test that runs in a network namespace of its own.
const inNamespace = "USHER_TEST_IN_NAMESPACE"

// TestArrivals: connections that come and go between two samples are seen by the
// host's counter, which is per network namespace: here nobody else moves it.
func TestArrivals(t *testing.T) {
	t.Parallel()
	if !enterNamespace(t) {
		return
	}
	wait := func(background int, p uint16) WaitConnections {
		return WaitConnections{
			Ports: []uint16{p}, ClearChecks: 2, Every: 200 * time.Millisecond, QuietFor: time.Second,
			Background: background, Timeout: 80 * time.Second,
		}
	}
	service, probed := fleeting(t, "127.0.0.1:0"), fleeting(t, "127.0.0.2:0")
	path := toolbox(t, "awk", "sleep", "sh", "ss")
	withoutNFT(t, path)

	if o := watch(t, wait(0, service), sh, path); o.code != exitDrained {
		t.Errorf("silence: want drained, got %v", o)
	}

	stop := probe(t, at(netip.MustParseAddr("127.0.0.2"), probed))
	if o := watch(t, wait(5, service), sh, path); o.code != exitDrained {
		t.Errorf("probes within the background: want drained, got %v", o)
	}
	stop()

	// during has n connections to an address before each pause between two polls.
	during := func(w WaitConnections, address string, p uint16, n int, tools ...string) outcome {
		dir := toolbox(t, tools...)
		withoutNFT(t, dir)
		between(t, dir, func() { visit(t, at(netip.MustParseAddr(address), p), n, reset) })
		return watch(t, w, sh, dir)
	}
	short := func(background int) WaitConnections { return lasting(wait(background, service), 3*time.Second) }
	// The first poll has nothing to compare with, and a slow machine may come to no other.
	arriving := func(o outcome, n int) bool {
		return o.code == exitDeadline && (o.Polls < 2 || o.Arriving && o.PassiveOpens >= n)
	}
	if o := during(short(0), "127.0.0.2", probed, 1, "awk", "sh", "ss"); !arriving(o, 1) {
		t.Errorf("probes without a background: want the deadline for arrivals, got %v", o)
	}
	// So many that they are more than 5 a second even where polls take seconds.
	const many = 100
	if o := during(short(5), "127.0.0.1", service, many, "awk", "sh", "ss"); !arriving(o, many) {
		t.Errorf("a storm: want the deadline for arrivals, got %v", o)
	}
	if o := during(short(5), "127.0.0.1", service, many, "awk", "sh"); !arriving(o, many) {
		t.Errorf("a storm, without ss: want the deadline for arrivals, got %v", o)
	}
	w := wait(5, service)
	w.Until = UntilZero
	if o := during(w, "127.0.0.1", service, many, "awk", "sh", "ss"); o.code != exitDrained {
		t.Errorf("a storm, until zero: the classic rule is blind to it, got %v", o)
	}

	if o := watch(t, wait(5, service), sh, path); o.code != exitDrained {
		t.Errorf("after the storm: want drained, got %v", o)
	}
}

// probe makes a short connection twice a second at most, as a balancer's health check does.
func probe(t *testing.T, address string) (stop func()) {
	t.Helper()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				return
			case <-tick.C:
				visit(t, address, 1, reset)
			}
		}
	})
	stop = sync.OnceFunc(func() { close(done); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// fleeting is a service whose clients close first, with a reset: nothing of a connection
// is left to sample.
func fleeting(t *testing.T, address string) uint16 {
	return serve(t, address, func(c net.Conn) { _, _ = c.Read(make([]byte, 1)); c.Close() }).port
}

// withoutNFT has the host of a toolbox refuse what is asked of nft.
func withoutNFT(t *testing.T, dir string) {
	t.Helper()
	hosttest.Program(t, dir, "nft", "#!/bin/sh\nexit 1\n")
}

// TestArrivalsOfProbes: connections from excluded networks are in the host's counter, but they
// are no arrivals: neither where they are seen afterwards, nor where nftables counts the others.
func TestArrivalsOfProbes(t *testing.T) {
	t.Parallel()
	if !enterNamespace(t) {
		return
	}
	lasting4, lasting6 := hurried(t, "127.0.0.1:0"), hurried(t, "[::1]:0")
	wait := func(p ...uint16) WaitConnections {
		return WaitConnections{
			Ports: p, Exclude: []netip.Prefix{netip.MustParsePrefix("127.0.0.8/29"), netip.MustParsePrefix("::1/128")},
			ClearChecks: 2, Every: 200 * time.Millisecond, QuietFor: time.Second, Timeout: 80 * time.Second,
		}
	}
	from := func(source, address string, n int, use func(*net.TCPConn)) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		for range n {
			c, err := d.Dial("tcp", address)
			if err != nil {
				t.Errorf("a short connection: %v", err)
				return
			}
			use(c.(*net.TCPConn))
			c.Close()
		}
	}
	service := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), lasting4).String()
	service6 := netip.AddrPortFrom(netip.IPv6Loopback(), lasting6).String()

	// Closed by the service first, as after an HTTP/1.0 check, each is seen in TIME_WAIT.
	for _, tools := range [][]string{{"awk", "sh", "ss"}, {"awk", "sh"}} {
		dir := toolbox(t, tools...)
		withoutNFT(t, dir)
		between(t, dir, func() { from("127.0.0.9", service, 8, whole); from("::1", service6, 8, whole) })
		if o := watch(t, wait(lasting4, lasting6), sh, dir); o.code != exitDrained || o.Counter != "passive_opens" || o.New != 0 {
			t.Errorf("%v: probes that are seen: want drained, got %v", tools, o)
		}
		// Beside as many others that are not seen.
		dir = toolbox(t, tools...)
		withoutNFT(t, dir)
		between(t, dir, func() { from("127.0.0.9", service, 8, whole); from("127.0.0.16", service, 8, reset) })
		if o := watch(t, lasting(wait(lasting4), 3*time.Second), sh, dir); o.code != exitDeadline || o.Polls > 1 && (!o.Arriving || o.PassiveOpens < 8) {
			t.Errorf("%v: others beside probes: want the deadline for arrivals, got %v", tools, o)
		}
	}

	// Closed by the probe with a reset, nothing is left to see.
	short := fleeting(t, "[::]:0")
	mapped, v6 := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), short).String(), netip.AddrPortFrom(netip.IPv6Loopback(), short).String()
	probes := func() { from("127.0.0.15", mapped, 8, reset); from("::1", v6, 8, reset) }
	dir := toolbox(t, "awk", "sh", "ss")
	withoutNFT(t, dir)
	between(t, dir, probes)
	if o := watch(t, lasting(wait(short), 3*time.Second), sh, dir); o.code != exitDeadline {
		t.Errorf("probes that are not seen, without nft: want the deadline, got %v", o)
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("nft is not on this machine")
	}
	if err := exec.Command("nft", "add table inet usher_wait_999999999; add table inet usher_waiting").Run(); err != nil {
		t.Skipf("nft may do nothing here: %v", err)
	}
	for _, awk := range []string{"mawk", "gawk", "busybox"} {
		if _, err := exec.LookPath(awk); err != nil {
			continue
		}
		dir = toolbox(t, "awk="+awk, "sh", "ss")
		between(t, dir, probes)
		if o := watch(t, wait(short), sh, dir); o.code != exitDrained || o.Counter != "nft" {
			t.Errorf("%s: probes that are not seen: want drained by a count of nft, got %v", awk, o)
		}
	}
	dir = toolbox(t, "awk", "sh", "ss")
	between(t, dir, func() { probes(); from("127.0.0.16", mapped, 2, reset) })
	if o := watch(t, lasting(wait(short), 5*time.Second), sh, dir); o.code != exitDeadline || o.Polls > 5 && (o.Counter != "nft" || !o.Arriving) {
		t.Errorf("others beside probes that are not seen: want the deadline for arrivals, got %v", o)
	}
	if out, err := exec.Command("nft", "list", "tables").CombinedOutput(); err != nil || string(out) != "table inet usher_waiting\n" {
		t.Errorf("want no table left but another's, got %q, %v", out, err)
	}
}

// hurried is a service that closes first.
func hurried(t *testing.T, address string) uint16 {
	return serve(t, address, func(c net.Conn) { c.Close() }).port
}

// enterNamespace gives true in the copy of the test that runs in a network namespace of its
// own, and else starts that.
func enterNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inNamespace) == "" {
		runInNamespace(t)
		return false
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("ip: %v: %s", err, out)
	}
	return true
}

func runInNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("ip is not on this machine")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Skipf("no network namespace: %v", err)
	}
	if err != nil {
		t.Errorf("in a namespace of its own: %v\n%s", err, out)
	}
}

// TestScriptPorts: a port is no prefix of another, and a remote port is no local one.
func TestScriptPorts(t *testing.T) {
	t.Parallel()
	if !enterNamespace(t) {
		return // its ports are fixed
	}
	addr := loopback(1)
	serve(t, at(addr, 1808), nil)
	serve(t, at(addr, 18080), nil)
	away := serve(t, at(loopback(7), 1808), nil)
	connect(t, "", at(addr, 18080))
	connect(t, addr.String(), away.Addr().String())
	for _, tools := range [][]string{{"awk", "sleep", "sh", "ss"}, {"awk", "sleep", "sh"}} {
		w := quick(1808)
		w.Until, w.LocalAddress = UntilZero, addr.String()
		if o := watch(t, w, sh, toolbox(t, tools...)); o.code != exitDrained || o.Established != 0 || o.Listeners != 1 {
			t.Errorf("want nothing on 1808, got %v", o)
		}
		w.Ports = []uint16{18080}
		if o := watch(t, lasting(w, 600*time.Millisecond), sh, toolbox(t, tools...)); o.code != exitDeadline || o.Established != 1 {
			t.Errorf("want one on 18080, got %v", o)
		}
	}
}
