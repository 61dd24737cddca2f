// Package initspec is the language between the runtime and fairway-init, the
// first process of every container.
//
// They talk over one Unix stream socket per container: JSON messages with a
// length before each, file descriptors as ancillary data. The runtime sends
// Requests, init sends Replies. The end of the socket means that the other side
// is gone: init then ends its container, so that no container outlives the
// runtime.
//
// It must stay small, as every container pays for what it imports.
package initspec
