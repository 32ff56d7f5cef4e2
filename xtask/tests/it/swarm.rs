//! The pilot on a Swarm of three nodes: the runbook's scenarios, and what others do to the Swarm meanwhile.

use crate::foreign::Foreign;
use crate::lab::{self, Lab, NODES, Stack, Stacked};
use crate::pilot::{Folder, Ran, Random, cuts, program, ran, tries};
use crate::registry::Registry;
use crate::resume::heard_until_killed;
use std::cell::RefCell;
use std::process::{Command, Stdio};
use std::time::Duration;

#[test]
fn the_scenarios_on_three_nodes() {
    lab::with("the_scenarios_on_three_nodes", |lab| {
        let stack = Stack::new(lab, "sw").up();
        stack.runs("v1.0.0");
        assert_eq!(stack.served(), (2, 2));
        let foreign = Foreign::beside(&stack);
        nothing_is_to_do(&stack);
        each_instance_is_checked(&stack);
        config(&stack);
        version(&stack);
        data(&stack);
        images_wiped(&stack);
        scaled_by_hand(&stack);
        held(&stack);
        other_clients(&stack);
        only_what_a_node_lacks_is_sent(&stack);
        a_registry_is_used_and_not_needed(&stack);
        removed_without_a_trace(lab, stack);
        foreign.has_run_on();
    });
}

fn nothing_is_to_do(stack: &Stack<'_>) {
    let ended = stack.json(&["rollback"]).expect(0);
    assert_eq!(ended.finished()["outcome"], "nothing-to-do", "{}", ended.out);
}

/// Of two gateways one hangs: that is found whichever it is, and said.
fn each_instance_is_checked(stack: &Stack<'_>) {
    for (node, _) in stack.asked("/healthz") {
        let own = format!("label=com.docker.swarm.service.name={}_gateway", stack.project);
        let gateway = stack.lab.docker(node, &["ps", "--quiet", "--filter", &own]);
        stack.lab.docker(node, &["pause", gateway.trim()]);
        let seen = stack.xtask(&["smoke"]).expect(1);
        assert!(seen.all().contains(&format!("gateway at {}:", stack.lab.ip(node))), "{}", seen.all());
        stack.lab.docker(node, &["unpause", gateway.trim()]);
        let seen = stack.xtask(&["smoke"]).expect(0);
        assert!(seen.all().contains("6 instances of 3 services"), "{}", seen.all());
    }
}

/// A.
fn config(stack: &Stack<'_>) {
    let before = stack.spec("engine");
    stack.edit_env("ENABLE_CACHE", "true");
    let tasks = |service: &str| {
        stack.lab.docker(1, &["service", "ps", "--quiet", &format!("{}_{service}", stack.project)])
    };
    let untouched = tasks("gateway");
    let name = format!("{}_engine", stack.project);
    stack.lab.docker(1, &["service", "update", "--detach", "--env-add", "ENABLE_CACHE=true", &name]);
    let drift = stack.xtask(&["rollback", "--plan"]).expect(0).out;
    assert!(drift.contains("engine  ENABLE_CACHE true → false"), "{drift}");
    let finished = stack.restores(&["rollback"]);
    assert_eq!(finished["scenarios"], serde_json::json!(["config"]), "{finished}");
    let after = stack.spec("engine");
    assert_eq!(before["TaskTemplate"]["ContainerSpec"]["Env"], after["TaskTemplate"]["ContainerSpec"]["Env"]);
    assert_eq!(tasks("gateway"), untouched, "a service that did not differ was replaced");
    nothing_is_to_do(stack);
}

/// B.
fn version(stack: &Stack<'_>) {
    stack.bad_version_by_hand("SCENARIO_FAULT=error-5xx");
    let finished = stack.restores(&["rollback"]);
    assert_eq!(finished["scenarios"], serde_json::json!(["version"]), "{finished}");
    stack.runs("v1.0.0");
    // What the stack itself says of its updates is there again.
    assert_eq!(stack.spec("engine")["UpdateConfig"]["Parallelism"], 1);
    nothing_is_to_do(stack);
}

