package host

import (
	"encoding/binary"
	"math"
	"net/netip"
	"slices"
	"time"

	"example.org/usher/host/sockdiag"
)

const (
	// recent is how long after its last byte a connection is busy.
	recent = 3 * time.Second
	// closingFor is how long the last bytes of a connection are waited for since the peer
	// last acknowledged some. Peers that have vanished keep it closing for minutes.
	closingFor = 5 * time.Second
	maxLeft    = 10
)

// watcher judges polls of the sockets on the ports. A poll is begin, socket for each of
// them, and end.
type watcher struct {
	Settings
	r Report // of the last poll; New and Polls of all

	at       time.Duration // of this poll, since the first one
	clear    int
	tried    int // polls since the gap was over
	fresh    int
	followed map[pair]connection
	newest   time.Duration // of the last poll that has seen a new connection
	samples  []sample      // of the arrivals' counter, the first one at least QuietFor old
}

// pair is how a connection is known over polls: its addresses and ports, as bytes, which
// make the shortest key.
type pair [36]byte

func pairOf(s *sockdiag.Socket) (p pair) {
	local, peer := s.Local.Addr().As16(), s.Peer.Addr().As16()
	copy(p[0:], local[:])
	copy(p[16:], peer[:])
	binary.BigEndian.PutUint16(p[32:], s.Local.Port())
	binary.BigEndian.PutUint16(p[34:], s.Peer.Port())
	return p
}

type connection struct {
	cookie  uint64
	poll    int           // that has seen it last
	closing time.Duration // since when nothing was acknowledged; negative: it is not
	unsent  uint32        // of the last bytes
}

type sample struct {
	at    time.Duration
	count uint64
}

func newWatcher(s Settings) *watcher {
	return &watcher{Settings: s, followed: map[pair]connection{}}
}

// begin starts a poll, so long after the first one.
func (w *watcher) begin(at time.Duration) {
	w.at, w.fresh = at, 0
	w.r.Polls++
	w.r.Established, w.r.Live, w.r.Busy, w.r.Listeners = 0, 0, 0, 0
	w.r.Left = w.r.Left[:0]
}

// socket takes in one socket on one of the ports.
func (w *watcher) socket(s *sockdiag.Socket) {
	local := s.Local.Addr()
	if w.Local.IsValid() && local != w.Local && (s.State != sockdiag.Listen || !local.IsUnspecified()) {
		return
	}
	switch s.State {
	case sockdiag.Listen:
		w.r.Listeners++
		return
	case sockdiag.SynSent, sockdiag.Close:
		return
	}
	if w.excluded(s.Peer.Addr()) {
		return
	}
	key := pairOf(s)
	c, known := w.followed[key]
	if known && c.poll == w.r.Polls {
		return // it has changed its state while the kernel listed
	}
	// What is left of a connection that is over has a cookie of its own.
	over := s.State == sockdiag.FinWait2 || s.State == sockdiag.TimeWait
	if !known || c.cookie != s.Cookie && !over {
		c = connection{closing: -1}
		if w.r.Polls > 1 {
			w.fresh++
		}
	}
	c.cookie, c.poll = s.Cookie, w.r.Polls

	why := ""
	switch s.State {
	case sockdiag.Established:
		w.r.Established++
		w.r.Live++
		why = busy(s, w.Longest)
	case sockdiag.SynRecv:
		w.r.Live++
		why = "syn-recv"
	case sockdiag.CloseWait:
		w.r.Live++
		why = "close-wait"
	case sockdiag.FinWait1, sockdiag.LastAck, sockdiag.Closing:
		if c.closing < 0 || s.SendQueue < c.unsent {
			c.closing = w.at
		}
		c.unsent = s.SendQueue
		if w.at-c.closing < closingFor {
			w.r.Live++
			why = "closing"
		}
	}
	w.followed[key] = c
	if why != "" {
		w.r.Busy++
	}
	if len(w.r.Left) < maxLeft && (why != "" || w.Until == UntilZero && s.State == sockdiag.Established) {
		if why == "" {
			why = "idle"
		}
		w.r.Left = append(w.r.Left, s.Peer.String()+" "+why)
	}
}

func (w *watcher) excluded(peer netip.Addr) bool {
	return slices.ContainsFunc(w.Exclude, func(p netip.Prefix) bool { return p.Contains(peer) })
}

// busy says why an established connection is, or nothing: an answer is due, or was a
// moment ago.
func busy(s *sockdiag.Socket, longest time.Duration) string {
	i := s.Info
	switch {
	case s.RecvQueue > 0 || s.SendQueue > 0:
		return "queue"
	case !i.Known:
		return "unknown"
	}
	silent := time.Duration(min(i.SinceSent, i.SinceReceived)) * time.Millisecond
	received := i.Received || !i.Counted // where the kernel does not count, only the ages tell
	switch {
	case silent < recent:
		return "recent"
	case i.Received && !i.Sent || i.SinceReceived < i.SinceSent && received:
		return "unanswered"
	case i.SinceReceived == i.SinceSent && silent < longest && received:
		// Bytes in and out within one tick: an answer, or the next request behind it.
		return "same-tick"
	}
	return ""
}

// end ends a poll; done says that the connections are drained. Of the arrivals' counter
// it takes what it says now, if there is one.
func (w *watcher) end(counter func() (uint64, error)) (done bool, err error) {
	for key, c := range w.followed {
		if c.poll != w.r.Polls {
			delete(w.followed, key)
		}
	}
	w.r.New += w.fresh
	if w.fresh > 0 {
		w.newest = w.at
	}
	w.r.Arriving = false
	if w.Until == UntilQuiet && counter != nil {
		count, err := counter()
		if err != nil {
			return false, err
		}
		w.r.Arriving = w.arriving(count)
	}
	waitedFor := w.r.Busy
	if w.Until == UntilZero {
		waitedFor = w.r.Live
	}
	w.clear++
	if waitedFor > 0 {
		w.clear = 0
	}
	if w.at >= w.Gap {
		w.tried++
	}
	quiet := w.Until == UntilZero || w.at-w.newest >= w.QuietFor && !w.r.Arriving
	return w.clear >= w.Checks && w.at >= w.Gap && quiet, nil
}

// given says that the tries are used up.
func (w *watcher) given() bool { return w.Tries > 0 && w.tried >= w.Tries }

// arriving says whether the counter has grown by more than the background in the last
// QuietFor.
func (w *watcher) arriving(count uint64) bool {
	w.samples = append(w.samples, sample{w.at, count})
	old := 0
	for old < len(w.samples)-2 && w.samples[old+1].at <= w.at-w.QuietFor {
		old++
	}
	w.samples = slices.Delete(w.samples, 0, old)
	first := w.samples[0]
	grown := count - first.count
	if count < first.count {
		grown = count // it has begun anew
	}
	w.r.PassiveOpens = int(min(grown, math.MaxInt32))
	return float64(grown) > w.Background*(w.at-first.at).Seconds()
}

// report is what the polls so far came to.
func (w *watcher) report(drained bool) Report {
	tenths := func(d time.Duration) float64 { return math.Round(d.Seconds()*10) / 10 }
	r := w.r
	r.Method, r.Drained, r.Checks = "native", drained, w.clear
	r.Seconds, r.SinceNew = tenths(w.at), tenths(w.at-w.newest)
	r.Left = slices.Clone(r.Left)
	if r.Left == nil {
		r.Left = []string{}
	}
	return r
}
