// The plots of one net: its units, gates by channel, one channel by class, and the density of a unit's gates.
const COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#332288", "#999933", "#661100", "#44AA99", "#666666"];
const hue = slot => COLORS[slot];  // the colour of a class; lines of the second six are dashed
const dash = slot => slot < 6 ? "solid" : "dash";
const MOST_CLASSES = COLORS.length, BARS = 12;

// Numbers are stored as bytes in base64, and decoded when their unit is first shown.
const decoded = new Map();
function bytes(kind, net, unit) {
  const id = `${kind}-${net}-${unit}`;
  if (!decoded.has(id)) decoded.set(id, Uint8Array.from(atob(at(id).textContent), char => char.charCodeAt(0)));
  return decoded.get(id);
}
function value(kind, net, u, label, place) {  // place: the index of a channel among those on the page
  const unit = data.nets[net].units[u], scale = unit[kind], row = data.nets[net].row[label];
  if (row < 0) return null;
  const i = row * unit.kept.length + place, array = bytes(kind, net, u);
  const step = unit.wide ? array[2 * i] + 256 * array[2 * i + 1] : array[i];
  return scale.low + (scale.high - scale.low) * step / (unit.wide ? 65535 : 255);
}

// Shortens names in the middle, except those that would become equal.
function shortened(names, most = 30) {
  const short = names.map(name => name.length > most ? `${name.slice(0, 8)}…${name.slice(9 - most)}` : name);
  return short.map((text, i) => short.indexOf(text) !== short.lastIndexOf(text) ? names[i] : text);
}

function places(net, u) {  // returns the indices of the visible channels in the selected order
  const unit = data.nets[net].units[u];
  const every = unit.kept.map((_, i) => i);
  if (state.order !== "number") every.sort((a, b) => unit[state.order][b] - unit[state.order][a]);
  const count = Math.min(every.length, state.count);
  if (state.order !== "number" || count === every.length) return every.slice(0, count);
  return Array.from({ length: count }, (_, i) => every[Math.floor((i + 0.5) * every.length / count)]);
}

function profile(net, u) {
  const unit = data.nets[net].units[u], chosen = places(net, u);
  const x = chosen.map((_, i) => i), channels = chosen.map(place => unit.kept[place]), traces = [];
  const names = shortened(state.classes.map(label => data.classes[label]));
  state.classes.forEach((label, i) => {
    const slot = slots.get(label), line = hue(slot), full = escaped(data.classes[label]);
    const y = chosen.map(place => value("mean", net, u, label, place));
    if (y[0] === null) return;
    if (state.spread) {
      const std = chosen.map(place => value("std", net, u, label, place));
      traces.push({ x: x.concat([...x].reverse()), y: y.map((v, k) => v + std[k]).concat(y.map((v, k) => v - std[k]).reverse()),
        fill: "toself", fillcolor: `${line}30`, line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false });
    }
    traces.push({ x, y, customdata: channels, name: escaped(names[i]), mode: "lines", line: { color: line, dash: dash(slot), width: 1.6 },
      hovertemplate: `${full}<br>channel %{customdata}: %{y:.3f}<extra></extra>` });
  });
  traces.push({ x, y: chosen.map(place => unit.all[place]), customdata: channels, name: "all classes", mode: "lines",
    line: { color: "#000", width: 2.5 }, hovertemplate: "all classes<br>channel %{customdata}: %{y:.3f}<extra></extra>" });
  const every = Math.ceil(x.length / 12), ticks = x.filter(i => i % every === 0);
  return { traces, layout: { legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: { title: { text: `channel (${chosen.length} of ${unit.channels})` }, tickvals: ticks, ticktext: ticks.map(i => channels[i]) },
    yaxis: { title: { text: "mean gate" } } } };
}
function profileRows(net, u) {
  const unit = data.nets[net].units[u], there = state.classes.filter(label => data.nets[net].row[label] >= 0);
  return [["channel", "all classes", ...there.flatMap(label => [data.classes[label], `${data.classes[label]}, standard deviation`])],
    ...places(net, u).map(place => [unit.kept[place], unit.all[place],
      ...there.flatMap(label => ["mean", "std"].map(kind => rounded(value(kind, net, u, label, place))))])];
}
const rounded = number => number === null ? null : Number(number.toPrecision(5));

