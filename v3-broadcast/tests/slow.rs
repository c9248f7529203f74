//! The other policies for a reader that is slower than the room: `--slow`.

/// The suite's row, which checks what each policy promises.
fn slow(policy: &str) {
    let bin = env!("CARGO_BIN_EXE_v3-broadcast");
    testkit::chat::row(bin, env!("CARGO_MANIFEST_DIR"), &["--slow", policy], "slow_reader");
}

#[test]
fn grow_keeps_every_line() {
    slow("grow");
}

#[test]
fn drop_counts_the_missed_lines() {
    slow("drop");
}
