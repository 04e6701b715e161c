//! A panic of any thread ends the daemon. A half-dead daemon would keep guests waiting; after its death the keeper holds
//! everything, and the next daemon goes on as after a kill.

use std::backtrace::Backtrace;
use std::panic::PanicHookInfo;

/// From now on the process ends by SIGABRT at the first panic, once its message was logged.
pub fn end_at_a_panic() {
    std::panic::set_hook(Box::new(|panic| {
        tell(panic);
        std::process::abort();
    }));
}

fn tell(panic: &PanicHookInfo<'_>) {
    let message = panic.payload_as_str().unwrap_or("no message");
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("without a name");
    if tracing::enabled!(tracing::Level::ERROR) {
        let backtrace = Backtrace::capture();
        tracing::error!(
            thread,
            place,
            %backtrace,
            "a bug of rekindle ends the daemon: {message}; guests run on, start the daemon again and report this line"
        );
    } else {
        eprintln!("rekindle: a bug ends the daemon: thread {thread} panicked at {place}: {message}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;
    use std::sync::mpsc::channel;

    use rekindle_engine::geometry::{GuestPage, GuestPages};
    use rekindle_engine::lifecycle::SnapshotState;
    use rekindle_testkit::guest::{Guest, Tracking, judge};
    use rekindle_testkit::random::Random;
    use rekindle_testkit::site::{PATIENCE, Site};
    use rekindle_testkit::stores::{Fault, Operation, Rule};

    const PANICKING: &str = "REKINDLE_TEST_PANICKING";

    /// The words of a process that does no more than this test here, and ends by SIGABRT.
    fn last_words(test: &str) -> String {
        let output = Command::new(std::env::current_exe().expect("this test is a program"))
            .args(["--exact", test, "--nocapture"])
            .env(PANICKING, "1")
            .output()
            .expect("this test runs again");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.signal(), Some(6), "it is SIGABRT: {said}");
        said
    }

    #[test]
    fn a_panic_of_any_thread_is_logged_and_ends_the_process_at_once() {
        let said = last_words("panics::tests::a_process_one_thread_of_which_panics");
        assert!(said.contains("thread snapshot-life panicked at"), "{said}");
        assert!(said.contains("a broken invariant"), "{said}");
    }

    #[test]
    fn a_process_one_thread_of_which_panics() {
        if std::env::var_os(PANICKING).is_none() {
            return;
        }
        super::end_at_a_panic();
        let (held, never) = channel::<()>();
        let begun = std::thread::Builder::new().name("snapshot-life".to_owned());
        drop(begun.spawn(|| assert_eq!(1, 2, "a broken invariant")));
        never.recv().expect("nothing is sent");
        drop(held);
    }

    #[test]
    fn a_panic_of_a_fetch_ends_the_process_so_no_page_waits_for_it_for_ever() {
        let said = last_words("panics::tests::a_process_a_fetch_of_which_panics");
        assert!(said.contains("a bug ends the daemon") && said.contains("a test lets this panic"), "{said}");
    }

    #[test]
    fn a_process_a_fetch_of_which_panics() {
        if std::env::var_os(PANICKING).is_none() {
            return;
        }
        super::end_at_a_panic();
        let site = Site::new().expect("directories");
        let engine = site.engine().expect("threads");
        let mut guest = Guest::fresh(100);
        let all = GuestPages::new(GuestPage::FIRST, 100);
        guest.write_random(&engine, all, &mut Random::new(1)).expect("its own pages");
        let (snapshot, memory) = guest.pause(&engine, Tracking::Exact).expect("there is room").end_vmm();
        assert!(snapshot.wait_state(SnapshotState::Published, PATIENCE));
        let elsewhere = site.elsewhere().expect("directories");
        let other = elsewhere.engine().expect("threads");
        let cold = other.open(snapshot.id()).expect("it is published");
        let _panicking = site.faults.inject(Rule::always(Operation::Get, "layers/", Fault::Panic));
        // A process that lives on after the panic ends without SIGABRT.
        judge(&other, &cold, &memory).err();
    }
}
