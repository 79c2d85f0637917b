// Tick all rows of a table at once; without script they are ticked one by one.
"use strict";

for (const head of document.querySelectorAll("table.queue th.tick")) {
  const boxes = () => head.closest("table").querySelectorAll("td.tick input");
  const all = document.createElement("input");
  all.type = "checkbox";
  all.setAttribute("aria-label", "Select all of this page");
  all.addEventListener("change", () => { for (const box of boxes()) box.checked = all.checked; });
  head.closest("table").addEventListener("change", (event) => {
    if (event.target !== all) all.checked = [...boxes()].every((box) => box.checked);
  });
  head.replaceChildren(all);
}
