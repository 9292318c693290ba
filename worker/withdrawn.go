package worker

import "time"

// Withdrawer is a Step that knows since when it has kept new work away from its instance.
// Of a step that is none it is assumed that it may have done so until its end: a command
// may make a health check fail, as an http step does.
type Withdrawer interface {
	// Withdrew gives that time for a run, which err is nil of if it was done. Zero: the step
	// does nothing of the kind.
	Withdrew(began, ended time.Time, err error) time.Time
}

// withdrawn is messages.Instance's, after a step that began at began and has ended now.
func (s PlannedStep) withdrawn(before, began time.Time, err error) time.Time {
	after := time.Now()
	if w, ok := s.Step.(Withdrawer); ok {
		after = w.Withdrew(began, after, err)
	}
	if after.After(before) {
		return after
	}
	return before
}
