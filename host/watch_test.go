package host

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"example.org/usher/host/sockdiag"
)

func settings(change func(*Settings)) Settings {
	s := Settings{
		Ports: []uint16{80}, Until: UntilQuiet, Checks: 3, Every: time.Second, QuietFor: 3 * time.Second, Longest: 10 * time.Second, Timeout: time.Minute,
	}
	if change != nil {
		change(&s)
	}
	return s
}

// conn is an established connection, used and idle for long.
func conn(peer string, change func(*sockdiag.Socket)) sockdiag.Socket {
	s := sockdiag.Socket{
		Family: sockdiag.IPv4, State: sockdiag.Established, Local: netip.MustParseAddrPort("10.0.0.1:80"), Peer: netip.MustParseAddrPort(peer), Cookie: 1,
		Info: sockdiag.Info{Known: true, Counted: true, SinceSent: 20_000, SinceReceived: 20_050, Sent: true, Received: true},
	}
	if change != nil {
		change(&s)
	}
	return s
}

func info(change func(*sockdiag.Info)) func(*sockdiag.Socket) {
	return func(s *sockdiag.Socket) { change(&s.Info) }
}

func state(st sockdiag.State) func(*sockdiag.Socket) {
	return func(s *sockdiag.Socket) { s.State = st }
}

// TestBusy: what one poll says of one socket.
func TestBusy(t *testing.T) {
	t.Parallel()
	type changed = func(*sockdiag.Socket)
	for name, tt := range map[string]struct {
		s    changed
		why  string // "": nobody waits for it
		live bool
		est  int
	}{
		"idle":                  {nil, "", true, 1},
		"never used":            {info(func(i *sockdiag.Info) { i.Sent, i.Received = false, false; i.SinceReceived = i.SinceSent }), "", true, 1},
		"unread":                {func(s *sockdiag.Socket) { s.RecvQueue = 1 }, "queue", true, 1},
		"unacknowledged":        {func(s *sockdiag.Socket) { s.SendQueue = 1 }, "queue", true, 1},
		"no tcp_info":           {info(func(i *sockdiag.Info) { *i = sockdiag.Info{} }), "unknown", true, 1},
		"sent lately":           {info(func(i *sockdiag.Info) { i.SinceSent = 2999 }), "recent", true, 1},
		"received lately":       {info(func(i *sockdiag.Info) { i.SinceReceived = 0 }), "recent", true, 1},
		"silent for just 3 s":   {info(func(i *sockdiag.Info) { i.SinceSent = 3000 }), "", true, 1},
		"received last":         {info(func(i *sockdiag.Info) { i.SinceReceived = 19_996 }), "unanswered", true, 1},
		"received, never sent":  {info(func(i *sockdiag.Info) { i.Sent = false; i.SinceSent = 10_000 }), "unanswered", true, 1},
		"same tick":             {info(func(i *sockdiag.Info) { i.SinceSent, i.SinceReceived = 9999, 9999 }), "same-tick", true, 1},
		"same tick, long ago":   {info(func(i *sockdiag.Info) { i.SinceReceived = i.SinceSent }), "", true, 1},
		"sent only":             {info(func(i *sockdiag.Info) { i.Received = false; i.SinceReceived = 5000 }), "", true, 1},
		"old kernel, sent":      {info(func(i *sockdiag.Info) { *i = sockdiag.Info{Known: true, SinceSent: 8000, SinceReceived: 9000} }), "", true, 1},
		"old kernel, received":  {info(func(i *sockdiag.Info) { *i = sockdiag.Info{Known: true, SinceSent: 9000, SinceReceived: 8000} }), "unanswered", true, 1},
		"old kernel, same tick": {info(func(i *sockdiag.Info) { *i = sockdiag.Info{Known: true, SinceSent: 9000, SinceReceived: 9000} }), "same-tick", true, 1},
		"handshake":             {state(sockdiag.SynRecv), "syn-recv", true, 0},
		"half closed":           {state(sockdiag.CloseWait), "close-wait", true, 0},
		"last bytes":            {state(sockdiag.FinWait1), "closing", true, 0},
		"last ack":              {state(sockdiag.LastAck), "closing", true, 0},
		"both closing":          {state(sockdiag.Closing), "closing", true, 0},
		"all arrived":           {state(sockdiag.FinWait2), "", false, 0},
		"over":                  {state(sockdiag.TimeWait), "", false, 0},
		"outgoing":              {state(sockdiag.SynSent), "", false, 0},
		"closed":                {state(sockdiag.Close), "", false, 0},
	} {
		w := newWatcher(settings(nil))
		w.begin(0)
		s := conn("192.0.2.1:5000", tt.s)
		w.socket(&s)
		if _, err := w.end(nil); err != nil {
			t.Fatal(err)
		}
		r := w.report(false)
		if r.Established != tt.est || (r.Live == 1) != tt.live || (r.Busy == 1) != (tt.why != "") || strings.TrimPrefix(strings.Join(r.Left, ","), "192.0.2.1:5000 ") != tt.why {
			t.Errorf("%s: got %+v, want %q", name, r, tt.why)
		}
	}
}

