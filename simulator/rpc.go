package simulator

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxRPCBody bounds a request's form.
const maxRPCBody = 256 << 10

// object is an answer, ready for JSON or XML.
type object = map[string]any

// rpcCall is one RPC request.
type rpcCall struct {
	service, version, action string
	method                   string
	form                     url.Values // query and form body
	query                    url.Values
	jobFails                 bool // a fault lets the job that it starts fail
	requestID                string
}

// rpcError is a refusal with the gateway's or the product's own words.
type rpcError struct {
	status        int
	code, message string
	action        string // of RAM, that a policy does not allow
}

type rpcOperation func(*Simulator, context.Context, *rpcCall) (object, *rpcError)

var rpcOperations = map[string]rpcOperation{
	"ess.CompleteLifecycleAction":        (*Simulator).completeLifecycleAction,
	"ess.RecordLifecycleActionHeartbeat": (*Simulator).recordLifecycleActionHeartbeat,
	"ess.DescribeLifecycleActions":       (*Simulator).describeLifecycleActions,
	"ess.DescribeLifecycleHooks":         (*Simulator).describeLifecycleHooks,
	"ess.DescribeScalingInstances":       (*Simulator).describeScalingInstances,
	"ess.DescribeScalingActivities":      (*Simulator).describeScalingActivities,
	"ess.DescribeScalingGroups":          (*Simulator).describeScalingGroups,
	"ecs.RunCommand":                     (*Simulator).runCommand,
	"ecs.StopInvocation":                 (*Simulator).stopInvocation,
	"ecs.DescribeInvocationResults":      (*Simulator).describeInvocationResults,
	"ecs.DescribeInstances":              (*Simulator).describeInstances,
	"ecs.DescribeCloudAssistantStatus":   (*Simulator).describeCloudAssistantStatus,
	"sts.AssumeRole":                     (*Simulator).assumeRole,
	"sts.AssumeRoleWithOIDC":             (*Simulator).assumeRoleWithOIDC,
}

const (
	essOld     = "2014-08-28"
	essNew     = "2022-02-22"
	ecsVersion = "2014-05-26"
	stsVersion = "2015-04-01"
)

var services = map[string]string{
	essOld: "ess", essNew: "ess", ecsVersion: "ecs", slbVersion: "slb", albVersion: "alb", nlbVersion: "nlb", stsVersion: "sts",
}

var (
	errRPCThrottle    = &rpcError{status: 400, code: "Throttling.User", message: "Request was denied due to user flow control."}
	errRPCUnavailable = &rpcError{status: 503, code: "ServiceUnavailable", message: "The request has failed due to a temporary failure of the server."}
	errRPCDenied      = &rpcError{status: 403, code: "Forbidden.RAM", message: "User not authorized to operate on the specified resource, or this API doesn't support RAM."}
	errRPCNonce       = &rpcError{status: 400, code: "SignatureNonceUsed", message: "Specified signature nonce was used already."}
	errRPCExpired     = &rpcError{status: 400, code: "InvalidTimeStamp.Expired", message: "Specified time stamp or date value is expired."}
	errRPCTimeFormat  = &rpcError{status: 400, code: "InvalidTimeStamp.Format", message: "Specified time stamp or date value is not well formatted."}
	errRPCKey         = &rpcError{status: 404, code: "InvalidAccessKeyId.NotFound", message: "Specified access key is not found."}
	errRPCToken       = &rpcError{status: 400, code: "InvalidSecurityToken.MismatchWithAccessKey", message: "Specified SecurityToken mismatch with the AccessKey."}
	errRPCNoToken     = &rpcError{status: 400, code: "MissingSecurityToken", message: "SecurityToken is mandatory for this action."}
	errRPCIncomplete  = &rpcError{status: 400, code: "IncompleteSignature", message: "The request signature does not conform to Aliyun standards."}
	errRPCNoAction    = &rpcError{status: 404, code: "InvalidAction.NotFound", message: "Specified api is not found, please check your url and method."}
	errRPCNoVersion   = &rpcError{status: 400, code: "InvalidVersion", message: "Specified parameter Version is not valid."}
	errRPCRegion      = &rpcError{status: 404, code: "InvalidRegionId.NotFound", message: "The specified RegionId does not exist."}
	errRPCMethod      = &rpcError{status: 405, code: "UnsupportedHTTPMethod", message: "This http method is not supported."}
	errIdempotent     = &rpcError{status: 400, code: "IdempotentParameterMismatch", message: "The request uses the same client token as a previous, but non-identical request. Do not reuse a client token with different requests, unless the requests are identical."}
)

