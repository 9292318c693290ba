package firewall

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	tableName = "usher"
	chainName = "input"
	arrivals  = "arrivals"
	// priority is before the chains of others: what one of them drops is dropped, what
	// it accepts is not yet accepted.
	priority = -150
	// answerTimeout is how long the kernel may take for a batch.
	answerTimeout = 10 * time.Second
	// tries is how often a change is made anew because the ruleset has changed meanwhile.
	tries = 20
)

// table is "inet usher" and what is in it.
type table struct {
	*nftables.Table
	probes4, probes6, probePorts, blockedPorts, countedPorts *nftables.Set
	chain                                                    *nftables.Chain
}

func newTable() table {
	t := &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
	ends := func(s *nftables.Set) *nftables.Set { s.HasTimeout = true; return s }
	return table{
		Table:        t,
		probes4:      ends(networks(t, 1, "probes4", nftables.TypeIPAddr)),
		probes6:      ends(networks(t, 2, "probes6", nftables.TypeIP6Addr)),
		probePorts:   ends(ports(t, 3, "probe_ports")),
		blockedPorts: ends(ports(t, 4, "blocked_ports")),
		countedPorts: ends(ports(t, 5, "counted_ports")),
		chain: &nftables.Chain{
			Table: t, Name: chainName, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityRef(priority), Policy: new(nftables.ChainPolicyAccept),
		},
	}
}

// open makes a connection for one batch or one question.
func open() (*nftables.Conn, error) {
	return nftables.New(nftables.WithSockOptions(func(c *netlink.Conn) error {
		return c.SetDeadline(time.Now().Add(answerTimeout))
	}))
}

// Apply adds a change to the table, which is made if it is missing. All is one batch, in
// which the rules are made anew, so that they never double. What others have added stays:
// where somebody was faster, the kernel refuses the batch, and the change is made again on
// what the table says then. A watch, if there is one, ends in the same batch. The error
// matches ErrUndone when it was ended before, fs.ErrPermission without CAP_NET_ADMIN, and
// ErrUnsupported.
func Apply(ctx context.Context, c Change, w *Watch) error {
	var last error
	for range tries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		at, err := readGeneration()
		if err != nil {
			return fmt.Errorf("change the firewall: %w", unsupported(err))
		}
		before, err := Read()
		if err != nil {
			return err
		}
		if last = apply(before, at, c, w); last == nil {
			return nil
		} else if !isRace(last) {
			break
		} else if w != nil {
			if _, _, err := w.Counts(); err != nil {
				return err
			}
		}
	}
	if is(last, unix.ERESTART) {
		last = fmt.Errorf("others have changed it during each of %d tries: %w", tries, last)
	}
	return fmt.Errorf("change the firewall: %w", unsupported(last))
}

// isRace: the ruleset is of another generation than the one that had been read, or an
// element has ended since. A kernel that lacks a part of nftables says the latter too, each
// time.
func isRace(err error) bool {
	return is(err, unix.ERESTART) || is(err, unix.ENOENT) || is(err, unix.EEXIST)
}

// apply makes the change to a table that is as before says, in a ruleset of that generation.
func apply(before State, at generation, c Change, w *Watch) error {
	conn, socket, err := at.open()
	if err != nil {
		return err
	}
	defer socket.Close()
	if w != nil {
		conn.DelTable(w.own.table)
	}
	t := newTable()
	conn.AddTable(t.Table)
	for _, s := range []*nftables.Set{t.probes4, t.probes6, t.probePorts, t.blockedPorts, t.countedPorts} {
		if err := conn.AddSet(s, nil); err != nil {
			return err
		}
	}
	conn.AddObj(&nftables.CounterObj{Table: t.Table, Name: arrivals})
	conn.AddChain(t.chain)
	conn.FlushChain(t.chain)
	drop := []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}
	conn.AddRule(rule(t.chain, fromSet(t.probes4, false), opens(t.probePorts), drop))
	conn.AddRule(rule(t.chain, fromSet(t.probes6, false), opens(t.probePorts), drop))
	conn.AddRule(rule(t.chain, opens(t.countedPorts), []expr.Any{count(arrivals)}))
	conn.AddRule(rule(t.chain, opens(t.blockedPorts), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}))

	var wanted []Span
	for _, p := range c.Probes {
		wanted = append(wanted, spanOf(p, c.Expires))
	}
	had4, had6 := split(before.Probes)
	want4, want6 := split(addSpans(before.Probes, wanted))
	err = errors.Join(
		exchange(conn, t.probes4, had4, want4, spanElements),
		exchange(conn, t.probes6, had6, want6, spanElements),
		exchange(conn, t.countedPorts, before.CountedPorts, addPorts(before.CountedPorts, c.Ports, c.Expires), portElements),
	)
	if len(c.Probes) > 0 {
		err = errors.Join(err, exchange(conn, t.probePorts, before.ProbePorts, addPorts(before.ProbePorts, c.Ports, c.Expires), portElements))
	}
	if c.Block {
		err = errors.Join(err, exchange(conn, t.blockedPorts, before.BlockedPorts, addPorts(before.BlockedPorts, c.Ports, c.Expires), portElements))
	}
	if err != nil {
		return err
	}
	return conn.Flush()
}

// exchange takes out of a set what is no longer wanted, or for another time, and puts in
// what is new: an element's time cannot be changed on all kernels.
func exchange[T comparable](conn *nftables.Conn, set *nftables.Set, had, want []T, elements func([]T) []nftables.SetElement) error {
	if gone := difference(had, want); len(gone) > 0 {
		if err := conn.SetDeleteElements(set, elements(gone)); err != nil {
			return err
		}
	}
	if fresh := difference(want, had); len(fresh) > 0 {
		return conn.SetAddElements(set, elements(fresh))
	}
	return nil
}

