package alibaba

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aliyun/alibaba-cloud-sdk-go/sdk/requests"
	"github.com/aliyun/alibaba-cloud-sdk-go/services/ess"

	"example.org/usher/messages"
	"example.org/usher/providers"
)

// The limits of ESS 2014-08-28.
const (
	essHeartbeats   = 20
	essMaxWait      = 6 * time.Hour
	essMinExtension = 30 * time.Second
	essMaxExtension = 21600 * time.Second
	// essMaxIDs is how many InstanceId.N one DescribeScalingInstances takes.
	essMaxIDs = 20
	essPage   = 50
	// essMaxPages ends a listing whose pages lead in a circle.
	essMaxPages = 100
)

// lookups is how many calls of one Verify or Instances run at the same time.
const lookups = 8

// Scaling is Auto Scaling (ESS) as a Lifecycle. What ESS does not tell of an instance
// it asks of ECS.
type Scaling struct {
	*rpc
	ecs *ecs
}

var _ providers.Lifecycle = (*Scaling)(nil)

// NewScaling makes a client of ESS in o.Region. It does not call the service.
func NewScaling(o Options) (*Scaling, error) {
	r, err := newRPC(o, "ess", "ESSEndpoint", o.ESSEndpoint, essHost)
	if err != nil {
		return nil, err
	}
	e, err := newECS(o)
	if err != nil {
		return nil, err
	}
	return &Scaling{rpc: r, ecs: e}, nil
}

// essHosts is the SDK's table of the regions that the central endpoint serves. It is
// read here, once: the SDK fills it on first use without a lock.
var essHosts = sync.OnceValue(ess.GetEndpointMap)

func essHost(region string) string {
	return cmp.Or(essHosts()[region], "ess."+region+".aliyuncs.com")
}

// Close drops idle connections. Calls in flight go on.
func (s *Scaling) Close() {
	s.close()
	s.ecs.close()
}

// Limits is 20 heartbeats and 6 hours an action, 30 s to 6 h each.
func (s *Scaling) Limits(time.Duration) providers.HeartbeatLimits {
	return providers.HeartbeatLimits{
		Calls: essHeartbeats, MaxWait: essMaxWait, MinExtension: essMinExtension, MaxExtension: essMaxExtension,
	}
}

// GroupsOf has nothing to do: ESS announces lifecycle actions alone.
func (s *Scaling) GroupsOf(context.Context, []messages.InstanceID) (map[messages.InstanceID]messages.GroupID, error) {
	return nil, fmt.Errorf("find the groups of instances: %w", providers.ErrUnsupported)
}

// Hook reads one hook with DescribeLifecycleHooks.
func (s *Scaling) Hook(ctx context.Context, group messages.GroupID, hook messages.HookID) (providers.Hook, error) {
	const action = "DescribeLifecycleHooks"
	response, err := invoke(ctx, s.rpc, looks(action), s.region, func() (acsRequest, *ess.DescribeLifecycleHooksResponse) {
		request := ess.CreateDescribeLifecycleHooksRequest()
		request.ScalingGroupId = string(group)
		request.LifecycleHookId = &[]string{string(hook)}
		request.PageSize = requests.NewInteger(essPage)
		return request, ess.CreateDescribeLifecycleHooksResponse()
	})
	if err != nil {
		return providers.Hook{}, fmt.Errorf("hook %s of group %s: %w", hook, group, err)
	}
	for _, h := range response.LifecycleHooks.LifecycleHook {
		if h.LifecycleHookId == string(hook) && h.ScalingGroupId == string(group) {
			return providers.Hook{
				ID: hook, Name: h.LifecycleHookName, Group: group,
				Transition:    messages.Transition(strings.ToLower(h.LifecycleTransition)),
				Timeout:       time.Duration(h.HeartbeatTimeout) * time.Second,
				DefaultResult: messages.Result(strings.ToUpper(h.DefaultResult)),
			}, nil
		}
	}
	if response.TotalCount > len(response.LifecycleHooks.LifecycleHook) {
		return providers.Hook{}, fmt.Errorf("hook %s of group %s: %w", hook, group, holes(action))
	}
	return providers.Hook{}, fmt.Errorf("hook %s of group %s: %w", hook, group,
		&providers.Error{Op: action, Kind: providers.ErrNotFound, RequestID: response.RequestId})
}

