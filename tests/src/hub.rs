//! A hub on loopback: what the Hugging Face hub answers, of repositories made here, and how a hub or a connection
//! fails.
//!
//! Files are listed at `/api/models/OWNER/REPO/revision/main`; of a file `HEAD /OWNER/REPO/resolve/COMMIT/FILE` tells
//! ETag and length, and large ones are redirected to another port, where bytes are and no token may come.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use sha2::{Digest, Sha256};

/// A file of a repository, and what is wrong with how it is sent.
pub struct Sent {
    /// Its name.
    pub name: String,
    /// Its contents.
    pub bytes: Vec<u8>,
    /// Whether it is stored apart, under its SHA-256.
    pub large: bool,
    /// Answers with its bytes that break off half way.
    pub cuts: AtomicUsize,
    /// Whether parts of it can be asked for.
    pub ranges: bool,
    /// What the hub says of its length, if that is not so.
    pub says: Option<u64>,
}

impl Sent {
    /// A small file.
    pub fn small(name: &str, bytes: &[u8]) -> Sent {
        let (name, bytes) = (name.into(), bytes.into());
        Sent { name, bytes, large: false, cuts: AtomicUsize::new(0), ranges: true, says: None }
    }

    /// A large one.
    pub fn large(name: &str, bytes: &[u8]) -> Sent {
        Sent { large: true, ..Sent::small(name, bytes) }
    }

    fn etag(&self) -> String {
        let hash: String = Sha256::digest(&self.bytes).iter().map(|b| format!("{b:02x}")).collect();
        // As Git's, of a small one.
        if self.large { hash } else { hash[..40].into() }
    }
}

/// A repository.
pub struct Repo {
    /// `OWNER/REPO`.
    pub name: String,
    /// Its commit.
    pub commit: String,
    /// Its files.
    pub files: Vec<Sent>,
    /// The token without which its files are not sent.
    pub gated: Option<String>,
    /// Another name that leads to it.
    pub was: Option<String>,
    /// What is sent in the place of the bytes of its large files.
    pub instead: Mutex<Option<Vec<u8>>>,
}

impl Repo {
    /// One that anybody may read.
    pub fn new(name: &str, files: Vec<Sent>) -> Repo {
        let (name, commit) = (name.into(), "0123456789abcdef0123456789abcdef01234567".into());
        Repo { name, commit, files, gated: None, was: None, instead: Mutex::new(None) }
    }
}

/// A hub that answers until the process ends.
pub struct Hub {
    /// Its address, for `HF_ENDPOINT`.
    pub endpoint: String,
    state: Arc<State>,
}

struct State {
    repos: Vec<Repo>,
    store: String,
    /// `METHOD PATH`, with ` range N` and ` token` where those came, in order.
    log: Mutex<Vec<String>>,
}

