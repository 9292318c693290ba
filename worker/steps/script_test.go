package steps

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"example.org/usher/host/hosttest"
)

// toolbox is a PATH with the given programs and nothing else. A name may be given
// another program, as in awk=gawk; a missing one skips the test.
func toolbox(t *testing.T, programs ...string) string {
	t.Helper()
	if _, err := os.Stat("/usr/local/bin/usher"); err == nil {
		t.Skip("the script would leave all to /usr/local/bin/usher")
	}
	if !slices.Contains(programs, "ss") || !slices.Contains(programs, "awk") {
		// The script looks there as well; some distributions keep everything there.
		for _, p := range []string{"/usr/sbin/ss", "/sbin/ss", "/usr/sbin/awk"} {
			if _, err := os.Stat(p); err == nil {
				t.Skipf("the script would find %s", p)
			}
		}
	}
	dir := t.TempDir()
	for _, p := range programs {
		name, program, ok := strings.Cut(p, "=")
		if !ok {
			program = name
		}
		path, err := exec.LookPath(program)
		if err != nil {
			t.Skipf("%s is not on this machine", program)
		}
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// cannedSS puts a program called ss into the toolbox that prints what a version of ss printed.
func cannedSS(t *testing.T, dir, output string, code int) {
	t.Helper()
	text := filepath.Join(dir, "ss.txt")
	if err := os.WriteFile(text, []byte(output), 0o644); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nwhile IFS= read -r l; do printf '%%s\\n' \"$l\"; done <%s\nexit %d\n", text, code)
	hosttest.Program(t, dir, "ss", script)
}

// outcome is what the script came to.
type outcome struct {
	report
	code   int
	output string
}

func (o outcome) String() string { return fmt.Sprintf("exit %d: %s", o.code, o.output) }

// watch runs the step's script with a shell, and only the toolbox on PATH.
func watch(t *testing.T, w WaitConnections, shell []string, path string) outcome {
	t.Helper()
	script, err := w.script(sample)
	if err != nil {
		t.Fatal(err)
	}
	return execute(t, shell, script, "PATH="+path)
}

func execute(t *testing.T, shell []string, script string, env ...string) outcome {
	t.Helper()
	program, err := exec.LookPath(shell[0])
	if err != nil {
		t.Skipf("%s is not on this machine", shell[0])
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append(shell[1:], "-s")...)
	cmd.Stdin = strings.NewReader(script)
	cmd.Env = env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run() // a code other than 0 is read below
	o := outcome{code: cmd.ProcessState.ExitCode(), output: out.String()}
	if o.report, err = readReport(o.output); err != nil {
		t.Fatalf("%v: %v", err, o)
	}
	return o
}

var sh = []string{"sh"}

// quick is a wait of a few polls that is only about what is seen: the host's
// counter, which other tests move, is out of it.
func quick(ports ...uint16) WaitConnections {
	return WaitConnections{
		Ports: ports, ClearChecks: 2, Every: 100 * time.Millisecond, QuietFor: 200 * time.Millisecond,
		Background: 1_000_000, Timeout: 80 * time.Second, // a loaded machine takes seconds for a poll
	}
}

// lasting gives the script d before its own deadline, for a test that wants it to pass: what
// is to be drained has longer, and does not take it.
func lasting(w WaitConnections, d time.Duration) WaitConnections {
	w.Timeout = d + 2*time.Second
	return w
}

// loopback is an address of 127/8 that no other test uses. last is its last byte.
func loopback(last byte) netip.Addr {
	return netip.AddrFrom4([4]byte{127, byte(1 + rand.IntN(250)), byte(1 + rand.IntN(250)), last})
}

// host is a listener and what it has accepted; all of it is closed with the test.
type host struct {
	net.Listener
	port uint16

	mu    sync.Mutex
	conns []net.Conn // guarded by mu
}

// serve listens on an address such as 127.0.0.9:0 and gives each connection to
// handle; nil: connections are accepted and left alone.
func serve(t *testing.T, address string, handle func(net.Conn)) *host {
	t.Helper()
	network := "tcp"
	if strings.HasPrefix(address, "0.0.0.0:") {
		network = "tcp4" // "tcp" would be IPv6, too
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Skipf("cannot listen on %s: %v", address, err)
	}
	h := &host{Listener: l, port: l.Addr().(*net.TCPAddr).AddrPort().Port()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			h.mu.Lock()
			h.conns = append(h.conns, c)
			h.mu.Unlock()
			if handle != nil {
				wg.Go(func() { handle(c) })
			}
		}
	})
	t.Cleanup(func() {
		l.Close()
		h.mu.Lock()
		for _, c := range h.conns {
			c.Close()
		}
		h.mu.Unlock()
		wg.Wait()
	})
	return h
}

