package alibaba

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/responses"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

const (
	ecsVersion = "2014-05-26"
	// ecsMaxIDs is how many ids one DescribeInstances takes.
	ecsMaxIDs = 100
)

// ecs calls ECS through the SDK's CommonRequest: the SDK's package for ECS takes as long
// to compile as all else.
type ecs struct{ *rpc }

func newECS(o Options) (*ecs, error) {
	r, err := newRPC(o, "ecs", "ECSEndpoint", o.ECSEndpoint, func(region string) string { return "ecs." + region + ".aliyuncs.com" })
	if err != nil {
		return nil, err
	}
	return &ecs{rpc: r}, nil
}

// call makes one call with its own parameters in the form body: a script in the query
// would make a URL that proxies cut or log.
func (e *ecs) call(ctx context.Context, op rpcOp, region string, form map[string]string, into any) error {
	response, err := invoke(ctx, e.rpc, op, region, func() (acsRequest, *responses.CommonResponse) {
		request := requests.NewCommonRequest()
		request.Method = requests.POST
		request.Product, request.Version, request.ApiName = "Ecs", ecsVersion, op.name
		for name, value := range form {
			request.FormParams[name] = value
		}
		request.TransToAcsRequest()
		return request, responses.NewCommonResponse()
	})
	if err != nil {
		return err
	}
	if err := json.Unmarshal(response.GetHttpContentBytes(), into); err != nil {
		return &providers.Error{Op: op.name, Kind: providers.ErrUnavailable, Status: response.GetHttpStatus(), Cause: fmt.Errorf("read answer: %w", err)}
	}
	return nil
}

// machine is what DescribeInstances says of an instance.
type machine struct {
	ID                string `json:"InstanceId"`
	Status            string
	ZoneID            string `json:"ZoneId"`
	VpcAttributes     struct{ PrivateIpAddress ipAddresses }
	InnerIpAddress    ipAddresses
	NetworkInterfaces struct {
		NetworkInterface []struct{ PrimaryIpAddress string }
	}
	Tags struct {
		Tag []struct{ TagKey, TagValue string }
	}
}

func (m machine) tags() map[string]string {
	tags := map[string]string{}
	for _, t := range m.Tags.Tag {
		tags[t.TagKey] = t.TagValue
	}
	return tags
}

type ipAddresses struct{ IpAddress []string }

// address is the private one: of the VPC, of the first network interface, or of the
// classic network.
func (m machine) address() netip.Addr {
	texts := m.VpcAttributes.PrivateIpAddress.IpAddress
	for _, n := range m.NetworkInterfaces.NetworkInterface {
		texts = append(texts, n.PrimaryIpAddress)
	}
	for _, text := range append(texts, m.InnerIpAddress.IpAddress...) {
		if ip := parseAddress(text); ip.IsValid() {
			return ip
		}
	}
	return netip.Addr{}
}

// parseAddress reads the address of an instance; the zero Addr where text is none. The
// zone of an IPv6 address may be any text: an address with one names no instance, and
// must not get into a URL.
func parseAddress(text string) netip.Addr {
	ip, err := netip.ParseAddr(text)
	if err != nil || ip.Zone() != "" || ip.IsUnspecified() || ip.IsMulticast() {
		return netip.Addr{}
	}
	return ip
}

// machines reads instances with DescribeInstances, at most ecsMaxIDs. A released one is
// just missing. With an error it gives those that were found nevertheless.
func (e *ecs) machines(ctx context.Context, region string, ids []messages.InstanceID) (map[messages.InstanceID]machine, error) {
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("encode instance ids: %w", err)
	}
	var answer struct {
		TotalCount int
		Instances  struct{ Instance []machine }
	}
	err = e.call(ctx, looks("DescribeInstances"), region, map[string]string{
		"InstanceIds": string(list),
		"PageSize":    strconv.Itoa(ecsMaxIDs),
	}, &answer)
	if err != nil {
		return nil, err
	}
	found := map[messages.InstanceID]machine{}
	for _, m := range answer.Instances.Instance {
		found[messages.InstanceID(m.ID)] = m
	}
	if answer.TotalCount > len(found) {
		return found, holes("DescribeInstances")
	}
	return found, nil
}
