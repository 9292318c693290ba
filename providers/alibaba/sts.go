package alibaba

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/responses"

	contract "example.org/usher/providers"
)

// The bounds of STS 2015-04-01.
const (
	stsVersion         = "2015-04-01"
	minRoleDuration    = 15 * time.Minute
	maxRoleDuration    = 12 * time.Hour
	defaultRoleSession = "usher"
	// DefaultRoleDuration is the longest that a role allows unless its owner changed that.
	DefaultRoleDuration = time.Hour
)

var (
	roleARNPattern     = regexp.MustCompile(`^acs:ram::[0-9]{1,20}:role/[A-Za-z0-9.-]{1,64}$`)
	sessionNamePattern = regexp.MustCompile(`^[A-Za-z0-9.@_-]{2,64}$`)
)

// Role is a RAM role to assume.
type Role struct {
	// ARN is acs:ram::{account}:role/{name}.
	ARN string
	// SessionName is what ActionTrail shows; default usher. 2 to 64 letters, digits, dots, @, _ and -.
	SessionName string
	// ExternalID is for roles that ask for one.
	ExternalID string
	// Duration is how long a session is good, 15 min to 12 h; default DefaultRoleDuration.
	Duration time.Duration
	// policy narrows a session further; profiles may have one.
	policy string
}

func (r Role) withDefaults() Role {
	r.SessionName = cmp.Or(r.SessionName, defaultRoleSession)
	r.Duration = cmp.Or(r.Duration, DefaultRoleDuration)
	return r
}

// problems is of a role with its defaults. It quotes nothing: profiles hold secrets beside roles.
func (r Role) problems() []error {
	var found []error
	if !roleARNPattern.MatchString(r.ARN) {
		found = append(found, errors.New("the role's ARN must be acs:ram::{account}:role/{name}"))
	}
	if !sessionNamePattern.MatchString(r.SessionName) {
		found = append(found, errors.New("the role's session name must be 2 to 64 letters, digits, dots, @, _ and -"))
	}
	if r.Duration < minRoleDuration || r.Duration > maxRoleDuration {
		found = append(found, fmt.Errorf("the role's duration must be 15m to 12h, got %v", r.Duration))
	}
	return found
}

// AssumedRole is Credentials of a RAM role, assumed with other Credentials.
type AssumedRole struct {
	*renewing
	sts *sts
}

var _ renewer = (*AssumedRole)(nil)

// NewAssumedRole makes the credentials of a role. o.Credentials are those that assume it;
// o.STSEndpoint, o.Region, o.DialContext, o.CallTimeout and o.Logger are used, too. It
// does not call the service. Close ends what it does in the background.
func NewAssumedRole(o Options, role Role) (*AssumedRole, error) {
	role = role.withDefaults()
	client, err := newSTS(o)
	if err = errors.Join(append(role.problems(), err)...); err != nil {
		return nil, fmt.Errorf("assume role: %w", err)
	}
	return &AssumedRole{
		sts: client,
		renewing: newRenewing("role "+role.ARN, client.logger, func(ctx context.Context) (fetched, error) {
			return client.assume(ctx, o.Credentials, role)
		}),
	}, nil
}

// Close ends a renewal that runs and waits for it. Calls that have their keys go on.
func (a *AssumedRole) Close() {
	a.renewing.close()
	a.sts.close()
}

// sts calls STS.
type sts struct {
	*rpc
	fixed bool // the operator gave its address
}

func newSTS(o Options) (*sts, error) {
	o.Region = cmp.Or(o.Region, "cn-hangzhou") // only the host's name would depend on it
	r, err := newRPC(o, "sts", "STSEndpoint", o.STSEndpoint, func(string) string { return stsHost("", false) })
	if err != nil {
		return nil, err
	}
	return &sts{rpc: r, fixed: o.STSEndpoint != ""}, nil
}

// stsHost is where the vendor's libraries call STS, by the same settings.
func stsHost(region string, vpc bool) string {
	prefix := "sts"
	if vpc || isTrue("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED") {
		prefix = "sts-vpc"
	}
	region = cmp.Or(region, os.Getenv("ALIBABA_CLOUD_STS_REGION"))
	if !regionPattern.MatchString(region) {
		return "sts.aliyuncs.com" // it has no VPC form without a region
	}
	return prefix + "." + region + ".aliyuncs.com"
}

// with is a client that signs with other keys.
func (s *sts) with(base Credentials) *rpc {
	w, r := *s.wire, *s.rpc
	w.credentials = base
	r.wire = &w
	return &r
}

// assume makes one AssumeRole (STS 2015-04-01), repeated while that may help.
func (s *sts) assume(ctx context.Context, base Credentials, role Role) (fetched, error) {
	const op = "AssumeRole"
	form := role.form()
	var sent time.Time
	response, err := invoke(ctx, s.with(base), rpcOp{op, role.ARN}, s.region, func() (acsRequest, *responses.CommonResponse) {
		sent = time.Now()
		request := requests.NewCommonRequest()
		request.Method = requests.POST
		request.Product, request.Version, request.ApiName = "Sts", stsVersion, op
		for name, values := range form {
			request.FormParams[name] = values[0]
		}
		request.TransToAcsRequest()
		return request, responses.NewCommonResponse()
	})
	if err != nil {
		return fetched{}, explainSTS(err, role)
	}
	return readSession(op, answer{status: response.GetHttpStatus(), header: response.GetHttpHeaders(), body: response.GetHttpContentBytes()}, sent)
}

