package main

import "testing"

// TestSummary takes the median of ratios within rounds, which is not the ratio
// of medians where the machine was slow in some rounds.
func TestSummary(t *testing.T) {
	of := func(peer string, cpu ...float64) (list []result) {
		for i, c := range cpu {
			list = append(list, result{Peer: peer, CPU: c, Requests: int64(i)})
		}
		return list
	}
	own := of(fairway, 10, 40, 11, 12, 10)
	got := summary(of("nginx", 20, 80, 20, 20, 16), own)
	if got.CPU != 20 || got.CPULow != 20 || got.CPUHigh != 20 || got.Requests == 1 || got.Requests == 4 {
		t.Errorf("the median round is %+v", got)
	}
	if got.Share != 0.55 || got.ShareLow != 0.5 || got.ShareHigh != 0.6 {
		t.Errorf("the share is %g (%g to %g), want 0.55 (0.5 to 0.6)", got.Share, got.ShareLow, got.ShareHigh)
	}
	if got := summary(own, own); got.Share != 1 || got.CPU != 11 || got.CPULow != 10 || got.CPUHigh != 12 {
		t.Errorf("beside itself it is %+v", got)
	}
	if one := summary(own[:1], own); one.CPU != 10 || one.CPULow != 10 || one.CPUHigh != 10 {
		t.Errorf("one round gives %+v", one)
	}
}
