//! The hub's answers: which files a model has, what is known of a file, its bytes from a place on.
//!
//! Redirects are followed here and not by the client beneath: within the hub (a repository that was renamed) with the
//! token, to where bytes are stored without it.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use lapidary_runtime::file::error::{line, quote};
use serde_json::Value;
use ureq::http::header::{AUTHORIZATION, CONTENT_RANGE, ETAG, LOCATION, RANGE};
use ureq::http::{HeaderMap, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use crate::error::{Error, Result, disk};
use crate::name::Name;
use crate::settings::Settings;

/// How long the hub may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// Redirects that are followed.
const REDIRECTS: usize = 5;
/// Bytes of a list of files, and of a name in it.
const LISTING: u64 = 32 << 20;
const LONGEST: usize = 512;

/// What asks the hub.
pub(crate) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
}

/// A repository's files at a commit.
pub(crate) struct Listing {
    pub(crate) commit: String,
    pub(crate) files: Vec<String>,
}

/// What the hub says of a file.
pub(crate) struct Remote {
    /// Where its bytes are.
    pub(crate) url: String,
    /// The name of its contents in a cache.
    pub(crate) etag: String,
    /// Its SHA-256 in hexadecimal, of a file that is stored apart.
    pub(crate) sha256: Option<String>,
    pub(crate) bytes: u64,
}

/// A file's bytes, from where on.
pub(crate) struct Stream {
    pub(crate) from: u64,
    pub(crate) body: Box<dyn Read>,
}

