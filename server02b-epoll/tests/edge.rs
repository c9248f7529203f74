fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server02b-edge"), env!("CARGO_MANIFEST_DIR"))
}
