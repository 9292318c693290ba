package zerodrop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os/signal"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
)

// servicePort is where the backends listen.
const servicePort = 8080

// backendRole is the service on an instance: a Go server with the paths that the clients
// ask for, which SIGTERM shuts down as net/http does it.
type backendRole struct {
	Instance string
	// Plain has no way to be told of its end: no health, no drain, no count.
	Plain bool `json:",omitempty"`
}

// backend is the running service.
type backend struct {
	down     atomic.Bool // its health endpoints fail
	closing  atomic.Bool // answers carry Connection: close
	inFlight atomic.Int64
}

// run serves until SIGTERM, or until ctx ends.
func (r *backendRole) run(ctx context.Context) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", fmt.Sprintf(":%d", servicePort))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	b := &backend{}
	server := &http.Server{Handler: b.handler(r), ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Println("ready")
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	// A service does not stop before its requests have ended, however long that takes.
	if err := server.Shutdown(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("shut down: %w", err)
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (b *backend) handler(o *backendRole) http.Handler {
	service := http.NewServeMux()
	service.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	service.HandleFunc("GET /slow", slow)
	service.HandleFunc("GET /download", download)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		b.inFlight.Add(1)
		defer b.inFlight.Add(-1)
		w.Header().Set("X-Instance-Id", o.Instance)
		if b.closing.Load() {
			w.Header().Set("Connection", "close")
		}
		service.ServeHTTP(w, r)
	})
	if o.Plain {
		return mux
	}
	set := func(flag *atomic.Bool, to bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			flag.Store(to)
			w.WriteHeader(http.StatusNoContent)
		}
	}
	mux.HandleFunc("GET /healthz", b.health)
	mux.HandleFunc("GET /actuator/health", b.health)
	mux.HandleFunc("PUT /actuator/health/down", set(&b.down, true))
	mux.HandleFunc("PUT /actuator/health/up", set(&b.down, false))
	mux.HandleFunc("PUT /drain", set(&b.closing, true))
	mux.HandleFunc("DELETE /drain", set(&b.closing, false))
	mux.HandleFunc("GET /in_flight", func(w http.ResponseWriter, r *http.Request) {
		json.NewEncoder(w).Encode(map[string]int64{"in_flight": b.inFlight.Load()})
	})
	return mux
}

func (b *backend) health(w http.ResponseWriter, _ *http.Request) {
	if b.down.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, "health")
}

// slow answers after ?ms=.
func slow(w http.ResponseWriter, r *http.Request) {
	d, ok := milliseconds(w, r)
	if ok && rest(r.Context(), d) {
		fmt.Fprintln(w, "ok")
	}
}

// parts is in how many pieces a download is sent.
const parts = 40

// download sends ?kb= KB spread over ?ms=.
func download(w http.ResponseWriter, r *http.Request) {
	d, ok := milliseconds(w, r)
	if !ok {
		return
	}
	kb, err := strconv.Atoi(r.URL.Query().Get("kb"))
	if err != nil || kb < 1 || kb > 64<<10 {
		http.Error(w, "kb is 1 to 65536", http.StatusBadRequest)
		return
	}
	size := kb << 10
	w.Header().Set("Content-Length", strconv.Itoa(size))
	part := make([]byte, (size+parts-1)/parts)
	for size > 0 {
		n, err := w.Write(part[:min(size, len(part))])
		if err != nil {
			return
		}
		http.NewResponseController(w).Flush()
		if size -= n; size > 0 && !rest(r.Context(), d/parts) {
			return
		}
	}
}

func milliseconds(w http.ResponseWriter, r *http.Request) (time.Duration, bool) {
	ms, err := strconv.Atoi(r.URL.Query().Get("ms"))
	if err != nil || ms < 0 || ms > 600_000 {
		http.Error(w, "ms is 0 to 600000", http.StatusBadRequest)
		return 0, false
	}
	return time.Duration(ms) * time.Millisecond, true
}

// rest waits for d and says whether ctx let it.
func rest(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
