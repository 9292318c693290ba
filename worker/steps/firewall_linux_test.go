package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// ownNetwork runs the test in a copy of this process that has a network and mounts of its
// own: what it does to the firewall and to programs ends with it.
func ownNetwork(t *testing.T, body func(t *testing.T)) {
	t.Helper()
	if os.Getenv(inNamespace) == t.Name() {
		if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
			t.Fatal(err)
		}
		run(t, "ip", "link", "set", "lo", "up")
		for _, a := range []string{"fd00::2", "fd01::1", "fd01::9"} {
			run(t, "ip", "addr", "add", a+"/128", "dev", "lo", "nodad")
		}
		// The kernel takes an address into use behind ip's back: first by its prefix, later by a
		// route of its own.
		until(t, "the addresses have routes of their own", func() bool {
			return strings.Count(run(t, "ip", "-6", "route", "show", "table", "local"), "local fd0") == 3
		})
		for _, from := range []string{probe6, client6} {
			until(t, from+" reaches "+host6, func() bool {
				c, err := (&net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}).DialContext(t.Context(), "udp", "["+host6+"]:9")
				if err == nil {
					c.Close()
				}
				return err == nil
			})
		}
		body(t)
		return
	}
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	for _, p := range []string{"dash", "bash", "busybox", "ip", "ss", "nft", "iptables-nft-restore", "ip6tables-nft-restore", "iptables-legacy-restore", "ip6tables-legacy-restore"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("%s is not on this machine", p)
		}
	}
	var names []string
	for name := range strings.SplitSeq(t.Name(), "/") {
		names = append(names, "^"+regexp.QuoteMeta(name)+"$")
	}
	copies <- struct{}{}
	defer func() { <-copies }()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run="+strings.Join(names, "/"), "-test.count=1", "-test.v")
	cmd.Env = append(os.Environ(), inNamespace+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		t.Skipf("no namespaces: %v", err)
	}
	if err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Errorf("in namespaces of its own: %v\n%s", err, out)
	}
}

// copies bounds how many of them run at a time: each runs a dozen programs a second.
var copies = make(chan struct{}, 5)

// OwnNetwork is ownNetwork for tests of the package's outside.
var OwnNetwork = ownNetwork

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", program, args, err, out)
	}
	return string(out)
}

// hide makes programs impossible to run.
func hide(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		path, err := exec.LookPath(p)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("/dev/null", path, "", syscall.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
	}
}

// The means that there are, and what has to be hidden for each to be the first.
var means = map[string][]string{
	"nft":             {"xtables-nft-multi", "xtables-legacy-multi"},
	"iptables-nft":    {"nft", "xtables-legacy-multi"},
	"iptables-legacy": {"nft", "xtables-nft-multi"},
}

var shells = map[string][]string{"dash": {"dash"}, "bash": {"bash"}, "busybox": {"busybox", "sh"}}

// came is what firewall.sh came to.
type came struct {
	firewallReport
	code   int
	output string
}

func (c came) String() string { return fmt.Sprintf("exit %d: %s", c.code, c.output) }

// do runs a script with a shell. Its PATH has no sbin, as that of a service, and begins
// with what is given.
func do(t *testing.T, shell []string, script string, path ...string) came {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), hang)
	defer cancel()
	cmd := exec.CommandContext(ctx, shell[0], append(slices.Clone(shell[1:]), "-s")...)
	cmd.Stdin = strings.NewReader(script)
	cmd.Env = []string{"PATH=" + strings.Join(append(path, "/usr/bin:/bin"), ":")}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	_ = cmd.Run() // a code other than 0 is read below
	c := came{code: cmd.ProcessState.ExitCode(), output: out.String()}
	if err := json.Unmarshal(out.Bytes(), &c.firewallReport); err != nil {
		t.Errorf("want one JSON object, got %v", c)
	}
	return c
}

// done is do for what must succeed by the means.
func done(t *testing.T, shell []string, script, method string) {
	t.Helper()
	if c := do(t, shell, script); c.code != 0 || !slices.Contains(strings.Fields(c.Method), method) {
		t.Errorf("want it done by %s, got %v", method, c)
	}
}

// The addresses of the tests: two probers, two clients, and the instance.
const (
	probe4, probe6   = "127.0.0.2", "fd00::2"
	client4, client6 = "127.0.0.9", "fd01::9"
	host4, host6     = "127.0.0.1", "fd01::1"
)

var probeNetworks = []netip.Prefix{netip.MustParsePrefix("127.0.0.2/31"), netip.MustParsePrefix("fd00::/64")}

