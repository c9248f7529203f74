fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server03-prefork"), env!("CARGO_MANIFEST_DIR"))
}
