//! The terminal client as its users have it: in a pipe, and on a terminal.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::pty::{Winsize, openpty};
use nix::sys::termios::{LocalFlags, Termios, tcgetattr};
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
fn through_pipes_it_says_all_and_hears_all() {
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
fn the_first_line_is_the_nick() {
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
fn nobody_there() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = Command::new(BIN)
        .args(["-i", "127.0.0.1", "-p", &free.port().to_string(), "--nick", "bob"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    let wanted = format!("chat: nobody listens at {free}; start a server with `cargo run -p v1-threads`\n");
    assert_eq!((output.status.code(), err), (Some(1), wanted));
    for (args, code) in [(&["--nick", "a b"][..], 2), (&["-p", "x"], 2), (&["-i", "no.such.host.invalid"], 1)] {
        let output = Command::new(BIN).args(args).stdin(Stdio::null()).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn it_comes_back_under_its_latest_name() {
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
fn it_gives_up_in_the_end() {
    let script = Script::new();
    let (child, stdin) = piped(&mut script.client(&["--nick", "bob", "--reconnect", "2"]));
    drop(script.welcome("bob"));
    drop(script);
    let (code, _, err) = ended(child);
    drop(stdin);
    assert_eq!(code, Some(1));
    let lines: Vec<&str> = err.lines().collect();
    assert_eq!(lines.len(), 3, "one line for each attempt: {err}");
    assert_eq!(lines[0], "-- connection lost; attempt 1 of 2 in 0.5 s");
    assert!(lines[1].starts_with("-- nobody listens at ") && lines[1].ends_with("; attempt 2 of 2 in 1.0 s"), "{err}");
    assert!(lines[2].ends_with("; gave up after 2 attempts to reconnect"), "{err}");
}

#[test]
fn a_refusal_is_final() {
    for (answer, words) in [
        ("! nick-bad no\n", "the server closed the connection: nick-bad"),
        ("! nick-taken bob is here already\n", "the nick bob is taken"),
        ("* welcome bob; 1 here\n! idle and no line for too long\n", "the server closed the connection: idle"),
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
fn what_cannot_be_said_is_not_sent() {
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
    assert_eq!(err, "-- not sent: 1024 bytes; a line has at most 1023\n-- not sent: it is not UTF-8\n");
}

#[test]
fn a_server_that_is_no_chat() {
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

    /// Waits for text on the screen, and forgets all before its end.
    fn see(&self, text: &str) {
        eventually(&format!("the screen shows {text:?}"), || {
            let mut shown = self.shown.lock().unwrap();
            let end = shown.find(text)? + text.len();
            shown.drain(..end);
            Some(())
        });
    }

    fn end(mut self) -> Option<i32> {
        let status = eventually("the client ends", || self.child.try_wait().unwrap());
        let after = tcgetattr(&self.slave).unwrap();
        assert_eq!(after.local_flags, self.before.local_flags, "the terminal is left as it was");
        assert!(after.local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO));
        status.code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_being_typed_survives_what_others_say() {
    let script = Script::new();
    let mut terminal = Terminal::new(&mut script.client(&["--nick", "bob"]));
    let mut server = script.welcome("bob");
    terminal.see("* welcome bob");
    terminal.type_keys("hel");
    terminal.see("hel");
    server.write("<alice> hi there\n<alice> /me waves\n");
    terminal.see("<alice> hi there");
    terminal.see("<alice> ~ waves ~");
    terminal.see("> hel");
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
fn it_asks_for_a_nick_until_there_is_one() {
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
    terminal.type_keys("\x03");
    assert_eq!(server.read(), "/quit\n");
    drop(server);
    assert_eq!(terminal.end(), Some(0));
}

#[test]
fn it_can_be_left_while_the_server_is_away() {
    let script = Script::new();
    let mut terminal = Terminal::new(&mut script.client(&["--nick", "bob"]));
    drop(script.welcome("bob"));
    drop(script);
    terminal.see("nobody listens");
    terminal.type_keys("hello?\r");
    terminal.see("not connected, not sent: hello?");
    terminal.type_keys("/quit\r");
    assert_eq!(terminal.end(), Some(0));
}

/// Where the server ends the conversation, the editor is in the middle of a line: the terminal must not stay raw.
#[test]
fn the_terminal_is_restored_when_the_server_ends_it() {
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
fn a_simple_terminal_will_do() {
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
fn quit_before_the_nick_leaves_with_status_0() {
    // In a pipe.
    let script = Script::new();
    let (child, mut stdin) = piped(&mut script.client(&[]));
    let mut server = script.accept();
    stdin.write_all(b"/quit\n").unwrap();
    assert_eq!(server.read(), "", "nothing is sent");
    assert_eq!(ended(child), (Some(0), String::new(), String::new()));
    // At the prompt of a terminal.
    let mut terminal = Terminal::new(&mut script.client(&[]));
    terminal.see("your nick: ");
    terminal.type_keys("/quit\r");
    assert_eq!(terminal.end(), Some(0));
    drop(script.accept());
    // After a nick that is taken.
    let mut terminal = Terminal::new(&mut script.client(&["--nick", "bob"]));
    let mut server = script.accept();
    assert_eq!(server.read(), "bob\n");
    server.write("! nick-taken bob is here already\n");
    terminal.see("type another nick, or /quit");
    terminal.type_keys("/quit\r");
    assert_eq!(terminal.end(), Some(0));
}

#[test]
fn own_and_private_lines_are_easy_to_tell_apart() {
    let script = Script::new();
    let mut terminal = Terminal::new(&mut script.client(&["--nick", "bob"]));
    let mut server = script.welcome("bob");
    terminal.see("* welcome bob");
    server.write("-alice- psst\n>alice< yes?\n<alice> - hi -\n<alice> /me waves\n");
    terminal.see("\x1b[1;35m[private from alice] psst\x1b[0m");
    terminal.see("\x1b[1;35m[private to alice] yes?\x1b[0m");
    terminal.see("<alice> - hi -");
    terminal.see("<alice> ~ waves ~");
    terminal.type_keys("/quit\r");
    assert_eq!(server.read(), "/quit\n");
    drop(server);
    assert_eq!(terminal.end(), Some(0));
}

#[test]
fn no_color_is_respected() {
    let script = Script::new();
    let mut terminal = Terminal::new(script.client(&["--nick", "bob"]).env("NO_COLOR", "1"));
    let mut server = script.welcome("bob");
    server.write("! no-such-nick x\n");
    terminal.see("! no-such-nick x");
    let shown = terminal.shown.lock().unwrap().clone();
    assert!(!shown.contains("\x1b[31m") && !shown.contains("\x1b[2m"), "{shown:?}");
    terminal.type_keys("/quit\r");
    assert_eq!(server.read(), "/quit\n");
    drop(server);
    assert_eq!(terminal.end(), Some(0));
}

#[test]
fn history_has_local_times_on_a_terminal() {
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
fn after_quit_the_prompt_is_gone() {
    let script = Script::new();
    let mut terminal = Terminal::new(&mut script.client(&["--nick", "bob"]));
    let mut server = script.welcome("bob");
    terminal.see("* welcome bob");
    terminal.type_keys("/quit\r");
    assert_eq!(server.read(), "/quit\n");
    server.write("* bye\n");
    drop(server);
    terminal.see("* bye");
    let shown = Arc::clone(&terminal.shown);
    assert_eq!(terminal.end(), Some(0));
    eventually("the last line of the screen is cleared", || shown.lock().unwrap().ends_with("\r\x1b[K").then_some(()));
}
