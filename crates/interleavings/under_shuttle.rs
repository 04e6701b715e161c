//! Compiles the engine with Shuttle's primitives in the place of the standard library's.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(shuttle)");
    println!("cargo::rustc-cfg=shuttle");
    println!("cargo::rerun-if-changed=under_shuttle.rs");
}
