package simulator

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"time"
)

// The limits of RunCommand, 2014-05-26.
const (
	maxCommandInstances = 50
	maxCommandContent   = 24 << 10 // after Base64; not kept
	maxKeptContent      = 18 << 10 // after Base64; KeepCommand
	defaultCommandTime  = 60
	maxCommandTime      = 86400
	maxCommandOutput    = 24 << 10
	maxCommandName      = 128
)

var (
	errInstanceNotFound = &rpcError{status: 404, code: "InvalidInstance.NotFound", message: "The specified instances does not exist."}
	errInstanceLimit    = &rpcError{status: 403, code: "InstanceIds.ExceedLimit", message: "The number of instance IDs exceeds the upper limit."}
	errCommandType      = &rpcError{status: 403, code: "InvalidCmdType.NotFound", message: "The specified command type does not exist."}
	errInvokeNotFound   = &rpcError{status: 404, code: "InvalidInvokeId.NotFound", message: "The specified invoke ID does not exist."}
	errCommandContent   = &rpcError{status: 403, code: "CmdContent.ExceedLimit", message: "The length of the command content exceeds the upper limit."}
	errDispatch         = &rpcError{status: 500, code: "InternalError.Dispatch", message: "An error occurred when you dispatched the request."}
)

const ecsTime = "2006-01-02T15:04:05Z"

var commandTypes = []string{"RunShellScript", "RunBatScript", "RunPowerShellScript"}

func (s *Simulator) runCommand(_ context.Context, c *rpcCall) (object, *rpcError) {
	v, bad := c.command()
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if o, bad := s.replay(c); o != nil || bad != nil {
		return o, bad
	}
	if s.closed {
		return nil, errDispatch
	}
	for _, r := range v.runs {
		if r.instance = s.instances[r.instanceID]; r.instance == nil || !r.instance.known() {
			return nil, errInstanceNotFound
		}
	}
	s.invocations.add(v.id, v)
	for _, r := range v.runs {
		s.startRun(r)
	}
	return s.remember(c, object{"CommandId": v.commandID, "InvokeId": v.id}), nil
}

// command reads RunCommand's parameters.
func (c *rpcCall) command() (*invocation, *rpcError) {
	ids := c.repeated("InstanceId")
	content, encoding := c.form.Get("CommandContent"), c.form.Get("ContentEncoding")
	timeout, timeoutFits := c.number("Timeout", defaultCommandTime, 1, maxCommandTime)
	repeat := c.form.Get("RepeatMode")
	switch {
	case c.form.Get("RegionId") == "":
		return nil, errMissing("RegionId")
	case c.form.Get("Type") == "":
		return nil, errMissing("Type")
	case !slices.Contains(commandTypes, c.form.Get("Type")):
		return nil, errCommandType
	case content == "":
		return nil, errMissing("CommandContent")
	case len(ids) == 0:
		return nil, errMissing("InstanceId")
	case len(ids) > maxCommandInstances:
		return nil, errInstanceLimit
	case !timeoutFits:
		return nil, errInvalid("Timeout")
	case repeat != "" && repeat != "Once":
		return nil, errInvalid("RepeatMode")
	case len(c.form.Get("Name")) > maxCommandName:
		return nil, errInvalid("Name")
	}
	script, bad := decodeScript(content, encoding, c.form.Get("KeepCommand") == "true")
	if bad != nil {
		return nil, bad
	}
	v := &invocation{
		id: "t-sz0" + randomText(13), commandID: "c-sz0" + randomText(13), name: c.form.Get("Name"),
		kind: c.form.Get("Type"), script: script, timeout: time.Duration(timeout) * time.Second, created: time.Now(),
	}
	for i, id := range ids {
		if !slices.Contains(ids[:i], id) {
			v.runs = append(v.runs, &run{invocation: v, instanceID: id, status: runPending})
		}
	}
	return v, nil
}

func decodeScript(content, encoding string, keep bool) (string, *rpcError) {
	size := len(content)
	switch encoding {
	case "", "PlainText":
		size = base64.StdEncoding.EncodedLen(size)
	case "Base64":
		script, err := base64.StdEncoding.DecodeString(content)
		if err != nil {
			return "", errInvalid("CommandContent")
		}
		content = string(script)
	default:
		return "", errInvalid("ContentEncoding")
	}
	if size > maxCommandContent || keep && size > maxKeptContent {
		return "", errCommandContent
	}
	return content, nil
}

