//! Manifests against models, and publications against damage.
