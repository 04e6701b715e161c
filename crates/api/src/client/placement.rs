//! Calls that ask where bytes are.

use super::{Client, Result};
use crate::operations::{SHOW_NODE_PLACEMENT, SHOW_PLACEMENT};
use crate::types::{NodePlacement, Placement, PlacementQuery};

impl Client {
    /// Asks for the node's state, and for how near a resume of these snapshots would be there.
    pub fn node_placement(&self, query: &PlacementQuery) -> Result<NodePlacement> {
        self.ask(&SHOW_NODE_PLACEMENT, &(), query)
    }

    /// The layers a snapshot is made of and their places.
    pub fn placement(&self, reference: &str) -> Result<Placement> {
        self.ask(&SHOW_PLACEMENT, reference, &())
    }
}
