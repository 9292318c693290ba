package main

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"example.org/usher/host"
	"example.org/usher/host/hosttest"
)

// TestHostSettings: what is wrong with a setting is told with its name, as a flag or as a
// variable, in the report too, and ends with the script's exit code.
func TestHostSettings(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		args, env []string
		want      string
	}{
		"no ports":         {[]string{"wait"}, nil, "--ports: name 1 to 1000 ports"},
		"port 0":           {[]string{"wait", "--ports", "0"}, nil, `--ports: a port goes from 1 to 65535, got \"0\"`},
		"port text":        {[]string{"wait"}, []string{"USHER_PORTS=80;reboot"}, "USHER_PORTS: a port goes from 1 to 65535"},
		"bad network":      {[]string{"wait", "--ports", "80", "--exclude", "10.0.0.0/33"}, nil, "--exclude: "},
		"wide mapped":      {[]string{"wait", "--ports", "80", "--exclude", "::ffff:10.0.0.0/90"}, nil, "is more than IPv4"},
		"bad address":      {[]string{"wait", "--ports", "80"}, []string{"USHER_LOCAL=10.0.0.256"}, "USHER_LOCAL: "},
		"unknown until":    {[]string{"wait", "--ports", "80", "--until", "soon"}, nil, `\"soon\" is neither quiet nor zero`},
		"no checks":        {[]string{"wait", "--ports", "80", "--checks", "0"}, nil, "--checks: "},
		"no pause":         {[]string{"wait", "--ports", "80"}, []string{"USHER_EVERY=0"}, "USHER_EVERY: a time such as 0.5 or 3s"},
		"negative":         {[]string{"wait", "--ports", "80", "--gap", "-1s"}, nil, "--gap: "},
		"no number":        {[]string{"wait", "--ports", "80", "--background", "NaN"}, nil, "--background: "},
		"two at once":      {[]string{"wait", "--checks", "x", "--every", "x"}, nil, "--every: "},
		"nobody":           {[]string{"drain", "--ports", "80"}, nil, "(--probes)"},
		"no watch":         {[]string{"drain", "--ports", "80", "--probes", "10.0.0.1", "--watch", "0"}, nil, "--watch: at least 1s"},
		"everybody":        {[]string{"drain", "--ports", "80", "--probes", "0.0.0.0/0"}, nil, "0.0.0.0/0 is everybody"},
		"short":            {[]string{"drain", "--ports", "80", "--block", "--expires", "10ms"}, nil, "--expires: "},
		"expires for ever": {[]string{"drain", "--ports", "80", "--block", "--expires", "1e9"}, nil, "--expires: "},
	} {
		s := usherIn(t, t.Context(), c.env, "", append([]string{"host"}, c.args...)...)
		if s.code != hostExitUsage || !strings.Contains(s.stdout, `"error":"`) || !strings.Contains(s.stdout, c.want) || s.stderr != "" {
			t.Errorf("%s: got %+v, want exit %d and %s", name, s, hostExitUsage, c.want)
		}
	}
	s := usher(t, "", "host", "status", "--output", "xml")
	s.want(t, hostExitUsage, `--output: text or json, got "xml"`)
	usher(t, "", "host").want(t, exitUsage, "say which host command to run")
	usher(t, "", "host", "waits").want(t, exitUsage, `unknown command "waits"`)
	usher(t, "", "host", "wait", "80").want(t, exitUsage, "unknown command")
	usher(t, "", "host", "protocol", "reboot").want(t, exitUsage, "fail_health_check")
	for _, name := range []string{"drain", "wait", "undo", "status", "protocol"} {
		usher(t, "", "host", name, "--help").want(t, 0, "Examples:\n  ", "usher host "+name, "Usage:\n  usher host "+name)
	}
}

