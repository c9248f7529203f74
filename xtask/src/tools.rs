//! The programs of Debian that the tests run.

use std::env;
use std::ffi::OsString;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::print::say;

/// Programs and their packages.
const TOOLS: &str = "strace=strace nc=netcat-openbsd ss=iproute2 ip=iproute2 prlimit=util-linux unshare=util-linux \
    setpriv=util-linux ps=procps pgrep=procps";

/// Installs missing packages if this process may do so. Otherwise the error has the command that installs them.
pub fn ensure() -> Result<()> {
    let mut packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    // SAFETY: geteuid has no preconditions.
    let is_root = unsafe { libc::geteuid() } == 0;
    if is_root && is_there("apt-get") {
        say(&format!("apt-get install {}", packages.join(" ")));
        apt_get(&["update"])?;
        apt_get(&[&["install", "-y", "--no-install-recommends"], packages.as_slice()].concat())?;
        packages = missing();
    }
    if !packages.is_empty() {
        let list = packages.join(" ");
        bail!("missing packages: {list}. Install them with: sudo apt-get install {list}");
    }
    Ok(())
}

fn missing() -> Vec<&'static str> {
    missing_without(&|tool| is_there(tool) && (tool != "nc" || is_openbsd_nc()))
}

fn missing_without(is_there: &dyn Fn(&str) -> bool) -> Vec<&'static str> {
    let tools = TOOLS.split(' ').filter_map(|pair| pair.split_once('='));
    let mut packages: Vec<&str> = tools.filter(|(tool, _)| !is_there(tool)).map(|(_, package)| package).collect();
    packages.dedup();
    packages
}

fn is_there(tool: &str) -> bool {
    env::split_paths(&path()).any(|dir| dir.join(tool).is_file())
}

/// PATH and the folders of Debian's system programs, which the PATH of a user may not have.
pub fn path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    env::join_paths(dirs).unwrap_or(path)
}

/// netcat-traditional, the other nc of Debian, has no option -N.
fn is_openbsd_nc() -> bool {
    let help = Command::new("nc").arg("-h").stdin(Stdio::null()).output();
    help.is_ok_and(|help| [help.stdout, help.stderr].concat().windows(7).any(|word| word == b"OpenBSD"))
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command.arg("-qq").args(args).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
    match command.status()?.success() {
        true => Ok(()),
        false => bail!("apt-get {} failed", args.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_package_is_listed_once() {
        assert_eq!(missing_without(&|_| true), Vec::<&str>::new());
        assert_eq!(missing_without(&|tool| !["ss", "ip"].contains(&tool)), ["iproute2"]);
        let all = missing_without(&|_| false);
        let mut once = all.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(all.len(), once.len(), "{all:?}");
    }
}
