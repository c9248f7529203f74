//! A member that has stopped reading, and the policy that the server has declared for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::{FAST, Member, Row, Subject};
use crate::catalogue::SlowReader;
use crate::oracle;
use crate::peer::End;

/// A flood goes on for so many bytes until the policy must have shown itself: the kernel's buffers take a few MiB.
pub const FLOOD: usize = 32 << 20;
/// A batch of lines that fits any outbox used here.
const BATCH: usize = 32;

pub const ROWS: &[Row] = &[("slow_reader", slow_reader), ("slow_reader_without_progress", no_progress)];

/// Lines of 900 bytes in batches, each of them read by `reader` before the next one is sent, until `enough`.
fn speak(speaker: &mut Member, reader: &mut Member, mut enough: impl FnMut() -> bool) -> (usize, Vec<String>) {
    let (mut said, mut others) = (0, Vec::new());
    while said * 900 < FLOOD && !enough() {
        let batch: String = (said..said + BATCH).map(|i| format!("{i:05} {}\n", "x".repeat(893))).collect();
        speaker.send(batch);
        for i in said..said + BATCH {
            let wanted = format!("<speaker> {i:05} ");
            others.extend(reader.until("a line of the flood", |line| line.starts_with(&wanted)).0);
        }
        said += BATCH;
        if others.iter().any(|line| line.contains("left (")) {
            break;
        }
    }
    (said, others)
}

/// A member that has stopped reading, and what the declared policy makes of it.
fn slow_reader(subject: &Subject) {
    let args = [&FAST[..], &["--outbox", "65536"]].concat();
    subject.abused(&args, |room| {
        let mut slow = Member::connect_small_window(room.server.addr);
        slow.say("slow");
        assert!(slow.line().starts_with("* welcome"));
        let [mut speaker, mut reader] = room.gather(["speaker", "reader"]);
        let before = oracle::memory(&room.server);
        match subject.slow_reader() {
            SlowReader::Kick => kicked(&mut slow, &mut speaker, &mut reader),
            SlowReader::Drop => dropped(&mut slow, &mut speaker, &mut reader),
            SlowReader::Grow => {
                let (said, others) = speak(&mut speaker, &mut reader, || false);
                assert_eq!(others, [""; 0]);
                for i in 0..said {
                    slow.until("every line", |line| line.starts_with(&format!("<speaker> {i:05} ")));
                }
                return;
            }
            SlowReader::Block => return blocked(&mut slow, &mut speaker, &mut reader),
        }
        let grown = oracle::memory(&room.server).saturating_sub(before);
        assert!(grown < 4 << 20, "{grown} bytes more for a member that does not read");
    });
}

fn kicked(slow: &mut Member, speaker: &mut Member, reader: &mut Member) {
    let (said, others) = speak(speaker, reader, || false);
    assert!(others.len() == 1, "after {said} lines that it did not read: {others:?}");
    assert!(others[0].starts_with("* slow left (slow"), "{others:?}");
    let (lines, end) = slow.rest();
    let mut told = lines.iter().filter(|line| line.starts_with("<speaker> "));
    let gap = told.clone().enumerate().find(|(i, line)| !line.starts_with(&format!("<speaker> {i:05} ")));
    assert_eq!(gap, None, "what it was sent has no holes");
    assert!(told.all(|line| line.len() == "<speaker> ".len() + 899), "a torn line");
    let last = lines.last().map_or("", String::as_str);
    assert!(last.starts_with("! slow-reader"), "it was not told why, but {last:.60?}, {end:?}");
    assert_ne!(end, End::Silence);
}

fn dropped(slow: &mut Member, speaker: &mut Member, reader: &mut Member) {
    let (said, others) = speak(speaker, reader, || false);
    assert_eq!(others, [""; 0], "it stays in the room");
    slow.say("I read again");
    reader.expect("<slow> I read again");
    // What the kernel holds comes first; when that is read, new lines fit again.
    let mut last = None;
    let mut lines = 0;
    let mut take = |line: &str| {
        if let Some(rest) = line.strip_prefix("<speaker> ").filter(|rest| rest.contains(" x")) {
            assert_eq!(rest.len(), 899, "a torn line");
            let number: usize = rest[..5].parse().unwrap();
            assert!(last.is_none_or(|last| last < number), "{number} after {last:?}");
            last = Some(number);
            lines += 1;
        }
    };
    let mut done = false;
    for round in 0..1000 {
        speaker.say(&format!("round {round}"));
        drop(reader.line());
        while !done && (slow.has_more() || round == 999) {
            let line = slow.line();
            take(&line);
            done = line.starts_with("<speaker> round ");
        }
        if done {
            break;
        }
        thread::sleep(Duration::from_millis(2)); // let the window reopen
    }
    assert!(done, "no new line fits");
    assert!(lines < said, "all {said} lines came: nothing was dropped");
}

fn blocked(slow: &mut Member, speaker: &mut Member, reader: &mut Member) {
    let done = AtomicBool::new(false);
    let lines = 8 << 10;
    thread::scope(|scope| {
        let reading = scope.spawn(|| {
            (0..lines).for_each(|i| assert!(reader.line().starts_with(&format!("<speaker> {i:05} "))));
            done.store(true, Ordering::SeqCst);
        });
        let text: String = (0..lines).map(|i| format!("{i:05} {}\n", "x".repeat(893))).collect();
        let sender = speaker.peer.send_in_background(text.into_bytes(), false);
        thread::sleep(Duration::from_millis(1500)); // the measure: nothing moves while one does not read
        assert!(!done.load(Ordering::SeqCst), "nobody waited");
        for i in 0..lines {
            slow.until("every line", |line| line.starts_with(&format!("<speaker> {i:05} ")));
        }
        reading.join().unwrap();
        sender.join().unwrap();
    });
}

/// A queue with room in it that does not move: the write timeout ends it.
fn no_progress(subject: &Subject) {
    if subject.slow_reader() != SlowReader::Kick {
        return;
    }
    let args = [&FAST[..], &["--outbox", "1000000000", "--write-timeout", "700"]].concat();
    // Without the oracle's look at memory: what an allocator got for a long queue it may keep.
    let room = subject.start(&args);
    let mut slow = Member::connect_small_window(room.server.addr);
    slow.say("slow");
    assert!(slow.line().starts_with("* welcome"));
    let [mut speaker, mut reader] = room.gather(["speaker", "reader"]);
    // More than the kernel's buffers take.
    let mut said = 0;
    let (_, others) = speak(&mut speaker, &mut reader, || {
        said += 1;
        said > (12 << 20) / (900 * BATCH)
    });
    if others.is_empty() {
        let (before, _) = reader.until("the leave line", |line| line.starts_with("* slow left (slow"));
        assert_eq!(before, [""; 0]);
    }
    // It is put out of the room; what it then reads, if it does, is its own affair.
    assert_ne!(slow.rest().1, End::Silence);
    drop((slow, speaker, reader));
    room.stop();
}
