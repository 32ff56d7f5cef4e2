//! The form of every value in a `release.json`: ids, names, checksums. Code that reads a `release.json`
//! checks it here first. So no value of it is used in a path, given to a program or printed without a check.
//! Pure.

use crate::base::files;
use crate::release::description::{Image, Release};
use crate::stack::layout::Layout;
use anyhow::{Result, ensure};

/// Name of the description. It is not one of the files that it lists.
pub const DESCRIPTION: &str = "release.json";

/// Is it a release id: `r` and a number, such as `r12`?
pub fn is_release_id(text: &str) -> bool {
    let digits = text.strip_prefix('r').unwrap_or_default();
    (1..=9).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0')
}

/// Is it a SHA-256: 64 lowercase hexadecimal digits?
pub fn is_sum(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Is it an image id: `sha256:` and a checksum?
pub fn is_image_id(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(is_sum)
}

/// Only letters, digits and the characters in `more`, with a letter or digit first. So it cannot be an
/// option, a hidden file or an absolute path.
fn is_word(text: &str, more: &str, longest: usize) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= longest
        && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
}

impl Image {
    fn check_form(&self) -> Result<()> {
        ensure!(
            is_image_id(&self.id),
            "{:?} is not an image id (sha256: and 64 hexadecimal digits)",
            self.id
        );
        ensure!(is_word(&self.tag, "._-/:@", 300), "{:?} is not an image tag", self.tag);
        for sum in self.index.iter().chain(&self.archive) {
            ensure!(is_sum(sum), "{sum:?} is not a checksum");
        }
        Ok(())
    }
}

impl Release {
    /// Checks every value. The error names the first that is wrong.
    pub fn check_form(&self) -> Result<()> {
        ensure!(is_release_id(&self.id), "{:?} is not a release id (r and a number)", self.id);
        ensure!(is_word(&self.label, "._-", 128), "{:?} is not a version", self.label);
        ensure!(is_word(&self.engine, "-", 32), "{:?} is not an engine", self.engine);
        for commit in self.commit.iter().chain(&self.same_commits) {
            ensure!(is_word(commit, "-", 128), "{commit:?} is not a commit");
        }
        for (service, image) in &self.images {
            ensure!(is_word(service, "._-", 128), "{service:?} is not a service");
            image.check_form()?;
        }
        for (name, sum) in &self.files {
            let own = files::stays_within(name) && name != DESCRIPTION;
            ensure!(own, "{name:?} is not a file of a release");
            ensure!(is_sum(sum), "{sum:?}, the checksum of {name:?}, is not a checksum");
        }
        let Layout { compose, env, seed, env_files, included, build_folders } = &self.layout;
        let named =
            compose.iter().chain(env).chain(seed).chain(env_files).chain(included).chain(build_folders);
        for name in named {
            ensure!(files::stays_within(name), "{name:?} is not a file of a stack");
        }
        ensure!(!compose.is_empty(), "it has no compose file");
        ensure!(is_sum(&self.xtask), "{:?} is not the checksum of an xtask", self.xtask);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_one_form_each() {
        assert!(is_release_id("r1") && is_release_id("r120"));
        for text in ["", "r", "r0", "r01", "1", "R1", "r1 ", "r1/..", "../r1", ".r1", "r１", "r9999999999"] {
            assert!(!is_release_id(text), "{text}");
        }
        let sum = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(is_sum(sum) && is_image_id(&format!("sha256:{sum}")));
        for text in [&sum[1..], &format!("{sum}0"), &sum.to_uppercase(), "../../x", ""] {
            assert!(!is_sum(text) && !is_image_id(&format!("sha256:{text}")) && !is_image_id(text), "{text}");
        }
    }
}
