"use strict";
// The page is made by the server; this fetches it again and shows what has changed.

const EVERY = 3000; // ms

async function refresh() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/results");
    if (!answer.ok) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("results");
    const shown = document.getElementById("results");
    if (fresh && fresh.innerHTML !== shown.innerHTML) shown.innerHTML = fresh.innerHTML;
  } catch { /* the server has ended; what is shown stays */ }
}

setInterval(refresh, EVERY);
