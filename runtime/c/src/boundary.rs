//! What crosses from C to Rust and back: pointers that are looked at first, failures as codes with a text, panics.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, OsStr, c_char};
use std::os::unix::ffi::OsStrExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use lapidary_runtime::{Error, file, one_line, terminal};

/// What a call came to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It did what it says.
    Ok = 0,
    /// An argument is null where it may not be, out of its range, or a text that is not UTF-8.
    Argument = 1,
    /// A file cannot be read or written, or is not what it should be.
    File = 2,
    /// The artifact has no code that this machine can run.
    Machine = 3,
    /// Memory cannot be had, or may not be used (see lapidary_limit_kv()).
    Memory = 4,
    /// The tokens do not fit in what is left of the context.
    Context = 5,
    /// The room that the caller gives is too small; how much it takes is told.
    Room = 6,
    /// Another call is using the sequence.
    Busy = 7,
    /// The artifact has no tokenizer, or no chat template.
    Absent = 8,
    /// The library is at fault, or the artifact is malformed. The model may not be used any more, but freed.
    Internal = 9,
}

/// Why a call fails.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: Status,
    /// One line.
    pub(crate) text: String,
}

impl Failure {
    pub(crate) fn new(status: Status, text: impl AsRef<str>) -> Failure {
        Failure { status, text: terminal::line(text.as_ref()).into_owned() }
    }

    pub(crate) fn argument(text: impl AsRef<str>) -> Failure {
        Failure::new(Status::Argument, text)
    }

    /// What is there no room for.
    pub(crate) fn room(what: &str, needed: usize, given: usize) -> Failure {
        Failure::new(Status::Room, format!("{what} takes {needed}, there is room for {given}"))
    }

    /// Of a lock whose holder panicked.
    pub(crate) fn broken() -> Failure {
        Failure::new(Status::Internal, "an earlier call failed within the library")
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let status = match &error {
            Error::File(_) | Error::Write { .. } | Error::Operand { .. } => Status::File,
            Error::Machine { .. } => Status::Machine,
            Error::Memory { .. } | Error::KvLimit { .. } => Status::Memory,
            Error::ContextExceeded { .. } => Status::Context,
            Error::Call { .. }
            | Error::TokenRange { .. }
            | Error::ContextCompiled { .. }
            | Error::RollbackAhead { .. }
            | Error::RollbackTooFar { .. }
            | Error::OtherEngine
            | Error::EmptyPrompt
            | Error::DraftVocab { .. }
            | Error::SamplerOption { .. }
            | Error::LogitsLength { .. } => Status::Argument,
            // What an artifact holds is at fault: parts that do not fit, weights that are no numbers.
            Error::MissingWeight { .. }
            | Error::WeightLength { .. }
            | Error::Program(_)
            | Error::NoCandidate => Status::File,
            // It grows.
            _ => Status::Internal,
        };
        Failure { status, text: one_line(&error) }
    }
}

impl From<file::Error> for Failure {
    fn from(error: file::Error) -> Failure {
        Error::from(error).into()
    }
}

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Why the last call of this thread that failed did so: one line, empty if none has failed. Good until the thread's
/// next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn lapidary_last_error() -> *const c_char {
    // A thread that is ending has no errors any more.
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The library's version: `0.1.0`.
#[unsafe(no_mangle)]
pub extern "C" fn lapidary_version() -> *const c_char {
    const VERSION: &CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => panic!("a version without a null"),
        };
    VERSION.as_ptr()
}

/// Does what a call is for: its failure, were it a panic, is a status and a text.
pub(crate) fn call(work: impl FnOnce() -> Result<(), Failure>) -> Status {
    let done = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(of_panic(&*panic)));
    match done {
        Ok(()) => Status::Ok,
        Err(Failure { status, text }) => {
            // Lines hold no null: it would have been escaped.
            let text = CString::new(text).unwrap_or_default();
            let _ = LAST.try_with(|last| *last.borrow_mut() = text);
            status
        }
    }
}

fn of_panic(panic: &(dyn Any + Send)) -> Failure {
    let said = panic.downcast_ref::<String>().map(String::as_str);
    let said = said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic");
    Failure::new(Status::Internal, format!("a mistake of the library's: {said}"))
}

