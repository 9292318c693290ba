package simulator

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"
)

// assumeAWS gives a client with the keys of a role.
func (w awsWorld) assumeAWS(role string, pairs ...string) awsWorld {
	w.t.Helper()
	return w.sessionOf(w.query("sts", "AssumeRole", append([]string{"RoleArn", roleARN(role), "RoleSessionName", "s1"}, pairs...)...), "AssumeRoleResult")
}

func (w awsWorld) sessionOf(r reply, result string) awsWorld {
	w.t.Helper()
	var doc struct {
		Result []struct {
			Credentials awsCredentials
		} `xml:",any"`
	}
	w.into(r, &doc)
	k := doc.Result[0].Credentials
	if !strings.HasPrefix(k.AccessKeyId, "ASIA") || k.SecretAccessKey == "" || k.SessionToken == "" || !strings.Contains(r.body, "<"+result+">") {
		w.t.Fatalf("no session: %s", r.body)
	}
	other := *w.world
	other.id, other.secret, other.token = k.AccessKeyId, k.SecretAccessKey, k.SessionToken
	return awsWorld{&other}
}

func roleARN(name string) string { return "arn:aws:iam::" + DefaultAWSAccountID + ":role/" + name }

func withAWSRoles(mode string) Scenario {
	sc := awsQueue(QueueConfig{Name: "q"})
	sc.Roles = []RoleConfig{
		{Name: "worker", Trust: []string{trustEC2, trustOIDC, trustECS}},
		{Name: "group", Policy: `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sqs:GetQueueUrl","Resource":"*"}]}`, ExternalID: "x-1"},
		{Name: "free", MaxSession: 2 * time.Hour},
	}
	sc.OIDC.Tokens = []string{"for-ever"}
	sc.Metadata = MetadataConfig{Mode: mode, Role: "worker", Session: time.Hour, Early: 10 * time.Minute}
	return sc
}

func TestAWSAssumeRole(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: withAWSRoles(metadataBoth)}, func(w awsWorld) {
		var who struct {
			Result callerIdentity `xml:"GetCallerIdentityResult"`
		}
		w.into(w.query("sts", "GetCallerIdentity"), &who)
		if who.Result.Arn != "arn:aws:iam::111122223333:user/usher" || who.Result.Account != DefaultAWSAccountID {
			t.Errorf("base keys are %+v", who.Result)
		}
		free := w.assumeAWS("free", "DurationSeconds", "7200")
		w.into(free.query("sts", "GetCallerIdentity"), &who)
		if who.Result.Arn != "arn:aws:sts::111122223333:assumed-role/free/s1" || !strings.HasPrefix(who.Result.UserId, "AROA") {
			t.Errorf("a session is %+v", who.Result)
		}
		free.queue("q").put("x")
		group := free.assumeAWS("group", "ExternalId", "x-1")
		group.queue("q")
		w.refusedWith(group.json("sqs", "ListQueues", "{}"), 403, "User: arn:aws:sts::111122223333:assumed-role/group/s1 is not authorized to perform: sqs:listqueues")
		narrow := w.assumeAWS("free", "Policy", `{"Version":"2012-10-17","Statement":[]}`)
		w.refusedWith(narrow.json("sqs", "ListQueues", "{}"), 403, "AccessDenied")

		for _, c := range []struct {
			status      int
			text        string
			arn, length string
		}{
			{400, "ValidationError", "free", ""},
			{403, "AccessDenied", roleARN("none"), ""},
			{403, "AccessDenied", "arn:aws:iam::999999999999:role/free", ""},
			{403, "User: arn:aws:iam::111122223333:user/usher is not authorized to perform: sts:AssumeRole on resource: " + roleARN("group"), roleARN("group"), ""},
			{403, "AccessDenied", roleARN("worker"), ""},
			{400, "exceeds the MaxSessionDuration", roleARN("free"), "7201"},
			{400, "between 900 and 43200", roleARN("free"), "899"},
		} {
			pairs := []string{"RoleArn", c.arn, "RoleSessionName", "s1"}
			if c.length != "" {
				pairs = append(pairs, "DurationSeconds", c.length)
			}
			w.refusedWith(w.query("sts", "AssumeRole", pairs...), c.status, c.text)
		}
		w.refusedWith(free.query("sts", "AssumeRole", "RoleArn", roleARN("free"), "RoleSessionName", "s2", "DurationSeconds", "3601"), 400, "role chaining")
		w.refusedWith(w.query("sts", "AssumeRole", "RoleArn", roleARN("free"), "RoleSessionName", "a b"), 400, "ValidationError")
		w.refusedWith(w.query("sts", "AssumeRole", "RoleArn", roleARN("free"), "RoleSessionName", "s2", "Policy", "{}"), 400, "MalformedPolicyDocument")
		w.SetPolicy(policy(t, `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"`+roleARN("free")+`"}]}`))
		w.assumeAWS("free")
		w.refusedWith(w.query("sts", "AssumeRole", "RoleArn", roleARN("group"), "RoleSessionName", "s1", "ExternalId", "x-1"), 403, "AccessDenied")

		time.Sleep(2*time.Hour + time.Second)
		w.refusedWith(free.query("sts", "GetCallerIdentity"), 403, "ExpiredToken")
		w.RevokeSessions("free")
		w.refusedWith(narrow.query("sts", "GetCallerIdentity"), 403, "InvalidClientTokenId")
	})
}

