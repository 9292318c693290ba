package simulator

import (
	"bytes"
	"cmp"
	"encoding/json"
	"encoding/xml"
	"net/http"
	"reflect"
	"strings"
)

// memberList is a list of the Query protocol, an element even when it is empty.
type memberList[T any] struct {
	Items []T `xml:"member"`
}

// itemSet is a list of EC2, an element even when it is empty.
type itemSet[T any] struct {
	Items []T `xml:"item"`
}

func (l *memberList[T]) thin(kind FaultKind) { l.Items = thinned(l.Items, kind) }
func (l *itemSet[T]) thin(kind FaultKind)    { l.Items = thinned(l.Items, kind) }

func thinned[T any](all []T, kind FaultKind) []T {
	var kept []T
	for i, item := range all {
		if i%2 == 1 && kind == FaultPartial {
			kept = append(kept, item)
		}
	}
	return kept
}

// thinAWS does to the lists of an answer what FaultPartial and FaultEmpty say.
func (fx effects) thinAWS(answer awsAnswer) {
	v := reflect.ValueOf(answer)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return
	}
	for i := range v.Elem().NumField() {
		if list, ok := v.Elem().Field(i).Addr().Interface().(interface{ thin(FaultKind) }); ok {
			list.thin(fx.kind)
		}
	}
}

// contentType is that of the call's protocol.
func (c *awsCall) contentType() string {
	switch c.protocol {
	case awsJSON10:
		return "application/x-amz-json-1.0"
	case awsJSON11:
		return "application/x-amz-json-1.1"
	case awsEC2:
		return "text/xml;charset=UTF-8"
	}
	return "text/xml"
}

func (c *awsCall) response(status int, body []byte) *response {
	return &response{status: status, body: body, header: http.Header{
		"Content-Type": {c.contentType()}, "X-Amzn-Requestid": {c.requestID},
	}}
}

// success frames an answer.
func (c *awsCall) success(answer awsAnswer) *response {
	switch c.protocol {
	case awsJSON10, awsJSON11:
		body := []byte("{}")
		if answer != nil {
			body, _ = json.Marshal(answer) // texts and numbers only
		}
		return c.response(http.StatusOK, body)
	case awsEC2:
		return c.frame(http.StatusOK, "Response", "<requestId>"+c.requestID+"</requestId>"+inner(answer))
	}
	result := ""
	if answer != nil {
		result = "<" + c.action + "Result>" + inner(answer) + "</" + c.action + "Result>"
	}
	return c.frame(http.StatusOK, "Response", result+"<ResponseMetadata><RequestId>"+c.requestID+"</RequestId></ResponseMetadata>")
}

// frame makes an XML document of the operation's own root.
func (c *awsCall) frame(status int, root, content string) *response {
	root = c.action + root
	return c.response(status, []byte(xml.Header+"<"+root+` xmlns="`+c.service.namespace+`">`+content+"</"+root+">"))
}

// inner is what stands inside the element that a struct would be; nil is nothing.
func inner(answer awsAnswer) string {
	if answer == nil {
		return ""
	}
	var b bytes.Buffer
	xml.NewEncoder(&b).EncodeElement(answer, xml.StartElement{Name: xml.Name{Local: "a"}}) // texts and numbers only
	return string(bytes.TrimSuffix(bytes.TrimPrefix(b.Bytes(), []byte("<a>")), []byte("</a>")))
}

// awsFault is an error as the Query protocol writes it.
type awsFault struct {
	Type, Code, Message string
	Detail              struct{}
}

// failure frames a refusal.
func (c *awsCall) failure(e *awsError) *response {
	blame := "Sender"
	if e.receiver() {
		blame = "Receiver"
	}
	switch c.protocol {
	case awsJSON10, awsJSON11:
		body, _ := json.Marshal(struct { // texts only
			Type    string `json:"__type"`
			Message string `json:"message,omitempty"`
		}{cmp.Or(e.shape, e.code), e.message})
		res := c.response(e.status, body)
		if c.name == "sqs" {
			res.header["x-amzn-query-error"] = []string{e.code + ";" + blame}
		}
		return res
	case awsEC2:
		return c.response(e.status, []byte(xml.Header+"<Response><Errors><Error>"+inner(struct{ Code, Message string }{e.code, e.message})+"</Error></Errors><RequestID>"+c.requestID+"</RequestID></Response>"))
	}
	namespace := ""
	if c.service != nil {
		namespace = ` xmlns="` + c.service.namespace + `"`
	}
	return c.response(e.status, []byte(xml.Header+"<ErrorResponse"+namespace+"><Error>"+inner(awsFault{Type: blame, Code: e.code, Message: cmp.Or(e.queryMessage, e.message)})+"</Error><RequestId>"+c.requestID+"</RequestId></ErrorResponse>"))
}

