//! A report as JSON. Times are nanoseconds; `null` stands for a percentile that has too few samples.

use std::io::{self, Write};

use hdrhistogram::Histogram;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use crate::report::Report;
use crate::stats::{Latencies, percentile};

/// Version of the JSON. A field that changes its meaning or goes away raises it; a new field does not.
pub const SCHEMA: u32 = 1;

/// Writes the report as one JSON document.
///
/// # Errors
/// Those of `out`.
pub fn write(report: &Report, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report)?;
    writeln!(out)
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("Report", 16)?;
        json.serialize_field("schema", &SCHEMA)?;
        json.serialize_field("good", &self.is_good())?;
        json.serialize_field("plan", &self.plan)?;
        json.serialize_field("addr", &self.addr)?;
        json.serialize_field("ended", &self.ended)?;
        json.serialize_field("elapsed_ns", &(self.elapsed.as_nanos() as u64))?;
        json.serialize_field("requests", &self.requests)?;
        json.serialize_field("connections", &self.connections)?;
        json.serialize_field("bytes", &self.bytes)?;
        json.serialize_field("requests_per_second", &self.requests_per_second())?;
        json.serialize_field("connections_per_second", &self.connections_per_second())?;
        json.serialize_field("bytes_per_second", &self.bytes_per_second())?;
        json.serialize_field("latency", &self.latency)?;
        json.serialize_field("failures", &self.failures)?;
        json.serialize_field("client_cpu", &self.cpu)?;
        json.serialize_field("client_peak_memory_bytes", &self.peak_memory)?;
        json.end()
    }
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("Latencies", 5)?;
        json.serialize_field("connect_ns", &Summary::of(&self.connect))?;
        json.serialize_field("first_byte_ns", &Summary::of(&self.first_byte))?;
        json.serialize_field("service_ns", &Summary::of(&self.service))?;
        json.serialize_field("total_ns", &Summary::of(&self.total))?;
        json.serialize_field("failed_ns", &Summary::of(&self.failed))?;
        json.end()
    }
}

#[derive(Serialize)]
struct Summary {
    count: u64,
    min: Option<u64>,
    p50: Option<u64>,
    p90: Option<u64>,
    p99: Option<u64>,
    p99_9: Option<u64>,
    max: Option<u64>,
    mean: Option<f64>,
}

impl Summary {
    fn of(histogram: &Histogram<u64>) -> Self {
        let any = !histogram.is_empty();
        Summary {
            count: histogram.len(),
            min: any.then(|| histogram.min()),
            p50: percentile(histogram, 500),
            p90: percentile(histogram, 900),
            p99: percentile(histogram, 990),
            p99_9: percentile(histogram, 999),
            max: any.then(|| histogram.max()),
            mean: any.then(|| histogram.mean()),
        }
    }
}
