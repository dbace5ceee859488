// One host: its limits, settings and processes.
import { Action, AgentLink, Copy, Facts, Problem, Table, bytes, clock, html, live, may, number, seconds, send, useAsked } from "../ui.mjs";

const plain = (value) => (value === null ? "none" : typeof value === "object" ? JSON.stringify(value) : String(value));

export function Host() {
  const { data, error } = useAsked("/api/host", 3000);
  const host = live.use()?.hosts[0];
  if (!data) return html`<h1>Host</h1><${Problem} error=${error} />${!error && html`<p class="soft">loading…</p>`}`;
  const drain = () => send("/api/drain", {}).then(() => `${data.server_id} drains: it takes no new calls, and ends when those that run have ended`);
  return html`<h1>${data.server_id}</h1><${Problem} error=${error} />
    <div class="tools"><${Copy} words=${["status", "--server-id", data.server_id]} />
      ${may() && html`<${Action} label="Drain" type=${data.server_id} run=${drain} question="Running and queued calls may end within the grace of the host, new ones are refused, and then the host ends." />`}</div>
    <div class="halves">
      <div class="card"><h2>Process</h2><${Facts} of=${[
        ["state", html`<span class="badge ${data.state === "running" ? "up" : "draining"}">${data.state}</span>`], ["address", html`<span class="mono">${data.host}:${data.port ?? "–"}</span>`], ["pid", data.pid],
        ["up", seconds(data.uptime_s)], ["version", `${data.version}, Python ${data.python}`], ["memory", `${number(data.memory_mb)} MiB`], ["processor time", seconds(data.cpu_s)],
        host?.started && ["started", clock(host.started)], ["worker threads", data.worker_threads], ["store", `${data.store.kind}, ${data.store.state ?? "up"}`],
        ["event loop", host ? `${number(host.loop_tasks)} coroutines${host.loop_lag_s === null ? "" : `, ${seconds(host.loop_lag_s)} late`}` : "–"], ["descriptors", host?.open_fds ?? "–"]]} /></div>
      <div class="card"><h2>Limits and shares</h2><${Facts} of=${host ? [
        ["workers", `${number(host.workers.busy)} of ${host.capacity} busy, ${number(host.workers.waiting)} wait`], ["arguments that wait", `${bytes(host.queued_bytes)} of ${bytes(host.queued_limit_bytes)}`],
        ["results kept", `${bytes(host.store.bytes)} of ${bytes(host.store_limit_bytes)}`], ["clients", `${number(host.clients.connected)}, ${number(host.clients.lost)} lost for a moment`],
        ["keys refused", number(host.auth_failures)], ["calls refused", Object.entries(host.refused).map(([name, count]) => `${name} ${number(count)}`).join(", ") || "none"],
        ["met a limit", Object.entries(host.limits).filter(([, count]) => count).map(([name, count]) => `${name} ${number(count)}`).join(", ") || "none"]] : []} /></div>
    </div>
    <div class="card"><h2>Processes of agents</h2><${Table} none="all agents run in threads of the host" rows=${data.processes?.map((row) => ({ ...row, key: row.pid }))} columns=${[
      { label: "pid", of: (row) => row.pid || "–" }, { label: "state", of: (row) => row.state }, { label: "memory", num: true, of: (row) => `${number(row.memory_mb)} MiB` }, { label: "calls", num: true, of: (row) => number(row.calls) },
      { label: "crashes", num: true, of: (row) => number(row.crashes) }, { label: "silent", num: true, of: (row) => seconds(row.silent_s) }, { label: "agents", text: true, of: (row) => (Array.isArray(row.agents) ? row.agents.slice(0, 5).map((id) => html`<${AgentLink} id=${id} /> `) : number(row.agents)) }]} /></div>
    <div class="card"><h2>Settings</h2><${Facts} of=${Object.entries(data.settings).map(([name, value]) => [name, html`<span class="mono">${plain(value)}</span>`])} /></div>
    <div class="card"><h2>Classes</h2><p class="mono">${data.classes.map((name) => html`<a href=${`/agents?class=${encodeURIComponent(name)}`}>${name}</a><br />`)}</p></div>`;
}
