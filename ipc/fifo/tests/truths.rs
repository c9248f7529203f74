//! Verified kernel behaviour (m): FIFOs and signals. And from (d): a standard signal is one bit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use fifo::pidfd::{pidfd_open, pidfd_send_signal};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use testkit::{eventually, procs};

/// Each test has its own FIFO.
struct Fifo {
    path: PathBuf,
    _temp: tempfile::TempDir,
}

impl Fifo {
    fn new() -> Fifo {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("fifo");
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        Fifo { path, _temp: temp }
    }

    fn reader(&self) -> File {
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&self.path).unwrap()
    }

    fn writer(&self) -> std::io::Result<File> {
        OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&self.path)
    }
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_raw(result.unwrap_err().raw_os_error().unwrap())
}

/// What poll returns without waiting.
fn ready(file: &File) -> PollFlags {
    let mut fds = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).unwrap();
    fds[0].revents().unwrap()
}

#[test]
fn truth_m_a_blocking_open_waits_for_the_other_end() {
    for (first, second) in [("cat < fifo", "echo x > fifo"), ("echo x > fifo", "cat < fifo")] {
        let fifo = Fifo::new();
        let sh = |script: &str| {
            let mut command = Command::new("sh");
            command
                .args(["-c", script])
                .current_dir(fifo.path.parent().unwrap())
                .stdout(Stdio::null());
            command.spawn().unwrap()
        };
        let mut waits = sh(first);
        let pid = waits.id() as i32;
        let wchan = || std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        eventually("it sleeps in open", || wchan().contains("wait_for_partner").then_some(()));
        assert!(waits.try_wait().unwrap().is_none());
        assert!(sh(second).wait().unwrap().success() && waits.wait().unwrap().success());
    }
}

#[test]
fn truth_m_opening_for_writing_without_a_reader_is_enxio() {
    let fifo = Fifo::new();
    assert_eq!(errno(fifo.writer()), Errno::ENXIO);
    let _reader = fifo.reader();
    assert!(fifo.writer().is_ok());
}

#[test]
fn truth_m_without_a_writer_end_of_file_with_one_eagain() {
    let fifo = Fifo::new();
    let mut reader = fifo.reader();
    assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0, "no writer yet");
    let mut writer = fifo.writer().unwrap();
    assert_eq!(errno(reader.read(&mut [0; 9])), Errno::EAGAIN);
    writer.write_all(b"abc").unwrap();
    drop(writer);
    assert_eq!(
        reader.read(&mut [0; 9]).unwrap(),
        3,
        "what was written is not lost with the writer"
    );
    assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0);
    assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0, "and for ever");
}

#[test]
fn truth_m_after_the_last_writer_poll_reports_hup_until_the_next() {
    let fifo = Fifo::new();
    let reader = fifo.reader();
    assert_eq!(ready(&reader), PollFlags::empty(), "before the first writer it is quiet");
    let writer = fifo.writer().unwrap();
    assert_eq!(ready(&reader), PollFlags::empty());
    drop(writer);
    for _ in 0..1000 {
        assert_eq!(ready(&reader), PollFlags::POLLHUP, "again and again: a level");
    }
    let writer = fifo.writer().unwrap();
    assert_eq!(ready(&reader), PollFlags::empty(), "a new writer clears it");
    drop(writer);
    assert_eq!(ready(&reader), PollFlags::POLLHUP);
}

#[test]
fn truth_m_a_write_end_of_ones_own_keeps_end_of_file_away() {
    let fifo = Fifo::new();
    let mut both = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&fifo.path)
        .unwrap();
    drop(fifo.writer().unwrap());
    assert_eq!((ready(&both), errno(both.read(&mut [0; 9]))), (PollFlags::empty(), Errno::EAGAIN));
}

#[test]
fn truth_m_writing_without_a_reader_is_epipe_or_sigpipe() {
    let fifo = Fifo::new();
    let reader = fifo.reader();
    let mut writer = fifo.writer().unwrap();
    drop(reader);
    assert_eq!(errno(writer.write(b"x")), Errno::EPIPE, "Rust ignores SIGPIPE");
    // A program that does not ignore it is killed.
    let script = "exec 3<>fifo 4>fifo; exec 3>&-; trap - PIPE; echo x >&4; echo not reached";
    let run = |script: &str| {
        Command::new("env")
            .args(["--default-signal=PIPE", "sh", "-c", script])
            .current_dir(fifo.path.parent().unwrap())
            .output()
            .unwrap()
    };
    let out = run(script);
    assert_eq!(
        (out.status.signal(), out.stdout.as_slice()),
        (Some(libc::SIGPIPE), &b""[..]),
        "{out:?}"
    );
}