func (r Role) form() url.Values {
	form := url.Values{
		"RoleArn": {r.ARN}, "RoleSessionName": {r.SessionName}, "DurationSeconds": {strconv.Itoa(int(r.Duration / time.Second))},
	}
	if r.ExternalID != "" {
		form.Set("ExternalId", r.ExternalID)
	}
	if r.policy != "" {
		form.Set("Policy", r.policy)
	}
	return form
}

// withOIDC makes one AssumeRoleWithOIDC (STS 2015-04-01), which is not signed: the token
// is all that it needs.
func (s *sts) withOIDC(ctx context.Context, role Role, provider, token string) (fetched, error) {
	const op = "AssumeRoleWithOIDC"
	form := role.form()
	form.Set("OIDCProviderArn", provider)
	form.Set("OIDCToken", token)
	var got fetched
	err := s.repeat(ctx, op, whenPassing, func(ctx context.Context) *failure {
		sent := time.Now()
		query := url.Values{"Action": {op}, "Version": {stsVersion}, "Format": {"JSON"}, "Timestamp": {sent.UTC().Format("2006-01-02T15:04:05Z")}}
		req, err := http.NewRequest(http.MethodPost, s.at(s.region).String()+"/?"+query.Encode(), strings.NewReader(form.Encode()))
		if err != nil {
			return &failure{cloudError: &contract.Error{Op: op, Kind: contract.ErrInvalid, Cause: err}, certain: true}
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("User-Agent", "usher")
		// The token stands for keys here, so that what cuts keys out of errors does so with it.
		c := &carrier{rpc: s.rpc, ctx: ctx, resource: role.ARN, call: call{op: op, keys: Keys{Token: token}, limit: s.timeout, bound: rpcMaxAnswer}}
		a, f := s.exchange(ctx, c.call, req)
		if f == nil {
			f = c.inspect(a)
		}
		if f != nil {
			return f
		}
		if got, err = readSession(op, a, sent); err != nil {
			return &failure{cloudError: &contract.Error{Op: op, Kind: contract.ErrUnavailable, Status: a.status, Cause: err}, passing: true}
		}
		return nil
	})
	if err != nil {
		return fetched{}, explainSTS(err, role)
	}
	return got, nil
}

// explainSTS adds what an operator can do to the refusals that only STS has.
func explainSTS(err error, role Role) error {
	e, ok := errors.AsType[*contract.Error](err)
	if !ok {
		return err
	}
	code := strings.ToLower(e.Code)
	switch {
	case strings.HasPrefix(code, "entitynotexist.role"):
		e.Hint = "there is no role " + role.ARN + ": check its name and account"
	case strings.HasPrefix(code, "authenticationfail.nopermission"):
		e.Hint = "the trust policy of " + role.ARN + " does not allow this token: check its issuer, audience and service account"
	case strings.HasPrefix(code, "authenticationfail.oidctoken"):
		e.Hint = "the OIDC token is refused: check that its file is mounted and renewed, with the audience sts.aliyuncs.com"
	case strings.HasPrefix(code, "invalidparameter.durationseconds"):
		e.Hint = fmt.Sprintf("%s does not allow sessions of %v: lower the duration, or raise the role's longest session", role.ARN, role.Duration)
	case errors.Is(e.Kind, contract.ErrDenied) && strings.HasPrefix(e.Hint, "allow "):
		e.Hint += ", and let the role's trust policy name them"
		if role.ExternalID == "" {
			e.Hint += " (and its external id, if it asks for one)"
		}
	}
	return fmt.Errorf("assume %s: %w", role.ARN, err)
}

// session is temporary keys as STS, the metadata server and credential URIs write them.
type session struct {
	AccessKeyID     string `json:"AccessKeyId"`
	AccessKeySecret string
	SecurityToken   string
	Expiration      string
}

// errNoSession: the answer is not quoted, for it may hold keys.
var errNoSession = errors.New("the answer has no AccessKeyId, AccessKeySecret, SecurityToken and Expiration")

// read gives the keys with their end on our clock.
func (s session) read(date, sent time.Time) (fetched, error) {
	expires, err := time.Parse(time.RFC3339, s.Expiration)
	if err != nil || expires.IsZero() || slices.Contains([]string{s.AccessKeyID, s.AccessKeySecret, s.SecurityToken}, "") {
		return fetched{}, errNoSession
	}
	return fetched{
		Keys:    Keys{ID: s.AccessKeyID, Secret: s.AccessKeySecret, Token: s.SecurityToken},
		Expires: onOurClock(expires, date, sent),
	}, nil
}

func readSession(op string, a answer, sent time.Time) (fetched, error) {
	var body struct{ Credentials session }
	if err := json.Unmarshal(a.body, &body); err != nil {
		return fetched{}, fmt.Errorf("%s: %w", op, errNoSession)
	}
	got, err := body.Credentials.read(a.date(), sent)
	if err != nil {
		return fetched{}, fmt.Errorf("%s: %w", op, err)
	}
	return got, nil
}

// isTrue is how the vendor's libraries read a switch.
func isTrue(variable string) bool { return strings.EqualFold(os.Getenv(variable), "true") }
