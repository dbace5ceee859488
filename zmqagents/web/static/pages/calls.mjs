// The calls that are not answered yet, and one of them.
import { Action, AgentLink, CallLink, Choice, bytes, Copy, Facts, Pager, Problem, Search, State, Table, html, live, me, number, route, seconds, send, useAsked, withQuery } from "../ui.mjs";

const STUCK = 10; // times the p99 of its method

const slow = (row) => {
  const method = live.get()?.hosts[0]?.methods?.find((each) => each.class === row.class && each.method === row.method);
  return method?.p99_s && row.age_s > Math.max(1, STUCK * method.p99_s);
};

const come = ([done, total, text]) => `${number(done)}${total === null ? "" : ` of ${number(total)}`} ${text}`;

export const CALLS = [
  { label: "call", of: (row) => html`<${CallLink} id=${row.task_id} />` },
  { label: "state", of: (row) => html`<${State} of=${row.state} />${slow(row) ? html` <span class="badge bad">stuck?</span>` : ""}` },
  { label: "agent.method", of: (row) => html`<span class="mono"><${AgentLink} id=${row.agent} />.${row.method}</span>` },
  { label: "age", num: true, of: (row) => seconds(row.age_s) },
  { label: "left", num: true, wide: true, of: (row) => seconds(row.time_left_s) },
  { label: "waits for", of: (row) => row.waits_for.slice(0, 3).map((id) => html`<${CallLink} id=${id} /> `) },
  { label: "caller", wide: true, of: (row) => row.caller },
  { label: "user", wide: true, of: (row) => row.user },
  { label: "", wide: true, text: true, of: (row) => [row.progress && come(row.progress), row.note].filter(Boolean).join("; ") },
];

export function Calls() {
  const { query } = route.use();
  live.use();
  const asked = new URLSearchParams(query);
  asked.set("most", "50");
  const { data, error } = useAsked(`/api/calls?${asked}`, 1500);
  const chosen = ["agent", "method", "user"].filter((name) => query.get(name));
  return html`<h1>Calls <span class="soft">that are not answered yet, the oldest first</span></h1>
    <form class="filter" onSubmit=${(event) => event.preventDefault()}><${Search} label="part of agent.method or user" />
      <${Choice} name="state" label="state" options=${["", "parked", "queued", "ready", "running", "waiting"]} />
      ${chosen.map((name) => html`<span>${name} <code>${query.get(name)}</code> <a href=${withQuery({ [name]: "", after: "" })}>all</a></span>`)}
      <a href="/graph">as a drawing</a><a href="/api/dump" target="_blank" rel="noopener">all stacks (JSON)</a><${Copy} words=${["calls"]} /></form>
    <${Problem} error=${error} />
    <div class="card"><${Table} columns=${CALLS} rows=${data?.calls} none="no such call is open" />
      ${data && html`<${Pager} next=${data.next} shown=${`${number(data.calls.length)} shown of ${number(data.total)} open calls`} />`}</div>`;
}

function Timeline({ call }) {
  const total = Math.max(call.age_s, 1e-6);
  const queued = call.queued_s === null ? total : Math.min(call.queued_s, total);
  const at = 600 * (queued / total);
  return html`<svg class="timeline" viewBox="0 0 600 46" preserveAspectRatio="none" role="img" aria-label="timeline">
    <rect class="wait" x="0" y="4" width=${at} height="16" rx="2" /><rect class="run" x=${at} y="4" width=${600 - at} height="16" rx="2" /></svg>
    <div class="tools soft"><span>▭ accepted, ${call.queued_s === null ? `not started for ${seconds(total)}` : `started after ${seconds(queued)}`}</span>
    ${call.queued_s !== null && html`<span>▬ ${call.state} for ${seconds(total - queued)}</span>`}</div>`;
}

// Without the frames of threads and of the host above the agent's code.
function ofAgent(stack) {
  const frames = stack.split(/^(?=  File )/m);
  const first = frames.findIndex((frame) => /^  File /.test(frame) && !/\/threading\.py"|\/zmqagents\/(execution|broker)\//.test(frame));
  return first > 0 ? frames.slice(first).join("") : stack;
}

export function Call() {
  const id = route.use().query.get("id") || "";
  const { data, error } = useAsked(`/api/call?id=${encodeURIComponent(id)}`, 1500);
  const call = data?.call;
  const over = error?.status === 404;
  const cancel = () => send("/api/cancel", { id }).then((answer) => (answer.cancelled ? answer.text : `${id} had ended already`));
  const others = data?.around || [];
  const up = others.filter((row) => row.waits_for.includes(call?.task_id) || row.behind?.includes(call?.task_id));
  const down = others.filter((row) => call?.waits_for.includes(row.task_id) || call?.behind?.includes(row.task_id));
  const rest = others.filter((row) => !up.includes(row) && !down.includes(row));
  return html`<h1>Call <span class="mono">${id}</span></h1>
    ${over ? html`<div class="note" data-over="yes">This call is not open: it has ended, or the host never had it.</div>` : html`<${Problem} error=${error} />`}
    ${!call && !error && html`<p class="soft">loading…</p>`}
    ${call && html`<div class="tools">${!over && me.get()?.role !== "view" && html`<${Action} label="Cancel" run=${cancel} question="A call that has not begun never runs. Code that runs is told, and ends when it looks." />`}
      <${Copy} words=${["cancel", id]} /><a href=${`/graph?around=${encodeURIComponent(id)}`}>drawing</a><a href=${`/logs?agent=${encodeURIComponent(call.agent)}&task=${encodeURIComponent(id)}`}>log lines</a></div>
    <div class="card"><${Timeline} call=${call} /><${Facts} of=${[["agent.method", html`<span class="mono"><${AgentLink} id=${call.agent} />.${call.method}</span>`], ["state", html`<${State} of=${call.state} /> ${call.note}`], ["age", seconds(call.age_s)],
      ["deadline", call.time_left_s === null ? "none" : `in ${seconds(call.time_left_s)}`], ["caller", call.caller], ["user", call.user], ["class", html`<span class="mono">${call.class}</span>`], ["runs in", call.child === null ? "the host" : `the process ${call.child}`],
      call.trace_id && ["trace", html`<span class="mono">${call.trace_id}</span>`], call.progress && ["progress", come(call.progress)],
      ["arguments", bytes(call.arguments_bytes)]]} /></div>
    <div class="halves">
      <div class="card"><h2>Waits for</h2><${Table} columns=${CALLS.slice(0, 4)} rows=${down} none=${call.waits_for.length ? "calls of another host" : "nothing"} /></div>
      <div class="card"><h2>Waited for by</h2><${Table} columns=${CALLS.slice(0, 4)} rows=${up} none="no call" /></div>
    </div>
    ${rest.length > 0 && html`<div class="card"><h2>In the same chain</h2><${Table} columns=${CALLS.slice(0, 4)} rows=${rest} /></div>`}
    <div class="card"><h2>Stack</h2>${call.stack ? html`<pre>${ofAgent(call.stack)}</pre>` : html`<p class="soft">none: its code has not begun</p>`}</div>`}`;
}
