//! The byte service's bad-input table, N1 to N37: exact bytes in, exact bytes out.

use std::thread;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::peer::{End, Peer};
use crate::procs;
use crate::server::{Server, TIMEOUT, eventually};
use crate::subject::{Row, Subject};

const E1: &str = "ERR number expected\n";
const E2: &str = "ERR out of range 1..1048576\n";
const E3: &str = "ERR line too long\n";
const E4: &str = "ERR timeout\n";

pub const ROWS: &[Row] = &[
    ("N01_one_byte", |s| answered(s, &[("1\n", &[1])])),
    ("N02_three_thousand", |s| answered(s, &[("3000\n", &[3000])])),
    ("N03_the_limit", |s| answered(s, &[("1048576\n", &[1_048_576])])),
    ("N04_one_beyond_the_limit", |s| refused(s, E2, &["1048577\n"])),
    ("N05_carriage_return", |s| answered(s, &[("3000\r\n", &[3000])])),
    ("N06_zero", |s| refused(s, E2, &["0\n"])),
    ("N07_minus", |s| refused(s, E1, &["-1\n", "-0\n"])),
    ("N08_plus", |s| refused(s, E1, &["+5\n"])),
    ("N09_spaces", |s| refused(s, E1, &[" 5\n", "5 \n", "\t5\n", "5\t\n"])),
    ("N10_leading_zeros", |s| answered(s, &[("0005\n", &[5])])),
    ("N11_eleven_digits", |s| refused(s, E1, &["00000000005\n"])),
    ("N12_beyond_32_bits", |s| refused(s, E2, &["4294967295\n", "4294967296\n", "9999999999\n"])),
    ("N13_eleven_nines", |s| refused(s, E1, &["99999999999\n"])),
    ("N14_beyond_64_bits", |s| refused(s, E1, &["18446744073709551616\n", "999999999999999999999999999999\n"])),
    ("N15_endless_line", endless_line),
    ("N16_empty_lines", |s| refused(s, E1, &["\n", "\r\n", "\r\r\n"])),
    ("N17_almost_numbers", |s| {
        refused(s, E1, &["abc\n", "12a\n", "a12\n", "1e3\n", "0x10\n", "1_000\n", "1,000\n", "3.5\n", "NaN\n"])
    }),
    ("N18_high_bytes", |s| refused_bytes(s, E1, &[b"\xff\xfe\n", b"\x80\n", b"5\xc3\n"])),
    ("N19_other_digits", |s| refused_bytes(s, E1, &[b"\xd9\xa3\n", b"\xef\xbc\x95\n"])),
    ("N20_byte_order_mark", |s| refused_bytes(s, E1, &[b"\xef\xbb\xbf5\n"])),
    ("N21_nul_bytes", |s| refused(s, E1, &["12\x0034\n", "\0\n", "5\0\n"])),
    ("N22_injection", |s| {
        logged(s, &[("%s%n\n", "'%s%n'"), ("5;ls\n", "'5;ls'"), ("$(id)\n", "'$(id)'"), ("' OR 1=1\n", "OR 1=1'")])
    }),
    ("N23_terminal_escapes", |s| logged(s, &[("\x1b[2J5\n", r"\x1b[2J5"), ("5\x1b]0;x\x07\n", r"5\x1b]0;x\x07")])),
    ("N24_http_get", |s| refused(s, E1, &["GET / HTTP/1.0\r\n\r\n"])),
    ("N25_http_post", |s| refused(s, E1, &["POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n5000\n"])),
    ("N26_tls_hello", |s| {
        let hello = [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".as_slice(), &[0x5a; 506]].concat();
        refused_bytes(s, E3, &[&hello]);
    }),
    ("N27_two_in_one_write", |s| {
        s.abused(&[], |server| {
            let mut peer = server.connect();
            peer.send("3\n4\n");
            assert_eq!(peer.read_exactly(7), b"abcabcd");
        })
    }),
    ("N28_two_and_half_close", |s| answered(s, &[("3\n4\n", &[3, 4])])),
    ("N29_split_in_two", split_in_two),
    ("N30_unterminated", |s| answered(s, &[("3000", &[])])),
    ("N31_silence_in_a_line", |s| timed_out(s, &["--line-timeout", "300"], "3000")),
    ("N32_silence", |s| timed_out(s, &["--idle-timeout", "300"], "")),
    ("N33_nothing_after_a_bad_line", |s| {
        s.abused(&[], |server| {
            let mut peer = server.connect();
            peer.send("3\nabc\n5\n");
            assert_eq!(peer.read_to_end(), (format!("abc{E1}").into_bytes(), End::Eof));
        })
    }),
    ("N34_ten_thousand_pipelined", |s| {
        s.abused(&[], |server| {
            let mut peer = server.connect();
            let sender = peer.send_in_background(b"5\n".repeat(10_000), true);
            assert_eq!(peer.read_to_end(), (b"abcde".repeat(10_000), End::Eof));
            sender.join().unwrap();
        })
    }),
    ("N35_never_reads", never_reads),
    ("N36_urgent_data", |s| {
        s.abused(&[], |server| {
            let mut peer = server.connect();
            peer.send("5\n");
            peer.send_urgent(b'!');
            assert_eq!(peer.read_exactly(5), b"abcde");
            peer.half_close();
            assert_eq!(peer.read_to_end(), (Vec::new(), End::Eof));
        })
    }),
    ("N37_random_bytes", random_bytes),
    ("limits_at_and_beyond_max_request", |s| {
        s.abused(&["--max-request", "50000"], |server| {
            server.connect().ask(50_000);
            let mut peer = server.connect();
            peer.send("50001\n");
            assert_eq!(peer.read_to_end(), (b"ERR out of range 1..50000\n".to_vec(), End::Eof));
        })
    }),
];

/// Each input, then a half-close, gets the answers of these sizes and the end.
fn answered(subject: &Subject, inputs: &[(&str, &[usize])]) {
    subject.abused(&[], |server| {
        for (input, sizes) in inputs {
            let mut peer = server.connect();
            peer.send(input);
            peer.half_close();
            let wanted: Vec<u8> = sizes.iter().flat_map(|n| crate::pattern(*n)).collect();
            let (bytes, end) = peer.read_to_end();
            assert!(bytes == wanted, "{input:?}: {} bytes, wanted {}", bytes.len(), wanted.len());
            assert_eq!(end, End::Eof, "{input:?}");
        }
    });
}

fn refused(subject: &Subject, line: &str, inputs: &[&str]) {
    refused_bytes(subject, line, &inputs.iter().map(|input| input.as_bytes()).collect::<Vec<_>>());
}

/// Each input gets exactly this line and an orderly end, although the client has not said that it is done.
fn refused_bytes(subject: &Subject, line: &str, inputs: &[&[u8]]) {
    subject.abused(&[], |server| {
        for input in inputs {
            expect_refusal(server.connect(), line, input);
        }
    });
}

fn expect_refusal(mut peer: Peer, line: &str, input: &[u8]) {
    peer.send(input);
    let (bytes, end) = peer.read_to_end();
    assert_eq!((String::from_utf8_lossy(&bytes).as_ref(), end), (line, End::Eof), "{}", input.escape_ascii());
}

fn logged(subject: &Subject, inputs: &[(&str, &str)]) {
    subject.abused(&[], |server| {
        for (input, shown) in inputs {
            expect_refusal(server.connect(), E1, input.as_bytes());
            server.wait_log(shown);
        }
        assert!(!server.log().contains('\x1b'), "a control byte reached the log");
    });
}

fn endless_line(subject: &Subject) {
    subject.abused(&[], |server| {
        // A line as long as the linger takes: the server has read it all and still holds the client.
        let mut held = server.connect();
        held.ask(1);
        let before = memory(server);
        held.send(vec![b'9'; 32 + 60 * 1024]);
        assert_eq!(held.read_exactly(E3.len()), E3.as_bytes());
        let grown = memory(server).saturating_sub(before);
        assert!(grown <= 64 * 1024, "{grown} bytes for a line without an end");
        drop(held);
        let mut peer = server.connect();
        let sender = peer.send_in_background(vec![b'9'; 31 + (1 << 20)], false);
        assert_eq!(String::from_utf8_lossy(&peer.read_to_end().0), E3);
        sender.join().unwrap();
    });
}

fn split_in_two(subject: &Subject) {
    subject.abused(&[], |server| {
        let mut peer = server.connect();
        peer.send("30");
        thread::sleep(Duration::from_millis(30)); // the stimulus: two segments, apart in time
        assert!(peer.is_waiting(), "an answer to half a line");
        peer.send("00\n");
        assert!(peer.read_exactly(3000) == crate::pattern(3000));
    });
}

/// `ERR timeout`, not before the deadline that was set, and because of it: the other ones are far away.
fn timed_out(subject: &Subject, args: &[&str], input: &str) {
    subject.abused(args, |server| {
        let start = Instant::now();
        let mut peer = server.connect();
        peer.send(input);
        assert_eq!(peer.read_to_end(), (E4.as_bytes().to_vec(), End::Eof));
        assert!(start.elapsed() >= Duration::from_millis(290), "too early: {:?}", start.elapsed());
    });
}

fn never_reads(subject: &Subject) {
    subject.abused(&["--write-timeout", "1000"], |server| {
        let mut peer = Peer::connect_small_window(server.addr);
        peer.ask(1);
        let before = memory(server);
        peer.send("1048576\n".repeat(50));
        // Once it has stopped sending, all that this client can cost is allocated.
        let mut last = 0;
        eventually("the answer stalls", || {
            thread::sleep(Duration::from_millis(50));
            let now = peer.unread();
            let stalled = now > 0 && now == last;
            last = now;
            stalled.then_some(())
        });
        let grown = memory(server).saturating_sub(before);
        assert!(grown <= 64 * 1024, "{grown} bytes for a client that does not read");
        // The write deadline ends it: the rest of 50 MiB never comes.
        eventually("the client is closed", || procs::holders(server, &peer).is_empty().then_some(()));
        assert!(peer.read_to_end().0.len() < 50 << 20);
    });
}

fn memory(server: &Server) -> u64 {
    server.family().iter().map(|proc| procs::anonymous_bytes(proc.pid)).sum()
}

/// Ten thousand conversations of random bytes, each with exactly the answer that the grammar gives.
fn random_bytes(subject: &Subject) {
    let given = std::env::var("TESTKIT_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    eprintln!("N37: TESTKIT_SEED={seed}");
    subject.abused(&[], |server| {
        thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    let mut random = Random(seed.wrapping_add(thread).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
                    for _ in 0..2500 {
                        let input = random.input();
                        let mut peer = server.connect();
                        let sender = (input.len() > 4096).then(|| peer.send_in_background(input.clone(), true));
                        if sender.is_none() && peer.try_send(&input).is_ok() {
                            peer.half_close();
                        }
                        let (bytes, _) = peer.read_to_end();
                        let wanted = expected(&input);
                        assert!(
                            bytes == wanted,
                            "TESTKIT_SEED={seed}: {} gave {} bytes, wanted {}",
                            input.escape_ascii(),
                            bytes.len(),
                            wanted.len()
                        );
                        sender.into_iter().for_each(|sender| sender.join().unwrap());
                    }
                });
            }
        });
    });
}

