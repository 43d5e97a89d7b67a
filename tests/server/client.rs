//! A client of HTTP/1.1 that does as little as can be: one connection a request, lengths and chunks.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// How long the server may be silent.
const SILENCE: Duration = Duration::from_secs(120);

/// What a server answered.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{}", self.text()))
    }

    /// The first header of this name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Checks that it is an error of this status, whose message names all of `named`.
    #[track_caller]
    pub(crate) fn refuses(&self, status: u16, named: &[&str]) {
        assert_eq!(self.status, status, "{}", self.text());
        let error = &self.json()["error"];
        let (message, kind) = (error["message"].as_str().unwrap(), error["type"].as_str());
        assert!(kind.is_some_and(|kind| kind.ends_with("_error")), "{error}");
        for name in named {
            assert!(message.contains(name), "`{name}` is not named: {message}");
        }
    }
}

/// A response whose body is still coming.
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    /// Whether the body comes in chunks.
    chunked: bool,
    length: Option<usize>,
    rest: Vec<u8>,
}

/// Sends a request and reads the head of what comes back.
pub(crate) fn open(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Response> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_nodelay(true)?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if method == "POST" {
        head += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    // A server that refuses a body does not read it.
    let _ = stream.write_all(body);
    Response::read(stream)
}

impl Response {
    /// Reads the head of a response.
    pub(crate) fn read(stream: TcpStream) -> std::io::Result<Response> {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| std::io::Error::other(format!("no status: {line:?}")))?;
        let mut headers = vec![];
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_string(), value.trim().to_string()));
        }
        let header = |name: &str| {
            headers
                .iter()
                .find(|(n, _): &&(String, String)| n.eq_ignore_ascii_case(name))
                .map(|(_, v)| v.clone())
        };
        let chunked = header("transfer-encoding").is_some_and(|v| v == "chunked");
        let length = header("content-length").and_then(|v| v.parse().ok());
        Ok(Response { status, headers, reader, chunked, length, rest: vec![] })
    }

    /// More of the body; none at its end.
    fn more(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        if self.chunked {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let length = usize::from_str_radix(line.trim(), 16)
                .map_err(|_| std::io::Error::other(format!("no length of a chunk: {line:?}")))?;
            let mut chunk = vec![0; length + 2];
            self.reader.read_exact(&mut chunk)?;
            chunk.truncate(length);
            return Ok((length > 0).then_some(chunk));
        }
        let mut all = vec![0; self.length.take().unwrap_or(0)];
        self.reader.read_exact(&mut all)?;
        Ok((!all.is_empty()).then_some(all))
    }

    /// All of it.
    pub(crate) fn whole(mut self) -> std::io::Result<Answer> {
        let mut body = vec![];
        while let Some(more) = self.more()? {
            body.extend(more);
        }
        Ok(Answer { status: self.status, headers: self.headers, body })
    }

    /// The next server-sent event's data, comments left out; none at the end.
    pub(crate) fn event(&mut self) -> std::io::Result<Option<String>> {
        loop {
            if let Some(end) = self.rest.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.rest.drain(..end + 2).collect();
                let text = String::from_utf8(event).expect("UTF-8");
                match text.trim_end().strip_prefix("data: ") {
                    Some(data) => return Ok(Some(data.to_string())),
                    None => assert!(text.starts_with(':'), "{text:?}"),
                }
                continue;
            }
            match self.more()? {
                Some(more) => self.rest.extend(more),
                None => {
                    assert!(self.rest.is_empty(), "half an event: {:?}", self.rest);
                    return Ok(None);
                }
            }
        }
    }

    /// The objects of all events, up to `[DONE]`.
    #[track_caller]
    pub(crate) fn events(mut self) -> Vec<Value> {
        let mut all = vec![];
        while let Some(data) = self.event().expect("an event") {
            if data == "[DONE]" {
                assert_eq!(self.event().expect("the end"), None);
                return all;
            }
            all.push(serde_json::from_str(&data).expect("JSON"));
        }
        panic!("no [DONE]: {all:?}")
    }
}

/// Sends a request and reads all that comes back.
#[track_caller]
pub(crate) fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    open(address, method, path, headers, body).and_then(Response::whole).expect("an answer")
}
