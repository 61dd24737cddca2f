package filter

import "fairway.dev/fairway/internal/model"

// order is every filter, in the order in which they run. A constructor returns
// nil when the rule does not ask for its feature.
var order = []func(*model.Filters, Environment) Filter{
	newTraced,        // first: what others answer is traced as well
	newBodyLimit,     // before all that looks at the request: a body that is too large is refused before anything else is done
	newHTTPSRedirect, // before all that concerns the content: it is asked for again over https
	newPassedThrough, // before all that is for requests
	newClientAuth,    // as in nginx, before its rewrite phase: who may not come in is told nothing of what is there
	newRedirect,      // as in nginx, whose rewrite phase goes before its access phase
	newAllowFrom,     // nothing of the backend is given to those who may not see it
	newTimeouts,      // no effect on others
	newBalance,       // looks at the path that the client asked for, as the next does
	newRewrite,       // last: all before look at the path that the client asked for
}

// Compile makes the chain of a rule.
func Compile(f *model.Filters, env Environment) Chain {
	var chain Chain
	for _, construct := range order {
		if filter := construct(f, env); filter != nil {
			chain = append(chain, filter)
		}
	}
	return chain
}
