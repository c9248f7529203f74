fn main() {
    testkit::conformance(env!("CARGO_BIN_EXE_server02b-epoll"), env!("CARGO_MANIFEST_DIR"))
}