// scriptWait is the table that a wait of the script counts in, and leaves if it is killed.
// Ours have one number more, and go with their process.
var scriptWait = regexp.MustCompile(`^usher_wait_[0-9]+$`)

// Undo deletes the table with all that is in it, and ends all watches, the script's too.
// It says whether there was a table; a host that can't have one has none.
func Undo() (bool, error) {
	tables, err := tables()
	if err != nil {
		return false, nothing(err)
	}
	// Watches first: else one that ends now could shut out again what is let in here.
	for _, t := range tables {
		if strings.HasPrefix(t.Name, watchPrefix) || scriptWait.MatchString(t.Name) {
			if _, err := remove(t); err != nil {
				return false, nothing(err)
			}
		}
	}
	removed, err := remove(newTable().Table)
	if err != nil {
		return false, nothing(err)
	}
	return removed, nil
}

// remove deletes a table and says whether it was there.
func remove(t *nftables.Table) (bool, error) {
	conn, err := open()
	if err != nil {
		return false, err
	}
	conn.DelTable(t)
	if err := conn.Flush(); is(err, unix.ENOENT) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	return true, nil
}

// tables are all of the family inet.
func tables() ([]*nftables.Table, error) {
	conn, err := open()
	if err != nil {
		return nil, err
	}
	return conn.ListTablesOfFamily(nftables.TableFamilyINet)
}

// nothing is nil where a kernel without nftables has no table to delete.
func nothing(err error) error {
	if err = unsupported(err); errors.Is(err, ErrUnsupported) {
		return nil
	}
	return fmt.Errorf("delete the firewall table: %w", err)
}

// Read says what the table holds now.
func Read() (State, error) {
	s, err := read()
	if err != nil {
		return State{}, fmt.Errorf("read the firewall: %w", unsupported(err))
	}
	return s, nil
}

// read takes a part that is missing, since somebody deletes the table, for an empty one.
func read() (State, error) {
	tables, err := tables()
	if err != nil {
		return State{}, err
	}
	t := newTable()
	if !slices.ContainsFunc(tables, func(other *nftables.Table) bool { return other.Name == t.Name }) {
		return State{}, nil
	}
	conn, err := open()
	if err != nil {
		return State{}, err
	}
	s := State{Present: true}
	for _, set := range []*nftables.Set{t.probes4, t.probes6} {
		elements, err := conn.GetSetElements(set)
		if err != nil && !is(err, unix.ENOENT) {
			return State{}, err
		}
		s.Probes = append(s.Probes, spans(elements)...)
	}
	for set, to := range map[*nftables.Set]*[]Port{t.probePorts: &s.ProbePorts, t.blockedPorts: &s.BlockedPorts, t.countedPorts: &s.CountedPorts} {
		elements, err := conn.GetSetElements(set)
		if err != nil && !is(err, unix.ENOENT) {
			return State{}, err
		}
		for _, e := range elements {
			if len(e.Key) >= 2 {
				*to = append(*to, Port{binary.BigEndian.Uint16(e.Key), e.Expires})
			}
		}
		sortPorts(*to)
	}
	if s.Arrivals, err = countOf(conn, t.Table, arrivals); err != nil && !is(err, unix.ENOENT) {
		return State{}, err
	}
	return s, nil
}

// spans reads the elements of a set of networks, which come in no order.
func spans(elements []nftables.SetElement) []Span {
	slices.SortFunc(elements, func(a, b nftables.SetElement) int {
		if c := bytes.Compare(a.Key, b.Key); c != 0 || a.IntervalEnd == b.IntervalEnd {
			return c
		} else if a.IntervalEnd {
			return -1 // of the one before
		}
		return 1
	})
	var spans []Span
	for i, e := range elements {
		first, ok := netip.AddrFromSlice(e.Key)
		if !ok || e.IntervalEnd {
			continue
		}
		s := Span{First: first, Last: last(netip.PrefixFrom(first, 0).Masked()), Expires: e.Expires}
		if i+1 < len(elements) {
			if next, ok := netip.AddrFromSlice(elements[i+1].Key); ok && next.Prev().IsValid() {
				s.Last = next.Prev()
			}
		}
		spans = append(spans, s)
	}
	return spans
}

// countOf reads a counter of a table.
func countOf(conn *nftables.Conn, t *nftables.Table, name string) (uint64, error) {
	o, err := conn.GetObject(&nftables.CounterObj{Table: t, Name: name})
	if err != nil {
		return 0, err
	}
	c, ok := o.(*nftables.CounterObj)
	if !ok {
		return 0, fmt.Errorf("the counter is a %T", o)
	}
	return c.Packets, nil
}

// is says whether the kernel has answered with the error. Of a question's error the package
// keeps the text alone.
func is(err error, e syscall.Errno) bool {
	return err != nil && (errors.Is(err, e) || strings.HasSuffix(err.Error(), ": "+e.Error()))
}

// unsupported makes an error match ErrUnsupported if it says that the kernel cannot, and
// fs.ErrPermission if this process may not.
func unsupported(err error) error {
	if is(err, unix.EPERM) {
		return fmt.Errorf("%w, CAP_NET_ADMIN is missing: %w", fs.ErrPermission, err)
	}
	for _, e := range []syscall.Errno{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.EAFNOSUPPORT, unix.ENOENT, unix.EINVAL} {
		if is(err, e) {
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
	}
	return err
}
