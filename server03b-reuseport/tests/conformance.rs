fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server03b-reuseport"), env!("CARGO_MANIFEST_DIR"))
}