// Heartbeat sends RecordLifecycleActionHeartbeat with d in whole seconds, at least 30
// and at most 21600. It is sent again only when it surely had no effect: each that had
// one costs a call of the action's budget, and the caller counts them.
func (s *Scaling) Heartbeat(ctx context.Context, a messages.Action, d time.Duration) (providers.Grant, error) {
	d = wholeSeconds(d, essMinExtension, essMaxExtension)
	var sent time.Time
	response, err := invokeWhen(ctx, s.rpc, whenUntouched, s.answers("RecordLifecycleActionHeartbeat", a), s.regionOf(a), func() (acsRequest, *ess.RecordLifecycleActionHeartbeatResponse) {
		sent = time.Now()
		request := ess.CreateRecordLifecycleActionHeartbeatRequest()
		request.LifecycleHookId = string(a.Hook)
		request.LifecycleActionToken = string(a.Token)
		request.HeartbeatTimeout = requests.NewInteger(int(d / time.Second))
		return request, ess.CreateRecordLifecycleActionHeartbeatResponse()
	})
	if err != nil {
		return providers.Grant{}, fmt.Errorf("heartbeat of %s: %w", a.Token, err)
	}
	return providers.Grant{Until: sent.Add(d), RequestID: response.RequestId}, nil
}

// Complete sends CompleteLifecycleAction. Its ClientToken is made of hook, token and
// result, so that a repeat, by this worker or another, is the same request to ESS.
func (s *Scaling) Complete(ctx context.Context, a messages.Action, r messages.Result) (string, error) {
	response, err := invoke(ctx, s.rpc, s.answers("CompleteLifecycleAction", a), s.regionOf(a), func() (acsRequest, *ess.CompleteLifecycleActionResponse) {
		request := ess.CreateCompleteLifecycleActionRequest()
		request.LifecycleHookId = string(a.Hook)
		request.LifecycleActionToken = string(a.Token)
		request.LifecycleActionResult = string(r)
		request.ClientToken = clientToken(string(a.Hook), string(a.Token), string(r))
		return request, ess.CreateCompleteLifecycleActionResponse()
	})
	if err != nil {
		return "", fmt.Errorf("complete %s with %s: %w", a.Token, r, err)
	}
	return response.RequestId, nil
}

// answers is an operation on a lifecycle action, which RAM allows by scaling group.
func (s *Scaling) answers(name string, a messages.Action) rpcOp {
	return rpcOp{name, fmt.Sprintf("acs:ess:%s:*:scalinggroup/%s", s.regionOf(a), a.Group)}
}

// clientToken is 64 ASCII characters, the most that ESS and ECS take.
func clientToken(parts ...string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return hex.EncodeToString(sum[:])
}

func (s *Scaling) regionOf(a messages.Action) string { return cmp.Or(a.Region, s.region) }

// Instances looks instances up with DescribeScalingInstances, 20 in one call, and those
// that it does not list, or whose address it does not tell, with DescribeInstances. One
// that neither knows is gone.
func (s *Scaling) Instances(ctx context.Context, region string, ids []messages.InstanceID) ([]messages.Instance, error) {
	region = cmp.Or(region, s.region)
	found := newRegister()
	for _, id := range ids {
		found.want(region, id)
	}
	s.lookUp(ctx, found)
	s.supplement(ctx, found, found.incomplete())
	out := make([]messages.Instance, len(ids))
	for i, id := range ids {
		record := found.get(region, id)
		if record.err != nil {
			return nil, fmt.Errorf("instances: %w", record.err)
		}
		out[i] = record.instance(id)
	}
	return out, nil
}

