use super::*;

fn input(now: Instant) -> Input {
    let mut input = Input::new(&Limits::default(), now);
    input.feed(b"bob\n");
    assert_eq!(input.next(now), Next::Event(Event::Line("bob".into())));
    input
}

#[test]
fn a_thousand_lines_are_slowed_and_not_lost() {
    let start = Instant::now();
    let mut input = input(start);
    let mut now = start;
    let mut texts = (0..1000).map(|nth| format!("line {nth}"));
    let all: String = texts.clone().map(|text| text + "\n").collect();
    let mut chunks = all.as_bytes().chunks(4096);
    loop {
        match input.next(now) {
            Next::Event(Event::Line(text)) => assert_eq!(Some(text), texts.next()),
            Next::Event(other) => panic!("{other:?}"),
            Next::Wait(until) => {
                assert!(until > now);
                now = until;
            }
            Next::Read => match chunks.next() {
                Some(chunk) => input.feed(chunk),
                None => break,
            },
        }
    }
    assert_eq!(texts.next(), None);
    // 19 at once (the nick was one of the burst), the others at ten a second.
    assert_eq!(now - start, Duration::from_millis(98_100));
}

#[test]
fn flood_without_end_is_too_fast() {
    let start = Instant::now();
    let mut input = input(start);
    let mut now = start;
    let mut lines = 0;
    loop {
        match input.next(now) {
            Next::Event(Event::TooFast) => break,
            Next::Event(_) => lines += 1,
            Next::Wait(until) => now = until,
            Next::Read => input.feed(&b"x\n".repeat(100)),
        }
    }
    assert!((99..=101).contains(&(now - start).as_secs()), "{:?}", now - start);
    assert!((1000..1050).contains(&lines), "{lines}");
    input.feed(b"more\n");
    assert_eq!(input.next(now), Next::Read, "the last event was the last");
}

#[test]
fn a_quiet_time_is_a_fresh_start() {
    let mut now = Instant::now();
    let mut input = input(now);
    for _ in 0..50 {
        input.feed(&b"x\n".repeat(60));
        loop {
            match input.next(now) {
                Next::Event(event) => assert_eq!(event, Event::Line("x".into())),
                Next::Wait(until) => now = until,
                Next::Read => break,
            }
        }
        now += Duration::from_secs(3);
    }
}

#[test]
fn a_long_first_line_is_no_nick() {
    let now = Instant::now();
    let mut first = Input::new(&Limits::default(), now);
    first.feed(&[b'x'; FIRST_MAX]);
    assert_eq!(first.next(now), Next::Event(Event::TooLong));
    assert_eq!(first.next(now), Next::Read);

    let mut input = input(now);
    input.feed(&[b'x'; LINE_MAX - 1]);
    assert_eq!(input.next(now), Next::Read);
    input.feed(b"\n");
    assert!(matches!(input.next(now), Next::Event(Event::Line(_))));
}
