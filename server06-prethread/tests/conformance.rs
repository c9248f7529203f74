fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server06-prethread"), env!("CARGO_MANIFEST_DIR"))
}
