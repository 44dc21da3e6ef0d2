"use strict";
for (const button of document.querySelectorAll("button.copy")) {
  const code = button.parentElement.querySelector("code") || button.closest("details").querySelector("pre code");
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    } catch {
      getSelection().selectAllChildren(code);
      button.textContent = "Selected";
    }
  });
}
const tables = [...document.querySelectorAll("details.table")];
const all = document.querySelector("button.all");
const name = () => { all.textContent = tables.every((item) => item.open) ? "Fold all" : "Open all"; };
if (all) {
  all.hidden = false;
  name();
  all.addEventListener("click", () => {
    const open = !tables.every((item) => item.open);
    for (const item of tables) item.open = open;
    name();
  });
  for (const item of tables) item.addEventListener("toggle", name);
}
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not(.raw):not([open])")];
  for (const item of folded) item.open = true;
});
addEventListener("afterprint", () => {
  for (const item of folded) item.open = false;
});
