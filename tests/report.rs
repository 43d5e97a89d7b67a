//! The page that `lapidary report` writes, in a real browser: it opens without complaint and without a network, answers
//! clicks and keys in time, fits a phone and is small.
//!
//! Without a browser the tests say so and pass; with `LAPIDARY_REQUIRE_TOOLS=1` they fail.
//! `LAPIDARY_SCREENSHOTS=FOLDER` keeps pictures of what was tested.
#![allow(clippy::unwrap_used)]

#[path = "report/browser.rs"]
mod browser;

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
                    if (!document.getElementById('tab-body').textContent.trim()) throw new Error(`${f} ${r} ${k} ${t} is empty`);
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
    let null = "[...document.querySelectorAll('main *')].some((e) => [...e.childNodes].some((n) => n.nodeType === 3 && /^(null|undefined|NaN)$/.test(n.data)))";
    for f in ["embed", "layer_local", "head"] {
        b.value(&format!("document.querySelector('#functions [data-key={f}]').click()"));
        assert_eq!(b.value(null), false, "{f}");
    }
    assert!(b.complaints.is_empty(), "{:#?}", b.complaints);
}

#[test]
fn a_click_in_a_graph_chooses_its_kernel_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let path = page(folder.path(), &[]);
    let Some((_alone, mut b)) = browser() else { return };
    b.window(1500, 1000, false, true);
    b.open(&path);
    b.wait(READY);
    b.photograph("dark");
    b.value("graphsDrawn.then(() => true)");
    // The source's softmax division belongs to the attention kernel.
    let found = b.value(
        "(() => {
            const node = [...document.querySelectorAll('#before .node.of')].find((n) => n.querySelector('.name').textContent === 'tanh');
            node.dispatchEvent(new MouseEvent('click', { bubbles: true }));
            const lit = (side) => [...document.querySelectorAll(`#${side} .node.on .name`)].map((n) => n.textContent);
            return {
                kind: document.querySelector('.panelhead .kind').textContent,
                chosen: document.querySelector('#kernels [aria-checked=true] span:nth-child(2)').textContent,
                title: document.querySelector('.panelhead h2').textContent,
                before: lit('before'), after: lit('after'), hash: location.hash,
            };
        })()",
    );
    assert_eq!(found["kind"], "attention");
    assert_eq!(found["title"], found["chosen"]);
    assert!(found["hash"].as_str().unwrap().ends_with(found["title"].as_str().unwrap()), "{found}");
    let names = |side: &str| -> Vec<String> {
        found[side].as_array().unwrap().iter().map(|n| n.as_str().unwrap().to_string()).collect()
    };
    for op in ["tanh", "select", "exp", "max", "matmul", "broadcast"] {
        assert!(names("before").contains(&op.to_string()), "{op}: {found}");
    }
    assert!(names("after").contains(&"attention".to_string()), "{found}");
    assert!(!names("after").contains(&"linear".to_string()), "{found}");
    // The address brings back what was chosen.
    b.open(Path::new("/dev/null"));
    b.open(Path::new(&format!("{}{}", path.display(), found["hash"].as_str().unwrap())));
    b.wait(READY);
    assert_eq!(b.value("document.querySelector('.panelhead h2').textContent"), found["title"]);
    assert!(b.complaints.is_empty(), "{:#?}", b.complaints);
}

