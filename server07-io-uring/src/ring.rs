//! The two queues that the program shares with the kernel, and the buffers that the kernel fills.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io::{self, Write};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use common::report::Failed;
use io_uring::types::{BufRingEntry, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, squeue};

/// The length of the submission queue. If it is full, `push` submits it with one more system call.
const ENTRIES: u32 = 1024;
/// A power of 2. A buffer is in use only until the program has handled its completion.
const BUFFERS: u16 = 256;
const BUFFER: usize = 1024;
/// The number of the only group of buffers.
pub const GROUP: u16 = 0;
const PAGE: usize = 4096;
/// The exit status if io_uring cannot be used: EX_UNAVAILABLE of sysexits.h.
pub const UNAVAILABLE: u8 = 69;

/// What the kernel reports about a request.
pub struct Completion {
    pub user_data: u64,
    /// What the system call would have returned, or -errno.
    pub result: i32,
    /// This request will have more completions.
    pub more: bool,
    buffer: Option<u16>,
}

/// A ring with one registered group of buffers.
pub struct Ring {
    uring: IoUring,
    entries: NonNull<BufRingEntry>,
    bytes: NonNull<u8>,
    tail: u16,
}

impl Ring {
    /// Prints one line and returns None if io_uring cannot be used.
    pub fn new() -> Option<Ring> {
        Ring::set_up().inspect_err(|(call, error)| report(call, error)).ok()
    }

    fn set_up() -> Result<Ring, (&'static str, io::Error)> {
        // The kernel completes requests only while this thread waits. Linux before 6.1 does not
        // know this mode and returns EINVAL.
        let deferred = IoUring::builder().setup_single_issuer().setup_defer_taskrun().clone();
        let uring = deferred.build(ENTRIES).or_else(|e| match e.raw_os_error() {
            Some(libc::EINVAL) => IoUring::builder().setup_coop_taskrun().build(ENTRIES),
            _ => Err(e),
        });
        let uring = uring.map_err(|e| ("io_uring_setup", e))?;
        let entries = pages::<BufRingEntry>(usize::from(BUFFERS));
        let bytes = pages::<u8>(usize::from(BUFFERS) * BUFFER);
        let (submitter, address) = (uring.submitter(), entries.as_ptr() as u64);
        // SAFETY: the memory holds BUFFERS entries, is aligned to a page, and is never freed.
        unsafe { submitter.register_buf_ring_with_flags(address, BUFFERS, GROUP, 0) }
            .map_err(|e| ("io_uring_register", e))?;
        let mut ring = Ring { uring, entries, bytes, tail: 0 };
        (0..BUFFERS).for_each(|id| ring.provide(id));
        Ok(ring)
    }

    /// Queues a request. The kernel sees it at the next `submit_and_wait`.
    ///
    /// # Safety
    /// The memory that the request names stays valid and unchanged until its completion.
    pub unsafe fn push(&mut self, request: &squeue::Entry) -> Result<(), Failed> {
        // SAFETY: the caller guarantees it.
        while unsafe { self.uring.submission().push(request) }.is_err() {
            let submitted = self.uring.submit().map(drop).or_else(ignore_transient);
            submitted.map_err(|e| Failed::new(format!("io_uring_enter: {e}")))?;
        }
        Ok(())
    }

    /// Submits the queued requests and sleeps until a request is complete, or until the timeout.
    /// One system call does both.
    pub fn submit_and_wait(&mut self, timeout_ms: Option<u16>) -> io::Result<()> {
        let timeout = timeout_ms.map(|ms| Timespec::from(Duration::from_millis(ms.into())));
        let submitter = self.uring.submitter();
        let entered = match &timeout {
            Some(timeout) => submitter.submit_with_args(1, &SubmitArgs::new().timespec(timeout)),
            None => submitter.submit_and_wait(1),
        };
        entered.map(drop).or_else(ignore_transient)
    }

    /// Moves all completions to `into`, without a system call: the queue is shared memory.
    pub fn completions(&mut self, into: &mut Vec<Completion>) {
        into.extend(self.uring.completion().map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            more: cqueue::more(entry.flags()),
            buffer: cqueue::buffer_select(entry.flags()),
        }));
    }

    /// The bytes that a receive request has received. Valid until `give_back`.
    pub fn received(&self, completion: &Completion) -> &[u8] {
        let Some(id) = completion.buffer else { return &[] };
        let length = usize::try_from(completion.result).unwrap_or(0).min(BUFFER);
        // SAFETY: the kernel does not write to this buffer before `give_back`, which needs &mut.
        unsafe { std::slice::from_raw_parts(self.buffer(id).as_ptr(), length) }
    }

    /// Returns the buffer of a completion, if it has one, to the group.
    pub fn give_back(&mut self, completion: &Completion) {
        completion.buffer.into_iter().for_each(|id| self.provide(id));
    }

    fn buffer(&self, id: u16) -> NonNull<u8> {
        // SAFETY: the kernel returns only ids that it was given, so the result is in the memory.
        unsafe { self.bytes.add(usize::from(id) * BUFFER) }
    }

    fn provide(&mut self, id: u16) {
        let address = self.buffer(id).as_ptr() as u64;
        // SAFETY: the mask keeps the index below BUFFERS.
        let mut entry = unsafe { self.entries.add(usize::from(self.tail & (BUFFERS - 1))) };
        // SAFETY: the kernel does not read the entries behind the tail.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(address);
        entry.set_len(BUFFER as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the argument is the first entry of the buffer ring.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: the memory is aligned and never freed, and the kernel only reads it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Release: the kernel sees the complete entry before it sees the new tail.
        tail.store(self.tail, Ordering::Release);
    }
}

/// Prints why io_uring cannot be used.
fn report(call: &str, error: &io::Error) {
    let reason = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "see sysctl kernel.io_uring_disabled, and seccomp(2)",
        Some(libc::ENOSYS) => "not in this kernel, or hidden by a seccomp filter",
        Some(libc::ENOMEM) => "no memory for the ring; before Linux 5.12 see ulimit -l",
        _ => "this server needs the io_uring of Linux 5.19 or later",
    };
    let _ = writeln!(io::stderr(), "Error: {call}: {error}: {reason}");
}

/// A signal, the timeout or a full completion queue: not an error. Completions may have arrived.
fn ignore_transient(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY) => Ok(()),
        _ => Err(error),
    }
}

/// Memory at a page boundary that is never freed: the kernel may write to it while the ring exists.
fn pages<T>(length: usize) -> NonNull<T> {
    let layout =
        Layout::from_size_align(length * size_of::<T>(), PAGE).unwrap_or(Layout::new::<T>());
    // SAFETY: the size is not 0.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory.cast()).unwrap_or_else(|| handle_alloc_error(layout))
}
