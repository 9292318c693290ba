package simulator

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// hosts gives instances their addresses and runs their servers. Where the host has
// all of 127.0.0.0/8 each instance has an address of its own and all the same port;
// elsewhere they share 127.0.0.1 and differ in port.
type hosts struct {
	port    uint16
	single  bool // only 127.0.0.1 exists
	running sync.WaitGroup
}

// hostsPerGroup is how many addresses 127.g.x.y there are with y from 1 to 254.
const hostsPerGroup = 254 * 256

func (h *hosts) open(noServers bool) error {
	if noServers {
		h.port = 80
		return nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	h.port = l.Addr().(*net.TCPAddr).AddrPort().Port()
	probe, err := net.Listen("tcp", netip.AddrPortFrom(loopback(0, 0), h.port).String())
	if err != nil {
		h.single = true
		return nil
	}
	return probe.Close()
}

func loopback(group, n int) netip.Addr {
	n %= hostsPerGroup
	return netip.AddrFrom4([4]byte{127, byte(1 + group), byte(n / 254), byte(1 + n%254)})
}

// address is what the n-th instance of a group gets. The port is 0 while unknown.
func (h *hosts) address(group, n int) netip.AddrPort {
	if h.single {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0)
	}
	return netip.AddrPortFrom(loopback(group, n), h.port)
}

// start runs the server of an instance.
func (h *hosts) start(id string, addr netip.AddrPort) (*backend, error) {
	l, err := net.Listen("tcp", addr.String())
	if err != nil { // somebody else has that very port
		l, err = net.Listen("tcp", netip.AddrPortFrom(addr.Addr(), 0).String())
	}
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &backend{id: id, addr: l.Addr().(*net.TCPAddr).AddrPort(), cancel: cancel}
	b.server = &http.Server{
		Handler:           b.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		BaseContext:       func(net.Listener) context.Context { return ctx },
	}
	h.running.Go(func() { b.server.Serve(l) })
	return b, nil
}

func (h *hosts) wait() { h.running.Wait() }

// backend is the service that runs on an instance.
type backend struct {
	id       string
	addr     netip.AddrPort
	server   *http.Server
	cancel   context.CancelFunc // ends requests in flight
	down     atomic.Bool
	warming  atomic.Bool // the service does not work yet
	closing  atomic.Bool // each answer ends its connection
	inFlight atomic.Int64
}

// stop cuts all connections, as a stopped machine does. A nil backend is no machine.
func (b *backend) stop() {
	if b == nil {
		return
	}
	b.server.Close()
	b.cancel()
}

// maxTrickle bounds what one request to a backend may ask for.
const (
	maxTrickle   = 10 * time.Minute
	maxDownload  = 64 << 10 // KB
	trickleParts = 20
)

func (b *backend) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, b.id) })
	mux.HandleFunc("GET /slow", b.slow)
	mux.HandleFunc("GET /download", b.download)
	mux.HandleFunc("GET /in_flight", b.countInFlight)
	mux.HandleFunc("GET /actuator/metrics/http.server.requests.active", b.measureInFlight)
	mux.HandleFunc("PUT /drain", b.setClosing(true))
	mux.HandleFunc("DELETE /drain", b.setClosing(false))
	mux.HandleFunc("GET /healthz", b.health)
	mux.HandleFunc("GET /actuator/health", b.health)
	mux.HandleFunc("PUT /actuator/health/down", func(w http.ResponseWriter, r *http.Request) {
		b.down.Store(true)
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("PUT /actuator/health/up", func(w http.ResponseWriter, r *http.Request) {
		b.down.Store(false)
		b.warming.Store(false)
		w.WriteHeader(http.StatusNoContent)
	})
	service := b.warm(mux)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.inFlight.Add(1)
		defer b.inFlight.Add(-1)
		w.Header().Set("X-Instance-Id", b.id)
		if b.closing.Load() {
			w.Header().Set("Connection", "close")
		}
		service.ServeHTTP(w, r)
	})
}

func (b *backend) health(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	status, text := http.StatusOK, "UP"
	if b.down.Load() {
		status, text = http.StatusServiceUnavailable, "DOWN"
	}
	w.WriteHeader(status)
	fmt.Fprintf(w, "{\"status\":%q}\n", text)
}

// countInFlight tells how many other requests the instance works on.
func (b *backend) countInFlight(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]int64{"in_flight": b.inFlight.Load() - 1})
}

// measureInFlight tells the same as an actuator does, which counts the question too.
func (b *backend) measureInFlight(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"name":"http.server.requests.active","measurements":[{"statistic":"ACTIVE_TASKS","value":%.1f}]}`+"\n", float64(b.inFlight.Load()))
}

// setClosing makes the answers that begin from now on end their connections, or not. Those
// that wait for a next request stay until that has come: none of them is cut.
func (b *backend) setClosing(on bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		b.closing.Store(on)
		w.WriteHeader(http.StatusNoContent)
	}
}

// slow answers after ?ms=.
func (b *backend) slow(w http.ResponseWriter, r *http.Request) {
	d, err := milliseconds(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if !rest(r.Context(), d) {
		panic(http.ErrAbortHandler)
	}
	fmt.Fprintln(w, b.id)
}

// download sends ?kb= KB spread over ?ms=.
func (b *backend) download(w http.ResponseWriter, r *http.Request) {
	d, err := milliseconds(r)
	kb, err2 := strconv.Atoi(r.URL.Query().Get("kb"))
	if err != nil || err2 != nil || kb < 1 || kb > maxDownload {
		http.Error(w, fmt.Sprintf("kb must be 1 to %d and ms 0 to %d", maxDownload, maxTrickle.Milliseconds()), http.StatusBadRequest)
		return
	}
	size := kb << 10
	w.Header().Set("Content-Length", strconv.Itoa(size))
	part := make([]byte, (size+trickleParts-1)/trickleParts)
	for size > 0 {
		n := min(size, len(part))
		if _, err := w.Write(part[:n]); err != nil {
			return
		}
		http.NewResponseController(w).Flush()
		size -= n
		if !rest(r.Context(), d/trickleParts) {
			panic(http.ErrAbortHandler)
		}
	}
}

func milliseconds(r *http.Request) (time.Duration, error) {
	text := r.URL.Query().Get("ms")
	n, err := strconv.Atoi(text)
	if d := time.Duration(n) * time.Millisecond; err == nil && d >= 0 && d <= maxTrickle {
		return d, nil
	}
	return 0, fmt.Errorf("ms must be 0 to %d, got %q", maxTrickle.Milliseconds(), text)
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
