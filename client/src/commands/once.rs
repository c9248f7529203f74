//! One run with what belongs to it: its server and its gates.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use client::compare::{Breach, Gate};
use client::{Observer, Plan, Report};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag;

use super::{BREACHED, INCONCLUSIVE};
use crate::watch::{Server, Watch};

/// The options.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Around {
    #[command(flatten)]
    pub server: Watched,
    /// What the run has to keep, such as p99<10ms, errors<0.1%, rate>1000; several with commas. Else exit status 3
    #[arg(long, value_name = "EXPR", value_delimiter = ',', help_heading = "Judgement")]
    pub slo: Vec<Gate>,
}

/// The server of a run.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Watched {
    /// Start the server, wait until it listens, end it after the run. The port comes from its first line `listening on
    /// ADDR`, else from -p
    #[arg(long, value_name = "CMD", conflicts_with = "server_pid", help_heading = "Server")]
    pub server_cmd: Option<String>,
    /// Watch this process and all below it: CPU time per request, context switches, memory, processes
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..), help_heading = "Server")]
    pub server_pid: Option<i32>,
}

/// Only Ctrl-C, no progress.
pub struct Quiet(pub Arc<AtomicBool>);

impl Observer for Quiet {
    fn stop(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A flag that Ctrl-C and its like raise.
pub fn interruption() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
        flag::register(signal, Arc::clone(&stop)).context("sigaction")?;
    }
    Ok(stop)
}

impl Watched {
    /// Runs the plan; the server lives as long and is in the report.
    pub fn run(&self, plan: &Plan, observer: &mut dyn Observer, stop: &AtomicBool) -> anyhow::Result<Report> {
        self.run_by(plan, observer, stop, |plan, observer| Ok(client::run(plan, observer)?))
    }

    /// The same, with something else that makes the run.
    pub fn run_by(
        &self,
        plan: &Plan,
        observer: &mut dyn Observer,
        stop: &AtomicBool,
        run: impl FnOnce(&Plan, &mut dyn Observer) -> anyhow::Result<Report>,
    ) -> anyhow::Result<Report> {
        let Some(command) = &self.server_cmd else { return watched(plan, self.server_pid, observer, run) };
        let server = Server::start(command, &plan.host, plan.port, stop)?;
        let plan = Plan { port: server.port, ..plan.clone() };
        let watch = Watch::start(server.pid())?;
        let result = run(&plan, &mut watch.beside(observer));
        let mut report = match result {
            Ok(report) => report,
            Err(error) => {
                // The server's own words tell more than the connection that it did not answer.
                return Err(server.stop().err().unwrap_or(error));
            }
        };
        let watched = watch.finish(&mut report);
        let stopped = server.stop();
        if let Some(used) = &mut report.server {
            watched.correct(used);
        }
        stopped.map(|()| report)
    }
}

fn watched(
    plan: &Plan,
    pid: Option<i32>,
    observer: &mut dyn Observer,
    run: impl FnOnce(&Plan, &mut dyn Observer) -> anyhow::Result<Report>,
) -> anyhow::Result<Report> {
    let watch = pid.map(Watch::start).transpose()?;
    let Some(watch) = watch else { return run(plan, observer) };
    let mut report = run(plan, &mut watch.beside(observer))?;
    watch.finish(&mut report);
    Ok(report)
}

/// Names the gates that are not kept, and says the exit status.
pub fn judge(breaches: Vec<Breach>) -> u8 {
    let mut status = 0;
    for breach in breaches {
        let (text, code) = match breach {
            Breach::Broken(text) => (format!("gate breached: {text}"), BREACHED),
            Breach::Unknown(text) => (format!("gate not known: {text}"), INCONCLUSIVE),
        };
        _ = writeln!(io::stderr(), "client: {text}");
        status = if status == BREACHED { BREACHED } else { code };
    }
    status
}