/// C.
fn data(stack: &Stack<'_>) {
    let finished = stack.restores(&["reset", "--yes"]);
    let backup = std::path::Path::new(finished["report"].as_str().unwrap()).with_file_name("backup");
    let kept: Vec<String> = std::fs::read_dir(&backup)
        .unwrap()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    // Each node's copy is kept by itself.
    assert!(kept.iter().any(|name| name.starts_with("gateway@node")), "{kept:?}");
    nothing_is_to_do(stack);
}

/// Wipes the images of the stack on a node, and ends what runs of them there.
fn wipe(stack: &Stack<'_>, node: usize) {
    let pins = format!("reference=rollback.invalid/{}/*", stack.project);
    let tags = stack.lab.docker(node, &["images", "--quiet", "--no-trunc", "--filter", &pins]);
    let own = format!("label=com.docker.stack.namespace={}", stack.project);
    let containers = stack.lab.docker(node, &["ps", "--all", "--quiet", "--filter", &own]);
    for id in containers.lines() {
        stack.lab.try_docker(node, &["rm", "--force", id]);
    }
    for id in tags.lines() {
        stack.lab.try_docker(node, &["rmi", "--force", id]);
    }
}

/// The same until all of them are gone: meanwhile the Swarm may start a task there with an image that is left.
fn wipe_all(stack: &Stack<'_>, node: usize) {
    let images = ["gateway", "engine", "jobs"].map(|service| stack.image(service));
    stack.lab.wait("the images are gone", || {
        wipe(stack, node);
        let is_gone = |id: &String| {
            stack.lab.try_docker(node, &["rmi", "--force", id]);
            stack.lab.try_docker(node, &["image", "inspect", id]).code != 0
        };
        images.iter().all(is_gone)
    });
}

/// D.
fn images_wiped(stack: &Stack<'_>) {
    wipe(stack, 2);
    // The Swarm may have started these tasks on the other nodes already.
    stack.xtask(&["rollback"]).expect(0);
    assert_eq!(stack.served(), (2, 2));
    stack.xtask(&["nodes", "sync"]).expect(0);
    NODES.into_iter().for_each(|node| wipe(stack, node));
    let finished = stack.restores(&["rollback"]);
    assert!(finished["scenarios"].to_string().contains("host"), "{finished}");
    let nodes = stack.told(&["nodes"], 0);
    assert!(nodes["nodes"].as_array().unwrap().iter().all(|node| node["images"]["known"] == 3), "{nodes}");
}

/// Somebody changes a service by hand: seen, and put right.
fn scaled_by_hand(stack: &Stack<'_>) {
    let name = format!("{}_jobs", stack.project);
    stack.lab.docker(1, &["service", "scale", "--detach", &format!("{name}=1")]);
    let seen = stack.xtask(&["status"]).all();
    assert!(seen.contains("jobs: the engine has other settings for it"), "{seen}");
    stack.restores(&["rollback"]);
    assert_eq!(stack.spec("jobs")["Mode"]["Replicated"]["Replicas"], 2);
    nothing_is_to_do(stack);
}

/// A hold stands on every replica, and where one is started later.
fn held(stack: &Stack<'_>) {
    stack.xtask(&["kill-switch", "on", "--reason", "bad answers"]).expect(0);
    stack.is_shut();
    // The tasks move: wherever they are started, they come up closed.
    let name = format!("{}_gateway", stack.project);
    for node in NODES {
        let constraint = format!("node.hostname!=node{node}");
        stack.lab.docker(1, &["service", "update", "--detach", "--constraint-add", &constraint, &name]);
        stack.lab.wait("two gateways answer", || stack.asked("/healthz").len() == 2);
        stack.is_shut();
        stack.lab.docker(1, &["service", "update", "--detach", "--constraint-rm", &constraint, &name]);
        stack.lab.wait("two gateways answer", || stack.asked("/healthz").len() == 2);
        stack.is_shut();
    }
    stack.xtask(&["rollback"]).expect(9);
    stack.is_shut();
    stack.xtask(&["kill-switch", "off"]).expect(0);
    assert_eq!(stack.served(), (2, 2));
}

