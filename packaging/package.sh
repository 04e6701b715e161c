#!/usr/bin/env bash
# Makes the Debian package: target/debian/rekindle_*.deb, or wherever CARGO_TARGET_DIR says. With the word `tools` it only
# installs the tool for that, if it is not there.
set -euo pipefail
cd "$(dirname "$0")/.."

CARGO_DEB_VERSION=3.8.0

cargo deb --version 2>/dev/null | grep -qwF "$CARGO_DEB_VERSION" ||
    cargo install cargo-deb --locked --version "$CARGO_DEB_VERSION" --debug --no-default-features --force
[ "${1-}" != tools ] || exit 0
# The default members: the program, and the library that is preloaded into QEMU.
cargo build --release --locked
program=${CARGO_TARGET_DIR:-target}/release/rekindle

# Texts that the program makes: man pages and completions.
made=target/package
rm -rf "$made"
mkdir -p "$made/man" "$made/completions"
"$program" man --directory "$made/man"
gzip -9n "$made"/man/*.1
"$program" completions bash >"$made/completions/rekindle"
"$program" completions zsh >"$made/completions/_rekindle"
"$program" completions fish >"$made/completions/rekindle.fish"

# Without debug information, which is four fifths of the program; it stays in the program that was built.
cargo deb --package rekindle --no-build --locked --strip
