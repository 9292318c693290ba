package alibaba

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/responses"

	"example.org/usher/providers"
)

// rpcMaxAnswer bounds an answer in the RPC style; the largest, a page of 50 records or a
// script's output of 24 KB, is far below.
const rpcMaxAnswer = 2 << 20

// rpcMaxParts bounds the values in an answer: reading many empty ones would take many
// times their size. A page of 50 records of ESS has some thousands; one of 100 machines
// of ECS, each with all the tags it can have, 30,000.
// A page of 100 listeners of CLB, or of 100 server groups, has some 10,000.
var rpcMaxParts = map[string]int{"ess": 10_000, "ecs": 60_000, "slb": 60_000, "alb": 60_000, "nlb": 60_000, "sts": 100}

// rpc makes the calls of one product in the RPC style through the SDK.
type rpc struct {
	*wire
	product string // as RAM writes it: ess, ecs, slb, alb, nlb, sts
	region  string
	// at is where the product listens for a region.
	at   func(region string) endpoint
	pace *Pacer
}

// newRPC checks the options of a product; own is the endpoint they give, if any.
func newRPC(o Options, product, field, own string, standard func(region string) string) (*rpc, error) {
	problems := o.regional()
	at := func(region string) endpoint { return endpoint{scheme: "https", host: standard(region)} }
	if own != "" {
		fixed, err := parseEndpoint(field, own)
		if err != nil {
			problems = append(problems, err)
		}
		at = func(string) endpoint { return fixed }
	}
	if err := invalid(product, problems); err != nil {
		return nil, err
	}
	pace := new(Pacer)
	if product == "ess" && o.Pacer != nil {
		pace = o.Pacer
	}
	return &rpc{wire: o.newWire(), product: product, region: o.Region, at: at, pace: pace}, nil
}

// rpcOp is an operation of a product, and what it needs a permission on, as RAM policies
// write it.
type rpcOp struct{ name, resource string }

// looks is an operation that only looks: RAM allows those on everything or not at all.
func looks(name string) rpcOp { return rpcOp{name, "*"} }

// acsRequest is a request of the SDK, built anew for each attempt.
type acsRequest = requests.AcsRequest

// invoke makes one call, repeated while that may help. build gives the request and the
// response to decode into.
func invoke[R responses.AcsResponse](ctx context.Context, r *rpc, op rpcOp, region string, build func() (acsRequest, R)) (R, error) {
	return invokeWhen(ctx, r, whenPassing, op, region, build)
}

// invokeWhen is invoke with a rule of its own for what is sent again.
func invokeWhen[R responses.AcsResponse](ctx context.Context, r *rpc, again func(*failure) bool, op rpcOp, region string, build func() (acsRequest, R)) (R, error) {
	var response R
	if !regionPattern.MatchString(region) {
		return response, &providers.Error{Op: op.name, Kind: providers.ErrInvalid, Untouched: true, Hint: fmt.Sprintf("%q is no region", region)}
	}
	err := r.repeat(ctx, op.name, again, func(ctx context.Context) *failure {
		if f := r.pace.wait(ctx, r, op.name); f != nil {
			return f
		}
		var request acsRequest
		request, response = build()
		f := r.attempt(ctx, op, region, request, response)
		if f == nil || f.Status != 0 {
			r.pace.note(op.name, f != nil && f.Kind == providers.ErrThrottled)
		}
		return f
	})
	if err != nil {
		var none R
		return none, err
	}
	return response, nil
}

// attempt makes one call with a client of its own. The SDK takes no context, and each
// call writes to its client's http.Client, which is a data race when goroutines share
// one. A new one costs some 13 µs; the connections are in the shared transport.
func (r *rpc) attempt(ctx context.Context, op rpcOp, region string, request acsRequest, response responses.AcsResponse) *failure {
	keys, f := keysFor(ctx, op.name, r.credentials, r.timeout)
	if f != nil {
		return f
	}
	carrier := &carrier{rpc: r, ctx: ctx, resource: op.resource, call: call{op: op.name, keys: keys, limit: r.timeout, bound: rpcMaxAnswer}}
	client, err := carrier.client(region)
	if err == nil {
		at := r.at(region)
		request.SetScheme(at.scheme)
		request.SetDomain(at.host)
		err = client.DoAction(request, response)
	}
	switch {
	case carrier.failure != nil:
		return carrier.failure
	case err != nil:
		return &failure{cloudError: &providers.Error{
			Op: op.name, Kind: providers.ErrUnavailable, Status: carrier.status, RequestID: carrier.requestID,
			Cause: scrubError(fmt.Errorf("alibaba-cloud-sdk-go: %w", err), keys),
		}}
	}
	return nil
}

