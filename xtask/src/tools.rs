//! The programs of Debian that the tests borrow.

use std::env;
use std::ffi::OsString;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// Program, and the package it is in.
const TOOLS: &[(&str, &str)] = &[
    ("strace", "strace"),
    ("nc", "netcat-openbsd"),
    ("ss", "iproute2"),
    ("ip", "iproute2"),
    ("prlimit", "util-linux"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("ps", "procps"),
    ("pgrep", "procps"),
];

/// Installs what is missing where this is permitted, and otherwise says what to type.
///
/// # Errors
/// Where something is still missing.
pub fn ensure() -> Result<()> {
    let mut packages = missing();
    if packages.is_empty() {
        return Ok(());
    }
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    if root && is_there("apt-get") {
        apt_get(&["update"])?;
        apt_get(&[&["install", "-y", "--no-install-recommends"], packages.as_slice()].concat())?;
        packages = missing();
    }
    if !packages.is_empty() {
        let list = packages.join(" ");
        bail!("these packages are missing: {list}; type: sudo apt-get install {list}");
    }
    Ok(())
}

fn missing() -> Vec<&'static str> {
    missing_of(TOOLS, &|tool| is_there(tool) && (tool != "nc" || is_openbsd_nc()))
}

fn missing_of<'a>(tools: &[(&str, &'a str)], is_there: &dyn Fn(&str) -> bool) -> Vec<&'a str> {
    let mut packages: Vec<&str> =
        tools.iter().filter(|(tool, _)| !is_there(tool)).map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

fn is_there(tool: &str) -> bool {
    env::split_paths(&path()).any(|dir| dir.join(tool).is_file())
}

/// PATH, and where Debian keeps some of these programs, which a user's PATH may leave out.
pub fn path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    env::join_paths(dirs).unwrap_or(path)
}

/// The other nc of Debian, netcat-traditional, has no -N.
fn is_openbsd_nc() -> bool {
    let help = Command::new("nc").arg("-h").stdin(Stdio::null()).output();
    help.is_ok_and(|help| [help.stdout, help.stderr].concat().windows(7).any(|word| word == b"OpenBSD"))
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["-qq"])
        .args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    match command.status()?.success() {
        true => Ok(()),
        false => bail!("apt-get {} failed", args.join(" ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_package_is_named_once() {
        assert_eq!(missing_of(TOOLS, &|_| true), Vec::<&str>::new());
        assert_eq!(missing_of(TOOLS, &|tool| !["ss", "ip"].contains(&tool)), ["iproute2"]);
        let all = missing_of(TOOLS, &|_| false);
        let mut once = all.clone();
        once.sort_unstable();
        once.dedup();
        assert_eq!(all.len(), once.len(), "{all:?}");
    }
}
