package aws

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/ssm/types"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/internal/gather"
)

const (
	// MaxScript is the longest script in bytes, the same on all clouds.
	MaxScript = 16 << 10
	maxKey    = 64
	// shellDocument is the document of AWS that runs a shell script as root.
	shellDocument = "AWS-RunShellScript"
	// The bounds of its executionTimeout, and of SendCommand's TimeoutSeconds, for which the
	// agent may not have fetched the command (SSM, 2014-11-06). Late is worse than not at all:
	// the step may have been given up by then.
	minExecution, maxExecution = time.Second, 48 * time.Hour
	minDelivery, maxDelivery   = 30 * time.Second, time.Minute
	// maxComment is how long a command's comment may be.
	maxComment = 100
	// commandAge is how far back a command of the same key is looked for: no lifecycle
	// action waits for longer than 48 hours.
	commandAge = 49 * time.Hour
	// commandPage is the most that ListCommands gives in one page.
	commandPage = 50
	// unlistedFor is how long GetCommandInvocation may not know an invocation that was
	// sent: it is told of it a moment later than SendCommand's caller.
	unlistedFor = 30 * time.Second
	// settleFor is between two looks for a command whose answer was lost, and lostLooks how
	// many of them must not find it until it is sent again: listings know of it a moment later.
	settleFor = 2 * time.Second
	lostLooks = 4
	// sendAttempts is how often a command is sent at most.
	sendAttempts = MaxAttempts
)

// Commander is Run Command of Systems Manager as a providers.Commander.
type Commander struct {
	wire   *wire
	client ssmCalls
	ec2    *ec2

	mu     sync.Mutex
	missed map[string]time.Time // since when an invocation is not known; guarded by mu
}

var _ providers.Commander = (*Commander)(nil)

// NewCommander makes a client of Systems Manager in o.Region. It does not call the service.
func NewCommander(o Options) (*Commander, error) {
	w, err1 := o.newWire("ssm", "SSMEndpoint", o.SSMEndpoint)
	e, err2 := newEC2(o)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	return &Commander{wire: w, client: newSSMCalls(ssm.NewFromConfig(w.config())), ec2: e, missed: map[string]time.Time{}}, nil
}

// Close drops idle connections. Calls in flight go on.
func (cm *Commander) Close() {
	cm.wire.close()
	cm.ec2.close()
}

// ssmCall puts a carrier into a call.
func ssmCall(c *carrier) func(*ssm.Options) {
	return func(o *ssm.Options) { o.HTTPClient, o.Retryer, o.Credentials = c, c, c }
}

// looks is a call that only asks.
func (cm *Commander) looks(name string) operation {
	return operation{name: name, permission: "ssm:" + name, resource: "*"}
}

// RunCommand starts a shell script as root with SendCommand, which knows no client token:
// c.Key stands in the comment, and a command of the instance with the same one is joined.
// So it is looked for before each attempt but those after a refusal. Timeout is rounded up to
// whole seconds; at its end the agent kills the script and all that it started.
func (cm *Commander) RunCommand(ctx context.Context, c providers.Command) (string, error) {
	id, err := "", checkCommand(c)
	if err == nil {
		id, err = cm.run(ctx, c)
	}
	if err != nil {
		return "", fmt.Errorf("run command on %s: %w", c.Instance, err)
	}
	return id, nil
}

func (cm *Commander) run(ctx context.Context, c providers.Command) (string, error) {
	looks := 1
	for attempt := 1; ; attempt++ {
		if id, err := cm.find(ctx, c, looks); err != nil || id != "" {
			return id, err
		}
		id, err := cm.send(ctx, c)
		again := errors.Is(err, providers.ErrThrottled) || errors.Is(err, providers.ErrUnavailable)
		if err == nil || !again || attempt == sendAttempts || ctx.Err() != nil {
			return id, err
		}
		looks = lostLooks
		if providers.Untouched(err) {
			looks = 0 // nothing can have been started
		}
		if !gather.Sleep(ctx, settleFor+rand.N(min(backoffBase<<attempt, backoffCap))) {
			return "", fmt.Errorf("%w: %w", context.Cause(ctx), err)
		}
	}
}

