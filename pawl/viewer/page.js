"use strict";
const run = JSON.parse(document.getElementById("run").textContent);
const element = (id) => document.getElementById(id);
const make = (name, text, parent) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
};

const STATE_COLOUR = {
  queued: "#b8bfc8", queued_compiling: "#d0b8e8", queued_fetching: "#e2b93b", queued_reserving: "#caa0d8",
  queued_receiving: "#a97fc9", prefilling: "#3b82d6", prefilling_sending: "#2458a0", decoding: "#2fa36b",
};
const END_COLOUR = { finished: "#1a7f37", aborted: "#cf222e" };
const PAGE_COLOUR = { owned: "#2fa36b", cached: "#3b82d6", deferred: "#e2b93b", quarantined: "#cf222e", free: "#0000" };
const STEP_COLOUR = ["#57749b", "#cf222e", "#e2b93b"];
const ROW = 14, HEADROOM = 18;

const view = { from: 0, to: Math.max(run.end, 1), shown: run.requests, chosen: null };
const broken = new Set(run.violations.map((each) => each.request));

// ---- words ----

const format = (ms) => (ms === null ? "-" : ms < 1000 ? ms.toFixed(2) + " ms" : (ms / 1000).toFixed(3) + " s");

function describe() {
  element("model").textContent = run.model;
  element("verdict").textContent = run.verdict;
  element("verdict").className = run.verdict;
  const ends = {};
  for (const each of run.requests) ends[each.cause] = (ends[each.cause] || 0) + 1;
  const causes = Object.entries(ends).map(([cause, count]) => `${cause === "none" ? "open" : cause} ${count}`).join(", ");
  const started = run.wall === null ? "" : new Date(run.wall * 1000).toISOString().slice(0, 19) + "Z, ";
  element("summary").textContent = `${started}${format(run.end)}, ${run.requests.length} requests (${causes}), ` +
    `${run.steps.length} steps` + (run.num_pages ? `, ${run.num_pages} pages of ${run.page_size} tokens` : "");
  const left = Object.entries(run.left_out).map(([name, count]) => `${count} older ${name} are not shown`);
  element("notes").textContent = [...run.missing, ...left].join("; ");
  for (const [name, colour] of Object.entries({ ...STATE_COLOUR, ...END_COLOUR })) {
    const index = run.states.indexOf(name);
    if (!run.requests.some((each) => each.state === name || each.intervals.some((one) => one[0] === index))) continue;
    const entry = make("span", undefined, element("legend"));
    make("i", undefined, entry).style.background = colour;
    entry.append(name.replace("_", " "));
  }
  for (const each of run.violations) {
    const button = make("button", `${each.property}: ${each.text} (record ${each.record})`, make("li", undefined, element("violations")));
    button.addEventListener("click", () => chooseViolation(each));
  }
  if (!run.violations.length) make("li", "none", element("violations"));
}

// ---- drawing ----

function prepare(canvas, height) {
  const ratio = window.devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.width = Math.max(1, width * ratio);
  canvas.height = height * ratio;
  canvas.style.height = height + "px";
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, sans-serif";
  return [pen, width];
}

const place = (ms, width) => ((ms - view.from) / (view.to - view.from)) * width;
const ink = () => getComputedStyle(document.body).color;

// The first index whose time is at least `ms`; times rise.
function firstAt(rows, ms, time) {
  let low = 0, high = rows.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (time(rows[middle]) < ms) low = middle + 1; else high = middle;
  }
  return low;
}

