//! Clients that misbehave on purpose, and what became of them.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many clients misbehave, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Misbehave {
    /// What they do.
    pub habit: Habit,
    /// How many do so, beside the clients that are measured; at least 1.
    pub clients: u32,
}

/// What a client does that it should not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Habit {
    /// Connects and says nothing.
    Silent,
    /// Sends the first half of a request, and no more.
    HalfRequest,
    /// Sends a request without its last byte, the newline.
    NoNewline,
    /// Sends one byte at a time, with so long a pause between.
    SlowSend(Duration),
    /// Asks for much and reads a little at a time, with so long a pause between.
    SlowRead(Duration),
    /// Sends a request, shuts its side down, and waits for the answer: which is no offense.
    HalfClose,
    /// Connects and resets at once.
    RstAfterConnect,
    /// Asks for much and resets at the first byte.
    RstMidReply,
    /// Sends a line of random bytes.
    Garbage,
    /// Asks for more bytes than any number of the protocol can say.
    HugeNumber,
}

impl FromStr for Habit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pause) = text.split_once(':').map_or((text, None), |(name, pause)| (name, Some(pause)));
        let time = || match pause {
            None => Err(format!("{name} needs a time, such as {name}:1s")),
            Some(pause) => match humantime::parse_duration(pause) {
                Ok(time) if (Duration::from_millis(1)..=Duration::from_secs(86_400)).contains(&time) => Ok(time),
                _ => Err(format!("{pause:?} is no time for {name}: 1ms to 1day, such as {name}:1s")),
            },
        };
        let habit = match name {
            "slow-send" => return time().map(Habit::SlowSend),
            "slow-read" => return time().map(Habit::SlowRead),
            "silent" => Habit::Silent,
            "half-request" => Habit::HalfRequest,
            "no-newline" => Habit::NoNewline,
            "half-close" => Habit::HalfClose,
            "rst-after-connect" => Habit::RstAfterConnect,
            "rst-mid-reply" => Habit::RstMidReply,
            "garbage" => Habit::Garbage,
            "huge-number" => Habit::HugeNumber,
            _ => {
                return Err("silent, half-request, no-newline, slow-send:T, slow-read:T, half-close, \
                            rst-after-connect, rst-mid-reply, garbage or huge-number"
                    .into());
            }
        };
        if pause.is_some() { Err(format!("{name} has a share behind it, such as {name}:10%")) } else { Ok(habit) }
    }
}

impl Habit {
    /// In words, as what clients do.
    pub fn describe(&self) -> String {
        let every = |time: &Duration| humantime::format_duration(*time).to_string();
        match self {
            Habit::Silent => "silent".into(),
            Habit::HalfRequest => "half-request".into(),
            Habit::NoNewline => "no-newline".into(),
            Habit::SlowSend(time) => format!("slow-send, a byte every {}", every(time)),
            Habit::SlowRead(time) => format!("slow-read, a sip every {}", every(time)),
            Habit::HalfClose => "half-close".into(),
            Habit::RstAfterConnect => "rst-after-connect".into(),
            Habit::RstMidReply => "rst-mid-reply".into(),
            Habit::Garbage => "garbage".into(),
            Habit::HugeNumber => "huge-number".into(),
        }
    }
}

/// What became of the connections of those who misbehave. Each ends once: `tried` is the sum of all fates, and of those
/// that were not established when the run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fates {
    /// connect() called.
    pub tried: u64,
    /// Established.
    pub connected: u64,
    /// Never established: refused, no port, no descriptor.
    pub refused: u64,
    /// Answered in full all the same.
    pub answered: u64,
    /// Ended by the server with an error line.
    pub error_line: u64,
    /// Closed by the server without an answer, or in the middle of one.
    pub closed: u64,
    /// Reset by the server.
    pub reset: u64,
    /// The client has done what it came for, and reset the connection.
    pub left: u64,
    /// Still open when the run ended.
    pub open: u64,
    /// The longest time that one of them lasted before it ended, in nanoseconds.
    pub longest_ns: u64,
}

impl Fates {
    /// Those that happened, with their number.
    pub fn list(&self) -> Vec<(u64, &'static str)> {
        let all = [
            (self.refused, "never established"),
            (self.answered, "answered in full"),
            (self.error_line, "ended with an ERR line"),
            (self.closed, "closed by the server"),
            (self.reset, "reset by the server"),
            (self.left, "reset by the abuser"),
            (self.open, "open at the end"),
        ];
        all.into_iter().filter(|(n, _)| *n > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn habits() {
        assert_eq!("silent".parse(), Ok(Habit::Silent));
        assert_eq!("slow-send:20ms".parse(), Ok(Habit::SlowSend(Duration::from_millis(20))));
        for bad in ["", "loud", "slow-send", "slow-read:", "slow-read:0s", "slow-read:fast", "silent:1s"] {
            assert!(bad.parse::<Habit>().is_err(), "{bad}");
        }
    }
}
