//! A report as JSON, written and read. Times are nanoseconds; `null` stands for a percentile that has too few samples.
//!
//! Beside its percentiles each histogram is there whole, as `hdr`: HdrHistogram's compressed V2 form in base64, which
//! every HdrHistogram library reads and which [`read`] takes back without loss.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer as HdrDeserializer, Serializer as _, V2DeflateSerializer};
use serde::de::Error;
use serde::ser::{Error as _, SerializeStruct};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::Cpu;
use crate::machine::Machine;
use crate::misbehave::Fates;
use crate::plan::Plan;
use crate::report::{Connections, Ended, Honesty, Report, Requests, ServerUse, Slice, Steady, Steer};
use crate::stats::{Latencies, Row, percentile};

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

/// Reads a report that [`write()`] has written.
///
/// # Errors
/// Those of `from`, and text that is no report of this schema.
pub fn read(from: &mut dyn Read) -> io::Result<Report> {
    Ok(serde_json::from_reader(from)?)
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut json = serializer.serialize_struct("Report", 22)?;
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
        json.serialize_field("honesty", &self.honesty)?;
        json.serialize_field("abusers", &self.abusers)?;
        json.serialize_field("server", &self.server)?;
        json.serialize_field("machine", &self.machine)?;
        json.serialize_field("client_cpu", &self.cpu)?;
        json.serialize_field("steady", &self.steady)?;
        json.serialize_field("rates_set_by_hand", &self.steered)?;
        json.serialize_field("client_peak_memory_bytes", &self.peak_memory)?;
        json.serialize_field("series", &self.series)?;
        json.end()
    }
}

/// What [`read`] takes of the document; the rest follows from it.
#[derive(Deserialize)]
struct Document {
    schema: u32,
    plan: Plan,
    addr: SocketAddr,
    ended: Ended,
    elapsed_ns: u64,
    requests: Requests,
    connections: Connections,
    bytes: u64,
    latency: Latencies,
    failures: Vec<Row>,
    honesty: Honesty,
    #[serde(default)]
    abusers: Option<Fates>,
    server: Option<ServerUse>,
    #[serde(default)]
    machine: Option<Machine>,
    client_cpu: Cpu,
    #[serde(default)]
    steady: Option<Steady>,
    #[serde(default)]
    rates_set_by_hand: Vec<Steer>,
    client_peak_memory_bytes: Option<u64>,
    series: Vec<Slice>,
}

impl<'de> Deserialize<'de> for Report {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut from = Document::deserialize(deserializer)?;
        if from.schema != SCHEMA {
            let text = format!("a report of schema {}, this program reads schema {SCHEMA}", from.schema);
            return Err(D::Error::custom(text));
        }
        from.failures.iter_mut().for_each(|row| row.advice = row.kind.advice());
        Ok(Report {
            plan: from.plan,
            addr: from.addr,
            ended: from.ended,
            elapsed: Duration::from_nanos(from.elapsed_ns),
            requests: from.requests,
            connections: from.connections,
            bytes: from.bytes,
            latency: from.latency,
            failures: from.failures,
            cpu: from.client_cpu,
            steady: from.steady,
            steered: from.rates_set_by_hand,
            peak_memory: from.client_peak_memory_bytes,
            series: from.series,
            honesty: from.honesty,
            abusers: from.abusers,
            server: from.server,
            machine: from.machine,
        })
    }
}

/// [`Latencies`] as they stand in the document.
#[derive(Serialize, Deserialize)]
struct Written {
    connect_ns: Summary,
    first_byte_ns: Summary,
    service_ns: Summary,
    total_ns: Summary,
    response_ns: Summary,
    failed_ns: Summary,
}

