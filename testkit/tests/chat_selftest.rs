//! The chat suite against chats that are broken on purpose: each one has to be caught, and for the right reason.
#![allow(clippy::unwrap_used)]

use std::panic::{AssertUnwindSafe, catch_unwind};

use testkit::catalogue::{Example, Overload, SlowReader, Table};
use testkit::chat::{Subject, rows};

/// What one row says of a rig; nothing where it passes.
fn verdict(row: &str, fault: &str) -> String {
    let table = Table {
        family: "chat".into(),
        worker: "one thread per client".into(),
        overload: Overload::Refuse,
        slots: 1000,
        slots_flag: None,
        slow_reader: Some(SlowReader::Kick),
        syscalls: Vec::new(),
        chapter: String::new(),
        variants: Vec::new(),
    };
    let example = Example { name: "chat-rig".into(), description: String::new(), dir: ".".into(), table };
    let variant = vec!["--fault".to_owned(), fault.to_owned()];
    let subject = Subject { bin: env!("CARGO_BIN_EXE_chat-rig").into(), variant, example };
    let run = rows().into_iter().find(|(name, _)| *name == row).unwrap().1;
    match catch_unwind(AssertUnwindSafe(|| run(&subject))) {
        Ok(()) => String::new(),
        Err(panic) => match panic.downcast::<String>() {
            Ok(text) => *text,
            Err(panic) => (*panic.downcast::<&str>().unwrap()).to_owned(),
        },
    }
}

/// One of these reasons, with `|` between them.
macro_rules! caught {
    ($($name:ident: $fault:literal by $row:literal => $words:literal;)*) => {
        $(#[test]
        fn $name() {
            let verdict = verdict($row, $fault);
            assert!($words.split('|').any(|words| verdict.contains(words)), "a chat that {} passed {} for: '{verdict}'", $fault, $row);
        })*
    };
}

caught! {
    echo: "echoes to the sender" by "sender_is_not_echoed" => "<bob> hi";
    echo_in_the_history: "echoes to the sender" by "history_under_a_nemesis" => "came back";
    lost_line: "loses a line" by "two_senders_one_order" => "Silence";
    lost_line_in_the_history: "loses a line" by "history_under_a_nemesis" => ": two orders: |Silence before the end";
    doubled_leave_line: "doubles the leave line" by "leave_line_once_whatever_the_cause" => "left (";
    doubled_leave_line_in_the_history: "doubles the leave line" by "history_under_a_nemesis" => ")' came 2 times";
    two_orders: "keeps two orders" by "two_senders_one_order" => "order";
    two_orders_in_the_history: "keeps two orders" by "history_under_a_nemesis" => "two orders: ";
    long_line: "does not close at a long line" by "K10_longest_line" => "Silence";
    blocked: "blocks on a slow reader" by "slow_reader" => "Silence before a line of the flood";
}

#[test]
fn a_healthy_chat_passes() {
    for row in [
        "K01_join",
        "K10_longest_line",
        "sender_is_not_echoed",
        "two_senders_one_order",
        "leave_line_once_whatever_the_cause",
        "half_close_means_leave",
        "slow_reader",
        "history_under_a_nemesis",
    ] {
        assert_eq!(verdict(row, "none"), "", "{row}");
    }
}