// A web identity needs no keys.
func TestAWSWebIdentity(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: withAWSRoles(metadataBoth)}, func(w awsWorld) {
		token := w.IssueOIDCToken(time.Hour)
		unsigned := func(r *http.Request) { r.Header.Del("Authorization") }
		call := func(role, token string) reply {
			form := "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleSessionName=pod&RoleArn=" + roleARN(role) + "&WebIdentityToken=" + token
			return w.sent(w.request("sts", "/", form, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}}, unsigned))
		}
		for _, good := range []string{token, "for-ever"} {
			w.sessionOf(call("worker", good), "AssumeRoleWithWebIdentityResult").queue("q")
		}
		w.refusedWith(call("worker", "forged"), 400, "InvalidIdentityToken")
		w.refusedWith(call("worker", "x"), 400, "ValidationError")
		w.refusedWith(call("free", token), 403, "Not authorized to perform sts:AssumeRoleWithWebIdentity")
		time.Sleep(time.Hour)
		w.refusedWith(call("worker", token), 400, "ExpiredTokenException")
	})
}

// get asks the metadata of the instance.
func (w awsWorld) get(method, path string, pairs ...string) reply {
	w.t.Helper()
	req, err := http.NewRequest(method, w.base+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i < len(pairs); i += 2 {
		req.Header.Set(pairs[i], pairs[i+1])
	}
	return w.sent(req)
}

func TestIMDS(t *testing.T) {
	t.Parallel()
	bubbleAWS(t, Options{Scenario: withAWSRoles(metadataV2)}, func(w awsWorld) {
		for ttl, status := range map[string]int{"0": 400, "21601": 400, "": 400, "60": 200} {
			if r := w.get("PUT", "/latest/api/token", headerIMDSTTL, ttl); r.status != status || status == 200 && r.header.Get(headerIMDSTTL) != ttl {
				t.Errorf("for %q s: %+v", ttl, r)
			}
		}
		token := w.get("PUT", "/latest/api/token", headerIMDSTTL, "60").body
		const credentials = "/latest/meta-data/iam/security-credentials/"
		for path, want := range map[string]string{
			credentials: "worker", "/latest/meta-data/placement/region": "eu-west-1", "/latest/meta-data/instance-id": "i-0123456789abcdef0",
			"/latest/dynamic/instance-identity/document": `"region":"eu-west-1"`,
		} {
			if r := w.get("GET", path, headerIMDSToken, token); r.status != 200 || !strings.Contains(r.body, want) {
				t.Errorf("%s: %+v", path, r)
			}
			if r := w.get("GET", path); r.status != 401 {
				t.Errorf("%s without a token: %d", path, r.status)
			}
		}
		var k struct {
			Code, Type, AccessKeyId, SecretAccessKey, Token string
			Expiration, LastUpdated                         time.Time
		}
		read := func(path string, pairs ...string) awsWorld {
			t.Helper()
			if r := w.get("GET", path, pairs...); r.status != 200 || json.Unmarshal([]byte(r.body), &k) != nil {
				t.Fatalf("%+v", r)
			}
			other := *w.world
			other.id, other.secret, other.token = k.AccessKeyId, k.SecretAccessKey, k.Token
			return awsWorld{&other}
		}
		first := read(credentials+"worker", headerIMDSToken, token)
		if first.queue("q"); k.Code != "Success" || k.Type != "AWS-HMAC" || k.Expiration.Sub(k.LastUpdated) != time.Hour {
			t.Errorf("keys %+v", k)
		}
		if r := w.get("GET", credentials+"free", headerIMDSToken, token); r.status != 404 {
			t.Errorf("a role of nobody: %d", r.status)
		}
		time.Sleep(51 * time.Minute)
		if r := w.get("GET", credentials, headerIMDSToken, token); r.status != 401 {
			t.Errorf("with an old token: %d", r.status)
		}
		token = w.get("PUT", "/latest/api/token", headerIMDSTTL, "60").body
		if second := read(credentials+"worker", headerIMDSToken, token); second.id == first.id {
			t.Error("no new keys shortly before the end of the old ones")
		}

		container := read("/v2/credentials/worker", "Authorization", "for-ever")
		container.queue("q")
		if r := w.get("GET", "/v2/credentials/worker", "Authorization", "forged"); r.status != 401 {
			t.Errorf("a container's forged token: %d", r.status)
		}
		if r := w.get("GET", "/v2/credentials/free"); r.status != 404 {
			t.Errorf("a role that trusts no container: %d", r.status)
		}
		w.fault(Fault{Service: "metadata", Action: "Token", Kind: FaultDenied, Count: 1})
		if r := w.get("PUT", "/latest/api/token", headerIMDSTTL, "60"); r.status != 403 {
			t.Errorf("denied: %d", r.status)
		}
	})
	bubbleAWS(t, Options{Scenario: withAWSRoles(metadataOff)}, func(w awsWorld) {
		if r := w.get("PUT", "/latest/api/token", headerIMDSTTL, "60"); r.status != 403 {
			t.Errorf("off: %d", r.status)
		}
	})
}
