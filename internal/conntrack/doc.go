// Package conntrack makes the kernel forget UDP flows that lead to nobody.
//
// The kernel remembers where it sent a UDP client and keeps sending it there
// while the client sends, however long its endpoint has been gone, or goes on
// sending it nowhere after a Service got its first endpoint. So after a change
// of a UDP Service its flows to endpoints that do not serve any more are
// removed. TCP is left alone: its connections end by themselves.
//
// The kernel selects the flows of a frontend; they are not all read on a
// change, unless very many frontends changed at once.
package conntrack
