package limiter

import "testing"

// The hot path is one look and one charge, here a thousand of them in a bucket.

func BenchmarkSumAddRequests(b *testing.B) {
	var w Window[uint32]
	var tick, seen int64
	b.ReportAllocs()
	for b.Loop() {
		tick += BucketWidth / 1000
		seen |= w.Sum(tick)
		w.Add(tick, 1)
	}
	if seen < 0 {
		b.Fatal("a sum is never negative")
	}
}

func BenchmarkSumAddTokens(b *testing.B) {
	var w Window[int64]
	var tick, seen int64
	b.ReportAllocs()
	for b.Loop() {
		tick += BucketWidth / 1000
		seen |= w.Sum(tick)
		w.Add(tick, 100)
	}
	if seen < 0 {
		b.Fatal("a sum is never negative")
	}
}

func BenchmarkUntil(b *testing.B) {
	var w Window[int64]
	for i := range int64(Buckets) {
		w.Add(i*BucketWidth, 100)
	}
	b.ReportAllocs()
	for b.Loop() {
		w.Until(12*BucketWidth, 600)
	}
}
