"use strict";
(() => {
  const tools = document.getElementById("tools");
  if (!tools) return;
  const cards = [...document.querySelectorAll("[data-card]")].map((node) => ({
    node,
    text: (node.dataset.image + " " + node.textContent).toLowerCase().replace(/\s+/g, " "),
  }));
  const matches = document.getElementById("matches");
  const more = document.getElementById("more");
  const apply = () => {
    const state = tools.elements.state ? tools.elements.state.value : "";
    const row = tools.elements.row ? tools.elements.row.value : null;
    const words = tools.elements.query.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { node, text } of cards) {
      const current = row === null ? node.dataset.state : node.getAttribute("data-row-" + row);
      const visible = (!state || current === state) && words.every((word) => text.includes(word));
      node.hidden = !visible;
      shown += visible;
    }
    matches.textContent = shown === cards.length ? `${shown} images` : `${shown} of ${cards.length} images`;
  };
  tools.addEventListener("input", () => {
    if (more) more.open = true; // the filter looks at every card
    apply();
  });
  tools.addEventListener("submit", (event) => event.preventDefault());
  tools.hidden = false;
  apply();
})();