// find looks so often for a command with the key, of whichever worker.
func (cm *Commander) find(ctx context.Context, c providers.Command, looks int) (string, error) {
	for n := range looks {
		if n > 0 && !gather.Sleep(ctx, settleFor) {
			return "", context.Cause(ctx)
		}
		if id, err := cm.look(ctx, c); err != nil || id != "" {
			return id, err
		}
	}
	return "", nil
}

func checkCommand(c providers.Command) error {
	refuse := func(format string, args ...any) error {
		return &providers.Error{Op: "SendCommand", Kind: providers.ErrInvalid, Untouched: true, Message: fmt.Sprintf(format, args...)}
	}
	switch {
	case c.Instance == "":
		return refuse("no instance given")
	case c.Script == "":
		return refuse("the script is empty")
	case len(c.Script) > MaxScript:
		return refuse("the script has %d bytes, at most %d are allowed", len(c.Script), MaxScript)
	case !utf8.ValidString(c.Script) || strings.ContainsRune(c.Script, 0):
		return refuse("the script is no text: it has a NUL byte, or is not UTF-8")
	case c.Key == "" || len(c.Key) > maxKey || strings.ContainsFunc(c.Key, func(r rune) bool { return r <= ' ' || r > '~' }):
		return refuse("the key must be 1 to %d printable ASCII characters without spaces", maxKey)
	}
	return nil
}

// comment is what the console shows: the name, and the key as its last word.
func comment(c providers.Command) string {
	name, most := "", maxComment-len(c.Key)-1
	for _, r := range strings.ToValidUTF8(c.Name, "") {
		if len(name)+utf8.RuneLen(r) > most {
			break
		}
		name += string(r)
	}
	return name + " " + c.Key
}

// look reads the instance's commands.
func (cm *Commander) look(ctx context.Context, c providers.Command) (string, error) {
	input := &ssm.ListCommandsInput{
		InstanceId: aws.String(string(c.Instance)), MaxResults: aws.Int32(commandPage),
		Filters: []types.CommandFilter{
			{Key: types.CommandFilterKeyInvokedAfter, Value: aws.String(time.Now().Add(-commandAge).UTC().Format(time.RFC3339))},
		},
	}
	op := cm.looks("ListCommands")
	for range maxPages {
		answer, _, err := invoke(ctx, cm.wire, op, func(ctx context.Context, carrier *carrier) (*ssm.ListCommandsOutput, error) {
			return cm.client.ListCommands(ctx, input, ssmCall(carrier))
		})
		if unmanaged(err) {
			return "", nil // SendCommand has the say
		}
		if err != nil {
			return "", err
		}
		for _, command := range answer.Commands {
			words := strings.Fields(aws.ToString(command.Comment))
			if id := identifier(aws.ToString(command.CommandId)); id != "" && len(words) > 0 && words[len(words)-1] == c.Key {
				return id, nil
			}
		}
		if !lasting(answer.NextToken, input.NextToken) {
			return "", nil
		}
		input.NextToken = answer.NextToken
	}
	return "", circle(op.name)
}

// unmanaged: Systems Manager knows no running agent on the instance.
func unmanaged(err error) bool {
	e, ok := errors.AsType[*providers.Error](err)
	return ok && plainCode(e.Code) == "invalidinstanceid"
}

// gone says whether EC2 tells of the instance that it is terminated. One that it does not
// list may just not be listed yet.
func (cm *Commander) gone(ctx context.Context, id messages.InstanceID) bool {
	found, err := cm.ec2.machines(ctx, []messages.InstanceID{id})
	state := found[id].state
	return err == nil && (state == "terminated" || state == "shutting-down")
}

