//! What the system refuses: threads, memory, pages that run. Fewer threads do where there are fewer; all else is one
//! line and exit code 1. A file that shrinks while it is mapped is one, too.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::artifact::lapidary_run;
use crate::command::{binary, name};
use crate::folder;
use crate::surroundings::{
    NO_CODE, NO_THREADS, NO_TURNING, limit, names, one_line, plain, refuse, refuse_exec_gain, soon, wait_for,
};

const RUN: [&str; 6] = ["run", "-n", "4", "--temp", "0", "hello"];

/// Without a thread beside the first, each command does its work, and writes what it writes with more.
#[test]
fn refused_threads() {
    let dir = tempfile::tempdir().expect("a folder");
    let place = |file: &str| dir.path().join(file).to_str().expect("UTF-8").to_string();
    let (lap, html, safetensors) = (place("x.lap"), place("x.html"), place("x.safetensors"));
    let commands: [(&[&str], Option<&str>); 8] = [
        (&["run", "-n", "4", "--temp", "0", "--threads", "4", "hello"], None),
        (
            &["run", "-n", "4", "--temp", "0", "--threads", "4", "--weights", "q4", "--no-cache", "hello"],
            None,
        ),
        (&["compile", "-o", &lap], Some("x.lap")),
        (&["verify", &lap], None),
        (&["run", "-m", &lap, "--threads", "4", "--temp", "0", "-n", "4", "hello"], None),
        (&["report", "-o", &html], Some("x.html")),
        (&["logits", "--ids", "2,5", "-o", &safetensors], Some("x.safetensors")),
        (
            &["quantize", "--weights", "q8", "--force", "--threads", "4", "-o", &place("q")],
            Some("q/model.safetensors"),
        ),
    ];
    for (args, file) in commands {
        let run = |refused: bool| {
            let mut command = binary();
            if refused {
                refuse(&mut command, NO_THREADS);
            }
            let output = soon(command.args(args));
            let error = String::from_utf8(output.stderr).expect("UTF-8");
            assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
            (output.stdout, file.map(|f| fs::read(place(f)).expect("the file")), error)
        };
        let (many, one) = (run(false), run(true));
        assert!(many.0 == one.0, "{args:?}: other output");
        // A page tells times.
        let same = many.1 == one.1 || args[0] == "report";
        assert!(same && many.1.is_some() == file.is_some(), "{args:?}: another file");
        let told = one.2.contains("warning: the system gives 1 of 4 threads\n");
        assert_eq!(told, args[0] == "run", "{args:?}: {}", one.2);
    }
}

/// The limit that an administrator sets (`prlimit --nproc`), which does not hold for root.
#[test]
fn a_limit_of_threads() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    /// A user that nobody is.
    const NOBODY: u32 = 54_321;
    // SAFETY: asks the system.
    let root = unsafe { libc::geteuid() } == 0;
    let dir = tempfile::tempdir().expect("a folder");
    let program = dir.path().join("lapidary");
    let mut command = binary();
    if root {
        // Where another user may run it.
        fs::copy(command.get_program(), &program).expect("copied");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("opened");
        command = std::process::Command::new(&program);
        command.env("HOME", "/").stdin(std::process::Stdio::null());
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.uid(NOBODY).gid(NOBODY);
    }
    // Of root's child: the process and one thread beside. Of another's: none, for theirs are many already.
    let most = if root { 2 } else { 0 };
    // After the change of users, for which limits do not hold.
    limit(&mut command, libc::RLIMIT_NPROC, most);
    let output = soon(command.args(["run", "-n", "4", "--temp", "0", "--threads", "8", "hello"]));
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{error}");
    let told = format!("warning: the system gives {} of 8 threads\n", most.max(1));
    assert!(error.contains(&told), "{error}");
    assert!(output.stdout == soon(binary().args(RUN)).stdout);
}

/// As systemd's `MemoryDenyWriteExecute=` and `PR_SET_MDWE` have it: code runs all the same.
#[test]
fn pages_that_may_not_be_turned() {
    let dir = tempfile::tempdir().expect("a folder");
    let lap = dir.path().join("x.lap");
    assert!(soon(binary().args(["compile", "-o", name(&lap)])).status.success());
    let stored = ["run", "-m", name(&lap), "-n", "4", "--temp", "0", "hello"];
    let expected = soon(binary().args(RUN)).stdout;
    for args in [&RUN[..], &stored] {
        let mut filtered = binary();
        refuse(&mut filtered, NO_TURNING);
        let mut commands = vec![filtered];
        let mut strict = binary();
        if refuse_exec_gain(&mut strict) {
            commands.push(strict);
        }
        for mut command in commands {
            let output = soon(command.args(args));
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "{args:?}: {error}");
            assert!(output.stdout == expected, "{args:?}");
        }
        let mut command = binary();
        refuse(&mut command, NO_CODE);
        one_line(&soon(command.args(args)), &["no memory that code can run in", "Permission denied"]);
    }
}

/// Whether a command that reads what was written finds it whole.
fn opens(args: &[&str]) -> bool {
    soon(binary().args(args)).status.success()
}

