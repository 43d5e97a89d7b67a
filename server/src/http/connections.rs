//! Connections: accepted, limited in number, in the size of heads and in how long they may be silent.
//!
//! Where there are as many as may be, the one that has been without a request the longest is closed for a new one:
//! those who open connections and say nothing keep nobody out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use super::record::Record;
use crate::metrics::Metrics;

/// The longest that the head of a request may take to come, and that a connection may be without one.
const HEAD: Duration = Duration::from_secs(20);
/// The most headers.
const MOST_HEADERS: usize = 100;
/// The most bytes of a head.
const MOST_HEAD_BYTES: usize = 64 << 10;
/// The longest that a client may leave what is sent to it.
const UNREAD: Duration = Duration::from_secs(60);
/// What is waited after the system gave no connection: it is out of files, mostly.
const REFUSED: Duration = Duration::from_millis(50);

/// A connection.
#[derive(Default)]
struct Connection {
    /// Requests under way, until their responses are sent.
    requests: AtomicUsize,
    /// Told to close it.
    close: Notify,
}

/// All of them, the oldest first.
pub(crate) struct Connections {
    all: Mutex<VecDeque<Arc<Connection>>>,
    most: usize,
    metrics: Arc<Metrics>,
}

impl Connections {
    pub(crate) fn new(most: usize, metrics: Arc<Metrics>) -> Connections {
        Connections { all: Mutex::default(), most, metrics }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// A place for another one, if need be of one that has nothing to do.
    fn open(&self) -> Option<Arc<Connection>> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= self.most {
            let idle = all.iter().position(|c| c.requests.load(Ordering::Relaxed) == 0)?;
            all.remove(idle)?.close.notify_one();
        }
        let connection = Arc::new(Connection::default());
        all.push_back(connection.clone());
        self.metrics.connections.set(all.len());
        Some(connection)
    }

    fn closed(&self, connection: &Arc<Connection>) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| !Arc::ptr_eq(other, connection));
        self.metrics.connections.set(all.len());
    }

    /// Accepts and serves until `ending` is true; connections that have a request are served to its end.
    pub(crate) async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        router: Router,
        ending: watch::Receiver<bool>,
    ) {
        let mut over = ending.clone();
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(_) => {
                        tokio::time::sleep(REFUSED).await;
                        continue;
                    }
                },
                () = begun(&mut over) => return,
            };
            // Where all are busy the client hears that nobody listens.
            if let Some(connection) = self.open() {
                tokio::spawn(serve(self.clone(), connection, stream, router.clone(), ending.clone()));
            }
        }
    }
}

async fn serve(
    connections: Arc<Connections>,
    connection: Arc<Connection>,
    stream: TcpStream,
    router: Router,
    mut ending: watch::Receiver<bool>,
) {
    // What the system does not know of it does without.
    let _ = stream.set_nodelay(true);
    let _ = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD));
    let service = service_fn(|request: Request<Incoming>| {
        let busy = Busy::new(&connection);
        let router = router.clone();
        async move {
            let response = super::call(router, request.map(Body::new)).await;
            let (parts, body) = response.into_parts();
            Ok::<_, Infallible>(Response::from_parts(parts, Sent { body, _busy: busy }))
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(MOST_HEADERS)
        .max_buf_size(MOST_HEAD_BYTES);
    let mut served = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut ends = false;
    loop {
        tokio::select! {
            // Its end, good or bad, is the client's business.
            _ = served.as_mut() => break,
            () = connection.close.notified() => break,
            () = begun(&mut ending), if !ends => {
                ends = true;
                served.as_mut().graceful_shutdown();
            }
        }
    }
    connections.closed(&connection);
}

/// Waits until the end has begun.
async fn begun(ending: &mut watch::Receiver<bool>) {
    // It has, too, where nobody can say so any more.
    let _ = ending.wait_for(|ending| *ending).await;
}

/// A request under way.
struct Busy(Arc<Connection>);

impl Busy {
    fn new(connection: &Arc<Connection>) -> Busy {
        connection.requests.fetch_add(1, Ordering::Relaxed);
        Busy(connection.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response's body; its request is under way until it is sent.
struct Sent {
    body: Body,
    _busy: Busy,
}

/// The same, which notes that all of it was taken.
pub(crate) struct Recorded {
    pub(crate) body: Body,
    pub(crate) record: Arc<Record>,
}

type Poll = std::task::Poll<Option<Result<Frame<Bytes>, axum::Error>>>;

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll {
        pin!(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl http_body::Body for Recorded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> Poll {
        let polled = pin!(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None)) || self.body.is_end_stream() {
            self.record.sent();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_new_connection_takes_the_place_of_one_that_has_nothing_to_do() {
        let connections = Connections::new(2, Arc::default());
        let first = connections.open().unwrap();
        let second = connections.open().unwrap();
        let busy = Busy::new(&first);
        connections.open().unwrap();
        assert!(Arc::strong_count(&second) == 1 && connections.len() == 2, "the idle one went");
        let _others = connections.all.lock().unwrap().iter().map(Busy::new).collect::<Vec<_>>();
        assert!(connections.open().is_none());
        drop(busy);
        connections.closed(&first);
        assert!(connections.open().is_some());
    }
}
