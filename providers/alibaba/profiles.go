package alibaba

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"gopkg.in/ini.v1"
)

// profiles are the two files that hold keys or say how to get them. Their errors name the
// file and the profile and quote nothing: a parser's own errors may hold a secret.
type profiles struct {
	sts      *sts
	metadata *metadata
	session  string // names sessions where a profile does not
}

// fromCLI reads the profile of the aliyun CLI, in ALIBABA_CLOUD_CONFIG_FILE or
// ~/.aliyun/config.json.
func (p profiles) fromCLI(ctx context.Context) (fetched, error) {
	if isTrue("ALIBABA_CLOUD_CLI_PROFILE_DISABLED") {
		return fetched{}, absent("off by ALIBABA_CLOUD_CLI_PROFILE_DISABLED")
	}
	text, name, err := profileFile("ALIBABA_CLOUD_CONFIG_FILE", ".aliyun/config.json")
	if err != nil {
		return fetched{}, err
	}
	var file cliFile
	if err := json.Unmarshal(text, &file); err != nil {
		return fetched{}, errors.New(name + " is not JSON as the aliyun CLI writes it")
	}
	wanted := cmp.Or(os.Getenv("ALIBABA_CLOUD_PROFILE"), file.Current)
	profile := file.profile(wanted)
	if profile == nil || profile.empty() {
		return fetched{}, absent(fmt.Sprintf("%s has no profile %q with keys", name, wanted))
	}
	got, err := p.cli(ctx, file, profile, 0)
	if err != nil {
		return fetched{}, fmt.Errorf("%s: profile %q: %w", name, wanted, err)
	}
	return got, nil
}

// profileFile reads the file that a variable names, or the one in the user's home, which
// need not be there.
func profileFile(variable, home string) (text []byte, name string, err error) {
	name = os.Getenv(variable)
	named := name != ""
	if !named {
		name = inHome(home)
	}
	if name == "" {
		return nil, "", absent("HOME is not set, nor is " + variable)
	}
	text, err = readSmall(name)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return nil, "", absent(name + " does not exist")
	}
	return text, name, err
}

type cliFile struct {
	Current  string       `json:"current"`
	Profiles []cliProfile `json:"profiles"`
}

// cliProfile has the keys of the CLI's own file, as far as they are used.
type cliProfile struct {
	Name            string `json:"name"`
	Mode            string `json:"mode"`
	AccessKeyID     string `json:"access_key_id"`
	AccessKeySecret string `json:"access_key_secret"`
	SecurityToken   string `json:"sts_token"`
	RoleARN         string `json:"ram_role_arn"`
	RoleSessionName string `json:"ram_session_name"`
	Seconds         int    `json:"expired_seconds"`
	STSRegion       string `json:"sts_region"`
	EnableVPC       bool   `json:"enable_vpc"`
	SourceProfile   string `json:"source_profile"`
	RoleName        string `json:"ram_role_name"`
	TokenFile       string `json:"oidc_token_file"`
	ProviderARN     string `json:"oidc_provider_arn"`
	Policy          string `json:"policy"`
	ExternalID      string `json:"external_id"`
}

func (f cliFile) profile(name string) *cliProfile {
	for i := range f.Profiles {
		if f.Profiles[i].Name == name {
			return &f.Profiles[i]
		}
	}
	return nil
}

// empty is what the CLI writes before it was set up.
func (c *cliProfile) empty() bool {
	return (c.Mode == "" || c.Mode == "AK") && c.AccessKeyID == "" && c.AccessKeySecret == ""
}

func (c *cliProfile) keys() (Keys, error) {
	if c.AccessKeyID == "" || c.AccessKeySecret == "" {
		return Keys{}, errors.New("access_key_id and access_key_secret are needed")
	}
	return Keys{ID: c.AccessKeyID, Secret: c.AccessKeySecret}, nil
}

func (c *cliProfile) role(session string) Role {
	return Role{
		ARN: c.RoleARN, SessionName: cmp.Or(c.RoleSessionName, session), ExternalID: c.ExternalID,
		Duration: time.Duration(c.Seconds) * time.Second, policy: c.Policy,
	}
}

// maxProfiles is how many profiles may build on one another.
const maxProfiles = 5

