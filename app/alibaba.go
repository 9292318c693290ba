package app

import (
	"cmp"

	"example.org/usher/configs"
	"example.org/usher/providers"
	"example.org/usher/providers/alibaba"
)

// alibabaCloud makes the clients of Alibaba Cloud.
type alibabaCloud struct {
	o    Options
	keys keyring[alibaba.Credentials, *alibaba.AssumedRole]
	// The groups of a region and account draw on one quota, whichever address they call.
	pacers    map[quotaKey]*alibaba.Pacer
	balancers shared[balancersAt, *alibaba.Balancers]
}

type quotaKey struct{ region, account string }

func newAlibabaCloud(o Options) cloud {
	c := &alibabaCloud{o: o, pacers: map[quotaKey]*alibaba.Pacer{}}
	c.keys.find = c.find
	return c
}

func (c *alibabaCloud) close() { c.keys.close() }

// find gives the worker's own keys by Options, or by the vendor's chain.
func (c *alibabaCloud) find() (alibaba.Credentials, closeFunc, error) {
	if c.o.Credentials != nil {
		return c.o.Credentials, nil, nil
	}
	w := c.o.Config.Worker
	o := c.shared()
	o.STSEndpoint, o.MetadataEndpoint = w.Endpoints.STS, w.Endpoints.Metadata
	chain, err := alibaba.NewChain(o, sessionName(w.Name))
	if err != nil {
		return nil, nil, err
	}
	return chain, chain.Close, nil
}

// shared are the options of all clients.
func (c *alibabaCloud) shared() alibaba.Options {
	return alibaba.Options{DialContext: c.o.DialContext, Logger: c.o.Logger}
}

// options are those of the group's clients, which sign with the role's keys.
func (c *alibabaCloud) options(g configs.Group, role assumed, clients *closers) (o alibaba.Options, err error) {
	o = c.shared()
	o.Region, o.QueueEndpoint = g.Region, g.Queue.Endpoint
	o.ESSEndpoint, o.ECSEndpoint = g.Endpoints.ESS, g.Endpoints.ECS
	o.SLBEndpoint, o.ALBEndpoint, o.NLBEndpoint = g.Endpoints.SLB, g.Endpoints.ALB, g.Endpoints.NLB
	o.Pacer = c.pacer(quotaKey{g.Region, g.AssumeRole.Account()})
	if role == (assumed{}) {
		o.Credentials, err = c.keys.ownKeys()
		return o, err
	}
	o.Credentials, err = c.keys.session(role, clients, func(own alibaba.Credentials) (*alibaba.AssumedRole, error) {
		s := c.shared()
		s.Credentials, s.STSEndpoint, s.Region = own, role.sts, g.Region
		return alibaba.NewAssumedRole(s, alibaba.Role{
			ARN: role.ARN, SessionName: sessionOf(role, c.o), ExternalID: role.ExternalID, Duration: role.Duration,
		})
	})
	return o, err
}

func (c *alibabaCloud) pacer(key quotaKey) *alibaba.Pacer {
	if c.pacers[key] == nil {
		c.pacers[key] = new(alibaba.Pacer)
	}
	return c.pacers[key]
}

func (c *alibabaCloud) assumed(g configs.Group, role configs.Role) assumed {
	if role == (configs.Role{}) {
		return assumed{}
	}
	return assumed{Role: role, sts: cmp.Or(g.Endpoints.STS, c.o.Config.Worker.Endpoints.STS)}
}

func (c *alibabaCloud) queue(g configs.Group, role assumed, name string, clients *closers) (queueClient, error) {
	o, err := c.options(g, role, clients)
	if err != nil {
		return nil, err
	}
	o.QueueName = name
	client, err := alibaba.NewQueue(o)
	if err != nil {
		return nil, err
	}
	clients.add(client)
	return client, nil
}

func (c *alibabaCloud) group(g configs.Group, role assumed, clients *closers) (made groupClients, err error) {
	o, err := c.options(g, role, clients)
	if err != nil {
		return made, err
	}
	scaling, err := alibaba.NewScaling(o)
	if err != nil {
		return made, err
	}
	clients.add(scaling)
	assistant, err := alibaba.NewAssistant(o)
	if err != nil {
		return made, err
	}
	clients.add(assistant)
	made = groupClients{lifecycle: scaling, commander: assistant}
	if g.UsesBalancers() {
		made.balancers, err = c.sharedBalancers(balancersAt{g.Region, role, g.Endpoints}, o, clients)
	}
	return made, err
}

// sharedBalancers is the client for groups whose balancers are at one place. When the group
// is closed, clients ends its use.
func (c *alibabaCloud) sharedBalancers(at balancersAt, o alibaba.Options, clients *closers) (providers.Balancers, error) {
	client, end, err := c.balancers.use(at, func() (*alibaba.Balancers, error) { return alibaba.NewBalancers(o) })
	if err != nil {
		return nil, err
	}
	clients.add(end)
	return client, nil
}
