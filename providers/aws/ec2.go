package aws

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"example.org/usher/messages"
	"example.org/usher/providers"
	"example.org/usher/providers/internal/gather"
)

const (
	ec2Version = "2016-11-15"
	// ec2MaxIDs is how many values of a filter we send; EC2 takes 200.
	ec2MaxIDs = 100
	// ec2MaxPages ends a listing whose pages lead in a circle.
	ec2MaxPages = 100
	// ec2Skew is from when on EC2's clock is believed rather than ours; it takes 5 minutes.
	ec2Skew = 4 * time.Minute
)

// ec2 makes the one call of EC2 that is needed, through the SDK's signer: its package for
// EC2 takes as long to compile as all else.
type ec2 struct {
	wire   *wire
	url    string
	signer *v4.Signer
	skew   atomic.Int64 // nanoseconds from our clock to EC2's
}

func newEC2(o Options) (*ec2, error) {
	w, err := o.newWire("ec2", "EC2Endpoint", o.EC2Endpoint)
	if err != nil {
		return nil, err
	}
	domain := "amazonaws.com"
	if partition(o.Region) == "aws-cn" {
		domain = "amazonaws.com.cn"
	}
	return &ec2{wire: w, signer: v4.NewSigner(), url: cmp.Or(aws.ToString(w.endpoint), "https://ec2."+o.Region+"."+domain) + "/"}, nil
}

func (e *ec2) close() { e.wire.close() }

// machine is what DescribeInstances says of an instance.
type machine struct {
	zone, state string
	// addresses are the private ones, the primary one first.
	addresses []netip.Addr
	tags      map[string]string
}

// address is the primary private one, or the zero Addr.
func (m machine) address() netip.Addr {
	if len(m.addresses) == 0 {
		return netip.Addr{}
	}
	return m.addresses[0]
}

type wireMachine struct {
	ID         string   `xml:"instanceId"`
	State      string   `xml:"instanceState>name"`
	Zone       string   `xml:"placement>availabilityZone"`
	Primary    string   `xml:"privateIpAddress"`
	Secondary  []string `xml:"networkInterfaceSet>item>privateIpAddressesSet>item>privateIpAddress"`
	Interfaces []string `xml:"networkInterfaceSet>item>privateIpAddress"`
	IPv6       []string `xml:"networkInterfaceSet>item>ipv6AddressesSet>item>ipv6Address"`
	Tags       []struct {
		Key   string `xml:"key"`
		Value string `xml:"value"`
	} `xml:"tagSet>item"`
}

