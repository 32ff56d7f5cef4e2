//! `completions`: what makes a shell complete the commands, for `xtask` and for `cargo xtask`. Called by `main`, which
//! needs no stack for it.

use crate::base::failure::Exit;
use crate::base::output::Output;
use crate::deploy::event::{Event, Finished};
use anyhow::{Context, Result};
use clap::ValueEnum;
use serde_json::json;

/// `cargo xtask completions`.
#[derive(clap::Args, Debug)]
#[command(
    after_help = "Examples:\n  cargo xtask completions bash\nIn ~/.bashrc:\n  source <(xtask completions bash)\nIn ~/.zshrc, after compinit:\n  source <(xtask completions zsh)\nOnce, for fish:\n  xtask completions fish > ~/.config/fish/conf.d/xtask.fish"
)]
pub struct Args {
    /// Which shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Shell {
    /// The usual one on Linux
    Bash,
    /// The usual one on macOS
    Zsh,
    /// fish
    Fish,
}

/// After `cargo xtask`, the words are those of `xtask`; all else is left to what completes cargo already.
const BASH: &str = r#"
declare -F _completion_loader >/dev/null && _completion_loader cargo 2>/dev/null
case $(complete -p cargo 2>/dev/null) in
    *_cargo_xtask*) ;;
    *) _xtask_cargo_before=$(complete -p cargo 2>/dev/null | sed -n 's/.* -F \([^ ]*\) .*/\1/p') ;;
esac
_cargo_xtask() {
    if [ "${COMP_WORDS[1]}" = xtask ] && [ "$COMP_CWORD" -gt 1 ]; then
        COMP_WORDS=("${COMP_WORDS[@]:1}")
        COMP_CWORD=$((COMP_CWORD - 1))
        _xtask xtask "$2" "$3"
    elif [ -n "$_xtask_cargo_before" ]; then
        "$_xtask_cargo_before" "$@"
    fi
}
complete -F _cargo_xtask -o nosort -o bashdefault -o default cargo
"#;

const ZSH: &str = r#"
[[ ${_comps[cargo]} == _cargo_xtask ]] || _xtask_cargo_before=${_comps[cargo]}
_cargo_xtask() {
    if (( CURRENT > 2 )) && [[ ${words[2]} == xtask ]]; then
        shift words
        (( CURRENT -= 1 ))
        _xtask
    elif [[ -n $_xtask_cargo_before ]]; then
        $_xtask_cargo_before "$@"
    else
        _default
    fi
}
compdef _cargo_xtask cargo
"#;

const FISH: &str = r#"
function __fish_cargo_xtask
    set -l words (commandline -opc)
    complete -C (string join ' ' -- (string escape -- $words[2..-1]) (commandline -ct))
end
complete -c cargo -f -n '__fish_seen_subcommand_from xtask' -a '(__fish_cargo_xtask)'
"#;

/// Prints it. `line` is the command line that is completed.
pub fn run(args: &Args, line: clap::Command, out: &Output) -> Result<Finished> {
    use clap_complete::Shell as Known;
    let (shell, more) = match args.shell {
        Shell::Bash => (Known::Bash, BASH),
        Shell::Zsh => (Known::Zsh, ZSH),
        Shell::Fish => (Known::Fish, FISH),
    };
    let mut bytes = Vec::new();
    let mut line = line.name("xtask").bin_name("xtask");
    clap_complete::generate(shell, &mut line, "xtask", &mut bytes);
    let words = if args.shell == Shell::Fish { words_for_fish(&line) } else { String::new() };
    let text = String::from_utf8(bytes).context("the completions are no text")? + &words + more;
    out.event(&Event::Result { value: &json!({"completions": text}) });
    out.say(text.trim_end());
    Ok(Finished::plain(Exit::Ok))
}

/// The words of arguments without a name, such as `on` and `off`, which the generator leaves out for fish.
fn words_for_fish(line: &clap::Command) -> String {
    let mut all = String::new();
    for command in line.get_subcommands().filter(|command| !command.is_hide_set()) {
        for argument in command.get_positionals() {
            let words: Vec<String> =
                argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
            if !words.is_empty() {
                let (name, words) = (command.get_name(), words.join(" "));
                all +=
                    &format!("complete -c xtask -f -n '__fish_xtask_using_subcommand {name}' -a '{words}'\n");
            }
        }
    }
    all
}
