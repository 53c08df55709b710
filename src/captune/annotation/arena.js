"use strict";
// One battle at a time. A vote has an id of its own and is sent until the server has answered, so that it counts once.

const KEYS = { ArrowLeft: "left", ArrowRight: "right", t: "tie", x: "bad", s: "skip", u: "undo" };
const PATIENCE = 700; // ms between two attempts
const rater = document.body.dataset.rater;
const part = (id) => document.getElementById(id);
let state = { battle: null, last: null };
let busy = true;

class Refused extends Error {}

async function ask(path, body) {
  for (;;) {
    try {
      const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
      const answer = await fetch(path, options);
      if (answer.status >= 500) throw new Error(answer.statusText);
      if (!answer.ok) {
        const text = await answer.text();
        let why = text;
        try { why = JSON.parse(text).error; } catch { /* plain text */ }
        throw new Refused(why);
      }
      const found = await answer.json();
      say("");
      return found;
    } catch (error) {
      if (error instanceof Refused) throw error;
      say(body ? "The server does not answer. What you chose is kept here and sent again." : "The server does not answer.");
      await new Promise((wake) => setTimeout(wake, PATIENCE));
    }
  }
}

function say(sentence) {
  if (part("message").textContent !== sentence) part("message").textContent = sentence;
}

function number() {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function show(found) {
  const other = !state.battle || !found.battle || state.battle.id !== found.battle.id;
  state = found;
  const battle = state.battle;
  part("battle").hidden = !battle;
  part("end").hidden = Boolean(battle);
  for (const button of document.querySelectorAll("[data-verdict]")) button.hidden = !battle;
  part("undo").setAttribute("aria-disabled", String(!state.last));
  part("count").textContent = `${state.done.toLocaleString("en")} of ${state.of.toLocaleString("en")}`;
  part("progress").max = state.of;
  part("progress").value = state.done;
  if (!battle) return;
  for (const side of ["left", "right"]) {
    const blank = !battle[side].trim();
    part(side).textContent = blank ? "(an empty caption)" : battle[side];
    part(side).classList.toggle("muted", blank);
  }
  if (part("image").getAttribute("src") !== battle.image) {
    part("noimage").hidden = true;
    part("image").hidden = false;
    part("image").setAttribute("src", battle.image);
  }
  document.body.dataset.battle = battle.id;
  if (other) scrollTo(0, 0);
}

async function act(work) {
  if (busy) return;
  busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    show(await work());
    if (state.kept === false) say("That was judged or undone already, in another tab perhaps; nothing has changed.");
  } catch (error) {
    say(error.message);
  } finally {
    busy = false;
    document.body.removeAttribute("aria-busy");
  }
}

function decide(verdict) {
  if (verdict === "undo") {
    if (state.last) act(() => ask("/undo", { rater, id: state.last }));
  } else if (state.battle) {
    const vote = { rater, id: number(), battle: state.battle.id, verdict };
    act(() => ask("/vote", vote));
  }
}

part("image").addEventListener("error", () => {
  part("image").hidden = true;
  part("noimage").hidden = false;
});
part("verdicts").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) decide(button.dataset.verdict || "undo");
});
document.addEventListener("keydown", (event) => {
  if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
  const verdict = KEYS[event.key] || KEYS[event.key.toLowerCase()];
  if (!verdict) return;
  event.preventDefault();
  decide(verdict);
});
addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

busy = false;
act(() => ask(`/state?rater=${encodeURIComponent(rater)}`));
