"use strict";
(() => {
  const source = document.getElementById("data");
  const toggle = document.getElementById("show-labels");
  if (toggle) toggle.addEventListener("change", () => {
    document.getElementById("overlays").classList.toggle("no-labels", !toggle.checked);
  });
  window.addEventListener("beforeprint", () => {
    document.querySelectorAll("details[data-print]").forEach((item) => { item.open = true; });
  });
  if (!source) return;

  const data = JSON.parse(source.textContent);
  const fields = [...document.querySelectorAll(".field")];
  const metricChoice = document.getElementById("choose-metric");
  const structureChoice = document.getElementById("choose-structure");
  const differenceChoice = document.getElementById("choose-difference");
  const hint = document.getElementById("hint");
  const detail = document.getElementById("case-detail");
  const minus = "\u2212";
  const signed = (text) => text.replace("-", Number(text) === 0 ? "" : minus);
  const show = (value, digits) => value === null || value === undefined ? "\u2013" : signed(value.toFixed(digits));

  const valuesOf = (row) => {
    const metric = +metricChoice.value;
    const structure = structureChoice.value;
    const of = (index) => structure === "mean" ? data.mean[metric][index]
      : data.scores[metric][index].map((scores) => scores[+structure]);
    const own = of(row);
    if (!differenceChoice || !differenceChoice.checked) return own;
    const baseline = of(data.baseline);
    return own.map((value, index) => value === null || baseline[index] === null ? null : value - baseline[index]);
  };

  const limits = (all) => {
    const known = all.flat().filter((value) => value !== null);
    const difference = differenceChoice && differenceChoice.checked;
    const unit = data.metrics[+metricChoice.value];
    if (!difference && unit.up) return [0, 100];
    let low = Math.min(0, ...known);
    let high = Math.max(unit.up && !difference ? 100 : 0.001, ...known);
    if (difference) { high = Math.max(high, -low); low = -high; }
    return [low, high];
  };

  const draw = () => {
    const all = fields.map((_, row) => valuesOf(row));
    const [low, high] = limits(all);
    const place = (value) => `${100 * (value - low) / (high - low)}%`;
    const digits = data.metrics[+metricChoice.value].digits;
    const metric = data.metrics[+metricChoice.value];
    const unit = differenceChoice && differenceChoice.checked ? metric.ofDifference : metric.ofValue;
    fields.forEach((field, row) => {
      const known = all[row].filter((value) => value !== null);
      field.querySelectorAll(".dot").forEach((dot) => {
        const value = all[row][+dot.dataset.case];
        dot.hidden = value === null;
        if (value === null) return;
        dot.style.left = place(value);
        dot.dataset.value = value;
        dot.setAttribute("aria-label", `${data.cases[+dot.dataset.case]}, ${data.rows[row]}: ${show(value, digits)}`);
      });
      const average = field.querySelector(".average");
      average.hidden = known.length === 0;
      average.style.left = place(known.reduce((sum, value) => sum + value, 0) / (known.length || 1));
      const nought = field.querySelector(".nought");
      nought.hidden = low >= 0;
      nought.style.left = place(0);
      setEntry(field);
    });
    document.getElementById("axis-low").textContent = Number(low.toPrecision(3)).toString().replace("-", minus);
    document.getElementById("axis-high").textContent = `${Number(high.toPrecision(3))} ${unit}`.trim();
  };

  const ordered = (field) => [...field.querySelectorAll(".dot:not([hidden])")]
    .sort((one, other) => one.dataset.value - other.dataset.value);
  // One tab stop a strip; arrow keys move inside it.
  const setEntry = (field, dot) => {
    const dots = ordered(field);
    dots.forEach((item) => { item.tabIndex = -1; });
    const entry = dot || dots[0];
    if (entry) entry.tabIndex = 0;
  };
  const dotOf = (row, index) => fields[row].querySelector(`.dot[data-case="${index}"]:not([hidden])`);

  const mark = (index) => {
    document.querySelectorAll(".dot.same").forEach((dot) => dot.classList.remove("same"));
    if (index === null) return;
    const digits = data.metrics[+metricChoice.value].digits;
    fields.forEach((_, row) => { const dot = dotOf(row, index); if (dot) dot.classList.add("same"); });
    hint.textContent = `${data.cases[index]}: ` + data.rows.map((name, row) => `${name} ${show(valuesOf(row)[index], digits)}`).join(", ");
  };

  const open = (index) => {
    const metric = +metricChoice.value;
    const unit = data.metrics[metric];
    const cell = (tag, text) => { const element = document.createElement(tag); element.textContent = text; return element; };
    detail.replaceChildren();
    detail.append(cell("h3", `${data.cases[index]}: ${unit.label}, ${unit.unit}`));
    const table = document.createElement("table");
    const head = table.createTHead().insertRow();
    head.append(cell("th", "structure"), cell("th", "volume, ml"), ...data.rows.map((name) => cell("th", name)));
    const body = table.createTBody();
    const add = (name, volume, values) => {
      const line = body.insertRow();
      line.append(cell("th", name), cell("td", volume), ...values.map((value) => cell("td", show(value, unit.digits))));
    };
    add("mean", "", data.rows.map((_, row) => data.mean[metric][row][index]));
    data.structures.forEach((name, number) => {
      const volume = data.volumes[index][number];
      add(name, volume === null ? "\u2013" : String(volume), data.rows.map((_, row) => data.scores[metric][row][index][number]));
    });
    const frame = document.createElement("div");
    frame.className = "scroll";
    frame.append(table);
    detail.append(frame);
    const picture = data.pictures[data.cases[index]];
    if (picture) {
      const link = cell("a", "Pictures of this case");
      link.href = `#${picture}`;
      const line = document.createElement("p");
      line.append(link);
      detail.append(line);
    }
    detail.hidden = false;
    detail.focus({ preventScroll: true });
    detail.scrollIntoView({ block: "nearest" });
  };

  fields.forEach((field, row) => {
    field.addEventListener("pointerover", (event) => { if (event.target.matches(".dot")) mark(+event.target.dataset.case); });
    field.addEventListener("focusin", (event) => {
      if (!event.target.matches(".dot")) return;
      setEntry(field, event.target);
      mark(+event.target.dataset.case);
    });
    field.addEventListener("click", (event) => { if (event.target.matches(".dot")) open(+event.target.dataset.case); });
    field.addEventListener("keydown", (event) => {
      if (!event.target.matches(".dot")) return;
      const dots = ordered(field);
      const here = dots.indexOf(event.target);
      const index = +event.target.dataset.case;
      const moves = {
        ArrowRight: () => dots[here + 1], ArrowLeft: () => dots[here - 1], Home: () => dots[0], End: () => dots[dots.length - 1],
        ArrowDown: () => row + 1 < fields.length ? dotOf(row + 1, index) : null,
        ArrowUp: () => row > 0 ? dotOf(row - 1, index) : null,
      };
      if (!(event.key in moves)) return;
      event.preventDefault();
      const next = moves[event.key]();
      if (next) next.focus();
    });
  });
  [metricChoice, structureChoice, differenceChoice].forEach((choice) => { if (choice) choice.addEventListener("change", draw); });
  draw();
})();
