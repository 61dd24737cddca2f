package main

import (
	"slices"
	"time"
)

// report is what is written as JSON. Times are in seconds, sizes in bytes.
type report struct {
	Made    time.Time
	Machine machine
	// Rounds is the number of rounds of each measurement, RoundSeconds the length of each.
	Rounds       int
	RoundSeconds float64
	Results      []*sizeResult
}

type machine struct {
	Kernel string
	Cores  int
	CPU    string
	// LoadBefore and LoadAfter are the one-minute load averages.
	LoadBefore, LoadAfter float64
	NFT                   string
	// OthersPrograms are attached to connect() of all sockets of the machine.
	OthersPrograms int
}

// sizeResult is one peer with so many Services.
type sizeResult struct {
	Peer                string
	Services, Endpoints int
	Cold                *coldResult `json:",omitempty"`
	Rates               map[string]*rateResult
	Change              *changeResult `json:",omitempty"`
	// MemoryBytes is resident in the end, MemoryPeakBytes the most there was.
	MemoryBytes, MemoryPeakBytes int64
}

// coldResult is from the start of the agent until all Services answer.
type coldResult struct {
	// Wall is the time until then. User and System are what the agent and programs that it ran had used by then.
	Wall, User, System float64
	// Sync is what the agent itself says of the time it took to write rules; 0 if it does not tell.
	Sync float64 `json:",omitempty"`
}

// rateResult has medians over the rounds, and what each round gave.
type rateResult struct {
	// Rate is per second (for throughput, bits per second), CPU the processor
	// time of one (for throughput, of a gigabyte).
	Rate, CPU float64
	// P50 and P99 are of the time to the answer.
	P50, P99 float64 `json:",omitempty"`
	Failed   int64
	Rounds   []float64
	CPUs     []float64
}

// changeResult is from the write of one change at the API to the first connection that follows it.
type changeResult struct {
	Count         int
	P50, P99, Max float64
	// CPU is what the agent used for one change.
	CPU float64
}

func (x *samples) result() *rateResult {
	return &rateResult{
		Rate: median(x.rate), CPU: median(x.cpu), P50: median(x.p50), P99: median(x.p99), Failed: x.failed, Rounds: x.rate, CPUs: x.cpu,
	}
}

func median(list []float64) float64 {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	n := len(sorted)
	return (sorted[n/2] + sorted[(n-1)/2]) / 2
}

// comparison is the ratio of two peers: the median over rounds, and the
// quartiles, between which half of the rounds lie.
type comparison struct{ low, middle, high float64 }

// compare compares two peers round by round, since rounds of the same number
// were made right after each other.
func compare(a, b []float64) comparison {
	var all []float64
	for i := range min(len(a), len(b)) {
		all = append(all, a[i]/b[i])
	}
	if len(all) == 0 {
		return comparison{}
	}
	slices.Sort(all)
	return comparison{quantile(all, 0.25), median(all), quantile(all, 0.75)}
}

// of returns the result of a peer at a size, or nil.
func (r *report) of(peer string, services int) *sizeResult {
	for _, s := range r.Results {
		if s.Peer == peer && s.Services == services {
			return s
		}
	}
	return nil
}

// sizes returns the numbers of Services, ascending.
func (r *report) sizes() []int {
	var out []int
	for _, s := range r.Results {
		if !slices.Contains(out, s.Services) {
			out = append(out, s.Services)
		}
	}
	slices.Sort(out)
	return out
}
