//! The file server as a black box: every name of the catalogue, files that change, readers that do not read, the stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // test code

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
/// More than all buffers of a connection hold while nobody reads.
const BIG: usize = 24 << 20;

/// A folder with one of everything, the secret beside it, and the server.
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
        // What the oracle asks every server for: a number, and so many bytes of the pattern.
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

    /// A client that has asked, and of whose answer a part is on the way.
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
    // The server refuses at the 4097th byte and reads 64 KiB more at most: the rest may find it gone, and the answer
    // still has to come.
    let _ = peer.try_send(line);
    peer.read_to_end()
}

fn says(server: &Server, line: &[u8], answer: &[u8]) {
    let (got, end) = ask(server, line);
    assert_eq!(
        (got.escape_ascii().to_string(), end),
        (answer.escape_ascii().to_string(), End::Eof),
        "{}",
        line.escape_ascii()
    );
}

#[test]
fn every_name_of_the_catalogue() {
    let site = Site::start(&[]);
    for good in [&b"ok.txt\n"[..], b"ok.txt\r\n", b"./ok.txt\n", b"sub/../ok.txt\n", b"dir/./..//ok.txt\n"] {
        says(&site.server, good, b"hello");
    }
    says(&site.server, b"sub/deep\n", b"deep");
    says(&site.server, b"empty\n", b"");
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
        says(&site.server, bad, b"ERR not found\n");
    }
    // The longest line, and one byte more; and a megabyte without an end.
    for n in [4095, 4096, 1 << 20] {
        let (got, _) = ask(&site.server, &[&vec![b'a'; n][..], b"\n"].concat());
        assert_eq!(got, b"ERR not found\n", "{n}");
    }
    site.finish();
}

#[test]
fn the_log_shows_names_escaped() {
    let site = Site::start(&["-v"]);
    says(&site.server, b"\x1b[2Jx\n", b"ERR not found\n");
    site.server.wait_log("[2Jx' not found");
    assert!(!site.server.log().contains('\x1b'));
    site.finish();
}

#[test]
fn one_name_and_no_more() {
    let site = Site::start(&[]);
    says(&site.server, b"ok.txt\nok.txt\n", b"hello");
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

/// Somebody swaps a folder and a symbolic link to the outside, as fast as it goes, while the name is walked.
#[test]
fn no_race_leads_outside() {
    let site = Site::start(&[]);
    let outside = site.folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "OUTSIDE").unwrap();
    fs::create_dir(site.path("flip")).unwrap();
    fs::write(site.path("flip/f"), "inside").unwrap();
    symlink(&outside, site.path("flop")).unwrap();
    let done = AtomicBool::new(false);
    let (a, b) = (c_string(&site.path("flip")), c_string(&site.path("flop")));
    let (mut inside, mut refused) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                // SAFETY: both are C strings.
                let rc = unsafe {
                    libc::renameat2(libc::AT_FDCWD, a.as_ptr(), libc::AT_FDCWD, b.as_ptr(), libc::RENAME_EXCHANGE)
                };
                assert_eq!(rc, 0);
            }
        });
        let look = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for name in [&b"flip/f\n"[..], b"flip/../flip/f\n"].into_iter().cycle().take(400) {
                match ask(&site.server, name).0.as_slice() {
                    b"inside" => inside += 1,
                    b"ERR not found\n" | b"ERR busy\n" => refused += 1,
                    other => panic!("{}", other.escape_ascii()),
                }
            }
        }));
        done.store(true, SeqCst);
        look.unwrap();
    });
    assert!(inside > 0 && refused > 0, "{inside} inside, {refused} refused: no race was met");
    site.finish();
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

