//! What each number of a report means.

/// The explanation that `--explain` puts below the report.
pub const TEXT: &str = "\
What the numbers mean

closed loop   Each client has one request under way and sends the next when the
              answer is here. A slow server therefore gets fewer requests: the
              rate is a result, not a setting.
open loop     With -R requests start when they are due, be the last one answered
              or not. The rate is a setting, and the times are the result.
done          The whole answer came, and was checked as --verify says.
failed        Sent, and then one of the failures listed by phase and kind.
not sent      In the plan, but the connection failed or the run ended first.
censored      Unanswered when the run was over, and not late by then. Such a
              request could have become the slowest of all: it is no success
              and no failure. requests sent = done + failed + censored.
connections   made = the handshake was completed, which the kernel does before
              the server calls accept(). open at once = the most at any time.
rate          Requests done, connections made, bytes received per second of the
              whole run, start and end included.
this client   CPU time of this process per request sent. Near 100 % of one core
              the client is the limit, and the numbers say little of the server.
schedule      Requests that were due; those that were missed, because no
              connection was free for them before the deadline or the end;
              those that waited for one. Started late: with a connection free,
              this client was so late itself. Much of that: it is the limit.
warm-up       Requests that were to start in it are not in the latencies. They
              are in the counts, and their failures among the failures.
steadiness    Answers per second after the warm-up, with a 95 % interval from at
              least 20 batches. r is the correlation of answers and time: 1 is a
              straight line. Not steady: the start is unlike the rest, or the
              rate drifts.
limited by    this client: it was busy all the time. the server: not the client,
              but others on this machine were busy. the rate: all that was due
              was done. the number of clients: each waited, nobody was busy.
loop turn     Time this client took for the events of one wait: an answer may
              have waited for it so long.

connect       connect() to established. It ends at the SYN-ACK, so a server that
              is busy does not show here, an accept queue that overflows does: a
              SYN is then sent again after 1 s, 3 s, 7 s.
first byte    Send to the first byte of the answer: the wait in the accept
              queue, the wait for a process, thread or loop, and the work.
service       Send to the last byte.
total         connect() to the last byte; send to the last byte for the later
              requests of a kept connection.
response      With -R: intended start to the last byte, the wait for a free
              connection included. So it is what a user has, where service is
              what the server did. In a closed loop it is the same as total.
failed after  How old connections and requests were when they failed.
p99           99 % were at most so slow. Printed if at least 10 samples lie
              beyond it, else a dash. Values are exact to 3 digits.

share         Of all requests sent and all connections that failed.
first, last   Seconds since the start of the run.
oldest        The longest that such a connection or request waited.
";
