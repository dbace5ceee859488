// How the host does at a glance.
import { Figure, Table, bytes, clock, html, live, number, seconds, short, useAsked } from "../ui.mjs";
import { Chart } from "../chart.mjs";
import { useSeries } from "../series.mjs";

const sum = (values) => Object.values(values || {}).reduce((total, each) => total + each, 0);

export const METHODS = [
  { label: "method", of: (row) => html`<a class="mono" href=${`/calls?method=${encodeURIComponent(row.method)}`}>${short(row.class)}.${row.method}</a>` },
  { label: "calls/s", num: true, of: (row) => number(row.per_s) },
  { label: "failed/s", num: true, of: (row) => (row.failed_per_s ? html`<span class="bad">✕ ${number(row.failed_per_s)}</span>` : "0") },
  { label: "p50", num: true, wide: true, of: (row) => seconds(row.p50_s) },
  { label: "p99", num: true, of: (row) => seconds(row.p99_s) },
  { label: "queue p99", num: true, wide: true, of: (row) => seconds(row.queued_p99_s) },
  { label: "calls", num: true, of: (row) => number(row.total) },
];

export function Overview() {
  const tick = live.use();
  const host = tick?.hosts[0];
  const series = useSeries("10m");
  const errors = useAsked("/api/errors", 5000);
  if (!host) return html`<p class="soft">loading…</p>`;
  if (host.calls === undefined) return html`<p class="soft">The host has told nothing yet.</p>`;
  const point = host.point || {};
  const perS = ["ok", "error", "timeout", "cancelled", "deadlock", "refused", "lost"].reduce((total, name) => total + (point[`${name}_per_s`] || 0), 0);
  return html`<h1>Overview</h1>
    <div class="cards">
      <${Figure} label="calls/s"><span data-live="calls">${number(perS)}</span><//>
      <${Figure} label="p50">${seconds(point.p50_s)}<//>
      <${Figure} label="p99">${seconds(point.p99_s)}<//>
      <${Figure} label="open calls"><a href="/calls">${number(sum(host.calls))}</a><//>
      <${Figure} label=${`workers busy of ${host.capacity}`} part=${host.workers.busy / host.capacity}>${number(host.workers.busy)}<//>
      <${Figure} label="agents"><a href="/agents">${number(host.agents_total)}</a><//>
      <${Figure} label="clients">${number(host.clients.connected)}<//>
      <${Figure} label="results kept" part=${host.store.bytes / host.store_limit_bytes}>${bytes(host.store.bytes)}<//>
      <${Figure} label="memory">${bytes(host.resident_bytes)}<//>
    </div>
    <div class="halves">
      <div class="card"><h2>Calls/s</h2>${series && html`<${Chart} title="calls a second" height=${170} series=${["ended well", "failed"]} format=${number}
        data=${[series.t, series.ok_per_s, series.t.map((_, i) => failures(series, i))]} />`}</div>
      <div class="card"><h2>How long calls take</h2>${series && html`<${Chart} title="durations" height=${170} series=${["p50", "p99"]} format=${seconds} data=${[series.t, series.p50_s, series.p99_s]} />`}</div>
    </div>
    <div class="card"><h2>Open calls by state</h2><div class="tools">${Object.entries(host.calls).map(([state, count]) => html`
      <a href=${`/calls?state=${state}`} class="badge ${state}">${state} ${number(count)}</a>`)}
      <span class="soft">oldest ${seconds(host.oldest_s)} · fullest mailbox ${number(host.longest_mailbox)} · streams ${number(host.streams)} · <a href="/graph">what waits for what</a></span></div></div>
    <div class="card"><h2>Busiest methods</h2><${Table} columns=${METHODS} rows=${host.methods} none="no call yet" />
      ${host.methods_total > host.methods.length && html`<p class="soft">${number(host.methods_total - host.methods.length)} more</p>`}</div>
    <div class="halves">
      <div class="card"><h2>Agents by class</h2><${Table} none="no agents" rows=${Object.entries(host.agents).map(([name, count]) => ({ key: name, name, count }))}
        columns=${[{ label: "class", of: (row) => html`<a class="mono" href=${`/agents?class=${encodeURIComponent(row.name)}`}>${short(row.name)}</a>` }, { label: "agents", num: true, of: (row) => number(row.count) }]} /></div>
      <div class="card"><h2><a href="/errors">Failing lately</a></h2>${errors.error ? html`<p class="soft">${errors.error.message}</p>` : html`<${Table} none="nothing has failed"
        rows=${errors.data?.slice(0, 8).map((row) => ({ ...row, key: `${row.class}${row.method}${row.error}` }))} columns=${[
          { label: "where", of: (row) => html`<span class="mono">${short(row.class)}.${row.method}</span>` }, { label: "error", of: (row) => html`<span class="bad">${row.error}</span>` },
          { label: "times", num: true, of: (row) => number(row.count) }, { label: "last", num: true, of: (row) => clock(row.last) }]} />`}</div>
    </div>`;
}

export function failures(series, index) {
  if (series.ok_per_s[index] === null) return null;
  return ["error", "timeout", "deadlock", "lost"].reduce((total, name) => total + (series[`${name}_per_s`][index] || 0), 0);
}
