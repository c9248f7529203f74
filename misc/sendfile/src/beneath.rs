//! Files beneath a folder: openat2(2) resolves the name, and the kernel rejects every step that
//! leaves the folder.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;

/// How often the call is repeated if a rename at the same time has disturbed it (EAGAIN).
const TRIES: usize = 16;

/// A folder whose files may be sent.
#[derive(Debug)]
pub struct Root(OwnedFd);

/// Why a file cannot be sent.
#[derive(Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Not there, not beneath the folder, not a regular file, or not readable. All get the same
    /// answer, so that a client learns nothing about other files of the machine.
    NotFound,
    /// The process or the machine is out of descriptors or memory.
    Busy(Errno),
}

impl Root {
    /// Opens the folder. `Ok(None)`: the kernel has no openat2.
    ///
    /// # Errors
    /// The errors of open(2).
    pub fn open(path: &Path) -> io::Result<Option<Root>> {
        let folder = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = open(path, folder, Mode::empty())?;
        match openat2(
            &root,
            ".",
            OpenHow::new().flags(folder).resolve(ResolveFlag::RESOLVE_BENEATH),
        ) {
            // A seccomp filter that does not know the call returns EPERM.
            Err(Errno::ENOSYS | Errno::EPERM) => Ok(None),
            tried => tried.map(|_| Some(Root(root))).map_err(io::Error::from),
        }
    }

    /// Opens a regular file beneath the folder and returns its size.
    ///
    /// # Errors
    /// The file cannot be sent.
    pub fn file(&self, name: &[u8]) -> Result<(File, u64), OpenError> {
        if name.contains(&0) {
            return Err(OpenError::NotFound); // the C string would end there and name another file
        }
        // Non-blocking, because open of a FIFO for reading waits for a writer.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        // No absolute path, no `..` above the folder, no symbolic links, and no links of /proc.
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let how = OpenHow::new().flags(flags).resolve(resolve);
        let mut opened = Err(Errno::EAGAIN);
        for _ in 0..TRIES {
            opened = openat2(&self.0, name, how);
            if !matches!(opened, Err(Errno::EAGAIN | Errno::EINTR)) {
                break;
            }
        }
        let file = File::from(opened.map_err(|errno| match errno {
            Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN => OpenError::Busy(errno),
            _ => OpenError::NotFound,
        })?);
        // fstat of the open file. The name may belong to another file by now.
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => Ok((file, metadata.len())),
            _ => Err(OpenError::NotFound),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_regular_files_beneath_the_folder_are_opened() {
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
        for bad in [
            "",
            ".",
            "sub",
            "link",
            "../secret",
            "sub/../../secret",
            "ok.txt/",
            "/etc/passwd",
            "ok.txt\0",
        ] {
            assert_eq!(root.file(bad.as_bytes()).unwrap_err(), OpenError::NotFound, "{bad}");
        }
    }
}
