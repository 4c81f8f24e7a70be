//! Encoding of values that are read at each request.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{
        DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, EncodeMetric as _,
    },
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

/// A function that reads values and encodes them.
pub(super) type Encode = Box<dyn Fn(Encoder<'_>) -> fmt::Result + Send + Sync>;

/// A collector that calls a function at each request.
pub(super) struct Source(pub(super) Encode);

impl Collector for Source {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(Encoder(encoder))
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").finish_non_exhaustive()
    }
}

/// The name, the meaning and the unit of a metric. The unit ends the exported name, and `_total` that of a counter.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    name: &'static str,
    help: &'static str,
    unit: Option<&'static Unit>,
}

impl Metric {
    pub(super) const fn new(name: &'static str, help: &'static str) -> Self {
        let unit = None;
        Self { name, help, unit }
    }

    pub(super) const fn bytes(name: &'static str, help: &'static str) -> Self {
        let unit = Some(&Unit::Bytes);
        Self { name, help, unit }
    }

    pub(super) const fn seconds(name: &'static str, help: &'static str) -> Self {
        let unit = Some(&Unit::Seconds);
        Self { name, help, unit }
    }
}

/// An encoder of metrics.
pub(super) struct Encoder<'a>(pub(super) DescriptorEncoder<'a>);

impl Encoder<'_> {
    pub(super) fn gauge(&mut self, metric: Metric, value: impl EncodeGaugeValue) -> fmt::Result {
        let encoder = self.descriptor(metric, MetricType::Gauge)?;
        ConstGauge::new(value).encode(encoder)
    }

    pub(super) fn counter(
        &mut self,
        metric: Metric,
        value: impl EncodeCounterValue,
    ) -> fmt::Result {
        let encoder = self.descriptor(metric, MetricType::Counter)?;
        ConstCounter::new(value).encode(encoder)
    }

    /// Encodes one gauge for each set of labels.
    pub(super) fn gauges<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        metric: Metric,
        values: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut family = self.descriptor(metric, MetricType::Gauge)?;
        for (labels, value) in values {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// Encodes one counter for each set of labels.
    pub(super) fn counters<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        metric: Metric,
        values: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut family = self.descriptor(metric, MetricType::Counter)?;
        for (labels, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    pub(super) fn descriptor(
        &mut self,
        metric: Metric,
        of: MetricType,
    ) -> Result<prometheus_client::encoding::MetricEncoder<'_>, fmt::Error> {
        let Metric { name, help, unit } = metric;
        self.0.encode_descriptor(name, help, unit, of)
    }
}
