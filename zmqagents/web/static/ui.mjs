// What all pages share. Everything shown is hostile text: it gets into the document as text, by htm and Preact alone.
import { h } from "./vendor/preact.mjs";
import { useEffect, useRef, useState } from "./vendor/hooks.mjs";
import htm from "./vendor/htm.mjs";

// Of the hosts of a cluster the address of a page says which one is meant; links lead on to the same one.
const SHARED = /^\/(static|api|cluster)\b/;
export const chosen = () => new URLSearchParams(location.search).get("host") || "";
function onHost(link) {
  const host = chosen();
  if (!host || !link.startsWith("/") || SHARED.test(link)) return link;
  const url = new URL(link, location.origin);
  if (!url.searchParams.has("host")) url.searchParams.set("host", host);
  return url.pathname + url.search + url.hash;
}

export const html = htm.bind((type, props, ...children) => h(type, type === "a" && props?.href ? { ...props, href: onHost(props.href) } : props, ...children));

// ---------------------------------------------------------------- a value that many components follow

export function signal(value) {
  const followers = new Set();
  return {
    get: () => value,
    set(next) { value = next; for (const follow of [...followers]) follow(value); },
    use() {
      const [shown, show] = useState(value);
      useEffect(() => { show(value); followers.add(show); return () => followers.delete(show); }, []);
      return shown;
    },
  };
}

export const me = signal(null); // {name, role, version, cluster}; null: nobody
export const live = signal(null); // the newest tick, with `here`: when it came
export const note = signal(null); // what became of the last action: {text, bad}

// ---------------------------------------------------------------- where we are

const here = () => ({ page: location.pathname, query: new URLSearchParams(location.search) });
export const route = signal(here());
addEventListener("popstate", () => route.set(here()));

export function go(path, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", path);
  note.set(null);
  route.set(here());
}

export function withQuery(changes) {
  const query = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(changes)) {
    if (value === "" || value === null || value === undefined) query.delete(name); else query.set(name, value);
  }
  const text = query.toString();
  return location.pathname + (text ? `?${text}` : "");
}

addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey) return;
  const url = new URL(link.href);
  if (url.origin !== location.origin || link.hasAttribute("download") || url.pathname.startsWith("/api/")) return;
  if (url.hash && url.pathname === location.pathname && url.search === location.search) return;
  event.preventDefault();
  go(url.pathname + url.search);
});

// ---------------------------------------------------------------- asking

export async function ask(wanted, options = {}) {
  const host = chosen();
  const path = host && !/[?&]host=/.test(wanted) ? `${wanted}${wanted.includes("?") ? "&" : "?"}host=${encodeURIComponent(host)}` : wanted;
  const answer = await fetch(path, { headers: { accept: "application/json" }, ...options });
  if (answer.status === 401 && !wanted.startsWith("/api/session")) me.set(null);
  const body = await answer.json().catch(() => ({ error: `${answer.status} ${answer.statusText}` }));
  if (!answer.ok) throw Object.assign(new Error(body.error || answer.statusText), { kind: body.kind, status: answer.status });
  return body;
}

export function send(path, body, method = "POST") {
  return ask(path, { method, headers: { "content-type": "application/json" }, body: JSON.stringify(body || {}) });
}

// The answer to GET `path`, asked again every `everyMs` while the page is visible.
export function useAsked(path, everyMs = 2000) {
  const [answer, setAnswer] = useState({ path, data: null, error: null });
  useEffect(() => {
    if (!path) return undefined;
    let timer = 0; let over = false; let control = null;
    const look = async () => {
      if (!document.hidden) {
        control = new AbortController();
        try {
          const data = await ask(path, { signal: control.signal });
          if (!over) setAnswer({ path, data, error: null });
        } catch (error) {
          if (!over && error.name !== "AbortError") setAnswer((last) => ({ path, data: last.path === path ? last.data : null, error }));
        }
      }
      if (!over && everyMs) timer = setTimeout(look, everyMs);
    };
    const seen = () => { if (!document.hidden) { clearTimeout(timer); look(); } };
    document.addEventListener("visibilitychange", seen);
    look();
    return () => { over = true; clearTimeout(timer); control?.abort(); document.removeEventListener("visibilitychange", seen); };
  }, [path, everyMs]);
  return answer.path === path ? answer : { path, data: null, error: null };
}

// ---------------------------------------------------------------- words and numbers

export const number = (n) => (n === null || n === undefined ? "–" : n.toLocaleString("en", { maximumFractionDigits: n < 10 ? 2 : n < 100 ? 1 : 0 }));

export function seconds(s) {
  if (s === null || s === undefined) return "–";
  const size = Math.abs(s);
  if (size < 0.001) return `${number(s * 1e6)} µs`;
  if (size < 1) return `${number(s * 1e3)} ms`;
  if (size < 120) return `${number(s)} s`;
  if (size < 7200) return `${number(s / 60)} min`;
  return size < 172800 ? `${number(s / 3600)} h` : `${number(s / 86400)} d`;
}

