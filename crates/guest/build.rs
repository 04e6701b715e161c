//! Makes the guests that machines boot, of freestanding C, so that nothing but a C compiler is needed.

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
    println!("cargo::rerun-if-changed=programs");
    println!("cargo::rerun-if-env-changed=CC");
    let flat = ["-m32", "-march=i686", "-Wl,-T,programs/tiny.ld", "-Wl,--oformat=binary"];
    let image = compile("tiny.c", "tiny.image", &flat);
    let image = format!("-DIMAGE=\"{}\"", image.display());
    // One stretch of memory, writable all of it, that starts anywhere in the file.
    let one_stretch = ["-m64", "-Wl,-T,programs/entry.ld", "-Wl,--no-warn-rwx-segments", "-Wl,-n", &image];
    compile("entry.S", "tiny.elf", &one_stretch);
    compile("init.c", "init", &["-m64", "-march=x86-64"]);
}

/// Compiles `source` of `programs/` into the file `program` beside what Cargo makes of this crate; its path.
fn compile(source: &str, program: &str, flags: &[&str]) -> PathBuf {
    let into = PathBuf::from(std::env::var_os("OUT_DIR").expect("Cargo names the directory")).join(program);
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let mut command = Command::new(&compiler);
    command.args(FLAGS).args(flags).arg("-o").arg(&into).arg(Path::new("programs").join(source));
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => fail(&format!(
            "the guests in crates/guest/programs are compiled by a C compiler, and `{}` cannot be run: {error} \
             (on Debian: apt-get install gcc)",
            compiler.display()
        )),
    };
    if !output.status.success() {
        fail(&format!(
            "`{}` does not compile crates/guest/programs/{source}:\n{}",
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
