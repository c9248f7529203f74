fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server02c-mio"), env!("CARGO_MANIFEST_DIR"))
}
