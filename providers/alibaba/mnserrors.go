package alibaba

import (
	"cmp"
	"fmt"
	"net/http"
	"strings"

	"example.org/usher/providers"
)

// mnsOp is an operation of MNS with the RAM actions that allow it: the pages of the
// operations name an action for each batch of its own, the page of policies does not,
// so both are asked for.
type mnsOp struct{ name, permission string }

var (
	opReceive    = mnsOp{"BatchReceiveMessage", "mns:ReceiveMessage and mns:BatchReceiveMessage"}
	opDelete     = mnsOp{"DeleteMessage", "mns:DeleteMessage"}
	opBatch      = mnsOp{"BatchDeleteMessage", "mns:DeleteMessage and mns:BatchDeleteMessage"}
	opExtend     = mnsOp{"ChangeMessageVisibility", "mns:ChangeMessageVisibility"}
	opSend       = mnsOp{"SendMessage", "mns:SendMessage"}
	opAttributes = mnsOp{"GetQueueAttributes", "mns:GetQueueAttributes"}
)

// resource is what the permission is needed on, as RAM policies write it.
func (op mnsOp) resource(queue string) string {
	if op == opAttributes {
		return "/queues/" + queue
	}
	return "/queues/" + queue + "/messages"
}

// refuse turns a refusal into a failure: the code decides, and the status where
// there is no code, as in the pages of a proxy.
func (q *Queue) refuse(op mnsOp, keys Keys, a answer, e mnsError) *failure {
	f := &failure{cloudError: &providers.Error{
		Op: op.name, Status: a.status, Code: told(e.Code, keys, mostCode), Message: told(e.Message, keys, mostMessage),
		RequestID: cmp.Or(identifier(e.RequestID), a.requestID()),
	}}
	q.classify(f, op)
	// A service that is throttled or says 503 has turned the request away unread.
	f.certain = f.Kind == providers.ErrThrottled || f.Status == http.StatusServiceUnavailable || !f.passing
	// The code for temporary keys that have expired is not documented. AccessDenied is a
	// missing permission; every other 403 may be that.
	if f.Status == http.StatusForbidden && !strings.EqualFold(f.Code, "AccessDenied") {
		f.refused = keys
	}
	return f
}

func (q *Queue) classify(f *failure, op mnsOp) {
	code := strings.ToLower(f.Code)
	switch {
	case code == "messagenotexist", code == "receipthandleerror":
		f.Kind = providers.ErrReceiptStale
	case code == "queuenotexist":
		f.Kind = providers.ErrQueueGone
		f.Hint = fmt.Sprintf("there is no queue %s at %s: check queue.name, queue.endpoint and the account in it", q.name, q.endpoint)
	case code == "toomanyrequests", code == "qpslimitexceeded", f.Status == http.StatusTooManyRequests:
		f.Kind, f.passing = providers.ErrThrottled, true
	case code == "timeexpired":
		f.Kind = providers.ErrClock
		f.Hint = "MNS refuses requests that are more than 15 minutes off: set this host's clock, for example with NTP"
	case code == "invalidaccesskeyid":
		f.Kind = providers.ErrDenied
		f.Hint = "the access key id is unknown, disabled or of another account, or its temporary keys have expired"
	case strings.Contains(code, "securitytoken"):
		f.Kind = providers.ErrDenied
		f.Hint = "the temporary keys have expired or do not belong together: fetch new ones"
	case code == "signaturedoesnotmatch":
		f.Kind = providers.ErrDenied
		f.Hint = "the access key secret does not belong to the id, or a proxy changed the request on its way"
	case code == "accessdenied", f.Status == http.StatusForbidden, f.Status == http.StatusUnauthorized:
		f.Kind = providers.ErrDenied
		f.Hint = fmt.Sprintf("allow %s on acs:mns:*:*:%s in a RAM policy of these keys", op.permission, op.resource(q.name))
	case code == "internalerror", code == "internalservererror", f.Status >= 500, f.Status == http.StatusRequestTimeout:
		f.Kind, f.passing = providers.ErrUnavailable, true
	default:
		f.Kind = providers.ErrInvalid
		if f.Code == "" {
			f.Hint = fmt.Sprintf("the answer is not from MNS: check that %s is the queue's endpoint, and the proxy settings", q.endpoint)
		}
	}
}
