//! Counters and histograms of what every call counts: each thread counts in a cache line of its own.
//!
//! One counter that all worker threads change moves its cache line between the processors with every call, which
//! costs more than the rest of counting. Reading adds the shards up; it happens once a scrape.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::thread::available_parallelism;
use std::time::Duration;

use prometheus::Opts;
use prometheus::core::{Collector, Desc};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};

/// Shards at the most: more threads than this share some.
const MAX_SHARDS: usize = 16;
/// Upper bounds that a histogram may have.
const MAX_BOUNDS: usize = 22;

thread_local! {
    static THREAD: Cell<usize> = Cell::new({
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Relaxed)
    });
}

fn shards() -> usize {
    available_parallelism().map_or(1, usize::from).next_power_of_two().min(MAX_SHARDS)
}

/// One thread's part of a `T`, alone on its cache lines.
#[repr(align(128))]
struct Padded<T>(T);

/// A counter.
#[derive(Clone)]
pub struct Counter(Arc<[Padded<AtomicU64>]>);

impl Counter {
    fn new() -> Self {
        Self((0..shards()).map(|_| Padded(AtomicU64::new(0))).collect())
    }

    /// Counts one.
    pub fn inc(&self) {
        self.inc_by(1);
    }

    /// Counts `more`.
    pub fn inc_by(&self, more: u64) {
        // The number of shards is a power of two.
        let index = THREAD.get() & (self.0.len() - 1);
        if let Some(Padded(shard)) = self.0.get(index) {
            shard.fetch_add(more, Relaxed);
        }
    }

    /// What was counted.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.iter().map(|Padded(shard)| shard.load(Relaxed)).sum()
    }
}

/// A histogram of durations.
#[derive(Clone)]
pub struct Histogram {
    bounds_ns: Arc<[u64]>,
    /// Made when a thread first observes: most outcomes of most routes never come.
    shards: Arc<[OnceLock<Box<Padded<Cells>>>]>,
}

/// Observations by bucket, the last for what is above every bound, and their sum in nanoseconds.
struct Cells {
    buckets: [AtomicU64; MAX_BOUNDS + 1],
    sum_ns: AtomicU64,
}

impl Default for Cells {
    fn default() -> Self {
        Self { buckets: [const { AtomicU64::new(0) }; MAX_BOUNDS + 1], sum_ns: AtomicU64::new(0) }
    }
}

impl Histogram {
    fn new(bounds_ns: &Arc<[u64]>) -> Self {
        Self { bounds_ns: Arc::clone(bounds_ns), shards: (0..shards()).map(|_| OnceLock::new()).collect() }
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let index = THREAD.get() & (self.shards.len() - 1);
        let Some(shard) = self.shards.get(index) else { return };
        let Padded(cells) = &**shard.get_or_init(|| Box::new(Padded(Cells::default())));
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // Most calls end within the first bounds.
        let bucket = self.bounds_ns.iter().take_while(|bound| **bound < ns).count();
        if let Some(bucket) = cells.buckets.get(bucket) {
            bucket.fetch_add(1, Relaxed);
        }
        cells.sum_ns.fetch_add(ns, Relaxed);
    }

    fn proto(&self) -> proto::Histogram {
        let mut counts = vec![0_u64; self.bounds_ns.len() + 1];
        let mut sum_ns = 0_u128;
        for cells in self.shards.iter().filter_map(|shard| shard.get()) {
            for (total, cell) in counts.iter_mut().zip(&cells.0.buckets) {
                *total += cell.load(Relaxed);
            }
            sum_ns += u128::from(cells.0.sum_ns.load(Relaxed));
        }
        let mut cumulative = 0;
        let buckets = self.bounds_ns.iter().zip(&counts).map(|(bound_ns, count)| {
            cumulative += count;
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(Duration::from_nanos(*bound_ns).as_secs_f64());
            bucket.set_cumulative_count(cumulative);
            bucket
        });
        let mut histogram = proto::Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(counts.iter().sum());
        #[allow(
            clippy::cast_precision_loss,
            reason = "a sum of seconds is a float in every exposition format"
        )]
        histogram.set_sample_sum(sum_ns as f64 / 1e9);
        histogram
    }
}

/// A metric of which there is one for each of the label values, which are all known at start.
#[derive(Clone)]
pub(super) struct Family<T> {
    desc: Desc,
    kind: MetricType,
    children: Arc<[(Vec<LabelPair>, T)]>,
}

impl<T: Clone> Family<T> {
    fn new<const L: usize>(
        kind: MetricType,
        opts: &Opts,
        labels: [&str; L],
        values: &[[&str; L]],
        children: &[T],
    ) -> Result<Self, prometheus::Error> {
        let names = labels.map(str::to_owned).into();
        let desc = Desc::new(opts.fq_name(), opts.help.clone(), names, opts.const_labels.clone())?;
        let pairs = |values: &[&str; L]| {
            let pair = |(name, value): (&str, &&str)| {
                let mut pair = LabelPair::default();
                pair.set_name(name.to_owned());
                pair.set_value((*value).to_owned());
                pair
            };
            labels.into_iter().zip(values).map(pair).collect()
        };
        let children = values.iter().map(pairs).zip(children.iter().cloned()).collect();
        Ok(Self { desc, kind, children })
    }

