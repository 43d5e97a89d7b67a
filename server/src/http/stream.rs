//! Answers as server-sent events: chunks as they come, a comment while nothing does, `[DONE]` at the end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::Response;
use bytes::Bytes;
use http_body::Frame;
use serde_json::Value;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::generation::{Generation, Progress};

/// After so long without a chunk a comment is sent, for clients that give up otherwise.
const SILENCE: Duration = Duration::from_secs(15);

/// The response to a request whose answer is streamed.
pub(crate) fn response(generation: Generation, first: Option<Progress>) -> Response {
    let mut silence = interval(SILENCE);
    silence.set_missed_tick_behavior(MissedTickBehavior::Delay);
    silence.reset();
    let mut events =
        Events { generation: Box::new(generation), ready: VecDeque::new(), silence, done: false };
    if let Some(progress) = first {
        events.take(progress);
    }
    let mut response = Response::new(Body::new(events));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx passes on what it gets, then.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// The body of such a response.
struct Events {
    generation: Box<Generation>,
    ready: VecDeque<Bytes>,
    silence: Interval,
    done: bool,
}

impl Events {
    fn push(&mut self, value: &Value) {
        self.ready.push_back(Bytes::from(format!("data: {value}\n\n")));
    }

    fn take(&mut self, progress: Progress) {
        match progress {
            Progress::Chunks(chunks) => chunks.iter().for_each(|chunk| self.push(chunk)),
            Progress::Done => {
                if self.generation.envelope.include_usage {
                    let usage = self.generation.envelope.usage(self.generation.usage());
                    self.push(&usage);
                }
                self.finish();
            }
            Progress::Failed(error) => {
                self.push(&error.json());
                self.finish();
            }
        }
    }

    fn finish(&mut self) {
        self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
        self.done = true;
    }
}

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        loop {
            if !this.ready.is_empty() {
                // What came together goes together.
                let all = match this.ready.len() {
                    1 => this.ready.pop_front().unwrap_or_default(),
                    _ => Bytes::from(this.ready.drain(..).collect::<Vec<_>>().concat()),
                };
                this.silence.reset();
                return Poll::Ready(Some(Ok(Frame::data(all))));
            }
            if this.done {
                return Poll::Ready(None);
            }
            match this.generation.poll(context) {
                Poll::Ready(progress) => this.take(progress),
                Poll::Pending => {
                    if this.silence.poll_tick(context).is_ready() {
                        this.ready.push_back(Bytes::from_static(b":\n\n"));
                        continue;
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}
