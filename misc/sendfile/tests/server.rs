//! The file server as a black box: names, files that change, slow readers, the shutdown.
// Test code.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;
use testkit::oracle::{self, Baseline};
use testkit::procs::limit_descriptors;
use testkit::tools::{Injection, have};
use testkit::{End, Peer, Server, eventually, pattern};

const BIN: &str = env!("CARGO_BIN_EXE_file-server");
/// More than all buffers of a connection hold while the client does not read.
const BIG: usize = 24 << 20;

/// A folder with one file of each kind, a secret file beside it, and the server.
struct Site {
    folder: TempDir,
    server: Server,
    base: Baseline,
}

impl Site {
    fn start(args: &[&str]) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("sub")).unwrap();
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(folder.path().join("x"), "secret").unwrap();
        fs::write(root.join("ok.txt"), "hello").unwrap();
        fs::write(root.join("empty"), "").unwrap();
        fs::write(root.join("sub/deep"), "deep").unwrap();
        symlink("ok.txt", root.join("link")).unwrap();
        symlink("../x", root.join("out")).unwrap();
        symlink("/etc", root.join("etc")).unwrap();
        symlink("sub", root.join("dirlink")).unwrap();
        mkfifo(&root.join("pipe"), Mode::S_IRWXU).unwrap();
        // The oracle requests a number and expects this number of bytes of the pattern.
        for n in [1, 26, 3000, 40_000] {
            fs::write(root.join(n.to_string()), pattern(n)).unwrap();
        }
        let server = Server::start(BIN, &[&["--root", root.to_str().unwrap()], args].concat());
        let base = Baseline::of(&server);
        Site { folder, server, base }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("root").join(name)
    }

    fn big(&self) -> Vec<u8> {
        let bytes = pattern(BIG);
        fs::write(self.path("big"), &bytes).unwrap();
        bytes
    }

    /// A client that has sent a request and has not read the answer, of which a part has arrived.
    fn slow_reader(&self, name: &str) -> Peer {
        let mut peer = Peer::connect_small_window(self.server.addr);
        peer.send(format!("{name}\n"));
        eventually("the first bytes", || (peer.unread() > 0).then_some(()));
        peer
    }

    fn finish(self) {
        oracle::finish(self.server, &self.base);
    }
}

fn ask(server: &Server, line: &[u8]) -> (Vec<u8>, End) {
    let mut peer = server.connect();
    // The server rejects at byte 4097 and then reads at most 64 KiB: the rest may fail, but the
    // answer must arrive.
    let _ = peer.try_send(line);
    peer.read_to_end()
}

fn expect_answer(server: &Server, line: &[u8], answer: &[u8]) {
    let (got, end) = ask(server, line);
    assert_eq!(
        (got.escape_ascii().to_string(), end),
        (answer.escape_ascii().to_string(), End::Eof),
        "{}",
        line.escape_ascii()
    );
}

#[test]
fn only_regular_files_beneath_the_folder_are_sent() {
    let site = Site::start(&[]);
    for good in
        [&b"ok.txt\n"[..], b"ok.txt\r\n", b"./ok.txt\n", b"sub/../ok.txt\n", b"dir/./..//ok.txt\n"]
    {
        expect_answer(&site.server, good, b"hello");
    }
    expect_answer(&site.server, b"sub/deep\n", b"deep");
    expect_answer(&site.server, b"empty\n", b"");
    let long = [&[b'a'; 5000][..], b"\n"].concat();
    for bad in [
        &b"../x\n"[..],
        b"/etc/passwd\n",
        b"sub/../../x\n",
        b"..%2f\n",
        b"..%2fx\n",
        b"%2e%2e/\n",
        b"%2e%2e/x\n",
        b"link\n",
        b"out\n",
        b"etc/passwd\n",
        b"dirlink/deep\n",
        b"dir\n",
        b"dir/\n",
        b"pipe\n",
        b".\n",
        b"..\n",
        b"/\n",
        b"\n",
        b"\r\n",
        b"a\x00b\n",
        b"ok.txt\x00\n",
        b"ok.txt\x00.png\n",
        &long,
        b"/proc/self/environ\n",
        b"ok.txt/\n",
        b"ok.txt/.\n",
        b" ok.txt\n",
        b"ok.txt \n",
        b"OK.TXT\n",
        b"\xff\xfe\n",
        b"\x1b[2J\n",
        b"GET /ok.txt HTTP/1.0\r\n\r\n",
    ] {
        expect_answer(&site.server, bad, b"ERR not found\n");
    }
    // The longest line, one byte more, and a megabyte.
    for n in [4095, 4096, 1 << 20] {
        let (got, _) = ask(&site.server, &[&vec![b'a'; n][..], b"\n"].concat());
        assert_eq!(got, b"ERR not found\n", "{n}");
    }
    site.finish();
}

