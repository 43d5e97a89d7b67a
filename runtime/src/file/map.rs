//! Files mapped read-only, and what becomes of one that shrinks meanwhile.
//!
//! In: a file. Out: its bytes in place, as long as the [`Map`] lives. Invariants: every map of a live `Map` is in a
//! table that a signal handler may read (`name_of`), so that the fault of a page that is gone names its file
//! ([`fault`](crate::fault)). Places of the table are used again and never freed; a name may be torn while a place
//! changes hands, and is nothing else than text then.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::ptr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicUsize, Ordering};

use memmap2::Mmap;

use crate::terminal;

/// The most bytes of a path that are kept for a message.
const NAME: usize = 256;
/// Bytes of a page at most: a file's last page is mapped whole.
const LARGEST_PAGE: usize = 64 << 10;

struct Place {
    start: AtomicUsize,
    /// Bytes of the map; 0 where there is none.
    length: AtomicUsize,
    name: [AtomicU8; NAME],
    named: AtomicUsize,
    next: Option<&'static Place>,
}

static HEAD: AtomicPtr<Place> = AtomicPtr::new(ptr::null_mut());
/// Held by who takes a place.
static TAKING: Mutex<()> = Mutex::new(());

/// A file, mapped. That nobody writes to it meanwhile is what its owner sees to.
pub struct Map {
    bytes: Mmap,
    place: Option<&'static Place>,
}

impl Map {
    /// Maps a file; a fault calls it `path`.
    ///
    /// # Errors
    /// The system's answer.
    pub fn new(path: &Path, file: &File) -> io::Result<Map> {
        // SAFETY: the map is read-only; that nobody changes the file meanwhile is what its owner sees to, as
        // documented. A file that is cut short is a fault that ends the process with its name.
        let bytes = unsafe { Mmap::map(file) }?;
        let place = (!bytes.is_empty()).then(|| take(path, &bytes));
        Ok(Map { bytes, place })
    }

    /// Asks for huge pages, where the file system can: else it is slower and no more.
    pub fn advise_huge(&self) {
        #[cfg(target_os = "linux")]
        let _ = self.bytes.advise(memmap2::Advice::HugePage);
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl AsRef<[u8]> for Map {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            place.length.store(0, Ordering::SeqCst);
        }
    }
}

/// Fills a place that is free, or a new one.
fn take(path: &Path, bytes: &[u8]) -> &'static Place {
    let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let place = places().find(|place| place.length.load(Ordering::SeqCst) == 0).unwrap_or_else(|| {
        let new = Box::leak(Box::new(Place {
            start: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
            name: [const { AtomicU8::new(0) }; NAME],
            named: AtomicUsize::new(0),
            next: places().next(),
        }));
        HEAD.store(new, Ordering::SeqCst);
        new
    });
    let path = path.to_string_lossy();
    let shown = terminal::line(&path);
    let mut from = shown.len().saturating_sub(NAME);
    while !shown.is_char_boundary(from) {
        from += 1;
    }
    let shown = &shown.as_bytes()[from..];
    place.name.iter().zip(shown).for_each(|(to, byte)| to.store(*byte, Ordering::Relaxed));
    place.named.store(shown.len(), Ordering::SeqCst);
    place.start.store(bytes.as_ptr().expose_provenance(), Ordering::SeqCst);
    place.length.store(bytes.len(), Ordering::SeqCst);
    place
}

/// Calls `with` with the name of the file that is mapped at an address, if one is, in pieces. Safe in a signal handler.
pub(crate) fn name_of(address: usize, with: &mut dyn FnMut(&[u8])) -> bool {
    for place in places() {
        let (start, length) = (place.start.load(Ordering::SeqCst), place.length.load(Ordering::SeqCst));
        if length > 0 && (start..start + length.next_multiple_of(LARGEST_PAGE)).contains(&address) {
            let mut name = [0; NAME];
            let named = place.named.load(Ordering::SeqCst).min(NAME);
            name.iter_mut().zip(&place.name).for_each(|(to, byte)| *to = byte.load(Ordering::Relaxed));
            with(&name[..named]);
            return true;
        }
    }
    false
}

/// Whether an address is in a map.
pub(crate) fn holds(address: usize) -> bool {
    spans().any(|span| span.contains(&address))
}

/// The addresses of all maps, in whole pages.
pub(super) fn spans() -> impl Iterator<Item = Range<usize>> {
    // SAFETY: asks for a number.
    let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(LARGEST_PAGE);
    let span = move |place: &Place| {
        let (start, length) = (place.start.load(Ordering::SeqCst), place.length.load(Ordering::SeqCst));
        start..start + length.next_multiple_of(page)
    };
    places().map(span).filter(|span| !span.is_empty())
}

/// All places, the newest first.
fn places() -> impl Iterator<Item = &'static Place> {
    // SAFETY: places live for ever and do not change but for their atomics.
    let first = unsafe { HEAD.load(Ordering::SeqCst).as_ref() };
    std::iter::successors(first, |place| place.next)
}
