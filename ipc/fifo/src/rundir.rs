//! The server's private directory: who owns it, the names in it, and how a FIFO in it is opened.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag, open};
use nix::sys::signal::kill;
use nix::sys::stat::Mode;
use nix::unistd::{Pid, mkfifo};

use crate::record::{Nonce, hex};

/// A client holds the lock for a moment while it looks for a server, so the server tries again.
const LOCK_TRIES: u32 = 10;
const LOCK_INTERVAL: Duration = Duration::from_millis(10);
/// A reply FIFO of a dead client is removed when it is older than this.
const STALE: Duration = Duration::from_secs(10);
/// The directory is searched for stale reply FIFOs at most once in this interval.
const SCAN_INTERVAL: Duration = Duration::from_secs(1);

/// The user this process acts for.
#[must_use]
pub fn my_uid() -> u32 {
    // SAFETY: geteuid takes no argument and cannot fail.
    unsafe { libc::geteuid() }
}

/// `$XDG_RUNTIME_DIR/fifo-demo`, or a directory in /tmp with the user's number in its name.
#[must_use]
pub fn default_dir() -> PathBuf {
    // The XDG specification: a program ignores a path that is empty or relative.
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
        Some(dir) => Path::new(&dir).join("fifo-demo"),
        None => std::env::temp_dir().join(format!("fifo-demo-{}", my_uid())),
    }
}

/// The name of a client's reply FIFO. It consists of numbers, so a client cannot choose a path.
#[must_use]
pub fn reply_path(dir: &Path, pid: i32, nonce: &Nonce) -> PathBuf {
    dir.join(format!("reply.{pid}.{}", hex(nonce)))
}

/// Makes a FIFO that only its owner can open.
///
/// # Errors
/// The errors of mkfifo(3); EEXIST if the name is in use.
pub fn make_fifo(path: &Path) -> Result<()> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)
        .with_context(|| format!("mkfifo {}", path.display()))
}

/// Opens a FIFO without waiting for the other end (O_NONBLOCK) and without following a symbolic
/// link (O_NOFOLLOW). `access` is O_RDONLY, O_WRONLY or O_RDWR.
///
/// # Errors
/// ENXIO for O_WRONLY if no process has the FIFO open for reading. `InvalidInput` if the file is
/// not a FIFO, belongs to another user, or is open to other users.
pub fn open_fifo(path: &Path, access: OFlag) -> io::Result<File> {
    let flags = access | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = File::from(open(path, flags, Mode::empty())?);
    // Checked after open: the file cannot be replaced by another one any more.
    let meta = file.metadata()?;
    let is_private =
        meta.file_type().is_fifo() && meta.uid() == my_uid() && meta.mode() & 0o077 == 0;
    match is_private {
        true => Ok(file),
        false => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a private FIFO of ours")),
    }
}

/// The directory while the server owns it. Drop removes every name that the server made.
#[derive(Debug)]
pub struct RunDir {
    /// The path.
    pub dir: PathBuf,
    lock: Flock<File>,
    scanned: Instant,
}

impl RunDir {
    /// Creates the directory, or takes it over from a server that has died: the kernel has released
    /// its lock, and the new owner removes its FIFOs. Then it makes the request FIFO.
    ///
    /// # Errors
    /// Another server owns the directory, or the directory is not private.
    pub fn claim(dir: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("mkdir {}", dir.display()))?;
        let meta = fs::symlink_metadata(dir).with_context(|| format!("stat {}", dir.display()))?;
        let is_private = meta.is_dir() && meta.uid() == my_uid() && meta.mode() & 0o077 == 0;
        ensure!(is_private, "{}: not a directory of mode 0700 that is ours", dir.display());
        let path = dir.join("lock");
        let mut how = OpenOptions::new();
        how.create(true).truncate(false).read(true).write(true).mode(0o600);
        let file = how
            .custom_flags(libc::O_NOFOLLOW)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        let lock = lock(file).map_err(|errno| match errno {
            Errno::EWOULDBLOCK => anyhow!("{}: another server is running here", dir.display()),
            other => anyhow!("flock {}: {other}", path.display()),
        })?;
        let run = Self { dir: dir.to_owned(), lock, scanned: Instant::now() };
        // Another server that was ending may have removed the name between our open and our lock.
        ensure!(run.owns_names(), "{}: another server is ending here; try again", dir.display());
        run.remove_names();
        let pid = std::process::id().to_string();
        fs::write(&path, pid).with_context(|| format!("write {}", path.display()))?;
        make_fifo(&run.dir.join("req"))?;
        Ok(run)
    }

    /// Prints the ready line, when everything that can fail at the start has succeeded.
    pub fn report_ready(&self, tcp: Option<SocketAddr>) {
        let (dir, pid) = (self.dir.display(), std::process::id());
        let tcp = tcp.map(|addr| format!(", and on {addr}")).unwrap_or_default();
        let _ = writeln!(io::stdout(), "serving in {dir} as pid {pid}{tcp}");
    }

    /// Removes the reply FIFOs of clients that were killed. A client that ends by itself removes
    /// its own. The age is checked too, because the pid of a client in another pid namespace is not
    /// known here: such a client has had its answer long before its FIFO is stale.
    pub fn remove_stale(&mut self) {
        if self.scanned.elapsed() < SCAN_INTERVAL {
            return;
        }
        self.scanned = Instant::now();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let rest = name.strip_prefix("reply.");
            let pid = rest.and_then(|rest| rest.split('.').next()?.parse().ok());
            let Some(pid) = pid.filter(|pid| *pid > 1) else { continue };
            let is_dead = kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH);
            if is_dead && fs::symlink_metadata(entry.path()).is_ok_and(|meta| is_stale(&meta)) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// True if the name `lock` is the file that this server has locked. If something has removed
    /// the directory, another server may own the path now.
    fn owns_names(&self) -> bool {
        let named = fs::symlink_metadata(self.dir.join("lock"));
        let locked = self.lock.metadata();
        named.is_ok_and(|named| {
            locked.is_ok_and(|locked| (named.dev(), named.ino()) == (locked.dev(), locked.ino()))
        })
    }

    /// Removes the FIFOs and sockets with names that a server uses. It does not remove a regular
    /// file or a link with such a name: no server made it.
    fn remove_names(&self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type();
            let is_made_here = kind.is_ok_and(|kind| kind.is_fifo() || kind.is_socket());
            if is_made_here && (name == "req" || name == "sock" || name.starts_with("reply.")) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn is_stale(meta: &fs::Metadata) -> bool {
    let age = meta.modified().ok().and_then(|modified| modified.elapsed().ok());
    meta.file_type().is_fifo() && age.is_some_and(|age| age > STALE)
}

fn lock(mut file: File) -> Result<Flock<File>, Errno> {
    for _ in 1..LOCK_TRIES {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((again, Errno::EWOULDBLOCK)) => file = again,
            done => return done.map_err(|(_, errno)| errno),
        }
        thread::sleep(LOCK_INTERVAL);
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.owns_names() {
            self.remove_names();
            // The name of the lock is removed while this process still holds the lock.
            let _ = fs::remove_file(self.dir.join("lock"));
            let _ = fs::remove_dir(&self.dir);
        }
    }
}
