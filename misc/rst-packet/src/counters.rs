//! The kernel's counters of RST segments, for all sockets of the network namespace.

use std::fs;
use std::io;

/// Segments sent with RST; connections reset by SO_LINGER 0 or by data after the close; connections
/// reset because of unread data.
const COUNTERS: [(&str, &str, &str); 3] = [
    ("/proc/net/snmp", "Tcp:", "OutRsts"),
    ("/proc/net/netstat", "TcpExt:", "TCPAbortOnData"),
    ("/proc/net/netstat", "TcpExt:", "TCPAbortOnClose"),
];

/// Reads OutRsts, TCPAbortOnData and TCPAbortOnClose.
///
/// # Errors
/// /proc/net is missing, or does not contain a counter.
pub fn read() -> io::Result<[u64; 3]> {
    let mut values = [0; 3];
    for (value, (path, group, key)) in values.iter_mut().zip(COUNTERS) {
        let missing = || io::Error::other(format!("{path}: no {group} {key}"));
        *value = counter(&fs::read_to_string(path)?, group, key).ok_or_else(missing)?;
    }
    Ok(values)
}

/// A group has two lines: the names and the values.
fn counter(text: &str, group: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.split_whitespace().next() == Some(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let position = names.split_whitespace().position(|name| name == key)?;
    values.split_whitespace().nth(position)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_by_group_and_name() {
        let text = "Ip: A B\nIp: 1 2\nTcp: A OutRsts B\nTcp: 1 7 3\nTcp: 1\n";
        assert_eq!(counter(text, "Tcp:", "OutRsts"), Some(7));
        assert_eq!(counter(text, "Tcp:", "B"), Some(3));
        assert_eq!(counter(text, "Ip:", "B"), Some(2));
        assert_eq!(counter(text, "Tcp:", "C"), None);
        assert_eq!(counter(text, "Udp:", "A"), None);
        assert_eq!(counter("Tcp: A", "Tcp:", "A"), None);
    }

    #[test]
    fn the_kernel_has_all_counters() {
        let [first, ..] = read().unwrap();
        assert!(read().unwrap()[0] >= first, "counters only grow");
    }
}
