// The panel of one kernel: what it stands for, what it costs, how it came about, its code.

const TABS = [["overview", "Overview"], ["rewrites", "Rewrites"], ["clif", "CLIF"], ["asm", "Assembly"]];

class Panel {
  /** `listings` and `proofs` are promises of what variants refer to by index. */
  constructor(host, choose, listings, proofs) {
    this.host = host;
    this.choose = choose;
    this.listings = listings;
    this.proofs = proofs;
    this.tab = "overview";
  }

  show(view, at) {
    this.view = view;
    this.at = at;
    const k = view.kernels[at], n = view.kernels.length;
    if (!k) {
      this.host.replaceChildren(h("h2", {}, "No kernels"), h("p", { class: "hint" }, "This function only moves its inputs to its outputs."));
      return;
    }
    const tabs = TABS.filter(([key]) => (key === "rewrites" ? this.proof() : key === "overview" || k[key] !== null));
    if (!tabs.some(([key]) => key === this.tab)) this.tab = "overview";
    const bar = h("div", { role: "tablist", class: "tabs", "aria-label": "About the kernel" }, ...tabs.map(([key, label]) =>
      h("button", { type: "button", role: "tab", id: `tab-${key}`, "data-key": key, "aria-selected": String(key === this.tab), "aria-controls": "tab-body", tabindex: key === this.tab ? 0 : -1, onclick: () => { this.tab = key; this.show(this.view, this.at); } }, label)));
    roving(bar, "button");
    const body = h("div", { id: "tab-body", role: "tabpanel", "aria-labelledby": `tab-${this.tab}`, tabindex: 0 });
    const step = (by, label, text) => h("button", { type: "button", "aria-label": label, title: label, onclick: () => this.choose((at + by + n) % n) }, text);
    const focused = this.host.contains(document.activeElement) && document.activeElement;
    const again = focused && (focused.id || focused.getAttribute("aria-label"));
    this.host.replaceChildren(
      h("div", { class: "panelhead", style: hued(k.group) }, h("span", { class: "dot", "aria-hidden": "true" }), h("h2", {}, k.name), h("span", { class: "kind" }, k.kind), h("span", { class: "grow" }), h("small", {}, `${at + 1} of ${n}`), step(-1, "Previous kernel", "‹"), step(1, "Next kernel", "›")),
      bar, body);
    if (again) {
      const now = [...this.host.querySelectorAll("[id],[aria-label]")].find((e) => e.id === again || e.getAttribute("aria-label") === again);
      if (now) now.focus();
    }
    this[this.tab](body, k);
  }

  /** The index of the kernel's proof, if there is one. */
  proof() {
    const at = this.view.variant.proofs[this.view.kernels[this.at].group];
    return at === null || at === undefined ? null : { at };
  }