/// Through another manager, with an empty folder: it knows the release, and finds the engine by itself.
fn other_clients(stack: &Stack<'_>) {
    let empty = Folder::new("other-client");
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["--project", &stack.project, "--context", "node3", "releases", "list"]);
    command.current_dir(&stack.root).env("DOCKER_CONFIG", stack.lab.client());
    command.env("PILOT_STATE_DIR", empty.0.join("state"));
    let listed = ran(command.output().unwrap()).expect(0);
    assert!(listed.out.contains("r1"), "{listed:?}");
}

/// A release with a small layer more. Where a node has the layer below, that one is not even read: it is altered, and a read
/// would fail.
fn only_what_a_node_lacks_is_sent(stack: &Stack<'_>) {
    let image = |service: &str| stack.image(service);
    let context = Folder::new("context");
    std::fs::write(context.0.join("data"), [7; 100_000]).unwrap();
    let at = context.0.display().to_string();
    let layers = |image: &str| {
        let format = "{{join .RootFS.Layers \" \"}}";
        stack.lab.docker(1, &["image", "inspect", "--format", format, image]).trim().to_owned()
    };
    let below = layers(&image("engine"));
    for service in ["gateway", "engine", "jobs"] {
        std::fs::write(context.0.join("Dockerfile"), format!("FROM {}\nCOPY data /data\n", image(service)))
            .unwrap();
        let tag = format!("{}-{service}:larger", stack.project);
        stack.lab.docker(1, &["build", "--quiet", "--tag", &tag, &at]);
    }
    stack.xtask(&["up", "--tag", "larger"]).expect(0);
    let larger = image("engine");
    assert_eq!(layers(&larger).split(' ').next(), Some(below.as_str()));
    stack.restores(&["rollback", "--to", "r1"]);
    wipe_unused(stack, 3);
    assert_ne!(stack.lab.try_docker(3, &["image", "inspect", &larger]).code, 0);
    let layers = layers(&larger);
    let altered = |layer: &str, what: &dyn Fn()| {
        let blob = stack.state().join("blobs").join(layer.trim_start_matches("sha256:"));
        let whole = std::fs::read(&blob).unwrap();
        std::fs::write(&blob, vec![0; whole.len()]).unwrap();
        what();
        stack.lab.docker(3, &["image", "inspect", &larger]);
        std::fs::write(&blob, whole).unwrap();
    };
    altered(&below, &|| drop(with_a_client_that_saves_nothing(stack, &["nodes", "sync"]).expect(0)));
    // What the store cannot give comes from another node.
    wipe_unused(stack, 3);
    altered(layers.rsplit(' ').next().unwrap(), &|| drop(stack.xtask(&["nodes", "sync"]).expect(0)));
    stack.xtask(&["releases", "verify"]).expect(0);
    nothing_is_to_do(stack);
}

/// A node draws from it what it lacks, with nothing saved on another node and nothing read from the store; a deployment and a
/// rollback go on without it.
fn a_registry_is_used_and_not_needed(stack: &Stack<'_>) {
    let Some(registry) = Registry::beside(stack) else { return };
    let manifest = stack.root.join("pilot-deploy/pilot.toml");
    let before = std::fs::read_to_string(&manifest).unwrap();
    std::fs::write(&manifest, before.clone() + &registry.section()).unwrap();
    let deployed = stack.xtask(&["up", "--tag", "larger"]).expect(0).all();
    assert!(!deployed.contains("was not used"), "{deployed}");
    for service in ["gateway", "engine", "jobs"] {
        let name = format!("pilot/{}-{service}", stack.project);
        assert!(registry.has().contains(&name), "{name}: {}", registry.has());
    }
    // What runs says which registry there is.
    stack.xtask(&["up", "--tag", "v1.0.0"]).expect(0);
    let (blobs, away) = (stack.state().join("blobs"), stack.state().join("away"));
    wipe_unused(stack, 3);
    std::fs::rename(&blobs, &away).unwrap();
    let drawn = with_a_client_that_saves_nothing(stack, &["nodes", "sync"]).expect(0).all();
    std::fs::rename(&away, &blobs).unwrap();
    assert!(!drawn.contains("was not used"), "{drawn}");
    assert_eq!(stack.lab.docker(3, &["images", "--quiet", "--filter", "reference=*/pilot/*"]), "");
    registry.lose();
    wipe_unused(stack, 3);
    let synced = stack.xtask(&["nodes", "sync"]).expect(0).all();
    assert!(synced.contains("was not used"), "{synced}");
    let deployed = stack.xtask(&["up", "--tag", "larger"]).expect(0).all();
    assert!(deployed.contains("was not used"), "{deployed}");
    stack.restores(&["rollback", "--to", "previous"]);
    std::fs::write(&manifest, before).unwrap();
    nothing_is_to_do(stack);
}

