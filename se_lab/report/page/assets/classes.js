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
    note: "Of all images of a class, in all finished trials of the variant.",
    build: () => ({
      traces: [...new Set([one(), other()])].map((chosen, i) => ({ type: "bar", name: escaped(data.variants[chosen.variant].name), x: names,
        y: chosen.errors, marker: { color: PALETTE[i] }, hovertemplate: "class %{x}: %{y:.2f} %<extra></extra>" })),
      layout: { xaxis: { type: "category", title: { text: "class" } }, yaxis: { title: { text: "top-1 error (%)" }, rangemode: "tozero" }, barmode: "group" } }),
    rows: () => [["class", ...labels], ...names.map((name, c) => [name, ...variants.map(each => each.errors[c])])] });
  let confusion = null;
  if (variants[0].confusion) {
    part.append(make("h3", "Confusion"));
    confusion = addPlot(part, { id: "confusion", title: "Confusion matrix", height: Math.min(700, 160 + 26 * names.length),
      note: "Images in all finished trials of the first variant: a row a true class, a column a predicted one. The diagonal and zeros are left out.",
      build: () => {
        const z = one().confusion.map((row, r) => row.map((value, c) => r === c || value === 0 ? null : value));
        return { traces: [{ type: "heatmap", x: names, y: names, z, colorscale: "Cividis", reversescale: true, xgap: 1, ygap: 1,
          ...(names.length <= 20 ? { text: z.map(row => row.map(value => value ?? "")), texttemplate: "%{text}" } : {}), hovertemplate: "%{y} taken for %{x}: %{z}<extra></extra>" }],
        layout: { xaxis: { type: "category", title: { text: "predicted class" }, showgrid: false }, yaxis: { type: "category", title: { text: "true class" }, autorange: "reversed", showgrid: false } } };
      },
      rows: () => [["true class", ...names], ...one().confusion.map((row, r) => [names[r], ...row])] });
  } else {
    part.append(make("h3", "Most confused"), make("p", `With ${names.length} classes: the pairs that are confused most, by variant.`, { class: "note" }));
    part.append(plainTable([["variant", "true class", "taken for", "images"], ...variants.flatMap(each =>
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
      box.append(make("p", one() === other() ? "Choose another variant to compare with." : "No image sets the two apart.", { class: "note" }));
      return;
    }
    const tell = (each, i) => `${each.right[i]} of ${each.trials}` + (each.guess[i] === truth[i] ? "" : `, ${names[each.guess[i]]}`);
    const heads = ["image", "class", data.variants[one().variant].name, data.variants[other().variant].name];
    const cells = rows.slice(0, 100).map(({ key, i }) => [key, names[truth[i]], tell(one(), i), tell(other(), i)]);
    const table = sortable({ id: "images", caption: `${rows.length} images that one variant gets right in more of its trials than the other`,
      columns: heads.map((label, c) => ({ label, text: true, cells: cells.map(row => row[c]), by: cells.map(row => row[c]),
        node: c === 0 ? place => pictured(rows[place].key, pictures[rows[place].i]) : undefined })) });
    box.append(table.node, make("p", `How many trials of the variant are right, and what its first trial takes the image for.` +
      (rows.length > 100 ? " The 100 with the largest difference." : "") + (total > keys.length ? ` Looked for among the ${keys.length} images, of ${total}, on which trials differ most.` : ""), { class: "note" }));
  }
  const pictured = (key, source) => source ? make("span", null, {}, make("img", null, { src: source, alt: "", class: "thumbnail" }), ` ${key}`) : key;
  showImages();
}