// poll gives a watcher one poll and says whether it was the last one.
func poll(t *testing.T, w *watcher, at time.Duration, count func() (uint64, error), sockets ...sockdiag.Socket) bool {
	t.Helper()
	w.begin(at)
	for i := range sockets {
		w.socket(&sockets[i])
	}
	done, err := w.end(count)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// lasts polls each second with the same sockets until the watcher is done, and says when
// that was; an hour: never.
func lasts(t *testing.T, w *watcher, sockets ...sockdiag.Socket) time.Duration {
	t.Helper()
	for at := time.Duration(0); at < time.Hour; at += w.Every {
		if poll(t, w, at, nil, sockets...) {
			return at
		}
	}
	return time.Hour
}

// TestDrained: when a wait ends that sees the same all the time.
func TestDrained(t *testing.T) {
	t.Parallel()
	idle, busy := conn("192.0.2.1:5000", nil), conn("192.0.2.1:5001", func(s *sockdiag.Socket) { s.RecvQueue = 1 })
	closing := conn("192.0.2.1:5002", state(sockdiag.LastAck))
	never := time.Hour
	for name, tt := range map[string]struct {
		s       func(*Settings)
		sockets []sockdiag.Socket
		want    time.Duration
	}{
		"nothing":                {nil, nil, 3 * time.Second},
		"idle":                   {nil, []sockdiag.Socket{idle}, 3 * time.Second},
		"busy":                   {nil, []sockdiag.Socket{idle, busy}, never},
		"closing":                {nil, []sockdiag.Socket{closing}, 7 * time.Second}, // 5 s, and the third clear poll
		"more checks":            {func(s *Settings) { s.Checks = 9 }, nil, 8 * time.Second},
		"no quiet":               {func(s *Settings) { s.QuietFor = 0 }, nil, 2 * time.Second},
		"gap":                    {func(s *Settings) { s.Gap = 10 * time.Second }, nil, 10 * time.Second},
		"zero, nothing":          {func(s *Settings) { s.Until = UntilZero }, nil, 2 * time.Second},
		"zero, idle":             {func(s *Settings) { s.Until = UntilZero }, []sockdiag.Socket{idle}, never},
		"zero, gap":              {func(s *Settings) { s.Until, s.Gap = UntilZero, 5*time.Second }, nil, 5 * time.Second},
		"excluded":               {func(s *Settings) { s.Exclude = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/31")} }, []sockdiag.Socket{busy}, 3 * time.Second},
		"excluded another":       {func(s *Settings) { s.Exclude = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/31")} }, []sockdiag.Socket{busy}, never},
		"another local address":  {func(s *Settings) { s.Local = netip.MustParseAddr("10.0.0.2") }, []sockdiag.Socket{busy}, 3 * time.Second},
		"the very local address": {func(s *Settings) { s.Local = netip.MustParseAddr("10.0.0.1") }, []sockdiag.Socket{busy}, never},
	} {
		w := newWatcher(settings(tt.s))
		if got := lasts(t, w, tt.sockets...); got != tt.want {
			t.Errorf("%s: got %v, want %v", name, got, tt.want)
		}
		if len(w.followed) > len(tt.sockets) {
			t.Errorf("%s: %d connections are followed", name, len(w.followed))
		}
	}
}

// TestClosing: last bytes are waited for as long as the peer goes on to acknowledge some.
func TestClosing(t *testing.T) {
	t.Parallel()
	w := newWatcher(settings(nil))
	c := conn("192.0.2.1:5000", state(sockdiag.FinWait1))
	c.SendQueue = 20_000
	for at := time.Duration(0); at < time.Minute; at += w.Every {
		if poll(t, w, at, nil, c) {
			if want := 17 * time.Second; at != want { // 10 s of bytes, 5 s, and the third clear poll
				t.Errorf("done after %v, want %v", at, want)
			}
			return
		}
		if at < 10*time.Second {
			c.SendQueue -= 1000
		}
	}
	t.Error("never done")
}

// TestTries: the tries count from the end of the gap, and only where there are any.
func TestTries(t *testing.T) {
	t.Parallel()
	for tries, want := range map[int]int{0: -1, 4: 8} {
		w := newWatcher(settings(func(s *Settings) { s.Until, s.Gap, s.Tries = UntilZero, 5*time.Second, tries }))
		given := -1
		for i := 0; i < 20 && given < 0; i++ {
			if poll(t, w, time.Duration(i)*time.Second, nil, conn("192.0.2.1:5000", nil)) {
				t.Fatal("drained with a live connection")
			}
			if w.given() {
				given = i
			}
		}
		if given != want {
			t.Errorf("%d tries: given up at second %d, want %d", tries, given, want)
		}
	}
}

// TestClearInARow: clear polls between busy ones do not add up.
func TestClearInARow(t *testing.T) {
	t.Parallel()
	w := newWatcher(settings(func(s *Settings) { s.QuietFor = 0 }))
	busy, idle := conn("192.0.2.1:5000", func(s *sockdiag.Socket) { s.SendQueue = 1 }), conn("192.0.2.1:5000", nil)
	for i, s := range []sockdiag.Socket{busy, idle, idle, busy, idle, idle} {
		if poll(t, w, time.Duration(i)*time.Second, nil, s) {
			t.Fatalf("drained at poll %d", i+1)
		}
	}
	if !poll(t, w, 6*time.Second, nil, idle) || w.report(true).Checks != 3 {
		t.Error("not drained with the third clear poll in a row")
	}
}

// TestNew: which connections are new, poll by poll.
func TestNew(t *testing.T) {
	t.Parallel()
	at := func(cookie uint64, st sockdiag.State) sockdiag.Socket {
		return conn("192.0.2.1:5000", func(s *sockdiag.Socket) { s.Cookie, s.State = cookie, st })
	}
	est, over, gone := sockdiag.Established, sockdiag.TimeWait, sockdiag.Socket{State: sockdiag.Close}
	for name, tt := range map[string]struct {
		polls []sockdiag.Socket
		want  int
	}{
		"there from the start":      {[]sockdiag.Socket{at(1, est), at(1, est)}, 0},
		"came":                      {[]sockdiag.Socket{gone, at(1, est), at(1, est)}, 1},
		"the pair was used again":   {[]sockdiag.Socket{at(1, est), at(2, est)}, 1},
		"handshake, then open":      {[]sockdiag.Socket{gone, at(1, sockdiag.SynRecv), at(1, est)}, 1},
		"over under another cookie": {[]sockdiag.Socket{at(1, est), at(9, over), at(9, over)}, 0},
		"used again after that":     {[]sockdiag.Socket{at(1, est), at(9, over), at(3, est)}, 1},
		"came and went":             {[]sockdiag.Socket{gone, at(9, over)}, 1},
	} {
		w := newWatcher(settings(nil))
		for i, s := range tt.polls {
			poll(t, w, time.Duration(i)*time.Second, nil, s)
		}
		if w.r.New != tt.want {
			t.Errorf("%s: %d new ones, want %d", name, w.r.New, tt.want)
		}
	}
	w := newWatcher(settings(nil))
	poll(t, w, 0, nil)
	poll(t, w, time.Second, nil, at(1, est), at(1, est), at(1, sockdiag.CloseWait)) // one that moves while the kernel lists
	if r := w.report(false); r.New != 1 || r.Live != 1 {
		t.Errorf("one that is seen three times: got %+v", r)
	}
	for i := range 20 {
		if done := poll(t, w, time.Duration(2+i)*time.Second, nil, at(1, est)); done != (i >= 2) {
			t.Fatalf("%d s after the new one: drained is %v", 1+i, done)
		}
	}
}

// TestArriving: the counter decides, but for the background.
func TestArriving(t *testing.T) {
	t.Parallel()
	count := func(n uint64) func() (uint64, error) { return func() (uint64, error) { return n, nil } }
	run := func(s Settings, counts ...uint64) (done bool, r Report) {
		w := newWatcher(s)
		for i, n := range counts {
			done = poll(t, w, time.Duration(i)*time.Second, count(n))
		}
		return done, w.report(done)
	}
	if done, r := run(settings(nil), 7, 7, 7, 7); !done || r.Arriving || r.PassiveOpens != 0 {
		t.Errorf("nothing arrives: got %v, %+v", done, r)
	}
	if done, r := run(settings(nil), 7, 8, 9, 10); done || !r.Arriving || r.PassiveOpens != 3 {
		t.Errorf("one a second: got %v, %+v", done, r)
	}
	if done, r := run(settings(nil), 7, 8, 8, 8); done || !r.Arriving {
		t.Errorf("one, 2 s ago: got %v, %+v", done, r)
	}
	if done, r := run(settings(nil), 7, 8, 8, 8, 8); !done || r.Arriving {
		t.Errorf("one, 3 s ago: got %v, %+v", done, r)
	}
	background := settings(func(s *Settings) { s.Background = 2 })
	if done, r := run(background, 0, 2, 4, 6, 8); !done || r.Arriving {
		t.Errorf("the background alone: got %v, %+v", done, r)
	}
	if done, r := run(background, 0, 2, 4, 7, 9); done || !r.Arriving {
		t.Errorf("more than the background: got %v, %+v", done, r)
	}
	if done, r := run(settings(nil), 1000, 1000, 3, 3); done || r.PassiveOpens != 3 {
		t.Errorf("a counter that begins anew: got %v, %+v", done, r)
	}
	if done, _ := run(settings(func(s *Settings) { s.Until = UntilZero }), 1, 2, 3); !done {
		t.Error("the classic rule is not blind to arrivals")
	}
	w := newWatcher(settings(nil))
	w.begin(0)
	broken := errors.New("broken")
	if _, err := w.end(func() (uint64, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
}

// TestLeft: ten at most are named, listeners are counted.
func TestLeft(t *testing.T) {
	t.Parallel()
	w := newWatcher(settings(func(s *Settings) { s.Until, s.Local = UntilZero, netip.MustParseAddr("10.0.0.1") }))
	var sockets []sockdiag.Socket
	for i := range 15 {
		sockets = append(sockets, conn(netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), uint16(5000+i)).String(), nil))
	}
	for _, at := range []string{"10.0.0.1:80", "[::]:80", "0.0.0.0:80", "10.0.0.2:80"} {
		sockets = append(sockets, sockdiag.Socket{State: sockdiag.Listen, Local: netip.MustParseAddrPort(at), Peer: netip.MustParseAddrPort("0.0.0.0:0")})
	}
	poll(t, w, 0, nil, sockets...)
	r := w.report(false)
	if len(r.Left) != 10 || r.Left[9] != "[2001:db8::1]:5009 idle" || r.Live != 15 || r.Listeners != 3 {
		t.Errorf("got %+v", r)
	}
}

func TestPassiveOpens(t *testing.T) {
	t.Parallel()
	const text = "Ip: Forwarding\nIp: 1\nTcp: RtoAlgorithm ActiveOpens PassiveOpens\nTcp: 1 22 4294967296\nUdp: InDatagrams\nUdp: 9\n"
	if n, err := parsePassiveOpens(text); n != 4294967296 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	for _, bad := range []string{"", "Tcp:\nTcp:\n", "Tcp: ActiveOpens\nTcp: 1\n", "Tcp: ActiveOpens PassiveOpens\nTcp: 1\n", "Tcp: PassiveOpens\nTcp: x\n"} {
		if n, err := parsePassiveOpens(bad); err == nil {
			t.Errorf("%q: got %d", bad, n)
		}
	}
}

// TestTraffic: what probes explain.
func TestTraffic(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		s    Seen
		want bool
	}{
		"nothing":              {Seen{Watched: 5}, false},
		"probes":               {Seen{Watched: 5, SYNs: 30, Packets: 30 * 8, Connections: 3, Lasting: 2}, false},
		"too many connections": {Seen{Watched: 5, SYNs: 31, Packets: 31 * 8}, true},
		"too many packets":     {Seen{Watched: 5, SYNs: 1, Packets: 46}, true},
		"too many open":        {Seen{Watched: 5, Connections: 51}, true},
		"they stay":            {Seen{Watched: 5, Connections: 3, Lasting: 3}, true},
	} {
		if got := tt.s.traffic(5); got != tt.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
