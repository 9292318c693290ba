// Package providertest is one suite that the provider of every cloud passes: what package
// providers promises, held against the simulated cloud over its own wire protocol, in the
// time of a synctest bubble.
//
// A cloud says how it is set up and reached (Cloud), which of its operations each call of the
// contract makes (API), and where it differs from the others (Differences). No case is left
// out for a cloud: where the clouds differ, the case asserts the difference.
package providertest
