//! Surroundings that a test makes hostile: a child whose system refuses threads, memory or executable pages, a file
//! that shrinks, a signal.
//!
//! What the system refuses is refused by a filter of system calls (seccomp), which holds for root too, or by limits;
//! both are set in the child, between fork and exec.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::command::binary;

/// A system call that is refused with an error; if a mask is given, only where this argument has one of its bits.
#[derive(Clone, Copy)]
pub(crate) struct Refused {
    pub(crate) call: libc::c_long,
    pub(crate) error: i32,
    pub(crate) argument: Option<(u32, u32)>,
}

/// Threads (and processes) are refused, as a limit of processes does.
pub(crate) const NO_THREADS: &[Refused] = &[
    // The C library falls back to the older call.
    Refused { call: libc::SYS_clone3, error: libc::ENOSYS, argument: None },
    Refused { call: libc::SYS_clone, error: libc::EAGAIN, argument: None },
];

/// No mapping becomes executable that was not mapped so: `PR_SET_MDWE`, where the kernel does not know it.
pub(crate) const NO_TURNING: &[Refused] =
    &[Refused { call: libc::SYS_mprotect, error: libc::EACCES, argument: Some((2, libc::PROT_EXEC as u32)) }];

/// Nor are there files in memory.
pub(crate) const NO_CODE: &[Refused] =
    &[NO_TURNING[0], Refused { call: libc::SYS_memfd_create, error: libc::ENOSYS, argument: None }];

/// Refuses system calls from the next exec on.
pub(crate) fn refuse(command: &mut Command, refused: &'static [Refused]) {
    // Of `struct seccomp_data`: the call, then 64 bits each of its arguments, of which the lower half counts
    // (little-endian).
    const CALL: u32 = 0;
    const ARGUMENTS: u32 = 16;
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |code: u32, k: u32, jf: u8| libc::sock_filter { code: code as u16, jt: 0, jf, k };
    let load = |at: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at);
    let mut program = vec![];
    for Refused { call, error, argument } in refused {
        let answer = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | *error as u32);
        program.push(load(CALL));
        let skip = if argument.is_some() { 3 } else { 1 };
        program.push(jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, *call as u32, skip));
        if let Some((index, mask)) = argument {
            program.push(load(ARGUMENTS + 8 * index));
            program.push(jump(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, *mask, 1));
        }
        program.push(answer);
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW));
    let set = move || {
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
        // SAFETY: two calls of the system, which copies the program.
        let done = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
                && libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &filter) == 0
        };
        if done { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: the closure only asks the system; it allocates nothing unless that fails.
    unsafe { command.pre_exec(set) };
}

/// Limits a resource from the next exec on.
pub(crate) fn limit(command: &mut Command, resource: libc::__rlimit_resource_t, most: u64) {
    let set = move || {
        let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
        // SAFETY: a call of the system.
        match unsafe { libc::setrlimit(resource, &limit) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: as above.
    unsafe { command.pre_exec(set) };
}

/// The kernel's own refusal to turn writable pages into executable ones; whether it knows it.
pub(crate) fn refuse_exec_gain(command: &mut Command) -> bool {
    const PR_SET_MDWE: i32 = 65;
    const PR_MDWE_REFUSE_EXEC_GAIN: libc::c_ulong = 1;
    const PR_GET_MDWE: i32 = 66;
    // SAFETY: asks the system.
    if unsafe { libc::prctl(PR_GET_MDWE, 0, 0, 0, 0) } < 0 {
        return false;
    }
    let set = || {
        // SAFETY: a call of the system.
        match unsafe { libc::prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: as above.
    unsafe { command.pre_exec(set) };
    true
}

/// Sends a signal.
pub(crate) fn send(child: &Child, signal: i32) {
    // SAFETY: a call of the system; the child has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

/// The binary with signals as a terminal's shell leaves them, whatever this process ignores.
pub(crate) fn plain() -> Command {
    let mut command = binary();
    let reset = || {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            // SAFETY: a call of the system.
            unsafe { libc::signal(signal, libc::SIG_DFL) };
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { command.pre_exec(reset) };
    command
}

/// Waits until something is so, or the child ends; whether it is so.
pub(crate) fn wait_for(child: &mut Child, so: impl Fn() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if so() {
            return true;
        }
        if child.try_wait().expect("it can be waited for").is_some() {
            return so();
        }
        assert!(start.elapsed() < Duration::from_secs(300), "nothing happens");
        sleep(Duration::from_millis(1));
    }
}

/// Runs a command that must not hang.
pub(crate) fn soon(command: &mut Command) -> Output {
    let mut child = command.spawn().expect("the binary runs");
    let start = Instant::now();
    while child.try_wait().expect("it can be waited for").is_none() {
        if start.elapsed() > Duration::from_secs(120) {
            child.kill().expect("it can be killed");
            panic!("it hangs: {command:?}");
        }
        sleep(Duration::from_millis(2));
    }
    child.wait_with_output().expect("it ends")
}

/// Checks that a command failed with one line that names all of `named`.
#[track_caller]
pub(crate) fn one_line(output: &Output, named: &[&str]) {
    let error = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "{:?}\n{error}", output.status);
    assert!(error.starts_with("error: ") && error.lines().count() == 1, "expected one line:\n{error}");
    for name in named {
        assert!(error.contains(name), "`{name}` is not named: {error}");
    }
}

/// Names in a folder, hidden ones too.
pub(crate) fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut all: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into()).collect();
    all.sort();
    all
}
