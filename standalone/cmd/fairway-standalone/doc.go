// Command fairway-standalone is the Kubernetes inside Fairway's standalone mode: the control plane (control), a node
// whose containers are host processes (node), and kubectl. "fairway up" starts and watches these processes; they can
// also be run by hand.
package main
