// Package load is the clients' side of the proof that a drain loses no request: many
// clients of different habits send requests over connections of their own, never
// repeat one, and write down what came of each.
//
// It speaks HTTP/1.1 over net.Conn by itself: http.Transport sends a GET again when a
// kept connection dies before an answer, and so hides what is to be counted. Where a
// client that repeats would have got its answer, the failure is counted and marked.
package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// The load at scale 1. The rates stay the same however long the answers take.
const (
	shortsPerSecond    = 100.0 // each on a new connection
	keepAliveClients   = 24
	keepAliveEvery     = 250 * time.Millisecond
	idleClients        = 9
	idleEvery          = 9 * time.Second
	slowsPerSecond     = 4.0
	downloadsPerSecond = 1.5
	downloadKB         = 256
)

// Lengths that Config has unless it says otherwise.
const (
	DefaultGiveUp           = 15 * time.Second
	DefaultSlow             = 3 * time.Second
	DefaultShortestDownload = 10 * time.Second
	DefaultLongestDownload  = 16 * time.Second
)

const (
	// MaxLength bounds a run, and with it the size of its record.
	MaxLength = time.Hour
	// slowAnswer is what a small request may take before it counts as slow.
	slowAnswer = 500 * time.Millisecond
	// longestRequest is how much longer than asked for an answer may take that
	// trickles on without a pause of GiveUp. It bounds the end of a run.
	longestRequest = 2 * time.Minute
	// tooLate is how far behind its schedule a request is not sent any more: after the
	// generator's machine stood still it would only add to a burst.
	tooLate = time.Second
)

