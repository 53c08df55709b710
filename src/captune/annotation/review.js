"use strict";
// The page of `captune review`: every text of a file becomes a text node, never markup.

const $ = (selector, inside = document) => inside.querySelector(selector);
const form = $("#query"), list = $("#list"), panel = $("#panel"), side = $("#side"), rater = $("#rater");
const wide = matchMedia("(min-width: 1021px)");
const number = new Intl.NumberFormat("en").format;
const shown = { list: "", page: 1, pages: 1, total: 0, first: 0 };
let items = [], selected = -1, edits = 0, reads = 0, opened = false, asked = 0, busy = false;

function make(tag, properties = {}, ...children) {
  const { data, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  Object.assign(node.dataset, data);
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

function say(text, bad = false) {
  const status = $("#status");
  status.textContent = text;
  status.classList.toggle("bad", bad);
}

async function ask(path, body) {
  let response;
  try {
    response = await fetch(path, body && { method: "POST", body: JSON.stringify(body) });
  } catch {
    throw new Error("captune does not answer. Nothing was saved; start it again and save again.");
  }
  const text = await response.text();
  let answer;
  try { answer = JSON.parse(text); } catch { throw new Error(text || `status ${response.status}`); }
  if (!response.ok) throw new Error(answer.error || `status ${response.status}`);
  return answer;
}

// ---------------------------------------------------------------- the list

function query() {
  const asked = new URLSearchParams();
  for (const [name, value] of new FormData(form)) if (value.trim()) asked.set(name, value.trim());
  if (!asked.has("low") && !asked.has("high")) asked.delete("score");
  return asked;
}

async function load({ page = 1, name = "", select = 0, focus = false } = {}) {
  if (unsaved()) return say("Save or leave the open correction first (Enter, Esc).", true);
  const asked = query(), mine = ++load.count;
  if (page > 1) asked.set("page", page);
  if (name) asked.set("list", name);
  let answer;
  try { answer = await ask(`/captions?${asked}`); } catch (error) { return say(error.message, true); }
  if (mine !== load.count) return; // a later question is under way
  Object.assign(shown, { list: answer.list, page: answer.page, pages: answer.pages, total: answer.total, first: answer.first });
  items = answer.items;
  asked.set("list", shown.list);
  history.replaceState(null, "", `?${asked}`);
  side.append(panel);
  panel.hidden = true;
  list.replaceChildren(...items.map(card));
  if (!items.length) list.append(make("p", { className: "nothing", textContent: "No caption is like that." }));
  const last = shown.first + items.length - 1;
  $("#total").textContent = items.length ? `${number(shown.first)} to ${number(last)} of ${number(shown.total)}` : "";
  for (const button of document.querySelectorAll("[data-turn]")) {
    const to = shown.page + Number(button.dataset.turn);
    button.disabled = to < 1 || to > shown.pages;
  }
  for (const pager of document.querySelectorAll(".pager")) pager.hidden = shown.pages < 2;
  news(answer);
  selected = -1;
  if (items.length) choose(Math.min(select, items.length - 1), focus && !document.activeElement.matches("input, select, textarea")); // somebody writes there
}
load.count = 0;

function turn(by) {
  const to = shown.page + by;
  if (to < 1 || to > shown.pages) return say(by > 0 ? "This is the last page." : "This is the first page.");
  window.scrollTo(0, 0);
  return load({ page: to, name: shown.list, focus: true });
}

function news(answer) {
  for (const place of document.querySelectorAll("[data-count]")) {
    const counts = answer.counts, state = place.dataset.count;
    place.textContent = number(state ? counts[state] : Object.values(counts).reduce((a, b) => a + b));
  }
  $("#alerts").replaceChildren(...answer.notices.map((text) => make("p", { className: "alert", textContent: text })));
  edits = answer.edits;
  reads = answer.reads;
}

// ---------------------------------------------------------------- a caption

function card(item) {
  const thumb = item.image
    ? make("button", { className: "thumb", type: "button", tabIndex: -1, ariaLabel: `the image ${item.id}, large`, data: { act: "image" } },
        make("img", { src: item.image, alt: "", loading: "lazy", decoding: "async" }))
    : make("div", { className: "noimage", textContent: "No image" });
  const image = $("img", thumb);
  if (image) image.addEventListener("error", () => thumb.replaceWith(make("div", { className: "noimage", textContent: "Cannot be opened" })));
  const caption = make("p", { className: "caption", dir: "auto" }, item.caption.trim() ? item.caption : make("em", { className: "muted", textContent: "(an empty caption)" }));
  const who = item.state === "open" ? "" : make("span", { className: "state", textContent: item.by ? `${item.state} by ${item.by}` : item.state });
  const meta = make("p", { className: "meta" }, who, make("span", { textContent: item.id }),
    make("span", { textContent: item.words === 1 ? "1 word" : `${number(item.words)} words` }),
    ...item.flags.map((flag) => make("span", { className: "flag", textContent: flag })),
    ...item.scores.slice(0, 3).map((score) => make("span", {}, `${score.name} `, worth(score))));
  const button = (act, text, key) => make("button", { type: "button", data: { act } }, `${text} `, make("kbd", { textContent: key }));
  const acts = make("div", { className: "acts" },
    item.state === "accepted" ? "" : button("accepted", "Accept", "a"),
    item.state === "rejected" ? "" : button("rejected", "Reject", "r"),
    button("correct", "Correct", "e"),
    item.state === "open" ? "" : button("open", "Open again", "o"),
    wide.matches ? "" : button("history", "History", "h"));
  const node = make("article", { className: `item ${item.state}`, tabIndex: 0, ariaLabel: `caption of ${item.id}`, data: { id: item.id } },
    thumb, make("div", {}, caption, meta, acts));
  return node;
}

function worth(score) {
  const text = Math.abs(score.value) >= 1000 ? number(Math.round(score.value)) : String(Number(score.value.toPrecision(4)));
  return score.of_former ? make("span", { className: "former", textContent: text, title: "of the former caption" }) : text;
}

function replace(item) {
  const place = items.findIndex((other) => other.id === item.id);
  if (place < 0) return;
  const old = list.children[place], held = old.contains(document.activeElement);
  items[place] = item;
  if ($("textarea", old)) return; // somebody writes here: `told` says what happened
  if (old.contains(panel)) side.append(panel);
  const node = card(item);
  old.replaceWith(node);
  if (place === selected) choose(place, held);
}

function choose(place, focus = true) {
  if (place < 0 || place >= items.length) return say(place < 0 ? "This is the first caption here; p is the page before." : shown.page < shown.pages ? "This is the last caption here; n is the next page." : "This is the last caption.");
  list.children[selected]?.removeAttribute("aria-current");
  selected = place;
  const node = list.children[place];
  node.setAttribute("aria-current", "true");
  if (focus) {
    node.focus({ preventScroll: true });
    node.scrollIntoView({ block: "nearest" });
  }
  detail();
}

// ---------------------------------------------------------------- image and history of the selected one

async function detail() {
  const item = items[selected], mine = ++asked;
  if (!item || (!wide.matches && !opened)) { panel.hidden = true; return; }
  let whole;
  try { whole = await ask(`/caption?${new URLSearchParams({ id: item.id })}`); } catch (error) { return say(error.message, true); }
  if (mine !== asked) return;
  (wide.matches ? side : list.children[selected]).append(panel);
  panel.hidden = false;
  const large = item.large ? make("button", { className: "shown", type: "button", ariaLabel: "the image, large", data: { act: "image" } }, make("img", { src: item.large, alt: item.caption })) : "";
  if (large) $("img", large).addEventListener("error", () => large.remove());
  const scores = make("dl", { className: "scores" });
  for (const score of item.scores) scores.append(make("dt", { textContent: score.of_former ? `${score.name} (of the former caption)` : score.name }), make("dd", {}, worth(score)));
  const entries = whole.history.map((edit) => entry(edit, item));
  panel.replaceChildren(large, make("p", { className: "name", textContent: item.id }), ...(item.scores.length ? [scores] : []),
    make("h2", { textContent: "History" }),
    entries.length ? make("ol", { className: "history" }, ...entries) : make("p", { className: "muted", textContent: "Nobody has edited this caption." }));
}

const DID = { correct: "corrected", accept: "accepted", reject: "rejected", reopen: "opened it again", undo: "took the last edit back", file: "another program changed the file" };

function entry(edit, item) {
  const when = new Date(edit.time);
  const time = make("time", { dateTime: edit.time, textContent: when.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) });
  const head = make("p", {}, make("b", { textContent: edit.by || "—" }), ` ${DID[edit.action] || edit.action} · `, time);
  if (edit.before === edit.after) return make("li", {}, head);
  const [was, is] = marked(edit.before, edit.after);
  const back = edit.before.trim() && edit.before !== item.caption ? make("button", { type: "button", textContent: "Bring the former back", data: { act: "restore" } }) : "";
  if (back) back.addEventListener("click", () => change("/correct", { image_id: item.id, version: item.version, caption: edit.before }, "Brought back"));
  return make("li", {}, head, make("p", { className: "was", dir: "auto" }, ...was), make("p", { className: "is", dir: "auto" }, ...is), back);
}

// The words of two texts, those that only one has marked: the longest common subsequence, of texts that are not too long.
function marked(before, after) {
  const a = before.match(/\s+|\S+/g) || [], b = after.match(/\s+|\S+/g) || [];
  if (a.length * b.length > 250000) return [[make("mark", { className: "wrong", textContent: before })], [make("mark", { className: "added", textContent: after })]];
  const best = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) for (let j = b.length - 1; j >= 0; j--) best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
  const was = [], is = [];
  let i = 0, j = 0;
  while (i < a.length || j < b.length) {
    if (i < a.length && j < b.length && a[i] === b[j]) { was.push(a[i++]); is.push(b[j++]); }
    else if (j >= b.length || (i < a.length && best[i + 1][j] >= best[i][j + 1])) was.push(make("mark", { className: "wrong", textContent: a[i++] }));
    else is.push(make("mark", { className: "added", textContent: b[j++] }));
  }
  return [was, is];
}

