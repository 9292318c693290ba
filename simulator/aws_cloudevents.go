package simulator

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"
)

// The events of CloudEvent and CloudEventConfig.
const (
	eventSpot        = "spot_interruption"
	eventRebalance   = "rebalance_recommendation"
	eventScheduled   = "scheduled_change"
	eventStateChange = "state_change"
	// These announce nothing that anybody could do something about.
	eventLaunched     = "launch_successful"
	eventNotLaunched  = "launch_unsuccessful"
	eventTerminated   = "terminate_successful"
	eventNotTermnated = "terminate_unsuccessful"
	eventRefresh      = "instance_refresh"
	eventCapacity     = "capacity_reservation_interruption"
)

// noiseDetails are the events that only name something.
var noiseDetails = map[string]string{
	eventLaunched: "EC2 Instance Launch Successful", eventNotLaunched: "EC2 Instance Launch Unsuccessful",
	eventTerminated: "EC2 Instance Terminate Successful", eventNotTermnated: "EC2 Instance Terminate Unsuccessful",
	eventRefresh: "EC2 Auto Scaling Instance Refresh Started",
}

var cloudEventKinds = []string{
	eventSpot, eventRebalance, eventScheduled, eventStateChange,
	eventLaunched, eventNotLaunched, eventTerminated, eventNotTermnated, eventRefresh, eventCapacity,
}

// spotNotice is how long before its end an instance is warned.
const spotNotice = 2 * time.Minute

// CloudEvent is what EC2, Health or Auto Scaling tell of instances on the event bus, and no
// lifecycle hook does.
type CloudEvent struct {
	// Event is spot_interruption, rebalance_recommendation, scheduled_change, state_change, or
	// what a wide rule lets in besides: launch_successful, launch_unsuccessful,
	// terminate_successful, terminate_unsuccessful, instance_refresh and
	// capacity_reservation_interruption.
	Event string `json:"event"`
	// Instances it is about: one message for all of a scheduled change, one each of all others.
	// A spot interruption whose action is terminate takes them after two minutes.
	Instances []string `json:"instances"`
	// Queue is where the bus's rule sends it; empty: eventbridge.queue of the scenario.
	Queue string `json:"queue,omitempty"`
	// Action of a spot interruption: terminate (default), stop or hibernate.
	Action string `json:"action,omitempty"`
	// State of a state change; default shutting-down.
	State string `json:"state,omitempty"`
	// Start of a scheduled change; default two weeks ahead.
	Start time.Time `json:"start,omitzero"`
}

// CloudEventConfig has an event come by itself.
type CloudEventConfig struct {
	After time.Duration `yaml:"after"` // from the start of the simulator
	Event string        `yaml:"event"` // as in CloudEvent
	// Group and Count choose the instances: the oldest that are in service then.
	Group  string `yaml:"group"`
	Count  int    `yaml:"count"`
	Action string `yaml:"action"` // as in CloudEvent
	State  string `yaml:"state"`  // as in CloudEvent
}

func (e CloudEventConfig) event() CloudEvent {
	return CloudEvent{Event: e.Event, Action: e.Action, State: e.State}
}

func (e CloudEvent) check() error {
	switch {
	case !slices.Contains(cloudEventKinds, e.Event):
		return badInput("event must be one of %s, got %q", strings.Join(cloudEventKinds, ", "), e.Event)
	case e.Action != "" && !slices.Contains([]string{"terminate", "stop", "hibernate"}, e.Action):
		return badInput("action must be terminate, stop or hibernate, got %q", e.Action)
	case e.Action != "" && e.Event != eventSpot && e.Event != eventCapacity:
		return badInput("action is for event %s", eventSpot)
	case e.State != "" && powerCodes[e.State] == 0 && e.State != powerPending:
		return badInput("state must be one that EC2 knows, got %q", e.State)
	case e.State != "" && e.Event != eventStateChange:
		return badInput("state is for event %s", eventStateChange)
	case !e.Start.IsZero() && e.Event != eventScheduled:
		return badInput("start is for event %s", eventScheduled)
	}
	return nil
}

// SendCloudEvent has an event told on the bus and gives the ids of what was sent, as many as
// there are messages.
func (s *Simulator) SendCloudEvent(e CloudEvent) ([]string, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	set(&e.Queue, s.scenario.EventBridge.Queue)
	switch {
	case !s.aws():
		return nil, badInput("there are no such events on %s", s.scenario.Provider)
	case s.closed:
		return nil, badInput("the simulator is closed")
	case s.sqs[e.Queue] == nil:
		return nil, notFound("queue", e.Queue, slices.Sorted(maps.Keys(s.sqs)))
	case len(e.Instances) == 0:
		return nil, badInput("instances must name one or more")
	}
	var ins []*instance
	for _, id := range e.Instances {
		in := s.instances[id]
		if in == nil {
			return nil, &InputError{text: "there is no instance " + id, notFound: true}
		}
		ins = append(ins, in)
	}
	return s.sendCloudEvent(e.Queue, e, ins), nil
}

// sendCloudEvent tells of instances, and takes those of a spot interruption in time.
func (s *Simulator) sendCloudEvent(queue string, e CloudEvent, ins []*instance) []string {
	if e.Event == eventScheduled {
		return []string{s.sendToBus(queue, s.scheduledChange(e, ins), nil)}
	}
	var ids []string
	for _, in := range ins {
		ids = append(ids, s.sendToBus(queue, s.instanceEvent(e, in), nil))
		if e.Event == eventSpot && (e.Action == "" || e.Action == "terminate") {
			s.clock.at(time.Now().Add(spotNotice), func() { s.reclaim(in) })
		}
	}
	return ids
}

