// What is chosen (function, row regime, kernel), kept in the address after #, and shown everywhere.

/** Everything derived of a function in a regime. */
function viewOf(data, f, v) {
  const fn = data.functions[f], variant = fn.variants[v];
  const measured = data.measured && data.measured.variants[v][f];
  // A group's price stands at the launch that does most of its work.
  const main = variant.groups.map((_, g) => {
    const of = variant.kernels.map((k, i) => [k.memory_bytes + k.cache_bytes + k.flops, i]).filter(([, i]) => variant.kernels[i].group === g);
    return of.sort((a, b) => b[0] - a[0] || b[1] - a[1])[0][1];
  });
  const groupMeasured = (g) => variant.kernels.reduce((t, k, i) => t + (k.group === g && measured.ns[i] ? measured.ns[i] : 0), 0);
  const kernels = variant.kernels.map((k, i) => {
    const first = main[k.group] === i;
    const predictedNs = first ? variant.costs[k.group].ns : null;
    const measuredNs = measured ? measured.ns[i] : null;
    return {
      ...k, short: k.name.replace(/^v\d+_/, ""), predictedNs, measuredNs,
      comparedNs: measured ? measured.predicted[k.group] : null,
      shown: measured ? measuredNs : predictedNs,
      pointNs: measured ? measuredNs : predictedNs,
      counted: first ? "" : `counted with ${variant.kernels[main[k.group]].name}`,
    };
  });
  return { data, f, v, fn, variant, measured, kernels, groupMeasured };
}

/** From an id of a graph's node to its groups. */
function groupsBy(rows) {
  const of = new Map(rows);
  return (id) => of.get(id) || [];
}

/** Settled once listings and rewrites can be shown. */
let allReady;
/** Settled once the charts of what was chosen last are drawn. */
let chartsDrawn;
/** Settled once all nodes of both graphs are there, also those out of sight. */
let graphsDrawn;
/** When there is nothing else to do, and soon all the same. */
const idle = (act) => (window.requestIdleCallback ? requestIdleCallback(act, { timeout: 300 }) : setTimeout(act, 50));

