fn main() {
    testkit::chat::conformance(env!("CARGO_BIN_EXE_v3-broadcast"), env!("CARGO_MANIFEST_DIR"))
}
