// The explorer: its state, controls and plots.
const state = { stage: "all", unit: "", classes: [], order: "number", count: 50, channel: 0, spread: false, compare: data.nets.length > 1 };
let slots = new Map();  // the colour of each selected class
const say = text => { at("message").textContent = text; };
const unitNames = () => [...new Set(data.nets.flatMap((_, net) => unitsShown(net).map(unit => unit.name)))];
const unitOf = net => data.nets[net].units.findIndex(unit => unit.name === state.unit);
const firstUnit = () => data.nets.map((net, i) => net.units[unitOf(i)]).find(Boolean);
const there = label => data.nets.some(net => net.row[label] >= 0);

// The address
function restore() {
  readAddress();
  const get = (name, none) => address.values.get(name) ?? none, problems = [];
  const stages = ["all", ...new Set(data.nets.flatMap(net => net.units.map(unit => String(unit.stage))))];
  state.stage = stages.includes(get("stage")) ? get("stage") : "all";
  state.unit = get("unit", data.start.unit);
  if (!unitNames().includes(state.unit)) {
    problems.push(`There is no unit ${state.unit}${state.stage === "all" ? "" : ` in stage ${state.stage}`}.`);
    state.unit = unitNames().includes(data.start.unit) ? data.start.unit : unitNames()[0];
  }
  const labels = get("classes") === undefined ? data.start.classes : get("classes").split(",").filter(Boolean).map(Number);
  const unknown = labels.filter(label => !there(label));
  if (unknown.length) problems.push(`There is no class ${unknown.join(", ")}.`);
  state.classes = [...new Set(labels)].filter(there).slice(0, MOST_CLASSES);
  slots = new Map(state.classes.map((label, slot) => [label, slot]));
  state.order = [...at("order").options].map(option => option.value).includes(get("order")) ? get("order") : "number";
  state.count = parseInt(get("count", "50"), 10) || 50;
  state.channel = /^\d+$/.test(get("channel", "")) ? Number(get("channel")) : firstUnit().kept[0];
  state.spread = get("spread") === "1";
  state.compare = data.nets.length > 1 && get("compare") !== "0";
  at("order").value = state.order;
  at("spread").checked = state.spread;
  at("compare").checked = state.compare;
  at("stage").replaceChildren(...stages.map(stage => new Option(stage === "all" ? "all stages" : `stage ${stage}`, stage, false, stage === state.stage)));
  fillUnits();
  fillChosen();
  say([...problems, fit()].filter(Boolean).join(" "));
}
function save() {
  writeAddress({ stage: state.stage === "all" ? "" : state.stage, unit: state.unit, classes: state.classes.join() || ",", channel: state.channel,
    order: state.order === "number" ? "" : state.order, count: state.count === 50 ? "" : state.count, spread: state.spread ? 1 : "", compare: data.nets.length > 1 && !state.compare ? 0 : "" });
}

// Controls
function fillUnits() {
  const names = unitNames();
  if (!names.includes(state.unit)) state.unit = names[0];
  at("unit").replaceChildren(...names.map(name => new Option(name, name, false, name === state.unit)));
}
function fit() {  // limits counts and channels to those of the unit; returns messages
  const { name, kept } = firstUnit(), problems = [], most = kept.length;
  at("count").max = most;
  if (!(state.count >= 1 && state.count <= most)) {
    if (state.count !== 50) problems.push(`${name} has ${most} channels on this page; choose 1 to ${most}.`);
    state.count = Math.max(1, Math.min(most, Math.round(state.count) || 1));
  }
  if (!kept.includes(state.channel)) {
    problems.push(`${name} has no channel ${state.channel} on this page; the channels go from ${kept[0]} to ${kept[most - 1]}.`);
  }
  at("count").value = state.count;
  at("channel").value = state.channel;
  return problems.join(" ");
}
function fillChosen() {
  const names = shortened(state.classes.map(label => data.classes[label]));
  at("chosen").replaceChildren(...state.classes.map((label, i) => {
    const chip = button(`${names[i]} ×`, () => {
      state.classes = state.classes.filter(other => other !== label);
      slots.delete(label);
      changed(state.classes.length ? "" : "No class is selected; the line is the mean of all classes.");
      fillChosen();
      (at("chosen").children[Math.min(i, state.classes.length - 1)] ?? at("class")).focus();
    }, { title: `remove ${data.classes[label]}`, "aria-label": `remove ${data.classes[label]}` });
    chip.style.borderColor = dark.matches ? lightened(hue(slots.get(label))) : hue(slots.get(label));
    chip.style.borderStyle = dash(slots.get(label)) === "solid" ? "solid" : "dashed";
    return chip;
  }));
}
function addClass() {
  const given = at("class").value.trim(), text = given.toLowerCase();
  const label = data.classes.findIndex((name, i) => name.toLowerCase() === text || data.folders[i].toLowerCase() === text);
  if (!text) return say("Type the name of a class, or its folder.");
  if (label < 0) {
    const near = data.classes.filter((name, i) => name.toLowerCase().includes(text) || data.folders[i].toLowerCase().includes(text));
    return say(`Unknown class “${given}”` + (near.length ? `; similar: ${near.slice(0, 5).join(", ")}.` : "."));
  }
  at("class").value = "";
  if (slots.has(label)) return say(`“${data.classes[label]}” is already selected.`);
  if (slots.size >= MOST_CLASSES) return say(`At most ${MOST_CLASSES} classes can be selected; remove one first.`);
  if (!there(label)) return say(`There is no image of class “${data.classes[label]}”.`);
  const taken = new Set(slots.values());
  slots.set(label, COLORS.findIndex((_, slot) => !taken.has(slot)));
  state.classes = state.classes.concat(label);
  fillChosen();
  changed();
}
function chooseUnit(name) {
  state.unit = name;
  at("unit").value = name;
  const { kept } = firstUnit();
  if (!kept.includes(state.channel)) state.channel = kept[0];
  changed();
}
function changed(text = "") {
  say([text, fit()].filter(Boolean).join(" "));
  save();
  drawAll();
}
at("stage").addEventListener("change", () => { state.stage = at("stage").value; fillUnits(); chooseUnit(state.unit); });
at("unit").addEventListener("change", () => chooseUnit(at("unit").value));
at("class").addEventListener("change", addClass);
at("order").addEventListener("change", () => { state.order = at("order").value; changed(); });
for (const id of ["spread", "compare"]) at(id).addEventListener("change", () => { state[id] = at(id).checked; changed(); });
at("count").addEventListener("change", () => {
  state.count = Number(at("count").value) || 0;  // the default of 50 is not an error for smaller units
  changed(state.count === 50 && firstUnit().kept.length < 50 ? `${state.unit} has ${firstUnit().kept.length} channels on this page.` : "");
});
at("channel").addEventListener("change", () => {
  const given = at("channel").value;
  if (!/^\d+$/.test(given)) {
    at("channel").value = state.channel;
    return say("Type the number of a channel.");
  }
  state.channel = Number(given);
  changed();
});