export function bytes(n) {
  if (n === null || n === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0; let size = n;
  while (size >= 1024 && unit < units.length - 1) { size /= 1024; unit += 1; }
  return `${number(size)} ${units[unit]}`;
}

export const clock = (s) => (s ? new Date(s * 1000).toLocaleTimeString("en-GB") : "–");
export const short = (name) => String(name).split(":").pop();
export const path = (page, id) => `/${page}?id=${encodeURIComponent(id)}`;
export const may = () => me.get()?.role === "admin";

// ---------------------------------------------------------------- pieces

export const State = ({ of: state }) => html`<span class="badge ${state}">${state}</span>`;
export const AgentLink = ({ id }) => html`<a class="mono" href=${path("agent", id)}>${id}</a>`;
export const CallLink = ({ id, children }) => html`<a class="mono whole" href=${path("call", id)}>${children || `…${id.slice(-8)}`}</a>`;

export function Table({ columns, rows, none = "nothing here" }) {
  if (!rows) return html`<p class="soft">loading…</p>`;
  if (!rows.length) return html`<p class="soft">${none}</p>`;
  return html`<div class="scroll"><table>
    <thead><tr>${columns.map((each) => html`<th class=${`${each.num ? "num" : ""} ${each.wide ? "wide" : ""}`}>${each.head || each.label}</th>`)}</tr></thead>
    <tbody>${rows.map((row, index) => html`<tr key=${row.key ?? row.task_id ?? row.agent_id ?? index}>${columns.map((each) => html`
      <td class=${`${each.num ? "num" : ""} ${each.wide ? "wide" : ""} ${each.text ? "text" : ""}`}>${each.of(row)}</td>`)}</tr>`)}</tbody>
  </table></div>`;
}

export const Facts = ({ of: facts }) => html`<dl class="facts">${facts.filter(Boolean).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>`;
export const Figure = ({ label, children, part }) => html`<div class="card"><div class="label">${label}</div><div class="figure">${children}</div>
  ${part !== undefined && html`<div class="meter"><div style=${{ width: `${Math.min(100, Math.max(0, 100 * part))}%` }}></div></div>`}</div>`;

export function Problem({ error }) {
  if (!error) return null;
  const text = error.status === 403 ? `not for you: ${error.message}` : error.message;
  return html`<div class="banner" role="alert">${text}</div>`;
}

export function Copy({ words }) {
  const [done, setDone] = useState(false);
  const text = `as_server ${words.map((word) => (/^[\w./:@%+=,-]+$/.test(word) ? word : `'${String(word).replaceAll("'", "'\\''")}'`)).join(" ")}`;
  const copy = () => navigator.clipboard?.writeText(text).then(() => { setDone(true); setTimeout(() => setDone(false), 1500); });
  return html`<button type="button" title=${text} onClick=${copy}>${done ? "copied" : "copy as as_server …"}</button>`;
}

export function Pager({ next, shown }) {
  const after = route.get().query.get("after");
  return html`<div class="tools">
    ${after && html`<a href=${withQuery({ after: "" })}>◂ from the start</a>`}
    <span class="soft">${shown}</span>
    ${next !== null && next !== undefined && html`<a rel="next" href=${withQuery({ after: next })}>next ▸</a>`}
  </div>`;
}

// A field whose text is part of the address.
export function Search({ name = "q", label }) {
  const query = route.use().query;
  const timer = useRef(0);
  const change = (event) => {
    const { value } = event.target;
    clearTimeout(timer.current);
    timer.current = setTimeout(() => go(withQuery({ [name]: value, after: "" }), { replace: true }), 250);
  };
  return html`<input type="search" name=${name} aria-label=${label} placeholder=${label} value=${query.get(name) || ""} onInput=${change} />`;
}

export function Choice({ name, label, options }) {
  const query = route.use().query;
  return html`<label>${label} <select name=${name} value=${query.get(name) || ""} onChange=${(event) => go(withQuery({ [name]: event.target.value, after: "" }), { replace: true })}>
    ${options.map((each) => html`<option value=${each} selected=${each === (query.get(name) || "")}>${each || "any"}</option>`)}</select></label>`;
}

// A button that asks first; with `type` the name has to be typed, with `choose` one of these is given to `run`.
export function Action({ label, question, type, choose, none, run }) {
  const dialog = useRef(null);
  const [typed, setTyped] = useState("");
  const [busy, setBusy] = useState(false);
  const [choice, setChoice] = useState("");
  if (!may() && me.get()?.role !== "call") return null;
  const act = async (event) => {
    event.preventDefault();
    setBusy(true);
    try {
      const text = await run(choice);
      note.set({ text });
    } catch (error) {
      note.set({ text: error.message, bad: true });
    }
    setBusy(false);
    dialog.current?.close();
  };
  return html`<button type="button" class="danger" onClick=${() => { setTyped(""); setChoice(""); dialog.current.showModal(); }}>${label}…</button>
    <dialog ref=${dialog} aria-label=${label}><form onSubmit=${act}>
      <p>${question}</p>
      ${type && html`<p><label>Type <code>${type}</code>: <input autocomplete="off" value=${typed} onInput=${(event) => setTyped(event.target.value)} /></label></p>`}
      ${choose && html`<p><label>To <select value=${choice} onChange=${(event) => setChoice(event.target.value)}>
        ${choose.map((each) => html`<option value=${each}>${each || none}</option>`)}</select></label></p>`}
      <div class="tools"><button class="danger" disabled=${busy || (type && typed !== type)}>${label}</button>
      <button type="button" onClick=${() => dialog.current.close()}>not now</button></div>
    </form></dialog>`;
}
