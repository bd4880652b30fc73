"use strict";
// Draws the charts, sorts tables by a click on a column's name, and shows values on hover.
const tip = document.getElementById("tip");

function showTip(event, lines) {
  tip.hidden = !lines.length;
  if (!lines.length) return;
  tip.textContent = lines.join("\n");
  const width = tip.offsetWidth, height = tip.offsetHeight;
  tip.style.left = Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 4)) + "px";
  tip.style.top = (event.clientY + height + 24 > innerHeight ? event.clientY - height - 10 : event.clientY + 16) + "px";
}

function tooltip(handler, event, item, value) {
  const entries = value && typeof value === "object" ? Object.entries(value) : [];
  showTip(event, entries.filter(([, v]) => v !== "" && v !== "null" && v !== "NaN" && v !== "undefined")
    .map(([k, v]) => ["name", "note", "row"].includes(k) ? v : `${k} ${v}`));
}

function config(width) {
  const text = {labelColor: "var(--soft)", titleColor: "var(--ink)", labelFontSize: 12, titleFontSize: 12,
    labelLimit: innerWidth < 500 ? 150 : 220};
  return {
    font: "system-ui, sans-serif", background: "transparent", aria: false,
    view: {stroke: "transparent"},
    axis: {...text, gridColor: "var(--rule)", domainColor: "var(--faint)", tickColor: "var(--faint)", titleFontWeight: 500,
      labelOverlap: true},
    legend: {...text, orient: "top", labelLimit: 180, columns: Math.max(1, Math.floor(width / 205)), symbolStrokeWidth: 2, titleFontWeight: 500},
    text: {color: "var(--ink)"},
  };
}

// Names of axes and legends in lines that fit a phone.
function wrapTitles(spec) {
  return JSON.parse(JSON.stringify(spec), (key, value) =>
    key === "title" && typeof value === "string" ? value.match(/.{1,30}(?=\s|$)\s?|\S+/g) ?? value : value);
}

async function draw(id, chart) {
  const values = chart.rows.map(row => Object.fromEntries(row.map((value, i) => [chart.columns[i], value])));
  const place = document.getElementById(id);
  const spec = {...(innerWidth < 500 ? wrapTitles(chart.spec) : chart.spec), description: place.getAttribute("aria-label"), data: {values}, width: "container",
    autosize: {type: "fit-x", contains: "padding"}};
  const compiled = vegaLite.compile(spec, {config: config(place.clientWidth)}).spec;
  await new vega.View(vega.parse(compiled), {renderer: "svg", container: place, hover: true})
    .tooltip(tooltip).runAsync();
}

// A cell's number is the first one in it, so that "0.40 [0.31, 0.52]" and "1,234" sort by value.
function keyOf(row, column) {
  const text = row.cells[column].textContent.trim();
  const found = text.replace(/(\d),(?=\d{3})/g, "$1").replace("−", "-").match(/^[x×]?([+-]?\d+(\.\d+)?(e[+-]?\d+)?)/i);
  return found ? Number(found[1]) : text;
}

function compare(a, b) {
  if (typeof a === typeof b) return typeof a === "number" ? a - b : a.localeCompare(b, undefined, {numeric: true});
  return typeof a === "number" ? -1 : 1;  // numbers before text and empty cells
}

function makeSortable(table) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent || "name";
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th[aria-sort]").forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...table.tBodies[0].rows].map(row => [keyOf(row, column), row]);
      rows.sort((a, b) => (down ? -1 : 1) * compare(a[0], b[0]));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    });
  });
}

document.querySelectorAll("table").forEach(table => table.tBodies[0].rows.length > 1 && makeSortable(table));
const charts = JSON.parse(document.getElementById("data").textContent);
// One after the other, so that the page can be read while the rest is drawn.
(async () => {
  for (const [id, chart] of Object.entries(charts)) {
    await draw(id, chart);
    await new Promise(done => setTimeout(done));
  }
  document.body.dataset.drawn = "all";
})();
