package corefile

import (
	"strconv"
	"strings"
	"time"

	"fairway.dev/fairway/internal/model"
)

// texts are the words of a line.
func texts(line []token) []string {
	var list []string
	for _, t := range line {
		list = append(list, t.text)
	}
	return list
}

func reverse(zone string) bool {
	return strings.HasSuffix(zone, "in-addr.arpa.") || strings.HasSuffix(zone, "ip6.arpa.")
}

func within(zone, of string) bool { return zone == of || of == "." || strings.HasSuffix(zone, "."+of) }

// kubernetes takes what may differ. The zone itself is the cluster's.
func (c *compiler) kubernetes(_ *model.DNSBlock, d directive) error {
	zones, err := zoneList(d.args)
	if err != nil {
		return err
	}
	for _, z := range zones {
		if z != c.domain && !reverse(z) {
			c.add(d.name, "kubernetes "+z, "the cluster domain is %s; give fairway node --cluster-domain", c.domain)
		}
	}
	for _, line := range d.body {
		name, args := line[0], line[1:]
		switch name.text {
		case "ttl":
			n, err := number(name, args, 0, 3600)
			if err != nil {
				return err
			}
			if n == 0 {
				c.add(name, "kubernetes ttl 0", "the least is 1 s, which counts")
				n = 1
			}
			c.config.TTL = time.Duration(n) * time.Second
		case "pods":
			if len(args) != 1 {
				return name.errorf("pods takes one of disabled, insecure and verified")
			}
			switch args[0].text {
			case "disabled":
				c.config.NoPods = true
			case "insecure":
				c.config.NoPods = false
			case "verified":
				c.config.NoPods = false
				c.add(name, "kubernetes pods verified", "Fairway does not watch Pods; their names are answered as with insecure")
			default:
				return name.errorf("pods %s: want disabled, insecure or verified", args[0].text)
			}
		case "fallthrough":
			through, err := zoneList(args)
			if err != nil {
				return err
			}
			if len(args) == 0 {
				through = []string{"."}
			}
			for _, z := range through {
				if within(c.domain, z) || within(z, c.domain) {
					c.add(name, strings.Join(append([]string{"kubernetes"}, texts(line)...), " "), "names of %s never leave the cluster; reverse names of other ranges do without it", c.domain)
					break
				}
			}
		case "endpoint", "tls", "kubeconfig", "apiserver_qps", "apiserver_burst", "apiserver_max_inflight", "startup_timeout":
			c.add(name, "kubernetes "+name.text, "Fairway reaches the API as its own flags say")
		default:
			c.add(name, "kubernetes "+name.text, "Fairway's DNS does not have it")
		}
	}
	return nil
}

func (c *compiler) autopath(_ *model.DNSBlock, d directive) error {
	if n := len(d.args); n > 0 && d.args[n-1].text == "@kubernetes" {
		c.config.Autopath = true
		return nil
	}
	c.add(d.name, strings.Join(append([]string{"autopath"}, texts(d.args)...), " "), "only autopath @kubernetes is known")
	return nil
}

func (c *compiler) loadbalance(_ *model.DNSBlock, d directive) error {
	if len(d.args) > 0 && d.args[0].text != "round_robin" {
		c.add(d.name, "loadbalance "+d.args[0].text, "each answer begins with another address, all with the same share")
	}
	return nil
}

// number reads the one argument of an option.
func number(name token, args []token, low, high int) (int, error) {
	if len(args) != 1 {
		return 0, name.errorf("%s takes one number", name.text)
	}
	return numberIn(name, args[0], low, high)
}

func numberIn(name, arg token, low, high int) (int, error) {
	n, err := strconv.Atoi(arg.text)
	if err != nil || n < low || n > high {
		return 0, arg.errorf("%s %q: want a number of %d to %d", name.text, arg.text, low, high)
	}
	return n, nil
}

func duration(name, arg token) (time.Duration, error) {
	d, err := time.ParseDuration(arg.text)
	if err != nil || d < 0 {
		return 0, arg.errorf("%s %q: want a time such as 30s or 1h", name.text, arg.text)
	}
	return d, nil
}
