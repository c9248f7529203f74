fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server00-iterative"), env!("CARGO_MANIFEST_DIR"))
}
