//! Where an engine's weights lie: in mapped files, or in memory of the process, in huge pages.
//!
//! In: the addresses of weights. Out: the same addresses with the same bytes, which may lie in other pages. A token
//! reads all weights, and how fast that goes is up to where a file's pages came to lie when it was written or read:
//! singly, on another node, in what a virtual machine was restored from. Memory that is asked for at once, in huge
//! pages, is read at the speed that the machine has (up to twice that of a file's pages was measured), and copying to
//! it takes as long as reading the weights a few times. So they are copied, and the copies take the place of the file's
//! pages (`mremap`): whoever reads meanwhile finds the same bytes in the one or the other. Invariants: nothing but
//! whole pages of live [`Map`](super::Map)s is replaced; what replaces them is read-only and lives as long as the map.

use std::fs;
use std::io;
use std::ops::Range;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use super::map;
use crate::error::Error;
use crate::{memory, threads};

/// Where weights lie that are in files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residence {
    /// In the files, mapped, for the first step; in memory of the process from then on, if there is room for twice as
    /// many bytes.
    #[default]
    Auto,
    /// In the files, mapped: processes that run the same files share one copy.
    Mapped,
    /// In memory of the process, from the start.
    Memory,
}

impl From<Option<bool>> for Residence {
    /// From whether files are mapped, if that is said.
    fn from(mmap: Option<bool>) -> Residence {
        mmap.map_or(Residence::Auto, |mmap| if mmap { Residence::Mapped } else { Residence::Memory })
    }
}

/// Addresses.
type Span = Range<usize>;

/// The least bytes of weights that are looked at: fewer stay in caches.
const LEAST: usize = 16 << 20;
/// The most bytes that are moved at once.
const PIECE: usize = 16 << 20;
/// The largest huge page that pays: machines with pages of 64 KiB have such of 512 MiB.
const LARGEST: usize = 32 << 20;
/// Room is for so many times the bytes that are moved.
const ROOM: usize = 2;

/// Held by who moves.
static MOVING: Mutex<()> = Mutex::new(());

/// Puts weights where they are to lie; `Auto` says that they have been read. Whether some are left in files.
///
/// # Errors
/// [`Error::Memory`] where memory is asked for and refused.
pub(crate) fn reside(weights: &[Span], residence: Residence, threads: usize) -> Result<bool, Error> {
    let files: Vec<(Span, Vec<&Span>)> = map::spans()
        .map(|file| (file.clone(), weights.iter().filter(|span| file.contains(&span.start)).collect()))
        .collect();
    let bytes: usize = files.iter().flat_map(|(_, held)| held).map(|span| span.len()).sum();
    if residence == Residence::Mapped || bytes == 0 || (residence == Residence::Auto && bytes < LEAST) {
        return Ok(bytes > 0);
    }
    let _moving = MOVING.lock().unwrap_or_else(PoisonError::into_inner);
    let unit = huge_page().unwrap_or(PIECE);
    let parts: Vec<Span> = files.iter().flat_map(|(file, held)| parts(file, held, unit)).collect();
    // Without `/proc` it is not known what another engine has moved; to move it again changes nothing.
    let parts = backed().map_or(parts.clone(), |backed| intersection(&parts, &backed));
    let pieces: Vec<Span> = parts.into_iter().flat_map(|part| cut(part, unit)).collect();
    let moved: usize = pieces.iter().map(Span::len).sum();
    if moved == 0 {
        return Ok(false);
    }
    let room = || memory::available().is_some_and(|bytes| bytes / ROOM >= moved);
    if residence == Residence::Auto && !room() {
        return Ok(true);
    }
    let refused = threads::map(threads, pieces, |piece| take_place(&piece, unit).is_err());
    match (refused.contains(&true), residence) {
        (true, Residence::Memory) => Err(Error::Memory { what: "the weights".into(), bytes: moved }),
        (refused, _) => Ok(refused),
    }
}

/// The parts of a file, from one multiple of `unit` to another where it is that long, that hold its weights.
fn parts(file: &Span, weights: &[&Span], unit: usize) -> Vec<Span> {
    let wide = |span: &&Span| {
        (span.start / unit * unit).max(file.start)..span.end.next_multiple_of(unit).min(file.end)
    };
    let mut all: Vec<Span> = weights.iter().map(wide).collect();
    all.sort_unstable_by_key(|span| span.start);
    all.dedup_by(|next, last| {
        let joined = next.start <= last.end;
        last.end = if joined { last.end.max(next.end) } else { last.end };
        joined
    });
    all
}

/// A part in pieces that threads share, cut where huge pages end.
fn cut(part: Span, unit: usize) -> impl Iterator<Item = Span> {
    let piece = unit.max(PIECE / unit * unit);
    (part.start / piece..part.end.div_ceil(piece))
        .map(move |i| (i * piece).max(part.start)..((i + 1) * piece).min(part.end))
}

/// What two lists of addresses have in common.
fn intersection(a: &[Span], b: &[Span]) -> Vec<Span> {
    let both = |x: &Span, y: &Span| x.start.max(y.start)..x.end.min(y.end);
    let all = a.iter().flat_map(|x| b.iter().map(move |y| both(x, y)));
    all.filter(|span| !span.is_empty()).collect()
}

