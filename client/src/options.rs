//! The command line.

pub mod parse;
mod workload;

use std::path::PathBuf;
use std::time::Duration;

use clap::ArgAction;
use clap::builder::styling::Styles;
use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, ValueEnum};
use client::output::args::Outputs;
use client::{Arrivals, Close, EngineKind, Plan, Rate, Think, Until, Verify, Warmup};

use workload::{Bytes, WorkArgs, bytes};

use parse::{Cpus, arrivals, cpus, number, port, positive, rate, start_at, think, time, warmup};

/// The options as given.
#[derive(Parser, Debug)]
#[command(name = "client", version, max_term_width = 100, styles = Styles::plain(), about = ABOUT, after_help = AFTER)]
#[command(disable_help_flag = true, disable_version_flag = true)]
#[command(override_usage = USAGE)]
pub struct Cli {
    /// The book's form: the same as -i HOST -p PORT -c CHILDREN -t TRIES -b BYTES
    #[arg(num_args = 5, value_names = ["HOST", "PORT", "CHILDREN", "TRIES", "BYTES"], hide = true)]
    #[arg(conflicts_with_all = ["host", "port", "children", "tries", "bytes", "duration"])]
    book: Option<Vec<String>>,

    /// Host name or address of the server; several with commas between them are connected to in turn
    #[arg(short = 'i', long, default_value = "127.0.0.1", value_delimiter = ',', help_heading = "Where")]
    host: Vec<String>,
    /// Port of the server
    #[arg(short, long, default_value = "2000", value_parser = port, help_heading = "Where")]
    port: u16,

    /// Clients at once: each has one connection and one request under way
    #[arg(short, long, alias = "clients", default_value = "5", value_name = "N", value_parser = positive)]
    #[arg(help_heading = "What to do")]
    children: u32,
    /// Connections each client makes, one after the other (with -k 0: requests on its one connection)
    #[arg(short, long, default_value = "500", value_name = "N", value_parser = positive, help_heading = "What to do")]
    tries: u32,
    /// Bytes to ask for in one request: N, A-B (anything between), exp:N (at random with this mean), or file:F (those
    /// in a file, a number per line, at random)
    #[arg(short, long, default_value = "3000", value_name = "N", value_parser = bytes, help_heading = "What to send")]
    bytes: Bytes,
    #[command(flatten)]
    work: WorkArgs,
    /// Requests on one connection; 0 keeps each connection for the whole run
    #[arg(short = 'k', long, default_value = "1", value_name = "N", value_parser = number)]
    #[arg(help_heading = "What to do")]
    per_connection: u32,
    /// Run for so long instead of -t tries, such as 5s or 100ms
    #[arg(short, long, value_name = "TIME", value_parser = time, conflicts_with = "tries", help_heading = "What to do")]
    duration: Option<Duration>,
    /// Who ends a connection: this client (fin), this client by a reset that leaves no port in TIME_WAIT (rst), or
    /// the server, which is waited for (server)
    #[arg(long, default_value = "fin", value_name = "HOW", help_heading = "What to do")]
    close: CloseBy,
    /// How to check an answer: every byte, only the number of bytes, or not at all [default: pattern; with --request
    /// length]
    #[arg(long, value_name = "HOW", help_heading = "What to do")]
    verify: Option<Check>,
    /// While the clients start, let at most N wait for their first answer, so that they do not overflow the server's
    /// accept queue; after 100 ms the next N start all the same; 0 = all at once
    #[arg(long, default_value = "512", value_name = "N", value_parser = number, help_heading = "What to do")]
    connect_burst: u32,
    /// Call connect() at most N times a second
    #[arg(long, value_name = "N", value_parser = positive, help_heading = "What to do")]
    connect_rate: Option<u32>,
    /// Set TCP_NODELAY on each connection
    #[arg(long, help_heading = "What to do")]
    nodelay: bool,

