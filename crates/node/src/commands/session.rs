//! The surroundings of every command: its output, and the way to reach the daemon.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use rekindle_api::client::{Client, Endpoint, RemoteOptions};
use rekindle_settings::{SettingFlags, Settings, Source};

use super::output::Output;

/// Under which words help lists the flags that every command takes.
const EVERYWHERE: &str = "Everywhere";

/// The socket of a daemon that the whole system shares.
const SYSTEM_SOCKET: &str = "/run/rekindle/api.sock";

/// Options of every command.
#[derive(Args, Clone, Debug, Default)]
pub struct GlobalArguments {
    /// Print JSON, for programs
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub json: bool,
    /// The settings file [default: first found of ~/.config/rekindle/rekindle.toml, /etc/rekindle/rekindle.toml]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// The daemon's unix socket [default: the setting api.socket]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// The daemon at https://HOST:PORT, over TCP [env: REKINDLE_URL]
    #[arg(long, global = true, hide_short_help = true, help_heading = EVERYWHERE, value_name = "URL", conflicts_with = "socket")]
    pub url: Option<String>,
    /// The file with the token for --url [env: REKINDLE_TOKEN_FILE]
    #[arg(long, global = true, hide_short_help = true, help_heading = EVERYWHERE, value_name = "PATH")]
    pub token_file: Option<PathBuf>,
    /// The file with the certificate to trust for --url, PEM [env: REKINDLE_CA_FILE]
    #[arg(long, global = true, hide_short_help = true, help_heading = EVERYWHERE, value_name = "PATH")]
    pub ca_file: Option<PathBuf>,
}

/// One run of the program.
#[derive(Debug)]
pub struct Session {
    /// The command's output.
    pub output: Output,
    arguments: GlobalArguments,
}

impl Session {
    /// As the command line says.
    pub fn new(arguments: GlobalArguments) -> Self {
        Self { output: Output::of_process(arguments.json), arguments }
    }

    /// Flags for settings, those included that every command takes.
    pub fn setting_flags(&self, flags: SettingFlags) -> SettingFlags {
        let socket = self.arguments.socket.as_ref().map(|path| path.display().to_string());
        flags.with_config(self.arguments.config.clone()).with("api.socket", "--socket", socket)
    }

    /// The daemon that the command line, the environment or the settings name.
    pub fn client(&self) -> anyhow::Result<Client> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let url = self.arguments.url.clone().or_else(|| variable("REKINDLE_URL")?.into_string().ok());
        match url.filter(|_| self.arguments.socket.is_none()) {
            Some(url) => {
                Endpoint::check_url(&url)?;
                let file = |given: &Option<PathBuf>, name: &str| {
                    given.clone().or_else(|| variable(name).map(PathBuf::from))
                };
                let token_file = file(&self.arguments.token_file, "REKINDLE_TOKEN_FILE").context(
                    "the daemon at a URL asks for its token: give --token-file PATH, or set REKINDLE_TOKEN_FILE",
                )?;
                let authorities = file(&self.arguments.ca_file, "REKINDLE_CA_FILE").context(
                    "the daemon at a URL is known by its certificate: give --ca-file PATH, or set REKINDLE_CA_FILE",
                )?;
                Ok(Client::new(Endpoint::remote(&RemoteOptions { url, token_file, authorities })?))
            }
            None => {
                let settings = Settings::load(&self.setting_flags(SettingFlags::default()))?;
                Ok(Client::of_socket(self.socket(&settings)))
            }
        }
    }

    /// The daemon's socket. If none is given, and this user runs no daemon, it is the one the system shares.
    pub fn socket(&self, settings: &Settings) -> PathBuf {
        let own = settings.api.socket.clone();
        let unsaid = ["api.socket", "run_directory", "state_directory"]
            .into_iter()
            .all(|name| *settings.source(name) == Source::Default);
        let shared = PathBuf::from(SYSTEM_SOCKET);
        if unsaid && !own.exists() && shared.exists() { shared } else { own }
    }
}
