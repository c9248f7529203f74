//! Gates: what a run has to keep, such as `p99<10ms`, `errors<0.1%` or `rate>1000`.

use std::fmt;
use std::str::FromStr;

use hdrhistogram::Histogram;

use crate::report::Report;
use crate::stats::{needed, percentile};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Response,
    Service,
    Connect,
    FirstByte,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Percentile(Which, u64),
    Max(Which),
    Mean(Which),
    ErrorShare,
    Errors,
    Rate,
    ServerCpu,
    ClientCpu,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sign {
    Below,
    AtMost,
    Above,
    AtLeast,
}

/// One condition.
#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    text: String,
    what: What,
    sign: Sign,
    bound: f64,
}

/// How a run keeps a gate.
#[derive(Clone, Debug, PartialEq)]
pub enum Breach {
    /// It is not kept; the words name it and the value found.
    Broken(String),
    /// The run is too short to tell, or the figure is not there.
    Unknown(String),
}

const HELP: &str = "a condition such as p99<10ms, service.p50<=200us, max<1s, errors<0.1%, errors<=5, rate>1000, \
                    server_cpu<50us";

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let at = text.find(['<', '>']).ok_or(HELP)?;
        let (name, rest) = text.split_at(at);
        let (sign, bound) = match rest {
            _ if rest.starts_with("<=") => (Sign::AtMost, rest.get(2..)),
            _ if rest.starts_with(">=") => (Sign::AtLeast, rest.get(2..)),
            _ if rest.starts_with('<') => (Sign::Below, rest.get(1..)),
            _ => (Sign::Above, rest.get(1..)),
        };
        let (name, bound) = (name.trim(), bound.unwrap_or_default().trim());
        let (what, bound) = match name {
            "errors" => match bound.strip_suffix('%') {
                Some(share) => (What::ErrorShare, plain(share)?),
                None => (What::Errors, plain(bound)?),
            },
            "rate" => (What::Rate, plain(bound)?),
            "server_cpu" => (What::ServerCpu, time(bound)?),
            "client_cpu" => (What::ClientCpu, time(bound)?),
            _ => (latency(name)?, time(bound)?),
        };
        Ok(Gate { text: text.to_owned(), what, sign, bound })
    }
}

fn latency(name: &str) -> Result<What, String> {
    let (which, value) = match name.split_once('.') {
        Some(("response" | "total", value)) => (Which::Response, value),
        Some(("service", value)) => (Which::Service, value),
        Some(("connect", value)) => (Which::Connect, value),
        Some(("first_byte", value)) => (Which::FirstByte, value),
        _ => (Which::Response, name),
    };
    match value {
        "max" => Ok(What::Max(which)),
        "mean" => Ok(What::Mean(which)),
        _ => {
            let percent: f64 = value.strip_prefix('p').and_then(|n| n.parse().ok()).ok_or(HELP)?;
            let tenths = (percent * 10.0).round();
            let exact = (percent * 10.0 - tenths).abs() < 1e-6 && (1.0..=999.0).contains(&tenths);
            if exact { Ok(What::Percentile(which, tenths as u64)) } else { Err("p0.1 to p99.9, in tenths".into()) }
        }
    }
}

/// A number, perhaps with k or m.
fn plain(text: &str) -> Result<f64, String> {
    let (digits, factor) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1e3),
        None => text.strip_suffix(['m', 'M']).map_or((text, 1.0), |digits| (digits, 1e6)),
    };
    let value = digits.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0);
    value.map(|value| value * factor).ok_or_else(|| HELP.into())
}

/// A time, in nanoseconds.
fn time(text: &str) -> Result<f64, String> {
    humantime::parse_duration(text).map(|time| time.as_nanos() as f64).or_else(|_| {
        let number = text.strip_suffix("us").or(text.strip_suffix("ms")).or(text.strip_suffix('s')).ok_or(HELP)?;
        let unit = if text.ends_with("us") {
            1e3
        } else if text.ends_with("ms") {
            1e6
        } else {
            1e9
        };
        plain(number).map(|value| value * unit)
    })
}

impl fmt::Display for Gate {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.text)
    }
}

impl Gate {
    /// So many answers are needed to tell.
    pub fn samples(&self) -> u64 {
        match self.what {
            What::Percentile(_, p) => needed(p),
            _ => 1,
        }
    }

    /// Looks whether the run keeps it; `None` if so.
    pub fn check(&self, report: &Report) -> Option<Breach> {
        let value = match self.value(report) {
            Ok(value) => value,
            Err(why) => return Some(Breach::Unknown(format!("{}: {why}", self.text))),
        };
        let kept = match self.sign {
            Sign::Below => value < self.bound,
            Sign::AtMost => value <= self.bound,
            Sign::Above => value > self.bound,
            Sign::AtLeast => value >= self.bound,
        };
        (!kept).then(|| Breach::Broken(format!("{}: it is {}", self.text, self.words(value))))
    }

    fn value(&self, report: &Report) -> Result<f64, String> {
        let histogram = |which| -> &Histogram<u64> {
            match which {
                Which::Response => &report.latency.response,
                Which::Service => &report.latency.service,
                Which::Connect => &report.latency.connect,
                Which::FirstByte => &report.latency.first_byte,
            }
        };
        let some = |which| match histogram(which) {
            samples if samples.is_empty() => Err("no samples".to_owned()),
            samples => Ok(samples),
        };
        match self.what {
            What::Percentile(which, p) => {
                let value = percentile(histogram(which), p);
                let have = histogram(which).len();
                value.map(|ns| ns as f64).ok_or_else(|| format!("{have} samples, {} are needed", needed(p)))
            }
            What::Max(which) => Ok(some(which)?.max() as f64),
            What::Mean(which) => Ok(some(which)?.mean()),
            What::Errors => Ok(report.failures() as f64),
            What::ErrorShare => {
                let tried = report.requests.sent + report.connections.failed;
                Ok(100.0 * report.failures() as f64 / tried.max(1) as f64)
            }
            What::Rate => Ok(report.requests_per_second()),
            What::ClientCpu => Ok(report.cpu_us_per_request().unwrap_or_default() * 1e3),
            What::ServerCpu => {
                let unknown = match report.server {
                    Some(_) => "nothing was done",
                    None => "the server was not watched (--server-cmd, --server-pid)",
                };
                Ok(report.server_us_per_request().ok_or(unknown)? * 1e3)
            }
        }
    }

    fn words(&self, value: f64) -> String {
        match self.what {
            What::ErrorShare => format!("{value:.3} %"),
            What::Errors => format!("{value:.0}"),
            What::Rate => format!("{value:.0}/s"),
            _ if value < 1e6 => format!("{:.1}us", value / 1e3),
            _ => format!("{:.2}ms", value / 1e6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_are_read() {
        for good in [
            "p99<10ms",
            "p99.9<=1s",
            "p50 < 1.5ms",
            "service.p90<200us",
            "errors<0.1%",
            "errors<=0",
            "rate>1k",
            "rate>=1000",
            "server_cpu<50us",
            "connect.max<1s",
            "mean<1ms",
        ] {
            assert!(good.parse::<Gate>().is_ok(), "{good}");
        }
        for bad in ["", "p99", "p99<", "p99<10", "p100<1s", "p99.99<1s", "rate<x", "load<1", "errors<-1", "p99=1ms"] {
            assert!(bad.parse::<Gate>().is_err(), "{bad}");
        }
    }
}
