package vip

import (
	"log/slog"
	"strings"
	"testing"
)

// Masqueraded connections get random ports where the tool and the kernel can do
// that, and else the ports that come. A kernel that refuses is asked again at each
// resync, for it may have refused for another reason, and is told of once.
func TestB29_RandomPortsAndTheFallback(t *testing.T) {
	for name, c := range map[string]struct {
		host     func(*fakeTables)
		randomly bool
		warnings int
	}{
		"both can":         {func(*fakeTables) {}, true, 0},
		"not the tool":     {func(f *fakeTables) { f.plain = true }, false, 0},
		"not the kernel":   {func(f *fakeTables) { f.refuses = "--random-fully" }, false, 1},
		"something else":   {func(f *fakeTables) { f.refuses = "-j MASQUERADE" }, false, 0},
		"something before": {func(f *fakeTables) { f.refuses = "-j REJECT" }, false, 0},
	} {
		t.Run(name, func(t *testing.T) {
			w := newFakeWorld()
			c.host(w.fake.tables[0])
			var log strings.Builder
			d := w.door(t, func(o *Options) {
				o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn}))
			})
			want := services(svc("192.0.2.10:80/tcp", always))
			for range 3 {
				failed := onePass(t, d, want, fresh)
				if broken := strings.HasPrefix(w.fake.tables[0].refuses, "-j"); (len(failed) > 0) != broken {
					t.Fatalf("failed: %v", failed)
				}
			}
			rules := strings.Join(w.fake.tables[0].own["nat"][chainMasq], "\n")
			if strings.Contains(rules, "MASQUERADE --random-fully") != c.randomly {
				t.Errorf("rules:\n%s", rules)
			}
			if n := strings.Count(log.String(), "random-fully; ports"); n != c.warnings {
				t.Errorf("%d warnings:\n%s", n, log.String())
			}
			if c.warnings > 0 {
				w.fake.tables[0].refuses = ""
				clean(t, d, want, prune)
				if rules := strings.Join(w.fake.tables[0].own["nat"][chainMasq], ""); strings.Contains(rules, "random-fully") {
					t.Errorf("asked again without a resync:\n%s", rules)
				}
				clean(t, d, want, fresh)
				if rules := strings.Join(w.fake.tables[0].own["nat"][chainMasq], ""); !strings.Contains(rules, "random-fully") {
					t.Errorf("not asked again at a resync:\n%s", rules)
				}
			}
			if w.fake.tables[0].refuses == "" {
				w.quiet(t, d, want)
			} else if len(rules) > 0 { // after a restart the kernel is asked again
				before := w.dump(t)
				clean(t, w.door(t), want, prune)
				same(t, w.dump(t), before)
			}
		})
	}
}
