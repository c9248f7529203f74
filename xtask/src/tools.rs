//! The programs of Debian that the tests borrow.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

/// Program, and the package it is in.
const TOOLS: &[(&str, &str)] = &[
    ("strace", "strace"),
    ("nc", "netcat-openbsd"),
    ("ss", "iproute2"),
    ("ip", "iproute2"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("ps", "procps"),
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
    let mut packages: Vec<&str> =
        TOOLS.iter().filter(|(tool, _)| !is_there(tool)).map(|(_, package)| *package).collect();
    packages.dedup();
    packages
}

fn is_there(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // A user's PATH may leave out where ss and ip live.
    std::env::split_paths(&path)
        .chain([Path::new("/usr/sbin").into(), "/sbin".into()])
        .any(|dir| dir.join(tool).is_file())
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