// ---------------------------------------------------------------- edits

function named() {
  const name = rater.value.trim();
  rater.closest("label").classList.toggle("asked", !name);
  if (!name) { rater.focus(); say("Say who you are first: your name stands beside what you change.", true); }
  return name;
}

async function change(path, body, done, next = false) {
  const by = named();
  if (!by || busy) return false;
  busy = true;
  try {
    const answer = await ask(path, { ...body, by });
    news(answer);
    replace(answer.item);
    if (answer.conflict) { told(answer.item, answer.conflict); say(answer.conflict, true); return false; }
    say(`${done} ${answer.item.id}`);
    const place = items.findIndex((item) => item.id === answer.item.id);
    if (path === "/undo" && place >= 0) choose(place);
    else if (next && place === selected) { if (place + 1 < items.length) choose(place + 1); else { choose(place); say(`${done} ${answer.item.id}. This was the last caption here${shown.page < shown.pages ? "; n is the next page" : ""}.`); } }
    else if (place === selected) detail();
    return true;
  } catch (error) { say(error.message, true); return false; }
  finally { busy = false; }
}

function judge(state) {
  const item = items[selected], words = { accepted: "Accepted", rejected: "Rejected", open: "Opened again" };
  if (!item || $("textarea", list.children[selected])) return;
  if (item.state === state) { if (state !== "open") choose(selected + 1); return; }
  change("/judge", { image_id: item.id, version: item.version, state }, words[state], state !== "open");
}

