//! Where connections come from: lists and ranges of local addresses, and when one address does not have enough ports.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::IpBindAddressNoPort;
use serde::{Deserialize, Serialize};
use socket2::{Domain, Socket, Type};

use crate::failure::CouldNotRun;
use crate::plan::{Close, Plan};

/// Local addresses to connect from, taken in turn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sources {
    text: String,
    ranges: Vec<Range>,
}

/// Addresses one behind the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: IpAddr,
    count: u128,
}

impl Range {
    fn new(first: IpAddr, last: IpAddr) -> Option<Self> {
        let same = first.is_ipv4() == last.is_ipv4();
        let more = number(last).checked_sub(number(first)).filter(|_| same)?;
        Some(Range { first, count: more.saturating_add(1) })
    }

    fn nth(&self, n: u128) -> IpAddr {
        let number = number(self.first).wrapping_add(n);
        match self.first {
            IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
            IpAddr::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

fn number(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(addr) => u32::from(addr).into(),
        IpAddr::V6(addr) => addr.into(),
    }
}

impl FromStr for Sources {
    type Err = String;

    /// Addresses, ranges and prefixes, with commas between them: `127.0.0.2,127.0.1.1-127.0.1.9,127.0.2.0/24`.
    fn from_str(text: &str) -> Result<Self, String> {
        let ranges: Result<Vec<Range>, String> = text.split(',').map(|part| range(part.trim())).collect();
        let ranges = ranges?;
        let v4 = ranges.iter().filter(|range| range.first.is_ipv4()).count();
        if v4 != 0 && v4 != ranges.len() {
            return Err("IPv4 and IPv6 addresses cannot both reach one server".into());
        }
        Ok(Sources { text: text.into(), ranges })
    }
}

impl TryFrom<String> for Sources {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Sources> for String {
    fn from(sources: Sources) -> String {
        sources.text
    }
}

fn range(text: &str) -> Result<Range, String> {
    let bad = || format!("{text:?} is no address, range (127.0.0.2-127.0.0.9) or prefix (127.0.1.0/24)");
    let addr = |text: &str| text.trim().parse::<IpAddr>().map_err(|_| bad());
    if let Some((first, last)) = text.split_once('-') {
        return Range::new(addr(first)?, addr(last)?).ok_or_else(|| format!("{text:?}: the lower address first"));
    }
    let Some((net, bits)) = text.split_once('/') else {
        let addr = addr(text)?;
        return Ok(Range { first: addr, count: 1 });
    };
    let (net, bits) = (addr(net)?, bits.parse::<u32>().map_err(|_| bad())?);
    let width: u32 = if net.is_ipv4() { 32 } else { 128 };
    let host_bits = width.checked_sub(bits).filter(|bits| *bits < 128).ok_or_else(bad)?;
    let hosts = (1_u128 << host_bits) - 1;
    let base = number(net) & !hosts;
    let (first, last) = match net {
        // The first address of a net names the net, the last one is for broadcasts.
        IpAddr::V4(_) if host_bits > 1 => (base + 1, base + hosts - 1),
        _ => (base, base + hosts),
    };
    let (first, last) = (Range { first: net, count: 1 }.at(first), Range { first: net, count: 1 }.at(last));
    Range::new(first, last).ok_or_else(bad)
}

impl Range {
    /// The address with this number, of the same family.
    fn at(&self, number: u128) -> IpAddr {
        match self.first {
            IpAddr::V4(_) => Ipv4Addr::from(number as u32).into(),
            IpAddr::V6(_) => Ipv6Addr::from(number).into(),
        }
    }
}

impl Sources {
    /// What a plan needs whose clients run apart, so that none of them sees how many ports all of them take.
    pub fn automatic(plan: &Plan) -> Option<Self> {
        let loopback = plan.host == "localhost" || plan.host.parse::<Ipv4Addr>().is_ok_and(|addr| addr.is_loopback());
        let count = addresses_needed(plan, 1, ports(), reuses_time_wait());
        (loopback && count > 1).then(|| Sources::loopback(count))
    }

    /// The first `count` addresses of 127/8.
    pub fn loopback(count: u32) -> Self {
        let ranges = vec![Range { first: Ipv4Addr::LOCALHOST.into(), count: count.into() }];
        let text = format!(
            "127.0.0.1-{}",
            ranges.first().map_or(Ipv4Addr::LOCALHOST.into(), |r| r.nth(u128::from(count) - 1))
        );
        Sources { text, ranges }
    }

    /// How many there are.
    pub fn count(&self) -> u128 {
        self.ranges.iter().fold(0, |sum: u128, range| sum.saturating_add(range.count))
    }

    /// Number `n` of them, from the start again behind the last.
    pub fn nth(&self, n: u64) -> Option<IpAddr> {
        let mut n = u128::from(n).checked_rem(self.count())?;
        for range in &self.ranges {
            if n < range.count {
                return Some(range.nth(n));
            }
            n -= range.count;
        }
        None
    }

    /// Refuses what cannot reach `target`: addresses that are not this machine's, or not of its family, or that never
    /// leave it.
    fn check(&self, target: SocketAddr) -> Result<(), CouldNotRun> {
        let ends = self.ranges.iter().flat_map(|range| [range.first, range.nth(range.count - 1)]);
        for addr in ends {
            let wrong = |why: &str| CouldNotRun::Source { addr, why: why.to_owned() };
            if addr.is_ipv4() != target.is_ipv4() {
                return Err(wrong(&format!("not of the family of {target}")));
            }
            if addr.is_loopback() && !target.ip().is_loopback() {
                return Err(wrong(&format!("a loopback address reaches this machine only, not {target}")));
            }
            let bound = Socket::new(Domain::for_address(target), Type::STREAM, None)
                .and_then(|socket| socket.bind(&SocketAddr::new(addr, 0).into()));
            if let Err(error) = bound {
                let errno = nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or_default());
                return Err(wrong(&format!("{}: give addresses of this machine (ip address)", errno.desc())));
            }
        }
        Ok(())
    }
}

/// From where to where connections go: the sources and the targets, each in turn.
#[derive(Clone, Debug, Default)]
pub struct Route {
    /// Further servers than the first.
    pub more: Vec<SocketAddr>,
    /// Local addresses; `None` leaves the choice to the kernel, which is always the same address.
    pub sources: Option<Sources>,
    /// The sources were not asked for.
    pub automatic: bool,
}

impl Route {
    /// The route of a plan to servers at these addresses, of which the first is asked for first.
    ///
    /// # Errors
    /// [`CouldNotRun::Source`] for a source that cannot be connected from.
    pub fn new(plan: &Plan, first: SocketAddr, more: Vec<SocketAddr>) -> Result<Self, CouldNotRun> {
        let targets = || std::iter::once(first).chain(more.iter().copied());
        let (sources, automatic) = match &plan.source {
            Some(sources) => {
                targets().try_for_each(|target| sources.check(target))?;
                (Some(sources.clone()), false)
            }
            None if targets().all(|target| target.ip().is_loopback() && target.is_ipv4()) => {
                let count = addresses_needed(plan, 1 + more.len() as u64, ports(), reuses_time_wait());
                ((count > 1).then(|| Sources::loopback(count)), true)
            }
            None => (None, true),
        };
        Ok(Route { more, sources, automatic })
    }

    /// Whether every connection goes the same way, and the kernel chooses where from.
    pub fn is_plain(&self) -> bool {
        self.sources.is_none() && self.more.is_empty()
    }

    /// Connects as connection number `n`. The port is chosen by connect(), when the target is known, and not by bind(),
    /// which would have to take one that is free for every target.
    ///
    /// # Errors
    /// Those of bind and connect.
    pub fn connect(&self, socket: &Socket, n: u64, first: SocketAddr) -> io::Result<()> {
        self.bind(socket, n)?;
        socket.connect(&self.target(n, first).into())
    }

    /// Binds to the local address of connection number `n`, and to no port.
    ///
    /// # Errors
    /// Those of setsockopt and bind.
    pub fn bind(&self, socket: &Socket, n: u64) -> io::Result<()> {
        if let Some(source) = self.source(n) {
            if source.is_ipv4() {
                setsockopt(socket, IpBindAddressNoPort, &true)?;
            }
            socket.bind(&source.into())?;
        }
        Ok(())
    }

    /// The local address of connection number `n`.
    pub fn source(&self, n: u64) -> Option<SocketAddr> {
        let addr = self.sources.as_ref()?.nth(n / (1 + self.more.len() as u64))?;
        Some(SocketAddr::new(addr, 0))
    }

    /// The server of connection number `n`.
    pub fn target(&self, n: u64, first: SocketAddr) -> SocketAddr {
        let turn = n % (1 + self.more.len() as u64);
        let other = turn.checked_sub(1).and_then(|turn| self.more.get(turn as usize));
        other.copied().unwrap_or(first)
    }
}

/// How many source addresses a plan needs: ports are counted per pair of addresses, and a port in `TIME_WAIT` is taken
/// unless the kernel uses it again.
fn addresses_needed(plan: &Plan, targets: u64, ports: u64, reuses_time_wait: bool) -> u32 {
    let waiting = match plan.connections() {
        Some(all) if plan.close == Close::Fin && plan.per_connection != 0 && !reuses_time_wait => all,
        _ => 0,
    };
    let room = ports.saturating_mul(targets).max(1);
    let demand = u64::from(plan.slots()).max(waiting);
    // Near the end of the range connect() searches long, and others need ports too.
    if demand < room - room / 10 {
        return 1;
    }
    u32::try_from(demand.div_ceil((room / 2).max(1))).unwrap_or(u32::MAX).clamp(2, 1 << 16)
}

/// Ports that connect() chooses from.
fn ports() -> u64 {
    let text = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut ends = text.split_whitespace().filter_map(|end| end.parse::<u64>().ok());
    match (ends.next(), ends.next()) {
        (Some(first), Some(last)) if first <= last => last - first + 1,
        // Linux's own default.
        _ => 28_232,
    }
}

/// Whether connect() takes a port on loopback that has been in `TIME_WAIT` for a second.
fn reuses_time_wait() -> bool {
    fs::read_to_string("/proc/sys/net/ipv4/tcp_tw_reuse").is_ok_and(|text| matches!(text.trim(), "1" | "2"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Until;

    fn all(text: &str) -> Vec<String> {
        let sources: Sources = text.parse().unwrap();
        (0..sources.count() as u64).map(|n| sources.nth(n).unwrap().to_string()).collect()
    }

    #[test]
    fn lists_ranges_and_prefixes() {
        assert_eq!(all("127.0.0.9, 127.0.0.2-127.0.0.4"), ["127.0.0.9", "127.0.0.2", "127.0.0.3", "127.0.0.4"]);
        assert_eq!(all("127.0.0.6/30"), ["127.0.0.5", "127.0.0.6"]);
        assert_eq!(all("127.0.0.6/31"), ["127.0.0.6", "127.0.0.7"]);
        assert_eq!(all("127.0.0.6/32"), ["127.0.0.6"]);
        assert_eq!(all("::1"), ["::1"]);
        assert_eq!("127.0.0.0/8".parse::<Sources>().unwrap().count(), (1 << 24) - 2);
        assert_eq!("127.0.0.1".parse::<Sources>().unwrap().nth(7).unwrap().to_string(), "127.0.0.1");
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in
            ["", ",", "127.0.0.1-", "127.0.0.9-127.0.0.2", "127.0.0.1/33", "127.0.0.1/x", "a", "::1,127.0.0.1", "::/0"]
        {
            assert!(bad.parse::<Sources>().is_err(), "{bad}");
        }
    }

    #[test]
    fn one_address_unless_ports_would_run_out() {
        let plan = |clients| Plan { clients, per_connection: 0, ..Plan::default() };
        let need = |clients| addresses_needed(&plan(clients), 1, 28_232, true);
        assert_eq!((need(5), need(25_000), need(26_000), need(50_000)), (1, 1, 2, 4));
        assert_eq!(addresses_needed(&plan(50_000), 4, 28_232, true), 1);
        let many = Plan { until: Until::Tries(100_000), ..Plan::default() };
        assert_eq!((addresses_needed(&many, 1, 28_232, true), addresses_needed(&many, 1, 28_232, false)), (1, 36));
    }
}
