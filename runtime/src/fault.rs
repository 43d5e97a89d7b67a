//! What ends a command from outside: a mapped file that was cut short, memory that is refused. One line on stderr, exit
//! code 1, and nothing half written stays.
//!
//! A page of a map that the file has no more is a SIGBUS to whoever touches it, a kernel's thread too. The handler
//! writes its line and ends the process, by system calls alone; a fault anywhere else goes to whoever handled the
//! signal before.

use std::mem;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use crate::file::half_written;
use crate::file::map;

/// Whether a thread is ending the process already: threads meet the same fault at once, and one line is enough.
static LEAVING: AtomicBool = AtomicBool::new(false);
/// Who handled SIGBUS before.
static BEFORE: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

/// Takes SIGBUS over, for the rest of the process. Once is enough.
pub fn install() {
    type Handler = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
    if !BEFORE.load(Ordering::SeqCst).is_null() {
        return;
    }
    // SAFETY: all zeros is a disposition: the default.
    let before = Box::leak(Box::new(unsafe { mem::zeroed::<libc::sigaction>() }));
    // SAFETY: as above.
    let mut ours = unsafe { mem::zeroed::<libc::sigaction>() };
    ours.sa_sigaction = on_bus_error as Handler as libc::sighandler_t;
    mem::forget(SignalStack::new());
    // On a stack of its own, and with the address.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: reads who handles it; the memory lives for ever.
    unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), before) };
    // What the handler may find must be there first.
    BEFORE.store(before, Ordering::SeqCst);
    // SAFETY: the handler does only what a handler may.
    unsafe { libc::sigaction(libc::SIGBUS, &ours, ptr::null_mut()) };
}

/// A stack that this thread's signals are handled on, until it is dropped. The one that the standard library gives is
/// as long as the registers that the system saves there, which with AMX leaves the handler nothing.
pub(crate) struct SignalStack {
    stack: *mut libc::c_void,
    bytes: usize,
    before: libc::stack_t,
}

impl SignalStack {
    /// What a handler may use beside the registers.
    const ROOM: usize = 64 << 10;

    /// Where memory is refused, the thread keeps the stack that it has.
    pub(crate) fn new() -> SignalStack {
        // SAFETY: a question to the system.
        let registers = unsafe { libc::getauxval(libc::AT_MINSIGSTKSZ) } as usize;
        let bytes = registers.max(libc::MINSIGSTKSZ) + Self::ROOM;
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new map, anywhere.
        let mut stack = unsafe { libc::mmap(ptr::null_mut(), bytes, access, kind, -1, 0) };
        if stack == libc::MAP_FAILED {
            stack = ptr::null_mut();
        }
        // SAFETY: all zeros is a stack that is none.
        let mut before = unsafe { mem::zeroed::<libc::stack_t>() };
        let own = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: bytes };
        if !stack.is_null() {
            // SAFETY: the map is this thread's alone, and lives until the stack before is back.
            unsafe { libc::sigaltstack(&own, &mut before) };
        }
        SignalStack { stack, bytes, before }
    }
}

impl Drop for SignalStack {
    fn drop(&mut self) {
        if self.stack.is_null() {
            return;
        }
        // SAFETY: the stack before is this thread's still; nothing uses the map after.
        unsafe {
            libc::sigaltstack(&self.before, ptr::null_mut());
            libc::munmap(self.stack, self.bytes);
        }
    }
}

extern "C" fn on_bus_error(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system gives the address of the fault.
    let address = unsafe { (*info).si_addr() }.addr();
    let of_a_map = map::name_of(address, &mut |name| {
        begin_to_leave();
        say(b"error: ");
        say(name);
        say(b": expected a file that stays as it is, found it cut short (or unreadable) while it was in use\n");
    });
    if of_a_map {
        leave();
    }
    // SAFETY: written once, before this handler was there.
    let Some(before) = (unsafe { BEFORE.load(Ordering::SeqCst).as_ref() }) else { return };
    match before.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: the fault comes again when this returns, and ends the process as it would have.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the system's record of a handler with these arguments.
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                unsafe { mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: the system's record of a handler with this argument.
            let handler: extern "C" fn(libc::c_int) = unsafe { mem::transmute(handler) };
            handler(signal);
        }
    }
}

/// Ends the process, without memory.
pub(crate) fn out_of_memory(bytes: usize) -> ! {
    let mut digits = [0; 20];
    let mut at = digits.len();
    let mut left = bytes;
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 || at == 0 {
            break;
        }
    }
    begin_to_leave();
    say(b"error: the system refuses memory: ");
    say(&digits[at..]);
    say(b" more bytes are needed\n");
    leave()
}

/// Returns to the first thread alone.
fn begin_to_leave() {
    while LEAVING.swap(true, Ordering::SeqCst) {
        // SAFETY: waits for a signal: the process ends meanwhile.
        unsafe { libc::pause() };
    }
}

fn leave() -> ! {
    half_written::remove_all();
    // SAFETY: ends the process; nothing of it is run any more.
    unsafe { libc::_exit(1) }
}

/// Writes to stderr; a closed stderr is nobody's business.
fn say(text: &[u8]) {
    // SAFETY: the bytes live through the call.
    unsafe { libc::write(libc::STDERR_FILENO, text.as_ptr().cast(), text.len()) };
}
