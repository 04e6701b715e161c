//! Compiles the guests that machines boot from freestanding C; this needs only a C compiler.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Compiler flags of both guests: no library, no start-up code, the same output on every machine.
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
    // Without it a copying loop becomes a call of memcpy, which does not exist here.
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
    // One writable segment, at any offset in the file.
    let one_stretch = ["-m64", "-Wl,-T,programs/entry.ld", "-Wl,--no-warn-rwx-segments", "-Wl,-n", &image];
    compile("entry.S", "tiny.elf", &one_stretch);
    compile("init.c", "init", &["-m64", "-march=x86-64"]);
}

/// Compiles `source` of `programs/` to the file `program` in Cargo's output directory; returns its path.
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

/// Ends the build with a reason that Cargo shows.
fn fail(why: &str) -> ! {
    for line in why.lines() {
        println!("cargo::error={line}");
    }
    std::process::exit(1);
}
