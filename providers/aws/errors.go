package aws

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"

	"example.org/usher/providers"
)

// describe turns an error of the SDK into ours.
func (w *wire) describe(c *carrier, err error) *providers.Error {
	e := &providers.Error{Op: c.op.name, Kind: providers.ErrUnavailable, Status: c.status, RequestID: c.requestID(), Untouched: !c.touched}
	if res, ok := errors.AsType[*awshttp.ResponseError](err); ok {
		e.RequestID = cmp.Or(identifier(res.ServiceRequestID()), e.RequestID)
	}
	if keys, ok := errors.AsType[*credentialsError](err); ok {
		e.Kind, e.Cause = providers.ErrCredentials, keys.err
		return e
	}
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		if api.ErrorCode() != noCode {
			e.Code, e.Message = told(api.ErrorCode(), c.keys, mostCode), told(api.ErrorMessage(), c.keys, mostMessage)
		}
		w.classify(e, c.op)
		if date := c.date(); plainCode(e.Code) == requestExpired && time.Until(date).Abs() < ec2Skew {
			e.Kind, e.Hint = providers.ErrDenied, keysExpired
		}
		return e
	}
	switch {
	case c.attempts == 0 && !isWaiting(err):
		// It was not sent: the SDK's own checks refuse it.
		e.Kind = providers.ErrInvalid
	case c.status == 0 && isWaiting(err):
		e.Kind = providers.ErrThrottled
		e.Message = "it was not its turn in time: calls are spread since the service refused some for their rate"
	case c.status >= 400:
		w.classify(e, c.op) // a page without a code, as a proxy's
	}
	e.Cause = w.scrubError(err, c.keys)
	w.explainNetwork(e, err)
	return e
}

// noCode is what the SDK makes of an answer that holds no code.
const noCode = "UnknownError"

// isWaiting: the call ended while it waited for the rate limit. The SDK has no type for it.
func isWaiting(err error) bool { return strings.Contains(err.Error(), "get retry Send token") }

// plainCode is a code in one spelling: SQS calls the same thing QueueDoesNotExist in JSON and
// AWS.SimpleQueueService.NonExistentQueue in Query, and some services say Exception where
// others do not.
func plainCode(code string) string {
	code = strings.TrimPrefix(strings.ToLower(code), "aws.simplequeueservice.")
	return strings.TrimSuffix(code, "exception")
}

// requestExpired is what EC2 calls an expired session token as well as a wrong clock.
const requestExpired = "requestexpired"

const keysExpired = "the temporary keys have expired: fetch new ones, or check what renews them"

// keysRefused says whether a code means that the keys themselves are not known or not good
// any more, so that new ones would be.
func keysRefused(code string) bool {
	switch plainCode(code) {
	case "expiredtoken", "invalidclienttokenid", "unrecognizedclient", "authfailure", "tokenrefreshrequired", "invalidtoken", requestExpired:
		return true
	}
	return false
}

// noAction begins the message for a lifecycle action that is over or never was
// (Auto Scaling, 2011-01-01); its code, ValidationError, says nothing.
const noAction = "No active Lifecycle Action found"

// classify finds the kind of a refusal, and what to do about it: the code decides, the
// message only where a code stands for several things, and the status where there is no code.
func (w *wire) classify(e *providers.Error, op operation) {
	code, message := plainCode(e.Code), e.Message
	switch {
	case isThrottle(e.Code) || strings.HasSuffix(code, "kms.throttling") || e.Status == http.StatusTooManyRequests:
		e.Kind = providers.ErrThrottled
	case code == "nonexistentqueue" || code == "queuedoesnotexist" || code == "queuedeletedrecently":
		e.Kind = providers.ErrQueueGone
		e.Hint = op.missing
	case code == "receipthandleisinvalid" || code == "messagenotinflight",
		code == "invalidparametervalue" && strings.Contains(message, "ReceiptHandle"):
		e.Kind = providers.ErrReceiptStale
	case code == "validationerror" && strings.HasPrefix(message, noAction):
		e.Kind = providers.ErrActionGone
	case isClock(code, message):
		e.Kind = providers.ErrClock
		e.Hint = "AWS refuses requests whose time is more than 5 minutes off (15 for some services): set this host's clock, for example with NTP"
	case isScope(message):
		e.Kind = providers.ErrDenied
		e.Hint = fmt.Sprintf("the endpoint %s is not of the region %s: check region and the endpoints", w.place(), w.region)
	case code == "expiredtoken" || code == "tokenrefreshrequired":
		e.Kind = providers.ErrDenied
		e.Hint = keysExpired
	case code == "invalidclienttokenid" || code == "unrecognizedclient" || code == "authfailure" || code == "invalidtoken":
		e.Kind = providers.ErrDenied
		e.Hint = fmt.Sprintf("the access key id or the session token is unknown or disabled, or its account has not opted in to the region %s", w.region)
	case code == "signaturedoesnotmatch" || code == "invalidsignature" || code == "incompletesignature":
		e.Kind = providers.ErrDenied
		e.Hint = "the secret key does not belong to the access key id, or a proxy changed the request on its way"
	case code == "optinrequired" || code == "subscriptionrequired":
		e.Kind = providers.ErrDenied
		e.Hint = fmt.Sprintf("the account has not opted in to %s in the region %s", w.service, w.region)
	case strings.HasPrefix(code, "kms."):
		e.Kind = providers.ErrDenied
		e.Hint = "the queue's key cannot be used: allow kms:Decrypt, and kms:GenerateDataKey to send, on it, and check that it is enabled"
	case isDenied(code) || code == "" && (e.Status == http.StatusForbidden || e.Status == http.StatusUnauthorized):
		e.Kind = providers.ErrDenied
		e.Hint = fmt.Sprintf("allow %s on %s in an IAM policy of these keys", op.permission, op.resource)
	case code == "overlimit":
		e.Kind = providers.ErrUnavailable
		e.Hint = "the queue has as many messages in flight as it may have, about 120,000"
	case isMissing(code, message):
		e.Kind, e.Hint = providers.ErrNotFound, op.missing
	case e.Status >= 500 || e.Status == http.StatusRequestTimeout || code == "requesttimeout" || code == "resourcecontention" || code == "internalfailure":
		e.Kind = providers.ErrUnavailable
	default:
		e.Kind = providers.ErrInvalid
		if e.Code == "" {
			e.Hint = fmt.Sprintf("the answer is not from AWS: check the endpoint %s, and the proxy settings", w.place())
		}
	}
}