// Tags reads the tags of instances with DescribeInstances, 100 in one call.
func (s *Scaling) Tags(ctx context.Context, region string, ids []messages.InstanceID) (map[messages.InstanceID]map[string]string, error) {
	tags := map[messages.InstanceID]map[string]string{}
	for chunk := range slices.Chunk(ids, ecsMaxIDs) {
		found, err := s.ecs.machines(ctx, cmp.Or(region, s.region), chunk)
		if err != nil {
			return nil, fmt.Errorf("read tags: %w", err)
		}
		for id, m := range found {
			tags[id] = m.tags()
		}
	}
	return tags, nil
}

// register is what the cloud says of instances.
type register struct {
	mu      sync.Mutex
	records map[regionalInstance]*record // guarded by mu
}

type regionalInstance struct {
	region string
	id     messages.InstanceID
}

// record is the answer for one instance: an error, nothing, or what ESS and, where that
// was not enough, ECS know.
type record struct {
	asked   bool
	err     error
	known   *ess.ScalingInstance
	machine *machine
}

// incomplete: ESS does not list the instance, or not where it can be reached.
func (r record) incomplete() bool {
	return r.asked && r.err == nil && !r.instance("").PrivateIP.IsValid()
}

func newRegister() *register { return &register{records: map[regionalInstance]*record{}} }

// want notes an instance to look up.
func (g *register) want(region string, id messages.InstanceID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := regionalInstance{region, id}
	if g.records[key] == nil {
		g.records[key] = new(record)
	}
}

func (g *register) get(region string, id messages.InstanceID) record {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r := g.records[regionalInstance{region, id}]; r != nil {
		return *r
	}
	return record{}
}

// open gives the instances that were not asked for yet, in chunks of one call each.
func (g *register) open() [][]regionalInstance {
	g.mu.Lock()
	defer g.mu.Unlock()
	var keys []regionalInstance
	for key, r := range g.records {
		if !r.asked {
			r.asked = true
			keys = append(keys, key)
		}
	}
	sortKeys(keys)
	return inChunks(keys, essMaxIDs)
}

func sortKeys(keys []regionalInstance) {
	slices.SortFunc(keys, func(a, b regionalInstance) int {
		return cmp.Or(strings.Compare(a.region, b.region), strings.Compare(string(a.id), string(b.id)))
	})
}

// inChunks cuts sorted keys into calls: one region each, and no more than most ids.
func inChunks(keys []regionalInstance, most int) [][]regionalInstance {
	var chunks [][]regionalInstance
	for i := 0; i < len(keys); {
		j := i + 1
		for j < len(keys) && j-i < most && keys[j].region == keys[i].region {
			j++
		}
		chunks = append(chunks, keys[i:j])
		i = j
	}
	return chunks
}

// incomplete gives the instances that ECS must be asked about.
func (g *register) incomplete() []regionalInstance {
	g.mu.Lock()
	defer g.mu.Unlock()
	var keys []regionalInstance
	for key, r := range g.records {
		if r.incomplete() {
			keys = append(keys, key)
		}
	}
	return keys
}

// enter notes what was found; err goes for the others.
func (g *register) enter(chunk []regionalInstance, instances []ess.ScalingInstance, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, key := range chunk {
		g.records[key].err = err
	}
	for _, in := range instances {
		if r := g.records[regionalInstance{chunk[0].region, messages.InstanceID(in.InstanceId)}]; r != nil {
			r.known, r.err = &in, nil
		}
	}
}

// lookUp asks for all that is open, several chunks at a time.
func (s *Scaling) lookUp(ctx context.Context, g *register) {
	var tasks []func()
	for _, chunk := range g.open() {
		tasks = append(tasks, func() { s.lookUpChunk(ctx, g, chunk) })
	}
	atOnce(tasks)
}

