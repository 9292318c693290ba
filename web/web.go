// Package web serves what an orchestrator asks a worker: whether it is alive and
// whether it is of use.
package web

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

// Handler answers GET /healthz and GET /readyz with 200 and "ok", or with 503 and what
// is wrong, one problem a line. What note says, if anything, follows on /readyz: something
// that an operator should know and that keeps no worker from its work.
func Handler(healthy, ready func() error, note func() string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", answer(healthy, func() string { return "" }))
	mux.HandleFunc("GET /readyz", answer(ready, note))
	return mux
}

func answer(check func() error, note func() string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err := check(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
		} else {
			fmt.Fprintln(w, "ok")
		}
		if text := note(); text != "" {
			fmt.Fprintln(w, text)
		}
	}
}

// What one who can reach the endpoints can take of the worker: so many connections, each
// for so long, and so much memory for a request. Nobody who asks for health needs more,
// and the descriptors are the worker's own way to the cloud.
const (
	maxConnections = 64
	headerTimeout  = 5 * time.Second
	requestTimeout = 10 * time.Second
	idleTimeout    = 15 * time.Second
	maxHeader      = 4 << 10 // net/http reads 4 KB more
)

// Serve answers on l until ctx ends, and returns when no request is under way.
func Serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, ReadTimeout: requestTimeout, WriteTimeout: requestTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
	}
	l = &limited{Listener: l, slots: make(chan struct{}, maxConnections), done: make(chan struct{})}
	ended := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		ended <- server.Shutdown(grace)
	})
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve http on %s: %w", l.Addr(), err)
	}
	if err := <-ended; err != nil {
		return errors.Join(err, server.Close())
	}
	return nil
}

// limited accepts no more than len(slots) connections at a time. Others wait in the
// kernel's line.
type limited struct {
	net.Listener
	slots chan struct{} // a token for each open connection
	once  sync.Once
	done  chan struct{} // closed by Close
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.done:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &counted{Conn: c, slots: l.slots}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Listener.Close()
}

// counted gives its token back when it is closed.
type counted struct {
	net.Conn
	slots chan struct{}
	once  sync.Once
}

func (c *counted) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.slots })
	return err
}

// Check asks path of the worker at address, and gives its answer as an error unless
// it is "ok". It is what a container's health check runs.
func Check(ctx context.Context, address, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", address, err)
	}
	// A proxy would answer for itself.
	client := &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 16 << 10, DisableCompression: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask %s: %w", address, err)
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusSwitchingProtocols { // its body would outlast ctx
		return fmt.Errorf("%s%s: %s", address, path, res.Status)
	}
	text, err := io.ReadAll(io.LimitReader(res.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("ask %s: %w", address, err)
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s%s: %s: %s", address, path, res.Status, strings.TrimSpace(string(text)))
	}
	return nil
}
