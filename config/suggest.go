package config

import (
	"slices"
	"strings"
)

// suggest says what could have been meant by a word that is none of words.
func suggest(word string, words []string) string {
	if near, found := nearest(word, words); found {
		return `did you mean "` + near + `"?`
	}
	if len(words) == 1 {
		return "use " + words[0]
	}
	return "use one of " + strings.Join(words, ", ")
}

// nearest returns the word at the smallest edit distance, if a typing mistake
// can explain it. Of two at the same distance the first wins.
func nearest(word string, words []string) (string, bool) {
	if len(word) > 2*maxQuoted {
		return "", false
	}
	best, at := max(1, len(word)/3)+1, -1
	for i, w := range words {
		if d := distance(strings.ToLower(word), w); d < best && d < len(w) {
			best, at = d, i
		}
	}
	if at < 0 {
		return "", false
	}
	return words[at], true
}

// distance counts the letters to add, to drop, to change or to swap with their
// neighbour that make b out of a (optimal string alignment).
func distance(a, b string) int {
	before, last, row := []int(nil), []int(nil), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last, row = last, row, slices.Clone(row)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