// lookUpChunk names the instances and no group, so that an instance of another group
// shows up as such.
func (s *Scaling) lookUpChunk(ctx context.Context, g *register, chunk []regionalInstance) {
	ids := make([]string, len(chunk))
	for i, key := range chunk {
		ids[i] = string(key.id)
	}
	response, err := invoke(ctx, s.rpc, looks("DescribeScalingInstances"), chunk[0].region, func() (acsRequest, *ess.DescribeScalingInstancesResponse) {
		request := ess.CreateDescribeScalingInstancesRequest()
		request.InstanceId = &ids
		request.PageSize = requests.NewInteger(essPage)
		return request, ess.CreateDescribeScalingInstancesResponse()
	})
	if err != nil {
		g.enter(chunk, nil, err)
		return
	}
	if response.TotalCount > len(response.ScalingInstances.ScalingInstance) {
		err = holes("DescribeScalingInstances")
	}
	g.enter(chunk, response.ScalingInstances.ScalingInstance, err)
}

// supplement asks ECS about instances that ESS tells too little of.
func (s *Scaling) supplement(ctx context.Context, g *register, keys []regionalInstance) {
	sortKeys(keys)
	var tasks []func()
	for _, chunk := range inChunks(keys, ecsMaxIDs) {
		tasks = append(tasks, func() {
			ids := make([]messages.InstanceID, len(chunk))
			for i, key := range chunk {
				ids[i] = key.id
			}
			found, err := s.ecs.machines(ctx, chunk[0].region, ids)
			g.mu.Lock()
			defer g.mu.Unlock()
			for _, key := range chunk {
				r := g.records[key]
				r.err = err
				if m, ok := found[key.id]; ok {
					r.machine, r.err = &m, nil
				}
			}
		})
	}
	atOnce(tasks)
}

// atOnce runs the tasks, a bounded number at a time, and waits for all.
func atOnce(tasks []func()) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, lookups)
	for _, task := range tasks {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			task()
		})
	}
	wg.Wait()
}

// instance translates a record.
func (r record) instance(id messages.InstanceID) messages.Instance {
	out := messages.Instance{ID: id, Gone: r.known == nil && r.machine == nil}
	if r.machine != nil {
		out.PrivateIP, out.Zone, out.State = r.machine.address(), r.machine.ZoneID, r.machine.Status
	}
	if r.known != nil {
		out.Zone, out.State = r.known.ZoneId, r.known.LifecycleState
		if ip := parseAddress(r.known.PrivateIpAddress); ip.IsValid() {
			out.PrivateIP = ip
		}
	}
	return out
}

// list gives all lifecycle actions of an activity, page by page, and whether those are
// as many as the service counts.
func (s *Scaling) list(ctx context.Context, region string, activity messages.ActivityID) (all []ess.LifecycleAction, whole bool, err error) {
	next := ""
	for range essMaxPages {
		response, err := invoke(ctx, s.rpc, looks("DescribeLifecycleActions"), region, func() (acsRequest, *ess.DescribeLifecycleActionsResponse) {
			request := ess.CreateDescribeLifecycleActionsRequest()
			request.ScalingActivityId = string(activity)
			request.MaxResults = requests.Integer(strconv.Itoa(essPage))
			request.NextToken = next
			return request, ess.CreateDescribeLifecycleActionsResponse()
		})
		if err != nil {
			return nil, false, err
		}
		page := response.LifecycleActions.LifecycleAction
		if len(page) > essPage {
			return nil, false, &providers.Error{
				Op: "DescribeLifecycleActions", Kind: providers.ErrUnavailable, RequestID: response.RequestId,
				Message: fmt.Sprintf("a page of %d was asked for, and %d came", essPage, len(page)),
			}
		}
		all = append(all, page...)
		if response.NextToken == "" || response.NextToken == next {
			return all, len(all) >= response.TotalCount, nil
		}
		next = response.NextToken
	}
	return all, false, nil
}
