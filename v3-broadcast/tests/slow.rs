//! What else may happen to a reader that is slower than the room: `--slow`.

/// The suite's row, which knows what each policy promises.
fn slow(policy: &str) {
    let bin = env!("CARGO_BIN_EXE_v3-broadcast");
    testkit::chat::row(bin, env!("CARGO_MANIFEST_DIR"), &["--slow", policy], "slow_reader");
}

#[test]
fn grow_keeps_every_line() {
    slow("grow");
}

#[test]
fn drop_misses_lines_and_says_so() {
    slow("drop");
}