/// xorshift64: enough to find bad input, and repeatable from the seed that is printed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }

    /// Up to five pieces: numbers, nearly numbers, and noise, mostly short and up to 64 KiB.
    fn input(&mut self) -> Vec<u8> {
        let mut input = Vec::new();
        for _ in 0..self.below(6) {
            match self.below(8) {
                0..=3 => input.extend(format!("{}\n", self.below(5000)).into_bytes()),
                4 => input.extend(format!("{:0w$}\r\n", self.below(300), w = self.below(14) as usize).into_bytes()),
                5 => input.push(b"\n\r 0+-9\0"[self.below(8) as usize]),
                6 => (0..self.below(40)).for_each(|_| input.push(self.below(256) as u8)),
                _ if self.below(20) == 0 => (0..self.below(60_000)).for_each(|_| input.push(self.below(256) as u8)),
                _ => {}
            }
        }
        input
    }
}

/// What the grammar of the protocol says, written down the slow and obvious way.
fn expected(input: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), input);
    loop {
        let Some(end) = rest.iter().take(32).position(|b| *b == b'\n') else {
            let too_long = if rest.len() >= 32 { E3 } else { "" };
            return [out, too_long.into()].concat();
        };
        let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
        rest = &rest[end + 1..];
        let number = match line.len() {
            1..=10 if line.iter().all(u8::is_ascii_digit) => String::from_utf8_lossy(line).parse::<u64>().ok(),
            _ => None,
        };
        match number {
            Some(n @ 1..=1_048_576) => out.extend(crate::pattern(n as usize)),
            Some(_) => return [out, E2.into()].concat(),
            None => return [out, E1.into()].concat(),
        }
    }
}

const _: () = assert!(TIMEOUT.as_secs() > 10, "the timeouts above must expire within the timeout of a test");
