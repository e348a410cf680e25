/* Draws the figures of the page from the numbers embedded in it. Nothing is fetched. */
(() => {
  "use strict";
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;
  const data = JSON.parse(byId("data").textContent);
  root.classList.add("scripted");

  /* ---- theme ---------------------------------------------------------------------------- */
  const systemDark = matchMedia("(prefers-color-scheme: dark)");
  const remembered = (() => { try { return localStorage.getItem("kobai-theme"); } catch { return null; } })();
  const wanted = new URLSearchParams(location.hash.slice(1)).get("theme") || remembered;
  if (wanted === "dark" || wanted === "light") root.dataset.theme = wanted;
  const dark = () => (root.dataset.theme || (systemDark.matches ? "dark" : "light")) === "dark";
  document.querySelector(".theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    try { localStorage.setItem("kobai-theme", root.dataset.theme); } catch { /* file: may forbid it */ }
    drawAll();
  });
  systemDark.addEventListener("change", () => drawAll());

  /* ---- small things --------------------------------------------------------------------- */
  // Where no font has the characters, a row of empty boxes would be worse than nothing.
  const drawn = (text) => {
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = 24;
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    if (!pen) return text;
    pen.font = '20px "Noto Serif CJK JP", serif';
    pen.fillText(text, 1, 20);
    return pen.getImageData(0, 0, 24, 24).data.join();
  };
  if (drawn("\u52fe") === drawn("\u{10fffd}") || drawn("\u52fe") === drawn("\u914d")) {
    document.querySelectorAll(".kanji").forEach((element) => element.remove());
  }
  const copy = byId("copy");
  if (copy) {
    copy.addEventListener("click", async () => {
      const code = byId("command");
      try {
        await navigator.clipboard.writeText(code.textContent);
      } catch {
        const range = document.createRange();
        range.selectNodeContents(code);
        getSelection().removeAllRanges();
        getSelection().addRange(range);
        try { document.execCommand("copy"); } catch { /* it stays selected */ }
      }
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1600);
    });
  }
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  // Plotly reads a little HTML in its labels; names that people typed must stay text.
  const text = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/%\{/g, "%&#123;");
  // Letters drawn in WebGL know no entities at all, only tags: leave them nothing to read as one.
  const solid = (value) => String(value).replace(/</g, "‹").replace(/>/g, "›");
  const mix = (hex, share) => {
    const part = (i) => parseInt(hex.slice(i, i + 2), 16);
    return `rgb(${[1, 3, 5].map((i) => Math.round(part(i) + (255 - part(i)) * share)).join(",")})`;
  };
  const look = (name, onMap = false) => { // the map is the same in both themes, the card is not
    const style = data.optimizers[name];
    return { ...(style || { dash: "solid", symbol: "circle" }), color: style ? mix(style.color, dark() && !onMap ? 0.24 : 0) : onMap ? "#22262e" : css("--ink") };
  };
  const faded = (rgb, alpha) => rgb.replace("rgb(", "rgba(").replace(")", `,${alpha})`);
  const spell = (value) => {
    if (value === null || !Number.isFinite(value)) return "–";
    const size = Math.abs(value);
    const short = size !== 0 && (size < 1e-4 || size >= 1e5) ? value.toExponential(2) : Number(value.toPrecision(4)).toString();
    return short.replace("-", "−").replace(/e([+−-]?)(\d+)/, (_, sign, power) => `×10<sup>${sign === "−" || sign === "-" ? "−" : ""}${power}</sup>`);
  };
  const hiddenRuns = new Set();
  const shown = (name) => !hiddenRuns.has(name);

  /* ---- common layout -------------------------------------------------------------------- */
  const axis = (title, more = {}) => ({
    title: { text: title, font: { size: 12.5, color: css("--soft") }, standoff: 8 },
    gridcolor: css("--grid"), linecolor: css("--rule"), zerolinecolor: css("--grid"), zeroline: false,
    tickfont: { size: 11.5, color: css("--soft") }, automargin: true, ...more,
  });
  const layout = (more) => ({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, autosize: true,
    font: { family: css("--sans"), size: 12.5, color: css("--ink") }, margin: { l: 8, r: 12, t: 8, b: 8 },
    hoverlabel: { bgcolor: css("--card"), bordercolor: css("--rule"), font: { family: css("--sans"), size: 12.5, color: css("--ink") }, align: "left" },
    ...more,
  });
  const config = (name) => ({
    displaylogo: false, showSendToCloud: false, plotlyServerURL: "", modeBarButtons: [["toImage"]],
    toImageButtonOptions: { filename: `kobai-${name}`, scale: 2 },
  });
  const put = (id, traces, frame) => {
    const target = byId(id);
    return window.Plotly.react(target, traces, layout({ ...frame, modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--faint"), activecolor: css("--accent") } }), config(id.replace("chart-", "")));
  };
  // Cards change their width with the window, the print page and unfolding details alike.
  const fit = new ResizeObserver((entries) => {
    for (const { target, contentRect } of entries) {
      const full = target._fullLayout;
      if (full && contentRect.width > 0 && Math.abs(full.width - contentRect.width) > 1) window.Plotly.Plots.resize(target);
    }
  });
  document.querySelectorAll(".chart").forEach((chart) => fit.observe(chart));
  const decade = (value) => `${Number(value.toPrecision(3))}`.replace(/^1e-?(\d+)$/, (m, p) => `10<sup>${m.includes("-") ? "−" : ""}${p}</sup>`);
  const logTicks = (low, high) => {
    const menus = [[1], [1, 3], [1, 2, 5]];
    const all = menus.map((menu) => {
      const ticks = [];
      for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) for (const m of menu) { const v = m * 10 ** p; if (v >= low && v <= high) ticks.push(v); }
      return ticks;
    });
    const best = all.reduce((a, b) => (Math.abs(b.length - 6) < Math.abs(a.length - 6) ? b : a));
    const every = Math.max(1, Math.ceil(best.length / 8));
    return best.filter((_, i) => i % every === 0);
  };

  /* ---- training ------------------------------------------------------------------------- */
  const quantities = { loss: "loss", steps: "mini-batch loss", gradient_norm: "gradient norm", learning_rate: "learning rate" };
  const measured = (column) => data.runs.some((run) => run.columns[column]);
  const heldOut = (quantity) => ["test", "validation"].map((split) => `${split}_${quantity}`).find(measured);
  const setUpTraining = () => {
    const select = byId("quantity");
    if (!select) return;
    for (const [key, name] of Object.entries(quantities)) {
      const there = key === "loss" ? measured("train_loss") || heldOut("loss") : key === "steps" ? data.runs.some((run) => run.steps.loss.length) : measured(key);
      if (there) select.add(new Option(name, key));
    }
    select.addEventListener("change", drawTraining);
    byId("show-train").addEventListener("change", drawTraining);
    byId("show-seeds").addEventListener("change", drawTraining);
    document.querySelectorAll("input[name=along]").forEach((input) => input.addEventListener("change", drawTraining));
    document.querySelectorAll("[data-runs] input").forEach((input) => input.addEventListener("change", () => {
      if (input.checked) hiddenRuns.delete(input.value); else hiddenRuns.add(input.value);
      drawAll();
    }));
    if (!measured("train_accuracy") && !heldOut("accuracy")) byId("card-accuracy").remove();
  };
  const curveTraces = (columns, along, place) => {
    const traces = [];
    const words = { train: "training", validation: "validation", test: "test" };
    for (const name of data.order) {
      if (!shown(name)) continue;
      const style = look(name);
      columns.forEach((column, i) => {
        const strong = i === 0;
        const split = words[column.split("_")[0]] || "";
        const title = text(split ? `${style.label}, ${split}` : style.label);
        const band = (data.bands[name] || {})[column];
        if (band) {
          const mean = band.mean, x = band[along];
          if (strong && band.seeds > 1) {
            const up = mean.map((m, k) => place(m + band.sd[k]));
            const down = mean.map((m, k) => place(Math.max(m - band.sd[k], 0.1 * m)));
            traces.push({ x: [...x, ...[...x].reverse()], y: [...up, ...down.reverse()], fill: "toself", fillcolor: faded(style.color, 0.15), line: { width: 0 }, mode: "lines", hoverinfo: "skip" });
          }
          traces.push({
            x, y: mean.map(place), mode: strong ? "lines+markers" : "lines", name: title, text: mean.map((m, k) => `${column.includes("accuracy") ? `${(100 * m).toFixed(2)} %` : spell(m)}${strong && band.seeds > 1 && band.sd[k] !== null ? ` ± ${column.includes("accuracy") ? (100 * band.sd[k]).toFixed(2) : spell(band.sd[k])}` : ""}`),
            hovertemplate: "%{text}", line: { color: style.color, width: strong ? 2.3 : 1.1, dash: style.dash }, opacity: strong ? 1 : 0.75,
            marker: { symbol: style.symbol, size: 6.5, color: style.color, line: { color: css("--card"), width: 1 }, maxdisplayed: 9 },
          });
        }
        for (const run of data.runs) {
          const lost = run.status === "diverged";
          const values = run.columns[column];
          if (run.optimizer !== name || !values || !(lost || byId("show-seeds").checked) || (lost && !strong)) continue;
          const last = values.reduce((keep, value, k) => (value === null ? keep : k), 0);
          traces.push({ x: run[along], y: values.map((v) => (v === null ? null : place(v))), mode: lost ? "lines+markers" : "lines", name: text(`${run.label}${split ? `, ${split}` : ""}`), text: values.map(spell), hovertemplate: "%{text}", line: { color: style.color, width: 1, dash: lost ? "dot" : "solid" }, opacity: lost ? 1 : 0.45, marker: { symbol: "x", size: 9, color: style.color, opacity: values.map((_, k) => (k === last ? 1 : 0)) } });
        }
      });
    }
    return traces;
  };
  const calmValues = (columns) => data.runs.filter((run) => run.status !== "diverged" || data.runs.every((r) => r.status === "diverged"))
    .flatMap((run) => columns.flatMap((column) => run.columns[column] || [])).filter((value) => value !== null);
  const valueAxis = (columns, title) => {
    const values = calmValues(columns);
    const low = Math.min(...values), high = Math.max(...values);
    if (!(low > 0 && high > 5 * low)) return axis(title, values.length && data.runs.some((run) => run.status === "diverged") ? { range: [low - 0.05 * (high - low || 1), high + 0.05 * (high - low || 1)] } : {});
    const ticks = logTicks(low * 0.85, high * 1.25);
    return axis(title, { type: "log", range: [Math.log10(low * 0.85), Math.log10(high * 1.25)], tickvals: ticks, ticktext: ticks.map(decade) });
  };
  const drawTraining = () => {
    const select = byId("quantity");
    if (!select) return;
    const along = document.querySelector("input[name=along]:checked").value;
    const bottom = axis(along === "epoch" ? "epoch" : "training time (s)", { rangemode: "tozero" });
    const split = (quantity) => [heldOut(quantity), ...(byId("show-train").checked || !heldOut(quantity) ? [`train_${quantity}`] : [])].filter(Boolean);
    const frame = { hovermode: "x unified", margin: { l: 8, r: 14, t: 8, b: 8 } };
    const same = (value) => value;
    if (select.value === "steps") {
      const traces = data.runs.filter((run) => shown(run.optimizer) && run.steps.loss.length).map((run) => ({ x: run.steps.step, y: run.steps.loss, mode: "lines", name: text(run.label), line: { width: 1, color: look(run.optimizer).color, dash: look(run.optimizer).dash }, opacity: 0.8, hovertemplate: "%{y:.4g}" }));
      const values = data.runs.filter((run) => run.status !== "diverged").flatMap((run) => run.steps.loss).filter((value) => value !== null);
      const low = Math.min(...values), high = Math.max(...values), block = Math.max(...data.runs.map((run) => run.steps.block));
      const ticks = low > 0 && high > 5 * low ? logTicks(low * 0.85, high * 1.25) : null;
      put("chart-loss", traces, { ...frame, xaxis: axis(block > 1 ? `step (means of ${block})` : "step"), yaxis: axis("", ticks ? { type: "log", tickvals: ticks, ticktext: ticks.map(decade), range: [Math.log10(low * 0.85), Math.log10(high * 1.25)] } : {}) });
    } else {
      const columns = select.value === "loss" ? split("loss") : [select.value];
      put("chart-loss", curveTraces(columns, along, same), { ...frame, xaxis: bottom, yaxis: valueAxis(columns, "") });
    }
    if (byId("chart-accuracy")) {
      const columns = split("accuracy");
      const bend = data.accuracy;
      const place = bend ? (value) => -Math.log10(Math.max(1 - value, 0) + bend.floor) : same;
      const values = calmValues(columns);
      const yaxis = bend ? axis("", { tickvals: bend.ticks.map((tick) => place(tick[0])), ticktext: bend.ticks.map((tick) => tick[1]), range: [place(Math.min(...values)), place(1) + 0.03] }) : axis("", { tickformat: ".0%" });
      put("chart-accuracy", curveTraces(columns, along, place), { ...frame, xaxis: bottom, yaxis });
    }
  };

  /* ---- landscape ------------------------------------------------------------------------ */
  const decoded = new Map();
  const grid = (plane, name) => {
    const field = plane.fields[name];
    if (!decoded.has(field)) {
      const bytes = Uint8Array.from(atob(field.values), (letter) => letter.charCodeAt(0));
      decoded.set(field, new Float32Array(bytes.buffer));
    }
    const flat = decoded.get(field), width = plane.b.length;
    return (i, j) => flat[i * width + j];
  };
  const heightAt = (plane, value, x, y) => {
    const cell = (nodes, v) => { let k = 0; while (k < nodes.length - 2 && nodes[k + 1] < v) k++; return k; };
    const { a, b } = plane;
    if (x < a[0] || x > a[a.length - 1] || y < b[0] || y > b[b.length - 1]) return null;
    const i = cell(a, x), j = cell(b, y), s = (x - a[i]) / (a[i + 1] - a[i]), t = (y - b[j]) / (b[j + 1] - b[j]);
    const z = (1 - s) * ((1 - t) * value(i, j) + t * value(i, j + 1)) + s * ((1 - t) * value(i + 1, j) + t * value(i + 1, j + 1));
    return Number.isFinite(z) ? z : null;
  };
  const webgl = (() => { const canvas = document.createElement("canvas"); return Boolean(canvas.getContext("webgl2") || canvas.getContext("webgl")); })();
  // The page and the printed figure look from the same place: where most of the paths can be seen.
  const home = () => {
    const [up, around] = (data.planes[byId("plane").value].view || [40, -58]).map((degrees) => (degrees * Math.PI) / 180);
    const eye = { x: 1.6 * Math.cos(up) * Math.cos(around), y: 1.6 * Math.cos(up) * Math.sin(around), z: 1.6 * Math.sin(up) };
    return { eye, up: { x: 0, y: 0, z: 1 }, center: { x: 0, y: 0, z: -0.1 }, projection: { type: "orthographic" } };
  };
  let camera = null;
  const setUpStage = () => {
    const planes = byId("plane");
    if (!planes) return;
    data.planes.forEach((plane, i) => planes.add(new Option(plane.label || `plane ${i + 1}`, i)));
    const fields = () => {
      const names = Object.keys(data.planes[planes.value].fields);
      const before = byId("field").value;
      byId("field").replaceChildren(...names.map((name) => new Option(name.replace(/_/g, " "), name)));
      byId("field").value = names.includes(before) ? before : names.includes("loss") ? "loss" : names[0] || "";
      scale();
    };
    const forget = () => { camera = null; delete byId("chart-stage").dataset.view; };
    const scale = () => {
      const field = data.planes[planes.value].fields[byId("field").value];
      byId("log").checked = Boolean(field && field.log);
      byId("log").disabled = !(field && field.low > 0);
    };
    planes.addEventListener("change", () => { fields(); forget(); drawStage(); });
    byId("field").addEventListener("change", () => { scale(); drawStage(); });
    for (const id of ["log", "paths", "true"]) byId(id).addEventListener("change", drawStage);
    document.querySelectorAll("input[name=view]").forEach((input) => input.addEventListener("change", drawStage));
    byId("reset").addEventListener("click", () => { forget(); drawStage(); });
    if (!webgl) {
      document.querySelector("input[name=view][value=contour]").checked = true;
      document.querySelector("input[name=view][value=surface]").disabled = true;
    }
    fields();
  };
  const drawStage = () => {
    if (!byId("plane")) return;
    const plane = data.planes[byId("plane").value], name = byId("field").value, field = plane.fields[name];
    const surface = document.querySelector("input[name=view]:checked").value === "surface";
    byId("reset").hidden = !surface;
    const log = byId("log").checked && field && field.low > 0;
    byId("true-label").hidden = !(surface && name === "loss" && plane.paths.length);
    byId("paths").disabled = !plane.paths.length && !plane.points.length;
    if (!field) {
      put("chart-stage", [], { xaxis: { visible: false }, yaxis: { visible: false } });
      byId("stage-caption").textContent = "No field of this plane has a finite value.";
      return;
    }
    const value = grid(plane, name);
    const level = (v) => (v === null || !Number.isFinite(v) ? null : log ? Math.log10(Math.min(v, field.high)) : Math.min(v, field.high));
    const z = plane.b.map((_, j) => plane.a.map((_, i) => level(value(i, j))));
    const said = plane.b.map((_, j) => plane.a.map((_, i) => { const v = value(i, j); return Number.isFinite(v) ? (field.percent ? `${(100 * v).toFixed(2)} %` : spell(v)) : "not finite"; }));
    const ticks = field.ticks[log ? "log" : "linear"];
    const tickvals = ticks.map((tick) => level(tick[0])), ticktext = ticks.map((tick) => tick[1]);
    const zmin = level(field.low), zmax = level(field.high);
    const colorbar = { title: { text: text(field.words), side: "right", font: { size: 12.5, color: css("--soft") } }, tickvals, ticktext, tickfont: { size: 11.5, color: css("--soft") }, outlinewidth: 0, thickness: 11, len: surface ? 0.62 : 1, xpad: 6, ypad: surface ? 10 : 0 };
    const colors = { colorscale: data.maps[field.map], cmin: zmin, cmax: zmax };
    const paths = byId("paths").checked ? plane.paths.filter((path) => shown(path.optimizer)) : [];
    const points = byId("paths").checked ? plane.points.filter((point) => shown(point.optimizer)) : [];
    const traces = [];
    const hover = (path) => path.x.map((_, k) => `${text(path.label)}, ${k + 1} of ${path.x.length}<br>true loss ${spell(path.loss[k])}<br>off the plane by ${spell(path.off[k])}`);
    if (surface) {
      const atTruth = byId("true").checked && name === "loss";
      const lift = 0.012 * (zmax - zmin || 1);
      const narrow = byId("chart-stage").clientWidth < 560; // no room for a bar; the axis says the same
      const step = tickvals.length > 1 ? tickvals : [zmin, zmax];
      traces.push({ type: "surface", x: plane.a, y: plane.b, z, ...colors, colorbar, showscale: !narrow, text: said, hovertemplate: `${text(plane.axes[0])} %{x:.3g}<br>${text(plane.axes[1])} %{y:.3g}<br>${text(field.words)} %{text}<extra></extra>`,
        contours: { z: { show: true, color: "rgba(255,255,255,0.55)", width: 1, start: step[0], end: step[step.length - 1], size: (step[step.length - 1] - step[0]) / Math.max(1, step.length - 1) || 1, highlightcolor: css("--accent") }, x: { highlight: false }, y: { highlight: false } },
        lighting: { ambient: 0.93, diffuse: 0.34, specular: 0.05, roughness: 0.9, fresnel: 0.02 }, lightposition: { x: 0, y: 0, z: 100000 } });
      const ground = (x, y) => { const h = heightAt(plane, value, x, y); return h === null ? null : level(h) + lift; };
      for (const path of paths) {
        const style = look(path.optimizer, true), line = { x: [], y: [], z: [] };
        const own = path.loss.map((loss) => (log && !(loss > 0) ? null : loss === null ? null : (log ? Math.log10(loss) : loss) + lift));
        for (let k = 0; k < path.x.length; k++) {
          const pieces = k + 1 < path.x.length && !atTruth ? 10 : 1;
          for (let s = 0; s < pieces; s++) {
            const t = s / pieces, x = path.x[k] + (pieces > 1 ? t * (path.x[k + 1] - path.x[k]) : 0), y = path.y[k] + (pieces > 1 ? t * (path.y[k + 1] - path.y[k]) : 0);
            line.x.push(x); line.y.push(y); line.z.push(atTruth ? own[k] : ground(x, y));
          }
        }
        traces.push({ type: "scatter3d", mode: "lines", ...line, line: { color: style.color, width: 7 }, hoverinfo: "skip" });
        traces.push({ type: "scatter3d", mode: "markers", x: path.x, y: path.y, z: path.x.map((x, k) => (atTruth ? own[k] : ground(x, path.y[k]))), text: hover(path), hovertemplate: "%{text}<extra></extra>", marker: { size: 3.4, color: style.color, line: { color: "#fff", width: 1 } } });
        if (atTruth) {
          const stem = { x: [], y: [], z: [] };
          path.x.forEach((x, k) => { stem.x.push(x, x, null); stem.y.push(path.y[k], path.y[k], null); stem.z.push(own[k], ground(x, path.y[k]), null); });
          traces.push({ type: "scatter3d", mode: "lines", ...stem, line: { color: style.color, width: 1.5 }, opacity: 0.6, hoverinfo: "skip" });
        }
      }
      const labels = [];
      const flat = { circle: "circle", square: "square", diamond: "diamond", cross: "cross" };
      for (const point of points) {
        const style = look(point.optimizer, true);
        const low = ground(point.x, point.y);
        if (low === null) continue;
        const z3 = low + lift;
        labels.push({ x: point.x, y: point.y, z: z3, text: `<b>${text(point.label)}</b>`, showarrow: false, yshift: 19, font: { size: 12, color: "#22262e" }, bgcolor: "rgba(255,255,255,.84)", borderpad: 2 });
        traces.push({ type: "scatter3d", mode: "markers", x: [point.x], y: [point.y], z: [z3], text: [text(point.label)], hovertemplate: "%{text}<extra></extra>", marker: { size: 7, symbol: flat[style.symbol] || "circle", color: style.color, opacity: 1 } });
      }
      const scene = (title, more) => ({ title: { text: title, font: { size: 12, color: css("--soft") } }, tickfont: { size: 11, color: css("--soft") }, gridcolor: css("--rule"), zerolinecolor: css("--rule"), showbackground: false, showspikes: false, ...more });
      const wide = plane.a[plane.a.length - 1] - plane.a[0], deep = plane.b[plane.b.length - 1] - plane.b[0];
      const ratio = Math.min(1.6, Math.max(0.625, (deep * (plane.norms[1] || 1)) / (wide * (plane.norms[0] || 1)) || 1)), shrink = (narrow ? 1.8 : 2.6) / (1 + ratio);
      const current = byId("chart-stage").layout && byId("chart-stage").layout.scene && byId("chart-stage").layout.scene.camera;
      if (current && current.eye && byId("chart-stage").dataset.view === "surface") camera = current;
      byId("chart-stage").dataset.view = "surface";
      put("chart-stage", traces, { margin: { l: 0, r: 0, t: 0, b: 0 }, scene: { xaxis: scene(solid(plane.axes[0])), yaxis: scene(solid(plane.axes[1])), zaxis: scene(solid(field.words), { tickvals: tickvals.filter((_, k) => !narrow || k % 3 === 1), ticktext: ticktext.filter((_, k) => !narrow || k % 3 === 1) }), annotations: labels, camera: camera || home(), aspectmode: "manual", aspectratio: { x: shrink, y: shrink * ratio, z: narrow ? 0.5 : 0.64 } } });
    } else {
      traces.push({ type: "heatmap", x: plane.a, y: plane.b, z, zmin, zmax, zsmooth: "best", colorscale: data.maps[field.map], colorbar, text: said, hovertemplate: `${text(plane.axes[0])} %{x:.3g}<br>${text(plane.axes[1])} %{y:.3g}<br>${text(field.words)} %{text}<extra></extra>` });
      tickvals.forEach((at) => traces.push({ type: "contour", x: plane.a, y: plane.b, z, autocontour: false, contours: { type: "levels", coloring: "none", start: at, end: at, size: 1 }, line: { color: (at - zmin) / (zmax - zmin || 1) < 0.45 ? "rgba(255,255,255,.75)" : "rgba(42,31,51,.6)", width: 1, smoothing: 0.6 }, showscale: false, hoverinfo: "skip" }));
      for (const path of paths) {
        const style = look(path.optimizer, true);
        const dot = name === "loss" ? { color: path.loss.map(level), colorscale: data.maps.loss, cmin: zmin, cmax: zmax } : { color: "#fff" };
        traces.push({ mode: "lines", x: path.x, y: path.y, line: { color: "rgba(255,255,255,.9)", width: 4.6 }, hoverinfo: "skip" });
        traces.push({ mode: "lines+markers", x: path.x, y: path.y, text: hover(path), hovertemplate: "%{text}<extra></extra>", line: { color: style.color, width: 2.4, dash: style.dash }, marker: { size: 6.5, ...dot, line: { color: style.color, width: 1.3 } } });
      }
      for (const point of points) {
        const style = look(point.optimizer, true);
        traces.push({ mode: "markers", x: [point.x], y: [point.y], text: [text(point.label)], hovertemplate: "%{text}<extra></extra>", marker: { size: 13, symbol: style.symbol, color: style.color, line: { color: "#fff", width: 2 } } });
      }
      const square = (plane.b[plane.b.length - 1] - plane.b[0]) * (plane.norms[1] || 1) / ((plane.a[plane.a.length - 1] - plane.a[0]) * (plane.norms[0] || 1));
      const scaled = square > 0.4 && square < 2.5 ? { scaleanchor: "x", scaleratio: (plane.norms[1] || 1) / (plane.norms[0] || 1), constrain: "domain" } : {};
      byId("chart-stage").dataset.view = "contour";
      put("chart-stage", traces, { hovermode: "closest", margin: { l: 8, r: 8, t: 12, b: 8 },
        xaxis: axis(text(plane.axes[0]), { range: [plane.a[0], plane.a[plane.a.length - 1]], showgrid: false, constrain: "domain" }),
        yaxis: axis(text(plane.axes[1]), { range: [plane.b[0], plane.b[plane.b.length - 1]], showgrid: false, ...scaled }),
        annotations: points.map((point) => ({ x: point.x, y: point.y, text: `<b>${text(point.label)}</b>`, showarrow: false, yshift: 17, font: { size: 12.5, color: "#22262e" }, bgcolor: "rgba(255,255,255,.82)", borderpad: 2 })) });
    }
    const extremes = `${text(field.words)} from ${field.percent ? `${(100 * field.low).toFixed(1)} %` : spell(field.low)} to ${field.percent ? `${(100 * field.high).toFixed(1)} %` : spell(field.high)}`;
    byId("stage-caption").innerHTML = [extremes, text(field.notes)].filter(Boolean).join(" · ");
    drawStrip(plane, paths);
  };
  const drawStrip = (plane, paths) => {
    const strip = byId("chart-strip");
    strip.hidden = !paths.length;
    if (strip.hidden) return;
    put("chart-strip", paths.map((path) => ({ mode: "lines", x: path.off.map((_, k) => (path.off.length > 1 ? (100 * k) / (path.off.length - 1) : 0)), y: path.off, name: text(path.label), line: { color: look(path.optimizer).color, width: 2, dash: look(path.optimizer).dash }, hovertemplate: "%{y:.3g}" })),
      { hovermode: "x unified", margin: { l: 8, r: 12, t: 6, b: 8 }, xaxis: axis("% of the path", { range: [0, 100] }), yaxis: axis("off the plane", { rangemode: "tozero", nticks: 4 }) });
  };

  /* ---- curvature ------------------------------------------------------------------------ */
  const drawSpectrum = () => {
    const target = byId("chart-spectrum");
    if (!target) return;
    const spectra = data.spectra.filter((spectrum) => shown(spectrum.optimizer) && spectrum.values.length);
    const all = spectra.flatMap((spectrum) => spectrum.values);
    const largest = Math.max(1e-300, ...all.map(Math.abs));
    const linear = 10 ** (Math.floor(Math.log10(largest)) - 2);
    const place = (v) => { const s = Math.abs(v) / linear; return Math.sign(v) * (s <= 1 ? s : 1 + Math.log10(s)); };
    const ticks = [0];
    for (let p = Math.round(Math.log10(linear)); 10 ** p <= largest; p++) { ticks.push(10 ** p); if (all.some((v) => v < 0 && -v >= 10 ** p / 3)) ticks.unshift(-(10 ** p)); }
    const traces = [], labels = [];
    const matrices = [...new Set(spectra.map((spectrum) => spectrum.matrix))];
    spectra.forEach((spectrum, row) => {
      const style = look(spectrum.optimizer), y = spectra.length - 1 - row;
      labels.push([y, text(matrices.length > 1 ? `${spectrum.label}, ${spectrum.matrix}` : spectrum.label)]);
      const more = spectrum.values.map((v, k) => place(v + (spectrum.errors[k] || 0)) - place(v)), less = spectrum.values.map((v, k) => place(v) - place(v - (spectrum.errors[k] || 0)));
      traces.push({ x: spectrum.values.map(place), y: spectrum.values.map(() => y), mode: "markers", text: spectrum.values.map((v, k) => `${text(spectrum.label)}<br>λ = ${spell(v)} ± ${spell(spectrum.errors[k])}`), hovertemplate: "%{text}<extra></extra>",
        error_x: { type: "data", symmetric: false, array: more, arrayminus: less, color: style.color, thickness: 1.4, width: 4 }, marker: { symbol: style.symbol, size: 10, color: style.color, line: { color: css("--card"), width: 1.2 } } });
      if (spectrum.mean !== null) traces.push({ x: [place(spectrum.mean)], y: [y], mode: "markers", text: [`${text(spectrum.label)}<br>trace / P = ${spell(spectrum.mean)}`], hovertemplate: "%{text}<extra></extra>", marker: { symbol: "line-ns", size: 19, line: { color: css("--ink"), width: 2 } } });
    });
    target.style.height = `${Math.max(150, 46 * spectra.length + 64)}px`;
    put("chart-spectrum", traces, { hovermode: "closest", margin: { l: 8, r: 16, t: 4, b: 8 },
      xaxis: axis("eigenvalue", { tickvals: ticks.map(place), ticktext: ticks.map((v) => (v < 0 ? `−${decade(-v)}` : decade(v))), zeroline: true, zerolinecolor: css("--faint") }),
      yaxis: axis("", { tickvals: labels.map((label) => label[0]), ticktext: labels.map((label) => label[1]), range: [-0.6, spectra.length - 0.4], showgrid: true, fixedrange: true }) });
  };

  /* ---- start ---------------------------------------------------------------------------- */
  let ready = false;
  const drawAll = () => { if (ready) { drawTraining(); drawStage(); drawSpectrum(); } };
  const stills = (message) => {
    root.classList.add("static");
    const alarm = byId("alarm");
    alarm.textContent = message;
    alarm.hidden = false;
    const parser = new DOMParser();
    document.querySelectorAll("noscript").forEach((element) => {
      const inside = parser.parseFromString(element.textContent, "text/html");
      inside.querySelectorAll("img").forEach((image) => { image.className = "still"; element.before(image); });
    });
  };
  const inflate = async () => {
    if (!window.DecompressionStream) throw new Error("this browser has no DecompressionStream");
    const packed = Uint8Array.from(atob(byId("plotly").textContent.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    if (!window.Plotly) throw new Error("the library did not start");
  };
  (async () => {
    try {
      if (data.runs.length || data.planes.length || data.spectra.length) await inflate();
      else return;
      setUpTraining();
      setUpStage();
      ready = true;
      drawAll();
      root.dataset.drawn = "yes";
    } catch (error) {
      console.error(error);
      stills(`Interactive figures need a newer browser (${error.message}); here they are as images. Tables and notes are complete.`);
    }
  })();
})();
