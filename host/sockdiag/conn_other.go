//go:build !linux

package sockdiag

// Conn is a way to ask, on Linux.
type Conn struct{}

// Open fails: only Linux has sock_diag.
func Open() (*Conn, error) { return nil, ErrUnsupported }

// Close does nothing.
func (*Conn) Close() error { return nil }

// List fails.
func (*Conn) List(Query, func(*Socket)) error { return ErrUnsupported }
