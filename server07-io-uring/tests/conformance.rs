fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server07-io-uring"), env!("CARGO_MANIFEST_DIR"))
}