#[test]
fn the_log_shows_names_escaped() {
    let site = Site::start(&["-v"]);
    expect_answer(&site.server, b"\x1b[2Jx\n", b"ERR not found\n");
    site.server.wait_log("[2Jx' not found");
    assert!(!site.server.log().contains('\x1b'));
    site.finish();
}

#[test]
fn only_the_first_name_is_answered() {
    let site = Site::start(&[]);
    expect_answer(&site.server, b"ok.txt\nok.txt\n", b"hello");
    let mut split = site.server.connect();
    for byte in b"ok.txt\n" {
        split.send([*byte]);
    }
    assert_eq!(split.read_to_end(), (b"hello".to_vec(), End::Eof));
    // No newline, no request.
    let mut half = site.server.connect();
    half.send("ok.txt");
    half.half_close();
    assert_eq!(half.read_to_end(), (Vec::new(), End::Eof));
    site.finish();
}

/// A thread swaps a folder and a symbolic link to the outside while the server resolves the name.
#[test]
fn a_race_with_rename_does_not_lead_outside() {
    let site = Site::start(&[]);
    let outside = site.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "OUTSIDE").unwrap();
    fs::create_dir(site.path("flip")).unwrap();
    fs::write(site.path("flip/f"), "inside").unwrap();
    symlink(&outside, site.path("flop")).unwrap();
    let done = AtomicBool::new(false);
    let (a, b) = (c_string(&site.path("flip")), c_string(&site.path("flop")));
    let (mut inside, mut rejected) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                // SAFETY: both are C strings.
                let rc = unsafe {
                    libc::renameat2(
                        libc::AT_FDCWD,
                        a.as_ptr(),
                        libc::AT_FDCWD,
                        b.as_ptr(),
                        libc::RENAME_EXCHANGE,
                    )
                };
                assert_eq!(rc, 0);
            }
        });
        let check = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for name in [&b"flip/f\n"[..], b"flip/../flip/f\n"].into_iter().cycle().take(400) {
                match ask(&site.server, name).0.as_slice() {
                    b"inside" => inside += 1,
                    b"ERR not found\n" | b"ERR busy\n" => rejected += 1,
                    other => panic!("{}", other.escape_ascii()),
                }
            }
        }));
        done.store(true, SeqCst);
        check.unwrap();
    });
    assert!(
        inside > 0 && rejected > 0,
        "{inside} inside, {rejected} rejected: no race has happened"
    );
    site.finish();
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

#[test]
fn short_counts_of_sendfile_are_repeated_and_every_byte_arrives() {
    let site = Site::start(&[]);
    let bytes = site.big();
    let mut slow = site.slow_reader("big");
    let first = slow.read_exactly(100_000);
    let (rest, end) = slow.read_to_end();
    assert_eq!(end, End::Eof);
    assert!([first, rest].concat() == bytes, "the bytes differ");
    site.finish();
}

#[test]
fn bytes_appended_after_the_open_are_not_sent() {
    let site = Site::start(&[]);
    let bytes = site.big();
    let mut slow = site.slow_reader("big");
    OpenOptions::new()
        .append(true)
        .open(site.path("big"))
        .unwrap()
        .write_all(&[b'!'; 100_000])
        .unwrap();
    let (got, end) = slow.read_to_end();
    assert_eq!(end, End::Eof);
    assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
    site.finish();
}

