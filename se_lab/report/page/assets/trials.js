// A table of all trials, including failed ones; details are created when they are first opened.
let trialTable = null;
const trialDetails = [];

function addTrials(part) {
  part.append(make("details", null, {}, make("summary", "Settings of all trials"), facts(Object.entries(data.shared))));
  const column = (label, of, text = false, node) => ({ label, text, cells: data.trials.map(of), by: data.trials.map(trial => {
    const value = of(trial), number = numberOf(value);
    return Number.isNaN(number) ? value : number;
  }), node });
  const open = i => button(data.trials[i].name, () => openTrial(i, trialDetails[i].hidden), { class: "open", "aria-expanded": "false" });
  trialTable = sortable({
    id: "trial-table", caption: "Click the name of a trial for its settings, environment and command.",
    columns: [column("variant", trial => trial.name, true, open), column("seed", trial => trial.seed),
      column("status", trial => trial.status, true, i => make("span", data.trials[i].status, data.trials[i].status === "finished" ? {} : { class: "failed" })),
      column(data.metric.heading, trial => trial.value), column("trial", trial => trial.id, true)],
    lead: i => [make("td", null, { class: "text choose" }, checkbox(null, false, on => {
      if (on) state.compared.add(i); else state.compared.delete(i);
      save();
      showComparison();
    }, { "aria-label": `compare ${data.trials[i].name}, seed ${data.trials[i].seed}`, id: `compare-${i}` }))],
    leadHeads: ["compare"], extra: i => trialDetails[i] ??= make("tr", null, { class: "details", hidden: "" }, make("td", null, { colspan: "6" })),
  });
  trialTable.rows.forEach((row, i) => { row.id = `trial-${i}`; });
  part.append(trialTable.node);
}
function fillTrial(i) {
  const cell = trialDetails[i].firstChild, trial = data.trials[i];
  if (cell.childNodes.length) return;
  cell.append(facts(Object.entries(trial.spec)));
  if (trial.error && trial.traceback === undefined) cell.append(make("h3", "Error"), make("pre", trial.error));
  if (trial.traceback !== undefined) cell.append(make("h3", "Error"), make("pre", data.tracebacks[trial.traceback], { tabindex: "0" }));
  if (trial.command) cell.append(make("h3", "Reproduce"), make("pre", trial.command), button("Copy command", event => copy(trial.command, () => { event.target.textContent = "Copied"; }), { class: "choose" }));
  if (trial.environment !== undefined) {
    cell.append(make("h3", "Environment"), facts([["started", trial.started], ...Object.entries(trial.timings), ...Object.entries(data.environments[trial.environment])]));
  }
}
function openTrial(i, open = true) {
  const row = trialTable.rows[i];
  fillTrial(i);
  row.hidden = false;
  trialDetails[i].hidden = !open;
  row.querySelector(".open").setAttribute("aria-expanded", String(open));
  trialTable.rows.forEach(other => other.classList.toggle("target", other === row && open));
  address.anchor = open ? row.id : "trials";
  save();
  if (open) row.scrollIntoView({ block: "center" });
}

// Settings side by side, of the trials marked for comparison, or of the selected variants.
function showComparison() {
  const box = at("compared");
  box.replaceChildren();
  const things = state.compared.size > 1 ? [...state.compared].map(i => [`${data.trials[i].name}, seed ${data.trials[i].seed}`, data.trials[i].spec])
    : [...state.selected].map(v => [data.variants[v].name, data.trials.find(trial => trial.variant === v)?.spec ?? {}]);
  at("comparison").hidden = things.length < 2;
  if (things.length < 2) return;
  const keys = [...new Set(things.flatMap(([, spec]) => Object.keys(spec)))].filter(key => new Set(things.map(([, spec]) => spec[key])).size > 1);
  if (!keys.length) box.append(make("p", "They differ only in their seeds.", { class: "note" }));
  else box.append(plainTable([["setting", ...things.map(([name]) => name)], ...keys.map(key => [key, ...things.map(([, spec]) => spec[key] ?? "–")])],
    "Settings that differ"));
}