  overview(body, k) {
    const { view } = this, v = view.variant, cost = v.costs[k.group];
    const facts = [
      ["predicted", k.predictedNs ? time(k.predictedNs) : k.counted],
      view.measured ? ["measured", k.measuredNs ? `${time(k.measuredNs)}` : "not launched"] : null,
      view.measured && k.measuredNs && k.comparedNs ? ["predicted / measured", `${digits(k.comparedNs / view.groupMeasured(k.group))}, of the whole group at ${plural(view.measured.rows, "row")}, ${plural(view.measured.keys, "key")}`] : null,
      ["reaches", k.pointNs ? `${digits((k.memory_bytes + k.cache_bytes) / k.pointNs)} GB/s, ${digits(k.flops / k.pointNs)} GFLOP/s` : "–"],
      ["moves", `${bytes(Math.round(k.memory_bytes))} from memory, ${bytes(Math.round(k.cache_bytes))} in cache`],
      ["computes", `${scaled(k.flops, 1000, ["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP"])}${k.flops ? `, ${digits(k.flops / (k.memory_bytes + k.cache_bytes))} a byte` : ""}`],
      ["tiles", `${k.tiles} = ${count(k.tile_count)}`],
      ["scratch", `${bytes(k.scratch)} a thread`],
      ["code", bytes(k.code)],
    ].filter(Boolean);
    const others = view.kernels.filter((o) => o.group === k.group && o !== k);
    body.replaceChildren(
      h("pre", { class: "node" }, k.node),
      others.length ? h("p", { class: "hint" }, "With ", ...others.flatMap((o, i) => [i ? ", " : "", h("button", { type: "button", class: "link", onclick: () => this.choose(view.kernels.indexOf(o)) }, o.name)]), " it makes one fused node: source ops and prices below are of all of them.") : "",
      h("dl", { class: "facts" }, ...facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      this.sourceOps(k),
      this.prices(cost),
      this.alternatives(k),
      h("h3", {}, "Operands"),
      h("ul", { class: "operands" }, ...k.in.map((o) => h("li", {}, h("b", {}, "in"), h("code", {}, o))), ...k.out.map((o) => h("li", {}, h("b", {}, "out"), h("code", {}, o)))));
  }

  sourceOps(k) {
    const { view } = this;
    const ids = new Set(view.variant.source_groups.filter(([, groups]) => groups.includes(k.group)).map(([id]) => id));
    const nodes = view.fn.source.nodes.filter(([id]) => ids.has(id));
    const weights = new Map(view.fn.source.nodes.filter(([, op]) => op === "weight").map(([id, , , , , name]) => [id, name]));
    const read = [...new Set(nodes.flatMap(([, , operands]) => operands).filter((o) => weights.has(o)).map((o) => weights.get(o)))];
    return h("div", {},
      h("h3", {}, nodes.length ? `Stands for ${plural(nodes.length, "source op")}` : "Stands for no source op: rewriting brought it in"),
      read.length ? h("p", { class: "chips" }, ...read.map((w) => h("span", { class: "chip weight" }, w))) : "",
      nodes.length ? h("p", { class: "chips" }, ...nodes.map(([, op, , , type, text]) => h("span", { class: "chip", title: `${text}  ; ${type}` }, op))) : "");
  }

  prices(cost) {
    const m = this.view.data.machine;
    const rows = [
      ["memory", bytes(Math.round(cost.memory_bytes)), cost.memory_bytes / m.memory],
      ["cache", bytes(Math.round(cost.cache_bytes)), cost.cache_bytes / m.cache],
      ["arithmetic", `${scaled(cost.flops + cost.loose_flops, 1000, ["", "k", "M", "G", "T"])} FLOP${cost.transcendentals ? `, ${count(Math.round(cost.transcendentals))} exp, tanh, …` : ""}`, cost.computing],
      ["launches", digits(cost.launches), cost.launches * m.launch],
    ].filter(([, , ns]) => ns > 0);
    const most = Math.max(1, ...rows.map(([, , ns]) => ns));
    return h("div", {}, h("h3", {}, "What the cost model counts"),
      h("table", { class: "prices" }, h("tbody", {}, ...rows.map(([name, amount, ns]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, amount), h("td", { class: "gain" }, h("i", { style: `width:${((ns / most) * 100).toFixed(1)}%`, "aria-hidden": "true" }), h("span", {}, time(ns)))))),
        h("tfoot", {}, h("tr", {}, h("th", { scope: "row" }, "predicted"), h("td", {}, "longer of moving and computing, and launches"), h("td", {}, time(cost.ns))))));
  }

  /** What else would have computed it, and what the whole function would cost then. */
  alternatives(k) {
    const all = this.view.variant.alternatives[k.group] || [];
    if (!all.length) return "";
    const kernels = (sign, list) => list.map(([text, ns]) => h("li", {}, h("b", {}, sign), h("code", {}, text), h("small", {}, ` ${time(ns)}`)));
    return h("div", {}, h("h3", {}, "What it was chosen over"),
      ...all.map((a) => h("details", { class: "other" }, h("summary", {}, h("code", {}, a.text), h("span", { class: "extra" }, a.extra < 0.5 ? "same" : `+${time(a.extra)}`)),
        h("p", { class: "hint" }, `The function would take ${time(a.ns)} with it.`),
        h("ul", { class: "operands" }, ...kernels("+", a.added), ...kernels("−", a.saved)))));
  }

  async rewrites(body, k) {
    if (!this.all) body.replaceChildren(h("p", { class: "hint" }, "Opening the rewrites …"));
    this.all ||= await this.proofs;
    if (!body.isConnected) return;
    const { at } = this.proof();
    this.kept ||= new Map();
    if (!this.kept.has(at)) this.kept.set(at, { step: 0 });
    new Rewrites(body, this.all[at], k.group, this.kept.get(at));
  }

  async listing(body, at, label) {
    if (!this.texts) body.replaceChildren(h("p", { class: "hint" }, "Opening the listings …"));
    this.texts ||= await this.listings;
    if (!body.isConnected) return;
    const text = this.texts[at];
    const copy = h("button", { type: "button", class: "copy", onclick: async () => { try { await navigator.clipboard.writeText(text); copy.textContent = "Copied"; } catch { copy.textContent = "Press Ctrl+C"; getSelection().selectAllChildren(pre); } } }, "Copy");
    // In blocks, of which the browser lays out only those in sight.
    const all = text.split("\n"), blocks = [];
    for (let i = 0; i < all.length; i += 60) {
      const part = all.slice(i, i + 60);
      blocks.push(h("span", { class: "block", style: `contain-intrinsic-size:auto ${part.length * 16.7}px` }, part.join("\n") + "\n"));
    }
    const pre = h("pre", { class: "listing", tabindex: 0, role: "region", "aria-label": label }, ...blocks);
    body.replaceChildren(h("div", { class: "row" }, h("small", {}, `${plural(all.length, "line")}, ${bytes(text.length)}`), copy), pre);
  }
  clif(body, k) { return this.listing(body, k.clif, "Cranelift IR"); }
  asm(body, k) { return this.listing(body, k.asm, "Machine code"); }
}
