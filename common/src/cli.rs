//! The options that mean the same in every server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use clap::Args;

use crate::report::Failed;

/// The port that UNP, chapter 30, and csdesign use.
pub const PORT: u16 = 2000;
/// Workers of a pool.
pub const WORKERS: u16 = 8;
/// Longest answer that a client may request, in bytes.
pub const MAX_REQUEST: u32 = 1 << 20;
/// Milliseconds from the first byte of a request line to its newline.
pub const LINE_TIMEOUT_MS: u64 = 10_000;
/// Milliseconds until the first byte of the next request.
pub const IDLE_TIMEOUT_MS: u64 = 60_000;
/// Milliseconds without progress while an answer is sent.
pub const WRITE_TIMEOUT_MS: u64 = 30_000;
/// Milliseconds that open connections may take to finish after SIGTERM or SIGINT.
pub const GRACE_MS: u64 = 5_000;

/// Where to listen.
#[derive(Args, Clone, Debug)]
pub struct Listen {
    /// Address or host name to listen on
    #[arg(short = 'i', long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_parser = host, value_name = "HOST")]
    pub host: IpAddr,
    /// Port to listen on; 0 lets the kernel choose a free port
    #[arg(short, long, default_value_t = PORT)]
    pub port: u16,
    /// Allow listening on a non-loopback address
    #[arg(long)]
    pub allow_remote: bool,
}

impl Listen {
    /// The address of the listening socket.
    ///
    /// # Errors
    /// The address is not a loopback address, and `--allow-remote` is missing: these servers have no authentication.
    pub fn addr(&self) -> Result<SocketAddr, Failed> {
        let addr = SocketAddr::new(self.host, self.port);
        if self.host.is_loopback() || self.allow_remote {
            return Ok(addr);
        }
        Err(Failed::new(format!(
            "bind {addr}: refusing to listen on a non-loopback address; add --allow-remote to allow it"
        )))
    }
}

/// The size of a pool.
#[derive(Args, Clone, Debug)]
pub struct Pool {
    /// Workers that are started before the first client connects
    #[arg(short = 'n', long, default_value_t = WORKERS, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: u16,
}

/// The limits of one session. All times are in milliseconds, at least 1.
#[derive(Args, Clone, Copy, Debug)]
pub struct Limits {
    /// Longest answer that a client may request, in bytes
    #[arg(long, default_value_t = MAX_REQUEST, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub max_request: u32,
    /// Timeout from the first byte of a request line to its newline
    #[arg(long, default_value_t = LINE_TIMEOUT_MS, value_name = "MS", value_parser = ms())]
    pub line_timeout: u64,
    /// Timeout for the first byte of the next request
    #[arg(long, default_value_t = IDLE_TIMEOUT_MS, value_name = "MS", value_parser = ms())]
    pub idle_timeout: u64,
    /// Timeout without progress while an answer is sent
    #[arg(long, default_value_t = WRITE_TIMEOUT_MS, value_name = "MS", value_parser = ms())]
    pub write_timeout: u64,
    /// Shutdown timeout: how long open connections may take to finish after SIGTERM or SIGINT
    #[arg(long, default_value_t = GRACE_MS, value_name = "MS", value_parser = ms())]
    pub grace: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_request: MAX_REQUEST,
            line_timeout: LINE_TIMEOUT_MS,
            idle_timeout: IDLE_TIMEOUT_MS,
            write_timeout: WRITE_TIMEOUT_MS,
            grace: GRACE_MS,
        }
    }
}

/// One millisecond to one day. No timeout is infinite, and no deadline overflows.
fn ms() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=86_400_000)
}

/// An IP address, or a host name that is resolved now. `localhost` is 127.0.0.1, whatever order /etc/hosts has.
fn host(text: &str) -> Result<IpAddr, String> {
    if text == "localhost" {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let next_step = "use an address such as 127.0.0.1 or ::1, or a name from /etc/hosts";
    let mut addresses =
        (text, 0).to_socket_addrs().map_err(|e| format!("cannot resolve the host name: {e}; {next_step}"))?;
    addresses.next().map(|addr| addr.ip()).ok_or_else(|| format!("the host name has no address; {next_step}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser, Debug)]
    struct Cli {
        #[command(flatten)]
        listen: Listen,
        #[command(flatten)]
        limits: Limits,
        #[command(flatten)]
        pool: Pool,
    }

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from([&["server"], args].concat())
    }

    #[test]
    fn defaults_are_those_of_unp() {
        let cli = parse(&[]).unwrap();
        assert_eq!(cli.listen.addr().unwrap().to_string(), "127.0.0.1:2000");
        assert_eq!(cli.limits.max_request, 1_048_576);
        assert_eq!(parse(&["-i", "localhost", "-p", "0"]).unwrap().listen.addr().unwrap().port(), 0);
        assert_eq!(parse(&["-i", "::1"]).unwrap().listen.addr().unwrap().to_string(), "[::1]:2000");
    }

    #[test]
    fn remote_address_without_allow_remote_is_refused() {
        for host in ["0.0.0.0", "::", "192.0.2.1"] {
            let error = parse(&["-i", host]).unwrap().listen.addr().unwrap_err();
            assert!(format!("{error:?}").contains("--allow-remote"), "{error:?}");
            assert!(parse(&["-i", host, "--allow-remote"]).unwrap().listen.addr().is_ok());
        }
    }

    #[test]
    fn invalid_options_are_refused() {
        for bad in [
            &["-i", ""][..],
            &["-i", "no such host"],
            &["-p", "65536"],
            &["-p", "-1"],
            &["--max-request", "0"],
            &["--max-request", "1073741825"],
            &["--line-timeout", "0"],
            &["--grace", "86400001"],
            &["--idle-timeout", "1s"],
            &["-n", "0"],
            &["-n", "1025"],
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
        for good in [
            &["--max-request", "1"][..],
            &["--max-request", "1073741824"],
            &["--grace", "86400000"],
            &["-n", "1024"],
            &["-p", "65535"],
        ] {
            assert!(parse(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn help_prints_every_default() {
        use clap::CommandFactory;
        let help = Cli::command().render_long_help().to_string();
        for default in ["1048576", "10000", "60000", "30000", "5000", "2000", "127.0.0.1"] {
            assert!(help.contains(&format!("[default: {default}]")), "{default} in {help}");
        }
    }
}
