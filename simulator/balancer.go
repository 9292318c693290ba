package simulator

import (
	"context"
	"errors"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"slices"
	"sync"
	"time"
)

// maxLeft is how many members that have left a server group it still lists in State.
const maxLeft = 100

// The statuses of a server in a server group, as ALB and NLB write them. In a group of
// CLB every server is available: its changes take no time.
const (
	serverAdding      = "Adding"
	serverAvailable   = "Available"
	serverConfiguring = "Configuring"
	serverRemoving    = "Removing"
	serverRemoved     = "Removed" // of events
)

// balancer is a load balancer: server groups and the listeners that share requests out
// among them. What its API says and what traffic sees are the same members.
type balancer struct {
	cfg       BalancerConfig
	virtual   bool // no sockets and no health checks: members are state only
	created   time.Time
	groups    []*serverGroup
	listeners []*listener
	running   sync.WaitGroup // listeners, health checks, requests
	record    func(Event)    // called under the simulator's mutex

	settled time.Time // CLB: until then a change is still being applied; guarded by the simulator's mutex

	mu             sync.Mutex // guards all below, and the members; taken after the simulator's
	stopped        bool
	joined         int64
	passages       map[*passage]struct{}
	served, failed int64
}

// serverGroup is a set of servers. A balancer without an API, and CLB by default, has one
// under the balancer's own id.
type serverGroup struct {
	balancer *balancer
	cfg      ServerGroupConfig
	arn      string     // of a target group
	job      *serverJob // that changes it; guarded by the simulator's mutex
	waiting  []func()   // changes of Auto Scaling for when job is done; likewise

	// Guarded by the balancer's mutex.
	name    string
	members []*member
	byID    map[string][]*member // members of an instance
	left    []*member            // no new requests; the latest maxLeft
}

// listener is a port of a balancer, and the socket on loopback that stands for it.
type listener struct {
	cfg    ListenerConfig
	group  *serverGroup
	addr   string
	server *http.Server // nil for protocol tcp
	socket net.Listener // nil for protocol http
}

// member is one port of an instance in a server group. The instance has one server,
// whatever the port. Its fields are guarded by the balancer's mutex.
type member struct {
	group           *serverGroup
	seq             int64 // rises with the joining, in all of the balancer
	id, description string
	zone            string
	addr            netip.AddrPort // of the instance's server
	port            int            // as the API has it; 0 in a group without ports
	weight          int
	current         int // of the weighted turns
	status          string
	healthy         bool
	known           bool        // the health checks have come to a result once
	checked         bool        // a check has passed once
	streak          int         // checks in a row that contradict healthy
	why             checkResult // of the last check
	passages        map[*passage]struct{}
	served, failed  int64
	leftAt          time.Time
	drains          time.Time // until when connections may live on, if bounded
	leaves          time.Time // AWS: when its deregistration is over
	timers          []*time.Timer

	// Nil in a virtual balancer.
	transport *http.Transport
	proxy     *httputil.ReverseProxy
	ctx       context.Context // ends health checks
	close     context.CancelFunc
}

// passage is a request, or a connection of protocol tcp, on its way through.
type passage struct {
	listener *listener
	member   *member
	over     bool   // cut, or to be cut as soon as cut is there
	cut      func() // nil at first
}

// end cuts the passage. The caller holds the balancer's mutex.
func (p *passage) end() {
	p.over = true
	if p.cut != nil {
		p.cut()
	}
}

func newBalancer(cfg BalancerConfig, virtual bool, record func(Event), logger *slog.Logger) (*balancer, error) {
	b := &balancer{cfg: cfg, virtual: virtual, created: time.Now(), record: record, passages: map[*passage]struct{}{}}
	for _, g := range cfg.groups() {
		b.groups = append(b.groups, &serverGroup{balancer: b, cfg: g, name: g.Name, byID: map[string][]*member{}})
	}
	for _, l := range cfg.Listeners {
		i := slices.IndexFunc(b.groups, func(g *serverGroup) bool { return g.cfg.ID == l.ServerGroup })
		b.listeners = append(b.listeners, &listener{cfg: l, group: b.groups[i], addr: l.Listen})
	}
	if virtual {
		return b, nil
	}
	for _, l := range b.listeners {
		if err := b.open(l, logger); err != nil {
			b.stop()
			b.wait()
			return nil, err
		}
	}
	return b, nil
}

