//! Makes the library that is preloaded into QEMU, which the program carries.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes the library of `crates/shim`, of the same sources and with the same lock file, beside what Cargo makes of this
/// crate. Cargo itself has no stable way to carry one package's library in another's program.
fn main() {
    let workspace = Path::new("../..");
    for source in
        ["../shim/src", "../shim/Cargo.toml", "../kernel/src", "../kernel/Cargo.toml", "../../Cargo.lock"]
    {
        println!("cargo::rerun-if-changed={source}");
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("Cargo names the directory"));
    let cargo = std::env::var_os("CARGO").expect("Cargo names itself");
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--locked", "--release", "--package", "rekindle-shim", "--lib"])
        .arg("--manifest-path")
        .arg(workspace.join("Cargo.toml"))
        .arg("--target-dir")
        .arg(out.join("shim"))
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        // Clippy checks the library where it is a package of its own.
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    let made = command.output().unwrap_or_else(|error| fail(&format!("Cargo cannot be run again: {error}")));
    if !made.status.success() {
        fail(&format!("crates/shim cannot be made:\n{}", String::from_utf8_lossy(&made.stderr)));
    }
    let library = out.join("shim/release/librekindle_shim.so");
    if let Err(error) = std::fs::copy(&library, out.join("librekindle_shim.so")) {
        fail(&format!("{} cannot be copied: {error}", library.display()));
    }
}

/// Ends the compilation, saying why where Cargo shows it.
fn fail(why: &str) -> ! {
    for line in why.lines() {
        println!("cargo::error={line}");
    }
    std::process::exit(1);
}