function correct() {
  const item = items[selected], node = list.children[selected];
  if (!item || $("textarea", node)) return $("textarea", node)?.focus();
  if (!named()) return;
  const area = make("textarea", { value: item.caption, dir: "auto", spellcheck: true, maxLength: 20000, ariaLabel: `caption of ${item.id}` });
  area.dataset.before = item.caption;
  $(".caption", node).replaceWith(area);
  const button = (text, key, act) => { const made = make("button", { type: "button" }, `${text} `, make("kbd", { textContent: key })); made.addEventListener("click", act); return made; };
  $(".acts", node).replaceChildren(button("Save", "Enter", () => save(node)), button("Leave as it was", "Esc", () => leave(node)));
  area.focus();
  area.setSelectionRange(area.value.length, area.value.length);
}

async function save(node) {
  const place = [...list.children].indexOf(node), area = $("textarea", node), item = items[place];
  if (area.value.trim() === area.dataset.before.trim()) { leave(node); return; }
  const by = named();
  if (!by || busy) return;
  busy = true;
  area.readOnly = true;
  try {
    const answer = await ask("/correct", { image_id: item.id, caption: area.value, version: item.version, by });
    news(answer);
    items[place] = answer.item;
    if (answer.conflict) { told(answer.item, answer.conflict); say(answer.conflict, true); return; }
    say(`Corrected ${item.id}`);
    area.remove();
    replace(answer.item);
    if (place === selected) choose(place + 1 < items.length ? place + 1 : place);
  } catch (error) { say(error.message, true); }
  finally { busy = false; area.readOnly = false; }
}

function leave(node) {
  const place = [...list.children].indexOf(node);
  $("textarea", node).remove();
  replace(items[place]);
  choose(place);
}

// Says in a card what somebody else did to its caption, where a correction is open.
function told(item, text) {
  const node = [...list.children].find((other) => other.dataset?.id === item.id);
  if (!node || !$("textarea", node)) return;
  $(".told", node)?.remove();
  $("textarea", node).after(make("p", { className: "alert told", dir: "auto" }, `${text}. It is now: “${item.caption}”. Save again to replace it, or leave it.`));
}

const unsaved = () => [...list.querySelectorAll("textarea")].some((area) => area.value !== area.dataset.before);

// ---------------------------------------------------------------- what others do

