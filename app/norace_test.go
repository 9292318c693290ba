//go:build !race

package app

import "testing"

// underRace: the race detector makes everything ten times slower.
const underRace = false

func hours(*testing.T) {}
