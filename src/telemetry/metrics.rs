//! The metrics registry: one per process, handed to whoever has metrics. No global.

use prometheus::core::Collector;
use prometheus::{
    Encoder, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    TextEncoder,
};

/// The process's metrics. Names are `outrigger_<primitive>_<noun>_<unit>`; labels are of closed lists, never a tenant.
#[derive(Clone, Default)]
pub struct Registry(prometheus::Registry);

/// A metric that cannot be made: its name is taken or not valid.
#[derive(Debug, thiserror::Error)]
#[error("metric: {0}")]
pub struct MetricError(#[from] prometheus::Error);

impl Registry {
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

    /// Every metric in Prometheus's text format.
    pub fn render(&self) -> Result<String, MetricError> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.gather(), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn add<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, MetricError> {
        self.0.register(Box::new(collector.clone()))?;
        Ok(collector)
    }
}
