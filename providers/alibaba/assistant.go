package alibaba

import (
	"context"
	"encoding/base64"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

const (
	// MaxScript is the longest script in bytes. In Base64 it stays below the 24 KB that
	// RunCommand takes when the command is not kept.
	MaxScript      = 16 << 10
	maxKey         = 64
	maxName        = 128
	minTimeout     = time.Second
	maxTimeout     = 24 * time.Hour
	base64Encoding = "Base64"
)

// Assistant is ECS Cloud Assistant as a Commander.
type Assistant struct{ *ecs }

var _ providers.Commander = (*Assistant)(nil)

// NewAssistant makes a client of ECS in o.Region. It does not call the service.
func NewAssistant(o Options) (*Assistant, error) {
	e, err := newECS(o)
	if err != nil {
		return nil, err
	}
	return &Assistant{ecs: e}, nil
}

// Close drops idle connections. Calls in flight go on.
func (as *Assistant) Close() { as.close() }

// RunCommand starts a shell script as root. c.Key is the ClientToken, so that a repeat
// gets the same invocation. Timeout is rounded up to whole seconds; at its end the
// script and all that it started are killed.
func (as *Assistant) RunCommand(ctx context.Context, c providers.Command) (string, error) {
	if err := checkCommand(c); err != nil {
		return "", fmt.Errorf("run command on %s: %w", c.Instance, err)
	}
	timeout := wholeSeconds(c.Timeout, minTimeout, maxTimeout)
	var answer struct {
		InvokeID string `json:"InvokeId"`
	}
	err := as.call(ctx, rpcOp{"RunCommand", fmt.Sprintf("acs:ecs:%s:*:instance/%s", as.region, c.Instance)}, as.region, map[string]string{
		"Type":            "RunShellScript",
		"CommandContent":  base64.StdEncoding.EncodeToString([]byte(c.Script)),
		"ContentEncoding": base64Encoding,
		"InstanceId.1":    string(c.Instance),
		"Timeout":         strconv.Itoa(int(timeout / time.Second)),
		"Name":            cutText(c.Name, maxName),
		"KeepCommand":     "false",
		"TerminationMode": "ProcessTree",
		"ClientToken":     c.Key,
	}, &answer)
	if err != nil {
		return "", fmt.Errorf("run command on %s: %w", c.Instance, err)
	}
	if identifier(answer.InvokeID) == "" {
		return "", fmt.Errorf("run command on %s: %w", c.Instance,
			&providers.Error{Op: "RunCommand", Kind: providers.ErrUnavailable, Message: "answer has no InvokeId"})
	}
	return answer.InvokeID, nil
}

func checkCommand(c providers.Command) error {
	refuse := func(format string, args ...any) error {
		return &providers.Error{Op: "RunCommand", Kind: providers.ErrInvalid, Untouched: true, Message: fmt.Sprintf(format, args...)}
	}
	switch {
	case c.Instance == "":
		return refuse("no instance given")
	case c.Script == "":
		return refuse("the script is empty")
	case len(c.Script) > MaxScript:
		return refuse("the script has %d bytes, at most %d are allowed", len(c.Script), MaxScript)
	case c.Key == "" || len(c.Key) > maxKey || strings.ContainsFunc(c.Key, outsideToken):
		return refuse("the key must be 1 to %d printable ASCII characters without spaces", maxKey)
	}
	return nil
}

// cutText keeps at most n bytes and no half character.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// CommandResult reads one invocation with DescribeInvocationResults. An invocation that
// is not listed yet is not done.
func (as *Assistant) CommandResult(ctx context.Context, invocation string, id messages.InstanceID) (providers.CommandResult, error) {
	var answer invocationAnswer
	err := as.call(ctx, looks("DescribeInvocationResults"), as.region, map[string]string{
		"InvokeId":        invocation,
		"InstanceId":      string(id),
		"ContentEncoding": base64Encoding,
		"PageSize":        "50",
	}, &answer)
	if err != nil {
		return providers.CommandResult{}, fmt.Errorf("result of command %s on %s: %w", invocation, id, err)
	}
	for _, r := range answer.Invocation.InvocationResults.InvocationResult {
		if r.InstanceID == string(id) && r.InvokeID == invocation {
			return r.result(answer.RequestID), nil
		}
	}
	return providers.CommandResult{RequestID: answer.RequestID}, nil
}

type invocationAnswer struct {
	RequestID  string `json:"RequestId"`
	Invocation struct {
		InvocationResults struct{ InvocationResult []invocationResult }
	}
}

type invocationResult struct {
	InvokeID         string `json:"InvokeId"`
	InstanceID       string `json:"InstanceId"`
	InvocationStatus string
	ExitCode         looseInt
	Output           string
	Dropped          looseInt
	ErrorCode        string
	ErrorInfo        string
}

// looseInt reads a number that may come as text.
type looseInt int

// UnmarshalJSON takes 3, "3", "" and null; the last two are 0.
func (n *looseInt) UnmarshalJSON(b []byte) error {
	text := strings.Trim(string(b), `"`)
	if text == "" || text == "null" {
		*n = 0
		return nil
	}
	v, err := strconv.Atoi(text)
	*n = looseInt(v)
	return err
}

func (r invocationResult) result(requestID string) providers.CommandResult {
	done, kind := r.outcome()
	out := providers.CommandResult{Done: done, Output: r.output(), RequestID: requestID}
	switch {
	case done && kind == nil:
		out.ExitCode = int(r.ExitCode)
	case done:
		out.Err = &providers.Error{
			Op: "RunCommand", Kind: kind, Code: told(r.ErrorCode, Keys{}, mostCode), Message: told(r.ErrorInfo, Keys{}, mostMessage), RequestID: requestID,
			Hint: "the invocation ended as " + r.InvocationStatus,
		}
	}
	return out
}

// outcome reads InvocationStatus and ErrorCode. A status we do not know is taken for one
// that is not final. Failed stands for an exit code that is not zero, and must not come
// out as a success when it has none.
func (r invocationResult) outcome() (done bool, kind error) {
	switch strings.ToLower(r.InvocationStatus) {
	case "success":
		return true, nil
	case "failed":
		if r.ExitCode == 0 {
			return true, commandKind(r.ErrorCode)
		}
		return true, nil
	case "timeout":
		return true, providers.ErrCommandTimeout
	case "error", "aborted", "invalid":
		return true, commandKind(r.ErrorCode)
	case "cancelled", "terminated":
		return true, providers.ErrCommandFailed
	}
	return false, nil
}

// commandKind is the table of ErrorCode values of Cloud Assistant.
func commandKind(code string) error {
	switch strings.ToLower(code) {
	case "instancenotexists", "instancereleased":
		return providers.ErrInstanceGone
	case "instancenotrunning", "clientnotrunning", "clientnotresponse", "clientisupgrading", "clientneedupgrade", "deliverytimeout":
		return providers.ErrAgentUnavailable
	case "executiontimeout":
		return providers.ErrCommandTimeout
	}
	return providers.ErrCommandFailed
}

func (r invocationResult) output() string {
	text := r.Output
	if plain, err := base64.StdEncoding.DecodeString(r.Output); err == nil {
		text = string(plain)
	}
	if r.Dropped > 0 {
		text += fmt.Sprintf("\n[%d more bytes were dropped by Cloud Assistant]", r.Dropped)
	}
	return text
}
