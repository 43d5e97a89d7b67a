// Charts: the time line, the roofline, the memory plan, the e-graph's growth, what each rule buys.
//
// In: `view`, what is chosen (see main.js). Each chart replaces what is in its element; clicks choose a kernel.

const percent = (x) => (x < 0.005 ? "<1%" : `${Math.round(x * 100)}%`);

/** The bar of kernels by time, for the eye; the list below it is for every hand. */
function timeline(view, choose) {
  const total = view.kernels.reduce((t, k) => t + (k.shown || 0), 0);
  $("timeline").replaceChildren(...view.kernels.flatMap((k, i) =>
    k.shown ? h("span", { class: "slice", style: `${hued(k.group)};flex-grow:${k.shown / total}`, title: `${k.name}: ${time(k.shown)}`, onclick: () => choose(i), "data-k": i }, k.shown / total > 0.07 ? k.short : "") : []));
  const list = $("kernels");
  list.setAttribute("role", "radiogroup");
  list.setAttribute("aria-label", "Kernels, in the order of their launches");
  list.replaceChildren(...view.kernels.map((k, i) =>
    h("button", { type: "button", role: "radio", class: "kernel", style: hued(k.group), "data-key": i, "data-k": i, "aria-checked": "false", tabindex: -1, onclick: () => choose(i) },
      h("span", { class: "dot", "aria-hidden": "true" }), h("span", {}, k.name), h("small", {}, k.shown ? `${time(k.shown)} · ${percent(k.shown / total)}` : k.counted))));
}

/** The width that a chart has, read once for a width of the window. */
const rooms = new Map();
function room(host) {
  if (!rooms.has(host)) rooms.set(host, Math.max(280, host.clientWidth));
  return rooms.get(host);
}

const axis = (x, y, text, anchor, extra) => s("text", { x, y, "text-anchor": anchor || "middle", class: "axis", ...extra }, text);

/** Operations a second against operations a byte, on two logarithmic scales, under the machine's ceilings. */
function roofline(view, choose) {
  const host = $("roofline"), W = room(host), H = 320;
  const pad = { l: 52, r: 22, t: 14, b: 40 };
  const m = view.data.machine, measured = view.measured && view.data.measured;
  const roofs = measured
    ? { memory: measured.read, flops: measured.multiply, name: "measured" }
    : { memory: m.memory, flops: m.flops, name: "of the cost model" };
  const points = view.kernels.map((k, i) => {
    const moved = k.memory_bytes + k.cache_bytes, ns = k.pointNs;
    return ns && k.flops && moved ? { i, k, x: k.flops / moved, y: k.flops / ns, share: k.shown || 0 } : null;
  }).filter(Boolean);
  const logs = (values, low, high) => [Math.floor(Math.log10(Math.min(low, ...values))), Math.ceil(Math.log10(Math.max(high, ...values)))];
  const [x0, x1] = logs(points.map((p) => p.x), 0.1, 100), [y0, y1] = logs([...points.map((p) => p.y), roofs.flops], 0.1, roofs.flops);
  const X = (v) => pad.l + ((Math.log10(v) - x0) / (x1 - x0)) * (W - pad.l - pad.r);
  const Y = (v) => H - pad.b - ((Math.log10(v) - y0) / (y1 - y0)) * (H - pad.t - pad.b);
  const parts = [];
  for (let e = x0; e <= x1; e++) parts.push(s("line", { class: "grid", x1: X(10 ** e), x2: X(10 ** e), y1: pad.t, y2: H - pad.b }), axis(X(10 ** e), H - pad.b + 16, String(10 ** e)));
  for (let e = y0; e <= y1; e++) parts.push(s("line", { class: "grid", x1: pad.l, x2: W - pad.r, y1: Y(10 ** e), y2: Y(10 ** e) }), axis(pad.l - 6, Y(10 ** e) + 4, String(10 ** e), "end"));
  parts.push(axis((W + pad.l) / 2, H - 6, "operations a byte moved"), axis(14, H / 2, "GFLOP/s", "middle", { transform: `rotate(-90 14 ${H / 2})` }));
  const slope = (rate, name, above) => {
    const knee = roofs.flops / rate, low = Math.max(10 ** x0, 10 ** y0 / rate);
    parts.push(s("path", { class: "roof", d: `M${X(low)} ${Y(low * rate)}L${X(Math.min(knee, 10 ** x1))} ${Y(Math.min(roofs.flops, 10 ** x1 * rate))}L${X(10 ** x1)} ${Y(Math.min(roofs.flops, 10 ** x1 * rate))}` }));
    // Along the slope, above a steeper roof and below a lower one.
    const turn = (-Math.atan2((H - pad.t - pad.b) / (y1 - y0), (W - pad.l - pad.r) / (x1 - x0)) * 180) / Math.PI;
    const x = X(low * 1.6), y = Y(low * 1.6 * rate);
    parts.push(axis(x, y + (above ? -6 : 14), `${name} ${digits(rate)} GB/s`, "start", { class: "axis roofname", transform: `rotate(${turn.toFixed(1)} ${x.toFixed(1)} ${y.toFixed(1)})` }));
  };
  slope(roofs.memory, "memory", measured);
  if (!measured) slope(m.cache, "cache", true);
  parts.push(axis(W - pad.r, Y(roofs.flops) - 6, `multiply-adds ${digits(roofs.flops)} GFLOP/s`, "end", { class: "axis roofname" }));
  const largest = Math.max(...points.map((p) => p.share), 1);
  for (const p of points) {
    parts.push(s("circle", { class: "point", cx: X(p.x).toFixed(1), cy: Y(p.y).toFixed(1), r: (5 + 9 * Math.sqrt(p.share / largest)).toFixed(1), style: hued(p.k.group), "data-k": p.i, onclick: () => choose(p.i) },
      s("title", {}, `${p.k.name}: ${digits(p.y)} GFLOP/s at ${digits(p.x)} operations a byte`)));
  }
  host.replaceChildren(s("svg", { width: W, height: H, role: "img", "aria-label": `Roofline of ${plural(points.length, "kernel")}; their figures are in the kernel's panel` }, ...parts));
  $("roof-hint").textContent = `Ceilings ${roofs.name}; a circle's area grows with the kernel's ${view.measured ? "measured" : "predicted"} time.`;
}