function drawMemory() {
  const height = 110, [pen, width] = prepare(element("memory"), height);
  if (!run.pages.length) return;
  const total = run.pages[0].slice(1).reduce((sum, count) => sum + count, 0) || 1;
  const order = ["owned", "cached", "deferred", "quarantined"];
  const begin = Math.max(0, firstAt(run.pages, view.from, (row) => row[0]) - 1);
  for (let at = begin, next; at < run.pages.length && run.pages[at][0] <= view.to; at = next) {
    const left = place(run.pages[at][0], width);
    // Samples closer than a pixel are drawn as one.
    for (next = at + 1; next < run.pages.length - 1 && place(run.pages[next][0], width) - left < 1;) next++;
    const right = next < run.pages.length ? place(run.pages[next][0], width) : place(run.end, width);
    let base = height;
    for (const name of order) {
      const size = (run.pages[at][1 + run.page_classes.indexOf(name)] / total) * (height - HEADROOM);
      pen.fillStyle = PAGE_COLOUR[name];
      pen.fillRect(left, base - size, Math.max(1, right - left + 0.5), size);
      base -= size;
    }
  }
  pen.fillStyle = ink();
  let x = 4;
  for (const name of order) {
    pen.fillStyle = PAGE_COLOUR[name];
    pen.fillRect(x, 4, 9, 9);
    pen.fillStyle = ink();
    pen.fillText(name, x + 12, 12);
    x += 90;
  }
  pen.fillText(`${total} pages`, x, 12);
}

function drawSteps() {
  const [pen, width] = prepare(element("steps"), 44);
  const begin = Math.max(0, firstAt(run.steps, view.from, (row) => row[1]) - 4);
  let drawn = [-1, -1];
  for (let at = begin; at < run.steps.length && run.steps[at][1] <= view.to; at++) {
    const [step, planned, ended, kind] = run.steps[at], lane = step % 2;
    const left = place(planned, width), right = place(ended === null ? run.end : ended, width);
    if (kind === 0 && right < drawn[lane] + 0.5) continue;
    drawn[lane] = right;
    pen.fillStyle = STEP_COLOUR[kind];
    pen.fillRect(left, 2 + lane * 21, Math.max(1, right - left - 0.5), 19);
    if (right - left > 40) {
      pen.fillStyle = "#fff";
      pen.fillText(String(step), left + 3, 15 + lane * 21);
    }
  }
}

function drawRequests() {
  const scroll = element("scroll"), height = scroll.clientHeight;
  element("height").style.height = Math.max(0, view.shown.length * ROW - height) + "px";
  const [pen, width] = prepare(element("requests"), height);
  const first = Math.floor(scroll.scrollTop / ROW);
  for (let row = first; row < view.shown.length && (row - first) * ROW < height; row++) {
    const each = view.shown[row], top = (row - first) * ROW;
    for (const [state, start, end] of each.intervals) {
      if (end < view.from || start > view.to) continue;
      pen.fillStyle = STATE_COLOUR[run.states[state]] || "#888";
      pen.fillRect(place(start, width), top + 2, Math.max(1, place(end, width) - place(start, width)), ROW - 4);
    }
    if (each.ended !== null) {
      pen.fillStyle = END_COLOUR[each.state] || "#888";
      pen.fillRect(place(each.ended, width) - 1, top + 1, 3, ROW - 2);
    }
    pen.fillStyle = broken.has(each.request) ? "#cf222e" : ink();
    pen.fillText((broken.has(each.request) ? "! " : "") + `${each.request} ${each.rid}`.slice(0, 40), 4, top + 11);
    if (each === view.chosen) {
      pen.strokeStyle = ink();
      pen.strokeRect(0.5, top + 0.5, width - 1, ROW - 1);
    }
  }
}

function draw() {
  drawMemory();
  drawSteps();
  drawRequests();
  element("range").textContent = `${format(view.from)} to ${format(view.to)}`;
}

// ---- details ----

function facts(rows) {
  const table = make("table");
  for (const [name, value] of rows) {
    const row = make("tr", undefined, table);
    make("th", name, row);
    make("td", String(value), row);
  }
  element("details").replaceChildren(table);
}

