package main

import (
	"math"
	"slices"
	"testing"
)

func TestPercentileIsASampleOfThatRank(t *testing.T) {
	hundred := make([]float64, 100)
	for i := range hundred {
		hundred[i] = float64(100 - i) // 100 .. 1, not sorted
	}
	tests := []struct {
		samples []float64
		p, want float64
	}{
		{hundred, 50, 50}, {hundred, 99, 99}, {hundred, 100, 100}, {hundred, 0, 1},
		{[]float64{7}, 99, 7}, {[]float64{3, 1, 2}, 50, 2}, {[]float64{1, 2}, 99, 2}, {[]float64{4, 1, 2, 3}, 25, 1},
	}
	for _, tt := range tests {
		if got := percentile(tt.samples, tt.p); got != tt.want {
			t.Errorf("percentile %g of %v is %g, want %g", tt.p, tt.samples, got, tt.want)
		}
	}
	if hundred[0] != 100 {
		t.Error("the samples were sorted in place")
	}
}

func TestMedian(t *testing.T) {
	for _, tt := range []struct {
		samples []float64
		want    float64
	}{{[]float64{5}, 5}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(tt.samples); got != tt.want {
			t.Errorf("the median of %v is %g, want %g", tt.samples, got, tt.want)
		}
	}
	if !math.IsNaN(median(nil)) || !math.IsNaN(percentile(nil, 50)) {
		t.Error("nothing has a median")
	}
}

func TestRatiosPairWhatStoodSideBySide(t *testing.T) {
	if got := ratios([]float64{10, 30, 9}, []float64{5, 10}); !slices.Equal(got, []float64{2, 3}) {
		t.Error(got)
	}
}

func TestTurnsAlternate(t *testing.T) {
	if got := turns(2, 3); !slices.Equal(got, []int{0, 1, 1, 0, 0, 1}) {
		t.Error(got)
	}
	if got := turns(3, 2); !slices.Equal(got, []int{0, 1, 2, 2, 1, 0}) {
		t.Error(got)
	}
}

func TestSpread(t *testing.T) {
	for _, tt := range []struct {
		samples []float64
		unit    string
		want    string
	}{
		{nil, "s", "-"},
		{[]float64{0.0123456}, "s", "12.3 ms"},
		{[]float64{0.00003456}, "s", "34.6 us"},
		{[]float64{12.34, 1.5, 449}, "s", "12.3 s (1.50-449)"},
		{[]float64{3 << 20}, "B", "3 MiB"},
		{[]float64{1536}, "B", "1.50 KiB"},
		{[]float64{0}, "", "0"},
		{[]float64{4, 4, 4}, "", "4"},
		{[]float64{0.0005, 0.002, 0.0015}, "s", "1.50 ms (0.50-2)"},
		{[]float64{26.25}, "x", "26.2x"},
		{[]float64{17, 19}, "", "18 (17-19)"},
	} {
		if got := spread(tt.samples, tt.unit); got != tt.want {
			t.Errorf("%v %q is %q, want %q", tt.samples, tt.unit, got, tt.want)
		}
	}
}
