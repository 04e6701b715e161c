//! What a snapshot is and how it lives.
