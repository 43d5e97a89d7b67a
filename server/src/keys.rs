//! Keys that requests need, compared in a time that says nothing of how much of one was right.

use std::path::Path;

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use lapidary_runtime::file;
use sha2::{Digest, Sha256};

use crate::error::Error;

/// The hashes of the keys; none is needed where there are none.
#[derive(Default)]
pub(crate) struct Keys(Option<Vec<[u8; 32]>>);

impl Keys {
    /// Those of a file, one a line; empty lines and lines from `#` on say nothing.
    pub(crate) fn read(path: Option<&Path>) -> Result<Keys, Error> {
        let Some(path) = path else { return Ok(Keys::default()) };
        let text = file::text(path, file::read(path)?)?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let keys: Vec<[u8; 32]> = lines.map(|line| Sha256::digest(line).into()).collect();
        if keys.is_empty() {
            return Err(file::Error::file(path, "a key on a line", "none").into());
        }
        Ok(Keys(Some(keys)))
    }

    /// Whether a request has one.
    pub(crate) fn admit(&self, headers: &HeaderMap) -> bool {
        let Some(keys) = &self.0 else { return true };
        let bearer = headers.get(AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
            scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
        });
        let given = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()));
        let given: [u8; 32] = Sha256::digest(given.unwrap_or_default()).into();
        // All keys, all bytes.
        let same = |key: &[u8; 32]| key.iter().zip(&given).fold(0, |all, (a, b)| all | (a ^ b)) == 0;
        keys.iter().fold(false, |any, key| any | same(key))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_taken_from_either_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys");
        std::fs::write(&path, "# ours\nsecret\n\nother\n").unwrap();
        let keys = Keys::read(Some(&path)).unwrap();
        let admit = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            keys.admit(&headers)
        };
        assert!(admit("authorization", "Bearer secret") && admit("authorization", "bearer other"));
        assert!(admit("x-api-key", "other"));
        for wrong in ["Bearer secre", "Bearer secrets", "Bearer ", "secret", "Basic secret", "Bearer # ours"]
        {
            assert!(!admit("authorization", wrong), "{wrong}");
        }
        assert!(!keys.admit(&HeaderMap::new()));
        assert!(Keys::default().admit(&HeaderMap::new()));
        std::fs::write(&path, "# none\n").unwrap();
        assert!(Keys::read(Some(&path)).is_err());
    }
}
