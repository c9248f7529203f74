//! What each number of a report means.

/// The explanation that `--explain` puts below the report.
pub const TEXT: &str = "\
What the numbers mean

closed loop   Each client has one request under way and sends the next when the
              answer is here. A slow server therefore gets fewer requests: the
              rate is a result, not a setting.
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

connect       connect() to established. It ends at the SYN-ACK, so a server that
              is busy does not show here, an accept queue that overflows does: a
              SYN is then sent again after 1 s, 3 s, 7 s.
first byte    Send to the first byte of the answer: the wait in the accept
              queue, the wait for a process, thread or loop, and the work.
service       Send to the last byte.
total         connect() to the last byte; send to the last byte for the later
              requests of a kept connection.
failed after  How old connections and requests were when they failed.
p99           99 % were at most so slow. Printed if at least 10 samples lie
              beyond it, else a dash. Values are exact to 3 digits.

share         Of all requests sent and all connections that failed.
first, last   Seconds since the start of the run.
oldest        The longest that such a connection or request waited.
";