func failing(ports ...uint16) firewall {
	return firewall{action: actionFailHealthCheck, ports: ports, probes: probeNetworks, expires: time.Hour, watch: time.Second, probeRate: 5, timeout: time.Minute}
}

func blocking(ports ...uint16) firewall {
	return firewall{action: actionBlockConnections, ports: ports, expires: time.Hour, timeout: time.Minute}
}

var undoing = firewall{action: actionUndo, timeout: time.Minute}

// reach opens a connection to the port from an address, and says what became of it: open,
// refused, or dropped, for which it waits no longer than patience.
func reach(t *testing.T, from string, port uint16, patience time.Duration) string {
	t.Helper()
	to := host4
	if strings.Contains(from, ":") {
		to = host6
	}
	c, err := dialRouted(t, net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}, net.JoinHostPort(to, strconv.Itoa(int(port))))
	var timeout net.Error
	switch {
	case err == nil:
		_ = c.(*net.TCPConn).SetLinger(0)
		c.Close()
		return "open"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "refused"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "dropped"
	}
	t.Errorf("from %s: %v", from, err)
	return ""
}

// becomes checks what becomes of connections: what is dropped is waited for a second, in
// which anything else would have shown; what is open has as long as a slow machine needs.
func becomes(t *testing.T, port uint16, want map[string]string) {
	t.Helper()
	var wg sync.WaitGroup
	for from, what := range want {
		patience := hang
		if what == "dropped" {
			patience = time.Second
		}
		wg.Go(func() {
			if got := reach(t, from, port, patience); got != what {
				t.Errorf("from %s to %d: %s, want %s", from, port, got, what)
			}
		})
	}
	wg.Wait()
}

func all(what string) map[string]string {
	return map[string]string{probe4: what, probe6: what, client4: what, client6: what}
}

// openFrom is a connection to the port that stays.
func openFrom(t *testing.T, from string, port uint16) net.Conn {
	t.Helper()
	to := host4
	if strings.Contains(from, ":") {
		to = host6
	}
	return connect(t, from, net.JoinHostPort(to, strconv.Itoa(int(port))))
}

// TestFirewall: probes are dropped and clients are not, late arrivals are refused and open
// connections live on, all comes back by itself or by undo, by each means and shell.
func TestFirewall(t *testing.T) {
	t.Parallel()
	for method, hidden := range means {
		for name, shell := range shells {
			if method != "nft" && name != map[string]string{"iptables-nft": "busybox", "iptables-legacy": "dash"}[method] {
				continue // the others have their turn in TestFirewallAtOnce
			}
			t.Run(method+"/"+name, func(t *testing.T) {
				ownNetwork(t, func(t *testing.T) {
					hide(t, hidden...)
					web, other := serve(t, ":0", answer(0)).port, serve(t, ":0", answer(0)).port
					done(t, shell, undoing.script(), method) // nothing is there
					var lasting []net.Conn
					for _, from := range []string{probe4, probe6, client4, client6} {
						c := openFrom(t, from, web)
						if err := c.SetDeadline(time.Now().Add(hang)); err != nil {
							t.Fatal(err)
						}
						lasting = append(lasting, c)
					}
					living := func() {
						t.Helper()
						for _, c := range lasting {
							ask(t, c)
						}
					}

					probesDropped := map[string]string{probe4: "dropped", probe6: "dropped", client4: "open", client6: "open"}
					for range 2 { // twice is as once
						done(t, shell, failing(web).script(), method)
						becomes(t, web, probesDropped)
						becomes(t, other, all("open"))
						living()
					}
					done(t, shell, blocking(web).script(), method)
					becomes(t, web, map[string]string{probe4: "dropped", probe6: "dropped", client4: "refused", client6: "refused"})
					becomes(t, other, all("open"))
					living()
					// What ends soon replaces what would have lasted.
					soon := blocking(web)
					soon.expires = time.Second
					done(t, shell, soon.script(), method)
					until(t, "the block ends", func() bool { return reach(t, client4, web, hang) == "open" })
					becomes(t, web, probesDropped)
					brief := failing(web)
					brief.expires = time.Second
					done(t, shell, brief.script(), method)
					becomes(t, web, all("open"))

					done(t, shell, failing(web, other).script(), method)
					done(t, shell, blocking(web, other).script(), method)
					for range 2 {
						done(t, shell, undoing.script(), method)
						becomes(t, web, all("open"))
						becomes(t, other, all("open"))
					}
					living()
				})
			})
		}
	}
}

