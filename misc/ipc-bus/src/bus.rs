//! Seven ways to send messages from many processes to one.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use anyhow::{Context, Result};
use clap::ValueEnum;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mqueue::{MQ_OFlag, MqAttr, MqdT, mq_open, mq_receive, mq_send, mq_unlink};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, recv, send, socket,
    socketpair,
};
use nix::sys::stat::Mode;
use nix::unistd::{pipe2, read, write};
use tempfile::TempDir;

/// The kernel does not have a bus, or does not permit it.
#[derive(Debug, thiserror::Error)]
#[error("{0}: not available: {1}")]
pub struct Unavailable(&'static str, Errno);

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Bus {
    Pipe,
    PipeDirect,
    Seqpacket,
    Dgram,
    DgramNamed,
    Mq,
    Stream,
}

impl Bus {
    pub fn name(self) -> &'static str {
        match self {
            Bus::Pipe => "pipe",
            Bus::PipeDirect => "pipe, O_DIRECT",
            Bus::Seqpacket => "Unix SEQPACKET pair",
            Bus::Dgram => "Unix DGRAM pair",
            Bus::DgramNamed => "Unix DGRAM by name",
            Bus::Mq => "POSIX message queue",
            Bus::Stream => "Unix STREAM pair",
        }
    }

    /// Makes both ends. A name is removed before this function returns: open ends do not need it.
    pub fn open(self) -> Result<(End, End)> {
        let _blocked = BlockedSignals::new()?;
        let names = Names::new()?;
        self.open_at(&names)
    }

    /// Makes both ends and keeps the name.
    pub fn open_at(self, names: &Names) -> Result<(End, End)> {
        let pair = |kind| {
            socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)
                .context("socketpair")
        };
        let (reader, writer) = match self {
            Bus::Pipe => pipe2(OFlag::O_CLOEXEC).context("pipe2")?,
            // Packet mode: each write is a packet, each read returns one.
            Bus::PipeDirect => match pipe2(OFlag::O_CLOEXEC | OFlag::O_DIRECT) {
                Err(e @ Errno::EINVAL) => return Err(Unavailable(self.name(), e).into()),
                ends => ends.context("pipe2")?,
            },
            Bus::Seqpacket => pair(SockType::SeqPacket)?,
            Bus::Dgram => pair(SockType::Datagram)?,
            Bus::Stream => pair(SockType::Stream)?,
            Bus::DgramNamed => names.socket()?,
            Bus::Mq => names.queue()?,
        };
        Ok((End { bus: self, fd: reader }, End { bus: self, fd: writer }))
    }
}

/// One end. Its methods return what the kernel returns.
pub struct End {
    bus: Bus,
    fd: OwnedFd,
}

impl End {
    pub fn put(&self, message: &[u8]) -> nix::Result<usize> {
        match self.bus {
            Bus::Pipe | Bus::PipeDirect => write(&self.fd, message),
            Bus::Mq => mq_send(&self.mqd(), message, 0).map(|()| message.len()),
            _ => send(self.fd.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL),
        }
    }

    pub fn get(&self, buffer: &mut [u8]) -> nix::Result<usize> {
        match self.bus {
            Bus::Pipe | Bus::PipeDirect => read(&self.fd, buffer),
            Bus::Mq => mq_receive(&self.mqd(), buffer, &mut 0),
            _ => recv(self.fd.as_raw_fd(), buffer, MsgFlags::empty()),
        }
    }

    /// Sets O_NONBLOCK of this end. F_SETFL sets all flags, so the old flags must be passed again:
    /// without O_DIRECT a pipe loses its packet mode.
    pub fn set_nonblocking(&self) -> Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(&self.fd, FcntlArg::F_GETFL).context("F_GETFL")?);
        fcntl(&self.fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).context("F_SETFL")?;
        Ok(())
    }

    /// On Linux a message queue is a descriptor. Dropping an MqdT does not close it.
    fn mqd(&self) -> MqdT {
        // SAFETY: the descriptor is open, and `fd` remains its owner.
        unsafe { MqdT::from_raw_fd(self.fd.as_raw_fd()) }
    }
}

impl AsFd for End {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A private directory and the name of a queue. Dropping them removes both, so block the signals
/// that end the process.
pub struct Names {
    dir: TempDir,
    queue: String,
}

static QUEUES: AtomicU32 = AtomicU32::new(0);

impl Names {
    pub fn new() -> Result<Names> {
        let dir =
            tempfile::Builder::new().prefix("ipc-bus-").tempdir().context("temporary directory")?;
        let queue = format!("/ipc-bus-{}-{}", std::process::id(), QUEUES.fetch_add(1, Relaxed));
        Ok(Names { dir, queue })
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn socket(&self) -> Result<(OwnedFd, OwnedFd)> {
        let reader = unix_dgram()?;
        bind(reader.as_raw_fd(), &UnixAddr::new(&self.path())?).context("bind")?;
        Ok((reader, self.connected()?))
    }

    pub fn connected(&self) -> Result<OwnedFd> {
        let writer = unix_dgram()?;
        connect(writer.as_raw_fd(), &UnixAddr::new(&self.path())?).context("connect")?;
        Ok(writer)
    }

    fn queue(&self) -> Result<(OwnedFd, OwnedFd)> {
        let reader = self.queue_end(MQ_OFlag::O_CREAT | MQ_OFlag::O_EXCL | MQ_OFlag::O_RDONLY)?;
        Ok((reader, self.queue_end(MQ_OFlag::O_WRONLY)?))
    }

    /// Opens the existing queue for reading.
    pub fn open_queue(&self) -> Result<End> {
        Ok(End { bus: Bus::Mq, fd: self.queue_end(MQ_OFlag::O_RDONLY)? })
    }

    fn queue_end(&self, flags: MQ_OFlag) -> Result<OwnedFd> {
        let setting = |file: &str, default| {
            let path = Path::new("/proc/sys/fs/mqueue").join(file);
            fs::read_to_string(path).unwrap_or_default().trim().parse().unwrap_or(default)
        };
        let (messages, size) = (setting("msg_default", 10), setting("msgsize_default", 8192));
        let attr = MqAttr::new(0, messages, size, 0);
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        match mq_open(self.queue.as_str(), flags | MQ_OFlag::O_CLOEXEC, mode, Some(&attr)) {
            // SAFETY: the kernel has just made this descriptor for us.
            Ok(mqd) => Ok(unsafe { OwnedFd::from_raw_fd(mqd.into_raw_fd()) }),
            // Not in this kernel, not permitted, or RLIMIT_MSGQUEUE is too small.
            Err(e @ (Errno::ENOSYS | Errno::EPERM | Errno::EACCES | Errno::EMFILE)) => {
                Err(Unavailable(Bus::Mq.name(), e).into())
            }
            Err(e) => Err(e).context("mq_open"),
        }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        // TempDir removes the directory. The error of a queue that does not exist is ignored.
        let _ = mq_unlink(self.queue.as_str());
    }
}

fn unix_dgram() -> Result<OwnedFd> {
    socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None).context("socket")
}

/// While this value exists, the signals that end the process are blocked. Names of sockets and
/// queues exist only during this time.
pub struct BlockedSignals(SigSet);

impl BlockedSignals {
    /// Blocks SIGINT, SIGTERM, SIGHUP and SIGQUIT, and remembers the old mask.
    pub fn new() -> Result<BlockedSignals> {
        let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT];
        let before = SigSet::from_iter(signals).thread_swap_mask(SigmaskHow::SIG_BLOCK);
        Ok(BlockedSignals(before.context("sigprocmask")?))
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        let _ = self.0.thread_set_mask();
    }
}
