//! The metrics registry: one per process, handed to whoever has metrics. No global.

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    TextEncoder,
};

use super::sharded::{self, Counter, Family};

/// The process's metrics. Names are `outrigger_<primitive>_<noun>_<unit>`; labels are of closed lists, never a tenant.
#[derive(Clone, Default)]
pub struct Registry(prometheus::Registry);

/// A metric that cannot be made: its name is taken or not valid.
#[derive(Debug, thiserror::Error)]
#[error("metric: {0}")]
pub struct MetricError(#[from] prometheus::Error);

impl Registry {
    /// A registry that also has the process's own memory, processor time and file descriptors, and its version.
    pub fn with_process_metrics() -> Result<Self, MetricError> {
        let registry = Self::default();
        registry.add_boxed(Box::new(ProcessCollector::for_self()))?;
        let build = registry.gauges("outrigger_build_info", "The running version.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        Ok(registry)
    }

    /// A counter.
    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter, MetricError> {
        self.add(IntCounter::new(name, help)?)
    }

    /// A counter with labels.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, MetricError> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    /// A gauge.
    pub fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, MetricError> {
        self.add(IntGauge::new(name, help)?)
    }

    /// A gauge with labels.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, MetricError> {
        self.add(IntGaugeVec::new(Opts::new(name, help), labels)?)
    }

    /// A histogram with these upper bounds.
    pub fn histogram(&self, name: &str, help: &str, bounds: &[f64]) -> Result<Histogram, MetricError> {
        self.add(Histogram::with_opts(HistogramOpts::new(name, help).buckets(bounds.to_vec()))?)
    }

    /// A histogram with labels.
    pub fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        bounds: &[f64],
    ) -> Result<HistogramVec, MetricError> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(bounds.to_vec()), labels)?)
    }

    /// A counter for each of `values`, for what every call counts.
    pub fn calls<const L: usize, const N: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; L],
        values: [[&str; L]; N],
    ) -> Result<[Counter; N], MetricError> {
        let (family, counters) = Family::counters(&Opts::new(name, help), labels, values)?;
        self.add(family)?;
        Ok(counters)
    }

    /// A histogram of durations for each of `values`, with these upper bounds in seconds, for what every call counts.
    pub fn call_durations<const L: usize>(
        &self,
        name: &str,
        help: &str,
        labels: [&str; L],
        values: &[[&str; L]],
        bounds: &[f64],
    ) -> Result<Vec<sharded::Histogram>, MetricError> {
        let (family, histograms) = Family::histograms(&Opts::new(name, help), labels, values, bounds)?;
        self.add(family)?;
        Ok(histograms)
    }

    /// Every metric in Prometheus's text format.
    pub fn render(&self) -> Result<String, MetricError> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Every metric in the OpenMetrics format: a counter's family has no `_total`, and the text ends with `# EOF`.
    pub fn render_openmetrics(&self) -> Result<String, MetricError> {
        let plain = self.render()?;
        let mut text = String::with_capacity(plain.len() + 8);
        let counters: Vec<&str> =
            plain.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
        for line in plain.lines() {
            let described = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE "));
            let family =
                described.and_then(|rest| rest.split(' ').next()).filter(|name| counters.contains(name));
            match family.and_then(|name| name.strip_suffix("_total").map(|base| (name, base))) {
                Some((name, base)) => text.push_str(&line.replacen(name, base, 1)),
                None => text.push_str(line),
            }
            text.push('\n');
        }
        text.push_str("# EOF\n");
        Ok(text)
    }

    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, MetricError> {
        self.add_boxed(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn add_boxed(&self, collector: Box<dyn Collector>) -> Result<(), MetricError> {
        Ok(self.0.register(collector)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openmetrics_names_counters_without_total_and_ends() {
        let registry = Registry::default();
        let counter = registry.counter("outrigger_test_calls_total", "Calls.").unwrap();
        counter.inc();
        let text = registry.render_openmetrics().unwrap();
        assert_eq!(
            text,
            "# HELP outrigger_test_calls Calls.\n# TYPE outrigger_test_calls counter\noutrigger_test_calls_total 1\n# EOF\n"
        );
    }
}
