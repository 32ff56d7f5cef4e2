//! What was found out, or why it was not: so that "cannot tell" is never taken for "no".

use serde::Serialize;

/// Something that is known, or why it is not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Observed<T> {
    /// Found out.
    Known(T),
    /// Could not be found out.
    Unknown(String),
}

impl<T> Observed<T> {
    /// The value, if it is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Unknown(_) => None,
        }
    }

    /// Why it is not known; nothing when it is.
    pub fn why(&self) -> &str {
        match self {
            Self::Known(_) => "",
            Self::Unknown(why) => why,
        }
    }
}

impl<T> From<anyhow::Result<T>> for Observed<T> {
    fn from(result: anyhow::Result<T>) -> Self {
        match result {
            Ok(value) => Self::Known(value),
            Err(error) => Self::Unknown(format!("{error:#}")),
        }
    }
}
