//! The private directory the names live in, and who owns it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::record::Nonce;
use crate::sys::my_uid;

/// A client looks for a server by trying the lock, and holds it for an instant: so often it is tried again.
const TRIES: u32 = 10;
const TRY_AGAIN: Duration = Duration::from_millis(10);
/// A reply FIFO so old, of a client that is gone, is of no use to anybody.
const STALE: Duration = Duration::from_secs(10);

/// `$XDG_RUNTIME_DIR/fifo-demo`, or one under /tmp that carries the user's number.
#[must_use]
pub fn default_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) => Path::new(&dir).join("fifo-demo"),
        None => std::env::temp_dir().join(format!("fifo-demo-{}", my_uid())),
    }
}

/// The name of a client's reply FIFO: built from numbers, so that no client can name a path.
#[must_use]
pub fn reply_path(dir: &Path, pid: i32, nonce: &Nonce) -> PathBuf {
    let hex: String = nonce.iter().map(|byte| format!("{byte:02x}")).collect();
    dir.join(format!("reply.{pid}.{hex}"))
}

/// The server's hold on the directory. Dropped, it removes every name it made.
#[derive(Debug)]
pub struct RunDir {
    /// Where it is.
    pub dir: PathBuf,
    _lock: Flock<File>,
}

impl RunDir {
    /// Makes or takes over the directory; the FIFOs of a dead server are removed by the new holder of the lock.
    ///
    /// # Errors
    /// Where another server holds it, or it is not a private directory of ours.
    pub fn claim(dir: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("mkdir {}", dir.display()))?;
        let meta = fs::symlink_metadata(dir).with_context(|| format!("stat {}", dir.display()))?;
        let private = meta.is_dir() && meta.uid() == my_uid() && meta.mode() & 0o077 == 0;
        ensure!(private, "{}: not a directory of mode 0700 that is ours", dir.display());
        let path = dir.join("lock");
        let mut how = OpenOptions::new();
        how.create(true).truncate(false).read(true).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let file = how.open(&path).with_context(|| format!("open {}", path.display()))?;
        let lock = lock(file).map_err(|errno| match errno {
            Errno::EWOULDBLOCK => anyhow!("{}: another server is running here", dir.display()),
            other => anyhow!("flock {}: {other}", path.display()),
        })?;
        // A server that was ending may have removed the name between our open and our lock.
        let named =
            fs::symlink_metadata(&path).is_ok_and(|now| lock.metadata().is_ok_and(|had| had.ino() == now.ino()));
        ensure!(named, "{}: another server is just ending here; try again", dir.display());
        let held = Self { dir: dir.to_owned(), _lock: lock };
        held.sweep();
        let pid = std::process::id().to_string();
        fs::write(&path, pid).with_context(|| format!("write {}", path.display()))?;
        let req = held.dir.join("req");
        mkfifo(&req, Mode::S_IRUSR | Mode::S_IWUSR).with_context(|| format!("mkfifo {}", req.display()))?;
        Ok(held)
    }

    /// Removes the reply FIFOs of clients that were killed. One that lives removes its own; and one in another pid
    /// namespace, whose number means nobody here, has had its answer long before its name is stale.
    pub fn sweep_stale(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let pid = name.strip_prefix("reply.").and_then(|rest| rest.split('.').next()?.parse().ok());
            let Some(pid) = pid.filter(|pid| *pid > 1) else { continue };
            let gone = kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH);
            let stale = |meta: fs::Metadata| {
                meta.file_type().is_fifo() && meta.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE))
            };
            if gone && fs::symlink_metadata(entry.path()).is_ok_and(stale) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes the FIFOs and sockets with names of ours; a plain file or a link put there is not ours to remove.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type();
            let ours = kind.is_ok_and(|kind| kind.is_fifo() || kind.is_socket());
            if ours && (name == "req" || name == "sock" || name.starts_with("reply.")) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn lock(mut file: File) -> Result<Flock<File>, Errno> {
    for _ in 1..TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((again, Errno::EWOULDBLOCK)) => file = again,
            done => return done.map_err(|(_, errno)| errno),
        }
        thread::sleep(TRY_AGAIN);
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)
}

impl Drop for RunDir {
    fn drop(&mut self) {
        self.sweep();
        // The lock's name goes while the lock is still held.
        let _ = fs::remove_file(self.dir.join("lock"));
        let _ = fs::remove_dir(&self.dir);
    }
}
