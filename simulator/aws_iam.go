package simulator

import (
	"crypto/md5"
	"encoding/hex"
	"strings"
)

// permission is what policies call the operation.
func (c *awsCall) permission() string {
	action := c.action
	if c.service.action != nil {
		action = c.service.action(action)
	}
	return c.service.permission + ":" + action
}

// checkAWSPolicy refuses what the policy does not allow on one of the call's resources.
func (s *Simulator) checkAWSPolicy(c *awsCall) *awsError {
	if c.keys == nil {
		return nil // nobody's keys: the role's trust decides
	}
	may := s.permissions(c.keys.id)
	if len(may) == 0 || c.permission() == "sts:GetCallerIdentity" { // which nothing can take away
		return nil
	}
	resources := []string{"*"}
	if c.service.resources != nil {
		resources = c.service.resources(s, c)
	}
	for _, r := range resources {
		if !may.allow(c.permission(), r) {
			return c.denied(s.callerARN(c.keys), r)
		}
	}
	return nil
}

// callerID is the unique id of who has the keys.
func (s *Simulator) callerID(k *accessKey) string {
	if k.role != "" {
		return roleID(k.role) + ":" + k.session
	}
	return "AIDAUSHER00000000000"
}

// roleID makes a role's unique id out of its name.
func roleID(name string) string {
	sum := md5.Sum([]byte(name))
	return "AROA" + strings.ToUpper(hex.EncodeToString(sum[:]))[:17]
}

// callerARN names who has the keys.
func (s *Simulator) callerARN(k *accessKey) string {
	if k.role != "" {
		return "arn:aws:sts::" + s.account + ":assumed-role/" + k.role + "/" + k.session
	}
	return "arn:aws:iam::" + s.account + ":user/usher"
}
