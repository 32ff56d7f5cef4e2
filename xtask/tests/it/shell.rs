//! What a shell does with this program: completions in real shells, manual pages in a real man, and what is shown without
//! a command.

use crate::pilot::{Folder, skip, workspace};
use std::path::Path;
use std::process::Command;

fn xtask(args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(args).current_dir("/").output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(said).unwrap())
}

/// The completions in a file, if there is this shell.
fn completions(shell: &str) -> Option<Folder> {
    if !Command::new(shell).args(["-c", "true"]).status().is_ok_and(|status| status.success()) {
        skip(&format!("completions for {shell}"), &format!("{shell} is not installed"));
        return None;
    }
    let (code, text) = xtask(&["completions", shell]);
    assert_eq!(code, 0, "{text}");
    // Nothing in it was taken for a secret.
    assert!(!text.contains("****"), "{text}");
    let folder = Folder::new(shell);
    std::fs::write(folder.0.join("xtask"), text).unwrap();
    Some(folder)
}

/// What a script says that gets the path of the completions.
fn said(shell: &str, args: &[&str], script: &str, completions: &Path) -> String {
    let mut command = Command::new(shell);
    let output = command.args(args).args(["-c", script, "test"]).arg(completions).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Each with the words that must be offered, and one that must not.
const CASES: [(&[&str], &[&str], &str); 5] = [
    (&["rollb"], &["rollback"], "reset"),
    (&["rollback", "--wi"], &["--with-data"], "--to"),
    (&["kill-switch", ""], &["on", "off", "status"], "rollback"),
    (&["backup", "re"], &["restore"], "reset"),
    (&["drill", "--fault", "h"], &["hang"], "crash-loop"),
];

#[test]
fn bash_completes_both_ways_to_call_it() {
    let Some(folder) = completions("bash") else { return };
    for (words, offered, not) in CASES {
        for before in [&["xtask"][..], &["cargo", "xtask"]] {
            let all: Vec<String> = before.iter().chain(words).map(|word| format!("'{word}'")).collect();
            let script = format!(
                "source \"$1\"; COMP_WORDS=({}); COMP_CWORD={}; COMP_LINE=\"${{COMP_WORDS[*]}}\"; COMP_POINT=${{#COMP_LINE}}\n\
                 f=$(complete -p {} | sed -n 's/.* -F \\([^ ]*\\) .*/\\1/p')\n\
                 $f {} {} {}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                all.join(" "),
                all.len() - 1,
                before[0],
                before[0],
                all[all.len() - 1],
                all[all.len() - 2]
            );
            let said = said("bash", &["--norc"], &script, &folder.0.join("xtask"));
            let said: Vec<&str> = said.lines().map(str::trim).collect();
            assert!(offered.iter().all(|word| said.contains(word)), "{before:?} {words:?}: {said:?}");
            assert!(!said.contains(&not), "{before:?} {words:?}: {said:?}");
        }
    }
}

#[test]
fn what_completes_cargo_in_bash_stays() {
    let Some(folder) = completions("bash") else { return };
    let script = "_mine() { COMPREPLY=(mine); }; complete -F _mine cargo; source \"$1\"; source \"$1\"\n\
                  COMP_WORDS=(cargo bui); COMP_CWORD=1; _cargo_xtask cargo bui cargo; echo \"${COMPREPLY[@]}\"";
    assert_eq!(said("bash", &["--norc"], script, &folder.0.join("xtask")).trim(), "mine");
}

/// In a terminal of its own, with the key TAB.
#[test]
fn zsh_completes_both_ways_to_call_it() {
    let Some(folder) = completions("zsh") else { return };
    for (typed, completed) in [
        ("xtask rollb", "xtask rollback "),
        ("cargo xtask rollb", "cargo xtask rollback "),
        ("cargo xtask rollback --wi", "cargo xtask rollback --with-data "),
        ("cargo xtask drill --fault ha", "cargo xtask drill --fault hang "),
    ] {
        let script = format!(
            "zmodload zsh/zpty; zpty z env TERM=dumb zsh -f -i\n\
             zpty -w z \"PS1=; unsetopt zle_bracketed_paste 2>/dev/null; autoload -U compinit; compinit -u -D; source '$1'\"\n\
             zpty -w z 'show() {{ print -r \"<$BUFFER>\" }}; zle -N show; bindkey \"^X\" show; bindkey \"^I\" complete-word'\n\
             zpty -w z 'print -r READ\"\"Y'; zpty -r -m z out '*READY*'\n\
             zpty -w -n z $'{typed}\\t\\x18'; zpty -r -m z out '*<*>*'; print -r -- $out; zpty -d z"
        );
        let said = said("timeout", &["30", "zsh", "-f"], &script, &folder.0.join("xtask"));
        assert!(said.contains(&format!("<{completed}>")), "{typed}: {said}");
    }
}

#[test]
fn fish_completes_both_ways_to_call_it() {
    let Some(folder) = completions("fish") else { return };
    for (words, offered, not) in CASES {
        for before in ["xtask", "cargo xtask"] {
            let script = format!("source $argv[1]; complete -C '{before} {}'", words.join(" "));
            let path = folder.0.join("xtask");
            let output =
                Command::new("fish").args(["--no-config", "-c", &script]).arg(path).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            let said: Vec<&str> = said.lines().filter_map(|line| line.split('\t').next()).collect();
            assert!(offered.iter().all(|word| said.contains(word)), "{before} {words:?}: {said:?}");
            assert!(!said.contains(&not), "{before} {words:?}: {said:?}");
        }
    }
}

#[test]
fn man_shows_a_page_of_each_command() {
    let man = |path: &Path| {
        let mut command = Command::new("man");
        command
            .args(["--warnings", "-l"])
            .arg(path)
            .env("MANWIDTH", "120")
            .env("MAN_KEEP_FORMATTING", "")
            .env("LC_ALL", "C.UTF-8");
        command.output()
    };
    if !man(Path::new("/nonexistent")).is_ok_and(|output| output.status.code() != Some(127)) {
        return skip("man", "man is not installed");
    }
    let folder = Folder::new("man");
    let (code, said) = xtask(&["man", "--to", &folder.0.display().to_string()]);
    assert_eq!(code, 0, "{said}");
    let pages: Vec<_> = std::fs::read_dir(&folder.0).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(pages.len() > 20, "{pages:?}");
    for name in ["xtask.1", "xtask-rollback.1", "xtask-backup.1"] {
        let output = man(&folder.0.join(name)).unwrap();
        let (shown, wrong) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && wrong.is_empty(), "{name}: {wrong}");
        for words in ["NAME", "SYNOPSIS", "OPTIONS", "Exit codes:"] {
            assert!(shown.contains(words), "{name} has no {words}: {shown}");
        }
    }
    let page = man(&folder.0.join("xtask-rollback.1")).unwrap().stdout;
    let page = String::from_utf8_lossy(&page).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(page.contains("xtask-rollback - Go back") && page.contains("Touches: the gate"), "{page}");
    let (code, page) = xtask(&["man"]);
    assert!(code == 0 && page.contains(".TH xtask 1"), "{page}");
}

#[test]
fn without_a_command_they_are_shown_by_situation_and_a_version_is_told() {
    let (code, shown) = xtask(&[]);
    assert_eq!(code, 0);
    let at = |words: &str| shown.find(words).unwrap_or_else(|| panic!("no {words} in {shown}"));
    let order = [
        "Something is broken:",
        "rollback ",
        "Every day:",
        "up ",
        "Before a demo:",
        "Practise and maintain:",
        "drill ",
    ];
    assert!(order.windows(2).all(|pair| at(pair[0]) < at(pair[1])), "{shown}");
    assert_eq!(xtask(&["--format", "json"]).0, 2);
    let text = std::fs::read_to_string(workspace().join("xtask/Cargo.toml")).unwrap();
    let version =
        text.lines().find_map(|line| line.strip_prefix("version = \"")).unwrap().trim_end_matches('"');
    for option in ["-V", "--version"] {
        let (code, said) = xtask(&[option]);
        assert!(code == 0 && said.trim().ends_with(version), "{said}");
    }
}
