// Drawing. All charts share one axis of time, to the right of a gutter for words.

const STATE_COLOUR = {
  queued: "#b8bfc8", queued_compiling: "#d0b8e8", queued_fetching: "#e2b93b", queued_reserving: "#caa0d8",
  queued_receiving: "#a97fc9", prefilling: "#3b82d6", prefilling_sending: "#2458a0", decoding: "#2fa36b",
};
const END_COLOUR = { finished: "#1a7f37", aborted: "#cf222e" };
const PAGE_COLOUR = { owned: "#2fa36b", cached: "#b07aa1", deferred: "#e2b93b", quarantined: "#cf222e" };
const LOAD_COLOUR = { waiting: "#8a939e", running: "#e07b39", "tokens/s": "#4aa8a0" };
const STEP_COLOUR = ["#57749b", "#cf222e", "#e2b93b"];
const GUTTER = 250, ROW = 15, TOP = 14;

const element = (id) => document.getElementById(id);
const view = { from: 0, to: END, shown: run.requests, measure: MEASURES.arrival[1], chosen: null };
const broken = new Set(run.violations.map((each) => each.request));
const ink = () => getComputedStyle(document.body).color;
const faint = () => getComputedStyle(document.body).getPropertyValue("--faint");

function prepare(canvas, height) {
  const ratio = window.devicePixelRatio || 1, width = element("scroll").clientWidth;
  canvas.width = Math.max(1, width * ratio);
  canvas.height = height * ratio;
  canvas.style.height = height + "px";
  canvas.style.width = width + "px";
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, sans-serif";
  pen.fillStyle = ink();
  return [pen, width];
}

const place = (ms, width) => GUTTER + ((ms - view.from) / (view.to - view.from)) * (width - GUTTER);
const timeAt = (x, width) => view.from + ((x - GUTTER) / (width - GUTTER)) * (view.to - view.from);

// What lies left of the view must not be drawn over the words.
function clipped(pen, width, height, draw) {
  pen.save();
  pen.beginPath();
  pen.rect(GUTTER, 0, width - GUTTER, height);
  pen.clip();
  draw();
  pen.restore();
}

// The nearest of 1, 2, 5 times a power of ten that is not smaller.
function round125(size) {
  const power = 10 ** Math.floor(Math.log10(size));
  return power * [1, 2, 5, 10].find((step) => step * power >= size * 0.999);
}

function drawAxis() {
  const height = 22, [pen, width] = prepare(element("axis"), height);
  const step = round125(Math.max((view.to - view.from) / Math.max(1, (width - GUTTER) / 100), 1e-3));
  pen.fillText("time since the start", 4, 14);
  clipped(pen, width, height, () => {
    for (let at = Math.ceil(view.from / step) * step; at <= view.to; at += step) {
      const x = place(at, width);
      pen.fillRect(x, 16, 1, 6);
      pen.fillText(format(at), x + 3, 14);
    }
  });
}

// The words of a chart, and the scale of its curves.
function label(pen, height, title, rows) {
  pen.fillStyle = ink();
  pen.font = "600 11px system-ui, sans-serif";
  pen.fillText(title, 4, 12);
  pen.font = "11px system-ui, sans-serif";
  rows.forEach(([name, colour, text], index) => {
    const y = 17 + index * 14;
    pen.fillStyle = colour;
    pen.fillRect(4, y, 9, 9);
    pen.fillStyle = ink();
    pen.fillText(`${name} ${text}`, 17, y + 9);
  });
  pen.fillStyle = faint();
  pen.fillRect(GUTTER, TOP, 10000, 1);
}

// Rows [time, …] as steps from each to the next; rows closer than a pixel are one, with their largest value.
function curve(pen, width, rows, value, bottom, scale) {
  const begin = Math.max(0, firstAt(rows, view.from, (row) => row[0]) - 1);
  for (let at = begin, next; at < rows.length && rows[at][0] <= view.to; at = next) {
    const left = place(rows[at][0], width);
    let most = value(rows[at]);
    for (next = at + 1; next < rows.length && place(rows[next][0], width) - left < 1; next++) most = Math.max(most, value(rows[next]));
    const right = next < rows.length ? place(rows[next][0], width) : place(run.end, width);
    const size = Math.round(most * scale);
    if (size > 0) pen.fillRect(left, bottom - size, Math.max(1, right - left + 0.5), 2);
  }
}

const inView = (rows, value) => largest(rows, view.from, view.to, value);

function drawLoad() {
  const height = 96, bottom = height - 2, [pen, width] = prepare(element("load"), height);
  const waiting = inView(run.loads, (row) => row[1]), running = inView(run.loads, (row) => row[2]);
  const most = Math.max(1, waiting, running);
  const columns = Math.max(1, Math.floor((width - GUTTER) / 4)), rates = [];
  for (let column = 0; column < columns; column++) {
    const from = timeAt(GUTTER + column * 4, width);
    rates.push(tokensPerSecond(from - (view.to - view.from) / 100, from + (view.to - view.from) / 100));
  }
  const fastest = Math.max(1, ...rates);
  const scale = (bottom - TOP) / most;
  pen.globalAlpha = 0.35;
  pen.fillStyle = LOAD_COLOUR["tokens/s"];
  rates.forEach((rate, column) => {
    const size = (rate / fastest) * (bottom - TOP);
    pen.fillRect(GUTTER + column * 4, bottom - size, 4, size);
  });
  pen.globalAlpha = 1;
  clipped(pen, width, height, () => {
    pen.fillStyle = LOAD_COLOUR.waiting;
    curve(pen, width, run.loads, (row) => row[1], bottom, scale);
    pen.fillStyle = LOAD_COLOUR.running;
    curve(pen, width, run.loads, (row) => row[2], bottom, scale);
  });
  label(pen, height, `Requests: top line ${most}`, [
    ["waiting,", LOAD_COLOUR.waiting, `at most ${waiting}`],
    ["running,", LOAD_COLOUR.running, `at most ${running}${run.num_slots ? ` of ${run.num_slots} slots` : ""}`],
    ["output tokens a second,", LOAD_COLOUR["tokens/s"], `at most ${Math.round(fastest)}`],
  ]);
}

