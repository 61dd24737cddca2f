package zone

import "math/rand/v2"

// order walks over 0 to n-1 in one of many orders, without memory: any number
// is the first as often as any other, and neighbours seldom follow each other.
type order struct{ at, step, n, left int }

func anyOrder(n int) order {
	if n < 2 {
		return order{n: n, left: n}
	}
	step := 1 + rand.IntN(n-1)
	for !coprime(step, n) {
		step = 1 + step%(n-1)
	}
	return order{at: rand.IntN(n), step: step, n: n, left: n}
}

// next returns the next number; there is one while left is more than 0.
func (o *order) next() int {
	i := o.at
	o.left--
	if o.at += o.step; o.at >= o.n {
		o.at -= o.n
	}
	return i
}

func coprime(a, b int) bool {
	for b != 0 {
		a, b = b, a%b
	}
	return a == 1
}
