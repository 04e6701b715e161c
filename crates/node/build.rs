//! Makes what the program carries: the guests, of freestanding C, so that nothing but a C compiler is needed, and the
//! library that is preloaded into QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiler flags of both guests: no library, no start-up code, nothing that differs from machine to machine.
const FLAGS: [&str; 18] = [
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    // Else a loop that copies becomes a call to the memcpy that is not there.
    "-fno-tree-loop-distribute-patterns",
    "-fcf-protection=none",
    "-mgeneral-regs-only",
    "-s",
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
];

fn main() {
    println!("cargo::rerun-if-changed=guests");
    println!("cargo::rerun-if-env-changed=CC");
    let flat = ["-m32", "-march=i686", "-Wl,-T,guests/tiny.ld", "-Wl,--oformat=binary"];
    let image = compile("tiny.c", "tiny.image", &flat);
    let image = format!("-DIMAGE=\"{}\"", image.display());
    // One stretch of memory, writable all of it, that starts anywhere in the file.
    let one_stretch = ["-m64", "-Wl,-T,guests/entry.ld", "-Wl,--no-warn-rwx-segments", "-Wl,-n", &image];
    compile("entry.S", "tiny.elf", &one_stretch);
    compile("init.c", "init", &["-m64", "-march=x86-64"]);
    make_library();
}

/// Makes the library of `crates/shim`, of the same sources and with the same lock file, beside what Cargo makes of this
/// crate. Cargo itself has no stable way to carry one package's library in another's program.
fn make_library() {
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

/// Compiles `source` of `guests/` into the file `program` beside what Cargo makes of this crate; its path.
fn compile(source: &str, program: &str, flags: &[&str]) -> PathBuf {
    let into = PathBuf::from(std::env::var_os("OUT_DIR").expect("Cargo names the directory")).join(program);
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(&compiler);
    command.args(FLAGS).args(flags).arg("-o").arg(&into).arg(Path::new("guests").join(source));
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => fail(&format!(
            "the guests in crates/node/guests are compiled by a C compiler, and `{}` cannot be run: {error} \
             (on Debian: apt-get install gcc)",
            compiler.display()
        )),
    };
    if !output.status.success() {
        fail(&format!(
            "`{}` does not compile crates/node/guests/{source}:\n{}",
            compiler.display(),
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    into
}

/// Ends the compilation, saying why where Cargo shows it.
fn fail(why: &str) -> ! {
    for line in why.lines() {
        println!("cargo::error={line}");
    }
    std::process::exit(1);
}
