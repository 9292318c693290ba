package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"example.org/usher/host/firewall"
	"example.org/usher/host/sockdiag"
)

// counter counts connections that arrive, whether a poll sees them or not.
type counter interface {
	Count() (uint64, error)
	Close() error
}

// Wait watches the connections until they are drained or the time is over; the report
// says which. It changes nothing on the host but for a firewall table that counts and is
// gone with the process. The error matches ErrLacking where the host can't tell.
func Wait(ctx context.Context, s Settings) (Report, error) {
	conn, err := sockdiag.Open()
	if err != nil {
		return Report{}, lacking("watch connections", err)
	}
	defer conn.Close()
	w := newWatcher(s)
	var arrivals counter
	w.r.Arrivals = ArrivalsSockets
	if s.Until == UntilQuiet {
		arrivals, w.r.Arrivals = arrivalsOf(s)
	}
	var count func() (uint64, error)
	if arrivals != nil {
		defer arrivals.Close()
		count = arrivals.Count
	}
	states := []sockdiag.State{
		sockdiag.Established, sockdiag.SynRecv, sockdiag.CloseWait, sockdiag.FinWait1, sockdiag.LastAck, sockdiag.Closing, sockdiag.Listen,
	}
	if w.r.Arrivals != ArrivalsSYN {
		states = append(states, sockdiag.FinWait2, sockdiag.TimeWait) // they tell that somebody was here
	}
	start := time.Now()
	for {
		w.begin(time.Since(start))
		if err := list(conn, s.Ports, states, w.socket); err != nil {
			return Report{}, lacking("watch connections", err)
		}
		done, err := w.end(count)
		if err != nil {
			return Report{}, fmt.Errorf("count what arrives: %w", err)
		}
		if done || w.given() || time.Since(start)+s.Every > s.Timeout {
			return w.report(done), nil
		}
		pause := time.NewTimer(s.Every)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return w.report(false), context.Cause(ctx)
		}
	}
}

// arrivalsOf is the best counter that this process may use, and its name.
func arrivalsOf(s Settings) (counter, string) {
	if c, err := firewall.CountSYNs(s.Ports, s.Exclude, s.Local); err == nil {
		return c, ArrivalsSYN
	}
	// It counts for all addresses of the host; where only one matters, it says nothing.
	if !s.Local.IsValid() {
		if _, err := (passiveOpens{}).Count(); err == nil {
			return passiveOpens{}, ArrivalsPassiveOpens
		}
	}
	return nil, ArrivalsSockets
}

// list calls each for every socket on the ports.
func list(conn *sockdiag.Conn, ports []uint16, states []sockdiag.State, each func(*sockdiag.Socket)) error {
	for _, family := range []uint8{sockdiag.IPv4, sockdiag.IPv6} {
		if err := conn.List(sockdiag.Query{Family: family, Ports: ports, States: states}, each); err != nil {
			return err
		}
	}
	return nil
}

// lacking tells what the host lacks from what has gone wrong, and nothing of neither.
func lacking(doing string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, sockdiag.ErrUnsupported) || errors.Is(err, firewall.ErrUnsupported) || errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%s: %w: %w", doing, ErrLacking, err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}
