//! The only limit of poll is RLIMIT_NOFILE: the server raises the soft limit and keeps the hard
//! limit.

use std::os::unix::process::CommandExt;
use std::process::Command;

use testkit::{End, Peer, Server, procs};

/// The server with these limits of descriptors.
fn command(soft: u64, hard: Option<u64>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server02a-poll"));
    command.args(["-p", "0"]);
    let limit = move || {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: getrlimit is a plain system call, and the kernel writes one rlimit.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
        limit.rlim_cur = soft;
        limit.rlim_max = hard.unwrap_or(limit.rlim_max);
        // SAFETY: setrlimit is a plain system call, and the kernel reads one rlimit.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure allocates no memory and takes no lock.
    unsafe { command.pre_exec(limit) };
    command
}

#[test]
fn low_soft_limit_is_raised_and_descriptors_beyond_fd_setsize_are_served() {
    procs::limit_descriptors(std::process::id() as i32, 4096);
    let mut server = Server::start_with(&mut command(64, None));
    let mut peers: Vec<Peer> = (0..1100).map(|_| server.connect()).collect();
    peers.iter_mut().for_each(|peer| peer.ask(100));
    let highest = *procs::descriptors(server.pid()).last_key_value().unwrap().0;
    assert!(highest >= 1024, "descriptor {highest}");
    drop(peers);
    server.stop().unwrap();
}

#[test]
fn low_hard_limit_makes_max_conns_lower() {
    let mut server = Server::start_with(&mut command(64, Some(64)));
    let mut peers: Vec<Peer> = (0..50).map(|_| server.connect()).collect();
    let mut late = peers.split_off(32);
    peers.iter_mut().for_each(|peer| peer.ask(100));
    late.iter_mut().for_each(|peer| drop(peer.try_send("3000\n")));
    for mut peer in late {
        assert_eq!(peer.read_to_end(), (b"ERR busy\n".to_vec(), End::Eof));
    }
    peers.iter_mut().for_each(|peer| peer.ask(100));
    assert!(!server.log().contains("Too many open files"), "{}", server.log());
    drop(peers);
    server.stop().unwrap();
}

#[test]
fn max_conns_above_the_hard_limit_is_one_error_line() {
    for (hard, args, expected) in
        [(64, "33", "leaves 32 for clients"), (20, "1", "leaves 0 for clients")]
    {
        let output = command(hard, Some(hard)).args(["--max-conns", args]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.starts_with("Error: --max-conns ") && text.contains(expected), "{text}");
    }
}
