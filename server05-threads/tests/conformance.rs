fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server05-threads"), env!("CARGO_MANIFEST_DIR"))
}
