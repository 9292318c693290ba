package simulator

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var ec2Operations = map[string]awsOperation{
	"DescribeInstances": (*Simulator).ec2DescribeInstances,
}

// What every instance has.
const (
	awsInstanceType = "m6i.large"
	awsTemplate     = "lt-0123456789abcdef0"
	awsImage        = "ami-0123456789abcdef0"
	awsSubnet       = "subnet-0a1b2c3d4e5f60718"
)

// The limits of DescribeInstances, 2016-11-15.
const (
	minEC2Results   = 5
	maxEC2Results   = 1000
	maxFilters      = 50
	maxFilterValues = 200
)

// powerCodes are the codes of the states of an instance.
var powerCodes = map[string]int{
	powerPending: 0, powerRunning: 16, powerShuttingDown: 32, powerTerminated: 48, powerStopping: 64, powerStopped: 80,
}

var ec2IDPattern = regexp.MustCompile(`^i-([0-9a-f]{8}|[0-9a-f]{17})$`)

type ec2Tag struct {
	Key   string `xml:"key"`
	Value string `xml:"value"`
}

type ec2State struct {
	Code int    `xml:"code"`
	Name string `xml:"name"`
}

type ec2Placement struct {
	Zone    string `xml:"availabilityZone"`
	Tenancy string `xml:"tenancy"`
}

type ec2Instance struct {
	ID             string          `xml:"instanceId"`
	Image          string          `xml:"imageId"`
	State          ec2State        `xml:"instanceState"`
	PrivateDNSName string          `xml:"privateDnsName"`
	Reason         string          `xml:"reason"`
	LaunchIndex    int             `xml:"amiLaunchIndex"`
	Type           string          `xml:"instanceType"`
	LaunchTime     string          `xml:"launchTime"`
	Placement      ec2Placement    `xml:"placement"`
	SubnetID       string          `xml:"subnetId,omitempty"`
	VPCID          string          `xml:"vpcId,omitempty"`
	PrivateIP      string          `xml:"privateIpAddress,omitempty"`
	Architecture   string          `xml:"architecture"`
	Tags           itemSet[ec2Tag] `xml:"tagSet"`
}

type ec2Reservation struct {
	ID        string               `xml:"reservationId"`
	Owner     string               `xml:"ownerId"`
	Groups    itemSet[string]      `xml:"groupSet"`
	Instances itemSet[ec2Instance] `xml:"instancesSet"`
}

type ec2Answer struct {
	Reservations itemSet[ec2Reservation] `xml:"reservationSet"`
	NextToken    string                  `xml:"nextToken,omitempty"`
}

func errEC2(code, format string, args ...any) *awsError {
	return &awsError{status: 400, code: code, message: fmt.Sprintf(format, args...)}
}

// ec2DescribeInstances gives each instance a reservation of its own. Instances that are gone
// are told of for an hour.
func (s *Simulator) ec2DescribeInstances(c *awsCall) (awsAnswer, *awsError) {
	ids := c.list("InstanceId")
	filters, bad := c.filters()
	if bad != nil {
		return nil, bad
	}
	size := maxEC2Results
	if c.has("MaxResults") {
		n, err := strconv.Atoi(c.text("MaxResults"))
		switch {
		case len(ids) > 0:
			return nil, errEC2("InvalidParameterCombination", "The parameter instancesSet cannot be used with the parameter maxResults")
		case err != nil || n < minEC2Results || n > maxEC2Results:
			return nil, errEC2("InvalidParameterValue", "Value ( %s ) for parameter maxResults is invalid. Expecting a value between %d and %d.", c.text("MaxResults"), minEC2Results, maxEC2Results)
		}
		size = n
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all, bad := s.ec2Instances(ids)
	if bad != nil {
		return nil, bad
	}
	var found []*instance
	for _, in := range all {
		if s.fits(in, filters) {
			found = append(found, in)
		}
	}
	part, next, bad := awsPage(c, found, size)
	if bad != nil {
		return nil, errEC2("InvalidNextToken", "The token '%s' is invalid", c.text("NextToken"))
	}
	out := &ec2Answer{NextToken: next}
	for _, in := range part {
		out.Reservations.Items = append(out.Reservations.Items, ec2Reservation{
			ID: "r-" + in.id[2:], Owner: s.account, Instances: itemSet[ec2Instance]{[]ec2Instance{s.ec2Instance(in)}},
		})
	}
	return out, nil
}

// ec2Instances are the instances with these ids, each of which must be there, or all.
func (s *Simulator) ec2Instances(ids []string) ([]*instance, *awsError) {
	var found []*instance
	for _, id := range ids {
		if !ec2IDPattern.MatchString(id) {
			return nil, errEC2("InvalidInstanceID.Malformed", "Invalid id: %q", id)
		}
	}
	var unknown []string
	for _, id := range ids {
		in, there := s.instances[id]
		if !there {
			in, there = s.graves.get(id)
		}
		switch {
		case !there || !in.known():
			unknown = append(unknown, id)
		case !slices.Contains(found, in):
			found = append(found, in)
		}
	}
	switch {
	case len(unknown) == 1:
		return nil, errEC2("InvalidInstanceID.NotFound", "The instance ID '%s' does not exist", unknown[0])
	case len(unknown) > 1:
		return nil, errEC2("InvalidInstanceID.NotFound", "The instance IDs '%s' do not exist", strings.Join(unknown, ", "))
	case len(ids) > 0:
		return found, nil
	}
	for _, in := range append(s.candidates(nil), s.graves.values()...) {
		if in.known() {
			found = append(found, in)
		}
	}
	return found, nil
}

// tags are those of an instance.
func (in *instance) tags() map[string]string {
	all := maps.Clone(in.group.cfg.Tags)
	if all == nil {
		all = map[string]string{}
	}
	all["aws:autoscaling:groupName"] = in.group.cfg.ID
	return all
}

// privateIP is empty for an instance that is gone.
func (in *instance) privateIP() string {
	if in.power == powerTerminated {
		return ""
	}
	return in.addr.Addr().String()
}

func (s *Simulator) privateDNS(in *instance) string {
	ip := in.privateIP()
	if ip == "" {
		return ""
	}
	return "ip-" + strings.ReplaceAll(ip, ".", "-") + "." + s.scenario.Region + ".compute.internal"
}

func (s *Simulator) ec2Instance(in *instance) ec2Instance {
	o := ec2Instance{
		ID: in.id, Image: awsImage, State: ec2State{powerCodes[in.power], in.power}, PrivateDNSName: s.privateDNS(in), Type: awsInstanceType,
		LaunchTime: s.milli(in.created), Placement: ec2Placement{in.zone, "default"}, PrivateIP: in.privateIP(), Architecture: "x86_64",
	}
	if in.power != powerTerminated {
		o.SubnetID, o.VPCID = awsSubnet, awsVPC
	}
	tags := in.tags()
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		o.Tags.Items = append(o.Tags.Items, ec2Tag{key, tags[key]})
	}
	return o
}

