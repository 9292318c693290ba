package load

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Kind is one habit of clients.
type Kind string

const (
	// Short requests come one on each new connection.
	Short Kind = "short"
	// KeepAlive clients send several requests a second over one connection.
	KeepAlive Kind = "keep_alive"
	// Idle clients keep a connection too, and hardly use it.
	Idle Kind = "idle"
	// Slow requests wait for seconds for the first byte of their answer.
	Slow Kind = "slow"
	// Download is an answer that takes long to come.
	Download Kind = "download"
)

// Kinds is all of them, in the order in which to show them.
var Kinds = []Kind{Short, KeepAlive, Idle, Slow, Download}

// Slot is the length of one point of a Series.
const Slot = 100 * time.Millisecond

// Bounds of a record besides its length.
const (
	maxFailures  = 100
	maxInstances = 100
)

// Totals counts the requests of one kind, or of all.
type Totals struct {
	// Sent is all that were begun: each is Finished or Failed in the end.
	Sent     int `json:"sent"`
	Finished int `json:"finished"`
	Failed   int `json:"failed"`
	// Retryable of the Failed ones got no byte of an answer on a connection that had
	// been used before.
	Retryable int `json:"retryable"`
	// Slow of the Finished ones are small and took more than half a second.
	Slow int `json:"slow"`
	// Dropped requests were never sent: too many were in flight, or the client's last
	// answer was not there yet.
	Dropped int `json:"dropped"`
	// Connections is how many were made, ClosedIdle how many of them the server closed
	// between two requests, and Asked how often it asked for that with its answer.
	Connections int `json:"connections"`
	ClosedIdle  int `json:"closed_idle"`
	Asked       int `json:"asked_to_close"`
	// SlowestMS is the longest time to a whole answer.
	SlowestMS int64 `json:"slowest_ms"`
	// Reasons has the Failed ones by reason, Statuses those with BadStatus by status.
	Reasons  map[Reason]int `json:"reasons,omitempty"`
	Statuses map[int]int    `json:"statuses,omitempty"`
}

func (t *Totals) add(o Totals) {
	t.Sent += o.Sent
	t.Finished += o.Finished
	t.Failed += o.Failed
	t.Retryable += o.Retryable
	t.Slow += o.Slow
	t.Dropped += o.Dropped
	t.Connections += o.Connections
	t.ClosedIdle += o.ClosedIdle
	t.Asked += o.Asked
	t.SlowestMS = max(t.SlowestMS, o.SlowestMS)
	for reason, n := range o.Reasons {
		count(&t.Reasons, reason, n)
	}
	for status, n := range o.Statuses {
		count(&t.Statuses, status, n)
	}
}

// Series counts what happened in each Slot since the beginning; all have one length.
type Series struct {
	SlotMS   int64 `json:"slot_ms"`
	Sent     []int `json:"sent"`
	Finished []int `json:"finished"`
	Failed   []int `json:"failed"`
	// InFlight is how many requests are in flight at the slot's end.
	InFlight []int `json:"in_flight"`
}

// Mark is something that happened outside, such as the beginning of a scale-in.
type Mark struct {
	Name string `json:"name"`
	// MS is the time since the beginning, in milliseconds.
	MS int64 `json:"ms"`
}

// Failure is one of the first requests that failed.
type Failure struct {
	// MS is when it failed, AfterMS how long after it was sent.
	MS        int64  `json:"ms"`
	AfterMS   int64  `json:"after_ms"`
	Kind      Kind   `json:"kind"`
	Reason    Reason `json:"reason"`
	Retryable bool   `json:"retryable,omitempty"`
	Error     string `json:"error"`
}

