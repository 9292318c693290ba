// Package worker is usher's state machine: it receives notifications, verifies them,
// keeps what it holds alive, runs one job per instance and answers once. It knows no
// cloud (see providers), no configuration file and no metric system; app hands it
// plain values.
//
// A lifecycle action goes one way:
//
//	judging --admit--> waiting --slot--> draining --settled--> answering --ack--> closed
//	   |                  |                 |                     |
//	   +--stale, lost, released, unrouted---+---- lost, over -----+--> closed
//
// From judging to closed the action's message is kept hidden by its queue's keeper,
// and from waiting to its answer the hook's wait is prolonged by its group's. An
// action that waits is a record with entries in two heaps; it has no goroutine of its
// own before its first job gets a slot.
//
// Every arrow is safe to repeat, since a crash anywhere ends in redelivery. What
// the message's lease on our own clock says decides whether the action may still be
// acted on: after a pause of the process it is renewed, or found lost, first.
package worker
