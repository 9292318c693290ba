package steps

import (
	"errors"
	"testing"
	"time"
)

// TestWithdrew: what only looks, tells or refuses does not begin the balancers' gap anew.
func TestWithdrew(t *testing.T) {
	t.Parallel()
	type withdrawer interface {
		Withdrew(began, ended time.Time, err error) time.Time
	}
	began := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ended := began.Add(time.Minute)
	for name, tt := range map[string]struct {
		step any
		err  error
		want time.Time
	}{
		"wait":                  {Wait{}, nil, time.Time{}},
		"wait_connections":      {WaitConnections{}, nil, time.Time{}},
		"notify":                {Notify{}, nil, time.Time{}},
		"block_connections":     {BlockConnections{}, nil, time.Time{}},
		"in flight":             {HTTP{InFlight: true}, nil, time.Time{}},
		"http":                  {HTTP{}, nil, ended},
		"deregister":            {Deregister{}, nil, began},
		"deregister that fails": {Deregister{}, errors.New("not all of them"), ended},
	} {
		if got := tt.step.(withdrawer).Withdrew(began, ended, tt.err); !got.Equal(tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
	for name, step := range map[string]any{"command": Command{}, "exec": Exec{}, "fail_health_check": FailHealthCheck{}} {
		if _, ok := step.(withdrawer); ok {
			t.Errorf("%s knows when it has kept new work away", name)
		}
	}
}