async function main() {
  const data = await unpack("data");
  const listings = unpack("listings"), proofs = unpack("proofs");
  allReady = Promise.all([listings, proofs]);
  const state = { f: Math.max(0, data.functions.findIndex((f) => f.name === "layer_local")), v: 0, k: 0 };
  let view;
  const panel = new Panel($("kernel"), (k) => choose(k), listings, proofs);
  const pick = (rows) => (node) => {
    const groups = groupsBy(rows(view))(node.id);
    if (!groups.length) return;
    // Again on a node that two kernels compute: the other one.
    const now = view.kernels[state.k] && view.kernels[state.k].group;
    const group = groups[(groups.indexOf(now) + 1) % groups.length];
    choose(view.kernels.findLastIndex((k) => k.group === group), "graph");
  };
  const before = new GraphView($("before"), "Graph before fusion", pick((w) => w.variant.source_groups));
  const after = new GraphView($("after"), "Graph after fusion", pick((w) => w.variant.fused_groups));

  /** Marks the chosen kernel wherever kernels are shown. */
  function mark() {
    const k = state.k, kernel = view.kernels[k];
    for (const e of document.querySelectorAll("[data-k]")) {
      const on = Number(e.dataset.k) === k;
      if (on === e.classList.contains("on")) continue;
      e.classList.toggle("on", on);
      if (e.getAttribute("role") === "radio") { e.setAttribute("aria-checked", String(on)); e.tabIndex = on ? 0 : -1; }
    }
    if (view.memoryX && $("memory-now") && kernel) {
      $("memory-now").setAttribute("x", view.memoryX(k).toFixed(1));
      for (const e of document.querySelectorAll("[data-b]")) e.classList.toggle("on", kernel.reads.includes(Number(e.dataset.b)) || kernel.writes.includes(Number(e.dataset.b)));
    }
  }

  function choose(k, from) {
    state.k = k;
    const kernel = view.kernels[k];
    mark();
    const group = kernel ? kernel.group : null;
    before.light(group);
    after.light(group);
    if (kernel && from !== "start") { before.show(group, true); if (from !== "graph") after.show(group, true); }
    panel.show(view, k);
    keep();
    // With the frame's own layout, where the list of kernels is one long row.
    requestAnimationFrame(() => {
      const list = $("kernels"), chip = list.children[k];
      if (chip && list.scrollWidth > list.clientWidth) list.scrollTo({ left: chip.offsetLeft - list.offsetLeft - (list.clientWidth - chip.offsetWidth) / 2 });
    });
  }

  function keep() {
    const hash = `#${encodeURIComponent(view.fn.name)}/${view.variant.rows}${view.kernels[state.k] ? "/" + encodeURIComponent(view.kernels[state.k].name) : ""}`;
    if (hash !== location.hash) history.replaceState(null, "", hash);
  }

  /** The time line at once; what lies below once the graphs have been shown, one by one, or all at once. */
  function charts(atOnce) {
    timeline(view, choose);
    const of = view, rest = [roofline, memory, growth, rules];
    if (atOnce) {
      for (const draw of rest) draw(view, choose);
      chartsDrawn = Promise.resolve();
      return;
    }
    chartsDrawn = new Promise((done) => {
      const next = () => {
        // Another choice has been made since, which draws its own.
        if (view !== of || !rest.length) { mark(); return done(); }
        rest.shift()(view, choose);
        setTimeout(next);
      };
      idle(next);
    });
  }

  function show(f, v, k, atOnce) {
    Object.assign(state, { f, v: Math.min(v, data.functions[f].variants.length - 1) });
    view = viewOf(data, state.f, state.v);
    const { fn, variant } = view;
    segments($("functions"), "Function", data.functions.map((g) => [g.name, g.name, `${g.source.nodes.length} nodes`]), fn.name, (name) => show(data.functions.findIndex((g) => g.name === name), state.v));
    segments($("regimes"), "Rows of a call", fn.variants.map((w) => [String(w.rows), w.rows === 1 ? "1 row" : `${w.rows} rows`, "calls of up to so many rows"]), String(variant.rows), (rows) => show(state.f, fn.variants.findIndex((w) => String(w.rows) === rows)));
    const ops = fn.source.nodes.filter(([, op]) => !["rows", "weight", "cache"].includes(op)).length;
    const whole = data.functions.reduce((t, g, i) => t + data.calls[i] * g.variants[state.v].ns, 0);
    const tile = (value, name, note) => h("div", { class: "tile" }, h("b", {}, value), h("span", {}, name), note ? h("small", {}, note) : null);
    const took = view.measured && view.measured.ns.reduce((t, ns) => t + (ns || 0), 0);
    $("summary").replaceChildren(...[
      tile(`${ops} → ${variant.kernels.length}`, "ops → kernels"),
      tile(time(variant.ns), "predicted", `${plural(variant.extent[0], "row")}, ${plural(variant.extent[1], "key")}`),
      took ? tile(time(took), "measured", `${plural(view.measured.rows, "row")}, ${plural(view.measured.keys, "key")}, ${plural(data.measured.threads, "thread")}`) : null,
      data.functions.length > 1 ? tile(time(whole), "predicted, whole model", `one call, ${plural(variant.rows, "row")}`) : null,
      tile(bytes(variant.arena), "arena"),
      tile(bytes(variant.kernels.reduce((t, k) => t + k.code, 0)), "machine code"),
      tile(time(fn.us * 1000), "saturation", fn.stop),
    ].filter(Boolean));
    $("time-hint").textContent = view.measured ? "Measured, one call." : "Predicted, one call.";
    const source = groupsBy(variant.source_groups), fused = groupsBy(variant.fused_groups);
    const named = k ? view.kernels.findIndex((kernel) => kernel.name === k) : -1;
    const busiest = view.kernels.reduce((best, kernel, i) => ((kernel.shown || 0) > (view.kernels[best].shown || 0) ? i : best), 0);
    const chosen = named >= 0 ? named : busiest, group = view.kernels[chosen]?.group;
    before.draw(drawing(fn.source), source, group);
    after.draw(drawing(variant.graph), fused, group);
    graphsDrawn = Promise.all([before.whole, after.whole]);
    $("before-n").textContent = plural(ops, "op");
    $("after-n").textContent = plural(variant.groups.length, "fused node");
    charts(atOnce);
    choose(chosen, "start");
  }

  roving($("functions"), "button");
  roving($("regimes"), "button");
  roving($("kernels"), "button");
  for (const side of document.querySelectorAll(".sides button")) {
    side.addEventListener("click", () => {
      document.querySelector(".graphs").dataset.side = side.dataset.side;
      for (const b of document.querySelectorAll(".sides button")) b.setAttribute("aria-pressed", String(b === side));
      const kernel = view.kernels[state.k];
      for (const graph of [before, after]) { graph.measure(); graph.fit(false, kernel?.group); }
    });
  }
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || /^(input|textarea|select)$/i.test(e.target.tagName)) return;
    const n = view.kernels.length;
    if (e.key === "[" && n) choose((state.k + n - 1) % n);
    else if (e.key === "]" && n) choose((state.k + 1) % n);
  });
  let drawn = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === drawn) return;
    drawn = innerWidth;
    rooms.clear();
    charts(true);
    for (const graph of [before, after]) { graph.measure(); graph.fit(false, view.kernels[state.k]?.group); }
    choose(state.k, "start");
  });
  const go = () => {
    const [name, rows, kernel] = location.hash.slice(1).split("/").map(decodeURIComponent);
    const f = data.functions.findIndex((g) => g.name === name);
    const v = f < 0 ? -1 : data.functions[f].variants.findIndex((w) => String(w.rows) === rows);
    show(f < 0 ? state.f : f, v < 0 ? state.v : v, kernel, true);
  };
  addEventListener("hashchange", go);
  // The other graphs are laid out while there is nothing else to do.
  const graphs = data.functions.flatMap((g) => [g.source, ...g.variants.map((w) => w.graph)]);
  const prepare = (function* () { for (const graph of graphs) yield* preparing(graph); })();
  const next = (deadline) => {
    let done;
    do ({ done } = prepare.next()); while (!done && deadline?.timeRemaining?.() > 2);
    if (!done) idle(next);
  };

  $("title").textContent = data.title;
  $("made").textContent = `Made by lapidary ${data.version} for ${data.cpu}, a context of ${count(data.context)} tokens.`;
  $("status").remove();
  for (const e of document.querySelectorAll("main > [hidden]")) e.hidden = false;
  $("page").removeAttribute("aria-busy");
  go();
  idle(next);
}

main().catch((error) => {
  const status = $("status") || $("page").appendChild(h("p", { id: "status", role: "alert" }));
  status.textContent = `This report cannot be shown: ${error.message}`;
  console.error(error);
});
