//! What a snapshot is and how it lives.

pub mod limits;
pub mod geometry;
pub mod identity;
pub mod wire;
pub mod page_set;
pub mod ranked_set;
pub mod page_map;
pub mod frame;
pub mod layer_index;
pub mod manifest;
