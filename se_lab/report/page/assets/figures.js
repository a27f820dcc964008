// Figures: Plotly draws those on the screen; others are drawn when they are scrolled to or printed.
// The customdata of a point, or the meta of a trace, is [variant, trial or -1].
const plots = [];
let plotlyReady = false;

function addPlot(part, { id, title, note, build, rows, height, drag = "zoom" }) {
  const drags = select("Drag to", ["zoom", "select"], drag === "select" ? 1 : 0, i => { plot.drag = i ? "select" : "zoom"; redraw(plot); });
  const { node, parts } = figureFrame({ id, title, note, height, rows: () => rows?.() ?? dataRows(build()) }, drags);
  const plot = { id, title, node, build, drag, hidden: new Map(), dirty: true, near: false };
  part.append(...parts);
  plots.push(plot);
  watcher.observe(node);
  return plot;
}
const watcher = new IntersectionObserver(entries => {
  for (const entry of entries) {
    const plot = plots.find(one => one.node === entry.target);
    plot.near = entry.isIntersecting;
    if (plot.near && plot.dirty) redraw(plot);
  }
}, { rootMargin: "200px" });

function redraw(plot) {
  if (!plotlyReady) return;
  plot.dirty = false;
  const { traces, layout, note } = plot.build();
  const caption = plot.node.parentNode.querySelector("figcaption");
  if (note && caption) caption.textContent = note;
  const fresh = !plot.node.data;
  if (layout.height) plot.node.style.height = `${layout.height}px`;
  const kept = chosen(recolored(traces), plot);
  const shown = themed({ ...structuredClone(layout), dragmode: plot.drag, selections: [] });
  if (state.variants && layout.yaxis?.ticktext) keepTicks(shown.yaxis, kept);
  shown.annotations = shown.annotations?.filter(note => !/^v\d+$/.test(note.name) || isShown([Number(note.name.slice(1)), -1]));
  dropOverlaps(shown, kept, printing ? PAPER_WIDTH : plot.node.clientWidth);
  Plotly.react(plot.node, kept, shown, OPTIONS);
  if (!fresh) return;
  plot.node.on("plotly_click", event => {
    const [variant, trial] = tagOf(event.points[0]);
    if (trial >= 0) openTrial(trial);
    else if (variant >= 0) toggle(variant);
  });
  plot.node.on("plotly_selected", event => {
    const variants = (event?.points ?? []).map(point => tagOf(point)[0]).filter(variant => variant >= 0);
    if (variants.length) choose(new Set(variants));
  });
  plot.node.on("plotly_restyle", ([change, places]) => {  // keeps the visibility set in the legend for later redraws
    if (!change.visible) return;
    places.forEach((place, i) => plot.hidden.set(plot.node.data[place].uid, [change.visible].flat()[i] ?? [change.visible].flat()[0]));
  });
}
function keepTicks(axis, traces) {  // removes ticks of rows without visible points
  const left = new Set(traces.flatMap(trace => trace.y ?? []));
  const places = axis.tickvals.flatMap((value, i) => left.has(value) ? [i] : []);
  axis.ticktext = places.map(i => axis.ticktext[i]);
  axis.tickvals = places.map(i => axis.tickvals[i]);
}
function dropOverlaps(layout, traces, width) {  // removes names that overlap earlier ones on a narrow screen
  const beside = width >= NARROW && traces.some(trace => trace.showlegend !== false && trace.name) ? 150 : 0, room = Math.max(100, width - 72 - beside);
  const boxes = [];
  layout.annotations = layout.annotations?.filter(note => {
    const axis = layout[note.xref?.replace("x", "xaxis")];
    if (note.ax === undefined || !axis?.range) return true;
    const [low, high] = axis.range, [bottom, top] = layout[note.yref.replace("y", "yaxis")].range, half = 3.6 * note.text.length;
    const x = (note.x - low) / (high - low) * room + note.ax, y = (top - note.y) / (top - bottom) * 370 + note.ay;
    if (x - half < -60 || x + half > room + beside + 16 || boxes.some(other => Math.abs(other.x - x) < other.half + half && Math.abs(other.y - y) < 15)) return false;
    boxes.push({ x, y, half });
    return true;
  });
}
function redrawAll(now = false) {  // draws figures on the screen first, then others in separate tasks, so that the page stays responsive
  for (const plot of plots) plot.dirty = true;
  if (now) return plots.forEach(redraw);
  const onScreen = ({ node }) => { const { top, bottom } = node.getBoundingClientRect(); return top < innerHeight && bottom > 0; };
  const near = plots.filter(plot => plot.near), seen = near.filter(onScreen);
  seen.forEach(redraw);
  for (const plot of near) if (!seen.includes(plot)) setTimeout(() => { if (plot.dirty && plot.near) redraw(plot); });
}
const tagOf = point => point.customdata ?? (Array.isArray(point.data?.meta) ? point.data.meta : [-1, -1]);

