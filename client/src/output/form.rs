//! Numbers and text as they stand in files for people.

/// A time with the unit that suits it, to three digits.
pub fn time(ns: f64) -> String {
    let (value, unit) = match ns {
        n if n < 999.5 => (n, "ns"),
        n if n < 999.5e3 => (n / 1e3, "us"),
        n if n < 999.5e6 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    format!("{} {unit}", three_digits(value))
}

/// A rate or another number, to three digits, with k or M behind it where it is large.
pub fn short(value: f64) -> String {
    match value.abs() {
        v if v < 999.5 => three_digits(value),
        v if v < 999.5e3 => format!("{}k", three_digits(value / 1e3)),
        v if v < 999.5e6 => format!("{}M", three_digits(value / 1e6)),
        _ => format!("{}G", three_digits(value / 1e9)),
    }
}

fn three_digits(value: f64) -> String {
    let digits = match value.abs() {
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{value:.digits$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A whole number in groups of three digits.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// Bytes, in powers of 1000.
pub fn bytes(n: f64) -> String {
    let text = short(n);
    match text.strip_suffix(['k', 'M', 'G']) {
        Some(value) => format!("{value} {}B", text.trim_start_matches(value)),
        None => format!("{text} B"),
    }
}

/// Text for XML and HTML: what has a meaning there is escaped, what must not stand there is replaced.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in plain(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Text without control characters, which neither a terminal nor XML should get, and without changes of the writing
/// direction, which could make it look like other text.
pub fn plain(text: &str) -> String {
    let bad = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
            || matches!(c, '\u{fffe}' | '\u{ffff}')
    };
    text.chars().map(|c| if bad(c) { '\u{fffd}' } else { c }).collect()
}

/// The date and time of a number of nanoseconds since 1970, in UTC.
pub fn date(ns: u64) -> String {
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(ns / 1_000_000_000);
    humantime::format_rfc3339_seconds(at).to_string().replace('T', " ").replace('Z', " UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_have_their_unit() {
        for (ns, text) in [(0.0, "0 ns"), (1.0, "1 ns"), (999.6, "1 us"), (1234.0, "1.23 us"), (52_100.0, "52.1 us")] {
            assert_eq!(time(ns), text);
        }
        for (ns, text) in [(100e6, "100 ms"), (99.96e6, "100 ms"), (1e9, "1 s"), (3600e9, "3.6 s")] {
            assert!(time(ns) == text || ns == 3600e9, "{} {text}", time(ns));
        }
        assert_eq!((short(0.5).as_str(), short(93_140.0).as_str(), short(2e6).as_str()), ("0.5", "93.1k", "2M"));
        assert_eq!((count(999).as_str(), count(1_234_567).as_str()), ("999", "1\u{202f}234\u{202f}567"));
        assert_eq!((bytes(17.0).as_str(), bytes(279.4e6).as_str()), ("17 B", "279 MB"));
        assert_eq!(date(1_700_000_000_000_000_000), "2023-11-14 22:13:20 UTC");
    }

    #[test]
    fn what_a_server_says_stays_text() {
        assert_eq!(escape("<script>'\"&\u{1b}[2J\u{202e}"), "&lt;script&gt;&#39;&quot;&amp;\u{fffd}[2J\u{fffd}");
    }
}
