//! A value that is known, or the reason why it is not known: so that "cannot tell" is never taken for "no".

use serde::Serialize;

/// A value, or the reason why it is not known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Observed<T> {
    /// The value.
    Known(T),
    /// Why it could not be found out.
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

    /// Why it is not known; empty if it is known.
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
