//! The chat log, a file: appended to line by line, mended and remembered at the next start.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use common::report::Failed;

use crate::cli::Limits;
use crate::history::Said;
use crate::line::SENT_MAX;

/// A log that has grown to this is renamed to `chat_log.txt.1`, and a new one begins.
pub const ROTATE: u64 = 16 * 1024 * 1024;

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
    /// The log that the options ask for, and what it remembers.
    pub(crate) fn of(limits: &Limits) -> Result<Option<(Log, Vec<Said>)>, Failed> {
        if limits.no_log {
            return Ok(None);
        }
        let path = &limits.log;
        Ok(Some(Log::open(path, limits.history).with_context(|| format!("open {}", path.display()))?))
    }

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

    /// Appends one record ([`Said::record`]) with one system call.
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
#[path = "tests/log.rs"]
mod tests;
