//! Checks of the Firecracker that settings name, or that the search path has, and of its jail.

use std::path::PathBuf;

use rekindle_settings::Settings;
use rekindle_vmm::firecracker::Found;

use super::Check;

/// Looks for it.
pub(super) fn look(settings: &Settings) -> Check {
    let (name, told) = ("Firecracker", &settings.firecracker);
    let jail = told.jailer.as_ref();
    if let Some(error) = jail.and_then(|jail| jail.check().err()) {
        return Check::warn(name, error.to_string(), "until then no machine is run with --vmm firecracker");
    }
    let Some(program) = told.program.clone().or_else(in_search_path) else {
        return Check::ok(name, "none in PATH; only machines that are run with --vmm firecracker need it");
    };
    let found = Found::look(&program).map_err(|error| error.to_string());
    let driven = found.and_then(|found| match found.check() {
        Ok(()) => Ok(found.version),
        Err(error) => Err(format!("{}: {error}", program.display())),
    });
    match driven {
        Ok(version) => {
            let jailed =
                jail.map(|jail| format!(", jailed by {} in {}", jail.program.display(), jail.base.display()));
            Check::ok(name, format!("{version} ({}){}", program.display(), jailed.unwrap_or_default()))
        }
        Err(error) => Check::warn(name, error, "set firecracker.program to a Firecracker that is driven"),
    }
}

fn in_search_path() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join("firecracker")).find(|path| path.is_file())
}