func (b *balancer) open(l *listener, logger *slog.Logger) error {
	socket, err := net.Listen("tcp", l.cfg.Listen)
	if err != nil {
		return err
	}
	l.addr = socket.Addr().String()
	if l.cfg.Protocol == protocolTCP {
		l.socket = socket
		b.running.Go(func() { b.accept(l) })
		return nil
	}
	l.server = &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.pass(l, w, r) }),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
	b.running.Go(func() { l.server.Serve(socket) })
	return nil
}

// find looks a member up by instance and port.
func (g *serverGroup) find(id string, port int) *member {
	for _, m := range g.byID[id] {
		if m.port == port {
			return m
		}
	}
	return nil
}

// join puts a member into the group. With status Available it gets requests once a
// health check has passed, or at once when healthy says so. The caller holds the
// balancer's mutex.
func (g *serverGroup) join(m *member, healthy bool) {
	b := g.balancer
	m.group = g
	b.joined++
	m.seq = b.joined
	m.healthy, m.checked, m.known = healthy, healthy, healthy
	m.passages = map[*passage]struct{}{}
	g.members = append(g.members, m)
	g.byID[m.id] = append(g.byID[m.id], m)
	m.tell(m.status)
	if b.virtual {
		return
	}
	m.ctx, m.close = context.WithCancel(context.Background())
	m.transport = &http.Transport{
		DialContext:         (&net.Dialer{Timeout: connectTimeout}).DialContext,
		MaxIdleConnsPerHost: 100,
		IdleConnTimeout:     time.Minute,
	}
	target := &url.URL{Scheme: "http", Host: m.addr.String()}
	m.proxy = &httputil.ReverseProxy{
		Transport:     m.transport,
		FlushInterval: -1,
		ErrorLog:      log.New(discard{}, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
			r.Out.Host = r.In.Host
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			r.Context().Value(attemptKey{}).(*attempt).failed = true
			http.Error(w, "the instance did not answer", http.StatusBadGateway)
		},
	}
	b.running.Go(func() { b.checkHealth(m) })
}

// connectTimeout is how long a balancer waits for a server to take a connection: that of
// AWS's application balancers. Less would make failures of a busy machine's pauses.
const connectTimeout = 10 * time.Second

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// retire takes a member out of the turns: no new requests, idle connections closed at
// once. What is on its way goes on, until the listener's drain timeout if it has one.
// The caller holds the balancer's mutex.
func (g *serverGroup) retire(m *member) {
	m.turn(serverRemoving)
	g.drain(m)
	if m.transport != nil {
		m.transport.CloseIdleConnections()
	}
}

// drop takes a member off the list, after retire if that has not been. The caller holds
// the balancer's mutex.
func (g *serverGroup) drop(m *member) {
	if m.status != serverRemoving {
		g.retire(m)
	}
	i := slices.Index(g.members, m)
	if i < 0 {
		return
	}
	g.members = slices.Delete(g.members, i, i+1)
	if g.byID[m.id] = slices.DeleteFunc(g.byID[m.id], func(x *member) bool { return x == m }); len(g.byID[m.id]) == 0 {
		delete(g.byID, m.id)
	}
	m.leftAt = time.Now()
	m.tell(serverRemoved)
	g.left = append(g.left, m)
	if len(g.left) > maxLeft {
		g.left = slices.Delete(g.left, 0, 1)
	}
	if m.close != nil {
		m.close()
	}
}

