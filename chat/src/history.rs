//! What has been said: the log file, and the tail of it that the next start remembers.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::line::SENT_MAX;

/// A log that has grown to this is renamed to `chat_log.txt.1`, and a new one begins.
pub const ROTATE: u64 = 16 * 1024 * 1024;

/// One line that was said to the room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// `2026-01-31T12:00:00.123Z`.
    pub time: String,
    /// One more than that of the line before.
    pub number: u64,
    /// `<alice> text`.
    pub line: String,
}

impl Said {
    /// A line said at `time`.
    pub fn new(time: SystemTime, number: u64, line: String) -> Said {
        Said { time: humantime::format_rfc3339_millis(time).to_string(), number, line }
    }

    /// `TIME SEQ <alice> text` and a LF, as it is in the log.
    pub fn record(&self) -> Vec<u8> {
        format!("{} {} {}\n", self.time, self.number, self.line).into_bytes()
    }

    /// The other way round; `None` for what no server wrote.
    fn parse(record: &str) -> Option<Said> {
        let (time, rest) = record.split_once(' ')?;
        let (number, line) = rest.split_once(' ')?;
        humantime::parse_rfc3339(time).ok()?;
        let said = Said { time: time.to_owned(), number: number.parse().ok()?, line: crate::line::escape(line) };
        line.starts_with('<').then_some(said)
    }
}

/// The log file. One write of one whole line to a file in append mode goes to its end, whatever else is written there
/// (open(2), O_APPEND): the kernel keeps lines apart, not a lock.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    size: u64,
    rotate: u64,
}

/// For flock(2), where more than one process uses the file.
impl AsFd for Log {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Log {
    /// Opens or makes the log, mends its end, and reads the last `remember` lines.
    ///
    /// # Errors
    /// What the kernel says of the file; a link or anything else that is no file is refused.
    pub fn open(path: &Path, remember: usize) -> io::Result<(Log, Vec<Said>)> {
        let file = open(path)?;
        let mut log = Log { size: file.metadata()?.len(), file, path: path.to_owned(), rotate: ROTATE };
        log.mend()?;
        let mut said = log.tail(&log.file, remember)?;
        // A log that was rotated a moment ago does not hold it all.
        if said.len() < remember
            && let Ok(old) = File::open(log.old())
        {
            let mut older = log.tail(&old, remember - said.len())?;
            older.append(&mut said);
            said = older;
        }
        Ok((log, said))
    }

    /// Appends one record, [`Out::bytes`](crate::Out::bytes) of [`To::Log`](crate::To::Log), with one system call.
    ///
    /// # Errors
    /// What the kernel says: a full disk, mostly. The line is lost, the room goes on.
    pub fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let written = self.file.write(record)?;
        self.size += written as u64;
        if written < record.len() {
            // A torn line must not swallow the next one.
            self.mend()?;
            return Err(ErrorKind::StorageFull.into());
        }
        match self.size >= self.rotate {
            true => self.begin_anew(),
            false => Ok(()),
        }
    }

    /// Writes a copy of the log's records to the disk itself.
    ///
    /// # Errors
    /// What fsync(2) says.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn old(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".1");
        name.into()
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        // Another server may share the file and have renamed it already: then only the new one is opened.
        let same = std::fs::metadata(&self.path).is_ok_and(|at_path| {
            self.file.metadata().is_ok_and(|open| (open.dev(), open.ino()) == (at_path.dev(), at_path.ino()))
        });
        if same {
            std::fs::rename(&self.path, self.old())?;
        }
        self.file = open(&self.path)?;
        self.size = self.file.metadata()?.len();
        Ok(())
    }

    /// Cuts off a last line without its LF: a crash or a full disk tore it.
    fn mend(&mut self) -> io::Result<()> {
        let size = self.file.metadata()?.len();
        let mut block = [0; 4096];
        let mut end = size;
        while end > 0 {
            let start = end.saturating_sub(block.len() as u64);
            let part = block.get_mut(..(end - start) as usize).unwrap_or_default();
            self.file.read_exact_at(part, start)?;
            if let Some(last) = part.iter().rposition(|byte| *byte == b'\n') {
                end = start + last as u64 + 1;
                break;
            }
            end = start;
        }
        if end < size {
            self.file.set_len(end)?;
        }
        self.size = end;
        Ok(())
    }

    /// The last lines of a file, the oldest first. Read from its end: a log of months starts as fast as an empty one.
    fn tail(&self, mut file: &File, lines: usize) -> io::Result<Vec<Said>> {
        let size = file.metadata()?.len();
        let most = (lines as u64).saturating_mul(SENT_MAX as u64).min(size);
        let mut span = (lines as u64 * 128).clamp(1, 1 << 20).min(most);
        loop {
            file.seek(SeekFrom::Start(size - span))?;
            let mut bytes = Vec::new();
            file.take(span).read_to_end(&mut bytes)?;
            // The first line is a rest, unless the file begins there.
            let skip = usize::from(span < size);
            let text = String::from_utf8_lossy(&bytes);
            let mut said: Vec<Said> = text.lines().skip(skip).filter_map(Said::parse).collect();
            if said.len() >= lines || span >= most {
                said.drain(..said.len().saturating_sub(lines));
                return Ok(said);
            }
            span = (span * 4).min(most);
        }
    }
}

/// What is said in a room is not for every user of the machine, and a link may lead anywhere.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(ErrorKind::InvalidInput, "it is no file")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

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
        log.rotate = 1000;
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
        one.rotate = 100;
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
}
