package simulator

import (
	"net/http"
	"strings"
	"testing"
	"time"
)

func withRole(mode string) Scenario {
	sc := oneQueue()
	deny := `{"Version":"1","Statement":[{"Effect":"Allow","Action":"ess:DescribeScalingGroups","Resource":"*"}]}`
	sc.Roles = []RoleConfig{
		{Name: "worker", Trust: []string{trustECS, trustOIDC}}, {Name: "group", Policy: deny, ExternalID: "x-1"}, {Name: "free", MaxSession: 2 * time.Hour},
	}
	sc.Metadata = MetadataConfig{Mode: mode, Role: "worker", Session: time.Hour, Early: 10 * time.Minute}
	return sc
}

// session makes w sign with the keys of an answer of STS or of the metadata server.
func (w *world) session(o map[string]any) *world {
	w.t.Helper()
	s := *w
	s.id, _ = o["AccessKeyId"].(string)
	s.secret, _ = o["AccessKeySecret"].(string)
	s.token, _ = o["SecurityToken"].(string)
	if !strings.HasPrefix(s.id, "STS.") || s.secret == "" || s.token == "" || o["Expiration"] == "" {
		w.t.Fatalf("no session: %v", o)
	}
	return &s
}

func (w *world) assume(role string, pairs ...string) *world {
	w.t.Helper()
	o := w.call(stsVersion, "AssumeRole", append([]string{"RoleArn", "acs:ram::" + DefaultAccountID + ":role/" + role, "RoleSessionName", "s1"}, pairs...)...)
	keys, _ := o["Credentials"].(map[string]any)
	return w.session(keys)
}

func TestAssumeRole(t *testing.T) {
	t.Parallel()
	bubble(t, Options{Scenario: withRole(metadataBoth)}, func(w *world) {
		const op = "DescribeScalingGroups"
		arn := "acs:ram::" + DefaultAccountID + ":role/"
		free := w.assume("free", "DurationSeconds", "7200")
		free.call(essOld, op)
		if r, err := free.mns("GET", "/queues/q", ""); err != nil || r.status != 200 {
			t.Errorf("MNS: %v, %v", r, err)
		}
		chained := free.assume("group", "ExternalId", "x-1")
		chained.call(essOld, op)
		chained.fails(403, "Forbidden.RAM", essOld, "DescribeLifecycleHooks", "ScalingGroupId", "asg-1")
		if r, err := chained.mns("GET", "/queues/q", ""); err != nil || !strings.Contains(r.body, "AccessDenied") {
			t.Errorf("MNS: %v, %v", r, err)
		}
		narrow := w.assume("free", "Policy", `{"Version":"1","Statement":[]}`)
		narrow.fails(403, "Forbidden.RAM", essOld, op)
		w.call(essOld, op) // the base keys are good beside them

		for _, c := range []struct {
			status int
			code   string
			pairs  []string
		}{
			{400, "MissingRoleArn", []string{"RoleSessionName", "s1"}},
			{400, "MissingRoleSessionName", []string{"RoleArn", arn + "free"}},
			{400, "InvalidParameter.RoleSessionName", []string{"RoleArn", arn + "free", "RoleSessionName", "s"}},
			{400, "InvalidParameter.RoleArn", []string{"RoleArn", "free", "RoleSessionName", "s1"}},
			{404, "EntityNotExist.Role", []string{"RoleArn", arn + "none", "RoleSessionName", "s1"}},
			{404, "EntityNotExist.Role", []string{"RoleArn", "acs:ram::1:role/free", "RoleSessionName", "s1"}},
			{400, "InvalidParameter.DurationSeconds", []string{"RoleArn", arn + "free", "RoleSessionName", "s1", "DurationSeconds", "7201"}},
			{400, "InvalidParameter.DurationSeconds", []string{"RoleArn", arn + "free", "RoleSessionName", "s1", "DurationSeconds", "899"}},
			{400, "InvalidParameter.PolicyGrammar", []string{"RoleArn", arn + "free", "RoleSessionName", "s1", "Policy", "{}"}},
			{403, "NoPermission", []string{"RoleArn", arn + "group", "RoleSessionName", "s1"}},
			{403, "NoPermission", []string{"RoleArn", arn + "group", "RoleSessionName", "s1", "ExternalId", "x-2"}},
			{403, "NoPermission", []string{"RoleArn", arn + "worker", "RoleSessionName", "s1"}},
		} {
			w.fails(c.status, c.code, stsVersion, "AssumeRole", c.pairs...)
		}
		w.SetPolicy(policy(t, `{"Version":"1","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole","Resource":"`+arn+`free"}]}`))
		w.assume("free")
		denied := w.fails(403, "NoPermission", stsVersion, "AssumeRole", "RoleArn", arn+"group", "RoleSessionName", "s1", "ExternalId", "x-1")
		if detail, _ := denied["AccessDeniedDetail"].(map[string]any); detail["AuthAction"] != "sts:AssumeRole" {
			t.Errorf("%v", denied)
		}
		free.call(essOld, op) // its policy is the role's, not the base keys'

		forged := *free
		forged.token += "x"
		forged.fails(400, "InvalidSecurityToken.MismatchWithAccessKey", essOld, op)
		forged.token = ""
		forged.fails(400, "MissingSecurityToken", essOld, op)
		time.Sleep(time.Hour)
		chained.fails(400, "InvalidSecurityToken.Expired", essOld, op)
		if r, err := chained.mns("GET", "/queues/q", ""); err != nil || r.status != 403 || !strings.Contains(r.body, "<Code>InvalidSecurityToken<") {
			t.Errorf("expired keys on MNS: %v, %v", r, err)
		}
		free.call(essOld, op)
		w.RevokeSessions("free")
		free.fails(404, "InvalidAccessKeyId.NotFound", essOld, op)
		if n := w.State().Refusals["ess."+op+" InvalidAccessKeyId.NotFound"]; n != 1 {
			t.Errorf("refusals: %v", w.State().Refusals)
		}
	})
}

