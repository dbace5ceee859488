// Which call waits for which, as a drawing. At most 200 calls; laid out anew only when the edges change.
import { useRef, useState } from "../vendor/hooks.mjs";
import { Graph as Drawing, layout } from "../vendor/dagre.mjs";
import { Problem, html, path, route, seconds, useAsked } from "../ui.mjs";

const WIDTH = 190; const HEIGHT = 46;
const cut = (text, most = 24) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

function edgesOf(calls) {
  const known = new Set(calls.map((row) => row.task_id));
  return calls.flatMap((row) => [
    ...row.waits_for.filter((id) => known.has(id)).map((id) => [row.task_id, id, ""]),
    ...(row.behind || []).filter((id) => known.has(id)).map((id) => [row.task_id, id, "turn"]),
  ]);
}

function laidOut(calls, edges) {
  const drawing = new Drawing({ multigraph: false });
  drawing.setGraph({ rankdir: "LR", nodesep: 14, ranksep: 46, marginx: 12, marginy: 12 });
  drawing.setDefaultEdgeLabel(() => ({}));
  for (const row of calls) drawing.setNode(row.task_id, { width: WIDTH, height: HEIGHT });
  for (const [from, to] of edges) drawing.setEdge(from, to);
  layout(drawing);
  return drawing;
}

const line = (points) => points.map(({ x, y }, index) => `${index ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

export function Graph() {
  const around = route.use().query.get("around") || "";
  const { data, error } = useAsked(`/api/graph${around ? `?around=${encodeURIComponent(around)}` : ""}`, 2000);
  const [zoom, setZoom] = useState(1);
  const last = useRef({ key: "", drawing: null });
  const calls = data?.calls || [];
  const edges = edgesOf(calls);
  const key = JSON.stringify([calls.map((row) => row.task_id), edges]);
  if (key !== last.current.key) last.current = { key, drawing: calls.length ? laidOut(calls, edges) : null };
  const { drawing } = last.current;
  const size = drawing?.graph() || { width: 10, height: 10 };
  return html`<h1>Waits <span class="soft">${around ? html`around <a class="mono" href=${path("call", around)}>${around}</a>` : "of the oldest calls"}</span></h1>
    <${Problem} error=${error} />
    <div class="tools"><button type="button" onClick=${() => setZoom(zoom / 1.25)} aria-label="smaller">−</button><button type="button" onClick=${() => setZoom(1)}>${Math.round(zoom * 100)} %</button>
      <button type="button" onClick=${() => setZoom(zoom * 1.25)} aria-label="larger">+</button>${around && html`<a href="/graph">the oldest waits</a>`}
      <span class="soft">→ waits for the result of · ⇢ waits for the turn at its agent · ${calls.length} calls</span></div>
    ${data && !calls.length ? html`<div class="card"><p class="soft">no call waits for another</p></div>` : null}
    ${drawing && html`<div class="graph" tabindex="0"><svg width=${size.width * zoom} height=${size.height * zoom} viewBox=${`0 0 ${size.width} ${size.height}`} role="img" aria-label="which call waits for which">
      <defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" /></marker></defs>
      ${edges.map(([from, to, kind]) => html`<path class=${kind} d=${line(drawing.edge(from, to).points)} marker-end="url(#tip)" />`)}
      ${calls.map((row) => { const { x, y } = drawing.node(row.task_id); return html`<a key=${row.task_id} href=${path("call", row.task_id)}><g class=${`${row.state} ${row.task_id === around ? "around" : ""}`} transform=${`translate(${x - WIDTH / 2} ${y - HEIGHT / 2})`}>
        <title>${`${row.agent}.${row.method}`}</title><rect width=${WIDTH} height=${HEIGHT} rx="6" /><text x="9" y="19">${cut(`${row.agent}.${row.method}`)}</text><text class="small" x="9" y="36">${row.state} · ${seconds(row.age_s)}</text></g></a>`; })}
    </svg></div>`}`;
}
