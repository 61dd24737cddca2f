// Package proxyproto writes headers of the PROXY protocol of HAProxy
// (https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt), by which a
// proxy tells a backend who its client is. They are read by package listener.
package proxyproto
