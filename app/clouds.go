package app

import (
	"cmp"
	"fmt"

	"example.org/usher/configs"
	"example.org/usher/providers"
	"example.org/usher/worker"
)

// cloud makes the clients of one provider. What a client needs it adds to clients, which its
// owner closes, whether making it fails or not.
type cloud interface {
	// assumed is the role with where the group has it assumed; no role: the worker's own keys.
	assumed(g configs.Group, role configs.Role) assumed
	// queue makes the client of the queue of that name where the group's own queue is.
	queue(g configs.Group, role assumed, name string, clients *closers) (queueClient, error)
	// group makes the clients for the group's actions and steps.
	group(g configs.Group, role assumed, clients *closers) (groupClients, error)
	// close ends what was not made for a queue or a group.
	close()
}

// clouds are the providers there are.
var clouds = map[string]func(o Options) cloud{
	configs.ProviderAlibaba: newAlibabaCloud,
	configs.ProviderAWS:     newAWSCloud,
}

type queueClient interface {
	providers.Queue
	worker.Sender
	Close()
}

type groupClients struct {
	lifecycle providers.Lifecycle
	commander providers.Commander
	balancers providers.Balancers // nil where no step of the group needs them
	account   string              // that its messages must name if they name any; "": not known
}

// assumed is a role and where it is assumed.
type assumed struct {
	configs.Role
	sts string
	// region is the STS's that is asked, where each region has its own.
	region string
}

// balancersAt is where balancers are reached, and by whom. Groups with equal values share
// one client, and so what it has listed, and its calls.
type balancersAt struct {
	region    string
	role      assumed
	endpoints configs.Endpoints
}

// keyring is the worker's own keys for one cloud, of type C, and those of the roles that its
// groups assume with them, of type R. Parts with the same role share its session.
type keyring[C any, R interface{ Close() }] struct {
	// find gives the worker's own keys, and what ends the search for them.
	find     func() (C, closeFunc, error)
	own      C
	found    bool
	end      closeFunc // nil: nothing to end
	sessions shared[assumed, R]
}

// ownKeys gives the worker's own keys, looked for once they are needed: a worker without
// groups of a cloud asks for no keys of it. Parts are made one after the other.
func (k *keyring[C, R]) ownKeys() (C, error) {
	if !k.found {
		own, end, err := k.find()
		if err != nil {
			return own, err
		}
		k.own, k.end, k.found = own, end, true
	}
	return k.own, nil
}

// session gives the keys of a role. When the part that asks is closed, clients ends their use.
func (k *keyring[C, R]) session(role assumed, clients *closers, assume func(own C) (R, error)) (session R, err error) {
	own, err := k.ownKeys()
	if err != nil {
		return session, err
	}
	session, end, err := k.sessions.use(role, func() (R, error) { return assume(own) })
	if err != nil {
		return session, fmt.Errorf("credentials: %w", err)
	}
	clients.add(end)
	return session, nil
}

func (k *keyring[C, R]) close() {
	if k.end != nil {
		k.end()
	}
}

// sessionName tells in ActionTrail or CloudTrail which worker made a call, and names the
// sessions of roles that give no name: at most 64 characters.
func sessionName(worker string) string {
	name := "usher-" + worker // all that a worker's name may have, a session's may have, too
	return name[:min(len(name), 64)]
}

// sessionOf is the name of a role's session.
func sessionOf(role assumed, o Options) string {
	return cmp.Or(role.SessionName, sessionName(o.Config.Worker.Name))
}