// drain sets when what is on its way through a removed or unhealthy member is cut.
func (g *serverGroup) drain(m *member) {
	m.keep()
	for _, l := range g.balancer.listeners {
		if l.group != g || l.drain() == 0 {
			continue
		}
		if end := time.Now().Add(l.drain()); end.After(m.drains) {
			m.drains = end
		}
		if !g.balancer.virtual {
			m.timers = append(m.timers, time.AfterFunc(l.drain(), func() { g.balancer.cutOff(m, l) }))
		}
	}
}

// keep lets what is on its way through a member live on without a limit.
func (m *member) keep() {
	for _, t := range m.timers {
		t.Stop()
	}
	m.timers, m.drains = nil, time.Time{}
}

// drain is after what time the connections of a removed or unhealthy server are cut; 0:
// never. CLB sets it on the listener, ALB and NLB on the server group.
func (l *listener) drain() time.Duration {
	return max(l.cfg.ConnectionDrainTimeout, l.group.cfg.ConnectionDrainTimeout)
}

// cutOff ends what a listener still passes to a member.
func (b *balancer) cutOff(m *member, l *listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for p := range m.passages {
		if p.listener == l {
			p.end()
		}
	}
}

// draining says whether connections of a member may be alive yet. A virtual member has
// connections as long as its balancer lets it. The caller holds the balancer's mutex.
func (m *member) draining(virtual bool) bool {
	if m.status != serverRemoving {
		return false
	}
	return len(m.passages) > 0 || virtual && time.Now().Before(m.drains)
}

// turn changes a member's status.
func (m *member) turn(status string) {
	m.status = status
	m.tell(status)
}

// tell records what became of a member. The caller holds the simulator's mutex and the
// balancer's.
func (m *member) tell(state string) {
	m.group.balancer.record(Event{Type: ServerChanged, Instance: m.id, ServerGroup: m.group.cfg.ID, Port: m.port, Weight: new(m.weight), State: state})
}

// inService says whether the member gets requests while it is healthy.
func (m *member) inService() bool {
	return m.leftAt.IsZero() && m.weight > 0 && (m.status == serverAvailable || m.status == serverConfiguring)
}

// pick chooses the member for one request or connection: smooth weighted turns among the
// healthy ones.
func (b *balancer) pick(l *listener) (*member, *passage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return nil, nil
	}
	var best *member
	total := 0
	open := l.group.failsOpen()
	for _, m := range l.group.members {
		if !m.inService() || !m.healthy && !open {
			continue
		}
		m.current += m.weight
		total += m.weight
		if best == nil || m.current > best.current {
			best = m
		}
	}
	if best == nil {
		b.failed++
		return nil, nil
	}
	best.current -= total
	p := &passage{listener: l, member: best}
	best.passages[p], b.passages[p] = struct{}{}, struct{}{}
	b.running.Add(1)
	return best, p
}

type attemptKey struct{}

// attempt is how one request went, told by the proxy's error handler.
type attempt struct{ failed bool }

// pass gives one request to one member. What the member fails is a 502, or a cut body
// when the answer had begun; it is never tried on another member.
func (b *balancer) pass(l *listener, w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	m, p := b.pick(l)
	if m == nil {
		http.Error(w, "no healthy instance", http.StatusServiceUnavailable)
		return
	}
	b.guard(p, cancel)
	failed := true // unless the proxy returns
	defer func() { b.finish(p, failed, r.Context().Err() != nil) }()
	tried := &attempt{}
	m.proxy.ServeHTTP(w, r.WithContext(context.WithValue(ctx, attemptKey{}, tried)))
	failed = tried.failed
}

// guard tells how to cut a passage, and cuts it if that was due already.
func (b *balancer) guard(p *passage, cut func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	p.cut = cut
	if p.over || b.stopped {
		cut()
	}
}

// finish counts a request. One that its own client gave up counts as neither.
func (b *balancer) finish(p *passage, failed, abandoned bool) {
	defer b.running.Done()
	b.mu.Lock()
	defer b.mu.Unlock()
	m := p.member
	delete(m.passages, p)
	delete(b.passages, p)
	switch {
	case abandoned:
	case failed:
		m.failed++
		b.failed++
	default:
		m.served++
		b.served++
	}
	if m.status == serverRemoving {
		// The connection of this request must not stay open as an idle one.
		m.transport.CloseIdleConnections()
	}
}

