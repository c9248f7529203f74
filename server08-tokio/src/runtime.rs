//! The runtime of tokio, or one line if its threads cannot be created.

use std::io::{self, Write};
use std::{panic, process, thread};

use tokio::runtime::{Builder, Runtime};

/// Creates what #[tokio::main] creates too: one thread per core and one epoll instance.
pub fn start() -> io::Result<Runtime> {
    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    // tokio panics if it cannot create a thread. End the process in the hook: the unwinding would
    // wait forever for the threads that exist.
    panic::set_hook(Box::new(|_| {
        let _ =
            writeln!(io::stderr(), "Error: clone: cannot create a thread. See ulimit -u and -v");
        process::exit(1);
    }));
    let runtime = Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    drop(panic::take_hook());
    runtime
}