// connect opens a connection to address from a local address ("" for any).
func connect(t *testing.T, from, address string) net.Conn {
	t.Helper()
	d := net.Dialer{Timeout: 5 * time.Second, KeepAlive: -1}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	c, err := dialRouted(t, d, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// dialRouted dials again while the kernel knows no route, as it may for a moment on the loopback
// interface of a busy machine. No firewall says so.
func dialRouted(t *testing.T, d net.Dialer, address string) (net.Conn, error) {
	for tries := 0; ; tries++ {
		c, err := d.DialContext(t.Context(), "tcp", address)
		if !errors.Is(err, syscall.ENETUNREACH) || tries == 100 {
			return c, err
		}
		<-time.After(50 * time.Millisecond)
	}
}

// answer is a service: one byte back for each byte, after so long.
func answer(after time.Duration) func(net.Conn) {
	return func(c net.Conn) {
		b := make([]byte, 1)
		for {
			if _, err := io.ReadFull(c, b); err != nil {
				return
			}
			<-time.After(after)
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	}
}

// ask makes one request and reads its answer.
func ask(t *testing.T, c net.Conn) {
	t.Helper()
	send(t, c)
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
}

func send(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
}

func at(addr netip.Addr, port uint16) string { return netip.AddrPortFrom(addr, port).String() }

// TestScriptCounts: what belongs to the ports is counted, exactly, by every shell
// and awk there is, with ss and without.
func TestScriptCounts(t *testing.T) {
	t.Parallel()
	addr := loopback(1)
	near := netip.AddrFrom4([4]byte{addr.As4()[0], addr.As4()[1], addr.As4()[2], 25})
	probe := netip.AddrFrom4([4]byte{addr.As4()[0], addr.As4()[1], addr.As4()[2], 2})
	dual := serve(t, ":0", nil) // IPv4 clients are mapped here
	// On all addresses, too: a port that is taken on one address alone the kernel gives to
	// the listeners of other tests as well, on theirs, and the script would count those.
	plain := serve(t, "0.0.0.0:0", nil)
	other := serve(t, at(near, 0), nil)             // not ours
	connect(t, near.String(), at(addr, plain.port)) // counts
	connect(t, near.String(), at(addr, plain.port)) // counts
	connect(t, probe.String(), at(addr, plain.port))
	connect(t, near.String(), at(addr, dual.port)) // counts, mapped
	connect(t, probe.String(), at(addr, dual.port))
	connect(t, "", net.JoinHostPort("::1", strconv.Itoa(int(dual.port)))) // counts
	connect(t, addr.String(), at(near, other.port))                       // another port

	for _, shell := range [][]string{{"dash"}, {"bash"}, {"busybox", "sh"}} {
		for _, awk := range []string{"mawk", "gawk", "busybox"} {
			for _, method := range []string{"ss", "proc"} {
				t.Run(strings.Join([]string{shell[0], awk, method}, "/"), func(t *testing.T) {
					t.Parallel()
					tools := []string{"sleep", "awk=" + awk, "sh"}
					if method == "ss" {
						tools = append(tools, "ss")
					}
					w := quick(plain.port, dual.port)
					w.Until = UntilZero
					w.Exclude = []netip.Prefix{netip.PrefixFrom(probe, 32)}
					o := watch(t, lasting(w, time.Second), shell, toolbox(t, tools...))
					if o.code != exitDeadline || o.Method != method || o.Established != 4 || o.Live != 4 || o.Listeners != 2 || len(o.Left) != 4 {
						t.Errorf("want 4 established on 2 listeners by %s and the deadline, got %v", method, o)
					}
					w.LocalAddress = addr.String()
					if o := watch(t, lasting(w, time.Second), shell, toolbox(t, tools...)); o.Established != 3 {
						t.Errorf("want 3 established on %v, got %v", addr, o)
					}
					w.LocalAddress = "::1"
					if o := watch(t, lasting(w, time.Second), shell, toolbox(t, tools...)); o.Established != 1 {
						t.Errorf("want 1 established on ::1, got %v", o)
					}
					w.Exclude = append(w.Exclude, netip.MustParsePrefix("::/127"))
					if o := watch(t, w, shell, toolbox(t, tools...)); o.code != exitDrained || o.Established != 0 {
						t.Errorf("want drained with ::1 excluded, got %v", o)
					}
				})
			}
		}
	}
}

// silence is what makes a connection idle, less what the kernel's clock ticks are apart. It
// counts from before the script, which a slow machine may start late.
const silence = 3*time.Second - 50*time.Millisecond

// TestScriptIdle: a connection whose request was answered holds nobody up when ss
// tells, and does when only /proc does.
func TestScriptIdle(t *testing.T) {
	t.Parallel()
	setup := func(t *testing.T) WaitConnections {
		addr := loopback(1)
		h := serve(t, at(addr, 0), answer(50*time.Millisecond))
		for range 5 {
			ask(t, connect(t, "", at(addr, h.port)))
		}
		connect(t, "", at(addr, h.port)) // was never used
		w := quick(h.port)
		w.LocalAddress = addr.String()
		return w
	}
	t.Run("ss", func(t *testing.T) {
		t.Parallel()
		began := time.Now()
		o := watch(t, setup(t), sh, toolbox(t, "awk", "sleep", "sh", "ss"))
		if o.code != exitDrained || o.Established != 6 || o.Busy != 0 || time.Since(began) < silence {
			t.Errorf("want drained with 6 idle ones, not before they were silent for 3 s, got %v", o)
		}
	})
	t.Run("proc", func(t *testing.T) {
		t.Parallel()
		o := watch(t, lasting(setup(t), 5*time.Second), sh, toolbox(t, "awk", "sleep", "sh"))
		if o.code != exitDeadline || o.Busy != 6 || o.Method != "proc" {
			t.Errorf("want all 6 busy, got %v", o)
		}
	})
}

// TestScriptBusy: a request without an answer is waited for, be it the connection's
// first or a later one, and so is one that came in the same tick as an answer.
func TestScriptBusy(t *testing.T) {
	t.Parallel()
	silent := func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }
	once := func(c net.Conn) { // answers one request, and no other
		b := make([]byte, 1)
		_, _ = io.ReadFull(c, b)
		_, _ = c.Write(b)
		silent(c)
	}
	sameTick := func(t *testing.T, address string) {
		for range 200 {
			ask(t, connect(t, "", address))
		}
	}
	tests := map[string]struct {
		handle  func(net.Conn)
		client  func(t *testing.T, address string)
		longest time.Duration
		why     string // "": drains
	}{
		"first request":  {handle: silent, why: "unanswered", client: func(t *testing.T, address string) { send(t, connect(t, "", address)) }},
		"unread request": {why: "queue", client: func(t *testing.T, address string) { send(t, connect(t, "", address)) }},
		"later request": {handle: once, why: "unanswered", client: func(t *testing.T, address string) {
			c := connect(t, "", address)
			ask(t, c)
			<-time.After(50 * time.Millisecond) // a later tick
			send(t, c)
		}},
		"half closed": {why: "close-wait", client: func(t *testing.T, address string) {
			if err := connect(t, "", address).(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
		}},
		"same tick":                 {handle: answer(0), client: sameTick, why: "same-tick"},
		"same tick, long ago":       {handle: answer(0), client: sameTick, longest: 4 * time.Second},
		"slow request, then silent": {handle: answer(2 * time.Second), client: func(t *testing.T, address string) { send(t, connect(t, "", address)) }},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr := loopback(1)
			h := serve(t, at(addr, 0), tt.handle)
			began := time.Now()
			tt.client(t, at(addr, h.port))
			w := quick(h.port)
			w.LocalAddress, w.LongestRequest = addr.String(), tt.longest
			if tt.why == "" {
				if o := watch(t, w, sh, toolbox(t, "awk", "sleep", "sh", "ss")); o.code != exitDrained || time.Since(began) < silence {
					t.Errorf("want drained, but not within 3 s, got %v", o)
				}
				return
			}
			// A machine that is too slow for a poll after 3 s of silence is given longer.
			for d := 7 * time.Second; ; d *= 2 {
				o := watch(t, lasting(w, d), sh, toolbox(t, "awk", "sleep", "sh", "ss"))
				if o.code == exitDeadline && o.Busy > 0 && strings.HasSuffix(strings.Join(o.Left, ","), tt.why) {
					break
				}
				if o.code != exitDeadline || d > 20*time.Second {
					t.Errorf("want busy for %s, got %v", tt.why, o)
					break
				}
				tt.client(t, at(addr, h.port))
			}
		})
	}
}

// between has act done before each pause of a script that uses the toolbox: what comes
// between two polls then does not hang on how fast the machine is.
func between(t *testing.T, dir string, act func()) {
	t.Helper()
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Skip("sleep is not on this machine")
	}
	pipe := func(name string) *os.File {
		name = filepath.Join(dir, name)
		if err := syscall.Mkfifo(name, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(name, os.O_RDWR, 0) // for both, so that it does not wait for the other end
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	asked, done := pipe("asked"), pipe("done")
	stub := fmt.Sprintf("#!/bin/sh\necho >%[1]s/asked\nread -r _ <%[1]s/done\nexec %[2]s \"$@\"\n", dir, sleep)
	hosttest.Program(t, dir, "sleep", stub)
	var wg sync.WaitGroup
	wg.Go(func() {
		line := make([]byte, 1)
		for {
			if _, err := asked.Read(line); err != nil {
				return // closed
			}
			act()
			if _, err := done.Write(line); err != nil {
				return
			}
		}
	})
	t.Cleanup(func() {
		asked.Close()
		wg.Wait()
		done.Close()
	})
}

// visit makes n short connections, one after another. Each is used and closed.
func visit(t *testing.T, address string, n int, use func(*net.TCPConn)) {
	for range n {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Errorf("a short connection: %v", err)
			return
		}
		use(c.(*net.TCPConn))
		c.Close()
	}
}

// whole reads until the service closes the connection.
func whole(c *net.TCPConn) { _, _ = io.ReadAll(c) }

// reset leaves nothing of a connection behind.
func reset(c *net.TCPConn) { _ = c.SetLinger(0) }

// TestScriptStorm: short connections that are gone at each sample are traffic.
func TestScriptStorm(t *testing.T) {
	t.Parallel()
	const storm, each = 6, 5 // so many pauses are stormy, with so many connections each
	for _, tools := range [][]string{{"awk", "sh", "ss"}, {"awk", "sh"}} {
		addr := loopback(1)
		h := serve(t, at(addr, 0), func(c net.Conn) { c.Close() })
		dir, pauses := toolbox(t, tools...), 0
		between(t, dir, func() {
			if pauses++; pauses <= storm {
				visit(t, at(addr, h.port), each, whole)
			}
		})
		w := quick(h.port)
		w.QuietFor, w.LocalAddress = time.Second, addr.String()
		// A pair of ports that is used again looks like one connection.
		if o := watch(t, w, sh, dir); o.code != exitDrained || o.Polls <= storm+1 || o.New < storm*each*2/3 || o.New > storm*each {
			t.Errorf("want drained after the storm of %d connections in %d pauses, got %v", storm*each, storm, o)
		}
	}
}

// TestScriptOutputsOfSS: what versions of ss print is understood.
func TestScriptOutputsOfSS(t *testing.T) {
	t.Parallel()
	const info = "\n\t cubic wscale:7,7 rto:204 rtt:1/0.5 cwnd:10"
	const idle = info + " bytes_acked:9 bytes_received:9 lastsnd:9000 lastrcv:9010 lastack:9000\n"
	tests := map[string]struct {
		output string
		code   int
		busy   int
		est    int
		left   string
	}{
		"nothing":      {output: "", code: exitDrained},
		"header":       {output: "State      Recv-Q Send-Q Local Address:Port               Peer Address:Port\n", code: exitDrained},
		"idle":         {output: "ESTAB 0 0 10.0.0.1:80 10.0.0.9:4000 ino:1 sk:5 <->" + idle, code: exitDrained, est: 1},
		"other port":   {output: "ESTAB 5 0 10.0.0.1:8080 10.0.0.9:4000 ino:1 sk:5 <->" + idle, code: exitDrained},
		"excluded":     {output: "ESTAB 5 0 10.0.0.1:80 10.0.0.2:4000 ino:1 sk:5 <->" + idle, code: exitDrained},
		"near miss":    {output: "ESTAB 5 0 10.0.0.1:80 10.0.0.25:4000 ino:1 sk:5 <->" + idle, code: exitDeadline, est: 1, busy: 1, left: "10.0.0.25:4000 queue"},
		"excluded net": {output: "ESTAB 5 0 [2001:db8::1]:80 [2001:db8:1::9]:4000 ino:1 sk:5 <->" + idle, code: exitDrained},
		"v6 near miss": {output: "ESTAB 5 0 [2001:db8::1]:80 [2001:db8:2::9]:4000 ino:1 sk:5 <->" + idle, code: exitDeadline, est: 1, busy: 1,
			left: "[2001:0db8:0002:0000:0000:0000:0000:0009]:4000 queue"},
		"no brackets":           {output: "ESTAB 5 0 ::ffff:10.0.0.1:80 ::ffff:10.0.0.9:4000 ino:1 sk:ffff88003 <->" + idle, code: exitDeadline, est: 1, busy: 1, left: "10.0.0.9:4000 queue"},
		"mapped, excluded":      {output: "ESTAB 5 0 ::ffff:10.0.0.1:80 ::ffff:10.0.0.2:4000 ino:1 sk:ffff88003 <->" + idle, code: exitDrained},
		"interface":             {output: "ESTAB 0 7 10.0.0.1%eth0:80 10.0.0.9:4000 ino:1 sk:5 <->" + idle, code: exitDeadline, est: 1, busy: 1, left: "10.0.0.9:4000 queue"},
		"wrapped":               {output: "ESTAB 0      0      10.0.0.1:80\n       10.0.0.9:4000  ino:1 sk:5 <->" + idle, code: exitDrained, est: 1},
		"one line":              {output: "ESTAB 0 0 10.0.0.1:80 10.0.0.9:4000 ino:1 sk:5 <-> cwnd:10 bytes_received:5 lastsnd:9000 lastrcv:8000\n", code: exitDeadline, est: 1, busy: 1, left: "10.0.0.9:4000 unanswered"},
		"no tcp_info":           {output: "ESTAB 0 0 10.0.0.1:80 10.0.0.9:4000 ino:1 sk:5 <->\n", code: exitDeadline, est: 1, busy: 1, left: "10.0.0.9:4000 unknown"},
		"age of 0":              {output: "ESTAB 0 0 10.0.0.1:80 10.0.0.9:4000 ino:1 sk:5" + info + " bytes_acked:9 bytes_received:9 lastrcv:4000\n", code: exitDeadline, est: 1, busy: 1, left: "10.0.0.9:4000 recent"},
		"old kernel, sent last": {output: "ESTAB 0 0 10.0.0.1:80 10.0.0.9:4000 ino:1 sk:5" + info + " lastsnd:8000 lastrcv:9000\n", code: exitDrained, est: 1},
		"old kernel, received last": {output: "ESTAB 0 0 10.0.0.1:80 10.0.0.9:4000 ino:1 sk:5" + info + " lastsnd:9000 lastrcv:8000\n", code: exitDeadline, est: 1, busy: 1,
			left: "10.0.0.9:4000 unanswered"},
		"seen twice":    {output: strings.Repeat("ESTAB 5 0 10.0.0.1:80 10.0.0.9:4000 ino:1 sk:5"+idle, 2), code: exitDeadline, est: 1, busy: 1, left: "10.0.0.9:4000 queue"},
		"syn received":  {output: "SYN-RECV 0 0 10.0.0.1:80 10.0.0.9:4000 timer:(on,800ms,0) ino:0 sk:6\n\t\n", code: exitDeadline, busy: 1, left: "10.0.0.9:4000 syn-recv"},
		"not our bytes": {output: "TIME-WAIT 0 0 10.0.0.1:80 10.0.0.9:4000 ino:0 sk:6\nFIN-WAIT-2 0 0 10.0.0.1:80 10.0.0.9:4001 ino:0 sk:7\nSYN-SENT 0 1 10.0.0.1:80 10.0.0.9:4002\nUNCONN 0 0 10.0.0.1:80 10.0.0.9:4003\n", code: exitDrained},
		"closing":       {output: "FIN-WAIT-1 0 9 10.0.0.1:80 10.0.0.9:4000 ino:0 sk:6\nLAST-ACK 0 9 10.0.0.1:80 10.0.0.9:4001 ino:0 sk:7\n", code: exitDeadline, busy: 2, left: "10.0.0.9:4000 closing,10.0.0.9:4001 closing"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, awk := range []string{"mawk", "gawk", "busybox"} {
				if _, err := exec.LookPath(awk); err != nil {
					continue
				}
				dir := toolbox(t, "awk="+awk, "sleep", "sh")
				cannedSS(t, dir, tt.output, 0)
				w := quick(80)
				w.Exclude = []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32"), netip.MustParsePrefix("2001:db8:1::/48")}
				if tt.code == exitDeadline {
					w = lasting(w, 800*time.Millisecond)
				}
				o := watch(t, w, sh, dir)
				if o.code != tt.code || o.Busy != tt.busy || o.Established != tt.est || strings.Join(o.Left, ",") != tt.left || o.Method != "ss" {
					t.Errorf("%s: want exit %d, %d established, %d busy, left %q; got %v", awk, tt.code, tt.est, tt.busy, tt.left, o)
				}
			}
		})
	}
	t.Run("closing for long", func(t *testing.T) {
		t.Parallel()
		dir := toolbox(t, "awk", "sleep", "sh")
		cannedSS(t, dir, tests["closing"].output, 0)
		if o := watch(t, quick(80), sh, dir); o.code != exitDrained || o.Seconds < 5 {
			t.Errorf("want drained once the cap of 5 s is over, got %v", o)
		}
	})
	t.Run("ss fails", func(t *testing.T) {
		t.Parallel()
		dir := toolbox(t, "awk", "sleep", "sh")
		cannedSS(t, dir, "", 1)
		if o := watch(t, quick(80), sh, dir); o.code != exitDrained || o.Method != "proc" {
			t.Errorf("want /proc instead, got %v", o)
		}
	})
}

