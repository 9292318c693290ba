package simulator

import (
	"crypto/md5"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"
)

// TopicConfig is one MNS topic.
type TopicConfig struct {
	Name           string               `yaml:"name"`
	MaxMessageSize int                  `yaml:"max_message_size"` // 1024..65536 bytes, default 65536
	Subscriptions  []SubscriptionConfig `yaml:"subscriptions"`
	// Delay is how long a message takes from the topic to its subscribers.
	Delay time.Duration `yaml:"delay"`
}

// SubscriptionConfig lets a queue get what is published to a topic. Other endpoints than
// queues there are none.
type SubscriptionConfig struct {
	Name  string `yaml:"name"`
	Queue string `yaml:"queue"`
	// FilterTag lets only messages with this tag through; empty: all.
	FilterTag string `yaml:"filter_tag"`
	// ContentFormat is XML (default), JSON or SIMPLIFIED, which is no envelope at all.
	ContentFormat string `yaml:"content_format"`
	// Strategy is BACKOFF_RETRY (default) or EXPONENTIAL_DECAY_RETRY: how often a push to a
	// queue that does not exist is repeated.
	Strategy string `yaml:"strategy"`
	// Encoding is base64 where the whole envelope is encoded once more on its way into the
	// queue; default plain. The vendor does not say that it is.
	Encoding string `yaml:"encoding"`
}

// EventBridgeConfig is the one event bus that there is, and the one rule that it has.
type EventBridgeConfig struct {
	Queue string        `yaml:"queue"` // where the rule sends events; empty: nowhere
	Delay time.Duration `yaml:"delay"` // how long an event takes
	// Data is where in an event's data the fields of a notification are, which the vendor
	// does not say: data (default), or content for data.content.
	Data     string `yaml:"data"`
	Encoding string `yaml:"encoding"` // plain (default) or base64
	// StateChanges, on AWS, has the rule let through the state changes of all instances.
	StateChanges bool `yaml:"state_changes"`
}

const (
	formatXML        = "XML"
	formatJSON       = "JSON"
	formatSimplified = "SIMPLIFIED"

	retryBackoff = "BACKOFF_RETRY"
	retryDecay   = "EXPONENTIAL_DECAY_RETRY"
	// How often a push is repeated (MNS 2015-06-06, NotifyStrategy).
	backoffRetries = 3
	decayRetries   = 176

	maxTopicName   = 255
	maxTag         = 16
	maxSubscribers = 100
	topicRetention = 24 * time.Hour
)

// topic hands what is published to it on to its subscriptions.
type topic struct {
	sim           *Simulator
	cfg           TopicConfig
	logging       bool
	created       time.Time
	modified      time.Time
	subscriptions map[string]*subscription
	published     int
}

type subscription struct {
	cfg      SubscriptionConfig
	topic    *topic
	created  time.Time
	modified time.Time
	pushed   int
	dropped  int
	gone     bool
}

// publication is one message of a topic.
type publication struct {
	id, body, md5, tag string
	at                 time.Time
	announces          *action
}

func (s *Simulator) newTopic(cfg TopicConfig) *topic {
	now := time.Now()
	t := &topic{sim: s, cfg: cfg, created: now, modified: now, subscriptions: map[string]*subscription{}}
	for _, c := range cfg.Subscriptions {
		t.subscribe(c)
	}
	return t
}

func (t *topic) subscribe(cfg SubscriptionConfig) {
	now := time.Now()
	t.subscriptions[cfg.Name] = &subscription{cfg: cfg, topic: t, created: now, modified: now}
}

