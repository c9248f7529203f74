fn main() {
    testkit::chat::conformance(env!("CARGO_BIN_EXE_v1-threads"), env!("CARGO_MANIFEST_DIR"))
}