// TestHostCommands: drain, look, wait and undo, as a person does it.
func TestHostCommands(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	port := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)

	usher(t, "", "host", "status").want(t, 0, "nothing is shut out")
	usher(t, "", "host", "drain", "--ports", port, "--probes", "127.0.0.2/31,fd00::/64", "--expires", "600", "--watch", "1", "-o", "text").
		want(t, 0, "new connections from the probes' networks are dropped, for 10m0s")
	// As the script may leave it to usher, with its own settings for the other action.
	usherIn(t, t.Context(), []string{"USHER_PORTS=" + port, "USHER_PROBES=", "USHER_WATCH=0", "USHER_PROBE_RATE=0", "USHER_EXPIRES=600"}, "", "host", "drain", "--block").
		want(t, 0, `{"method":"native","action":"block_connections","expires":600}`)
	usher(t, "", "host", "status").want(t, 0, "dropped: new connections from 127.0.0.2/31 fd00::/64 to ports "+port, "refused: new connections to ports "+port, "0 others have knocked")
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("a connection comes through")
	}
	usher(t, "", "host", "status", "--output", "json").want(t, 0, `"probes":"127.0.0.2/31 fd00::/64","probe_ports":"`+port+`","blocked_ports":"`+port+`"`, `"arrivals":1}`)

	quick := []string{"host", "wait", "--every", "0.1", "--checks", "2", "--quiet-for", "200ms"}
	s := usherIn(t, t.Context(), []string{"USHER_PORTS=" + port, "USHER_TIMEOUT=10", "USHER_EXCLUDE="}, "", quick...)
	s.want(t, 0)
	if r := decodeJSON[host.Report](t, s.stdout); !r.Drained || r.Method != "native" || r.Established != 1 || r.Listeners != 1 || r.Arrivals != host.ArrivalsSYN {
		t.Errorf("got %+v", r)
	}
	usher(t, "", append(quick, "--ports", port, "--output", "text")...).want(t, 0, "drained after ", "1 connections, 0 busy")
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	usher(t, "", append(quick, "--ports", port, "--until", "zero", "--timeout", "1", "--output", "text")...).want(t, hostExitDeadline, "not drained after ", "1 busy, 1 live", " queue")
	usher(t, "", "host", "undo", "-o", "text").want(t, 0, "come through again")
	usher(t, "", "host", "undo").want(t, 0, `{"method":"native","action":"undo","removed":0}`)
	for range 3 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	for range 4 { // only then are they established on both sides, for sure
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { accepted.Close() })
	}
	usher(t, "", "host", "drain", "--ports", port, "--probes", "127.0.0.0/8", "--watch", "1s").want(t, hostExitRefused, `"error":"clients come from these networks`, `"lasting":4`)
}