// publish takes a message and pushes it to each subscription that its tag fits. The caller
// holds the simulator's mutex, as for all methods here.
func (t *topic) publish(body, tag string, announces *action) publication {
	sum := md5.Sum([]byte(body))
	p := publication{
		id: randomHex(16) + "-1-" + randomHex(11) + "-" + randomHex(8), body: body, md5: strings.ToUpper(hex.EncodeToString(sum[:])), tag: tag,
		at: time.Now(), announces: announces,
	}
	t.published++
	t.record(MessagePublished, p, nil)
	for _, name := range slices.Sorted(maps.Keys(t.subscriptions)) {
		sub := t.subscriptions[name]
		if sub.cfg.FilterTag == "" || sub.cfg.FilterTag == tag {
			t.sim.after(t.cfg.Delay, func() { sub.push(p, 0) })
		}
	}
	return p
}

func (t *topic) record(typ EventType, p publication, sub *subscription) {
	e := Event{Type: typ, Topic: t.cfg.Name, MessageID: p.id}
	if sub != nil {
		e.Queue = sub.cfg.Queue
	}
	if a := p.announces; a != nil {
		e.Hook, e.Token, e.Group, e.Activity = a.hook.cfg.ID, a.token, a.hook.group.cfg.ID, a.activity.id
	}
	t.sim.record(e)
}

// push puts a message into the subscription's queue. Where that does not exist it tries
// again, as the strategy says, and drops the message in the end.
func (sub *subscription) push(p publication, tried int) {
	if sub.gone {
		return
	}
	s := sub.topic.sim
	if q := s.queues[sub.cfg.Queue]; q != nil {
		sub.pushed++
		s.deliver(q, encode(sub.cfg.Encoding, sub.envelope(p)), p.announces)
		return
	}
	pause, most := 10*time.Second+rand.N(10*time.Second), backoffRetries
	if sub.cfg.Strategy == retryDecay {
		pause, most = min(time.Second<<min(tried, 9), 512*time.Second), decayRetries
	}
	if tried == most {
		sub.dropped++
		sub.topic.record(MessageDropped, p, sub)
		return
	}
	s.after(pause, func() { sub.push(p, tried+1) })
}

// envelope is what a subscriber gets of a message.
func (sub *subscription) envelope(p publication) string {
	s := sub.topic.sim
	published := s.cloudTime(p.at).UnixMilli()
	switch sub.cfg.ContentFormat {
	case formatSimplified:
		return p.body
	case formatJSON:
		text, _ := json.Marshal(struct {
			TopicOwner, TopicName, Subscriber, SubscriptionName, MessageId, Message, MessageMD5 string
			MessageTag                                                                          string `json:",omitempty"`
			PublishTime                                                                         string
		}{s.account, sub.topic.cfg.Name, s.account, sub.cfg.Name, p.id, p.body, p.md5, p.tag, strconv.FormatInt(published, 10)}) // texts only: cannot fail
		return string(text)
	}
	d := newXMLDoc("Notification")
	d.text("TopicOwner", s.account)
	d.text("TopicName", sub.topic.cfg.Name)
	d.text("Subscriber", s.account)
	d.text("SubscriptionName", sub.cfg.Name)
	d.text("MessageId", p.id)
	d.text("Message", p.body)
	d.text("MessageMD5", p.md5)
	if p.tag != "" {
		d.text("MessageTag", p.tag)
	}
	d.number("PublishTime", published)
	d.close("Notification")
	return d.String()
}

// encode writes text as a sender with that encoding does.
func encode(encoding, text string) string {
	if encoding == "base64" {
		return base64.StdEncoding.EncodeToString([]byte(text))
	}
	return text
}

// deliver puts what the cloud itself sends into a queue, with what a fault does to it.
func (s *Simulator) deliver(q *queue, text string, announces *action) {
	f, _ := s.strike("mns", "SendMessage", []FaultKind{FaultDuplicate, FaultCorrupt})
	if f.Kind == FaultCorrupt {
		text = garble(text)
	}
	m := q.send(text, defaultPriority, q.delay, announces)
	if f.Kind == FaultDuplicate {
		q.copy(m)
	}
}

// TopicState is one topic.
type TopicState struct {
	Name          string              `json:"name"`
	Published     int                 `json:"published"`
	Subscriptions []SubscriptionState `json:"subscriptions"` // by name
}