func errMissing(name string) *rpcError {
	return &rpcError{status: 400, code: "Missing" + strings.ToUpper(name[:1]) + name[1:], message: fmt.Sprintf("The input parameter %q that is mandatory for processing this request is not supplied.", name)}
}

func errInvalid(name string) *rpcError {
	return &rpcError{status: 400, code: "InvalidParameter", message: fmt.Sprintf("The specified value of parameter %q is not valid.", name)}
}

// errInvalidESS is what the lifecycle calls of ESS say, spelt as they do.
func errInvalidESS(name string) *rpcError {
	e := errInvalid(name)
	e.code = "InvalidParamter"
	return e
}

// serveRPC answers one request of ESS, ECS, STS or a balancer.
func (s *Simulator) serveRPC(w http.ResponseWriter, r *http.Request) {
	c, bad := parseRPC(r)
	fx := s.interfere(r.Context(), c.service, c.action)
	var answer object
	switch fx.kind {
	case Fault5xx:
		bad = errRPCUnavailable
	case FaultError:
		bad = fx.refusal
	case FaultThrottle:
		bad = errRPCThrottle
	case FaultDenied:
		bad = errRPCDenied
	}
	c.jobFails = fx.kind == FaultJobFails
	if bad == nil {
		if answer, bad = s.answerRPC(r.Context(), c); bad == nil {
			fx.thin(answer)
		}
	}
	if fx.kind == FaultDropAfterEffect {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Date", s.cloudTime(time.Now()).UTC().Format(http.TimeFormat))
	if fx.kind == FaultCorrupt {
		writeGarbage(w)
		return
	}
	status, root := http.StatusOK, c.action+"Response"
	if bad != nil {
		s.countRefusal(c.service, c.action, bad.code)
		status, root = bad.status, "Error"
		answer = c.failure(bad)
	}
	if _, replayed := answer["RequestId"]; !replayed {
		answer["RequestId"] = c.requestID
	}
	c.write(w, status, root, answer)
}

// parseRPC reads query and form body. The call it gives is never nil.
func parseRPC(r *http.Request) (*rpcCall, *rpcError) {
	c := &rpcCall{method: r.Method, form: url.Values{}, requestID: newUUID()}
	if r.Method != http.MethodGet && r.Method != http.MethodPost {
		return c, errRPCMethod
	}
	body, err := readBody(r, maxRPCBody)
	if err != nil {
		return c, &rpcError{status: 413, code: "RequestEntityTooLarge", message: err.Error()}
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return c, errInvalid("query")
	}
	c.query = query
	c.merge(query)
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/x-www-form-urlencoded") {
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return c, errInvalid("body")
		}
		c.merge(form)
	}
	c.action, c.version = c.form.Get("Action"), c.form.Get("Version")
	c.service = services[c.version]
	switch {
	case c.action == "":
		return c, errMissing("Action")
	case c.version == "":
		return c, errMissing("Version")
	case c.service == "":
		return c, errRPCNoVersion
	}
	return c, nil
}

// merge adds values; the query's win over the body's.
func (c *rpcCall) merge(values url.Values) {
	for name, v := range values {
		if _, there := c.form[name]; !there {
			c.form[name] = v
		}
	}
}

func (s *Simulator) answerRPC(ctx context.Context, c *rpcCall) (object, *rpcError) {
	if bad := s.checkRPC(c); bad != nil {
		return nil, bad
	}
	op := operation(c.service + "." + c.action)
	if op == nil {
		return nil, errRPCNoAction
	}
	if region := c.form.Get("RegionId"); region != "" && region != s.scenario.Region {
		return nil, errRPCRegion
	}
	c.takeBody()
	if bad := s.checkRPCPolicy(c); bad != nil {
		return nil, bad
	}
	return op(s, ctx, c)
}

