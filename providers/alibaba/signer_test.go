package alibaba

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/auth/credentials"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/ess"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/simulator"
)

// signed is a request as it came over the wire, never seen by the cloud.
type signed struct {
	method, target string
	header         http.Header
	body           string
}

func (s signed) clone() signed {
	s.header = s.header.Clone()
	return s
}

// sendTo has the cloud answer the request, and gives the code of a refusal, "" for none.
func (s signed) sendTo(t *testing.T, sim http.Handler) string {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), s.method, s.target, strings.NewReader(s.body))
	r.Header = s.header.Clone()
	w := httptest.NewRecorder()
	sim.ServeHTTP(w, r)
	if w.Code < 300 {
		return ""
	}
	var answer struct {
		XMLName xml.Name `json:"-"`
		Code    string
	}
	if strings.Contains(w.Body.String(), "<Errors ") {
		return "some failed"
	}
	if json.Unmarshal(w.Body.Bytes(), &answer) != nil && xml.Unmarshal(w.Body.Bytes(), &answer) != nil || answer.Code == "" {
		t.Fatalf("%s %s: status %d: %s", s.method, s.target, w.Code, w.Body)
	}
	return answer.Code
}

// capture records what a client sends, and hangs up.
func capture(t *testing.T, call func(o Options)) signed {
	t.Helper()
	var mu sync.Mutex
	var got []signed
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		got = append(got, signed{r.Method, r.RequestURI, r.Header.Clone(), string(body)})
		mu.Unlock()
		w.WriteHeader(http.StatusTeapot)
	}))
	o := options(server.URL)
	o.Region, o.QueueName, o.STSEndpoint = "cn-shenzhen", simQueue, server.URL
	call(o)
	server.Close()
	if len(got) != 1 {
		t.Fatalf("%d requests", len(got))
	}
	return got[0]
}

// signers is a cloud for a test, with long-term keys or with temporary ones.
func signers(t *testing.T, test func(t *testing.T, sim *simulator.Simulator, keys static)) {
	t.Parallel()
	for name, keys := range map[string]static{
		"long-term keys": {ID: testID, Secret: testSecret}, "temporary keys": {ID: "STS." + testID, Secret: testSecret, Token: mark + "CAIS+/=tok~*en"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scenario := simulator.DefaultScenario()
			scenario.Roles = roles()
			sim, err := simulator.New(simulator.Options{
				AccessKeyID: keys.ID, AccessKeySecret: keys.Secret, SecurityToken: keys.Token, NoServers: true, Scenario: scenario,
			})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = sim.Close() }()
			test(t, sim, keys)
		})
	}
}

// other is text of the same kind that differs in one place.
func other(text string) string {
	for i := len(text) - 1; i >= 0; i-- {
		switch c := text[i]; {
		case c >= '0' && c <= '8', c >= 'a' && c <= 'y', c >= 'A' && c <= 'Y':
			return text[:i] + string(c+1) + text[i+1:]
		}
	}
	return text + "1"
}

