//go:build !race

package worker_test

import "testing"

const (
	// floodSize is how much garbage comes in one flood.
	floodSize = 100_000
	// fewSchedules are those of a run that says nothing of their number.
	fewSchedules = 250
	fewOnAWS     = 40
)

func hours(*testing.T) {}
