// Where cells lie: along the Hilbert curve or in lines, zoomed and moved.

const view = { columns: 1, rows: 1, cell: 1, gap: 0, gutter: 0, zoom: 1, x: 0, y: 0 };
let linear = false;
let only = null; // { type } or { zone } that is highlighted
let cursor = null; // { level, index }
let kept = false; // the box stays open
const tileCells = 1 << (2 * data.tile_order);
const tileSide = 1 << data.tile_order;

const level = () => levels[view.zoom > 1.4 && levels.length > 1 ? 1 : 0];
const pitch = () => tileSide * view.cell + view.gap;

// Column and row of a cell in a grid of all tiles.
function gridOf(at, index) {
  const wide = view.columns * tileSide;
  if (linear) {
    const cell = at.side > tileSide ? index >> 2 : index;
    const [x, y] = [cell % wide, Math.floor(cell / wide)];
    return at.side > tileSide ? [2 * x + (index & 1), 2 * y + ((index >> 1) & 1)] : [x, y];
  }
  const area = at.side * at.side;
  const tile = Math.floor(index / area);
  const place = at.place[index % area];
  const x = place % at.side;
  return [
    (tile % view.columns) * at.side + x,
    Math.floor(tile / view.columns) * at.side + (place - x) / at.side,
  ];
}

// The cell at a column and row, or -1.
function cellAt(at, x, y) {
  if (x < 0 || y < 0 || x >= view.columns * at.side) return -1;
  let index;
  if (linear) {
    const twice = at.side > tileSide;
    const [cx, cy] = twice ? [x >> 1, y >> 1] : [x, y];
    index = cy * view.columns * tileSide + cx;
    if (twice) index = index * 4 + (x & 1) + 2 * (y & 1);
  } else {
    const tile = Math.floor(y / at.side) * view.columns + Math.floor(x / at.side);
    index = tile * at.side * at.side + at.step[(y % at.side) * at.side + (x % at.side)];
  }
  return index < at.size ? index : -1;
}

// Left, top and side of a cell on the canvas, in device pixels.
function boxOf(at, index) {
  const [x, y] = gridOf(at, index);
  const side = (view.cell * tileSide) / at.side;
  const place = (v) => Math.floor(v / at.side) * pitch() + (v % at.side) * side;
  return [
    place(x) * view.zoom + view.x + view.gutter,
    place(y) * view.zoom + view.y,
    side * view.zoom,
  ];
}

function hit(left, top) {
  const at = level();
  const side = (view.cell * tileSide) / at.side;
  const part = (v) => {
    const tile = Math.floor(v / pitch());
    const inside = Math.floor((v - tile * pitch()) / side);
    return inside < at.side ? tile * at.side + inside : -1;
  };
  if (left < view.gutter) return -1;
  const x = part((left - view.gutter - view.x) / view.zoom);
  const y = part((top - view.y) / view.zoom);
  return x < 0 || y < 0 ? -1 : cellAt(at, x, y);
}

function arrange() {
  const ratio = window.devicePixelRatio || 1;
  const stage = byId("stage");
  const stacked = getComputedStyle(stage).display === "block";
  const most = stacked ? stage.clientWidth : stage.clientWidth - 320;
  const gutter = most > 520 ? 58 : 0;
  const tiles = Math.max(1, Math.ceil(levels[0].size / tileCells));
  const tallest = Math.min(720, Math.max(340, window.innerHeight * 0.78)) * ratio;
  view.gutter = Math.round(gutter * ratio);
  const room = Math.floor(most * ratio) - view.gutter;
  const gap = Math.round(2 * ratio);
  view.cell = 1;
  for (let cell = 1; cell <= 16; cell++) {
    const one = tileSide * cell + gap;
    const columns = Math.floor((room + gap) / one);
    if (columns < 1) break;
    const rows = Math.ceil(tiles / Math.min(columns, tiles));
    if (cell > 1 && rows * one > tallest) break;
    view.cell = cell;
    view.rows = rows;
    view.columns = Math.ceil(tiles / rows);
  }
  view.gap = linear ? 0 : gap;
  canvas.width = view.gutter + Math.max(1, view.columns * pitch() - view.gap);
  canvas.height = view.rows * pitch() - view.gap;
  canvas.style.width = `${canvas.width / ratio}px`;
  canvas.style.height = `${canvas.height / ratio}px`;
  // Wide pages: the legend takes what the picture leaves.
  byId("figure").style.width = stacked ? "" : `${Math.max(360, canvas.width / ratio)}px`;
  stage.classList.toggle("fitted", !stacked);
  Object.assign(canvas.dataset, {
    columns: view.columns, cell: view.cell, gap: view.gap, gutter: view.gutter,
  });
  for (const each of levels) each.painted = null;
  clampView();
  draw();
}

function clampView() {
  const wide = view.columns * pitch() - view.gap;
  const high = view.rows * pitch() - view.gap;
  view.zoom = Math.min(24, Math.max(1, view.zoom));
  const room = canvas.width - view.gutter;
  view.x = Math.min(0, Math.max(view.x, Math.min(0, room - wide * view.zoom)));
  view.y = Math.min(0, Math.max(view.y, Math.min(0, canvas.height - high * view.zoom)));
  canvas.classList.toggle("zoomed", view.zoom > 1);
}
