//! The operations that tell where bytes are, from what the daemon has in memory.

use super::*;
use crate::types::{NodePlacement, PlacementQuery};

pub(crate) const SHOW_NODE_PLACEMENT: Operation<Nothing, InQuery<PlacementQuery>, Json<NodePlacement>> =
    Operation::get("show_node_placement", "/v1/placement", "snapshots")
        .does("Tells a scheduler what this node has, and how near a resume of each snapshot would be here.")
        .more(
            "It is answered from what the daemon has in memory: no store, no other node and no disk is asked, so that an answer \
             never\nwaits. A snapshot that this node does not know is `remote`, also if there is none. Later changes come as \
             events of kind\n`snapshot.placed`, whose `detail` is the new hint.",
        )
        .answers(200, "The node");

pub(crate) const SHOW_PLACEMENT: Operation<OfSnapshot, NoInput, Json<Placement>> = Operation::get(
    "show_placement",
    "/v1/snapshots/{reference}/placement",
    "snapshots",
)
.does(
    "Shows the layers that a snapshot is made of and their places, without waiting for a seal or the store.",
)
.more("A snapshot that this node does not know is not looked for in the store: it is `not_found`.")
.answers(200, "The layers")
.fails(&[Code::NotYet, Code::Lost]);