// checkRPC verifies key, token, time, signature and nonce. The nonce counts as used
// only when the signature was right.
func (s *Simulator) checkRPC(c *rpcCall) *rpcError {
	if c.service == "sts" && c.action == "AssumeRoleWithOIDC" {
		return c.checkTime(s.cloudTime(time.Now())) // it is not signed
	}
	keys := s.accessKey(c.form.Get("AccessKeyId"))
	token := c.form.Get("SecurityToken")
	switch {
	case c.form.Get("AccessKeyId") == "":
		return errMissing("AccessKeyId")
	case keys == nil:
		return errRPCKey
	case keys.token != "" && token == "":
		return errRPCNoToken
	case token != keys.token:
		return errRPCToken
	case keys.over():
		return s.errRPCExpiredKeys()
	case c.form.Get("Signature") == "" || c.form.Get("SignatureMethod") != "HMAC-SHA1" || c.form.Get("SignatureVersion") != "1.0":
		return errRPCIncomplete
	case c.form.Get("SignatureNonce") == "":
		return errMissing("SignatureNonce")
	}
	if bad := c.checkTime(s.cloudTime(time.Now())); bad != nil {
		return bad
	}
	signature, text := signRPC(keys.secret, c.method, c.form)
	if !hmac.Equal([]byte(signature), []byte(c.form.Get("Signature"))) {
		return &rpcError{status: 400, code: "SignatureDoesNotMatch", message: "Specified signature is not matched with our calculation. server string to sign is:" + text}
	}
	return s.useNonce(c.form.Get("SignatureNonce"))
}

func (c *rpcCall) checkTime(now time.Time) *rpcError {
	text := cmp.Or(c.form.Get("Timestamp"), c.form.Get("TimeStamp")) // the vendor's samples spell it both ways
	if text == "" {
		return errMissing("Timestamp")
	}
	t, err := time.Parse("2006-01-02T15:04:05Z", text)
	if err != nil {
		return errRPCTimeFormat
	}
	if off := now.Sub(t); off > requestWindow || off < -requestWindow {
		return errRPCExpired
	}
	return nil
}

func (s *Simulator) useNonce(nonce string) *rpcError {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, used := s.nonces.get(nonce); used {
		return errRPCNonce
	}
	s.nonces.add(nonce, struct{}{})
	return nil
}

// signRPC computes the signature of version 1.0 and gives the text that it signs.
func signRPC(secret, method string, form url.Values) (signature, text string) {
	var pairs []string
	for _, name := range slices.Sorted(maps.Keys(form)) {
		if name != "Signature" {
			pairs = append(pairs, percentEncode(name)+"="+percentEncode(form.Get(name)))
		}
	}
	text = method + "&%2F&" + percentEncode(strings.Join(pairs, "&"))
	mac := hmac.New(sha1.New, []byte(secret+"&"))
	mac.Write([]byte(text))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil)), text
}

// percentEncode is RFC 3986: only unreserved characters stay.
func percentEncode(text string) string {
	return strings.ReplaceAll(url.QueryEscape(text), "+", "%20")
}

func (c *rpcCall) failure(e *rpcError) object {
	host := cmp.Or(c.service, "ess") + ".aliyuncs.com"
	o := object{
		"HostId": host, "Code": e.code, "Message": e.message,
		"Recommend": "https://next.api.aliyun.com/troubleshoot?q=" + url.QueryEscape(e.code) + "&product=" + strings.ToUpper(c.service[:min(1, len(c.service))]) + c.service[min(1, len(c.service)):],
	}
	if e.action != "" {
		o["AccessDeniedDetail"] = object{"AuthAction": e.action, "NoPermissionType": "ImplicitDeny", "PolicyType": "AccountLevelIdentityBasedPolicy"}
	}
	return o
}

// write sends JSON, or XML, which is the services' own default.
func (c *rpcCall) write(w http.ResponseWriter, status int, root string, answer object) {
	res := &response{status: status, header: http.Header{}}
	if strings.EqualFold(c.form.Get("Format"), "JSON") {
		res.header.Set("Content-Type", "application/json;charset=utf-8")
		res.body, _ = json.Marshal(answer) // maps, texts and numbers only
	} else {
		res.header.Set("Content-Type", "text/xml;charset=utf-8")
		var b bytes.Buffer
		b.WriteString(`<?xml version="1.0" encoding="UTF-8"?>`)
		writeXML(&b, root, answer)
		res.body = b.Bytes()
	}
	res.write(w)
}

// writeXML writes a value as an element, a list as one element for each of its values.
func writeXML(b *bytes.Buffer, name string, value any) {
	if list, ok := value.([]any); ok {
		for _, v := range list {
			writeXML(b, name, v)
		}
		return
	}
	b.WriteString("<" + name + ">")
	if o, ok := value.(object); ok {
		for _, key := range slices.Sorted(maps.Keys(o)) {
			writeXML(b, key, o[key])
		}
	} else {
		xml.EscapeText(b, fmt.Append(nil, value))
	}
	b.WriteString("</" + name + ">")
}

