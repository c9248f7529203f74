fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server01-fork"), env!("CARGO_MANIFEST_DIR"))
}
