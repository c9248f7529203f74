fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server06a-queue"), env!("CARGO_MANIFEST_DIR"))
}
