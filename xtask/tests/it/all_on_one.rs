//! What needs a pilot on Docker, and leaves one that can be brought back, in turn on one pilot: to make and to remove
//! one takes four seconds of a processor. The parts are beside the tests of the same subject on
//! local processes. A part takes the pilot as release r1 and may not count on what the parts before it left.

use crate::pilot::Engine::Compose2;
use crate::pilot::in_turn;
use crate::{bad_input, ground, holds, look, promises, releases, resume, rollback, secrets, truths};

/// None of these makes a release, but the last.
#[test]
fn looks_and_single_troubles() {
    in_turn(
        Compose2,
        "looks",
        &[
            ("a pilot that is well is told to be", look::well),
            ("what is said of docker is what was seen", truths::what_is_said_of_docker),
            ("without a home and a temporary folder it works", ground::homeless),
            ("a disk that is full for a copy of data is told as that", ground::full_for_a_copy),
            ("a taken port is told with its owner", bad_input::taken_port),
            ("no compiler, git or cargo is needed", rollback::bare),
            ("a gateway that does not answer is fenced and released again", releases::fenced),
            ("every service down is told service by service and kept", look::every_service_down),
            ("awkward and unlisted secrets are shown nowhere", secrets::awkward_secrets),
        ],
    );
}

#[test]
fn releases_that_fail_and_runs_that_are_cut_off() {
    in_turn(
        Compose2,
        "failures",
        &[
            ("killed in the middle and run again it finishes", resume::killed_in_the_middle),
            ("a state folder that can only be read does not stop a rollback", promises::read_only_state),
            ("what runs is compared with the release before the gate opens", promises::what_runs_is_compared),
            ("a failed deployment goes back", rollback::failed_deployment),
            ("gates that lie are found", promises::gates_that_lie),
            ("a service that the release does not have goes", promises::service_too_many),
            ("a kill switch thrown at any moment ends closed", holds::kill_switch_at_any_moment),
        ],
    );
}
