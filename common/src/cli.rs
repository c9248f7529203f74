//! The options that mean the same in every server.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::Args;

use crate::report::Failed;

/// The book's port: UNP and every ancestor of these servers use it.
pub const PORT: u16 = 2000;
/// Workers of a pool.
pub const WORKERS: u16 = 8;
/// Longest answer, in bytes, that a client may ask for.
pub const MAX_REQUEST: u32 = 1 << 20;
/// Milliseconds from the first byte of a request line to its newline.
pub const LINE_TIMEOUT_MS: u64 = 10_000;
/// Milliseconds a client may wait before the first byte of its next request.
pub const IDLE_TIMEOUT_MS: u64 = 60_000;
/// Milliseconds without progress while an answer is being sent.
pub const WRITE_TIMEOUT_MS: u64 = 30_000;
/// Milliseconds that conversations get to finish after SIGTERM or SIGINT.
pub const GRACE_MS: u64 = 5_000;

/// Where to listen.
#[derive(Args, Clone, Debug)]
pub struct Listen {
    /// Address to listen on
    #[arg(short = 'i', long, default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_parser = host, value_name = "ADDR")]
    pub host: IpAddr,
    /// Port to listen on; 0 lets the kernel choose a free one
    #[arg(short, long, default_value_t = PORT)]
    pub port: u16,
    /// Permit an address that other machines can reach
    #[arg(long)]
    pub allow_remote: bool,
}

impl Listen {
    /// The socket address asked for.
    ///
    /// # Errors
    /// An address off loopback without `--allow-remote`: these servers know no password.
    pub fn addr(&self) -> Result<SocketAddr, Failed> {
        if self.host.is_loopback() || self.allow_remote {
            Ok(SocketAddr::new(self.host, self.port))
        } else {
            Err(Failed::new(format!(
                "bind {}: other machines can reach this address; say --allow-remote if that is meant",
                SocketAddr::new(self.host, self.port)
            )))
        }
    }
}

/// How many serve at once.
#[derive(Args, Clone, Debug)]
pub struct Pool {
    /// Workers, made before the first client comes
    #[arg(short = 'n', long, default_value_t = WORKERS, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub workers: u16,
}

/// The limits of one conversation. All times are milliseconds, at least 1.
#[derive(Args, Clone, Copy, Debug)]
pub struct Limits {
    /// Longest answer a client may ask for, in bytes
    #[arg(long, default_value_t = MAX_REQUEST, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=1 << 30))]
    pub max_request: u32,
    /// Time from the first byte of a request line to its newline
    #[arg(long, default_value_t = LINE_TIMEOUT_MS, value_name = "MS", value_parser = ms())]
    pub line_timeout: u64,
    /// Time a client may stay silent between requests
    #[arg(long, default_value_t = IDLE_TIMEOUT_MS, value_name = "MS", value_parser = ms())]
    pub idle_timeout: u64,
    /// Time without progress while an answer is being sent
    #[arg(long, default_value_t = WRITE_TIMEOUT_MS, value_name = "MS", value_parser = ms())]
    pub write_timeout: u64,
    /// Time that conversations get to finish after SIGTERM or SIGINT
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

/// One millisecond to one day: never "for ever", never a deadline that overflows.
fn ms() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=86_400_000)
}

fn host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        _ => text.parse().map_err(|_| "an IP address, such as 127.0.0.1 or ::1, or localhost".into()),
    }
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
    fn defaults_are_the_books() {
        let cli = parse(&[]).unwrap();
        assert_eq!(cli.listen.addr().unwrap().to_string(), "127.0.0.1:2000");
        assert_eq!(cli.limits.max_request, 1_048_576);
        assert_eq!(parse(&["-i", "localhost", "-p", "0"]).unwrap().listen.addr().unwrap().port(), 0);
        assert_eq!(parse(&["-i", "::1"]).unwrap().listen.addr().unwrap().to_string(), "[::1]:2000");
    }

    #[test]
    fn remote_addresses_need_a_word() {
        for host in ["0.0.0.0", "::", "192.0.2.1"] {
            let error = parse(&["-i", host]).unwrap().listen.addr().unwrap_err();
            assert!(format!("{error:?}").contains("--allow-remote"), "{error:?}");
            assert!(parse(&["-i", host, "--allow-remote"]).unwrap().listen.addr().is_ok());
        }
    }

    #[test]
    fn nonsense_is_refused_at_the_boundary() {
        for bad in [
            &["-i", "no.such.host"][..],
            &["-i", ""],
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
    fn every_limit_is_printed_by_help() {
        use clap::CommandFactory;
        let help = Cli::command().render_long_help().to_string();
        for default in ["1048576", "10000", "60000", "30000", "5000", "2000", "127.0.0.1"] {
            assert!(help.contains(&format!("[default: {default}]")), "{default} in {help}");
        }
    }
}
