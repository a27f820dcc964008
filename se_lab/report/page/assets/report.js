// The report: its state, filter, selection and sections.
const state = { filter: "", sort: "", base: data.base ?? 0, cost: 0, errors: 0, selected: new Set(), compared: new Set(), quantity: 0, time: false, log: false,
  each: false, one: 0, other: 0, variants: null, trials: null };
const numbers = text => text.split(",").filter(part => /^\d+$/.test(part)).map(Number);

function restore() {
  readAddress();
  const get = (name, none = "") => address.values.get(name) ?? none;
  const number = (name, none, most) => Math.min(Math.max(0, parseInt(get(name, none), 10) || 0), Math.max(0, most - 1));
  state.filter = get("filter");
  state.sort = /^\d+-?$/.test(get("sort")) ? get("sort") : "";
  state.base = number("base", data.base ?? 0, data.bases?.length ?? 1);
  state.cost = number("cost", 0, 99);
  state.errors = number("errors", 0, 99);
  state.selected = new Set(numbers(get("selected")).filter(variant => variant < data.variants.length));
  state.compared = new Set(numbers(get("compared")).filter(trial => trial < data.trials.length));
  state.quantity = number("curve", 0, data.curves?.quantities.length ?? 1);
  for (const name of ["time", "log", "each"]) state[name] = get(name) === "1";
  state.one = number("class", data.classes?.start ?? 0, data.classes?.variants.length ?? 1);
  state.other = number("beside", 0, data.classes?.variants.length ?? 1);
}
function save() {
  writeAddress({ filter: state.filter, sort: state.sort, base: state.base === (data.base ?? 0) ? "" : state.base, cost: state.cost || "", errors: state.errors || "",
    selected: [...state.selected].join(), compared: [...state.compared].join(), curve: state.quantity || "", time: state.time ? 1 : "",
    log: state.log ? 1 : "", each: state.each ? 1 : "", class: state.one === (data.classes?.start ?? 0) ? "" : state.one, beside: state.other || "" });
}

function section(id, title) {
  at("nav").append(make("a", title, { href: `#${id}` }));
  const part = make("section", null, { id, "aria-labelledby": `${id}-title` }, make("h2", title, { id: `${id}-title` }));
  at("main").append(part);
  return part;
}

// Filter
const aliases = new Map();
function known(key, ...names) {
  for (const name of [key, key.split(/[./]/).pop(), ...names]) if (!aliases.has(name.toLowerCase())) aliases.set(name.toLowerCase(), key);
}
for (const [alias, key] of Object.entries(data.aliases)) known(key, alias);
for (const key of ["status", "seed", "trial", "variant", ...data.trials.flatMap(trial => Object.keys(trial.spec)), ...Object.keys(data.shared)]) known(key);
for (const column of data.table?.columns ?? []) known(column.key);
const trialFacts = data.trials.map(trial => {
  const own = { ...data.shared, ...trial.spec, status: trial.status, seed: trial.seed, trial: trial.id, variant: trial.name };
  for (const column of data.table?.columns ?? []) own[column.key] ??= column.raw?.[trial.variant] ?? column.cells[trial.variant];
  if (trial.raw !== null) own[data.metric.key] = trial.raw;
  return own;
});
const trialWords = data.trials.map(trial => [trial.name, trial.status, trial.id, ...Object.values(trial.spec)].flatMap(value => wordsOf(String(value))));
for (const [i, trial] of data.trials.entries()) {  // and the printed cells of the variant's row
  for (const column of data.table?.columns ?? []) trialWords[i].push(...wordsOf(column.cells[trial.variant]));
}