// cli gets the keys of one profile by its mode.
func (p profiles) cli(ctx context.Context, file cliFile, c *cliProfile, depth int) (fetched, error) {
	if depth >= maxProfiles {
		return fetched{}, fmt.Errorf("more than %d profiles build on one another by source_profile", maxProfiles)
	}
	switch c.Mode {
	case "AK":
		keys, err := c.keys()
		return fetched{Keys: keys}, err
	case "StsToken":
		keys, err := c.keys()
		if err == nil && c.SecurityToken == "" {
			err = errors.New("sts_token is needed with mode StsToken")
		}
		keys.Token = c.SecurityToken
		return fetched{Keys: keys}, err
	case "RamRoleArn":
		keys, err := c.keys()
		if err != nil {
			return fetched{}, err
		}
		return p.assume(ctx, p.stsOf(c), keys, c.role(p.session))
	case "ChainableRamRoleArn":
		source := file.profile(c.SourceProfile)
		if source == nil {
			return fetched{}, fmt.Errorf("there is no source_profile %q", c.SourceProfile)
		}
		base, err := p.cli(ctx, file, source, depth+1)
		if err != nil {
			return fetched{}, fmt.Errorf("source_profile %q: %w", c.SourceProfile, err)
		}
		return p.assume(ctx, p.stsOf(c), base.Keys, c.role(p.session))
	case "EcsRamRole":
		got, err := p.metadata.fetch(ctx, c.RoleName)
		return got, present(err)
	case "OIDC":
		return p.oidc(ctx, p.stsOf(c), c.role(p.session), c.ProviderARN, c.TokenFile)
	}
	return fetched{}, fmt.Errorf("mode %q is not for a worker: use AK, StsToken, RamRoleArn, ChainableRamRoleArn, EcsRamRole or OIDC,"+
		" or set ALIBABA_CLOUD_CLI_PROFILE_DISABLED=true", told(c.Mode, Keys{}, mostCode))
}

// stsOf is the client of STS that a profile asks for, unless the operator gave an address.
func (p profiles) stsOf(c *cliProfile) *sts {
	if c.STSRegion == "" && !c.EnableVPC || p.sts.fixed {
		return p.sts
	}
	r := *p.sts.rpc
	r.at = func(string) endpoint { return endpoint{scheme: "https", host: stsHost(c.STSRegion, c.EnableVPC)} }
	return &sts{rpc: &r}
}

func (p profiles) assume(ctx context.Context, client *sts, keys Keys, role Role) (fetched, error) {
	role = role.withDefaults()
	if err := errors.Join(role.problems()...); err != nil {
		return fetched{}, err
	}
	return client.assume(ctx, static(keys), role)
}

// fromINI reads a section of ALIBABA_CLOUD_CREDENTIALS_FILE or ~/.alibabacloud/credentials.
func (p profiles) fromINI(ctx context.Context) (fetched, error) {
	text, name, err := profileFile("ALIBABA_CLOUD_CREDENTIALS_FILE", ".alibabacloud/credentials")
	if err != nil {
		return fetched{}, err
	}
	file, err := ini.Load(text)
	if err != nil {
		return fetched{}, errors.New(name + " is no INI file")
	}
	wanted := cmp.Or(os.Getenv("ALIBABA_CLOUD_PROFILE"), "default")
	section, err := file.GetSection(wanted)
	if err != nil || len(section.Keys()) == 0 {
		return fetched{}, absent(fmt.Sprintf("%s has no section %q", name, wanted))
	}
	got, err := p.ini(ctx, section)
	if err != nil {
		return fetched{}, fmt.Errorf("%s: section %q: %w", name, wanted, err)
	}
	return got, nil
}

func (p profiles) ini(ctx context.Context, section *ini.Section) (fetched, error) {
	value := func(key string) string { return section.Key(key).String() }
	need := func(keys ...string) error {
		var missing []string
		for _, key := range keys {
			if value(key) == "" {
				missing = append(missing, key)
			}
		}
		if len(missing) > 0 {
			return errors.New("missing: " + strings.Join(missing, ", "))
		}
		return nil
	}
	keys := Keys{ID: value("access_key_id"), Secret: value("access_key_secret")}
	switch value("type") {
	case "access_key":
		return fetched{Keys: keys}, need("access_key_id", "access_key_secret")
	case "ecs_ram_role":
		got, err := p.metadata.fetch(ctx, value("role_name"))
		return got, present(err)
	case "ram_role_arn":
		if err := need("access_key_id", "access_key_secret", "role_arn", "role_session_name"); err != nil {
			return fetched{}, err
		}
		return p.assume(ctx, p.sts, keys, Role{ARN: value("role_arn"), SessionName: value("role_session_name"), policy: value("policy")})
	}
	return fetched{}, errors.New("type must be access_key, ecs_ram_role or ram_role_arn")
}