/// Puts a copy of mapped bytes in their place, in huge pages of `unit` bytes where the system has them.
fn take_place(piece: &Span, unit: usize) -> io::Result<()> {
    let (length, room) = (piece.len(), piece.len() + unit);
    let (protection, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory, where the system likes.
    let given = unsafe { libc::mmap(ptr::null_mut(), room, protection, kind, -1, 0) };
    if given == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // Huge pages move as such between places that lie in them alike.
    let before = piece.start.wrapping_sub(given.addr()) % unit;
    let after = room - before - length;
    let source = ptr::with_exposed_provenance::<u8>(piece.start);
    let target = ptr::with_exposed_provenance_mut::<libc::c_void>(piece.start);
    // SAFETY: `before` is less than `unit`, so the copy is within what was given, which is nobody else's. A piece is
    // whole pages of a map that lives: whoever calls holds what its weights lie in. The move puts pages of the same
    // bytes, read-only as the map is, in the place of the map's, for all threads at once; the map's owner unmaps them
    // with the rest. What is left of what was given is freed, without the copy if that has gone: others may have filled
    // its place.
    unsafe {
        let copy = given.byte_add(before);
        // Without huge pages it is slower and nothing else.
        libc::madvise(copy, length, libc::MADV_HUGEPAGE);
        ptr::copy_nonoverlapping(source, copy.cast::<u8>(), length);
        let moved = libc::mprotect(copy, length, libc::PROT_READ) == 0
            && libc::mremap(copy, length, length, libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, target)
                == target;
        let failed = (!moved).then(io::Error::last_os_error);
        let left = match moved {
            true => [(given, before), (copy.byte_add(length), after)],
            false => [(given, room), (given, 0)],
        };
        for (start, length) in left.into_iter().filter(|&(_, length)| length > 0) {
            libc::munmap(start, length);
        }
        failed.map_or(Ok(()), Err)
    }
}

/// Bytes of a huge page, if there are such.
fn huge_page() -> Option<usize> {
    let told = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok()?;
    let bytes = told.trim().parse::<usize>().ok()?;
    (bytes.is_power_of_two() && bytes <= LARGEST).then_some(bytes)
}

/// The parts of the address space that files back, as the system lists them.
fn backed() -> Option<Vec<Span>> {
    let text = fs::read("/proc/self/maps").ok()?;
    // Names of files may be any bytes.
    let text = String::from_utf8_lossy(&text);
    let part = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (start, end) = words.next()?.split_once('-')?;
        // The file's number is 0 of what no file backs.
        words.nth(3).filter(|&number| number != "0")?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        Some(address(start)?..address(end)?)
    };
    Some(text.lines().filter_map(part).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::single_range_in_vec_init)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::file::Map;

    #[test]
    fn parts_are_whole_units_of_their_file_and_hold_its_weights() {
        let (file, unit) = (5..103, 10);
        let held = [&(12..13), &(18..31), &(70..71), &(95..101)];
        assert_eq!(parts(&file, &held, unit), [10..40, 70..80, 90..103]);
        assert_eq!(parts(&file, &[&(6..7)], unit), [5..10]);
        assert!(parts(&file, &[], unit).is_empty());
        assert_eq!(intersection(&[10..40, 70..80], &[0..15, 30..75]), [10..15, 30..40, 70..75]);
    }

    #[test]
    fn pieces_are_all_of_a_part() {
        let unit = PIECE / 4;
        let part = PIECE - 3 * unit..3 * PIECE + 7;
        let pieces: Vec<Span> = cut(part.clone(), unit).collect();
        assert_eq!((pieces[0].start, pieces[pieces.len() - 1].end, pieces.len()), (part.start, part.end, 4));
        assert!(pieces.windows(2).all(|two| two[0].end == two[1].start && two[0].end.is_multiple_of(PIECE)));
    }

    #[test]
    fn bytes_stay_what_they_are_while_they_are_moved() {
        let file = tempfile::NamedTempFile::new().unwrap();
        // Not whole pages.
        let length = LEAST + 12345;
        let bytes: Vec<u8> = (0..length).map(|i| (i * 7 + i / 4096) as u8).collect();
        fs::write(file.path(), &bytes).unwrap();
        let map = Map::new(file.path(), file.as_file()).unwrap();
        let other = Map::new(file.path(), file.as_file()).unwrap();
        let whole = |map: &Map| map.as_ptr().expose_provenance()..map.as_ptr().addr() + length;
        let in_file = |map: &Map| backed().unwrap().iter().any(|part| part.contains(&whole(map).start));
        let start = whole(&map).start;
        assert!(reside(&[whole(&map)], Residence::Mapped, 2).unwrap());
        assert!(reside(&[start..start + LEAST - 1], Residence::Auto, 2).unwrap());
        assert!(in_file(&map));
        for (map, residence) in [(&map, Residence::Memory), (&other, Residence::Auto)] {
            let span = whole(map);
            let weights = [span.start..span.start + 100, span.start + 200..span.end];
            let moving = AtomicBool::new(true);
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| {
                    while moving.load(Ordering::SeqCst) {
                        assert!(map[..] == bytes[..]);
                    }
                });
                assert!(!reside(&weights, residence, 2).unwrap());
                moving.store(false, Ordering::SeqCst);
                reader.join().unwrap();
            });
            assert!(map[..] == bytes[..] && !in_file(map));
            assert!(!reside(&weights, Residence::Auto, 1).unwrap(), "nothing is left to move");
        }
        // Nothing of the file is needed.
        file.as_file().set_len(0).unwrap();
        assert!(map[..] == bytes[..] && other[..] == bytes[..]);
    }
}
