package simulator

import (
	"cmp"
	"context"
	"encoding/xml"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The refusals of topics (MNS 2015-06-06). The statuses of the last five are not documented.
var (
	errTopicExists        = &mnsError{409, "TopicAlreadyExist", "The topic you want to create is already exist."}
	errNoSubscription     = &mnsError{404, "SubscriptionNotExist", "The subscription name you provided is not exist."}
	errSubscriptionExists = &mnsError{409, "SubscriptionAlreadyExist", "The subscription you want to create is already exist."}
	errTopicName          = &mnsError{400, "TopicNameInvalid", "The topic name you provided is invalid."}
	errTopicNameLength    = &mnsError{400, "TopicNameLengthError", "The length of the topic name should between 1 and 255."}
	errSubscriptionName   = &mnsError{400, "SubscriptionNameInvalid", "The subscription name you provided is invalid."}
	errSubscriptionLength = &mnsError{400, "SubscriptionNameLengthError", "The length of the subscription name should between 1 and 255."}
	errEndpoint           = &mnsError{400, "EndpointInvalid", "The endpoint you provided is invalid."}
)

// routeTopics finds the operation of a path under /topics, whose parts are given.
func (c *mnsCall) routeTopics(parts []string) {
	if len(parts) > 1 {
		c.topic = parts[1]
	}
	if len(parts) == 4 {
		c.subscription = parts[3]
	}
	_, override := c.query["metaoverride"]
	switch {
	case c.topic == "" && len(parts) <= 2:
		c.pick("GET", "ListTopic")
	case len(parts) == 2:
		c.pick("GET", "GetTopicAttributes")
		c.pick("DELETE", "DeleteTopic")
		if override {
			c.pick("PUT", "SetTopicAttributes", "metaoverride")
		} else {
			c.pick("PUT", "CreateTopic")
		}
	case len(parts) == 3 && parts[2] == "messages":
		c.pick("POST", "PublishMessage")
	case len(parts) == 3 && parts[2] == "subscriptions":
		c.pick("GET", "ListSubscriptionByTopic")
	case len(parts) == 4 && parts[2] == "subscriptions":
		c.pick("GET", "GetSubscriptionAttributes")
		c.pick("DELETE", "Unsubscribe")
		if override {
			c.pick("PUT", "SetSubscriptionAttributes", "metaoverride")
		} else {
			c.pick("PUT", "Subscribe")
		}
	}
}

// resource is what a call is about, as RAM names it.
func (c *mnsCall) resource() string {
	if strings.HasPrefix(c.r.URL.Path, "/topics") {
		return strings.TrimSuffix(c.r.URL.Path, "/")
	}
	rest := strings.TrimSuffix("/queues/"+c.queue, "/")
	if parts := strings.Split(strings.Trim(c.r.URL.Path, "/"), "/"); len(parts) == 3 {
		rest += "/messages"
	}
	return rest
}

type topicDocument struct {
	XMLName            xml.Name
	MaximumMessageSize *string
	LoggingEnabled     *string
}

func (c *mnsCall) topicDocument() (topicDocument, *mnsError) {
	var doc topicDocument
	if len(c.body) == 0 {
		return doc, nil
	}
	return doc, parseXML(c.body, "Topic", &doc)
}

func (d topicDocument) apply(cfg TopicConfig, logging bool) (TopicConfig, bool, *mnsError) {
	if d.MaximumMessageSize != nil {
		n, ok := parseRange(*d.MaximumMessageSize, minMessageSize, maxMessageSize)
		if !ok {
			return cfg, logging, errRange("MaximumMessageSize", minMessageSize, maxMessageSize, " bytes")
		}
		cfg.MaxMessageSize = int(n)
	}
	if d.LoggingEnabled != nil {
		logging = strings.EqualFold(strings.TrimSpace(*d.LoggingEnabled), "true")
	}
	return cfg, logging, nil
}

// checkName wants a name of letters, digits and -.
func checkName(name string, bad, tooLong *mnsError) *mnsError {
	switch {
	case len(name) > maxTopicName:
		return tooLong
	case !queueNamePattern.MatchString(name):
		return bad
	}
	return nil
}

func (s *Simulator) createTopic(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	if bad := checkName(c.topic, errTopicName, errTopicNameLength); bad != nil {
		return nil, bad
	}
	doc, bad := c.topicDocument()
	if bad != nil {
		return nil, bad
	}
	cfg, logging, bad := doc.apply(TopicConfig{Name: c.topic, MaxMessageSize: maxMessageSize}, false)
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old := s.topics[c.topic]; old != nil {
		if old.cfg.MaxMessageSize == cfg.MaxMessageSize && old.logging == logging {
			return &response{status: http.StatusNoContent}, nil
		}
		return nil, errTopicExists
	}
	t := s.newTopic(cfg)
	t.logging = logging
	s.topics[c.topic] = t
	return s.created("/topics/" + c.topic), nil
}

// created answers with the place of what is new.
func (s *Simulator) created(path string) *response {
	return &response{status: http.StatusCreated, header: http.Header{"Location": {s.mnsHost() + path}}}
}

func (s *Simulator) setTopicAttributes(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	doc, bad := c.topicDocument()
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[c.topic]
	if t == nil {
		return nil, errTopicNotExist
	}
	cfg, logging, bad := doc.apply(t.cfg, t.logging)
	if bad != nil {
		return nil, bad
	}
	t.cfg, t.logging, t.modified = cfg, logging, time.Now()
	return &response{status: http.StatusNoContent}, nil
}

func (s *Simulator) getTopicAttributes(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[c.topic]
	if t == nil {
		return nil, errTopicNotExist
	}
	d := newXMLDoc("Topic")
	d.text("TopicName", t.cfg.Name)
	d.number("CreateTime", t.created.Unix())
	d.number("LastModifyTime", t.modified.Unix())
	d.number("MaximumMessageSize", int64(t.cfg.MaxMessageSize))
	d.number("MessageRetentionPeriod", int64(topicRetention/time.Second))
	d.number("MessageCount", 0) // all are handed on at once
	d.text("LoggingEnabled", strconv.FormatBool(t.logging))
	return d.end("Topic", http.StatusOK), nil
}

func (s *Simulator) deleteTopic(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.topics[c.topic]; t != nil {
		for _, sub := range t.subscriptions {
			sub.gone = true
		}
		delete(s.topics, c.topic)
	}
	return &response{status: http.StatusNoContent}, nil
}

func (s *Simulator) listTopic(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.listNames(c, slices.Sorted(maps.Keys(s.topics)), "Topic", "/topics/")
}

// listNames writes a page of a listing: <Topics><Topic><TopicURL/></Topic>..<NextMarker/></Topics>.
func (s *Simulator) listNames(c *mnsCall, all []string, what, path string) (*response, *mnsError) {
	limit := int64(1000)
	if text := c.r.Header.Get("x-mns-ret-number"); text != "" {
		n, ok := parseRange(text, 1, 1000)
		if !ok {
			return nil, errRange("x-mns-ret-number", 1, 1000, "")
		}
		limit = n
	}
	prefix, marker := c.r.Header.Get("x-mns-prefix"), c.r.Header.Get("x-mns-marker")
	d := newXMLDoc(what + "s")
	for _, name := range all {
		if !strings.HasPrefix(name, prefix) || name < marker {
			continue
		}
		if limit == 0 {
			d.text("NextMarker", name)
			break
		}
		limit--
		d.open(what)
		d.text(what+"URL", s.mnsHost()+path+url.PathEscape(name))
		d.close(what)
	}
	return d.end(what+"s", http.StatusOK), nil
}

func (s *Simulator) publishMessage(_ context.Context, c *mnsCall, fx effects) (*response, *mnsError) {
	var doc struct {
		XMLName     xml.Name
		MessageBody *string
		MessageTag  *string
	}
	if bad := parseXML(c.body, "Message", &doc); bad != nil {
		return nil, bad
	}
	tag := ""
	if doc.MessageTag != nil {
		tag = *doc.MessageTag
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[c.topic]
	if t == nil {
		return nil, errTopicNotExist
	}
	out, bad := sentMessage{MessageBody: doc.MessageBody}.check(t.cfg.MaxMessageSize)
	if bad != nil {
		return nil, bad
	}
	if len(tag) > maxTag {
		return nil, errRange("MessageTag", 0, maxTag, "")
	}
	if fx.corrupt {
		out.body = garble(out.body)
	}
	p := t.publish(out.body, tag, nil)
	if fx.duplicate {
		t.publish(out.body, tag, nil)
	}
	d := newXMLDoc("Message")
	d.text("MessageId", p.id)
	d.text("MessageBodyMD5", p.md5)
	return d.end("Message", http.StatusCreated), nil
}

type subscriptionDocument struct {
	XMLName             xml.Name
	Endpoint            *string
	FilterTag           *string
	NotifyStrategy      *string
	NotifyContentFormat *string
}

// apply sets on cfg what the document has. An endpoint other than a queue of the same
// region and account is refused: nothing else is pushed to here.
func (d subscriptionDocument) apply(s *Simulator, cfg SubscriptionConfig) (SubscriptionConfig, *mnsError) {
	if d.Endpoint != nil {
		queue, ok := strings.CutPrefix(strings.TrimSpace(*d.Endpoint), s.arn("mns", "queues/"))
		if !ok || !queueNamePattern.MatchString(queue) || cfg.Queue != "" && cfg.Queue != queue {
			return cfg, errEndpoint
		}
		cfg.Queue = queue
	}
	read := func(to *string, from *string, name string, allowed ...string) *mnsError {
		if from == nil {
			return nil
		}
		*to = strings.TrimSpace(*from)
		if !slices.Contains(allowed, *to) {
			return &mnsError{400, "InvalidArgument", "The value of " + name + " should be one of " + strings.Join(allowed, ", ") + "."}
		}
		return nil
	}
	if d.FilterTag != nil {
		if cfg.FilterTag = *d.FilterTag; len(cfg.FilterTag) > maxTag {
			return cfg, errRange("FilterTag", 0, maxTag, "")
		}
	}
	return cfg, cmp.Or(
		read(&cfg.ContentFormat, d.NotifyContentFormat, "NotifyContentFormat", formatXML, formatJSON, formatSimplified),
		read(&cfg.Strategy, d.NotifyStrategy, "NotifyStrategy", retryBackoff, retryDecay),
	)
}

func (s *Simulator) subscribeTopic(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	if bad := checkName(c.subscription, errSubscriptionName, errSubscriptionLength); bad != nil {
		return nil, bad
	}
	var doc subscriptionDocument
	if bad := parseXML(c.body, "Subscription", &doc); bad != nil {
		return nil, bad
	}
	if doc.Endpoint == nil {
		return nil, errEndpoint
	}
	cfg, bad := doc.apply(s, SubscriptionConfig{Name: c.subscription}.withDefaults())
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[c.topic]
	switch {
	case t == nil:
		return nil, errTopicNotExist
	case t.subscriptions[cfg.Name] != nil && t.subscriptions[cfg.Name].cfg == cfg:
		return &response{status: http.StatusNoContent}, nil
	case t.subscriptions[cfg.Name] != nil:
		return nil, errSubscriptionExists
	case len(t.subscriptions) >= maxSubscribers:
		return nil, errRange("Subscriptions", 1, maxSubscribers, "")
	}
	t.subscribe(cfg)
	return s.created("/topics/" + c.topic + "/subscriptions/" + cfg.Name), nil
}

// subscriptionOf finds the subscription that a call names. The caller holds s.mu.
func (s *Simulator) subscriptionOf(c *mnsCall) (*subscription, *mnsError) {
	t := s.topics[c.topic]
	if t == nil {
		return nil, errTopicNotExist
	}
	sub := t.subscriptions[c.subscription]
	if sub == nil {
		return nil, errNoSubscription
	}
	return sub, nil
}

func (s *Simulator) setSubscriptionAttributes(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	var doc subscriptionDocument
	if bad := parseXML(c.body, "Subscription", &doc); bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	sub, bad := s.subscriptionOf(c)
	if bad != nil {
		return nil, bad
	}
	cfg, bad := doc.apply(s, sub.cfg)
	if bad != nil {
		return nil, bad
	}
	sub.cfg, sub.modified = cfg, time.Now()
	return &response{status: http.StatusNoContent}, nil
}

func (s *Simulator) getSubscriptionAttributes(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sub, bad := s.subscriptionOf(c)
	if bad != nil {
		return nil, bad
	}
	d := newXMLDoc("Subscription")
	d.text("TopicOwner", s.account)
	d.text("TopicName", c.topic)
	d.text("Subscriber", s.account)
	d.text("SubscriptionName", sub.cfg.Name)
	d.text("Endpoint", s.arn("mns", "queues/"+sub.cfg.Queue))
	d.text("FilterTag", sub.cfg.FilterTag)
	d.text("NotifyStrategy", sub.cfg.Strategy)
	d.text("NotifyContentFormat", sub.cfg.ContentFormat)
	d.number("CreateTime", sub.created.Unix())
	d.number("LastModifyTime", sub.modified.Unix())
	return d.end("Subscription", http.StatusOK), nil
}

func (s *Simulator) unsubscribe(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[c.topic]
	if t == nil {
		return nil, errTopicNotExist
	}
	if sub := t.subscriptions[c.subscription]; sub != nil {
		sub.gone = true
		delete(t.subscriptions, c.subscription)
	}
	return &response{status: http.StatusNoContent}, nil
}

func (s *Simulator) listSubscriptions(_ context.Context, c *mnsCall, _ effects) (*response, *mnsError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[c.topic]
	if t == nil {
		return nil, errTopicNotExist
	}
	return s.listNames(c, slices.Sorted(maps.Keys(t.subscriptions)), "Subscription", "/topics/"+c.topic+"/subscriptions/")
}

// Publish puts a message into a topic as a client would.
func (s *Simulator) Publish(topic, body, tag string) (messageID string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.topics[topic]
	if t == nil {
		return "", notFound("topic", topic, slices.Sorted(maps.Keys(s.topics)))
	}
	out, bad := sentMessage{MessageBody: &body}.check(t.cfg.MaxMessageSize)
	if bad != nil {
		return "", badInput("%s", bad.message)
	}
	if len(tag) > maxTag {
		return "", badInput("a tag has at most %d characters, got %d", maxTag, len(tag))
	}
	return t.publish(out.body, tag, nil).id, nil
}

func (s *Simulator) controlPublish(r *http.Request, topic string) (int, any, error) {
	var in struct {
		Body string `json:"body"`
		Tag  string `json:"tag"`
	}
	if err := readControl(r, &in, `{"body": "text", "tag": "drain"}`); err != nil {
		return 0, nil, err
	}
	id, err := s.Publish(topic, in.Body, in.Tag)
	return http.StatusCreated, map[string]string{"message_id": id}, err
}

// topicStates describes all topics, by name. The caller holds s.mu.
func (s *Simulator) topicStates() []TopicState {
	list := []TopicState{}
	for _, name := range slices.Sorted(maps.Keys(s.topics)) {
		t := s.topics[name]
		st := TopicState{Name: name, Published: t.published, Subscriptions: []SubscriptionState{}}
		for _, name := range slices.Sorted(maps.Keys(t.subscriptions)) {
			sub := t.subscriptions[name]
			st.Subscriptions = append(st.Subscriptions, SubscriptionState{
				Name: name, Queue: sub.cfg.Queue, FilterTag: sub.cfg.FilterTag, ContentFormat: sub.cfg.ContentFormat, Strategy: sub.cfg.Strategy,
				Pushed: sub.pushed, Dropped: sub.dropped,
			})
		}
		list = append(list, st)
	}
	return list
}
