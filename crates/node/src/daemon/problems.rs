//! Translates errors from below into the words and codes of the API.

use rekindle_api::engine_problems::no_ram;
use rekindle_api::problem::{Code, Problem};
use rekindle_engine::catalog::CatalogError;
use rekindle_engine::pause::{CommitError, PauseError};
use rekindle_engine::read_plan::ReadError;
use rekindle_keeper::KeeperError;
use rekindle_vmm::firecracker::{self, FirecrackerError, NotFirecracker, SpecError};
use rekindle_vmm::qemu::{Misfit, NoQemu, QemuError};
use rekindle_vmm::vmm_process::ProcessError;
use rustix::io::Errno;

fn is_misfit_itself(cause: &(dyn std::error::Error + 'static)) -> bool {
    // The drivers' errors say what theirs do, and are not among their causes.
    let is_of_firecracker = |error: &FirecrackerError| {
        use FirecrackerError::{Jail, Misfit, OtherBytes, Program, Spec};
        matches!(error, Jail(_) | Misfit(_) | OtherBytes { .. } | Program(_) | Spec(_))
    };
    matches!(cause.downcast_ref(), Some(QemuError::Misfit(_)))
        || cause.downcast_ref().is_some_and(is_of_firecracker)
        || cause.is::<Misfit>()
        || cause.is::<NoQemu>()
        || cause.is::<firecracker::Misfit>()
        || cause.is::<NotFirecracker>()
        || cause.is::<SpecError>()
}

/// True if pages could not be read because of the store: it is away, silent, refuses, or has not the right bytes.
fn is_of_store(cause: &(dyn std::error::Error + 'static)) -> bool {
    matches!(cause.downcast_ref(), Some(ReadError::Fetch(error)) if error.is_of_source())
}

/// The code of a cause that is not the guest's or its VMM's own failure.
fn code_of(cause: &(dyn std::error::Error + 'static)) -> Option<Code> {
    let is_of_keeper = cause.is::<KeeperError>()
        || matches!(cause.downcast_ref(), Some(CommitError::Keeper(_)))
        || matches!(cause.downcast_ref(), Some(ProcessError::Keeper { .. }));
    let is_of_disk = cause.is::<CatalogError>();
    is_misfit_itself(cause)
        .then_some(Code::Misfit)
        .or(is_of_keeper.then_some(Code::KeeperFailed))
        .or(is_of_disk.then_some(Code::DiskFailed))
        .or(is_of_store(cause).then_some(Code::StoreFailed))
}

/// A failure of the system or a VMM during an operation on a guest.
pub(super) fn guest_failed(error: anyhow::Error) -> Problem {
    match error.downcast::<Problem>() {
        Ok(problem) => problem,
        Err(error) => {
            let code = error.chain().find_map(code_of).unwrap_or(Code::GuestFailed);
            Problem::new(code, told(&error))
        }
    }
}

/// A problem with the setting that is behind it, where that is the number of open files: the system's words do not say so,
/// and come from everywhere.
pub(super) fn with_setting(problem: Problem) -> Problem {
    let words = [Errno::MFILE, Errno::NFILE].map(|errno| errno.to_string());
    let is_of_files = words.iter().any(|words| problem.detail.contains(words));
    if !is_of_files || problem.detail.contains("LimitNOFILE") {
        return problem;
    }
    let detail = format!(
        "{}: the daemon or its keeper has as many files open as it may: end something, or raise LimitNOFILE of both units \
         (`ulimit -n` at a prompt)",
        problem.detail
    );
    Problem { detail, ..problem }
}

/// The problem of new disks whose images are not taken into memory.
pub(super) fn no_room_for_disks(error: PauseError) -> Problem {
    match error {
        PauseError::Budget(error) => {
            Problem::new(Code::NoRam, format!("its disks are taken into RAM first: {}", no_ram(&error)))
        }
        error @ (PauseError::Lost { .. }
        | PauseError::Unsealed { .. }
        | PauseError::Unpublished { .. }
        | PauseError::Domain(_)
        | PauseError::Unwanted) => error.into(),
    }
}

/// An error with its causes, each once: some errors have the words of theirs among their own.
fn told(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context as _;

    use super::*;

    #[test]
    fn what_does_not_fit_is_told_by_its_kind_whichever_driver_says_it() {
        let none = || NotFirecracker::NoVersion { program: "/bin/true".into(), said: String::new() };
        let misfit = || firecracker::Misfit::CpuVendor { saved: "one".to_owned(), found: "two".to_owned() };
        let bytes = FirecrackerError::OtherBytes {
            path: "/disk".into(),
            expected: "1".to_owned(),
            found: "2".to_owned(),
        };
        let misfits: [anyhow::Error; 6] = [
            FirecrackerError::Program(none()).into(),
            FirecrackerError::Misfit(misfit()).into(),
            bytes.into(),
            none().into(),
            misfit().into(),
            QemuError::Misfit(Misfit::OtherCpu { made_on: "one".to_owned(), found: "two".to_owned() }).into(),
        ];
        for error in misfits {
            assert_eq!(guest_failed(error).code, Code::Misfit);
        }
        let other = FirecrackerError::System { doing: "looking", source: io::Error::other("no") };
        assert_eq!(guest_failed(other.into()).code, Code::GuestFailed);
    }

    #[test]
    fn a_problem_of_open_files_names_the_setting_once() {
        let of = |code| guest_failed(io::Error::from_raw_os_error(code).into());
        let told = with_setting(of(Errno::MFILE.raw_os_error()));
        assert!(told.detail.ends_with("raise LimitNOFILE of both units (`ulimit -n` at a prompt)"), "{told}");
        assert_eq!(with_setting(told.clone()).detail, told.detail);
        let other = of(Errno::NOSPC.raw_os_error());
        assert_eq!(with_setting(other.clone()).detail, other.detail);
    }

    #[test]
    fn a_cause_whose_words_were_said_is_not_said_again() {
        let cause = firecracker::Misfit::CpuVendor { saved: "one".to_owned(), found: "two".to_owned() };
        let words = cause.to_string();
        let error = anyhow::Error::from(FirecrackerError::Misfit(cause)).context("resuming");
        assert_eq!(guest_failed(error).detail, format!("resuming: the VM cannot run here: {words}"));
        let error = Err::<(), _>(io::Error::other("no")).context("looking").expect_err("it is one");
        assert_eq!(guest_failed(error).detail, "looking: no");
    }
}