func (s *Simulator) stopInvocation(_ context.Context, c *rpcCall) (object, *rpcError) {
	ids := c.repeated("InstanceId")
	switch {
	case c.form.Get("RegionId") == "":
		return nil, errMissing("RegionId")
	case c.form.Get("InvokeId") == "":
		return nil, errMissing("InvokeId")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.invocations.get(c.form.Get("InvokeId"))
	if !ok {
		return nil, errInvokeNotFound
	}
	for _, r := range v.runs {
		if len(ids) == 0 || slices.Contains(ids, r.instanceID) {
			s.stopRun(r)
		}
	}
	return object{}, nil
}

func (s *Simulator) describeInvocationResults(_ context.Context, c *rpcCall) (object, *rpcError) {
	if c.form.Get("RegionId") == "" {
		return nil, errMissing("RegionId")
	}
	encoding := c.form.Get("ContentEncoding")
	if encoding != "" && encoding != "Base64" && encoding != "PlainText" {
		return nil, errInvalid("ContentEncoding")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*run
	for _, v := range s.invocationsOf(c.form.Get("InvokeId")) {
		for _, r := range v.runs {
			if r.matches(c) {
				found = append(found, r)
			}
		}
	}
	o := object{"TotalCount": len(found)}
	if c.form.Has("MaxResults") || c.form.Has("NextToken") {
		part, _, next, bad := window(c, found)
		if bad != nil {
			return nil, bad
		}
		found, o["NextToken"] = part, next
	} else {
		p, bad := c.page(50)
		if bad != nil {
			return nil, bad
		}
		found, o["PageNumber"], o["PageSize"] = cut(p, found), p.number, p.size
	}
	items := []any{}
	for _, r := range found {
		items = append(items, r.describe(encoding == "PlainText"))
	}
	o["InvocationResults"] = object{"InvocationResult": items}
	return object{"Invocation": o}, nil
}

// invocationsOf is the one with that id, or all, newest first.
func (s *Simulator) invocationsOf(id string) []*invocation {
	if id == "" {
		all := s.invocations.values()
		slices.Reverse(all)
		return all
	}
	if v, ok := s.invocations.get(id); ok {
		return []*invocation{v}
	}
	return nil
}

func (r *run) matches(c *rpcCall) bool {
	id, command, status := c.form.Get("InstanceId"), c.form.Get("CommandId"), c.form.Get("InvokeRecordStatus")
	return (id == "" || id == r.instanceID) && (command == "" || command == r.invocation.commandID) && (status == "" || status == r.recordStatus())
}

func (r *run) describe(plain bool) object {
	output, dropped := r.outputSoFar()
	if !plain {
		output = base64.StdEncoding.EncodeToString([]byte(output))
	}
	o := object{
		"InvokeId": r.invocation.id, "CommandId": r.invocation.commandID, "InstanceId": r.instanceID,
		"InvocationStatus": r.status, "InvokeRecordStatus": r.recordStatus(), "ExitCode": r.exitCode,
		"Output": output, "Dropped": dropped, "ErrorCode": r.errorCode, "ErrorInfo": r.errorInfo,
		"CreationTime": ecsText(r.invocation.created), "StartTime": ecsText(r.started), "FinishedTime": ecsText(r.finished), "StopTime": ecsText(r.stopped),
		"Repeats": 1, "Username": "root",
	}
	return o
}

func ecsText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(ecsTime)
}

func (s *Simulator) describeInstances(_ context.Context, c *rpcCall) (object, *rpcError) {
	if c.form.Get("RegionId") == "" {
		return nil, errMissing("RegionId")
	}
	var ids []string
	if text := c.form.Get("InstanceIds"); text != "" {
		if err := json.Unmarshal([]byte(text), &ids); err != nil || len(ids) > 100 {
			return nil, errInvalid("InstanceIds")
		}
	}
	p, bad := c.page(100)
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*instance
	if c.form.Get("InstanceIds") == "" || len(ids) > 0 {
		found = slices.DeleteFunc(s.candidates(ids), func(in *instance) bool { return !in.known() })
	}
	o := p.describe(len(found))
	if c.form.Has("MaxResults") || c.form.Has("NextToken") {
		part, _, next, bad := window(c, found)
		if bad != nil {
			return nil, bad
		}
		found, o["NextToken"] = part, next
	} else {
		found, o["NextToken"] = cut(p, found), ""
	}
	items := []any{}
	for _, in := range found {
		items = append(items, s.ecsInstance(in))
	}
	o["Instances"] = object{"Instance": items}
	return o, nil
}

// ecsStatus is the machine's own status, apart from its group's.
func (in *instance) ecsStatus() string {
	switch {
	case in.running && in.state == stateRemoving && in.activity != nil && in.activity.pending == 0:
		return "Stopping"
	case in.running:
		return "Running"
	}
	return "Starting"
}

func (s *Simulator) ecsInstance(in *instance) object {
	ip := in.addr.Addr().String()
	tags := []any{}
	for _, key := range slices.Sorted(maps.Keys(in.group.cfg.Tags)) {
		tags = append(tags, object{"TagKey": key, "TagValue": in.group.cfg.Tags[key]})
	}
	return object{
		"Tags":       object{"Tag": tags},
		"InstanceId": in.id, "InstanceName": in.id, "Status": in.ecsStatus(), "RegionId": s.scenario.Region, "ZoneId": in.zone,
		"InstanceNetworkType": "vpc", "InstanceType": "ecs.simulated.large", "OSType": "linux", "CreationTime": in.created.UTC().Format(essTime),
		"VpcAttributes":  object{"VpcId": "vpc-simulated", "PrivateIpAddress": object{"IpAddress": []any{ip}}},
		"InnerIpAddress": object{"IpAddress": []any{}}, "PublicIpAddress": object{"IpAddress": []any{}},
		"NetworkInterfaces": object{"NetworkInterface": []any{object{"PrimaryIpAddress": ip}}},
	}
}

func (s *Simulator) describeCloudAssistantStatus(_ context.Context, c *rpcCall) (object, *rpcError) {
	ids := c.repeated("InstanceId")
	switch {
	case c.form.Get("RegionId") == "":
		return nil, errMissing("RegionId")
	case len(ids) > 100:
		return nil, errInstanceLimit
	}
	p, bad := c.page(50)
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := s.candidates(ids)
	items := []any{}
	for _, in := range cut(p, found) {
		o := object{"InstanceId": in.id, "CloudAssistantStatus": strconv.FormatBool(in.hasAgent(s) && in.running), "ActiveTaskCount": s.activeRuns(in), "InvocationCount": 0}
		if in.hasAgent(s) && in.running {
			o["LastHeartbeatTime"] = ecsText(time.Now())
		}
		items = append(items, o)
	}
	o := p.describe(len(found))
	o["InstanceCloudAssistantStatusSet"] = object{"InstanceCloudAssistantStatus": items}
	return o, nil
}
