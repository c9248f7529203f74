//! What peers do to a server: leave, reset, drip, flood, stay silent, never read, come in crowds.

use std::thread;
use std::time::Duration;

use crate::peer::{End, Peer};
use crate::procs;
use crate::server::{Server, eventually};
use crate::subject::{Row, Subject};

const BUSY: &str = "ERR busy\n";

pub const ROWS: &[Row] = &[
    ("A08_one_client_too_many", one_too_many),
    ("A15_crowd", crowd),
    ("B01_connect_and_close", |s| {
        s.abused(&[], |server| {
            (0..100).for_each(|_| drop(server.connect()));
            let quiet = !server.log().contains("WARN");
            assert!(quiet, "leaving is no event: {}", server.log());
        })
    }),
    ("B02_reset_before_data", |s| s.abused(&[], |server| (0..100).for_each(|_| server.connect().reset()))),
    ("B03_reset_in_an_answer", |s| {
        s.abused(&[], |server| {
            for _ in 0..20 {
                let mut peer = server.connect();
                peer.send("1048576\n");
                peer.read_exactly(1);
                peer.reset();
            }
        })
    }),
    ("B04_half_close_keeps_the_answer", |s| {
        s.abused(&[], |server| {
            let mut peer = server.connect();
            peer.send("1048576\n1000000\n");
            peer.half_close();
            let (bytes, end) = peer.read_to_end();
            assert!(bytes == [crate::pattern(1_048_576), crate::pattern(1_000_000)].concat(), "{} bytes", bytes.len());
            assert_eq!(end, End::Eof);
        })
    }),
    ("B05_one_byte_at_a_time", |s| {
        s.abused(&[], |server| {
            let mut peer = server.connect();
            for byte in b"3000\n17\n" {
                peer.send([*byte]);
                thread::sleep(Duration::from_millis(2)); // the stimulus: a segment for each byte
            }
            assert!(peer.read_exactly(3017) == [crate::pattern(3000), crate::pattern(17)].concat());
        })
    }),
    ("B07_silent_clients", silent_clients),
    ("B08_drip", |s| {
        // A byte in every tenth of the deadline keeps an idle timer happy for ever; the line deadline is absolute.
        s.abused(&["--line-timeout", "500"], |server| {
            let mut peer = server.connect();
            let dripped = (0..200).find(|_| {
                thread::sleep(Duration::from_millis(50));
                !peer.is_waiting() || peer.try_send("1").is_err()
            });
            assert!(dripped.is_some_and(|n| (8..30).contains(&n)), "ended after {dripped:?} bytes of 30");
            assert_eq!(String::from_utf8_lossy(&peer.read_to_end().0), "ERR timeout\n");
        })
    }),
    ("B09_others_while_one_never_reads", |s| {
        s.abused(&["--write-timeout", "5000"], |server| {
            let mut rude = Peer::connect_small_window(server.addr);
            rude.ask(1);
            rude.send("1048576\n".repeat(10));
            eventually("the rude client's answer begins", || (rude.unread() > 0).then_some(()));
            // A concurrent server answers at once, an iterative one when the write deadline has passed.
            server.connect().ask(3000);
            if s.is_concurrent() {
                assert!(!procs::holders(server, &rude).is_empty(), "served only after the deadline");
            }
        })
    }),
    ("B10_reader_that_pauses", |s| {
        s.abused(&[], |server| {
            let mut peer = Peer::connect_small_window(server.addr);
            peer.send("1048576\n");
            let mut bytes = peer.read_exactly(1000);
            let mut last = 0;
            eventually("the answer stalls", || {
                thread::sleep(Duration::from_millis(30));
                std::mem::replace(&mut last, peer.unread()).eq(&peer.unread()).then_some(())
            });
            bytes.extend(peer.read_exactly(1_048_576 - 1000));
            assert!(bytes == crate::pattern(1_048_576));
        })
    }),
    ("B13_error_line_in_spite_of_unread_bytes", |s| {
        s.abused(&[], |server| {
            for round in 0..20 {
                let mut peer = server.connect();
                peer.send([b"abc\n".as_slice(), &[b'5'; 60_000]].concat());
                let (bytes, end) = peer.read_to_end();
                assert_eq!(
                    (String::from_utf8_lossy(&bytes).as_ref(), end),
                    ("ERR number expected\n", End::Eof),
                    "{round}"
                );
            }
        })
    }),
    ("B14_greedy_client", greedy_client),
    ("B15_hundred_large_answers", |s| {
        let (args, slots) = s.with_slots(100);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        s.abused(&args, |server| {
            thread::scope(|scope| {
                for _ in 0..100.min(slots) {
                    scope.spawn(|| {
                        let mut peer = server.connect();
                        (0..3).for_each(|_| peer.ask(1_048_576));
                    });
                }
            })
        })
    }),
];

