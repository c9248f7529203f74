//! The conformance suite with four workers. Without -n the server has one worker per CPU.

fn main() {
    testkit::conformance_with(
        env!("CARGO_BIN_EXE_server03b-reuseport"),
        env!("CARGO_MANIFEST_DIR"),
        &["-n", "4"],
    )
}