#[test]
fn the_keyboard_reaches_everything() {
    let folder = tempfile::tempdir().unwrap();
    let path = page(folder.path(), &[]);
    let Some((_alone, mut b)) = browser() else { return };
    b.window(1500, 1000, false, false);
    b.open(&path);
    b.wait(READY);
    let focused = "(() => { const e = document.activeElement; return e.id || e.getAttribute('aria-label') || e.dataset.key || e.tagName; })()";
    let mut order: Vec<String> = vec![];
    for _ in 0..60 {
        b.press("Tab");
        let name = b.value(focused);
        order.push(name.as_str().unwrap_or_default().to_string());
        // Whatever has the focus shows it.
        let seen = b.value(
            "(() => { const e = document.activeElement; if (e === document.body) return true; const s = getComputedStyle(e); return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0; })()",
        );
        assert_eq!(seen, true, "{order:?}");
        if name == "BODY" {
            break;
        }
    }
    for stop in
        ["layer_local", "1", "Graph before fusion", "Graph after fusion", "Previous kernel", "tab-overview"]
    {
        assert!(order.iter().any(|o| o.starts_with(stop)), "{stop}: {order:?}");
    }
    // Arrow keys: functions, kernels, nodes of a graph.
    b.value("document.querySelector('#functions [aria-checked=true]').focus()");
    b.press("ArrowRight");
    assert_eq!(
        b.value("document.querySelector('#functions [aria-checked=true]').dataset.key"),
        "layer_global"
    );
    assert_eq!(b.value("document.activeElement.dataset.key"), "layer_global");
    let title = "document.querySelector('.panelhead h2').textContent";
    let before = b.value(title);
    b.press("]");
    let next = b.value(title);
    assert_ne!(before, next);
    b.press("[");
    assert_eq!(b.value(title), before);
    b.value("document.querySelector('#after .canvas').focus()");
    b.press("ArrowUp");
    b.press("ArrowUp");
    let heard = b.value("document.querySelector('#after [aria-live]').textContent");
    assert!(!heard.as_str().unwrap().is_empty());
    let id = b.value("document.querySelector('#after .node.focus').dataset.id");
    b.press("Enter");
    let lit = b.value(&format!(
        "document.querySelector('#after .node[data-id=\"{}\"]').classList.contains('on')",
        id.as_str().unwrap()
    ));
    assert_eq!(lit, true);
    assert!(b.complaints.is_empty(), "{:#?}", b.complaints);
}

/// Watches what a click does to both graphs, and whether it asks for the page's measures, which would lay it out at
/// once.
const WATCH: &str = "window.watched = async (act) => {
    const records = [], graphs = ['before', 'after'].map((id) => document.getElementById(id));
    const observer = new MutationObserver((seen) => records.push(...seen));
    for (const graph of graphs) observer.observe(graph, { subtree: true, childList: true, attributes: true });
    let measured = 0;
    const kept = [], count = (prototype, name) => {
        const own = Object.getOwnPropertyDescriptor(prototype, name), key = own.get ? 'get' : 'value';
        kept.push([prototype, name, own]);
        Object.defineProperty(prototype, name, { ...own, [key](...args) { measured++; return own[key].apply(this, args); } });
    };
    count(Element.prototype, 'getBoundingClientRect');
    for (const name of ['clientWidth', 'clientHeight', 'scrollWidth', 'scrollHeight']) count(Element.prototype, name);
    for (const name of ['offsetLeft', 'offsetTop', 'offsetWidth', 'offsetHeight']) count(HTMLElement.prototype, name);
    act();
    for (const [prototype, name, own] of kept) Object.defineProperty(prototype, name, own);
    records.push(...observer.takeRecords());
    observer.disconnect();
    const touched = new Set();
    for (const r of records) {
        for (const n of r.type === 'childList' ? [...r.addedNodes, ...r.removedNodes] : [r.target]) touched.add(n);
    }
    return { measured, nodes: [...touched].filter((n) => n.matches?.('.node')) };
}; true";

