// Tables that sort by a click on a column's head.

const byId = (id) => document.getElementById(id);

function makeSortable(table) {
  const body = table.tBodies[0];
  for (const head of table.querySelectorAll("th[data-sort]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => sort(head));
  }
  function sort(head) {
    const numeric = head.dataset.sort === "number";
    const before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numeric;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[head.cellIndex].dataset.value;
    const order = numeric ? (a, b) => value(a) - value(b)
      : (a, b) => value(a).localeCompare(value(b));
    const rows = [...body.rows].sort(down ? (a, b) => order(b, a) : order);
    body.append(...rows);
  }
}
document.querySelectorAll("table.sortable").forEach(makeSortable);
