package alibaba

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	vendor "github.com/aliyun/credentials-go/credentials/providers"

	"example.org/usher/providers"
	"example.org/usher/providers/internal/renewal"
	"example.org/usher/simulator"
)

const anyArn = "acs:ram::" + simAccount + ":role/" + workerRole

func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(name+".new", []byte(text), 0o600), os.Rename(name+".new", name)); err != nil {
		t.Fatal(err)
	}
	return name
}

// TestNothingApplies: the error lists every source and why it does not apply.
func TestNothingApplies(t *testing.T) {
	withRoles(t, map[string]string{"ALIBABA_CLOUD_ROLE_ARN": anyArn}, nil, func(t *testing.T, c *credentialCloud) {
		c.cut("metadata.test:80", true)
		chain := c.chain()
		begun := time.Now()
		_, err := chain.Credentials(t.Context())
		want := "no source applies: environment: ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET are not set;" +
			" OIDC: ALIBABA_CLOUD_OIDC_PROVIDER_ARN, ALIBABA_CLOUD_OIDC_TOKEN_FILE not set;" +
			" CLI profile: " + c.home + "/.aliyun/config.json does not exist; INI file: " + c.home + "/.alibabacloud/credentials does not exist;" +
			" ECS metadata: nothing answers at http://metadata.test: this is no ECS instance, or its network is closed to it;" +
			" URI: ALIBABA_CLOUD_CREDENTIALS_URI is not set"
		if err == nil || err.Error() != want {
			t.Errorf("got:\n%v\nwant:\n%s", err, want)
		}
		if took := time.Since(begun); took > 3*time.Second || chain.Source() != "" {
			t.Errorf("after %v, source %q", took, chain.Source())
		}
		q, _ := c.clients(chain)
		_, err = q.Receive(t.Context(), 1, 0)
		wantKind(t, err, providers.ErrCredentials)
		// What turns up later is found.
		c.cut("metadata.test:80", false)
		time.Sleep(renewal.PauseMax)
		keysOf(t, chain)
		if chain.Source() != "ECS metadata" {
			t.Errorf("source %q", chain.Source())
		}
	})
}

const (
	cliKeys = `{"current":"default","profiles":[{"name":"default","mode":"AK","access_key_id":"cliId","access_key_secret":"usherTESTsecretCLI"},` +
		`{"name":"other","mode":"StsToken","access_key_id":"otherId","access_key_secret":"usherTESTsecretOther","sts_token":"usherTESTsecretToken"}]}`
	iniKeys = "[default]\ntype = access_key\naccess_key_id = iniId\naccess_key_secret = usherTESTsecretINI\n\n[third] # a comment\ntype=access_key\naccess_key_id=thirdId\naccess_key_secret=usherTESTsecretThird\n"
)

