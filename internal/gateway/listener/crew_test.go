package listener

import (
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestCrew serves connections beside each other, others by the same goroutines,
// and ends those that wait.
func TestCrew(t *testing.T) {
	before := runtime.NumGoroutine()
	const many = 3 * maxSpare
	var c crew[int]
	ended := make(chan struct{})
	var served sync.WaitGroup
	release := make(chan struct{})
	seen := make(chan int, many)
	c.init(func(n int) {
		defer served.Done()
		seen <- n
		<-release
	}, ended)
	reaches := func(what string, most int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > most; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%s: %d goroutines, want %d at most", what, runtime.NumGoroutine(), most)
			}
		}
	}
	served.Add(many)
	for n := range many {
		c.take(n) // waits for none
	}
	sum := 0
	for range many {
		sum += <-seen
	}
	if sum != many*(many-1)/2 {
		t.Errorf("the numbers of those served make %d", sum)
	}
	close(release)
	served.Wait()
	reaches("most go", before+maxSpare)
	for n := range many {
		served.Add(1)
		c.take(n)
		<-seen
		served.Wait()
	}
	reaches("no more come", before+maxSpare)
	close(ended)
	reaches("at the end", before)
}
