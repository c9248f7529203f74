//! What each bus does, cell by cell. The program leaves no file, queue or process behind.
// Test code.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)]

use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::mqueue::{MQ_OFlag, mq_open, mq_unlink};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::stat::Mode;
use nix::unistd::Pid;
use testkit::eventually;

/// A rate is measured up to this number of times.
const ATTEMPTS: usize = 5;
const BUSES: [&str; 7] = [
    "pipe",
    "pipe, O_DIRECT",
    "Unix SEQPACKET pair",
    "Unix DGRAM pair",
    "Unix DGRAM by name",
    "POSIX message queue",
    "Unix STREAM pair",
];

fn bus() -> Command {
    Command::new(env!("CARGO_BIN_EXE_ipc-bus"))
}

fn shown(output: &Output) -> String {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// The tables, once for all tests.
fn tables() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let output = bus().arg("--no-rates").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        shown(&output)
    })
}

/// The cells below a title, in the order of `BUSES`.
fn column(text: &str, title: &str) -> Vec<String> {
    let mut lines = text.lines().skip_while(|line| !line.contains(title));
    let head = lines.next().unwrap_or_else(|| panic!("no column {title} in\n{text}"));
    let start = head.find(title).unwrap();
    let after = &head[start + title.len()..];
    let width = title.len() + after.len() - after.trim_start().len();
    let width = if after.trim().is_empty() { usize::MAX } else { width };
    let cell =
        |line: &str| line.chars().skip(start).take(width).collect::<String>().trim().to_owned();
    lines.take_while(|line| !line.is_empty()).map(cell).collect()
}

fn is(title: &str, expected: [&str; 7]) {
    let found = column(tables(), title);
    for ((bus, expected), found) in BUSES.iter().zip(expected).zip(&found) {
        assert_eq!(found, expected, "{title}: {bus}");
    }
    assert_eq!(found.len(), BUSES.len());
}

#[test]
fn truth_bus_packets_have_boundaries_and_streams_have_none() {
    is("boundaries", ["no", "yes", "yes", "yes", "yes", "yes", "no"]);
}

#[test]
fn truth_bus_only_pipes_and_connected_sockets_report_end_of_file() {
    let (yes, no) = ("yes", "no: it blocks");
    is("end of file", [yes, yes, yes, no, no, no, yes]);
}

#[test]
fn truth_bus_only_unix_sockets_carry_a_descriptor() {
    let (yes, no) = ("yes", "no: ENOTSOCK");
    is("a descriptor", [no, no, yes, yes, yes, no, yes]);
}

#[test]
fn truth_bus_a_name_outlives_a_crash_and_a_queue_keeps_its_messages() {
    let none = "nothing";
    let title = "left after kill -9";
    is(title, [none, none, none, none, "the name: ECONNREFUSED", "the queue with 11 bytes", none]);
}

#[test]
fn truth_bus_writes_up_to_pipe_buf_are_whole_and_larger_ones_are_torn() {
    let cells = column(tables(), "whole up to");
    assert_eq!(cells[0], "4 KiB, then torn", "pipe");
    assert_eq!(cells[1], "4 KiB, then torn", "O_DIRECT splits at PIPE_BUF");
}

#[test]
fn truth_bus_a_stream_of_two_writers_is_torn_and_a_packet_never_is() {
    let cells = column(tables(), "whole up to");
    assert!(cells[6].ends_with("then torn"), "{}", cells[6]);
    for index in 2..6 {
        assert!(cells[index].ends_with("then EMSGSIZE"), "{}: {}", BUSES[index], cells[index]);
    }
}

#[test]
fn truth_bus_the_number_of_messages_before_a_writer_blocks() {
    let cells = column(tables(), "queued");
    let queued: Vec<u64> = cells.iter().map(|cell| cell.parse().unwrap()).collect();
    let setting = |path| fs::read_to_string(path).unwrap().trim().parse::<u64>().unwrap();
    assert_eq!(queued[0] / queued[1], 4096 / 128, "a packet takes a whole page: {queued:?}");
    assert_eq!(queued[4], setting("/proc/sys/net/unix/max_dgram_qlen") + 1, "by name");
    assert_eq!(queued[5], setting("/proc/sys/fs/mqueue/msg_default"), "queue");
    // For all socket pairs the limit is the sender's buffer.
    assert!(
        queued[2] == queued[3] && queued[3] == queued[6] && queued[2] > queued[4],
        "{queued:?}"
    );
}

#[test]
fn truth_bus_a_short_buffer_truncates_a_packet_and_splits_a_stream() {
    let (follows, gone) = ("10 bytes; the rest follows", "10 bytes; the rest is gone");
    let (truncated, kept) =
        ("10 bytes, MSG_TRUNC; the rest is gone", "EMSGSIZE; the message stays");
    is(
        "100 bytes into a buffer of 10",
        [follows, gone, truncated, truncated, truncated, kept, follows],
    );
}

#[test]
fn truth_bus_msg_peek_with_msg_trunc_returns_the_length_of_a_packet() {
    is("MSG_PEEK|MSG_TRUNC", ["ENOTSOCK", "ENOTSOCK", "100", "100", "100", "ENOTSOCK", "10"]);
}