// Scenario is what was done while the load ran: whoever runs it fills it in.
type Scenario struct {
	// Name is a word for files: lower case letters, digits and dashes.
	Name string `json:"name"`
	// Plan says in a line what is done to the instance.
	Plan string `json:"plan"`
	// Balancer is the kind that stands before it.
	Balancer string `json:"balancer"`
	// Repeat counts the runs of the scenario, from 1.
	Repeat int `json:"repeat"`
	// Usher says whether usher did it.
	Usher bool `json:"usher"`
	// Result is what the lifecycle action ended with, "" without one.
	Result string `json:"result,omitempty"`
	// DrainSeconds is from the beginning of the scale-in until the instance stopped.
	DrainSeconds float64 `json:"drain_seconds"`
}

// Record is one run as its clients saw it.
type Record struct {
	Scenario Scenario        `json:"scenario"`
	Began    time.Time       `json:"began"`
	Target   string          `json:"target"`
	Scale    float64         `json:"scale"`
	LengthMS int64           `json:"length_ms"`
	TookMS   int64           `json:"took_ms"`
	Kinds    map[Kind]Totals `json:"kinds"`
	Series   Series          `json:"series"`
	Marks    []Mark          `json:"marks"`
	// Failures is the first hundred.
	Failures []Failure `json:"failures"`
	// Instances counts the answers by the instance that gave them, where they say it.
	Instances map[string]int `json:"instances"`
}

// Total counts the requests of all kinds.
func (r *Record) Total() Totals {
	var total Totals
	for _, k := range Kinds {
		total.add(r.Kinds[k])
	}
	return total
}

// Mark notes that something happened at a time of the same clock, in order of time.
func (r *Record) Mark(name string, at time.Time) {
	r.Marks = append(r.Marks, Mark{name, at.Sub(r.Began).Milliseconds()})
	slices.SortStableFunc(r.Marks, func(a, b Mark) int { return int(a.MS - b.MS) })
}

// String is the counts in a line.
func (r *Record) String() string {
	t := r.Total()
	s := fmt.Sprintf("%d requests, %d failed", t.Sent, t.Failed)
	if t.Failed > 0 {
		var reasons []string
		for _, reason := range slices.Sorted(maps.Keys(t.Reasons)) {
			reasons = append(reasons, fmt.Sprintf("%d %s", t.Reasons[reason], reason))
		}
		s += fmt.Sprintf(" (%s; %d retryable)", strings.Join(reasons, ", "), t.Retryable)
	}
	return s + fmt.Sprintf(", %d slow, %d dropped", t.Slow, t.Dropped)
}

// Write keeps the record in a file of the folder, named after its scenario, balancer
// and repeat. A file of the same run is replaced.
func (r *Record) Write(folder string) (path string, err error) {
	path = filepath.Join(folder, fmt.Sprintf("%s-%s-%d.json", r.Scenario.Balancer, r.Scenario.Name, r.Scenario.Repeat))
	text, err := json.Marshal(r)
	if err != nil {
		return "", fmt.Errorf("write the record %s: %w", path, err)
	}
	if err := os.WriteFile(path, append(text, '\n'), 0o644); err != nil {
		return "", fmt.Errorf("write the record: %w", err)
	}
	return path, nil
}

// Read gives all records of a folder, in the order of their files' names.
func Read(folder string) ([]*Record, error) {
	paths, err := filepath.Glob(filepath.Join(folder, "*.json"))
	if err != nil {
		return nil, fmt.Errorf("read the records of %s: %w", folder, err)
	}
	var records []*Record
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read a record: %w", err)
		}
		r := &Record{}
		if err := json.Unmarshal(text, r); err != nil {
			return nil, fmt.Errorf("read the record %s: %w", path, err)
		}
		records = append(records, r)
	}
	return records, nil
}

// recorder makes a record. It is safe for concurrent use.
type recorder struct {
	began time.Time

	mu     sync.Mutex // guards all below
	record *Record
	kinds  map[Kind]*Totals
	local  error // the first failure for want of something on this machine
}