impl Client {
    pub(crate) fn new(settings: &Settings) -> Result<Client> {
        let mut tls = TlsConfig::builder();
        if let Some(path) = &settings.certificates {
            let pem = std::fs::read(path).map_err(disk("read", path))?;
            let certificates: Vec<Certificate<'static>> = parse_pem(&pem)
                .filter_map(|item| match item {
                    Ok(PemItem::Certificate(certificate)) => Some(certificate),
                    _ => None,
                })
                .collect();
            tls = tls.root_certs(RootCerts::Specific(Arc::new(certificates)));
        }
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .user_agent(concat!("lapidary/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .tls_config(tls.build());
        let agent = Agent::new_with_config(config.build());
        Ok(Client { agent, endpoint: settings.endpoint.clone(), token: settings.token.clone() })
    }

    /// The files of a repository's main branch.
    pub(crate) fn listing(&self, name: &Name) -> Result<Listing> {
        let url = format!("{}/api/models/{}/revision/main", self.endpoint, name.repository());
        let (url, mut response) = self.within(name, url, |url| self.send("GET", url, true, None))?;
        if !response.status().is_success() {
            return Err(self.refused(name, &url, &response));
        }
        let bytes = response.body_mut().with_config().limit(LISTING).read_to_vec();
        let bytes = bytes.map_err(|e| unreachable(&url, e))?;
        let answer: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        let refuse = |expected: &str, found: &Value| Error::Answer {
            url: url.clone(),
            expected: expected.into(),
            found: line(found.to_string()),
        };
        let commit = answer["sha"].as_str().filter(|sha| is_word(sha));
        let commit = commit.ok_or_else(|| refuse("sha, a commit", &answer["sha"]))?.to_string();
        let siblings = answer["siblings"].as_array();
        let siblings = siblings.ok_or_else(|| refuse("siblings, a list of files", &answer["siblings"]))?;
        let file = |sibling: &Value| match sibling["rfilename"].as_str() {
            Some(file) if is_plain(file) => Ok(file.to_string()),
            _ => Err(refuse("rfilename, a path within the repository", sibling)),
        };
        Ok(Listing { commit, files: siblings.iter().map(file).collect::<Result<_>>()? })
    }

    /// What the hub says of a file.
    pub(crate) fn remote(&self, name: &Name, commit: &str, file: &str) -> Result<Remote> {
        let path: Vec<String> = file.split('/').map(encoded).collect();
        let url = format!("{}/{}/resolve/{commit}/{}", self.endpoint, name.repository(), path.join("/"));
        let (url, response) = self.within(name, url, |url| self.send("HEAD", url, true, None))?;
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.refused(name, &url, &response));
        }
        let answer = |expected: &str, found: Option<&str>| Error::Answer {
            url: url.clone(),
            expected: expected.into(),
            found: found.map_or("nothing".into(), quote),
        };
        let headers = response.headers();
        let tag = text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str()));
        let etag = tag.map(|tag| tag.trim_start_matches("W/").trim_matches('"'));
        let etag = etag.filter(|etag| is_word(etag)).ok_or_else(|| answer("an ETag", tag))?.to_string();
        let size = text(headers, "x-linked-size");
        // Of a redirect the length is that of its own body.
        let size = size.or_else(|| text(headers, "content-length").filter(|_| status.is_success()));
        let bytes = size.and_then(|size| size.parse().ok());
        let bytes = bytes.ok_or_else(|| answer("the file's length (X-Linked-Size)", size))?;
        let is_sha256 = etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
        let sha256 = is_sha256.then(|| etag.to_ascii_lowercase());
        Ok(Remote { url, etag, sha256, bytes })
    }

    /// The bytes of a file from `from` on; a server that sends no parts begins at 0.
    pub(crate) fn bytes(&self, name: &Name, remote: &Remote, from: u64) -> Result<Stream> {
        let (mut url, mut own) = (remote.url.clone(), true);
        for _ in 0..=REDIRECTS {
            let response = self.send("GET", &url, own, (from > 0).then_some(from))?;
            let status = response.status().as_u16();
            match status {
                300..400 => {
                    let next = self.next(&url, &response)?;
                    own = own && self.is_within(&next);
                    url = next;
                    continue;
                }
                206 | 200 => {}
                _ => return Err(self.refused(name, &url, &response)),
            }
            let range = text(response.headers(), CONTENT_RANGE.as_str());
            let (begins, all) = match (status, range.map(|r| (r, range_of(r)))) {
                (200, _) => (0, text(response.headers(), "content-length").and_then(|n| n.parse().ok())),
                (_, Some((_, Some((begins, all))))) if begins == from => (begins, Some(all)),
                (_, range) => {
                    let expected = format!("the bytes from {from} on (Content-Range)");
                    let found = range.map_or("nothing".into(), |(range, _)| quote(range));
                    return Err(Error::Answer { url, expected, found });
                }
            };
            if let Some(all) = all.filter(|&all| all != remote.bytes) {
                let expected = format!("{} bytes, as the hub says", remote.bytes);
                return Err(Error::Answer { url, expected, found: all.to_string() });
            }
            return Ok(Stream { from: begins, body: Box::new(response.into_body().into_reader()) });
        }
        Err(unreachable(&remote.url, "too many redirects"))
    }

    /// Asks, and again where the hub itself says that the repository has another name now.
    fn within(
        &self,
        name: &Name,
        mut url: String,
        ask: impl Fn(&str) -> Result<Response<Body>>,
    ) -> Result<(String, Response<Body>)> {
        for _ in 0..=REDIRECTS {
            let response = ask(&url)?;
            if !response.status().is_redirection() {
                return Ok((url, response));
            }
            let next = self.next(&url, &response)?;
            // What is told of a file stands in the answer that leads to its bytes.
            if !self.is_within(&next) || text(response.headers(), "x-linked-etag").is_some() {
                return Ok((url, response));
            }
            url = next;
        }
        Err(unreachable(&name.repository(), "too many redirects"))
    }

    /// Where a redirect leads.
    fn next(&self, url: &str, response: &Response<Body>) -> Result<String> {
        match text(response.headers(), LOCATION.as_str()) {
            Some(path) if path.starts_with('/') && !path.starts_with("//") => {
                let host = url.match_indices('/').nth(2).map_or(url.len(), |(at, _)| at);
                Ok(format!("{}{path}", &url[..host]))
            }
            // What came in safety is not fetched without.
            Some(full) if full.starts_with("https://") => Ok(full.into()),
            Some(full) if full.starts_with("http://") && !url.starts_with("https://") => Ok(full.into()),
            other => Err(Error::Answer {
                url: url.into(),
                expected: "a redirect to an address (Location)".into(),
                found: other.map_or("nothing".into(), quote),
            }),
        }
    }

    fn is_within(&self, url: &str) -> bool {
        url.strip_prefix(&self.endpoint).is_some_and(|rest| rest.starts_with('/'))
    }

    fn send(&self, method: &str, url: &str, own: bool, from: Option<u64>) -> Result<Response<Body>> {
        let mut request = match method {
            "HEAD" => self.agent.head(url),
            _ => self.agent.get(url),
        };
        if let Some(token) = self.token.as_ref().filter(|_| own) {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(from) = from {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        request.call().map_err(|e| unreachable(url, e))
    }

    /// The error of an answer that refuses.
    fn refused(&self, name: &Name, url: &str, response: &Response<Body>) -> Error {
        let (status, headers) = (response.status().as_u16(), response.headers());
        let (name, token) = (name.repository(), self.token.is_some());
        let page = format!("{}/{name}", self.endpoint);
        let said = text(headers, "x-error-message");
        match (text(headers, "x-error-code"), status) {
            (Some("GatedRepo"), _) | (None, 403) => Error::Gated { name, page, token },
            (Some("RepoNotFound"), _) => Error::Unknown { name, token },
            (_, 401) if said.is_some_and(|m| m.contains("Invalid")) => Error::Token { name },
            (None, 401) if url.contains("/resolve/") => Error::Gated { name, page, token },
            (_, 401) | (None, 404) => Error::Unknown { name, token },
            (_, 429) => unreachable(url, "the hub says that it is asked too often (429); try again later"),
            (_, 500..) => unreachable(url, format!("the hub fails ({status})")),
            _ => Error::Answer {
                url: url.into(),
                expected: "the file (status 200)".into(),
                found: said.map_or(format!("status {status}"), |m| format!("status {status}, {}", quote(m))),
            },
        }
    }
}

pub(crate) fn unreachable(url: &str, cause: impl std::fmt::Display) -> Error {
    Error::Unreachable { url: url.into(), cause: line(cause), kept: String::new() }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// `bytes 5-9/10` as 5 and 10.
fn range_of(text: &str) -> Option<(u64, u64)> {
    let (range, all) = text.strip_prefix("bytes ")?.split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, all.parse().ok()?))
}

/// Whether a text can be a file's name as it is: a commit, an ETag.
fn is_word(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=128).contains(&text.len()) && text.chars().all(plain) && !text.starts_with('.')
}

/// Whether a path stays within its folder on every system.
fn is_plain(path: &str) -> bool {
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && !p.contains(['\\', ':']);
    path.len() <= LONGEST && !path.chars().any(char::is_control) && path.split('/').all(part)
}

/// A part of a path as addresses have it.
fn encoded(part: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
    part.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}
