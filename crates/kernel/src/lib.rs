//! What Linux lends rekindle.
