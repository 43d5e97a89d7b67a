// A layered drawing of a directed acyclic graph (Sugiyama, Tagawa and Toda, 1981).
//
// In: nodes {id, w, h, in: [ids]} in an order in which operands come first. Out: x and y of each node's centre, points of each
// edge, and the size of it all. Layers by longest path, what is only needed late sunk towards its users; long edges of one node
// share their bends; order by barycentres; places by least squares under the layer's order.

const GAP_X = 18, GAP_Y = 30, BEND = 10;

function layout(nodes) {
  const steps = planning(nodes);
  for (;;) {
    const { done, value } = steps.next();
    if (done) return value;
  }
}

/** The same in small steps, so that whoever has something more urgent can go first. */
function* planning(nodes) {
  const cells = new Map();
  for (const n of nodes) cells.set(n.id, { id: n.id, w: n.w, h: n.h, node: n, up: [], down: [], layer: 0 });
  const operands = (n) => [...new Set(n.in)].filter((o) => cells.has(o)).map((o) => cells.get(o));
  const real = nodes.map((n) => cells.get(n.id));
  for (const c of real) c.layer = Math.max(0, ...operands(c.node).map((o) => o.layer + 1));
  const users = new Map(real.map((c) => [c, []]));
  for (const c of real) for (const o of operands(c.node)) users.get(o).push(c);
  for (let i = real.length - 1; i >= 0; i--) {
    const c = real[i], used = users.get(c);
    if (used.length && operands(c.node).length <= 1) c.layer = Math.min(...used.map((u) => u.layer)) - 1;
  }
  const layers = [];
  const put = (c) => (layers[c.layer] ||= []).push(c);
  real.forEach(put);
  // Bends: one chain a source, down to its last user.
  const chains = new Map();
  for (const c of real) {
    const chain = [c];
    const last = Math.max(c.layer, ...users.get(c).map((u) => u.layer - 1));
    for (let layer = c.layer + 1; layer <= last; layer++) {
      const bend = { w: BEND, h: 0, up: [chain.at(-1)], down: [], layer, bend: true };
      chain.at(-1).down.push(bend);
      chain.push(bend);
      put(bend);
    }
    chains.set(c, chain);
    for (const u of users.get(c)) {
      const above = chain[u.layer - 1 - c.layer];
      above.down.push(u);
      u.up.push(above);
    }
  }
  for (let i = 0; i < layers.length; i++) layers[i] ||= [];
  yield* order(layers);
  yield* place(layers);
  const heights = layers.map((l) => Math.max(0, ...l.map((c) => c.h)));
  let y = 0;
  layers.forEach((l, i) => { l.forEach((c) => (c.y = y + heights[i] / 2)); y += heights[i] + GAP_Y; });
  const left = Math.min(...layers.flat().map((c) => c.x - c.w / 2));
  layers.flat().forEach((c) => (c.x -= left));
  const edges = [];
  for (const c of real) {
    for (const u of users.get(c)) {
      const via = chains.get(c).slice(1, u.layer - c.layer);
      edges.push({ from: c.id, to: u.id, points: [[c.x, c.y + c.h / 2], ...via.map((b) => [b.x, b.y]), [u.x, u.y - u.h / 2]] });
    }
  }
  return {
    at: new Map(real.map((c) => [c.id, { x: c.x, y: c.y, w: c.w, h: c.h, layer: c.layer }])),
    edges,
    width: Math.max(0, ...layers.flat().map((c) => c.x + c.w / 2)),
    height: Math.max(0, y - GAP_Y),
  };
}

/** Orders each layer so that few edges cross: barycentres, down and up, the best kept. */
function* order(layers) {
  // First by depth-first search from the results, so that subgraphs lie together.
  const seen = new Set(), first = new Map();
  const visit = (c) => {
    const stack = [c];
    while (stack.length) {
      const top = stack.pop();
      if (seen.has(top)) continue;
      seen.add(top);
      first.set(top, first.size);
      stack.push(...top.up.slice().reverse());
    }
  };
  layers.slice().reverse().forEach((l) => l.forEach(visit));
  layers.forEach((l) => l.sort((a, b) => first.get(a) - first.get(b)));
  const number = () => layers.forEach((l) => l.forEach((c, i) => (c.at = i)));
  number();
  let best = layers.map((l) => l.slice()), fewest = crossings(layers);
  for (let sweep = 0; sweep < 24 && fewest > 0; sweep++) {
    yield;
    const down = sweep % 2 === 0;
    const sequence = down ? layers.slice(1) : layers.slice(0, -1).reverse();
    for (const l of sequence) {
      for (const c of l) {
        const near = down ? c.up : c.down;
        c.centre = near.length ? near.reduce((t, o) => t + o.at, 0) / near.length : c.at;
      }
      l.sort((a, b) => a.centre - b.centre || a.at - b.at);
      l.forEach((c, i) => (c.at = i));
    }
    const now = crossings(layers);
    if (now < fewest) { fewest = now; best = layers.map((l) => l.slice()); }
  }
  best.forEach((l, i) => { layers[i].splice(0, layers[i].length, ...l); });
  number();
}

function crossings(layers) {
  let total = 0;
  for (const l of layers.slice(1)) {
    const ends = l.flatMap((c) => c.up.map((o) => o.at).sort((a, b) => a - b));
    // Inversions by insertion: layers are short.
    const sorted = [];
    for (const e of ends) {
      let lo = 0, hi = sorted.length;
      while (lo < hi) { const mid = (lo + hi) >> 1; if (sorted[mid] <= e) lo = mid + 1; else hi = mid; }
      total += sorted.length - lo;
      sorted.splice(lo, 0, e);
    }
  }
  return total;
}

/** Places each layer where its neighbours pull it, without changing its order. */
function* place(layers) {
  for (const l of layers) { let x = 0; for (const c of l) { c.x = x + c.w / 2; x += c.w + GAP_X; } }
  // Edges between bends are to be straight, then edges of a chain.
  const pull = (a, b) => (a.bend && b.bend ? 8 : a.bend || b.bend ? 3 : a.down.length === 1 && b.up.length === 1 ? 4 : 1);
  const settle = (l, near) => {
    for (const c of l) {
      let sum = 0, weight = 0;
      for (const [o, w] of near(c)) { sum += o.x * w; weight += w; }
      c.want = weight ? sum / weight : c.x;
      c.weight = weight || 0.1;
    }
    isotonic(l);
  };
  const up = (c) => c.up.map((o) => [o, pull(o, c)]);
  const down = (c) => c.down.map((o) => [o, pull(c, o)]);
  for (let sweep = 0; sweep < 20; sweep++) {
    yield;
    for (const l of layers) settle(l, up);
    for (const l of layers.slice().reverse()) settle(l, down);
    for (const l of layers) settle(l, (c) => [...up(c), ...down(c)]);
  }
}

/** Least squares of x against what is wanted, neighbours kept apart: pool adjacent violators. */
function isotonic(l) {
  let offset = 0;
  const blocks = [];
  l.forEach((c, i) => {
    if (i) offset += l[i - 1].w / 2 + c.w / 2 + GAP_X;
    c.offset = offset;
    blocks.push({ sum: (c.want - offset) * c.weight, weight: c.weight, cells: [c] });
    while (blocks.length > 1) {
      const b = blocks.at(-1), a = blocks.at(-2);
      if (a.sum / a.weight <= b.sum / b.weight) break;
      a.sum += b.sum; a.weight += b.weight; a.cells.push(...b.cells);
      blocks.pop();
    }
  });
  for (const b of blocks) for (const c of b.cells) c.x = b.sum / b.weight + c.offset;
}
