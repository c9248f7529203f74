//! The log: a file without a name. Each process opens it again. Afterwards every line is checked.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The kernel does not have what the program needs.
#[derive(Debug)]
pub struct Unavailable(pub &'static str);

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Unavailable {}

pub struct Log {
    file: File,
    path: PathBuf,
}

/// The state of the lines after a run.
pub struct Count {
    pub complete: u64,
    /// Lost, or mixed with bytes of another writer.
    pub broken: u64,
    /// Bytes.
    pub missing: u64,
}

impl Log {
    /// Makes a file without a name: the kernel removes it when the program ends. /proc/self/fd
    /// opens it again.
    pub fn new(keep: Option<&Path>) -> Result<Log> {
        if let Some(path) = keep {
            // Never overwrites an existing file.
            let file = OpenOptions::new().read(true).write(true).create_new(true).open(path);
            return Ok(Log {
                file: file.with_context(|| path.display().to_string())?,
                path: path.into(),
            });
        }
        let file = tempfile::tempfile().context("temporary file")?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        if !path.exists() {
            return Err(Unavailable("/proc is not mounted: use --keep").into());
        }
        Ok(Log { file, path })
    }

    /// A new open file description: its own offset and its own locks.
    pub fn open(&self) -> io::Result<File> {
        OpenOptions::new().read(true).append(true).open(&self.path)
    }

    /// The same without O_APPEND.
    pub fn open_without_append(&self) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(&self.path)
    }

    /// Truncates the file.
    pub fn empty(&self) -> Result<()> {
        self.file.set_len(0).context("ftruncate")
    }

    /// Counts the lines that are exactly as a writer wrote them.
    pub fn count(&self, writers: u32, lines: u32, size: usize) -> Result<Count> {
        let expected = u64::from(writers) * u64::from(lines);
        let mut seen = vec![false; expected as usize];
        let mut reader = BufReader::new(OpenOptions::new().read(true).open(&self.path)?);
        let mut text = Vec::new();
        while reader.read_until(b'\n', &mut text).context("read")? > 0 {
            if let Some((writer, number)) = numbers(&text)
                && writer < writers
                && number < lines
                && text == line(writer, number, size)
                && let Some(seen) = seen.get_mut((writer * lines + number) as usize)
            {
                *seen = true;
            }
            text.clear();
        }
        let complete = seen.iter().filter(|seen| **seen).count() as u64;
        let length = self.file.metadata().context("fstat")?.len();
        let missing = (expected * size as u64).saturating_sub(length);
        Ok(Count { complete, broken: expected - complete, missing })
    }
}

/// `w3 l17 dddd...` and a newline: the writer, the number of the line, and the letter of the
/// writer.
pub fn line(writer: u32, number: u32, size: usize) -> Vec<u8> {
    let mut text = format!("w{writer} l{number} ").into_bytes();
    let letter = b'a' + (writer % 26) as u8;
    text.resize(size.saturating_sub(1), letter);
    text.push(b'\n');
    text
}

/// The writer and the number of a line.
fn numbers(text: &[u8]) -> Option<(u32, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let mut words = text.split(' ');
    let writer = words.next()?.strip_prefix('w')?.parse().ok()?;
    let number = words.next()?.strip_prefix('l')?.parse().ok()?;
    Some((writer, number))
}
