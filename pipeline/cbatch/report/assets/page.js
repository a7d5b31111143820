// Draws the plots of a cbatch report with uPlot, filters by model or level, switches light and dark. Reads #data, asks no network.
"use strict";
(() => {
  const root = document.documentElement;
  const data = JSON.parse(document.getElementById("data").textContent);
  const COLOURS = 8;
  const DASHES = [[], [7, 5], [2, 4]];
  const charts = [];
  let chosen = null; // the number of a group; null: all

  // A canvas knows no CSS variables: their colours are read from an element that has them, and again when the theme changes.
  const probe = document.createElement("i");
  probe.hidden = true;
  document.body.append(probe);
  let known = {};
  function colour(name) {
    if (!(name in known)) {
      probe.style.color = `var(--${name})`;
      known[name] = getComputedStyle(probe).color;
    }
    return known[name];
  }
  const of = (group) => (group === null ? "ink" : `c${group % COLOURS}`);
  const faint = (rgb, share) => rgb.replace(/^rgba?\(([^,]+,[^,]+,[^,)]+).*$/, `rgba($1, ${share})`);
  const number = (v) => v.toLocaleString("en", { maximumSignificantDigits: Math.abs(v) >= 1000 ? 5 : 3 });
  const short = (v) => (Math.abs(v) >= 10000 ? `${number(v / 1000)}k` : number(v));

  // All series on one sorted x axis. A place that another series brought is undefined (a line goes on), null is a gap.
  function merged(series) {
    const places = series.flatMap((s, k) => s.x.map((x, i) => [x, k, s.y[i]])).sort((a, b) => a[0] - b[0]);
    const columns = [places.map((p) => p[0]), ...series.map(() => new Array(places.length).fill(undefined))];
    places.forEach(([, k, y], at) => (columns[k + 1][at] = y));
    // uPlot blanks a gap from neighbour to neighbour: it must be null all the way.
    for (const column of columns.slice(1)) {
      let last = -1;
      column.forEach((y, at) => {
        if (y === undefined) return;
        if (last >= 0 && (y === null || column[last] === null)) column.fill(null, last + 1, at);
        last = at;
      });
    }
    return columns;
  }

  // 1, 2, 5, 10, 20 … between two numbers; evenly where they are too close for that.
  function logSplits(min, max) {
    const found = [];
    for (let e = Math.floor(Math.log10(min)); e <= Math.ceil(Math.log10(max)); e++)
      for (const m of [1, 2, 5]) if (m * 10 ** e >= min && m * 10 ** e <= max) found.push(m * 10 ** e);
    if (found.length > 2) return found;
    const step = 10 ** Math.floor(Math.log10((max - min) / 2));
    const by = (max - min) / step > 6 ? 2 * step : step;
    const even = [];
    for (let v = Math.ceil(min / by) * by; v <= max; v += by) even.push(Number(v.toPrecision(12)));
    return even;
  }

  function range(plot) {
    return (_, low, high) => {
      if (low == null) return plot.y_log ? [1, 10] : [0, 1];
      if (plot.y_log) return [low / 1.25, high * 1.15];
      return [0, plot.y_max || high * 1.06 || 1];
    };
  }

  function home(plots) {
    const xs = plots.flatMap((p) => p.series.flatMap((s) => s.x));
    let low = Infinity, high = -Infinity;
    for (const x of xs) { low = Math.min(low, x); high = Math.max(high, x); }
    if (plots[0].sync) return { min: 0, max: high || 1 };
    if (plots[0].x_log) return { min: low / 1.05, max: high * 1.05 };
    const room = (high - low) * 0.03 || Math.abs(high) * 0.1 || 1;
    return { min: Math.max(low - room, low >= 0 ? 0 : -Infinity), max: high + room };
  }

  function axis(label, at, log, size) {
    const own = {
      label, size, labelSize: 20, gap: 4, font: "12px system-ui, sans-serif", labelFont: "12px system-ui, sans-serif",
      stroke: () => colour("soft"), grid: { stroke: () => colour("grid"), width: 1 },
      ticks: { stroke: () => colour("grid"), width: 1, size: 5 }, values: (_, splits) => splits.map(short),
    };
    if (log) {
      own.splits = (_, __, min, max) => logSplits(min, max);
      own.filter = (_, splits) => splits;
    }
    if (at === "y") own.space = 34;
    return own;
  }

  function behind(plot) {
    return (u) => {
      const { ctx, bbox } = u;
      const place = (x) => u.valToPos(x, "x", true);
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      ctx.fillStyle = colour("band");
      for (const [from, to] of plot.bands) ctx.fillRect(place(from), bbox.top, place(to) - place(from), bbox.height);
      ctx.strokeStyle = colour("soft");
      ctx.setLineDash([4, 4]);
      for (const x of plot.marks) {
        ctx.beginPath();
        ctx.moveTo(place(x), bbox.top);
        ctx.lineTo(place(x), bbox.top + bbox.height);
        ctx.stroke();
      }
      ctx.fillStyle = colour("bad");
      for (const x of plot.ticks) ctx.fillRect(place(x) - 1, bbox.top + bbox.height - 8, 2, 8);
      ctx.restore();
    };
  }

  // What is under the pointer: the value of each line, and the one dot that is near.
  function tooltip(plot) {
    const box = document.createElement("div");
    box.className = "tip";
    const row = (s, x, y) => {
      const name = data.groups.length > 1 && s.group !== null ? `${data.groups[s.group]}, ${s.name}` : s.name;
      const line = document.createElement("div");
      const swatch = document.createElement("i");
      swatch.style.background = colour(of(s.group));
      line.append(swatch, `${name}: ${number(y)}${s.dots ? ` at ${number(x)}` : ""}`);
      return line;
    };
    return {
      hooks: {
        init: (u) => u.over.append(box),
        setCursor: (u) => {
          const { left, top } = u.cursor;
          const rows = [];
          const dot = { far: 14, row: null };
          if (left >= 0)
            plot.series.forEach((s, k) => {
              if (!u.series[k + 1].show || !s.x.length) return;
              const x = u.posToVal(left, "x");
              if (!s.dots) {
                const y = at(s, x);
                if (y !== null) rows.push(row(s, x, y));
                return;
              }
              const from = below(s.x, u.posToVal(left - 14, "x")), to = below(s.x, u.posToVal(left + 14, "x"));
              for (let i = from; i < to; i++) {
                const far = Math.hypot(u.valToPos(s.x[i], "x") - left, u.valToPos(s.y[i], "y") - top);
                if (far < dot.far) Object.assign(dot, { far, row: [s, s.x[i], s.y[i]] });
              }
            });
          if (dot.row) rows.unshift(row(...dot.row));
          const head = document.createElement("b");
          if (rows.length) head.textContent = `${number(u.posToVal(left, "x"))} ${plot.x_label.replace(/^.*, /, "")}`;
          box.replaceChildren(...(rows.length ? [head, ...rows.slice(0, 12)] : []));
          box.style.display = rows.length ? "block" : "none";
          const wide = u.over.clientWidth;
          box.style.left = left < wide / 2 ? `${left + 14}px` : "auto";
          box.style.right = left < wide / 2 ? "auto" : `${wide - left + 14}px`;
        },
      },
    };
  }
  function below(sorted, x) {
    let low = 0, high = sorted.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (sorted[middle] < x) low = middle + 1;
      else high = middle;
    }
    return low;
  }
  // The value of a line, as it is drawn between two points; null outside of it and in a gap.
  function at({ x: xs, y: ys }, x) {
    const i = below(xs, x);
    if (i === 0 || i === xs.length || ys[i] === null || ys[i - 1] === null) return null;
    return ys[i - 1] + ((ys[i] - ys[i - 1]) * (x - xs[i - 1])) / (xs[i] - xs[i - 1]);
  }

  function drawn(plot, all, last) {
    const place = document.getElementById(`plot-${plot.name}`);
    const start = home(all);
    const chart = { plot, place, start, all };
    const options = {
      width: place.clientWidth,
      height: plot.height + (last ? 24 : 0),
      padding: [8, 8, last ? 0 : 4, 0],
      legend: { show: false },
      scales: { x: { time: false, distr: plot.x_log ? 3 : 1 }, y: { distr: plot.y_log ? 3 : 1, range: range(plot) } },
      axes: [
        last ? axis(plot.x_label, "x", plot.x_log, 30) : { ...axis(undefined, "x", false, 6), values: (_, s) => s.map(() => "") },
        axis(plot.y_label, "y", plot.y_log, 46),
      ],
      series: [{}, ...plot.series.map((s) => ({
        label: s.name,
        stroke: () => colour(of(s.group)),
        width: s.dash === 2 ? 1.5 : 2,
        dash: DASHES[s.dash],
        paths: s.dots ? () => null : undefined,
        points: s.dots
          ? { show: true, space: 0, size: 4, width: 0, fill: () => faint(colour(of(s.group)), 0.4) }
          : { show: s.y.filter((y) => y !== null).length === 1, size: 6 },
      }))],
      cursor: {
        y: false,
        points: { show: false },
        drag: { x: true, y: false, dist: 8 },
        sync: plot.sync ? { key: plot.sync, setSeries: false, filters: { pub: (type) => type.startsWith("mouse") && type !== "mousedown" && type !== "mouseup" } } : undefined,
        bind: { dblclick: () => () => (zoom(chart, start), null) },
      },
      hooks: {
        drawClear: [behind(plot)],
        setScale: [(u, key) => key === "x" && chart.u && zoom(chart, { min: u.scales.x.min, max: u.scales.x.max })],
      },
      plugins: [tooltip(plot)],
    };
    chart.u = new uPlot(options, merged(plot.series), place);
    chart.u.setScale("x", start);
    chart.button = place.closest("figure").querySelector(".reset");
    chart.button.onclick = () => zoom(chart, start);
    charts.push(chart);
  }

  // Plots of one group are zoomed as one.
  let zooming = true; // until all are drawn for the first time
  function zoom(from, { min, max }) {
    if (zooming) return;
    zooming = true;
    for (const chart of charts)
      if (chart === from || (chart.plot.sync && chart.plot.sync === from.plot.sync)) {
        const { x } = chart.u.scales;
        if (x.min !== min || x.max !== max) chart.u.batch(() => chart.u.setScale("x", { min, max }));
        chart.button.hidden = Math.abs(min - from.start.min) + Math.abs(max - from.start.max) < 1e-9;
      }
    zooming = false;
  }

  function legend(plots) {
    const place = document.getElementById(`plot-${plots[0].name}`).closest("figure").querySelector(".legend");
    const seen = new Set();
    const entry = (kind, name, text, group) => {
      if (seen.has(text)) return;
      seen.add(text);
      const item = document.createElement("span");
      const mark = document.createElement("i");
      mark.className = kind;
      mark.style.setProperty("--mark", `var(--${name})`);
      item.append(mark, text);
      if (group !== undefined) item.dataset.number = group;
      place.append(item);
    };
    const several = data.groups.length > 1 && plots.some((p) => p.series.some((s) => s.group !== null));
    if (several) data.groups.forEach((group, n) => entry("square", of(n), group, n));
    const kinds = ["line", "line dashed", "line dotted"];
    for (const { series, bands, ticks, marks } of plots) {
      for (const s of series) {
        if (["in flight", "tokens/s", "loop lag"].includes(s.name)) continue; // their axes say it
        entry(s.dots ? "dot" : kinds[s.dash], s.group === null || several ? "ink" : of(s.group), s.name);
      }
      if (bands.length) entry("square", "band", data.band);
      if (ticks.length) entry("tick", "bad", "refused (429)");
      if (marks.length) entry("line dashed", "soft", "a pause is left out");
    }
  }

  function filter() {
    for (const part of document.querySelectorAll("[data-group]"))
      part.hidden = chosen !== null && part.dataset.group !== String(chosen);
    for (const part of document.querySelectorAll("[data-only]"))
      part.hidden = part.dataset.only !== (chosen === null ? "" : String(chosen));
    for (const item of document.querySelectorAll(".legend [data-number]"))
      item.classList.toggle("off", chosen !== null && item.dataset.number !== String(chosen));
    for (const { u, plot } of charts)
      u.batch(() => plot.series.forEach((s, k) => u.setSeries(k + 1, { show: chosen === null || s.group === null || s.group === chosen })));
  }

  function repaint(width) {
    known = {};
    for (const { u, place, plot } of charts) {
      u.setSize({ width: width || place.clientWidth, height: u.height });
      u.redraw(false, true);
    }
  }

  const groups = new Map();
  for (const plot of data.plots) groups.set(plot.sync || plot.name, [...(groups.get(plot.sync || plot.name) || []), plot]);
  for (const plots of groups.values()) {
    plots.forEach((plot, n) => drawn(plot, plots, n === plots.length - 1));
    legend(plots);
  }

  const select = document.getElementById("group");
  if (select) select.onchange = () => { chosen = select.value === "" ? null : Number(select.value); filter(); };

  const dark = matchMedia("(prefers-color-scheme: dark)");
  const toggle = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const name = () => { toggle.textContent = isDark() ? "Light" : "Dark"; };
  toggle.hidden = false;
  toggle.onclick = () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); repaint(); };
  dark.addEventListener("change", () => { name(); repaint(); });
  name();

  let width = root.clientWidth;
  addEventListener("resize", () => { if (root.clientWidth !== width) { width = root.clientWidth; repaint(); } });
  // Paper is white and 180 mm wide, whatever the screen was.
  addEventListener("beforeprint", () => { root.dataset.paper = ""; repaint(660); });
  addEventListener("afterprint", () => { delete root.dataset.paper; repaint(); });
  // uPlot draws at the end of this task.
  setTimeout(() => { zooming = false; root.dataset.ready = ""; });
})();
