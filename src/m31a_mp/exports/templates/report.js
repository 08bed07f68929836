"use strict";
// Sort a table by a click on a title: numbers from the largest, names from A to Z, and back at the second click.
for (const table of document.querySelectorAll("table")) {
  const titles = [...table.tHead.rows[0].querySelectorAll("th")];
  titles.forEach((title, column) => {
    const button = document.createElement("button");
    button.append(...title.childNodes);
    title.append(button);
    button.addEventListener("click", () => {
      const isText = column === 0 || (title.className === "text" && !table.querySelector(`tbody td:nth-child(${column + 1})[data-order]`));
      const was = title.getAttribute("aria-sort");
      const isUp = was ? was === "descending" : isText;
      titles.forEach((other) => other.removeAttribute("aria-sort"));
      title.setAttribute("aria-sort", isUp ? "ascending" : "descending");
      const key = (row) => (isText ? row.cells[column].textContent : row.cells[column].dataset.order);
      const compare = (one, two) => {
        const [a, b] = [key(one), key(two)];
        if (!isText && (a === undefined || b === undefined)) return (a === undefined) - (b === undefined); // not known: last
        const order = isText ? a.localeCompare(b) : a - b;
        return isUp ? order : -order;
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    });
  });
}
