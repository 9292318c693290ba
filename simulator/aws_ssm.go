package simulator

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// This file is Run Command of Systems Manager (SSM 2014-11-06, AWS JSON 1.1).

var ssmOperations = map[string]awsOperation{
	"SendCommand":                 (*Simulator).sendCommand,
	"GetCommandInvocation":        (*Simulator).getCommandInvocation,
	"ListCommandInvocations":      (*Simulator).listCommandInvocations,
	"ListCommands":                (*Simulator).listCommands,
	"CancelCommand":               (*Simulator).cancelCommand,
	"DescribeInstanceInformation": (*Simulator).describeInstanceInformation,
}

// The limits of Run Command.
const (
	maxSSMInstances  = 50
	maxSSMComment    = 100
	maxSSMFilters    = 5
	ssmCommandID     = 36 // characters
	minSSMDelivery   = 30
	maxSSMDelivery   = 30 * 24 * 60 * 60
	ssmDelivery      = 3600
	ssmExecution     = 3600
	maxSSMExecution  = 48 * 60 * 60
	maxSSMOutput     = 24_000 // characters
	maxSSMErrors     = 8_000
	maxSSMPlugin     = 2_500                      // of an output in a listing
	maxSSMCapture    = maxSSMOutput * utf8.UTFMax // bytes, enough for as many characters
	shellDocument    = "AWS-RunShellScript"
	powerDocument    = "AWS-RunPowerShellScript"
	shellPlugin      = "aws:runShellScript"
	ssmNotStarted    = -1
	ssmKilled        = 137 // the exit code of a script whose time is over (unconfirmed)
	ssmInstanceLimit = 50  // of a page of DescribeInstanceInformation
)

// ssmDocuments are the documents there are, and the kind of command that they make.
var ssmDocuments = map[string]string{shellDocument: "RunShellScript", powerDocument: "RunPowerShellScript"}

// ssmCommand is what a command of AWS has beside an invocation.
type ssmCommand struct {
	document   string
	comment    string
	parameters map[string][]string
	targets    []ssmTarget
	delivery   time.Duration
}

type ssmTarget struct {
	Key    string
	Values []string
}

func errSSM(code, format string, values ...any) *awsError {
	return &awsError{status: 400, code: code, message: fmt.Sprintf(format, values...)}
}

// errSSMValue refuses a parameter out of bounds, in the words of every service of this protocol.
func errSSMValue(value any, name, constraint string) *awsError {
	return errSSM("ValidationException", "1 validation error detected: Value '%v' at '%s' failed to satisfy constraint: %s", value, name, constraint)
}

// ssmResources names what a call is about, as policies do: the document and the instances
// of a command, or everything.
func (s *Simulator) ssmResources(c *awsCall) []string {
	var in sendCommandInput
	if c.action != "SendCommand" || c.decode(&in) != nil {
		return []string{"*"}
	}
	out := []string{"arn:aws:ssm:" + s.scenario.Region + "::document/" + documentName(in.DocumentName)}
	for _, id := range in.ids() {
		out = append(out, s.awsARN("ec2", "instance/"+id))
	}
	return out
}

// documentName is a document's name without the rest of its ARN.
func documentName(name string) string {
	return name[strings.LastIndex(name, "/")+1:]
}

type sendCommandInput struct {
	DocumentName   string
	InstanceIds    []string
	Targets        []ssmTarget
	TimeoutSeconds *int
	Comment        string
	Parameters     map[string][]string
}

// ids are the instances that a command names, in either way.
func (in sendCommandInput) ids() []string {
	ids := slices.Clone(in.InstanceIds)
	for _, t := range in.Targets {
		if t.Key == "InstanceIds" {
			ids = append(ids, t.Values...)
		}
	}
	return ids
}

