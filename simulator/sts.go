package simulator

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"
)

// RoleConfig is one RAM role.
type RoleConfig struct {
	Name string `yaml:"name"`
	// Policy is a RAM policy in JSON: what the role's sessions may do. Empty: everything.
	Policy string `yaml:"policy"`
	// Trust is who may assume the role: account (keys of this account that have the
	// permission), oidc, ecs. Default: account. On AWS ec2 means an instance, by its
	// metadata, and ecs a container.
	Trust []string `yaml:"trust"`
	// ExternalID, if set, must come with AssumeRole.
	ExternalID string `yaml:"external_id"`
	// MaxSession bounds DurationSeconds: 1h (the default) to 12h.
	MaxSession time.Duration `yaml:"max_session"`
}

// STSConfig is what the vendor does not say of temporary keys.
type STSConfig struct {
	// ExpiredMNS is the code, with 403, that MNS refuses expired keys with; default
	// InvalidSecurityToken.
	ExpiredMNS string `yaml:"expired_mns"`
	// ExpiredRPC is the code of the others: InvalidSecurityToken.Expired (the default), or
	// InvalidAccessKeyId.NotFound, which is seen too.
	ExpiredRPC string `yaml:"expired_rpc"`
}

// OIDCConfig is the identity provider that AssumeRoleWithOIDC trusts.
type OIDCConfig struct {
	Provider string   `yaml:"provider"` // its name, default ack-rrsa
	Tokens   []string `yaml:"tokens"`   // that are good for ever, beside those of IssueOIDCToken
}

// Who a role may trust.
const (
	trustAccount = "account"
	trustOIDC    = "oidc"
	trustECS     = "ecs"
)

// The bounds of STS 2015-04-01.
const (
	minSession     = 15 * time.Minute
	defaultSession = time.Hour
	mostSession    = 12 * time.Hour
	minOIDCToken   = 4
	maxOIDCToken   = 20_000
)

