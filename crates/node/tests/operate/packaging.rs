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
            let named = asset.split_once('*').map_or(asset, |(directory, _)| directory);
            let path = repository().join("crates/node").join(named);
            assert!(path.exists(), "{asset} is in the repository");
        }
    }
}

#[test]
fn every_page_that_the_packaged_readme_links_to_is_in_the_package_at_that_place() {
    let manifest = file("crates/node/Cargo.toml");
    let readme = file("README.md");
    let links = readme.split("](").skip(1).filter_map(|after| after.split([')', '#']).next());
    let pages: Vec<&str> = links.filter(|link| !link.is_empty() && !link.contains("://")).collect();
    assert!(pages.len() > 5, "{pages:?}");
    for page in pages {
        let (directory, name) =
            page.rsplit_once('/').map_or(("", page), |(directory, name)| (directory, name));
        let slash = if directory.is_empty() { "" } else { "/" };
        let place = format!("usr/share/doc/rekindle/{directory}{slash}");
        let whole = format!("[\"../../{page}\", \"{place}\"");
        let all = format!("[\"../../{directory}{slash}*.md\", \"{place}\"");
        assert!(
            manifest.contains(&whole) || name.ends_with(".md") && manifest.contains(&all),
            "{page} is linked to and not in the package"
        );
    }
}
