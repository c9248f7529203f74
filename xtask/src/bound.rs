//! Child processes that end with this process.

use std::io;
use std::os::unix::process::{CommandExt, parent_id};
use std::process::{self, Command};

/// The kernel sends SIGTERM to the started process when this one ends, also when SIGKILL ends it.
pub fn bound(command: &mut Command) -> &mut Command {
    let parent = process::id();
    let bind = move || {
        // SAFETY: PR_SET_PDEATHSIG takes a number and no pointer.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } == -1 {
            return Err(io::Error::last_os_error());
        }
        // The kernel sends no signal if the parent ended before prctl.
        match parent_id() == parent {
            true => Ok(()),
            false => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        }
    };
    // SAFETY: `bind` makes two system calls between fork and exec. It allocates nothing and locks nothing.
    unsafe { command.pre_exec(bind) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    #[test]
    fn child_ends_with_its_parent() {
        // The kernel sends the signal when the *thread* that started the process ends. This thread ends at once.
        let start = || bound(Command::new("sleep").arg("60").stdin(Stdio::null())).spawn().unwrap();
        let mut child = std::thread::spawn(start).join().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGTERM));
    }
}
