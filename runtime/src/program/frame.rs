//! What a kernel is called with: a frame of 64-bit words, and the segments that it leads to.

/// A kernel: computes tiles `tile_begin..tile_end` of its tile space.
///
/// `frame` is laid out as the `FRAME_*` constants say. `scratch` is this thread's own, at least the variant's
/// `scratch_bytes` long and 64-byte aligned. No allocation, no libc, no state, no unwinding.
///
/// Of a step that [resumes](super::Step::resumes), `tile_begin` may have [`RESUMED`] set: this thread ran the same
/// launch's tiles before, and its scratch is as they left it.
pub type KernelFn = unsafe extern "C" fn(frame: *const u64, tile_begin: u64, tile_end: u64, scratch: *mut u8);

/// Bit of `tile_begin`: see [`KernelFn`].
pub const RESUMED: u64 = 1 << 63;

/// Frame word: rows (tokens) of this call, `T`, of all sequences together.
pub const FRAME_ROWS: usize = 0;
/// Frame word: address of the call's [`Segment`]s, which are its sequences.
pub const FRAME_SEGMENTS: usize = 1;
/// Frame word: address of the arena (temporaries of one call, 64-byte aligned).
pub const FRAME_ARENA: usize = 2;
/// Frame word: address of [`Program::constants`](super::Program::constants).
pub const FRAME_CONSTANTS: usize = 3;
/// First of the slot words: word `FRAME_SLOTS + i` is the address of slot `i`; of a cache the distance in bytes from
/// its segment's [`Segment::kv`].
pub const FRAME_SLOTS: usize = 4;

/// The rows of one sequence in a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Its first row.
    pub first: u64,
    /// How many rows; they follow one another.
    pub rows: u64,
    /// Keys in its caches after these rows are appended, `S`; the first row's position is `keys - rows`.
    pub keys: u64,
    /// Address of its caches.
    pub kv: u64,
}

impl Segment {
    /// Bytes from one segment to the next.
    pub const BYTES: usize = size_of::<Segment>();
}
