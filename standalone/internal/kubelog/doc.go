// Package kubelog makes the log of embedded Kubernetes components quiet: one line for what a person should look at, none
// for the rest.
//
// It owns the process-wide settings of klog, which every Kubernetes component logs through. A process calls Setup once,
// before it starts the first component.
package kubelog
