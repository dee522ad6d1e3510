"use strict";
(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const TITLE_PX = 24, COLUMN_PX = 280, MARGIN = { l: 52, r: 10, t: 2, b: 44 };
  const plots = [...document.querySelectorAll(".plot")].map((box) => ({
    box, figure: data.figures[box.dataset.figure], hidden: new Set(), at: null,
  }));
  const overTime = plots.filter((plot) => plot.figure.layout.meta?.time);
  // What all plots over time show, [from, to] in s; null for everything.
  let span = null;

  // What the style sheet says of colours and type, for plotly, which does not read style sheets.
  function readTheme() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return {
      text: read("--text"), muted: read("--muted"), line: read("--line"), raised: read("--raised"),
      page: read("--page"),
      tone: (number) => read(`--tone-${number}`), font: getComputedStyle(document.body).fontFamily,
    };
  }

  const axisName = (name, place) => (place === 0 ? name : name + (place + 1));
  const coarse = () => matchMedia("(pointer: coarse)").matches;

  // Cells one below the other, or side by side where the page is wide enough.
  function arrangeCells(layout, width, theme) {
    const { cells, columns: most, cell_px: tall, time } = layout.meta;
    const titled = cells.some((title) => title);
    const columns = Math.max(1, Math.min(most, cells.length, Math.floor(width / COLUMN_PX)));
    const rows = Math.ceil(cells.length / columns);
    const above = titled ? TITLE_PX : 8, gap = time ? 4 : 40, between = columns > 1 ? 58 : 0;
    const inner = rows * (above + tall) + (rows - 1) * gap;
    const across = Math.max(1, width - MARGIN.l - MARGIN.r);
    const wide = (across - between * (columns - 1)) / columns;
    layout.height = inner + MARGIN.t + MARGIN.b;
    layout.annotations = [];
    cells.forEach((title, place) => {
      const left = (place % columns) * (wide + between) / across;
      const top = 1 - (Math.floor(place / columns) * (above + tall + gap) + above) / inner;
      const x = layout[axisName("xaxis", time ? 0 : place)], y = layout[axisName("yaxis", place)];
      y.domain = [Math.max(0, top - tall / inner), top];
      x.domain = [left, Math.min(1, left + wide / across)];
      y.anchor = axisName("x", time ? 0 : place);
      x.anchor = axisName("y", time ? cells.length - 1 : place);
      if (title) {
        layout.annotations.push({ text: title, x: left, y: top, xref: "paper", yref: "paper", xanchor: "left",
          yanchor: "bottom", showarrow: false, font: { size: 13, color: theme.text } });
      }
    });
  }

  function paintAxis(axis, theme) {
    const title = { ...axis.title, font: { size: 12, color: theme.muted } };
    return { gridcolor: theme.line, linecolor: theme.line, zerolinecolor: theme.line, zerolinewidth: 1,
      tickfont: { size: 11, color: theme.muted }, spikecolor: theme.muted, spikethickness: 1, ...axis, title };
  }

  function buildLayout(plot, theme, width) {
    const layout = structuredClone(plot.figure.layout);
    for (const name of Object.keys(layout).filter((key) => /^[xy]axis/.test(key))) {
      layout[name] = paintAxis(layout[name], theme);
    }
    if (layout.meta?.cells) arrangeCells(layout, width, theme);
    if (overTime.includes(plot)) {
      if (plot.at !== null) layout.shapes = [markTime(plot.at, theme)];
      if (span !== null) layout.xaxis.range = span.slice();
    }
    return { margin: MARGIN, paper_bgcolor: theme.page, plot_bgcolor: theme.page, showlegend: false,
      font: { family: theme.font, size: 12, color: theme.text }, dragmode: coarse() ? false : "zoom",
      hoverlabel: { bgcolor: theme.raised, bordercolor: theme.line,
        font: { family: theme.font, size: 12, color: theme.text } },
      uirevision: "kept", width, ...layout };
  }

  const markTime = (at, theme) => ({ type: "line", xref: "x", yref: "paper", x0: at, x1: at, y0: 0, y1: 1,
    line: { color: theme.text, width: 1, dash: "dot" } });

  function paintTrace(trace, theme, hidden) {
    const color = theme.tone(trace.meta?.tone ?? 1);
    const painted = { ...trace, marker: { ...trace.marker, color }, visible: !hidden.has(trace.legendgroup) };
    if (trace.type !== "bar") painted.line = { ...trace.line, color };
    if (trace.type === "bar") painted.marker.line = { width: 0 };
    if (trace.stackgroup) painted.fillcolor = `${color}66`;
    if (trace.error_y) painted.error_y = { ...trace.error_y, color: trace.type === "bar" ? theme.text : color };
    return painted;
  }

  function drawPlot(plot) {
    const theme = readTheme(), width = Math.floor(plot.box.clientWidth);
    plot.width = width;
    const traces = plot.figure.data.map((trace) => paintTrace(trace, theme, plot.hidden));
    return Plotly.react(plot.box, traces, buildLayout(plot, theme, width),
      { displayModeBar: false, doubleClick: "autosize", showTips: false });
  }

  // Buttons, which a keyboard reaches, unlike plotly's own legend.
  function buildLegend(plot) {
    const legend = document.querySelector(`[data-legend="${plot.box.dataset.figure}"]`);
    const shown = new Map(plot.figure.data.map((trace) => [trace.legendgroup, trace]));
    for (const [group, trace] of shown) {
      const button = document.createElement("button"), swatch = document.createElement("i");
      button.type = "button";
      button.setAttribute("aria-pressed", "true");
      swatch.style.borderTopColor = `var(--tone-${trace.meta?.tone ?? 1})`;
      swatch.style.borderTopStyle = { dot: "dotted", dash: "dashed" }[trace.line?.dash] ?? "solid";
      button.append(swatch, trace.meta?.name ?? trace.name ?? "");
      button.addEventListener("click", () => {
        const hide = !plot.hidden.has(group);
        plot.hidden[hide ? "add" : "delete"](group);
        button.setAttribute("aria-pressed", String(!hide));
        drawPlot(plot);
      });
      legend.append(button);
    }
    const tools = document.createElement("span");
    tools.className = "tools";
    legend.append(tools);
    plot.reset = addTool(tools, "Reset zoom", () => Plotly.relayout(plot.box, Object.fromEntries(
      listXAxes(plot).map((name) => [`${name}.autorange`, true]))));
    plot.reset.hidden = true;
    addTool(tools, "Save PNG", () => Plotly.downloadImage(plot.box, { format: "png", scale: 2, width: plot.width,
      height: plot.box.layout.height, filename: `plot-${Number(plot.box.dataset.figure) + 1}` }));
  }

  function addTool(tools, text, act) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", act);
    tools.append(button);
    return button;
  }

  const listXAxes = (plot) => Object.keys(plot.figure.layout).filter((name) => name.startsWith("xaxis"));

  // What is zoomed in time in one plot is zoomed in all.
  let following = false;
  async function followZoom(plot, change) {
    const names = listXAxes(plot);
    if (following || !Object.keys(change).some((key) => names.includes(key.split(".")[0]))) return;
    const isZoomed = (one) => names.some((name) => one.box.layout[name].autorange === false);
    if (!overTime.includes(plot)) { plot.reset.hidden = !isZoomed(plot); return; }
    following = true;
    span = isZoomed(plot) ? plot.box.layout.xaxis.range.slice() : null;
    const update = span === null ? { "xaxis.autorange": true } : { "xaxis.range": span.slice() };
    await Promise.all(overTime.filter((other) => other !== plot && other.box.layout)
      .map((other) => Plotly.relayout(other.box, update)));
    overTime.forEach((other) => { other.reset.hidden = span === null; });
    following = false;
  }

  function moveMark(at) {
    const theme = readTheme();
    for (const plot of overTime) {
      plot.at = at;
      if (plot.box.layout) Plotly.relayout(plot.box, { shapes: [markTime(at, theme)] });
    }
  }

  class Scrubber {
    constructor(box) {
      this.box = box;
      this.frames = data.scrubbers[box.dataset.scrubber];
      [this.image, this.slider, this.time, this.caption, this.button] =
        ["img", "input", "output", "figcaption", ".play"].map((name) => box.querySelector(name));
      this.last = this.frames[this.frames.length - 1].at;
      this.timer = null;
      this.slider.addEventListener("input", () => this.show(Number(this.slider.value)));
      this.button.addEventListener("click", () => (this.timer === null ? this.play() : this.stop()));
      this.show(0);
    }

    show(place) {
      const index = Math.min(Math.max(place, 0), this.frames.length - 1), frame = this.frames[index];
      this.slider.value = index;
      this.image.src = `data:image/jpeg;base64,${frame.jpeg}`;
      this.image.alt = this.caption.textContent = frame.caption;
      this.time.textContent = `${frame.at.toFixed(2)}\u00a0s`;
      this.slider.setAttribute("aria-valuetext", `${frame.at.toFixed(2)} seconds of ${this.last.toFixed(2)}`);
      cancelAnimationFrame(this.asked);
      this.asked = requestAnimationFrame(() => moveMark(frame.at));
    }

    step(by) { this.show(Number(this.slider.value) + by); }

    seek(at) {
      const apart = this.frames.map((frame) => Math.abs(frame.at - at));
      this.show(apart.indexOf(Math.min(...apart)));
    }

    play() {
      if (Number(this.slider.value) === this.frames.length - 1) this.show(0);
      this.button.textContent = "Pause";
      this.wait();
    }

    // As fast as it was recorded, within what an eye can follow.
    wait() {
      const index = Number(this.slider.value);
      if (index >= this.frames.length - 1) { this.stop(); return; }
      const pause = Math.min(Math.max((this.frames[index + 1].at - this.frames[index].at) * 1000, 40), 250);
      this.timer = setTimeout(() => { this.step(1); this.wait(); }, pause);
    }

    stop() {
      clearTimeout(this.timer);
      this.timer = null;
      this.button.textContent = "Play";
    }
  }

  const scrubbers = [...document.querySelectorAll(".scrubber")].map((box) => new Scrubber(box));

  function isSeen(box) {
    const { top, bottom } = box.getBoundingClientRect();
    return bottom > 0 && top < innerHeight;
  }

  document.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const focus = document.activeElement;
    const scrubber = scrubbers.find((one) => one.box.contains(focus))
      ?? (focus === document.body ? scrubbers.find((one) => isSeen(one.box)) : undefined);
    if (!scrubber) return;
    event.preventDefault();
    scrubber.step(by);
  });

  // A table that is wider than the page is scrolled by keyboard too.
  function reachTables() {
    for (const box of document.querySelectorAll(".table")) {
      box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1;
    }
  }

  async function drawAll() {
    plots.forEach(buildLegend);
    dark.addEventListener("change", () => plots.forEach(drawPlot));
    addEventListener("resize", () => {
      reachTables();
      plots.filter((plot) => Math.floor(plot.box.clientWidth) !== plot.width).forEach(drawPlot);
    });
    for (const plot of plots) {
      await drawPlot(plot);
      plot.box.on("plotly_relayout", (change) => followZoom(plot, change));
      if (overTime.includes(plot)) {
        plot.box.on("plotly_click", (event) => scrubbers[0]?.seek(event.points[0].x));
      }
      // The page answers between two plots.
      await new Promise((done) => setTimeout(done));
    }
    document.documentElement.dataset.drawn = "true";
  }

  reachTables();
  drawAll();
})();
