"""Style and script of the report page."""

STYLE = """
:root {
  --page: #f6f7f9; --card: #fff; --ink: #1a1d24; --soft: #5b6270; --line: #dfe3ea; --grid: #e9ecf1;
  --accent: #4353d0; --raw: #b9c1ee; --good: #14783c; --bad: #b3261e; --code: #f1f3f7;
  --c1: #c2571a; --c2: #14783c; --c3: #a2338f; --c4: #0f7c8c; --c5: #7a6a00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #121419; --card: #1b1e25; --ink: #e8eaf0; --soft: #9aa2b1; --line: #30353f; --grid: #272b34;
    --accent: #8f9bff; --raw: #5a64a8; --good: #5fce8b; --bad: #ff8a80; --code: #14171d;
    --c1: #f0a06a; --c2: #5fce8b; --c3: #e58ad5; --c4: #5cc8d8; --c5: #d8c552;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
header, main, footer { max-width: 1120px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 36px; }
h1 { font-size: 30px; line-height: 1.2; margin: 2px 0 14px; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0 0 14px; letter-spacing: -.005em; }
h3 { font-size: 16px; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.kind, .meta, .note, footer, small, .readout { color: var(--soft); }
.kind { margin: 0; overflow-wrap: anywhere; }
nav {
  display: flex; flex-wrap: wrap; gap: 4px 18px; padding-bottom: 14px; border-bottom: 1px solid var(--line);
}
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 3px; border-radius: 3px; }
section { margin-top: 44px; scroll-margin-top: 16px; }
footer { padding-top: 48px; padding-bottom: 32px; font-size: 13px; }
.note { margin: 0 0 12px; }

.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(45%, 200px), 1fr)); gap: 12px;
  margin: 20px 0;
}
.tile, .prompt, .chart, .wide, pre {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
.tile { padding: 12px 16px; }
.tile dt { font-size: 13px; color: var(--soft); }
.tile dd { margin: 0; font-size: 19px; font-weight: 600; line-height: 1.35; }
.tile small { display: block; font-size: 13px; font-weight: 400; line-height: 1.4; margin-top: 2px; }

.slider {
  position: sticky; top: 0; z-index: 2; display: none; align-items: center; gap: 14px; padding: 10px 0;
  background: var(--page);
}
.js .slider { display: flex; }
.slider input { flex: 1; min-width: 0; accent-color: var(--accent); height: 24px; }
.slider output { font-weight: 600; min-width: 4.5em; font-variant-numeric: tabular-nums; }
.prompt { padding: 16px 18px 18px; margin-bottom: 14px; }
.meta { margin: 2px 0 12px; font-size: 13px; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); gap: 14px; }
.js .strip { grid-template-columns: repeat(3, minmax(0, 1fr)); }
.js .strip.few { grid-template-columns: repeat(2, minmax(0, 420px)); }
.js .between { display: none; }
.js .between.shown { display: block; }
figure { margin: 0; min-width: 0; }
.strip video, .strip img, .missing {
  display: block; width: 100%; height: auto; max-height: 400px; object-fit: contain;
  background: var(--code); border-radius: 6px;
}
.missing { display: grid; place-items: center; min-height: 120px; color: var(--soft); }
.strip figcaption { margin-top: 6px; font-size: 13px; color: var(--soft); text-align: center; }
.strip figcaption b { color: var(--ink); }
.between.shown figcaption { color: var(--accent); }
@media (max-width: 620px) {
  .js .strip { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .js .between.shown { order: -1; grid-column: 1 / -1; }
}

.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 460px), 1fr)); gap: 14px; }
.chart { padding: 14px 18px 10px; }
#curve-loss { grid-column: 1 / -1; }
.chart figcaption {
  display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 16px; margin-bottom: 14px;
}
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px; color: var(--soft); }
.key::before {
  content: ""; display: inline-block; width: 16px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; background: var(--tone);
}
.raw { --tone: var(--raw); }
.smooth, .c0 { --tone: var(--accent); }
.c1 { --tone: var(--c1); } .c2 { --tone: var(--c2); } .c3 { --tone: var(--c3); }
.c4 { --tone: var(--c4); } .c5 { --tone: var(--c5); }
.plot {
  display: block; width: calc(100% - 62px); height: 190px; margin: 0 10px 28px 52px; overflow: visible;
  touch-action: pan-y;
}
#curve-loss .plot { height: 270px; }
.plot svg.free { overflow: visible; }
.line {
  fill: none; stroke: var(--tone); stroke-width: 2; stroke-linejoin: round; stroke-linecap: round;
  vector-effect: non-scaling-stroke;
}
.line.raw { stroke-width: 1; }
.plot .grid { stroke: var(--grid); }
.plot .mark { stroke: var(--soft); }
.tick { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
.tick.y { text-anchor: end; } .tick.x { text-anchor: middle; }
.cursor { stroke: var(--soft); stroke-dasharray: 3 3; visibility: hidden; }
.dot { fill: var(--tone); stroke: var(--card); stroke-width: 2; visibility: hidden; }
.reading .cursor, .reading .dot { visibility: visible; }
.readout { margin: 0; font-size: 13px; min-height: 1.5em; font-variant-numeric: tabular-nums; }
.reading output { color: var(--ink); }

.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td {
  text-align: left; padding: 7px 16px; vertical-align: top; font-weight: 400; overflow-wrap: break-word;
}
thead th { color: var(--soft); font-size: 13px; border-bottom: 1px solid var(--line); }
tbody th { min-width: 9em; }
tbody tr + tr > * { border-top: 1px solid var(--grid); }
table.numbers td, table.files td { font-variant-numeric: tabular-nums; white-space: nowrap; }
table.manifest td, table.items td { overflow-wrap: anywhere; }
table.manifest th { color: var(--soft); width: 16em; }
table.manifest td, table.files tbody th, table.items tbody th {
  font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 13px;
}
table.items th { width: 34%; } table.items td:nth-child(2) { white-space: nowrap; }
table.buckets td:nth-child(2) { font-variant-numeric: tabular-nums; }
table.buckets td:nth-child(3) { width: 60%; }
.bar {
  display: inline-block; height: 10px; min-width: 2px; border-radius: 3px; background: var(--accent);
  vertical-align: middle;
}
.good { color: var(--good); } .bad { color: var(--bad); }
details { margin-top: 12px; }
summary { cursor: pointer; color: var(--accent); padding: 4px 0; }
details .wide { max-height: 420px; overflow-y: auto; }
pre {
  margin: 0 0 12px; padding: 14px 18px; overflow-x: auto;
  font: 13px/1.55 ui-monospace, Menlo, Consolas, monospace; background: var(--code);
}
pre.config { max-height: 520px; overflow-y: auto; }
@media print {
  .js .between { display: block; }
  .js .slider { display: none; }
  pre.config, details .wide { max-height: none; }
}
"""