// checkHealth probes a member until it leaves.
func (b *balancer) checkHealth(m *member) {
	transport := &http.Transport{DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: b.cfg.HealthCheck.Timeout}
	ticker := time.NewTicker(b.cfg.HealthCheck.Interval)
	defer ticker.Stop()
	for {
		result := probe(m.ctx, client, "http://"+m.addr.String()+b.cfg.HealthCheck.Path)
		if m.ctx.Err() != nil {
			return
		}
		b.judge(m, result)
		select {
		case <-ticker.C:
		case <-m.ctx.Done():
			return
		}
	}
}

// checkResult is how one health check went.
type checkResult struct {
	status   int // of the answer; 0: there was none
	timedOut bool
}

func (r checkResult) ok() bool { return r.status > 0 && r.status < 400 }

func probe(ctx context.Context, client *http.Client, target string) checkResult {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return checkResult{}
	}
	res, err := client.Do(req)
	if err != nil {
		failure, ok := errors.AsType[*url.Error](err)
		return checkResult{timedOut: ok && failure.Timeout()}
	}
	res.Body.Close()
	return checkResult{status: res.StatusCode}
}

// judge counts one check. The first success of a new member is enough.
func (b *balancer) judge(m *member, result checkResult) {
	b.mu.Lock()
	defer b.mu.Unlock()
	ok := result.ok()
	m.why = result
	if ok == m.healthy && (ok || m.known) {
		m.streak = 0
		m.checked = m.checked || ok
		return
	}
	m.streak++
	switch {
	case ok && (!m.checked || m.streak >= b.cfg.HealthCheck.Rise):
		m.healthy, m.checked, m.known, m.streak = true, true, true, 0
		if m.status != serverRemoving {
			m.keep()
		}
	case !ok && m.streak >= b.cfg.HealthCheck.Fall:
		m.healthy, m.known, m.streak = false, true, 0
		if m.status != serverRemoving {
			m.group.fail(m)
		}
	}
}

func (b *balancer) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped || b.virtual {
		return
	}
	b.stopped = true
	for _, l := range b.listeners {
		if l.server != nil {
			l.server.Close()
		}
		if l.socket != nil {
			l.socket.Close()
		}
	}
	for p := range b.passages {
		p.end()
	}
	for _, g := range b.groups {
		for _, m := range slices.Concat(g.members, g.left) {
			m.close()
			m.keep()
			m.transport.CloseIdleConnections()
		}
	}
}

func (b *balancer) wait() { b.running.Wait() }

func (b *balancer) describe() BalancerState {
	b.mu.Lock()
	defer b.mu.Unlock()
	st := BalancerState{ID: b.cfg.ID, Type: b.cfg.Type, Address: b.listeners[0].addr, Served: b.served, Failed: b.failed}
	for _, l := range b.listeners {
		st.Listeners = append(st.Listeners, ListenerState{
			ID: l.cfg.ID, Port: l.cfg.Port, Protocol: l.cfg.Protocol, ServerGroup: l.group.cfg.ID, Address: l.addr,
		})
	}
	for _, g := range b.groups {
		st.ServerGroups = append(st.ServerGroups, ServerGroupState{ID: g.cfg.ID, Name: g.name, Status: g.status(), ARN: g.arn})
		for _, m := range slices.Concat(g.members, g.left) {
			x := MemberState{
				Instance: m.id, Address: m.addr.String(), ServerGroup: g.cfg.ID, Port: m.port, Weight: m.weight, Status: m.status,
				InService: m.inService(), Healthy: m.healthy, Draining: m.draining(b.virtual),
				InFlight: len(m.passages), Served: m.served, Failed: m.failed, Left: timePointer(m.leftAt),
			}
			if !m.leftAt.IsZero() {
				x.Status = ""
			}
			st.Members = append(st.Members, x)
		}
	}
	return st
}