// SubscriptionState is one subscription and what became of the messages that passed its filter.
type SubscriptionState struct {
	Name          string `json:"name"`
	Queue         string `json:"queue"`
	FilterTag     string `json:"filter_tag,omitempty"`
	ContentFormat string `json:"content_format"`
	Strategy      string `json:"strategy"`
	Pushed        int    `json:"pushed"`
	Dropped       int    `json:"dropped"` // the queue did not exist for too long
}

func (cfg SubscriptionConfig) withDefaults() SubscriptionConfig {
	set(&cfg.ContentFormat, formatXML)
	set(&cfg.Strategy, retryBackoff)
	set(&cfg.Encoding, "plain")
	return cfg
}

func (c *checker) topics(sc Scenario, queues map[string]bool) map[string]bool {
	seen := map[string]bool{}
	for i, t := range sc.Topics {
		at := fmt.Sprintf("topics[%d].", i)
		c.unique(at+"name", t.Name, seen, queueNamePattern)
		if len(t.Name) > maxTopicName {
			c.add(at+"name", "at most %d characters, got %d", maxTopicName, len(t.Name))
		}
		if t.MaxMessageSize < minMessageSize || t.MaxMessageSize > maxMessageSize {
			c.add(at+"max_message_size", "must be %d to %d bytes, got %d", minMessageSize, maxMessageSize, t.MaxMessageSize)
		}
		c.between(at+"delay", t.Delay, 0, topicRetention)
		if len(t.Subscriptions) > maxSubscribers {
			c.add(at+"subscriptions", "at most %d, got %d", maxSubscribers, len(t.Subscriptions))
		}
		subscriptions := map[string]bool{}
		for j, sub := range t.Subscriptions {
			at := fmt.Sprintf("%ssubscriptions[%d].", at, j)
			c.unique(at+"name", sub.Name, subscriptions, queueNamePattern)
			if !queues[sub.Queue] {
				c.add(at+"queue", "no queue %q; there are %s", sub.Queue, names(queues))
			}
			if len(sub.FilterTag) > maxTag {
				c.add(at+"filter_tag", "at most %d characters, got %d", maxTag, len(sub.FilterTag))
			}
			c.oneOf(at+"content_format", sub.ContentFormat, formatXML, formatJSON, formatSimplified)
			c.oneOf(at+"strategy", sub.Strategy, retryBackoff, retryDecay)
			c.oneOf(at+"encoding", sub.Encoding, "base64", "plain")
		}
	}
	return seen
}

// targets checks where hooks and groups send what they have to say.
func (c *checker) targets(sc Scenario, queues, topics map[string]bool) {
	if q := sc.EventBridge.Queue; q != "" && !queues[q] {
		c.add("eventbridge.queue", "no queue %q; there are %s", q, names(queues))
	}
	c.between("eventbridge.delay", sc.EventBridge.Delay, 0, topicRetention)
	c.oneOf("eventbridge.data", sc.EventBridge.Data, "data", "content")
	c.oneOf("eventbridge.encoding", sc.EventBridge.Encoding, "base64", "plain")
	check := func(path, target string) {
		kind, name, _ := strings.Cut(target, "/")
		switch {
		case target == "" || target == targetEventBus:
		case kind == "queue" && !queues[name]:
			c.add(path, "no queue %q; there are %s", name, names(queues))
		case kind == "topic" && !topics[name]:
			c.add(path, "no topic %q; there are %s", name, names(topics))
		case kind != "queue" && kind != "topic":
			c.add(path, "must be queue/{name}, topic/{name} or %s, got %q", targetEventBus, target)
		}
	}
	for i, g := range sc.ScalingGroups {
		at := fmt.Sprintf("scaling_groups[%d].", i)
		check(at+"events", g.Events)
		for j, h := range g.Hooks {
			at := fmt.Sprintf("%shooks[%d].target", at, j)
			if h.Queue != "" && h.Target != "" {
				c.add(at, "the hook has queue already")
			}
			check(at, h.Target)
		}
	}
}