    /// Open loop: RATE requests per second in all, whatever the server does; A:B goes from A to B in the course of the
    /// run. Each request has its intended start, and what it waits from there on counts
    #[arg(short = 'R', long, value_name = "RATE", value_parser = rate, help_heading = "When")]
    rate: Option<Rate>,
    /// How requests lie in time: uniform, poisson (at random, as strangers come), or burst:N (N at once)
    #[arg(long, default_value = "uniform", value_name = "HOW", value_parser = arrivals, help_heading = "When")]
    #[arg(requires = "rate")]
    arrivals: Arrivals,
    /// With -R: at most N connections at once, where they are not kept; further requests wait, and their waiting
    /// counts [default: -c]
    #[arg(long, value_name = "N", value_parser = positive, requires = "rate", help_heading = "When")]
    max_open: Option<u32>,
    /// Without -R: each client pauses between an answer and its next request: a time, A-B (anything between), or
    /// exp:TIME (at random with this mean)
    #[arg(long, value_name = "TIME", value_parser = think, conflicts_with = "rate", help_heading = "When")]
    think: Option<Think>,
    /// Leave the start out of the latencies: a time, a number of answers, or auto (until the rate keeps its level, at
    /// most a quarter of -d). Failures count all the same [default: auto with -d but
    /// without -R, else 0]
    #[arg(short, long, value_name = "TIME|N", value_parser = warmup, help_heading = "When")]
    warmup: Option<Warmup>,
    /// Start at this time: RFC 3339, such as 2027-03-01T12:00:00Z, or seconds since 1970. So several machines start the
    /// same load together
    #[arg(long, value_name = "TIME", value_parser = start_at, help_heading = "When")]
    start_at: Option<u64>,
    /// Where random numbers start; the same seed gives the same arrivals
    #[arg(long, default_value = "1", value_name = "N", help_heading = "When")]
    seed: u64,

    /// Event-loop threads, which share the clients [default: 1 if the server is on this machine, else one per core]
    #[arg(short = 'T', long, value_name = "N", value_parser = positive, help_heading = "This client")]
    threads: Option<u32>,
    /// CPUs for those threads, such as 1 or 2,4-7
    #[arg(long, value_name = "LIST", value_parser = cpus, help_heading = "This client")]
    pin: Option<Cpus>,
    /// Exit with 4 where the figures prove nothing: less than 99 % of -R was sent, this client was the limit, or the rate
    /// was not steady or is not known to 10 %
    #[arg(long, help_heading = "This client")]
    pub strict: bool,
    /// Record no latencies, only counts: shows what recording costs
    #[arg(long, help_heading = "This client")]
    no_latency: bool,

    /// epoll: one thread, or those of -T, behind an epoll instance each; threads: a thread per connection in blocking
    /// calls, at most 1024; fork: a process per client, as in the book; uring: as epoll, but the calls go through a ring
    /// (io_uring), many by one system call. The measurement is the same
    #[arg(long, default_value = "epoll", value_name = "HOW", help_heading = "Engine")]
    engine: Drive,

    /// Longest time from connect() to established
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = time, help_heading = "Patience")]
    connect_timeout: Duration,
    /// Longest time from the send of a request to the last byte of its answer
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = time, help_heading = "Patience")]
    timeout: Duration,
    /// Longest time from the intended start of a request to the last byte of its answer: later is failed
    #[arg(long, value_name = "TIME", value_parser = time, help_heading = "Patience")]
    deadline: Option<Duration>,

    /// Write the report as JSON to FILE too; - writes it to stdout in place of the text
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
    #[command(flatten)]
    pub output: Outputs,
    /// Time between two lines of progress, and of --series
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = time, help_heading = "Output")]
    pub interval: Duration,
    /// Show the run on the whole terminal: rate, latencies, the last minute, failures; q ends it. With -R keys change the
    /// rate: Up and Down by 10 %, Right and Left by 1 %, PgUp and PgDn by 2
    #[arg(long, conflicts_with_all = ["plain", "quiet"], help_heading = "Output")]
    pub tui: bool,
    /// Print below the report what each number means
    #[arg(long, help_heading = "Output")]
    pub explain: bool,
    /// Progress as plain lines, also on a terminal
    #[arg(long, help_heading = "Output")]
    pub plain: bool,
    /// No progress
    #[arg(short, long, help_heading = "Output")]
    pub quiet: bool,
    /// Print this help
    #[arg(short, long, action = ArgAction::HelpShort, help_heading = "Output")]
    help: Option<bool>,
    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Output")]
    version: Option<bool>,
}

