//! Machines that are started, paused, resumed and forked.

use super::support::Host;

#[test]
fn a_machine_goes_on_where_it_stood_while_its_pause_is_still_being_saved() {
    let Some(host) = Host::start() else { return };
    let mut first = host.boot(host.tiny(64));
    first.console.ask("fill 1");
    assert_eq!((first.tick(), first.tick()), (1, 2));
    let gate = host.site.hooks.clone();
    let snapshot = first.pause(&host);
    let mut second = host.resume(&snapshot);
    assert_eq!(second.tick(), 3);
    assert!(second.verify() > 15_000);
    drop(gate);
}