fn null(name: &str) -> Failure {
    Failure::argument(format!("{name} is null"))
}

/// # Safety
/// Null, or good for `'a`.
pub(crate) unsafe fn reference<'a, T>(pointer: *const T, name: &str) -> Result<&'a T, Failure> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_ref() }.ok_or_else(|| null(name))
}

/// # Safety
/// Null, or good to be read and written by nobody else for `'a`.
pub(crate) unsafe fn exclusive<'a, T>(pointer: *mut T, name: &str) -> Result<&'a mut T, Failure> {
    // SAFETY: the caller's promise.
    unsafe { pointer.as_mut() }.ok_or_else(|| null(name))
}

/// Writes to where a result goes, whatever was there.
///
/// # Safety
/// Null, or good to be written.
pub(crate) unsafe fn give<T>(to: *mut T, value: T, name: &str) -> Result<(), Failure> {
    if to.is_null() {
        return Err(null(name));
    }
    // SAFETY: the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

/// The elements at a pointer, which may be null if there are none.
///
/// # Safety
/// Good for `count` elements for `'a`, or null.
pub(crate) unsafe fn slice<'a, T>(first: *const T, count: usize, name: &str) -> Result<&'a [T], Failure> {
    if count == 0 {
        return Ok(&[]);
    }
    if first.is_null() {
        return Err(null(name));
    }
    if !first.is_aligned() || count.checked_mul(size_of::<T>()).is_none_or(|n| n > isize::MAX as usize) {
        return Err(Failure::argument(format!("{name}: no such memory")));
    }
    // SAFETY: the caller's promise; it is aligned, and no larger than memory can be.
    Ok(unsafe { std::slice::from_raw_parts(first, count) })
}

/// The text of so many bytes.
///
/// # Safety
/// As [`slice`].
pub(crate) unsafe fn text_of<'a>(first: *const c_char, bytes: usize, name: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    let bytes = unsafe { slice(first.cast::<u8>(), bytes, name) }?;
    std::str::from_utf8(bytes).map_err(|_| Failure::argument(format!("{name} is not UTF-8")))
}

/// The text up to a null.
///
/// # Safety
/// Null, or a text that ends so, good for `'a`.
pub(crate) unsafe fn text<'a>(first: *const c_char, name: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    unsafe { optional_text(first, name) }?.ok_or_else(|| null(name))
}

/// The same, or nothing for null.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn optional_text<'a>(first: *const c_char, name: &str) -> Result<Option<&'a str>, Failure> {
    if first.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(first) };
    text.to_str().map(Some).map_err(|_| Failure::argument(format!("{name} is not UTF-8")))
}

/// A path: any bytes up to a null.
///
/// # Safety
/// As [`text`].
pub(crate) unsafe fn path<'a>(first: *const c_char, name: &str) -> Result<&'a Path, Failure> {
    if first.is_null() {
        return Err(null(name));
    }
    // SAFETY: the caller's promise.
    let bytes = unsafe { CStr::from_ptr(first) }.to_bytes();
    Ok(Path::new(OsStr::from_bytes(bytes)))
}

/// Copies elements to where there is room for `room`, and says how many there are. Of texts the room is for a null too,
/// which `rest` is then.
///
/// # Safety
/// `to` must be good to be written for `room` elements, or null if that is 0; `count` null, or good to be written.
pub(crate) unsafe fn fill<T: Copy>(
    what: &str,
    from: &[T],
    rest: Option<T>,
    to: *mut T,
    room: usize,
    count: *mut usize,
) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    unsafe { give(count, from.len(), "count") }?;
    let needed = from.len() + usize::from(rest.is_some());
    if needed > room {
        return Err(Failure::room(what, needed, room));
    }
    if needed == 0 {
        return Ok(());
    }
    if to.is_null() {
        return Err(null(what));
    }
    // SAFETY: the caller promises as much room, which nothing of ours overlaps.
    unsafe {
        to.copy_from_nonoverlapping(from.as_ptr(), from.len());
        if let Some(rest) = rest {
            to.add(from.len()).write(rest);
        }
    }
    Ok(())
}