function applyFilter() {
  let matches;
  try {
    matches = compile(state.filter, name => aliases.get(name));
  } catch (error) {
    at("message").textContent = `${error.message}; columns: ${[...aliases.keys()].filter(name => !/[./]/.test(name)).slice(0, 30).join(", ")}`;
    return;
  }
  at("message").textContent = "";
  const all = !state.filter.trim();
  state.trials = all ? null : new Set(data.trials.flatMap((_, i) => matches(trialFacts[i], trialWords[i]) ? [i] : []));
  state.variants = all ? null : new Set([...state.trials].map(i => data.trials[i].variant));
  table?.rows.forEach((row, i) => { row.hidden = !(all || state.variants.has(i)); });
  trialTable.rows.forEach((row, i) => {
    row.hidden = !(all || state.trials.has(i));
    if (row.hidden) trialDetails[i].hidden = true;
  });
  const count = (some, every, what) => `${some} of ${every} ${what}`;
  at("count").textContent = all ? "" : `${count(state.variants.size, data.variants.length, "variants")}, ${count(state.trials.size, data.trials.length, "trials")}`;
}
let pending = 0;
function onFilter() {  // updates rows at once, and figures after a short pause
  state.filter = at("filter").value;
  applyFilter();
  clearTimeout(pending);
  pending = setTimeout(() => { save(); redrawAll(); }, 20);
}

// Selection
function choose(variants) {
  state.selected = variants;
  table?.rows.forEach((row, i) => {
    row.classList.toggle("selected", variants.has(i));
    row.querySelector("input[type=checkbox]").checked = variants.has(i);
  });
  at("clear").hidden = !variants.size;
  showComparison();
  save();
  redrawAll();
}
function toggle(variant) {
  const next = new Set(state.selected);
  if (!next.delete(variant)) next.add(variant);
  choose(next);
}

// The table
let table = null;
const lead = data.bases ? 2 : 1;
function addTable() {
  const part = section("variants", "Table");
  table = sortable({
    id: "table", caption: data.table.title, columns: data.table.columns,
    leadHeads: data.bases ? ["select", "baseline"] : ["select"],
    lead: i => {
      const cells = [make("td", null, { class: "text choose" }, checkbox(null, false, () => toggle(i), { "aria-label": `select ${data.variants[i].name}` }))];
      if (data.bases) {
        const of = data.bases.findIndex(base => base.variants.includes(i));
        const radio = make("input", null, { type: "radio", name: "baseline", "aria-label": `compare with ${data.variants[i].name}` });
        radio.disabled = of < 0;
        radio.addEventListener("change", () => rebase(of));
        radio.base = of;
        cells.push(make("td", null, { class: "text choose" }, radio));
      }
      return cells;
    },
    onSort: (c, down) => { state.sort = `${c}${down ? "-" : ""}`; save(); },
  });
  const copyAs = format => event => copy(tableText(format), () => {
    const label = event.target.textContent;
    event.target.textContent = "Copied";
    setTimeout(() => { event.target.textContent = label; }, 1500);
  });
  part.append(table.node, make("div", null, { class: "controls" }, ...Object.keys(data.table.copies).map(format => button(`Copy as ${format}`, copyAs(format)))),
    notes(data.table.notes));
}
function tableText(format) {  // returns the visible rows in their current order
  const { head, rows, foot } = data.table.copies[format];
  return [head, ...table.order.filter(i => !table.rows[i].hidden).map(i => rows[i]), foot].filter(text => text !== "").join("\n") + "\n";
}
function rebase(base) {
  state.base = base;
  const c = data.table.columns.findIndex(column => column.key === data.bases[base].column);
  if (c >= 0) {
    const column = data.table.columns[c], { cells, by, heading } = data.bases[base];
    Object.assign(column, { cells, by, raw: by });
    table.rows.forEach((row, i) => { row.children[c + lead].textContent = cells[i]; });
    table.heads[c].querySelector("button").textContent = heading;
  }
  table.rows.forEach(row => { const radio = row.querySelector("input[type=radio]"); radio.checked = radio.base === base && !radio.disabled && data.bases[base].variants[0] === table.rows.indexOf(row); });
  save();
  redrawAll();
}

