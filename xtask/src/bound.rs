//! Processes that must not outlive this one.

use std::io;
use std::os::unix::process::{CommandExt, parent_id};
use std::process::{self, Command};

/// The started process gets SIGTERM when this one dies, even of a signal that lets no destructor run.
pub fn bound(command: &mut Command) -> &mut Command {
    let parent = process::id();
    let bind = move || {
        // SAFETY: PR_SET_PDEATHSIG reads a number and no memory.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } == -1 {
            return Err(io::Error::last_os_error());
        }
        // A parent that died before the prctl sends no signal any more.
        match parent_id() == parent {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    };
    // SAFETY: between fork and exec there are two system calls, and nothing is allocated or locked.
    unsafe { command.pre_exec(bind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn it_dies_with_its_parent() {
        // The signal is bound to the thread that started the process: here one that ends at once.
        let start = || bound(Command::new("sleep").arg("60").stdin(Stdio::null())).spawn().unwrap();
        let mut child = std::thread::spawn(start).join().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGTERM));
    }
}