/// No image comes from another node.
fn with_a_client_that_saves_nothing(stack: &Stack<'_>, args: &[&str]) -> Ran {
    let bin = Folder::new("bin");
    let real = std::env::var("PATH").unwrap();
    let script = format!(
        "#!/bin/sh\nfor word; do if [ \"$word\" = save ]; then echo 'nothing is saved' >&2; exit 1; fi; done\n\
         PATH='{real}'; exec docker \"$@\"\n"
    );
    program(&bin.0.join("docker"), &script);
    let path = format!("{}:{real}", bin.0.display());
    ran(stack.command(args).env("PATH", path).output().unwrap())
}

/// Removes the images of the stack that no task of a node uses.
fn wipe_unused(stack: &Stack<'_>, node: usize) {
    let own = format!("label=com.docker.stack.namespace={}", stack.project);
    let ended = [
        "ps",
        "--all",
        "--quiet",
        "--filter",
        &own,
        "--filter",
        "status=exited",
        "--filter",
        "status=created",
    ];
    for id in stack.lab.docker(node, &ended).lines() {
        stack.lab.try_docker(node, &["rm", id]);
    }
    let pins = format!("reference=rollback.invalid/{}/*", stack.project);
    let tags = stack.lab.docker(node, &["images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", &pins]);
    for tag in tags.lines() {
        stack.lab.try_docker(node, &["rmi", tag]);
    }
}

fn removed_without_a_trace(lab: &Lab, stack: Stack<'_>) {
    stack.xtask(&["down"]).expect(0);
    // A node forgets a network when its tasks have ended.
    lab.wait("nothing is left", || {
        let own = format!("label=com.docker.stack.namespace={}", stack.project);
        ["service", "network", "config", "secret"]
            .iter()
            .all(|kind| lab.docker(1, &[kind, "ls", "--quiet", "--filter", &own]).is_empty())
    });
}

#[test]
fn nodes_are_lost_and_cut_off() {
    lab::with("nodes_are_lost_and_cut_off", |lab| {
        let commits = tries(1) > 1;
        let stack = if commits { Stack::of_commits(lab, "sl") } else { Stack::new(lab, "sl") }.up();
        let foreign = Foreign::beside(&stack);
        a_node_is_lost_in_the_middle(&stack, &foreign);
        the_managers_elect_another_leader(&stack);
        a_client_of_the_minority_changes_nothing(&stack);
    });
}

/// What is wrong when a node is lost in the middle of putting it right.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    Config,
    Version,
    Data,
    ImagesOfOne,
    ImagesOfAll,
    Commit,
}

impl Wrong {
    const ALL: [Self; 6] =
        [Self::Config, Self::Version, Self::Data, Self::ImagesOfOne, Self::ImagesOfAll, Self::Commit];

    /// Makes it so. Returns the command that puts it right.
    fn make(self, stack: &Stack<'_>) -> Vec<String> {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect();
        match self {
            Self::Config => {
                stack.edit_env("ENABLE_CACHE", "true");
                for service in ["gateway", "engine", "jobs"] {
                    let name = format!("{}_{service}", stack.project);
                    let change = ["service", "update", "--detach", "--env-add", "ENABLE_CACHE=true", &name];
                    stack.lab.docker(stack.manager(), &change);
                }
            }
            Self::Version => stack.bad_version_by_hand("SCENARIO_FAULT=error-5xx"),
            Self::Data => return words("reset --yes"),
            Self::ImagesOfOne => wipe(stack, stack.manager()),
            Self::ImagesOfAll => NODES.into_iter().for_each(|node| wipe(stack, node)),
            // To the other one of two commits.
            Self::Commit => {
                let serving = stack.json(&["status"]).finished()["release"].clone();
                let other = if serving == "r1" { stack.first_commit() } else { "r1".to_owned() };
                return words(&format!("rollback --to {other}"));
            }
        }
        words("rollback")
    }
}

