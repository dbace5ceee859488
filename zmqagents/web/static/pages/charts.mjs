// What the host did in the last minutes, or in the last day, as far as somebody looked.
import { bytes, html, number, route, seconds, withQuery } from "../ui.mjs";
import { Chart } from "../chart.mjs";
import { useSeries } from "../series.mjs";
import { failures } from "./overview.mjs";

const percent = (part) => `${number(100 * part)} %`;
const CHARTS = [
  ["Calls/s by outcome", ["ok", "failed", "cancelled", "refused"], (s) => [s.ok_per_s, s.t.map((_, i) => failures(s, i)), s.cancelled_per_s, s.refused_per_s], number],
  ["How long calls take", ["p50", "p90", "p99"], (s) => [s.p50_s, s.p90_s, s.p99_s], seconds],
  ["Time in the queue", ["p99", "oldest open call"], (s) => [s.queued_p99_s, s.oldest_s], seconds],
  ["Open calls", ["queued", "running", "waiting", "ready", "parked"], (s) => [s.queued, s.running, s.waiting, s.ready, s.parked], number],
  ["Workers and streams", ["busy", "streams"], (s) => [s.busy, s.streams], number],
  ["Memory", ["process", "results", "arguments that wait"], (s) => [s.resident_bytes, s.store_bytes, s.queued_bytes], bytes],
  ["Processor", ["part of a core"], (s) => [s.cpu], percent],
  ["Event loop", ["late"], (s) => [s.loop_lag_s], seconds],
  ["Traffic", ["in", "out"], (s) => [s.in_per_s, s.out_per_s], (n) => `${bytes(n)}/s`],
  ["Clients and agents", ["clients", "agents"], (s) => [s.clients, s.agents], number],
];

export function Charts() {
  const span = route.use().query.get("span") === "24h" ? "24h" : "10m";
  const series = useSeries(span);
  return html`<h1>Charts</h1>
    <div class="tools">${["10m", "24h"].map((each) => html`<a class="badge" href=${withQuery({ span: each })} aria-current=${each === span ? "true" : undefined}>${each === span ? "● " : ""}${each === "10m" ? "10 minutes" : "24 hours"}</a>`)}
      <span class="soft">The host is asked while somebody looks, or Prometheus scrapes; drag to zoom, double click to see all.</span></div>
    ${series && !series.t.length && html`<p class="soft">The first points come within ${span === "10m" ? "two seconds" : "two minutes"}.</p>`}
    <div class="halves">${series && CHARTS.map(([title, names, columns, format]) => html`<div class="card" key=${title + span}><h2>${title}</h2>
      <${Chart} title=${title} series=${names} format=${format} data=${[series.t, ...columns(series)]} /></div>`)}</div>`;
}