/// A click costs what it changes: it touches the nodes of two kernels, makes those in sight, and measures nothing.
#[test]
fn a_click_touches_what_it_changes() {
    let folder = tempfile::tempdir().unwrap();
    let path = page(folder.path(), &["--preset", "2b"]);
    let Some((_alone, mut b)) = browser() else { return };
    b.window(1500, 1000, false, false);
    b.open(&path);
    b.wait(READY);
    b.value("Promise.all([allReady, graphsDrawn]).then(() => true)");
    b.value(WATCH);
    // Every kernel after every other.
    let kernels = b.value(
        "(async () => {
            const lit = () => [...document.querySelectorAll('.graph .node.on')], all = document.querySelectorAll('.graph .node').length;
            const seen = [];
            for (let k = 0; k < document.querySelectorAll('#kernels button').length; k++) {
                const before = lit();
                const { measured, nodes } = await watched(() => document.querySelectorAll('#kernels button')[k].click());
                const may = new Set([...before, ...lit()]);
                seen.push({ k, all, measured, touched: nodes.length, others: nodes.filter((n) => !may.has(n)).length, lit: lit().length });
            }
            return seen;
        })()",
    );
    let kernels = kernels.as_array().unwrap();
    assert!(kernels.len() > 8, "{kernels:?}");
    for kernel in kernels {
        assert_eq!(kernel["measured"], 0, "{kernel}");
        assert_eq!(kernel["others"], 0, "{kernel}");
    }
    let sum = |name: &str| kernels.iter().map(|k| k[name].as_u64().unwrap()).sum::<u64>();
    assert!(sum("lit") > 100 && sum("touched") > 50 && sum("touched") < sum("all") / 2, "{kernels:?}");
    // Another function: what is in sight at once, the others soon, so that all can be found and walked to.
    let other = b.value(
        "(async () => {
            const drawn = (id) => document.querySelectorAll(`#${id} .node`).length;
            const { measured } = await watched(() => document.querySelector('#functions [data-key=layer_global]').click());
            const at_once = drawn('before');
            await graphsDrawn;
            const all = drawn('before');
            // Another regime has the same source: no node is made.
            const { nodes } = await watched(() => document.querySelector('#regimes [data-key=\"4\"]').click());
            const old = new Set(document.querySelectorAll('#before .node'));
            return { measured, at_once, all, same: all === old.size, made: nodes.filter((n) => n.closest('#before') && !old.has(n)).length };
        })()",
    );
    assert_eq!(other["measured"], 0, "{other}");
    let (at_once, all) = (other["at_once"].as_u64().unwrap(), other["all"].as_u64().unwrap());
    assert!(at_once > 10 && at_once < all && all > 120, "{other}");
    assert!(other["same"] == true && other["made"] == 0, "{other}");
    assert!(b.complaints.is_empty(), "{:#?}", b.complaints);
}

/// The rewrites of the local layer's attention: each by its rule, from the source's ops to the kernel.
#[test]
fn the_slider_replays_the_rewriting() {
    let folder = tempfile::tempdir().unwrap();
    let path = page(folder.path(), &[]);
    let Some((_alone, mut b)) = browser() else { return };
    b.window(1500, 1000, false, false);
    b.open(&path);
    b.wait(READY);
    b.value("allReady.then(() => true)");
    b.value("[...document.querySelectorAll('#kernels button')].find((e) => e.textContent.includes('attention')).click()");
    b.value("document.querySelector('[data-key=rewrites]').click()");
    b.wait("!!document.querySelector('.player input')");
    let ops = "[...document.querySelectorAll('.stage .node .name')].map((n) => n.textContent)";
    let source = b.value(ops).to_string();
    for op in ["tanh", "select", "exp", "sum", "broadcast", "matmul"] {
        assert!(source.contains(op), "{op}: {source}");
    }
    b.value("document.querySelector('.player input').focus()");
    let most: usize =
        b.value("document.querySelector('.player input').max").as_str().unwrap().parse().unwrap();
    let mut rules = vec![];
    for _ in 0..most {
        b.press("ArrowRight");
        rules.push(b.value("document.querySelector('.about b').textContent").as_str().unwrap().to_string());
        // What the rule made is marked.
        assert_eq!(b.value("document.querySelectorAll('.stage .node.new').length"), 1, "{rules:?}");
    }
    b.photograph("rewrites");
    for rule in
        ["softcap", "window-mask", "softmax", "softmax-bounded", "scores", "scores-scale", "gqa", "attention"]
    {
        assert!(rules.contains(&rule.to_string()), "{rule}: {rules:?}");
    }
    let end = b.value(ops).to_string();
    assert!(end.contains("attention") && !end.contains("tanh") && !end.contains("matmul"), "{end}");
    b.press("Home");
    assert_eq!(b.value(ops).to_string(), source);
    // What it was chosen over, with prices.
    b.value("document.querySelector('[data-key=overview]').click()");
    let text = b.value("document.getElementById('tab-body').textContent").to_string();
    assert!(text.contains("What it was chosen over") && text.contains("online"), "{text}");
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
            "[...document.querySelectorAll('main > *, main section, main h2, .tile')].filter((e) => e.getBoundingClientRect().right > 391).map((e) => e.className || e.id)",
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
