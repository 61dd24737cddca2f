package nft

import (
	"slices"

	"fairway.dev/fairway/internal/plan"
)

// claims tell who wants which subjects (see holding).
type claims struct {
	// first has the first of the owners of each subject that somebody wants.
	first map[element]*owner
	// contested has all of them, in order, where there are several.
	contested map[element][]*owner
}

func newClaims() claims {
	return claims{first: map[element]*owner{}, contested: map[element][]*owner{}}
}

// add adds o, whose kinds and age are already known, to the owners of e.
func (c *claims) add(e element, o *owner) {
	first := c.first[e]
	if first == nil {
		c.first[e] = o
		return
	}
	all := c.contested[e]
	if len(all) == 0 {
		all = []*owner{first}
	}
	all = append(all, o)
	slices.SortFunc(all, func(a, b *owner) int { return a.claim(e).Compare(b.claim(e)) })
	c.contested[e], c.first[e] = all, all[0]
}

// remove takes o from the owners of e, if it is one.
func (c *claims) remove(e element, o *owner) {
	all := slices.DeleteFunc(c.contested[e], func(x *owner) bool { return x == o })
	switch {
	case len(all) > 1:
		c.contested[e], c.first[e] = all, all[0]
	case len(all) == 1:
		delete(c.contested, e)
		c.first[e] = all[0]
	case c.first[e] == o:
		delete(c.first, e)
	}
}

// claim is o's claim to a subject.
func (o *owner) claim(e element) plan.Claim {
	return plan.Claim{Kind: o.kinds[e.key], Created: o.created, Key: o.key}
}

// wishes are what one owner wants, ordered by subject.
type wishes []addition

func wishesOf(h holding) wishes {
	out := make(wishes, 0, len(h))
	for e, value := range h {
		out = append(out, addition{e, value})
	}
	slices.SortFunc(out, func(a, b addition) int { return a.element.compare(b.element) })
	return out
}

// value returns the value that a subject shall have, and whether it is among the wishes.
func (w wishes) value(e element) (string, bool) {
	i, ok := slices.BinarySearchFunc(w, e, func(a addition, e element) int { return a.element.compare(e) })
	if !ok {
		return "", false
	}
	return w[i].value, true
}
