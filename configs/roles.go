package configs

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Role is a role to assume. Its zero value is none.
type Role struct {
	// ARN is acs:ram::{account}:role/{name}, or arn:aws:iam::{account}:role/{path and name}.
	ARN string
	// SessionName is what ActionTrail or CloudTrail shows; empty: a name made of the worker's.
	SessionName string
	// ExternalID is for roles that ask for one.
	ExternalID string
	// Duration is how long one session is good.
	Duration time.Duration
}

// WorkerEndpoints are http or https URLs of Alibaba Cloud; empty: the cloud's own address.
// AWS's are where the variables of its SDK say.
type WorkerEndpoints struct {
	STS      string
	Metadata string
}

// The durations of a session that AssumeRole takes (STS 2015-04-01, and of AWS 2011-06-15). The default is the
// longest that a role allows unless its owner has changed that.
const (
	DefaultRoleDuration = time.Hour
	minRoleDuration     = 15 * time.Minute
	maxRoleDuration     = 12 * time.Hour
)

// queueRoleNone is what queue.assume_role says for the worker's own keys.
const queueRoleNone = "none"

var (
	patternRole        = regexp.MustCompile(`^acs:ram::[0-9]{1,20}:role/[A-Za-z0-9.-]{1,64}$`)
	patternRoleSession = regexp.MustCompile(`^[A-Za-z0-9.@_-]{2,64}$`)
	patternExternalID  = regexp.MustCompile(`^[A-Za-z0-9_+=,.@:/-]{2,256}$`)
)

// Account is the account that the role belongs to, "" for no role.
func (r Role) Account() string {
	_, rest, _ := strings.Cut(r.ARN, "::")
	account, _, _ := strings.Cut(rest, ":")
	return account
}

func roleSettings(c *cloud) []setting[Group] {
	optional := func(text string, pattern *regexp.Regexp, want string) error {
		if text == "" {
			return nil
		}
		return match(text, pattern.MatchString, want)
	}
	return []setting[Group]{
		{"assume_role.arn", "", false, func(g *Group, text string) error {
			g.AssumeRole.ARN = text
			return optional(text, c.role, c.wantRole)
		}},
		{"assume_role.session_name", "", false, func(g *Group, text string) error {
			g.AssumeRole.SessionName = text
			return optional(text, patternRoleSession, "a session name of 2 to 64 letters, digits, dots, @, _ and -")
		}},
		{"assume_role.external_id", "", false, func(g *Group, text string) error {
			g.AssumeRole.ExternalID = text
			return optional(text, patternExternalID, "an external id of 2 to 256 letters, digits and _+=,.@:/-")
		}},
		{"assume_role.duration", "", false, func(g *Group, text string) (err error) {
			if text == "" {
				return nil
			}
			g.AssumeRole.Duration, err = parseDuration(text, minRoleDuration, maxRoleDuration)
			if err == nil && g.AssumeRole.Duration%time.Second != 0 {
				err = fmt.Errorf("want whole seconds, got %s", show(g.AssumeRole.Duration))
			}
			return err
		}},
		{"queue.assume_role", "", false, func(g *Group, text string) error {
			g.Queue.Role.ARN = text
			if text == queueRoleNone {
				return nil
			}
			return optional(text, c.role, c.wantRole+", or none for the worker's own keys")
		}},
		endpointSetting("endpoints.sts", func(g *Group) *string { return &g.Endpoints.STS }),
	}
}

func workerRoleSettings() []setting[Worker] {
	return []setting[Worker]{
		{"endpoints.sts", "", false, func(w *Worker, text string) (err error) {
			w.Endpoints.STS, err = optionalEndpoint(text)
			return err
		}},
		{"endpoints.metadata", "", false, func(w *Worker, text string) (err error) {
			w.Endpoints.Metadata, err = optionalEndpoint(text)
			return err
		}},
	}
}

// settleRoles completes what the group says of roles, and checks that it fits together.
func (s *source) settleRoles(top fields, good map[string]bool) {
	r := &s.group.AssumeRole
	if r.ARN == "" && good["assume_role.arn"] {
		if *r != (Role{}) || top.keys["assume_role"] != nil {
			top.problem(place(top, "assume_role"), "assume_role.arn", "is required with assume_role: %s", s.cloud().wantRole)
		}
	} else if r.Duration == 0 {
		r.Duration = DefaultRoleDuration
	}
	switch q := &s.group.Queue.Role; q.ARN {
	case "":
		*q = *r
	case queueRoleNone:
		*q = Role{}
	default: // the role alone, so that groups whose own roles differ can agree on it
		q.Duration = DefaultRoleDuration
	}
	s.group.Queue.settle(s.group)
	if good["queue.name"] && good["queue.endpoint"] && good["region"] && (s.cloud() == alibaba || good["queue.account"]) && good["assume_role.arn"] && good["queue.assume_role"] {
		s.queue = top.place("queue")
	}
}

// settle completes what tells the queue from others: on AWS the name does so only in an
// account and a region.
func (q *Queue) settle(g Group) {
	q.Provider = g.Provider
	if g.Provider == ProviderAWS {
		q.Region, q.Account = g.Region, cmp.Or(q.Account, q.Role.Account())
	}
}

// disagreements finds groups that share a queue and differ in whose keys read it: one
// consumer reads a queue for all of them.
func disagreements(groups []*source) (problems Errors) {
	first := map[Queue]*source{}
	for _, s := range groups {
		if s.queue == nil {
			continue
		}
		key := s.group.Queue
		key.Role = Role{}
		other, ok := first[key]
		if !ok {
			first[key] = s
			continue
		}
		if s.group.Queue.Role == other.group.Queue.Role {
			continue
		}
		problems = append(problems, Problem{
			File: s.name, Line: s.queue.Line, Column: s.queue.Column, Key: "queue",
			Message: fmt.Sprintf("queue %s is read with %s here and with %s in %s:%d: one consumer reads it for both, write the same queue.assume_role in both (a role's ARN, or none for the worker's own keys)",
				key.Name, s.group.Queue.Role.describe(), other.group.Queue.Role.describe(), other.name, other.queue.Line),
		})
	}
	return problems
}

func (r Role) describe() string {
	if r.ARN == "" {
		return "the worker's own keys"
	}
	text := "role " + r.ARN
	if r.SessionName != "" {
		text += " as " + r.SessionName
	}
	if r.ExternalID != "" {
		text += " with an external id"
	}
	if r.Duration != DefaultRoleDuration {
		text += " for " + show(r.Duration)
	}
	return text
}