#[test]
fn short_sendfiles_are_looped_and_every_byte_arrives() {
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
fn what_a_file_grows_by_is_not_sent() {
    let site = Site::start(&[]);
    let bytes = site.big();
    let mut slow = site.slow_reader("big");
    OpenOptions::new().append(true).open(site.path("big")).unwrap().write_all(&[b'!'; 100_000]).unwrap();
    let (got, end) = slow.read_to_end();
    assert_eq!(end, End::Eof);
    assert!(got == bytes, "{} of {} bytes", got.len(), bytes.len());
    site.finish();
}

#[test]
fn a_file_that_shrinks_ends_in_a_reset_and_never_in_an_end_of_stream() {
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
fn a_file_that_is_replaced_is_sent_as_it_was() {
    let site = Site::start(&[]);
    let bytes = site.big();
    let mut slow = site.slow_reader("big");
    fs::write(site.path("new"), "new").unwrap();
    fs::rename(site.path("new"), site.path("big")).unwrap();
    assert!(slow.read_to_end() == (bytes, End::Eof));
    says(&site.server, b"big\n", b"new");
    site.finish();
}

#[test]
fn readers_that_do_not_read_stop_nobody() {
    let site = Site::start(&[]);
    site.big();
    let slow: Vec<Peer> = (0..20).map(|_| site.slow_reader("big")).collect();
    for _ in 0..20 {
        says(&site.server, b"ok.txt\n", b"hello");
    }
    assert!(slow.iter().all(|peer| peer.unread() > 0));
    slow.into_iter().for_each(Peer::reset);
    site.finish();
}

#[test]
fn a_reader_that_never_reads_is_cut_off() {
    let site = Site::start(&["--write-timeout", "300"]);
    site.big();
    let mut slow = site.slow_reader("big");
    site.server.wait_log("too slowly");
    assert_eq!(slow.read_to_end().1, End::Reset, "a part is not the whole");
    site.finish();
}

#[test]
fn silent_clients_and_half_lines_meet_their_deadlines() {
    let site = Site::start(&["--idle-timeout", "200", "--line-timeout", "200"]);
    let mut silent = site.server.connect();
    assert_eq!(silent.read_to_end(), (b"ERR timeout\n".to_vec(), End::Eof));
    let mut half = site.server.connect();
    half.send("ok.t");
    assert_eq!(half.read_to_end(), (b"ERR timeout\n".to_vec(), End::Eof));
    site.finish();
}

#[test]
fn clients_too_many_are_told_so() {
    let site = Site::start(&["--max-conns", "2"]);
    let held = [site.server.connect(), site.server.connect()];
    eventually("both have a thread", || (site.server.family()[0].threads == 3).then_some(()));
    let (got, end) = ask(&site.server, b"");
    assert_eq!((got.as_slice(), end), (&b"ERR busy\n"[..], End::Eof));
    drop(held);
    eventually("a place is free", || (ask(&site.server, b"ok.txt\n").0 == b"hello").then_some(()));
    let server = site.server;
    // The oracle asks with four at once, and this one serves two.
    eventually("at rest", || (server.family()[0].threads == 1).then_some(()));
    let mut server = server;
    server.stop().unwrap();
}

#[test]
fn files_too_large_are_refused_by_their_size() {
    let site = Site::start(&["--max-request", "40000"]);
    fs::write(site.path("large"), vec![b'x'; 40_001]).unwrap();
    says(&site.server, b"large\n", b"ERR too large\n");
    assert_eq!(ask(&site.server, b"40000\n").0.len(), 40_000);
    site.finish();
}

#[test]
fn without_sendfile_it_copies() {
    let who = "without_sendfile_it_copies";
    if !have("strace", who) {
        return;
    }
    let site = Site::start(&[]);
    let bytes = site.big();
    for errno in ["EINVAL", "ENOSYS"] {
        let injection = Injection::attach(&[site.server.pid()], true, &format!("sendfile:error={errno}"));
        let (got, end) = ask(&site.server, b"big\n");
        assert!(got == bytes && end == End::Eof, "{errno}: {} bytes, {end:?}", got.len());
        drop(injection);
    }
    site.finish();
}

#[test]
fn an_error_of_the_disk_ends_in_a_reset() {
    let who = "an_error_of_the_disk_ends_in_a_reset";
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
fn out_of_descriptors_and_back() {
    let site = Site::start(&[]);
    let mut held = site.server.connect();
    eventually("it has a thread", || (site.server.family()[0].threads == 2).then_some(()));
    let open = testkit::procs::descriptors(site.server.pid()).keys().max().copied().unwrap();
    let before = limit_descriptors(site.server.pid(), open as u64 + 1);
    held.send("ok.txt\n"); // accepted before, and there is no descriptor for the file
    assert_eq!(held.read_to_end(), (b"ERR busy\n".to_vec(), End::Eof));
    drop(held);
    let mut waiting = site.server.connect();
    waiting.send("ok.txt\n");
    limit_descriptors(site.server.pid(), before);
    assert!(waiting.read_to_end().1 == End::Eof);
    site.finish();
}

#[test]
fn a_stop_lets_a_reader_finish_and_waits_for_no_other() {
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
fn a_stop_ends_at_the_grace_or_at_the_second_signal() {
    for second in [false, true] {
        let site = Site::start(&["--grace", if second { "60000" } else { "200" }]);
        site.big();
        let mut slow = site.slow_reader("big");
        let mut server = site.server;
        server.signal(Signal::SIGTERM);
        if second {
            eventually("it stops listening", || Peer::try_connect(server.addr).is_err().then_some(()));
            server.signal(Signal::SIGINT);
        }
        assert_eq!(server.wait().code(), Some(0));
        let (got, end) = slow.read_to_end();
        assert!(got.len() < BIG && end != End::Silence, "{} bytes, {end:?}", got.len());
    }
}

#[test]
fn what_cannot_start_says_why_in_one_line() {
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
        let (status, said) = run(args);
        assert_eq!((status, said.lines().count()), (Some(code), 1), "{said}");
        assert!(said.contains(word), "{said}");
    }
    for args in [&["-p", "0"][..], &["--root"], &["--root", ".", "--max-conns", "0"], &["--root", ".", "-p", "65536"]] {
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
        strace.args(["-qq", "-o", "/dev/null", "-e", "trace=openat2", "-e", &format!("inject=openat2:error={errno}")]);
        let output = strace.args([BIN, "-p", "0", "--root", "."]).stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(69), 1), "{said}");
        assert!(output.stdout.is_empty(), "it is not ready");
    }
}
