//! What is secret in an env file, by the same reading as its settings. Where the file is malformed, from there on
//! line by line, by the rules of `base/secrets`, which also keeps what is learned. Called by `pilot` and `evidence`, which read the file.

use crate::base::secrets;
use crate::stack::envfile::{Piece, pieces};
use std::collections::{BTreeMap, BTreeSet};

/// Registers the secrets of a file: each value as a program gets it, and as it is written in the file.
pub fn learn(text: &str) {
    for piece in without_mark(text) {
        match piece {
            Piece::Setting { key, value, written, .. } => {
                let quoted = written.starts_with(['"', '\'']);
                let written = if quoted { &written[1..written.len() - 1] } else { written };
                // Most are written as they are.
                for value in BTreeSet::from([value.as_str(), written]) {
                    secrets::learn(&BTreeMap::from([(key.to_owned(), value.to_owned())]));
                }
            }
            Piece::Other(text) => secrets::learn_env_file(text),
        }
    }
}

/// The text with its secret values masked.
pub fn masked(text: &str) -> String {
    let shown = |piece| match piece {
        Piece::Setting { key, value, head, .. } if secrets::hides(key, &value) => {
            format!("{head}{}", secrets::MASK)
        }
        Piece::Setting { head, written, .. } => secrets::mask(&format!("{head}{written}")),
        Piece::Other(text) => secrets::mask_env_file(text),
    };
    without_mark(text).into_iter().map(shown).collect()
}

/// The pieces behind the byte order mark, which would count as a line that is no setting.
fn without_mark(text: &str) -> Vec<Piece<'_>> {
    pieces(text.strip_prefix('\u{feff}').unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_hidden_without_its_quotes_as_it_is_written_and_line_by_line() {
        let text = "\u{feff}KIND: plain-word # OLD_TOKEN=old-h1dden\r\nexport A_TOKEN = \"q\\\"h1dden\\ttab\" # note\n\
            B_KEY='-----BEGIN\nline=one-h1dden\n-----END'\nURL=\"http://u:pw-h1dden@db/${KIND}\"\n\
            C_TOKEN=${KIND}-h1dden\nD_TOKEN=$$h1dden\n";
        learn(text);
        for said in [
            "q\"h1dden\ttab",
            "q\\\"h1dden\\ttab",
            "line=one-h1dden",
            "pw-h1dden",
            "plain-word-h1dden",
            "${KIND}-h1dden",
            "$h1dden",
            "$$h1dden",
            "old-h1dden",
        ] {
            let masked = secrets::mask(&format!("it is {said}."));
            assert_eq!(masked, format!("it is {}.", secrets::MASK), "{said}");
        }
        assert_eq!(secrets::mask("plain-word, note"), "plain-word, note");
        let shown = "KIND: plain-word # OLD_TOKEN=********\r\nexport A_TOKEN = ******** # note\nB_KEY=********\n\
            URL=********\nC_TOKEN=********\nD_TOKEN=********\n";
        assert_eq!(masked(text), shown);
        // From the first error on, the old rules: a line that is no NAME=VALUE counts as a secret.
        let broken = "A=1\nA_TOKEN: \"unclosed-h1dden\nE_TOKEN='more-h1dden' # note\nF_TOKEN more\n";
        learn(broken);
        assert_eq!(secrets::mask("unclosed-h1dden more-h1dden"), "******** ********");
        assert_eq!(masked(broken).matches("h1dden").count(), 0);
        assert!(masked(broken).starts_with("A=1\n******** (not NAME=VALUE)\nE_TOKEN=********\n"));
    }
}
