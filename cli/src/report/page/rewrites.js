// The rewriting of one kernel, replayed: the source's term, each rewrite by its rule, the kernel's term at the end.

/** Keys by which a node is known again in the next term: its whole subterm, or else its operator and how often it came before. */
function identities(nodes) {
  const whole = new Map(), seen = new Map();
  return new Map(nodes.map((n) => {
    const deep = `${n.name} ${n.sub}(${n.in.map((o) => whole.get(o)).join()})`;
    whole.set(n.id, deep.length > 200 ? `${deep.length}:${hash(deep)}` : deep);
    const flat = `${n.name} ${n.type}`;
    seen.set(flat, (seen.get(flat) || 0) + 1);
    return [n.id, [whole.get(n.id), `${flat} ${seen.get(flat)}`]];
  }));
}
function hash(text) {
  let value = 5381;
  for (let i = 0; i < text.length; i++) value = (value * 33 + text.charCodeAt(i)) | 0;
  return value;
}

class Rewrites {
  constructor(body, proof, group, kept) {
    this.proof = proof;
    this.kept = kept;
    this.group = group;
    const n = proof.steps.length;
    this.slider = h("input", { type: "range", min: 0, max: n, value: kept.step, "aria-label": "Rewrite", oninput: () => this.go(Number(this.slider.value)) });
    const button = (text, label, by) => h("button", { type: "button", "aria-label": label, title: label, onclick: () => this.go(this.kept.step + by) }, text);
    this.count = h("small", { class: "count" });
    this.play = h("button", { type: "button", class: "play", onclick: () => this.toggle() }, "▶ Replay");
    this.about = h("div", { class: "about", "aria-live": "polite" });
    const stage = h("div", { class: "stage" });
    this.list = h("ol", { class: "steps", start: 0 }, h("li", {}, h("button", { type: "button", onclick: () => this.go(0) }, "the source's ops")), ...proof.steps.map((step, i) => h("li", {}, h("button", { type: "button", onclick: () => this.go(i + 1) }, step.rule))));
    body.replaceChildren(h("div", { class: "player" }, button("‹", "Previous rewrite", -1), this.slider, button("›", "Next rewrite", 1), this.count, this.play), this.about, stage, proof.gap ? h("p", { class: "hint" }, proof.gap) : "", this.list);
    this.graph = new GraphView(stage, "The kernel's term", () => {});
    this.go(kept.step);
  }

  toggle() {
    if (this.timer) { clearInterval(this.timer); this.timer = null; this.play.textContent = "▶ Replay"; return; }
    this.play.textContent = "❚❚ Pause";
    if (this.kept.step === this.proof.steps.length) this.go(0);
    this.timer = setInterval(() => {
      if (!this.play.isConnected || this.kept.step >= this.proof.steps.length) return this.toggle();
      this.go(this.kept.step + 1);
    }, 1100);
  }

  go(at) {
    const { proof } = this, n = proof.steps.length;
    at = Math.min(n, Math.max(0, at));
    this.kept.step = at;
    this.slider.value = at;
    this.slider.setAttribute("aria-valuetext", at ? `${at} of ${n}: ${proof.steps[at - 1].rule}` : "the source's ops");
    this.count.textContent = `${at} of ${n}`;
    const step = at ? proof.steps[at - 1] : null, next = proof.steps[at];
    this.about.replaceChildren(...(step
      ? [h("p", {}, h("b", {}, step.rule), " ", h("span", { class: "chip" }, step.class), h("span", { class: "why" }, step.algebra)),
        h("pre", { class: "term" }, h("span", { class: "from" }, step.from), "\n", h("span", { class: "into" }, step.into)),
        h("details", {}, h("summary", {}, `What matched`), h("pre", { class: "term" }, [step.lhs, ...step.also.map(([v, p]) => `  ${v} also matches ${p}`), `  => ${step.rhs}`, ...step.bindings.map(([v, text]) => `  ${v} = ${text}`)].join("\n")))]
      : [h("p", {}, h("b", {}, "The source"), h("span", { class: "why" }, "as the model wrote it; what other kernels compute is an input")) ]));
    const { nodes, plan } = drawing(step ? step.graph : proof.start);
    const marked = nodes.map((node) => ({ ...node, mark: [step && node.id === step.to && "new", next && node.id === next.at && "next"].filter(Boolean).join(" ") }));
    const before = this.spots;
    const changed = step && step.to, last = !next && at === n ? proof.steps[n - 1]?.to : undefined;
    this.graph.draw({ nodes: marked, plan }, (id) => (step && id === changed || id === last ? [this.group] : []), null, true);
    const names = identities(marked);
    this.spots = new Map();
    for (const [id, [whole, flat]] of names) {
      const p = plan.at.get(id);
      this.spots.set(whole, p);
      if (!this.spots.has(flat)) this.spots.set(flat, p);
    }
    if (before && !matchMedia("(prefers-reduced-motion: reduce)").matches) this.morph(before, names, plan);
    [...this.list.querySelectorAll("button")].forEach((b, i) => (i === at ? b.setAttribute("aria-current", "step") : b.removeAttribute("aria-current")));
  }

  /** What was there before moves to its new place; what is new appears. What stays is left alone. */
  morph(before, names, plan) {
    const still = new Set();
    for (const [id, drawn] of this.graph.drawn) {
      const [whole, flat] = names.get(id), old = before.get(whole) || before.get(flat), p = plan.at.get(id);
      if (old && Math.hypot(old.x - p.x, old.y - p.y) < 1) still.add(id);
      else if (old) drawn.animate([{ translate: `${old.x - p.x}px ${old.y - p.y}px` }, { translate: "0px 0px" }], { duration: 260, easing: "ease-out" });
      else drawn.animate([{ opacity: 0 }, { opacity: 1 }], { duration: 420 });
    }
    for (const e of this.graph.edges) {
      if (!still.has(e.from) || !still.has(e.to)) e.drawn?.animate([{ opacity: 0 }, { opacity: 0, offset: 0.4 }, { opacity: 1 }], { duration: 420 });
    }
  }
}