/** Buffers of the arena: when each lives, and where. */
function memory(view, choose) {
  const host = $("memory"), v = view.variant, W = room(host), H = 320, n = v.kernels.length;
  const pad = { l: 64, r: 10, t: 12, b: 40 };
  if (!v.buffers.length || !v.arena) {
    host.replaceChildren(h("p", { class: "empty" }, "No temporaries: every result goes straight to its caller."));
    $("memory-hint").textContent = "";
    return;
  }
  const X = (i) => pad.l + (i / n) * (W - pad.l - pad.r), Y = (b) => H - pad.b - (b / v.arena) * (H - pad.t - pad.b);
  const parts = [s("rect", { class: "now", id: "memory-now", x: 0, y: pad.t, width: (X(1) - X(0)).toFixed(1), height: H - pad.t - pad.b })];
  for (let q = 0; q <= 4; q++) {
    const at = (v.arena * q) / 4;
    parts.push(s("line", { class: "grid", x1: pad.l, x2: W - pad.r, y1: Y(at), y2: Y(at) }), axis(pad.l - 6, Y(at) + 4, bytes(Math.round(at)), "end"));
  }
  const step = Math.ceil(n / Math.max(1, Math.floor((W - pad.l) / 26)));
  for (let i = 0; i < n; i += step) parts.push(axis((X(i) + X(i + 1)) / 2, H - pad.b + 16, String(i + 1)));
  parts.push(axis((W + pad.l) / 2, H - 6, "kernel, in the order of launches"));
  v.buffers.forEach(([at, size, first, last], id) => {
    if (!size || first > last) return;
    const writer = view.kernels.findIndex((k) => k.writes.includes(id)), k = view.kernels[writer];
    const w = X(last + 1) - X(first), height = Math.max(2, Y(at) - Y(at + size));
    parts.push(s("g", { class: "buffer", style: hued(k && k.group), "data-b": id, onclick: () => writer >= 0 && choose(writer) },
      s("rect", { x: (X(first) + 1).toFixed(1), y: Y(at + size).toFixed(1), width: Math.max(1, w - 2).toFixed(1), height: height.toFixed(1), rx: 3 }),
      w > 60 && height > 14 ? s("text", { x: (X(first) + w / 2).toFixed(1), y: (Y(at) - height / 2 + 4).toFixed(1), "text-anchor": "middle" }, bytes(size)) : null,
      s("title", {}, `buffer ${id}: ${bytes(size)} at ${count(at)}\nfrom ${view.kernels[first].name} to ${view.kernels[last].name}`)));
  });
  const peak = Y(v.peak);
  parts.push(s("line", { class: "roof dashed", x1: pad.l, x2: W - pad.r, y1: peak, y2: peak }));
  host.replaceChildren(s("svg", { width: W, height: H, role: "img", "aria-label": `${plural(v.buffers.length, "buffer")} in an arena of ${bytes(v.arena)}` }, ...parts));
  view.memoryX = X;
  $("memory-hint").textContent = `An arena of ${bytes(v.arena)} holds ${plural(v.buffers.length, "temporary", "temporaries")} of ${bytes(v.buffers.reduce((t, b) => t + b[1], 0))} together; at most ${bytes(v.peak)} (dashed) are alive at once.`;
}