fn one_too_many(subject: &Subject) {
    let (args, slots) = subject.with_slots(4);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    subject.abused(&args, |server| {
        let mut served: Vec<Peer> = (0..slots).map(|_| server.connect()).collect();
        served.iter_mut().for_each(|peer| peer.ask(10));
        if subject.refuses() {
            for _ in 0..5 {
                let mut late = server.connect();
                late.send("3000\n");
                assert_eq!(late.read_to_end(), (BUSY.as_bytes().to_vec(), End::Eof));
            }
            served.iter_mut().for_each(|peer| peer.ask(10));
            drop(served.pop());
            eventually("a place that is free is given away", || server.connect().try_ask(10).ok());
        } else {
            let mut late = server.connect();
            late.send("3000\n");
            served.iter_mut().for_each(|peer| peer.ask(10));
            assert!(late.is_waiting(), "beyond the limit, and not queued");
            drop(served.pop());
            assert!(late.read_exactly(3000) == crate::pattern(3000));
        }
        served.iter_mut().for_each(|peer| peer.ask(10));
    });
}

/// However many come at once, the processes and threads stay within the limit and a fixed number.
fn crowd(subject: &Subject) {
    let (args, slots) = subject.with_slots(16);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    subject.abused(&args, |server| {
        let rest = server.family().len();
        let done = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            let crowd: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..250 {
                            if let Ok(mut peer) = Peer::try_connect(server.addr) {
                                let _ = peer.try_ask(100);
                            }
                        }
                    })
                })
                .collect();
            scope.spawn(|| {
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let now = server.family().len();
                    assert!(now <= rest + slots + 9, "{now} processes for a limit of {slots} clients");
                }
            });
            crowd.into_iter().for_each(|client| client.join().unwrap());
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    });
}

/// Silent clients in all places but one, or in the only one: they are told when the idle deadline passes, and others
/// are served meanwhile where a place is left, and after it where none is.
fn silent_clients(subject: &Subject) {
    let (args, slots) = subject.with_slots(8);
    let mut args: Vec<&str> = args.iter().map(String::as_str).collect();
    args.extend(["--idle-timeout", "1000"]);
    let silent = slots.min(8);
    subject.abused(&args, |server| {
        let mut crowd: Vec<Peer> =
            (0..silent - usize::from(subject.is_concurrent())).map(|_| server.connect()).collect();
        if subject.is_concurrent() {
            server.connect().ask(3000);
            assert!(crowd.iter().all(Peer::is_waiting), "served only after the silent ones were gone");
        }
        for peer in &mut crowd {
            assert_eq!(String::from_utf8_lossy(&peer.read_to_end().0), "ERR timeout\n");
        }
        eventually("served after the deadline", || server.connect().try_ask(3000).ok());
    });
}

/// One client pipelines for as long as it is let; the next one's answers come in between.
fn greedy_client(subject: &Subject) {
    subject.abused(&[], |server: &Server| {
        let mut greedy = server.connect();
        let sender = greedy.send_in_background(b"1048576\n".repeat(100), true);
        thread::scope(|scope| {
            let reader = scope.spawn(move || greedy.read_to_end().0.len());
            let mut peer = server.connect();
            (0..20).for_each(|_| peer.ask(100));
            if subject.is_concurrent() {
                assert!(!reader.is_finished(), "served only after the greedy one was done");
            }
            drop(peer);
            assert_eq!(reader.join().unwrap(), 100 << 20);
        });
        sender.join().unwrap();
    });
}
