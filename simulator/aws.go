package simulator

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// DefaultAWSAccountID is the account when Options name none and the scenario is of AWS.
const DefaultAWSAccountID = "111122223333"

// maxAWSBody bounds what is read of a request: a whole batch of SQS, escaped.
const maxAWSBody = 8 << 20

// awsProtocol is how a service's requests and answers are written.
type awsProtocol int

const (
	awsQuery  awsProtocol = iota // form in, XML out
	awsEC2                       // EC2's own dialect of it
	awsJSON10                    // AWS JSON 1.0
	awsJSON11                    // AWS JSON 1.1
)

// awsOperation answers one call. Its answer is what stands inside the frame of the
// protocol: a pointer to a struct with xml or json tags, or nil for no result at all. It
// is encoded after the operation has let go of the mutex, so it holds copies only.
type awsOperation func(*Simulator, *awsCall) (awsAnswer, *awsError)

// awsAnswer is a pointer to a struct, or nil. For XML an empty list that must be there all
// the same is a memberList or an itemSet.
type awsAnswer any

// awsService is one service: how it is named, and what it does.
type awsService struct {
	// signing is its name in a signature's scope, permission the prefix of its actions in a policy.
	signing, permission string
	version             string      // of its Query API; empty: it has none
	namespace           string      // of its XML
	protocol            awsProtocol // of its Query API, or the only one
	target              string      // begins its X-Amz-Target; empty: it speaks no JSON
	operations          map[string]awsOperation
	// resources names what a call is about, as policies do. Nil: "*".
	resources func(*Simulator, *awsCall) []string
	// action is what policies call an operation. Nil: by its name.
	action func(operation string) string
}

// awsServices are the services by the names that faults, calls and refusals go by.
var awsServices = map[string]*awsService{
	"sqs": {
		signing: "sqs", permission: "sqs", version: "2012-11-05", namespace: "http://queue.amazonaws.com/doc/2012-11-05/",
		target: "AmazonSQS.", operations: sqsOperations, resources: (*Simulator).sqsResources, action: sqsAction,
	},
	"autoscaling": {
		signing: "autoscaling", permission: "autoscaling", version: "2011-01-01", namespace: "http://autoscaling.amazonaws.com/doc/2011-01-01/",
		operations: autoscalingOperations, resources: (*Simulator).autoscalingResources,
	},
	"elb": {
		signing: "elasticloadbalancing", permission: "elasticloadbalancing", version: "2012-06-01", namespace: "http://elasticloadbalancing.amazonaws.com/doc/2012-06-01/",
		operations: elbOperations, resources: (*Simulator).elbResources,
	},
	"elbv2": {
		signing: "elasticloadbalancing", permission: "elasticloadbalancing", version: "2015-12-01", namespace: "http://elasticloadbalancing.amazonaws.com/doc/2015-12-01/",
		operations: elbv2Operations, resources: (*Simulator).elbv2Resources,
	},
	"ec2": {
		signing: "ec2", permission: "ec2", version: "2016-11-15", namespace: "http://ec2.amazonaws.com/doc/2016-11-15/", protocol: awsEC2,
		operations: ec2Operations,
	},
	"ssm": {
		signing: "ssm", permission: "ssm", protocol: awsJSON11, target: "AmazonSSM.",
		operations: ssmOperations, resources: (*Simulator).ssmResources,
	},
	"sts": {
		signing: "sts", permission: "sts", version: "2011-06-15", namespace: "https://sts.amazonaws.com/doc/2011-06-15/",
		operations: awsSTSOperations, resources: (*Simulator).awsSTSResources,
	},
}

// awsCall is one request.
type awsCall struct {
	ctx       context.Context
	r         *http.Request
	name      string      // of the service, as in awsServices; empty: unknown
	service   *awsService // nil: unknown
	protocol  awsProtocol
	action    string
	version   string
	form      url.Values // of Query: query string and form body
	body      []byte
	keys      *accessKey // that signed it; nil while that is not checked, or if it needs none
	fx        effects
	requestID string
}

// awsError is a refusal.
type awsError struct {
	status  int
	code    string // of Query, and of JSON where shape is empty
	message string
	// shape is the __type in JSON, such as com.amazonaws.sqs#QueueDoesNotExist.
	shape string
	// queryMessage, if set, is what Query says instead of message.
	queryMessage string
}

// receiver says whether the service is to blame, not the sender.
func (e *awsError) receiver() bool { return e.status >= 500 }

// aws says whether the simulated cloud is AWS.
func (s *Simulator) aws() bool { return s.scenario.Provider == providerAWS }

// awsARN names a resource of the account and region.
func (s *Simulator) awsARN(service, rest string) string {
	return "arn:aws:" + service + ":" + s.scenario.Region + ":" + s.account + ":" + rest
}

// serveAWS answers one signed request.
func (s *Simulator) serveAWS(w http.ResponseWriter, r *http.Request) {
	c, bad := parseAWS(r)
	c.fx = s.interfere(r.Context(), c.name, c.action)
	var answer awsAnswer
	if e := s.faulted(c); e != nil {
		bad = e
	}
	if bad == nil {
		answer, bad = s.answerAWS(c)
	}
	switch c.fx.kind {
	case FaultDropAfterEffect:
		panic(http.ErrAbortHandler)
	case FaultPartial, FaultEmpty:
		c.fx.thinAWS(answer)
	}
	w.Header().Set("Date", s.cloudTime(time.Now()).UTC().Format(http.TimeFormat))
	if c.fx.kind == FaultCorrupt && c.name == "sts" {
		writeGarbage(w)
		return
	}
	if bad != nil {
		s.countRefusal(c.name, c.action, bad.code)
		c.failure(bad).write(w)
		return
	}
	c.success(answer).write(w)
}