func TestAssumeRoleWithOIDC(t *testing.T) {
	t.Parallel()
	sc := withRole(metadataBoth)
	sc.OIDC.Tokens = []string{"fixed-token"}
	bubble(t, Options{Scenario: sc}, func(w *world) {
		token := w.IssueOIDCToken(time.Hour)
		send := func(token string, pairs ...string) map[string]any {
			t.Helper()
			form := w.rpcForm(stsVersion, "AssumeRoleWithOIDC", append([]string{"OIDCToken", token, "OIDCProviderArn", "acs:ram::" + DefaultAccountID + ":oidc-provider/ack-rrsa",
				"RoleArn", "acs:ram::" + DefaultAccountID + ":role/worker", "RoleSessionName", "s1"}, pairs...)...)
			for _, name := range []string{"AccessKeyId", "SignatureMethod", "SignatureVersion", "SignatureNonce", "SignatureType"} {
				form.Del(name)
			}
			r, err := w.sendRPC("POST", form)
			if err != nil {
				t.Fatal(err)
			}
			return decode(t, r.body)
		}
		for _, good := range []string{token, token, "fixed-token"} {
			keys, _ := send(good)["Credentials"].(map[string]any)
			w.session(keys).call(essOld, "DescribeScalingGroups")
		}
		for want, o := range map[string]map[string]any{
			"AuthenticationFail.OIDCToken.Invalid": send("eyJforged"),
			"MissingOIDCToken":                     send(""),
			"MissingOIDCProviderArn":               send(token, "OIDCProviderArn", ""),
			"InvalidParameter.OIDCProviderArn":     send(token, "OIDCProviderArn", "acs:ram::1:oidc-provider/other"),
			"AuthenticationFail.NoPermission":      send(token, "RoleArn", "acs:ram::"+DefaultAccountID+":role/free"),
			"InvalidTimeStamp.Expired":             send(token, "Timestamp", "2000-01-01T01:00:00Z"),
		} {
			if o["Code"] != want {
				t.Errorf("%v, want %s", o, want)
			}
		}
		time.Sleep(time.Hour)
		if o := send(token); o["Code"] != "AuthenticationFail.OIDCToken.Expired" {
			t.Errorf("%v", o)
		}
	})
}

