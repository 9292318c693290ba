package simulator

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// Whatever a signature covers, a change of it is refused.
func TestAWSSignatureTampered(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{SecurityToken: "tok+/=", Scenario: awsQueue(QueueConfig{Name: "q"})}, func(w awsWorld) {
		w.token = "tok+/="
		form := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "X-Amz-Meta": {"a  b"}}
		const body = "Action=GetQueueUrl&Version=2012-11-05&QueueName=q"
		send := func(edit func(*http.Request)) reply {
			return w.sent(w.request("sqs", "/?Extra=1", body, form, edit))
		}
		if r := send(func(*http.Request) {}); r.status != 200 {
			t.Fatalf("untouched: %+v", r)
		}
		authorization := func(old, new string) func(*http.Request) {
			return func(r *http.Request) {
				h := r.Header.Get("Authorization")
				if !strings.Contains(h, old) {
					t.Fatalf("%q is not in %q", old, h)
				}
				r.Header.Set("Authorization", strings.Replace(h, old, new, 1))
			}
		}
		header := func(name, value string) func(*http.Request) {
			return func(r *http.Request) { r.Header.Set(name, value) }
		}
		now := time.Now().UTC()
		for name, c := range map[string]struct {
			edit func(*http.Request)
			code string
		}{
			"method": {func(r *http.Request) { r.Method = "GET" }, "SignatureDoesNotMatch"},
			"path":   {func(r *http.Request) { r.URL.Path = "/x" }, "SignatureDoesNotMatch"},
			"query":  {func(r *http.Request) { r.URL.RawQuery = "Extra=2" }, "SignatureDoesNotMatch"},
			"body": {func(r *http.Request) {
				r.Body = io.NopCloser(strings.NewReader(strings.Replace(body, "=q", "=p", 1)))
			}, "SignatureDoesNotMatch"},
			"host":             {func(r *http.Request) { r.Host = "elsewhere.test" }, "SignatureDoesNotMatch"},
			"content type":     {header("Content-Type", "application/x-www-form-urlencoded; charset=utf-8"), "SignatureDoesNotMatch"},
			"other header":     {header("X-Amz-Meta", "a c"), "SignatureDoesNotMatch"},
			"added header":     {header("X-Amz-More", "1"), "SignatureDoesNotMatch"},
			"time":             {header("X-Amz-Date", now.Add(time.Second).Format(awsTime)), "SignatureDoesNotMatch"},
			"no time":          {func(r *http.Request) { r.Header.Del("X-Amz-Date") }, "IncompleteSignature"},
			"bad time":         {header("X-Amz-Date", now.Format(time.RFC3339)), "IncompleteSignature"},
			"day":              {authorization(now.Format("20060102"), now.AddDate(0, 0, 1).Format("20060102")), "Date in Credential scope"},
			"region":           {authorization("eu-west-1", "us-east-1"), "Credential should be scoped to a valid region, not &#39;us-east-1&#39;"},
			"service":          {authorization("/sqs/", "/ec2/"), "Credential should be scoped to correct service: &#39;sqs&#39;"},
			"terminator":       {authorization("aws4_request", "aws3_request"), "valid terminator"},
			"key":              {authorization(testKey, "another"), "InvalidClientTokenId"},
			"token":            {header("X-Amz-Security-Token", "tok"), "InvalidClientTokenId"},
			"signature":        {authorization("Signature=", "Signature=0"), "SignatureDoesNotMatch"},
			"signed headers":   {authorization("SignedHeaders=content-type;", "SignedHeaders="), "SignatureDoesNotMatch"},
			"host not signed":  {authorization("host;", ""), "must be a &#39;SignedHeader&#39;"},
			"date not signed":  {authorization("x-amz-date;", ""), "must be a &#39;SignedHeader&#39;"},
			"token not signed": {authorization(";x-amz-security-token", ""), "must be a &#39;SignedHeader&#39;"},
			"algorithm":        {authorization(awsAlgorithm, "AWS4-HMAC-SHA1"), "IncompleteSignature"},
			"no signature":     {authorization(", Signature=", ", "), "IncompleteSignature"},
			"unsigned":         {func(r *http.Request) { r.Header.Del("Authorization") }, "MissingAuthenticationToken"},
		} {
			if r := send(c.edit); r.status < 400 || !strings.Contains(r.body, c.code) {
				t.Errorf("%s: %d %s, want %s", name, r.status, r.body, c.code)
			}
		}
		// Spaces within a header, and parameters in another order, sign the same.
		if r := send(header("X-Amz-Meta", " a b ")); r.status != 200 {
			t.Errorf("spaces: %+v", r)
		}
	})
}

