//! The subcommands: what is done around runs.

pub mod doctor;

/// Exit status of a command that could not do its work, or found something wrong.
pub const FAILED: u8 = 1;
