//go:build race

package alibaba

import "testing"

// hours is for a test of hours of simulated calls, or of large answers: its code is raced by
// others.
func hours(t *testing.T) {
	t.Helper()
	t.Skip("under the race detector it takes too long; it runs without")
}
