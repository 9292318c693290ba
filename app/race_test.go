//go:build race

package app

import "testing"

// underRace: the race detector makes everything ten times slower.
const underRace = true

// hours is for a test of many simulated clouds one after the other: its code is raced by others.
func hours(t *testing.T) {
	t.Helper()
	t.Skip("under the race detector it takes too long; it runs without")
}
