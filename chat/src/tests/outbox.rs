use super::*;
use proptest::prelude::*;

fn send(outbox: &mut Outbox, most: usize) -> String {
    let taken = outbox.pending().get(..most).unwrap_or(outbox.pending()).to_vec();
    outbox.sent(taken.len());
    String::from_utf8(taken).unwrap()
}

#[test]
fn the_limit_and_one_more() {
    for (policy, fit) in [(Slow::Grow, Fit::Queued), (Slow::Drop, Fit::Dropped), (Slow::Kick, Fit::Overflow)] {
        let mut outbox = Outbox::new(10, policy);
        assert_eq!(outbox.push(b"12345"), Fit::Queued);
        assert_eq!(outbox.push(b"67890"), Fit::Queued, "at the limit");
        assert_eq!(outbox.push(b"x"), fit, "{policy:?}");
    }
    assert_eq!(Outbox::new(10, Slow::Kick).push(b"longer than the limit"), Fit::Queued, "into an empty one");
}

#[test]
fn drops_are_confessed_when_there_is_room() {
    let mut outbox = Outbox::new(0, Slow::Drop);
    outbox.push(b"first\n");
    assert_eq!(send(&mut outbox, 2), "fi");
    (0..12).for_each(|_| assert_eq!(outbox.push(b"lost\n"), Fit::Dropped));
    assert_eq!(send(&mut outbox, 99), "rst\n");
    assert_eq!(send(&mut outbox, 99), "* you missed 12 lines\n");
    assert_eq!(outbox.pending(), b"");
}

proptest! {
    /// However the kernel takes it: whole lines, in order, none twice, and the count of the missed ones is right.
    #[test]
    fn what_arrives_is_whole_lines_in_order(steps in prop::collection::vec((0usize..4, 0usize..20), 1..200), limit in 0usize..64) {
        let mut outbox = Outbox::new(limit, Slow::Drop);
        let (mut queued, mut dropped, mut arrived, mut number) = (0u64, 0, String::new(), 0);
        for (pushes, take) in steps {
            for _ in 0..pushes {
                number += 1;
                match outbox.push(format!("{number}\n").as_bytes()) {
                    Fit::Queued => queued += 1,
                    _ => dropped += 1,
                }
            }
            arrived += &send(&mut outbox, take);
        }
        while !outbox.pending().is_empty() {
            arrived += &send(&mut outbox, 7);
        }
        let (mut last, mut lines, mut missed) = (0, 0, 0);
        for text in arrived.lines() {
            match text.strip_prefix("* you missed ") {
                Some(rest) => missed += rest.split(' ').next().unwrap().parse::<u64>().unwrap(),
                None => {
                    let this: u64 = text.parse().unwrap();
                    prop_assert!(this > last);
                    (last, lines) = (this, lines + 1);
                }
            }
        }
        prop_assert_eq!((lines, missed), (queued, dropped));
    }
}