// TestScriptRefuses: a host or a setting that will not do is told apart from a drain.
func TestScriptRefuses(t *testing.T) {
	t.Parallel()
	full := "PATH=" + toolbox(t, "awk", "sleep", "sh", "ss")
	tests := map[string]struct {
		env  []string
		code int
		want string
	}{
		"no awk":        {[]string{"PATH=" + toolbox(t, "sleep"), "USHER_PORTS=80"}, exitLacking, "no awk"},
		"no sleep":      {[]string{"PATH=" + toolbox(t, "awk"), "USHER_PORTS=80"}, exitLacking, "no sleep"},
		"no ports":      {[]string{full}, exitUsage, "ports"},
		"port 0":        {[]string{full, "USHER_PORTS=0"}, exitUsage, "65535"},
		"port text":     {[]string{full, "USHER_PORTS=80;reboot"}, exitUsage, "ports"},
		"bad network":   {[]string{full, "USHER_PORTS=80", "USHER_EXCLUDE=10.0.0.0/33"}, exitUsage, "not a network"},
		"bad address":   {[]string{full, "USHER_PORTS=80", "USHER_LOCAL=10.0.0.256"}, exitUsage, "not an address"},
		"address text":  {[]string{full, "USHER_PORTS=80", "USHER_LOCAL=$(reboot)"}, exitUsage, "addresses"},
		"bad number":    {[]string{full, "USHER_PORTS=80", "USHER_EVERY=1s"}, exitUsage, "every"},
		"no pause":      {[]string{full, "USHER_PORTS=80", "USHER_EVERY=0"}, exitUsage, "every"},
		"unknown until": {[]string{full, "USHER_PORTS=80", "USHER_UNTIL=soon"}, exitUsage, "until"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := execute(t, sh, waitConnectionsScript, tt.env...)
			if o.code != tt.code || !strings.Contains(o.Error, tt.want) {
				t.Errorf("want exit %d about %q, got %v", tt.code, tt.want, o)
			}
		})
	}
}

