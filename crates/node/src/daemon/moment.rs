//! Errors that may be over a moment later.

use std::io;

use rekindle_keeper::KeeperError;
use rustix::io::Errno;

/// True if an error may be over a moment later: the system was short of something, a disk failed, or the keeper did not
/// answer.
pub(super) fn is_of_the_moment(error: &anyhow::Error) -> bool {
    let is_silence = |cause: &(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref::<KeeperError>(), Some(KeeperError::Unreachable { .. }))
    };
    if error.chain().any(is_silence) {
        return true;
    }
    let moments =
        [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN, Errno::IO, Errno::NOSPC, Errno::DQUOT];
    let code = |cause: &(dyn std::error::Error + 'static)| {
        let of_system = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        of_system.or_else(|| cause.downcast_ref::<Errno>().map(|errno| errno.raw_os_error()))
    };
    error.chain().filter_map(code).any(|code| moments.iter().any(|errno| errno.raw_os_error() == code))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use rekindle_keeper::KeeperClient;

    use super::*;

    #[test]
    fn too_few_descriptors_are_of_the_moment_and_a_missing_file_is_not() {
        let of = |errno: Errno| anyhow::Error::from(io::Error::from(errno)).context("taking a guest over");
        assert!(is_of_the_moment(&of(Errno::MFILE)) && is_of_the_moment(&of(Errno::IO)));
        assert!(!is_of_the_moment(&of(Errno::NOENT)));
        let unknown = Err::<(), _>(io::Error::other("no")).context("looking").expect_err("it is one");
        assert!(!is_of_the_moment(&unknown));
    }

    #[test]
    fn a_keeper_that_does_not_answer_is_of_the_moment() {
        let directory = tempfile::tempdir().expect("a directory");
        let absent =
            KeeperClient::connect(&directory.path().join("keeper.sock")).expect_err("nobody listens");
        assert!(is_of_the_moment(&anyhow::Error::from(absent).context("taking a guest over")));
    }
}