#[test]
fn truth_m_pipe_buf_is_4096_and_the_capacity_65536() {
    assert_eq!(libc::PIPE_BUF, 4096);
    let fifo = Fifo::new();
    let _reader = fifo.reader();
    let mut writer = fifo.writer().unwrap();
    // SAFETY: asks for a number.
    let capacity = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_GETPIPE_SZ) };
    assert_eq!(capacity, 65_536);
    let mut written = 0;
    while let Ok(n) = writer.write(&[0; 4096]) {
        written += n;
    }
    assert_eq!(written, 65_536);
}

/// With room for 1000 bytes, a write of 1001 writes nothing; a write of more than PIPE_BUF bytes
/// writes a part.
#[test]
fn truth_m_a_write_of_at_most_pipe_buf_is_all_or_nothing() {
    let fifo = Fifo::new();
    let mut reader = fifo.reader();
    let mut writer = fifo.writer().unwrap();
    while writer.write(&[0; 4096]).is_ok() {}
    reader.read_exact(&mut [0; 4096]).unwrap();
    writer.write_all(&[0; 3096]).unwrap();
    assert_eq!(errno(writer.write(&[1; 1001])), Errno::EAGAIN);
    assert_eq!(writer.write(&[1; 1000]).unwrap(), 1000);
    reader.read_exact(&mut [0; 4096]).unwrap();
    let n = writer.write(&[1; 5000]).unwrap();
    assert!((1..5000).contains(&n), "{n}");
}

/// Four writers with records of PIPE_BUF bytes: no record has bytes of another one in it.
#[test]
fn truth_m_writes_of_at_most_pipe_buf_do_not_mix() {
    let fifo = Fifo::new();
    let mut reader = fifo.reader();
    let write = |path: &Path, byte: u8| {
        let mut writer = OpenOptions::new().write(true).open(path).unwrap();
        move || (0..500).for_each(|_| writer.write_all(&[byte; libc::PIPE_BUF]).unwrap())
    };
    let writers: Vec<_> = (1..=4).map(|byte| thread::spawn(write(&fifo.path, byte))).collect();
    let mut records = 0;
    let mut all = Vec::new();
    while records < 2000 {
        let mut buffer = vec![0; 65_536];
        let n = eventually("bytes", || reader.read(&mut buffer).ok().filter(|n| *n > 0));
        all.extend_from_slice(&buffer[..n]);
        let whole = all.len() / libc::PIPE_BUF * libc::PIPE_BUF;
        for record in all.drain(..whole).collect::<Vec<u8>>().chunks(libc::PIPE_BUF) {
            assert!(record.iter().all(|byte| *byte == record[0]));
            records += 1;
        }
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
}

/// HF5: a standard signal that is already pending is not queued a second time.
#[test]
fn truth_d_five_signals_are_one_record() {
    thread::spawn(|| {
        // Blocked in this thread and sent to this thread: no other thread of the test gets it.
        for (signal, wanted) in [(libc::SIGUSR1, 1), (libc::SIGRTMIN() + 3, 5)] {
            let set = blocked(signal);
            let signals = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK).unwrap();
            for _ in 0..5 {
                // SAFETY: a thread's own handle is valid.
                let me = unsafe { libc::pthread_self() };
                // SAFETY: a signal that this thread has blocked, to this thread.
                assert_eq!(unsafe { libc::pthread_kill(me, signal) }, 0);
            }
            let mut records = 0;
            while signals.read_signal().unwrap().is_some() {
                records += 1;
            }
            assert_eq!(records, wanted, "signal {signal}");
        }
    })
    .join()
    .unwrap();
}

/// nix has no names for real-time signals, so sigaddset(3) makes the set.
fn blocked(signal: i32) -> SigSet {
    let mut set = SigSet::empty().as_ref().to_owned();
    // SAFETY: the set is this function's own.
    assert_eq!(unsafe { libc::sigaddset(&mut set, signal) }, 0);
    // SAFETY: sigaddset has left a valid set.
    let set = unsafe { SigSet::from_sigset_t_unchecked(set) };
    set.thread_block().unwrap();
    set
}

/// The kernel gives the number of a process to another one later; a pidfd means the first one only.
#[test]
fn truth_m_a_pidfd_of_a_reaped_process_is_esrch() {
    let mut child = Command::new("sleep").arg("60").spawn().unwrap();
    let pidfd = pidfd_open(child.id() as i32).unwrap();
    let ended = || {
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    };
    assert!(!ended());
    pidfd_send_signal(&pidfd, Signal::SIGKILL as i32).unwrap();
    eventually("the end is an event", || ended().then_some(()));
    assert!(pidfd_send_signal(&pidfd, Signal::SIGUSR1 as i32).is_ok(), "a zombie takes a signal");
    child.wait().unwrap();
    assert_eq!(errno(pidfd_send_signal(&pidfd, Signal::SIGUSR1 as i32)), Errno::ESRCH);
    assert!(!procs::is_there(child.id() as i32));
}
