// Report makes the tables and plots of docs/zero-drop.md from the records of a proof:
//
//	go run ./zerodrop/report DIR
//
// DIR is the folder that the proof was given as -usher.record. The same records give
// the same bytes.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"example.org/usher/zerodrop/load"
)

func main() {
	page := flag.String("page", "docs/zero-drop.md", "the page to fill in; its plots go to the folder of its name")
	flag.Usage = func() {
		fmt.Fprintln(flag.CommandLine.Output(), "usage: go run ./zerodrop/report [-page FILE] DIR")
		flag.PrintDefaults()
	}
	flag.Parse()
	if flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	if err := run(flag.Arg(0), *page, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

// run fills in the page and draws its plots anew.
func run(records, page string, out io.Writer) error {
	recorded, err := load.Read(records)
	if err != nil {
		return err
	}
	scenarios, err := group(recorded)
	if err != nil {
		return fmt.Errorf("%s: %w", records, err)
	}
	text, err := os.ReadFile(page)
	if err != nil {
		return fmt.Errorf("read the page: %w", err)
	}
	folder := strings.TrimSuffix(page, ".md")
	filled, err1 := fill(string(text), "table", table(scenarios))
	filled, err2 := fill(filled, "plots", links(scenarios, filepath.Base(folder)))
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("%s: %w", page, err)
	}

	old, err := filepath.Glob(filepath.Join(folder, "*.svg"))
	if err != nil {
		return fmt.Errorf("find the old plots: %w", err)
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			return fmt.Errorf("remove an old plot: %w", err)
		}
	}
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return fmt.Errorf("make the folder of the plots: %w", err)
	}
	scale := axes(scenarios)
	for _, s := range scenarios {
		drawn, err := draw(s, scale)
		if err != nil {
			return fmt.Errorf("draw %s: %w", s.file(), err)
		}
		if err := os.WriteFile(filepath.Join(folder, s.file()), drawn, 0o644); err != nil {
			return fmt.Errorf("write a plot: %w", err)
		}
	}
	if err := os.WriteFile(page, []byte(filled), 0o644); err != nil {
		return fmt.Errorf("write the page: %w", err)
	}
	fmt.Fprintf(out, "%s: %d scenarios from %d records\n", page, len(scenarios), len(recorded))
	return nil
}

// fill puts text between a page's two marks of that name.
func fill(page, name, text string) (string, error) {
	begin, end := "<!-- "+name+" -->\n", "<!-- end of "+name+" -->"
	before, rest, ok1 := strings.Cut(page, begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return "", fmt.Errorf("the lines %q and %q are missing", strings.TrimSpace(begin), end)
	}
	return before + begin + "\n" + text + "\n" + end + after, nil
}