// hang is how long nothing takes on a machine that has not come to a stop.
const hang = 5 * time.Minute

// until waits for a condition that must come true, however slow the machine is.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(hang); !condition(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain: %s", what)
		}
		<-time.After(50 * time.Millisecond)
	}
}

var passing = regexp.MustCompile(` (timeout|expires|--datestop) [^ ,\n]+| meta time "[^"]+"-"[^"]+"`)

// listing is all rules that there are, without what passes.
func listing(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, command := range [][]string{
		{"nft", "-s", "list", "ruleset"},
		{"iptables-legacy-save", "-t", "filter"}, {"ip6tables-legacy-save", "-t", "filter"},
	} {
		for line := range strings.Lines(run(t, command[0], command[1:]...)) {
			if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ":INPUT") || strings.HasPrefix(line, ":FORWARD") || strings.HasPrefix(line, ":OUTPUT") {
				continue // counters and dates
			}
			b.WriteString(passing.ReplaceAllString(line, ""))
		}
	}
	return b.String()
}

// TestFirewallAtOnce: several at once leave what one does, and nothing of anybody else's
// is touched, also when the means have changed between two drains.
func TestFirewallAtOnce(t *testing.T) {
	t.Parallel()
	for method := range means {
		t.Run(method, func(t *testing.T) {
			ownNetwork(t, func(t *testing.T) {
				only := func(f firewall) string {
					return strings.Replace(f.script(), "USHER_METHOD=''", "USHER_METHOD='"+method+"'", 1)
				}
				foreign(t)
				before := listing(t)
				done(t, shells["dash"], only(failing(80, 443)), method)
				done(t, shells["dash"], only(blocking(80, 443)), method)
				once := listing(t)
				if once == before || strings.Contains(once, "watch") {
					t.Fatalf("want ours beside the others', got %s", once)
				}
				for range 3 {
					var wg sync.WaitGroup
					for i := range 6 {
						script := only([]firewall{failing(80, 443), blocking(80, 443)}[i%2])
						wg.Go(func() { done(t, shells[[]string{"dash", "bash", "busybox"}[i%3]], script, method) })
					}
					wg.Wait()
					if again := listing(t); again != once {
						t.Errorf("six at once have set up %s, one %s", again, once)
					}
					var undone sync.WaitGroup
					for range 3 {
						undone.Go(func() { done(t, shells["dash"], undoing.script(), method) })
					}
					undone.Wait()
					if after := listing(t); after != before {
						t.Fatalf("undone: %s, it was %s", after, before)
					}
				}
			})
		})
	}
}

// foreign sets up rules of others, for all ports of the tests.
func foreign(t *testing.T) {
	t.Helper()
	run(t, "nft", `add table inet firewalld; add chain inet firewalld input { type filter hook input priority 10; policy accept; };
		add rule inet firewalld input tcp dport 80 accept; add table ip usher; add chain ip usher input; add table inet usher_other`)
	for _, tables := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
		run(t, tables, "-A", "INPUT", "-p", "tcp", "--dport", "80", "-j", "ACCEPT")
		run(t, tables, "-N", "USHERS")
		run(t, tables, "-A", "INPUT", "-j", "USHERS")
	}
}

