//! The chat log: a file to which lines are appended, and from which the next start reads its history.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use common::report::{Failed, Log as Report};

use crate::cli::Limits;
use crate::history::Said;
use crate::line::SENT_MAX;

/// The size at which a log is renamed to `FILE.1`, and a new one begins.
pub const MAX_SIZE: u64 = 16 * 1024 * 1024;

/// The log file. It is in append mode (open(2), O_APPEND): the kernel appends each write as a whole, also if another process
/// writes to the file. No lock is needed to keep lines apart.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    size: u64,
    max_size: u64,
}

/// For flock(2), if several processes use the file.
impl AsFd for Log {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Log {
    /// The log that the options ask for, and its last lines. Reports that the server writes a log, and where.
    pub(crate) fn of(limits: &Limits, report: &Report) -> Result<Option<(Log, Vec<Said>)>, Failed> {
        let Some(path) = limits.log_file() else { return Ok(None) };
        let opened = Log::open(path, limits.history).with_context(|| format!("chat log: open {}", path.display()))?;
        report.repeated("INFO", &format!("chat log: all lines are appended to {}", path.display()));
        Ok(Some(opened))
    }

    /// Opens or creates the log, repairs its end, and reads the last `remember` lines.
    ///
    /// # Errors
    /// The errors of open(2), read(2) and ftruncate(2). A link, or anything else than a regular file, is refused.
    pub fn open(path: &Path, remember: usize) -> io::Result<(Log, Vec<Said>)> {
        let file = open(path)?;
        let mut log = Log { size: file.metadata()?.len(), file, path: path.to_owned(), max_size: MAX_SIZE };
        log.cut_partial_line()?;
        let mut said = log.tail(&log.file, remember)?;
        // After a rotation the rest of the lines is in the old file.
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
    /// The errors of write(2), for example a full disk. The line is lost, and the room continues.
    pub fn append(&mut self, record: &[u8]) -> io::Result<()> {
        let written = self.file.write(record)?;
        self.size += written as u64;
        if written < record.len() {
            // Otherwise the next line would be appended to the partial one.
            self.cut_partial_line()?;
            return Err(ErrorKind::StorageFull.into());
        }
        match self.size >= self.max_size {
            true => self.rotate(),
            false => Ok(()),
        }
    }

    fn old(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".1");
        name.into()
    }

    fn rotate(&mut self) -> io::Result<()> {
        // If another server shares the file and has renamed it already, only the new file is opened.
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

    /// Cuts off a last line without its LF, which a crash or a full disk has left.
    fn cut_partial_line(&mut self) -> io::Result<()> {
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

    /// The last lines of a file, the oldest first. It reads from the end, so the time does not depend on the file's size.
    fn tail(&self, mut file: &File, lines: usize) -> io::Result<Vec<Said>> {
        let size = file.metadata()?.len();
        let most = (lines as u64).saturating_mul(SENT_MAX as u64).min(size);
        let mut span = (lines as u64 * 128).clamp(1, 1 << 20).min(most);
        loop {
            file.seek(SeekFrom::Start(size - span))?;
            let mut bytes = Vec::new();
            file.take(span).read_to_end(&mut bytes)?;
            // The first line is partial, unless the file begins there.
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

/// Only the server's user may read the log. O_NOFOLLOW: a link could lead to any file of that user.
fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file")),
    }
}

#[cfg(test)]
#[path = "tests/log.rs"]
mod tests;
