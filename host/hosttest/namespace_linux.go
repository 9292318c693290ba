// Package hosttest gives tests a network of their own: connections, counters and firewall
// tables that nobody else touches, and that are gone with the test. And programs.
package hosttest

import (
	"errors"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inside names the test whose copy runs in a namespace.
const inside = "USHER_TEST_IN_NAMESPACE_OF"

// InNamespace runs the calling test again, in a process in a new network namespace that
// has nothing but a loopback interface, and says in which of both this is: the test goes on
// only where it is true. It must not be called by a subtest, and skips without root.
func InNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(inside) == t.Name() {
		if err := loopbackUp(); err != nil {
			t.Fatalf("bring the loopback interface up: %v", err)
		}
		return true
	}
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	args := []string{"-test.run=^" + regexp.QuoteMeta(t.Name()) + "$", "-test.count=1", "-test.v"}
	if testing.Short() {
		args = append(args, "-test.short")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), inside+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	switch {
	case cmd.ProcessState == nil && errors.Is(err, syscall.EPERM):
		t.Skipf("no network namespace: %v", err)
	case err != nil:
		t.Errorf("in a namespace of its own: %v\n%s", err, out)
	default:
		t.Logf("in a namespace of its own:\n%s", out)
	}
	return false
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// Enter moves the calling goroutine to a new network namespace, with its thread, which
// ends with it; programs that it starts come along. It is for what cannot run again in a
// process of its own, as benchmarks cannot.
func Enter(tb testing.TB) {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("a network namespace needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Skipf("no network namespace: %v", err)
	}
	if err := loopbackUp(); err != nil {
		tb.Fatalf("bring the loopback interface up: %v", err)
	}
}