// parseAWS finds the service and the operation. The call it gives is never nil.
func parseAWS(r *http.Request) (*awsCall, *awsError) {
	c := &awsCall{ctx: r.Context(), r: r, form: url.Values{}, requestID: strings.ToLower(newUUID())}
	body, err := readBody(r, maxAWSBody)
	if errors.Is(err, errBodyTooLarge) {
		return c, &awsError{status: http.StatusRequestEntityTooLarge, code: "RequestEntityTooLarge", message: "Request size exceeded the limit."}
	} else if err != nil {
		return c, errAWSMalformed
	}
	c.body = body
	if target := r.Header.Get("X-Amz-Target"); target != "" {
		return c, c.parseTarget(target)
	}
	return c, c.parseForm()
}

func (c *awsCall) parseTarget(target string) *awsError {
	c.protocol = awsJSON10
	for name, service := range awsServices {
		action, ok := strings.CutPrefix(target, service.target)
		if !ok || service.target == "" {
			continue
		}
		c.name, c.service, c.action = name, service, action
		if service.protocol == awsJSON11 {
			c.protocol = awsJSON11
		}
		if c.r.Method != http.MethodPost || !strings.HasPrefix(c.r.Header.Get("Content-Type"), c.contentType()) {
			return errAWSUnknownOperation
		}
		return nil
	}
	return errAWSUnknownOperation
}

func (c *awsCall) parseForm() *awsError {
	values, err := url.ParseQuery(c.r.URL.RawQuery)
	if err != nil {
		return errAWSMalformed
	}
	if strings.HasPrefix(c.r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		posted, err := url.ParseQuery(string(c.body))
		if err != nil {
			return errAWSMalformed
		}
		maps.Copy(values, posted)
	}
	c.form, c.action, c.version = values, values.Get("Action"), values.Get("Version")
	for name, service := range awsServices {
		if service.version == c.version && c.version != "" {
			c.name, c.service, c.protocol = name, service, service.protocol
		}
	}
	switch {
	case c.r.Method != http.MethodPost && c.r.Method != http.MethodGet:
		return &awsError{status: http.StatusMethodNotAllowed, code: "UnsupportedMethod", message: "The method " + c.r.Method + " is not supported."}
	case c.action == "":
		return &awsError{status: 400, code: "MissingAction", message: "Missing Action"}
	case c.service == nil:
		return &awsError{status: 400, code: "InvalidAction", message: "Could not find operation " + c.action + " for version " + cmp.Or(c.version, "NO_VERSION_SPECIFIED")}
	}
	return nil
}

func (s *Simulator) answerAWS(c *awsCall) (awsAnswer, *awsError) {
	op := c.service.operations[c.action]
	if bad := s.checkAWS(c); bad != nil {
		return nil, bad
	}
	if op == nil {
		return nil, c.unknownOperation()
	}
	if bad := s.checkAWSPolicy(c); bad != nil {
		return nil, bad
	}
	return op(s, c)
}

// faulted is what an armed fault refuses the call with; nil: nothing.
func (s *Simulator) faulted(c *awsCall) *awsError {
	if c.service == nil {
		return nil
	}
	switch c.fx.kind {
	case Fault5xx:
		return c.broken()
	case FaultThrottle:
		return c.throttled()
	case FaultDenied:
		return c.denied(s.callerARN(s.keys.Load()), "*")
	case FaultError:
		return &awsError{status: c.fx.refusal.status, code: c.fx.refusal.code, message: c.fx.refusal.message}
	}
	return nil
}

// has says whether a form parameter is there.
func (c *awsCall) has(name string) bool { return c.form.Has(name) }

// text is a form parameter; empty: absent.
func (c *awsCall) text(name string) string { return c.form.Get(name) }

// members reads the list Name.member.1, Name.member.2 and so on, in that order.
func (c *awsCall) members(name string) []string { return c.list(name + ".member") }

// list reads the flat list Name.1, Name.2 and so on, in that order.
func (c *awsCall) list(name string) []string {
	var out []string
	for _, i := range c.indexes(name) {
		if at := name + "." + strconv.Itoa(i); c.form.Has(at) {
			out = append(out, c.form.Get(at))
		}
	}
	return out
}

// indexes gives the numbers N for which there is a parameter Name.N or Name.N.x, ascending.
func (c *awsCall) indexes(name string) []int {
	seen := map[int]bool{}
	for key := range c.form {
		rest, ok := strings.CutPrefix(key, name+".")
		if !ok {
			continue
		}
		number, _, _ := strings.Cut(rest, ".")
		if i, err := strconv.Atoi(number); err == nil && i > 0 {
			seen[i] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

// decode reads the JSON body into a pointer to a struct whose fields are called like the
// members. Names that differ in capitals only are other names, as they are for the
// service; unknown ones are ignored.
func (c *awsCall) decode(into any) *awsError {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(c.body, &all); err != nil {
		return errAWSSerialization
	}
	v := reflect.ValueOf(into).Elem()
	for i := range v.NumField() {
		text, there := all[cmp.Or(v.Type().Field(i).Tag.Get("json"), v.Type().Field(i).Name)]
		if !there {
			continue
		}
		if err := json.Unmarshal(text, v.Field(i).Addr().Interface()); err != nil {
			return errAWSSerialization
		}
	}
	return nil
}