// TestTamperedMNSRequests: the cloud takes what our client signs, and nothing that was
// changed on its way: each header, each parameter, the method, the path and the body.
func TestTamperedMNSRequests(t *testing.T) {
	signers(t, func(t *testing.T, sim *simulator.Simulator, keys static) {
		calls := map[string]func(ctx context.Context, q *Queue){
			"Receive":    func(ctx context.Context, q *Queue) { _, _ = q.Receive(ctx, 16, 0) },
			"Extend":     func(ctx context.Context, q *Queue) { _, _ = q.Extend(ctx, "a+/b==", time.Minute) },
			"Delete":     func(ctx context.Context, q *Queue) { _ = q.Delete(ctx, []providers.Receipt{"a+/b=="}) },
			"Deletes":    func(ctx context.Context, q *Queue) { _ = q.Delete(ctx, []providers.Receipt{"a+/b==", "c"}) },
			"Send":       func(ctx context.Context, q *Queue) { _, _ = q.Send(ctx, "hello") },
			"Attributes": func(ctx context.Context, q *Queue) { _, _ = q.Attributes(ctx) },
		}
		// What an operation itself says of handles that nobody has, and of an empty queue.
		own := map[string]string{"Receive": "MessageNotExist", "Extend": "ReceiptHandleError", "Delete": "ReceiptHandleError", "Deletes": "some failed"}
		for _, name := range slices.Sorted(maps.Keys(calls)) { // Receive before Send
			call := calls[name]
			request := capture(t, func(o Options) {
				o.Credentials = keys
				call(t.Context(), newQueue(t, o))
			})
			refused := func(what, want string, change func(*signed)) {
				t.Helper()
				changed := request.clone()
				change(&changed)
				if got := changed.sendTo(t, sim); got != want {
					t.Errorf("%s with %s: %q, want %q", name, what, got, want)
				}
			}
			const signature = "SignatureDoesNotMatch"
			// The signature covers these; the others are told apart by what becomes of them.
			for header := range request.header {
				set := func(value string) func(*signed) { return func(s *signed) { s.header.Set(header, value) } }
				gone := func(s *signed) { s.header.Del(header) }
				value := request.header.Get(header)
				switch header {
				case "Content-Type", "Content-Md5":
					refused("another "+header, signature, set(other(value)))
					refused("no "+header, signature, gone)
				case "Date":
					refused("another Date", signature, set(time.Now().Add(-time.Minute).UTC().Format(http.TimeFormat)))
					refused("an old Date", signature, set(time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat)))
					refused("a Date that is none", "InvalidDateHeader", set("yesterday"))
					refused("no Date", "MissingDateHeader", gone)
				case "X-Mns-Version":
					refused("another version", "MissingVersionHeader", set("2015-06-07"))
					refused("no version", "MissingVersionHeader", gone)
				case "Security-Token":
					refused("another token", "InvalidSecurityToken", set(other(value)))
					refused("no token", "InvalidSecurityToken", gone)
				case "Authorization":
					text, _ := strings.CutPrefix(value, "MNS ")
					id, mac, _ := strings.Cut(text, ":")
					refused("another signature", signature, set("MNS "+id+":"+other(mac)))
					refused("half a signature", signature, set("MNS "+id+":"+mac[:14]))
					refused("another key", "InvalidAccessKeyId", set("MNS "+other(id)+":"+mac))
					refused("another scheme", "InvalidAuthorizationHeader", set("Basic "+text))
					refused("no key", "InvalidAuthorizationHeader", set("MNS "+mac))
					refused("no authorization", "MissingAuthorizationHeader", gone)
				case "User-Agent", "Accept-Encoding", "Content-Length": // nobody's business
				default:
					t.Errorf("%s sends %s, and nothing is said of it here", name, header)
				}
			}
			refused("one more header", signature, func(s *signed) { s.header.Set("x-mns-user-request-id", "1") })
			refused("x-mns-date", signature, func(s *signed) { s.header.Set("x-mns-date", s.header.Get("Date")) })
			if keys.Token == "" {
				refused("a token", "InvalidSecurityToken", func(s *signed) { s.header.Set("security-token", "CAIS") })
			}
			for _, method := range []string{"GET", "PUT", "POST", "DELETE"} {
				if method != request.method {
					refused("method "+method, signature, func(s *signed) { s.method = method })
				}
			}
			refused("another queue", signature, func(s *signed) { s.target = strings.Replace(s.target, simQueue, "other", 1) })
			refused("another path", signature, func(s *signed) { s.target = strings.Replace(s.target, "/queues/", "/topics/", 1) })
			refused("a slash more", signature, func(s *signed) { s.target = strings.Replace(s.target, "/queues/", "/queues//", 1) })
			path, query, has := strings.Cut(request.target, "?")
			refused("one more parameter", signature, func(s *signed) {
				s.target += map[bool]string{true: "&", false: "?"}[has] + "waitseconds=1"
			})
			for i, item := range strings.Split(query, "&") {
				if !has {
					break
				}
				parameter, value, _ := strings.Cut(item, "=")
				with := func(text string) func(*signed) {
					items := strings.Split(query, "&")
					if items[i] = text; text == "" {
						items = slices.Delete(items, i, i+1)
					}
					return func(s *signed) { s.target = path + "?" + strings.Join(items, "&") }
				}
				refused("another "+parameter, signature, with(parameter+"="+other(value)))
				refused("no "+parameter, signature, with(""))
				refused("another spelling of "+parameter, signature, with(other(parameter)+"="+value))
				if plain, err := url.PathUnescape(value); err == nil && plain != value {
					refused("the same "+parameter+" with other escapes", signature, with(parameter+"="+plain))
				}
			}
			if request.body == "" {
				if _, there := request.header["Content-Md5"]; there {
					t.Errorf("%s has a digest of no body", name)
				}
			} else {
				for i := 0; i < len(request.body); i += 7 {
					refused("another body", "InvalidDegist", func(s *signed) { s.body = s.body[:i] + "x" + s.body[i+1:] + "y" })
				}
				refused("half a body", "InvalidDegist", func(s *signed) { s.body = s.body[:len(s.body)/2] })
				refused("no body", "InvalidDegist", func(s *signed) { s.body = "" })
			}
			if got := request.sendTo(t, sim); got != own[name] {
				t.Errorf("%s as it was signed: %q", name, got)
			}
		}
	})
}