// carrier is the transport of one attempt. It is a type of ours, because the SDK
// overwrites dialer, TLS settings and proxy of a plain *http.Transport on every call.
type carrier struct {
	*rpc
	ctx      context.Context // the attempt's: the SDK gives its requests none
	call     call
	resource string // that the call needs a permission on

	status    int
	requestID string
	failure   *failure
}

var _ http.RoundTripper = (*carrier)(nil)

func (c *carrier) client(region string) (*sdk.Client, error) {
	config := sdk.NewConfig().WithScheme(requests.HTTPS).WithAutoRetry(false).WithUserAgent("usher")
	config.Transport = c
	client := new(sdk.Client)
	if err := client.InitWithOptions(region, config, c.credential()); err != nil {
		return nil, err
	}
	// Negative is no timeout for an http.Client; zero would become the SDK's own 10 s, with
	// a goroutine a call to keep them. The attempt's context is what bounds it.
	client.SetReadTimeout(-1)
	client.SetCloseTrace(true) // a global tracer would be given the signed URL
	// The shared transport reads the proxy settings. The SDK would, too, to no effect but
	// an error when it cannot parse one, so it is kept from looking.
	client.SetHttpProxy("http://unused")
	client.SetHttpsProxy("http://unused")
	client.SetNoProxy("unused")
	return client, nil
}

func (c *carrier) credential() credentials.CredentialsProvider {
	k := c.call.keys
	if k.Token != "" {
		return credentials.NewStaticSTSCredentialsProvider(k.ID, k.Secret, k.Token)
	}
	return credentials.NewStaticAKCredentialsProvider(k.ID, k.Secret)
}

// RoundTrip sends the request the SDK has signed. A refusal is turned into a failure
// here, where its status and body are at hand: the SDK follows redirects, and panics on
// an error document whose fields are not text.
func (c *carrier) RoundTrip(req *http.Request) (*http.Response, error) {
	a, f := c.exchange(c.ctx, c.call, req)
	if f == nil {
		c.status = a.status
		f = c.inspect(a)
	}
	if f != nil {
		c.failure = f
		return nil, f
	}
	return &http.Response{
		Status: http.StatusText(a.status), StatusCode: a.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.header, Body: io.NopCloser(bytes.NewReader(a.body)), ContentLength: int64(len(a.body)), Request: req,
	}, nil
}

// rpcHead is what each answer has, good or bad.
type rpcHead struct {
	RequestID string `json:"RequestId"`
	Code      string
	Message   string
	// AccessDeniedDetail names the permission, when the service tells.
	AccessDeniedDetail struct{ AuthAction string }
}

// inspect accepts a success that the service itself has sent: it has a request id, which
// a proxy's page does not have.
func (c *carrier) inspect(a answer) *failure {
	if n := bytes.Count(a.body, []byte(",")) + bytes.Count(a.body, []byte("[")) + bytes.Count(a.body, []byte("{")); n > rpcMaxParts[c.product] {
		return &failure{cloudError: &providers.Error{
			Op: c.call.op, Kind: providers.ErrUnavailable, Status: a.status, Message: fmt.Sprintf("the answer has %d values", n),
		}}
	}
	var head rpcHead
	err := json.Unmarshal(a.body, &head)
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && wrong.Field != "" {
		err = nil // one field of an odd type; the others are read
	}
	head.RequestID = identifier(head.RequestID)
	c.requestID = head.RequestID
	success := a.status >= 200 && a.status < 300
	switch {
	case success && err == nil && head.RequestID != "":
		return nil
	case success:
		return &failure{cloudError: &providers.Error{
			Op: c.call.op, Kind: providers.ErrUnavailable, Status: a.status,
			Message: fmt.Sprintf("answer is not from %s: %q", strings.ToUpper(c.product), c.snippet(a.body)),
			Hint:    fmt.Sprintf("check the endpoint %s and the proxy settings", c.at(c.region)),
		}, passing: true}
	case err != nil:
		head.Message = c.snippet(a.body)
	}
	return c.refuse(a, head)
}

// snippet is the beginning of a body, unless it may hold keys.
func (c *carrier) snippet(body []byte) string {
	if c.product == "sts" {
		return "(not shown)"
	}
	return snippet(body, c.call.keys)
}

