package corefile

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"fairway.dev/fairway/internal/model"
)

// rewrite reads rewrite [continue|stop] name [MATCH] FROM TO [answer ...], on
// one line or in braces.
func (c *compiler) rewrite(b *model.DNSBlock, d directive) error {
	args := d.args
	if len(args) >= 2 && len(d.body) > 0 {
		return d.name.errorf("rewrite stands on one line, or in braces but for stop or continue, and not in both")
	}
	if len(args) < 2 {
		for _, line := range d.body {
			args = append(args, line...)
		}
	}
	var r model.DNSRewrite
	if len(args) > 0 && (args[0].text == "continue" || args[0].text == "stop") {
		r.Continue = args[0].text == "continue"
		args = args[1:]
	}
	if len(args) == 0 {
		return d.name.errorf("rewrite of nothing; write rewrite name FROM TO")
	}
	switch kind := strings.ToLower(args[0].text); kind {
	case "name":
	case "type", "class", "edns0", "ttl", "cname", "rcode":
		c.add(d.name, "rewrite "+kind, "only rewrite name is known")
		return nil
	default:
		return d.name.errorf("rewrite %s: there is no such thing to rewrite; write rewrite name FROM TO", args[0].text)
	}
	args = args[1:]
	r.Match = model.DNSExact
	if len(args) >= 3 {
		r.Match = model.DNSMatch(strings.ToLower(args[0].text))
		args = args[1:]
	}
	if len(args) < 2 {
		return d.name.errorf("rewrite name takes what to look for and what takes its place")
	}
	r.From, r.To = args[0].text, strings.ToLower(dns.Fqdn(args[1].text))
	answers := args[2:]
	switch r.Match {
	case model.DNSExact, model.DNSPrefix, model.DNSSuffix, model.DNSSubstring:
		if r.From == "" {
			return args[0].errorf("rewrite name %s of nothing; write what to look for", r.Match)
		}
		// All of them, as in CoreDNS: a prefix ends with a label.
		r.From = strings.ToLower(dns.Fqdn(r.From))
	case model.DNSRegex:
		if err := checkRegexp(args[0], args[1]); err != nil {
			return err
		}
	default:
		return d.name.errorf("rewrite name %s: want exact, prefix, suffix, substring or regex", r.Match)
	}
	r.Auto = r.Match == model.DNSExact
	if len(answers) > 0 && answers[0].text == "metadata" {
		c.add(d.name, "rewrite name ... metadata", "only rules without metadata are known")
		return nil
	}
	if err := answerRules(d.name, answers, &r); err != nil {
		return err
	}
	b.Rewrites = append(b.Rewrites, r)
	return nil
}

// answerRules reads answer auto, answer name FROM TO and answer value FROM TO.
func answerRules(at token, args []token, r *model.DNSRewrite) error {
	auto, names := false, false
	for i := 0; i < len(args); {
		if args[i].text == "answer" {
			i++
		} else if i == 0 {
			return args[i].errorf("rewrite name: %q is too much; what changes the answer begins with the word answer", args[i].text)
		}
		if i == len(args) {
			return at.errorf("rewrite name: answer takes auto, name FROM TO, or value FROM TO")
		}
		switch kind := args[i].text; kind {
		case "auto":
			auto = true
			i++
		case "name", "value":
			if i+2 >= len(args) {
				return args[i].errorf("rewrite name: answer %s takes what to look for and what takes its place", kind)
			}
			if err := checkRegexp(args[i+1], args[i+2]); err != nil {
				return err
			}
			r.Answers = append(r.Answers, model.DNSAnswerRewrite{
				Value: kind == "value", From: args[i+1].text, To: strings.ToLower(dns.Fqdn(args[i+2].text)),
			})
			names = names || kind == "name"
			i += 3
		default:
			return args[i].errorf("rewrite name: answer %s: want auto, name FROM TO, or value FROM TO", kind)
		}
	}
	if auto && names {
		return at.errorf("rewrite name: answer auto and answer name say the same in two ways; leave one off")
	}
	r.Auto = r.Auto || auto
	return nil
}

// maxRegexp bounds what a pattern may cost.
const maxRegexp = 1000

func checkRegexp(from, to token) error {
	if len(from.text) > maxRegexp {
		return from.errorf("a regular expression of %d bytes; at most %d", len(from.text), maxRegexp)
	}
	re, err := regexp.Compile(from.text)
	if err != nil {
		return from.errorf("%v", err)
	}
	for i := re.NumSubexp() + 1; i <= 100; i++ {
		if strings.Contains(to.text, "{"+strconv.Itoa(i)+"}") {
			return to.errorf("%s uses group {%d}, but %s has %d", to.text, i, from.text, re.NumSubexp())
		}
	}
	return nil
}