// rpcCalls are requests in the query and in the form body, by the SDK.
func rpcCalls(keys static) map[string]func(t *testing.T, o Options) {
	return map[string]func(t *testing.T, o Options){
		"Heartbeat, in the query": func(t *testing.T, o Options) {
			_, _ = newScaling(t, o).Heartbeat(t.Context(), messages.Action{Group: simGroup, Hook: "ash-wz9example0001", Token: "C8BEAE68-CB77-4E60-986D-1E8BBF1A6B99", Region: "cn-shenzhen"}, time.Minute)
		},
		"RunCommand, in the body": func(t *testing.T, o Options) {
			_, _ = newAssistant(t, o).RunCommand(t.Context(), providers.Command{Instance: "i-1", Script: "echo 'a b*c~d+e/ü'", Key: "key", Timeout: time.Minute})
		},
		"AssumeRole, in the body": func(t *testing.T, o Options) {
			a, err := NewAssumedRole(o, Role{ARN: roleARN(groupRole), SessionName: "s@1", ExternalID: "x=1/2"})
			if err != nil {
				t.Fatal(err)
			}
			defer a.Close()
			_, _ = a.Credentials(t.Context())
		},
	}
}

// TestTamperedRPCRequests: the cloud takes what the vendor's SDK signs for us, and nothing
// that was changed on its way: each parameter in query and body, and the method.
func TestTamperedRPCRequests(t *testing.T) {
	signers(t, func(t *testing.T, sim *simulator.Simulator, keys static) {
		// What an operation itself says of a token and an instance that are not there.
		own := map[string]string{"Heartbeat, in the query": "LifecycleHookIdAndLifecycleActionToken.Invalid", "RunCommand, in the body": "InvalidInstance.NotFound"}
		for name, call := range rpcCalls(keys) {
			request := capture(t, func(o Options) {
				o.Credentials = keys
				call(t, o)
			})
			if inBody := strings.Contains(name, "body"); inBody != (request.body != "") {
				t.Fatalf("%s: body %q", name, request.body)
			}
			path, query, _ := strings.Cut(request.target, "?")
			check := func(what, want string, s signed) {
				t.Helper()
				if got := s.sendTo(t, sim); got != want {
					t.Errorf("%s with %s: %q, want %q", name, what, got, want)
				}
			}
			seen := map[string]bool{}
			// tamper changes one parameter of the query or of the body, in all ways.
			tamper := func(text string, put func(*signed, string)) {
				values, err := url.ParseQuery(text)
				if err != nil {
					t.Fatal(err)
				}
				changed := func(change func(url.Values)) signed {
					v := maps.Clone(values)
					change(v)
					s := request.clone()
					put(&s, v.Encode())
					return s
				}
				for parameter := range values {
					seen[parameter] = true
					value := values.Get(parameter)
					set := func(text string) signed { return changed(func(v url.Values) { v[parameter] = []string{text} }) }
					gone := changed(func(v url.Values) { delete(v, parameter) })
					another, none := "SignatureDoesNotMatch", "SignatureDoesNotMatch"
					switch parameter {
					case "AccessKeyId":
						another, none = "InvalidAccessKeyId.NotFound", "MissingAccessKeyId"
					case "SecurityToken":
						another, none = "InvalidSecurityToken.MismatchWithAccessKey", "MissingSecurityToken"
					case "SignatureMethod", "SignatureVersion":
						another, none = "IncompleteSignature", "IncompleteSignature"
					case "Signature":
						none = "IncompleteSignature"
					case "SignatureNonce":
						none = "MissingSignatureNonce"
					case "Timestamp":
						another, none = "", "MissingTimestamp" // see below
						at := func(off time.Duration) signed {
							return set(time.Now().Add(off).UTC().Format("2006-01-02T15:04:05Z"))
						}
						check("another Timestamp", "SignatureDoesNotMatch", at(-time.Minute))
						check("an old Timestamp", "InvalidTimeStamp.Expired", at(-16*time.Minute))
						check("a Timestamp to come", "InvalidTimeStamp.Expired", at(16*time.Minute))
						check("a Timestamp that is none", "InvalidTimeStamp.Format", set("yesterday"))
					case "Action":
						none = "MissingAction"
						check("another Action there is", "SignatureDoesNotMatch", set("CompleteLifecycleAction"))
					case "Version":
						another, none = "InvalidVersion", "MissingVersion"
						check("another Version there is", "SignatureDoesNotMatch", set(essNewVersion))
					}
					if another != "" {
						check("another "+parameter, another, set(other(value)))
					}
					if value != "" && parameter != "Action" && parameter != "Version" {
						check("an empty "+parameter, none, set(""))
					}
					check("no "+parameter, none, gone)
					check("another spelling of "+parameter, none, changed(func(v url.Values) { delete(v, parameter); v[other(parameter)] = []string{value} }))
				}
				check("one more parameter", "SignatureDoesNotMatch", changed(func(v url.Values) { v["Extra"] = []string{"1"} }))
			}
			tamper(query, func(s *signed, text string) { s.target = path + "?" + text })
			if request.body != "" {
				tamper(request.body, func(s *signed, text string) { s.body = text })
				s := request.clone()
				s.body = ""
				check("no body", "SignatureDoesNotMatch", s)
			}
			for _, parameter := range []string{"AccessKeyId", "Action", "Format", "RegionId", "Signature", "SignatureMethod", "SignatureNonce", "SignatureType", "SignatureVersion", "Timestamp", "Version"} {
				if !seen[parameter] {
					t.Errorf("%s has no %s", name, parameter)
				}
			}
			if seen["SecurityToken"] != (keys.Token != "") {
				t.Errorf("%s: a token: %v", name, seen["SecurityToken"])
			}
			s := request.clone()
			s.method = http.MethodGet
			check("another method", "SignatureDoesNotMatch", s)
			s = request.clone()
			s.method = http.MethodPut
			check("a method that there is not", "UnsupportedHTTPMethod", s)
			s = request.clone()
			s.target = "/other" + s.target
			check("another path", "MissingAuthorizationHeader", s) // that is MNS's
			// Headers are not signed in this style: what they say is in the parameters, too.
			for header := range request.header {
				switch header {
				case "Accept-Encoding", "Content-Length", "User-Agent", "X-Acs-Action", "X-Acs-Version", "X-Acs-Credentials-Provider",
					"X-Sdk-Client", "X-Sdk-Core-Version", "X-Sdk-Invoke-Type":
				case "Content-Type":
					if s := request.clone(); s.body != "" {
						s.header.Set("Content-Type", "text/plain")
						check("a body of another type", "SignatureDoesNotMatch", s)
					}
				default:
					t.Errorf("%s sends %s, and nothing is said of it here", name, header)
				}
			}
			// None of that has used the nonce up; the request itself does.
			check("nothing changed", own[name], request)
			check("its nonce used", "SignatureNonceUsed", request)
		}
	})
}