/// At a random moment of a run, any node, also the one that the client goes to. With `PILOT_TRIES`: so often, each kind of
/// run in turn.
fn a_node_is_lost_in_the_middle(stack: &Stack<'_>, foreign: &Foreign<'_>) {
    let mut random = Random::new();
    let (mut restored, tries) = (0, tries(1));
    let first = random.below(Wrong::ALL.len() as u64 - 1) as usize;
    for attempt in 0..tries {
        let (node, moment) = (1 + random.below(3) as usize, random.up_to(Duration::from_secs(5)));
        let wrong = Wrong::ALL[(first + attempt) % Wrong::ALL.len()];
        let args = wrong.make(stack);
        let args: Vec<&str> =
            ["--format", "json"].into_iter().chain(args.iter().map(String::as_str)).collect();
        let mut running = stack.command(&args).stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(moment);
        stack.lab.lose(node);
        let in_the_middle = running.try_wait().unwrap().is_none();
        let ended = ran(running.wait_with_output().unwrap());
        let finished = ended.finished();
        println!(
            "try {attempt}: {wrong:?}, node {node} lost after {moment:?}, in the middle: {in_the_middle}: exit {} after {} ms, {}, {}",
            ended.code, finished["restored_ms"], finished["outcome"], finished["error"]
        );
        if ended.code == 0 {
            restored += 1;
            if in_the_middle {
                assert!(stack.served().0 > 0, "{finished}");
            }
        } else {
            // Safely closed, or left as it was; with the reason.
            if !finished["public"]["shut-out"].is_null() {
                stack.is_shut();
            }
            // What is on the lost node was not asked, and is told.
            let partly = finished["public"]["partly"].as_str();
            assert!(partly.is_none_or(|told| told.contains(&format!("on node{node}, which"))), "{finished}");
            assert!(finished["error"].as_str().is_some_and(|why| !why.is_empty()), "{finished}");
        }
        stack.lab.bring_back(node);
        if ended.code == 0 {
            may_run_everywhere(stack);
        }
        let again = if ended.code == 0 { &["rollback"][..] } else { &args[2..] };
        stack.lab.wait("it is restored", || stack.json(again).code == 0);
        stack.all_serve();
        may_run_everywhere(stack);
        foreign.is_untouched(stack.manager());
    }
    println!("{restored} of {tries} restored with a node lost in the middle");
    assert!(tries < 10 || restored * 2 > tries, "most runs must go on with the nodes that are left");
}

/// After the next command no service is kept off a node that was lost, and `nodes sync` restarts none of them.
fn may_run_everywhere(stack: &Stack<'_>) {
    let names = ["gateway", "engine", "jobs"].map(|service| format!("{}_{service}", stack.project));
    let docker = |words: &[&str]| {
        let names = names.iter().map(String::as_str);
        stack.lab.docker(stack.manager(), &words.iter().copied().chain(names).collect::<Vec<_>>())
    };
    let tasks = || docker(&["service", "ps", "--quiet", "--filter", "desired-state=running"]);
    // The Swarm may still be about to replace what was on the node.
    stack.all_serve();
    let before = RefCell::new(tasks());
    stack.lab.wait("no task is replaced any more", || {
        std::thread::sleep(Duration::from_secs(3));
        let now = tasks();
        before.replace(now.clone()) == now
    });
    stack.lab.wait("each node has every image", || stack.json(&["nodes", "sync"]).code == 0);
    let constraints = "{{json .Spec.TaskTemplate.Placement.Constraints}}";
    let kept = docker(&["service", "inspect", "--format", constraints]);
    assert!(!kept.contains("node.id!="), "{kept}");
    assert_eq!(tasks(), before.into_inner());
}

