// The Pareto front as a scatter chart. Figures come from data-url; the table below the chart holds them too.
"use strict";

(() => {
  const box = document.getElementById("chart");
  if (!box || !window.echarts) return;

  const darkScheme = window.matchMedia("(prefers-color-scheme: dark)");
  let chart = null;
  let front = null;
  let loading = false;
  let again = false;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const percent = (value) => `${(100 * value).toFixed(2)} %`;
  // Latencies come in ms and are shown in the unit that suits them all.
  const scaled = (valueMs) => valueMs * front.unit.per_ms;
  const latency = (valueMs) => `${Number(scaled(valueMs).toPrecision(4))} ${front.unit.name}`;

  function tooltip(item) {
    const point = item.data?.point;
    if (!point) return "";
    const lines = [item.seriesName];
    for (const l of point.beyond ?? []) lines.push(`${l.label}: ${latency(l.latency_ms)}, beyond the axis`);
    if (point.candidate_id) lines.push(point.candidate_id.slice(0, 12));
    if (point.predicted_latency_ms !== undefined) lines.push(`predicted ${latency(point.predicted_latency_ms)}`);
    if (point.measured_latency_ms != null) lines.push(`measured ${latency(point.measured_latency_ms)}`);
    if (point.latency_ci95_ms) lines.push(`95 % interval ${point.latency_ci95_ms.map(latency).join(" to ")}`);
    if (point.accuracy_estimate != null) lines.push(`${front.metric} estimate ${percent(point.accuracy_estimate)}`);
    if (point.accuracy != null) lines.push(`test ${front.metric} ${percent(point.accuracy)}`);
    if (point.accuracy_ci95) lines.push(`95 % interval ${point.accuracy_ci95.map(percent).join(" to ")}`);
    if (point.verdict) lines.push(point.verdict);
    if (point.standing) lines.push(point.standing);
    if (point.tied_with?.length) lines.push(`not told apart by noise from ${point.tied_with.length} others`);
    return lines.join("\n");
  }

  // Bars with caps from the low to the high end of confidence intervals, along the latency or upright along the
  // accuracy. Data are the two ends, and where the point lies on the other axis.
  function intervalBars(isUpright, data) {
    const ink = colour("--chart-verified");
    const bar = (params, api) => {
      const [low, high] = [0, 1].map((i) => api.coord(isUpright ? [api.value(2), api.value(i)] : [api.value(i), api.value(2)]));
      const [dx, dy] = isUpright ? [5, 0] : [0, 5];
      const line = (x1, y1, x2, y2) => ({
        type: "line", shape: { x1, y1, x2, y2 }, style: { stroke: ink, lineWidth: isUpright ? 1 : 1.5 },
      });
      return {
        type: "group",
        children: [
          line(low[0], low[1], high[0], high[1]),
          line(low[0] - dx, low[1] - dy, low[0] + dx, low[1] + dy),
          line(high[0] - dx, high[1] - dy, high[0] + dx, high[1] + dy),
        ],
      };
    };
    return {
      name: "verified", type: "custom", renderItem: bar, silent: true, clip: true, z: 1, itemStyle: { color: ink },
      encode: isUpright ? { x: 2, y: [0, 1] } : { x: [0, 1], y: 2 }, data,
    };
  }

  // The next multiple of a round step that leaves about six steps below it.
  function roundUp(value) {
    const power = 10 ** Math.floor(Math.log10(value / 6));
    const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((candidate) => candidate * 6 >= value);
    return Number((Math.ceil(value / step) * step).toPrecision(6));
  }

  // The unpruned networks that the axis has; those beyond it are named at its end, with their latencies.
  function baselineSeries(all, end, best) {
    const ink = colour("--chart-baseline");
    const lines = all.filter((l) => !l.is_beyond);
    const beyond = all.filter((l) => l.is_beyond).sort((a, b) => a.latency_ms - b.latency_ms);
    const points = lines.filter((l) => l.accuracy != null).map((l) => ({
      value: [scaled(l.latency_ms), 100 * l.accuracy],
      point: { measured_latency_ms: l.latency_ms, accuracy: l.accuracy },
    }));
    if (beyond.length) points.push({
      value: [end, 100 * (beyond[0].accuracy ?? best)], symbol: "triangle", symbolRotate: -90, symbolOffset: ["-50%", 0],
      label: {
        // Below the line of the unpruned accuracy, on which the others are.
        show: true, position: "left", offset: [6, 8], align: "right", verticalAlign: "top", color: ink, fontSize: 11,
        backgroundColor: colour("--surface"),
        formatter: beyond.map((l) => `${l.label}: ${latency(l.latency_ms)}`).join("\n"),
      },
      point: { accuracy: beyond[0].accuracy, beyond },
    });
    return {
      name: "unpruned", type: "scatter", data: points, z: 3,
      symbol: "rect", symbolSize: 9, itemStyle: { color: ink },
      markLine: {
        silent: true, symbol: "none", precision: 12, z: 1, lineStyle: { color: ink, type: "dashed", width: 1 },
        label: { formatter: (p) => p.name, color: ink, distance: [6, 5], fontSize: 11 },
        // The faster one is named on its left, the slower one on its right: they are often close together.
        data: [...lines].sort((a, b) => a.latency_ms - b.latency_ms).map((l, i) => ({
          name: l.label, xAxis: scaled(l.latency_ms), label: { position: i ? "insideStartBottom" : "insideStartTop" },
        })),
      },
    };
  }

  function options(data, narrow) {
    const muted = colour("--muted");
    const line = colour("--line");
    const ink = colour("--ink");
    const verified = data.verified.map((p) => ({ value: [scaled(p.measured_latency_ms), 100 * p.shown_accuracy],
      point: p,
      // Hollow where another is better beyond noise.
      ...(p.is_dominated && { itemStyle: { color: "transparent", borderColor: colour("--chart-verified"), borderWidth: 1.5 } }),
    }));
    const axis = {
      type: "value", scale: true, axisLine: { lineStyle: { color: line } }, axisLabel: { color: muted },
      splitLine: { lineStyle: { color: line, opacity: 0.6 } }, nameTextStyle: { color: muted }, nameLocation: "middle",
    };
    const end = roundUp(1.06 * scaled(data.reach_ms));
    const series = [
      {
        name: "evaluated", type: "scatter", symbolSize: 4, large: data.evaluated.length > 2000,
        itemStyle: { color: colour("--chart-cloud"), opacity: 0.55 },
        data: data.evaluated.map((p) => [scaled(p[0]), 100 * p[1]]), silent: true,
      },
      {
        name: "front", type: "line", symbol: "circle", symbolSize: 6, lineStyle: { width: 1.2, opacity: 0.7 },
        itemStyle: { color: colour("--chart-front") },
        data: data.front.map((p) => ({ value: [scaled(p.predicted_latency_ms), 100 * p.accuracy_estimate], point: p })),
      },
      {
        name: "selected", type: "scatter", symbolSize: 13,
        itemStyle: { color: "transparent", borderColor: colour("--chart-selected"), borderWidth: 2 },
        data: data.selected.map((p) => ({ value: [scaled(p.predicted_latency_ms), 100 * p.accuracy_estimate], point: p })),
      },
      {
        name: "verified", type: "scatter", symbol: "diamond", symbolSize: 11,
        itemStyle: { color: colour("--chart-verified") }, data: verified,
      },
      {
        name: "measured untrained", type: "scatter", symbol: "diamond", symbolSize: 8,
        itemStyle: { color: "transparent", borderColor: colour("--chart-front"), borderWidth: 1.5 },
        data: data.measured_untrained.map((p) => ({ value: [scaled(p.measured_latency_ms), 100 * p.shown_accuracy], point: p })),
      },
      intervalBars(false, data.verified.filter((p) => p.latency_ci95_ms)
        .map((p) => [...p.latency_ci95_ms.map(scaled), 100 * p.shown_accuracy])),
      intervalBars(true, data.verified.filter((p) => p.accuracy_ci95)
        .map((p) => [...p.accuracy_ci95.map((end) => 100 * end), scaled(p.measured_latency_ms)])),
      baselineSeries(data.baselines, end, Math.max(0, ...data.front.map((p) => p.accuracy_estimate))),
    ];
    return {
      animation: false,
      textStyle: { fontFamily: getComputedStyle(document.body).fontFamily },
      grid: { left: 52, right: narrow ? 12 : 24, top: narrow ? 62 : 42, bottom: 46 },
      legend: {
        top: 0, left: 0, itemWidth: 14, itemGap: narrow ? 10 : 18, textStyle: { color: ink },
        inactiveColor: muted, data: ["evaluated", "front", "selected", "verified", ...(data.measured_untrained.length ? ["measured untrained"] : []), "unpruned"],
      },
      tooltip: {
        trigger: "item", renderMode: "richText", confine: true, formatter: tooltip,
        backgroundColor: colour("--surface"), borderColor: line, textStyle: { color: ink, fontSize: 12 },
      },
      // From 0 to the unpruned network, so that the distance to it is seen at its true size.
      xAxis: {
        ...axis, scale: false, name: `latency, ${data.unit.name} (one image)`, nameGap: 28, min: 0, max: end,
      },
      yAxis: { ...axis, name: `${data.metric}, %`, nameGap: 36 },
      series,
    };
  }

  function draw() {
    if (!front) return;
    const nothing = !front.evaluated.length && !front.front.length;
    if (nothing) {
      box.dataset.ready = "empty";
      return;
    }
    // Shown before the chart is made, which takes the size of its box.
    box.dataset.ready = "drawing";
    if (!chart) {
      chart = echarts.init(box, null, { renderer: "canvas" });
      chart.on("finished", () => { box.dataset.ready = "true"; });
      chart.on("click", (params) => {
        const id = params.data?.point?.candidate_id;
        const row = id && document.getElementById(id);
        if (!row) return;
        const fold = row.closest("details");
        if (fold) fold.open = true;
        window.location.hash = id;
      });
    }
    box.dataset.evaluated = front.evaluated.length;
    box.dataset.front = front.front.length;
    box.dataset.verified = front.verified.length;
    box.dataset.beyond = front.baselines.filter((l) => l.is_beyond).length;
    chart.setOption(options(front, box.clientWidth < 560), { notMerge: true });
  }

  async function load() {
    if (loading) { again = true; return; }
    loading = true;
    try {
      const answer = await fetch(box.dataset.url, { headers: { Accept: "application/json" } });
      if (answer.ok) {
        front = await answer.json();
        draw();
      } else {
        box.dataset.ready = "failed";
      }
    } catch {
      box.dataset.ready = "failed";
    } finally {
      loading = false;
      if (again) { again = false; load(); }
    }
  }

  document.addEventListener("changed", load);
  darkScheme.addEventListener("change", draw);
  let width = box.clientWidth;
  new ResizeObserver(() => {
    if (box.clientWidth === width) return;
    width = box.clientWidth;
    if (chart) { chart.resize(); draw(); }
  }).observe(box);
  load();
})();
