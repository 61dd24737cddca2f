package main

import (
	"slices"
	"testing"
)

// TestOverall compares over sizes: 20 rounds each, in one of which the first peer was a tenth behind.
func TestOverall(t *testing.T) {
	even, behind := slices.Repeat([]float64{10}, 20), slices.Repeat([]float64{9}, 20)
	of := func(peer string, n int, rounds []float64) *sizeResult {
		return &sizeResult{Peer: peer, Services: n, Rates: map[string]*rateResult{podConnect: {Rounds: rounds}}}
	}
	m := measures()[0]
	for _, c := range []struct {
		name         string
		first, other []float64
		want         comparison
	}{
		{"never behind", even, even, comparison{1, 1, 1}},
		{"behind in half of the rounds", even, behind, comparison{0.9, 0.95, 1}},
		{"always behind", behind, behind, comparison{0.9, 0.9, 0.9}},
		{"too few rounds", even[:2], even[:3], comparison{}},
	} {
		r := &report{Results: []*sizeResult{of("a", 10, c.first), of("a", 1000, c.other), of("b", 10, even), of("b", 1000, even)}}
		if got := r.overall(m, "a", "b"); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