// Returns the traces that pass the filter, faded if other variants are selected.
function chosen(traces, plot) {
  const kept = [];
  traces.forEach((trace, i) => {
    trace.uid = `${plot.id}-${i}`;
    const shown = keepPoints(trace, isShown);
    if (shown) kept.push(plot.hidden.has(trace.uid) ? { ...shown, visible: plot.hidden.get(trace.uid) } : shown);
  });
  for (const trace of kept) if (trace.meta?.front) Object.assign(trace, front(kept, trace.meta.front));
  if (!state.selected.size) return kept;
  return kept.flatMap(trace => {
    if (!trace.customdata && !Array.isArray(trace.meta)) return [trace];
    if (trace.type === "heatmap") return [keepPoints(trace, ([variant]) => state.selected.has(variant))];
    const inside = keepPoints(trace, ([variant]) => state.selected.has(variant));
    const outside = keepPoints(trace, ([variant]) => !state.selected.has(variant));
    return [outside && { ...outside, uid: `${trace.uid}-faded`, opacity: 0.15, showlegend: inside ? false : outside.showlegend }, inside].filter(Boolean);
  });
}
const isShown = ([variant, trial]) => trial >= 0 ? state.trials === null || state.trials.has(trial) : state.variants === null || state.variants.has(variant);

function keepPoints(trace, keep) {
  if (Array.isArray(trace.meta)) return keep(trace.meta) ? trace : null;
  if (!trace.customdata) return trace;
  if (trace.type === "heatmap") {
    const cells = (rows, none) => rows?.map((row, r) => row.map((cell, c) => keep(trace.customdata[r][c]) ? cell : none));
    return { ...trace, z: cells(trace.z, null), text: cells(trace.text, ""), hovertext: cells(trace.hovertext, "") };
  }
  const places = trace.customdata.flatMap((tag, i) => keep(tag) ? [i] : []);
  if (!places.length) return null;
  const picked = (from, names) => Object.fromEntries(names.filter(name => Array.isArray(from?.[name])).map(name => [name, places.map(i => from[name][i])]));
  const part = { ...trace, ...picked(trace, ["x", "y", "text", "hovertext", "customdata", "textposition"]) };
  part.marker = { ...trace.marker, ...picked(trace.marker, ["color", "size", "symbol", "opacity"]) };
  for (const bar of ["error_x", "error_y"]) if (trace[bar]) part[bar] = { ...trace[bar], ...picked(trace[bar], ["array", "arrayminus"]) };
  return part;
}
function front(traces, sign) {  // returns the Pareto front of the visible points
  const points = traces.flatMap(trace => !Array.isArray(trace.meta) && trace.mode !== "text" && trace.customdata
    ? trace.customdata.flatMap(([, trial], i) => trial < 0 ? [[trace.x[i], trace.y[i]]] : []) : []);
  points.sort((a, b) => a[0] - b[0] || sign * (a[1] - b[1]));
  const x = [], y = [];
  let best = Infinity;
  for (const [cost, value] of points) {
    if (sign * value >= best) continue;
    if (x.length) { x.push(cost); y.push(y[y.length - 1]); }
    x.push(cost);
    y.push(value);
    best = sign * value;
  }
  return { x, y };
}

// Returns the data of a figure with a row per point.
function dataRows({ traces, layout }) {
  const title = name => layout[name]?.title?.text || name[0];
  const rows = [["variant", "trial", title("xaxis"), title("yaxis"), "±"]];
  for (const trace of traces) {
    if (trace.type === "heatmap") {
      trace.z.forEach((row, r) => row.forEach((value, c) => rows.push([nameOf(trace.customdata?.[r]?.[c]) || "", "", clean(layout.xaxis.ticktext[c]), clean(layout.yaxis.ticktext[r]), value])));
      continue;
    }
    if (trace.mode === "text" || trace.hoverinfo === "skip") continue;
    (trace.y ?? []).forEach((y, i) => {
      const tag = Array.isArray(trace.meta) ? trace.meta : trace.customdata?.[i];
      const x = trace.x ? trace.x[i] : (trace.x0 ?? 0) + i * (trace.dx ?? 1);
      rows.push([nameOf(tag) || clean(trace.name), data.trials[tag?.[1]]?.id ?? "", x, y, (trace.error_y ?? trace.error_x)?.array?.[i] ?? ""]);
    });
  }
  return rows;
}
const nameOf = tag => data.variants[tag?.[0]]?.name;
