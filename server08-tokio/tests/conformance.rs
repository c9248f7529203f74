fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server08-tokio"), env!("CARGO_MANIFEST_DIR"))
}