impl Hub {
    /// Starts one.
    pub fn start(repos: Vec<Repo>) -> Hub {
        let listeners = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").expect("loopback"));
        let [endpoint, store] =
            [0, 1].map(|i| format!("http://{}", listeners[i].local_addr().expect("an address")));
        let state = State { repos, store, log: Mutex::default() };
        let state = Arc::new(state);
        for listener in listeners {
            let state = state.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = state.clone();
                    thread::spawn(move || {
                        // A client that goes away is its own business.
                        let _ = state.answer(stream);
                    });
                }
            });
        }
        Hub { endpoint, state }
    }

    /// What was asked for since the last time.
    pub fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.log.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A repository.
    pub fn repo(&self, name: &str) -> &Repo {
        self.state.repos.iter().find(|r| r.name == name).expect("a repository")
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).take(1 << 16).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let (mut token, mut from) = (None, None);
        for line in lines {
            let line = line?;
            let Some((field, value)) = line.split_once(':') else { break };
            match (field.to_lowercase().as_str(), value.trim()) {
                ("authorization", value) => token = value.strip_prefix("Bearer ").map(String::from),
                ("range", value) => {
                    from = value.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')?.parse().ok())
                }
                _ => {}
            }
        }
        let mut words = first.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut entry = format!("{method} {path}");
        if let Some(from) = from {
            entry += &format!(" range {from}");
        }
        if token.is_some() {
            entry += " token";
        }
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        let refuse = |status: u16, code: &str| head(status, &[("X-Error-Code", code)], 0);
        if let Some(was) = self.repos.iter().find(|r| r.was.as_ref().is_some_and(|was| path.contains(was))) {
            let now = path.replacen(was.was.as_deref().unwrap_or_default(), &was.name, 1);
            return stream.write_all(head(307, &[("Location", &now)], 0).as_bytes());
        }
        let Some(repo) = self.repos.iter().find(|r| path.contains(&format!("/{}/", r.name))) else {
            return stream.write_all(refuse(401, "RepoNotFound").as_bytes());
        };
        if path == format!("/api/models/{}/revision/main", repo.name) {
            let files: Vec<_> =
                repo.files.iter().map(|f| serde_json::json!({ "rfilename": f.name })).collect();
            let body = serde_json::json!({ "sha": repo.commit, "siblings": files }).to_string();
            return write!(stream, "{}{body}", head(200, &[], body.len()));
        }
        let found = |root: &str| {
            let name = path.strip_prefix(&format!("{root}/{}/resolve/{}/", repo.name, repo.commit))?;
            repo.files.iter().find(|f| f.name == name)
        };
        if let Some(file) = found("/store") {
            return self.bytes(repo, file, from, &mut stream);
        }
        let Some(file) = found("") else {
            return stream.write_all(refuse(404, "EntryNotFound").as_bytes());
        };
        if repo.gated.is_some() && token != repo.gated {
            let status = if token.is_some() { 403 } else { 401 };
            return stream.write_all(refuse(status, "GatedRepo").as_bytes());
        }
        let (etag, bytes) = (format!("\"{}\"", file.etag()), file.says.unwrap_or(file.bytes.len() as u64));
        match (file.large, method) {
            (true, _) => {
                let place = format!("{}/store{path}", self.store);
                let bytes = bytes.to_string();
                let fields = [("Location", &place[..]), ("X-Linked-Etag", &etag), ("X-Linked-Size", &bytes)];
                stream.write_all(
                    head(302, &[&fields[..], &[("X-Repo-Commit", &repo.commit)]].concat(), 0).as_bytes(),
                )
            }
            (false, "HEAD") => stream.write_all(head(200, &[("ETag", &etag)], bytes as usize).as_bytes()),
            (false, _) => self.bytes(repo, file, from, &mut stream),
        }
    }

    /// The bytes of a file, or half of what was asked for.
    fn bytes(
        &self,
        repo: &Repo,
        file: &Sent,
        from: Option<usize>,
        stream: &mut TcpStream,
    ) -> std::io::Result<()> {
        let instead = repo.instead.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all = instead.filter(|_| file.large).unwrap_or_else(|| file.bytes.clone());
        let range = from.filter(|&from| file.ranges && from < all.len());
        let rest = &all[range.unwrap_or(0)..];
        let header = match range {
            Some(from) => {
                let range = format!("bytes {from}-{}/{}", all.len() - 1, all.len());
                head(206, &[("Content-Range", &range)], rest.len())
            }
            None => head(200, &[], rest.len()),
        };
        stream.write_all(header.as_bytes())?;
        let cut = file.cuts.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        stream.write_all(if cut { &rest[..rest.len() / 2] } else { rest })
    }
}

fn head(status: u16, fields: &[(&str, &str)], length: usize) -> String {
    let mut text = format!("HTTP/1.1 {status} said\r\nContent-Length: {length}\r\nConnection: close\r\n");
    for (field, value) in fields {
        text += &format!("{field}: {value}\r\n");
    }
    text + "\r\n"
}