#[test]
fn truth_bus_an_empty_packet_reads_like_end_of_file() {
    let (nothing, empty, trap) = ("nothing arrives", "reads 0", "reads 0, as the end of file does");
    is("an empty message", [nothing, nothing, trap, empty, empty, empty, nothing]);
}

#[test]
fn truth_bus_a_read_from_a_pipe_returns_many_messages_and_a_pipe_is_the_fastest() {
    let args = [
        "--bus",
        "pipe",
        "--bus",
        "seqpacket",
        "--bus",
        "mq",
        "--messages",
        "5000",
        "--rounds",
        "5",
    ];
    let (mut text, mut wins) = (String::new(), false);
    // The result depends on the scheduler: on a busy machine the reader may be as fast as the
    // writers.
    for _ in 0..ATTEMPTS {
        text = shown(&bus().args(args).output().unwrap());
        let numbers = |row: usize| -> Vec<f64> {
            let line = text.lines().nth(2 + row).unwrap();
            line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
        };
        // 128 B: a second, of a pipe, reads for each message.
        let (pipe, packets) = (numbers(0), [numbers(1), numbers(2)]);
        assert!(packets.iter().all(|bus| bus[2] == 1.0), "a read returns one packet: {text}");
        wins = pipe[2] < 0.5 && packets.iter().all(|bus| bus[1] < 1.0);
        if wins {
            break;
        }
    }
    assert!(wins, "a read from a pipe returns many messages, so the pipe is fastest: {text}");
}

#[test]
fn a_missing_bus_is_one_line_and_status_69_and_the_others_are_measured() {
    let mut command = bus();
    command.arg("--no-rates");
    // No bytes for queues: mq_open fails with EMFILE.
    // SAFETY: one async-signal-safe call in the child.
    unsafe { command.pre_exec(|| setrlimit(Resource::RLIMIT_MSGQUEUE, 0, 0).map_err(Into::into)) };
    let output = command.output().unwrap();
    let text = shown(&output);
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
    let cells = column(&text, "end of file");
    assert_eq!((cells[5].as_str(), cells[6].as_str()), ("-", "yes"));
}

/// A background shell may ignore SIGINT, and its children inherit that.
fn reset_sigint() -> io::Result<()> {
    // SAFETY: the default action is no handler.
    unsafe { signal(Signal::SIGINT, SigHandler::SigDfl) }.map(drop).map_err(Into::into)
}

/// No directory, socket, queue or process is left: neither if the signal arrives while the names
/// exist (even trials), nor at another moment.
#[test]
fn a_signal_at_any_moment_leaves_nothing_behind() {
    let mut met = 0;
    for trial in 0..16 {
        let dir = tempfile::tempdir().unwrap();
        let names = || fs::read_dir(dir.path()).unwrap().count();
        let mut command = bus();
        // SAFETY: one async-signal-safe call in the child.
        unsafe { command.pre_exec(reset_sigint) };
        command.args(["--messages", "1000", "--rounds", "1"]);
        let mut child = command.env("TMPDIR", dir.path()).stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id() as i32;
        if trial % 2 == 0 {
            // At the first name, at the second, at the third ...
            for _ in 0..trial / 2 {
                while names() == 0 && child.try_wait().unwrap().is_none() {}
                while names() > 0 && child.try_wait().unwrap().is_none() {}
            }
            while names() == 0 && child.try_wait().unwrap().is_none() {}
            met += usize::from(names() > 0);
        } else {
            // Not a synchronisation: the signal arrives at another moment in each trial.
            thread::sleep(Duration::from_millis(trial * 5));
        }
        let sent = if trial % 4 < 2 { Signal::SIGTERM } else { Signal::SIGINT };
        // Unless the program has already ended.
        if child.try_wait().unwrap().is_none() {
            kill(Pid::from_raw(pid), sent).unwrap();
        }
        let status = child.wait().unwrap();
        assert!(status.signal() == Some(sent as i32) || status.success(), "{status:?}");
        assert_eq!(names(), 0, "trial {trial}");
        no_queue_of(pid);
        let ours = format!("TMPDIR={}", dir.path().display());
        eventually("all processes have ended", || (!a_process_has(&ours)).then_some(()));
    }
    assert!(met > 0, "no signal has arrived while a name existed");
}

fn no_queue_of(pid: i32) {
    for number in 0..200 {
        let name = format!("/ipc-bus-{pid}-{number}");
        let opened = mq_open(name.as_str(), MQ_OFlag::O_RDONLY, Mode::empty(), None);
        if opened.is_ok() {
            let _ = mq_unlink(name.as_str());
        }
        assert_eq!(opened.err(), Some(Errno::ENOENT), "{name}");
    }
}

/// True if a process has this variable in its environment.
fn a_process_has(variable: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| fs::read(entry.path().join("environ")).ok()).any(|environ| {
        // A zombie has an empty environment.
        environ.split(|byte| *byte == 0).any(|found| found == variable.as_bytes())
    })
}