function byClass(net, u) {  // returns the classes sorted by mean gate of the channel; [] if the channel is not on the page
  const place = data.nets[net].units[u].kept.indexOf(state.channel);
  if (place < 0) return [];
  return data.classes.map((name, label) => [name, value("mean", net, u, label, place), value("std", net, u, label, place)])
    .filter(row => row[1] !== null).sort((a, b) => a[1] - b[1]);
}
function channel(net, u) {
  let rows = byClass(net, u);
  const total = rows.length, unit = data.nets[net].units[u];
  if (!total) return { traces: [], layout: { title: { text: `${unit.name} has no channel ${state.channel} on this page`, font: { size: 14 } }, xaxis: { visible: false }, yaxis: { visible: false } } };
  if (total > 2 * BARS) rows = rows.slice(0, BARS).concat(rows.slice(-BARS));
  const ends = total > 2 * BARS ? `<br>the ${BARS} lowest and highest of ${total} classes` : "";
  const names = rows.map(row => escaped(row[0]));
  return { traces: [{ type: "bar", orientation: "h", y: names, x: rows.map(row => row[1]), customdata: rows.map(row => row[2]),
    error_x: { array: rows.map(row => row[2]), thickness: 1, width: 2, color: color("fg") }, marker: { color: hue(0) },
    hovertemplate: "%{y}: %{x:.3f} ± %{customdata:.3f}<extra></extra>" }],
  layout: { title: { text: `channel ${state.channel}${ends}`, font: { size: 13 }, x: 0, xref: "paper", xanchor: "left" }, ...(ends ? { margin: { l: 56, r: 16, t: 44, b: 44 } } : {}),
    xaxis: { title: { text: "mean gate ± standard deviation", font: { size: 12 } } },
    yaxis: { type: "category", tickvals: names, ticktext: shortened(rows.map(row => row[0])).map(escaped), ticksuffix: " ", showgrid: false } } };
}
function showPictures(net, u, box) {
  const found = (data.nets[net].units[u].pictures || {})[state.channel];
  box.replaceChildren();
  if (!found) {
    if (data.thumbnails) box.append(make("p", "There are no pictures for this channel.", { class: "note" }));
    return;
  }
  ["highest excitation", "lowest excitation"].forEach((what, side) => {
    const images = found[side].map(number => make("img", null, { src: data.nets[net].thumbnails[number], alt: `image ${number}`, title: `image ${number}` }));
    box.append(make("div", null, {}, make("span", what), ...images));
  });
}

function density(net, u) {
  const unit = data.nets[net].units[u];
  const shares = unit.saturated.map((share, side) => share === null ? "" : `${share.toFixed(1)} % ${unit.saturation[side]}`).filter(Boolean).join(", ");
  return { traces: [{ x: unit.density[0], y: unit.density[1], mode: "lines", fill: "tozeroy", line: { color: hue(2) }, hovertemplate: "gate %{x:.3f}: density %{y:.2f}<extra></extra>" }],
    layout: { title: shares ? { text: shares, font: { size: 13 }, x: 0, xref: "paper", xanchor: "left" } : undefined,
      xaxis: { title: { text: "gate" } }, yaxis: { title: { text: "density" }, rangemode: "tozero" } } };
}
const unitsShown = net => data.nets[net].units.filter(unit => state.stage === "all" || String(unit.stage) === state.stage);
function overview(net) {
  const units = unitsShown(net), x = units.map(unit => unit.name);
  const saturated = units.map(unit => unit.saturated[0] === null && unit.saturated[1] === null ? null : (unit.saturated[0] ?? 0) + (unit.saturated[1] ?? 0));
  return { traces: [
    { type: "bar", x, y: units.map(unit => unit.between), marker: { color: units.map(unit => hue(unit.name === state.unit ? 1 : 0)) },
      name: "variance between classes (ω²)", hovertemplate: "%{x}: %{y:.1f} %<extra></extra>" },
    { x, y: saturated, mode: "lines+markers", name: "saturated gates", line: { color: "#000", width: 1 }, hovertemplate: "%{x}: %{y:.1f} % saturated<extra></extra>" }],
  layout: { legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 }, xaxis: { title: { text: "unit" }, type: "category", showgrid: false },
    yaxis: { title: { text: "%" }, rangemode: "tozero" } } };
}
const overviewRows = net => [["unit", "stage", "channels", "variance between classes (ω², %)", ...data.nets[net].units[0].saturation.map(name => `gates ${name} (%)`)],
  ...unitsShown(net).map(unit => [unit.name, unit.stage, unit.channels, unit.between, ...unit.saturated])];
