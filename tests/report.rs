//! The page that `lapidary report` writes, in a real browser: it opens without complaint and without a network, answers
//! clicks and keys in time, fits a phone and is small.
//!
//! Without a browser the tests say so and pass; with `LAPIDARY_REQUIRE_TOOLS=1` they fail.
//! `LAPIDARY_SCREENSHOTS=FOLDER` keeps pictures of what was tested.
#![allow(clippy::unwrap_used)]

#[path = "report/browser.rs"]
mod browser;
#[path = "report/choices.rs"]
mod choices;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use browser::Browser;
use serde_json::Value;

/// The most bytes of a page.
const MOST_BYTES: u64 = 5_000_000;

/// Writes a page and gives its path.
fn page(folder: &Path, args: &[&str]) -> PathBuf {
    let path = folder.join("report.html");
    let mut command = Command::new(env!("CARGO_BIN_EXE_lapidary"));
    command.env("XDG_CACHE_HOME", Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache"));
    let output = command.arg("report").args(args).arg("-o").arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
    path
}

/// Held while a browser runs: what is measured is to have the machine to itself.
static ALONE: Mutex<()> = Mutex::new(());

/// A browser, unless there is none and none is required.
fn browser() -> Option<(MutexGuard<'static, ()>, Browser)> {
    match browser::find() {
        Some(name) => {
            let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
            Some((alone, Browser::start(name)))
        }
        None if std::env::var_os("LAPIDARY_REQUIRE_TOOLS").is_some_and(|v| v == "1") => {
            panic!("Chromium is required and missing: apt-get install chromium")
        }
        None => {
            eprintln!("skipped: no Chromium; apt-get install chromium");
            None
        }
    }
}

const READY: &str =
    "!!document.getElementById('page') && !document.getElementById('page').hasAttribute('aria-busy')";

/// Clicks everything there is to choose; pairs of what was clicked and the milliseconds until the page was drawn again.
const SWEEP: &str = "(async () => {
    const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    await allReady;
    const times = [], charted = [];
    const click = async (element, what) => {
        const start = performance.now();
        element.click();
        document.body.getBoundingClientRect();
        await frame();
        times.push([what, performance.now() - start]);
    };
    const all = (selector) => [...document.querySelectorAll(selector)];
    const of = (selector, key) => all(selector).find((e) => e.dataset.key === key);
    const charts = async (what) => {
        const start = performance.now();
        await chartsDrawn;
        charted.push([what, performance.now() - start]);
    };
    for (const f of all('#functions button').map((e) => e.dataset.key)) {
        await click(of('#functions button', f), f);
        await charts(f);
        for (const r of all('#regimes button').map((e) => e.dataset.key)) {
            await click(of('#regimes button', r), `${f} ${r}`);
            await charts(`${f} ${r}`);
            for (let k = 0; k < all('#kernels button').length; k++) {
                await click(all('#kernels button')[k], `${f} ${r} kernel ${k}`);
                for (const t of k % 3 == 0 ? all('[role=tab]').map((e) => e.dataset.key) : []) {
                    await click(of('[role=tab]', t), `${f} ${r} kernel ${k} ${t}`);
                    if (!document.getElementById('tab-body').textContent.trim())
                        throw new Error(`${f} ${r} ${k} ${t} is empty`);
                }
                of('[role=tab]', 'overview')?.click();
            }
        }
    }
    return [times, charted];
})()";

#[test]
fn the_page_of_2b_is_small_and_quiet() {
    let folder = tempfile::tempdir().unwrap();
    let path = page(folder.path(), &["--preset", "2b"]);
    let size = std::fs::metadata(&path).unwrap().len();
    assert!(size < MOST_BYTES, "{size} bytes");
    let Some((_alone, mut b)) = browser() else { return };
    b.window(1500, 1000, false, false);
    b.open(&path);
    b.wait(READY);
    b.photograph("desktop");
    assert_eq!(b.value("document.querySelectorAll('#functions [role=radio]').length"), 5);

    // Every function, every regime, every kernel, every tab: nothing complains. How long it took is for a reader to
    // judge.
    let times = b.value(SWEEP);
    let slowest = |times: &Value| {
        let all = times.as_array().unwrap().iter().map(|t| (t[1].as_f64().unwrap(), t[0].to_string()));
        all.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
    };
    let clicks = times[0].as_array().unwrap().len();
    let ((ms, what), (later, whose)) = (slowest(&times[0]), slowest(&times[1]));
    println!("{clicks} clicks, the slowest {ms:.0} ms ({what}); charts up to {later:.0} ms later ({whose})");
    assert!(clicks > 100, "{clicks}");
    let null = "[...document.querySelectorAll('main *')].some((e) => \
        [...e.childNodes].some((n) => n.nodeType === 3 && /^(null|undefined|NaN)$/.test(n.data)))";
    for f in ["embed", "layer_local", "head"] {
        b.value(&format!("document.querySelector('#functions [data-key={f}]').click()"));
        assert_eq!(b.value(null), false, "{f}");
    }
    assert!(b.complaints.is_empty(), "{:#?}", b.complaints);
}