func (s *Simulator) sendCommand(c *awsCall) (awsAnswer, *awsError) {
	var in sendCommandInput
	if bad := c.decode(&in); bad != nil {
		return nil, bad
	}
	v, bad := in.invocation()
	if bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, c.broken()
	}
	var invalid []string
	for _, r := range v.runs {
		if r.instance = s.instances[r.instanceID]; r.instance == nil || !s.managed(r.instance) {
			invalid = append(invalid, r.instanceID)
		}
	}
	if len(invalid) > 0 {
		return nil, errSSM("InvalidInstanceId", "Instances [[%s]] not in a valid state for account %s", strings.Join(invalid, ", "), s.account)
	}
	s.invocations.add(v.id, v)
	for _, r := range v.runs {
		s.startRun(r)
	}
	return &struct{ Command ssmCommandAnswer }{s.describeCommand(v)}, nil
}

// managed says whether the agent on an instance has made itself known. The caller holds s.mu.
func (s *Simulator) managed(in *instance) bool { return in.running && in.hasAgent(s) }

// invocation reads SendCommand's parameters.
func (in sendCommandInput) invocation() (*invocation, *awsError) {
	ids := in.ids()
	delivery := ssmDelivery
	if in.TimeoutSeconds != nil {
		delivery = *in.TimeoutSeconds
	}
	name := documentName(in.DocumentName)
	switch {
	case in.DocumentName == "":
		return nil, errSSMValue("null", "documentName", "Member must not be null")
	case len(in.InstanceIds) > maxSSMInstances:
		return nil, errSSMValue(in.InstanceIds, "instanceIds", "Member must have length less than or equal to 50")
	case delivery < minSSMDelivery:
		return nil, errSSMValue(delivery, "timeoutSeconds", "Member must have value greater than or equal to 30")
	case delivery > maxSSMDelivery:
		return nil, errSSMValue(delivery, "timeoutSeconds", "Member must have value less than or equal to 2592000")
	case utf8.RuneCountInString(in.Comment) > maxSSMComment:
		return nil, errSSMValue(in.Comment, "comment", "Member must have length less than or equal to 100")
	case ssmDocuments[name] == "":
		return nil, errSSM("InvalidDocument", "Document with name %s does not exist.", name)
	case len(ids) == 0: // (unconfirmed; commands to tags are not simulated)
		return nil, errSSM("InvalidInstanceId", "The command names no instances")
	case len(slices.Compact(slices.Sorted(slices.Values(ids)))) < len(ids):
		return nil, errSSM("DuplicateInstanceId", "An instance is named twice")
	}
	script, limit, bad := ssmScript(in.Parameters)
	if bad != nil {
		return nil, bad
	}
	v := &invocation{
		id: strings.ToLower(newUUID()), kind: ssmDocuments[name], script: script, timeout: limit, created: time.Now(),
		ssm: &ssmCommand{document: name, comment: in.Comment, parameters: in.Parameters, targets: in.Targets, delivery: time.Duration(delivery) * time.Second},
	}
	for _, id := range ids {
		v.runs = append(v.runs, &run{invocation: v, instanceID: id, status: runPending, exitCode: ssmNotStarted})
	}
	return v, nil
}

// ssmScript makes the script of a document's parameters, and says for how long it may run.
func ssmScript(parameters map[string][]string) (script string, limit time.Duration, bad *awsError) {
	limit = ssmExecution * time.Second
	for name, values := range parameters {
		switch {
		case name == "commands":
			script = strings.Join(values, "\n") + script
		case name == "workingDirectory" && len(values) == 1:
		case name == "executionTimeout" && len(values) == 1:
			n, err := strconv.Atoi(values[0])
			if err != nil || n < 1 || n > maxSSMExecution {
				return "", 0, errSSM("InvalidParameters", "Parameter \"executionTimeout\" has value \"%s\" not matching the allowed pattern", values[0])
			}
			limit = time.Duration(n) * time.Second
		default:
			return "", 0, errSSM("InvalidParameters", "%s", name)
		}
	}
	if len(parameters["commands"]) == 0 {
		return "", 0, errSSM("InvalidParameters", "commands")
	}
	if at := parameters["workingDirectory"]; len(at) == 1 && at[0] != "" {
		script = "cd '" + strings.ReplaceAll(at[0], "'", `'\''`) + "' || exit 1\n" + script
	}
	return script, limit, nil
}

