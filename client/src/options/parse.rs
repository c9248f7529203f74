//! The values of options, from text.

use std::time::{Duration, UNIX_EPOCH};

use client::{Arrivals, Rate, Think, Warmup};

/// Requests per second; nobody has sent so many.
const FASTEST: f64 = 1e7;

/// CPU numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cpus(pub Vec<u32>);

/// More CPUs than a set of the kernel's default size has.
const CPUS: u32 = 1024;

/// A count: a whole number, perhaps with k or m.
pub fn number(text: &str) -> Result<u32, String> {
    let (digits, factor) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at).unwrap_or_default(), 1000),
        Some((at, 'm' | 'M')) => (text.get(..at).unwrap_or_default(), 1_000_000),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("a whole number, perhaps with k or m behind it".into());
    }
    let value = digits.parse::<u32>().ok().and_then(|value| value.checked_mul(factor));
    value.ok_or_else(|| format!("at most {}", u32::MAX))
}

/// A count of at least 1.
pub fn positive(text: &str) -> Result<u32, String> {
    match number(text)? {
        0 => Err("at least 1".into()),
        n => Ok(n),
    }
}

/// A port to connect to.
pub fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) => Err("port 0 is no port to connect to; servers started with -p 0 print theirs".into()),
        Ok(port) => Ok(port),
        Err(_) => Err("a port number, 1 to 65535".into()),
    }
}

/// A time of at least 1 ms and at most a day.
pub fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|_| "a time such as 5s, 100ms or 1m30s".to_owned())?;
    let day = Duration::from_secs(86_400);
    let in_range = Duration::from_millis(1) <= time && time <= day;
    if in_range { Ok(time) } else { Err("at least 1ms and at most 1day".into()) }
}

/// A rate per second, perhaps with k or m and a fraction, or two of them.
pub fn rate(text: &str) -> Result<Rate, String> {
    let one = |text: &str| {
        let (digits, factor) = match text.strip_suffix(['k', 'K']) {
            Some(digits) => (digits, 1e3),
            None => text.strip_suffix(['m', 'M']).map_or((text, 1.0), |digits| (digits, 1e6)),
        };
        let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        let rate = digits.parse::<f64>().ok().filter(|_| plain).map(|rate| rate * factor);
        let rate = rate.ok_or_else(|| "requests per second, such as 1000, 2.5k or 100:5k".to_owned())?;
        if rate <= FASTEST { Ok(rate) } else { Err("at most 10m".to_owned()) }
    };
    let rate = match text.split_once(':') {
        Some((from, to)) => Rate { from: one(from)?, to: one(to)? },
        None => Rate::constant(one(text)?),
    };
    if rate.from + rate.to > 0.0 { Ok(rate) } else { Err("more than 0 requests per second".into()) }
}

/// How requests lie in time.
pub fn arrivals(text: &str) -> Result<Arrivals, String> {
    match (text, text.strip_prefix("burst:")) {
        ("uniform", _) => Ok(Arrivals::Uniform),
        ("poisson", _) => Ok(Arrivals::Poisson),
        (_, Some(n)) => positive(n).map(Arrivals::Burst),
        _ => Err("uniform, poisson or burst:N".into()),
    }
}

/// A pause.
pub fn think(text: &str) -> Result<Think, String> {
    if let Some(mean) = text.strip_prefix("exp:") {
        return pause(mean).map(Think::Exponential);
    }
    match text.split_once('-') {
        Some((low, high)) => match (pause(low)?, pause(high)?) {
            (low, high) if low <= high => Ok(Think::Uniform(low, high)),
            _ => Err("the shorter time first".into()),
        },
        None => pause(text).map(Think::Fixed),
    }
}

fn pause(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|_| "a time such as 10ms, 5ms-20ms or exp:10ms".to_owned())?;
    if time <= Duration::from_secs(86_400) { Ok(time) } else { Err("at most 1day".into()) }
}

