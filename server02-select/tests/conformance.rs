fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server02-select"), env!("CARGO_MANIFEST_DIR"))
}