#[test]
fn a_file_that_becomes_shorter_ends_with_a_reset() {
    let site = Site::start(&[]);
    site.big();
    let mut slow = site.slow_reader("big");
    OpenOptions::new().write(true).open(site.path("big")).unwrap().set_len(1000).unwrap();
    let (got, end) = slow.read_to_end();
    assert_eq!(end, End::Reset);
    assert!(got.len() < BIG, "padded to {}", got.len());
    site.server.wait_log("WARN client");
    site.server.wait_log("'big': the file became shorter");
    site.finish();
}

#[test]
fn a_replaced_file_is_sent_unchanged() {
    let site = Site::start(&[]);
    let bytes = site.big();
    let mut slow = site.slow_reader("big");
    fs::write(site.path("new"), "new").unwrap();
    fs::rename(site.path("new"), site.path("big")).unwrap();
    assert!(slow.read_to_end() == (bytes, End::Eof));
    expect_answer(&site.server, b"big\n", b"new");
    site.finish();
}

#[test]
fn clients_that_do_not_read_do_not_block_others() {
    let site = Site::start(&[]);
    site.big();
    let slow: Vec<Peer> = (0..20).map(|_| site.slow_reader("big")).collect();
    for _ in 0..20 {
        expect_answer(&site.server, b"ok.txt\n", b"hello");
    }
    assert!(slow.iter().all(|peer| peer.unread() > 0));
    slow.into_iter().for_each(Peer::reset);
    site.finish();
}

#[test]
fn a_client_that_never_reads_is_reset_after_the_write_timeout() {
    let site = Site::start(&["--write-timeout", "300"]);
    site.big();
    let mut slow = site.slow_reader("big");
    site.server.wait_log("too slowly");
    assert_eq!(slow.read_to_end().1, End::Reset, "an incomplete file ends with a reset");
    site.finish();
}

#[test]
fn silent_clients_and_half_lines_time_out() {
    let site = Site::start(&["--idle-timeout", "200", "--line-timeout", "200"]);
    let mut silent = site.server.connect();
    assert_eq!(silent.read_to_end(), (b"ERR timeout\n".to_vec(), End::Eof));
    let mut half = site.server.connect();
    half.send("ok.t");
    assert_eq!(half.read_to_end(), (b"ERR timeout\n".to_vec(), End::Eof));
    site.finish();
}

#[test]
fn clients_over_the_limit_are_rejected() {
    let site = Site::start(&["--max-conns", "2"]);
    let held = [site.server.connect(), site.server.connect()];
    eventually("both have a thread", || (site.server.family()[0].threads == 3).then_some(()));
    let (got, end) = ask(&site.server, b"");
    assert_eq!((got.as_slice(), end), (&b"ERR busy\n"[..], End::Eof));
    drop(held);
    eventually("a slot is free", || (ask(&site.server, b"ok.txt\n").0 == b"hello").then_some(()));
    let server = site.server;
    // The oracle connects four clients at once, and this server serves two.
    eventually("idle", || (server.family()[0].threads == 1).then_some(()));
    let mut server = server;
    server.stop().unwrap();
}

#[test]
fn files_over_the_size_limit_are_rejected() {
    let site = Site::start(&["--max-request", "40000"]);
    fs::write(site.path("large"), vec![b'x'; 40_001]).unwrap();
    expect_answer(&site.server, b"large\n", b"ERR too large\n");
    assert_eq!(ask(&site.server, b"40000\n").0.len(), 40_000);
    site.finish();
}

#[test]
fn without_sendfile_the_server_copies() {
    let who = "without_sendfile_the_server_copies";
    if !have("strace", who) {
        return;
    }
    let site = Site::start(&[]);
    let bytes = site.big();
    for errno in ["EINVAL", "ENOSYS"] {
        let injection =
            Injection::attach(&[site.server.pid()], true, &format!("sendfile:error={errno}"));
        let (got, end) = ask(&site.server, b"big\n");
        assert!(got == bytes && end == End::Eof, "{errno}: {} bytes, {end:?}", got.len());
        drop(injection);
    }
    site.finish();
}

