//! Without FD_SETSIZE the bound is RLIMIT_NOFILE: the soft limit is raised, the hard one is kept.

use std::os::unix::process::CommandExt;
use std::process::Command;

use testkit::{End, Peer, Server, procs};

/// The server under these limits of descriptors.
fn command(soft: u64, hard: Option<u64>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_server02a-poll"));
    command.args(["-p", "0"]);
    let limit = move || {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: getrlimit is a plain system call, and the kernel writes one rlimit.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
        limit.rlim_cur = soft;
        limit.rlim_max = hard.unwrap_or(limit.rlim_max);
        // SAFETY: as above; the kernel reads one rlimit.
        match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: the closure allocates nothing and takes no lock.
    unsafe { command.pre_exec(limit) };
    command
}

#[test]
fn descriptor_numbers_beyond_a_set_and_a_raised_soft_limit() {
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
fn the_hard_limit_bounds_the_clients() {
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
fn a_limit_that_cannot_be_had_is_one_line() {
    for (hard, args, said) in [(64, "33", "leaves 32 for clients"), (20, "1", "leaves 0 for clients")] {
        let output = command(hard, Some(hard)).args(["--max-conns", args]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), output.stdout.len(), text.lines().count()), (Some(1), 0, 1), "{text}");
        assert!(text.starts_with("Error: --max-conns ") && text.contains(said), "{text}");
    }
}