const USAGE: &str = "\
client [OPTIONS]
       client [OPTIONS] HOST PORT CHILDREN TRIES BYTES
       client COMMAND [OPTIONS]";

pub const ABOUT: &str = "\
Loads a server of this workspace: connects, asks for bytes, checks every byte of
the answers, and says where the time went.

The five numbers of the book keep their names: -c clients at once, each making -t
connections one after the other and asking for -b bytes on each. One thread
drives them all, in a closed loop; -R makes it an open one.";

const AFTER: &str = "\
Counts take k (1000) and m (1000000): -b 64k, -t 1m. Times take us, ms, s, m, h.

Examples:
  client                            the book's run: 5 clients x 500 connections x 3000 bytes
  client localhost 2000 5 500 3000  the same
  client -c 100 -k 0 -d 10s         100 kept connections, one request after another, for 10 s
  client -c 10000 -k 0 -d 5s        10000 connections held open at once
  client -c 10 -k 0 -R 1000 -d 10s  1000 requests/s on 10 kept connections, whatever the server does
  client -R 100:5k -d 20s --max-open 500 --arrivals poisson
                                    more and more strangers, each on a connection of its own
  client -c 1 -t 1 -b 1m            one answer of a million bytes
  client -q -j - -d 2s              nothing but JSON
  client -d 10s --tui --html x.html  watch the run, and keep a page with charts of it
  client report a.json b.json --html x.html
                                    a page from saved reports, laid over one another

Exit status:
  0  every answer came and was right
  1  the run could not start, or something failed
  2  the command line is wrong
  3  a gate is breached (--slo)
  4  nothing failed, but the figures prove nothing (--strict), or too little for a gate
  69  --engine uring, and the kernel refuses it
  130  interrupted by Ctrl-C; the report tells what was done";

