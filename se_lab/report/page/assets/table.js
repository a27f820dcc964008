// A sortable table: empty cells are always last, and sorting is stable.
// columns: [{label, text, cells, by, bold}]; lead(row) may return cells before the columns; extra(row) a row after it.
function sortable({ id, caption, columns, lead, leadHeads = [], extra, onSort }) {
  const count = columns[0]?.cells.length ?? 0;
  const rows = Array.from({ length: count }, (_, i) => {
    const row = make("tr", null, {}, ...(lead ? lead(i) : []));
    columns.forEach((column, c) => {
      const first = c === 0 && column.text;
      const cell = make(first ? "th" : "td", null, { ...(column.text ? { class: "text" } : {}), ...(first ? { scope: "row" } : {}) });
      const content = column.node?.(i) ?? column.cells[i];
      if (column.bold?.[i]) cell.append(make("strong", column.cells[i]));
      else cell.append(...(column.text && typeof content === "string" ? breakable(content) : [content]));
      row.append(cell);
    });
    return row;
  });
  const body = make("tbody", null, {}, ...rows.flatMap((row, i) => [row, ...(extra ? [extra(i)] : [])]));
  const heads = columns.map((column, c) => make("th", null, { scope: "col", ...(column.text ? { class: "text" } : {}) },
    button(column.label, () => sort(c, heads[c].getAttribute("aria-sort") === "ascending"))));
  function sort(c, down) {
    heads.forEach(other => other.removeAttribute("aria-sort"));
    heads[c].setAttribute("aria-sort", down ? "descending" : "ascending");
    const empty = value => value === null || value === "" || value === undefined;
    const order = columns[c].by.map((value, i) => [value, i]).sort(([a, i], [b, j]) => {
      if (empty(a) || empty(b)) return empty(a) - empty(b) || i - j;
      const way = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
      return (down ? -way : way) || i - j;
    }).map(([, i]) => i);
    body.append(...order.flatMap(i => [rows[i], ...(extra ? [extra(i)] : [])]));
    table.order = order;
    onSort?.(c, down);
  }
  const head = make("thead", null, {}, make("tr", null, {}, ...leadHeads.map(text => make("th", text, { scope: "col", class: "text choose" })), ...heads));
  const whole = make("table", null, { id }, ...(caption ? [make("caption", caption)] : []), head, body);
  const node = make("div", null, { class: "scroll", tabindex: "0", role: "region", "aria-label": caption || id }, whole);
  const table = { rows, node, sort, heads, order: rows.map((_, i) => i) };
  return table;
}
function breakable(text) {  // allows line breaks after separators in long names
  return text.split(/(?<=[_./-])(?=[^\d_./-])/).flatMap((part, i) => i ? [make("wbr", null), part] : [part]);
}
function facts(pairs) {
  const list = make("dl", null, { class: "facts" });
  for (const [name, value] of pairs) list.append(make("dt", name), make("dd", value));
  return list;
}
const notes = texts => make("ul", null, { class: "notes" }, ...texts.map(text => make("li", text)));
