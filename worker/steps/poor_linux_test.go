package steps

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// poorly runs the script on a host that a few lines of shell have made poorer, in a mount
// namespace of its own.
func poorly(t *testing.T, lines string, w WaitConnections, path string) outcome {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a mount namespace needs root")
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		t.Skip("unshare is not on this machine")
	}
	if out, err := exec.CommandContext(t.Context(), unshare, "--mount", "true").CombinedOutput(); err != nil {
		t.Skipf("no mount namespace: %v: %s", err, out)
	}
	script, err := w.script(sample)
	if err != nil {
		t.Fatal(err)
	}
	// All of it is one process, whose /proc/net the lines may change.
	lines = fmt.Sprintf("set -e\n%s\nPATH=%s\nexport PATH\nexec /bin/sh -s", lines, path)
	return execute(t, []string{unshare, "--mount", "sh", "-c", lines}, script, "PATH="+os.Getenv("PATH"))
}

// TestScriptOnAPoorHost: what a host lacks is said, or done without. It never passes for a
// drain.
func TestScriptOnAPoorHost(t *testing.T) {
	t.Parallel()
	withSS, withoutSS := []string{"awk", "sleep", "sh", "ss"}, []string{"awk", "sleep", "sh"}
	const noNet, noIPv6 = "mount -t tmpfs none /proc/$$/net", "mount -t tmpfs none /mnt; cp /proc/net/tcp /mnt/tcp; mount --bind /mnt /proc/$$/net"
	tests := map[string]struct {
		lines string
		tools []string
		until string
		want  string // "": drained
	}{
		"no proc":             {"mount -t tmpfs none /proc", withSS, UntilQuiet, "/proc/uptime cannot be read"},
		"no proc, no ss":      {"mount -t tmpfs none /proc", withoutSS, UntilQuiet, "/proc/uptime cannot be read"},
		"no counter":          {noNet, withSS, UntilQuiet, "/proc/net/snmp does not tell of new connections"},
		"no counter, zero":    {noNet, withSS, UntilZero, ""},
		"no /proc/net, no ss": {noNet, withoutSS, UntilZero, "neither ss nor /proc/net/tcp can be read"},
		"no IPv6, no ss":      {noIPv6, withoutSS, UntilZero, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := quick(9)
			w.Until = tt.until
			o := poorly(t, tt.lines, w, toolbox(t, tt.tools...))
			if tt.want == "" && o.code != exitDrained || tt.want != "" && (o.code != exitLacking || !strings.Contains(o.Error, tt.want)) {
				t.Errorf("want %q, got %v", tt.want, o)
			}
		})
	}
}

// TestScriptOnAFullDisk: the script needs no byte of it.
func TestScriptOnAFullDisk(t *testing.T) {
	t.Parallel()
	for _, tools := range [][]string{{"awk", "sleep", "sh", "ss"}, {"awk", "sleep", "sh"}} {
		addr := loopback(1)
		h := serve(t, at(addr, 0), nil)
		send(t, connect(t, "", at(addr, h.port)))
		full := fmt.Sprintf("mount -t tmpfs -o size=64k none /mnt; cp -a %s /mnt/tools\n", toolbox(t, tools...)) +
			"dd if=/dev/zero of=/mnt/full bs=4k count=99 2>/dev/null || :\n" +
			"for d in /tmp /var/tmp /run /dev/shm /root; do [ ! -d $d ] || mount --bind /mnt $d; done\n" +
			"if echo more >/tmp/more; then exit 1; fi; rm -f /tmp/more\ncd /tmp"
		w := quick(h.port)
		w.LocalAddress = addr.String()
		if o := poorly(t, full, lasting(w, time.Second), "/mnt/tools"); o.code != exitDeadline || o.Busy != 1 {
			t.Errorf("%v: want one busy, got %v", tools, o)
		}
		if o := poorly(t, full, quick(9), "/mnt/tools"); o.code != exitDrained {
			t.Errorf("%v: want drained, got %v", tools, o)
		}
	}
}