SCRIPT = """
"use strict";
(() => {
  const root = document.documentElement;
  addEventListener("error", event => { root.dataset.error = event.message; });
  root.classList.add("js");

  // Samples: the middle column shows the step of the slider; first and last stay where they are.
  const slider = document.getElementById("step");
  if (slider) {
    const steps = JSON.parse(slider.dataset.steps);
    if (steps.length > 2) {
      for (const strip of document.querySelectorAll(".strip")) {
        const middle = strip.querySelector(".between");
        for (const end of strip.querySelectorAll(".first, .last")) {
          const copy = end.cloneNode(true);
          copy.className = "between";
          strip.insertBefore(copy, middle);
        }
      }
    } else slider.parentElement.hidden = slider.parentElement.style.display = "none";
    const choose = () => {
      const step = String(steps[slider.value]);
      for (const figure of document.querySelectorAll(".between")) {
        figure.classList.toggle("shown", figure.dataset.step === step);
      }
      const words = Number(step).toLocaleString("en");
      slider.parentElement.querySelector("output").textContent = words;
      slider.setAttribute("aria-valuetext", "step " + words);
      root.dataset.step = step;
      together();
    };
    // Clips of a row run in step, so that they can be compared.
    const together = () => {
      for (const strip of document.querySelectorAll(".strip")) {
        const [first, ...others] = strip.querySelectorAll("video");
        for (const other of others) if (other.readyState) other.currentTime = first.currentTime;
      }
    };
    slider.addEventListener("input", choose);
    choose();
  }

  // Clips play while they can be seen; who asked for less motion starts them by hand.
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const watcher = new IntersectionObserver(entries => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) target.play().catch(() => {}); else target.pause();
    }
  });
  for (const video of document.querySelectorAll("video")) {
    if (still) { video.autoplay = false; video.controls = true; video.pause(); } else watcher.observe(video);
  }

  // Curves: the values at the step under the pointer, or chosen with the arrow keys.
  const shape = name => document.createElementNS(root.querySelector("svg").namespaceURI, name);
  const nearest = (steps, step) => {
    let low = 0, high = steps.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle; else high = middle;
    }
    return step - steps[low] <= steps[high] - step ? low : high;
  };
  const short = value => Number(value.toPrecision(4)).toLocaleString("en", { maximumSignificantDigits: 4 });
  for (const figure of document.querySelectorAll(".chart")) {
    const { x, y, series } = JSON.parse(figure.querySelector("script").textContent);
    const plot = figure.querySelector(".plot"), output = figure.querySelector("output");
    const rest = output.textContent, percent = value => 100 * value + "%";
    const cursor = plot.appendChild(shape("line"));
    cursor.setAttribute("class", "cursor");
    cursor.setAttribute("y2", "100%");
    const dots = series.map(({ style }) => {
      const dot = plot.appendChild(shape("circle"));
      dot.setAttribute("class", "dot " + style);
      dot.setAttribute("r", 4);
      return dot;
    });
    let at = series[0].steps.length - 1;
    const read = () => {
      const step = series[0].steps[at], left = percent((step - x[0]) / (x[1] - x[0]));
      cursor.setAttribute("x1", left);
      cursor.setAttribute("x2", left);
      const words = series.map(({ name, steps, values }, i) => {
        const value = values[nearest(steps, step)];
        dots[i].setAttribute("cx", left);
        dots[i].setAttribute("cy", percent(Math.max(0, 1 - (value - y[0]) / (y[1] - y[0]))));
        return name + ": " + short(value);
      });
      output.textContent = ["step " + step.toLocaleString("en"), ...words].join(" · ");
      figure.classList.add("reading");
    };
    const leave = () => { output.textContent = rest; figure.classList.remove("reading"); };
    plot.addEventListener("pointermove", event => {
      const box = plot.getBoundingClientRect();
      const step = x[0] + (event.clientX - box.left) / box.width * (x[1] - x[0]);
      at = nearest(series[0].steps, step);
      read();
    });
    plot.addEventListener("keydown", event => {
      const move = { ArrowLeft: -1, ArrowRight: 1, PageUp: -25, PageDown: 25 }[event.key];
      if (!move) return;
      event.preventDefault();
      at = Math.min(series[0].steps.length - 1, Math.max(0, at + move));
      read();
    });
    plot.addEventListener("pointerleave", leave);
    plot.addEventListener("blur", leave);
  }
  root.dataset.ready = "yes";
})();
"""