// take is what a machine makes of the command: the agent has it now, or there is nobody
// who could have it, and it waits until its delivery times out.
func (r *run) take(out *CommandOutcome) {
	switch out.ErrorCode {
	case "":
		r.status, r.started = runRunning, time.Now()
	case "ClientNotRunning":
		out.Duration = max(0, time.Until(r.invocation.created.Add(r.invocation.ssm.delivery)))
	}
	if out.ErrorCode != "" {
		out.ExitCode = ssmNotStarted
	}
}

// ssmStatus is a run's Status and StatusDetails. The details are spelt as filters and
// logs have them; the vendor's guide puts blanks into them.
func (r *run) ssmStatus() (status, details string) {
	switch r.status {
	case runPending:
		return "Pending", "Pending"
	case runRunning:
		return "InProgress", "InProgress"
	case runSuccess:
		return "Success", "Success"
	case runCancelled, runTerminated:
		return "Cancelled", "Cancelled"
	case runTimeout:
		return "TimedOut", "ExecutionTimedOut"
	}
	switch r.errorCode {
	case "ClientNotRunning":
		return "TimedOut", "DeliveryTimedOut"
	case "InstanceNotRunning", "InstanceReleased":
		return "Failed", "Undeliverable"
	case "CommandNotApplicable":
		return "Failed", "InvalidPlatform"
	}
	return "Failed", "Failed"
}

// is says whether a filter's status is the run's.
func (r *run) is(status string) bool {
	short, details := r.ssmStatus()
	return status == short || status == details
}

// responseCode is the script's exit code; -1: there is none.
func (r *run) responseCode() int {
	switch {
	case !r.done() || r.started.IsZero() || r.status == runTerminated || r.errorCode == "ExecutionInterrupted":
		return ssmNotStarted
	case r.status == runTimeout:
		return ssmKilled
	}
	return r.exitCode
}

// outputs are what a run has written to standard output and error, which is told when it
// has ended.
func (r *run) outputs() (output, problems string) {
	if !r.done() {
		return "", ""
	}
	return characters(r.output, maxSSMOutput), characters(r.errors, maxSSMErrors)
}

// characters cuts a text to so many characters.
func characters(text string, n int) string {
	for i := range text {
		if n--; n < 0 {
			return text[:i]
		}
	}
	return text
}

// epoch is a time as the protocol writes it: seconds, with a fraction.
type epoch time.Time

// MarshalJSON writes milliseconds as the fraction, and null for no time.
func (e epoch) MarshalJSON() ([]byte, error) {
	if time.Time(e).IsZero() {
		return []byte("null"), nil
	}
	return json.Marshal(float64(time.Time(e).UnixMilli()) / 1000)
}

// ssmTime is a time as GetCommandInvocation writes it; empty: it is yet to come.
func (s *Simulator) ssmTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return s.cloudTime(t).UTC().Format("2006-01-02T15:04:05.999Z")
}

func (s *Simulator) ssmEpoch(t time.Time) epoch {
	if t.IsZero() {
		return epoch{}
	}
	return epoch(s.cloudTime(t))
}

// listed says whether the calls that look know of a command yet.
func (s *Simulator) listed(v *invocation) bool {
	return v.ssm != nil && !time.Now().Before(v.created.Add(s.scenario.Timings.Listing))
}

type getCommandInvocationInput struct{ CommandId, InstanceId, PluginName string }

type commandInvocationAnswer struct {
	CommandId, InstanceId, Comment, DocumentName, DocumentVersion, PluginName string
	ResponseCode                                                              int
	ExecutionStartDateTime, ExecutionElapsedTime, ExecutionEndDateTime        string
	Status, StatusDetails                                                     string
	StandardOutputContent, StandardOutputUrl                                  string
	StandardErrorContent, StandardErrorUrl                                    string
}

