// The Leaderboard tab: a table is chosen, and sorted by a click on a heading; its bars are in its rows.

import { askHtml } from "./server.js";

const of = (id) => document.getElementById(id);

export class Boards {
  constructor(page) {
    this.page = page;
    of("boards").addEventListener("change", (event) => {
      if (event.target.id === "board") page.go({ table: event.target.value });
      if (event.target.id === "board-details") of("boards").classList.toggle("every", event.target.checked);
    });
    of("boards").addEventListener("click", (event) => {
      const heading = event.target.closest("th button");
      if (heading) sortBy(heading.closest("th"));
    });
  }

  async show() {
    const table = this.page.state.table || "";
    if (table === this.table) return;
    this.table = table;
    const place = of("boards");
    if (!place.firstElementChild) place.textContent = "Reading the tables …";
    try {
      const html = await askHtml("leaderboard", { table });
      if (table === this.table) place.innerHTML = html;
    } catch (error) {
      this.table = undefined;
      place.textContent = error.message;
    }
  }
}

/** Sort a table by one of its columns: numbers from the largest, words from A; a second click the other way round. */
function sortBy(heading) {
  const column = heading.cellIndex;
  const body = heading.closest("table").tBodies[0];
  const rows = [...body.rows];
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  const numeric = heading.dataset.kind === "number";
  const down = heading.ariaSort ? heading.ariaSort === "ascending" : numeric;
  for (const each of heading.parentElement.cells) each.ariaSort = null;
  heading.ariaSort = down ? "descending" : "ascending";
  const compared = (a, b) => (numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true }));
  rows.sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === "" || b === "") return (a === "") - (b === ""); // what is missing stays last
    return down ? compared(b, a) : compared(a, b);
  });
  body.append(...rows);
}
