// A graph that can be looked at: drawn once, then panned, zoomed, walked by arrow keys, its groups lit.
//
// A click costs what it changes: nodes out of sight are made later, lighting touches the nodes of two groups, and the page is
// not measured.

const NODE_FONT = "600 12px system-ui, sans-serif", SMALL_FONT = "10.5px ui-monospace, monospace";

/** Drawings by graph: each is laid out once. */
const drawings = new WeakMap();

/** The nodes of a graph to draw, and their places. */
function drawing(graph) {
  if (!drawings.has(graph)) {
    const nodes = drawable(graph);
    drawings.set(graph, { nodes, plan: layout(nodes) });
  }
  return drawings.get(graph);
}

/** Lays a graph out in small steps, unless somebody needed it before. */
function* preparing(graph) {
  if (drawings.has(graph)) return;
  const nodes = drawable(graph), plan = yield* planning(nodes);
  if (!drawings.has(graph)) drawings.set(graph, { nodes, plan });
}

/** Rows of data as nodes to draw. */
function drawable(graph) {
  const outputs = new Map();
  for (const [name, id] of graph.outputs) outputs.set(id, [...(outputs.get(id) || []), name]);
  return graph.nodes.map(([id, op, operands, attributes, type, text]) => {
    const input = op === "rows" || op === "weight" || op === "cache";
    const name = input ? text.replace(/\.weight$/, "") : op;
    const long = attributes.length > 26 ? attributes.slice(0, 25) + "…" : attributes;
    const sub = input ? type : long ? long : type;
    const w = Math.max(46, width(name, NODE_FONT), width(sub, SMALL_FONT)) + 18;
    return { id, op, in: operands, name, sub, type, text, input: input ? op : null, outputs: outputs.get(id), w, h: 36 };
  });
}

/** An edge from one point to the next, leaving and arriving upright. */
function curve(points) {
  let d = `M${points[0][0].toFixed(1)} ${points[0][1].toFixed(1)}`;
  for (let i = 1; i < points.length; i++) {
    const [x0, y0] = points[i - 1], [x1, y1] = points[i], middle = (y0 + y1) / 2;
    d += `C${x0.toFixed(1)} ${middle.toFixed(1)} ${x1.toFixed(1)} ${middle.toFixed(1)} ${x1.toFixed(1)} ${y1.toFixed(1)}`;
  }
  return d;
}

/** As many nodes as are made at a time while nothing else is to do. */
const BATCH = 24;
/** How far beyond what is seen nodes are made, in the graph's units. */
const MARGIN = 120;

/** The box around nodes' places. */
function bounds(spots) {
  return {
    x0: Math.min(...spots.map((p) => p.x - p.w / 2)), x1: Math.max(...spots.map((p) => p.x + p.w / 2)),
    y0: Math.min(...spots.map((p) => p.y - p.h / 2)), y1: Math.max(...spots.map((p) => p.y + p.h / 2)),
  };
}