func (s *Simulator) getCommandInvocation(c *awsCall) (awsAnswer, *awsError) {
	var in getCommandInvocationInput
	if bad := c.decode(&in); bad != nil {
		return nil, bad
	}
	switch {
	case len(in.CommandId) != ssmCommandID:
		return nil, errSSMValue(in.CommandId, "commandId", "Member must have length equal to 36")
	case !instanceIDPattern.MatchString(in.InstanceId):
		return nil, errSSMValue(in.InstanceId, "instanceId", "Member must satisfy regular expression pattern: "+instanceIDPattern.String())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.invocations.get(in.CommandId)
	if !ok || !s.listed(v) {
		return nil, errSSM("InvocationDoesNotExist", "")
	}
	r, ok := find(v.runs, func(r *run) bool { return r.instanceID == in.InstanceId })
	switch {
	case !ok:
		return nil, errSSM("InvocationDoesNotExist", "")
	case in.PluginName != "" && in.PluginName != shellPlugin:
		return nil, errSSM("InvalidPluginName", "")
	}
	answer := &commandInvocationAnswer{
		CommandId: v.id, InstanceId: r.instanceID, Comment: v.ssm.comment, DocumentName: v.ssm.document, DocumentVersion: "$DEFAULT", PluginName: shellPlugin,
		ResponseCode: r.responseCode(), ExecutionStartDateTime: s.ssmTime(r.started),
	}
	if !r.started.IsZero() && r.done() {
		answer.ExecutionEndDateTime = s.ssmTime(r.finished)
		answer.ExecutionElapsedTime = fmt.Sprintf("PT%.3gS", r.finished.Sub(r.started).Seconds())
	}
	answer.Status, answer.StatusDetails = r.ssmStatus()
	answer.StandardOutputContent, answer.StandardErrorContent = r.outputs()
	return answer, nil
}

var instanceIDPattern = regexp.MustCompile(`(^i-(\w{8}|\w{17})$)|(^mi-\w{17}$)`)

// ssmList is a list in an answer: never null, and subject to faults.
type ssmList[T any] []T

func (l *ssmList[T]) thin(kind FaultKind) { *l = append([]T{}, thinned(*l, kind)...) }

type ssmCommandAnswer struct {
	CommandId, DocumentName, DocumentVersion, Comment                              string
	Parameters                                                                     map[string][]string
	InstanceIds                                                                    []string
	Targets                                                                        []ssmTarget
	RequestedDateTime, ExpiresAfter                                                epoch
	Status, StatusDetails                                                          string
	MaxConcurrency, MaxErrors                                                      string
	TargetCount, CompletedCount, ErrorCount, DeliveryTimedOutCount, TimeoutSeconds int
}

// describeCommand tells of a command as a whole. The caller holds s.mu.
func (s *Simulator) describeCommand(v *invocation) ssmCommandAnswer {
	o := ssmCommandAnswer{
		CommandId: v.id, DocumentName: v.ssm.document, DocumentVersion: "$DEFAULT", Comment: v.ssm.comment, Parameters: v.ssm.parameters,
		InstanceIds: []string{}, Targets: append([]ssmTarget{}, v.ssm.targets...), MaxConcurrency: "50", MaxErrors: "0",
		RequestedDateTime: s.ssmEpoch(v.created), ExpiresAfter: s.ssmEpoch(v.created.Add(v.ssm.delivery + v.timeout)),
		TargetCount: len(v.runs), TimeoutSeconds: int(v.ssm.delivery.Seconds()),
	}
	for _, r := range v.runs {
		if len(v.ssm.targets) == 0 {
			o.InstanceIds = append(o.InstanceIds, r.instanceID)
		}
		status, details := r.ssmStatus()
		if r.done() {
			o.CompletedCount++
		}
		switch {
		case details == "DeliveryTimedOut":
			o.DeliveryTimedOutCount++
		case status == "Failed" || status == "TimedOut":
			o.ErrorCount++
		}
	}
	o.Status, o.StatusDetails = v.ssmStatus()
	return o
}

// ssmStatus is a command's Status and StatusDetails: the worst of its runs' when all have
// ended.
func (v *invocation) ssmStatus() (status, details string) {
	count := map[string]int{}
	for _, r := range v.runs {
		status, details = r.ssmStatus()
		count[status]++
	}
	if count[status] == len(v.runs) {
		return status, details
	}
	for _, worst := range []string{"InProgress", "Pending", "Failed", "TimedOut", "Cancelled"} {
		switch {
		case count[worst] == 0:
		case worst == "InProgress" || worst == "Pending":
			return "InProgress", "InProgress"
		default:
			return worst, worst
		}
	}
	return status, details
}

// ssmFilter is a filter of the calls that list. Its names are small, unlike all others.
type ssmFilter struct{ Key, Value string }

type listCommandsInput struct {
	CommandId, InstanceId string
	Details               bool
	Filters               []ssmFilter
	MaxResults            *int
	NextToken             string
}

// check refuses bad filters: InvokedAfter, InvokedBefore, Status, DocumentName and, of
// commands only, ExecutionStage.
func (in listCommandsInput) check(commands bool) *awsError {
	switch {
	case in.CommandId != "" && len(in.CommandId) != ssmCommandID:
		return errSSMValue(in.CommandId, "commandId", "Member must have length equal to 36")
	case in.InstanceId != "" && !instanceIDPattern.MatchString(in.InstanceId):
		return errSSMValue(in.InstanceId, "instanceId", "Member must satisfy regular expression pattern: "+instanceIDPattern.String())
	case len(in.Filters) > maxSSMFilters:
		return errSSMValue(in.Filters, "filters", "Member must have length less than or equal to 5")
	}
	for _, f := range in.Filters {
		switch f.Key {
		case "Status", "DocumentName":
		case "InvokedAfter", "InvokedBefore":
			if _, err := time.Parse(time.RFC3339, f.Value); err != nil {
				return errSSMValue(f.Value, "filters", "Member must be a timestamp")
			}
		case "ExecutionStage":
			if !commands {
				return errSSM("InvalidFilterKey", "ExecutionStage is not a filter of this operation")
			}
		default:
			return errSSM("InvalidFilterKey", "%s is not a filter", f.Key)
		}
	}
	return nil
}

// fits says whether the filters let a command pass whose status is as is says.
func (in listCommandsInput) fits(created time.Time, v *invocation, is func(status string) bool) bool {
	for _, f := range in.Filters {
		at, _ := time.Parse(time.RFC3339, f.Value) // checked where it is one
		ok := false
		switch f.Key {
		case "Status":
			ok = is(f.Value)
		case "DocumentName":
			ok = v.ssm.document == f.Value
		case "InvokedAfter":
			ok = !created.Before(at)
		case "InvokedBefore":
			ok = created.Before(at)
		case "ExecutionStage":
			ended := !slices.ContainsFunc(v.runs, func(r *run) bool { return !r.done() })
			ok = f.Value == "Executing" && !ended || f.Value == "Complete" && ended
		}
		if !ok {
			return false
		}
	}
	return true
}

// ssmPage cuts a list by MaxResults and NextToken.
func ssmPage[T any](all []T, size *int, least, most int, token string) (part []T, next string, bad *awsError) {
	n := most
	if size != nil {
		n = *size
	}
	if n < least || n > most {
		return nil, "", errSSMValue(n, "maxResults", fmt.Sprintf("Member must have value between %d and %d", least, most))
	}
	from := 0
	if token != "" {
		text, err := base64.StdEncoding.DecodeString(token)
		i, err2 := strconv.Atoi(string(text))
		if err != nil || err2 != nil || i < 0 || i > len(all) {
			return nil, "", errSSM("InvalidNextToken", "The specified token isn't valid.")
		}
		from = i
	}
	to := min(from+n, len(all))
	if to < len(all) {
		next = base64.StdEncoding.EncodeToString([]byte(strconv.Itoa(to)))
	}
	return all[from:to], next, nil
}

// ssmCommands are the commands that a call asks for, newest first. The caller holds s.mu.
func (s *Simulator) ssmCommands(in listCommandsInput) []*invocation {
	all := s.invocationsOf(in.CommandId)
	return slices.DeleteFunc(all, func(v *invocation) bool { return !s.listed(v) })
}

type ssmPlugin struct {
	Name, Status, StatusDetails                   string
	ResponseCode                                  int
	ResponseStartDateTime, ResponseFinishDateTime epoch
	Output                                        string
}

type ssmInvocation struct {
	CommandId, InstanceId, InstanceName, Comment, DocumentName, DocumentVersion string
	RequestedDateTime                                                           epoch
	Status, StatusDetails, StandardOutputUrl, StandardErrorUrl                  string
	CommandPlugins                                                              []ssmPlugin
}

type ssmInvocations struct {
	CommandInvocations ssmList[ssmInvocation]
	NextToken          string `json:",omitempty"`
}

func (s *Simulator) listCommandInvocations(c *awsCall) (awsAnswer, *awsError) {
	var in listCommandsInput
	if bad := c.decode(&in); bad != nil {
		return nil, bad
	}
	if bad := in.check(false); bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*run
	for _, v := range s.ssmCommands(in) {
		for _, r := range v.runs {
			if (in.InstanceId == "" || in.InstanceId == r.instanceID) && in.fits(s.cloudTime(v.created), v, r.is) {
				found = append(found, r)
			}
		}
	}
	part, next, bad := ssmPage(found, in.MaxResults, 1, 50, in.NextToken)
	if bad != nil {
		return nil, bad
	}
	answer := &ssmInvocations{CommandInvocations: ssmList[ssmInvocation]{}, NextToken: next}
	for _, r := range part {
		answer.CommandInvocations = append(answer.CommandInvocations, s.describeRun(r, in.Details))
	}
	return answer, nil
}

func (s *Simulator) describeRun(r *run, details bool) ssmInvocation {
	v := r.invocation
	o := ssmInvocation{
		CommandId: v.id, InstanceId: r.instanceID, Comment: v.ssm.comment, DocumentName: v.ssm.document, DocumentVersion: "$DEFAULT",
		RequestedDateTime: s.ssmEpoch(v.created), CommandPlugins: []ssmPlugin{},
	}
	o.Status, o.StatusDetails = r.ssmStatus()
	if details {
		output, problems := r.outputs()
		if problems != "" {
			output += "\n----------ERROR-------\n" + problems
		}
		o.CommandPlugins = append(o.CommandPlugins, ssmPlugin{
			Name: shellPlugin, Status: o.Status, StatusDetails: o.StatusDetails, ResponseCode: r.responseCode(), Output: characters(output, maxSSMPlugin),
			ResponseStartDateTime: s.ssmEpoch(r.started), ResponseFinishDateTime: s.ssmEpoch(r.finished),
		})
	}
	return o
}

type ssmCommandsAnswer struct {
	Commands  ssmList[ssmCommandAnswer]
	NextToken string `json:",omitempty"`
}

func (s *Simulator) listCommands(c *awsCall) (awsAnswer, *awsError) {
	var in listCommandsInput
	if bad := c.decode(&in); bad != nil {
		return nil, bad
	}
	if bad := in.check(true); bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*invocation
	for _, v := range s.ssmCommands(in) {
		status, details := v.ssmStatus()
		is := func(want string) bool { return want == status || want == details }
		there := in.InstanceId == "" || slices.ContainsFunc(v.runs, func(r *run) bool { return r.instanceID == in.InstanceId })
		if there && in.fits(s.cloudTime(v.created), v, is) {
			found = append(found, v)
		}
	}
	part, next, bad := ssmPage(found, in.MaxResults, 1, 50, in.NextToken)
	if bad != nil {
		return nil, bad
	}
	answer := &ssmCommandsAnswer{Commands: ssmList[ssmCommandAnswer]{}, NextToken: next}
	for _, v := range part {
		answer.Commands = append(answer.Commands, s.describeCommand(v))
	}
	return answer, nil
}

type cancelCommandInput struct {
	CommandId   string
	InstanceIds []string
}

// cancelCommand ends what has not ended, at once: the states in between are not simulated.
func (s *Simulator) cancelCommand(c *awsCall) (awsAnswer, *awsError) {
	var in cancelCommandInput
	if bad := c.decode(&in); bad != nil {
		return nil, bad
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.invocations.get(in.CommandId)
	if !ok || v.ssm == nil {
		return nil, errSSM("InvalidCommandId", "Command %s does not exist", in.CommandId)
	}
	for _, id := range in.InstanceIds {
		if !slices.ContainsFunc(v.runs, func(r *run) bool { return r.instanceID == id }) {
			return nil, errSSM("InvalidInstanceId", "The command was not sent to %s", id)
		}
	}
	for _, r := range v.runs {
		if len(in.InstanceIds) == 0 || slices.Contains(in.InstanceIds, r.instanceID) {
			s.stopRun(r)
		}
	}
	return &struct{}{}, nil
}

type describeInstanceInformationInput struct {
	InstanceInformationFilterList []struct {
		Key      string   `json:"key"`
		ValueSet []string `json:"valueSet"`
	}
	Filters    []ssmTarget
	MaxResults *int
	NextToken  string
}

type ssmInstance struct {
	InstanceId, PingStatus                                    string
	LastPingDateTime, RegistrationDate                        epoch
	AgentVersion                                              string
	IsLatestVersion                                           bool
	PlatformType, PlatformName, PlatformVersion, ResourceType string
	IPAddress, ComputerName                                   string
}

type ssmInstances struct {
	InstanceInformationList ssmList[ssmInstance]
	NextToken               string `json:",omitempty"`
}

func (s *Simulator) describeInstanceInformation(c *awsCall) (awsAnswer, *awsError) {
	var in describeInstanceInformationInput
	if bad := c.decode(&in); bad != nil {
		return nil, bad
	}
	filters := in.Filters
	for _, f := range in.InstanceInformationFilterList {
		filters = append(filters, ssmTarget{f.Key, f.ValueSet})
	}
	for _, f := range filters {
		if f.Key != "InstanceIds" && f.Key != "PingStatus" {
			return nil, errSSM("InvalidFilterKey", "%s is not a filter", f.Key)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := ssmList[ssmInstance]{}
	for _, g := range s.groups {
		for e := g.instances.Front(); e != nil; e = e.Next() {
			if in := e.Value.(*instance); s.managed(in) {
				found = append(found, s.describeManaged(in))
			}
		}
	}
	found = slices.DeleteFunc(found, func(x ssmInstance) bool {
		return slices.ContainsFunc(filters, func(f ssmTarget) bool {
			return !slices.Contains(f.Values, map[string]string{"InstanceIds": x.InstanceId, "PingStatus": x.PingStatus}[f.Key])
		})
	})
	part, next, bad := ssmPage(found, in.MaxResults, 5, ssmInstanceLimit, in.NextToken)
	if bad != nil {
		return nil, bad
	}
	return &ssmInstances{InstanceInformationList: part, NextToken: next}, nil
}

func (s *Simulator) describeManaged(in *instance) ssmInstance {
	ip := in.addr.Addr().String()
	return ssmInstance{
		InstanceId: in.id, PingStatus: "Online", LastPingDateTime: s.ssmEpoch(time.Now()), RegistrationDate: s.ssmEpoch(in.created),
		AgentVersion: "3.3.0.0", IsLatestVersion: true, PlatformType: "Linux", PlatformName: "Amazon Linux", PlatformVersion: "2023",
		ResourceType: "EC2Instance", IPAddress: ip, ComputerName: "ip-" + strings.ReplaceAll(ip, ".", "-") + "." + s.scenario.Region + ".compute.internal",
	}
}
