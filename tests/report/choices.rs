//! What clicks and keys choose: a kernel in every part of the page at once, no more touched than changes, rewrites step
//! by step.

use std::path::Path;

use crate::{READY, browser, page};

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
            const node = [...document.querySelectorAll('#before .node.of')]
                .find((n) => n.querySelector('.name').textContent === 'tanh');
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
    let focused = "(() => { const e = document.activeElement; \
        return e.id || e.getAttribute('aria-label') || e.dataset.key || e.tagName; })()";
    let mut order: Vec<String> = vec![];
    for _ in 0..60 {
        b.press("Tab");
        let name = b.value(focused);
        order.push(name.as_str().unwrap_or_default().to_string());
        // Whatever has the focus shows it.
        let seen = b.value(
            "(() => { const e = document.activeElement; if (e === document.body) return true; \
             const s = getComputedStyle(e); return s.outlineStyle !== 'none' && parseFloat(s.outlineWidth) > 0; })()",
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
        Object.defineProperty(prototype, name, { ...own,
            [key](...args) { measured++; return own[key].apply(this, args); } });
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
            const lit = () => [...document.querySelectorAll('.graph .node.on')],
                all = document.querySelectorAll('.graph .node').length;
            const seen = [];
            for (let k = 0; k < document.querySelectorAll('#kernels button').length; k++) {
                const before = lit();
                const { measured, nodes } = await watched(() =>
                    document.querySelectorAll('#kernels button')[k].click());
                const may = new Set([...before, ...lit()]);
                seen.push({ k, all, measured, touched: nodes.length,
                    others: nodes.filter((n) => !may.has(n)).length, lit: lit().length });
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
            const { measured } = await watched(() =>
                document.querySelector('#functions [data-key=layer_global]').click());
            const at_once = drawn('before');
            await graphsDrawn;
            const all = drawn('before');
            // Another regime has the same source: no node is made.
            const { nodes } = await watched(() => document.querySelector('#regimes [data-key=\"4\"]').click());
            const old = new Set(document.querySelectorAll('#before .node'));
            return { measured, at_once, all, same: all === old.size,
                made: nodes.filter((n) => n.closest('#before') && !old.has(n)).length };
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
    b.value(
        "[...document.querySelectorAll('#kernels button')]\
            .find((e) => e.textContent.includes('attention')).click()",
    );
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
