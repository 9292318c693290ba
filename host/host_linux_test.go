package host

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.org/usher/host/firewall"
	"example.org/usher/host/hosttest"
)

// open keeps connections from the garbage collector, which would close them.
type open struct {
	t     *testing.T
	conns []net.Conn
}

func newOpen(t *testing.T) *open {
	o := &open{t: t}
	t.Cleanup(func() {
		for _, c := range o.conns {
			c.Close()
		}
	})
	return o
}

// listener listens on an address; with deferred, a handshake is over with the first byte.
func listener(t *testing.T, address string, deferred bool) *net.TCPListener {
	t.Helper()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		if !deferred {
			return nil
		}
		var refused error
		err := c.Control(func(fd uintptr) {
			refused = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_DEFER_ACCEPT, 60)
		})
		return errors.Join(err, refused)
	}}
	l, err := lc.Listen(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// dial connects from an address.
func (o *open) dial(from, to string) *net.TCPConn {
	o.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, KeepAlive: -1}
	c, err := d.Dial("tcp", to)
	if err != nil {
		o.t.Fatal(err)
	}
	o.conns = append(o.conns, c)
	return c.(*net.TCPConn)
}

// pair connects to a listener and accepts.
func (o *open) pair(from string, l *net.TCPListener) (client, server *net.TCPConn) {
	o.t.Helper()
	ip := "127.0.0.1"
	if net.ParseIP(from).To4() == nil {
		ip = "::1"
	}
	client = o.dial(from, net.JoinHostPort(ip, fmt.Sprint(port(l))))
	server, err := l.AcceptTCP()
	if err != nil {
		o.t.Fatal(err)
	}
	o.conns = append(o.conns, server)
	return client, server
}

func port(l *net.TCPListener) uint16 { return uint16(l.Addr().(*net.TCPAddr).Port) }