// TestFirewallWatch: networks that clients come from too are not dropped, and nothing is
// changed then; what probes make of connections and packets is let pass.
func TestFirewallWatch(t *testing.T) {
	t.Parallel()
	for method, hidden := range means {
		t.Run(method, func(t *testing.T) {
			ownNetwork(t, func(t *testing.T) {
				before := listing(t)
				hide(t, hidden...)
				port := serve(t, ":0", answer(0)).port
				visits := func(n int, from ...string) func() {
					return func() {
						for i := range n {
							if got := reach(t, from[i%len(from)], port, hang); got != "open" {
								t.Errorf("%s during the watch", got)
							}
						}
					}
				}
				pool := func(n int, from string, asks int) func(t *testing.T) func() {
					return func(t *testing.T) func() {
						var conns []net.Conn
						for range n {
							conns = append(conns, openFrom(t, from, port))
						}
						return func() {
							for i := range asks {
								ask(t, conns[i%n])
							}
						}
					}
				}
				fixed := func(act func()) func(*testing.T) func() { return func(*testing.T) func() { return act } }
				for _, tt := range []struct {
					name  string
					begin func(t *testing.T) func() // before the watch; what it gives is done during the watch
					code  int
					seen  firewallReport
				}{
					{"probes", fixed(visits(10, probe4, probe6)), 0, firewallReport{SYNs: 10}},
					{"clients elsewhere", fixed(visits(50, client4, client6)), 0, firewallReport{}},
					{"short connections", fixed(visits(11, probe4)), exitRefused, firewallReport{SYNs: 11}},
					{"short connections, IPv6", fixed(visits(11, probe6)), exitRefused, firewallReport{SYNs: 11}},
					{"two that hang", pool(2, probe4, 0), 0, firewallReport{Connections: 2, Lasting: 2}},
					{"a pool", pool(3, probe4, 0), exitRefused, firewallReport{Connections: 3, Lasting: 3}},
					{"a pool, IPv6", pool(3, probe6, 0), exitRefused, firewallReport{Connections: 3, Lasting: 3}},
					{"a pool of another's", pool(9, client4, 90), 0, firewallReport{}},
					{"a busy connection", pool(1, probe4, 40), exitRefused, firewallReport{Connections: 1, Lasting: 1}},
				} {
					dir := t.TempDir()
					var act func()
					t.Run(tt.name, func(t *testing.T) {
						act = tt.begin(t)
						between(t, dir, act)
						c := do(t, shells["dash"], failing(port).script(), dir)
						if c.code != tt.code || c.SYNs != tt.seen.SYNs || c.Connections != tt.seen.Connections || c.Lasting != tt.seen.Lasting {
							t.Errorf("want %d with %+v, got %v", tt.code, tt.seen, c)
						}
						if tt.code != 0 {
							becomes(t, port, all("open"))
						}
						done(t, shells["dash"], undoing.script(), method)
					})
				}
				// An undo that comes during the watch is not overtaken by it.
				dir := t.TempDir()
				between(t, dir, func() { done(t, shells["dash"], undoing.script(), method) })
				if c := do(t, shells["dash"], failing(port).script(), dir); c.code != exitUndone {
					t.Errorf("want it undone, got %v", c)
				}
				becomes(t, port, all("open"))
				show(t, hidden...)
				if after := listing(t); emptied(after) != emptied(before) {
					t.Errorf("left %s, it was %s", after, before)
				}
			})
		})
	}
}

// show ends what hide has done.
func show(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		for _, dir := range []string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
			_ = syscall.Unmount(filepath.Join(dir, p), syscall.MNT_DETACH)
		}
	}
}

// emptied is a listing without the empty chains that iptables makes when it is first used.
func emptied(listing string) string {
	return regexp.MustCompile(`(?s)(table ip6? filter \{\s*chain INPUT \{[^\n]*\n[^\n]*\n\s*\}\s*\}\s*)|\*filter\s|COMMIT\s`).ReplaceAllString(listing, "")
}

// TestFirewallLacks: a host that lacks what is needed says so, and one that lacks less
// says what it did not see.
func TestFirewallLacks(t *testing.T) {
	t.Parallel()
	everything := []string{"nft", "xtables-nft-multi", "xtables-legacy-multi"}
	for name, tt := range map[string]struct {
		f      firewall
		hidden []string
		env    string
		code   int
		want   string
	}{
		"no firewall":       {failing(80), everything, "", exitLacking, "no firewall to work with: nft: not there; iptables-nft: not there; iptables-legacy: not there"},
		"no firewall, RST":  {blocking(80), everything, "", exitLacking, "no firewall to work with"},
		"no firewall, undo": {undoing, everything, "", 0, `"method":"none"`},
		"no ss":             {failing(80), []string{"ss"}, "", 0, `"connections":-1`},
		"no id":             {failing(80), []string{"id"}, "", exitLacking, "there is no id"},
		"no sleep":          {failing(80), []string{"sleep"}, "", exitLacking, "there is no sleep"},
		"iptables alone":    {blocking(80), []string{"nft"}, "", 0, `"method":"iptables-nft"`},
	} {
		t.Run(name, func(t *testing.T) {
			ownNetwork(t, func(t *testing.T) {
				hide(t, tt.hidden...)
				if c := do(t, shells["dash"], tt.f.script()); c.code != tt.code || !strings.Contains(c.output, tt.want) {
					t.Errorf("want %d with %s, got %v", tt.code, tt.want, c)
				}
			})
		})
	}
	t.Run("not root", func(t *testing.T) {
		ownNetwork(t, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), "dash", "-s")
			cmd.Stdin = strings.NewReader(failing(80).script())
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
			out, _ := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != exitLacking || !strings.Contains(string(out), "only root") {
				t.Errorf("got %v: %s", cmd.ProcessState, out)
			}
		})
	})
}

