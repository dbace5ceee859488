// The hosts of a cluster, its agents and where they are, and what has happened.
import { Action, Copy, Pager, Problem, Search, Table, clock, html, live, may, number, path, route, seconds, send, useAsked, withQuery } from "../ui.mjs";

const WORDS = { up: "● up", draining: "◐ draining", down: "✕ no answer", gone: "✕ gone", lapsed: "◌ lease over" };
export const stateOf = (host) => (host.gone ? "gone" : !host.up ? "down" : host.draining ? "draining" : host.state === "lapsed" ? "lapsed" : "up");
export const StateOf = ({ of: host }) => html`<span class="badge ${stateOf(host)}">${WORDS[stateOf(host)]}</span>`;

const toHost = (page, id) => `/${page}?host=${encodeURIComponent(id)}`;
const Meter = ({ label, part, low }) => html`<div class="bar-row"><span class="label">${label}</span>
  <div class="meter"><div class=${part < low ? "low" : ""} style=${{ width: `${Math.min(100, Math.max(0, 100 * part))}%` }}></div></div></div>`;

function Box({ host }) {
  const drain = () => send(`/api/drain?host=${encodeURIComponent(host.id)}`, {}).then(() => `${host.id} gives its agents to the others, and ends`);
  return html`<div class="card box ${stateOf(host)}" data-host=${host.id}>
    <h2><a href=${toHost("host", host.id)}>${host.id}</a> <${StateOf} of=${host} /></h2>
    <p class="soft"><span class="mono">${host.address}</span> · v${host.version}${Object.entries(host.labels).map(([name, value]) => html` · <span class="mono">${name}=${value}</span>`)}</p>
    ${!host.up && html`<p class="bad">${host.seen ? `silent since ${clock(host.seen)}; figures are of then` : "has not answered yet"}</p>`}
    <${Meter} label=${`running ${number(host.running)} of ${number(host.capacity)}`} part=${host.capacity ? host.running / host.capacity : 0} low=${-1} />
    <${Meter} label=${`lease left ${Math.round(100 * host.lease_left)} %`} part=${host.gone ? 0 : host.lease_left} low=${0.4} />
    <p>agents <b>${number(host.agents)}</b> · calls/s <b>${number(host.calls_per_s)}</b> · p99 <b>${seconds(host.p99_s)}</b></p>
    <p class="soft">claims ${number(host.claims)} · passed on ${number(host.relayed)} · ${host.fenced ? html`<span class="bad">fenced ${number(host.fenced)}</span>` : "fenced 0"}${host.activations_waiting ? html` · <span class="bad">${number(host.activations_waiting)} wait to be made</span>` : ""}</p>
    <div class="tools"><a href=${toHost("calls", host.id)}>calls</a><a href=${toHost("", host.id)}>overview</a><a href=${toHost("logs", host.id)}>logs</a>
      ${may() && host.up && !host.draining && html`<${Action} label="Drain" type=${host.id} run=${drain} question="It gives its agents to the other hosts, lets calls that run end within its grace, and ends." />`}</div>
  </div>`;
}

function Move({ row, hosts }) {
  const others = hosts.filter((host) => host.up && !host.draining && host.address !== row.address);
  const move = (to) => send("/api/cluster/move", { id: row.agent, to }).then((there) => `${row.agent} is given to ${there.server_id || to || "another host"}`);
  if (!row.address || !others.length) return null;
  return html`<${Action} label="Move" choose=${["", ...others.map((host) => host.id)]} none="any other host" run=${move} question=${`${row.agent} goes to another host with its state; its calls wait meanwhile.`} />`;
}

export function Cluster() {
  const { query } = route.use();
  const cluster = live.use()?.cluster;
  const asked = new URLSearchParams(query);
  asked.set("most", "50");
  const agents = useAsked(`/api/cluster/agents?${asked}`, 2000);
  const events = useAsked("/api/cluster/events", 3000);
  if (!cluster) return html`<p class="soft">loading…</p>`;
  const hosts = cluster.hosts;
  const named = new Map(hosts.map((host) => [host.address, host.id]));
  const total = hosts.reduce((count, host) => count + (host.gone ? 0 : host.agents), 0);
  return html`<h1>${cluster.name} <span class="soft">${number(hosts.filter((host) => host.up).length)} of ${number(hosts.length)} hosts answer</span></h1>
    ${cluster.problem && html`<div class="banner" role="alert">${cluster.problem}</div>`}
    <div class="tools"><${Copy} words=${["hosts"]} /></div>
    <div class="map">${hosts.map((host) => html`<${Box} key=${host.address} host=${host} />`)}</div>
    <h2>Agents <span class="soft">${number(total)} are on a host now</span></h2>
    <form class="filter" onSubmit=${(event) => event.preventDefault()}><${Search} label="part of a name" />
      ${query.get("class") && html`<span>class <code>${query.get("class")}</code> <a href=${withQuery({ class: "", after: "" })}>all</a></span>`}<${Copy} words=${["agents", "--cluster"]} /></form>
    <${Problem} error=${agents.error} />
    <div class="card"><${Table} none=${query.get("q") ? "no agent has that in its name" : "no agents yet"} rows=${agents.data?.agents.map((row) => ({ ...row, key: row.agent }))} columns=${[
      { label: "agent", of: (row) => (row.address && named.has(row.address) ? html`<a class="mono" href=${`${path("agent", row.id)}&host=${encodeURIComponent(named.get(row.address))}`}>${row.agent}</a>` : html`<span class="mono">${row.agent}</span>`) },
      { label: "class", wide: true, of: (row) => html`<a class="mono" href=${withQuery({ class: row.agent.split("/")[0], after: "" })}>${row.agent.split("/")[0]}</a>` },
      { label: "host", of: (row) => (row.address ? html`<a href=${toHost("host", named.get(row.address) || row.server_id)}>${named.get(row.address) || row.server_id}</a>` : html`<span class="soft">nobody has it now</span>`) },
      { label: "epoch", num: true, wide: true, of: (row) => html`<span class="mono">${row.epoch}</span>` },
      { label: "", of: (row) => may() && html`<${Move} row=${row} hosts=${hosts} />` }]} />
      ${agents.data && html`<${Pager} next=${agents.data.next} shown=${`${number(agents.data.agents.length)} shown`} />`}</div>
    <div class="card"><h2>Events</h2><${Problem} error=${events.error} /><${Table} none="nothing has happened" rows=${events.data?.events.slice(0, 50).map((row) => ({ ...row, key: row.id }))} columns=${[
      { label: "when", of: (row) => clock(row.time_s) }, { label: "what", of: (row) => html`<span class=${["died", "fenced"].includes(row.kind) ? "bad" : ""}>${row.kind}</span>` }, { label: "", text: true, of: (row) => html`<span class="mono">${row.what}</span>` }]} /></div>`;
}
