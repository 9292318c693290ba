package app

import (
	"example.org/usher/configs"
	"example.org/usher/providers"
	"example.org/usher/providers/aws"
)

// awsCloud makes the clients of AWS. Each has a rate limit of its own, the SDK's adaptive one,
// so that what is throttled in one group slows no other one down.
type awsCloud struct {
	o         Options
	keys      keyring[aws.Credentials, *aws.AssumedRole]
	region    string // of the first group, for the worker's own keys
	balancers shared[balancersAt, *aws.Balancers]
}

func newAWSCloud(o Options) cloud {
	c := &awsCloud{o: o}
	c.keys.find = c.find
	return c
}

func (c *awsCloud) close() { c.keys.close() }

// find gives the worker's own keys by Options, or by the SDK's chain.
func (c *awsCloud) find() (aws.Credentials, closeFunc, error) {
	if c.o.AWSCredentials != nil {
		return c.o.AWSCredentials, nil, nil
	}
	o := c.shared()
	o.Region = c.region
	chain, err := aws.NewChain(o, sessionName(c.o.Config.Worker.Name))
	if err != nil {
		return nil, nil, err
	}
	return chain, chain.Close, nil
}

// shared are the options of all clients.
func (c *awsCloud) shared() aws.Options {
	return aws.Options{DialContext: c.o.DialContext, Logger: c.o.Logger}
}

// options are those of the group's clients, which sign with the role's keys.
func (c *awsCloud) options(g configs.Group, role assumed, clients *closers) (o aws.Options, err error) {
	if c.region == "" {
		c.region = g.Region
	}
	o = c.shared()
	o.Region, o.QueueAccount, o.VisibilityTimeout = g.Region, g.Queue.Account, c.o.Config.Worker.VisibilityTimeout
	o.SQSEndpoint, o.AutoScalingEndpoint, o.ELBEndpoint = g.Queue.Endpoint, g.Endpoints.AutoScaling, g.Endpoints.ELB
	o.SSMEndpoint, o.EC2Endpoint = g.Endpoints.SSM, g.Endpoints.EC2
	if role == (assumed{}) {
		o.Credentials, err = c.keys.ownKeys()
		return o, err
	}
	o.Credentials, err = c.keys.session(role, clients, func(own aws.Credentials) (*aws.AssumedRole, error) {
		s := c.shared()
		s.Credentials, s.STSEndpoint, s.Region = own, role.sts, role.region
		return aws.NewAssumedRole(s, aws.Role{
			ARN: role.ARN, SessionName: sessionOf(role, c.o), ExternalID: role.ExternalID, Duration: role.Duration,
		})
	})
	return o, err
}

// assumed has the role assumed in the group's own region: groups in others do not need that one.
func (c *awsCloud) assumed(g configs.Group, role configs.Role) assumed {
	if role == (configs.Role{}) {
		return assumed{}
	}
	return assumed{Role: role, sts: g.Endpoints.STS, region: g.Region}
}

func (c *awsCloud) queue(g configs.Group, role assumed, name string, clients *closers) (queueClient, error) {
	o, err := c.options(g, role, clients)
	if err != nil {
		return nil, err
	}
	o.QueueName = name
	client, err := aws.NewQueue(o)
	if err != nil {
		return nil, err
	}
	clients.add(client)
	return client, nil
}

func (c *awsCloud) group(g configs.Group, role assumed, clients *closers) (made groupClients, err error) {
	o, err := c.options(g, role, clients)
	if err != nil {
		return made, err
	}
	scaling, err := aws.NewScaling(o)
	if err != nil {
		return made, err
	}
	clients.add(scaling)
	commander, err := aws.NewCommander(o)
	if err != nil {
		return made, err
	}
	clients.add(commander)
	made = groupClients{lifecycle: scaling, commander: commander, account: g.AssumeRole.Account()}
	if g.UsesBalancers() {
		made.balancers, err = c.sharedBalancers(balancersAt{g.Region, role, g.Endpoints}, o, clients)
	}
	return made, err
}

// sharedBalancers is the client for groups whose balancers are at one place. When the group
// is closed, clients ends its use.
func (c *awsCloud) sharedBalancers(at balancersAt, o aws.Options, clients *closers) (providers.Balancers, error) {
	client, end, err := c.balancers.use(at, func() (*aws.Balancers, error) { return aws.NewBalancers(o) })
	if err != nil {
		return nil, err
	}
	clients.add(end)
	return client, nil
}
