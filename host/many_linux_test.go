package host

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"example.org/usher/host/hosttest"
	"example.org/usher/host/sockdiag"
)

// How the many connections come about: to so many ports, each with less than a listener's
// queue takes where nobody has raised that, from so many processes, each with less than a
// process may have open.
const (
	manyPorts     = 40
	manyToEach    = 2500
	manyProcesses = 8
	manyInAll     = manyPorts * manyToEach
)

// manyFrom is set for the copies of the test that connect: the ports, and the address to
// connect from.
const manyFrom = "USHER_TEST_CONNECT"

// TestMain lets the test's own executable be a process that connects.
func TestMain(m *testing.M) {
	if what := os.Getenv(manyFrom); what != "" {
		if err := connectMany(strings.Fields(what)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// connectMany makes the connections, says so, and holds them until standard input ends.
func connectMany(what []string) error {
	from := netip.MustParseAddr(what[0]).As4()
	for _, text := range what[1:] {
		port, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		for range manyToEach {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
			if err != nil {
				return os.NewSyscallError("socket", err)
			}
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
				return os.NewSyscallError("setsockopt", err)
			}
			if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: from}); err != nil {
				return os.NewSyscallError("bind", err)
			}
			if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: port}); err != nil {
				return os.NewSyscallError("connect", err)
			}
		}
	}
	fmt.Println("connected")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// many opens manyInAll connections in this namespace: an eighth of them from 127.0.0.2. They
// wait in the listeners' queues, established.
func many(tb testing.TB) (ports []uint16) {
	tb.Helper()
	for range manyPorts {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { l.Close() })
		ports = append(ports, uint16(l.Addr().(*net.TCPAddr).Port))
	}
	var said []io.Reader
	for i := range manyProcesses {
		what := "127.0.0.1"
		if i == 0 {
			what = "127.0.0.2"
		}
		for _, p := range ports[i*manyPorts/manyProcesses : (i+1)*manyPorts/manyProcesses] {
			what += fmt.Sprintf(" %d", p)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), manyFrom+"="+what)
		cmd.Stderr = os.Stderr
		hold, err := cmd.StdinPipe()
		if err != nil {
			tb.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			tb.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() {
			hold.Close()
			_ = cmd.Wait() // its end is no matter any more
		})
		said = append(said, out)
	}
	for _, out := range said {
		if line, err := bufio.NewReader(out).ReadString('\n'); line != "connected\n" {
			tb.Fatalf("a process that connects: %q, %v", line, err)
		}
	}
	return ports
}

// TestManyConnections: a hundred thousand are counted exactly, and a poll makes no garbage
// that grows with them.
func TestManyConnections(t *testing.T) {
	t.Parallel()
	if underRace {
		t.Skip("too many connections to watch under the race detector")
	}
	if !hosttest.InNamespace(t) {
		return
	}
	ports := many(t)
	conn, err := sockdiag.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s := settings(func(s *Settings) { s.Ports = ports })
	w := newWatcher(s)
	look := func(w *watcher, at time.Duration) Report {
		t.Helper()
		w.begin(at)
		if err := list(conn, ports, []sockdiag.State{sockdiag.Established, sockdiag.SynRecv, sockdiag.Listen}, w.socket); err != nil {
			t.Fatal(err)
		}
		if _, err := w.end(nil); err != nil {
			t.Fatal(err)
		}
		return w.report(false)
	}
	// The last acknowledgement of a handshake may come a moment after connect has returned.
	hosttest.Eventually(t, "the last handshake", func() bool { return look(newWatcher(s), 0).Established == manyInAll })
	for i := range 3 {
		if r := look(w, time.Duration(i)*time.Second); r.Established != manyInAll || r.Live != manyInAll || r.New != 0 || r.Listeners != manyPorts || len(w.followed) != manyInAll {
			t.Errorf("poll %d: got %+v, and %d are followed", i, r, len(w.followed))
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	look(w, 3*time.Second)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 2<<20 {
		t.Errorf("a poll made %d bytes of garbage", n)
	} else {
		t.Logf("a poll of %d made %d bytes of garbage", manyInAll, n)
	}
	s.Exclude = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/32")}
	if r := look(newWatcher(s), 0); r.Established != manyInAll-manyInAll/manyProcesses {
		t.Errorf("without an eighth: got %+v", r)
	}
}

// BenchmarkPoll is one poll of a hundred thousand connections, and how much more processor
// time ss takes to list them (ss/own).
func BenchmarkPoll(b *testing.B) {
	hosttest.Enter(b)
	ports := many(b)
	conn, err := sockdiag.Open()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	w := newWatcher(settings(func(s *Settings) { s.Ports = ports }))
	used := func() time.Duration {
		var u unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_THREAD, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	states := []sockdiag.State{sockdiag.Established}
	b.ReportAllocs()
	began := used()
	for b.Loop() {
		w.begin(0)
		if err := list(conn, ports, states, w.socket); err != nil {
			b.Fatal(err)
		}
		if _, err := w.end(nil); err != nil {
			b.Fatal(err)
		}
	}
	own := (used() - began) / time.Duration(b.N)
	b.StopTimer()
	b.ReportMetric(float64(own.Microseconds())/1000, "own-cpu-ms")
	ss, err := exec.LookPath("ss")
	if err != nil {
		return
	}
	var filter []string
	for _, p := range ports {
		filter = append(filter, fmt.Sprintf("sport = :%d", p))
	}
	best := time.Hour
	for range 3 {
		cmd := exec.Command(ss, "-Htni", "state", "established", "( "+strings.Join(filter, " or ")+" )")
		if err := cmd.Run(); err != nil {
			b.Fatal(err)
		}
		best = min(best, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
	}
	b.ReportMetric(float64(best.Microseconds())/1000, "ss-cpu-ms")
	b.ReportMetric(float64(best)/float64(own), "ss/own")
}
