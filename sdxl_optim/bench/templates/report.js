// A click on a heading sorts by it, a second one the other way round; a dash is always last.
for (const table of document.querySelectorAll("table")) {
  [...table.tHead.rows[0].cells].forEach((head, k) => head.addEventListener("click", () => {
    const down = head.dataset.sorted === "up" ? -1 : 1, body = table.tBodies[0];
    for (const cell of table.tHead.rows[0].cells) delete cell.dataset.sorted;
    head.dataset.sorted = down === 1 ? "up" : "down";
    const value = row => row.cells[k].textContent.trim();
    const number = text => text === "inf" ? Infinity : parseFloat(text);
    const sorted = [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "–" || y === "–") return (x === "–") - (y === "–");
      const n = number(x), m = number(y);
      return down * (isNaN(n) || isNaN(m) ? x.localeCompare(y) : n === m ? 0 : n - m);
    });
    body.append(...sorted);
  }));
}
