fn main() {
    testkit::chat::conformance(env!("CARGO_BIN_EXE_v2-select"), env!("CARGO_MANIFEST_DIR"))
}
