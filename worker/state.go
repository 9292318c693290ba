package worker

// State is how far a lifecycle action has come in this worker.
type State string

const (
	// Judging: received and kept hidden; the cloud is asked whether it is true.
	Judging State = "judging"
	// Waiting: confirmed, its wait is prolonged; no job has a slot yet.
	Waiting State = "waiting"
	// Draining: jobs run.
	Draining State = "draining"
	// Answering: all jobs have settled; the result is being sent and the message deleted.
	Answering State = "answering"
	// Closed: nothing is done any more; the closing audit record is written.
	Closed State = "closed"
)

// event is what moves an action on.
type event string

const (
	eventAdmit  event = "admit"  // the cloud confirmed it, or policy did not ask
	eventStart  event = "start"  // a job has got a slot, or there is none to run
	eventSettle event = "settle" // all jobs have an outcome
	eventClose  event = "close"  // its end is decided and done
)

// next is the whole state machine. False: e means nothing in s, and nothing changes.
func next(s State, e event) (State, bool) {
	switch {
	case s == Closed:
		return s, false
	case e == eventClose:
		return Closed, true
	case s == Judging && e == eventAdmit:
		return Waiting, true
	case s == Waiting && e == eventStart:
		return Draining, true
	case s == Draining && e == eventSettle:
		return Answering, true
	}
	return s, false
}
