//! Checks that Linux can bind the path of every socket to come: at the start, not at the first resume.

use std::path::{Path, PathBuf};

use super::error::SOCKET_PATH_BYTES_MAX;
use super::{Settings, SettingsError};

/// The longest names that sockets in the run directory have; the ids in them are of one length.
const IN_RUN_DIRECTORY: [&str; 5] = [
    "disk-01234567-89ab-7def-8123-456789abcdef-15.sock",
    "faults-01234567-89ab-7def-8123-456789abcdef.sock",
    "firecracker-01234567-89ab-7def-8123-456789abcdef.sock",
    "handover-01234567-89ab-7def-8123-456789abcdef.sock",
    "keeper.sock",
];
/// The longest socket in a jail, below the jailed program's directory.
const IN_JAIL: &str = "01234567-89ab-7def-8123-456789abcdef/root/handover.sock";
/// The program that is jailed where the search path says which.
const PROGRAM: &str = "firecracker";

impl Settings {
    /// Refuses directories in which a socket would have a path that is too long.
    pub fn check_sockets(&self) -> Result<(), SettingsError> {
        let longest = IN_RUN_DIRECTORY.iter().max_by_key(|name| name.len()).expect("there are some");
        self.check_socket("run_directory", &self.run_directory, Path::new(longest))?;
        if let (Some(directory), Some(name)) = (self.api.socket.parent(), self.api.socket.file_name()) {
            self.check_socket("api.socket", directory, Path::new(name))?;
        }
        let Some(jailer) = &self.firecracker.jailer else { return Ok(()) };
        let program = self.firecracker.program.as_deref().and_then(Path::file_name);
        let program = program.map_or_else(|| PathBuf::from(PROGRAM), PathBuf::from);
        self.check_socket("firecracker.jailer.base", &jailer.base, &program.join(IN_JAIL))
    }

    fn check_socket(&self, key: &'static str, directory: &Path, file: &Path) -> Result<(), SettingsError> {
        let bytes = directory.join(file).as_os_str().len();
        if bytes <= SOCKET_PATH_BYTES_MAX {
            return Ok(());
        }
        let (path, file) = (directory.to_owned(), file.to_owned());
        Err(SettingsError::LongSocket { place: self.source(key).clone(), key, path, file, bytes })
    }
}