// place is where the calls go, for hints.
func (w *wire) place() string { return cmp.Or(aws.ToString(w.endpoint), "of "+w.service) }

func isThrottle(code string) bool {
	_, ok := retry.DefaultThrottleErrorCodes[code]
	return ok
}

// isClock tells a refusal of the request's time. The services that sign with the header
// X-Amz-Date say so in the message of a refused signature.
func isClock(code, message string) bool {
	return code == "requesttimetooskewed" || code == requestExpired ||
		strings.HasPrefix(message, "Signature expired") || strings.HasPrefix(message, "Signature not yet current")
}

// isScope tells a signature for another region or service.
func isScope(message string) bool {
	return strings.Contains(message, "Credential should be scoped to")
}

func isDenied(code string) bool {
	switch code {
	case "accessdenied", "unauthorizedoperation", "authorizationerror", "notauthorized", "missingauthenticationtoken", "invalidsecurity", "unauthorizedaccess":
		return true
	}
	return false
}

// isMissing tells codes for what does not exist. Auto Scaling has none: its ValidationError
// stands for missing groups and hooks as well as for what is malformed.
func isMissing(code, message string) bool {
	return strings.HasSuffix(code, "notfound") || strings.HasSuffix(code, ".notfound") ||
		code == "validationerror" && strings.Contains(strings.ToLower(message), "not found")
}

// How much is told of a code and of a message.
const (
	mostCode    = 100
	mostMessage = 500
)

// scrub takes keys out of text that comes from outside. When a signature does not match,
// the services quote what they signed, session token and all: it is cut off.
func scrub(text string, keys aws.Credentials) string {
	const removed = "(removed)"
	for _, mark := range []string{"The Canonical String", "String-to-Sign", "Signature="} {
		if i := strings.Index(text, mark); i >= 0 {
			text = text[:i] + removed
		}
	}
	for _, secret := range []string{keys.SecretAccessKey, keys.SessionToken} {
		if secret == "" {
			continue
		}
		for _, form := range []string{secret, url.QueryEscape(secret)} {
			text = strings.ReplaceAll(text, form, removed)
		}
	}
	return text
}

// told makes text of an answer fit to be told: without keys, at most most bytes, with
// nothing that could upset a terminal or a log.
func told(text string, keys aws.Credentials, most int) string {
	text = scrub(text, keys) // all of it: a cut may go through a key
	text = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text[:min(len(text), 8*most)], "?"))
	if text = strings.TrimSpace(text); len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// identifierPattern is what the ids look like that the cloud gives to requests and messages:
// all of them go into logs.
var identifierPattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// identifier is text, or nothing if it is no id.
func identifier(text string) string {
	if identifierPattern.MatchString(text) {
		return text
	}
	return ""
}

// scrubError takes the SDK's wrappers, which name what we name ourselves, off an error, and
// hides what of the keys is in its text.
func (w *wire) scrubError(err error, keys aws.Credentials) error {
	if op, ok := errors.AsType[*smithy.OperationError](err); ok {
		err = op.Err
	}
	if most, ok := errors.AsType[*retry.MaxAttemptsError](err); ok {
		err = most.Err
	}
	text := err.Error()
	if clean := told(text, keys, mostMessage); clean != text {
		return errors.New(clean)
	}
	return err
}