// say has so many bytes go from one end and arrive at the other.
func say(t *testing.T, from, to net.Conn) {
	t.Helper()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(to, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

// script runs the worker's script on the same host, as far as it has the programs.
func script(t *testing.T, s Settings, method string) (Report, int) {
	t.Helper()
	var exclude, ports []string
	for _, p := range s.Exclude {
		exclude = append(exclude, p.String())
	}
	for _, p := range s.Ports {
		ports = append(ports, fmt.Sprint(p))
	}
	cmd := exec.CommandContext(t.Context(), "sh", "../worker/steps/wait_connections.sh")
	cmd.Env = append(os.Environ(),
		"USHER_PORTS="+strings.Join(ports, " "), "USHER_EXCLUDE="+strings.Join(exclude, " "), "USHER_UNTIL="+s.Until, "USHER_METHOD="+method,
		fmt.Sprintf("USHER_EVERY=%v", s.Every.Seconds()), fmt.Sprintf("USHER_TIMEOUT=%v", s.Timeout.Seconds()))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	var r Report
	if cmd.ProcessState == nil {
		t.Errorf("the script: %v", err)
		return r, -1
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &r); err != nil {
		t.Errorf("the script: %v: %s%s", err, out, &stderr)
	}
	return r, cmd.ProcessState.ExitCode()
}

// TestCounts: native and script count the same, and that is the truth, on connections in
// all states, of IPv4, mapped and IPv6, from clients and from excluded networks.
func TestCounts(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	if _, err := exec.LookPath("ss"); err != nil {
		t.Skip("ss is not on this machine")
	}
	o := newOpen(t)
	plain, dual, deferred := listener(t, "127.0.0.1:0", false), listener(t, ":0", false), listener(t, ":0", true)
	other := listener(t, "127.0.0.1:0", false)
	exclude := []netip.Prefix{netip.MustParsePrefix("127.0.1.0/30"), netip.MustParsePrefix("::2/127")}
	if out, err := exec.CommandContext(t.Context(), "ip", "addr", "add", "::2/128", "dev", "lo", "nodad").CombinedOutput(); err != nil {
		t.Skipf("ip: %v: %s", err, out)
	}
	clients := []struct {
		from string
		to   *net.TCPListener
	}{{"127.0.0.1", plain}, {"127.0.0.1", dual}, {"::1", dual}, {"127.0.1.4", plain}, {"127.0.1.4", dual}}
	probes := []struct {
		from string
		to   *net.TCPListener
	}{{"127.0.1.3", plain}, {"127.0.1.3", dual}, {"::2", dual}}

	// For each client: an idle one, one that was never used, a request without an answer, an
	// unread one, one that the client has half closed; and some that are over.
	var established, live, busy int
	for _, c := range clients {
		client, server := o.pair(c.from, c.to)
		say(t, client, server)
		<-time.After(20 * time.Millisecond) // a later tick of the kernel's clock
		say(t, server, client)
		o.pair(c.from, c.to)
		client, server = o.pair(c.from, c.to)
		say(t, client, server)
		client, _ = o.pair(c.from, c.to)
		if _, err := client.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		established, live, busy = established+4, live+4, busy+2

		client, server = o.pair(c.from, c.to)
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := server.Read(make([]byte, 1)); err != io.EOF {
			t.Fatal(err)
		}
		live, busy = live+1, busy+1

		client, server = o.pair(c.from, c.to) // TIME_WAIT
		server.Close()
		_, _ = client.Read(make([]byte, 1))
		client.Close()
		client, server = o.pair(c.from, c.to) // FIN_WAIT2
		if err := server.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		_, _ = client.Read(make([]byte, 1))
	}
	for _, from := range []string{"127.0.0.1", "::1"} { // half-open
		ip := from
		o.dial(from, net.JoinHostPort(ip, fmt.Sprint(port(deferred))))
		live, busy = live+1, busy+1
	}
	for _, p := range probes {
		client, server := o.pair(p.from, p.to)
		say(t, client, server)
		client, _ = o.pair(p.from, p.to)
		if err := client.CloseWrite(); err != nil {
			t.Fatal(err)
		}
	}
	o.dial("127.0.1.3", fmt.Sprintf("127.0.0.1:%d", port(deferred)))
	client, server := o.pair("127.0.0.1", other)
	say(t, client, server)

	s := settings(func(s *Settings) {
		s.Ports, s.Exclude, s.Timeout = []uint16{port(plain), port(dual), port(deferred)}, exclude, 5*time.Second
	})
	check := func(name string, r Report, established, live, busy int) {
		t.Helper()
		if r.Drained || r.Established != established || r.Live != live || r.Busy != busy || r.Listeners != 3 || len(r.Left) != 10 {
			t.Errorf("%s: want %d established, %d live, %d busy, got %+v", name, established, live, busy, r)
		}
	}
	// What has bytes in the last 3 s is busy: on a slow machine a poll of before that could be
	// the last one that the script has the time for.
	<-time.After(3200 * time.Millisecond)
	var wg sync.WaitGroup
	for _, until := range []string{UntilQuiet, UntilZero} {
		s := s
		s.Until = until
		wg.Go(func() {
			r, err := Wait(context.Background(), s)
			if err != nil {
				t.Error(err)
			}
			check("native, "+until, r, established, live, busy)
			if want := map[string]string{UntilQuiet: ArrivalsSYN, UntilZero: ArrivalsSockets}[until]; r.Arrivals != want || r.Arriving {
				t.Errorf("arrivals: got %q, %v; want %q", r.Arrivals, r.Arriving, want)
			}
		})
		wg.Go(func() {
			r, code := script(t, s, "ss")
			if code != 75 {
				t.Errorf("the script ends with %d", code)
			}
			check("ss, "+until, r, established, live, busy)
		})
		wg.Go(func() {
			r, _ := script(t, s, "proc")
			check("/proc, "+until, r, established, live, live) // it can't tell who is busy
		})
	}
	wg.Wait()
	s.Local = netip.MustParseAddr("::1")
	r, err := Wait(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if r.Established != 4 || r.Live != 6 || r.Busy != 4 || r.Listeners != 2 {
		t.Errorf("to ::1 alone: got %+v", r)
	}
}

// TestArrivalsBetweenPolls: connections that no poll sees are traffic for quiet, and
// nothing for zero.
func TestArrivalsBetweenPolls(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	l := listener(t, "127.0.0.1:0", false)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1))
			c.Close()
		}
	})
	defer l.Close()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var visits int
	wg.Go(func() {
		for ; ctx.Err() == nil; visits++ {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			// With a reset, nothing of the connection is left.
			_ = c.(*net.TCPConn).SetLinger(0)
			c.Close()
			<-time.After(20 * time.Millisecond)
		}
	})
	s := settings(func(s *Settings) {
		s.Ports, s.Every, s.QuietFor, s.Checks, s.Timeout = []uint16{port(l)}, 200*time.Millisecond, 3*time.Second, 2, 8*time.Second
	})
	r, err := Wait(ctx, s)
	if err != nil || r.Drained || !r.Arriving || r.PassiveOpens == 0 || r.Arrivals != ArrivalsSYN {
		t.Errorf("quiet: got %+v, %v", r, err)
	}
	s.Until, s.Timeout = UntilZero, 20*time.Second
	if r, err := Wait(ctx, s); err != nil || !r.Drained {
		t.Errorf("zero: got %+v, %v", r, err)
	}
	stop()
	s.Until = UntilQuiet
	if r, err := Wait(t.Context(), s); err != nil || !r.Drained || r.Listeners != 1 {
		t.Errorf("silence: got %+v, %v", r, err)
	}
}

