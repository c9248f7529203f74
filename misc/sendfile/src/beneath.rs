//! Files beneath a folder, whatever the name says: openat2(2) walks the path, and the kernel refuses each step out.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// So often a walk is tried again that a rename elsewhere has disturbed (openat2(2), EAGAIN).
const TRIES: usize = 16;

/// A folder whose files may be had.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// Why there is no file.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused {
    /// It is not there, not beneath the folder, not a regular file, or not readable: one answer for all, which tells a
    /// stranger nothing about what else is on the machine.
    NotFound,
    /// The process or the machine is out of something.
    Busy(Errno),
}

impl Root {
    /// Opens the folder. `Ok(None)` where the kernel has no openat2.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open(path: &Path) -> io::Result<Option<Root>> {
        let folder = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(path, folder, Mode::empty())?;
        match openat2(&root, ".", OpenHow::new().flags(folder).resolve(ResolveFlag::RESOLVE_BENEATH)) {
            // A filter that does not know the call says EPERM.
            Err(Errno::ENOSYS | Errno::EPERM) => Ok(None),
            tried => tried.map(|_| Some(Root(root))).map_err(io::Error::from),
        }
    }

    /// A regular file beneath the folder, and its size.
    ///
    /// # Errors
    /// Why not.
    pub fn file(&self, name: &[u8]) -> Result<(File, u64), Refused> {
        if name.contains(&0) {
            return Err(Refused::NotFound); // or the C string would end there, and be another name
        }
        // Non-blocking: to open a FIFO for reading would wait for a writer.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        // Beneath: no absolute path, and no `..` above the folder. No symbolic links at all, so none that leads out,
        // and none of /proc, which lead anywhere.
        let resolve =
            ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags).resolve(resolve);
        let walk = || openat2(&self.0, name, how);
        let disturbed = |walked: &Result<_, Errno>| matches!(walked, Err(Errno::EAGAIN | Errno::EINTR));
        let walked = (0..TRIES).map(|_| walk()).find(|walked| !disturbed(walked)).unwrap_or(Err(Errno::EAGAIN));
        let file = File::from(walked.map_err(|errno| match errno {
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN => Refused::Busy(errno),
            _ => Refused::NotFound,
        })?);
        // Of the open file, not of the name, which may be another file's by now.
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => Ok((file, metadata.len())),
            _ => Err(Refused::NotFound),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_beneath_and_regular() {
        let folder = tempfile::tempdir().unwrap();
        let root_path = folder.path().join("root");
        fs::create_dir_all(root_path.join("sub")).unwrap();
        fs::write(folder.path().join("secret"), "x").unwrap();
        fs::write(root_path.join("ok.txt"), "hello").unwrap();
        std::os::unix::fs::symlink("ok.txt", root_path.join("link")).unwrap();
        let root = Root::open(&root_path).unwrap().unwrap();
        for good in ["ok.txt", "./ok.txt", "sub/../ok.txt", "sub/./..//ok.txt"] {
            assert_eq!(root.file(good.as_bytes()).unwrap().1, 5, "{good}");
        }
        for bad in ["", ".", "sub", "link", "../secret", "sub/../../secret", "ok.txt/", "/etc/passwd", "ok.txt\0"] {
            assert_eq!(root.file(bad.as_bytes()).unwrap_err(), Refused::NotFound, "{bad}");
        }
    }
}