const essNewVersion = "2022-02-22"

// TestTheSDKItself: a client of the SDK as it comes, without our transport, is understood,
// in the query and in the body, and its answers are.
func TestTheSDKItself(t *testing.T) {
	signers(t, func(t *testing.T, sim *simulator.Simulator, keys static) {
		server := httptest.NewServer(sim)
		defer server.Close()
		host := strings.TrimPrefix(server.URL, "http://")
		var source credentials.CredentialsProvider = credentials.NewStaticSTSCredentialsProvider(keys.ID, keys.Secret, keys.Token)
		if keys.Token == "" {
			source = credentials.NewStaticAKCredentialsProvider(keys.ID, keys.Secret)
		}
		client, err := sdk.NewClientWithOptions("cn-shenzhen", sdk.NewConfig(), source)
		if err != nil {
			t.Fatal(err)
		}
		defer client.Shutdown()
		list := ess.CreateDescribeLifecycleHooksRequest()
		list.Domain, list.ScalingGroupId, list.Scheme = host, simGroup, "http"
		hooks := ess.CreateDescribeLifecycleHooksResponse()
		if err := client.DoAction(list, hooks); err != nil || len(hooks.LifecycleHooks.LifecycleHook) != 2 {
			t.Errorf("%v, %+v", err, hooks.LifecycleHooks)
		}
		assume := requests.NewCommonRequest()
		assume.Method, assume.Scheme, assume.Domain, assume.Version, assume.ApiName = "POST", "http", host, stsVersion, "AssumeRole"
		assume.FormParams["RoleArn"], assume.FormParams["RoleSessionName"] = roleARN(groupRole), "s1"
		answer, err := client.ProcessCommonRequest(assume)
		if err != nil || !bytes.Contains(answer.GetHttpContentBytes(), []byte(`"SecurityToken"`)) {
			t.Errorf("%v", err)
		}
	})
}
