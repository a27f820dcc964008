"use strict";
// What the report and the explorer share. Data becomes text nodes, attributes set by the DOM, or strings escaped for Plotly.
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
function select(label, options, chosen, action) {  // options: texts; action gets the number of the chosen one
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

// Plotly lies in the page compressed: a third of its size, and the page is read before it is unpacked.
async function loadPlotly() {
  const packed = Uint8Array.from(atob(at("plotly").textContent), char => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(make("script", await new Response(stream).text()));
}

// Colours follow the page's, light or dark; on paper it is light.
let printing = false;
const PAPER_WIDTH = 690;  // pixels: fits A4 and Letter with a browser's margins
const dark = matchMedia("(prefers-color-scheme: dark)");
function color(name) {
  if (printing) return { fg: "#000", soft: "#444", bg: "#fff", line: "#ccc" }[name];
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}
function recolored(traces) {  // what was drawn for white paper, for the page's background; and a copy, as Plotly changes it
  const text = JSON.stringify(traces).replaceAll('"#000"', `"${color("fg")}"`).replaceAll('"white"', `"${color("bg")}"`)
    .replaceAll('"black"', `"${color("fg")}"`);
  return JSON.parse(printing || !dark.matches ? text : text.replace(/"rgb\((\d+), (\d+), (\d+)\)"/g,  // dark lines would be lost
    (_, ...parts) => `"rgb(${parts.slice(0, 3).map(part => Math.round(0.6 * part + 102)).join(", ")})"`));
}
function themed(own) {
  const axis = { gridcolor: color("line"), zeroline: false, linecolor: color("soft"), showline: true, ticks: "outside",
    tickcolor: color("soft"), automargin: true };
  const layout = { margin: { l: 56, r: 16, t: 30, b: 44 }, hovermode: "closest", paper_bgcolor: color("bg"), plot_bgcolor: color("bg"),
    font: { family: "system-ui, DejaVu Sans, sans-serif", size: 13, color: color("fg") },
    hoverlabel: { align: "left", namelength: -1 }, legend: { bgcolor: "rgba(0,0,0,0)" }, ...own, ...(printing ? { width: PAPER_WIDTH } : {}) };
  for (const name of Object.keys(own).filter(name => /^[xy]axis\d*$/.test(name)).concat("xaxis", "yaxis")) {
    layout[name] = { ...axis, ...own[name] };
    if (layout[name].zerolinecolor) layout[name].zeroline = true;
    for (const line of ["zerolinecolor", "gridcolor"]) if (own[name]?.[line]) layout[name][line] = color("soft");
  }
  for (const note of layout.annotations ?? []) if (note.bgcolor) note.bgcolor = color("bg");
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
  } catch {  // a page from a file may not have the clipboard
    const box = make("textarea", null, { "aria-hidden": "true" });
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
  done();
}

// The address: #anchor?name=value&…, so that a link shows the same. Pages from files may change nothing but the fragment.
const address = { anchor: "", values: new URLSearchParams() };
function readAddress() {
  const [anchor, query = ""] = location.hash.slice(1).split("?");
  address.anchor = decodeURIComponent(anchor);
  address.values = new URLSearchParams(query);
}
function writeAddress(values) {  // empty values are left out
  const kept = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  address.values = new URLSearchParams(kept.map(([name, value]) => [name, String(value)]));
  const query = address.values.toString();
  history.replaceState(null, "", `#${encodeURIComponent(address.anchor)}${query ? "?" + query : ""}`);
}
const clean = markup => (markup ?? "").replace(/<br>/g, ", ").replace(/<[^>]*>/g, "").replaceAll("&nbsp;", " ").replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&").trim();
