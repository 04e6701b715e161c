//! The units, the package and the example settings against the program.

use crate::{file, repository};

#[test]
fn the_units_start_the_program_the_package_installs() {
    let manifest = file("crates/node/Cargo.toml");
    assert!(manifest.contains("\"usr/bin/\""), "the package installs into /usr/bin");
    for (unit, command) in [("rekindle", "serve"), ("rekindle-keeper", "keeper")] {
        let text = file(&format!("packaging/systemd/{unit}.service"));
        let start = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/rekindle ")).unwrap();
        assert_eq!(start.split(' ').next(), Some(command));
        assert!(text.contains("\nType=notify\n") && text.contains("\nWatchdogSec="), "{unit} is watched");
        assert!(text.contains("\nKillMode=process\n"), "{unit} leaves guests alone");
        assert!(text.contains("\nRuntimeDirectoryPreserve=yes\n"), "{unit} leaves the other's sockets alone");
    }
}

#[test]
fn every_file_the_package_names_is_there_or_made_by_its_script() {
    let manifest = file("crates/node/Cargo.toml");
    let script = file("packaging/package.sh");
    let assets: Vec<&str> = manifest
        .lines()
        .skip_while(|line| !line.starts_with("assets"))
        .take_while(|line| !line.starts_with(']'))
        .filter_map(|line| line.trim().strip_prefix("[\"")?.split('"').next())
        .collect();
    assert!(assets.len() > 5, "{assets:?}");
    for asset in assets {
        if let Some(made) = asset.strip_prefix("../../target/package/") {
            let kind = made.split('/').next().unwrap();
            assert!(script.contains(kind), "{asset} is made by packaging/package.sh");
        } else if !asset.starts_with("target/release/") {
            let path = repository().join("crates/node").join(asset);
            assert!(path.exists(), "{asset} is in the repository");
        }
    }
}
