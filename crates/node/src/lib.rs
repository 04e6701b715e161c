//! The program `rekindle`.
