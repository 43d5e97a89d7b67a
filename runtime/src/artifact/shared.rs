//! Bytes that several owners keep: a section of a mapped file, or bytes of their own.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::file::Map;

/// Bytes that do not change, and live as long as the last owner.
#[derive(Clone)]
pub struct Shared {
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    /// Lies within `bytes`.
    range: Range<usize>,
}

impl Shared {
    /// A range of a mapping, if the mapping has it.
    pub(crate) fn new(map: Arc<Map>, range: Range<usize>) -> Option<Shared> {
        map.get(range.clone())?;
        Some(Shared { bytes: map, range })
    }

    /// Bytes in memory.
    pub fn from_vec(bytes: Vec<u8>) -> Shared {
        let range = 0..bytes.len();
        Shared { bytes: Arc::new(bytes), range }
    }
}

impl Deref for Shared {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.bytes).as_ref()[self.range.clone()]
    }
}
