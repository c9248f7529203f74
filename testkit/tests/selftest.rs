//! The oracle against servers that are broken on purpose: each one has to be caught, and for the right reason.

use testkit::oracle::{Baseline, faults};
use testkit::{Peer, Server};

/// What the oracle and the stop say of a rig after one ordinary client.
fn verdict(fault: &str) -> String {
    let mut server = Server::start(env!("CARGO_BIN_EXE_rig"), &["--fault", fault]);
    let base = Baseline::of(&server);
    let _ = server.connect().try_ask(1);
    let mut faults = faults(&mut server, &base);
    if server.exited().is_none() {
        faults.extend(server.stop().err());
    }
    faults.join("; ")
}

macro_rules! caught {
    ($($name:ident: $fault:literal => $words:literal;)*) => {
        $(#[test]
        fn $name() {
            let verdict = verdict($fault);
            assert!(verdict.contains($words), "a server that {} passed for: '{verdict}'", $fault);
        })*
    };
}

caught! {
    spinner: "spins" => "% of a CPU with nothing to do";
    descriptor_leak: "leaks a descriptor" => "descriptors {";
    zombie_maker: "makes zombies" => "zombies";
    process_leak: "leaves processes" => "processes 1 -> ";
    thread_leak: "leaks a thread" => "threads ";
    memory_leak: "leaks memory" => "memory grew";
    panicker: "panics" => "in the log: thread 'worker' panicked";
    alert: "reports a defect" => "in the log: ALERT";
    inheritable: "lets descriptors be inherited" => "has no close-on-exec";
    wrong_byte: "sends a wrong byte" => "wrong bytes for 26";
    short_answer: "answers short" => "a fresh client is not served";
    deaf: "goes deaf" => "a fresh client is not served";
    dead: "ends" => "the server ended: exit 0";
    term_ignorer: "ignores SIGTERM" => "SIGTERM did not end it";
    orphan_maker: "leaves a process at the end" => "left behind after SIGTERM";
    wrong_status: "ends with another status" => "after SIGTERM: exit 3";
}

#[test]
fn a_healthy_server_passes() {
    assert_eq!(verdict("none"), "");
}

#[test]
fn a_dropped_server_leaves_nothing() {
    let server = Server::start(env!("CARGO_BIN_EXE_rig"), &["--fault", "leaves processes"]);
    server.connect().ask(1);
    server.connect().ask(1);
    let family = server.family();
    assert_eq!(family.len(), 2, "{family:?}");
    let addr = server.addr;
    drop(server);
    assert!(Peer::try_connect(addr).is_err());
    for process in family {
        assert!(!testkit::procs::is_there(process.pid), "{process:?} is still there");
    }
}
