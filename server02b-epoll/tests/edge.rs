fn main() {
    testkit::conformance_with(env!("CARGO_BIN_EXE_server02b-epoll"), env!("CARGO_MANIFEST_DIR"), &["--edge"])
}
