// Training curves: mean and range over the seeds of a variant, or a line per trial.
const PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#8c6bb1", "#999933", "#44AA99", "#AA4466"];
const MOST_SHOWN = 6;  // number of variants shown initially

function addCurves(part) {
  const quantities = data.curves.quantities;
  const picked = () => quantities[Math.min(state.quantity, quantities.length - 1)];
  const positive = value => state.log && value <= 0 ? null : value;  // a log axis cannot show 0
  function build() {
    const time = state.time && data.curves.has_time, traces = [], { keys, heading } = picked();
    data.curves.order.forEach((variant, place) => {
      const trials = data.curves.trials.filter(one => one.variant === variant && (state.trials === null || state.trials.has(one.trial)));
      const line = data.variants[variant].baseline ? "#000" : PALETTE[place % PALETTE.length];
      const common = { type: "scatter", mode: "lines", name: escaped(data.variants[variant].name), legendgroup: `v${variant}`,
        visible: place < MOST_SHOWN ? true : "legendonly" };
      keys.forEach((key, k) => {
        const own = trials.filter(one => one.values[key]), band = picked().bands[variant]?.[key];
        if (!own.length || !band) return;
        const dash = key.startsWith("train/") ? "dot" : "solid", showlegend = k === 0;
        const symbol = key.startsWith("train/") ? "circle-open" : "circle";
        const markers = band[0].length < 3 ? { mode: "lines+markers", marker: { symbol, size: 7 } } : {};
        if (state.each) {
          own.forEach((one, i) => traces.push({ ...common, ...markers, x: time ? one.seconds : one.epoch, y: one.values[key], line: { color: line, dash, width: 1.2 },
            meta: [variant, one.trial], showlegend: showlegend && i === 0, hovertemplate: `${common.name}, seed ${data.trials[one.trial].seed}<br>${key} %{y:.4g}<extra></extra>` }));
          return;
        }
        const [epochs, means, lows, highs] = band, at = epoch => mean(own.map(one => one.seconds[one.epoch.indexOf(epoch)]).filter(Number.isFinite));
        const x = time ? epochs.map(at) : epochs;
        const reach = (from, to) => from.map((value, i) => value - to[i]);
        const single = epochs.length === 1 ? { error_y: { type: "data", symmetric: false, array: reach(highs, means), arrayminus: reach(means, lows) } } : {};
        if (lows.some((low, i) => low < highs[i]) && epochs.length > 1) {
          traces.push({ ...common, x: [...x, ...[...x].reverse()], y: [...highs, ...[...lows].reverse()].map(positive), fill: "toself", line: { width: 0 },
            fillcolor: line === "#000" ? "rgba(128,128,128,0.25)" : `${line}30`, hoverinfo: "skip", showlegend: false, meta: [variant, -1] });
        }
        traces.push({ ...common, ...markers, ...single, x, y: means.map(positive), line: { color: line, dash, width: 1.8 }, meta: [variant, -1], showlegend,
          hovertemplate: `${common.name}<br>${key} %{y:.4g}, ${own.length} ${own.length === 1 ? "trial" : "trials"}<extra></extra>` });
      });
    });
    const longest = Math.max(...Object.values(picked().bands).flatMap(keyed => Object.values(keyed).map(([epochs]) => epochs.length)));
    return { traces, layout: { xaxis: { title: { text: time ? "training time (s)" : "epoch" }, ...(longest <= 12 && !time ? { dtick: 1 } : {}) },
      yaxis: { title: { text: heading }, type: state.log ? "log" : "linear", ...(state.log ? {} : { range: picked().limits }) } } };
  }
  const again = () => { save(); redraw(plot); };
  part.append(make("div", null, { class: "controls" },
    select("Show", quantities.map(one => one.heading), state.quantity, i => { state.quantity = i; again(); }),
    ...(data.curves.has_time ? [select("over", ["epoch", "time"], state.time ? 1 : 0, i => { state.time = i === 1; again(); })] : []),
    checkbox("logarithmic", state.log, on => { state.log = on; again(); }),
    checkbox("one line per trial", state.each, on => { state.each = on; again(); })));
  const plot = addPlot(part, { id: "curves", title: "Training curves", build, height: 420,
    note: "Solid: validation; dotted or hollow: training. Mean over seeds, with a band from the lowest to the highest seed. Click a name to show or hide a variant." });
}
const mean = values => values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