// TestScriptByHand: the file itself runs, with nothing but the ports.
func TestScriptByHand(t *testing.T) {
	t.Parallel()
	o := execute(t, sh, waitConnectionsScript, "PATH="+os.Getenv("PATH"), "USHER_PORTS=9", "USHER_EVERY=0.2",
		"USHER_QUIET_FOR=0.4", "USHER_BACKGROUND=1000000")
	if o.code != exitDrained || o.Checks < 3 || o.Listeners != 0 {
		t.Errorf("want drained, got %v", o)
	}
}

// TestScriptGap: the gap is waited out however quiet it is.
func TestScriptGap(t *testing.T) {
	t.Parallel()
	for _, until := range []string{UntilQuiet, UntilZero} {
		dir := toolbox(t, "awk", "sleep", "sh")
		cannedSS(t, dir, "", 0)
		w := quick(80)
		w.Until, w.Gap = until, 800*time.Millisecond
		if o := watch(t, w, sh, dir); o.code != exitDrained || o.Seconds < 0.8 {
			t.Errorf("%s: want drained after the gap of 0.8 s, got %v", until, o)
		}
	}
}

// TestScriptInARow: clear polls between busy ones do not add up.
func TestScriptInARow(t *testing.T) {
	t.Parallel()
	dir := toolbox(t, "awk", "sleep", "sh")
	polls := filepath.Join(dir, "polls")
	stub := fmt.Sprintf("#!/bin/sh\nn=0\n[ ! -f %[1]s ] || read -r n <%[1]s\necho $((n + 1)) >%[1]s\n"+
		"case $n in 0 | 2 | 4) echo 'ESTAB 5 0 10.0.0.1:80 10.0.0.9:4000 ino:1 sk:5' ;; esac\n", polls)
	hosttest.Program(t, dir, "ss", stub)
	w := quick(80)
	w.Until = UntilZero // for quiet, the busy one would be a new one each time
	if o := watch(t, w, sh, dir); o.code != exitDrained || o.Polls != 7 || o.Checks != 2 {
		t.Errorf("want drained at poll 7, the second clear one in a row, got %v", o)
	}
}

// TestScriptTries: the polls that are tried begin once the gap is over, and end the wait.
func TestScriptTries(t *testing.T) {
	t.Parallel()
	for name, ss := range map[string]string{"busy": "ESTAB 0 0 10.0.0.1:80 10.0.0.9:4000 ino:1 sk:5\n", "clear": ""} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := toolbox(t, "awk", "sleep", "sh")
			cannedSS(t, dir, ss, 0)
			w := quick(80)
			w.Until, w.ClearChecks, w.Tries = UntilZero, 3, 4
			o := watch(t, w, sh, dir)
			if ss == "" && (o.code != exitDrained || o.Polls != 3) || ss != "" && (o.code != exitDeadline || o.Polls != 4 || len(o.Left) != 1) {
				t.Errorf("got %v", o)
			}
			w.Gap = 600 * time.Millisecond
			if o := watch(t, w, sh, dir); o.Seconds < 0.6 || ss != "" && (o.code != exitDeadline || o.Polls < 5) {
				t.Errorf("with a gap: got %v", o)
			}
		})
	}
}
