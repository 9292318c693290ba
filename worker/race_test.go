//go:build race

package worker_test

import "testing"

// The race detector makes everything ten times slower; the full flood, and many schedules,
// come without it.
const (
	floodSize    = 2_000
	fewSchedules = 30
	fewOnAWS     = 8
)

// hours is for a test that polls a simulated queue for hours: its code is raced by others.
func hours(t *testing.T) {
	t.Helper()
	t.Skip("under the race detector it takes too long; it runs without")
}
