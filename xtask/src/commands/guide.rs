//! What is said of every command beside its own words: in which situation it is used, what it touches, and how it may
//! end. `--help` of a command, the manual pages and `xtask` without a command are made from this table. Called by `cli`.

use crate::base::failure::EXIT_TABLE;

/// When a command is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Broken,
    Daily,
    Demo,
    Practice,
}

impl When {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Broken, "Something is broken"),
        (Self::Daily, "Every day"),
        (Self::Demo, "Before a demo"),
        (Self::Practice, "Practise and maintain"),
    ];
}

/// One command: its name, when it is used, what it touches, and its exit codes.
type Entry = (&'static str, When, &'static str, &'static [u8]);

/// How a command may end that only looks.
const LOOKS: &[u8] = &[0, 1, 2, 4, 130];
/// The same for one that takes the lock.
const LOCKS: &[u8] = &[0, 1, 2, 4, 5, 130];
/// The same for a run.
const RUNS: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 9, 130];
/// The same for `rollback`, which also plans.
const PLANS: &[u8] = &[0, 1, 2, 3, 4, 5, 6, 8, 9, 130];

const NOTHING: &str = "nothing";

const COMMANDS: &[Entry] = &[
    (
        "rollback",
        When::Broken,
        "the gate, then only what differs from the release: images, env file, containers. Data stays, unless it is corrupt or \
         you ask for it; it is backed up first. With --plan nothing",
        PLANS,
    ),
    ("kill-switch", When::Broken, "the gate; with `status` nothing", &[0, 1, 2, 4, 5, 9, 130]),
    ("assess", When::Broken, NOTHING, LOOKS),
    ("status", When::Broken, NOTHING, LOOKS),
    ("logs", When::Broken, NOTHING, LOOKS),
    ("diagnose", When::Broken, NOTHING, LOOKS),
    ("history", When::Broken, NOTHING, LOOKS),
    ("report", When::Broken, NOTHING, LOOKS),
    ("evidence", When::Broken, "nothing of the stack; it writes a folder and an archive", LOOKS),
    (
        "up",
        When::Daily,
        "the gate, images, containers; the env file if there is none. Data stays",
        &[0, 1, 2, 3, 4, 5, 7, 9, 130],
    ),
    (
        "guard",
        When::Daily,
        "nothing while all is well; then what `rollback` does, once",
        &[0, 1, 2, 3, 4, 6, 9, 130],
    ),
    ("smoke", When::Daily, "nothing but what the checks send", LOOKS),
    ("flags", When::Daily, NOTHING, LOOKS),
    ("seed", When::Daily, "the stored demo scenario", LOCKS),
    (
        "backup",
        When::Daily,
        "nothing but the backups; `restore` replaces env file or data, after a backup of what is there",
        RUNS,
    ),
    (
        "releases",
        When::Daily,
        "nothing but the stored releases, and those only with `import`, `annotate`, `pin`, `unpin` and `prune`",
        LOCKS,
    ),
    ("down", When::Daily, "the containers. Data, images and releases stay", LOCKS),
    (
        "reset",
        When::Daily,
        "everything of the project, data too, after a verified backup; it asks first",
        RUNS,
    ),
    ("preflight", When::Demo, NOTHING, LOOKS),
    ("snapshot", When::Demo, "nothing of the stack; it writes a file", LOOKS),
    (
        "drill",
        When::Practice,
        "only a separate stack, which it makes and removes",
        &[0, 1, 2, 3, 4, 5, 6, 130],
    ),
    (
        "host",
        When::Practice,
        "nothing; with --free what is no longer needed, with --restart-engine all of Docker",
        LOCKS,
    ),
    ("nodes", When::Practice, "nothing; with `sync` the images on the nodes of a Swarm", LOCKS),
    ("observe", When::Practice, "only the containers of prometheus and grafana", LOCKS),
    ("init", When::Practice, "nothing of the stack; it writes pilot.toml", LOOKS),
    ("bench", When::Practice, "only separate stacks", &[0, 1, 2, 4, 130]),
    ("torture", When::Practice, "only the build folder, and separate stacks", &[0, 1, 2, 4, 130]),
    ("ci", When::Practice, "only the build folder", &[0, 1, 2, 130]),
    ("completions", When::Practice, NOTHING, &[0, 2]),
    ("man", When::Practice, "nothing; with --to the folder that you name", &[0, 1, 2]),
];

/// The command line with all of this in the help of its commands.
pub fn described(mut line: clap::Command) -> clap::Command {
    for (name, _, touches, exits) in COMMANDS {
        line = line.mut_subcommand(name, |command| {
            let own = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            command.after_help(format!("{}\n\nTouches: {touches}.\n\n{}", own.trim_end(), table(exits)))
        });
    }
    line
}

/// The lines of the table of exit codes for these.
fn table(exits: &[u8]) -> String {
    let is_one = |line: &&str| {
        let code = line.split_whitespace().next().and_then(|word| word.parse().ok());
        code.is_none_or(|code| exits.contains(&code))
    };
    EXIT_TABLE.lines().filter(is_one).collect::<Vec<_>>().join("\n")
}

/// The commands by situation. `call` is how the program is called.
pub fn overview(line: &clap::Command, call: &str) -> String {
    let mut all = line.get_about().map(ToString::to_string).unwrap_or_default();
    all += &format!("\n\nUsage: {call} COMMAND");
    for (when, title) in When::ALL {
        all += &format!("\n\n{title}:");
        for (name, ..) in COMMANDS.iter().filter(|(_, own, ..)| *own == when) {
            let about = line.find_subcommand(name).and_then(clap::Command::get_about);
            let about = about.map(ToString::to_string).unwrap_or_default();
            all += &format!("\n  {name:<12} {about}");
        }
    }
    all + &format!("\n\nMore: {call} COMMAND --help, {call} --help")
}
