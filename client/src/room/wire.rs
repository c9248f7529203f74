//! What is said to a server, byte by byte: five protocols, a few lines each.

use clap::ValueEnum;
use serde::Serialize;

/// The one room of the protocols that have several.
const ROOM: &str = "room";
/// MQTT 3.1.1: the packet types that occur, shifted as the first byte has them.
const MQTT_PUBLISH: u8 = 0x30;
const MQTT_SUBACK: u8 = 0x90;
const MQTT_CONNACK: u8 = 0x20;

/// What the server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// The chats of this workspace: a nick, then lines
    Room,
    /// Lines, and the first one is a name that nobody confirms: tokio's example and its like
    Lines,
    /// IRC: ngircd and its like
    Irc,
    /// Redis: SUBSCRIBE, and PUBLISH on connections of the senders' own
    Redis,
    /// MQTT 3.1.1, quality of service 0: mosquitto and its like
    Mqtt,
}

impl Wire {
    /// Whether senders need a connection that is not a listener's: what they publish would come back to them, or they
    /// may not publish at all.
    pub fn senders_apart(self) -> bool {
        matches!(self, Wire::Redis | Wire::Mqtt)
    }

    /// What a member says first.
    pub fn hello(self, nick: &str, listens: bool) -> Vec<u8> {
        match self {
            Wire::Room | Wire::Lines => format!("{nick}\n").into_bytes(),
            Wire::Irc => format!("NICK {nick}\r\nUSER {nick} 0 * :{nick}\r\nJOIN #{ROOM}\r\n").into_bytes(),
            Wire::Redis if listens => format!("SUBSCRIBE {ROOM}\r\n").into_bytes(),
            Wire::Redis => b"PING\r\n".to_vec(),
            Wire::Mqtt => {
                // Protocol level 4, clean session, no keepalive.
                let mut connect = text("MQTT");
                connect.extend([4, 2, 0, 0]);
                connect.extend(text(nick));
                let mut bytes = packet(0x10, &connect);
                if listens {
                    let mut subscribe = vec![0, 1];
                    subscribe.extend(text(ROOM));
                    subscribe.push(0);
                    bytes.extend(packet(0x82, &subscribe));
                }
                bytes
            }
        }
    }

    /// Whether what has come so far says that the member is in. `Err` if it says that it will never be.
    pub fn welcome(self, came: &[u8], listens: bool) -> Result<bool, String> {
        let has = |part: &[u8]| came.windows(part.len()).any(|window| window == part);
        let refusal = || Err(String::from_utf8_lossy(came).trim().to_owned());
        match self {
            Wire::Room if came.starts_with(b"! ") => refusal(),
            // Before the welcome comes the line that asks for a nick.
            Wire::Room => Ok((came.starts_with(b"* welcome") || has(b"\n* welcome")) && came.ends_with(b"\n")),
            Wire::Lines => Ok(true),
            // 366 ends the list of those who are there.
            Wire::Irc if has(b"ERROR :") || has(b" 433 ") => refusal(),
            Wire::Irc => Ok(has(b" 366 ")),
            Wire::Redis if came.starts_with(b"-") => refusal(),
            Wire::Redis => Ok(if listens { has(b"subscribe") && came.ends_with(b"\r\n") } else { has(b"+PONG\r\n") }),
            Wire::Mqtt => Ok(mqtt_in(came, listens)),
        }
    }

    /// One message with these bytes, which are digits and letters.
    pub fn message(self, payload: &str) -> Vec<u8> {
        match self {
            Wire::Room | Wire::Lines => format!("{payload}\n").into_bytes(),
            Wire::Irc => format!("PRIVMSG #{ROOM} :{payload}\r\n").into_bytes(),
            Wire::Redis => format!("PUBLISH {ROOM} {payload}\r\n").into_bytes(),
            Wire::Mqtt => {
                let mut publish = text(ROOM);
                publish.extend(payload.as_bytes());
                packet(MQTT_PUBLISH, &publish)
            }
        }
    }
}

/// A string of MQTT: two bytes of length, and its bytes.
fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

/// A packet of MQTT: its kind, its length in groups of seven bits, its bytes.
fn packet(kind: u8, bytes: &[u8]) -> Vec<u8> {
    let (mut packet, mut length) = (vec![kind], bytes.len());
    loop {
        let group = (length & 0x7f) as u8;
        length >>= 7;
        packet.push(group | if length > 0 { 0x80 } else { 0 });
        if length == 0 {
            break;
        }
    }
    packet.extend(bytes);
    packet
}

/// The first packets are short: CONNACK, and for a listener SUBACK.
fn mqtt_in(came: &[u8], listens: bool) -> bool {
    let mut rest = came;
    while let [kind, length, after @ ..] = rest {
        let Some(next) = after.get(usize::from(*length)..) else { return false };
        if *kind == if listens { MQTT_SUBACK } else { MQTT_CONNACK } {
            return true;
        }
        rest = next;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_mqtt() {
        assert_eq!(packet(0x30, &[7; 3]), [0x30, 3, 7, 7, 7]);
        assert_eq!(packet(0x30, &[0; 127])[..2], [0x30, 0x7f]);
        assert_eq!(packet(0x30, &[0; 128])[..3], [0x30, 0x80, 1]);
        assert_eq!(packet(0x30, &[0; 16_384])[..4], [0x30, 0x80, 0x80, 1]);
    }

    #[test]
    fn who_is_in() {
        for (wire, came, listens, is_in) in [
            (Wire::Room, &b"* welc"[..], true, false),
            (Wire::Room, b"* welcome a\n", true, true),
            (Wire::Room, b"* your nick?\n", true, false),
            (Wire::Room, b"* your nick?\n* welcome a\n", true, true),
            (Wire::Irc, b":x 001 a :Welcome\r\n", true, false),
            (Wire::Irc, b":x 001 a :Welcome\r\n:x 366 a #room :End\r\n", true, true),
            (Wire::Redis, b"*3\r\n$9\r\nsubscribe\r\n$4\r\nroom\r\n:1\r\n", true, true),
            (Wire::Redis, b"+PONG\r\n", false, true),
            (Wire::Mqtt, &[0x20, 2, 0, 0], true, false),
            (Wire::Mqtt, &[0x20, 2, 0, 0], false, true),
            (Wire::Mqtt, &[0x20, 2, 0, 0, 0x90, 3, 0, 1, 0], true, true),
            (Wire::Mqtt, &[0x20, 2, 0, 0, 0x90, 3, 0, 1], true, false),
        ] {
            assert_eq!(wire.welcome(came, listens), Ok(is_in), "{wire:?} {came:?}");
        }
        assert!(Wire::Room.welcome(b"! server-full\n", true).is_err());
        assert!(Wire::Irc.welcome(b"ERROR :Closing\r\n", true).is_err());
    }
}
