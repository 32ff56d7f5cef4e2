//! Checks that a stack adds in its manifest: a port, a command in a container, a program. And a manifest with mistakes.

use crate::pilot::Engine::{Compose2, Process};
use crate::pilot::{copy_of_the_tree, on};

const PROBE: &str =
    "#!/bin/sh -e\ncase \"$GATEWAY_URL $PROJECT\" in \"http://127.0.0.1:\"*) echo \"a program ran\";; esac\n";

#[test]
fn a_stack_has_checks_of_its_own_and_a_program_that_fails_is_no_release() {
    on(&[Process, Compose2], "own", |pilot| {
        let mut pilot = pilot.up();
        let tree = copy_of_the_tree("own-tree");
        let pack = tree.0.join("pilot-deploy");
        // A process listens at the published port; a container always at 3001.
        let port = if pilot.engine == Process { pilot.port("gateway") } else { 3001 };
        let exec = match pilot.engine {
            Process => "",
            _ => {
                "[[check]]\nname = \"it is well inside\"\nexec = \"/scenario healthcheck\"\nservice = \"gateway\"\n"
            }
        };
        let more = format!(
            "{exec}[[check]]\nname = \"a port\"\ntcp = \"gateway:{port}\"\n\
             [[check]]\nname = \"a program\"\nscript = \"checks/probe\"\n\
             [[check]]\nname = \"every service\"\nrequest = \"GET /healthz\"\nhas = [\"/version\"]\n\
             [[check]]\nname = \"the engine says so\"\nhealthy = \"jobs\"\n\n# The \"Success Criteria\""
        );
        let manifest = std::fs::read_to_string(pack.join("pilot.toml")).unwrap();
        let changed = manifest.replace("# The \"Success Criteria\"", &more);
        assert!(changed != manifest);
        std::fs::write(pack.join("pilot.toml"), &changed).unwrap();
        std::fs::create_dir_all(pack.join("checks")).unwrap();
        std::fs::write(pack.join("checks/probe"), PROBE).unwrap();
        pilot.root = tree.0.clone();
        pilot.xtask(&["up", "--tag", "v1.0.0"]).expect(0);
        let smoke = pilot.xtask(&["smoke"]).expect(0).out;
        for words in ["a program ran", "accepts connections", "every service", "the engine says so"] {
            assert!(smoke.contains(words), "no {words} in {smoke}");
        }
        assert_eq!(smoke.contains("it is well inside"), pilot.engine != Process, "{smoke}");
        assert!(pilot.state().join("releases/r2/checks/probe").exists());
        // A program of another release that fails.
        std::fs::write(pack.join("checks/probe"), "#!/bin/sh\necho the reason >&2\nexit 3\n").unwrap();
        let failed = pilot.xtask(&["up", "--tag", "v1.0.0"]).expect(7);
        assert!(failed.all().contains("the reason"), "{}", failed.all());
        // What runs is checked by its own program, not by that of the tree.
        pilot.xtask(&["smoke"]).expect(0);
    });
}

#[test]
fn every_mistake_of_a_manifest_is_told_before_anything_is_done() {
    on(&[Process], "mistakes", |mut pilot| {
        let tree = copy_of_the_tree("mistakes-tree");
        let path = tree.0.join("pilot-deploy/pilot.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text
            .replace("budget = \"5m\"", "budget = \"soon\"")
            .replace("[health]\nrequest", "[health]\nreqest");
        std::fs::write(&path, text).unwrap();
        pilot.root = tree.0.clone();
        let refused = pilot.xtask(&["up"]).expect(2);
        for words in
            ["has 3 mistakes", "did you mean `request`?", "\"soon\" is no time", "`request` is missing"]
        {
            assert!(refused.err.contains(words), "no {words} in {}", refused.err);
        }
        assert_eq!(refused.err.matches("pilot-deploy/pilot.toml:").count(), 3, "{}", refused.err);
        assert!(!pilot.state().join("releases").exists());
    });
}
