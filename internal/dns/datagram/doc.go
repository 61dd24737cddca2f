// Package datagram is UDP for servers that answer many small packets: several
// sockets share an address, one for each core, and a system call takes or
// sends as many packets as there are (recvmmsg, sendmmsg), with nothing
// allocated on the way.
//
// It knows nothing of what the packets hold.
package datagram
