//! How the keeper is started: the arguments of the hidden subcommand.

use std::path::PathBuf;

use clap::Args;

/// Where the keeper listens.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct KeeperArguments {
    /// The socket it is asked over; a file beside it makes this keeper the only one
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
}