// TestFirewallFullDisk: nothing needs to be written, so a disk that is full keeps nobody
// from draining. Of the shells bash is the one that uses files for itself.
func TestFirewallFullDisk(t *testing.T) {
	t.Parallel()
	for method, hidden := range means {
		t.Run(method, func(t *testing.T) {
			ownNetwork(t, func(t *testing.T) {
				hide(t, hidden...)
				port := serve(t, ":0", answer(0)).port
				for _, dir := range []string{"/tmp", "/run", "/var/tmp", "/dev/shm"} {
					if err := syscall.Mount("full", dir, "tmpfs", 0, "size=4k"); err != nil {
						t.Fatal(err)
					}
					if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 1<<16), 0o600); !errors.Is(err, syscall.ENOSPC) {
						t.Fatalf("%s is not full: %v", dir, err)
					}
					// Coverage is written there when the test is over.
					defer func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) }()
				}
				if err := os.Chdir("/tmp"); err != nil { // of this process alone
					t.Fatal(err)
				}
				done(t, shells["bash"], failing(port).script(), method)
				done(t, shells["bash"], blocking(port).script(), method)
				becomes(t, port, map[string]string{probe4: "dropped", probe6: "dropped", client4: "refused", client6: "refused"})
				done(t, shells["bash"], undoing.script(), method)
				becomes(t, port, all("open"))
			})
		})
	}
}

// TestFirewallByHand: the script as it is in the repository, with settings from the
// environment, says what is in force, and refuses settings that are wrong.
func TestFirewallByHand(t *testing.T) {
	t.Parallel()
	byHand := func(settings ...string) string {
		var b strings.Builder
		for _, s := range settings {
			name, value, _ := strings.Cut(s, "=")
			fmt.Fprintf(&b, "USHER_%s='%s'\n", name, value)
		}
		return b.String() + firewallScript
	}
	const none = `"probes":"","probe_ports":"","blocked_ports":""`
	for method := range means {
		t.Run(method, func(t *testing.T) {
			ownNetwork(t, func(t *testing.T) {
				status := func(want string) {
					t.Helper()
					if c := do(t, shells["dash"], byHand("ACTION=status")); c.code != 0 || !strings.Contains(c.output, want) {
						t.Errorf("want %s, got %v", want, c)
					}
				}
				status(none)
				done(t, shells["bash"], byHand("ACTION=fail_health_check", "PORTS=80 443", "PROBES=10.1.0.0/16 fd00::/64", "WATCH=1", "METHOD="+method), method)
				status(`"probes":"10.1.0.0/16 fd00::/64","probe_ports":"80 443","blocked_ports":""`)
				done(t, shells["busybox"], byHand("ACTION=block_connections", "PORTS=8080", "METHOD="+method), method)
				status(`"probes":"10.1.0.0/16 fd00::/64","probe_ports":"80 443","blocked_ports":"8080"`)
				done(t, shells["dash"], byHand("ACTION=block_connections", "PORTS=8080", "EXPIRES=1", "METHOD="+method), method)
				until(t, "the block is not in force", func() bool {
					return strings.Contains(do(t, shells["dash"], byHand("ACTION=status")).output, `"blocked_ports":""`)
				})
				done(t, shells["dash"], byHand("ACTION=undo"), method)
				status(none)
			})
		})
	}
	good := []string{"ACTION=fail_health_check", "PORTS=80", "PROBES=10.0.0.0/8", "WATCH=1"}
	for name, setting := range map[string]string{
		"action": "ACTION=exit", "no action": "ACTION=", "no ports": "PORTS=", "port 0": "PORTS=80 0", "port": "PORTS=65536", "ports": "PORTS=80;reboot",
		"no probes": "PROBES=", "probes": "PROBES=$(reboot)", "expires": "EXPIRES=1h", "expires 0": "EXPIRES=0", "watch": "WATCH=0", "rate": "PROBE_RATE=-1",
		"timeout": "TIMEOUT=x", "method": "METHOD=ufw", "long": "EXPIRES=12345678901",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if os.Getuid() != 0 {
				t.Skip("only root gets so far")
			}
			if c := do(t, shells["dash"], byHand(append(slices.Clone(good), setting)...)); c.code != exitUsage || c.Error == "" {
				t.Errorf("want it refused, got %v", c)
			}
		})
	}
}
