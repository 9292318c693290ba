//go:build !race

package demo

// underRace: the race detector makes everything ten times slower.
const underRace = false