// TestOrderOfSources: the first that is set up wins, in the order of the vendor's chain,
// and where that asks no network it gives the same keys as the vendor's.
func TestOrderOfSources(t *testing.T) {
	env := map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_ID": "envId", "ALIBABA_CLOUD_ACCESS_KEY_SECRET": "usherTESTsecretEnv"}
	and := func(m map[string]string, pairs ...string) map[string]string {
		out := map[string]string{}
		for k, v := range m {
			out[k] = v
		}
		for i := 0; i < len(pairs); i += 2 {
			out[pairs[i]] = pairs[i+1]
		}
		return out
	}
	oidc := map[string]string{"ALIBABA_CLOUD_ROLE_ARN": anyArn, "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": oidcARN, "ALIBABA_CLOUD_OIDC_TOKEN_FILE": "HOME/token"}
	for name, row := range map[string]struct {
		env      map[string]string
		cli, ini string
		id       string // its beginning
		source   string
		network  bool // the vendor's can't be asked
	}{
		"environment before all":       {and(env, "ALIBABA_CLOUD_ROLE_ARN", anyArn), cliKeys, iniKeys, "envId", "environment", false},
		"environment with a token":     {and(env, "ALIBABA_CLOUD_SECURITY_TOKEN", "usherTESTsecretT"), "", "", "envId", "environment", false},
		"OIDC before files":            {oidc, cliKeys, iniKeys, "STS.", "OIDC", true},
		"CLI before INI":               {nil, cliKeys, iniKeys, "cliId", "CLI profile", false},
		"CLI, another profile":         {map[string]string{"ALIBABA_CLOUD_PROFILE": "other"}, cliKeys, iniKeys, "otherId", "CLI profile", false},
		"a profile of the INI alone":   {map[string]string{"ALIBABA_CLOUD_PROFILE": "third"}, cliKeys, iniKeys, "thirdId", "INI file", false},
		"CLI disabled":                 {map[string]string{"ALIBABA_CLOUD_CLI_PROFILE_DISABLED": "True"}, cliKeys, iniKeys, "iniId", "INI file", false},
		"CLI not set up":               {nil, `{"current":"default","profiles":[{"name":"default","mode":"AK"}]}`, iniKeys, "iniId", "INI file", false},
		"INI":                          {nil, "", iniKeys, "iniId", "INI file", false},
		"INI elsewhere":                {map[string]string{"ALIBABA_CLOUD_CREDENTIALS_FILE": "HOME/elsewhere"}, "", "", "iniId", "INI file", false},
		"CLI elsewhere":                {map[string]string{"ALIBABA_CLOUD_CONFIG_FILE": "HOME/config"}, "", "", "cliId", "CLI profile", false},
		"metadata":                     {nil, "", "", "STS.", "ECS metadata", true},
		"metadata before URI":          {map[string]string{"ALIBABA_CLOUD_CREDENTIALS_URI": "http://uri.test/keys"}, "", "", "STS.", "ECS metadata", true},
		"URI":                          {map[string]string{"ALIBABA_CLOUD_CREDENTIALS_URI": "http://uri.test/keys", "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}, "", "", "uriId", "URI", true},
		"CLI by ECS role":              {nil, `{"current":"p","profiles":[{"name":"p","mode":"EcsRamRole","ram_role_name":"` + workerRole + `"}]}`, "", "STS.", "CLI profile", true},
		"CLI by OIDC":                  {nil, `{"current":"p","profiles":[{"name":"p","mode":"OIDC","ram_role_arn":"` + anyArn + `","oidc_provider_arn":"` + oidcARN + `","oidc_token_file":"HOME/token"}]}`, "", "STS.", "CLI profile", true},
		"CLI by role":                  {nil, `{"current":"p","profiles":[{"name":"p","mode":"RamRoleArn","access_key_id":"` + testID + `","access_key_secret":"` + testSecret + `","ram_role_arn":"` + roleARN(otherRole) + `","ram_session_name":"s1","external_id":"external","expired_seconds":900,"sts_region":"cn-shenzhen"}]}`, "", "STS.", "CLI profile", true},
		"CLI by a role of a role":      {nil, `{"current":"p","profiles":[{"name":"base","mode":"EcsRamRole"},{"name":"p","mode":"ChainableRamRoleArn","source_profile":"base","ram_role_arn":"` + roleARN(groupRole) + `"}]}`, "", "STS.", "CLI profile", true},
		"INI by ECS role":              {nil, "", "[default]\ntype=ecs_ram_role\nrole_name=" + workerRole, "STS.", "INI file", true},
		"INI by role":                  {nil, "", "[default]\ntype=ram_role_arn\naccess_key_id=" + testID + "\naccess_key_secret=" + testSecret + "\nrole_arn=" + roleARN(groupRole) + "\nrole_session_name=s1\n", "STS.", "INI file", true},
		"metadata without its listing": {map[string]string{"ALIBABA_CLOUD_ECS_METADATA": workerRole}, "", "", "STS.", "ECS metadata", true},
	} {
		t.Run(name, func(t *testing.T) {
			withRoles(t, row.env, nil, func(t *testing.T, c *credentialCloud) {
				for name, value := range row.env {
					os.Setenv(name, strings.ReplaceAll(value, "HOME", c.home)) // put back by t.Setenv
				}
				if row.cli != "" {
					write(t, c.home+"/.aliyun/config.json", strings.ReplaceAll(row.cli, "HOME", c.home))
				}
				if row.ini != "" {
					write(t, c.home+"/.alibabacloud/credentials", row.ini)
				}
				write(t, c.home+"/elsewhere", iniKeys)
				write(t, c.home+"/config", cliKeys)
				write(t, c.home+"/token", c.sim.IssueOIDCToken(time.Hour))
				chain := c.chain()
				keys := keysOf(t, chain)
				if !strings.HasPrefix(keys.ID, row.id) || chain.Source() != row.source {
					t.Errorf("a key of %s from %q", row.id, chain.Source())
				}
				if row.network {
					return
				}
				theirs, err := vendor.NewDefaultCredentialsProvider().GetCredentials()
				if err != nil || keys != (Keys{theirs.AccessKeyId, theirs.AccessKeySecret, theirs.SecurityToken}) {
					t.Errorf("the vendor's chain gives something else: %v", err)
				}
			})
		})
	}
}

// TestSourcesThatFail: a source that is set up wrongly, or fails, ends the search: what
// comes after it is somebody else. The error says what is wrong, and no secret.
func TestSourcesThatFail(t *testing.T) {
	profile := func(text string) string {
		return `{"current":"p","profiles":[{"name":"p",` + text + `,"access_key_secret":"usherTESTsecretX"}]}`
	}
	oidc := map[string]string{"ALIBABA_CLOUD_ROLE_ARN": anyArn, "ALIBABA_CLOUD_OIDC_PROVIDER_ARN": oidcARN, "ALIBABA_CLOUD_OIDC_TOKEN_FILE": "HOME/token"}
	with := func(name, value string) map[string]string {
		out := map[string]string{name: value}
		for k, v := range oidc {
			if k != name {
				out[k] = v
			}
		}
		return out
	}
	for name, row := range map[string]struct {
		env          map[string]string
		cli, ini     string
		token        string
		want         string // in the error
		simulateThis *simulator.Fault
	}{
		"half an environment":          {env: map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_ID": mark}, want: "environment: ALIBABA_CLOUD_ACCESS_KEY_ID is set, ALIBABA_CLOUD_ACCESS_KEY_SECRET is not"},
		"the other half":               {env: map[string]string{"ALIBABA_CLOUD_ACCESS_KEY_SECRET": mark}, want: "ALIBABA_CLOUD_ACCESS_KEY_SECRET is set, ALIBABA_CLOUD_ACCESS_KEY_ID is not"},
		"OIDC without a role":          {env: with("ALIBABA_CLOUD_ROLE_ARN", ""), token: "TOKEN", want: "OIDC: ALIBABA_CLOUD_OIDC_TOKEN_FILE is set, ALIBABA_CLOUD_ROLE_ARN not"},
		"OIDC without a provider":      {env: with("ALIBABA_CLOUD_OIDC_PROVIDER_ARN", ""), token: "TOKEN", want: "OIDC: ALIBABA_CLOUD_OIDC_TOKEN_FILE is set, ALIBABA_CLOUD_OIDC_PROVIDER_ARN not"},
		"OIDC with a token alone":      {env: map[string]string{"ALIBABA_CLOUD_OIDC_TOKEN_FILE": "HOME/token"}, token: "TOKEN", want: "is set, ALIBABA_CLOUD_ROLE_ARN and ALIBABA_CLOUD_OIDC_PROVIDER_ARN not"},
		"no token file":                {env: oidc, want: "OIDC: OIDC token: stat HOME/token: no such file or directory; before it were tried: environment: ALIBABA_CLOUD_ACCESS_KEY_ID"},
		"an empty token":               {env: oidc, token: " \n", want: "HOME/token holds no OIDC token"},
		"a token in two lines":         {env: oidc, token: "eyJ" + mark + "\nrest", want: "HOME/token holds no OIDC token"},
		"a huge token":                 {env: oidc, token: strings.Repeat(mark, 80_000), want: "is larger than 1 MiB"},
		"a forged token":               {env: oidc, token: "eyJ" + mark, want: "AuthenticationFail.OIDCToken.Invalid: This JWT token is invalid. (HTTP 400)"},
		"OIDC hint":                    {env: oidc, token: "eyJ" + mark, want: "the OIDC token is refused: check that its file is mounted and renewed, with the audience sts.aliyuncs.com"},
		"a role that trusts nobody":    {env: with("ALIBABA_CLOUD_ROLE_ARN", roleARN(groupRole)), token: "TOKEN", want: "the trust policy of " + roleARN(groupRole) + " does not allow this token"},
		"no such role":                 {env: with("ALIBABA_CLOUD_ROLE_ARN", roleARN("none")), token: "TOKEN", want: "there is no role " + roleARN("none")},
		"no ARN":                       {env: with("ALIBABA_CLOUD_ROLE_ARN", "usher"), token: "TOKEN", want: "OIDC: the role's ARN must be acs:ram::{account}:role/{name}"},
		"a bad session name":           {env: with("ALIBABA_CLOUD_ROLE_SESSION_NAME", "a b"), token: "TOKEN", want: "session name must be 2 to 64"},
		"STS fails":                    {env: oidc, token: "TOKEN", want: "AssumeRoleWithOIDC: unavailable: ServiceUnavailable", simulateThis: &simulator.Fault{Service: "sts", Kind: simulator.Fault5xx}},
		"STS is garbage":               {env: oidc, token: "TOKEN", want: `AssumeRoleWithOIDC: unavailable: answer is not from STS: "(not shown)"`, simulateThis: &simulator.Fault{Service: "sts", Kind: simulator.FaultCorrupt}},
		"STS hangs":                    {env: oidc, token: "TOKEN", want: "no answer in time", simulateThis: &simulator.Fault{Service: "sts", Kind: simulator.FaultHang}},
		"CLI is no JSON":               {cli: `{"access_key_secret": "` + mark + `"`, want: "CLI profile: HOME/.aliyun/config.json is not JSON as the aliyun CLI writes it"},
		"CLI for persons":              {cli: profile(`"mode":"CloudSSO","access_key_id":"x"`), want: `profile "p": mode "CloudSSO" is not for a worker: use AK`},
		"CLI without an id":            {cli: profile(`"mode":"AK"`), want: `profile "p": access_key_id and access_key_secret are needed`},
		"CLI without a token":          {cli: profile(`"mode":"StsToken","access_key_id":"x"`), want: "sts_token is needed with mode StsToken"},
		"CLI role without an id":       {cli: profile(`"mode":"RamRoleArn"`), want: "access_key_id and access_key_secret are needed"},
		"CLI role, bad duration":       {cli: profile(`"mode":"RamRoleArn","access_key_id":"x","ram_role_arn":"` + anyArn + `","expired_seconds":60`), want: "the role's duration must be 15m to 12h, got 1m0s"},
		"CLI role too long":            {cli: `{"current":"p","profiles":[{"name":"p","mode":"RamRoleArn","access_key_id":"` + testID + `","access_key_secret":"` + testSecret + `","ram_role_arn":"` + roleARN(groupRole) + `","expired_seconds":7200}]}`, want: roleARN(groupRole) + " does not allow sessions of 2h0m0s"},
		"CLI role, wrong secret":       {cli: `{"current":"p","profiles":[{"name":"p","mode":"RamRoleArn","access_key_id":"` + testID + `","access_key_secret":"` + mark + `Wrong","ram_role_arn":"` + anyArn + `"}]}`, want: "the access key secret does not belong to the id"},
		"CLI role, no external id":     {cli: `{"current":"p","profiles":[{"name":"p","mode":"RamRoleArn","access_key_id":"` + testID + `","access_key_secret":"` + testSecret + `","ram_role_arn":"` + roleARN(otherRole) + `"}]}`, want: "allow sts:AssumeRole on " + roleARN(otherRole) + " in a RAM policy of these keys, and let the role's trust policy name them (and its external id, if it asks for one)"},
		"CLI chain without source":     {cli: profile(`"mode":"ChainableRamRoleArn","source_profile":"q"`), want: `there is no source_profile "q"`},
		"CLI chain of itself":          {cli: profile(`"mode":"ChainableRamRoleArn","source_profile":"p"`), want: "more than 5 profiles build on one another"},
		"CLI file is a folder":         {env: map[string]string{"ALIBABA_CLOUD_CONFIG_FILE": "HOME"}, want: "HOME is no regular file"},
		"CLI file is not there":        {env: map[string]string{"ALIBABA_CLOUD_CONFIG_FILE": "HOME/x"}, want: "CLI profile: stat HOME/x: no such file"},
		"CLI role not the instance's":  {cli: profile(`"mode":"EcsRamRole","ram_role_name":"other"`), want: "read the keys of RAM role other: metadata GET /latest/meta-data/ram/security-credentials/other: unavailable (HTTP 404)"},
		"INI is none":                  {ini: "access_key_secret " + mark, want: "INI file: HOME/.alibabacloud/credentials is no INI file"},
		"INI without a type":           {ini: "[default]\naccess_key_secret=" + mark, want: `section "default": type must be access_key, ecs_ram_role or ram_role_arn`},
		"INI without a secret":         {ini: "[default]\ntype=access_key\naccess_key_id=x", want: `section "default": missing: access_key_secret`},
		"INI role, half":               {ini: "[default]\ntype=ram_role_arn\naccess_key_id=x\naccess_key_secret=" + mark, want: "missing: role_arn, role_session_name"},
		"metadata fails":               {want: "ECS metadata: read the name of the instance's RAM role: metadata GET", simulateThis: &simulator.Fault{Service: "metadata", Kind: simulator.Fault5xx}},
		"metadata v2 alone fails":      {env: map[string]string{"ALIBABA_CLOUD_IMDSV1_DISABLED": "true"}, want: "ECS metadata: fetch a metadata token, without which ALIBABA_CLOUD_IMDSV1_DISABLED forbids to ask", simulateThis: &simulator.Fault{Service: "metadata", Action: "Token", Kind: simulator.Fault5xx}},
		"metadata of another role":     {env: map[string]string{"ALIBABA_CLOUD_ECS_METADATA": "other"}, want: "RAM role other"},
		"metadata role that is a path": {env: map[string]string{"ALIBABA_CLOUD_ECS_METADATA": "../../user-data"}, want: "does not look like one"},
		"URI that is none":             {env: map[string]string{"ALIBABA_CLOUD_CREDENTIALS_URI": "ftp://" + mark, "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}, want: "ALIBABA_CLOUD_CREDENTIALS_URI is no http or https URL"},
		"URI that refuses":             {env: map[string]string{"ALIBABA_CLOUD_CREDENTIALS_URI": "http://uri.test/403?" + mark, "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}, want: "URI: the server that ALIBABA_CLOUD_CREDENTIALS_URI names answers with status 403"},
		"URI of half a session":        {env: map[string]string{"ALIBABA_CLOUD_CREDENTIALS_URI": "http://uri.test/half", "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}, want: "URI: the answer has no AccessKeyId"},
		"URI of garbage":               {env: map[string]string{"ALIBABA_CLOUD_CREDENTIALS_URI": "http://uri.test/garbage", "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}, want: "URI: the answer has no AccessKeyId"},
		"URI of expired keys":          {env: map[string]string{"ALIBABA_CLOUD_CREDENTIALS_URI": "http://uri.test/old", "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}, want: "URI: the keys that it gives have expired already"},
		"URI that hangs":               {env: map[string]string{"ALIBABA_CLOUD_CREDENTIALS_URI": "http://dead.test/", "ALIBABA_CLOUD_ECS_METADATA_DISABLED": "true"}, want: "no answer in time"},
	} {
		t.Run(name, func(t *testing.T) {
			withRoles(t, row.env, nil, func(t *testing.T, c *credentialCloud) {
				for name, value := range row.env {
					os.Setenv(name, strings.ReplaceAll(value, "HOME", c.home)) // put back by t.Setenv
				}
				if row.cli != "" {
					write(t, c.home+"/.aliyun/config.json", row.cli)
				}
				if row.ini != "" {
					write(t, c.home+"/.alibabacloud/credentials", row.ini)
				}
				if row.token != "" {
					write(t, c.home+"/token", strings.ReplaceAll(row.token, "TOKEN", c.sim.IssueOIDCToken(time.Hour)))
				}
				if row.simulateThis != nil {
					c.inject(*row.simulateThis)
				}
				c.cut("dead.test:80", true)
				chain := c.chain()
				begun := time.Now()
				_, err := chain.Credentials(t.Context())
				if want := strings.ReplaceAll(row.want, "HOME", c.home); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got:\n%v\nwant:\n%s", err, want)
				}
				if took := time.Since(begun); took > renewal.Limit {
					t.Errorf("after %v", took)
				}
				if err != nil && strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), mark) {
					t.Error("a secret is in the error")
				}
				if chain.Source() != "" {
					t.Errorf("source %q", chain.Source())
				}
			})
		})
	}
}

// TestAProxyNeverSeesMetadata: the proxy of the environment has no business with keys.
func TestAProxyNeverSeesMetadata(t *testing.T) {
	bare(t, map[string]string{"HTTP_PROXY": "http://proxy.invalid:1"})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			fmt.Fprint(w, "token")
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]string{
			"Code": "Success", "AccessKeyId": "id", "AccessKeySecret": mark, "SecurityToken": mark, "Expiration": time.Now().Add(time.Hour).UTC().Format(time.RFC3339),
		})
	}))
	defer server.Close()
	o := options(server.URL)
	m, err := newMetadata(o)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if m.transport.Proxy != nil {
		t.Error("a proxy is asked")
	}
	o.MetadataEndpoint = server.URL
	if m, err = newMetadata(o); err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if _, err := m.fetch(t.Context(), "role"); err != nil {
		t.Error(err)
	}
}

func TestHostsOfSTS(t *testing.T) {
	for _, row := range []struct{ region, vpc, own, want string }{
		{"", "", "", "sts.aliyuncs.com"},
		{"cn-shenzhen", "", "", "sts.cn-shenzhen.aliyuncs.com"},
		{"cn-shenzhen", "TRUE", "", "sts-vpc.cn-shenzhen.aliyuncs.com"},
		{"", "true", "", "sts.aliyuncs.com"},
		{"cn-shenzhen", "", "cn-beijing", "sts.cn-beijing.aliyuncs.com"},
		{"evil.example.org/", "", "", "sts.aliyuncs.com"},
	} {
		t.Setenv("ALIBABA_CLOUD_STS_REGION", row.region)
		t.Setenv("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", row.vpc)
		if got := stsHost(row.own, false); got != row.want {
			t.Errorf("%+v: %s", row, got)
		}
	}
	if got := stsHost("cn-beijing", true); got != "sts-vpc.cn-beijing.aliyuncs.com" {
		t.Error(got)
	}
}

func TestBadRolesAndEndpoints(t *testing.T) {
	t.Parallel()
	o := options("http://sts.test")
	for want, role := range map[string]Role{
		"ARN must be":      {ARN: "acs:ram::1:user/a"},
		"session name":     {ARN: anyArn, SessionName: "x"},
		"duration must be": {ARN: anyArn, Duration: time.Minute},
	} {
		if a, err := NewAssumedRole(o, role); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
			a.Close()
		}
	}
	o.STSEndpoint = "ftp://x"
	if _, err := NewAssumedRole(o, Role{ARN: anyArn}); err == nil {
		t.Error("an ftp endpoint")
	}
	if _, err := NewChain(o, ""); err == nil {
		t.Error("an ftp endpoint")
	}
	o.STSEndpoint, o.MetadataEndpoint = "", "http://a/b"
	if _, err := NewChain(o, ""); err == nil {
		t.Error("a path")
	}
}