// send makes one attempt.
func (cm *Commander) send(ctx context.Context, c providers.Command) (string, error) {
	execution := wholeSeconds(c.Timeout, minExecution, maxExecution)
	op := operation{
		name: "SendCommand", permission: "ssm:SendCommand", once: true,
		resource: cm.wire.arn("ssm", "", "document/"+shellDocument) + " and " + cm.wire.arn("ec2", "", "instance/"+string(c.Instance)),
	}
	answer, _, err := invoke(ctx, cm.wire, op, func(ctx context.Context, carrier *carrier) (*ssm.SendCommandOutput, error) {
		return cm.client.SendCommand(ctx, &ssm.SendCommandInput{
			DocumentName: aws.String(shellDocument),
			InstanceIds:  []string{string(c.Instance)},
			Comment:      aws.String(comment(c)),
			Parameters: map[string][]string{
				"commands":         {shellText(c.Script)},
				"executionTimeout": {strconv.Itoa(seconds(execution))},
			},
			TimeoutSeconds: aws.Int32(int32(seconds(wholeSeconds(execution, minDelivery, maxDelivery)))),
		}, ssmCall(carrier))
	})
	if unmanaged(err) {
		e, _ := errors.AsType[*providers.Error](err)
		e.Kind, e.Hint = providers.ErrAgentUnavailable, "the SSM agent must run on the instance and be registered, with an instance profile that allows it, and the instance must be running"
		if cm.gone(ctx, c.Instance) {
			e.Kind, e.Hint = providers.ErrInstanceGone, commandHints[providers.ErrInstanceGone]
		}
	}
	if err != nil {
		return "", err
	}
	if answer.Command == nil || identifier(aws.ToString(answer.Command.CommandId)) == "" {
		return "", &providers.Error{Op: op.name, Kind: providers.ErrUnavailable, Message: "the answer has no CommandId"}
	}
	return *answer.Command.CommandId, nil
}

func seconds(d time.Duration) int { return int(d / time.Second) }

// wholeSeconds rounds up, within bounds.
func wholeSeconds(d, low, high time.Duration) time.Duration {
	return min(max((d+time.Second-1).Truncate(time.Second), low), high)
}

// shellText is a script as AWS-RunShellScript takes it. The agent writes it to a file, which
// it runs by its first line, or else with sh. It tells standard output and standard error
// apart, but a step wants to read them in their order, as the script wrote them.
//
// Systems Manager puts the value of a parameter in the place of each {{ssm:name}}, and the agent
// those of the document in the place of {{ commands }} and the like. A script with such
// braces is therefore sent in Base64.
func shellText(script string) string {
	line, rest, shebang := "", script, strings.HasPrefix(script, "#!")
	if shebang {
		line, rest, _ = strings.Cut(script, "\n")
		line += "\n"
	}
	interpreter := strings.TrimSpace(strings.TrimPrefix(line, "#!"))
	switch {
	case strings.Contains(script, "{{"):
		return encodedText(script, interpreter)
	case !shebang || isShell(interpreter):
		return line + "exec 2>&1\n" + rest
	}
	return script
}

// isShell says whether an interpreter understands what sh does.
func isShell(interpreter string) bool {
	words := strings.Fields(interpreter)
	if len(words) == 0 {
		return false
	}
	name := words[0][strings.LastIndexByte(words[0], '/')+1:]
	if name == "env" && len(words) > 1 {
		name = words[1]
	}
	return name == "sh" || name == "bash" || name == "dash" || name == "ash" || name == "ksh" || name == "zsh"
}

// encodedText writes the script to a file on the instance and runs that.
func encodedText(script, interpreter string) string {
	if interpreter == "" {
		interpreter = "/bin/sh"
	}
	return "#!/bin/sh\nexec 2>&1\n" +
		"f=$(mktemp) || exit\n" +
		"trap 'rm -f \"$f\"' EXIT\n" +
		"printf %s '" + base64.StdEncoding.EncodeToString([]byte(script)) + "' | base64 -d >\"$f\" || exit\n" +
		interpreter + " \"$f\"\n"
}