// Sections
document.title = data.title;
at("title").textContent = data.title;
for (const text of data.question) at("question").append(make("p", text, { class: "question" }));
restore();
if (data.table) addTable();
at("main").append(make("section", null, { id: "comparison", hidden: "" }, make("h2", "Settings side by side"), make("div", null, { id: "compared" })));
const CHOICES = { tradeoff: ["cost", "against"], class_differences: ["errors", "Errors of"] };  // state key, label
for (const figure of data.figures) {
  const part = section(figure.id, figure.title);
  const isRebased = figure.id === "differences" && figure.choices.length > 1;
  const [key, label] = isRebased ? ["base"] : CHOICES[figure.id] ?? [];
  const number = () => Math.min(state[key] ?? 0, figure.choices.length - 1);
  const drawn = { id: figure.id, title: figure.title, note: figure.note, height: figure.choices[0].layout.height ?? 440,
    drag: figure.id === "parallel" ? "select" : "zoom", build: () => figure.choices[number()] };
  if (figure.id === "parallel" && data.table) drawn.rows = () => [data.table.columns.map(column => column.label), ...data.variants.map((_, i) => data.table.columns.map(column => column.raw?.[i] ?? column.cells[i]))];
  if (figure.choices.length > 1 && !isRebased) {
    part.append(make("div", null, { class: "controls" }, select(label, figure.choices.map(one => one.label), number(), i => { state[key] = i; save(); redraw(plot); })));
  }
  const plot = addPlot(part, drawn);
}
if (data.curves) addCurves(section("curves", "Training curves"));
if (data.classes) addClasses(section("by-class", "Classes and images"));
if (data.paper) {
  const part = section("paper", "Costs beside the paper's");
  part.append(sortable({ id: "paper-table", caption: data.paper.title, columns: data.paper.columns }).node, notes(data.paper.notes));
}
if (data.excitations.length || data.left_out.length) {
  const part = section("excitations", "Excitations");
  data.excitations.forEach((entry, i) => {
    const box = make("details", null, { class: "pictures" }, make("summary", `${entry.name} (trial ${entry.trial})`));
    for (const one of entry.pictures) box.append(make("h3", one.name), make("img", null, { src: one.source, alt: `${one.name} of ${entry.name}` }));
    for (const link of entry.links) box.append(make("p", null, {}, make("a", link.text, { href: link.href })));
    box.open = i === 0;
    part.append(box);
  });
  if (data.left_out.length) {
    const summary = make("summary", `${data.left_out.length} figures are omitted to limit the size of the page; report -o FOLDER/ writes pages with all figures`);
    part.append(make("details", null, { class: "note" }, summary, notes(data.left_out)));
  }
}
addTrials(section("trials", "Trials"));

// Restore the state in the address
at("filter").value = state.filter;
at("filter").addEventListener("input", onFilter);
at("clear").addEventListener("click", () => choose(new Set()));
if (table && state.sort && parseInt(state.sort, 10) < table.heads.length) table.sort(parseInt(state.sort, 10), state.sort.endsWith("-"));
for (const i of state.compared) at(`compare-${i}`).checked = true;
if (data.bases) rebase(state.base);
applyFilter();
choose(state.selected);
function goTo(anchor) {
  address.anchor = anchor;
  const trial = /^trial-(\d+)$/.exec(anchor);
  if (trial && trialTable.rows[Number(trial[1])]) openTrial(Number(trial[1]));
  else at(anchor)?.scrollIntoView();
}
document.addEventListener("click", event => {
  const link = event.target.closest("a[href^='#']");
  if (!link) return;
  event.preventDefault();
  goTo(link.getAttribute("href").slice(1));
  save();
});
addEventListener("hashchange", () => goTo(location.hash.slice(1).split("?")[0]));
goTo(address.anchor);

dark.addEventListener("change", () => redrawAll());
let closed = [];
addEventListener("beforeprint", () => {
  printing = true;
  closed = [...document.querySelectorAll("details:not([open])")].filter(box => !box.classList.contains("choose"));
  closed.forEach(box => { box.open = true; });
  trialTable.rows.forEach((row, i) => { if (!row.hidden) { fillTrial(i); trialDetails[i].wasHidden = trialDetails[i].hidden; trialDetails[i].hidden = false; } });
  redrawAll(true);
});
addEventListener("afterprint", () => {
  printing = false;
  closed.forEach(box => { box.open = false; });
  trialDetails.forEach(row => { row.hidden = row.wasHidden ?? row.hidden; });
  redrawAll();
});
loadPlotly().then(() => {
  plotlyReady = true;
  redrawAll();
  document.body.dataset.ready = "1";
}, error => { at("message").textContent = `This browser cannot draw the figures: ${error.message}`; });
