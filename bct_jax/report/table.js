// Sorts and filters the table of all arms, and opens what a link leads into.
"use strict";
(() => {
  const table = document.getElementById("cells-table");
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  // The first number of a text such as "17 to 32" or "> 40", else none.
  const number = (text) => {
    const found = /-?\d+(\.\d+)?(e-?\d+)?/i.exec(text);
    return found ? Number(found[0]) : NaN;
  };

  function value(row, column) {
    const cell = row.cells[column];
    return cell.dataset.sort ?? cell.textContent.trim();
  }

  // Numbers come in their order, before what is no number; texts as people
  // sort them.
  function compare(a, b) {
    const [x, y] = [number(a), number(b)];
    if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    if (!Number.isNaN(x) && x !== y) return x - y;
    return a.localeCompare(b, "en", { numeric: true });
  }

  function sort(column, up) {
    const numeric = column > 0;
    const rows = [...body.rows];
    rows.sort((r, s) => {
      const [a, b] = [value(r, column), value(s, column)];
      const order = numeric
        ? compare(a, b) : a.localeCompare(b, "en", { numeric: true });
      return up ? order : -order;
    });
    body.append(...rows);
    headings.forEach((h, i) => {
      const state = i === column ? (up ? "ascending" : "descending") : "none";
      h.setAttribute("aria-sort", state);
    });
  }

  headings.forEach((heading, column) => {
    heading.tabIndex = 0;
    const turn = () =>
      sort(column, heading.getAttribute("aria-sort") !== "ascending");
    heading.addEventListener("click", turn);
    heading.addEventListener("keydown", (event) => {
      if (event.key === "Enter") turn();
    });
  });

  document.getElementById("cells-filter").addEventListener("input", (event) => {
    const words = event.target.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });

  function open() {
    const target = document.getElementById(location.hash.slice(1));
    for (let at = target; at; at = at.parentElement) {
      if (at.tagName === "DETAILS") at.open = true;
    }
    target?.scrollIntoView();
  }
  addEventListener("hashchange", open);
  if (location.hash) open();
})();
