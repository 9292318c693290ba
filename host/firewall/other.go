//go:build !linux

package firewall

import (
	"context"
	"net/netip"
)

// Apply fails: only Linux has nftables.
func Apply(context.Context, Change, *Watch) error { return ErrUnsupported }

// Undo finds nothing to undo.
func Undo() (bool, error) { return false, nil }

// Read fails.
func Read() (State, error) { return State{}, ErrUnsupported }

// SYNs counts the first packets of connections, on Linux.
type SYNs struct{}

// CountSYNs fails.
func CountSYNs([]uint16, []netip.Prefix, netip.Addr) (*SYNs, error) { return nil, ErrUnsupported }

// Count fails.
func (*SYNs) Count() (uint64, error) { return 0, ErrUnsupported }

// Close does nothing.
func (*SYNs) Close() error { return nil }

// Watch counts what comes from some networks, on Linux.
type Watch struct{}

// StartWatch fails.
func StartWatch([]uint16, []netip.Prefix) (*Watch, error) { return nil, ErrUnsupported }

// Counts fails.
func (*Watch) Counts() (packets, opened uint64, err error) { return 0, 0, ErrUnsupported }

// Close does nothing.
func (*Watch) Close() error { return nil }