var (
	roleNamePattern    = regexp.MustCompile(`^[A-Za-z0-9.-]{1,64}$`)
	sessionNamePattern = regexp.MustCompile(`^[A-Za-z0-9.@_-]{2,64}$`)
	errorCodePattern   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9.]{0,63}$`)
)

var (
	errSTSDenied   = &rpcError{status: 403, code: "NoPermission", message: "You are not authorized to do this action. You should be authorized by RAM."}
	errSTSRole     = &rpcError{status: 404, code: "EntityNotExist.Role", message: "The specified Role not exists."}
	errSTSOIDC     = &rpcError{status: 400, code: "AuthenticationFail.OIDCToken.Expired", message: "This JWT token is expired."}
	errSTSOIDCFake = &rpcError{status: 400, code: "AuthenticationFail.OIDCToken.Invalid", message: "This JWT token is invalid."}
	errSTSTrust    = &rpcError{status: 403, code: "AuthenticationFail.NoPermission", message: "This operation is forbidden by permission system."}
)

func (s *Simulator) errRPCExpiredKeys() *rpcError {
	if code := s.scenario.STS.ExpiredRPC; code != errRPCKey.code {
		return &rpcError{status: 400, code: code, message: "Specified SecurityToken is expired."}
	}
	return errRPCKey
}

// errSTSInvalid refuses a parameter of STS.
func errSTSInvalid(name string) *rpcError {
	return &rpcError{status: 400, code: "InvalidParameter." + name, message: "The parameter " + name + " is wrongly formed."}
}

// rolesWithDefaults fills in what roles, keys and metadata are by default.
func (sc *Scenario) rolesWithDefaults() {
	set(&sc.STS.ExpiredMNS, errSecurityToken.code)
	set(&sc.STS.ExpiredRPC, "InvalidSecurityToken.Expired")
	set(&sc.OIDC.Provider, "ack-rrsa")
	set(&sc.Metadata.Mode, metadataBoth)
	set(&sc.Metadata.Session, 6*time.Hour)
	set(&sc.Metadata.Early, 15*time.Minute)
	set(&sc.Metadata.InstanceID, "i-wz9usherworker0001")
	sc.Roles = slices.Clone(sc.Roles)
	for i := range sc.Roles {
		set(&sc.Roles[i].MaxSession, defaultSession)
		if len(sc.Roles[i].Trust) == 0 {
			sc.Roles[i].Trust = []string{trustAccount}
		}
	}
}

func (c *checker) roles(sc Scenario) {
	seen := map[string]bool{}
	pattern, trusts, machine := roleNamePattern, []string{trustAccount, trustOIDC, trustECS}, trustECS
	if sc.Provider == providerAWS {
		pattern, trusts, machine = awsRolePattern, append(trusts, trustEC2), trustEC2
	}
	for i, r := range sc.Roles {
		at := fmt.Sprintf("roles[%d].", i)
		c.unique(at+"name", r.Name, seen, pattern)
		if r.Policy != "" {
			if _, err := ParsePolicy([]byte(r.Policy)); err != nil {
				c.add(at+"policy", "%v", strings.TrimPrefix(err.Error(), "policy: "))
			}
		}
		for j, t := range r.Trust {
			c.oneOf(fmt.Sprintf("%strust[%d]", at, j), t, trusts...)
		}
		c.between(at+"max_session", r.MaxSession, time.Hour, mostSession)
	}
	if r := sc.Metadata.Role; r != "" && !seen[r] {
		c.add("metadata.role", "no role %q; there are %s", r, names(seen))
	} else if i := slices.IndexFunc(sc.Roles, func(role RoleConfig) bool { return role.Name == r }); i >= 0 && !slices.Contains(sc.Roles[i].Trust, machine) {
		c.add("metadata.role", "role %q does not trust %s", r, machine)
	}
	c.oneOf("metadata.mode", sc.Metadata.Mode, metadataBoth, metadataV1, metadataV2, metadataOff)
	c.between("metadata.session", sc.Metadata.Session, minSession, mostSession)
	c.between("metadata.early", sc.Metadata.Early, 0, sc.Metadata.Session)
	c.oneOf("sts.expired_rpc", sc.STS.ExpiredRPC, "InvalidSecurityToken.Expired", errRPCKey.code)
	if !errorCodePattern.MatchString(sc.STS.ExpiredMNS) {
		c.add("sts.expired_mns", "%q is no error code", sc.STS.ExpiredMNS)
	}
	for i, t := range sc.OIDC.Tokens {
		if len(t) < minOIDCToken || len(t) > maxOIDCToken {
			c.add(fmt.Sprintf("oidc.tokens[%d]", i), "must be %d to %d characters, got %d", minOIDCToken, maxOIDCToken, len(t))
		}
	}
}

// role finds a role of the account.
func (s *Simulator) role(name string) (RoleConfig, bool) {
	return find(s.scenario.Roles, func(r RoleConfig) bool { return r.Name == name })
}

// IssueOIDCToken gives a token that the identity provider has signed, as it were, which
// is good for length.
func (s *Simulator) IssueOIDCToken(length time.Duration) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	token := "eyJ" + s.mark() + randomText(26) + "." + randomText(26)
	s.oidcTokens.add(token, time.Now().Add(length))
	return token
}

// assumeRole gives keys of a role to keys of the account.
func (s *Simulator) assumeRole(_ context.Context, c *rpcCall) (object, *rpcError) {
	return s.assume(c, trustAccount)
}

// assumeRoleWithOIDC gives keys of a role to whoever has the provider's token.
func (s *Simulator) assumeRoleWithOIDC(_ context.Context, c *rpcCall) (object, *rpcError) {
	provider := "acs:ram::" + s.account + ":oidc-provider/" + s.scenario.OIDC.Provider
	token := c.form.Get("OIDCToken")
	s.mu.Lock()
	expires, known := s.oidcTokens.get(token)
	s.mu.Unlock()
	switch {
	case c.form.Get("OIDCProviderArn") == "":
		return nil, errMissing("OIDCProviderArn")
	case token == "":
		return nil, errMissing("OIDCToken")
	case c.form.Get("OIDCProviderArn") != provider:
		return nil, errSTSInvalid("OIDCProviderArn")
	case slices.Contains(s.scenario.OIDC.Tokens, token):
	case !known:
		return nil, errSTSOIDCFake
	case !time.Now().Before(expires):
		return nil, errSTSOIDC
	}
	return s.assume(c, trustOIDC)
}

func (s *Simulator) assume(c *rpcCall, who string) (object, *rpcError) {
	arn, session := c.form.Get("RoleArn"), c.form.Get("RoleSessionName")
	switch {
	case arn == "":
		return nil, errMissing("RoleArn")
	case session == "":
		return nil, errMissing("RoleSessionName")
	case !sessionNamePattern.MatchString(session):
		return nil, errSTSInvalid("RoleSessionName")
	}
	account, name, ok := strings.Cut(strings.TrimPrefix(arn, "acs:ram::"), ":role/")
	if !ok || !strings.HasPrefix(arn, "acs:ram::") || !roleNamePattern.MatchString(name) {
		return nil, errSTSInvalid("RoleArn")
	}
	role, there := s.role(name)
	if !there || account != s.account {
		return nil, errSTSRole
	}
	seconds, ok := c.number("DurationSeconds", int(defaultSession/time.Second), int(minSession/time.Second), int(role.MaxSession/time.Second))
	if !ok {
		return nil, errSTSInvalid("DurationSeconds")
	}
	var bound *Policy
	if text := c.form.Get("Policy"); text != "" {
		var err error
		if bound, err = ParsePolicy([]byte(text)); err != nil {
			return nil, &rpcError{status: 400, code: "InvalidParameter.PolicyGrammar", message: "The parameter Policy has not passed grammar check."}
		}
	}
	switch trusted := slices.Contains(role.Trust, who); {
	case !trusted && who == trustOIDC:
		return nil, errSTSTrust
	case !trusted, role.ExternalID != "" && role.ExternalID != c.form.Get("ExternalId") && who == trustAccount:
		denied := *errSTSDenied
		denied.action = "sts:AssumeRole"
		return nil, &denied
	}
	s.mu.Lock()
	k := s.newSession(role, time.Duration(seconds)*time.Second, bound)
	s.mu.Unlock()
	return object{
		"AssumedRoleUser": object{"Arn": "acs:ram::" + s.account + ":role/" + name + "/" + session, "AssumedRoleId": "3" + cmp.Or(s.account, "0") + ":" + session},
		"Credentials": object{
			"AccessKeyId": k.id, "AccessKeySecret": k.secret, "SecurityToken": k.token, "Expiration": s.expiration(k),
		},
	}, nil
}

// writeGarbage is an answer that is no document of the service.
func writeGarbage(w http.ResponseWriter) {
	(&response{status: http.StatusOK, header: http.Header{"Content-Type": {"application/json"}}, body: []byte(`{"Code":"Success","AccessKeyId":{"` + "\x00")}).write(w)
}
