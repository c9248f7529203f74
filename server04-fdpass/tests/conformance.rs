fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server04-fdpass"), env!("CARGO_MANIFEST_DIR"))
}