/// What to leave out at the start.
pub fn warmup(text: &str) -> Result<Warmup, String> {
    match text {
        "auto" => Ok(Warmup::Auto),
        "0" => Ok(Warmup::None),
        _ if text.ends_with(|last: char| last.is_ascii_digit() || matches!(last, 'k' | 'K')) => {
            number(text).map(|n| Warmup::Requests(n.into()))
        }
        _ => time(text).map(Warmup::Time).map_err(|_| "a time such as 2s, a number of answers, or auto".into()),
    }
}

/// A time of the wall clock, in nanoseconds since 1970.
pub fn start_at(text: &str) -> Result<u64, String> {
    let nanos = match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_rfc3339_weak(text).ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()),
    };
    let nanos = nanos.and_then(|time| u64::try_from(time.as_nanos()).ok());
    nanos.ok_or_else(|| "a time such as 2027-03-01T12:00:00Z, or seconds since 1970".into())
}

/// CPU numbers and ranges of them.
pub fn cpus(text: &str) -> Result<Cpus, String> {
    let mut all = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (number(first)?, number(last)?) {
            (first, last) if first <= last && last < CPUS => all.extend(first..=last),
            _ => return Err(format!("CPU numbers below {CPUS}, such as 1 or 2,4-7")),
        }
    }
    Ok(Cpus(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        assert_eq!(rate("1000"), Ok(Rate::constant(1000.0)));
        assert_eq!(rate("2.5k"), Ok(Rate::constant(2500.0)));
        assert_eq!(rate("10m"), Ok(Rate::constant(1e7)));
        assert_eq!(rate("0:1m"), Ok(Rate { from: 0.0, to: 1e6 }));
        for bad in ["", "0", "-1", "0:0", "1:", "k", "1e3", "inf", "nan", "1:2:3", "2g", "11m"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shapes_and_pauses() {
        assert_eq!(arrivals("burst:10"), Ok(Arrivals::Burst(10)));
        assert_eq!(arrivals("poisson"), Ok(Arrivals::Poisson));
        let ms = Duration::from_millis;
        assert_eq!(think("5ms"), Ok(Think::Fixed(ms(5))));
        assert_eq!(think("5ms-1s"), Ok(Think::Uniform(ms(5), ms(1000))));
        assert_eq!(think("exp:10ms"), Ok(Think::Exponential(ms(10))));
        for bad in ["burst:0", "burst", "even"] {
            assert!(arrivals(bad).is_err(), "{bad}");
        }
        for bad in ["", "5", "2s-1s", "exp:", "exp:5", "-"] {
            assert!(think(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn warm_ups_are_times_or_numbers() {
        assert_eq!(warmup("2s"), Ok(Warmup::Time(Duration::from_secs(2))));
        assert_eq!(warmup("1m"), Ok(Warmup::Time(Duration::from_secs(60))));
        assert_eq!(warmup("10k"), Ok(Warmup::Requests(10_000)));
        assert_eq!((warmup("auto"), warmup("0")), (Ok(Warmup::Auto), Ok(Warmup::None)));
        assert!(warmup("soon").is_err() && warmup("-1").is_err() && warmup("").is_err());
    }

    #[test]
    fn times_of_the_wall_clock() {
        assert_eq!(start_at("1970-01-01T00:00:01Z"), Ok(1_000_000_000));
        assert_eq!(start_at("12.5"), Ok(12_500_000_000));
        for bad in ["", "noon", "-1", "nan", "1e300", "2027-13-01T00:00:00Z"] {
            assert!(start_at(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_lists() {
        assert_eq!(cpus("1"), Ok(Cpus(vec![1])));
        assert_eq!(cpus("2,4-7"), Ok(Cpus(vec![2, 4, 5, 6, 7])));
        for bad in ["", "1,", "a", "3-1", "1024", "-1"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_largest_count() {
        assert_eq!(number("4294967295"), Ok(u32::MAX));
    }
}
