package simulator

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	awsMetadataCredentials = "/latest/meta-data/iam/security-credentials/"
	// awsContainerCredentials is where a container finds its role's keys, followed by the role.
	awsContainerCredentials = "/v2/credentials/"

	headerIMDSToken = "X-aws-ec2-metadata-token"
	headerIMDSTTL   = "X-aws-ec2-metadata-token-ttl-seconds"
)

// answerAWSMetadata answers one request of an instance's metadata service, version 2, or of
// the one that gives a container its keys. The caller holds s.mu.
func (s *Simulator) answerAWSMetadata(r *http.Request, action string) *response {
	cfg := s.scenario.Metadata
	if name, ok := strings.CutPrefix(r.URL.Path, awsContainerCredentials); ok {
		return s.containerKeys(r, name)
	}
	switch {
	case cfg.Mode == metadataOff:
		return metadataRefusal(http.StatusForbidden)
	case action == metadataToken:
		return s.newIMDSToken(r)
	case r.Method != http.MethodGet:
		return metadataRefusal(http.StatusMethodNotAllowed)
	}
	token := r.Header.Get(headerIMDSToken)
	over, known := s.metadata.tokens.get(token)
	if good := known && time.Now().Before(over); !good && (token != "" || cfg.Mode == metadataV2) && cfg.Mode != metadataV1 {
		return metadataRefusal(http.StatusUnauthorized)
	}
	zone := s.scenario.Region + "a"
	switch role, there := s.role(cfg.Role); {
	case r.URL.Path == "/latest/meta-data/placement/region":
		return metadataText(s.scenario.Region)
	case r.URL.Path == "/latest/meta-data/placement/availability-zone":
		return metadataText(zone)
	case r.URL.Path == "/latest/meta-data/instance-id":
		return metadataText(cfg.InstanceID)
	case r.URL.Path == "/latest/dynamic/instance-identity/document":
		return metadataJSON(map[string]string{
			"accountId": s.account, "region": s.scenario.Region, "availabilityZone": zone, "instanceId": cfg.InstanceID,
			"architecture": "x86_64", "imageId": "ami-0123456789abcdef0", "instanceType": "m6i.large", "privateIp": "10.0.0.10", "version": "2017-09-30",
		})
	case action == metadataRole && there:
		return metadataText(role.Name)
	case action == metadataCredentials && there && r.URL.Path == awsMetadataCredentials+role.Name:
		k := s.instanceKeys(role)
		keys := s.keysText(k)
		keys["Code"], keys["Type"] = "Success", "AWS-HMAC"
		keys["LastUpdated"] = s.cloudTime(k.expires.Add(-cfg.Session)).UTC().Format(time.RFC3339)
		return metadataJSON(keys)
	}
	return metadataRefusal(http.StatusNotFound)
}

func metadataJSON(o map[string]string) *response {
	body, _ := json.Marshal(o) // texts only
	return &response{status: http.StatusOK, header: http.Header{"Content-Type": {"application/json"}}, body: body}
}

func (s *Simulator) newIMDSToken(r *http.Request) *response {
	ttl := r.Header.Get(headerIMDSTTL)
	seconds, err := strconv.Atoi(ttl)
	switch {
	case s.scenario.Metadata.Mode == metadataV1:
		return metadataRefusal(http.StatusNotFound)
	case r.Method != http.MethodPut:
		return metadataRefusal(http.StatusMethodNotAllowed)
	case err != nil || seconds < 1 || seconds > int(maxMetadataToken/time.Second):
		return metadataRefusal(http.StatusBadRequest)
	}
	token := s.mark() + randomText(26) + "=="
	s.metadata.tokens.add(token, time.Now().Add(time.Duration(seconds)*time.Second))
	res := metadataText(token)
	res.header.Set(headerIMDSTTL, ttl)
	return res
}

// containerKeys gives keys of a role that trusts containers. A token that comes along has to
// be one of the identity provider's.
func (s *Simulator) containerKeys(r *http.Request, name string) *response {
	role, there := s.role(name)
	token := r.Header.Get("Authorization")
	over, known := s.oidcTokens.get(token)
	switch {
	case r.Method != http.MethodGet:
		return metadataRefusal(http.StatusMethodNotAllowed)
	case !there || !slices.Contains(role.Trust, trustECS):
		return metadataRefusal(http.StatusNotFound)
	case token != "" && !(known && time.Now().Before(over)) && !slices.Contains(s.scenario.OIDC.Tokens, token):
		return metadataRefusal(http.StatusUnauthorized)
	}
	keys := s.keysText(s.newAWSSession(role, "container", s.scenario.Metadata.Session, nil))
	keys["RoleArn"] = "arn:aws:iam::" + s.account + ":role/" + name
	return metadataJSON(keys)
}

// keysText is keys as the metadata services write them.
func (s *Simulator) keysText(k *accessKey) map[string]string {
	return map[string]string{"AccessKeyId": k.id, "SecretAccessKey": k.secret, "Token": k.token, "Expiration": s.expiration(k)}
}