class GraphView {
  /** `pick(node)` is called when a node is chosen. */
  constructor(host, label, pick) {
    this.pick = pick;
    // What is lit stands in layers of its own: dimming the others is one change for them all, and lighting moves the few.
    const layers = (name) => ({ edges: s("g", { class: `${name} edges` }), nodes: s("g", { class: `${name} nodes` }) });
    this.rest = layers("rest");
    this.lit = layers("chosen");
    // Moved as a whole by its style: neither the text in it nor the page is laid out again.
    this.svg = s("svg", { class: "world" }, this.rest.edges, this.lit.edges, this.rest.nodes, this.lit.nodes);
    this.canvas = h("div", { class: "canvas", tabindex: 0, role: "application", "aria-label": `${label}: arrow keys walk along edges, Enter selects` }, this.svg);
    this.live = h("p", { class: "read", "aria-live": "polite" });
    const button = (text, label, act) => h("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
    host.replaceChildren(this.canvas, this.live, h("div", { class: "zoom" },
      button("+", "Zoom in", () => this.zoom(1.4)), button("−", "Zoom out", () => this.zoom(1 / 1.4)), button("⤢", "Fit the graph", () => this.fit(true))));
    this.listen();
  }

  /** Reads the size on the page: once, and again when that may have changed. */
  measure() {
    const { width, height } = this.canvas.getBoundingClientRect();
    this.box = { width, height };
  }

  /**
   * Draws `nodes` as planned (see `drawing`); `groups` gives the groups of a node's id. Nodes in sight are made at once, the
   * others when they come into sight or when there is nothing else to do; `whole` is settled when all are there.
   * The whole graph is shown with `whole`, else as much as can be read, around the nodes of `group`.
   */
  draw({ nodes, plan }, groups, group, whole) {
    if (!this.box) this.measure();
    this.groups = groups;
    this.leave();
    if (nodes === this.all) {
      for (const [id, g] of this.drawn) this.dress(this.nodes.get(id), g);
    } else {
      this.all = nodes;
      this.plan = plan;
      this.svg.setAttribute("width", Math.ceil(plan.width) + 2);
      this.svg.setAttribute("height", Math.ceil(plan.height) + 2);
      this.nodes = new Map(nodes.map((n) => [n.id, n]));
      this.users = new Map(nodes.map((n) => [n.id, []]));
      for (const n of nodes) for (const o of new Set(n.in)) if (this.users.has(o)) this.users.get(o).push(n.id);
      this.edges = plan.edges.map((e) => {
        const xs = e.points.map((p) => p[0]);
        return { ...e, left: Math.min(...xs), right: Math.max(...xs), top: e.points[0][1], bottom: e.points.at(-1)[1] };
      });
      this.on = new Set();
      this.drawn = new Map();
      for (const layer of [this.rest, this.lit]) { layer.edges.replaceChildren(); layer.nodes.replaceChildren(); }
      this.unmade = new Set(nodes.map((n) => n.id));
      this.undrawn = new Set(this.edges);
    }
    this.light(group);
    if (whole) {
      this.make([...this.unmade], [...this.undrawn]);
      this.fit(true);
    } else this.fit(false, group);
    this.whole = this.finish();
  }

  /** Makes what `view` shows and was not made yet. */
  reveal(view) {
    if (!this.unmade.size && !this.undrawn.size) return;
    const left = -view.x / view.k - MARGIN, right = (this.box.width - view.x) / view.k + MARGIN;
    const top = -view.y / view.k - MARGIN, bottom = (this.box.height - view.y) / view.k + MARGIN;
    const seen = [...this.unmade].filter((id) => {
      const p = this.plan.at.get(id);
      return p.x + p.w / 2 > left && p.x - p.w / 2 < right && p.y + p.h / 2 > top && p.y - p.h / 2 < bottom;
    });
    this.make(seen, [...this.undrawn].filter((e) => e.right > left && e.left < right && e.bottom > top && e.top < bottom));
  }

  make(ids, edges) {
    for (const [of, list] of [["nodes", ids], ["edges", edges]]) {
      const fresh = { rest: [], lit: [] };
      for (const one of list) {
        if (of === "nodes") {
          this.unmade.delete(one);
          this.drawn.set(one, this.node(this.nodes.get(one)));
          fresh[this.on.has(one) ? "lit" : "rest"].push(this.drawn.get(one));
        } else {
          this.undrawn.delete(one);
          one.drawn = s("path", { class: this.on.has(one.to) ? "edge on" : "edge", d: curve(one.points) });
          fresh[this.on.has(one.to) ? "lit" : "rest"].push(one.drawn);
        }
      }
      for (const layer of ["rest", "lit"]) if (fresh[layer].length) this[layer][of].append(...fresh[layer]);
    }
  }

  /** Makes what is out of sight, a few at a time. */
  finish() {
    const all = this.all;
    return new Promise((done) => {
      const next = () => {
        if (this.all !== all || (!this.unmade.size && !this.undrawn.size)) return done();
        this.make([...this.unmade].slice(0, BATCH), [...this.undrawn].slice(0, 2 * BATCH));
        idle(next);
      };
      idle(next);
    });
  }

  node(n) {
    const p = this.plan.at.get(n.id), x = (p.w / 2).toFixed(1);
    const g = s("g", { transform: `translate(${(p.x - p.w / 2).toFixed(1)} ${(p.y - p.h / 2).toFixed(1)})`, "data-id": n.id },
      s("rect", { width: p.w.toFixed(1), height: p.h, rx: n.input ? 18 : 7 }),
      s("text", { x, y: 15, class: "name" }, n.name),
      s("text", { x, y: 29, class: "sub" }, n.outputs && !n.input ? `→ ${n.outputs.join(", ")}` : n.sub));
    this.dress(n, g);
    return g;
  }

  /** The looks of a node by its groups. */
  dress(n, g) {
    const of = this.groups(n.id);
    const classes = ["node", n.input && `input ${n.input}`, of.length ? "of" : "plain", of.length > 1 && "shared", n.outputs && "result", n.mark, this.on.has(n.id) && "on"].filter(Boolean).join(" ");
    const style = hued(of[0]);
    if (g.getAttribute("class") !== classes) g.setAttribute("class", classes);
    if (g.getAttribute("style") !== style) style ? g.setAttribute("style", style) : g.removeAttribute("style");
  }

  /** What is told of a node when the pointer rests on it. */
  title(g) {
    if (g.querySelector("title")) return;
    const n = this.nodes.get(Number(g.dataset.id));
    g.append(s("title", {}, `${n.input ? "%" + n.text : n.text}\n${n.type}${this.groups(n.id).length > 1 ? "\ncomputed by several kernels" : ""}`));
  }

  of(group) {
    return group === null || group === undefined ? [] : this.all.filter((n) => this.groups(n.id).includes(group)).map((n) => n.id);
  }

  /** Lights the nodes of a group, or all of them. Only what changes is touched. */
  light(group) {
    const now = new Set(this.of(group)), was = this.on;
    this.on = now;
    this.svg.classList.toggle("lit", now.size > 0);
    for (const id of was) if (!now.has(id)) this.settle(id);
    for (const id of now) if (!was.has(id)) this.settle(id);
    for (const e of this.edges) {
      const on = now.has(e.to);
      if (!e.drawn || on === was.has(e.to)) continue;
      e.drawn.classList.toggle("on", on);
      (on ? this.lit : this.rest).edges.append(e.drawn);
    }
  }

  /** Puts a node into the layer that it belongs to. */
  settle(id) {
    const g = this.drawn.get(id);
    if (!g) return;
    g.classList.toggle("on", this.on.has(id));
    const layer = this.on.has(id) || this.focus === id ? this.lit.nodes : this.rest.nodes;
    if (g.parentNode !== layer) layer.append(g);
  }

  /** Brings the nodes of a group into sight, if they are not, or are too small to read. */
  show(group, animate) {
    const spots = this.of(group).map((id) => this.plan.at.get(id));
    if (spots.length) this.frame(spots, animate);
  }

  frame(spots, animate) {
    const { box } = this;
    if (!box.width) return;
    const { x0, x1, y0, y1 } = bounds(spots);
    const k = Math.min(1.1, Math.max(0.16, Math.min((box.width - 60) / (x1 - x0), (box.height - 60) / (y1 - y0))));
    this.move({ k, x: box.width / 2 - ((x0 + x1) / 2) * k, y: box.height / 2 - ((y0 + y1) / 2) * k }, animate);
  }

  /** The whole graph; or, of a large one, what can be read: its top, or the part around a group. */
  fit(whole, group) {
    const { box, plan } = this;
    if (!box || !box.width || !plan) return;
    const wide = (box.width - 24) / plan.width, tall = (box.height - 24) / plan.height, all = Math.min(wide, tall);
    const legible = box.width < 480 ? 0.7 : Math.min(wide, 0.5);
    const k = Math.min(1, whole ? all : Math.max(all, legible));
    const spots = whole ? [] : this.of(group).map((id) => plan.at.get(id)), at = spots.length ? bounds(spots) : null;
    // What does not fit is cut where the group is in sight.
    const start = (room, size, low, high, other) => {
      if (size * k <= room - 24 || !at) return other;
      return Math.min(12, Math.max(room - 12 - size * k, room / 2 - ((low + high) / 2) * k));
    };
    const x = (box.width - plan.width * k) / 2, y = Math.max(12, (box.height - plan.height * k) / 2);
    this.move({ k, x: start(box.width, plan.width, at?.x0, at?.x1, x), y: start(box.height, plan.height, at?.y0, at?.y1, y) }, whole);
  }

  zoom(by, x, y) {
    const { box, view: v } = this;
    const cx = x === undefined ? box.width / 2 : x, cy = y === undefined ? box.height / 2 : y;
    const k = Math.min(4, Math.max(0.05, v.k * by));
    this.move({ k, x: cx - ((cx - v.x) * k) / v.k, y: cy - ((cy - v.y) * k) / v.k }, false);
  }

  move(view, animate) {
    cancelAnimationFrame(this.frameId);
    this.svg.classList.toggle("moving", !!this.dragged);
    const from = this.view;
    const set = (v) => {
      this.view = v;
      this.reveal(v);
      this.svg.style.transform = `translate(${v.x.toFixed(2)}px,${v.y.toFixed(2)}px) scale(${v.k.toFixed(4)})`;
    };
    if (!animate || !from || matchMedia("(prefers-reduced-motion: reduce)").matches) return set(view);
    const start = performance.now();
    this.svg.classList.add("moving");
    const step = (now) => {
      const t = Math.min(1, Math.max(0, (now - start) / 220)), e = 1 - (1 - t) ** 3;
      set({ k: from.k + (view.k - from.k) * e, x: from.x + (view.x - from.x) * e, y: from.y + (view.y - from.y) * e });
      if (t < 1) this.frameId = requestAnimationFrame(step);
      else this.svg.classList.remove("moving");
    };
    this.frameId = requestAnimationFrame(step);
  }

  /** Takes the walker off the node that it is on. */
  leave() {
    const id = this.focus, g = this.drawn && this.drawn.get(id);
    this.focus = null;
    this.live.textContent = "";
    if (!g) return;
    g.classList.remove("focus");
    this.settle(id);
  }

  /** Puts the walker on a node. */
  walkTo(id) {
    this.leave();
    if (this.unmade.has(id)) this.make([id], []);
    this.focus = id;
    this.drawn.get(id).classList.add("focus");
    this.settle(id);
    const n = this.nodes.get(id), p = this.plan.at.get(id), { box, view: v } = this;
    this.live.textContent = `${n.name} ${n.input ? "" : n.text}: ${n.type}`;
    const x = p.x * v.k + v.x, y = p.y * v.k + v.y;
    if (v.k < 0.5 || x < 60 || y < 30 || x > box.width - 60 || y > box.height - 30) {
      const k = Math.max(v.k, 0.8);
      this.move({ k, x: box.width / 2 - p.x * k, y: box.height / 2 - p.y * k }, true);
    }
  }

  listen() {
    const { canvas } = this, fingers = new Map();
    let moved = 0;
    canvas.addEventListener("pointerdown", (e) => { fingers.set(e.pointerId, [e.clientX, e.clientY]); moved = 0; });
    canvas.addEventListener("pointermove", (e) => {
      const last = fingers.get(e.pointerId);
      if (!last) return;
      const others = [...fingers].filter(([id]) => id !== e.pointerId).map(([, p]) => p);
      const box = canvas.getBoundingClientRect();
      if (others.length) {
        const far = (p) => Math.hypot(p[0] - others[0][0], p[1] - others[0][1]) || 1;
        this.zoom(far([e.clientX, e.clientY]) / far(last), (e.clientX + others[0][0]) / 2 - box.left, (e.clientY + others[0][1]) / 2 - box.top);
      }
      const share = others.length ? 0.5 : 1, dx = (e.clientX - last[0]) * share, dy = (e.clientY - last[1]) * share;
      moved += Math.abs(dx) + Math.abs(dy);
      if (moved > 4 && !canvas.hasPointerCapture(e.pointerId)) { canvas.setPointerCapture(e.pointerId); this.dragged = true; }
      this.move({ ...this.view, x: this.view.x + dx, y: this.view.y + dy }, false);
      fingers.set(e.pointerId, [e.clientX, e.clientY]);
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (e) => { fingers.delete(e.pointerId); this.dragged = false; this.svg.classList.remove("moving"); });
    canvas.addEventListener("click", (e) => {
      const g = moved <= 4 && e.target.closest(".node");
      if (!g) return;
      const id = Number(g.dataset.id);
      this.walkTo(id);
      this.pick(this.nodes.get(id));
    });
    canvas.addEventListener("pointerover", (e) => { const g = e.target.closest(".node"); if (g) this.title(g); });
    canvas.addEventListener("wheel", (e) => {
      // Ctrl (a pinch on a touchpad) or a graph that has the focus: the page scrolls otherwise.
      if (!e.ctrlKey && document.activeElement !== canvas) return;
      e.preventDefault();
      const box = canvas.getBoundingClientRect();
      this.zoom(Math.exp(-e.deltaY * 0.0016), e.clientX - box.left, e.clientY - box.top);
    }, { passive: false });
    canvas.addEventListener("keydown", (e) => this.key(e));
  }

  key(e) {
    const arrows = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };
    const way = arrows[e.key];
    if (way && e.shiftKey) this.move({ ...this.view, x: this.view.x - way[0] * 60, y: this.view.y - way[1] * 60 }, false);
    else if (way) this.walk(way);
    else if (e.key === "+" || e.key === "=") this.zoom(1.3);
    else if (e.key === "-") this.zoom(1 / 1.3);
    else if (e.key === "0") this.fit(true);
    else if ((e.key === "Enter" || e.key === " ") && this.focus !== null) this.pick(this.nodes.get(this.focus));
    else return;
    e.preventDefault();
  }

  walk([dx, dy]) {
    if (this.focus === null) return this.walkTo([...this.nodes.keys()].at(-1));
    const here = this.plan.at.get(this.focus), node = this.nodes.get(this.focus);
    const at = (id) => this.plan.at.get(id);
    let next;
    if (dy) {
      next = (dy < 0 ? [...new Set(node.in)].filter((o) => this.nodes.has(o)) : this.users.get(this.focus)).slice();
      next.sort((a, b) => Math.abs(at(a).y - here.y) - Math.abs(at(b).y - here.y) || Math.abs(at(a).x - here.x) - Math.abs(at(b).x - here.x));
    } else {
      next = [...this.nodes.keys()].filter((id) => (at(id).x - here.x) * dx > 1 && Math.abs(at(id).layer - here.layer) < 2);
      next.sort((a, b) => Math.abs(at(a).x - here.x) + 3 * Math.abs(at(a).y - here.y) - (Math.abs(at(b).x - here.x) + 3 * Math.abs(at(b).y - here.y)));
    }
    if (next.length) this.walkTo(next[0]);
  }
}
