package simulator

import "slices"

// The versions of the balancers' APIs.
const (
	slbVersion = "2014-05-15"
	albVersion = "2020-06-16"
	nlbVersion = "2022-04-30"
)

// balancerOperations are the calls of CLB, ALB and NLB.
var balancerOperations = map[string]rpcOperation{
	"slb.AddBackendServers":                         (*Simulator).addBackendServers,
	"slb.SetBackendServers":                         (*Simulator).setBackendServers,
	"slb.RemoveBackendServers":                      (*Simulator).removeBackendServers,
	"slb.AddVServerGroupBackendServers":             (*Simulator).addVServerGroupBackendServers,
	"slb.RemoveVServerGroupBackendServers":          (*Simulator).removeVServerGroupBackendServers,
	"slb.SetVServerGroupAttribute":                  (*Simulator).setVServerGroupAttribute,
	"slb.ModifyVServerGroupBackendServers":          (*Simulator).modifyVServerGroupBackendServers,
	"slb.DescribeLoadBalancers":                     (*Simulator).describeLoadBalancers,
	"slb.DescribeLoadBalancerAttribute":             (*Simulator).describeLoadBalancerAttribute,
	"slb.DescribeVServerGroups":                     (*Simulator).describeVServerGroups,
	"slb.DescribeVServerGroupAttribute":             (*Simulator).describeVServerGroupAttribute,
	"slb.DescribeHealthStatus":                      (*Simulator).describeHealthStatus,
	"slb.DescribeLoadBalancerListeners":             (*Simulator).describeLoadBalancerListeners,
	"slb.DescribeLoadBalancerTCPListenerAttribute":  describeListenerAttribute(protocolTCP),
	"slb.DescribeLoadBalancerHTTPListenerAttribute": describeListenerAttribute(protocolHTTP),
	"alb.AddServersToServerGroup":                   (*Simulator).addServersToServerGroup,
	"alb.RemoveServersFromServerGroup":              (*Simulator).removeServersFromServerGroup,
	"alb.UpdateServerGroupServersAttribute":         (*Simulator).updateServerGroupServersAttribute,
	"alb.ListServerGroupServers":                    (*Simulator).listServerGroupServers,
	"alb.ListServerGroups":                          (*Simulator).listServerGroups,
	"alb.ListAsynJobs":                              (*Simulator).listAsynJobs,
	"alb.ListListeners":                             (*Simulator).listListeners,
	"alb.ListLoadBalancers":                         (*Simulator).listLoadBalancers,
	"alb.GetListenerAttribute":                      (*Simulator).getListenerAttribute,
	"alb.GetListenerHealthStatus":                   (*Simulator).getListenerHealthStatus,
	"nlb.AddServersToServerGroup":                   (*Simulator).addServersToServerGroup,
	"nlb.RemoveServersFromServerGroup":              (*Simulator).removeServersFromServerGroup,
	"nlb.UpdateServerGroupServersAttribute":         (*Simulator).updateServerGroupServersAttribute,
	"nlb.ListServerGroupServers":                    (*Simulator).listServerGroupServers,
	"nlb.ListServerGroups":                          (*Simulator).listServerGroups,
	"nlb.GetJobStatus":                              (*Simulator).getJobStatus,
	"nlb.ListListeners":                             (*Simulator).listListeners,
	"nlb.ListLoadBalancers":                         (*Simulator).listLoadBalancers,
	"nlb.GetListenerAttribute":                      (*Simulator).getListenerAttribute,
	"nlb.GetListenerHealthStatus":                   (*Simulator).getListenerHealthStatus,
}

// operation finds a call by "service.Action".
func operation(name string) rpcOperation {
	if op := rpcOperations[name]; op != nil {
		return op
	}
	return balancerOperations[name]
}

// inBody are the calls of NLB whose own parameters travel in the form body, as the
// official SDK sends them. Whether the service reads them from the query too is
// unconfirmed; here it does not, so that a client which relies on it is found out.
var inBody = []string{
	"AddServersToServerGroup", "RemoveServersFromServerGroup", "UpdateServerGroupServersAttribute", "ListServerGroupServers", "ListServerGroups",
}

var commonParameters = []string{
	"Action", "Version", "Format", "AccessKeyId", "Timestamp", "TimeStamp", "RegionId", "SecurityToken",
	"Signature", "SignatureMethod", "SignatureVersion", "SignatureNonce", "SignatureType",
}

// takeBody forgets the own parameters of a call that stand in the wrong place. The
// signature covers both places, so it is checked before.
func (c *rpcCall) takeBody() {
	if c.service != "nlb" || !slices.Contains(inBody, c.action) {
		return
	}
	for name := range c.query {
		if !slices.Contains(commonParameters, name) {
			c.form.Del(name)
		}
	}
}

// balancerResource is what RAM allows a call of a balancer on. That listings without a
// server group are on all of them, and those of jobs on everything, is unconfirmed.
func (s *Simulator) balancerResource(c *rpcCall) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.service == "slb" {
		return s.slbResource(c)
	}
	switch c.action {
	case "ListAsynJobs", "GetJobStatus":
		return s.arn(c.service, "*")
	case "ListListeners", "ListLoadBalancers":
		return s.arn(c.service, "loadbalancer/"+only(c.repeated("LoadBalancerId")))
	case "GetListenerAttribute", "GetListenerHealthStatus":
		if b, _, bad := s.ownListener(c); bad == nil {
			return s.arn(c.service, "loadbalancer/"+b.cfg.ID)
		}
		return s.arn(c.service, "loadbalancer/*")
	case "ListServerGroups":
		return s.arn(c.service, "servergroup/"+only(c.repeated("ServerGroupId")))
	}
	if id := c.form.Get("ServerGroupId"); id != "" {
		return s.arn(c.service, "servergroup/"+id)
	}
	return s.arn(c.service, "servergroup/*")
}

// only is the one of ids, or * for several or none.
func only(ids []string) string {
	if len(ids) == 1 {
		return ids[0]
	}
	return "*"
}
