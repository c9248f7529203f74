//! Where a budget and clarity fight, clarity wins, and this table says why. An entry that is not needed is a breach
//! itself, so the table never outlives its reasons.

use super::budget::What;

/// A larger budget for one file or function.
pub struct Exception {
    /// An example's name, a path, or a path and a function: `xtask/src/main.rs main`.
    pub subject: &'static str,
    pub what: What,
    pub most: usize,
    pub reason: &'static str,
}

const fn exception(subject: &'static str, what: What, most: usize, reason: &'static str) -> Exception {
    Exception { subject, what, most, reason }
}

pub const EXCEPTIONS: &[Exception] = &[
    exception(
        "v1-threads",
        What::Code,
        345,
        "two threads for each client, the log's thread and the stop meet in one lock, whose every use has to be seen",
    ),
    exception(
        "v2-select",
        What::Code,
        290,
        "as server02-select: an event loop carries by hand what blocking calls did",
    ),
    exception("v3-broadcast", What::Code, 355, "v2-select, and queues, timers, interest and four policies"),
    exception("v3-broadcast", What::Diff, 320, "lines are queued instead of sent, and clients are watched by token"),
    exception(
        "server01-fork",
        What::Diff,
        200,
        "one client to many brings the table of children, reaping, the limit and the end of the family at once",
    ),
    exception(
        "server02-select",
        What::Code,
        230,
        "an event loop carries by hand what the kernel did for a blocking child: deadlines, refusals, a pause after \
         EMFILE, the stop",
    ),
    exception("server02-select", What::Diff, 340, "blocking calls become a loop; nothing of server00's loop can stay"),
    exception("server02a-poll", What::Code, 230, "as server02-select"),
    exception(
        "server02a-poll",
        What::Diff,
        135,
        "without FD_SETSIZE the limit is a new one: RLIMIT_NOFILE, raised at start",
    ),
    exception(
        "server02b-epoll",
        What::Code,
        300,
        "both triggers in one file, so that the duties of the edge stand beside the level that does without them",
    ),
    exception(
        "server02b-epoll",
        What::Diff,
        240,
        "the interest list moves into the kernel, and the edge brings a ready list",
    ),
    exception("server02c-mio", What::Code, 270, "as server02b-epoll with --edge: mio is edge-triggered"),
    exception("server02c-mio", What::Diff, 195, "every call of the multiplexer has another name, and --edge goes"),
    exception(
        "server03-prefork",
        What::Code,
        175,
        "the supervisor stands here raw: respawn, backoff, giving up, the family's end",
    ),
    exception(
        "server03-prefork",
        What::Diff,
        275,
        "children that stay instead of one per client: the table of children turns into a pool",
    ),
    exception(
        "server03a-distribution",
        What::Code,
        310,
        "an instrument: seven ways to wait, each with its own calls, in one file to compare",
    ),
    exception("server03a-distribution", What::Diff, 220, "as its code: seven ways to wait, the tally and its table"),
    exception(
        "server03a-distribution/src/tally.rs",
        What::Code,
        125,
        "the shared mapping, its table with bars, and its JSON",
    ),
    exception(
        "server03b-reuseport",
        What::Code,
        215,
        "as server03-prefork, with the port that has to be locked and the limit of descriptors",
    ),
    exception(
        "server03b-reuseport",
        What::Diff,
        210,
        "accept and its loop leave for event_loop.rs, and a port with as many listeners as workers comes",
    ),
    exception(
        "server03b-reuseport/src/event_loop.rs",
        What::Code,
        260,
        "server02b-epoll's loop without its edge: a pool and a loop are two ideas, and two files",
    ),
    exception(
        "server04-fdpass",
        What::Code,
        335,
        "to the supervisor comes the parent's loop over channels, with a client in flight at each",
    ),
    exception(
        "server04-fdpass",
        What::Diff,
        310,
        "the parent becomes an acceptor and the children readers of a channel",
    ),
    exception(
        "server05-threads",
        What::Code,
        160,
        "what the kernel does for processes at a stop is done by hand for threads: the table of clients",
    ),
    exception("server05-threads", What::Diff, 195, "threads, their limit, and the table of clients that a stop needs"),
    exception(
        "server06-prethread",
        What::Diff,
        235,
        "threads that stay: the limit and the dead ends go, the pool comes",
    ),
    exception(
        "server06a-queue",
        What::Code,
        165,
        "the queue is written by hand, and its two ends and its limit are the lesson",
    ),
    exception(
        "server06a-queue",
        What::Diff,
        215,
        "the acceptor, the queue and the refusals come, accept leaves the workers",
    ),
    exception(
        "server07-io-uring",
        What::Code,
        310,
        "every operation has a submission and a completion, and an end that has to be waited for",
    ),
    exception("server07-io-uring", What::Diff, 480, "completion instead of readiness: the loop has another shape"),
    exception(
        "server07-io-uring/src/ring.rs",
        What::Code,
        105,
        "set-up with fallbacks, the provided buffers, and the submission queue that may be full",
    ),
    exception(
        "server08-tokio",
        What::Code,
        225,
        "limits, refusals and the stop are the program's own with a runtime too",
    ),
    exception("server08-tokio", What::Diff, 380, "another vocabulary for the whole program"),
    exception(
        "client/src/conn.rs",
        What::Code,
        355,
        "the life of one measured request stands in one place: its instants, its judgement and its count",
    ),
    exception(
        "client/src/plan.rs",
        What::Code,
        370,
        "every option of a run in one struct, with its words and its bounds",
    ),
    exception(
        "v0-processes",
        What::Code,
        265,
        "the parent of a family: accept, fork, reap, the notice of a death, the order of the end",
    ),
    exception(
        "v0-processes/src/bus.rs",
        What::Code,
        145,
        "the records of the bus, and sendmsg and recvmsg with a descriptor written out",
    ),
    exception(
        "v0-processes/src/hub.rs",
        What::Code,
        240,
        "an event loop carries by hand what the kernel did for a blocking process: deadlines, queues, the end",
    ),
    exception("v0-processes/src/worker.rs", What::Code, 80, "reading at a rate, and the three signals of a worker"),
    exception("v4-async", What::Code, 290, "two tasks for each client, and the order of the end"),
    exception("v4-async/src/rt.rs", What::Code, 290, "an executor, a reactor and a timer: one file is the lesson"),
    exception("v4-async/src/trace.rs", What::Code, 75, "each step of the loop with its words"),
    exception("v4-async/src/bin/naive-await.rs", What::Code, 100, "a whole room, to show one wrong await"),
];
