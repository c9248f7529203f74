//! Which addresses a host has.

use std::net::{SocketAddr, ToSocketAddrs};

use crate::failure::CouldNotRun;

/// The addresses of `host`, IPv4 first: that is where servers of this workspace listen, and `localhost` often names
/// `::1` before 127.0.0.1.
///
/// # Errors
/// [`CouldNotRun::UnknownHost`].
pub fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, CouldNotRun> {
    let unknown = |why: String| CouldNotRun::UnknownHost { host: format!("{host:?}"), why };
    let name = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let found = (name, port).to_socket_addrs().map_err(|error| unknown(why(&error.to_string())))?;
    let mut addrs: Vec<SocketAddr> = found.collect();
    addrs.sort_by_key(SocketAddr::is_ipv6);
    addrs.dedup();
    if addrs.is_empty() { Err(unknown("it has no address".into())) } else { Ok(addrs) }
}

/// The addresses of the first of `hosts`, which are separated by commas, and one address of each further one.
///
/// # Errors
/// [`CouldNotRun::UnknownHost`].
pub fn targets(hosts: &str, port: u16) -> Result<(Vec<SocketAddr>, Vec<SocketAddr>), CouldNotRun> {
    let (first, more) = hosts.split_once(',').map_or((hosts, None), |(first, more)| (first, Some(more)));
    let more = more.into_iter().flat_map(|more| more.split(','));
    let more: Result<Vec<SocketAddr>, CouldNotRun> = more
        .map(|host| Ok(addresses(host, port)?.into_iter().take(1)))
        .collect::<Result<Vec<_>, _>>()
        .map(|found| found.into_iter().flatten().collect());
    Ok((addresses(first, port)?, more?))
}

/// The resolver's own words, without what std puts before them.
fn why(text: &str) -> String {
    text.rsplit(": ").next().unwrap_or(text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_ipv4_first() {
        assert_eq!(addresses("127.0.0.1", 2000).unwrap(), ["127.0.0.1:2000".parse().unwrap()]);
        assert_eq!(addresses("[::1]", 2000).unwrap(), ["[::1]:2000".parse().unwrap()]);
        let local = addresses("localhost", 2000).unwrap();
        assert!(local.is_sorted_by_key(|addr| addr.is_ipv6()), "{local:?}");
        assert!(local.iter().all(|addr| addr.ip().is_loopback()), "{local:?}");
    }

    #[test]
    fn an_unknown_host_is_one_clear_line() {
        for host in ["", "no.such.host.invalid", "127.0.0.1.5", "a b", "x:y"] {
            let error = addresses(host, 2000).unwrap_err().to_string();
            assert!(error.starts_with(&format!("host {host:?}: ")) && !error.contains('\n'), "{error}");
        }
    }
}
