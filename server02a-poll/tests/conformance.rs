fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server02a-poll"), env!("CARGO_MANIFEST_DIR"))
}