/// From what the loader needs to what the command needs: a line, and nothing half written.
#[test]
fn refused_memory() {
    const MIB: u64 = 1 << 20;
    let dir = tempfile::tempdir().expect("a folder");
    let (lap, q) = (dir.path().join("x.lap"), dir.path().join("q"));
    let commands: [&[&str]; 4] = [
        &RUN,
        &["run", "--weights", "q4", "--no-cache", "-n", "4", "hello"],
        &["compile", "-o", name(&lap)],
        &["quantize", "--weights", "q4", "-o", name(&q)],
    ];
    for args in commands {
        let (mut refused, mut most) = (0, 24 * MIB);
        loop {
            fs::remove_file(&lap).ok();
            fs::remove_dir_all(&q).ok();
            let mut command = binary();
            limit(&mut command, libc::RLIMIT_AS, most);
            let output = soon(command.args(args));
            let error = String::from_utf8_lossy(&output.stderr);
            match output.status.code() {
                Some(0) => break,
                // The loader's own words: the program has not begun.
                Some(127) => {}
                None if error.is_empty() && refused == 0 => {}
                // The C library's own words, where it has no memory to note what a thread is to drop at its end: it
                // asks nobody, and aborts.
                None if error.starts_with("Fatal glibc error: ") && error.trim_end().lines().count() == 1 => {
                    refused += 1;
                }
                // The standard library's own, where a thread that has begun gets no stack for its signals.
                _ if error.contains("failed to allocate an alternative stack") => refused += 1,
                _ => {
                    one_line(&output, &[]);
                    // Nothing, or the whole: memory may end after all is written.
                    match names(dir.path()).as_slice() {
                        [] => {}
                        [only] if only == "q" => {
                            assert!(opens(&["inspect", "-m", name(&q)]), "{most}: {error}")
                        }
                        [only] if only == "x.lap" => {
                            assert!(opens(&["verify", name(&lap)]), "{most}: {error}")
                        }
                        others => panic!("{others:?} at {most}: {error}"),
                    }
                    refused += 1;
                }
            }
            most += most / 32;
            assert!(most < 64 << 30, "{args:?} never has enough");
        }
        assert!(refused > 2, "{args:?} was refused {refused} times");
    }
}

/// A checkpoint, an artifact and a cache file that are cut while a command reads them in place.
#[test]
fn a_file_that_shrinks() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("out");
    let ids = vec!["2"; 1024].join(",");
    let model = folder::converted("BF16", |x| x.to_le_bytes().into(), 1);
    let lap = dir.path().join("x.lap");
    let compile = ["compile", "--chunk", "1", "--passes", "none", "-o", name(&lap)];
    assert!(soon(binary().args(compile)).status.success());
    let cache = dir.path().join("lapidary");
    let slow = ["--chunk", "1", "--passes", "none"];
    let cases: [(&[&str], &dyn Fn() -> std::path::PathBuf); 3] = [
        (&["-m", name(model.path())], &|| model.path().join(folder::WEIGHTS)),
        (&["-m", name(&lap)], &|| lap.clone()),
        (&["--weights", "q8"], &|| cache.join(&names(&cache)[0])),
    ];
    for (args, file) in cases {
        fs::create_dir_all(&out).expect("made");
        let target = out.join("x");
        let mut command = plain();
        command.env("XDG_CACHE_HOME", dir.path());
        command.args(["logits", "--ids", &ids, "-o", name(&target)]).args(args);
        if !args.contains(&name(&lap)) {
            command.args(slow);
        }
        let mut child = command.spawn().expect("the binary runs");
        let begun = || names(&out).iter().any(|n| fs::metadata(out.join(n)).is_ok_and(|m| m.len() > 1 << 16));
        assert!(wait_for(&mut child, begun), "{args:?}: it writes nothing");
        let path = file();
        cut(&path);
        let output = child.wait_with_output().expect("it ends");
        one_line(&output, &[name(&path), "cut short"]);
        assert_eq!(names(&out), [""; 0], "{args:?}");
    }
}

/// `lapidary-run` in the same surroundings.
#[test]
fn without_a_compiler_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let lap = dir.path().join("x.lap");
    assert!(soon(binary().args(["compile", "-o", name(&lap)])).status.success());
    let program = lapidary_run();
    let command = || {
        let mut command = Command::new(&program);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.args([name(&lap), "hello", "--temp", "0", "--threads", "4"]);
        command
    };
    let expected = soon(command().args(["-n", "4"])).stdout;
    for refused in [NO_THREADS, NO_TURNING] {
        let mut command = command();
        refuse(&mut command, refused);
        let output = soon(command.args(["-n", "4"]));
        assert!(output.status.success() && output.stdout == expected);
    }
    let mut refused = command();
    refuse(&mut refused, NO_CODE);
    one_line(&soon(&mut refused), &["x.lap", "no memory that code can run in"]);
    let mut child = command().args(["-n", "1000"]).spawn().expect("the binary runs");
    let out = child.stdout.as_mut().expect("piped");
    assert_eq!(out.read(&mut [0]).expect("a byte"), 1);
    cut(&lap);
    one_line(&child.wait_with_output().expect("it ends"), &["x.lap", "cut short"]);
    for no_file in ["/dev/zero", "/proc/self/pagemap"] {
        fs::remove_file(&lap).expect("removed");
        std::os::unix::fs::symlink(no_file, &lap).expect("a link");
        one_line(&soon(&mut command()), &["x.lap", "expected a file"]);
    }
}

/// Cuts a file to one page.
fn cut(path: &Path) {
    sleep(Duration::from_millis(20));
    File::options().write(true).open(path).expect("the file").set_len(4096).expect("it is cut");
}
