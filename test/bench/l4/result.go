package main

import (
	"math"
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

// comparison is the ratio of two peers: the median over rounds, and bounds below
// and above it.
type comparison struct{ low, middle, high float64 }

// compare compares two peers round by round, since rounds of the same number
// were made right after each other. Low and high are the quartiles, between which
// half of the rounds lie.
func compare(a, b []float64) comparison {
	all := ratios(a, b)
	if len(all) == 0 {
		return comparison{}
	}
	slices.Sort(all)
	return comparison{quantile(all, 0.25), median(all), quantile(all, 0.75)}
}

func ratios(a, b []float64) []float64 {
	var out []float64
	for i := range min(len(a), len(b)) {
		out = append(out, a[i]/b[i])
	}
	return out
}

// fewest is how many rounds have to be there to tell anything with 95 % confidence.
const fewest = 6

// overall compares two peers over the rounds of all sizes. Low and high are the
// bounds of the median with 95 % confidence, by the order of the rounds. It is
// zero where rounds are fewer than fewest.
func (r *report) overall(m measure, a, b string) comparison {
	var all []float64
	for _, n := range r.sizes() {
		x, y := r.rates(a, n, m.what), r.rates(b, n, m.what)
		if x == nil || y == nil {
			continue
		}
		all = append(all, ratios(m.rounds(x), m.rounds(y))...)
	}
	if len(all) < fewest {
		return comparison{}
	}
	slices.Sort(all)
	n := float64(len(all))
	low := max(int(math.Floor((n-1.96*math.Sqrt(n))/2)), 0)
	return comparison{all[low], median(all), all[len(all)-1-low]}
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
