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
      const step = series[0].steps[at], left = percent((step - x.low) / (x.high - x.low));
      cursor.setAttribute("x1", left);
      cursor.setAttribute("x2", left);
      const words = series.map(({ name, steps, values }, i) => {
        const value = values[nearest(steps, step)];
        dots[i].setAttribute("cx", left);
        dots[i].setAttribute("cy", percent(Math.max(0, 1 - (value - y.low) / (y.high - y.low))));
        return name + ": " + short(value);
      });
      output.textContent = ["step " + step.toLocaleString("en"), ...words].join(" · ");
      figure.classList.add("reading");
    };
    const leave = () => { output.textContent = rest; figure.classList.remove("reading"); };
    plot.addEventListener("pointermove", event => {
      const box = plot.getBoundingClientRect();
      const step = x.low + (event.clientX - box.left) / box.width * (x.high - x.low);
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
