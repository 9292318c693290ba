package simulator

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"
)

func TestPipeListener(t *testing.T) {
	t.Parallel()
	l := NewPipeListener()
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(c, "hello")
		c.Close()
	}()
	c, err := l.DialContext(t.Context(), "tcp", "anything:80")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); string(b) != "hello" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.DialContext(ctx, "tcp", "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled dial: %v", err)
	}
	l.Close()
	l.Close()
	if _, err := l.DialContext(t.Context(), "tcp", "x"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("dial of a closed listener: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept of a closed listener: %v", err)
	}
}