// ec2Filter lets an instance through that has one of the values.
type ec2Filter struct {
	name     string
	plain    map[string]bool // values that mean themselves
	patterns []string        // the others, as path.Match reads them
}

// newEC2Filter reads values: in one * is any text, ? one character, and a backslash takes their
// meaning.
func newEC2Filter(name string, values []string) ec2Filter {
	f := ec2Filter{name: name, plain: map[string]bool{}}
	for _, v := range values {
		if strings.ContainsAny(v, `*?\`) {
			f.patterns = append(f.patterns, patternQuoter.Replace(v))
		} else {
			f.plain[v] = true
		}
	}
	return f
}

// patternQuoter: brackets mean nothing here, and a slash is like any other character.
var patternQuoter = strings.NewReplacer("[", `\[`, "/", "\x00")

// has says whether a text is one of the values.
func (f ec2Filter) has(text string) bool {
	return f.plain[text] || slices.ContainsFunc(f.patterns, func(pattern string) bool {
		ok, err := path.Match(pattern, strings.ReplaceAll(text, "/", "\x00"))
		return ok && err == nil
	})
}

var ec2FilterNames = []string{
	"instance-id", "instance-state-name", "instance-state-code", "private-ip-address", "private-dns-name", "availability-zone",
	"vpc-id", "subnet-id", "image-id", "instance-type", "owner-id", "tag-key",
}

// filters reads Filter.N.Name and Filter.N.Value.M.
func (c *awsCall) filters() ([]ec2Filter, *awsError) {
	var out []ec2Filter
	for _, i := range c.indexes("Filter") {
		at := fmt.Sprintf("Filter.%d", i)
		name, values := c.text(at+".Name"), c.list(at+".Value")
		switch {
		case name == "":
			return nil, errEC2("MissingParameter", "The request must contain the parameter Filter.%d.Name", i)
		case !slices.Contains(ec2FilterNames, name) && !strings.HasPrefix(name, "tag:"):
			return nil, errEC2("InvalidParameterValue", "The filter '%s' is invalid", name)
		case len(values) == 0:
			return nil, errEC2("InvalidParameterValue", "The filter '%s' has no values", name)
		case len(values) > maxFilterValues || len(out) >= maxFilters:
			return nil, errEC2("FilterLimitExceeded", "The maximum number of filter values specified on a single call is %d", maxFilterValues)
		}
		out = append(out, newEC2Filter(name, values))
	}
	return out, nil
}

// fits says whether all filters let an instance through.
func (s *Simulator) fits(in *instance, filters []ec2Filter) bool {
	for _, f := range filters {
		if !slices.ContainsFunc(s.filtered(in, f.name), f.has) {
			return false
		}
	}
	return true
}

// filtered is what an instance has of the thing that a filter is about.
func (s *Simulator) filtered(in *instance, name string) []string {
	if key, ok := strings.CutPrefix(name, "tag:"); ok {
		if v, there := in.tags()[key]; there {
			return []string{v}
		}
		return nil
	}
	if name == "instance-id" {
		return []string{in.id} // by far the most asked for, and of all instances
	}
	o := s.ec2Instance(in)
	switch name {
	case "tag-key":
		return slices.Collect(maps.Keys(in.tags()))
	case "instance-state-code":
		return []string{strconv.Itoa(o.State.Code)}
	}
	return []string{map[string]string{
		"instance-state-name": o.State.Name, "private-ip-address": o.PrivateIP, "private-dns-name": o.PrivateDNSName,
		"availability-zone": o.Placement.Zone, "vpc-id": o.VPCID, "subnet-id": o.SubnetID, "image-id": o.Image, "instance-type": o.Type, "owner-id": s.account,
	}[name]}
}