    fn collect_with(&self, write: impl Fn(&T, &mut Metric)) -> Vec<MetricFamily> {
        let metrics = self.children.iter().map(|(labels, child)| {
            let mut metric = Metric::default();
            metric.set_label(labels.clone());
            write(child, &mut metric);
            metric
        });
        let mut family = MetricFamily::default();
        family.set_name(self.desc.fq_name.clone());
        family.set_help(self.desc.help.clone());
        family.set_field_type(self.kind);
        family.set_metric(metrics.collect());
        vec![family]
    }
}

impl Family<Counter> {
    /// A counter for each of `values`.
    pub(super) fn counters<const L: usize, const N: usize>(
        opts: &Opts,
        labels: [&str; L],
        values: [[&str; L]; N],
    ) -> Result<(Self, [Counter; N]), prometheus::Error> {
        let counters = std::array::from_fn(|_| Counter::new());
        Ok((Self::new(MetricType::COUNTER, opts, labels, &values, &counters)?, counters))
    }
}

impl Family<Histogram> {
    /// A histogram for each of `values`, with these upper bounds in seconds.
    pub(super) fn histograms<const L: usize>(
        opts: &Opts,
        labels: [&str; L],
        values: &[[&str; L]],
        bounds: &[f64],
    ) -> Result<(Self, Vec<Histogram>), prometheus::Error> {
        let rising = bounds.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
        if bounds.len() > MAX_BOUNDS || !rising || bounds.iter().any(|bound| !(0.0..1e9).contains(bound)) {
            return Err(prometheus::Error::Msg(format!("at most {MAX_BOUNDS} bounds, each above the last")));
        }
        let to_ns =
            |bound: &f64| u64::try_from(Duration::from_secs_f64(*bound).as_nanos()).unwrap_or(u64::MAX);
        let bounds_ns: Arc<[u64]> = bounds.iter().map(to_ns).collect();
        let histograms: Vec<_> = values.iter().map(|_| Histogram::new(&bounds_ns)).collect();
        Ok((Self::new(MetricType::HISTOGRAM, opts, labels, values, &histograms)?, histograms))
    }
}

impl Collector for Family<Counter> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.collect_with(|counter, metric| {
            let mut value = proto::Counter::default();
            #[allow(clippy::cast_precision_loss, reason = "a counter is a float in every exposition format")]
            value.set_value(counter.get() as f64);
            metric.set_counter(value);
        })
    }
}

impl Collector for Family<Histogram> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        self.collect_with(|histogram, metric| metric.set_histogram(histogram.proto()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Registry;
    use super::*;

    #[test]
    fn what_many_threads_count_adds_up() {
        let registry = Registry::default();
        let calls = registry.calls("outrigger_test_calls_total", "Calls.", ["outcome"], [["ok"], ["bad"]]);
        let [ok, _] = calls.unwrap();
        let seconds = registry.call_durations(
            "outrigger_test_seconds",
            "How long.",
            ["outcome"],
            &[["ok"]],
            &[0.001, 0.01],
        );
        let seconds = &seconds.unwrap()[0];
        std::thread::scope(|scope| {
            for _ in 0..40 {
                scope.spawn(|| {
                    for us in [500, 1000, 1001, 20_000] {
                        ok.inc();
                        seconds.observe(Duration::from_micros(us));
                    }
                });
            }
        });
        let text = registry.render().unwrap();
        for line in [
            "# TYPE outrigger_test_calls_total counter",
            "outrigger_test_calls_total{outcome=\"ok\"} 160",
            "outrigger_test_calls_total{outcome=\"bad\"} 0",
            "# TYPE outrigger_test_seconds histogram",
            "outrigger_test_seconds_bucket{outcome=\"ok\",le=\"0.001\"} 80",
            "outrigger_test_seconds_bucket{outcome=\"ok\",le=\"0.01\"} 120",
            "outrigger_test_seconds_bucket{outcome=\"ok\",le=\"+Inf\"} 160",
            "outrigger_test_seconds_count{outcome=\"ok\"} 160",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        let sum =
            text.lines().find_map(|line| line.strip_prefix("outrigger_test_seconds_sum{outcome=\"ok\"} "));
        assert!((sum.unwrap().parse::<f64>().unwrap() - 40.0 * 0.022_501).abs() < 1e-9);
    }

    #[test]
    fn bounds_that_do_not_rise_are_refused() {
        let registry = Registry::default();
        for bounds in [&[0.1, 0.1][..], &[0.2, 0.1], &[-1.0], &[f64::NAN], &[0.0; 30]] {
            let made = registry.call_durations("outrigger_test_seconds", "How long.", [], &[[]], bounds);
            assert!(made.is_err(), "{bounds:?}");
        }
    }
}