// A request's time may be five minutes off, on the cloud's clock.
func TestAWSSignatureTime(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q"})}, func(w awsWorld) {
		call := func() reply { return w.query("sqs", "GetQueueUrl", "QueueName", "q") }
		for skew, code := range map[time.Duration]string{
			0: "", -5 * time.Minute: "", 5 * time.Minute: "",
			-301 * time.Second: "Signature expired: ", 301 * time.Second: "Signature not yet current: ",
		} {
			w.skew = skew
			if r := call(); (r.status == 200) != (code == "") || !strings.Contains(r.body, code) {
				t.Errorf("off by %v: %d %s", skew, r.status, r.body)
			}
		}
		w.SetClock(10 * time.Minute)
		w.skew = 0
		w.refusedWith(call(), 403, "Signature expired")
		w.skew = 10 * time.Minute
		if r := call(); r.status != 200 {
			t.Errorf("on the cloud's clock: %s", r.body)
		}
	})
}

// Each dialect says in its own words what is wrong with keys.
func TestAWSRefusalsByDialect(t *testing.T) {
	t.Parallel()
	sc := awsQueue(QueueConfig{Name: "q"})
	sc.Roles = []RoleConfig{{Name: "worker"}}
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		expired := w.assumeAWS("worker", "DurationSeconds", "900")
		time.Sleep(15 * time.Minute)
		stranger, wrong := *w.world, *w.world
		stranger.id, wrong.secret = "AKIASTRANGER", "wrong"
		call := map[string]func(awsWorld) reply{
			"sts": func(w awsWorld) reply { return w.query("sts", "GetCallerIdentity") },
			"ec2": func(w awsWorld) reply { return w.query("ec2", "DescribeInstances") },
			"ssm": func(w awsWorld) reply { return w.json("ssm", "SendCommand", "{}") },
			"sqs": func(w awsWorld) reply { return w.json("sqs", "ListQueues", "{}") },
		}
		for _, c := range []struct {
			service string
			keys    awsWorld
			status  int
			text    string
		}{
			{"sts", awsWorld{&stranger}, 403, "<Code>InvalidClientTokenId</Code><Message>The security token included in the request is invalid.</Message>"},
			{"sts", awsWorld{&wrong}, 403, "<Code>SignatureDoesNotMatch</Code>"},
			{"sts", expired, 403, "<Code>ExpiredToken</Code><Message>The security token included in the request is expired</Message>"},
			{"ec2", awsWorld{&stranger}, 401, "<Response><Errors><Error><Code>AuthFailure</Code><Message>AWS was not able to validate the provided access credentials</Message></Error></Errors><RequestID>"},
			{"ec2", awsWorld{&wrong}, 401, "<Code>AuthFailure</Code>"},
			{"ec2", expired, 400, "<Code>RequestExpired</Code>"},
			{"ssm", awsWorld{&stranger}, 400, `{"__type":"UnrecognizedClientException","message":"The security token included in the request is invalid."}`},
			{"ssm", awsWorld{&wrong}, 400, `{"__type":"InvalidSignatureException",`},
			{"ssm", expired, 400, `{"__type":"ExpiredTokenException",`},
			{"sqs", awsWorld{&stranger}, 403, `{"__type":"com.amazon.coral.service#UnrecognizedClientException",`},
			{"sqs", awsWorld{&wrong}, 403, `{"__type":"com.amazon.coral.service#InvalidSignatureException",`},
			{"sqs", expired, 403, `{"__type":"com.amazon.coral.service#ExpiredTokenException",`},
		} {
			if r := call[c.service](c.keys); r.status != c.status || !strings.Contains(r.body, c.text) {
				t.Errorf("%s: %d %s, want %d %s", c.service, r.status, r.body, c.status, c.text)
			}
		}
		_, err := awsWorld{&stranger}.sqs().ListQueues(w.t.Context(), &sqs.ListQueuesInput{})
		code(t, err, "InvalidClientTokenId")
		_, err = expired.sqs().ListQueues(w.t.Context(), &sqs.ListQueuesInput{})
		code(t, err, "ExpiredToken")
	})
}

// What a policy does not allow is refused, naming who, what and on what.
func TestAWSPolicy(t *testing.T) {
	t.Parallel()
	sc := awsQueue(QueueConfig{Name: "drain-q"}, QueueConfig{Name: "other"})
	sc.Policy = `{"Version":"2012-10-17","Statement":[
		{"Sid":"Queue","Effect":"Allow","Action":["sqs:receivemessage","sqs:DeleteMessage","sqs:GetQueueUrl"],"Resource":"arn:aws:sqs:eu-west-1:111122223333:drain-*"},
		{"Effect":"Deny","Action":"sts:*","Resource":"*"}]}`
	bubbleAWS(t, Options{Scenario: sc}, func(w awsWorld) {
		q := w.queue("drain-q")
		q.receive(0, 0)
		// The permission for a message is good for batches too.
		w.refusedWith(w.json("sqs", "DeleteMessageBatch", `{"QueueUrl":"http://x/111122223333/drain-q","Entries":[]}`), 400, "EmptyBatchRequest")
		for call, text := range map[string]string{
			"SendMessage drain-q":    "User: arn:aws:iam::111122223333:user/usher is not authorized to perform: sqs:sendmessage on resource: arn:aws:sqs:eu-west-1:111122223333:drain-q because no identity-based policy allows the sqs:sendmessage action",
			"ReceiveMessage other":   "sqs:receivemessage on resource: arn:aws:sqs:eu-west-1:111122223333:other ",
			"ListQueues ":            "sqs:listqueues on resource: arn:aws:sqs:eu-west-1:111122223333:* ",
			"SendMessageBatch other": "sqs:sendmessage on resource: ",
		} {
			action, name, _ := strings.Cut(call, " ")
			body := "{}"
			if name != "" {
				body = `{"QueueUrl":"http://x/111122223333/` + name + `"}`
			}
			r := w.json("sqs", action, body)
			if w.refusedWith(r, 403, text); r.header["X-Amzn-Query-Error"][0] != "AccessDenied;Sender" {
				t.Errorf("%v", r.header)
			}
		}
		if r := w.query("sts", "GetCallerIdentity"); r.status != 200 {
			t.Errorf("nothing can take GetCallerIdentity away: %s", r.body)
		}
	})
}

