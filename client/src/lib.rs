//! The load client as a library: say what to do in a [`Plan`], [`run`] it, read the [`Report`].
//!
//! One thread or several, each with an epoll instance, drive every connection. In a closed loop each of `clients` has
//! one request under way and sends the next when the answer is complete; in an open loop requests start when a schedule
//! has them due. A run always ends: whatever the server does, each request ends as done, as a [`Failure`] with a phase,
//! or as censored because the run was over first.
//!
//! | module | reason |
//! |---|---|
//! | [`plan`] | what to do |
//! | [`schedule`], [`random`] | when requests are to start |
//! | `engine`, `ramp` | threads, sockets and epoll |
//! | [`workload`], [`source`] | what is said on a connection, and from which address |
//! | [`misbehave`] | clients that do wrong beside those that are measured |
//! | [`conn`], [`answer`] | one client and one answer, without a socket in them |
//! | [`failure`] | what can go wrong, in which phase, and what to do about it |
//! | [`stats`], [`series`], [`report`] | counts, histograms, slices of time; the result of a run |
//! | `honesty` | how far the result can be trusted |
//! | [`compare`] | gates, and whether a difference is more than chance |
//! | [`text`], [`json`] | the two ways to print a report |
//! | [`limits`], [`machine`] | descriptors, CPU time and memory of this process; the machine it runs on |
#![warn(missing_docs)]

pub mod answer;
pub mod compare;
pub mod conn;
mod engine;
pub mod explain;
pub mod failure;
mod honesty;
pub mod json;
pub mod limits;
pub mod machine;
pub mod misbehave;
pub mod output;
pub mod plan;
mod ramp;
pub mod random;
pub mod report;
pub mod room;
pub mod schedule;
pub mod series;
pub mod source;
pub mod stats;
pub mod text;
pub mod workload;

pub use engine::{Observer, Progress, run};
pub use failure::{CouldNotRun, Failure, Kind, Phase};
pub use misbehave::{Habit, Misbehave};
pub use plan::{Arrivals, Close, EngineKind, Plan, Rate, Think, Until, Verify, Warmup};
pub use report::{Ended, Report};
pub use source::Sources;
pub use workload::{Sizes, Talk};
