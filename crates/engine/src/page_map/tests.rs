//! The page map against a plain list of places.
