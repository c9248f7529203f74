fn main() {
    testkit::chat::conformance(env!("CARGO_BIN_EXE_v4-async"), env!("CARGO_MANIFEST_DIR"))
}