#[derive(Clone, Copy, Debug, ValueEnum)]
enum CloseBy {
    Fin,
    Rst,
    Server,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Drive {
    /// One thread, or those of -T: non-blocking sockets behind an epoll instance
    Epoll,
    /// A thread for each connection, in blocking calls; at most 1024
    Threads,
    /// A process for each client, in blocking calls; at most 1024; no -R
    Fork,
    /// One thread, or those of -T: all calls through a ring each, many by one system call
    Uring,
}

impl From<Drive> for EngineKind {
    fn from(drive: Drive) -> Self {
        match drive {
            Drive::Epoll => EngineKind::Epoll,
            Drive::Threads => EngineKind::Threads,
            Drive::Fork => EngineKind::Fork,
            Drive::Uring => EngineKind::Uring,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Check {
    Pattern,
    Length,
    None,
}

impl Cli {
    /// Refuses, for a command of many runs, the options of output that only one run has, and those named.
    ///
    /// # Errors
    /// A usage error of one line.
    pub fn refuse(&self, options: &[&str], command: &str) -> Result<(), clap::Error> {
        for (name, given) in [("tui", self.tui), ("explain", self.explain)] {
            if given {
                let text = format!("--{name} does not go with client {command}\n");
                return Err(clap::Error::raw(ErrorKind::ArgumentConflict, text));
            }
        }
        if matches!(self.engine, Drive::Fork) {
            let text = format!("--engine fork does not go with client {command}, which has threads\n");
            return Err(clap::Error::raw(ErrorKind::ArgumentConflict, text));
        }
        self.output.refuse(options, command)?;
        self.output.check(self.json.as_deref())
    }

    /// The plan with another rate or number of clients.
    ///
    /// # Errors
    /// A usage error for what is none.
    pub fn with(&self, name: &str, value: &str) -> Result<Plan, clap::Error> {
        let mut plan = self.plan()?;
        match name {
            "rate" => plan.rate = Some(rate(value).map_err(|why| wrong("--rate", value, &why))?),
            _ => plan.clients = positive(value).map_err(|why| wrong("--children", value, &why))?,
        }
        Ok(plan)
    }

    /// The plan these options make.
    ///
    /// # Errors
    /// A usage error for a positional that is no number.
    pub fn plan(&self) -> Result<Plan, clap::Error> {
        let mut plan = Plan {
            host: self.host.join(","),
            port: self.port,
            clients: self.children,
            until: self.duration.map_or(Until::Tries(self.tries), Until::Elapsed),
            per_connection: self.per_connection,
            connect_timeout: self.connect_timeout,
            timeout: self.timeout,
            close: match self.close {
                CloseBy::Fin => Close::Fin,
                CloseBy::Rst => Close::Rst,
                CloseBy::Server => Close::Server,
            },
            verify: match self.verify.unwrap_or(Check::Pattern) {
                Check::Pattern => Verify::Pattern,
                Check::Length => Verify::Length,
                Check::None => Verify::None,
            },
            connect_burst: self.connect_burst,
            rate: self.rate,
            arrivals: self.arrivals,
            seed: self.seed,
            max_open: self.max_open,
            deadline: self.deadline,
            warmup: self.warmup.unwrap_or(match (self.duration, self.rate) {
                (Some(_), None) => Warmup::Auto,
                _ => Warmup::None,
            }),
            think: self.think,
            connect_rate: self.connect_rate,
            nodelay: self.nodelay,
            start_at_ns: self.start_at,
            threads: self.threads.unwrap_or_default(),
            pin: self.pin.clone().unwrap_or_default().0,
            engine: self.engine.into(),
            latency: !self.no_latency,
            ..Plan::default()
        };
        self.work.apply(&self.bytes, self.verify.is_some(), &mut plan)?;
        if let Some([host, port_text, children, tries, bytes]) = self.book.as_deref() {
            plan.host.clone_from(host);
            plan.port = port(port_text).map_err(|why| wrong("PORT", port_text, &why))?;
            plan.clients = positive(children).map_err(|why| wrong("CHILDREN", children, &why))?;
            plan.until = Until::Tries(positive(tries).map_err(|why| wrong("TRIES", tries, &why))?);
            plan.bytes = positive(bytes).map_err(|why| wrong("BYTES", bytes, &why))?;
        }
        self.work.split(&mut plan)?;
        self.check_engine(&plan)?;
        if plan.per_connection == 0 && plan.max_open.is_some() {
            let text = "--max-open goes with connections that are made when they are needed; -k 0 keeps those of -c";
            return Err(Cli::command().error(ErrorKind::ArgumentConflict, text));
        }
        Ok(plan)
    }

    /// Refuses what the engine cannot do.
    fn check_engine(&self, plan: &Plan) -> Result<(), clap::Error> {
        if plan.engine != EngineKind::Epoll
            && let Err(why) = plan.check()
        {
            return Err(Cli::command().error(ErrorKind::ArgumentConflict, why));
        }
        if plan.engine == EngineKind::Fork {
            self.output.refuse(&["series"], "--engine fork")?;
            if self.tui {
                let text = "--tui does not go with client --engine fork\n";
                return Err(clap::Error::raw(ErrorKind::ArgumentConflict, text));
            }
        }
        Ok(())
    }
}

fn wrong(name: &str, value: &str, why: &str) -> clap::Error {
    let text = format!("invalid value '{value}' for {name}: {why}");
    Cli::command().error(ErrorKind::ValueValidation, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(args: &[&str]) -> Result<Plan, clap::Error> {
        Cli::try_parse_from([&["client"], args].concat())?.plan()
    }

    #[test]
    fn without_options_it_is_the_books_run() {
        assert_eq!(plan(&[]).unwrap(), Plan::default());
    }

    #[test]
    fn the_positional_form_means_the_same() {
        let flags = plan(&["-i", "localhost", "-p", "3000", "-c", "6", "-t", "7", "-b", "8"]).unwrap();
        assert_eq!(plan(&["localhost", "3000", "6", "7", "8"]).unwrap(), flags);
        assert_eq!(plan(&["localhost", "3000", "6", "7", "8", "-k", "2"]).unwrap().per_connection, 2);
        assert_eq!(plan(&["--clients", "6"]).unwrap().clients, 6);
    }

    #[test]
    fn five_positionals_or_none_and_not_beside_their_flags() {
        for bad in [
            &["localhost"][..],
            &["localhost", "2000", "5", "500"],
            &["localhost", "2000", "5", "500", "3000", "1"],
            &["localhost", "2000", "5", "500", "3000", "-c", "5"],
            &["localhost", "2000", "5", "500", "3000", "-p", "2000"],
            &["localhost", "2000", "5", "500", "3000", "-d", "1s"],
            &["localhost", "0", "5", "500", "3000"],
            &["localhost", "2000", "0", "500", "3000"],
            &["localhost", "2000", "5", "x", "3000"],
        ] {
            let error = plan(bad).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad:?}");
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for bad in [
            &["-c", "0"][..],
            &["-t", "0"],
            &["-b", "0"],
            &["-p", "0"],
            &["-p", "65536"],
            &["-b", "-1"],
            &["-b", "5g"],
            &["-b", "k"],
            &["-b", "1.5k"],
            &["-b", "4294967296"],
            &["-b", "4295m"],
            &["-d", "0s"],
            &["-d", "5"],
            &["-d", "2days"],
            &["-d", "1s", "-t", "5"],
            &["--timeout", "0ms"],
            &["-R", "0"],
            &["-R", "fast"],
            &["-R", "10", "--think", "1ms"],
            &["-R", "10", "-k", "0", "--max-open", "5"],
            &["--max-open", "5"],
            &["--arrivals", "poisson"],
            &["--connect-rate", "0"],
            &["-w", "soon"],
            &["-T", "0"],
            &["--pin", "x"],
            &["--start-at", "noon"],
            &["--close", "maybe"],
            &["--verify", "maybe"],
        ] {
            let error = plan(bad).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{bad:?}");
        }
    }

    #[test]
    fn counts_take_k_and_m() {
        let plan = plan(&["-c", "10k", "-t", "2m", "-b", "64K", "-k", "0"]).unwrap();
        assert_eq!((plan.clients, plan.until, plan.bytes), (10_000, Until::Tries(2_000_000), 64_000));
    }

    #[test]
    fn durations_replace_tries() {
        let plan = plan(&["-d", "1m30s", "--timeout", "100ms", "--connect-timeout", "1ms"]).unwrap();
        assert_eq!(plan.until, Until::Elapsed(Duration::from_secs(90)));
        assert_eq!((plan.timeout, plan.connect_timeout), (Duration::from_millis(100), Duration::from_millis(1)));
    }

    #[test]
    fn an_open_loop() {
        let plan = plan(&["-R", "1k", "-k", "0", "-d", "5s", "--deadline", "10ms", "-T", "2", "--pin", "0-1"]).unwrap();
        assert_eq!((plan.rate, plan.deadline), (Some(Rate::constant(1000.0)), Some(Duration::from_millis(10))));
        assert_eq!((plan.threads, plan.pin.as_slice(), plan.warmup), (2, &[0, 1][..], Warmup::None));
        let words = "open loop: 1000/s uniform on 5 connections kept, requests of 3000 bytes for 5s";
        assert_eq!(plan.describe(), words);
    }

    #[test]
    fn a_closed_loop_by_time_finds_its_own_warm_up() {
        assert_eq!(plan(&["-d", "5s"]).unwrap().warmup, Warmup::Auto);
        assert_eq!(plan(&["-d", "5s", "-w", "0"]).unwrap().warmup, Warmup::None);
        assert_eq!(plan(&["-w", "2s"]).unwrap().warmup, Warmup::Time(Duration::from_secs(2)));
    }

    #[test]
    fn help_is_whole() {
        Cli::command().debug_assert();
        let help = Cli::command().render_help().to_string();
        for part in ["[default: 2000]", "[default: 500]", "[default: 3000]", "HOST PORT CHILDREN TRIES BYTES", "130"] {
            assert!(help.contains(part), "{part} in {help}");
        }
    }
}