async function follow() {
  if (document.hidden || busy) return;
  let answer;
  try { answer = await ask(`/news?since=${edits}`); } catch (error) { return say(error.message, true); }
  if (busy || answer.edits < edits) return;
  const again = answer.reads !== reads;
  const ids = again ? items.map((item) => item.id) : answer.changed.filter((id) => items.some((item) => item.id === id));
  news(answer);
  for (const id of ids) {
    let whole;
    try { whole = await ask(`/caption?${new URLSearchParams({ id })}`); } catch { continue; } // it is gone from the file
    const place = items.findIndex((item) => item.id === id);
    if (place < 0 || items[place].version === whole.item.version) continue;
    replace(whole.item);
    told(whole.item, `${whole.item.by || "another program"} has changed this caption`);
  }
}
setInterval(follow, 4000);
document.addEventListener("visibilitychange", follow);

// ---------------------------------------------------------------- keys and clicks

function enlarge() {
  const item = items[selected];
  if (!item?.large) return;
  $("#large img").src = item.large;
  $("#large img").alt = item.caption;
  $("#large").showModal();
}

const KEYS = {
  j: () => choose(selected + 1), ArrowDown: () => choose(selected + 1), k: () => choose(selected - 1), ArrowUp: () => choose(selected - 1),
  a: () => judge("accepted"), r: () => judge("rejected"), o: () => judge("open"), e: correct, Enter: correct, i: enlarge,
  u: () => change("/undo", {}, "Took back the edit of"), n: () => turn(1), p: () => turn(-1), "/": () => form.elements.q.focus(),
  h: () => { opened = !opened || wide.matches; detail(); }, "?": () => $("#keys").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.isComposing || event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
  const { target, key } = event;
  if (target.matches("textarea")) {
    const node = target.closest(".item");
    if (key === "Escape") leave(node);
    else if (key === "Enter" && !event.shiftKey) save(node);
    else return;
  } else if (target.matches("input:not([type=radio]), select")) {
    if (key === "Enter" && target.form === form) form.requestSubmit(); // a form without a submit button has none by itself
    else if (key === "Escape" || (key === "Enter" && target === rater)) (list.children[selected] || list).focus();
    else return;
  } else if (KEYS[key] && !(key === "Enter" && target.matches("button, a")) && !(key.startsWith("Arrow") && target.matches("input"))) KEYS[key]();
  else return;
  event.preventDefault();
});

document.addEventListener("click", (event) => {
  const node = event.target.closest(".item"), act = event.target.closest("[data-act]")?.dataset.act;
  if (node && !event.target.closest("textarea, #panel")) {
    const place = [...list.children].indexOf(node);
    if (place !== selected) choose(place, !window.getSelection().toString());
  }
  if (act === "image") enlarge();
  else if (act === "correct") correct();
  else if (act === "history") KEYS.h();
  else if (["accepted", "rejected", "open"].includes(act)) judge(act);
  const by = event.target.closest("[data-turn]")?.dataset.turn;
  if (by) turn(Number(by));
});
list.addEventListener("focusin", (event) => {
  const place = [...list.children].indexOf(event.target.closest(".item"));
  if (place >= 0 && place !== selected) choose(place, false);
});
$("#help").addEventListener("click", KEYS["?"]);
$("#undo").addEventListener("click", KEYS.u);
wide.addEventListener("change", () => { if (!unsaved()) load({ page: shown.page, name: shown.list, select: selected }); });

form.addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(typing); document.activeElement.blur(); load({ focus: true }); });
let typing = 0;
form.addEventListener("change", (event) => { if (!event.target.matches("[name=q]")) load(); });
form.addEventListener("input", (event) => {
  if (!event.target.matches("[name=q], [name=low], [name=high]")) return;
  clearTimeout(typing);
  typing = setTimeout(() => load(), 250);
});
addEventListener("beforeunload", (event) => { if (unsaved()) event.preventDefault(); });

// ---------------------------------------------------------------- the beginning

rater.value = localStorage.getItem("captune rater") || "";
rater.addEventListener("change", () => { localStorage.setItem("captune rater", rater.value.trim()); rater.closest("label").classList.remove("asked"); });
const wished = new URLSearchParams(location.search);
for (const [name, value] of wished) {
  const field = form.elements[name];
  if (field) field.value = value;
}
function ends() {
  const choice = form.elements.score?.selectedOptions[0];
  if (choice) { form.elements.low.placeholder = choice.dataset.low; form.elements.high.placeholder = choice.dataset.high; }
}
form.elements.score?.addEventListener("change", ends);
ends();
load({ page: Number(wished.get("page")) || 1, name: wished.get("list") || "" });
