package configs

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Problem is one thing that is wrong with the configuration.
type Problem struct {
	// File is the file's name inside the folder; empty for an environment variable.
	File string
	// Line and Column count from 1; 0 where a problem has no place in the file.
	Line, Column int
	// Key is the path of the key, such as hooks[0].deadline, or the variable's name.
	Key string
	// Message says what is wrong and what is allowed.
	Message string
}

// String is the problem on one line: `web.yaml:14: hooks[0].deadline: at most 6h on ESS, got 8h`.
// Nothing in it upsets a terminal, whatever stands in the file.
func (p Problem) String() string {
	var parts []string
	if p.Line > 0 {
		parts = append(parts, fmt.Sprintf("%s:%d", p.File, p.Line))
	} else if p.File != "" {
		parts = append(parts, p.File)
	}
	if p.Key != "" {
		parts = append(parts, p.Key)
	}
	return visible(strings.Join(append(parts, p.Message), ": "))
}

// Errors are all problems of a configuration, sorted by file and line.
type Errors []Problem

// Error is one line for each problem.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, p := range e {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func (e Errors) sorted() Errors {
	slices.SortStableFunc(e, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return e
}

// suggest is a hint at the allowed word that the operator may have meant.
func suggest(got string, allowed []string) string {
	best, at := "", 1+min(2, len(got)/2)
	for _, word := range allowed {
		if d := distance(strings.ToLower(got), strings.ToLower(word)); d < at {
			best, at = word, d
		}
	}
	if best == "" {
		return ""
	}
	return ", did you mean " + best + "?"
}

// distance is the number of letters to insert, delete or replace. Words longer than
// any of ours are not compared.
func distance(a, b string) int {
	const longest = 100
	if len(a) > longest || len(b) > longest {
		return longest
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// onOneLine is a name as it stands, or quoted where it would upset a line or a terminal.
func onOneLine(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return clip(name)
	}
	return name
}

// visible is text with its unprintable characters escaped, for what others word and quote as it is.
func visible(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// clip quotes what was found, cut to a length that fits a line.
func clip(text string) string {
	const most = 60
	if runes := []rune(text); len(runes) > most {
		text = string(runes[:most]) + "..."
	}
	return fmt.Sprintf("%q", text)
}
