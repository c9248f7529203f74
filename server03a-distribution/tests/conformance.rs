fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server03a-distribution"), env!("CARGO_MANIFEST_DIR"))
}
