package mysql

import (
	"crypto/tls"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// value is one field of a row.
type value struct {
	text   string
	number bool
	null   bool
}

// sqlError is an error as MySQL numbers it.
type sqlError struct {
	code    uint16
	state   string
	message string
}

// Error implements error.
func (e *sqlError) Error() string { return e.message }

func syntaxError(near string) error {
	return &sqlError{1064, "42000", fmt.Sprintf("this server only answers SELECT of literals, variables and functions such as version(); it does not understand %q", near)}
}

// query answers one statement.
func (ss *session) query(text string) error {
	if !utf8.ValidString(text) {
		return ss.fail(1300, "HY000", "the statement is not UTF-8")
	}
	statement := strings.TrimRight(stripComments(text), "; \t\r\n")
	word, rest, _ := strings.Cut(strings.ReplaceAll(statement, "\n", " "), " ")
	switch strings.ToUpper(word) {
	case "SET", "USE", "BEGIN", "START", "COMMIT", "ROLLBACK":
		if strings.EqualFold(word, "USE") {
			ss.db = strings.Trim(strings.TrimSpace(rest), "`")
		}
		return ss.ok()
	case "SHOW":
		return ss.show(rest)
	case "SELECT":
		return ss.selectRow(rest)
	case "":
		return ss.fail(1065, "42000", "Query was empty")
	}
	e := syntaxError(statement).(*sqlError)
	return ss.fail(e.code, e.state, e.message)
}

func (ss *session) selectRow(list string) error {
	columns, row, err := ss.evaluate(list)
	if e, ok := err.(*sqlError); ok {
		return ss.fail(e.code, e.state, e.message)
	} else if err != nil {
		return err
	}
	return ss.result(columns, row)
}

// show answers SHOW VARIABLES LIKE and SHOW STATUS LIKE for names known here.
func (ss *session) show(rest string) error {
	m := showPattern().FindStringSubmatch(rest)
	if m == nil {
		return ss.result([]string{"Variable_name"}, nil)
	}
	name := strings.ToLower(m[1])
	v, ok := ss.variable(name)
	if !ok {
		return ss.result([]string{"Variable_name", "Value"}, nil)
	}
	return ss.result([]string{"Variable_name", "Value"}, []value{{text: name}, {text: v.text}})
}

func showPattern() *regexp.Regexp {
	return regexp.MustCompile(`(?i)^\s*(?:(?:global|session)\s+)?(?:variables|status)\s+like\s+['"]([a-z_]+)['"]\s*$`)
}

// evaluate computes the items of a select list. Column names are the items as
// written, as in MySQL, or their aliases.
func (ss *session) evaluate(list string) (columns []string, row []value, err error) {
	list = regexp.MustCompile(`(?i)\s+(limit\s+\d+|from\s+dual)\s*$`).ReplaceAllString(list, "")
	alias := regexp.MustCompile("(?i)^(.*\\S)\\s+as\\s+[`'\"]?([^`'\"]+)[`'\"]?$")
	for _, item := range splitList(list) {
		name := item
		if m := alias.FindStringSubmatch(item); m != nil {
			item, name = m[1], m[2]
		}
		v, err := ss.value(item)
		if err != nil {
			return nil, nil, err
		}
		columns, row = append(columns, strings.Trim(name, `'"`)), append(row, v)
	}
	return columns, row, nil
}

func (ss *session) value(item string) (value, error) {
	if item == "" {
		return value{}, syntaxError(item)
	}
	if n, err := strconv.ParseInt(item, 10, 64); err == nil {
		return value{text: strconv.FormatInt(n, 10), number: true}, nil
	}
	if q := item[0]; (q == '\'' || q == '"') && len(item) > 1 && item[len(item)-1] == q {
		return value{text: strings.ReplaceAll(item[1:len(item)-1], string([]byte{q, q}), string(q))}, nil
	}
	if name, ok := strings.CutPrefix(item, "@@"); ok {
		name = strings.ToLower(name)
		name = strings.TrimPrefix(strings.TrimPrefix(name, "global."), "session.")
		v, ok := ss.variable(name)
		if !ok {
			return value{}, &sqlError{1193, "HY000", fmt.Sprintf("Unknown system variable '%s'", name)}
		}
		return v, nil
	}
	if strings.HasPrefix(item, "@") || strings.EqualFold(item, "null") {
		return value{null: true}, nil
	}
	return ss.function(item)
}

func (ss *session) function(item string) (value, error) {
	switch strings.ToLower(strings.ReplaceAll(item, " ", "")) {
	case "version()":
		return value{text: version}, nil
	case "connection_id()":
		return value{text: strconv.FormatUint(uint64(ss.id), 10), number: true}, nil
	case "database()", "schema()":
		return value{text: ss.db, null: ss.db == ""}, nil
	case "user()", "current_user()", "current_user", "session_user()", "system_user()":
		return value{text: ss.user + "@" + ss.clientHost()}, nil
	}
	return value{}, syntaxError(item)
}

// variable is a system or status variable that clients ask for.
func (ss *session) variable(name string) (value, bool) {
	switch name {
	case "hostname":
		return value{text: ss.server.Hostname}, true
	case "version":
		return value{text: version}, true
	case "version_comment":
		return value{text: "Fairway's echo"}, true
	case "max_allowed_packet":
		return value{text: strconv.Itoa(maxPacket), number: true}, true
	case "ssl_cipher":
		if ss.tls == nil {
			return value{}, true
		}
		return value{text: tls.CipherSuiteName(ss.tls.CipherSuite)}, true
	case "ssl_version":
		if ss.tls == nil {
			return value{}, true
		}
		return value{text: tls.VersionName(ss.tls.Version)}, true
	case "character_set_client", "character_set_connection", "character_set_results", "character_set_server", "character_set_database":
		return value{text: "utf8mb4"}, true
	case "collation_connection", "collation_server":
		return value{text: "utf8mb4_general_ci"}, true
	case "transaction_isolation", "tx_isolation":
		return value{text: "REPEATABLE-READ"}, true
	case "time_zone", "system_time_zone":
		return value{text: "SYSTEM"}, true
	case "autocommit", "auto_increment_increment", "lower_case_table_names":
		return value{text: "1", number: true}, true
	case "wait_timeout", "interactive_timeout":
		return value{text: "28800", number: true}, true
	case "sql_mode", "init_connect", "license":
		return value{}, true
	}
	return value{}, false
}

// splitList splits at commas outside quotes and parentheses.
func splitList(s string) []string {
	var items []string
	var quote byte
	depth, start := 0, 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"' || c == '`':
			quote = c
		case c == '(':
			depth++
		case c == ')':
			depth--
		case c == ',' && depth == 0:
			items = append(items, strings.TrimSpace(s[start:i]))
			start = i + 1
		}
	}
	return append(items, strings.TrimSpace(s[start:]))
}

// stripComments removes the leading comments that drivers put before a statement.
func stripComments(s string) string {
	for {
		s = strings.TrimSpace(s)
		if !strings.HasPrefix(s, "/*") {
			return s
		}
		_, after, ok := strings.Cut(s, "*/")
		if !ok {
			return ""
		}
		s = after
	}
}
