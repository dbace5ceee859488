// The points of the charts: fetched once for a span, then one more with each tick.
import { useEffect, useState } from "./vendor/hooks.mjs";
import { ask, chosen, live } from "./ui.mjs";

const MOST = { "10m": 600, "24h": 1440 };

export function useSeries(span) {
  const [series, setSeries] = useState(null);
  const tick = live.use();
  const host = chosen();
  useEffect(() => {
    let over = false; let timer = 0;
    const look = async () => {
      try { const found = await ask(`/api/series?span=${span}`); if (!over) setSeries(found); } catch { /* the next look */ }
      if (!over) timer = setTimeout(look, span === "10m" ? 30000 : 60000);
    };
    setSeries(null);
    look();
    return () => { over = true; clearTimeout(timer); };
  }, [span, host]);
  useEffect(() => {
    const host = tick?.hosts[0];
    if (chosen() && host?.id !== chosen()) return;
    if (span !== "10m" || !series || !host?.up || host.point?.ok_per_s === undefined) return;
    const last = series.t[series.t.length - 1] ?? 0;
    if (host.seen <= last + 0.5) return;
    setSeries((old) => Object.fromEntries(Object.entries(old).map(([name, column]) =>
      [name, [...column, name === "t" ? host.seen : host.point[name] ?? null].slice(-MOST[span])])));
  }, [tick]);
  return series;
}
