//! Nagle's algorithm and the delayed ACK wait for each other: seven ways to send two small parts.
//!
//! Run: cargo run -p tcp-cork
//! Try: cargo run -p tcp-cork -- two-writes nodelay -n 5 --each

mod reply;

use std::io::{self, Write};
use std::mem;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, send};
use socket2::{Domain, Socket, Type};

use reply::{BODY, HEADER, Way, prepare, reply};

const REQUEST: &[u8] = b"GET\n";
/// Many times the longest delay of the kernel.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long a reply of two small parts takes, seven ways to send it
#[derive(Parser)]
struct Args {
    /// Ways to measure [default: all]
    #[arg(value_enum)]
    ways: Vec<Way>,
    /// Requests per way, one after the other on one connection
    #[arg(short = 'n', long, default_value_t = 30, value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u16).range(3..=200))]
    requests: u16,
    /// Also print the time of each request
    #[arg(long)]
    each: bool,
}

/// The time from each request to the last byte of its reply, and the segments of all replies.
struct Measured {
    times: Vec<Duration>,
    segments: u32,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let ways = if args.ways.is_empty() { Way::value_variants() } else { &args.ways };
    let mut out = io::stdout();
    let _ = writeln!(out, "server writes     first ms  median ms  segments per reply");
    for way in ways {
        let value = way.to_possible_value();
        let name = value.as_ref().map_or("", |value| value.get_name());
        let Measured { mut times, segments } = match measure(*way, args.requests) {
            Ok(measured) => measured,
            Err(e) => {
                let _ = writeln!(io::stderr(), "Error: {name}: {e}");
                return ExitCode::FAILURE;
            }
        };
        let each: Vec<String> = times.iter().map(|time| ms(*time)).collect();
        let first = each.first().cloned().unwrap_or_default();
        times.sort();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let segments = f64::from(segments) / f64::from(args.requests);
        let _ = writeln!(out, "{name:16}{first:>10}{:>11}  {segments:.1}", ms(median));
        if args.each {
            let _ = writeln!(out, "    {}", each.join(" "));
        }
    }
    ExitCode::SUCCESS
}

fn ms(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64() * 1000.0)
}

/// Both ends in one thread: every wait is a wait of the kernel.
fn measure(way: Way, requests: u16) -> io::Result<Measured> {
    let (client, server) = pair()?;
    prepare(&server, way)?;
    let mut times = Vec::new();
    for _ in 0..requests {
        let start = Instant::now();
        send(client.as_raw_fd(), REQUEST, MsgFlags::MSG_NOSIGNAL)?;
        read_all(&server, REQUEST.len())?;
        reply(&server, way)?;
        read_all(&client, HEADER.len() + BODY.len())?;
        times.push(start.elapsed());
    }
    Ok(Measured { times, segments: segments_with_data(&server)? })
}

/// Reads until `left` bytes have arrived: a reply of two segments may need two reads.
fn read_all(conn: &Socket, mut left: usize) -> io::Result<()> {
    let mut buffer = [0; 512];
    while left > 0 {
        let room = left.min(buffer.len());
        let room = buffer.get_mut(..room).unwrap_or_default();
        match recv(conn.as_raw_fd(), room, MsgFlags::empty()) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => left -= n,
            Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Segments with data that were sent: `tcpi_data_segs_out` of TCP_INFO.
fn segments_with_data(conn: &Socket) -> io::Result<u32> {
    // SAFETY: all bytes zero is a valid tcp_info.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut len = mem::size_of_val(&info) as libc::socklen_t;
    let (fd, to) = (conn.as_raw_fd(), (&raw mut info).cast());
    // SAFETY: the kernel writes at most `len` bytes, the size of `info`.
    let rc = unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, to, &mut len) };
    Errno::result(rc)?;
    Ok(info.tcpi_data_segs_out)
}

/// Both ends of a connection over loopback: the client and the server.
fn pair() -> io::Result<(Socket, Socket)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(1)?;
    let client = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    client.connect(&listener.local_addr()?)?;
    let (server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_read_timeout(Some(TIMEOUT))?;
        end.set_write_timeout(Some(TIMEOUT))?;
    }
    Ok((client, server))
}
