//! The client table of an event loop: limit, pause, timeouts, shutdown. The connections are socket pairs.

#![allow(clippy::unwrap_used)]

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use clap::Parser;
use lifecycle::clients::{Client, Clients, Interest};
use lifecycle::{Server, Signals};
use nix::sys::signal::{Signal, raise};
use socket2::{Domain, Socket, Type};

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    server: Server,
}

fn server(args: &[&str]) -> Server {
    Args::parse_from([&["server"], args].concat()).server
}

/// Adds a client and returns the other end of its connection.
fn connect(clients: &mut Clients<UnixStream>, now: Instant) -> UnixStream {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    theirs.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    clients.insert(ours, None, now);
    theirs
}

fn read(client: &mut Client<UnixStream>, now: Instant) -> io::Result<()> {
    let n = client.conn.read(client.service.space())?;
    client.service.received(n, now);
    Ok(())
}

#[test]
fn client_over_the_limit_is_rejected() {
    let server = server(&[]);
    let now = Instant::now();
    let mut clients = Clients::new(1, &server);
    let first = connect(&mut clients, now);
    let mut second = connect(&mut clients, now);
    assert_eq!(clients.served(), 1);
    let mut answer = String::new();
    second.read_to_string(&mut answer).unwrap(); // the FIN follows the line
    assert!(answer.starts_with("ERR busy"), "{answer}");
    drop(first);
    let key = clients.iter().find(|(_, client)| client.interest() == Interest::Read).unwrap().0;
    clients.serve(key, now, read);
    assert_eq!(clients.served(), 0, "end of file closes the client");
}

#[test]
fn accept_is_paused_after_emfile_until_the_pause_ends_or_a_client_closes() {
    let server = server(&[]);
    let out_of_descriptors = io::Error::from_raw_os_error(libc::EMFILE);
    let mut clients = Clients::new(10, &server);
    let client = connect(&mut clients, Instant::now());
    clients.accept_failed(&out_of_descriptors).unwrap();
    assert!(!clients.accepting());
    assert!(clients.timeout_ms().unwrap() <= 10, "the loop wakes at the end of the pause");
    clients.expired(Instant::now() + Duration::from_secs(1));
    assert!(clients.accepting());
    clients.accept_failed(&out_of_descriptors).unwrap();
    drop(client);
    clients.serve(0, Instant::now(), read);
    assert!(clients.accepting(), "a descriptor is free");
    assert!(clients.accept_failed(&io::Error::from_raw_os_error(libc::EBADF)).is_err());
}

#[test]
fn idle_client_is_returned_as_expired() {
    let server = server(&["--idle-timeout", "1000"]);
    let now = Instant::now();
    let mut clients = Clients::new(10, &server);
    let mut client = connect(&mut clients, now);
    assert!(clients.timeout_ms().unwrap() <= 1001);
    assert_eq!(clients.expired(now + Duration::from_millis(999)), []);
    let later = now + Duration::from_millis(1300);
    assert_eq!(clients.expired(later), [0]);
    assert_eq!(clients.get(0).unwrap().interest(), Interest::Write, "an ERR line is pending");
    clients.expired(later + Duration::from_secs(3600));
    clients.serve(0, later, |_, _| Ok(()));
    assert!(clients.get(0).is_none());
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

#[test]
fn second_signal_ends_the_shutdown_timeout() {
    let server = server(&[]);
    let signals = Signals::new().unwrap();
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let now = Instant::now();
    let mut clients = Clients::new(10, &server);
    let _client = connect(&mut clients, now);
    clients.stop(&signals, &listener, now);
    assert!(clients.accepting(), "no signal has arrived");
    raise(Signal::SIGTERM).unwrap(); // for this thread, and blocked
    clients.stop(&signals, &listener, now);
    assert!(!clients.accepting() && !clients.is_done());
    clients.expired(now + Duration::from_millis(1));
    assert!(!clients.is_done(), "the shutdown timeout has not passed");
    raise(Signal::SIGINT).unwrap();
    clients.stop(&signals, &listener, now);
    clients.expired(now);
    assert!(clients.is_done());
    assert_eq!(clients.served(), 0);
}
