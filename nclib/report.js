"use strict";
const $ = (selector, from = document) => from.querySelector(selector);
const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
const make = (tag, text = "", name = "") => {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = name;
  return node;
};

// Filters ------------------------------------------------------------------------------------
const filters = $$("[data-filter]");
function filter() {
  const wanted = Object.fromEntries(filters.map(field => [field.dataset.filter, field.value]));
  const text = wanted.text.toLowerCase();
  const narrow = Boolean(wanted.verdict || text);
  let checks = 0;
  for (const section of $$("main section[data-run]")) {
    let any = false;
    const pictures = new Set();
    for (const row of $$(".claims tbody tr", section)) {
      row.hidden = Boolean((wanted.verdict && row.dataset.verdict !== wanted.verdict)
        || (text && !row.textContent.toLowerCase().includes(text)));
      any ||= !row.hidden;
      if (!row.hidden) row.dataset.figures.split(" ").forEach(name => pictures.add(name));
    }
    for (const figure of $$(".figures figure", section))
      figure.hidden = narrow && !pictures.has(figure.dataset.figure);
    if (narrow) $("details.run", section).open = any;
    section.hidden = ["book", "run", "profile"].some(
      key => wanted[key] && section.dataset[key] !== wanted[key])
      || (narrow && !any);
    $(`tr[data-of="${CSS.escape(section.id)}"]`).hidden = section.hidden;
    if (!section.hidden) checks += $$(".claims tbody tr:not([hidden])", section).length;
  }
  const shown = $$("main section[data-run]:not([hidden])").length;
  $("#shown").textContent = `${shown} runs, ${checks} checks shown`;
}
for (const field of filters) field.addEventListener("input", filter);
$("#filters").addEventListener("submit", event => event.preventDefault());
$("#filters").addEventListener("reset", () => setTimeout(filter));
filter();

// Folded runs open when something points at them ----------------------------------------------
function open(id) {
  const section = id && document.getElementById(id), folded = section && $("details.run", section);
  if (folded) { folded.open = true; section.scrollIntoView(); }
  return section;
}
addEventListener("hashchange", () => open(decodeURIComponent(location.hash.slice(1))));
document.addEventListener("click", event => {
  const link = event.target.closest('a[href^="#"]');
  if (link) open(decodeURIComponent(link.hash.slice(1)));
});
addEventListener("beforeprint", () => $$("header details").forEach(node => { node.open = true; }));
open(decodeURIComponent(location.hash.slice(1)));

// Sorting ------------------------------------------------------------------------------------
function order(one, other) {
  const numbers = [one, other].map(text => text === "" ? NaN : Number(text));
  if (numbers.every(number => !Number.isNaN(number))) return numbers[0] - numbers[1];
  return one.localeCompare(other, "en", {numeric: true});
}
document.addEventListener("click", event => {
  const button = event.target.closest(".sort");
  if (!button) return;
  const cell = button.closest("th"), index = cell.cellIndex, body = button.closest("table").tBodies[0];
  const up = cell.getAttribute("aria-sort") !== "ascending";
  for (const other of cell.parentNode.children) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[index].dataset.value ?? row.cells[index].textContent.trim();
  const rows = [...body.rows].sort((one, other) => order(key(one), key(other)));
  body.append(...(up ? rows : rows.reverse()));
});

