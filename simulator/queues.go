package simulator

import (
	"maps"
	"slices"
	"time"
)

// CreateQueue makes a queue, as its owner would in the console. One that is there stays as it is.
func (s *Simulator) CreateQueue(cfg QueueConfig) error {
	sc := Scenario{Provider: s.scenario.Provider, Region: s.scenario.Region, Lax: s.scenario.Lax, Queues: []QueueConfig{cfg}}.withDefaults()
	for _, p := range sc.problems() {
		return &InputError{text: p.Error()}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.aws() && s.sqs[cfg.Name] == nil:
		s.sqs[cfg.Name] = s.newSQSQueue(sc.Queues[0])
	case !s.aws() && s.queues[cfg.Name] == nil:
		s.queues[cfg.Name] = s.newQueue(sc.Queues[0])
	}
	return nil
}

// DeleteQueue deletes a queue with all its messages. Whoever polls it hears of that.
func (s *Simulator) DeleteQueue(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.sqs[name]; q != nil {
		s.dropSQS(q)
		return nil
	}
	if q := s.queues[name]; q != nil {
		s.dropQueue(q)
		return nil
	}
	return notFound("queue", name, slices.Sorted(maps.Keys(s.queues)))
}

// DelayMessages lets a queue hide what is sent from now on for d, in whole seconds and 15
// minutes at most: its DelaySeconds, as its owner would set them in the console.
func (s *Simulator) DelayMessages(name string, d time.Duration) error {
	if d < 0 || d > maxSQSDelay*time.Second || d%time.Second != 0 {
		return badInput("a delay must be whole seconds, 0s to 15m, got %v", d)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if q := s.sqs[name]; q != nil {
		q.delay = d
		return nil
	}
	if q := s.queues[name]; q != nil {
		q.delay = d
		return nil
	}
	return notFound("queue", name, slices.Sorted(maps.Keys(s.queues)))
}

// dropQueue deletes a queue of MNS. The caller holds s.mu.
func (s *Simulator) dropQueue(q *queue) {
	q.deleted = true
	for _, m := range q.messages {
		s.clock.cancel(m.wake)
	}
	s.clock.cancel(q.expiry)
	q.wakeAll()
	delete(s.queues, q.cfg.Name)
}

// dropSQS deletes a queue of SQS. The caller holds s.mu.
func (s *Simulator) dropSQS(q *sqsQueue) {
	q.deleted = true
	q.clear()
	q.wakeAll()
	delete(s.sqs, q.cfg.Name)
	s.sqsDeleted[q.cfg.Name] = time.Now()
}
