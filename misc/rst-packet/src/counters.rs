//! What the kernel counts of resets, for all sockets of the network namespace.

use std::fs;
use std::io;

/// Three counters, or how far they have moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Segments sent with RST.
    pub out_rsts: u64,
    /// Connections reset by SO_LINGER 0, or by data that came after the close.
    pub abort_on_data: u64,
    /// Connections reset because they were closed with unread data.
    pub abort_on_close: u64,
}

impl Counters {
    /// Reads them from /proc/net.
    ///
    /// # Errors
    /// Where /proc/net is not there, or does not hold them.
    pub fn read() -> io::Result<Counters> {
        let (snmp, netstat) = (fs::read_to_string("/proc/net/snmp")?, fs::read_to_string("/proc/net/netstat")?);
        let get = |text: &str, group: &str, key: &str| {
            counter(text, group, key).ok_or_else(|| io::Error::other(format!("/proc/net: no {group} {key}")))
        };
        Ok(Counters {
            out_rsts: get(&snmp, "Tcp:", "OutRsts")?,
            abort_on_data: get(&netstat, "TcpExt:", "TCPAbortOnData")?,
            abort_on_close: get(&netstat, "TcpExt:", "TCPAbortOnClose")?,
        })
    }

    /// How far they have moved since `before`.
    pub fn since(&self, before: &Counters) -> Counters {
        Counters {
            out_rsts: self.out_rsts.wrapping_sub(before.out_rsts),
            abort_on_data: self.abort_on_data.wrapping_sub(before.abort_on_data),
            abort_on_close: self.abort_on_close.wrapping_sub(before.abort_on_close),
        }
    }
}

/// Two lines of a group: the first has the names, the second the values.
fn counter(text: &str, group: &str, key: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.split_whitespace().next() == Some(group));
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|name| name == key)?;
    values.split_whitespace().nth(place)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_stand_in_two_lines() {
        let text = "Ip: A B\nIp: 1 2\nTcp: A OutRsts B\nTcp: 1 7 3\nTcp: 1\n";
        assert_eq!(counter(text, "Tcp:", "OutRsts"), Some(7));
        assert_eq!(counter(text, "Tcp:", "B"), Some(3));
        assert_eq!(counter(text, "Ip:", "B"), Some(2));
        assert_eq!(counter(text, "Tcp:", "C"), None);
        assert_eq!(counter(text, "Udp:", "A"), None);
        assert_eq!(counter("Tcp: A", "Tcp:", "A"), None);
    }

    #[test]
    fn the_kernel_has_them() {
        let first = Counters::read().unwrap();
        assert!(Counters::read().unwrap().since(&first).out_rsts < 1 << 40, "they only grow");
    }
}