// instanceEvent is an event about one instance.
func (s *Simulator) instanceEvent(e CloudEvent, in *instance) busEvent {
	detail := map[string]string{"instance-id": in.id}
	b := busEvent{Source: "aws.ec2", Resources: []string{s.instanceARN(in.id)}, Detail: detail}
	switch e.Event {
	case eventSpot, eventCapacity:
		b.DetailType = "EC2 Spot Instance Interruption Warning"
		if e.Event == eventCapacity {
			b.DetailType = "EC2 Capacity Reservation Instance Interruption Warning"
		}
		// This one names the zone in place of region and account.
		b.Resources = []string{"arn:aws:ec2:" + in.zone + ":instance/" + in.id}
		detail["instance-action"] = "terminate"
		if e.Action != "" {
			detail["instance-action"] = e.Action
		}
	case eventRebalance:
		b.DetailType = "EC2 Instance Rebalance Recommendation"
	case eventStateChange:
		b.DetailType = "EC2 Instance State-change Notification"
		detail["state"] = powerShuttingDown
		if e.State != "" {
			detail["state"] = e.State
		}
	default:
		b.DetailType, b.Source = noiseDetails[e.Event], "aws.autoscaling"
		b.Resources = []string{s.autoScalingGroupARN(in.group), s.instanceARN(in.id)}
		b.Detail = map[string]string{"AutoScalingGroupName": in.group.cfg.ID, "EC2InstanceId": in.id, "ActivityId": s.newToken(), "StatusCode": "InProgress"}
	}
	return b
}

// healthDetail is the detail of an AWS Health event.
type healthDetail struct {
	EventARN          string              `json:"eventArn"`
	Service           string              `json:"service"`
	EventTypeCode     string              `json:"eventTypeCode"`
	EventTypeCategory string              `json:"eventTypeCategory"`
	EventScopeCode    string              `json:"eventScopeCode"`
	CommunicationID   string              `json:"communicationId"`
	StartTime         string              `json:"startTime"`
	EndTime           string              `json:"endTime"`
	LastUpdatedTime   string              `json:"lastUpdatedTime"`
	StatusCode        string              `json:"statusCode"`
	EventRegion       string              `json:"eventRegion"`
	EventDescription  []map[string]string `json:"eventDescription"`
	AffectedEntities  []healthEntity      `json:"affectedEntities"`
	Page              string              `json:"page"`
	TotalPages        string              `json:"totalPages"`
	AffectedAccount   string              `json:"affectedAccount"`
}

type healthEntity struct {
	EntityValue string            `json:"entityValue"`
	Tags        map[string]string `json:"tags,omitempty"`
}

// scheduledChange is the event that EC2 is to retire instances.
func (s *Simulator) scheduledChange(e CloudEvent, ins []*instance) busEvent {
	set(&e.Start, time.Now().Add(14*24*time.Hour))
	at := s.cloudTime(e.Start).UTC().Format(http.TimeFormat)
	const code = "AWS_EC2_INSTANCE_RETIREMENT_SCHEDULED"
	mark := s.newToken()
	d := healthDetail{
		EventARN: "arn:aws:health:" + s.scenario.Region + "::event/EC2/" + code + "/" + mark, Service: "EC2",
		EventTypeCode: code, EventTypeCategory: "scheduledChange", EventScopeCode: "ACCOUNT_SPECIFIC", CommunicationID: mark,
		StartTime: at, EndTime: at, LastUpdatedTime: s.cloudTime(time.Now()).UTC().Format(http.TimeFormat), StatusCode: "upcoming",
		EventRegion: s.scenario.Region, EventDescription: []map[string]string{{"language": "en_US", "latestDescription": "The instances are to be retired."}},
		Page: "1", TotalPages: "1", AffectedAccount: s.account,
	}
	b := busEvent{DetailType: "AWS Health Event", Source: "aws.health"}
	for _, in := range ins {
		b.Resources = append(b.Resources, in.id)
		d.AffectedEntities = append(d.AffectedEntities, healthEntity{EntityValue: in.id, Tags: in.group.cfg.Tags})
	}
	b.Detail = d
	return b
}

// reclaim takes a spot instance, whatever waits for it.
func (s *Simulator) reclaim(in *instance) {
	if s.instances[in.id] == in {
		s.vanish(in)
	}
}

// planCloudEvents sets when the scenario's events come.
func (s *Simulator) planCloudEvents() {
	for _, cfg := range s.scenario.CloudEvents {
		s.clock.at(time.Now().Add(cfg.After), func() {
			var ins []*instance
			for e := s.group(cfg.Group).instances.Front(); e != nil && len(ins) < cfg.Count; e = e.Next() {
				if in := e.Value.(*instance); in.state == stateInService {
					ins = append(ins, in)
				}
			}
			if len(ins) > 0 {
				s.sendCloudEvent(s.scenario.EventBridge.Queue, cfg.event(), ins)
			}
		})
	}
}

// controlCloudEvent answers POST /simulator/cloud-events.
func (s *Simulator) controlCloudEvent(r *http.Request) (int, any, error) {
	var e CloudEvent
	if err := readControl(r, &e, `{"event": "spot_interruption", "instances": ["i-0123456789abcdef0"]}`); err != nil {
		return 0, nil, err
	}
	ids, err := s.SendCloudEvent(e)
	return http.StatusCreated, map[string][]string{"ids": ids}, err
}