// metadata makes one request of the metadata server.
func (w *world) metadata(method, path string, header ...string) reply {
	w.t.Helper()
	r, err := http.NewRequest(method, w.base+path, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	got, err := w.do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	return got
}

func TestMetadata(t *testing.T) {
	t.Parallel()
	const (
		ttl   = "X-aliyun-ecs-metadata-token-ttl-seconds"
		token = "X-aliyun-ecs-metadata-token"
		base  = "/latest/meta-data/ram/security-credentials/"
	)
	for mode, want := range map[string]struct{ put, plain, withToken, forged int }{
		metadataBoth: {200, 200, 200, 403}, metadataV2: {200, 403, 200, 403}, metadataV1: {404, 200, 200, 200}, metadataOff: {404, 404, 404, 404},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			bubble(t, Options{Scenario: withRole(mode)}, func(w *world) {
				put := w.metadata("PUT", "/latest/api/token", ttl, "21600")
				if want.put != 200 {
					put.body = "none"
				}
				plain, withToken, forged := w.metadata("GET", base), w.metadata("GET", base, token, put.body), w.metadata("GET", base, token, "forged")
				if put.status != want.put || plain.status != want.plain || withToken.status != want.withToken || forged.status != want.forged {
					t.Errorf("PUT %d, plain %d, token %d, forged %d", put.status, plain.status, withToken.status, forged.status)
				}
				if want.put != 200 {
					return
				}
				for _, seconds := range []string{"", "0", "21601", "x"} {
					if r := w.metadata("PUT", "/latest/api/token", ttl, seconds); r.status != 400 {
						t.Errorf("TTL %q: %d", seconds, r.status)
					}
				}
				get := func(path string) reply { return w.metadata("GET", path, token, put.body) }
				if r := get(base); r.body != "worker" {
					t.Errorf("%+v", r)
				}
				if r := get("/latest/meta-data/region-id"); r.body != "cn-shenzhen" {
					t.Errorf("%+v", r)
				}
				if r := get("/latest/meta-data/instance-id"); !strings.HasPrefix(r.body, "i-") {
					t.Errorf("%+v", r)
				}
				if r := get(base + "other"); r.status != 404 {
					t.Errorf("%+v", r)
				}
				if r := w.metadata("POST", base, token, put.body); r.status != 405 {
					t.Errorf("%+v", r)
				}
				first := decode(t, get(base+"worker").body)
				w.session(first).call(essOld, "DescribeScalingGroups")
				time.Sleep(49 * time.Minute)
				if again := decode(t, get(base+"worker").body); again["AccessKeyId"] != first["AccessKeyId"] {
					t.Error("new keys too early")
				}
				time.Sleep(2 * time.Minute)
				second := decode(t, get(base+"worker").body)
				if second["AccessKeyId"] == first["AccessKeyId"] {
					t.Error("the old keys")
				}
				w.session(first).call(essOld, "DescribeScalingGroups") // both are good
				w.session(second).call(essOld, "DescribeScalingGroups")
				time.Sleep(6 * time.Hour)
				if r := get(base); r.status != 403 {
					t.Errorf("with a token that is over: %+v", r)
				}
				if _, err := w.InjectFault(Fault{Service: "metadata", Action: "Role", Kind: Fault5xx, Count: 1}); err != nil {
					t.Error(err)
				}
				if r := w.metadata("GET", base); r.status != 503 {
					t.Errorf("%+v", r)
				}
			})
		})
	}
}

func TestBadRoles(t *testing.T) {
	t.Parallel()
	for want, text := range map[string]string{
		"f.yaml:2: roles[0].name:":           "roles:\n  - name: a b\n",
		"f.yaml:3: roles[1].name: \"a\" is":  "roles:\n  - name: a\n  - name: a\n",
		"f.yaml:3: roles[0].policy: Version": "roles:\n  - name: a\n    policy: '{}'\n",
		"f.yaml:2: roles[0].trust[0]: must":  "roles:\n  - {name: a, trust: [me]}\n",
		"f.yaml:2: roles[0].max_session:":    "roles:\n  - {name: a, max_session: 13h}\n",
		"metadata.role: no role \"b\"":       "metadata: {role: b}\n",
		"metadata.role: role \"a\" does not": "roles: [{name: a}]\nmetadata: {role: a}\n",
		"metadata.mode: must be one of":      "metadata: {mode: v3}\n",
		"metadata.session: must be 15m0s":    "metadata: {session: 1m}\n",
		"metadata.early: must be":            "metadata: {session: 1h, early: 2h}\n",
		"sts.expired_rpc: must be one of":    "sts: {expired_rpc: Gone}\n",
		"sts.expired_mns: ":                  "sts: {expired_mns: a b}\n",
		"oidc.tokens[0]: must be 4":          "oidc: {tokens: [abc]}\n",
		"allowed are provider, tokens":       "oidc: {issuer: x}\n",
	} {
		if _, err := parseScenario("f.yaml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", text, err, want)
		}
	}
}