// refuse turns a refusal into a failure, by its code first and its status second:
// throttling comes as 400.
func (c *carrier) refuse(a answer, head rpcHead) *failure {
	f := &failure{cloudError: &providers.Error{
		Op: c.call.op, Status: a.status, Code: told(head.Code, c.call.keys, mostCode), Message: told(head.Message, c.call.keys, mostMessage), RequestID: head.RequestID,
	}}
	f.Kind, f.passing = rpcKind(head.Code, a.status)
	// Refused is not done; a failure of the server may have come after the effect.
	f.certain = !f.passing || f.Kind == providers.ErrThrottled || head.Code != "" && a.status < 500
	switch {
	case f.Kind == providers.ErrClock:
		f.Hint = "requests that are more than 15 minutes off are refused: set this host's clock, for example with NTP"
	case f.Kind == providers.ErrDenied:
		f.Hint = c.denial(strings.ToLower(head.Code), head.AccessDeniedDetail.AuthAction)
		if keysExpired(strings.ToLower(head.Code)) {
			f.refused = c.call.keys
		}
	case strings.HasPrefix(strings.ToLower(head.Code), "invalidregionid."):
		f.Hint = fmt.Sprintf("%s does not know the region %s: check the region, and whether the endpoint is another region's", c.at(c.region), c.region)
	case f.Kind == providers.ErrInvalid && head.Code == "":
		f.Hint = fmt.Sprintf("the answer is not from %s: check the endpoint %s and the proxy settings", strings.ToUpper(c.product), c.at(c.region))
	}
	return f
}

// denial says what to do about a refusal of the keys or of a permission.
func (c *carrier) denial(code, named string) string {
	switch {
	case strings.HasPrefix(code, "invalidaccesskeyid"):
		return "the access key id is unknown or disabled, or its temporary keys have expired"
	case strings.HasPrefix(code, "signaturedoesnotmatch"), strings.HasPrefix(code, "incompletesignature"):
		return "the access key secret does not belong to the id"
	case strings.Contains(code, "securitytoken"):
		return "the temporary keys have expired or do not belong together: fetch new ones"
	}
	permission := c.product + ":" + c.call.op
	if named != "" && named != permission {
		permission += " (the service names " + told(named, c.call.keys, mostCode) + ")"
	}
	return "allow " + permission + " on " + c.resource + " in a RAM policy of these keys"
}

// rpcKind is the table of codes that ESS, ECS, the balancers and their gateway give. Codes are matched
// without regard to case, some by their beginning.
func rpcKind(code string, status int) (kind error, passing bool) {
	code = strings.ToLower(code)
	begins := func(prefixes ...string) bool {
		for _, p := range prefixes {
			if strings.HasPrefix(code, p) {
				return true
			}
		}
		return false
	}
	switch {
	case begins("throttling"):
		return providers.ErrThrottled, true
	case code == "lifecyclehookidandlifecycleactiontoken.invalid":
		return providers.ErrActionGone, false
	case code == "lifecycleaction.timeexceeded", code == "lifecycleaction.recordtimesexceeded":
		return providers.ErrHeartbeatLimit, false
	case begins("incorrectstatus", "backendserver.configuring", "serviceisconfiguring", "systembusy", "idempotenceprocessing", "conflict.lock"):
		return providers.ErrBusy, true
	case begins("serviceunavailable", "internalerror", "operationconflict", "lasttokenprocessing", "signaturenonceused"):
		return providers.ErrUnavailable, true
	case begins("invalidtimestamp", "illegaltimestamp"):
		return providers.ErrClock, false
	case begins("signaturedoesnotmatch", "incompletesignature", "invalidaccesskeyid", "invalidsecuritytoken", "missingsecuritytoken",
		"nopermission", "forbidden", "accessdenied"):
		return providers.ErrDenied, false
	case code == "invalidinstance.notfound", code == "invalidinstanceid.notfound", code == "invalidinstanceids.notfound":
		return providers.ErrInstanceGone, false
	case begins("invalidaction.", "invalidapi.", "invalidversion", "nosuchversion", "missing", "invalidparam", "idempotentparametermismatch",
		"invalidinstance.notmatch", "instanceids.exceedlimit", "cmdcount.exceedquota"):
		return providers.ErrInvalid, false
	case strings.HasSuffix(code, ".notfound"), begins("resourcenotfound."):
		return providers.ErrNotFound, false
	case status == http.StatusTooManyRequests:
		return providers.ErrThrottled, true
	case status >= 500, status == http.StatusRequestTimeout:
		return providers.ErrUnavailable, true
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return providers.ErrDenied, false
	}
	return providers.ErrInvalid, false
}

// wholeSeconds rounds up, within bounds.
func wholeSeconds(d, least, most time.Duration) time.Duration {
	d = min(max(d, least), most)
	return (d + time.Second - 1).Truncate(time.Second)
}
