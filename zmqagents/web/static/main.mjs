// The frame of all pages: who looks, the live stream, and which page is shown.
import { render } from "./vendor/preact.mjs";
import { useEffect, useState } from "./vendor/hooks.mjs";
import { ask, chosen, clock, go, html, live, me, note, route, send, withQuery } from "./ui.mjs";
import { Overview } from "./pages/overview.mjs";
import { Host } from "./pages/host.mjs";
import { Agent, Agents } from "./pages/agents.mjs";
import { Call, Calls } from "./pages/calls.mjs";
import { Graph } from "./pages/graph.mjs";
import { Charts } from "./pages/charts.mjs";
import { Cluster, StateOf } from "./pages/cluster.mjs";
import { Errors, Keys, Logs, Results } from "./pages/lists.mjs";

const PAGES = {
  "/": ["Overview", Overview], "/agents": ["Agents", Agents], "/calls": ["Calls", Calls], "/graph": ["Waits", Graph],
  "/charts": ["Charts", Charts], "/errors": ["Errors", Errors], "/logs": ["Logs", Logs], "/results": ["Results", Results],
  "/host": ["Host", Host], "/keys": ["Keys", Keys],
};
const OF_CLUSTER = { "/cluster": ["Cluster", Cluster] };
const OTHERS = { "/agent": ["Agent", Agent, "/agents"], "/call": ["Call", Call, "/calls"] };
const LATE_MS = 4000;

// ---------------------------------------------------------------- who looks

let refused = "";

async function enter() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname + location.search);
    try { await send("/api/session", { token }); } catch { refused = "the token of this link counts no more: as_server web --url prints the one that does"; }
  }
  try { know(await ask("/api/me")); } catch { me.set(null); }
}

// Who looks. Of a cluster all hosts are shown first.
function know(person) {
  if (person.cluster !== null && location.pathname === "/" && !chosen()) go("/cluster", { replace: true });
  me.set(person);
}

function Login() {
  const [error, setError] = useState(refused);
  const submit = async (event) => {
    event.preventDefault();
    try {
      await send("/api/session", { token: event.target.elements.token.value.trim() });
      know(await ask("/api/me"));
    } catch (problem) { setError(problem.message); }
  };
  return html`<main class="login"><div class="card">
    <h1>zmqagents</h1>
    <p>This page needs a token: open the link that <code>as_server web --url</code> prints, or paste a token of <code>as_server keys token</code>.</p>
    <form class="filter" onSubmit=${submit}><input name="token" type="password" autocomplete="off" aria-label="token" required /><button>look</button></form>
    ${error && html`<div class="banner" role="alert">${error}</div>`}
  </div></main>`;
}

// ---------------------------------------------------------------- the live stream

function useStream(person, host) {
  useEffect(() => {
    if (!person) return undefined;
    let source = null;
    live.set(null); // what was told of another host
    const open = () => {
      if (source || document.hidden) return;
      source = new EventSource(`/api/stream${host ? `?host=${encodeURIComponent(host)}` : ""}`);
      source.onmessage = (event) => live.set({ ...JSON.parse(event.data), here: Date.now() });
      source.onerror = () => { if (source?.readyState === EventSource.CLOSED) { source = null; ask("/api/me").catch(() => {}); setTimeout(open, 2000); } };
    };
    const close = () => { source?.close(); source = null; };
    const change = () => (document.hidden ? close() : open());
    document.addEventListener("visibilitychange", change);
    open();
    return () => { document.removeEventListener("visibilitychange", change); close(); };
  }, [person, host]);
}

function useNow() {
  const [now, setNow] = useState(Date.now());
  useEffect(() => { const timer = setInterval(() => setNow(Date.now()), 1000); return () => clearInterval(timer); }, []);
  return now;
}

function Lost() {
  const tick = live.use();
  const now = useNow();
  if (!tick) return null;
  if (now - tick.here > LATE_MS) return html`<div class="banner" role="alert">as_server web does not answer since ${clock(tick.here / 1000)}; what is shown is of then</div>`;
  return tick.hosts.filter((host) => !host.up).map((host) => html`<div class="banner" role="alert" data-lost=${host.id}>
    ${host.id} does not answer${host.seen ? html` since ${clock(host.seen)}; figures are of then` : ""}</div>`);
}

// ---------------------------------------------------------------- the frame

function HostState() {
  const tick = live.use();
  const { query, page } = route.use();
  const host = tick?.hosts[0];
  const hosts = tick?.cluster?.hosts;
  if (hosts && page === "/cluster") return null;
  if (hosts?.length) {
    const id = query.get("host") || host?.id;
    const one = hosts.find((each) => each.id === id);
    return html`<span><label>host <select aria-label="host" value=${id} onChange=${(event) => go(withQuery({ host: event.target.value, after: "", id: "" }))}>
      ${hosts.map((each) => html`<option value=${each.id} selected=${each.id === id}>${each.id}${each.up ? "" : " ✕"}</option>`)}</select></label>
      ${one && html` <${StateOf} of=${one} /> <span>v${one.version}</span>`}</span>`;
  }
  if (!host) return html`<span class="soft">connecting…</span>`;
  const word = !host.up ? "down" : host.draining ? "draining" : "up";
  return html`<span><b>${host.id}</b> <span class="badge ${word}">${word === "up" ? "● up" : word === "down" ? "✕ no answer" : "◐ draining"}</span></span>
    ${host.version && html`<span>v${host.version}</span>`}`;
}

function Note() {
  const told = note.use();
  return told && html`<div class=${told.bad ? "banner" : "note"} role="status">${told.text}</div>`;
}

const leave = async () => { await send("/api/session", {}, "DELETE").catch(() => {}); me.set(null); };

function App() {
  const person = me.use();
  const { page, query } = route.use();
  useStream(person?.name, query.get("host"));
  const pages = person?.cluster !== null ? { ...OF_CLUSTER, ...PAGES } : PAGES;
  useEffect(() => {
    const press = (event) => {
      if (event.key !== "/" || event.target.closest("input, select, textarea, dialog")) return;
      const field = document.querySelector("input[type=search]");
      if (field) { event.preventDefault(); field.focus(); }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
  const [name, Page, under] = pages[page] || OTHERS[page] || ["Nothing", () => html`<p>There is no such page.</p>`];
  useEffect(() => { document.title = `${name} · zmqagents`; }, [name]);
  if (!person) return html`<${Login} />`;
  return html`<a class="skip" href="#content">to the content</a>
    <header>
      <div class="bar"><a class="brand" href="/"><img src="/static/icon.svg" alt="" />zmqagents</a><${HostState} />
        <div class="state"><span>${person.name} (${person.role})</span> <button type="button" onClick=${leave}>leave</button></div></div>
      <nav aria-label="pages">${Object.entries(pages).map(([path, [label]]) => html`<a href=${path} aria-current=${path === (under || page) ? "page" : undefined}>${label}</a>`)}</nav>
    </header>
    <main id="content"><${Lost} /><${Note} /><${Page} key=${`${page} ${query.get("host") || ""}`} /></main>`;
}

await enter();
render(html`<${App} />`, document.getElementById("app"));
