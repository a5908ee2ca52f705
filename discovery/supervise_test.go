package discovery

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

func TestF115_PanicRestartsTheSourceAndTheThirdEndsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad, good := newScripted(), newScripted()
		bad.crash = true
		s := run(t, store("etcd", bad, specs(1, 5)...), store("consul", good))
		good.says(spec(50, 1))
		s.wants("etcd", 5, 0, Error)
		for _, c := range []struct {
			after time.Duration
			runs  int
		}{{0, 1}, {time.Second, 2}, {2 * time.Second, 3}, {time.Hour, 3}} {
			time.Sleep(c.after)
			synctest.Wait()
			if got := bad.count(); got != c.runs {
				t.Fatalf("%s later it ran %d times, want %d", c.after, got, c.runs)
			}
		}
		v := s.wants("etcd", 5, 0, Error)
		if !errors.Is(v.Err, errCrashed) {
			t.Errorf("error %v", v.Err)
		}
		good.says(spec(50, 2))
		s.wants("consul", 1, 0, OK)
	})
}

func TestSourceThatFailsIsTriedAgainWithBackOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := newScripted()
		s := run(t, store("etcd", src))
		src.says(specs(1, 5)...)
		start := time.Now()
		var at []time.Duration
		for range 8 {
			src.leave <- errors.New("no such prefix")
			runs := src.count()
			for src.count() == runs {
				time.Sleep(100 * time.Millisecond)
				synctest.Wait()
			}
			at = append(at, time.Since(start))
			start = time.Now()
		}
		want := []time.Duration{1, 2, 4, 8, 16, 30, 30, 30}
		for i := range want {
			if at[i] != want[i]*time.Second {
				t.Fatalf("tried again after %v, want %v seconds", at, want)
			}
		}
		s.wants("etcd", 5, 0, Error)
		time.Sleep(time.Minute) // it runs well for a while
		start = time.Now()
		src.leave <- nil
		time.Sleep(time.Second)
		synctest.Wait()
		if v := s.source("etcd"); src.count() != 10 || v.Err == nil {
			t.Errorf("after a minute of health it ran %d times %s later; error %v", src.count(), time.Since(start), v.Err)
		}
	})
}
