package aws

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials/stscreds"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"example.org/usher/providers"
	"example.org/usher/providers/internal/renewal"
)

// The bounds of STS 2011-06-15.
const (
	minRoleDuration = 15 * time.Minute
	maxRoleDuration = 12 * time.Hour
	// DefaultRoleDuration is the longest that a role allows unless its owner changed that, and
	// the longest at all when it is assumed with the keys of another role.
	DefaultRoleDuration = time.Hour
)

var (
	roleARNPattern     = regexp.MustCompile(`^arn:aws(-cn|-us-gov|-eusc|-iso[a-z-]*)?:iam::[0-9]{12}:role/[A-Za-z0-9+=,.@_/-]{1,512}$`)
	sessionNamePattern = regexp.MustCompile(`^[A-Za-z0-9+=,.@_-]{2,64}$`)
	externalIDPattern  = regexp.MustCompile(`^[A-Za-z0-9+=,.@:/_-]+$`)
)

// Role is an IAM role to assume.
type Role struct {
	// ARN is arn:aws:iam::{account}:role/{name}.
	ARN string
	// SessionName is what CloudTrail shows; default usher. 2 to 64 letters, digits and any of +=,.@_-
	SessionName string
	// ExternalID is for roles that ask for one.
	ExternalID string
	// Duration is how long a session is good, 15 min to 12 h; default DefaultRoleDuration.
	Duration time.Duration
}

func (r Role) withDefaults() Role {
	r.SessionName = cmp.Or(r.SessionName, defaultSession)
	r.Duration = cmp.Or(r.Duration, DefaultRoleDuration)
	return r
}

// problems is of a role with its defaults.
func (r Role) problems() []error {
	var found []error
	if !roleARNPattern.MatchString(r.ARN) {
		found = append(found, errors.New("the role's ARN must be arn:aws:iam::{account}:role/{name}"))
	}
	if !sessionNamePattern.MatchString(r.SessionName) {
		found = append(found, errors.New("the role's session name must be 2 to 64 letters, digits and any of +=,.@_-"))
	}
	if n := len(r.ExternalID); n != 0 && (n < 2 || n > 1224 || !externalIDPattern.MatchString(r.ExternalID)) {
		found = append(found, errors.New("the role's external id must be 2 to 1224 letters, digits and any of +=,.@:/_-"))
	}
	if r.Duration < minRoleDuration || r.Duration > maxRoleDuration {
		found = append(found, fmt.Errorf("the role's duration must be 15m to 12h, got %v", r.Duration))
	}
	return found
}

// AssumedRole is the credentials of an IAM role, assumed with others.
type AssumedRole struct {
	*renewing
	wire *wire
}

// NewAssumedRole makes the credentials of a role. o.Credentials are those that assume it;
// o.Region, whose STS is asked, o.STSEndpoint, o.DialContext, o.CallTimeout and o.Logger are
// used, too. It does not call the service. Close ends what it does in the background.
func NewAssumedRole(o Options, role Role) (*AssumedRole, error) {
	role = role.withDefaults()
	w, err := o.newWire("sts", "STSEndpoint", o.STSEndpoint)
	if err = errors.Join(append(role.problems(), err)...); err != nil {
		return nil, fmt.Errorf("assume role: %w", err)
	}
	provider := stscreds.NewAssumeRoleProvider(&assumer{wire: w, assume: sts.NewFromConfig(w.config()).AssumeRole, role: role}, role.ARN,
		func(options *stscreds.AssumeRoleOptions) {
			options.RoleSessionName, options.Duration = role.SessionName, role.Duration
			if role.ExternalID != "" {
				options.ExternalID = aws.String(role.ExternalID)
			}
		})
	what := "role " + role.ARN
	return &AssumedRole{wire: w, renewing: &renewing{
		source: func() string { return what },
		renewals: renewal.New(what, w.logger, func(ctx context.Context) (fetched, error) {
			got, err := provider.Retrieve(ctx)
			if err != nil {
				return fetched{}, fmt.Errorf("assume %s: %w", role.ARN, err)
			}
			return fetchedFrom(got), nil
		}),
	}}, nil
}

// Close ends a renewal that runs and waits for it. Calls that have their keys go on.
func (a *AssumedRole) Close() {
	a.renewals.Close()
	a.wire.close()
}

// assumer makes the call for stscreds.
type assumer struct {
	wire   *wire
	assume sdkCall[sts.AssumeRoleInput, sts.AssumeRoleOutput, sts.Options]
	role   Role
}

// AssumeRole sends AssumeRole (STS 2011-06-15), repeated while that may help.
func (a *assumer) AssumeRole(ctx context.Context, in *sts.AssumeRoleInput, _ ...func(*sts.Options)) (*sts.AssumeRoleOutput, error) {
	op := operation{name: "AssumeRole", permission: "sts:AssumeRole", resource: a.role.ARN}
	out, _, err := invoke(ctx, a.wire, op, func(ctx context.Context, c *carrier) (*sts.AssumeRoleOutput, error) {
		return a.assume(ctx, in, func(o *sts.Options) { o.HTTPClient, o.Retryer, o.Credentials = c, c, c })
	})
	if e, ok := errors.AsType[*providers.Error](err); ok {
		a.explain(e)
	}
	return out, err
}

// explain adds what an operator can do to the refusals that only STS has.
func (a *assumer) explain(e *providers.Error) {
	switch code := plainCode(e.Code); {
	case strings.Contains(e.Message, "DurationSeconds"):
		e.Hint = fmt.Sprintf("%s does not allow sessions of %v: lower the duration, or raise the role's longest session"+
			" (roles that are assumed with a role's keys allow 1h)", a.role.ARN, a.role.Duration)
	case code == "regiondisabled":
		e.Kind = providers.ErrDenied
		e.Hint = fmt.Sprintf("STS is not active in the region %s for the account: activate it, or set the STS endpoint", a.wire.region)
	case isDenied(code):
		e.Hint += ", and let the role's trust policy name them"
		if a.role.ExternalID == "" {
			e.Hint += " (and its external id, if it asks for one)"
		}
	}
}