function drawMemory() {
  const height = 96, bottom = height - 2, [pen, width] = prepare(element("memory"), height);
  if (!run.pages.length) return;
  const names = Object.keys(PAGE_COLOUR), column = (name) => 1 + run.page_classes.indexOf(name);
  const used = (row) => names.reduce((sum, name) => sum + row[column(name)], 0);
  // Scaled to what was used at the most while in view: a run that used 2 % of the pool is not a line at the bottom.
  const most = Math.max(1, inView(run.pages, used));
  const pool = run.num_pages || most, rows = run.pages;
  clipped(pen, width, height, () => {
    const begin = Math.max(0, firstAt(rows, view.from, (row) => row[0]) - 1);
    for (let at = begin, next; at < rows.length && rows[at][0] <= view.to; at = next) {
      const left = place(rows[at][0], width);
      for (next = at + 1; next < rows.length && place(rows[next][0], width) - left < 1;) next++;
      const right = next < rows.length ? place(rows[next][0], width) : place(run.end, width);
      let base = bottom;
      for (const name of names) {
        const size = (rows[at][column(name)] / most) * (bottom - TOP);
        pen.fillStyle = PAGE_COLOUR[name];
        pen.fillRect(left, base - size, Math.max(1, right - left + 0.5), size);
        base -= size;
      }
    }
  });
  label(pen, height, `Pages: top line ${most} of ${pool} (${Math.round((100 * most) / pool)} %)`,
    names.map((name) => [`${name},`, PAGE_COLOUR[name], `at most ${inView(run.pages, (row) => row[column(name)])}`]));
}

function drawSteps() {
  const height = 44, [pen, width] = prepare(element("steps"), height);
  label(pen, height, "Steps", []);
  pen.fillText("blue committed, red rolled back", 4, 26);
  const begin = Math.max(0, firstAt(run.steps, view.from, (row) => row[1]) - 4), drawn = [-1, -1];
  clipped(pen, width, height, () => {
    for (let at = begin; at < run.steps.length && run.steps[at][1] <= view.to; at++) {
      const [step, planned, ended, kind] = run.steps[at], lane = step % 2;
      const left = place(planned, width), right = place(ended === null ? run.end : ended, width);
      if (kind === 0 && right < drawn[lane] + 0.5) continue;
      drawn[lane] = right;
      pen.fillStyle = STEP_COLOUR[kind];
      pen.fillRect(left, 2 + lane * 21, Math.max(1, right - left - 0.5), 19);
      if (right - left > 40) {
        pen.fillStyle = "#fff";
        pen.fillText(String(step), Math.max(left, GUTTER) + 3, 15 + lane * 21);
      }
    }
  });
}

function drawRequests() {
  const scroll = element("scroll"), height = scroll.clientHeight;
  element("height").style.height = Math.max(0, view.shown.length * ROW - height) + "px";
  const [pen, width] = prepare(element("requests"), height);
  const first = Math.floor(scroll.scrollTop / ROW);
  for (let row = first; row < view.shown.length && (row - first) * ROW < height; row++) {
    const each = view.shown[row], top = (row - first) * ROW;
    drawLife(pen, width, each, top);
    pen.fillStyle = broken.has(each.request) ? "#cf222e" : ink();
    pen.fillText((broken.has(each.request) ? "! " : "") + `${each.request} ${each.rid}`.slice(0, 24), 4, top + 11);
    pen.textAlign = "right";
    pen.fillText(view.measure(each), GUTTER - 6, top + 11);
    pen.textAlign = "left";
    if (each === view.chosen) {
      pen.strokeStyle = ink();
      pen.strokeRect(0.5, top + 0.5, width - 1, ROW - 1);
    }
  }
}

function drawLife(pen, width, each, top) {
  clipped(pen, width, top + ROW, () => {
    for (const [state, start, end] of each.intervals) {
      if (end < view.from || start > view.to) continue;
      pen.fillStyle = STATE_COLOUR[run.states[state]] || "#888";
      pen.fillRect(place(start, width), top + 2, Math.max(1, place(end, width) - place(start, width)), ROW - 4);
    }
    if (each.ended !== null) {
      pen.fillStyle = END_COLOUR[each.state] || "#888";
      pen.fillRect(place(each.ended, width) - 1, top + 1, 3, ROW - 2);
    }
  });
}

function draw() {
  drawAxis();
  drawLoad();
  drawMemory();
  drawSteps();
  drawRequests();
  element("range").textContent = `${format(view.from)} to ${format(view.to)}`;
}
