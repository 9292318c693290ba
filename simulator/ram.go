package simulator

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// Policy is a RAM policy, or an IAM policy of AWS: what the keys may do. Its zero value
// allows nothing.
type Policy struct{ statements []policyStatement }

type policyStatement struct {
	deny               bool
	actions, resources []*regexp.Regexp
}

// maxPolicy bounds a policy's text (RAM: 6144 characters for one of the customer's).
const maxPolicy = 6144

// textList is a text, or a list of texts.
type textList []string

// UnmarshalJSON takes "a" for ["a"].
func (l *textList) UnmarshalJSON(data []byte) error {
	var one string
	if json.Unmarshal(data, &one) == nil {
		*l = textList{one}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(l))
}

// policyActions is what an action or a pattern of one looks like.
var policyActions = regexp.MustCompile(`^(\*|[a-z0-9]+:[A-Za-z0-9*?]+)$`)

// policyKinds are the kinds of policies by their version: how resources begin, and what
// goes before the pattern of an action.
var policyKinds = map[string]struct{ resource, action string }{
	"1":          {resource: "acs:"},
	"2012-10-17": {resource: "arn:aws:", action: "(?i)"},
}

// ParsePolicy reads a policy document: RAM's of version 1, or IAM's of version 2012-10-17.
// In actions and resources * stands for any text and ? for one character. It is stricter
// than the clouds where a mistake would otherwise go unnoticed: conditions and unknown keys
// are refused, and in RAM's capitals count.
func ParsePolicy(text []byte) (*Policy, error) {
	if len(text) > maxPolicy {
		return nil, fmt.Errorf("policy: at most %d bytes, got %d", maxPolicy, len(text))
	}
	var doc struct {
		Version   string
		Statement []struct {
			Sid, Effect      string
			Action, Resource textList
		}
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&doc); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("policy: more than one JSON value")
	}
	kind, known := policyKinds[doc.Version]
	if !known {
		return nil, fmt.Errorf("policy: Version must be \"1\" or \"2012-10-17\", got %q", doc.Version)
	}
	p := &Policy{}
	for i, s := range doc.Statement {
		if s.Effect != "Allow" && s.Effect != "Deny" {
			return nil, fmt.Errorf("policy: Statement[%d].Effect must be Allow or Deny, got %q", i, s.Effect)
		}
		if len(s.Action) == 0 || len(s.Resource) == 0 {
			return nil, fmt.Errorf("policy: Statement[%d] needs an Action and a Resource", i)
		}
		out := policyStatement{deny: s.Effect == "Deny"}
		for _, a := range s.Action {
			if !policyActions.MatchString(a) {
				return nil, fmt.Errorf("policy: Statement[%d].Action: %q is no action such as ess:CompleteLifecycleAction", i, a)
			}
			out.actions = append(out.actions, wildcard(kind.action, a))
		}
		for _, r := range s.Resource {
			if r != "*" && !strings.HasPrefix(r, kind.resource) {
				return nil, fmt.Errorf("policy: Statement[%d].Resource: must be * or begin with %s, got %q", i, kind.resource, r)
			}
			out.resources = append(out.resources, wildcard("", r))
		}
		p.statements = append(p.statements, out)
	}
	return p, nil
}

// wildcard makes a pattern of a policy one of package regexp, with flags before it.
func wildcard(flags, text string) *regexp.Regexp {
	quoted := regexp.QuoteMeta(text)
	return regexp.MustCompile(flags + "(?s)^" + strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(quoted) + "$")
}

// Allows says whether the policy allows an action on a resource. A Deny outweighs every Allow.
func (p *Policy) Allows(action, resource string) bool {
	allowed := false
	fits := func(patterns []*regexp.Regexp, text string) bool {
		return slices.ContainsFunc(patterns, func(r *regexp.Regexp) bool { return r.MatchString(text) })
	}
	for _, s := range p.statements {
		if fits(s.actions, action) && fits(s.resources, resource) {
			if s.deny {
				return false
			}
			allowed = true
		}
	}
	return allowed
}

// SetPolicy changes what the base keys may do from now on; nil: everything. A long poll
// that was allowed goes on. Roles have policies of their own.
func (s *Simulator) SetPolicy(p *Policy) { s.policy.Store(p) }

// arn names a resource of the account.
func (s *Simulator) arn(service, rest string) string {
	return "acs:" + service + ":" + s.scenario.Region + ":" + s.account + ":" + rest
}

// checkMNSPolicy refuses what the policy does not allow. A batch needs the action of its
// own name and that of the single operation: the pages of the operations and the page of
// policies name one each, so a policy has to be good for either reading.
func (s *Simulator) checkMNSPolicy(c *mnsCall) *mnsError {
	may := s.permissions(mnsKeyID(c.r))
	if len(may) == 0 {
		return nil
	}
	actions := []string{c.action}
	if single, ok := strings.CutPrefix(c.action, "Batch"); ok {
		actions = append(actions, single)
	}
	for _, a := range actions {
		if !may.allow("mns:"+a, s.arn("mns", c.resource())) {
			return errMNSDenied
		}
	}
	return nil
}

// checkRPCPolicy refuses what the policy does not allow. The answers to lifecycle actions
// are allowed by scaling group, commands by instance, calls of balancers by balancer or
// server group, and what else only looks on everything.
func (s *Simulator) checkRPCPolicy(c *rpcCall) *rpcError {
	may := s.permissions(c.form.Get("AccessKeyId"))
	if len(may) == 0 {
		return nil
	}
	resources := []string{s.arn(c.service, "*")}
	switch c.action {
	case "CompleteLifecycleAction", "RecordLifecycleActionHeartbeat":
		resources = []string{s.arn("ess", "scalinggroup/"+s.groupOfToken(c))}
	case "AssumeRole":
		resources = []string{c.form.Get("RoleArn")}
	case "AssumeRoleWithOIDC":
		return nil // nobody's keys: the role's trust decides
	case "RunCommand", "StopInvocation":
		resources = nil
		for _, id := range c.repeated("InstanceId") {
			resources = append(resources, s.arn("ecs", "instance/"+id))
		}
	}
	if balancerOperations[c.service+"."+c.action] != nil {
		resources = []string{s.balancerResource(c)}
	}
	for _, r := range resources {
		if action := c.service + ":" + c.action; !may.allow(action, r) {
			denied := *errRPCDenied
			if c.service == "sts" {
				denied = *errSTSDenied
			}
			denied.action = action
			return &denied
		}
	}
	return nil
}

// groupOfToken is the scaling group of the lifecycle action that a call names, "*" if
// there is none.
func (s *Simulator) groupOfToken(c *rpcCall) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	either := func(name string) string {
		return cmp.Or(c.form.Get(name), c.form.Get(strings.ToLower(name[:1])+name[1:]))
	}
	if a := s.actions[actionKey{either("LifecycleHookId"), either("LifecycleActionToken")}]; a != nil {
		return a.hook.group.cfg.ID
	}
	return "*"
}

// controlPolicy sets the policy, or with DELETE allows everything again.
func (s *Simulator) controlPolicy(r *http.Request) (int, any, error) {
	if err := allow(r, http.MethodPut, http.MethodDelete); err != nil {
		return 0, nil, err
	}
	if r.Method == http.MethodDelete {
		s.SetPolicy(nil)
		return http.StatusNoContent, nil, nil
	}
	text, err := readBody(r, maxControlBody)
	if err != nil {
		return 0, nil, err
	}
	p, err := ParsePolicy(text)
	if err != nil {
		return 0, nil, badInput("%v", err)
	}
	s.SetPolicy(p)
	return http.StatusNoContent, nil, nil
}
