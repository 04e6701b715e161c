//! Arguments of the hidden subcommand that starts the keeper.

use std::path::PathBuf;

use clap::Args;

/// Path of the keeper's socket.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct KeeperArguments {
    /// The socket it is asked over; a file beside it makes this keeper the only one
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
}
