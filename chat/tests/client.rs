//! The terminal client in a pipe and on a terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
use nix::unistd::Pid;
use testkit::{TIMEOUT, eventually};

const BIN: &str = env!("CARGO_BIN_EXE_chat");

/// The server, played by the test.
struct Script {
    listener: TcpListener,
}

/// One connection of it.
struct Line {
    reader: BufReader<TcpStream>,
}

impl Script {
    fn new() -> Script {
        Script { listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn client(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BIN);
        let port = self.listener.local_addr().unwrap().port().to_string();
        command.args(["-i", "127.0.0.1", "-p", &port]).args(args).env_remove("NO_COLOR").env("TERM", "xterm");
        command
    }

    fn accept(&self) -> Line {
        self.listener.set_nonblocking(true).unwrap();
        let (conn, _) = eventually("the client connects", || self.listener.accept().ok());
        conn.set_nonblocking(false).unwrap();
        conn.set_read_timeout(Some(TIMEOUT)).unwrap();
        Line { reader: BufReader::new(conn) }
    }

    /// A client that has said its nick and been welcomed.
    fn welcome(&self, nick: &str) -> Line {
        let mut line = self.accept();
        assert_eq!(line.read(), format!("{nick}\n"));
        line.write(format!("* welcome {nick}; 1 here, /help lists the commands\n"));
        line
    }
}

impl Line {
    fn read(&mut self) -> String {
        let mut text = String::new();
        self.reader.read_line(&mut text).unwrap();
        text
    }

    fn write(&mut self, text: impl AsRef<[u8]>) {
        self.reader.get_mut().write_all(text.as_ref()).unwrap();
    }
}

fn piped(command: &mut Command) -> (Child, ChildStdin) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let stdin = child.stdin.take().unwrap();
    (child, stdin)
}

fn ended(child: Child) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn pipe_sends_every_line_and_prints_every_line_of_the_server_escaped() {
    let script = Script::new();
    let (child, mut stdin) = piped(&mut script.client(&["--nick", "bob"]));
    let mut server = script.welcome("bob");
    stdin.write_all("hello\ncaf\u{e9}\n/list\nno newline".as_bytes()).unwrap();
    assert_eq!([server.read(), server.read(), server.read()], ["hello\n", "caf\u{e9}\n", "/list\n"]);
    drop(stdin);
    assert_eq!([server.read(), server.read()], ["no newline\n", "/quit\n"]);
    server.write("= list bob\n<alice> \x1b[2Jhi\x07 \u{202e}x\r\n* bye\n");
    drop(server);
    let (code, out, err) = ended(child);
    let heard = "= list bob\n<alice> \\x1b[2Jhi\\x07 \\u{202e}x\n* bye\n";
    assert_eq!(out, format!("* welcome bob; 1 here, /help lists the commands\n{heard}"));
    assert_eq!((code, err.as_str()), (Some(0), ""));
}

#[test]
fn pipe_without_nick_takes_the_first_line_as_nick() {
    let script = Script::new();
    let (child, mut stdin) = piped(&mut script.client(&[]));
    stdin.write_all(b"bob\nhello\n").unwrap();
    drop(stdin);
    let mut server = script.welcome("bob");
    assert_eq!([server.read(), server.read()], ["hello\n", "/quit\n"]);
    server.write("* bye\n");
    drop(server);
    assert_eq!(ended(child).0, Some(0));
}

