//! The two queues shared with the kernel, and the buffers it picks from.

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::io::{self, Write};
use std::process::ExitCode;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use io_uring::types::{BufRingEntry, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, squeue};

/// Requests that one system call hands over. More of them cost a call in between, no more.
const ENTRIES: u32 = 1024;
/// A power of two. Each is used from its completion to the end of the same batch.
const BUFFERS: u16 = 256;
const BUFFER: usize = 1024;
/// The one group of buffers.
pub const GROUP: u16 = 0;
const PAGE: usize = 4096;

/// EX_UNAVAILABLE of sysexits.h.
const UNAVAILABLE: u8 = 69;

/// What the kernel says of a request.
pub struct Completion {
    pub user_data: u64,
    /// What the system call would have returned, or minus the errno.
    pub result: i32,
    /// More completions of this request will come.
    pub more: bool,
    buffer: Option<u16>,
}

/// A ring, and a group of buffers registered with it.
pub struct Ring {
    uring: IoUring,
    entries: NonNull<BufRingEntry>,
    bytes: NonNull<u8>,
    tail: u16,
}

impl Ring {
    /// Makes the ring for one thread, whose completions are worked on while it waits for them and at no other time;
    /// before Linux 6.1 the kernel does not know that mode and says EINVAL.
    ///
    /// # Errors
    /// The call that failed, and why.
    pub fn new() -> Result<Ring, (&'static str, io::Error)> {
        let quiet = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(ENTRIES);
        let uring = match quiet {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => IoUring::builder().setup_coop_taskrun().build(ENTRIES),
            made => made,
        };
        let uring = uring.map_err(|e| ("io_uring_setup", e))?;
        let entries = forever::<BufRingEntry>(usize::from(BUFFERS));
        let bytes = forever::<u8>(usize::from(BUFFERS) * BUFFER);
        // SAFETY: the memory is as long as the entries, aligned to a page, and never freed.
        unsafe { uring.submitter().register_buf_ring_with_flags(entries.as_ptr() as u64, BUFFERS, GROUP, 0) }
            .map_err(|e| ("io_uring_register", e))?;
        let mut ring = Ring { uring, entries, bytes, tail: 0 };
        (0..BUFFERS).for_each(|id| ring.provide(id));
        Ok(ring)
    }

    /// Queues a request; the kernel sees it at the next `submit_and_wait`, or now where the queue is full.
    ///
    /// # Safety
    /// The memory that the request names must stay where it is, untouched, until its completion has come.
    pub unsafe fn push(&mut self, request: &squeue::Entry) -> io::Result<()> {
        // SAFETY: passed on to the caller.
        while unsafe { self.uring.submission().push(request) }.is_err() {
            self.uring.submit().map(drop).or_else(harmless)?;
        }
        Ok(())
    }

    /// Hands over what is queued and sleeps until something is complete, or for so long: one system call for both.
    pub fn submit_and_wait(&mut self, timeout_ms: Option<u16>) -> io::Result<()> {
        let timeout = timeout_ms.map(|ms| Timespec::from(Duration::from_millis(ms.into())));
        let submitter = self.uring.submitter();
        let entered = match &timeout {
            Some(timeout) => submitter.submit_with_args(1, &SubmitArgs::new().timespec(timeout)),
            None => submitter.submit_and_wait(1),
        };
        entered.map(drop).or_else(harmless)
    }

    /// Takes what is complete; no system call.
    pub fn completions(&mut self, into: &mut Vec<Completion>) {
        into.extend(self.uring.completion().map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            more: cqueue::more(entry.flags()),
            buffer: cqueue::buffer_select(entry.flags()),
        }));
    }

    /// The bytes that came with a completion, until it is given back.
    pub fn received(&self, completion: &Completion) -> &[u8] {
        let Some(id) = completion.buffer else { return &[] };
        let length = usize::try_from(completion.result).unwrap_or(0).min(BUFFER);
        // SAFETY: with the completion the buffer is this program's again, and `give_back` needs the ring for itself.
        unsafe { std::slice::from_raw_parts(self.buffer(id).as_ptr(), length) }
    }

    /// The buffer of a completion, if it has one, is the kernel's again.
    pub fn give_back(&mut self, completion: &Completion) {
        completion.buffer.into_iter().for_each(|id| self.provide(id));
    }

    fn buffer(&self, id: u16) -> NonNull<u8> {
        // SAFETY: the kernel knows no number but those it was given: it is within the memory.
        unsafe { self.bytes.add(usize::from(id) * BUFFER) }
    }

    fn provide(&mut self, id: u16) {
        let address = self.buffer(id).as_ptr() as u64;
        // SAFETY: the number is masked to the length of the ring.
        let mut entry = unsafe { self.entries.add(usize::from(self.tail & (BUFFERS - 1))) };
        // SAFETY: behind the tail the entries are this program's.
        let entry = unsafe { entry.as_mut() };
        entry.set_addr(address);
        entry.set_len(BUFFER as u32);
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the first entry of the ring, as asked for.
        let tail = unsafe { BufRingEntry::tail(self.entries.as_ptr()) };
        // SAFETY: aligned, never freed, and read by the kernel only.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        // Release: the entry is whole before the kernel can see it.
        tail.store(self.tail, Ordering::Release);
    }
}

/// One line for whoever wonders why: io_uring may be switched off, filtered, or too young.
pub fn unavailable(call: &str, error: &io::Error) -> ExitCode {
    let why = match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "switched off by sysctl kernel.io_uring_disabled, or by a seccomp filter",
        Some(libc::ENOSYS) => "not in this kernel, or hidden by a seccomp filter",
        Some(libc::ENOMEM) => "no memory for the ring; before Linux 5.12 it counts as locked memory, see ulimit -l",
        Some(libc::EINVAL) => "this kernel lacks what is used here: Linux 5.19 has it",
        _ => "io_uring cannot be used here",
    };
    let _ = writeln!(io::stderr(), "Error: {call}: {error}: {why}");
    ExitCode::from(UNAVAILABLE)
}

/// Errors that mean no more than *look at the completions first*: a signal, the timeout, a full completion queue.
fn harmless(error: io::Error) -> io::Result<()> {
    match error.raw_os_error() {
        Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY) => Ok(()),
        _ => Err(error),
    }
}

/// Page-aligned memory that is never freed: the kernel may write to it for as long as the ring lives.
fn forever<T>(length: usize) -> NonNull<T> {
    let layout = Layout::array::<T>(length).and_then(|layout| layout.align_to(PAGE)).unwrap_or(Layout::new::<T>());
    // SAFETY: the length is not 0.
    let memory = unsafe { alloc_zeroed(layout) };
    NonNull::new(memory.cast()).unwrap_or_else(|| handle_alloc_error(layout))
}
