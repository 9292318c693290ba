package simulator

import (
	"crypto/rand"
	"encoding/base64"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

var awsSTSOperations = map[string]awsOperation{
	"GetCallerIdentity":         (*Simulator).getCallerIdentity,
	"AssumeRole":                (*Simulator).awsAssumeRole,
	"AssumeRoleWithWebIdentity": (*Simulator).awsAssumeRoleWithWebIdentity,
}

// trustEC2 lets an instance have a role, by its metadata.
const trustEC2 = "ec2"

// maxChainedSession is how long a session is at most that a session of a role has asked for.
const maxChainedSession = time.Hour

var (
	awsRolePattern    = regexp.MustCompile(`^[A-Za-z0-9_+=,.@-]{1,64}$`)
	awsSessionPattern = regexp.MustCompile(`^[A-Za-z0-9_+=,.@-]{2,64}$`)
)

// awsSTSResources names the role that a call is about.
func (s *Simulator) awsSTSResources(c *awsCall) []string {
	if arn := c.text("RoleArn"); arn != "" {
		return []string{arn}
	}
	return []string{"*"}
}

// callerIdentity answers GetCallerIdentity (STS 2011-06-15).
type callerIdentity struct{ Arn, UserId, Account string }

func (s *Simulator) getCallerIdentity(c *awsCall) (awsAnswer, *awsError) {
	return &callerIdentity{Arn: s.callerARN(c.keys), UserId: s.callerID(c.keys), Account: s.account}, nil
}

// awsCredentials are temporary keys as STS writes them.
type awsCredentials struct{ AccessKeyId, SecretAccessKey, SessionToken, Expiration string }

// assumedRole answers AssumeRole and AssumeRoleWithWebIdentity.
type assumedRole struct {
	Credentials     awsCredentials
	AssumedRoleUser struct{ AssumedRoleId, Arn string }
	// These are of a web identity.
	SubjectFromWebIdentityToken string `xml:",omitempty"`
	Audience                    string `xml:",omitempty"`
	Provider                    string `xml:",omitempty"`
}

func errAWSValidation(message string) *awsError {
	return &awsError{status: 400, code: "ValidationError", message: message}
}

// errAWSConstraint refuses a parameter that is not formed as it should be.
func errAWSConstraint(value, name, constraint string) *awsError {
	return errAWSValidation("1 validation error detected: Value '" + value + "' at '" + strings.ToLower(name[:1]) + name[1:] + "' failed to satisfy constraint: " + constraint)
}

// awsAssumeRole gives keys of a role to keys of the account. That there is no such role is
// not told apart from a role that does not trust the caller.
func (s *Simulator) awsAssumeRole(c *awsCall) (awsAnswer, *awsError) {
	role, bad := s.roleToAssume(c, trustAccount)
	if bad != nil {
		return nil, bad
	}
	if role.ExternalID != "" && role.ExternalID != c.text("ExternalId") {
		return nil, c.denied(s.callerARN(c.keys), c.text("RoleArn"))
	}
	return s.awsAssume(c, role)
}

// awsAssumeRoleWithWebIdentity gives keys of a role to whoever has the provider's token.
func (s *Simulator) awsAssumeRoleWithWebIdentity(c *awsCall) (awsAnswer, *awsError) {
	token := c.text("WebIdentityToken")
	s.mu.Lock()
	expires, known := s.oidcTokens.get(token)
	s.mu.Unlock()
	switch {
	case len(token) < minOIDCToken || len(token) > maxOIDCToken:
		return nil, errAWSConstraint(token, "WebIdentityToken", "Member must have length less than or equal to 20000 and greater than or equal to 4")
	case slices.Contains(s.scenario.OIDC.Tokens, token):
	case !known:
		return nil, &awsError{status: 400, code: "InvalidIdentityToken", message: "The ID Token provided is not a valid JWT. (You may see this error if you sent an Access Token)"}
	case !time.Now().Before(expires):
		return nil, &awsError{status: 400, code: "ExpiredTokenException", message: "Token expired: current date/time must be before the expiration date/time " + strconv.FormatInt(expires.Unix(), 10)}
	}
	role, bad := s.roleToAssume(c, trustOIDC)
	if bad != nil {
		return nil, bad
	}
	answer, bad := s.awsAssume(c, role)
	if bad == nil {
		answer.SubjectFromWebIdentityToken, answer.Audience = "system:serviceaccount:usher:usher", "sts.amazonaws.com"
		answer.Provider = "arn:aws:iam::" + s.account + ":oidc-provider/" + s.scenario.OIDC.Provider
	}
	return answer, bad
}

// roleToAssume finds the role that a call names, if it trusts who asks.
func (s *Simulator) roleToAssume(c *awsCall, who string) (RoleConfig, *awsError) {
	arn, session := c.text("RoleArn"), c.text("RoleSessionName")
	name, ok := strings.CutPrefix(arn, "arn:aws:iam::"+s.account+":role/")
	role, there := s.role(name)
	switch {
	case !strings.HasPrefix(arn, "arn:aws:iam::") || !strings.Contains(arn, ":role/"):
		return role, errAWSValidation(arn + " is invalid")
	case !awsSessionPattern.MatchString(session):
		return role, errAWSConstraint(session, "RoleSessionName", `Member must satisfy regular expression pattern: [\w+=,.@-]*`)
	case (!ok || !there || !slices.Contains(role.Trust, who)) && who == trustOIDC:
		return role, &awsError{status: 403, code: "AccessDenied", message: "Not authorized to perform sts:AssumeRoleWithWebIdentity"}
	case !ok, !there, !slices.Contains(role.Trust, who):
		return role, c.denied(s.callerARN(c.keys), arn)
	}
	return role, nil
}

func (s *Simulator) awsAssume(c *awsCall, role RoleConfig) (*assumedRole, *awsError) {
	length := int(defaultSession / time.Second)
	if text := c.text("DurationSeconds"); text != "" {
		var err error
		if length, err = strconv.Atoi(text); err != nil || seconds(length) < minSession || seconds(length) > mostSession {
			return nil, errAWSConstraint(text, "DurationSeconds", "Member must have value between 900 and 43200")
		}
	}
	switch {
	case seconds(length) > role.MaxSession:
		return nil, errAWSValidation("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.")
	case c.keys != nil && c.keys.role != "" && seconds(length) > maxChainedSession:
		return nil, errAWSValidation("The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.")
	}
	var bound *Policy
	if text := c.text("Policy"); text != "" {
		var err error
		if bound, err = ParsePolicy([]byte(text)); err != nil {
			return nil, &awsError{status: 400, code: "MalformedPolicyDocument", message: "The policy is not in the valid JSON format."}
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.newAWSSession(role, c.text("RoleSessionName"), seconds(length), bound)
	out := &assumedRole{Credentials: awsCredentials{k.id, k.secret, k.token, s.expiration(k)}}
	out.AssumedRoleUser.AssumedRoleId, out.AssumedRoleUser.Arn = s.callerID(k), s.callerARN(k)
	return out, nil
}

// newAWSSession gives out keys of a role. The caller holds s.mu.
func (s *Simulator) newAWSSession(role RoleConfig, session string, length time.Duration, bound *Policy) *accessKey {
	return s.addSession(&accessKey{
		id: "ASIA" + s.mark() + rand.Text()[:16], secret: s.mark() + rand.Text() + randomText(14),
		token:   "IQoJb3JpZ2luX2Vj" + s.mark() + base64.StdEncoding.EncodeToString([]byte(rand.Text()+rand.Text()+">>>???~")) + "+/=",
		session: session,
	}, role, length, bound)
}