/// The leader is cut off while a rollback runs.
fn the_managers_elect_another_leader(stack: &Stack<'_>) {
    let leader = stack.lab.leader(stack.manager());
    stack.edit_env("ENABLE_CACHE", "true");
    let running = stack.command(&["--format", "json", "rollback"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    stack.lab.cut(leader);
    let ended = ran(running.wait_with_output().unwrap());
    let finished = ended.finished();
    println!(
        "the leader, node {leader}, was cut off: exit {}, {}, {}",
        ended.code, finished["outcome"], finished["public"]
    );
    stack.lab.join(leader);
    let other = NODES.into_iter().find(|node| *node != leader).unwrap();
    stack.lab.are_ready(other);
    // Before it closed the gate it may have ended without any change: then the public is left as it was.
    if !finished["public"]["shut-out"].is_null() {
        stack.is_shut();
    }
    // A gateway that was cut off goes on until its node is told to end it.
    if let Some(told) = finished["public"]["partly"].as_str() {
        assert!(told.contains(&format!("gateway on node{leader}, which is not reached")), "{told}");
        stack.lab.wait("the public is shut out", || {
            stack.asked("/report?scenarioId=demo&seed=42").iter().all(|(_, answer)| answer.status == 503)
        });
    }
    stack.lab.wait("it is restored", || stack.json(&["rollback"]).code == 0);
}

/// Its manager cannot decide anything, so nothing is changed, and it is said.
fn a_client_of_the_minority_changes_nothing(stack: &Stack<'_>) {
    let alone = Folder::new("alone");
    let mut command = stack.command(&["--format", "json", "rollback"]);
    command.env("DOCKER_CONFIG", &alone.0).env("DOCKER_HOST", stack.lab.socket(1));
    stack.edit_env("ENABLE_CACHE", "true");
    stack.lab.cut(1);
    stack.lab.wait("node 1 knows no leader", || stack.lab.try_docker(1, &["node", "ls"]).code != 0);
    let ended = ran(command.output().unwrap());
    let finished = ended.finished();
    assert_eq!(finished["exit_code"], 4, "{finished}");
    assert!(finished["error"].as_str().unwrap().contains("minority"), "{finished}");
    assert_eq!(stack.setting("ENABLE_CACHE"), "true", "something was changed");
    stack.lab.join(1);
    stack.lab.wait("node 1 is back", || stack.lab.try_docker(1, &["node", "ls"]).code == 0);
    stack.edit_env("ENABLE_CACHE", "false");
    stack.lab.wait("there is nothing to do", || {
        stack.json(&["rollback"]).finished()["outcome"] == "nothing-to-do"
    });
}

/// A node whose disk is full gets no images, so no task is put there; the others are enough. With room again it is supplied.
#[test]
fn a_node_without_room_drained_or_new_is_no_obstacle() {
    lab::with("a_node_without_room_drained_or_new_is_no_obstacle", |lab| {
        let stack = Stack::new(lab, "sr").up();
        a_node_is_drained(&stack);
        wipe_all(&stack, 3);
        let full = lab.fill_disk(3);
        // The Swarm may have moved the tasks of the node already: then nothing else would be wrong.
        stack.edit_env("ENABLE_CACHE", "true");
        let restored = stack.xtask(&["rollback"]).expect(0).all();
        assert!(
            restored.contains("no task is put on node3") && restored.contains("no space left"),
            "{restored}"
        );
        stack.runs("v1.0.0");
        assert_eq!(stack.served(), (2, 2));
        let refused = stack.xtask(&["nodes", "sync"]).expect(4).all();
        assert!(refused.contains("node3") && refused.contains("no space left"), "{refused}");
        drop(full);
        stack.xtask(&["nodes", "sync"]).expect(0);
        let nodes = stack.told(&["nodes"], 0);
        assert!(
            nodes["nodes"].as_array().unwrap().iter().all(|node| node["images"]["known"] == 3),
            "{nodes}"
        );
        nothing_is_to_do(&stack);
        a_node_joins_later(&stack);
        stack.xtask(&["down"]).expect(0);
    });
}

/// A node that joins while the stack runs has no images. It is said, it is supplied, and it takes tasks.
fn a_node_joins_later(stack: &Stack<'_>) {
    stack.lab.leaves(3, 1);
    stack.xtask(&["rollback"]).expect(0);
    assert_eq!(stack.served(), (2, 2));
    wipe(stack, 3);
    stack.lab.joins(3, 1);
    let known = |nodes: &serde_json::Value| -> Vec<u64> {
        nodes["nodes"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|node| node["images"]["known"].as_u64())
            .collect()
    };
    assert_eq!(known(&stack.told(&["nodes"], 4)), [3, 3, 0]);
    stack.xtask(&["nodes", "sync"]).expect(0);
    assert_eq!(known(&stack.told(&["nodes"], 0)), [3, 3, 3]);
    stack.lab.docker(1, &["node", "update", "--availability", "drain", "node2"]);
    stack.xtask(&["rollback"]).expect(0);
    let at: Vec<usize> = stack.asked("/healthz").into_iter().map(|(node, _)| node).collect();
    assert_eq!(at, [1, 3]);
    stack.lab.docker(1, &["node", "update", "--availability", "active", "node2"]);
    nothing_is_to_do(stack);
}

/// A node that is on leave has no tasks; what it had runs elsewhere, and a rollback goes on without it.
fn a_node_is_drained(stack: &Stack<'_>) {
    stack.lab.docker(1, &["node", "update", "--availability", "drain", "node2"]);
    stack.edit_env("ENABLE_CACHE", "true");
    let name = format!("{}_engine", stack.project);
    stack.lab.docker(1, &["service", "update", "--detach", "--env-add", "ENABLE_CACHE=true", &name]);
    stack.restores(&["rollback"]);
    assert!(stack.asked("/healthz").iter().all(|(node, _)| *node != 2), "a task is on node 2");
    stack.lab.docker(1, &["node", "update", "--availability", "active", "node2"]);
    nothing_is_to_do(stack);
}

/// Killed after each third event (`PILOT_TRIES`: each): the next command finishes.
#[test]
fn a_rollback_that_is_killed_is_finished_by_the_next_one() {
    lab::with("a_rollback_that_is_killed_is_finished_by_the_next_one", |lab| {
        let stack = Stack::new(lab, "sk").up();
        for events in cuts() {
            stack.edit_env("ENABLE_CACHE", "true");
            let name = format!("{}_engine", stack.project);
            let change = ["service", "update", "--detach", "--env-add", "ENABLE_CACHE=true", &name];
            stack.lab.docker(1, &change);
            let (cut, _) = heard_until_killed(&stack, &["rollback"], events);
            let finished = stack.json(&["rollback"]).finished();
            assert_eq!(finished["exit_code"], 0, "killed after {events} events: {finished}");
            println!("killed after {events} events, then {}", finished["outcome"]);
            // At once, but for a busy machine: it was proved before this command ended.
            stack.all_serve_within(Duration::from_secs(2));
            if !cut {
                break;
            }
        }
    });
}

/// A stack of a team's own, with its database: kept on its node, with its data, and back.
#[test]
fn a_stack_with_a_database_on_three_nodes() {
    lab::with("a_stack_with_a_database_on_three_nodes", |lab| {
        let notes = Stacked::notes(lab);
        let deployed = notes.xtask(&["up", "--engine", "swarm"]).expect(0);
        for told in ["api: it starts without waiting", "every address of its nodes"] {
            assert!(deployed.all().contains(told), "{deployed:?}");
        }
        assert_eq!(notes.write("on three nodes"), 201);
        let node = notes.node_of("db");
        // The Swarm may move it only where its data is.
        notes.edit("app/app.py", "insert into notes (text)", "insert into nodes (text)");
        notes.edit(".env", "NOTES_VERSION=1.0", "NOTES_VERSION=2.0");
        let failed = notes.xtask(&["up"]);
        assert_eq!(failed.code, 7, "{failed:?}");
        assert_eq!((notes.node_of("db"), notes.write("after it went back")), (node, 201));
        assert!(notes.backed_up().iter().any(|name| name.starts_with("db.data")), "{:?}", notes.backed_up());
        // Its node is lost: said, and nothing begins elsewhere with nothing.
        if node != 1 {
            lab.lose(node);
            let ended = notes.json(&["rollback"]).finished();
            assert!(matches!(ended["exit_code"].as_u64(), Some(1 | 4)), "{ended}");
            assert!(ended["error"].as_str().unwrap().contains(&format!("node{node}")), "{ended}");
            lab.bring_back(node);
        }
        notes.xtask(&["rollback"]).expect(0);
        assert_eq!(notes.write("after all"), 201);
        assert!(notes.read().contains("on three nodes") && notes.read().contains("after it went back"));
        notes.xtask(&["down"]).expect(0);
    });
}
