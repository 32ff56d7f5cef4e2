//! What a failed question to the managers of a Swarm means. Called by the other files of `swarm`.

use crate::base::failure::{Exit, exit_of, fail};
use crate::base::next::Next;
use crate::engine::compose::api::is_gone;
use crate::engine::compose::client::is_hung;

/// Is it an error of a Swarm that has lost its majority, or of a manager that does not know the leader at this moment?
pub fn is_headless(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    [
        "have a leader",
        "leader status",
        "context deadline exceeded",
        "DeadlineExceeded",
        "Unavailable",
        "lost quorum",
    ]
    .iter()
    .any(|said| text.contains(said))
}

/// Finds the exit code for a failed question to the Swarm. If no engine answers, or the Swarm has no majority, nothing can
/// be changed: a failure of the host (exit 4), unless the budget of the run cut it short.
pub fn classify(error: anyhow::Error) -> anyhow::Error {
    if exit_of(&error) != Exit::NotRestored {
        return error;
    }
    let text = format!("{error:#}");
    if is_headless(&error) {
        let what = format!(
            "the Swarm does not answer for its stacks: this client reaches only managers that are in the minority, or \
             that have no leader; nothing can be changed from here: {text}"
        );
        let next = Next::shell("docker node ls")
            .so("at a manager of the other side, or when the managers see each other again");
        return fail(Exit::Host, what, next);
    }
    if is_gone(&error) || is_hung(&error) {
        let next = Next::xtask("host").so("to see what is wrong; --context NAME goes to another manager");
        return fail(Exit::Host, format!("the Docker engine does not answer: {text}"), next);
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_leader_nothing_can_be_changed_and_that_is_a_failure_of_the_host() {
        let error = anyhow::anyhow!("rpc error: code = Unknown desc = The swarm does not have a leader.");
        assert!(is_headless(&error));
        let told = classify(error);
        assert_eq!(exit_of(&told), Exit::Host);
        assert!(format!("{told:#}").contains("minority"), "{told:#}");
        let other = classify(anyhow::anyhow!("no such service"));
        assert!(!is_headless(&other) && exit_of(&other) == Exit::NotRestored);
    }
}
