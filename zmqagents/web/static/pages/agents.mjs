// The agents of the host, and one of them.
import { useEffect } from "../vendor/hooks.mjs";
import { Action, AgentLink, Copy, Facts, Pager, Problem, Search, Table, ask, chosen, go, html, live, number, route, seconds, send, short, useAsked, withQuery } from "../ui.mjs";
import { CALLS } from "./calls.mjs";

const Sorted = ({ by, children }) => {
  const now = route.use().query.get("sort");
  return html`<a href=${withQuery({ sort: now === by ? "" : by, after: "" })} aria-sort=${now === by ? "descending" : undefined}>${children}${now === by ? " ▾" : ""}</a>`;
};

export function Agents() {
  const { query } = route.use();
  const asked = new URLSearchParams(query);
  asked.set("most", "50");
  const { data, error } = useAsked(`/api/agents?${asked}`, 2000);
  const columns = [
    { label: "agent", of: (row) => html`<${AgentLink} id=${row.agent_id} />` },
    { label: "class", of: (row) => html`<a class="mono" href=${withQuery({ class: row.class, after: "" })}>${row.type}</a>` },
    { label: "calls", num: true, head: html`<${Sorted} by="calls">calls<//>`, of: (row) => number(row.calls) },
    { label: "running", num: true, head: html`<${Sorted} by="running">running<//>`, of: (row) => number(row.running) },
    { label: "queued", num: true, head: html`<${Sorted} by="queued">queued<//>`, of: (row) => number(row.queued) },
    { label: "age", num: true, wide: true, head: html`<${Sorted} by="age">age<//>`, of: (row) => seconds(row.age_s) },
    { label: "process", num: true, wide: true, of: (row) => row.child ?? "–" },
  ];
  return html`<h1>Agents</h1>
    <form class="filter" onSubmit=${(event) => event.preventDefault()}><${Search} label="part of an id or a class" />
      ${query.get("class") && html`<span>class <code>${short(query.get("class"))}</code> <a href=${withQuery({ class: "", after: "" })}>all</a></span>`}<${Copy} words=${["agents"]} /></form>
    <${Problem} error=${error} />
    <div class="card"><${Table} columns=${columns} rows=${data?.agents} none=${query.get("q") ? "no agent has that in its id or class" : "no agents yet"} />
      ${data && html`<${Pager} next=${data.next} shown=${`${number(data.agents.length)} shown of ${number(data.total)} agents`} />`}</div>`;
}

// An agent of a cluster may have another host by now: then the page is of that one.
function useHome(id, error) {
  const isLost = error?.status === 404 && id.startsWith("cluster:");
  const hosts = live.use()?.cluster?.hosts;
  useEffect(() => {
    if (!isLost || !hosts) return;
    ask(`/api/cluster/where?id=${encodeURIComponent(id)}`).then((there) => {
      const home = hosts.find((host) => host.address === there.address);
      if (home && home.id !== chosen()) go(withQuery({ host: home.id }), { replace: true });
    }).catch(() => {});
  }, [isLost, hosts?.length]);
}

export function Agent() {
  const id = route.use().query.get("id") || "";
  const { data, error } = useAsked(`/api/agent?id=${encodeURIComponent(id)}`, 2000);
  useHome(id, error);
  if (!data) return html`<h1>${id}</h1><${Problem} error=${error} />${!error && html`<p class="soft">loading…</p>`}`;
  const remove = async () => { await send("/api/delete", { id }); go("/agents"); return `${id} is deleted`; };
  const restart = async () => { await send("/api/restart", { id }); return `the process of ${id} is started again`; };
  const figures = Object.fromEntries(data.figures.map((row) => [row.method, row]));
  return html`<h1>${id}</h1><${Problem} error=${error} />
    <div class="tools"><${Copy} words=${["describe", id]} /><a href=${`/logs?agent=${encodeURIComponent(id)}`}>its log lines</a><a href=${`/calls?agent=${encodeURIComponent(id)}`}>its calls</a>
      <${Action} label="Delete" type=${id} run=${remove} question="Its running call goes on until its code returns, its queued calls end in AgentDeleted." />
      ${data.child !== null && html`<${Action} label="Restart its process" run=${restart} question="Calls that run there end in AgentCrashed." />`}</div>
    <div class="card"><${Facts} of=${[["class", html`<a class="mono" href=${`/agents?class=${encodeURIComponent(data.class)}`}>${data.class}</a>`], ["calls so far", number(data.calls)], ["running", number(data.running)],
      ["queued", number(data.queued)], ["made", `${seconds(data.age_s)} ago`], ["runs in", data.child === null ? "threads of the host" : `the process ${data.child}`]]} />
      ${data.doc && html`<pre>${data.doc}</pre>`}</div>
    <div class="card"><h2>Open calls</h2><${Table} columns=${CALLS} rows=${data.open} none="none" /></div>
    <div class="card"><h2>Methods <span class="soft">(figures of all agents of the class)</span></h2><${Table} none="none" rows=${data.methods.map((row) => ({ ...row, key: row.name, figures: figures[row.name] || {} }))} columns=${[
      { label: "method", text: true, of: (row) => html`<span class="mono">${row.name}${row.signature}</span>${row.doc && html`<div class="soft">${row.doc.split("\n")[0]}</div>`}` },
      { label: "gives", wide: true, of: (row) => row.gives }, { label: "calls", num: true, of: (row) => number(row.figures.total ?? 0) }, { label: "p50", num: true, wide: true, of: (row) => seconds(row.figures.p50_s) }, { label: "p99", num: true, of: (row) => seconds(row.figures.p99_s) }]} /></div>`;
}
