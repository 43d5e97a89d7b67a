//! Bodies of requests, read within limits: of one's bytes, of its time, and of the bytes of all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header::CONTENT_LENGTH};
use http_body_util::BodyExt;

use crate::error::ApiError;

/// The longest that a body may take to come.
const TIME: Duration = Duration::from_secs(60);
/// The longest that it may pause.
const PAUSE: Duration = Duration::from_secs(15);
/// The most bytes of all bodies that are held.
const MOST_OF_ALL: usize = 256 << 20;

/// Bytes of bodies that are held.
#[derive(Clone, Default)]
pub(crate) struct Held(Arc<AtomicUsize>);

/// A body, while it is held.
pub(crate) struct Bytes {
    pub(crate) bytes: Vec<u8>,
    held: Held,
    counted: usize,
}

impl Drop for Bytes {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.counted, Ordering::Relaxed);
    }
}

impl Bytes {
    fn count(&mut self, more: usize) -> Result<(), ApiError> {
        let add = |held: usize| held.checked_add(more).filter(|&all| all <= MOST_OF_ALL);
        match self.held.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_) => {
                self.counted += more;
                Ok(())
            }
            Err(_) => Err(ApiError::unavailable("too many large requests at once: try again later")),
        }
    }
}

impl Held {
    /// Reads a body of at most so many bytes.
    pub(crate) async fn read(
        &self,
        headers: &HeaderMap,
        mut body: Body,
        most: usize,
    ) -> Result<Bytes, ApiError> {
        let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > most) {
            return Err(ApiError::too_large(most));
        }
        let mut all = Bytes { bytes: vec![], held: self.clone(), counted: 0 };
        let read = async {
            while let Some(frame) =
                tokio::time::timeout(PAUSE, body.frame()).await.map_err(|_| ApiError::too_slow())?
            {
                let frame = frame.map_err(|_| ApiError::invalid("the body broke off"))?;
                let Ok(data) = frame.into_data() else { continue };
                if all.bytes.len() + data.len() > most {
                    return Err(ApiError::too_large(most));
                }
                all.count(data.len())?;
                all.bytes.extend_from_slice(&data);
            }
            Ok(())
        };
        tokio::time::timeout(TIME, read).await.map_err(|_| ApiError::too_slow())??;
        Ok(all)
    }
}
