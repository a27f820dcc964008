// Errors by class, the confusion matrix, and the images on which two variants disagree, from the trials' predictions.
function addClasses(part) {
  const { names, variants } = data.classes;
  const labels = variants.map(one => data.variants[one.variant].name);
  const one = () => variants[Math.min(state.one, variants.length - 1)], other = () => variants[Math.min(state.other, variants.length - 1)];
  const again = () => { save(); errors.dirty = true; redraw(errors); if (confusion) redraw(confusion); showImages(); };
  part.append(make("div", null, { class: "controls" },
    select("Variant", labels, state.one, i => { state.one = i; again(); }),
    select("beside", labels, state.other, i => { state.other = i; again(); })));
  part.append(make("h3", "Errors by class"));
  const errors = addPlot(part, { id: "classes", title: "Top-1 error by class", height: 340,
    note: "Error over all images of a class, in all finished trials of the variant.",
    build: () => ({
      traces: [...new Set([one(), other()])].map((chosen, i) => ({ type: "bar", name: escaped(data.variants[chosen.variant].name), x: names,
        y: chosen.errors, marker: { color: PALETTE[i] }, hovertemplate: "class %{x}: %{y:.2f} %<extra></extra>" })),
      layout: { xaxis: { type: "category", title: { text: "class" } }, yaxis: { title: { text: "top-1 error (%)" }, rangemode: "tozero" }, barmode: "group" } }),
    rows: () => [["class", ...labels], ...names.map((name, c) => [name, ...variants.map(each => each.errors[c])])] });
  let confusion = null;
  if (variants[0].confusion) {
    part.append(make("h3", "Confusion"));
    confusion = addPlot(part, { id: "confusion", title: "Confusion matrix", height: Math.min(700, 160 + 26 * names.length),
      note: "Numbers of images in all finished trials of the first variant, without the diagonal and zeros.",
      build: () => {
        const z = one().confusion.map((row, r) => row.map((value, c) => r === c || value === 0 ? null : value));
        return { traces: [{ type: "heatmap", x: names, y: names, z, colorscale: "Cividis", reversescale: true, xgap: 1, ygap: 1,
          ...(names.length <= 20 ? { text: z.map(row => row.map(value => value ?? "")), texttemplate: "%{text}" } : {}), hovertemplate: "%{y} classified as %{x}: %{z}<extra></extra>" }],
        layout: { xaxis: { type: "category", title: { text: "predicted class" }, showgrid: false }, yaxis: { type: "category", title: { text: "true class" }, autorange: "reversed", showgrid: false } } };
      },
      rows: () => [["true class", ...names], ...one().confusion.map((row, r) => [names[r], ...row])] });
  } else {
    part.append(make("h3", "Most confused"), make("p", `The most confused pairs of ${names.length} classes, by variant.`, { class: "note" }));
    part.append(plainTable([["variant", "true class", "predicted class", "images"], ...variants.flatMap(each =>
      each.pairs.map(([truth, guess, count]) => [data.variants[each.variant].name, names[truth], names[guess], count]))], "Most confused classes"));
  }
  const box = make("div");
  part.append(make("h3", "Images on which the two disagree"), box);
  function showImages() {
    const { keys, truth, pictures, total } = data.classes.images;
    const rows = keys.map((key, i) => ({ key, i, a: one().right[i], b: other().right[i] }))
      .filter(row => row.a / one().trials !== row.b / other().trials)
      .sort((x, y) => Math.abs(y.a / one().trials - y.b / other().trials) - Math.abs(x.a / one().trials - x.b / other().trials));
    box.replaceChildren();
    if (one() === other() || !rows.length) {
      box.append(make("p", one() === other() ? "Choose another variant for comparison." : "Both variants classify each image correctly in the same fraction of trials.", { class: "note" }));
      return;
    }
    const tell = (each, i) => `${each.right[i]} of ${each.trials}` + (each.guess[i] === truth[i] ? "" : `, ${names[each.guess[i]]}`);
    const heads = ["image", "class", data.variants[one().variant].name, data.variants[other().variant].name];
    const cells = rows.slice(0, 100).map(({ key, i }) => [key, names[truth[i]], tell(one(), i), tell(other(), i)]);
    const table = sortable({ id: "images", caption: `${rows.length} images that the two variants classify correctly in different fractions of trials`,
      columns: heads.map((label, c) => ({ label, text: true, cells: cells.map(row => row[c]), by: cells.map(row => row[c]),
        node: c === 0 ? place => pictured(rows[place].key, pictures[rows[place].i]) : undefined })) });
    box.append(table.node, make("p", `Number of trials that are correct, and the prediction of the first trial if wrong.` +
      (rows.length > 100 ? " Only the 100 largest differences are shown." : "") + (total > keys.length ? ` Based on the ${keys.length} of ${total} images on which trials differ most.` : ""), { class: "note" }));
  }
  const pictured = (key, source) => source ? make("span", null, {}, make("img", null, { src: source, alt: "", class: "thumbnail" }), ` ${key}`) : key;
  showImages();
}
