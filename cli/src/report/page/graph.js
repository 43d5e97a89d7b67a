// A graph that can be looked at: drawn once, then panned, zoomed, walked by arrow keys, its groups lit.

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

class GraphView {
  /** `pick(node)` is called when a node is chosen. */
  constructor(host, label, pick) {
    this.pick = pick;
    this.canvas = s("g");
    this.svg = s("svg", { class: "canvas", tabindex: 0, role: "application", "aria-label": `${label}: arrow keys walk along edges, Enter selects` }, this.canvas);
    this.live = h("p", { class: "read", "aria-live": "polite" });
    const button = (text, label, act) => h("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
    host.replaceChildren(this.svg, this.live, h("div", { class: "zoom" },
      button("+", "Zoom in", () => this.zoom(1.4)), button("−", "Zoom out", () => this.zoom(1 / 1.4)), button("⤢", "Fit the graph", () => this.fit(true))));
    this.listen();
  }

  /** Draws `nodes` as planned (see `drawing`); `groups` gives the groups of a node's id. */
  draw({ nodes, plan }, groups) {
    this.nodes = new Map(nodes.map((n) => [n.id, n]));
    this.groups = groups;
    this.plan = plan;
    this.users = new Map(nodes.map((n) => [n.id, []]));
    for (const n of nodes) for (const o of new Set(n.in)) if (this.users.has(o)) this.users.get(o).push(n.id);
    this.focus = null;
    this.edges = this.plan.edges.map((e) => ({ ...e, drawn: s("path", { class: "edge", d: curve(e.points) }) }));
    this.drawn = new Map();
    for (const n of nodes) {
      const p = this.plan.at.get(n.id), of = groups(n.id);
      const classes = ["node", n.input && `input ${n.input}`, of.length ? "of" : "plain", of.length > 1 && "shared", n.outputs && "result", n.mark].filter(Boolean);
      this.drawn.set(n.id, s("g", { class: classes.join(" "), transform: `translate(${(p.x - p.w / 2).toFixed(1)} ${(p.y - p.h / 2).toFixed(1)})`, style: hued(of[0]), "data-id": n.id },
        s("rect", { width: p.w.toFixed(1), height: p.h, rx: n.input ? 18 : 7, style: of.length > 1 ? `--h2:${hue(of[1])}` : null }),
        s("text", { x: (p.w / 2).toFixed(1), y: 15, class: "name" }, n.name),
        s("text", { x: (p.w / 2).toFixed(1), y: 29, class: "sub" }, n.outputs && !n.input ? `→ ${n.outputs.join(", ")}` : n.sub),
        s("title", {}, `${n.input ? "%" + n.text : n.text}\n${n.type}${of.length > 1 ? "\ncomputed by several kernels" : ""}`)));
    }
    this.canvas.replaceChildren(s("g", {}, ...this.edges.map((e) => e.drawn)), s("g", {}, ...this.drawn.values()));
    this.live.textContent = "";
    this.fit(false);
  }

  /** Lights the nodes of a group, or all of them. */
  light(group) {
    const on = (id) => this.groups(id).includes(group);
    const any = group !== null && [...this.drawn.keys()].some(on);
    this.svg.classList.toggle("lit", any);
    for (const [id, g] of this.drawn) g.classList.toggle("on", any && on(id));
    for (const e of this.edges) e.drawn.classList.toggle("on", any && on(e.to));
  }

  /** Brings the nodes of a group into sight, if they are not, or are too small to read. */
  show(group, animate) {
    const spots = [...this.drawn.keys()].filter((id) => this.groups(id).includes(group)).map((id) => this.plan.at.get(id));
    if (spots.length) this.frame(spots, animate);
  }

  frame(spots, animate) {
    const box = this.svg.getBoundingClientRect();
    if (!box.width) return;
    const x0 = Math.min(...spots.map((p) => p.x - p.w / 2)), x1 = Math.max(...spots.map((p) => p.x + p.w / 2));
    const y0 = Math.min(...spots.map((p) => p.y - p.h / 2)), y1 = Math.max(...spots.map((p) => p.y + p.h / 2));
    const k = Math.min(1.1, Math.max(0.16, Math.min((box.width - 60) / (x1 - x0), (box.height - 60) / (y1 - y0))));
    this.move({ k, x: box.width / 2 - ((x0 + x1) / 2) * k, y: box.height / 2 - ((y0 + y1) / 2) * k }, animate);
  }

  /** The whole graph; of a tall one the top, readable. */
  fit(animate) {
    const box = this.svg.getBoundingClientRect();
    if (!box.width || !this.plan) return;
    const wide = (box.width - 24) / this.plan.width, tall = (box.height - 24) / this.plan.height;
    const k = Math.min(1, animate ? Math.min(wide, tall) : Math.max(Math.min(wide, tall), Math.min(wide, 0.5)));
    this.move({ k, x: (box.width - this.plan.width * k) / 2, y: Math.max(12, (box.height - this.plan.height * k) / 2) }, animate);
  }

  zoom(by, x, y) {
    const box = this.svg.getBoundingClientRect(), v = this.view;
    const cx = x === undefined ? box.width / 2 : x, cy = y === undefined ? box.height / 2 : y;
    const k = Math.min(4, Math.max(0.05, v.k * by));
    this.move({ k, x: cx - ((cx - v.x) * k) / v.k, y: cy - ((cy - v.y) * k) / v.k }, false);
  }

  move(view, animate) {
    cancelAnimationFrame(this.frameId);
    const from = this.view;
    const set = (v) => {
      this.view = v;
      this.canvas.setAttribute("transform", `translate(${v.x.toFixed(2)} ${v.y.toFixed(2)}) scale(${v.k.toFixed(4)})`);
    };
    if (!animate || !from || matchMedia("(prefers-reduced-motion: reduce)").matches) return set(view);
    const start = performance.now();
    const step = (now) => {
      const t = Math.min(1, Math.max(0, (now - start) / 220)), e = 1 - (1 - t) ** 3;
      set({ k: from.k + (view.k - from.k) * e, x: from.x + (view.x - from.x) * e, y: from.y + (view.y - from.y) * e });
      if (t < 1) this.frameId = requestAnimationFrame(step);
    };
    this.frameId = requestAnimationFrame(step);
  }

  /** Puts the walker on a node. */
  walkTo(id) {
    if (this.focus !== null) this.drawn.get(this.focus).classList.remove("focus");
    this.focus = id;
    this.drawn.get(id).classList.add("focus");
    const n = this.nodes.get(id), p = this.plan.at.get(id), box = this.svg.getBoundingClientRect(), v = this.view;
    this.live.textContent = `${n.name} ${n.input ? "" : n.text}: ${n.type}`;
    const x = p.x * v.k + v.x, y = p.y * v.k + v.y;
    if (v.k < 0.5 || x < 60 || y < 30 || x > box.width - 60 || y > box.height - 30) {
      const k = Math.max(v.k, 0.8);
      this.move({ k, x: box.width / 2 - p.x * k, y: box.height / 2 - p.y * k }, true);
    }
  }

  listen() {
    const svg = this.svg, fingers = new Map();
    let moved = 0;
    svg.addEventListener("pointerdown", (e) => { fingers.set(e.pointerId, [e.clientX, e.clientY]); moved = 0; });
    svg.addEventListener("pointermove", (e) => {
      const last = fingers.get(e.pointerId);
      if (!last) return;
      const others = [...fingers].filter(([id]) => id !== e.pointerId).map(([, p]) => p);
      const box = svg.getBoundingClientRect();
      if (others.length) {
        const far = (p) => Math.hypot(p[0] - others[0][0], p[1] - others[0][1]) || 1;
        this.zoom(far([e.clientX, e.clientY]) / far(last), (e.clientX + others[0][0]) / 2 - box.left, (e.clientY + others[0][1]) / 2 - box.top);
      }
      const share = others.length ? 0.5 : 1, dx = (e.clientX - last[0]) * share, dy = (e.clientY - last[1]) * share;
      moved += Math.abs(dx) + Math.abs(dy);
      if (moved > 4 && !svg.hasPointerCapture(e.pointerId)) svg.setPointerCapture(e.pointerId);
      this.move({ ...this.view, x: this.view.x + dx, y: this.view.y + dy }, false);
      fingers.set(e.pointerId, [e.clientX, e.clientY]);
    });
    for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, (e) => fingers.delete(e.pointerId));
    svg.addEventListener("click", (e) => {
      const g = moved <= 4 && e.target.closest(".node");
      if (!g) return;
      const id = Number(g.dataset.id);
      this.walkTo(id);
      this.pick(this.nodes.get(id));
    });
    svg.addEventListener("wheel", (e) => {
      // Ctrl (a pinch on a touchpad) or a graph that has the focus: the page scrolls otherwise.
      if (!e.ctrlKey && document.activeElement !== svg) return;
      e.preventDefault();
      const box = svg.getBoundingClientRect();
      this.zoom(Math.exp(-e.deltaY * 0.0016), e.clientX - box.left, e.clientY - box.top);
    }, { passive: false });
    svg.addEventListener("keydown", (e) => this.key(e));
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
