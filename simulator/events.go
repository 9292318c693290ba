package simulator

import (
	"slices"
	"time"
)

// EventType says what happened.
type EventType string

// What Events records.
const (
	MessageSent     EventType = "message_sent"
	MessageReceived EventType = "message_received"
	MessageExtended EventType = "message_extended" // ChangeMessageVisibility
	MessageVisible  EventType = "message_visible"  // its time hidden or delayed is over
	MessageDeleted  EventType = "message_deleted"
	MessageExpired  EventType = "message_expired" // retention is over
	// MessageDeadLettered: the queue's DlqPolicy has moved it to its target.
	MessageDeadLettered EventType = "message_dead_lettered"
	// MessagePublished: a topic has it, MessageID is the topic's. MessageDropped: a
	// subscription has given up, since its queue does not exist.
	MessagePublished EventType = "message_published"
	MessageDropped   EventType = "message_dropped"

	ActionStarted   EventType = "action_started"
	ActionHeartbeat EventType = "action_heartbeat"
	ActionCompleted EventType = "action_completed" // by CompleteLifecycleAction
	ActionTimedOut  EventType = "action_timed_out"
	ActionCancelled EventType = "action_cancelled" // another hook's result, or on AWS the instance's end, ended it early

	ActivityStarted EventType = "activity_started"
	ActivityEnded   EventType = "activity_ended"
	InstanceChanged EventType = "instance_state"

	// ServerChanged: a server's status in a server group, or its weight.
	ServerChanged EventType = "server_state"

	CommandStarted EventType = "command_started"
	CommandEnded   EventType = "command_ended"
)

// Event is one thing that happened in the simulated cloud. Only the fields that
// the type has a use for are set.
type Event struct {
	Seq  int64     `json:"seq"` // from 1, without gaps
	Time time.Time `json:"time"`
	Type EventType `json:"type"`

	Queue     string `json:"queue,omitempty"`
	Topic     string `json:"topic,omitempty"`
	MessageID string `json:"message_id,omitempty"`
	Receives  int    `json:"receives,omitempty"`

	Group    string `json:"group,omitempty"`
	Activity string `json:"activity,omitempty"`
	// Hook and Token name the lifecycle action. Events of a message that announces
	// one carry them too.
	Hook     string `json:"hook,omitempty"`
	Token    string `json:"token,omitempty"`
	Result   string `json:"result,omitempty"`
	Instance string `json:"instance,omitempty"`
	// ServerGroup and Port are those of a server; without an API the group is the balancer.
	ServerGroup string `json:"server_group,omitempty"`
	Port        int    `json:"port,omitempty"`
	Weight      *int   `json:"weight,omitempty"`
	// State is the instance's new lifecycle state, Released when it is gone, or how
	// an invocation or an activity ended. Of a server it is Adding, Available, Configuring,
	// Removing (no new requests from then on) or Removed.
	State      string `json:"state,omitempty"`
	Invocation string `json:"invocation,omitempty"`
	// Until is when a wait or a hidden message's time ends.
	Until *time.Time `json:"until,omitempty"`
}

// maxEvents is how many events are kept; the oldest go first.
const maxEvents = 200_000

// record appends an event. The caller holds s.mu.
func (s *Simulator) record(e Event) {
	if s.options.NoEvents {
		return
	}
	s.eventSeq++
	e.Seq, e.Time = s.eventSeq, time.Now()
	if len(s.events) >= 2*maxEvents {
		s.events = append(s.events[:0], s.events[len(s.events)-maxEvents:]...)
	}
	s.events = append(s.events, e)
}

// Events is the record of all that happened, in order. At least the last 200,000
// events are kept. It is empty with Options.NoEvents.
func (s *Simulator) Events() []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.events)
}