// The enlarged view: one figure, or two runs -------------------------------------------------
const box = $("#box"), body = $("#box-body");
let current = null;
function show(title, figure, ...nodes) {
  current = figure;
  $("#box-title").textContent = title;
  for (const button of $$(".step")) button.hidden = !figure;
  body.replaceChildren(...nodes);
  if (!box.open) box.showModal();
  box.scrollTop = 0;
}
function enlarge(button) {
  const section = button.closest("section"), image = $("img", button).cloneNode();
  image.loading = "eager";
  const facts = $$(".command, .parameters", section).map(node => node.cloneNode(true));
  show(`${image.alt} · ${$("h2", section).textContent}`, button, image, ...facts);
}
function step(by) {
  const zooms = $$("main .zoom").filter(button => !button.closest("[hidden]"));
  if (current) enlarge(zooms[(zooms.indexOf(current) + by + zooms.length) % zooms.length]);
}
for (const button of $$(".jump")) button.addEventListener("click", () => {
  const {run, figure} = button.dataset;
  const picture = $(`figure[data-figure="${CSS.escape(figure)}"] .zoom`, open(run));
  if (picture) enlarge(picture);
});
for (const button of $$("main .zoom")) button.addEventListener("click", () => enlarge(button));
$("#box-back").addEventListener("click", () => step(-1));
$("#box-next").addEventListener("click", () => step(1));
$("#box-close").addEventListener("click", () => box.close());
box.addEventListener("click", event => event.target === box && box.close());
box.addEventListener("close", () => {
  if (current) open(current.closest("section").id);
  current?.focus();
});
box.addEventListener("keydown", event => {
  const by = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (by) { event.preventDefault(); step(by); }
});

// Two runs side by side ----------------------------------------------------------------------
function table(head, rows) {
  const node = make("table"), line = node.createTHead().insertRow(), inside = node.createTBody();
  for (const text of head) {
    const cell = make("th", text);
    cell.scope = "col";
    line.append(cell);
  }
  for (const [different, ...texts] of rows) {
    const row = inside.insertRow();
    row.className = different ? "different" : "";
    for (const text of texts) row.append(make("td", text));
  }
  const frame = make("div", "", "scroll");
  frame.tabIndex = 0;
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", head.join(", "));
  frame.append(node);
  return frame;
}
function union(one, other) { return [...new Set([...one.keys(), ...other.keys()])]; }
function compare() {
  const pair = ["#c-a", "#c-b"].map(id => document.getElementById($(id).value));
  const names = pair.map(section => $("h2", section).textContent.trim());
  const [a, b] = pair.map(section => new Map(
    $(".parameters", section).textContent.trim().split("\n").map(line => line.split(/ = (.*)/))));
  const parameters = union(a, b).filter(key => a.get(key) !== b.get(key))
    .map(key => [false, key, a.get(key) ?? "–", b.get(key) ?? "–"]);
  const claims = pair.map(section => new Map($$(".claims tbody tr", section).map(
    row => [row.cells[0].textContent, [...row.cells].map(cell => cell.textContent.trim())])));
  const lines = union(...claims).map(id => {
    const [one, two] = claims.map(found => found.get(id) ?? [id, "", "–", "", "–", ""]);
    return [one[4] !== two[4], id, one[1] || two[1], one[2], two[2], one[4], two[4]];
  });
  const figures = pair.map(section => new Map($$("figure", section).map(
    figure => [$("figcaption", figure).textContent, $("img", figure)])));
  const pictures = make("div", "", "pair");
  for (const name of union(...figures)) {
    figures.forEach((found, i) => {
      const frame = make("figure"), image = found.get(name)?.cloneNode();
      if (image) image.loading = "eager";
      frame.append(image ?? make("p", "not in this run", "soft"),
        make("figcaption", `${name}, ${names[i]}`));
      pictures.append(frame);
    });
  }
  const differ = lines.filter(line => line[0]).length;
  show("Two runs side by side", null,
    make("h3", parameters.length ? "Parameters that differ" : "Equal parameters"),
    ...(parameters.length ? [table(["parameter", ...names], parameters)] : []),
    make("h3", `Checks: ${differ} of ${lines.length} verdicts differ`),
    table(["id", "statement", `measured: ${names[0]}`, `measured: ${names[1]}`,
      `verdict: ${names[0]}`, `verdict: ${names[1]}`], lines),
    make("h3", "Figures"), pictures);
}
$("#compare").addEventListener("submit", event => { event.preventDefault(); compare(); });