// CommandResult reads one invocation with GetCommandInvocation. For some seconds after it was
// sent, one that is not known yet is not done.
func (cm *Commander) CommandResult(ctx context.Context, invocation string, id messages.InstanceID) (providers.CommandResult, error) {
	answer, c, err := invoke(ctx, cm.wire, cm.looks("GetCommandInvocation"), func(ctx context.Context, c *carrier) (*ssm.GetCommandInvocationOutput, error) {
		return cm.client.GetCommandInvocation(ctx, &ssm.GetCommandInvocationInput{CommandId: &invocation, InstanceId: aws.String(string(id))}, ssmCall(c))
	})
	if e, ok := errors.AsType[*providers.Error](err); ok && plainCode(e.Code) == "invocationdoesnotexist" {
		if cm.missing(invocation) {
			return providers.CommandResult{RequestID: e.RequestID}, nil
		}
		e.Kind = providers.ErrNotFound
	}
	if err != nil {
		return providers.CommandResult{}, fmt.Errorf("result of command %s on %s: %w", invocation, id, err)
	}
	cm.known(invocation)
	result := resultOf(answer, c)
	if e, ok := errors.AsType[*providers.Error](result.Err); ok && e.Kind == providers.ErrAgentUnavailable && cm.gone(ctx, id) {
		e.Kind, e.Hint = providers.ErrInstanceGone, commandHints[providers.ErrInstanceGone]
	}
	return result, nil
}

// missing notes that an invocation is not known, and says whether that may still change.
func (cm *Commander) missing(invocation string) bool {
	cm.mu.Lock()
	defer cm.mu.Unlock()
	now := time.Now()
	since, before := cm.missed[invocation]
	if !before {
		if len(cm.missed) >= gather.CacheMost {
			clear(cm.missed)
		}
		since, cm.missed[invocation] = now, now
	}
	return now.Sub(since) < unlistedFor
}

func (cm *Commander) known(invocation string) {
	cm.mu.Lock()
	defer cm.mu.Unlock()
	delete(cm.missed, invocation)
}

// The most that GetCommandInvocation gives of what a script wrote, in characters.
const (
	maxStdout = 24_000
	maxStderr = 8_000
)

func resultOf(answer *ssm.GetCommandInvocationOutput, c *carrier) providers.CommandResult {
	requestID := c.requestID()
	out := providers.CommandResult{RequestID: requestID}
	done, kind := outcome(answer)
	if !done {
		return out
	}
	out.Done = true
	out.Output = kept(answer.StandardOutputContent, maxStdout) + kept(answer.StandardErrorContent, maxStderr)
	if kind == nil {
		out.ExitCode = int(answer.ResponseCode)
		return out
	}
	out.Err = &providers.Error{
		Op: "SendCommand", Kind: kind, RequestID: requestID,
		Code: told(aws.ToString(answer.StatusDetails), c.keys, mostCode), Hint: commandHints[kind],
	}
	return out
}

var commandHints = map[error]string{
	providers.ErrInstanceGone:     "EC2 says that the instance is terminated",
	providers.ErrAgentUnavailable: "the SSM agent on the instance did not fetch the command",
	providers.ErrCommandTimeout:   "the agent killed the script at the step's timeout",
	providers.ErrCommandFailed:    "the command was cancelled, or the agent could not run it",
}

// kept is the output, with a word on it where the cloud may have cut it.
func kept(text *string, most int) string {
	s := aws.ToString(text)
	if utf8.RuneCountInString(s) >= most {
		s += fmt.Sprintf("\n[Systems Manager gives the first %d characters, what came behind is lost]\n", most)
	}
	return s
}

// outcome reads Status, and StatusDetails where that says more. A status that we do not know
// is taken for one that is not final. Failed stands for an exit code that is not zero, and
// must not come out as a success when it has none.
func outcome(a *ssm.GetCommandInvocationOutput) (done bool, kind error) {
	details := strings.ToLower(strings.ReplaceAll(aws.ToString(a.StatusDetails), " ", ""))
	switch a.Status {
	case types.CommandInvocationStatusSuccess:
		return true, nil
	case types.CommandInvocationStatusTimedOut:
		if details == "deliverytimedout" {
			return true, providers.ErrAgentUnavailable
		}
		return true, providers.ErrCommandTimeout
	case types.CommandInvocationStatusCancelled:
		return true, providers.ErrCommandFailed
	case types.CommandInvocationStatusFailed:
		switch {
		case details == "undeliverable" || details == "deliverytimedout":
			return true, providers.ErrAgentUnavailable
		case details == "executiontimedout":
			return true, providers.ErrCommandTimeout
		case details == "terminated" || details == "invalidplatform" || details == "accessdenied" || a.ResponseCode <= 0:
			return true, providers.ErrCommandFailed
		}
		return true, nil
	}
	return false, nil
}
