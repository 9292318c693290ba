package firewall

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"example.org/usher/host/hosttest"
)

// nft runs the program, which shows what the kernel really has.
func nft(t *testing.T, input string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath("nft")
	if err != nil {
		t.Skip("nft is not on this machine")
	}
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("nft %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func networksOf(texts ...string) []netip.Prefix {
	var p []netip.Prefix
	for _, s := range texts {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func mustApply(t *testing.T, c Change) State {
	t.Helper()
	if err := Apply(t.Context(), c, nil); err != nil {
		t.Fatal(err)
	}
	return mustRead(t)
}

func mustRead(t *testing.T) State {
	t.Helper()
	s, err := Read()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustUndo(t *testing.T, want bool) {
	t.Helper()
	if removed, err := Undo(); err != nil || removed != want {
		t.Fatalf("undo: got %v, %v; want %v", removed, err, want)
	}
}

// listen serves on an address: what connects is held open, and closed with the test.
func listen(t *testing.T, address string) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { // an echo
				defer c.Close()
				b := make([]byte, 1)
				for {
					if _, err := c.Read(b); err != nil {
						return
					}
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// knock tries for so long to open a connection from an address to a port of the same host.
func knock(t *testing.T, from string, port uint16, patience time.Duration) (net.Conn, error) {
	t.Helper()
	ip := net.ParseIP(from)
	to := "127.0.0.1"
	if ip.To4() == nil {
		to = "::1"
	}
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: ip}}
	c, err := d.Dial("tcp", net.JoinHostPort(to, fmt.Sprint(port)))
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// opened, dropped and refused are what may come of it.
func opened(t *testing.T, from string, port uint16) net.Conn {
	t.Helper()
	var c net.Conn
	hosttest.Eventually(t, fmt.Sprintf("a connection from %s to %d", from, port), func() bool {
		var err error
		c, err = knock(t, from, port, 20*time.Second)
		return err == nil
	})
	return c
}

func dropped(t *testing.T, from string, port uint16) {
	t.Helper()
	if _, err := knock(t, from, port, 500*time.Millisecond); err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("from %s to %d: got %v, want no answer", from, port, err)
	}
}

func refused(t *testing.T, from string, port uint16) {
	t.Helper()
	if _, err := knock(t, from, port, 20*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("from %s to %d: got %v, want it refused", from, port, err)
	}
}

func echoes(t *testing.T, c net.Conn) {
	t.Helper()
	b := []byte("x")
	if _, err := c.Write(b); err != nil {
		t.Fatalf("an open connection: %v", err)
	}
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(b); err != nil {
		t.Fatalf("an open connection: %v", err)
	}
}

// TestDrops: the probes' new connections to the ports get no answer; all else goes on.
func TestDrops(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	port, other := listen(t, ":0"), listen(t, ":0")
	before := opened(t, "127.0.0.2", port)
	s := mustApply(t, Change{Ports: []uint16{port}, Probes: networksOf("127.0.0.2/31", "::1/128"), Expires: time.Hour})
	if len(s.BlockedPorts) != 0 || len(s.Probes) != 2 || len(s.ProbePorts) != 1 || s.ProbePorts[0].Number != port {
		t.Errorf("got %+v", s)
	}
	dropped(t, "127.0.0.2", port)
	dropped(t, "127.0.0.3", port)
	dropped(t, "::1", port)
	echoes(t, before)
	echoes(t, opened(t, "127.0.0.4", port))
	echoes(t, opened(t, "127.0.0.2", other))
	if got := mustRead(t).Arrivals; got != 1 {
		t.Errorf("%d arrivals are counted, want the one that is no probe", got)
	}

	s = mustApply(t, Change{Ports: []uint16{port}, Block: true, Expires: time.Hour})
	if len(s.Probes) != 2 || len(s.BlockedPorts) != 1 {
		t.Errorf("blocked beside the probes: got %+v", s)
	}
	dropped(t, "127.0.0.2", port)
	refused(t, "127.0.0.4", port)
	echoes(t, before)
	echoes(t, opened(t, "127.0.0.4", other))

	mustUndo(t, true)
	echoes(t, opened(t, "127.0.0.2", port))
	echoes(t, opened(t, "::1", port))
	mustUndo(t, false)
}

// TestEndsByItself: what is shut out comes through again, with nobody there to undo it.
func TestEndsByItself(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	port, blocked := listen(t, ":0"), listen(t, ":0")
	began := time.Now()
	const lasts = 3 * time.Second
	mustApply(t, Change{Ports: []uint16{port}, Probes: networksOf("127.0.0.2/32"), Expires: lasts})
	mustApply(t, Change{Ports: []uint16{blocked}, Block: true, Expires: lasts})
	opened(t, "127.0.0.2", port)
	if d := time.Since(began); d < lasts-100*time.Millisecond {
		t.Errorf("a probe comes through after %v, want %v", d, lasts)
	}
	opened(t, "127.0.0.1", blocked)
	if s := mustRead(t); len(s.Probes)+len(s.ProbePorts)+len(s.BlockedPorts) > 0 {
		t.Errorf("in the end there is %+v", s)
	}
}

// foreign are tables of others, which nothing of ours may touch.
const foreign = `
add table inet filter
add chain inet filter input { type filter hook input priority 0; policy accept; }
add rule inet filter input tcp dport 9 drop
add table inet usherette
add set inet usherette probes4 { type ipv4_addr; }
add element inet usherette probes4 { 10.9.9.9 }
add table ip usher
add chain ip usher input { type filter hook input priority -150; }
add rule ip usher input tcp dport 9 counter
`

var counters = regexp.MustCompile(`packets \d+ bytes \d+`)

// ruleset is all there is, without what its counters have counted.
func ruleset(t *testing.T) string {
	t.Helper()
	return counters.ReplaceAllString(nft(t, "", "list", "ruleset"), "")
}

// TestOneRuleSet: applied again, applied by many at once, by hand or by the script, there
// is one rule set with all that was asked for, and undo leaves what was there before.
func TestOneRuleSet(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	nft(t, foreign, "-f", "-")
	before := ruleset(t)

	one := Change{Ports: []uint16{80, 443}, Probes: networksOf("10.0.0.252/31", "2001:db8::/64"), Expires: time.Hour}
	mustApply(t, one)
	first := nft(t, "", "list", "chain", "inet", "usher", "input")
	mustApply(t, one)
	if again := nft(t, "", "list", "chain", "inet", "usher", "input"); again != first {
		t.Errorf("applied twice:\n%s\nonce:\n%s", again, first)
	}
	if got := strings.Count(first, " flags syn / fin,syn,rst,ack "); got != 4 {
		t.Errorf("want 4 rules, got %d:\n%s", got, first)
	}

	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			c := Change{
				Ports: []uint16{80, uint16(8000 + i)}, Block: i%2 == 0, Expires: time.Duration(i+1) * time.Hour,
				Probes: networksOf(fmt.Sprintf("10.1.%d.0/24", i), "10.2.0.0/16", fmt.Sprintf("10.2.%d.0/24", i), fmt.Sprintf("fd00:%d::/32", i)),
			}
			if err := Apply(context.Background(), c, nil); err != nil {
				t.Errorf("at once: %v", err)
			}
		})
	}
	wg.Wait()
	if at := nft(t, "", "list", "chain", "inet", "usher", "input"); at != first {
		t.Errorf("applied at once:\n%s\nonce:\n%s", at, first)
	}
	s := mustRead(t)
	// 10.0.0.252/31, 10.2.0.0/16 and 8 of IPv4; 2001:db8::/64 and 8 of IPv6. 80, 443 and 8 ports.
	if len(s.Probes) != 19 || len(s.ProbePorts) != 10 || len(s.CountedPorts) != 10 || len(s.BlockedPorts) != 5 {
		t.Errorf("got %d networks, %d, %d and %d ports: %+v", len(s.Probes), len(s.ProbePorts), len(s.CountedPorts), len(s.BlockedPorts), s)
	}
	for _, p := range s.Probes {
		least := map[string]time.Duration{"10.2.0.0/16": 8*time.Hour - time.Minute, "10.1.4.0/24": 5*time.Hour - time.Minute}[p.String()]
		if p.Expires < least {
			t.Errorf("%v lasts %v, want %v", p, p.Expires, least)
		}
	}

	mustUndo(t, true)
	if after := ruleset(t); after != before {
		t.Errorf("after undo:\n%s\nbefore:\n%s", after, before)
	}
}

// TestStaleChange: a change made on what the table no longer says is refused whole.
func TestStaleChange(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	at, err := readGeneration()
	if err != nil {
		t.Fatal(err)
	}
	before := mustRead(t)
	shared := networksOf("10.2.0.0/16")
	mustApply(t, Change{Ports: []uint16{80}, Probes: shared, Expires: 8 * time.Hour})
	if err := apply(before, at, Change{Ports: []uint16{80, 81}, Probes: shared, Expires: time.Hour}, nil); !is(err, unix.ERESTART) {
		t.Errorf("got %v, want %v", err, unix.ERESTART)
	}
	if s := mustRead(t); len(s.CountedPorts) != 1 || len(s.Probes) != 1 || s.Probes[0].Expires < 7*time.Hour {
		t.Errorf("it has changed %+v", s)
	}
}

// scripted is the table as the worker's script makes it.
const scripted = `
table inet usher {
	set probes4 { type ipv4_addr; flags interval,timeout; elements = { 10.0.0.0/24 timeout 2h, 10.0.1.7 timeout 2h } }
	set probes6 { type ipv6_addr; flags interval,timeout; }
	set probe_ports { type inet_service; flags timeout; elements = { 80 timeout 2h } }
	set blocked_ports { type inet_service; flags timeout; }
	set counted_ports { type inet_service; flags timeout; }
	counter arrivals { }
	chain input {
		type filter hook input priority -150; policy accept;
		ip saddr @probes4 tcp dport @probe_ports tcp flags & (fin|syn|rst|ack) == syn drop
		ip6 saddr @probes6 tcp dport @probe_ports tcp flags & (fin|syn|rst|ack) == syn drop
		tcp dport @counted_ports tcp flags & (fin|syn|rst|ack) == syn counter name arrivals
		tcp dport @blocked_ports tcp flags & (fin|syn|rst|ack) == syn reject with tcp reset
	}
}
`

// TestScriptsTable: the script's table is the same, so that either can go on with what the
// other has made, and take it back.
func TestScriptsTable(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	nft(t, scripted, "-f", "-")
	theirs := nft(t, "", "list", "chain", "inet", "usher", "input")
	s := mustApply(t, Change{Ports: []uint16{80, 443}, Probes: networksOf("10.0.1.0/24"), Expires: time.Hour})
	if got := fmt.Sprint(s.Probes[0], s.Probes[1], len(s.Probes)); got != "10.0.0.0/24 10.0.1.0/24 2" || len(s.ProbePorts) != 2 {
		t.Errorf("got %s, %+v", got, s)
	}
	for _, p := range s.Probes {
		if p.Expires < time.Hour+50*time.Minute {
			t.Errorf("%v lasts %v only", p, p.Expires)
		}
	}
	ours := nft(t, "", "list", "chain", "inet", "usher", "input")
	if ours != theirs {
		t.Errorf("ours:\n%s\nthe script's:\n%s", ours, theirs)
	}
	mustUndo(t, true)
	mustApply(t, Change{Ports: []uint16{443}, Probes: networksOf("10.0.7.0/24"), Expires: time.Hour})
	nft(t, "flush chain inet usher input\n"+scripted, "-f", "-")
	if s := mustRead(t); len(s.Probes) != 3 || len(s.ProbePorts) != 2 {
		t.Errorf("after the script: %+v", s)
	}
	if theirs := nft(t, "", "list", "chain", "inet", "usher", "input"); theirs != ours {
		t.Errorf("the script's:\n%s\nours:\n%s", theirs, ours)
	}
	mustUndo(t, true)
	if left := nft(t, "", "list", "ruleset"); left != "" {
		t.Errorf("left: %s", left)
	}
}

// TestCountSYNs: what becomes a connection is counted, from whom and to where it was asked
// for; what is excluded, dropped or refused is not. The table is gone with its owner.
func TestCountSYNs(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	port, blocked, other := listen(t, ":0"), listen(t, ":0"), listen(t, ":0")
	all, err := CountSYNs([]uint16{port, blocked}, networksOf("127.0.0.2/32", "127.0.0.8/29"), netip.Addr{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { all.Close() })
	local, err := CountSYNs([]uint16{port}, nil, netip.MustParseAddr("::1"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { local.Close() })
	mustApply(t, Change{Ports: []uint16{port}, Probes: networksOf("127.0.0.3/32"), Expires: time.Hour})
	mustApply(t, Change{Ports: []uint16{blocked}, Block: true, Expires: time.Hour})

	want := func(c *SYNs, n uint64, what string) {
		t.Helper()
		if got, err := c.Count(); err != nil || got != n {
			t.Errorf("%s: got %d, %v; want %d", what, got, err, n)
		}
	}
	want(all, 0, "nobody")
	c := opened(t, "127.0.0.1", port)
	want(all, 1, "a client")
	echoes(t, c)
	opened(t, "127.0.0.2", port)
	opened(t, "127.0.0.12", port)
	want(all, 1, "the excluded")
	dropped(t, "127.0.0.3", port)
	refused(t, "127.0.0.1", blocked)
	opened(t, "127.0.0.1", other)
	want(all, 1, "the dropped, the refused and another port")
	want(local, 0, "another address")
	opened(t, "::1", port)
	want(all, 2, "IPv6")
	want(local, 1, "IPv6, to the address")

	if removed, err := Undo(); err != nil || !removed {
		t.Errorf("undo: %v, %v", removed, err)
	}
	want(all, 2, "after undo")
	for _, c := range []*SYNs{all, local} {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	hosttest.Eventually(t, "the tables to go", func() bool { return nft(t, "", "list", "ruleset") == "" })
}

// TestWatch: what comes from the networks is counted, and the watch ends in the change that
// follows it, or by an undo, and then nothing follows.
func TestWatch(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	port := listen(t, ":0")
	from := networksOf("127.0.0.2/32", "::1/128")
	start := func() *Watch {
		t.Helper()
		w, err := StartWatch([]uint16{port}, from)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Close() })
		return w
	}
	w := start()
	opened(t, "127.0.0.1", port)
	if packets, begun, err := w.Counts(); err != nil || packets != 0 || begun != 0 {
		t.Errorf("others: got %d, %d, %v", packets, begun, err)
	}
	echoes(t, opened(t, "127.0.0.2", port))
	echoes(t, opened(t, "::1", port))
	if packets, begun, err := w.Counts(); err != nil || packets < 6 || begun != 2 {
		t.Errorf("got %d packets, %d of them first; %v", packets, begun, err)
	}
	change := Change{Ports: []uint16{port}, Probes: from, Expires: time.Hour}
	if err := Apply(t.Context(), change, w); err != nil {
		t.Fatal(err)
	}
	if tables := nft(t, "", "list", "tables"); tables != "table inet usher\n" {
		t.Errorf("after the change: %s", tables)
	}

	w = start()
	nft(t, "add table inet usher_watch_1\nadd counter inet usher_watch_1 seen\n", "-f", "-") // the script's, killed
	mustUndo(t, true)
	if tables := nft(t, "", "list", "tables"); tables != "" {
		t.Errorf("after the undo: %s", tables)
	}
	if _, _, err := w.Counts(); !errors.Is(err, ErrUndone) {
		t.Errorf("got %v, want %v", err, ErrUndone)
	}
	if err := Apply(t.Context(), change, w); !errors.Is(err, ErrUndone) {
		t.Errorf("got %v, want %v", err, ErrUndone)
	}
	if s := mustRead(t); s.Present {
		t.Errorf("what was undone is there: %+v", s)
	}
	w = start()
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	if tables := nft(t, "", "list", "tables"); tables != "" {
		t.Errorf("after the end: %s", tables)
	}
}