func (w wireMachine) machine() machine {
	m := machine{zone: w.Zone, state: w.State, tags: map[string]string{}}
	for _, texts := range [][]string{{w.Primary}, w.Interfaces, w.Secondary, w.IPv6} {
		for _, text := range texts {
			if ip := parseAddress(text); ip.IsValid() {
				m.addresses = append(m.addresses, ip)
			}
		}
	}
	m.addresses = gather.Distinct(m.addresses)
	for _, t := range w.Tags {
		m.tags[t.Key] = t.Value
	}
	return m
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

// machinesPage is an answer of DescribeInstances.
type machinesPage struct {
	XMLName   xml.Name      `xml:"DescribeInstancesResponse"`
	Machines  []wireMachine `xml:"reservationSet>item>instancesSet>item"`
	NextToken string        `xml:"nextToken"`
}

// machines reads instances with DescribeInstances (EC2 2016-11-15), at most ec2MaxIDs. They
// are named in a filter: of ids in the request itself a single unknown one would fail the
// call. One that EC2 no longer knows is just missing.
func (e *ec2) machines(ctx context.Context, ids []messages.InstanceID) (map[messages.InstanceID]machine, error) {
	const name = "DescribeInstances"
	op := operation{name: name, permission: "ec2:" + name, resource: "*"}
	form := url.Values{"Action": {name}, "Version": {ec2Version}, "Filter.1.Name": {"instance-id"}}
	for i, id := range ids {
		form.Set("Filter.1.Value."+strconv.Itoa(i+1), string(id))
	}
	found := map[messages.InstanceID]machine{}
	for range ec2MaxPages {
		page, _, err := invoke(ctx, e.wire, op, func(ctx context.Context, c *carrier) (machinesPage, error) { return e.call(ctx, c, form) })
		if err != nil {
			return nil, err
		}
		for _, m := range page.Machines {
			found[messages.InstanceID(m.ID)] = m.machine()
		}
		if page.NextToken == "" || page.NextToken == form.Get("NextToken") {
			return found, nil
		}
		form.Set("NextToken", page.NextToken)
	}
	return nil, &providers.Error{Op: name, Kind: providers.ErrUnavailable, Message: fmt.Sprintf("the answer has more than %d pages", ec2MaxPages)}
}

// call makes one call, repeated as the SDK repeats its own.
func (e *ec2) call(ctx context.Context, c *carrier, form url.Values) (machinesPage, error) {
	for attempt := 1; ; attempt++ {
		release, err := c.GetAttemptToken(ctx)
		if err != nil {
			return machinesPage{}, fmt.Errorf("failed to get retry Send token, %w", err)
		}
		page, skewed, err := e.attempt(ctx, c, form)
		_ = release(err)
		if err == nil {
			return page, nil
		}
		if retryable := c.IsErrorRetryable(err); !skewed && !retryable || attempt >= c.MaxAttempts() || ctx.Err() != nil {
			return machinesPage{}, err
		}
		delay, err := c.RetryDelay(attempt, err)
		if err != nil {
			return machinesPage{}, err
		}
		if !gather.Sleep(ctx, delay) {
			return machinesPage{}, &aws.RequestCanceledError{Err: ctx.Err()}
		}
	}
}

// attempt sends a call once. skewed: it was signed for a time that is not EC2's, which is
// known now.
func (e *ec2) attempt(ctx context.Context, c *carrier, form url.Values) (page machinesPage, skewed bool, err error) {
	keys, err := c.Retrieve(ctx)
	if err != nil {
		return page, false, err
	}
	body := []byte(form.Encode())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return page, false, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	req.Header.Set("User-Agent", "usher")
	sum := sha256.Sum256(body)
	used := time.Duration(e.skew.Load())
	if err := e.signer.SignHTTP(ctx, keys, req, hex.EncodeToString(sum[:]), "ec2", e.wire.region, time.Now().Add(used)); err != nil {
		return page, false, fmt.Errorf("sign: %w", err)
	}
	res, err := c.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return page, false, &smithy.CanceledError{Err: ctx.Err()}
		}
		return page, false, &smithyhttp.RequestSendError{Err: err}
	}
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return page, false, err
	}
	if res.StatusCode/100 == 2 {
		if err := xml.Unmarshal(answer, &page); err != nil {
			return page, false, &smithy.DeserializationError{Err: err}
		}
		return page, false, nil
	}
	err = refusal(res, answer)
	if date := c.date(); !date.IsZero() {
		skew := time.Until(date)
		skewed = (skew - used).Abs() > ec2Skew
		if skewed {
			e.skew.Store(int64(skew))
		} else if api, ok := errors.AsType[*smithy.GenericAPIError](err); ok && api.Code == "RequestExpired" {
			// EC2 says so of a request that is too old, and also of temporary keys that are over
			// (2016-11-15, error codes). It is signed for EC2's own time, so it is the keys, for
			// which the other services have this code.
			api.Code, api.Message = "ExpiredToken", api.Code+": "+api.Message
		}
	}
	return page, skewed, err
}

// refusal is the error of an answer that is none, as the SDK would give it.
func refusal(res *http.Response, answer []byte) error {
	var doc struct {
		Code      string `xml:"Errors>Error>Code"`
		Message   string `xml:"Errors>Error>Message"`
		RequestID string `xml:"RequestID"`
	}
	err := error(fmt.Errorf("the answer has status %d", res.StatusCode))
	if xml.Unmarshal(answer, &doc) == nil && doc.Code != "" {
		err = &smithy.GenericAPIError{Code: doc.Code, Message: doc.Message}
	}
	return &awshttp.ResponseError{RequestID: doc.RequestID, ResponseError: &smithyhttp.ResponseError{
		Response: &smithyhttp.Response{Response: res}, Err: err,
	}}
}
