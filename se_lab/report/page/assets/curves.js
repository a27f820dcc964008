// Training curves: a variant's mean over its seeds with the range of its trials, or a line a trial.
const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8c6bb1", "#999933", "#44AA99", "#AA4466"];
const MOST_SHOWN = 6;  // variants whose curves are shown before a reader asks for more

function addCurves(part) {
  const quantities = data.curves.quantities;
  const picked = () => quantities[Math.min(state.quantity, quantities.length - 1)];
  const numbers = value => value === null || (state.log && value <= 0) ? NaN : value;  // a logarithm has no place for 0
  function build() {
    const time = state.time && data.curves.has_time, traces = [], { keys, heading } = picked();
    data.curves.order.forEach((variant, place) => {
      const trials = data.curves.trials.filter(one => one.variant === variant && (state.trials === null || state.trials.has(one.trial)));
      const line = data.variants[variant].baseline ? "#000" : PALETTE[place % PALETTE.length];
      const common = { type: "scatter", mode: "lines", name: escaped(data.variants[variant].name), legendgroup: `v${variant}`,
        visible: place < MOST_SHOWN ? true : "legendonly" };
      keys.forEach((key, k) => {
        const own = trials.filter(one => one.values[key]);
        if (!own.length) return;
        const dash = key.startsWith("train/") ? "dot" : "solid", first = k === 0;
        const x = one => time ? one.seconds : one.epoch;
        const markers = Math.max(...own.map(one => one.epoch.length)) <= 3 ? { mode: "lines+markers" } : {};
        if (state.each) {
          own.forEach((one, i) => traces.push({ ...common, ...markers, x: x(one), y: one.values[key], line: { color: line, dash, width: 1.2 },
            meta: [variant, one.trial], showlegend: first && i === 0, hovertemplate: `${common.name}, seed ${data.trials[one.trial].seed}<br>${key} %{y:.4g}<extra></extra>` }));
          return;
        }
        const longest = own.reduce((a, b) => b.epoch.length > a.epoch.length ? b : a), steps = longest.epoch.map((_, i) => i);
        const at = i => own.map(one => numbers(one.values[key][i])).filter(Number.isFinite);
        const xs = time ? steps.map(i => mean(own.map(one => one.seconds[i]).filter(Number.isFinite))) : longest.epoch;
        if (own.length > 1) {
          const known = steps.filter(i => at(i).length), back = [...known].reverse();
          const low = back.map(i => Math.min(...at(i))), high = known.map(i => Math.max(...at(i)));
          traces.push({ ...common, x: [...known, ...back].map(i => xs[i]), y: high.concat(low), fill: "toself", line: { width: 0 },
            fillcolor: line === "#000" ? "rgba(128,128,128,0.25)" : `${line}30`, hoverinfo: "skip", showlegend: false, meta: [variant, -1] });
        }
        traces.push({ ...common, ...markers, x: xs, y: steps.map(i => mean(at(i))), line: { color: line, dash, width: 1.8 }, meta: [variant, -1], showlegend: first,
          hovertemplate: `${common.name}<br>${key} %{y:.4g}, ${own.length} ${own.length === 1 ? "trial" : "trials"}<extra></extra>` });
      });
    });
    const epochs = data.curves.trials.reduce((most, one) => Math.max(most, one.epoch.length), 0);
    // the first tenth falls from chance level: to show it would flatten all that follows
    const settled = data.curves.trials.flatMap(one => keys.flatMap(key => (one.values[key] ?? []).slice(epochs > 3 ? Math.ceil(epochs / 10) : 0)));
    const top = 1.05 * settled.reduce((most, value) => Math.max(most, value ?? 0), 0);
    return { traces, layout: { xaxis: { title: { text: time ? "training time (s)" : "epoch" }, ...(epochs <= 12 && !time ? { dtick: 1 } : {}) },
      yaxis: { title: { text: heading }, type: state.log ? "log" : "linear", ...(state.log ? {} : { range: [0, top || 1] }) } } };
  }
  const again = () => { save(); redraw(plot); };
  part.append(make("div", null, { class: "controls" },
    select("Show", quantities.map(one => one.heading), state.quantity, i => { state.quantity = i; again(); }),
    ...(data.curves.has_time ? [select("over", ["epoch", "time"], state.time ? 1 : 0, i => { state.time = i === 1; again(); })] : []),
    checkbox("logarithmic", state.log, on => { state.log = on; again(); }),
    checkbox("a line a trial", state.each, on => { state.each = on; again(); })));
  const plot = addPlot(part, { id: "curves", title: "Training curves", build, height: 420,
    note: "Solid in validation, dotted in training; the mean over seeds, with a band from the lowest to the highest. Click a name to show or hide it." });
}
const mean = values => values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
const escaped = text => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