// TestDrainRefuses: clients behind the probes' networks are seen by what they open, what
// they send and what they keep open; probes are not taken for them.
func TestDrainRefuses(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	l := listener(t, ":0", false)
	s := DrainSettings{
		Ports: []uint16{port(l)}, Probes: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32"), netip.MustParsePrefix("::1/128")},
		Expires: time.Hour, Watch: time.Second, ProbeRate: 1,
	}
	shut := func() bool {
		t.Helper()
		st, err := Status()
		if err != nil {
			t.Fatal(err)
		}
		return st.ProbePorts != ""
	}
	o := newOpen(t)
	for range 2 {
		o.pair("127.0.0.2", l)
		o.pair("127.0.0.1", l) // nobody's business
	}
	r, err := Drain(t.Context(), s)
	if err != nil || r.Seen == nil || r.Connections != 2 || r.Lasting != 2 || !shut() {
		t.Fatalf("two that last: got %+v, %v", r, err)
	}
	if r, err := Undo(); err != nil || r.Removed != 1 || shut() {
		t.Fatalf("undo: got %+v, %v", r, err)
	}
	o.pair("::1", l)
	if r, err := Drain(t.Context(), s); !errors.Is(err, ErrTraffic) || r.Lasting != 3 || shut() {
		t.Errorf("three that last: got %+v, %v", r, err)
	}
	for _, c := range o.conns {
		c.Close()
	}
	// during has something happen again and again while a drain watches.
	during := func(act func()) (DrainReport, error) {
		done := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					act()
					<-time.After(time.Millisecond) // or a fast machine runs out of ports: each is in TIME_WAIT for a minute
				}
			}
		})
		defer wg.Wait()
		defer close(done)
		return Drain(t.Context(), s)
	}
	client, server := o.pair("127.0.0.2", l)
	if r, err := during(func() { say(t, client, server) }); !errors.Is(err, ErrTraffic) || r.Packets < 6 || shut() {
		t.Errorf("bytes on an open connection: got %+v, %v", r, err)
	}
	client.Close()
	server.Close()
	if r, err := during(func() {
		client, server := o.pair("127.0.0.2", l)
		client.Close()
		server.Close()
	}); !errors.Is(err, ErrTraffic) || r.SYNs <= 2 || shut() {
		t.Errorf("many connections: got %+v, %v", r, err)
	}
	if r, err := during(func() {
		client, server := o.pair("127.0.0.1", l)
		client.Close()
		server.Close()
	}); err != nil || r.SYNs != 0 || !shut() {
		t.Errorf("many connections of others: got %+v, %v", r, err)
	}
}

// TestUndoneMeanwhile: an undo while a drain watches is the last word.
func TestUndoneMeanwhile(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	s := DrainSettings{Ports: []uint16{80}, Probes: []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}, Expires: time.Hour, Watch: time.Hour, ProbeRate: 5}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := Drain(context.Background(), s); !errors.Is(err, firewall.ErrUndone) {
			t.Errorf("got %v, want %v", err, firewall.ErrUndone)
		}
	})
	tables := func() string {
		out, err := exec.CommandContext(t.Context(), "nft", "list", "tables").Output()
		if err != nil {
			t.Skipf("nft: %v", err)
		}
		return string(out)
	}
	hosttest.Eventually(t, "the watch", func() bool { return strings.Contains(tables(), "usher_watch_") })
	if _, err := Undo(); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if left := tables(); left != "" {
		t.Errorf("left: %s", left)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stopped := errors.New("stopped")
	cancel(stopped)
	if _, err := Drain(ctx, s); !errors.Is(err, stopped) || tables() != "" {
		t.Errorf("stopped: got %v, left %s", err, tables())
	}
	if _, err := Wait(ctx, settings(nil)); !errors.Is(err, stopped) {
		t.Errorf("stopped: got %v", err)
	}
	hosttest.Eventually(t, "the counter to go", func() bool { return tables() == "" })
}