// Config is what is sent, where, and for how long. Zero values are the defaults.
type Config struct {
	// Target is what all clients connect to. It answers 200 to GET /, /slow?ms= and
	// /download?kb=&ms= as the simulator's backends do.
	Target netip.AddrPort
	// Scale multiplies the rates and the numbers of clients; 0: 1.
	Scale float64
	// Kinds says which clients there are; none: all.
	Kinds []Kind
	// Length is for how long new requests are sent: above 0, at most MaxLength. Run
	// takes longer, until the last of them is over.
	Length time.Duration
	// GiveUp is how long a client waits for a connection, or for the next byte.
	GiveUp time.Duration
	// Slow is how long the slow requests ask their answer to take; below GiveUp.
	Slow time.Duration
	// ShortestDownload and LongestDownload bound how long downloads ask to take.
	ShortestDownload, LongestDownload time.Duration
	// Dial makes a connection; nil: a net.Dialer's. Another one may do it in another
	// network namespace, or in memory.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

func (c Config) withDefaults() (Config, error) {
	c.Scale = cmp.Or(c.Scale, 1)
	c.GiveUp = cmp.Or(c.GiveUp, DefaultGiveUp)
	c.Slow = cmp.Or(c.Slow, DefaultSlow)
	c.ShortestDownload = cmp.Or(c.ShortestDownload, DefaultShortestDownload)
	c.LongestDownload = cmp.Or(c.LongestDownload, max(c.ShortestDownload, DefaultLongestDownload))
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	switch {
	case !c.Target.IsValid():
		return c, errors.New("load: Target is not set")
	case c.Scale < 0.01 || c.Scale > 100:
		return c, fmt.Errorf("load: Scale must be 0.01 to 100, got %v", c.Scale)
	case c.Length <= 0 || c.Length > MaxLength:
		return c, fmt.Errorf("load: Length must be above 0 and at most %v, got %v", MaxLength, c.Length)
	case c.GiveUp < 0 || c.Slow < 0 || c.Slow >= c.GiveUp:
		return c, fmt.Errorf("load: Slow must be shorter than GiveUp, got %v and %v", c.Slow, c.GiveUp)
	case c.ShortestDownload < 0 || c.LongestDownload < c.ShortestDownload:
		return c, fmt.Errorf("load: downloads of %v to %v are not possible", c.ShortestDownload, c.LongestDownload)
	}
	return c, nil
}

// Run sends requests until c.Length has passed or ctx ends, waits for those in flight
// and says what came of all. The end of ctx cuts none: after it Run lasts for as long as
// the answers do, each at most GiveUp without a byte. The record is also there with an
// error that says that requests failed for want of something on the clients' own
// machine, such as ports or file descriptors: then it says nothing about the target.
func Run(ctx context.Context, c Config) (*Record, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	g := &generator{Config: c, host: c.Target.String(), began: time.Now()}
	g.record = newRecorder(g.began, c)
	sending, stop := context.WithDeadline(ctx, g.began.Add(c.Length))
	defer stop()
	for _, k := range Kinds {
		if len(c.Kinds) == 0 || slices.Contains(c.Kinds, k) {
			g.start(sending, k)
		}
	}
	g.running.Wait()
	return g.record.finish(time.Now())
}

// start runs the clients of one kind.
func (g *generator) start(sending context.Context, k Kind) {
	switch k {
	case Short:
		g.atRate(sending, k, shortsPerSecond, slowAnswer, func(int) request { return request{path: "/"} })
	case KeepAlive:
		g.keep(sending, k, keepAliveClients, keepAliveEvery)
	case Idle:
		g.keep(sending, k, idleClients, idleEvery)
	case Slow:
		g.atRate(sending, k, slowsPerSecond, g.Slow, func(int) request {
			return request{path: fmt.Sprintf("/slow?ms=%d", g.Slow.Milliseconds()), takes: g.Slow}
		})
	case Download:
		g.atRate(sending, k, downloadsPerSecond, g.LongestDownload, func(n int) request {
			takes := g.ShortestDownload + time.Duration(spread(n)*float64(g.LongestDownload-g.ShortestDownload))
			return request{path: fmt.Sprintf("/download?kb=%d&ms=%d", downloadKB, takes.Milliseconds()), size: downloadKB << 10, takes: takes}
		})
	}
}

// spread gives numbers from 0 to 1 that lie evenly, the same ones in each run.
func spread(n int) float64 {
	_, part := math.Modf(float64(n) * math.Phi)
	return part
}

// request is one request of a client and what a whole answer to it is.
type request struct {
	path string
	// size is the length of the body; 0: any.
	size int64
	// takes is how long the answer is asked to take.
	takes time.Duration
}

// generator is one run. All its goroutines are in running.
type generator struct {
	Config
	host    string
	began   time.Time
	record  *recorder
	running sync.WaitGroup
}

// atRate sends requests at a steady rate, each on a connection of its own, however long
// the answers take. As many may be in flight as there are when each takes until its
// client gives up; more are dropped, and counted.
func (g *generator) atRate(sending context.Context, k Kind, perSecond float64, longest time.Duration, next func(n int) request) {
	perSecond *= g.Scale
	places := make(chan struct{}, 1+int(perSecond*(longest+g.GiveUp).Seconds()))
	g.running.Go(func() {
		for n := 0; ; n++ {
			due := g.began.Add(time.Duration(float64(n) / perSecond * float64(time.Second)))
			if !g.turn(sending, due) {
				return
			}
			if time.Since(due) > tooLate {
				g.record.dropped(k, 1)
				continue
			}
			select {
			case places <- struct{}{}:
			default:
				g.record.dropped(k, 1)
				continue
			}
			g.running.Go(func() {
				defer func() { <-places }()
				g.once(k, next(n))
			})
		}
	})
}

// once sends one request on a connection of its own.
func (g *generator) once(k Kind, r request) {
	sent := g.record.sent(k)
	c, err := g.dial(k)
	if err != nil {
		g.record.failed(k, sent, noConnection(err))
		return
	}
	defer c.Close()
	answer, failure := c.exchange(r, false)
	if failure != nil {
		g.record.failed(k, sent, failure)
		return
	}
	g.record.answered(k, sent, answer)
}

// keep runs clients that keep one connection each, and send the next request a fixed
// time after the one before, spread evenly over that time.
func (g *generator) keep(sending context.Context, k Kind, clients int, every time.Duration) {
	n := max(1, int(math.Round(float64(clients)*g.Scale)))
	for i := range n {
		first := g.began.Add(every * time.Duration(i) / time.Duration(n))
		g.running.Go(func() { g.client(sending, k, first, every) })
	}
}

// client is one client that keeps its connection. As a careful client does, it sees
// that the server closed it between two requests, and then makes a new one.
func (g *generator) client(sending context.Context, k Kind, due time.Time, every time.Duration) {
	var c *conn
	drop := func() {
		if c != nil {
			c.Close()
			c = nil
		}
	}
	defer drop()
	for {
		if c != nil && !c.idle(sending, due) && sending.Err() == nil {
			g.record.closedIdle(k)
			drop()
		}
		if !g.turn(sending, due) {
			return
		}
		if c != nil && c.hasNews() {
			g.record.closedIdle(k)
			drop()
		}
		sent := g.record.sent(k)
		var answer *answer
		var failure *failure
		if c == nil {
			var err error
			if c, err = g.dial(k); err != nil {
				failure = noConnection(err)
			}
		}
		if failure == nil {
			answer, failure = c.exchange(request{path: "/"}, true)
		}
		if failure != nil {
			g.record.failed(k, sent, failure)
			drop()
		} else {
			g.record.answered(k, sent, answer)
			if answer.last {
				drop()
			}
		}
		due = due.Add(every)
		if late := time.Since(due); late > 0 { // its turn was over before the answer came
			missed := 1 + int(late/every)
			g.record.dropped(k, missed)
			due = due.Add(time.Duration(missed) * every)
		}
	}
}

// dial makes a connection, within GiveUp also when no more requests are to be sent.
func (g *generator) dial(k Kind) (*conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), g.GiveUp)
	defer cancel()
	c, err := g.Dial(ctx, "tcp", g.host)
	if err != nil {
		return nil, err
	}
	g.record.connected(k)
	return newConn(c, g.host, g.GiveUp), nil
}

// turn waits until a request is due and says whether it is to be sent.
func (g *generator) turn(sending context.Context, due time.Time) bool {
	if !due.Before(g.began.Add(g.Length)) {
		return false
	}
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-timer.C:
		return sending.Err() == nil
	case <-sending.Done():
		return false
	}
}
