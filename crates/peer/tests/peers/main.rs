//! Nodes that read from each other over real connections, each with an engine of its own.

mod failures;
mod fleet;
mod layers;
mod messages;
mod strangers;
mod window;