// Plots
const KINDS = {  // title, height, plot, data rows, action of a click on a point, note
  overview: ["Units", 250, overview, overviewRows, point => chooseUnit(point.x), "All units. Click one to select it."],
  profile: ["Gates by channel", 360, profile, profileRows, point => { state.channel = point.customdata; changed(); }, "Click a point to select its channel."],
  one: ["One channel by class", 400, channel, (net, u) => [["class", "mean gate", "standard deviation"], ...byClass(net, u).map(([name, ...two]) => [name, ...two.map(rounded)])], null, ""],
  gates: ["Density of the gates", 400, density, (net, u) => { const { density: [x, y] } = data.nets[net].units[u]; return [["gate", "density"], ...x.map((each, i) => [each, y[i]])]; }, null, ""],
};
const boxes = new Map();
function boxOf(net) {
  if (boxes.has(net)) return boxes.get(net);
  const box = make("section", null, { class: "net", id: `net-${net}`, "aria-labelledby": `net-${net}-name` }, make("h2", data.nets[net].label, { id: `net-${net}-name` }));
  const pair = make("div", null, { class: "pair" }), pictures = make("div", null, { class: "pictures" }), unit = make("h3", "", { class: "unit" }), nodes = {};
  for (const [kind, [title, height, , rows, , note]] of Object.entries(KINDS)) {
    const frame = figureFrame({ id: `net-${net}-${kind}`, title: `${title} of ${data.nets[net].label}`, height, note, rows: () => rows(net, unitOf(net)) });
    frame.node.classList.add(kind);
    nodes[kind] = frame.node;
    const part = make("div", null, {}, ...frame.parts);
    if (kind === "one" || kind === "gates") pair.append(part);
    else box.append(part);
    if (kind === "overview") box.append(unit);
  }
  box.append(pair, pictures);
  boxes.set(net, { box, nodes, unit, pictures, pair });
  return boxes.get(net);
}
function drawAll() {
  const shown = data.nets.map((_, net) => net).slice(0, state.compare ? 2 : 1);
  at("nets").className = shown.length > 1 ? "nets two scripted" : "nets scripted";
  at("nets").replaceChildren(...shown.map(net => boxOf(net).box));
  for (const net of shown) {
    const { nodes, unit, pictures, pair } = boxOf(net), u = unitOf(net);
    unit.textContent = u < 0 ? `This net has no ${state.unit}.` : state.unit;
    for (const part of [nodes.profile.closest("figure").parentNode, pair, pictures]) part.hidden = u < 0;
    for (const [kind, [, , build, , click]] of Object.entries(KINDS)) {
      if (kind !== "overview" && u < 0) continue;
      const node = nodes[kind], { traces, layout } = build(net, u), fresh = !node.data;
      Plotly.react(node, recolored(traces), themed(layout), OPTIONS);
      if (fresh && click) node.on("plotly_click", event => click(event.points[0]));
    }
    if (u >= 0) showPictures(net, u, pictures);
  }
}

document.title = `Excitations of ${data.title}`;
at("title").textContent = data.title;
at("about").textContent = data.about;
at("thinned").textContent = data.thinned;
at("compare-field").hidden = data.nets.length < 2;
at("classes").replaceChildren(...data.classes.map((name, i) => new Option(data.folders[i], name)));
restore();
loadPlotly().then(() => {
  drawAll();
  addEventListener("hashchange", () => { restore(); drawAll(); });
  dark.addEventListener("change", () => { fillChosen(); drawAll(); });
  for (const [event, on] of [["beforeprint", true], ["afterprint", false]]) addEventListener(event, () => { printing = on; drawAll(); });
  document.body.dataset.ready = "1";
}, error => say(`This browser cannot draw the figures: ${error.message}`));
