//! What the environment says, by the variables of Python's `huggingface_hub`.

use std::env;
use std::fmt;
use std::path::PathBuf;

use lapidary_runtime::file;
use lapidary_runtime::file::error::quote;

use crate::error::{Error, Result};

/// The hub, unless `HF_ENDPOINT` names another.
const ENDPOINT: &str = "https://huggingface.co";

/// Where the hub and the cache are, and who asks.
#[derive(Clone)]
pub struct Settings {
    /// Address of the hub, without a slash at its end.
    pub endpoint: String,
    /// Folder of the cache.
    pub cache: PathBuf,
    /// What gated models are fetched with.
    pub token: Option<String>,
    /// Whether nothing may be fetched.
    pub offline: bool,
    /// Certificates to trust in the place of those that are built in, a PEM file.
    pub certificates: Option<PathBuf>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Settings { endpoint, cache, token, offline, certificates } = self;
        f.debug_struct("Settings")
            .field("endpoint", endpoint)
            .field("cache", cache)
            .field("token", &token.as_ref().map(|_| ".."))
            .field("offline", offline)
            .field("certificates", certificates)
            .finish()
    }
}

impl Settings {
    /// By `HF_ENDPOINT`, `HF_HUB_CACHE`, `HF_HOME`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_HUB_OFFLINE` and
    /// `SSL_CERT_FILE`; the token also from the file that `hf auth login` writes.
    ///
    /// # Errors
    /// [`Error::NoCache`] where no variable leads to a folder, [`Error::Setting`] for a token that cannot be one, or an
    /// endpoint that is no address.
    pub fn from_env() -> Result<Settings> {
        let home = home();
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| Some(home.as_ref()?.join("hub"))).ok_or(Error::NoCache)?;
        let endpoint = text("HF_ENDPOINT").map_or(ENDPOINT.into(), |e| e.trim_end_matches('/').to_string());
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(Error::Setting {
                name: "HF_ENDPOINT",
                expected: "an address, https://...".into(),
                found: quote(&endpoint),
            });
        }
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().find_map(|name| text(name));
        let yes = ["1", "ON", "YES", "TRUE"];
        let offline = offline.is_some_and(|value| yes.contains(&value.to_uppercase().as_str()));
        let certificates = path("SSL_CERT_FILE");
        Ok(Settings { endpoint, cache, token: token(home)?, offline, certificates })
    }
}

/// The folder of all that programs of the hub keep.
fn home() -> Option<PathBuf> {
    let of_user =
        || Some(path("XDG_CACHE_HOME").or_else(|| Some(path("HOME")?.join(".cache")))?.join("huggingface"));
    path("HF_HOME").or_else(of_user)
}

fn token(home: Option<PathBuf>) -> Result<Option<String>> {
    let given = text("HF_TOKEN").or_else(|| text("HUGGING_FACE_HUB_TOKEN"));
    let token = match (given, path("HF_TOKEN_PATH").or_else(|| Some(home?.join("token")))) {
        (Some(token), _) => Some(token),
        // A file that cannot be read is as none: most models need no token.
        (None, Some(file)) => {
            file::read_if_present(&file).ok().flatten().map(|b| String::from_utf8_lossy(&b).into())
        }
        (None, None) => None,
    };
    let token = token.map(|t: String| t.trim().to_string()).filter(|t| !t.is_empty());
    match token {
        Some(token) if !token.chars().all(|c| c.is_ascii_graphic()) => Err(Error::Setting {
            name: "HF_TOKEN",
            expected: "a token of the hub, hf_...".into(),
            // It is a secret.
            found: "other characters".into(),
        }),
        token => Ok(token),
    }
}

/// A variable that is set to something.
fn text(name: &str) -> Option<String> {
    env::var(name).ok().map(|value| value.trim().to_string()).filter(|value| !value.is_empty())
}

/// A variable that is set to a path; `~` is the user's folder, as Python has it.
fn path(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(env::var_os(name).filter(|value| !value.is_empty())?);
    match path.strip_prefix("~") {
        Ok(rest) => Some(PathBuf::from(env::var_os("HOME")?).join(rest)),
        Err(_) => Some(path),
    }
}
