//! The chats' conformance suite against this server.

fn main() {
    testkit::chat::conformance(env!("CARGO_BIN_EXE_v0-processes"), env!("CARGO_MANIFEST_DIR"));
}