impl Serialize for Latencies {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let summary = |histogram| Summary::of(histogram).map_err(S::Error::custom);
        Written {
            connect_ns: summary(&self.connect)?,
            first_byte_ns: summary(&self.first_byte)?,
            service_ns: summary(&self.service)?,
            total_ns: summary(&self.total)?,
            response_ns: summary(&self.response)?,
            failed_ns: summary(&self.failed)?,
        }
        .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Latencies {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let from = Written::deserialize(deserializer)?;
        let histogram = |summary: Summary| summary.histogram().map_err(D::Error::custom);
        Ok(Latencies {
            connect: histogram(from.connect_ns)?,
            first_byte: histogram(from.first_byte_ns)?,
            service: histogram(from.service_ns)?,
            total: histogram(from.total_ns)?,
            response: histogram(from.response_ns)?,
            failed: histogram(from.failed_ns)?,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Summary {
    count: u64,
    min: Option<u64>,
    p50: Option<u64>,
    p90: Option<u64>,
    #[serde(default)]
    p95: Option<u64>,
    p99: Option<u64>,
    p99_9: Option<u64>,
    max: Option<u64>,
    mean: Option<f64>,
    hdr: String,
}

impl Summary {
    fn of(histogram: &Histogram<u64>) -> Result<Self, String> {
        let any = !histogram.is_empty();
        let mut bytes = Vec::new();
        V2DeflateSerializer::new().serialize(histogram, &mut bytes).map_err(|error| error.to_string())?;
        Ok(Summary {
            count: histogram.len(),
            min: any.then(|| histogram.min()),
            p50: percentile(histogram, 500),
            p90: percentile(histogram, 900),
            p95: percentile(histogram, 950),
            p99: percentile(histogram, 990),
            p99_9: percentile(histogram, 999),
            max: any.then(|| histogram.max()),
            mean: any.then(|| histogram.mean()),
            hdr: BASE64.encode(bytes),
        })
    }

    fn histogram(self) -> Result<Histogram<u64>, String> {
        let bytes = BASE64.decode(self.hdr).map_err(|error| format!("hdr: {error}"))?;
        let read = HdrDeserializer::new().deserialize(&mut bytes.as_slice());
        let mut histogram: Histogram<u64> = read.map_err(|error| format!("hdr: {error}"))?;
        // One that is as long as the times in it has to take longer ones, if it becomes a sum.
        histogram.auto(true);
        Ok(histogram)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;
    use crate::stats::{Instants, Tally};

    fn report() -> Report {
        let mut tally = Tally::new().unwrap();
        for last in 1..2000 {
            tally.done(Instants { intended: 0, start: 1, sent: 2, first: 3, last: last * 1000 });
        }
        tally.failure(&Failure::ClosedEarly, 5, 4);
        let addr = "127.0.0.1:2000".parse().unwrap();
        let mut report = Report::new(&Plan::default(), addr, Ended::Finished, Duration::from_nanos(12_345), tally, 5);
        report.series.push(Slice { heat: vec![(40, 3)], ..Slice::default() });
        report.server = Some(ServerUse { pid: 1, ..ServerUse::default() });
        report
    }

    #[test]
    fn what_is_written_is_read_again_without_loss() {
        let (report, mut first, mut second) = (report(), Vec::new(), Vec::new());
        write(&report, &mut first).unwrap();
        let back = read(&mut first.as_slice()).unwrap();
        assert_eq!(back.latency.service, report.latency.service);
        write(&back, &mut second).unwrap();
        assert_eq!(String::from_utf8(first).unwrap(), String::from_utf8(second).unwrap());
    }

    #[test]
    fn what_is_no_report_is_one_clear_line() {
        let mut text = Vec::new();
        write(&report(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let other_schema = text.replacen("\"schema\": 1", "\"schema\": 9", 1);
        let bad_histogram = text.replacen("\"hdr\": \"", "\"hdr\": \"x", 1);
        for (bad, words) in [("", "EOF"), ("{}", "schema"), (&other_schema, "schema 9"), (&bad_histogram, "hdr: ")] {
            let error = read(&mut bad.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains('\n'), "{error}");
        }
    }
}