function chooseRequest(each) {
  view.chosen = each;
  facts([
    ["request", `${each.request} ${each.rid}`],
    ["end", each.ended === null ? "open" : `${each.state}: ${each.cause}, after ${format(each.ended - each.submitted)}`],
    ["tokens", `${each.prompt} prompt (${each.cached} cached), ${each.output} output`],
    ["retractions", each.retractions],
    ...each.intervals.map(([state, start, end]) => [run.states[state], `${format(start)} for ${format(end - start)}`]),
    ...run.violations.filter((one) => one.request === each.request).map((one) => [one.property, one.text]),
  ]);
  draw();
}

function chooseStep([step, planned, ended, kind, segments, tokens, decoding]) {
  facts([
    ["step", `${step}, ${["committed", "rolled back", "never answered"][kind]}`],
    ["time", `${format(planned)} for ${ended === null ? "-" : format(ended - planned)}`],
    ["segments", `${segments}, of them decoding ${decoding}`],
    ["tokens", tokens],
  ]);
}

function chooseViolation(each) {
  const index = run.requests.findIndex((one) => one.request === each.request);
  if (index >= 0) {
    element("find").value = "";
    view.shown = run.requests;
    element("scroll").scrollTop = Math.max(0, (index - 5) * ROW);
    chooseRequest(run.requests[index]);
  } else {
    facts([[each.property, each.text]]);
  }
  make("pre", each.slice.join("\n"), element("details"));
}

// ---- hands ----

function zoom(factor, at) {
  const width = view.to - view.from, centre = view.from + at * width;
  const next = Math.min(Math.max(width * factor, 0.01), Math.max(run.end, 1));
  view.from = Math.max(0, Math.min(centre - at * next, Math.max(run.end, 1) - next));
  view.to = view.from + next;
  draw();
}

function listen(canvas, click) {
  let from = null;
  canvas.addEventListener("wheel", (event) => {
    if (canvas.id === "requests" && !event.ctrlKey && !event.shiftKey && Math.abs(event.deltaX) < Math.abs(event.deltaY) &&
        element("height").clientHeight > 0 && !event.altKey) return; // a long list scrolls; with a key held it zooms
    event.preventDefault();
    zoom(Math.exp((event.deltaY || event.deltaX) / 400), event.offsetX / canvas.clientWidth);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => { from = [event.offsetX, view.from, view.to]; });
  canvas.addEventListener("pointermove", (event) => {
    if (!from || !event.buttons) return;
    const moved = ((from[0] - event.offsetX) / canvas.clientWidth) * (from[2] - from[1]);
    const shift = Math.max(-from[1], Math.min(moved, Math.max(run.end, 1) - from[2]));
    [view.from, view.to] = [from[1] + shift, from[2] + shift];
    draw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (from && Math.abs(event.offsetX - from[0]) < 3) {
      click(view.from + (event.offsetX / canvas.clientWidth) * (view.to - view.from), event.offsetY);
    }
    from = null;
  });
}

listen(element("memory"), () => {});
listen(element("steps"), (ms, y) => {
  const lane = y < 22 ? 0 : 1;
  const found = run.steps.find((one) => one[0] % 2 === lane && one[1] <= ms && (one[2] === null || one[2] >= ms));
  if (found) chooseStep(found);
});
listen(element("requests"), (ms, y) => {
  const found = view.shown[Math.floor(element("scroll").scrollTop / ROW) + Math.floor(y / ROW)];
  if (found) chooseRequest(found);
});
element("scroll").addEventListener("scroll", drawRequests);
element("whole").addEventListener("click", () => {
  [view.from, view.to] = [0, Math.max(run.end, 1)];
  draw();
});
element("find").addEventListener("input", (event) => {
  const words = event.target.value.trim().toLowerCase();
  view.shown = words === "" ? run.requests : run.requests.filter((each) =>
    String(each.request) === words || [each.rid, each.state, each.cause].some((text) => text.toLowerCase().includes(words)));
  element("scroll").scrollTop = 0;
  draw();
});
window.addEventListener("resize", draw);
describe();
draw();
