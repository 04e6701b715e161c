//! The program.

use std::env;

fn main() -> anyhow::Result<()> {
    let mut words = env::args_os().skip(1);
    match words.next() {
        Some(word) if word == "guest" => rekindle::guest::run(words),
        _ => anyhow::bail!("usage: rekindle guest"),
    }
}
