// Keeps a page live: its parts marked `data-live` are read again when something happened, and every now and then.
// Nothing moves under somebody's hand: while the pointer or the focus is in a part, what is new waits for a click.
// Everything works without this; with it, times are also said in the viewer's own zone.

const page = document.documentElement;
const skew = Date.now() - Date.parse(page.dataset.now ?? new Date().toISOString());
const EVERY = 15_000;
const SOON = 250;

const pad = (number) => String(number).padStart(2, "0");

function clock(date) {
  const day = `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())}`;
  const time = `${pad(date.getHours())}:${pad(date.getMinutes())}:${pad(date.getSeconds())}`;
  const now = new Date(Date.now() - skew);
  return date.toDateString() === now.toDateString() ? time : `${day} ${time}`;
}

function localTimes(root) {
  for (const time of root.querySelectorAll("time[data-clock]")) time.textContent = clock(new Date(time.dateTime));
}

const SIZES = [86_400, 3600, 60, 1];

function duration(seconds, units) {
  const first = SIZES.findIndex((size) => seconds >= size);
  if (first < 0) return `0 ${units[3]}`;
  const parts = [`${Math.floor(seconds / SIZES[first])} ${units[first]}`];
  const rest = Math.floor((seconds % SIZES[first]) / SIZES[first + 1]);
  if (first < 3 && rest > 0) parts.push(`${rest} ${units[first + 1]}`);
  return parts.join("\u00a0");
}

function tick() {
  const { ago, units } = page.dataset;
  if (!ago || !units) return;
  for (const time of document.querySelectorAll("time[data-ago]")) {
    const seconds = Math.max(0, Math.floor((Date.now() - skew - Date.parse(time.dateTime)) / 1000));
    if (seconds < 1) continue; // the page has said that it is now
    const said = ago.replace("{}", duration(seconds, units.split(" ")));
    if (time.textContent !== said) time.textContent = said;
  }
}

const parts = () => [...document.querySelectorAll("[data-live]")];
const waiting = new Map();
let reading = null;
let source = null;
let timer = null;

const isInUse = (part) =>
  part.matches(":hover") && matchMedia("(hover: hover)").matches
  || part.contains(document.activeElement)
  || part.querySelector("details[open]") !== null
  || [...part.querySelectorAll("input, select, textarea")].some((field) =>
    field.value !== (field.defaultValue ?? field.value) || (field.checked ?? false) !== (field.defaultChecked ?? false));

// What changes with every reading says nothing new.
function gist(part) {
  const copy = part.cloneNode(true);
  for (const time of copy.querySelectorAll("time, .checked")) time.remove();
  return copy.textContent.replace(/\d+(\s| )?(s|min|h|d|с|хв|год|дн)\b/gu, "").replace(/\s+/gu, " ");
}

function show(part, fresh) {
  waiting.delete(part.id);
  localTimes(fresh);
  part.replaceWith(fresh);
  announce();
}

function announce() {
  document.querySelector(".news")?.remove();
  const changed = [...waiting.values()].reduce((sum, each) => sum + each.changes, 0);
  if (!changed) return;
  const news = document.createElement("div");
  news.className = "news";
  news.setAttribute("role", "status");
  const button = document.createElement("button");
  button.className = "button";
  button.dataset.kind = "primary";
  button.textContent = page.dataset.news.replace("{}", changed);
  button.addEventListener("click", () => {
    for (const [id, { fresh }] of [...waiting]) show(document.getElementById(id), fresh);
    document.getElementById("content").focus({ preventScroll: true });
  });
  news.append(button);
  document.getElementById("content").prepend(news);
}

async function refresh() {
  if (reading || document.hidden || !parts().length) return;
  reading = new AbortController();
  try {
    const answer = await fetch(location.href, { signal: reading.signal, headers: { Accept: "text/html" } });
    if (answer.redirected || !answer.ok) return;
    const read = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of parts()) {
      const fresh = read.getElementById(part.id);
      if (!fresh) continue;
      const isNews = gist(fresh) !== gist(part);
      if (!isInUse(part)) show(part, fresh);
      else if (isNews) {
        const before = waiting.get(part.id);
        const isNewer = !before || gist(before.fresh) !== gist(fresh);
        waiting.set(part.id, { fresh, changes: (before?.changes ?? 0) + (isNewer ? 1 : 0) });
        announce();
      }
    }
  } catch (error) {
    if (error.name !== "AbortError" && !(error instanceof TypeError)) throw error;
  } finally {
    reading = null;
  }
}

function soon() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    await refresh();
    again();
  }, SOON);
}

function again() {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    await refresh();
    again();
  }, EVERY);
}

function listen() {
  if (!page.dataset.events || !parts().length) return;
  source = new EventSource(page.dataset.events);
  source.addEventListener("message", soon);
}

function rest() {
  source?.close();
  source = null;
  clearTimeout(timer);
  reading?.abort();
}

document.addEventListener("visibilitychange", () => {
  rest();
  if (!document.hidden) {
    listen();
    soon();
  }
});
addEventListener("pagehide", rest);
addEventListener("pageshow", (event) => {
  if (event.persisted) {
    listen();
    soon();
  }
});

localTimes(document);
setInterval(tick, 1000);
listen();
again();