#[test]
fn a_disk_error_ends_with_a_reset() {
    let who = "a_disk_error_ends_with_a_reset";
    if !have("strace", who) {
        return;
    }
    let site = Site::start(&[]);
    site.big();
    let injection = Injection::attach(&[site.server.pid()], true, "sendfile:error=EIO:when=2+");
    assert_eq!(ask(&site.server, b"big\n").1, End::Reset);
    drop(injection);
    site.finish();
}

#[test]
fn emfile_is_survived() {
    let site = Site::start(&[]);
    let mut held = site.server.connect();
    eventually("the client has a thread", || (site.server.family()[0].threads == 2).then_some(()));
    let open = testkit::procs::descriptors(site.server.pid()).keys().max().copied().unwrap();
    let before = limit_descriptors(site.server.pid(), open as u64 + 1);
    held.send("ok.txt\n"); // accepted already, but the file gets no descriptor
    assert_eq!(held.read_to_end(), (b"ERR busy\n".to_vec(), End::Eof));
    drop(held);
    let mut waiting = site.server.connect();
    waiting.send("ok.txt\n");
    limit_descriptors(site.server.pid(), before);
    assert!(waiting.read_to_end().1 == End::Eof);
    site.finish();
}

#[test]
fn after_sigterm_a_running_answer_is_completed_and_idle_clients_are_closed() {
    let site = Site::start(&["--grace", "5000"]);
    let bytes = site.big();
    let (mut reader, mut idle) = (site.slow_reader("big"), site.server.connect());
    eventually("both have a thread", || (site.server.family()[0].threads == 3).then_some(()));
    let mut server = site.server;
    server.signal(Signal::SIGTERM);
    assert_eq!(idle.read_to_end().0, b"");
    assert!(reader.read_to_end() == (bytes, End::Eof));
    assert_eq!(server.wait().code(), Some(0));
    assert!(server.family().is_empty());
}

#[test]
fn the_shutdown_timeout_or_a_second_signal_resets_a_slow_reader() {
    for second in [false, true] {
        let site = Site::start(&["--grace", if second { "60000" } else { "200" }]);
        site.big();
        let mut slow = site.slow_reader("big");
        let mut server = site.server;
        server.signal(Signal::SIGTERM);
        if second {
            eventually("the server has stopped listening", || {
                Peer::try_connect(server.addr).is_err().then_some(())
            });
            server.signal(Signal::SIGINT);
        }
        assert_eq!(server.wait().code(), Some(0));
        let (got, end) = slow.read_to_end();
        assert!(got.len() < BIG, "{} bytes", got.len());
        assert_eq!(end, End::Reset, "an incomplete file ends with a reset");
    }
}

#[test]
fn a_start_error_is_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    let run = |args: &[&str]| {
        let output = Command::new(BIN).args(args).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (args, code, word) in [
        (&["-p", "0", "--root", "/no/such"][..], 1, "open /no/such: No such file"),
        (&["-p", "0", "--root", file.to_str().unwrap()], 1, "Not a directory"),
        (&["-p", "0", "--root", ".", "-i", "192.0.2.1"], 1, "--allow-remote"),
        (&["-p", "0", "--root", ".", "-i", "192.0.2.1", "--allow-remote"], 1, "bind 192.0.2.1:0"),
    ] {
        let (status, text) = run(args);
        assert_eq!((status, text.lines().count()), (Some(code), 1), "{text}");
        assert!(text.contains(word), "{text}");
    }
    for args in [
        &["-p", "0"][..],
        &["--root"],
        &["--root", ".", "--max-conns", "0"],
        &["--root", ".", "-p", "65536"],
    ] {
        assert_eq!(run(args).0, Some(2), "{args:?}");
    }
}

#[test]
fn a_kernel_without_openat2_is_status_69() {
    let who = "a_kernel_without_openat2_is_status_69";
    if !have("strace", who) {
        return;
    }
    for errno in ["ENOSYS", "EPERM"] {
        let mut strace = Command::new("strace");
        strace.args([
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=openat2",
            "-e",
            &format!("inject=openat2:error={errno}"),
        ]);
        let output =
            strace.args([BIN, "-p", "0", "--root", "."]).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.lines().count()), (Some(69), 1), "{text}");
        assert!(output.stdout.is_empty(), "the server is not ready");
    }
}
