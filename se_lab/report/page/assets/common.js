"use strict";
// Functions shared by report and explorer. All data is inserted as text nodes, attributes, or strings escaped for Plotly.
const at = id => document.getElementById(id);
const data = JSON.parse(at("data").textContent);

function make(tag, text, attributes = {}, ...children) {
  const element = document.createElement(tag);
  if (text !== null) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
function button(text, action, attributes = {}) {
  const made = make("button", text, { type: "button", ...attributes });
  made.addEventListener("click", action);
  return made;
}
function select(label, options, chosen, action) {  // options: texts; action: called with the index of the chosen option
  const box = make("select", null, {}, ...options.map((text, i) => new Option(text, i, false, i === chosen)));
  box.addEventListener("change", () => action(box.selectedIndex));
  return make("label", `${label} `, {}, box);
}
function checkbox(label, checked, action, attributes = {}) {
  const box = make("input", null, { type: "checkbox", ...attributes });
  box.checked = checked;
  box.addEventListener("change", () => action(box.checked));
  return label === null ? box : make("label", null, {}, box, label);
}

// Plotly is compressed to a third of its size, and decompressed once the page has loaded.
async function loadPlotly() {
  const packed = Uint8Array.from(atob(at("plotly").textContent), char => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(make("script", await new Response(stream).text()));
}

// Colours follow the light or dark theme; printing uses the light one.
let printing = false;
const NARROW = 600;  // window width in pixels below which legends are above plots
const PAPER_WIDTH = 690;  // pixels; fits A4 and Letter with a browser's margins
const dark = matchMedia("(prefers-color-scheme: dark)");
function color(name) {
  if (printing) return { fg: "#000", soft: "#444", bg: "#fff", line: "#ccc" }[name];
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
function lightened(hex) {  // lightens a colour for dark pages, dark colours more than light ones
  const parts = [1, 3, 5].map(i => parseInt(hex.slice(i, i + 2), 16)), [r, g, b] = parts.map(part => (part / 255) ** 2.2);
  const share = Math.max(0, 0.4 - 1.15 * (0.2126 * r + 0.7152 * g + 0.0722 * b));
  return `#${parts.map(part => Math.round(part + share * (255 - part)).toString(16).padStart(2, "0")).join("")}${hex.slice(7)}`;
}
function recolored(traces) {  // returns a copy with colours for the current theme, since Plotly modifies its input
  const text = JSON.stringify(traces).replace(/"(#000(000)?|black)"/g, `"${color("fg")}"`).replaceAll('"white"', `"${color("bg")}"`);
  return JSON.parse(printing || !dark.matches ? text : text.replace(/"#[0-9a-f]{6}([0-9a-f]{2})?"/gi, quoted => `"${lightened(quoted.slice(1, -1))}"`));
}
function themed(own) {
  const axis = { gridcolor: color("line"), zeroline: false, linecolor: color("soft"), showline: true, ticks: "outside",
    tickcolor: color("soft"), automargin: true };
  const layout = { margin: { l: 56, r: 16, t: 30, b: 44 }, hovermode: "closest", paper_bgcolor: color("bg"), plot_bgcolor: color("bg"),
    font: { family: "system-ui, DejaVu Sans, sans-serif", size: 13, color: color("fg") },
    hoverlabel: { align: "left", namelength: -1 }, ...own, legend: { bgcolor: "rgba(0,0,0,0)", ...own.legend, ...(innerWidth < NARROW && !printing ? { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" } : {}) },
    ...(printing ? { width: PAPER_WIDTH } : {}) };
  for (const name of Object.keys(own).filter(name => /^[xy]axis\d*$/.test(name)).concat("xaxis", "yaxis")) {
    layout[name] = { ...axis, ...own[name] };
    if (layout[name].zerolinecolor) layout[name].zeroline = true;
    for (const line of ["zerolinecolor", "gridcolor"]) if (own[name]?.[line]) layout[name][line] = color("soft");
  }
  for (const note of layout.annotations ?? []) {
    if (note.bgcolor) note.bgcolor = color("bg");
    if (note.showarrow) note.arrowcolor = color("soft");
  }
  for (const shape of layout.shapes ?? []) shape.line = { ...shape.line, color: color("soft") };
  return layout;
}
const OPTIONS = { responsive: true, displayModeBar: false };

function download(name, type, text) {
  const link = make("a", null, { href: URL.createObjectURL(new Blob([text], { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
const csvCell = value => value === null || value === undefined ? "" : /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
const csvText = rows => rows.map(row => row.map(csvCell).join(",")).join("\n") + "\n";

async function copy(text, done) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // a page opened from a file may have no access to the clipboard
    const box = make("textarea", null, { "aria-hidden": "true" });
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
  done();
}

// The state is in the address, #anchor?name=value&…, so that it can be linked. Pages opened from files may change only the fragment.
const address = { anchor: "", values: new URLSearchParams() };
function readAddress() {
  const [anchor, query = ""] = location.hash.slice(1).split("?");
  address.anchor = decodeURIComponent(anchor);
  address.values = new URLSearchParams(query);
}
function writeAddress(values) {  // omits empty values
  const kept = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  address.values = new URLSearchParams(kept.map(([name, value]) => [name, String(value)]));
  const query = address.values.toString();
  history.replaceState(null, "", `#${encodeURIComponent(address.anchor)}${query ? "?" + query : ""}`);
}
const clean = markup => (markup ?? "").replace(/<br>/g, ", ").replace(/<[^>]*>/g, "").replaceAll("&nbsp;", " ").replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&").trim();
const escaped = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

// The elements of a figure: the plot with a label for screen readers, download buttons, and a table of its data.
function figureFrame({ id, title, note, height, rows }, ...controls) {
  const node = make("div", null, { class: "plot", id: `${id}-plot`, role: "img", "aria-label": `${title}. ${note ?? ""} The table below has the same data.` });
  if (height) node.style.height = `${height}px`;
  const table = make("details", null, { class: "choose" }, make("summary", "Data of this figure"));
  table.addEventListener("toggle", () => {
    table.querySelector("div")?.remove();
    if (table.open) table.append(plainTable(rows(), title));
  });
  const downloads = [
    button("Download SVG", () => Plotly.downloadImage(node, { format: "svg", filename: id, width: node.clientWidth, height: node.clientHeight })),
    button("Download data (CSV)", () => download(`${id}.csv`, "text/csv", csvText(rows())))];
  const caption = note ? [make("figcaption", note, { class: "note" })] : [];
  return { node, parts: [make("figure", null, {}, node, ...caption), make("div", null, { class: "controls" }, ...controls, ...downloads), table] };
}
function plainTable([head, ...rows], caption) {
  const MOST = 2000;
  const body = rows.slice(0, MOST).map(row => make("tr", null, {}, ...row.map(cell => make("td", cell === null ? "" : String(cell)))));
  const table = make("table", null, {}, make("caption", rows.length > MOST ? `${caption}: the first ${MOST} of ${rows.length} rows` : caption),
    make("thead", null, {}, make("tr", null, {}, ...head.map(text => make("th", text, { scope: "col" })))), make("tbody", null, {}, ...body));
  return make("div", null, { class: "scroll", tabindex: "0", role: "region", "aria-label": `Data: ${caption}` }, table);
}