// list is how the API version writes a list: 2014 wraps it in an object with the
// singular name, 2022 has it flat. ECS wraps as ESS 2014 does.
func (c *rpcCall) list(singular string, items []any) any {
	if items == nil {
		items = []any{}
	}
	if c.version == essNew {
		return items
	}
	return object{singular: items}
}

// repeated reads Name.1, Name.2 ... with the singular name of 2014 or the plural of 2022.
func (c *rpcCall) repeated(singular string) []string {
	var out []string
	for i := 1; ; i++ {
		n := "." + strconv.Itoa(i)
		v := cmp.Or(c.form.Get(singular+n), c.form.Get(singular+"s"+n))
		if v == "" {
			return out
		}
		out = append(out, v)
	}
}

// number reads an integer parameter within bounds; def when absent.
func (c *rpcCall) number(name string, def, low, high int) (int, bool) {
	text := c.form.Get(name)
	if text == "" {
		return def, true
	}
	n, err := strconv.Atoi(text)
	return n, err == nil && n >= low && n <= high
}

// page is a part of a list by PageNumber and PageSize.
type page struct{ number, size int }

func (c *rpcCall) page(maxSize int) (page, *rpcError) {
	number, ok := c.number("PageNumber", 1, 1, 1<<30)
	if !ok {
		return page{}, errInvalid("PageNumber")
	}
	size, ok := c.number("PageSize", 10, 1, maxSize)
	if !ok {
		return page{}, errInvalid("PageSize")
	}
	return page{number, size}, nil
}

func cut[T any](p page, all []T) []T {
	from := min((p.number-1)*p.size, len(all))
	return all[from:min(from+p.size, len(all))]
}

func (p page) describe(total int) object {
	return object{"TotalCount": total, "PageNumber": p.number, "PageSize": p.size}
}

// window is a part of a list by MaxResults and NextToken.
func window[T any](c *rpcCall, all []T) (part []T, size int, next string, bad *rpcError) {
	size, ok := c.number("MaxResults", 10, 1, 50)
	if !ok {
		return nil, 0, "", errInvalid("MaxResults")
	}
	from := 0
	if token := c.form.Get("NextToken"); token != "" {
		text, err := base64.URLEncoding.DecodeString(token)
		if err != nil {
			return nil, 0, "", errInvalid("NextToken")
		}
		if from, err = strconv.Atoi(string(text)); err != nil || from < 0 || from > len(all) {
			return nil, 0, "", errInvalid("NextToken")
		}
	}
	to := min(from+size, len(all))
	if to < len(all) {
		next = base64.URLEncoding.EncodeToString([]byte(strconv.Itoa(to)))
	}
	return all[from:to], size, next, nil
}

// answer is what a ClientToken was answered with.
type answer struct {
	parameters string
	object     object
}

// maxClientToken is the length of a ClientToken at most.
const maxClientToken = 64

// replay gives the former answer to the same ClientToken and parameters. The caller
// holds s.mu.
func (s *Simulator) replay(c *rpcCall) (object, *rpcError) {
	token := c.form.Get("ClientToken")
	if token == "" {
		return nil, nil
	}
	if len(token) > maxClientToken || !isASCII(token) {
		return nil, errInvalid("ClientToken")
	}
	old, there := s.answered.get(c.service + "." + c.action + "/" + token)
	switch {
	case !there:
		return nil, nil
	case old.parameters != c.parameters():
		return nil, errIdempotent
	}
	return maps.Clone(old.object), nil
}

// remember stores the answer for a later replay. The caller holds s.mu.
func (s *Simulator) remember(c *rpcCall, o object) object {
	o["RequestId"] = c.requestID
	if token := c.form.Get("ClientToken"); token != "" {
		s.answered.add(c.service+"."+c.action+"/"+token, answer{c.parameters(), maps.Clone(o)})
	}
	return o
}

// parameters is the call's own parameters as one text, without those that differ from attempt to attempt.
func (c *rpcCall) parameters() string {
	own := maps.Clone(c.form)
	for _, name := range []string{"Signature", "SignatureNonce", "SignatureMethod", "SignatureVersion", "SignatureType", "Timestamp", "TimeStamp", "AccessKeyId", "SecurityToken", "Format", "ClientToken", "Version"} {
		delete(own, name)
	}
	return own.Encode()
}

func isASCII(text string) bool {
	return !strings.ContainsFunc(text, func(r rune) bool { return r > 126 || r < 32 })
}
