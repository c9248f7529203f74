//! Kernel truth (e): what sendfile, splice and MSG_ZEROCOPY share with the network, and how many
//! system calls they save.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)] // test code
#![allow(clippy::indexing_slicing)]

use std::process::{Command, Stdio};

const OVERWRITE: &str = env!("CARGO_BIN_EXE_sendfile");
const COST: &str = env!("CARGO_BIN_EXE_sendfile-cost");
const SHORT_COUNT: &str = env!("CARGO_BIN_EXE_short-count");
const ZEROCOPY: &str = env!("CARGO_BIN_EXE_zerocopy");

/// What the program prints.
fn run(bin: &str, args: &[&str]) -> String {
    let output = Command::new(bin).args(args).stdin(Stdio::null()).output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    eprintln!("{stdout}");
    stdout
}

/// The words of the line that begins with `start`.
fn line(printed: &str, start: &str) -> Vec<String> {
    let line = printed.lines().find(|line| line.starts_with(start));
    let line = line.unwrap_or_else(|| panic!("no line '{start}': {printed}"));
    line.split_whitespace().map(str::to_owned).collect()
}

/// How many of 65536 bytes are old ones, and how many are new ones, written after the call had
/// returned.
fn overwritten(way: &str) -> (u64, u64) {
    let words = line(&run(OVERWRITE, &[]), way);
    let before = |letter: &str| {
        words[words.iter().position(|word| word == letter).unwrap() - 1].parse().unwrap()
    };
    (before("A"), before("B"))
}

#[test]
fn truth_e_sendfile_sends_what_is_written_to_the_file_later() {
    assert_eq!(overwritten("sendfile"), (0, 65536));
}

#[test]
fn truth_e_splice_sends_what_is_written_to_the_file_later() {
    assert_eq!(overwritten("splice"), (0, 65536));
}

#[test]
fn truth_e_read_and_write_send_a_copy() {
    assert_eq!(overwritten("read-write"), (65536, 0));
}

#[test]
fn truth_e_a_file_replaced_by_rename_is_sent_unchanged() {
    let printed = run(OVERWRITE, &[]);
    let last = printed.lines().last().unwrap();
    assert!(last.contains("rename") && last.contains("65536 A") && last.contains(" 0 B"), "{last}");
}

#[test]
fn truth_e_sendfile_stops_at_the_end_of_the_file_and_then_returns_0() {
    let printed = run(SHORT_COUNT, &[]);
    let lines = printed.lines().filter(|line| line.starts_with("a file of 65536"));
    let sent: Vec<&str> = lines.map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert_eq!(sent, ["65536", "0"]);
}

#[test]
fn truth_e_a_nonblocking_sendfile_is_short() {
    let words = line(&run(SHORT_COUNT, &[]), "a non-blocking socket");
    let sent: u64 = words.last().unwrap().parse().unwrap();
    assert!(0 < sent && sent < 64 << 20, "{sent}");
}

#[test]
fn truth_e_zerocopy_is_completed_on_the_error_queue_and_on_loopback_it_was_a_copy() {
    let printed = run(ZEROCOPY, &[]);
    for line in [
        "poll: PollFlags(POLLERR)",
        "  origin 5 (SO_EE_ORIGIN_ZEROCOPY)",
        "  code 1 (SO_EE_CODE_ZEROCOPY_COPIED)",
        "  sends 0 to 0",
    ] {
        assert!(printed.lines().any(|printed| printed == line), "{line}: {printed}");
    }
}

/// Calls per MiB. The test does not check CPU times: they vary on a shared machine.
fn calls(printed: &str, way: &str) -> f64 {
    line(printed, way)[2].parse().unwrap()
}

#[test]
fn truth_e_sendfile_saves_system_calls_and_splice_does_not() {
    let printed = run(COST, &["--size", "8", "--rounds", "1"]);
    let [read_write, sendfile, splice, zerocopy] =
        ["read-write", "sendfile", "splice", "zerocopy"].map(|way| calls(&printed, way));
    assert!(sendfile * 10.0 < read_write, "{printed}");
    assert!(splice > 0.9 * read_write && zerocopy > 0.9 * read_write, "{printed}");
    let copied = line(&printed, "zerocopy");
    assert_eq!(copied[5], copied[7], "each send was copied: {copied:?}");
}
