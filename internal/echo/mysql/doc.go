// Package mysql speaks the server's side of the MySQL client/server protocol
// as far as a client needs to log in, with or without TLS, and to ask who
// answers: SELECT of literals, variables and a few functions.
//
// It stores nothing and checks no password. It exists so that a genuine MySQL
// client can be used through Fairway's TCP listeners. The protocol is described
// at https://dev.mysql.com/doc/dev/mysql-server/latest/PAGE_PROTOCOL.html.
package mysql
