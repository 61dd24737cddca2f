package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// goOn changes everything but the gateway itself over and over, and looks at
// what that uses after each time.
func (t *trial) goOn(ctx context.Context) error {
	var all []uses
	for end := time.Now().Add(t.soak); time.Now().Before(end); {
		for _, do := range []func(context.Context) error{t.roll, t.reroute, t.renew} {
			if err := do(ctx); err != nil {
				return fmt.Errorf("%w\n%s", err, t.gateway.lastWords())
			}
		}
		u, err := t.gateway.uses()
		if err != nil {
			return err
		}
		all = append(all, u)
	}
	t.count(phase{name: fmt.Sprintf("changes for %v", t.soak)})
	if len(all) < 8 {
		return fmt.Errorf("only %d rounds of changes: give -soak more time", len(all))
	}
	// The first quarter fills pools and caches.
	before, after := all[len(all)/4:len(all)/2], all[len(all)*3/4:]
	t.rows = append(t.rows, []string{""}, []string{"", "", "second quarter", "last quarter"})
	for _, what := range []struct {
		name  string
		of    func(uses) float64
		unit  float64
		grows float64 // how much it may, beyond a twentieth
	}{
		{"goroutines", func(u uses) float64 { return u.goroutines }, 1, 10},
		{"open files", func(u uses) float64 { return u.files }, 1, 10},
		{"memory, MiB", func(u uses) float64 { return u.memory }, 1 << 20, 4},
	} {
		a, b := median(before, what.of)/what.unit, median(after, what.of)/what.unit
		t.rows = append(t.rows, []string{what.name, "", fmt.Sprintf("%.0f", a), fmt.Sprintf("%.0f", b)})
		if b > a*1.05+what.grows {
			t.errs = append(t.errs, fmt.Errorf("%s grow from %.0f to %.0f within half of %v", what.name, a, b, t.soak))
		}
	}
	return nil
}

func median(list []uses, of func(uses) float64) float64 {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b uses) int { return cmp.Compare(of(a), of(b)) })
	return of(list[len(list)/2])
}
