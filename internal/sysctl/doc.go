// Package sysctl sets the kernel parameters of a node that kube-proxy sets, or
// that its Services need, remembers what they were, and puts them back.
//
// It must not touch parameters beyond its list, nor put back what somebody else
// has changed since.
package sysctl
