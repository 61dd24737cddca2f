// Package agent wires Fairway's roles: node, gateway and controller. Each role
// is one ordered list of parts in a file of its own; nothing else in the tree
// knows which parts there are, or whether the API is embedded or remote.
//
// It must not hold logic of its own beyond starting, stopping and telling that
// a role is ready.
package agent
