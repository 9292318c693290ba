package simulator

import (
	"crypto/rand"
	"encoding/base64"
	"strings"
	"time"
)

// accessKey is one set of credentials that requests may be signed with: the base keys,
// or a session of a role.
type accessKey struct {
	id, secret, token string
	// For the session of a role:
	role    string
	session string // its name, on AWS
	expires time.Time
	revoked bool // guarded by Simulator.mu
	// may is what the keys may do: every policy in it must allow a call; none: everything.
	may policies
}

// over says whether temporary keys have expired.
func (k *accessKey) over() bool { return !k.expires.IsZero() && !time.Now().Before(k.expires) }

// policies allow what each of them allows.
type policies []*Policy

func (ps policies) allow(action, resource string) bool {
	for _, p := range ps {
		if !p.Allows(action, resource) {
			return false
		}
	}
	return true
}

// SetCredentials changes the base keys, as when they rotate: the old ones are not known
// any more. An empty token means long-term keys. Sessions of roles live on.
func (s *Simulator) SetCredentials(accessKeyID, accessKeySecret, securityToken string) {
	s.keys.Store(&accessKey{id: accessKeyID, secret: accessKeySecret, token: securityToken})
}

// RevokeSessions ends the sessions of a role, those that the metadata has given out too:
// the cloud does not know their keys any more.
func (s *Simulator) RevokeSessions(role string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.sessions.values() {
		if k.role == role {
			k.revoked = true
		}
	}
	s.metadata.keys = nil
}

// accessKey finds the keys of an id, expired ones too; nil: there are none.
func (s *Simulator) accessKey(id string) *accessKey {
	if base := s.keys.Load(); base.id == id {
		return base
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k, _ := s.sessions.get(id)
	if k == nil || k.revoked {
		return nil
	}
	return k
}

// permissions is what bounds the keys of an id.
func (s *Simulator) permissions(id string) policies {
	if k := s.accessKey(id); k != nil && k.role != "" {
		return k.may
	}
	if p := s.policy.Load(); p != nil {
		return policies{p}
	}
	return nil
}

// newSession gives out keys of a role. The caller holds s.mu.
func (s *Simulator) newSession(role RoleConfig, length time.Duration, session *Policy) *accessKey {
	return s.addSession(&accessKey{
		id: "STS.N" + s.mark() + randomText(20), secret: s.mark() + rand.Text() + randomText(16),
		// Tokens of the service are Base64, so that what signs and escapes them is put to the test.
		token: "CAIS" + s.mark() + base64.StdEncoding.EncodeToString([]byte(rand.Text()+rand.Text()+">>>???~")) + "+/=",
	}, role, length, session)
}

// addSession makes keys good for a role. The caller holds s.mu.
func (s *Simulator) addSession(k *accessKey, role RoleConfig, length time.Duration, session *Policy) *accessKey {
	k.role, k.expires = role.Name, time.Now().Add(length).Truncate(time.Second)
	if role.Policy != "" {
		p, _ := ParsePolicy([]byte(role.Policy)) // it was checked with the scenario
		k.may = append(k.may, p)
	}
	if session != nil {
		k.may = append(k.may, session)
	}
	s.sessions.add(k.id, k)
	return k
}

// secretMark begins the secrets of tests.
const secretMark = "usherTESTsecret"

// mark makes the keys of a session as easy to find in a log as the base keys are.
func (s *Simulator) mark() string {
	if strings.HasPrefix(s.options.AccessKeySecret, secretMark) {
		return secretMark
	}
	return ""
}

// expiration is when keys end, as the answers write it, on the cloud's clock.
func (s *Simulator) expiration(k *accessKey) string {
	return s.cloudTime(k.expires).UTC().Format(time.RFC3339)
}
