//! The same with a server of its own, in a process of its own. The tests are ignored where no variables name one:
//! `servers/check.sh` starts each server, and runs them with it.

use rekindle_testkit::store_checks;

use crate::bucket::Bucket;
use crate::{daemons, doctor, runtime};

#[test]
#[ignore = "needs a server: servers/check.sh starts one"]
fn a_server_passes_the_checks_of_every_store() {
    let (objects, watch) = Bucket::given().opened();
    runtime().block_on(store_checks::check(&objects));
    assert_eq!(watch.failed(), Default::default(), "no request failed");
}

#[test]
#[ignore = "needs a server: servers/check.sh starts one"]
fn doctor_finds_all_well_with_a_server() {
    let ignored = std::env::var("CONDITIONAL_PUTS").is_ok_and(|word| word == "ignored");
    let conditional_puts = if ignored { "ignored, which rekindle does not mind" } else { "obeyed" };
    doctor::finds_all_well(&Bucket::given(), conditional_puts);
}

#[test]
#[ignore = "needs a server: servers/check.sh starts one"]
fn two_nodes_pass_snapshots_to_each_other_through_a_server() {
    daemons::pass_snapshots_to_each_other(&Bucket::given());
}
