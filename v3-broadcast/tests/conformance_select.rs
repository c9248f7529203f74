fn main() {
    let variant = ["--poller", "select"];
    testkit::chat::conformance_with(
        env!("CARGO_BIN_EXE_v3-broadcast"),
        env!("CARGO_MANIFEST_DIR"),
        &variant,
    )
}
