package steps

import (
	"errors"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestScriptHandshake: a handshake that is not over is work, for ss and for /proc.
// With TCP_DEFER_ACCEPT the kernel stays in it until the client's first byte.
func TestScriptHandshake(t *testing.T) {
	t.Parallel()
	for _, tools := range [][]string{{"awk", "sleep", "sh", "ss"}, {"awk", "sleep", "sh"}} {
		t.Run(strings.Join(tools, " "), func(t *testing.T) {
			t.Parallel()
			addr := loopback(1)
			lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
				var refused error
				err := c.Control(func(fd uintptr) {
					refused = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_DEFER_ACCEPT, 30)
				})
				return errors.Join(err, refused)
			}}
			l, err := lc.Listen(t.Context(), "tcp", at(addr, 0))
			if err != nil {
				t.Skipf("cannot listen with TCP_DEFER_ACCEPT: %v", err)
			}
			t.Cleanup(func() { l.Close() })
			connect(t, "", l.Addr().String())
			w := quick(l.Addr().(*net.TCPAddr).AddrPort().Port())
			w.LocalAddress = addr.String()
			o := watch(t, lasting(w, 600*time.Millisecond), sh, toolbox(t, tools...))
			if o.code != exitDeadline || o.Live != 1 || o.Established != 0 || !strings.HasSuffix(strings.Join(o.Left, ","), "syn-recv") {
				t.Errorf("want one handshake, got %v", o)
			}
		})
	}
}
