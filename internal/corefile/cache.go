package corefile

import (
	"strings"
	"time"

	"fairway.dev/fairway/internal/model"
)

const (
	// cacheEntries is how many answers of a kind CoreDNS keeps by default.
	cacheEntries = 9984
	// cacheTTL and cacheNegativeTTL are how long CoreDNS keeps them at most.
	cacheTTL, cacheNegativeTTL = time.Hour, 30 * time.Minute
	maxSeconds                 = 7 * 24 * 3600
)

// cache reads cache [TTL] [ZONES...] with options in its braces.
func (c *compiler) cache(b *model.DNSBlock, d directive) error {
	out := &model.DNSCache{MaxTTL: cacheTTL, MaxNegativeTTL: cacheNegativeTTL}
	args := d.args
	if len(args) > 0 && strings.Trim(args[0].text, "-0123456789") == "" {
		n, err := numberIn(d.name, args[0], 1, maxSeconds)
		if err != nil {
			return err
		}
		out.MaxTTL = time.Duration(n) * time.Second
		out.MaxNegativeTTL, args = out.MaxTTL, args[1:]
	}
	var err error
	if out.Zones, err = zoneList(args); err != nil {
		return err
	}
	success, denial := cacheEntries, cacheEntries
	for _, line := range d.body {
		name, args := line[0], line[1:]
		switch name.text {
		case "success":
			err = capacity(name, args, &success, &out.MaxTTL, &out.MinTTL)
		case "denial":
			err = capacity(name, args, &denial, &out.MaxNegativeTTL, &out.MinNegativeTTL)
		case "prefetch":
			err = prefetch(out, name, args)
		case "serve_stale":
			err = c.serveStale(out, name, args)
		case "disable":
			err = disable(out, name, args)
		default: // servfail, keepttl, serve_stale_policy
			c.add(name, "cache "+name.text, "Fairway's DNS does not have it")
		}
		if err != nil {
			return err
		}
	}
	if out.MinTTL > out.MaxTTL || out.MinNegativeTTL > out.MaxNegativeTTL {
		return d.name.errorf("cache: the least TTL is above the greatest")
	}
	if success != cacheEntries || denial != cacheEntries {
		out.Entries = success + denial
	}
	b.Cache = out
	return nil
}

// capacity reads CAPACITY [TTL [MINTTL]].
func capacity(name token, args []token, entries *int, high, low *time.Duration) error {
	if len(args) == 0 || len(args) > 3 {
		return name.errorf("%s takes CAPACITY, and optionally TTL and MINTTL", name.text)
	}
	var err error
	if *entries, err = numberIn(name, args[0], 0, 1<<24); err != nil {
		return err
	}
	for i, to := range []*time.Duration{high, low} {
		if len(args) > i+1 {
			n, err := numberIn(name, args[i+1], 1-i, maxSeconds)
			if err != nil {
				return err
			}
			*to = time.Duration(n) * time.Second
		}
	}
	return nil
}

// prefetch reads AMOUNT [DURATION [PERCENTAGE%]]. The time between uses does not
// matter here: what is used seldom expires before it has been used that often.
func prefetch(out *model.DNSCache, name token, args []token) error {
	if len(args) == 0 || len(args) > 3 {
		return name.errorf("prefetch takes AMOUNT, and optionally DURATION and PERCENTAGE")
	}
	n, err := numberIn(name, args[0], 0, 1<<20)
	if err != nil {
		return err
	}
	if out.Prefetch = n; n == 0 {
		out.Prefetch = -1
	}
	if len(args) > 1 {
		if _, err := duration(name, args[1]); err != nil {
			return err
		}
	}
	if len(args) > 2 {
		percent := args[2]
		var ok bool
		if percent.text, ok = strings.CutSuffix(percent.text, "%"); !ok {
			return percent.errorf("prefetch %s: want a percentage such as 10%%", percent.text)
		}
		out.PrefetchPercent, err = numberIn(name, percent, 10, 90)
	}
	return err
}

// serveStale reads [DURATION [immediate|verify ...]].
func (c *compiler) serveStale(out *model.DNSCache, name token, args []token) error {
	out.StaleFor = time.Hour
	if len(args) > 0 {
		d, err := duration(name, args[0])
		if err != nil {
			return err
		}
		out.StaleFor = d
	}
	if len(args) > 1 {
		switch strings.ToLower(args[1].text) {
		case "verify":
		case "immediate":
			c.add(name, "cache serve_stale immediate", "servers are asked first, and expired answers given where none answers")
		default:
			return name.errorf("serve_stale %s: want immediate or verify", args[1].text)
		}
	}
	return nil
}

// disable reads success|denial [ZONES...].
func disable(out *model.DNSCache, name token, args []token) error {
	if len(args) == 0 {
		return name.errorf("disable takes success or denial")
	}
	zones, err := zoneList(args[1:])
	if err != nil {
		return err
	}
	if len(zones) == 0 {
		zones = []string{"."}
	}
	switch args[0].text {
	case "success":
		out.NoSuccess = zones
	case "denial":
		out.NoDenial = zones
	default:
		return name.errorf("disable %s: want success or denial", args[0].text)
	}
	return nil
}
