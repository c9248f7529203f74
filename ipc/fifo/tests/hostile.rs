//! Hostile clients: rows P4 to P8 of the protocol, rows G6 to G9 of the faults, and the sockets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod harness;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fifo::record::hex;
use fifo::record::{MAX_N, Nonce, QUESTION, Question, Status};
use fifo::rundir::my_uid;
use fifo::rundir::reply_path;
use harness::{CLIENT, Running, SERVER, check, client};
use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};
use testkit::{eventually, procs};

const NOBODY: u32 = 65_534;

/// Makes a file that is in the way.
type Plant<'a> = &'a dyn Fn(&Path);

fn me() -> i32 {
    std::process::id() as i32
}

fn mkfifo_600(path: &Path) {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
}

/// P4 and P5, 100 times: all bytes are counted, and the count is printed at most once a second.
#[test]
fn junk_is_counted_and_reported_once_a_second() {
    let server = Running::start(&["--events"]);
    let good = Question { nonce: [1; 16], n: 1, pid: me() }.to_bytes();
    let (mut version_2, mut other_magic) = (good.clone(), good.clone());
    (version_2[4], other_magic[0]) = (2, b'X');
    let junk = [&good[..1], &good[..3], &good[..31], &version_2, &other_magic, &[0xff; 33]];
    let (start, mut bytes) = (Instant::now(), 0);
    for junk in junk.iter().cycle().take(100) {
        server.write_req(junk);
        bytes += junk.len() as u64;
        server.serves();
    }
    let reported = || {
        server.events("junk").iter().map(|junk| junk["bytes"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    eventually("all bytes are reported", || {
        (reported().iter().sum::<u64>() == bytes).then_some(())
    });
    assert!(
        reported().len() as u64 <= start.elapsed().as_secs() + 2,
        "{:?} in {:?}",
        reported(),
        start.elapsed()
    );
    server.finish();
}

#[test]
fn without_events_junk_is_one_line_on_stderr() {
    let temp = tempfile::tempdir().unwrap();
    let log = File::create(temp.path().join("log")).unwrap();
    let dir = temp.path().join("run");
    let mut server = Command::new(SERVER)
        .arg("--dir")
        .arg(&dir)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    eventually("it serves", || {
        client(&dir, &["--count", "1"]).output().unwrap().status.success().then_some(())
    });
    fs::OpenOptions::new()
        .write(true)
        .open(dir.join("req"))
        .unwrap()
        .write_all(b"\x1b[2Jjunk")
        .unwrap();
    let line = eventually("a line", || {
        Some(fs::read_to_string(temp.path().join("log")).unwrap()).filter(|l| !l.is_empty())
    });
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(line, "WARN 8 bytes that are not a question\n");
}

/// P6: bytes that form a path stay a number.
#[test]
fn a_nonce_cannot_name_a_path() {
    let server = Running::start(&["--events"]);
    for nonce in [
        *b"/../../../../etc",
        *b"..\0/\0\0\0\0\0\0\0\0\0\0\0\0",
        [0; 16],
        [0xff; 16],
        *b"%s%n\n\x1b[2J\x07;id|&x",
    ] {
        let mut raw = server.raw(nonce);
        assert!(raw.path.parent() == Some(&server.dir));
        server.write_req(&raw.question.to_bytes());
        assert_eq!((raw.answer().status, server.events("dropped").len()), (Status::Ok, 0));
        fs::remove_file(&raw.path).unwrap();
    }
    server.finish();
}

/// P7, with an incomplete record before them and after them.
#[test]
fn two_records_in_one_write_are_two_answers() {
    let server = Running::start(&["--events"]);
    let (mut one, mut two) = (server.raw([1; 16]), server.raw([2; 16]));
    let (one_bytes, two_bytes) = (one.question.to_bytes(), two.question.to_bytes());
    server.write_req(&[&one_bytes[..31], &one_bytes, &two_bytes, &two_bytes[..9]].concat());
    assert_eq!((one.answer().values.len(), two.answer().values.len()), (3, 3));
    for raw in [one, two] {
        fs::remove_file(raw.path).unwrap();
    }
    server.finish();
}

/// P8 and G9: the server neither writes to such a file nor removes it.
#[test]
fn an_answer_is_dropped_if_another_file_has_the_name_of_the_reply_fifo() {
    let server = Running::start(&["--events"]);
    let elsewhere = tempfile::tempdir().unwrap();
    let theirs = elsewhere.path().join("theirs");
    mkfifo_600(&theirs);
    let mut reader = fifo::rundir::open_fifo(&theirs, OFlag::O_RDONLY).unwrap();
    fs::write(elsewhere.path().join("file"), "precious").unwrap();
    let cases: [(&str, Plant); 6] = [
        ("No such file", &|_| ()),
        ("not a private FIFO", &|path| fs::write(path, "precious").unwrap()),
        ("symbolic links", &|path| symlink(&theirs, path).unwrap()),
        ("symbolic links", &|path| symlink(elsewhere.path().join("file"), path).unwrap()),
        ("symbolic links", &|path| symlink("nowhere", path).unwrap()),
        ("Is a directory", &|path| fs::create_dir(path).unwrap()),
    ];
    for (at, (why, plant)) in cases.iter().enumerate() {
        let question = Question { nonce: [at as u8; 16], n: 3, pid: me() };
        let path = reply_path(&server.dir, me(), &question.nonce);
        plant(&path);
        server.write_req(&question.to_bytes());
        let dropped = server.wait_event("dropped", |event| event["nonce"] == hex(&question.nonce));
        assert!(dropped["why"].as_str().unwrap().contains(why), "{dropped}");
        server.serves();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => fs::remove_dir(&path).unwrap(),
            Ok(meta) => {
                assert!(!meta.is_file() || fs::read(&path).unwrap() == b"precious");
                fs::remove_file(&path).unwrap();
            }
            Err(_) => assert_eq!(at, 0),
        }
    }
    assert_eq!(reader.read(&mut [0; 9]).unwrap(), 0, "nothing went through the link");
    assert_eq!(fs::read(elsewhere.path().join("file")).unwrap(), b"precious");
    server.finish();
}

/// The server writes an answer only to a FIFO that no other user can read.
#[test]
fn an_answer_to_a_reply_fifo_that_others_may_read_is_dropped() {
    let server = Running::start(&["--events"]);
    let raw = server.raw([5; 16]);
    fs::set_permissions(&raw.path, fs::Permissions::from_mode(0o644)).unwrap();
    server.write_req(&raw.question.to_bytes());
    let dropped = server.wait_event("dropped", |_| true);
    assert!(dropped["why"].as_str().unwrap().contains("not a private FIFO"), "{dropped}");
    server.finish();
}

/// Only root can change the owner of a file. Without root, strace makes geteuid return another
/// user.
#[test]
fn an_answer_to_a_reply_fifo_of_another_user_is_dropped() {
    let who = "an_answer_to_a_reply_fifo_of_another_user_is_dropped";
    if my_uid() != 0 && !testkit::tools::have("strace", who) {
        return;
    }
    let server = Running::start(&["--events"]);
    let raw = server.raw([6; 16]);
    let other = match my_uid() {
        0 => chown(&raw.path, Some(NOBODY), None).map(|()| None).unwrap(),
        _ => Some(testkit::tools::Injection::attach(&[server.pid()], false, "geteuid:retval=1")),
    };
    server.write_req(&raw.question.to_bytes());
    let dropped = server.wait_event("dropped", |_| true);
    assert!(dropped["why"].as_str().unwrap().contains("not a private FIFO"), "{dropped}");
    drop(other);
    server.finish();
}

/// G9: other files have the names that the server needs. It prints one line and exits with 1. A
/// FIFO in its own private directory is taken for one of a dead server.
#[test]
fn the_server_does_not_use_files_that_it_has_not_made() {
    let cases: [(&str, Plant); 8] = [
        ("not a directory", &|dir| symlink(dir.parent().unwrap(), dir).unwrap()),
        ("mkdir", &|dir| symlink("nowhere", dir).unwrap()),
        ("mkdir", &|dir| fs::write(dir, "").unwrap()),
        ("not a directory of mode 0700", &|dir| private(dir, 0o755)),
        ("mkfifo", &|dir| {
            private(dir, 0o700);
            fs::write(dir.join("req"), "precious").unwrap();
        }),
        ("mkfifo", &|dir| {
            private(dir, 0o700);
            symlink("/dev/null", dir.join("req")).unwrap();
        }),
        ("open", &|dir| {
            private(dir, 0o700);
            symlink("/dev/null", dir.join("lock")).unwrap();
        }),
        ("listen", &|dir| {
            private(dir, 0o700);
            fs::write(dir.join("sock"), "precious").unwrap();
        }),
    ];
    for (why, plant) in cases {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("run");
        plant(&dir);
        let out = Command::new(SERVER).arg("--dir").arg(&dir).output().unwrap();
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(
            out.status.code() == Some(1) && error.contains(why) && error.lines().count() == 1,
            "{why}: {error}"
        );
        assert!(error.contains(dir.to_str().unwrap()), "the message names the file: {error}");
        for name in ["req", "sock"].map(|name| dir.join(name)) {
            assert!(!name.is_file() || name.is_symlink() || fs::read(name).unwrap() == b"precious");
        }
    }
    let temp = tempfile::tempdir().unwrap();
    private(&temp.path().join("run"), 0o700);
    mkfifo(&temp.path().join("run/req"), Mode::from_bits_truncate(0o666)).unwrap();
    Running::start_in(SERVER, &[], temp).finish();
}

fn private(dir: &Path, mode: u32) {
    fs::create_dir(dir).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_directory_of_another_user_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("run");
    private(&dir, 0o700);
    let mut command = Command::new(SERVER);
    if my_uid() == 0 {
        chown(&dir, Some(NOBODY), None).unwrap();
    } else if testkit::tools::have("strace", "a_directory_of_another_user_is_refused") {
        command = Command::new("strace");
        command.args([
            "-o",
            "/dev/null",
            "-e",
            "trace=geteuid",
            "-e",
            "inject=geteuid:retval=1",
            SERVER,
        ]);
    } else {
        return;
    }
    let out = command.arg("--dir").arg(&dir).output().unwrap();
    assert!(
        out.status.code() == Some(1) && String::from_utf8_lossy(&out.stderr).contains("ours"),
        "{out:?}"
    );
}

/// G7: a client that asks and never reads. Its pipe holds 64 KiB; further answers are dropped.
#[test]
fn answers_are_dropped_whole_if_the_reply_fifo_is_never_read() {
    let server = Running::start(&["--events"]);
    let mut raw = server.raw([7; 16]);
    raw.question.n = MAX_N;
    for _ in 0..400 {
        server.write_req(&raw.question.to_bytes());
    }
    server.serves();
    let dropped = server.wait_event("dropped", |_| true);
    assert!(dropped["why"].as_str().unwrap().contains("temporarily unavailable"), "{dropped}");
    let mut all = Vec::new();
    let end = raw.reply.read_to_end(&mut all);
    assert!(end.is_ok() || end.unwrap_err().kind() == ErrorKind::WouldBlock);
    assert_eq!(all.len() % (fifo::record::HEAD + 4 * MAX_N as usize), 0, "no answer went in half");
    fs::remove_file(&raw.path).unwrap();
    server.finish();
}

/// G7 with the real client, which is stopped between its questions and then continues.
#[test]
fn a_stopped_client_does_not_block_others() {
    let server = Running::start(&["--signals", "--events"]);
    let stopped = client(
        &server.dir,
        &["--signals", "--count", "500", "--json", "-n", "9", "--deadline", "60000"],
    );
    let stopped = { stopped }.spawn().unwrap();
    let pid = Pid::from_raw(stopped.id() as i32);
    server.wait_event("ack", |ack| ack["pid"] == stopped.id());
    let _ = kill(pid, Signal::SIGSTOP);
    (0..20).for_each(|_| server.serves());
    let _ = kill(pid, Signal::SIGCONT);
    let out = stopped.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    check(&out, 500, 9);
    server.finish();
}

/// G8.
#[test]
fn two_clients_with_a_thousand_questions_get_their_own_answers() {
    let server = Running::start(&[]);
    let run = |n: &str| {
        client(&server.dir, &["--count", "1000", "--json", "--deadline", "60000", "-n", n]).spawn()
    };
    let (a, b) = (run("10").unwrap(), run("20").unwrap());
    let b = std::thread::spawn(move || b.wait_with_output().unwrap());
    check(&a.wait_with_output().unwrap(), 1000, 10);
    check(&b.join().unwrap(), 1000, 20);
    server.finish();
}

/// G6 for the sockets: the server sleeps, although a connection waits that it cannot accept.
#[test]
fn a_server_without_descriptors_neither_spins_nor_ends() {
    let server = Running::start(&[]);
    server.serves();
    let open = procs::descriptors(server.pid()).len() as u64;
    let old = procs::limit_descriptors(server.pid(), open);
    let waits = client(
        &server.dir,
        &["--unix", "--count", "1", "--json", "-n", "4", "--deadline", "60000"],
    )
    .spawn();
    let (start, before) = (Instant::now(), procs::cpu_ns(server.pid()));
    eventually("half a second", || (start.elapsed() > Duration::from_millis(500)).then_some(()));
    let used = Duration::from_nanos(procs::cpu_ns(server.pid()) - before);
    assert!(used * 10 < start.elapsed(), "{used:?}");
    procs::limit_descriptors(server.pid(), old);
    check(&waits.unwrap().wait_with_output().unwrap(), 1, 4);
    server.finish();
}

/// The bytes that a connection returns until end of file or an error.
fn read_all(mut stream: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

/// Sends a part of a question, byte by byte, until the server closes. Returns how many bytes.
fn send_slowly(mut stream: impl Write) -> usize {
    let half = Question { nonce: [1; 16], n: 1, pid: me() }.to_bytes();
    let mut sent = 0;
    for byte in half[..QUESTION - 1].iter().cycle().take(QUESTION - 1) {
        match stream.write_all(&[*byte]) {
            Ok(()) => sent += 1,
            Err(_) => return sent,
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    sent
}

#[test]
fn a_connection_without_a_whole_question_is_closed() {
    let server = Running::start(&[
        "--line-timeout",
        "400",
        "--idle-timeout",
        "900",
        "--tcp",
        "0",
        "--events",
    ]);
    let path = server.dir.join("sock");
    let tcp = server.ready.trim().split_once("and on ").unwrap().1.to_owned();
    let (unix, tcp) =
        (|| UnixStream::connect(&path).unwrap(), || TcpStream::connect(&tcp).unwrap());
    assert_eq!(read_all(unix()), b"");
    assert_eq!(read_all(tcp()), b"");
    assert!(send_slowly(unix()) < QUESTION - 1, "single bytes do not move the deadline");
    assert!(send_slowly(tcp()) < QUESTION - 1);
    // After an answer the idle timeout is in force, and the line timeout for a part of a question.
    let question = Question { nonce: [2; 16], n: 3, pid: me() }.to_bytes();
    let mut rests = unix();
    rests.write_all(&question).unwrap();
    assert_eq!(read_all(&rests).len(), 24 + 3 * 4);
    let mut half = unix();
    half.write_all(&[&question[..], &question[..9]].concat()).unwrap();
    assert_eq!(read_all(&half).len(), 24 + 3 * 4);
    assert!(server.events("closed").iter().all(|closed| closed["why"] != "read failed"));
    server.finish();
}

/// Clients of the FIFO are served meanwhile. The next client of the socket is served after the
/// timeout of the silent ones.
#[test]
fn silent_connections_in_all_slots_delay_unix_clients_only_until_their_timeout() {
    let server = Running::start(&["--line-timeout", "5000"]);
    let open = || procs::descriptors(server.pid()).len();
    let (path, before) = (server.dir.join("sock"), open());
    let silent: Vec<_> = (0..64).map(|_| UnixStream::connect(&path).unwrap()).collect();
    eventually("all are accepted", || (open() == before + 64).then_some(()));
    let next = client(
        &server.dir,
        &["--unix", "--count", "1", "--json", "-n", "4", "--deadline", "60000"],
    )
    .spawn();
    server.serves();
    check(&next.unwrap().wait_with_output().unwrap(), 1, 4);
    drop(silent);
    eventually("all are closed", || (open() == before).then_some(()));
    server.finish();
}

#[test]
fn bytes_that_are_not_a_question_end_a_connection() {
    let server = Running::start(&["--tcp", "0", "--events"]);
    let question = Question { nonce: [2; 16], n: 3, pid: me() }.to_bytes();
    let mut wrong = question.clone();
    wrong[30] ^= 1;
    for junk in
        [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4000], &wrong, &[&question[..], b"x"].concat()]
    {
        let mut stream = UnixStream::connect(server.dir.join("sock")).unwrap();
        stream.write_all(junk).unwrap();
        let answered = if junk.starts_with(&question) { 24 + 3 * 4 } else { 0 };
        assert_eq!(read_all(stream).len(), answered);
    }
    server.wait_event("closed", |closed| closed["why"] == "not a question");
    // A question in two segments is a question, wherever it is cut.
    let addr = server.ready.trim().split_once("and on ").unwrap().1.to_owned();
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_nodelay(true).unwrap();
    for cut in 1..QUESTION {
        stream.write_all(&question[..cut]).unwrap();
        stream.write_all(&question[cut..]).unwrap();
        let mut answer = [0; 24 + 3 * 4];
        stream.read_exact(&mut answer).unwrap();
    }
    server.finish();
}

#[test]
fn tcp_gives_the_same_service() {
    let server = Running::start(&["--tcp", "0"]);
    let addr = server.ready.trim().split_once("and on ").unwrap().1.to_owned();
    let run =
        |args: &[&str]| Command::new(CLIENT).args(["--tcp", &addr]).args(args).output().unwrap();
    check(&run(&["--count", "20", "-n", "100", "--json"]), 20, 100);
    let out = run(&["--count", "1", "-n", "101"]);
    assert!(
        out.status.code() == Some(1) && String::from_utf8_lossy(&out.stderr).contains("1..=100"),
        "{out:?}"
    );
    assert_eq!(run(&["--unix"]).status.code(), Some(2));
    // A port in use is one line of error.
    let port = addr.rsplit(':').next().unwrap();
    let other = tempfile::tempdir().unwrap();
    let out = Command::new(SERVER)
        .arg("--dir")
        .arg(other.path().join("x"))
        .args(["--tcp", port])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(1) && error.contains("Address already in use"), "{error}");
    assert_eq!(
        fs::read_dir(other.path()).unwrap().count(),
        0,
        "nothing is left of the one that could not start"
    );
    server.finish();
}

/// The client chooses the nonce, so two questions may have the same one.
#[test]
fn two_questions_with_the_same_nonce_are_both_answered() {
    let server = Running::start(&[]);
    let nonce: Nonce = [8; 16];
    let mut raw = server.raw(nonce);
    server.write_req(&[raw.question.to_bytes(), raw.question.to_bytes()].concat());
    let mut bytes = Vec::new();
    eventually("two answers", || {
        let mut buffer = [0; 256];
        let n = raw.reply.read(&mut buffer).unwrap_or(0);
        bytes.extend_from_slice(&buffer[..n]);
        (bytes.len() == 2 * (24 + 3 * 4)).then_some(())
    });
    fs::remove_file(&raw.path).unwrap();
    server.finish();
}
