package main

import (
	"fmt"
	"math"
	"slices"
)

// percentile returns the value below or at which p of 100 samples lie (nearest
// rank: always one that was measured); NaN of none.
func percentile(samples []float64, p float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(samples))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// median returns the middle of the samples, the mean of the two middle ones if
// there are two; NaN of none.
func median(samples []float64) float64 {
	n := len(samples)
	if n == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(samples))
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// ratios divides sample by sample what was measured side by side.
func ratios(a, b []float64) []float64 {
	n := min(len(a), len(b))
	r := make([]float64, n)
	for i := range n {
		r[i] = a[i] / b[i]
	}
	return r
}

// turns returns whose turn it is in rounds of which every second one is the other
// way round (A B B A A B ..), so that a drift of the machine hits all arms alike.
func turns(arms, rounds int) []int {
	var order []int
	for r := range rounds {
		for i := range arms {
			if r%2 == 1 {
				i = arms - 1 - i
			}
			order = append(order, i)
		}
	}
	return order
}

// scale is a unit with the factor by which a figure is divided in it.
type scale struct {
	divisor float64
	name    string
}

// scaleOf returns the scale in which people read a value: seconds as s, ms or us,
// bytes as MiB, KiB or B.
func scaleOf(v float64, unit string) scale {
	scales := map[string][]scale{
		"s": {{1, " s"}, {1e-3, " ms"}, {1e-6, " us"}},
		"B": {{1 << 20, " MiB"}, {1 << 10, " KiB"}, {1, " B"}},
		"x": {{1, "x"}},
		"":  {{1, ""}},
	}[unit]
	for _, s := range scales {
		if math.Abs(v) >= s.divisor {
			return s
		}
	}
	return scales[len(scales)-1]
}

// number writes a value with three digits that count and its unit.
func number(v float64, unit string) string {
	if math.IsNaN(v) {
		return "-"
	}
	s := scaleOf(v, unit)
	return digits(v/s.divisor) + s.name
}

// digits writes v with three digits that count, and all of those before the point.
func digits(v float64) string {
	switch a := math.Abs(v); {
	case v == math.Trunc(v) || a >= 100:
		return fmt.Sprintf("%.0f", v)
	case a >= 10:
		return fmt.Sprintf("%.1f", v)
	default:
		return fmt.Sprintf("%.2f", v)
	}
}

// spread writes the median of samples and, if they differ, their range.
func spread(samples []float64, unit string) string {
	m := median(samples)
	text := number(m, unit)
	if len(samples) == 0 || slices.Min(samples) == slices.Max(samples) {
		return text
	}
	d := scaleOf(m, unit).divisor
	return text + fmt.Sprintf(" (%s-%s)", digits(slices.Min(samples)/d), digits(slices.Max(samples)/d))
}
