// Lines over time, by uPlot. Colours come from the style sheet, so they follow light and dark.
import { useEffect, useRef } from "./vendor/hooks.mjs";
import { html } from "./ui.mjs";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const COLOURS = ["blue", "amber", "green", "red", "grey"];
const DASHES = [[], [6, 3], [2, 2], [8, 3, 2, 3], [1, 3]];

function options(width, height, series, format, label) {
  const grid = { stroke: colour("line"), width: 1 };
  const moment = (at) => (at === null ? "–" : new Date(at * 1000).toLocaleTimeString("en-GB"));
  return {
    width, height, cursor: { sync: { key: "time" }, points: { size: 5 } }, legend: { show: height > 100, live: true },
    scales: { x: { time: true }, y: { range: (plot, low, high) => [Math.min(0, low ?? 0), high > 0 ? high * 1.08 : 1] } },
    axes: height > 100
      ? [{ stroke: colour("soft"), grid, ticks: grid, space: 74, values: (plot, ticks) => ticks.map(moment) }, { stroke: colour("soft"), grid, ticks: grid, size: 66, values: (plot, ticks) => ticks.map(format) }]
      : [{ show: false }, { show: false }],
    series: [{ label, value: (plot, at) => moment(at) }, ...series.map((name, index) => ({
      label: name, stroke: colour(COLOURS[index % COLOURS.length]), dash: DASHES[index % DASHES.length], width: 1.6,
      points: { show: false }, spanGaps: false, value: (plot, value) => (value === null ? "–" : format(value)),
    }))],
  };
}

// data: [times, column, ...]; series: their names
export function Chart({ data, series, format, height = 200, label = "time", title }) {
  const place = useRef(null);
  const plot = useRef(null);
  const key = series.join();
  useEffect(() => {
    const make = () => {
      if (!place.current) return;
      plot.current?.destroy();
      plot.current = new window.uPlot(options(Math.max(120, place.current.clientWidth), height, series, format, label), data, place.current);
    };
    make();
    const watch = new ResizeObserver(() => { if (place.current) plot.current?.setSize({ width: Math.max(120, place.current.clientWidth), height }); });
    watch.observe(place.current);
    const scheme = matchMedia("(prefers-color-scheme: dark)");
    scheme.addEventListener("change", make);
    return () => { watch.disconnect(); scheme.removeEventListener("change", make); plot.current?.destroy(); plot.current = null; };
  }, [key, height]);
  useEffect(() => { plot.current?.setData(data); });
  return html`<div class="chart" ref=${place} role="img" aria-label=${title}></div>`;
}