/** Rounds across, rules down: how often each changed the graph, over its size. */
function growth(view) {
  const f = view.fn, rounds = f.rounds, names = f.fired.map(([name]) => name);
  const fired = (round, name) => (rounds[round].fired.find(([n]) => n === name) || [0, 0])[1];
  const most = Math.max(1, ...rounds.flatMap((r) => r.fired.map(([, n]) => n)));
  const tallest = Math.max(1, ...rounds.map((r) => r.nodes));
  const bar = (value, kind) => h("i", { class: `bar ${kind}`, style: `height:${((value / tallest) * 56).toFixed(1)}px` });
  $("growth").replaceChildren(h("table", { class: "growth" },
    h("thead", {},
      h("tr", { class: "sizes" }, h("th", { scope: "row" }, "e-nodes", h("br"), h("small", {}, "e-classes")),
        ...rounds.map((r) => h("td", {}, h("span", { class: "bars", "aria-hidden": "true" }, bar(r.nodes, "nodes"), bar(r.classes, "classes")), h("b", {}, count(r.nodes)), h("small", {}, count(r.classes)))), h("td")),
      h("tr", {}, h("th", { scope: "col" }, "rule"), ...rounds.map((_, i) => h("th", { scope: "col" }, String(i + 1))), h("th", { scope: "col" }, "all"))),
    h("tbody", {}, ...names.map((name) => h("tr", {}, h("th", { scope: "row" }, name),
      ...rounds.map((_, i) => { const n = fired(i, name); return h("td", { class: n ? "heat" : null, style: n ? `--n:${(0.25 + 0.75 * (n / most)).toFixed(2)}` : null }, n ? String(n) : ""); }),
      h("td", {}, String(f.fired.find(([n]) => n === name)[1])))))));
  const before = f.source.nodes.filter(([, op]) => !["rows", "weight", "cache"].includes(op)).length;
  $("growth-hint").textContent = `${f.name}: ${plural(before, "op")} became ${plural(f.nodes, "e-node")} in ${plural(f.classes, "class", "classes")} after ${plural(rounds.length, "round")}, ${time(f.us * 1000)}: ${f.stop}. Cells count how often a rule changed the graph.`;
}

/** The time that would be lost without each rule: in this function, in the model, measured. */
function rules(view) {
  const { data, f, v } = view;
  const model = (of) => data.functions.reduce((t, fn, i) => t + data.calls[i] * of(fn, i), 0);
  const whole = model((fn) => fn.variants[v].objective);
  const measured = new Map(((data.measured && data.measured.ablation) || []).map((a) => [a.rule, view.variant.rows === 1 ? a.decode : v === view.fn.variants.length - 1 ? a.prefill : null]));
  const known = new Map(data.rules.map((r) => [r.name, r]));
  const rows = data.ablation.map((a) => ({
    rule: a.rule,
    about: known.get(a.rule),
    here: a.ns[f][v] / view.variant.objective - 1,
    all: model((_, i) => a.ns[i][v]) / whole - 1,
    fired: (view.fn.fired.find(([n]) => n === a.rule) || [0, 0])[1],
    measured: measured.get(a.rule),
  }));
  rows.sort((a, b) => b.all - a.all || b.here - a.here || b.fired - a.fired);
  const largest = Math.max(0.01, ...rows.map((r) => Math.log1p(Math.max(0, r.all, r.here))));
  const share = (x) => {
    const text = Math.abs(x) < 5e-5 ? "0" : `${x > 0 ? "+" : "−"}${digits(Math.abs(x) * 100)}%`;
    return h("td", { class: `gain ${x < -5e-5 ? "less" : ""}` }, h("i", { style: `width:${((Math.log1p(Math.abs(x)) / largest) * 100).toFixed(1)}%`, "aria-hidden": "true" }), h("span", {}, text));
  };
  const times = (x) => (x === undefined || x === null ? h("td", { class: "gain" }, "–") : share(x - 1));
  const several = data.functions.length > 1;
  $("rules").replaceChildren(h("table", { class: "rules" },
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "without"), h("th", { scope: "col", title: "how often it changed this function's e-graph" }, "fired"), h("th", { scope: "col" }, view.fn.name), several ? h("th", { scope: "col" }, "model") : null, measured.size ? h("th", { scope: "col" }, "measured") : null)),
    h("tbody", {}, ...rows.map((r) => h("tr", { class: r.fired ? null : "idle" },
      h("th", { scope: "row" }, h("details", { ontoggle: (e) => { if (e.target.open && e.target.childElementCount === 1) e.target.append(ruleText(r.about) || ""); } }, h("summary", {}, r.rule, h("small", {}, ` ${r.about ? r.about.class : ""}`)))),
      h("td", {}, r.fired ? String(r.fired) : "–"), share(r.here), several ? share(r.all) : null, measured.size ? times(r.measured) : null)))));
  $("rules-hint").textContent = `Predicted time with one rule disabled, calls of ${plural(view.variant.rows, "row")}${measured.size ? "; measured beside it" : ""}. Where a rule buys nothing, others reach as cheap a form.`;
}

/** A rule in words, and as a rule file has it. */
function ruleText(rule) {
  if (!rule) return null;
  return h("div", { class: "rule" }, h("p", {}, rule.algebra), h("pre", {}, rule.text.trimEnd()));
}
