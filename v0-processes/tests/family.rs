//! What this version promises beyond the chats' suite.
