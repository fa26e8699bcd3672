// Pointer, keyboard, legend; and the start.

function zoomBy(factor, left, top) {
  const before = view.zoom;
  const [x, y] = [left - view.gutter, top];
  view.zoom = Math.min(24, Math.max(1, view.zoom * factor));
  view.x = x - (x - view.x) * (view.zoom / before);
  view.y = y - (y - view.y) * (view.zoom / before);
  clampView();
  const pfn = cursor && rangeOf(cursor.level, cursor.index)[0];
  if (cursor && cursor.level !== level()) cursor = { level: level(), index: cellOfFrame(pfn) };
  if (cursor && !tip.hidden) show(cursor.index, false);
  else draw();
}

function cellOfFrame(pfn) {
  for (const [start, end, cell] of data.spans) {
    if (start <= pfn && pfn < end) {
      return (cell + Math.floor((pfn - start) / 2 ** data.fine)) >> level().shift;
    }
  }
  return 0;
}

const middle = () => {
  if (!cursor) return [(canvas.width + view.gutter) / 2, canvas.height / 2];
  const [left, top, side] = boxOf(cursor.level, cursor.index);
  return [left + side / 2, top + side / 2];
};

function fit() {
  Object.assign(view, { zoom: 1, x: 0, y: 0 });
  zoomBy(1, 0, 0);
}

function pointOf(event) {
  const box = canvas.getBoundingClientRect();
  const ratio = canvas.width / box.width;
  return [(event.clientX - box.left) * ratio, (event.clientY - box.top) * ratio];
}

function pointing() {
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { from: pointOf(event), x: view.x, y: view.y, moved: false };
    if (view.zoom > 1) canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = pointOf(event);
    if (drag && view.zoom > 1 && Math.hypot(x - drag.from[0], y - drag.from[1]) > 4) {
      drag.moved = true;
      canvas.classList.add("dragging");
      view.x = drag.x + x - drag.from[0];
      view.y = drag.y + y - drag.from[1];
      clampView();
      if (cursor) placeTip();
      draw();
    } else if (!kept && !drag) {
      const index = hit(x, y);
      if (index < 0) hide();
      else if (!cursor || cursor.index !== index || cursor.level !== level()) show(index, false);
    }
  });
  canvas.addEventListener("pointerup", (event) => {
    const moved = drag && drag.moved;
    drag = null;
    canvas.classList.remove("dragging");
    if (moved) return;
    const index = hit(...pointOf(event));
    const again = kept && cursor && cursor.index === index;
    if (index < 0 || again) return hide();
    kept = true;
    show(index, false);
  });
  canvas.addEventListener("pointercancel", () => { drag = null; });
  canvas.addEventListener("pointerleave", () => { if (!kept && !drag) hide(); });
  canvas.addEventListener("dblclick", (event) => zoomBy(event.shiftKey ? 0.5 : 2, ...pointOf(event)));
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return;
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY / 300), ...pointOf(event));
  }, { passive: false });
}

function keys() {
  const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const now = level();
    const current = cursor && cursor.level === now ? cursor.index : 0;
    const step = event.shiftKey ? 8 : 1;
    let next = current;
    if (event.key in ways) {
      const [x, y] = gridOf(now, current);
      const [dx, dy] = ways[event.key];
      const found = cursor ? cellAt(now, x + dx * step, y + dy * step) : 0;
      next = found < 0 ? current : found;
    } else if (event.key === "PageDown") next = Math.min(now.size - 1, current + step);
    else if (event.key === "PageUp") next = Math.max(0, current - step);
    else if (event.key === "Home") next = 0;
    else if (event.key === "End") next = now.size - 1;
    else if (event.key === "+" || event.key === "=") return zoomBy(1.5, ...middle());
    else if (event.key === "-") return zoomBy(1 / 1.5, ...middle());
    else if (event.key === "0") return fit();
    else if (event.key === "Enter" || event.key === " ") kept = !kept;
    else if (event.key === "Escape") { choose(null); hide(); return fit(); }
    else return undefined;
    event.preventDefault();
    reveal(now, next);
    show(next, true);
    return undefined;
  });
  canvas.addEventListener("blur", () => { if (!kept) hide(); });
}

// Move the view so that a cell is on it.
function reveal(now, index) {
  const [left, top, side] = boxOf(now, index);
  if (left < view.gutter) view.x += view.gutter - left;
  if (left + side > canvas.width) view.x -= left + side - canvas.width;
  if (top < 0) view.y -= top;
  if (top + side > canvas.height) view.y -= top + side - canvas.height;
  clampView();
}

function choose(what) {
  only = what;
  for (const list of document.querySelectorAll(".keylist")) list.classList.toggle("chosen", Boolean(what));
  for (const button of document.querySelectorAll(".keylist button")) {
    const on = what && (("type" in what && button.dataset.type === String(what.type))
      || ("zone" in what && button.dataset.zone === String(what.zone)));
    button.setAttribute("aria-pressed", String(Boolean(on)));
  }
  for (const each of levels) each.painted = null;
  draw();
}

function legend() {
  for (const button of document.querySelectorAll(".keylist button")) {
    button.disabled = false;
    const name = "type" in button.dataset ? "type" : "zone";
    button.addEventListener("click", () => {
      const value = Number(button.dataset[name]);
      choose(only && only[name] === value ? null : { [name]: value });
    });
  }
  for (const [id, value] of [["layout-curve", false], ["layout-line", true]]) {
    byId(id).addEventListener("click", () => {
      linear = value;
      byId("layout-curve").setAttribute("aria-pressed", String(!linear));
      byId("layout-line").setAttribute("aria-pressed", String(linear));
      byId("about-curve").hidden = linear;
      byId("about-line").hidden = !linear;
      hide();
      arrange();
    });
  }
  byId("zoom-in").addEventListener("click", () => zoomBy(1.5, ...middle()));
  byId("zoom-out").addEventListener("click", () => zoomBy(1 / 1.5, ...middle()));
  byId("zoom-fit").addEventListener("click", fit);
}

async function start() {
  prepare(await unpack(data.columns));
  readColours();
  byId("still").hidden = true;
  for (const id of ["tools", "canvas", "keys", "legend-hint"]) byId(id).hidden = false;
  legend();
  pointing();
  keys();
  arrange();
  let width = byId("stage").clientWidth;
  new ResizeObserver(() => {
    if (byId("stage").clientWidth === width) return;
    width = byId("stage").clientWidth;
    arrange();
  }).observe(byId("stage"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColours();
    choose(only);
  });
  document.documentElement.dataset.ready = "1";
}
// An old browser keeps the still picture, which says the same without the details.
if (data.cells && "DecompressionStream" in window && "OffscreenCanvas" in window) start();
