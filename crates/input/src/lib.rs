//! Files and clients as requests name them: a file is regular and of a bounded size, a client still waits or is gone.

pub mod asker;
pub mod regular_file;