func TestBadAWSPolicy(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sqs:*","Resource":"acs:mns:*"}]}`: "must be * or begin with arn:aws:",
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sqs","Resource":"*"}]}`:           "no action",
		`{"Version":"2008","Statement":[]}`: `Version must be "1" or "2012-10-17"`,
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sqs:*","Resource":"*","Condition":{"Bool":{"a":"true"}}}]}`: "unknown field",
	} {
		if _, err := ParsePolicy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// Base keys that rotate are not known any more.
func TestAWSKeysRotate(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: awsQueue(QueueConfig{Name: "q"})}, func(w awsWorld) {
		w.SetCredentials("AKIANEW", "secret", "")
		_, err := w.sqs().ListQueues(w.t.Context(), &sqs.ListQueuesInput{})
		code(t, err, "InvalidClientTokenId")
		w.id, w.secret = "AKIANEW", "secret"
		if _, err := w.sqs().ListQueues(w.t.Context(), &sqs.ListQueuesInput{}); err != nil {
			t.Error(err)
		}
	})
}

func FuzzAWSAuthorization(f *testing.F) {
	f.Add("AWS4-HMAC-SHA256 Credential=AKID/20260921/eu-west-1/sqs/aws4_request, SignedHeaders=host;x-amz-date, Signature=00")
	f.Add("AWS4-HMAC-SHA256 Credential=,SignedHeaders=,Signature=")
	f.Add("AWS4-HMAC-SHA256 Credential=a/b/c/d/e,Credential=a/b/c/d/e,SignedHeaders=x,Signature=y")
	f.Fuzz(func(t *testing.T, text string) {
		a, ok := parseAuthorization(text)
		if ok && (len(a.headers) == 0 || a.signature == "" || strings.Contains(a.key+a.day+a.region+a.service+a.end, "/")) {
			t.Errorf("%q: %+v", text, a)
		}
	})
}

// Neither protocol of SQS lets a request make it panic, whatever is in it.
func FuzzSQSRequest(f *testing.F) {
	f.Add("ReceiveMessage", `{"QueueUrl":"http://x/111122223333/q","MaxNumberOfMessages":1}`, true)
	f.Add("SendMessageBatch", `{"QueueUrl":"http://x/111122223333/q","Entries":[{"Id":"a","MessageBody":"b","MessageAttributes":{"c":{"DataType":"Binary","BinaryValue":"AA=="}}}]}`, true)
	f.Add("SetQueueAttributes", `{"QueueUrl":"http://x/111122223333/q","Attributes":{"RedrivePolicy":"{}"}}`, true)
	f.Add("SendMessage", "QueueUrl=/111122223333/q&MessageBody=b&MessageAttribute.1.Name=a&MessageAttribute.1.Value.DataType=Number&MessageAttribute.1.Value.StringValue=1", false)
	f.Add("DeleteMessageBatch", "QueueUrl=/111122223333/q&DeleteMessageBatchRequestEntry.1.Id=a&DeleteMessageBatchRequestEntry.1.ReceiptHandle=AQEB", false)
	f.Add("CreateQueue", "QueueName=z&Attribute.1.Name=DelaySeconds&Attribute.1.Value=1&Tag.1.Key=a&Tag.1.Value=b", false)
	s, err := New(Options{AccessKeyID: testKey, AccessKeySecret: testSecret, NoServers: true, Scenario: awsQueue(QueueConfig{Name: "q"})})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { s.Close() })
	f.Fuzz(func(t *testing.T, action, body string, inJSON bool) {
		op := sqsOperations[action]
		if op == nil {
			t.Skip("no operation")
		}
		// Nothing waits for messages, since the call has ended already.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r, _ := http.NewRequest("POST", "http://cloud.test/", nil)
		c := &awsCall{ctx: ctx, r: r, name: "sqs", service: awsServices["sqs"], action: action, body: []byte(body), keys: s.keys.Load()}
		if inJSON {
			c.protocol = awsJSON10
		} else if c.form, err = url.ParseQuery(body); err != nil {
			t.Skip("no form")
		}
		answer, bad := op(s, c)
		if bad != nil {
			if bad.status < 400 || bad.code == "" {
				t.Errorf("refused with %+v", bad)
			}
			c.failure(bad)
			return
		}
		c.success(answer)
	})
}