var (
	errAWSMalformed        = &awsError{status: 400, code: "MalformedQueryString", message: "The query string contains a syntax error."}
	errAWSSerialization    = &awsError{status: 400, code: "SerializationException", shape: "com.amazon.coral.service#SerializationException"}
	errAWSUnknownOperation = &awsError{status: 400, code: "InvalidAction", shape: "com.amazon.coral.service#UnknownOperationException"}
)

// json says whether the call speaks JSON.
func (c *awsCall) json() bool { return c.protocol == awsJSON10 || c.protocol == awsJSON11 }

// refuse makes an error out of the words of the three dialects. JSON answers 400 where
// Query says 403, but for SQS, which keeps to its older protocol's status.
func (c *awsCall) refuse(query, ec2, shape, message string) *awsError {
	switch {
	case c.protocol == awsEC2:
		return &awsError{status: map[string]int{"AuthFailure": 401, "UnauthorizedOperation": 403}[ec2], code: ec2, message: message}
	case c.protocol == awsJSON11:
		return &awsError{status: 400, code: shape, message: message}
	}
	return &awsError{status: 403, code: query, shape: "com.amazon.coral.service#" + shape, message: message}
}

// unsigned refuses a call without a signature.
func (c *awsCall) unsigned() *awsError {
	return c.refuse("MissingAuthenticationToken", "AuthFailure", "MissingAuthenticationTokenException", "Request is missing Authentication Token")
}

func (c *awsCall) unknownKey() *awsError {
	if c.protocol == awsEC2 {
		return c.refuse("", "AuthFailure", "", "AWS was not able to validate the provided access credentials")
	}
	return c.refuse("InvalidClientTokenId", "", "UnrecognizedClientException", "The security token included in the request is invalid.")
}

// expired refuses temporary keys whose time is over.
func (c *awsCall) expired() *awsError {
	if c.protocol == awsEC2 {
		return &awsError{status: 400, code: "RequestExpired", message: "Request has expired."}
	}
	return c.refuse("ExpiredToken", "", "ExpiredTokenException", "The security token included in the request is expired")
}

// tooOld refuses a signature from another time.
func (c *awsCall) tooOld(message string) *awsError {
	if c.protocol == awsEC2 {
		return c.expired()
	}
	return c.mismatch(message)
}

func (c *awsCall) mismatch(message string) *awsError {
	if c.protocol == awsEC2 {
		return c.unknownKey()
	}
	return c.refuse("SignatureDoesNotMatch", "", "InvalidSignatureException", message)
}

func (c *awsCall) incomplete(message string) *awsError {
	e := c.refuse("IncompleteSignature", "AuthFailure", "IncompleteSignatureException", message)
	if c.protocol != awsEC2 {
		e.status = 400
	}
	return e
}

func (c *awsCall) unknownOperation() *awsError {
	switch {
	case c.json():
		return errAWSUnknownOperation
	case c.protocol == awsEC2:
		return &awsError{status: 400, code: "InvalidAction", message: "The action " + c.action + " is not valid for this web service."}
	}
	return &awsError{status: 400, code: "InvalidAction", message: "Could not find operation " + c.action + " for version " + c.version}
}

// throttled is how the service says that it has too many calls.
func (c *awsCall) throttled() *awsError {
	switch c.name {
	case "sqs":
		return &awsError{status: 403, code: "RequestThrottled", shape: "com.amazonaws.sqs#RequestThrottled", message: "Request is throttled."}
	case "ec2":
		return &awsError{status: 503, code: "RequestLimitExceeded", message: "Request limit exceeded."}
	case "ssm":
		return &awsError{status: 400, code: "ThrottlingException", message: "Rate exceeded"}
	}
	return &awsError{status: 400, code: "Throttling", message: "Rate exceeded"}
}

// broken is how the service says that it has failed.
func (c *awsCall) broken() *awsError {
	switch c.name {
	case "ec2":
		return &awsError{status: 500, code: "InternalError", message: "An internal error has occurred"}
	case "ssm":
		return &awsError{status: 500, code: "InternalServerError", message: "An error occurred on the server side."}
	}
	return &awsError{status: 500, code: "InternalFailure", shape: "com.amazon.coral.service#InternalFailure", message: "We encountered an internal error. Please try again."}
}

// denied is how the service says that a policy does not allow the call.
func (c *awsCall) denied(who, resource string) *awsError {
	action := c.permission()
	if c.name == "sqs" {
		action = strings.ToLower(action) // as the service writes it
	}
	text := "User: " + who + " is not authorized to perform: " + action + " on resource: " + resource + " because no identity-based policy allows the " + action + " action"
	if c.protocol == awsEC2 {
		text = "You are not authorized to perform this operation. " + text
	}
	return c.refuse("AccessDenied", "UnauthorizedOperation", "AccessDeniedException", text)
}
