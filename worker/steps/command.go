package steps

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// MaxScript is how many bytes a script can have: RunCommand (ECS, 2014-05-26) takes 24 KB
// after Base64 of a command that is not kept. The rest is left to what goes with it.
const MaxScript = 16 << 10

// outputTail is how much of a failed script's output an error quotes: the end,
// where a script says why it stopped.
const outputTail = 300

// Command runs a script on the instance and waits until it has ended.
type Command struct {
	// Script is a shell script. It is sent as it stands: it is no template, so that
	// nothing from a message can become shell text.
	Script string
	// Timeout is when the cloud kills the script; give the step's own timeout.
	Timeout time.Duration
	// Commander reaches the instance.
	Commander providers.Commander
	// Index is the step's position in the hook's plan. It keeps two steps with the
	// same script apart.
	Index int
}

// Name is "command".
func (c Command) Name() string { return "command" }

// Validate says what is wrong with the settings, or nil.
func (c Command) Validate() error {
	var errs []error
	if strings.TrimSpace(c.Script) == "" {
		errs = append(errs, errors.New("command: script is empty"))
	}
	if strings.ContainsRune(c.Script, 0) {
		errs = append(errs, errors.New("command: script has a NUL byte"))
	}
	if len(c.Script) > MaxScript {
		errs = append(errs, fmt.Errorf("command: script has %d bytes, the cloud takes at most %d", len(c.Script), MaxScript))
	}
	if c.Timeout <= 0 {
		errs = append(errs, errors.New("command: timeout must be more than zero, such as 5m"))
	}
	if c.Commander == nil {
		errs = append(errs, errors.New("command: no commander to run it"))
	}
	return errors.Join(errs...)
}

// Run runs the script, or joins the run that another worker has started for
// the same attempt. It fails when the script exits with anything but 0.
func (c Command) Run(ctx context.Context, in messages.Instance, attempt int) (string, error) {
	res, err := runOn(ctx, c.Commander, in, providers.Command{
		Instance: in.ID,
		Name:     "usher command",
		Script:   c.Script,
		Timeout:  c.Timeout,
		Key:      commandKey(c.Name(), in, c.Index, c.Script, attempt),
	})
	if err != nil {
		return "", fmt.Errorf("command on %s: %w", in.ID, err)
	}
	if res.ExitCode != 0 {
		return "", fmt.Errorf("command on %s: exit code %d, output ends with %s", in.ID, res.ExitCode, tail(res.Output, outputTail))
	}
	return "exit code 0", nil
}

// commandKey names one run of one script for one instance. Every worker comes to
// the same key, so that the one who takes over finds the run of the one who died;
// a new attempt is a new run.
func commandKey(step string, in messages.Instance, index int, script string, attempt int) string {
	h := sha256.New()
	for _, part := range []string{
		step, in.Action.Region, string(in.Action.Hook), string(in.Action.Token), string(in.ID),
		fmt.Sprint(index), fmt.Sprint(attempt), script,
	} {
		// The length keeps ("ab", "c") and ("a", "bc") apart.
		fmt.Fprintf(h, "%d:%s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// The pause between two questions whether a script has ended is a quarter of the time
// it has run for, within these bounds: its end is known soon where that matters, and an
// hour of waiting stays cheap.
const (
	firstPoll = time.Second
	lastPoll  = 10 * time.Second
	// beforeEnd is when the last question is asked ahead of the step's timeout: a
	// script that ends by itself shortly before it then still gets its say.
	beforeEnd = time.Second
)

// runScript starts a script and waits for its end. The result it returns has run
// to its end: its ExitCode and Output count.
func runScript(ctx context.Context, commander providers.Commander, c providers.Command) (providers.CommandResult, error) {
	invocation, err := commander.RunCommand(ctx, c)
	if err != nil {
		return providers.CommandResult{}, fmt.Errorf("start the script: %w", err)
	}
	var unanswered error
	for started := time.Now(); ; {
		delay := min(max(firstPoll, time.Since(started)/4), lastPoll)
		if err := pause(ctx, untilPoll(ctx, delay)); err != nil {
			return providers.CommandResult{}, fmt.Errorf("invocation %s had not ended: %w", invocation, joinCause(err, unanswered))
		}
		res, err := commander.CommandResult(ctx, invocation, c.Instance)
		switch {
		case err == nil && !res.Done:
			unanswered = nil
		case err == nil && res.Err == nil:
			return res, nil
		case err == nil:
			return providers.CommandResult{}, fmt.Errorf("invocation %s: %w%s", invocation, res.Err, outputOf(res))
		case ctx.Err() == nil && passes(err):
			// The script runs on whether we can ask or not. Giving up here would make
			// the worker's next attempt run it a second time beside the first.
			unanswered = err
		default:
			return providers.CommandResult{}, fmt.Errorf("result of invocation %s: %w", invocation, err)
		}
	}
}

// passes says that a question may be answered later: a rate, an outage, keys that have
// expired, a permission that is given back.
func passes(err error) bool {
	for _, kind := range []error{providers.ErrThrottled, providers.ErrUnavailable, providers.ErrDenied, providers.ErrCredentials, providers.ErrClock} {
		if errors.Is(err, kind) {
			return true
		}
	}
	return false
}

// untilPoll shortens the pause before the last question.
func untilPoll(ctx context.Context, delay time.Duration) time.Duration {
	deadline, ok := ctx.Deadline()
	if !ok {
		return delay
	}
	if left := time.Until(deadline) - beforeEnd; left > 0 {
		return min(delay, left)
	}
	return delay
}

func joinCause(end, last error) error {
	if last == nil {
		return end
	}
	return fmt.Errorf("%w; the cloud did not say how far it is: %w", end, last)
}

func outputOf(res providers.CommandResult) string {
	if strings.TrimSpace(res.Output) == "" {
		return ""
	}
	return ", output ends with " + tail(res.Output, outputTail)
}
