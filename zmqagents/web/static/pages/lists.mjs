// Results, log lines, errors and keys.
import { useEffect, useRef, useState } from "../vendor/hooks.mjs";
import { AgentLink, CallLink, Choice, Copy, Pager, Problem, Search, Table, ask, bytes, clock, html, live, number, route, seconds, short, useAsked, withQuery } from "../ui.mjs";

export function Results() {
  const { query } = route.use();
  const asked = new URLSearchParams(query);
  asked.set("most", "50");
  const { data, error } = useAsked(`/api/results?${asked}`, 3000);
  const store = live.use()?.hosts[0]?.store;
  return html`<h1>Results <span class="soft">that are kept, the latest first</span></h1>
    <div class="tools">${store && html`<span>${store.kind}: ${number(store.done)} finished, ${bytes(store.bytes)}</span>`}<${Copy} words=${["result", "--list"]} /></div>
    <${Problem} error=${error} />
    <div class="card"><${Table} rows=${data?.results} none="none is kept" columns=${[
      { label: "call", of: (row) => (row.state === "pending" ? html`<${CallLink} id=${row.task_id}>${row.task_id}<//>` : html`<span class="mono">${row.task_id}</span>`) }, { label: "state", of: (row) => html`<span class="badge ${row.state === "done" ? "up" : "waiting"}">${row.state}</span>` },
      { label: "age", num: true, of: (row) => seconds(row.age_s) }, { label: "size", num: true, of: (row) => bytes(row.bytes) }]} />
      ${data && html`<${Pager} next=${data.next} shown=${`${number(data.results.length)} shown`} />`}</div>`;
}

export function Errors() {
  const { data, error } = useAsked("/api/errors", 3000);
  return html`<h1>Errors <span class="soft">in which calls have ended, by class, method and type</span></h1><${Problem} error=${error} />
    ${data && !data.length && html`<div class="card"><p class="soft">no call has failed</p></div>`}
    ${data?.map((row) => html`<div class="card" key=${`${row.class}${row.method}${row.error}`}>
      <h2><span class="bad">${row.error}</span> in <span class="mono">${short(row.class)}.${row.method}</span></h2>
      <p>${number(row.count)} ${row.count === 1 ? "time" : "times"}, ${row.count === 1 ? "" : `first ${clock(row.first)}, `}last ${clock(row.last)}, at <${AgentLink} id=${row.agent} />: ${row.message}</p>
      <details><summary>traceback, and its latest calls</summary><pre>${row.traceback || "none"}</pre><p class="mono soft">${row.calls.join(" ")}</p></details></div>`)}`;
}

export function Keys() {
  const { data, error } = useAsked("/api/keys", 5000);
  return html`<h1>Keys <span class="soft">of this user's key store; changed by as_server keys</span></h1><${Problem} error=${error} />
    <div class="card"><${Table} none="none" rows=${data?.map((row) => ({ ...row, key: row.name }))} columns=${[
      { label: "name", of: (row) => html`<span class="mono">${row.name}</span>` }, { label: "role", of: (row) => html`<span class="badge">${row.role}</span>` }, { label: "public key", of: (row) => html`<span class="mono">${row.public}</span>` }]} /></div>`;
}

const MOST = 1000;
const IDS = ["agent", "method", "task_id", "user", "client", "child", "trace_id"];

function useLines(agent, isPaused) {
  const [lines, setLines] = useState(null);
  const [error, setError] = useState(null);
  const paused = useRef(isPaused);
  paused.current = isPaused;
  useEffect(() => {
    let over = false; let timer = 0; let after = -MOST;
    const look = async () => {
      let more = false;
      if (!paused.current && !document.hidden) {
        try {
          const page = await ask(`/api/logs?after=${after}${agent ? `&agent=${encodeURIComponent(agent)}` : ""}`);
          if (over) return;
          const first = after < 0;
          after = page.next; more = page.more;
          setError(null);
          setLines((old) => [...(first ? [] : old || []), ...page.lines].slice(-MOST));
        } catch (problem) { if (!over) setError(problem); }
      }
      if (!over) timer = setTimeout(look, more ? 0 : 1500);
    };
    setLines(null);
    look();
    return () => { over = true; clearTimeout(timer); };
  }, [agent]);
  return { lines, error };
}

const LEVELS = ["", "INFO", "WARNING", "ERROR"];

export function Logs() {
  const { query } = route.use();
  const [isPaused, setPaused] = useState(false);
  const { lines, error } = useLines(query.get("agent") || "", isPaused);
  const part = (query.get("q") || "").toLowerCase();
  const least = Math.max(0, LEVELS.indexOf(query.get("level") || ""));
  const task = query.get("task");
  const shown = lines?.filter((line) => (!part || JSON.stringify(line).toLowerCase().includes(part)) && (!task || line.task_id === task)
    && Math.max(LEVELS.indexOf(line.level), line.level === "CRITICAL" ? 3 : 0) >= least).slice(-300).reverse();
  return html`<h1>Logs <span class="soft">the latest first</span></h1>
    <form class="filter" onSubmit=${(event) => event.preventDefault()}><${Search} label="part of a line" /><${Choice} name="level" label="from level" options=${LEVELS} />
      ${["agent", "task"].filter((name) => query.get(name)).map((name) => html`<span>${name} <code>${query.get(name)}</code> <a href=${withQuery({ [name]: "" })}>all</a></span>`)}
      <button type="button" onClick=${() => setPaused(!isPaused)}>${isPaused ? "go on" : "pause"}</button><${Copy} words=${["logs", "--follow", ...(query.get("agent") ? ["--agent", query.get("agent")] : [])]} /></form>
    <${Problem} error=${error} />
    <div class="card">${!shown ? !error && html`<p class="soft">loading…</p>` : !shown.length ? html`<p class="soft">no such line</p>` : shown.map((line) => html`<div class="line mono">
      <span title=${line.ts}>${String(line.ts).slice(11, 23)}</span><span class=${line.level === "INFO" ? "soft" : "bad"}>${line.logger === "zmqagents.output" ? "▹ out" : line.level}</span>
      <span class="msg">${line.msg} <span class="ids">${IDS.filter((name) => line[name]).map((name) => html`${name}=${name === "agent" ? html`<a href=${`/agent?id=${encodeURIComponent(line[name])}`}>${line[name]}</a>` : line[name]} `)}</span>
      ${line.exc && html`<details><summary>traceback</summary><pre>${line.exc}</pre></details>`}</span></div>`)}</div>`;
}