func newRecorder(began time.Time, c Config) *recorder {
	rec := &recorder{began: began, kinds: map[Kind]*Totals{}, record: &Record{
		Began: began.UTC(), Target: c.Target.String(), Scale: c.Scale, LengthMS: c.Length.Milliseconds(),
		Series: Series{SlotMS: Slot.Milliseconds()}, Kinds: map[Kind]Totals{}, Instances: map[string]int{},
	}}
	for _, k := range Kinds {
		rec.kinds[k] = &Totals{}
	}
	return rec
}

// slot is the index of t's slot in the series, which grow to it. Needs mu.
func (rec *recorder) slot(t time.Time) int {
	i := int(t.Sub(rec.began) / Slot)
	s := &rec.record.Series
	for len(s.Sent) <= i {
		s.Sent, s.Finished, s.Failed = append(s.Sent, 0), append(s.Finished, 0), append(s.Failed, 0)
	}
	return i
}

// sent counts a request that begins, and gives the time of that.
func (rec *recorder) sent(k Kind) time.Time {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	now := time.Now()
	rec.kinds[k].Sent++
	rec.record.Series.Sent[rec.slot(now)]++
	return now
}

// answered counts a request that got its whole answer.
func (rec *recorder) answered(k Kind, sent time.Time, a *answer) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	now := time.Now()
	t := rec.kinds[k]
	t.Finished++
	rec.record.Series.Finished[rec.slot(now)]++
	took := now.Sub(sent)
	t.SlowestMS = max(t.SlowestMS, took.Milliseconds())
	if took > slowAnswer && k != Slow && k != Download {
		t.Slow++
	}
	if a.last && (k == KeepAlive || k == Idle) {
		t.Asked++
	}
	if _, known := rec.record.Instances[a.instance]; a.instance != "" && (known || len(rec.record.Instances) < maxInstances) {
		rec.record.Instances[a.instance]++
	}
}

// failed counts a request that did not.
func (rec *recorder) failed(k Kind, sent time.Time, f *failure) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	now := time.Now()
	t := rec.kinds[k]
	t.Failed++
	rec.record.Series.Failed[rec.slot(now)]++
	count(&t.Reasons, f.reason, 1)
	if f.retryable {
		t.Retryable++
	}
	if f.reason == BadStatus {
		count(&t.Statuses, f.status, 1)
	}
	if f.reason == Local && rec.local == nil {
		rec.local = f.err
	}
	if len(rec.record.Failures) < maxFailures {
		rec.record.Failures = append(rec.record.Failures, Failure{
			MS: now.Sub(rec.began).Milliseconds(), AfterMS: now.Sub(sent).Milliseconds(),
			Kind: k, Reason: f.reason, Retryable: f.retryable, Error: f.err.Error(),
		})
	}
}

func (rec *recorder) dropped(k Kind, n int) {
	rec.change(k, func(t *Totals) { t.Dropped += n })
}

func (rec *recorder) connected(k Kind) { rec.change(k, func(t *Totals) { t.Connections++ }) }

func (rec *recorder) closedIdle(k Kind) { rec.change(k, func(t *Totals) { t.ClosedIdle++ }) }

func (rec *recorder) change(k Kind, f func(t *Totals)) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	f(rec.kinds[k])
}

// finish gives the record when all requests are over.
func (rec *recorder) finish(now time.Time) (*Record, error) {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	rec.slot(now)
	rec.record.TookMS = now.Sub(rec.began).Milliseconds()
	s := &rec.record.Series
	s.InFlight = make([]int, len(s.Sent))
	inFlight := 0
	for i := range s.Sent {
		inFlight += s.Sent[i] - s.Finished[i] - s.Failed[i]
		s.InFlight[i] = inFlight
	}
	for k, t := range rec.kinds {
		rec.record.Kinds[k] = *t
	}
	if rec.local != nil {
		return rec.record, fmt.Errorf("%d requests failed on the clients' own machine: give it more of what it lacks and run again: %w",
			rec.record.Total().Reasons[Local], rec.local)
	}
	return rec.record, nil
}

func count[K comparable](m *map[K]int, k K, n int) {
	if *m == nil {
		*m = map[K]int{}
	}
	(*m)[k] += n
}