#[test]
fn failed_connection_and_bad_options_are_reported() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = Command::new(BIN)
        .args(["-i", "127.0.0.1", "-p", &free.port().to_string(), "--nick", "bob"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    let next = "Check -i and -p, or start a server with `cargo run -p v1-threads`";
    let wanted = format!("chat: connect {free}: connection refused. {next}\n");
    assert_eq!((output.status.code(), err), (Some(1), wanted));
    for (args, code) in [(&["--nick", "a b"][..], 2), (&["-p", "x"], 2), (&["-i", "no.such.host.invalid"], 1)] {
        let output = Command::new(BIN).args(args).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn lost_connection_is_made_again_with_the_latest_nick() {
    let script = Script::new();
    let (child, mut stdin) = piped(&mut script.client(&["--nick", "bob"]));
    let mut server = script.welcome("bob");
    server.write("* bob is now rob\n* server is going down\n");
    drop(server);
    let mut server = script.welcome("rob");
    stdin.write_all(b"back\n/quit\n").unwrap();
    assert_eq!([server.read(), server.read()], ["back\n", "/quit\n"]);
    drop(server);
    drop(stdin);
    let (code, _, err) = ended(child);
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(err, "-- connection lost; attempt 1 of 8 in 0.5 s\n");
}

#[test]
fn reconnection_prints_one_line_per_attempt_and_gives_up_after_the_last() {
    let script = Script::new();
    let address = script.listener.local_addr().unwrap();
    let (child, stdin) = piped(&mut script.client(&["--nick", "bob", "--reconnect", "2"]));
    drop(script.welcome("bob"));
    drop(script);
    let (code, _, err) = ended(child);
    drop(stdin);
    let refused = format!("connect {address}: connection refused");
    let wanted = format!(
        "-- connection lost; attempt 1 of 2 in 0.5 s\n-- {refused}; attempt 2 of 2 in 1.0 s\n\
         chat: {refused}; gave up after 2 attempts to reconnect\n"
    );
    assert_eq!((code, err), (Some(1), wanted));
}

#[test]
fn rejected_user_does_not_reconnect() {
    for (answer, words) in [
        ("! nick-bad no\n", "the server closed the connection: nick-bad no"),
        ("! nick-taken bob is here already\n", "the nick bob is taken"),
        (
            "* welcome bob; 1 here\n! idle and no line for too long\n",
            "the server closed the connection: idle and no line for too long",
        ),
    ] {
        let script = Script::new();
        let (child, stdin) = piped(&mut script.client(&["--nick", "bob"]));
        let mut server = script.accept();
        server.read();
        server.write(answer);
        drop(server);
        let (code, out, err) = ended(child);
        drop(stdin);
        assert_eq!((code, out.as_str(), err), (Some(1), answer, format!("chat: {words}\n")));
    }
}

#[test]
fn line_that_is_too_long_or_not_utf8_is_not_sent() {
    let script = Script::new();
    let (child, mut stdin) = piped(&mut script.client(&["--nick", "bob"]));
    let mut server = script.welcome("bob");
    let full = "x".repeat(1023);
    stdin.write_all(format!("{full}x\n{full}\n").as_bytes()).unwrap();
    stdin.write_all(b"\xff\xfe\n").unwrap();
    drop(stdin);
    assert_eq!([server.read(), server.read()], [format!("{full}\n"), "/quit\n".into()]);
    drop(server);
    let (code, _, err) = ended(child);
    assert_eq!(code, Some(0));
    assert_eq!(err, "-- not sent: 1024 bytes; a line has at most 1023\n-- not sent: the line is not UTF-8\n");
}

#[test]
fn server_line_without_an_end_ends_the_client() {
    let script = Script::new();
    let (child, stdin) = piped(&mut script.client(&["--nick", "bob"]));
    let mut server = script.accept();
    server.read();
    let _ = server.reader.get_mut().write_all(&[b'x'; 100_000]);
    let (code, _, err) = ended(child);
    drop(stdin);
    assert_eq!((code, err.as_str()), (Some(1), "chat: the server sent a line without an end: it is not a chat\n"));
}

/// A terminal with the client on it.
struct Terminal {
    child: Child,
    keyboard: File,
    slave: OwnedFd,
    before: Termios,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    fn new(command: &mut Command) -> Terminal {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let before = tcgetattr(&pty.slave).unwrap();
        let dup = || Stdio::from(pty.slave.try_clone().unwrap());
        command.stdin(dup()).stdout(dup()).stderr(dup());
        let own_terminal = || {
            nix::unistd::setsid()?;
            // SAFETY: standard input is the terminal's slave side; the call takes no pointer.
            match unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        };
        // SAFETY: setsid and ioctl are async-signal-safe.
        unsafe { command.pre_exec(own_terminal) };
        let child = command.spawn().unwrap();
        let keyboard = File::from(pty.master);
        let shown = Arc::new(Mutex::new(String::new()));
        let (mut master, text) = (keyboard.try_clone().unwrap(), Arc::clone(&shown));
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = master.read(&mut buffer) {
                text.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Terminal { child, keyboard, slave: pty.slave, before, shown }
    }

    fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits for text on the screen. Removes it and what precedes it, and returns what it has removed.
    fn see(&self, text: &str) -> String {
        eventually(&format!("the screen shows {text:?}"), || {
            let mut shown = self.shown.lock().unwrap();
            let end = shown.find(text)? + text.len();
            Some(shown.drain(..end).collect())
        })
    }

    fn end(self) -> Option<i32> {
        self.end_status().code()
    }

    fn end_status(mut self) -> ExitStatus {
        let status = eventually("the client ends", || self.child.try_wait().unwrap());
        let after = tcgetattr(&self.slave).unwrap();
        assert_eq!(after.local_flags, self.before.local_flags, "the terminal is left as it was");
        assert!(after.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO));
        status
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn typed_text_is_kept_while_others_write() {
    let script = Script::new();
    let mut terminal = Terminal::new(&mut script.client(&["--nick", "bob"]));
    let mut server = script.welcome("bob");
    terminal.see("* welcome bob");
    terminal.type_keys("hel");
    terminal.see("hel");
    server.write("<alice> hi there\n<alice> /me waves\n");
    terminal.see("<alice> hi there");
    terminal.see("<alice> /me waves\r\n");
    terminal.see("hel");
    terminal.type_keys("lo\r");
    assert_eq!(server.read(), "hello\n");
    server.write("! no-such-nick x\n");
    terminal.see("\x1b[31m! no-such-nick x\x1b[0m");
    terminal.type_keys("\x04");
    assert_eq!(server.read(), "/quit\n");
    server.write("* bye\n");
    terminal.see("* bye");
    drop(server);
    assert_eq!(terminal.end(), Some(0));
}

#[test]
fn nick_is_asked_for_until_it_is_accepted() {
    let script = Script::new();
    let mut terminal = Terminal::new(&mut script.client(&[]));
    terminal.see("your nick: ");
    terminal.type_keys("no good\r");
    terminal.see("a letter, then up to 19");
    terminal.see("your nick: ");
    terminal.type_keys("bob\r");
    let mut server = script.accept();
    assert_eq!(server.read(), "bob\n");
    server.write("! nick-taken bob is here already\n");
    terminal.see("type another nick, or /quit");
    terminal.type_keys("rob\r");
    assert_eq!(server.read(), "rob\n");
    server.write("* welcome rob; 2 here\n");
    terminal.see("* welcome rob");
    drop(server);
    terminal.see("attempt 1 of 8");
    let mut server = script.accept();
    assert_eq!(server.read(), "rob\n", "the nick that was welcomed");
    server.write("* welcome rob; 2 here\n");
    terminal.see("* welcome rob");
    terminal.type_keys("\x03");
    assert_eq!(server.read(), "/quit\n");
    drop(server);
    assert_eq!(terminal.end(), Some(0));
}

#[test]
fn quit_ends_the_client_between_two_attempts_to_reconnect() {
    let script = Script::new();
    let mut terminal = Terminal::new(&mut script.client(&["--nick", "bob"]));
    drop(script.welcome("bob"));
    drop(script);
    terminal.see("connection refused; attempt 2 of 8");
    terminal.type_keys("hello?\r");
    terminal.see("not connected, not sent: hello?");
    terminal.type_keys("/quit\r");
    assert_eq!(terminal.end(), Some(0));
}

/// The editor is reading a line at that time: the terminal must not stay in raw mode.
#[test]
fn terminal_is_restored_after_a_lost_connection() {
    let script = Script::new();
    let mut terminal = Terminal::new(&mut script.client(&["--nick", "bob", "--reconnect", "0"]));
    let server = script.welcome("bob");
    terminal.see("* welcome bob");
    terminal.type_keys("half a li");
    terminal.see("half a li");
    drop(server);
    terminal.see("gave up");
    assert_eq!(terminal.end(), Some(1));
}

#[test]
fn terminal_without_cursor_movement_works_as_a_pipe() {
    let script = Script::new();
    let mut terminal = Terminal::new(script.client(&["--nick", "bob"]).env("TERM", "dumb"));
    let mut server = script.welcome("bob");
    terminal.see("* welcome bob");
    terminal.type_keys("hello\r/quit\r");
    assert_eq!([server.read(), server.read()], ["hello\n", "/quit\n"]);
    drop(server);
    assert_eq!(terminal.end(), Some(0));
}

#[test]
fn history_has_local_times_on_a_terminal_and_the_server_times_in_a_pipe() {
    let script = Script::new();
    let line = "~ 2026-01-31T12:00:00.123Z <alice> hi\n";
    let mut terminal = Terminal::new(script.client(&["--nick", "bob"]).env("TZ", "XYZ-5:30"));
    let mut server = script.welcome("bob");
    server.write(line);
    terminal.see("~ 2026-01-31 17:30:00 <alice> hi");
    terminal.type_keys("/quit\r");
    assert_eq!(server.read(), "/quit\n");
    drop(server);
    assert_eq!(terminal.end(), Some(0));
    // In a pipe a line is as the server sent it.
    let (child, mut stdin) = piped(script.client(&["--nick", "bob"]).env("TZ", "XYZ-5:30"));
    let mut server = script.welcome("bob");
    server.write(line);
    stdin.write_all(b"/quit\n").unwrap();
    assert_eq!(server.read(), "/quit\n");
    drop(server);
    assert!(ended(child).1.ends_with(line));
}

#[test]
fn quit_before_a_nick_is_accepted_ends_the_client() {
    // At the prompt for the nick.
    let script = Script::new();
    let mut terminal = Terminal::new(&mut script.client(&[]));
    terminal.see("your nick: ");
    terminal.type_keys("/quit\r");
    assert_eq!(terminal.end(), Some(0));
    // After a nick that is taken, by a command and by the end of the input.
    for keys in ["/quit\r", "/exit bye\r", "\x04"] {
        let script = Script::new();
        let mut terminal = Terminal::new(&mut script.client(&["--nick", "bob"]));
        let mut server = script.accept();
        assert_eq!(server.read(), "bob\n");
        server.write("! nick-taken bob is here already\n");
        terminal.see("type another nick, or /quit");
        terminal.type_keys(keys);
        assert_eq!(terminal.end(), Some(0), "{keys:?}");
        assert_eq!(server.read(), "", "{keys:?} is not a nick, so it is not sent");
    }
    // In a pipe.
    for input in ["/quit\n", ""] {
        let script = Script::new();
        let (child, mut stdin) = piped(&mut script.client(&[]));
        let mut server = script.accept();
        stdin.write_all(input.as_bytes()).unwrap();
        drop(stdin);
        assert_eq!(ended(child), (Some(0), String::new(), String::new()), "{input:?}");
        assert_eq!(server.read(), "", "{input:?}");
    }
}

#[test]
fn quit_is_sent_once_and_no_prompt_follows_it() {
    let script = Script::new();
    let mut terminal = Terminal::new(&mut script.client(&["--nick", "bob"]));
    let mut server = script.welcome("bob");
    terminal.see("* welcome bob");
    // Before the prompt the kernel, not the editor, prints what is typed.
    terminal.see("you>");
    terminal.type_keys("/quit\r");
    assert_eq!(server.read(), "/quit\n");
    server.write("* bye\n");
    server.reader.get_ref().shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(), "", "/quit is sent once");
    terminal.see("/quit");
    let rest = terminal.see("* bye") + &terminal.see("\n");
    assert!(!rest.contains("you>"), "a prompt after /quit: {rest:?}");
    let shown = Arc::clone(&terminal.shown);
    assert_eq!(terminal.end(), Some(0));
    assert_eq!(*shown.lock().unwrap(), "", "the shell's prompt begins on a clean line");
}

/// The server sends lines all the time.
#[test]
fn quit_ends_the_client_although_the_server_does_not_close() {
    let script = Script::new();
    let (child, mut stdin) = piped(&mut script.client(&["--nick", "bob"]));
    let mut server = script.welcome("bob");
    stdin.write_all(b"/quit\n").unwrap();
    let writer = thread::spawn(move || while server.reader.get_mut().write_all(b"<eve> spam\n").is_ok() {});
    let (code, _, err) = ended(child);
    assert_eq!((code, err.as_str()), (Some(1), "chat: the server did not close the connection after /quit\n"));
    writer.join().unwrap();
}

#[test]
fn signal_restores_the_terminal_and_ends_the_client() {
    for signal in [Signal::SIGTERM, Signal::SIGHUP] {
        for nick in [&["--nick", "bob"][..], &[]] {
            let script = Script::new();
            let terminal = Terminal::new(&mut script.client(nick));
            let _server = script.accept();
            terminal.see(if nick.is_empty() { "your nick: " } else { "you>" });
            kill(Pid::from_raw(terminal.child.id().cast_signed()), signal).unwrap();
            assert_eq!(terminal.end_status().signal(), Some(signal as i32), "{signal} {nick:?}");
        }
    }
}

#[test]
fn own_and_private_lines_are_marked_on_a_terminal_with_color_unless_no_color_is_set() {
    for (no_color, own, private, end) in [("", "\x1b[32m", "\x1b[1;35m", "\x1b[0m"), ("1", "", "", "")] {
        let script = Script::new();
        let mut command = script.client(&["--nick", "bob"]);
        let mut terminal = Terminal::new(command.env("NO_COLOR", no_color));
        let mut server = script.accept();
        server.write("* your nick? (letters, digits, _ and -; at most 20)\n* welcome bob; 2 here\n");
        let mut shown = terminal.see("* welcome bob; 2 here");
        assert!(!shown.contains("your nick"), "the user is asked for the nick again: {shown:?}");
        shown += &terminal.see(&format!("{own}you>{end} "));
        terminal.type_keys("hi\r");
        assert_eq!([server.read(), server.read()], ["bob\n", "hi\n"]);
        server.write("<bob> echo\n-alice- psst\n>al-ice< \x1b[2J- no\n<alice> -x- y\n");
        shown += &terminal.see(&format!("{own}<bob> echo{end}\r\n"));
        shown += &terminal.see(&format!("{private}[private from alice] psst{end}\r\n"));
        shown += &terminal.see(&format!("{private}[private to al-ice] \\x1b[2J- no{end}\r\n"));
        shown += &terminal.see("<alice> -x- y\r\n");
        assert_eq!(has_color(&shown), no_color.is_empty(), "{shown:?}");
        terminal.type_keys("/quit\r");
        assert_eq!(server.read(), "/quit\n");
        drop(server);
        assert_eq!(terminal.end(), Some(0));
    }
}

/// True if an escape sequence in the text ends in `m` (SGR).
fn has_color(text: &str) -> bool {
    let end = |rest: &str| rest.chars().find(|c| c.is_ascii_alphabetic());
    text.split("\x1b[").skip(1).any(|rest| end(rest) == Some('m'))
}

/// `localhost` is 127.0.0.1, ::1 or both, as this machine defines it.
#[test]
fn localhost_connects_to_a_server_of_either_ip_version() {
    for address in ("localhost", 0).to_socket_addrs().unwrap() {
        let script = Script { listener: TcpListener::bind(address).unwrap() };
        let port = script.listener.local_addr().unwrap().port().to_string();
        let (child, stdin) = piped(Command::new(BIN).args(["-i", "localhost", "-p", &port, "--nick", "bob"]));
        let mut server = script.welcome("bob");
        drop(stdin);
        assert_eq!(server.read(), "/quit\n", "{address}");
        drop(server);
        assert_eq!(ended(child).0, Some(0), "{address}");
    }
}