// TestScriptPrefersUsher: the worker's script leaves the wait to an usher on the PATH,
// with all its settings, if that speaks the same protocol and can do it here.
func TestScriptPrefersUsher(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	script, err := os.ReadFile(filepath.Join("..", "..", "worker", "steps", "wait_connections.sh"))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	port := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)

	bin := filepath.Dir(buildUsher(t))
	if err := os.Chmod(bin, 0o755); err != nil { // for somebody else than root
		t.Fatal(err)
	}
	// run is what the script comes to with usher in a folder, by standard input as Cloud
	// Assistant may give it; the settings are not exported.
	run := func(nobody bool, folder string, settings ...string) (host.Report, int) {
		t.Helper()
		text := "PATH='" + folder + ":" + os.Getenv("PATH") + "'\nUSHER_PORTS='" + port + " 9'\n" + strings.Join(settings, "\n") + "\n" + string(script)
		cmd := exec.CommandContext(t.Context(), "sh", "-s")
		cmd.Stdin = strings.NewReader(text)
		if nobody {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if cmd.ProcessState == nil {
			t.Fatal(err)
		}
		r := decodeJSON[host.Report](t, string(out))
		t.Logf("%s%s", out, &stderr)
		return r, cmd.ProcessState.ExitCode()
	}
	quick := []string{"USHER_EVERY=0.1", "USHER_CHECKS=2", "USHER_QUIET_FOR=0.3", "USHER_TIMEOUT=20", "USHER_METHOD="}
	if r, code := run(false, bin, quick...); code != 0 || r.Method != "native" || !r.Drained || r.Established != 1 || r.Arrivals != host.ArrivalsSYN || r.Seconds < 0.3 {
		t.Errorf("got %+v, exit %d", r, code)
	}
	if r, code := run(true, bin, quick...); code != 0 || r.Method != "native" || r.Arrivals != host.ArrivalsPassiveOpens {
		t.Errorf("as nobody: got %+v, exit %d", r, code)
	}
	if r, code := run(false, bin, append(quick, "USHER_UNTIL=zero", "USHER_TIMEOUT=1")...); code != hostExitDeadline || r.Method != "native" || r.Live != 1 {
		t.Errorf("until zero: got %+v, exit %d", r, code)
	}
	if r, code := run(false, bin, append(quick, "USHER_UNTIL=zero", "USHER_EXCLUDE=127.0.0.0/8")...); code != 0 || r.Method != "native" || r.Live != 0 {
		t.Errorf("excluded: got %+v, exit %d", r, code)
	}
	if r, code := run(false, bin, append(quick, "USHER_METHOD=proc", "USHER_UNTIL=zero", "USHER_TIMEOUT=1")...); code != hostExitDeadline || r.Method != "proc" {
		t.Errorf("another method: got %+v, exit %d", r, code)
	}
	if r, code := run(false, bin, append(quick, "USHER_GAP=x")...); code != hostExitUsage {
		t.Errorf("a bad setting: got %+v, exit %d", r, code)
	}
	// Another program of this name, or another usher: it reads standard input if it may.
	for name, stub := range map[string]string{"old": "cat >/dev/null; echo 0; exit 2", "new": "cat >/dev/null; echo 2"} {
		folder := t.TempDir()
		hosttest.Program(t, folder, "usher", "#!/bin/sh\n"+stub+"\n")
		if r, code := run(false, folder, append(quick, "USHER_UNTIL=zero", "USHER_EXCLUDE=127.0.0.0/8")...); code != 0 || r.Method == "native" || !r.Drained {
			t.Errorf("an usher that is %s: got %+v, exit %d", name, r, code)
		}
	}
}

// TestFirewallScriptPrefersUsher: with usher on the PATH the worker's script leaves the
// firewall to it, on a host without nft and iptables; what each has set up, its undo removes.
func TestFirewallScriptPrefersUsher(t *testing.T) {
	t.Parallel()
	if !hosttest.InNamespace(t) {
		return
	}
	script, err := os.ReadFile(filepath.Join("..", "..", "worker", "steps", "firewall.sh"))
	if err != nil {
		t.Fatal(err)
	}
	tools := t.TempDir() // what the script needs, and no firewall's program
	for _, name := range []string{"sh", "id", "date", "tr", "sleep"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(path, filepath.Join(tools, name)); err != nil {
			t.Fatal(err)
		}
	}
	bin := filepath.Dir(buildUsher(t))
	run := func(path, action string, settings ...string) string {
		t.Helper()
		// The script puts the folders of the system behind the PATH.
		own := strings.ReplaceAll(string(script), ":/usr/sbin:/sbin", "")
		cmd := exec.CommandContext(t.Context(), "/bin/sh", "-s")
		cmd.Stdin = strings.NewReader("PATH='" + path + "'\nUSHER_ACTION=" + action + "\n" + strings.Join(append(settings, "USHER_PORTS=80"), "\n") + "\n" + own)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", action, err, out)
		}
		return string(out)
	}
	with := bin + ":" + tools
	drop := []string{"USHER_PROBES=192.0.2.0/24", "USHER_WATCH=1", "USHER_EXPIRES=600"}
	for _, step := range []struct {
		action   string
		settings []string
		want     []string
	}{
		{"fail_health_check", drop, []string{`"method":"native"`, `"expires":600`}},
		{"block_connections", []string{"USHER_EXPIRES=500"}, []string{`"method":"native"`}},
		{"status", nil, []string{`"method":"native"`, `"probes":"192.0.2.0/24"`, `"blocked_ports":"80"`}},
		{"undo", nil, []string{`"method":"native"`, `"removed":1`}},
		{"undo", nil, []string{`"method":"native"`, `"removed":0`}},
		{"status", nil, []string{`"probes":""`, `"blocked_ports":""`}},
	} {
		got := run(with, step.action, step.settings...)
		for _, want := range step.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s says %s, want %s", step.action, got, want)
			}
		}
	}
}