#[test]
fn measured_times_stand_beside_predicted_ones() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["--measure", "--threads", "1", "--passes", "linear", "--chunk", "16", "--context", "64"];
    let path = page(folder.path(), &args);
    let Some((_alone, mut b)) = browser() else { return };
    b.window(1500, 1000, false, false);
    b.open(&path);
    b.wait(READY);
    for rows in ["1", "4", "16"] {
        b.value(&format!("document.querySelector('#regimes [data-key=\"{rows}\"]').click()"));
        let text = b.value("document.querySelector('.facts').textContent").to_string();
        assert!(text.contains("predicted / measured"), "{text}");
        assert!(b.value("document.getElementById('roof-hint').textContent").to_string().contains("measured"));
    }
    let columns =
        b.value("[...document.querySelectorAll('#rules thead th')].map((e) => e.textContent).join()");
    assert!(columns.as_str().unwrap().ends_with("measured"), "{columns}");
    assert!(b.complaints.is_empty(), "{:#?}", b.complaints);
}

#[test]
fn a_phone_shows_all_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = page(folder.path(), &[]);
    let Some((_alone, mut b)) = browser() else { return };
    for (dark, name) in [(false, "phone"), (true, "phone-dark")] {
        b.window(390, 844, true, dark);
        b.open(&path);
        b.wait(READY);
        b.photograph(name);
        assert_eq!(b.value("document.documentElement.scrollWidth"), 390);
        // Nothing sticks out but what scrolls by itself.
        let wide: Value = b.value(
            "[...document.querySelectorAll('main > *, main section, main h2, .tile')]\
             .filter((e) => e.getBoundingClientRect().right > 391).map((e) => e.className || e.id)",
        );
        assert_eq!(wide, serde_json::json!([]));
        let shown =
            "['before', 'after'].map((id) => document.getElementById(id).getBoundingClientRect().width > 0)";
        assert_eq!(b.value(shown), serde_json::json!([false, true]));
        b.value("document.querySelector('.sides [data-side=before]').click()");
        assert_eq!(b.value(shown), serde_json::json!([true, false]));
    }
    assert!(b.complaints.is_empty(), "{:#?}", b.complaints);
}

#[test]
fn files_of_the_language_and_odd_functions() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("<odd & name>.ir");
    std::fs::write(
        &file,
        "function same(%x: f32[T,4] rows) { return y=%x }\n\
         function constant() { return y=(mul 2.0 3.0) }\n\
         function cap(%x: f32[T,8] rows, %w: bf16[16,8] weight) {\n\
         y = (matmul %x (transpose (cast %w f32) [1,0])) return logits=(mul (tanh (div y 30.0)) 30.0) }",
    )
    .unwrap();
    let path = page(folder.path(), &[file.to_str().unwrap()]);
    let Some((_alone, mut b)) = browser() else { return };
    b.open(&path);
    b.wait(READY);
    assert_eq!(b.value("document.getElementById('title').textContent"), file.to_str().unwrap());
    for name in ["same", "constant", "cap"] {
        b.value(&format!("document.querySelector('#functions [data-key={name}]').click()"));
        assert_eq!(b.value("document.querySelector('#functions [aria-checked=true]').dataset.key"), name);
    }
    let ops = b.value("document.querySelector('#kernel').textContent");
    assert!(ops.as_str().unwrap().contains("Stands for 6 source ops"), "{ops}");
    assert!(b.complaints.is_empty(), "{:#?}", b.complaints);
}

#[test]
fn what_cannot_be_written_is_told_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_lapidary")).arg("report").args(args).output().unwrap()
    };
    let inside = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let missing = inside("missing/report.html");
    let out = run(&["-o", &missing]);
    let line = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.code() == Some(1) && line.contains("missing") && line.lines().count() == 1, "{line}");
    // An error after the file was begun leaves what was there.
    let kept = inside("kept.html");
    std::fs::write(&kept, "before").unwrap();
    let broken = inside("broken.ir");
    std::fs::write(&broken, "function f(").unwrap();
    assert_eq!(run(&[&broken, "-o", &kept]).status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "before");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    for args in [&["--measure", "--preset", "2b"][..], &["--disable", "nothing"], &["--cpu", "z80"]] {
        let out = run(&[args, &["-o", &kept]].concat());
        let line = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.code() != Some(0) && line.starts_with("error: "), "{args:?}: {line}");
    }
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), "before");
}
