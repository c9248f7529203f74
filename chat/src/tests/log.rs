use super::*;
use std::fs;
use std::time::{Duration, SystemTime};

fn said(number: u64) -> Said {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_769_860_800_123 + number);
    Said::new(time, number, format!("<alice> line {number}"))
}

fn numbers(said: &[Said]) -> Vec<u64> {
    said.iter().map(|said| said.number).collect()
}

#[test]
fn the_format() {
    let record = String::from_utf8(said(7).record()).unwrap();
    assert_eq!(record, "2026-01-31T12:00:00.130Z 7 <alice> line 7\n");
    assert_eq!(Said::parse(record.trim_end()), Some(said(7)));
    for bad in ["", "x", "x 7 <a> b", "2026-01-31T12:00:00.130Z x <a> b", "2026-01-31T12:00:00.130Z 7 * a joined"] {
        assert_eq!(Said::parse(bad), None, "{bad}");
    }
}

#[test]
fn what_was_appended_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (mut log, none) = Log::open(&path, 10).unwrap();
    assert!(none.is_empty());
    for number in 1..=5000 {
        log.append(&said(number).record()).unwrap();
    }
    for (remember, first) in [(0, 5001), (1, 5000), (10, 4991), (1000, 4001), (9999, 1)] {
        let (_, found) = Log::open(&path, remember).unwrap();
        assert_eq!(numbers(&found), (first..=5000).collect::<Vec<_>>(), "the last {remember}");
    }
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
}

#[test]
fn a_torn_last_line_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let whole = String::from_utf8([said(1).record(), said(2).record()].concat()).unwrap();
    for torn in ["2026-01-31T12:00:00.1", "x", &"y".repeat(10_000)] {
        fs::write(&path, format!("{whole}{torn}")).unwrap();
        let (mut log, found) = Log::open(&path, 10).unwrap();
        assert_eq!(numbers(&found), [1, 2]);
        log.append(&said(3).record()).unwrap();
        assert_eq!(numbers(&Log::open(&path, 10).unwrap().1), [1, 2, 3]);
    }
    fs::write(&path, "torn").unwrap();
    assert!(Log::open(&path, 10).unwrap().1.is_empty());
    assert_eq!(fs::read(&path).unwrap(), b"");
}

#[test]
fn rubbish_in_the_log_does_not_reach_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    fs::write(&path, b"\xff\xfe\nno record\n2026-01-31T12:00:00.123Z 4 <a> \x1b[2J\n").unwrap();
    let (_, found) = Log::open(&path, 10).unwrap();
    assert_eq!(found.first().unwrap().line, "<a> \\x1b[2J");
}

#[test]
fn a_large_log_is_rotated_and_still_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (mut log, _) = Log::open(&path, 10).unwrap();
    log.max_size = 1000;
    for number in 1..=100 {
        log.append(&said(number).record()).unwrap();
    }
    assert!(fs::metadata(&path).unwrap().len() < 1000);
    assert!(fs::metadata(dir.path().join("log.1")).unwrap().len() < 1100);
    assert_eq!(numbers(&Log::open(&path, 10).unwrap().1), (91..=100).collect::<Vec<_>>());
}

#[test]
fn two_writers_and_a_rotation_between() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let (mut one, mut other) = (Log::open(&path, 0).unwrap().0, Log::open(&path, 0).unwrap().0);
    one.max_size = 100;
    other.append(&said(1).record()).unwrap();
    one.append(&said(2).record()).unwrap();
    one.append(&said(3).record()).unwrap();
    one.append(&said(4).record()).unwrap();
    assert!(dir.path().join("log.1").exists());
    assert_eq!(numbers(&Log::open(&path, 9).unwrap().1), [1, 2, 3, 4]);
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path().join("elsewhere"), &link).unwrap();
    assert!(Log::open(&link, 1).is_err());
    assert!(Log::open(dir.path(), 1).is_err());
    assert!(Log::open(Path::new("/dev/null"), 1).is_err());
    assert!(Log::open(&dir.path().join("no/such/folder"), 1).is_err());
}
