//! A client is killed at each of five points. strace(1) delays it there, so that the point is
//! exact.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod harness;

use std::fs;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use harness::{CLIENT, Running};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::Pid;
use testkit::{eventually, procs};

/// A client that strace delays for a minute at the call that `inject` names.
struct Held {
    strace: Child,
    pid: i32,
}

impl Held {
    fn start(server: &Running, inject: &str, args: &[&str]) -> Held {
        let call = inject.split(':').next().unwrap();
        let inject = format!("inject={inject}=60000000:when=1");
        let mut command = Command::new("strace");
        command.args(["-o", "/dev/null", "-e", &format!("trace={call}"), "-e", &inject]);
        command
            .arg(CLIENT)
            .arg("--dir")
            .arg(&server.dir)
            .args(["--count", "1", "--deadline", "60000"])
            .args(args);
        let strace = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let children = format!("/proc/{0}/task/{0}/children", strace.id());
        let pid = eventually("the client runs", || {
            let pid: i32 =
                fs::read_to_string(&children).ok()?.split_whitespace().next()?.parse().ok()?;
            fs::read_link(format!("/proc/{pid}/exe"))
                .ok()
                .filter(|exe| exe.ends_with("fifo-client"))
                .map(|_| pid)
        });
        Held { strace, pid }
    }

    /// Waits until the client has its reply FIFO open.
    fn wait_open(&self) {
        let open =
            || procs::descriptors(self.pid).values().any(|target| target.contains("/reply."));
        eventually("the reply FIFO is open", || open().then_some(()));
    }

    fn kill(self) {
        let pid = self.pid;
        drop(self);
        eventually("the client is dead", || {
            procs::thread_states(pid).iter().all(|state| *state == 'Z').then_some(())
        });
    }
}

impl Drop for Held {
    /// The client first: strace delays the end of its child too, until the minute is over.
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        let _ = self.strace.kill();
        let _ = self.strace.wait();
    }
}

/// The next question removes the reply FIFO of a killed client, if the FIFO is old enough.
fn stale_name_is_removed(server: &Running) {
    let [name] = &server.names("reply.")[..] else { panic!("{:?}", server.names("reply.")) };
    server.serves();
    assert_eq!(server.names("reply."), [name.as_str()], "not yet");
    let hour_ago =
        (SystemTime::now() - Duration::from_secs(3600)).duration_since(UNIX_EPOCH).unwrap();
    let hour_ago = TimeSpec::from_duration(hour_ago);
    let path = server.dir.join(name);
    utimensat(nix::fcntl::AT_FDCWD, &path, &hour_ago, &hour_ago, UtimensatFlags::NoFollowSymlink)
        .unwrap();
    eventually("swept", || {
        server.serves();
        server.names("reply.").is_empty().then_some(())
    });
}

#[test]
fn a_client_killed_after_mkfifo_does_not_disturb_the_server() {
    if !testkit::tools::have("strace", "a_client_killed_after_mkfifo_does_not_disturb_the_server") {
        return;
    }
    let server = Running::start(&["--events"]);
    let client = Held::start(&server, "mknodat:delay_exit", &[]);
    eventually("mkfifo", || (!server.names("reply.").is_empty()).then_some(()));
    client.kill();
    server.serves();
    stale_name_is_removed(&server);
    server.finish();
}

#[test]
fn a_client_killed_after_open_does_not_disturb_the_server() {
    if !testkit::tools::have("strace", "a_client_killed_after_open_does_not_disturb_the_server") {
        return;
    }
    let server = Running::start(&["--events"]);
    let client = Held::start(&server, "write:delay_enter", &[]);
    client.wait_open();
    client.kill();
    server.serves();
    stale_name_is_removed(&server);
    server.finish();
}

/// The server reads the question when the client is dead: open fails with ENXIO, and the server
/// removes the name at once.
#[test]
fn a_client_killed_after_its_question_does_not_disturb_the_server() {
    if !testkit::tools::have(
        "strace",
        "a_client_killed_after_its_question_does_not_disturb_the_server",
    ) {
        return;
    }
    let server = Running::start(&["--events"]);
    server.signal(Signal::SIGSTOP);
    let client = Held::start(&server, "write:delay_exit", &[]);
    client.wait_open();
    let req = fifo::rundir::open_fifo(&server.dir.join("req"), OFlag::O_RDONLY).unwrap();
    eventually("the request is in the FIFO", || {
        (waiting(&req) == fifo::record::QUESTION).then_some(())
    });
    client.kill();
    server.signal(Signal::SIGCONT);
    let dropped = server.wait_event("dropped", |_| true);
    assert!(dropped["why"].as_str().unwrap().contains("No such device or address"), "{dropped}");
    assert!(server.names("reply.").is_empty());
    server.finish();
}

/// Bytes in a pipe that no process has read.
fn waiting(pipe: &fs::File) -> usize {
    let mut n: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int.
    let rc = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut n) };
    assert_eq!(rc, 0);
    n as usize
}

#[test]
fn a_client_killed_before_it_reads_the_answer_does_not_disturb_the_server() {
    if !testkit::tools::have(
        "strace",
        "a_client_killed_before_it_reads_the_answer_does_not_disturb_the_server",
    ) {
        return;
    }
    let server = Running::start(&["--events"]);
    let client = Held::start(&server, "write:delay_exit", &[]);
    server.wait_event("answer", |answer| answer["pid"] == client.pid);
    client.kill();
    server.serves();
    stale_name_is_removed(&server);
    server.finish();
}

/// The server has sent the signal, and the client has not acknowledged. The next client is served.
#[test]
fn a_client_killed_before_its_acknowledgement_does_not_disturb_the_server() {
    if !testkit::tools::have(
        "strace",
        "a_client_killed_before_its_acknowledgement_does_not_disturb_the_server",
    ) {
        return;
    }
    let server = Running::start(&["--events", "--signals"]);
    let client = Held::start(&server, "pidfd_send_signal:delay_enter", &["--signals"]);
    let pid = client.pid;
    server.wait_event("signal", |signal| signal["pid"] == pid);
    client.kill();
    server.serves();
    let next = server.ask(&["--signals", "--count", "5"]);
    assert!(next.status.success(), "{next:?}");
    server.wait_event("ack-late", |late| late["pid"] == pid);
    stale_name_is_removed(&server);
    server.finish();
}
